//! `kvdb batch-get`

use super::get::FreshnessArgs;
use super::{client, insert_record};
use crate::cli::ClientArgs;
use crate::exit::Failure;
use crate::output::{Output, insert_bytes, printable};
use bytes::Bytes;
use kvdb_client::Record;
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

/// Most keys in one request.
const KEYS_A_REQUEST: usize = 1000;

/// Print the values of many keys.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb batch-get user:1 user:2
  kvdb batch-get user:1 user:2 --json

Prints key, tab, value for each key that is there, in the order asked; what isn't printable is \
escaped. Exit code 1: some are not there.")]
pub(crate) struct Args {
    /// Keys
    #[arg(value_name = "KEY", required = true)]
    words: Vec<OsString>,
    #[command(flatten)]
    freshness: FreshnessArgs,
}

pub(super) async fn run(command: Args, args: &ClientArgs) -> Result<(), Failure> {
    let keys: Vec<Bytes> = command.words.into_iter().map(|word| word.into_vec().into()).collect();
    let client = client(args)?;
    let mut output = Output::new();
    let mut missing = Vec::new();
    for keys in keys.chunks(KEYS_A_REQUEST) {
        let results = client.batch_get(keys.to_vec(), command.freshness.options()).await?;
        for (key, result) in keys.iter().zip(results) {
            let record = result?;
            print(&mut output, key, record.as_ref(), args.json)?;
            if record.is_none() {
                missing.push(printable(key));
            }
        }
    }
    output.finish()?;
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::NotFound(format!("not found: {}", missing.join(" "))))
}

fn print(
    output: &mut Output,
    key: &Bytes,
    record: Option<&Record>,
    json: bool,
) -> Result<(), Failure> {
    if json {
        let mut object = Map::new();
        insert_bytes(&mut object, "key", key);
        object.insert("found".into(), record.is_some().into());
        if let Some(record) = record {
            insert_bytes(&mut object, "value", &record.value);
            insert_record(&mut object, record);
        }
        return output.json(&Value::Object(object));
    }
    match record {
        Some(record) => output.line(format!("{}\t{}", printable(key), printable(&record.value))),
        None => Ok(()),
    }
}
