//! `kvdb watch`

use super::client;
use crate::cli::ClientArgs;
use crate::exit::Failure;
use crate::output::{Output, insert_bytes, printable, text_or_base64};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use kvdb_client::{WatchEvent, WatchOptions, WatchUpdate};
use kvdb_model::Version;
use serde_json::{Map, Value, json};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

/// Print changes as they happen.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb watch --prefix user:
  kvdb watch --key leader --json
  kvdb watch --prefix user: --cursor AgAAAAE...

Prints PUT or DELETE, key, value, with tabs between; what isn't printable is escaped. Of a hash, list, \
set or sorted set it prints, in place of the value, how many elements it has and which have changed, up \
to 16 by name: (hash of 2: name, born); … stands for others. Without --key \
and --prefix the whole keyspace is watched. With --json each line has the cursor from which another \
watch of the same keys goes on; `gap` says that changes were missed: read the keys again. Where --limit \
falls among changes that came together, their cursor is the one before all of them.")]
pub(crate) struct Args {
    /// Watch this key only
    #[arg(long, value_name = "KEY", conflicts_with = "prefix")]
    key: Option<OsString>,
    /// Watch only keys that begin with this
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<OsString>,
    /// Start after this version, as far back as the keyspace's history goes
    #[arg(long, value_name = "VERSION", conflicts_with = "cursor")]
    from_version: Option<u64>,
    /// Go on where an earlier watch ended
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
    /// Stop after this many changes
    #[arg(long, value_name = "COUNT")]
    limit: Option<u64>,
    /// Print progress marks too
    #[arg(long)]
    progress: bool,
}

fn bytes(word: Option<OsString>) -> Bytes {
    word.map(|word| Bytes::from(word.into_vec())).unwrap_or_default()
}

pub(super) async fn run(command: Args, args: &ClientArgs) -> Result<(), Failure> {
    let cursor = match &command.cursor {
        Some(text) => STANDARD
            .decode(text)
            .map_err(|_| Failure::Usage("--cursor is not one that a watch has printed".into()))?,
        None => Vec::new(),
    };
    let mut watch = client(args)?.watch(WatchOptions {
        key: bytes(command.key),
        prefix: bytes(command.prefix),
        from_version: command.from_version.map(Version),
        cursor: cursor.into(),
    });
    let mut output = Output::new();
    let mut left = command.limit.unwrap_or(u64::MAX);
    // Before the update at hand.
    let mut before = command.cursor.clone().unwrap_or_default();
    while left > 0 {
        let update = tokio::select! {
            update = watch.next() => update?,
            _ = tokio::signal::ctrl_c() => return output.finish(),
        };
        let cursor = STANDARD.encode(watch.cursor());
        match update {
            WatchUpdate::Events(mut events) => {
                // There is no cursor between changes that came together.
                let is_cut = left < events.len() as u64;
                events.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                left -= events.len() as u64;
                for event in &events {
                    print(&mut output, event, if is_cut { &before } else { &cursor }, args.json)?;
                }
            }
            WatchUpdate::Gap(version) => {
                match args.json {
                    true => {
                        output
                            .json(&json!({ "gap_up_to_version": version.0, "cursor": cursor }))?;
                    }
                    false => output.line(format!("GAP\t{version}"))?,
                };
            }
            WatchUpdate::Progress(version) if command.progress => {
                match args.json {
                    true => {
                        output.json(&json!({ "progress_version": version.0, "cursor": cursor }))?;
                    }
                    false => output.line(format!("PROGRESS\t{version}"))?,
                };
            }
            WatchUpdate::Progress(_) => {}
        }
        output.flush()?;
        before = cursor;
    }
    output.finish()
}

/// What has changed in a collection: `(hash of 3: name, born, …)`.
fn collection(kind: &str, event: &WatchEvent) -> String {
    let mut names: Vec<_> = event.elements.iter().map(|name| printable(name)).collect();
    if event.more_elements {
        names.push("…".to_owned());
    }
    let names = if names.is_empty() { names } else { vec![format!(": {}", names.join(", "))] };
    format!("({kind} of {}{})", event.count, names.concat())
}

fn print(output: &mut Output, event: &WatchEvent, cursor: &str, json: bool) -> Result<(), Failure> {
    if !json {
        let key = printable(&event.key);
        return match &event.value {
            Some(value) => {
                let of_type = event.kind.as_ref().map(|kind| collection(kind, event));
                let value = of_type.unwrap_or_else(|| printable(value));
                output.line(format!("PUT\t{key}\t{value}"))
            }
            None => output.line(format!("DELETE\t{key}")),
        };
    }
    let mut object = Map::new();
    let kind = if event.value.is_some() { "PUT" } else { "DELETE" };
    object.insert("kind".into(), kind.into());
    insert_bytes(&mut object, "key", &event.key);
    match (&event.kind, &event.value) {
        (Some(kind), _) => {
            object.insert("type".into(), kind.as_str().into());
            object.insert("count".into(), event.count.into());
            let elements = event.elements.iter().map(|name| text_or_base64(name)).collect();
            object.insert("elements".into(), Value::Array(elements));
            object.insert("more_elements".into(), event.more_elements.into());
        }
        (None, Some(value)) => insert_bytes(&mut object, "value", value),
        (None, None) => {}
    }
    object.insert("version".into(), event.version.0.into());
    if let Some(expires_at_ms) = event.expires_at_ms {
        object.insert("expires_at_ms".into(), expires_at_ms.into());
    }
    object.insert("cursor".into(), cursor.into());
    output.json(&Value::Object(object))
}
