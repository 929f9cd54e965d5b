//! Change history on the command line: times and sizes with their units.

use super::SetHistory;
use super::change::say;
use crate::exit::Failure;
use kvdb_client::AdminClient;
use kvdb_model::HistoryLimits;
use serde_json::json;

const TIMES: [(&str, u64); 5] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 24 * 3_600_000)];
const SIZES: [(&str, u64); 4] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1)];

fn parse(text: &str, units: &[(&str, u64)], example: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    let value =
        number.parse::<u64>().ok().zip(factor).and_then(|(n, factor)| n.checked_mul(factor));
    let names: Vec<&str> = units.iter().map(|(name, _)| *name).collect();
    value.ok_or_else(|| format!("a number and one of {}, such as {example}", names.join(", ")))
}

/// Milliseconds.
pub(super) fn parse_time(text: &str) -> Result<u64, String> {
    parse(text, &TIMES, "24h")
}

/// Bytes.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    parse(text, &SIZES, "64MiB")
}

/// What was asked for, if anything was.
pub(super) fn limits(age_ms: Option<u64>, bytes: Option<u64>) -> Option<HistoryLimits> {
    (age_ms.is_some() || bytes.is_some()).then(|| HistoryLimits {
        max_age_ms: age_ms.unwrap_or(HistoryLimits::DEFAULT_AGE_MS),
        max_bytes: bytes.unwrap_or(HistoryLimits::DEFAULT_BYTES),
    })
}

fn in_units(value: u64, units: &[(&str, u64)]) -> String {
    let whole = units.iter().filter(|(_, factor)| value.is_multiple_of(*factor));
    let (name, factor) = whole.max_by_key(|(_, factor)| *factor).unwrap_or(&("", 1));
    format!("{}{name}", value / factor)
}

/// For people.
pub(super) fn words(limits: Option<&HistoryLimits>) -> String {
    limits.map_or("-".to_owned(), |limits| {
        let (age, bytes) = (limits.max_age_ms, limits.max_bytes);
        format!("{}, {} a shard", in_units(age, &TIMES), in_units(bytes, &SIZES))
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
    fn times_and_sizes_have_units() {
        assert_eq!(parse_time("90s"), Ok(90_000));
        assert_eq!(parse_time("7d"), Ok(7 * 86_400_000));
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        for bad in
            ["", "7", "h", "-1h", "1.5h", "1 h", "99999999999999999999s", "9999999999999999d"]
        {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
        assert!(parse_size("64MB").is_err());
        let limits = HistoryLimits { max_age_ms: 5_400_000, max_bytes: 3 << 20 };
        assert_eq!(words(Some(&limits)), "90m, 3MiB a shard");
    }
}
