//! `kvdb expire`

use super::client;
use super::put::ConditionArgs;
use crate::cli::ClientArgs;
use crate::exit::Failure;
use crate::input::Words;
use crate::output::{Output, insert_bytes};
use crate::units;
use kvdb_client::WriteOptions;
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::path::PathBuf;

/// Change when a key expires.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb expire session --ttl 60s
  kvdb expire session --never

The value stays as it is. Exit code 1: not found.")]
pub(crate) struct Args {
    /// Key, or `-` for standard input
    #[arg(value_name = "KEY", num_args = 0..)]
    words: Vec<OsString>,
    /// Take the key from a file, all its bytes
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    #[command(flatten)]
    until: Until,
    #[command(flatten)]
    condition: ConditionArgs,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Until {
    /// Time to live from now on, such as 30s or 24h
    #[arg(long, value_name = "TIME", value_parser = units::parse_positive_time)]
    ttl: Option<u64>,
    /// The same in milliseconds
    #[arg(long, hide = true, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    ttl_ms: Option<u64>,
    /// Keep the key for good
    #[arg(long)]
    never: bool,
}

pub(super) async fn run(command: Args, args: &ClientArgs) -> Result<(), Failure> {
    let mut words = Words::new(command.words);
    let key = words.key(command.key_file.as_deref())?;
    words.end()?;
    let condition = command.condition.into_condition();
    let is_conditional = condition.is_some();
    let ttl_ms = command.until.ttl.or(command.until.ttl_ms);
    let options = WriteOptions { ttl_ms, condition, ..WriteOptions::default() };
    let written = client(args)?.expire_with(key.clone(), options).await?;
    let mut output = Output::new();
    if args.json {
        let mut object = Map::new();
        insert_bytes(&mut object, "key", &key);
        object.insert("applied".into(), written.applied.into());
        object.insert("version".into(), written.version.0.into());
        output.json(&Value::Object(object))?;
    } else if written.applied {
        output.line("OK")?;
    }
    output.finish()?;
    match (written.applied, is_conditional) {
        (true, _) => Ok(()),
        (false, true) => Err(Failure::Refused("the condition failed; nothing was changed".into())),
        (false, false) => Err(Failure::NotFound("not found".to_owned())),
    }
}
