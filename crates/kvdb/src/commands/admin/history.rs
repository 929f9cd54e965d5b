//! Change history on the command line.

use super::SetHistory;
use super::change::say;
use crate::exit::Failure;
use crate::units;
use kvdb_client::AdminClient;
use kvdb_model::HistoryLimits;
use serde_json::json;
use std::ops::RangeInclusive;

/// Milliseconds of history, within bounds.
pub(super) fn parse_time(text: &str) -> Result<u64, String> {
    within(units::parse_time(text)?, HistoryLimits::AGES_MS, units::show_time)
}

/// Bytes of history, within bounds.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    within(units::parse_size(text)?, HistoryLimits::SIZES_BYTES, units::show_size)
}

fn within(
    value: u64,
    accepted: RangeInclusive<u64>,
    show: fn(u64) -> String,
) -> Result<u64, String> {
    match accepted.contains(&value) {
        true => Ok(value),
        false => Err(format!("expected {} to {}", show(*accepted.start()), show(*accepted.end()))),
    }
}

/// What was asked for, if anything was.
pub(super) fn limits(age_ms: Option<u64>, bytes: Option<u64>) -> Option<HistoryLimits> {
    (age_ms.is_some() || bytes.is_some()).then(|| HistoryLimits {
        max_age_ms: age_ms.unwrap_or(HistoryLimits::DEFAULT_AGE_MS),
        max_bytes: bytes.unwrap_or(HistoryLimits::DEFAULT_BYTES),
    })
}

/// For people.
pub(super) fn words(limits: Option<&HistoryLimits>) -> String {
    limits.map_or("-".to_owned(), |limits| {
        let (age, bytes) = (limits.max_age_ms, limits.max_bytes);
        format!("{}, {} a shard", units::show_time(age), units::show_size(bytes))
    })
}

pub(super) async fn set(
    admin: &AdminClient,
    command: SetHistory,
    json: bool,
) -> Result<(), Failure> {
    let limits = if command.off { None } else { limits(command.time, command.bytes) };
    let version = admin.set_history(&command.name, limits).await?;
    let history = limits
        .map(|limits| json!({ "max_age_ms": limits.max_age_ms, "max_bytes": limits.max_bytes }));
    let document = json!({ "name": command.name, "history": history, "map_version": version.0 });
    let words = match limits {
        Some(limits) => {
            format!("keyspace {} keeps changes: {}", command.name, words(Some(&limits)))
        }
        None => format!("keyspace {} keeps no changes any more", command.name),
    };
    say(json, &document, words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_within_its_bounds() {
        assert_eq!(parse_time("7d"), Ok(7 * 86_400_000));
        assert_eq!(parse_time("0s"), Err("expected 1 s to 30 d".into()));
        assert!(parse_time("31d").is_err());
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        assert_eq!(parse_size("1GiB"), Err("expected 1 MiB to 256 MiB".into()));
        let limits = HistoryLimits { max_age_ms: 5_400_000, max_bytes: 3 << 20 };
        assert_eq!(words(Some(&limits)), "90 m, 3 MiB a shard");
    }
}
