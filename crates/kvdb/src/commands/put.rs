//! `kvdb put`

use super::client;
use crate::cli::ClientArgs;
use crate::exit::Failure;
use crate::input::Words;
use crate::output::{Output, insert_bytes, shown};
use crate::units;
use kvdb_client::WriteOptions;
use kvdb_model::{Condition, Version};
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// Set a key.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb put greeting hello
  kvdb set greeting hello
  kvdb put picture --value-file cat.png
  tar c src | kvdb put backup -
  kvdb put lock me --if-absent --ttl 30s

`-` in place of a word is standard input. `--` ends the options, for words that begin with a dash.")]
pub(crate) struct Args {
    /// KEY and VALUE; leave out what comes from a file
    #[arg(value_name = "KEY VALUE", num_args = 0..)]
    words: Vec<OsString>,
    /// Take the key from a file, all its bytes
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Take the value from a file, all its bytes
    #[arg(long, value_name = "FILE")]
    value_file: Option<PathBuf>,
    /// Time to live, such as 30s or 24h
    #[arg(long, value_name = "TIME", value_parser = units::parse_positive_time, conflicts_with = "ttl_ms")]
    ttl: Option<u64>,
    /// The same in milliseconds
    #[arg(long, hide = true, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    ttl_ms: Option<u64>,
    /// Print the previous value
    #[arg(long)]
    previous: bool,
    #[command(flatten)]
    condition: ConditionArgs,
}

/// When to write.
#[derive(clap::Args)]
#[group(multiple = false)]
pub(crate) struct ConditionArgs {
    /// Write only if the key doesn't exist
    #[arg(long)]
    if_absent: bool,
    /// Write only if the key exists
    #[arg(long)]
    if_present: bool,
    /// Write only if the key has this version
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    /// Write only if the key has this value
    #[arg(long, value_name = "VALUE")]
    if_value: Option<OsString>,
}

impl ConditionArgs {
    pub(super) fn into_condition(self) -> Option<Condition> {
        if self.if_absent {
            return Some(Condition::IfAbsent);
        }
        if self.if_present {
            return Some(Condition::IfPresent);
        }
        match (self.if_version, self.if_value) {
            (Some(version), _) => Some(Condition::IfVersion(Version(version))),
            (None, value) => value.map(|value| Condition::IfValue(value.into_vec().into())),
        }
    }
}

pub(super) async fn run(command: Args, args: &ClientArgs) -> Result<(), Failure> {
    let mut words = Words::new(command.words);
    let key = words.key(command.key_file.as_deref())?;
    let value = words.value(command.value_file.as_deref())?;
    words.end()?;
    let options = WriteOptions {
        ttl_ms: command.ttl.or(command.ttl_ms),
        condition: command.condition.into_condition(),
        return_previous: command.previous,
    };
    let written = client(args)?.put_with(key.clone(), value, options).await?;
    let mut output = Output::new();
    if args.json {
        let mut object = Map::new();
        insert_bytes(&mut object, "key", &key);
        object.insert("applied".into(), written.applied.into());
        object.insert("version".into(), written.version.0.into());
        if let Some(previous) = &written.previous {
            insert_bytes(&mut object, "previous", &previous.value);
        }
        output.json(&Value::Object(object))?;
    } else if let Some(previous) = &written.previous {
        output.line(shown(&previous.value))?;
    } else if written.applied {
        output.line("OK")?;
    }
    output.finish()?;
    match written.applied {
        true => Ok(()),
        false => Err(Failure::Refused("the condition failed; nothing was written".into())),
    }
}
