//! Structured logs on standard error.

use std::str::FromStr;
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            other => Err(format!("{other:?} is not a log format; it is text or json")),
        }
    }
}

/// Starts logging. `filter` is in the form of `tracing`'s `EnvFilter`, such as `info` or
/// `info,kvdb_node=debug`; an unreadable one counts as `info`. A second call changes nothing.
///
/// A line that can't be written is lost, and nothing else: the disk that standard error goes to may
/// be the one that is full.
pub fn init(format: LogFormat, filter: &str) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    // Told of an error the library would say so on standard error, and panic where it can't.
    let builder = tracing_subscriber::fmt()
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let _ = match format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
