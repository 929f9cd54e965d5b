//! `kvdb del`

use super::client;
use crate::cli::ClientArgs;
use crate::exit::Failure;
use crate::input::Words;
use crate::output::{Output, insert_bytes};
use bytes::Bytes;
use kvdb_client::{BatchOperation, Client};
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// Most keys in one request.
const KEYS_A_REQUEST: usize = 1000;

/// Delete keys.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb del greeting
  kvdb delete greeting
  kvdb del user:1 user:2 user:3

Prints how many were there. Exit code 1: none was.")]
pub(crate) struct Args {
    /// Keys; a single `-` is one key from standard input
    #[arg(value_name = "KEY")]
    words: Vec<OsString>,
    /// Take one key from a file, all its bytes
    #[arg(long, value_name = "FILE", conflicts_with = "words")]
    key_file: Option<PathBuf>,
}

pub(super) async fn run(command: Args, args: &ClientArgs) -> Result<(), Failure> {
    let keys = match command.words.len() {
        0 | 1 => vec![Words::new(command.words).key(command.key_file.as_deref())?],
        _ => command.words.into_iter().map(|word| Bytes::from(word.into_vec())).collect(),
    };
    let client = client(args)?;
    let mut output = Output::new();
    let mut removed = 0;
    let mut failed = None;
    for keys in keys.chunks(KEYS_A_REQUEST) {
        for (key, result) in keys.iter().zip(delete(&client, keys).await?) {
            match result {
                Ok(was_there) => {
                    removed += u64::from(was_there);
                    if args.json {
                        output.json(&report(key, was_there))?;
                    }
                }
                Err(failure) => failed = failed.or(Some(failure)),
            }
        }
    }
    if !args.json {
        output.line(removed.to_string())?;
    }
    output.finish()?;
    match (failed, removed) {
        (Some(failure), _) => Err(failure),
        (None, 0) => Err(Failure::NotFound("not found".to_owned())),
        (None, _) => Ok(()),
    }
}

async fn delete(client: &Client, keys: &[Bytes]) -> Result<Vec<Result<bool, Failure>>, Failure> {
    if let [key] = keys {
        return Ok(vec![Ok(client.delete(key.clone()).await?.applied)]);
    }
    let operations: Vec<_> = keys.iter().cloned().map(BatchOperation::delete).collect();
    let results = client.batch_write(&operations, false).await?.into_iter();
    Ok(results.map(|result| Ok(result?.applied)).collect())
}

fn report(key: &Bytes, was_there: bool) -> Value {
    let mut object = Map::new();
    insert_bytes(&mut object, "key", key);
    object.insert("applied".into(), was_there.into());
    Value::Object(object)
}
