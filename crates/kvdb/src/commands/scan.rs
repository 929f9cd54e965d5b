//! `kvdb scan`

use super::client;
use crate::cli::ClientArgs;
use crate::exit::Failure;
use crate::output::{Output, insert_bytes, printable};
use kvdb_client::{Item, ScanOptions};
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

/// List keys with their values.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb scan --prefix user: --limit 10
  kvdb ls --keys-only
  kvdb scan --start a --end b --keys-only

Prints key, tab, value; what isn't printable is escaped (`export` writes exact bytes). Keys come in \
order in range keyspaces, and in no particular order in hash keyspaces such as `default`.")]
pub(crate) struct Args {
    /// List only keys that begin with this
    #[arg(long, value_name = "PREFIX", conflicts_with_all = ["start", "end"])]
    prefix: Option<OsString>,
    /// Start at this key
    #[arg(long, value_name = "KEY")]
    start: Option<OsString>,
    /// Stop before this key
    #[arg(long, value_name = "KEY")]
    end: Option<OsString>,
    /// Maximum number of keys
    #[arg(long, value_name = "COUNT")]
    limit: Option<u64>,
    /// List from the last key to the first (range keyspaces)
    #[arg(long)]
    reverse: bool,
    /// Leave out values
    #[arg(long)]
    keys_only: bool,
}

pub(super) async fn run(command: Args, args: &ClientArgs) -> Result<(), Failure> {
    let bytes = |word: Option<OsString>| word.unwrap_or_default().into_vec().into();
    let mut scan = client(args)?.scan(ScanOptions {
        prefix: bytes(command.prefix),
        start: bytes(command.start),
        end: bytes(command.end),
        limit: command.limit,
        reverse: command.reverse,
        keys_only: command.keys_only,
        ..ScanOptions::default()
    });
    let mut output = Output::new();
    while let Some(items) = scan.next_chunk().await? {
        for item in &items {
            match args.json {
                true => output.json(&object(item, command.keys_only))?,
                false if command.keys_only => output.line(printable(&item.key))?,
                false => output.line(format!("{}\t{}", printable(&item.key), shown(item)))?,
            }
        }
        output.flush()?;
    }
    output.finish()
}

/// The value of a string; of anything else what it is.
fn shown(item: &Item) -> String {
    match &item.kind {
        Some(kind) => format!("({kind})"),
        None => printable(&item.value),
    }
}

fn object(item: &Item, keys_only: bool) -> Value {
    let mut object = Map::new();
    insert_bytes(&mut object, "key", &item.key);
    match &item.kind {
        Some(kind) => {
            object.insert("type".into(), kind.as_str().into());
        }
        None if keys_only => {}
        None => insert_bytes(&mut object, "value", &item.value),
    }
    object.insert("version".into(), item.version.0.into());
    if let Some(expires_at_ms) = item.expires_at_ms {
        object.insert("expires_at_ms".into(), expires_at_ms.into());
    }
    Value::Object(object)
}
