//! `kvdb incr`

use super::client;
use crate::cli::ClientArgs;
use crate::exit::Failure;
use crate::input::Words;
use crate::output::{Output, insert_bytes};
use serde_json::{Map, Value};
use std::ffi::OsString;

/// Add to a counter.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb incr visits
  kvdb incr stock --by -3

A counter is a value that is a decimal number; a key that isn't there counts as 0. Prints the sum.")]
pub(crate) struct Args {
    /// Key
    #[arg(value_name = "KEY")]
    key: OsString,
    /// Number to add
    #[arg(long, value_name = "DELTA", default_value_t = 1, allow_negative_numbers = true)]
    by: i64,
}

pub(super) async fn run(command: Args, args: &ClientArgs) -> Result<(), Failure> {
    let key = Words::new(vec![command.key]).key(None)?;
    let counter = client(args)?.increment(key.clone(), command.by).await?;
    let mut output = Output::new();
    if args.json {
        let mut object = Map::new();
        insert_bytes(&mut object, "key", &key);
        object.insert("value".into(), counter.value.into());
        object.insert("version".into(), counter.version.0.into());
        output.json(&Value::Object(object))?;
    } else {
        output.line(counter.value.to_string())?;
    }
    output.finish()
}
