//! `kvdb get`

use super::{client, insert_record};
use crate::cli::ClientArgs;
use crate::exit::Failure;
use crate::input::Words;
use crate::output::{Output, insert_bytes, shown};
use crate::units;
use kvdb_client::{Consistency, ReadOptions};
use kvdb_model::Version;
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::path::PathBuf;

/// Print the value of a key.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb get greeting
  kvdb get picture --raw > cat.png
  kvdb get greeting --json

Without --raw a value that isn't text is shown with escapes like \\xff. Exit code 1: not found.")]
pub(crate) struct Args {
    /// Key, or `-` for standard input
    #[arg(value_name = "KEY", num_args = 0..)]
    words: Vec<OsString>,
    /// Take the key from a file, all its bytes
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Write exactly the stored bytes, with no newline after them
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    #[command(flatten)]
    freshness: FreshnessArgs,
}

/// How fresh a read must be.
#[derive(clap::Args, Clone, Copy)]
pub(crate) struct FreshnessArgs {
    /// How fresh the answer must be
    #[arg(long, value_enum, default_value_t = Freshness::Strong)]
    consistency: Freshness,
    /// Maximum age of the state that a bounded read sees, such as 500ms or 5s
    #[arg(long, value_name = "TIME", value_parser = units::parse_time, conflicts_with = "max_staleness_ms")]
    max_staleness: Option<u64>,
    /// The same in milliseconds
    #[arg(long, hide = true, value_name = "MS")]
    max_staleness_ms: Option<u64>,
    /// Lowest version that the state of a bounded or eventual read must have reached
    #[arg(long, value_name = "VERSION", default_value_t = 0, hide_default_value = true)]
    min_version: u64,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Freshness {
    /// Sees every acknowledged write
    Strong,
    /// From any replica that is known to be fresh enough
    Bounded,
    /// From any replica
    Eventual,
}

impl FreshnessArgs {
    pub(super) fn options(self) -> ReadOptions {
        let consistency = match self.consistency {
            Freshness::Strong => Consistency::Strong,
            Freshness::Bounded => Consistency::Bounded,
            Freshness::Eventual => Consistency::Eventual,
        };
        ReadOptions {
            consistency,
            head_only: false,
            max_staleness_ms: self.max_staleness.or(self.max_staleness_ms),
            min_version: Version(self.min_version),
        }
    }
}

pub(super) async fn run(command: Args, args: &ClientArgs) -> Result<(), Failure> {
    let mut words = Words::new(command.words);
    let key = words.key(command.key_file.as_deref())?;
    words.end()?;
    let record = client(args)?.get_with(key.clone(), command.freshness.options()).await?;
    let mut output = Output::new();
    match (&record, args.json, command.raw) {
        (Some(record), false, true) => output.raw(&record.value)?,
        (Some(record), false, false) => output.line(shown(&record.value))?,
        (None, false, _) => {}
        (record, true, _) => {
            let mut object = Map::new();
            insert_bytes(&mut object, "key", &key);
            object.insert("found".into(), record.is_some().into());
            if let Some(record) = record {
                insert_bytes(&mut object, "value", &record.value);
                insert_record(&mut object, record);
            }
            output.json(&Value::Object(object))?;
        }
    }
    output.finish()?;
    match record {
        Some(_) => Ok(()),
        None => Err(Failure::NotFound("not found".to_owned())),
    }
}
