//! Durations and sizes as people write them: `90s`, `1h 30m`, `64MiB`, `2 GB`.

const TIMES: [(&str, u64); 6] = [
    ("ms", 1),
    ("s", 1000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 24 * 3_600_000),
    ("w", 7 * 24 * 3_600_000),
];
const SIZES: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// A number and its unit, and what comes behind them.
fn part<'a>(text: &'a str, units: &[(&str, u64)]) -> Option<(u64, &'a str)> {
    let text = text.trim_start();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(digits);
    let rest = rest.trim_start();
    let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
    let (unit, rest) = rest.split_at(letters);
    let factor = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1;
    Some((number.parse::<u64>().ok()?.checked_mul(factor)?, rest))
}

/// All of a text, as the sum of its parts.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (mut sum, mut rest) = part(text, units)?;
    while !rest.trim().is_empty() {
        let (more, after) = part(rest, units)?;
        sum = sum.checked_add(more)?;
        rest = after;
    }
    Some(sum)
}

/// Milliseconds.
pub(crate) fn parse_time(text: &str) -> Result<u64, String> {
    parse(text, &TIMES)
        .ok_or_else(|| "expected a number and one of ms, s, m, h, d, w, such as 30s or 24h".into())
}

/// Milliseconds, and not none.
pub(crate) fn parse_positive_time(text: &str) -> Result<u64, String> {
    match parse_time(text)? {
        0 => Err("expected at least 1ms".into()),
        time_ms => Ok(time_ms),
    }
}

/// Seconds: a time with its unit, or a bare number of seconds.
pub(crate) fn parse_seconds(text: &str) -> Result<u64, String> {
    let seconds = match text.trim().parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) => parse_time(text)? / 1000,
    };
    match seconds {
        0 => Err("expected at least 1s".into()),
        seconds => Ok(seconds),
    }
}

/// Whether something is on.
pub(crate) fn parse_switch(text: &str) -> Result<bool, String> {
    match text.trim() {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err("expected on or off".into()),
    }
}

/// Bytes: a size with its unit, or a bare number of bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let bytes = text.trim().parse::<u64>().ok().or_else(|| parse(text, &SIZES));
    bytes.ok_or_else(|| "expected a number and one of B, KiB, MiB, GiB, TiB, such as 64MiB".into())
}

/// In the largest unit of which it is a whole number.
fn in_units(value: u64, units: &[(&str, u64)]) -> String {
    let whole = units.iter().filter(|(_, factor)| value.is_multiple_of(*factor));
    let (name, factor) = whole.max_by_key(|(_, factor)| *factor).unwrap_or(&("", 1));
    format!("{} {name}", value / factor)
}

/// An exact time for people.
pub(crate) fn show_time(time_ms: u64) -> String {
    if time_ms == 0 { "0 s".to_owned() } else { in_units(time_ms, &TIMES[..5]) }
}

/// An exact size for people.
pub(crate) fn show_size(bytes: u64) -> String {
    if bytes == 0 { "0 B".to_owned() } else { in_units(bytes, &SIZES[..5]) }
}

/// About how much: three digits.
pub(crate) fn about_size(bytes: u64) -> String {
    let unit = SIZES[..5].iter().rfind(|(_, factor)| bytes >= *factor).unwrap_or(&SIZES[0]);
    let (name, factor) = *unit;
    let value = bytes as f64 / factor as f64;
    match factor {
        1 => format!("{bytes} B"),
        _ if value < 10.0 => format!("{value:.1} {name}"),
        _ => format!("{value:.0} {name}"),
    }
}

/// About how long.
pub(crate) fn about_time(time_ms: u64) -> String {
    match time_ms {
        0..=999 => format!("{time_ms} ms"),
        1000..=9_999 => format!("{:.1} s", time_ms as f64 / 1000.0),
        10_000..=119_999 => format!("{} s", time_ms / 1000),
        120_000..=7_199_999 => format!("{} m", time_ms / 60_000),
        7_200_000..=172_799_999 => format!("{} h", time_ms / 3_600_000),
        _ => format!("{} d", time_ms / 86_400_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_have_units() {
        assert_eq!(parse_time("90s"), Ok(90_000));
        assert_eq!(parse_time("7d"), Ok(7 * 86_400_000));
        assert_eq!(parse_time(" 1 h 30 m"), Ok(5_400_000));
        assert_eq!(parse_time("1h30m"), Ok(5_400_000));
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        assert_eq!(parse_size("64 mib"), Ok(64 << 20));
        assert_eq!(parse_size("2GB"), Ok(2_000_000_000));
        assert_eq!(parse_size("4096"), Ok(4096));
        for bad in
            ["", "7", "h", "-1h", "1.5h", "1h2", "99999999999999999999s", "9999999999999999d"]
        {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
        for bad in ["", "MiB", "1.5GiB", "64M", "-1", "99999999TiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert!(parse_time("5").unwrap_err().contains("30s"));
    }

    #[test]
    fn a_bare_number_of_seconds_is_still_understood() {
        assert_eq!(parse_seconds("300"), Ok(300));
        assert_eq!(parse_seconds("5m"), Ok(300));
        assert!(parse_seconds("0").is_err() && parse_seconds("500ms").is_err());
        assert!(parse_positive_time("0s").is_err());
    }

    #[test]
    fn times_and_sizes_are_shown_with_units() {
        assert_eq!((show_time(5_400_000), show_time(0)), ("90 m".into(), "0 s".into()));
        assert_eq!((show_size(3 << 20), show_size(1001)), ("3 MiB".into(), "1001 B".into()));
        assert_eq!((about_size(1536), about_size(200 << 20)), ("1.5 KiB".into(), "200 MiB".into()));
        assert_eq!((about_time(1500), about_time(90_000)), ("1.5 s".into(), "90 s".into()));
    }
}
