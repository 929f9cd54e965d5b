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
            other => Err(format!("`{other}` is not a log format; use text or json")),
        }
    }
}

/// Starts logging. `filter` is in the form of `tracing`'s `EnvFilter`, such as `info` or
/// `info,kvdb_node=debug`. A second call changes nothing.
///
/// A line that can't be written is lost, and nothing else: the disk that standard error goes to may
/// be the one that is full.
///
/// # Errors
/// A filter that isn't one, with the accepted form.
pub fn init(format: LogFormat, filter: &str) -> Result<(), String> {
    let filter = parse(filter)?;
    // Told of an error the library would say so on standard error, and panic where it can't.
    let builder = tracing_subscriber::fmt()
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let _ = match format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    Ok(())
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    let form = "a log filter is a level (error, warn, info, debug, trace, off), or target=level, separated by commas, \
                such as info,kvdb_node=debug";
    // A word alone would be taken for a target, at every level.
    let levels = ["error", "warn", "info", "debug", "trace", "off"];
    let is_level = |word: &str| levels.iter().any(|level| word.eq_ignore_ascii_case(level));
    let mut parts = filter.split(',').map(str::trim).filter(|part| !part.is_empty());
    if let Some(bad) = parts.find(|part| !part.contains(['=', '[']) && !is_level(part)) {
        return Err(format!("`{bad}` is not a level: {form}"));
    }
    EnvFilter::try_new(filter).map_err(|error| format!("`{filter}` is refused ({error}): {form}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_is_none_is_refused_with_the_accepted_form() {
        for good in ["info", "warn,kvdb_node=debug", "OFF", "", "info,[request]=trace"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["nonsense=zzz", "verbose", "info,loud", "a=b=c"] {
            let refused = parse(bad).err().unwrap_or_default();
            assert!(refused.contains("such as info,kvdb_node=debug"), "{bad}: {refused}");
        }
    }
}
