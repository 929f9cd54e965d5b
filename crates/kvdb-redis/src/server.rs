//! Commands about the connection and the server, and what they say.

use crate::args::{Options, integer, is, syntax, upper, wrong_number};
use crate::glob;
use crate::number::parse_i64;
use crate::reply::Reply;
use crate::session::{DATABASES, Job, Scan, Session, Step};
use crate::table;
use bytes::Bytes;
use std::collections::BTreeMap;

/// The version of Redis whose commands are spoken.
pub const REDIS_VERSION: &str = "7.0.15";

/// A command that doesn't exist.
pub fn unknown_command(args: &[Bytes]) -> Reply {
    let shown =
        |bytes: &Bytes| String::from_utf8_lossy(&bytes[..bytes.len().min(128)]).into_owned();
    let name = args.first().map(shown).unwrap_or_default();
    let mut with = String::new();
    for arg in args.iter().skip(1).take(20) {
        with.push_str(&format!("'{}' ", shown(arg)));
        if with.len() > 128 {
            break;
        }
    }
    Reply::error(format!("unknown command '{name}', with args beginning with: {with}"))
}

/// A subcommand that doesn't exist.
pub fn unknown_subcommand(given: &[u8], command: &str) -> Reply {
    let given = String::from_utf8_lossy(&given[..given.len().min(128)]).into_owned();
    Reply::error(format!("unknown subcommand '{given}'. Try {command} HELP."))
}

pub(crate) fn ping(_: &mut Session, args: &[Bytes]) -> Reply {
    match args.len() {
        1 => Reply::Simple("PONG"),
        2 => Reply::Bulk(args[1].clone()),
        _ => wrong_number("ping"),
    }
}

pub(crate) fn echo(_: &mut Session, args: &[Bytes]) -> Reply {
    Reply::Bulk(args[1].clone())
}

pub(crate) fn quit(_: &mut Session, _: &[Bytes]) -> Step {
    Step::Close(Reply::OK)
}

pub(crate) fn reset(_: &mut Session, _: &[Bytes]) -> Step {
    Step::Job(Job::Reset)
}

pub(crate) fn hello(session: &mut Session, args: &[Bytes]) -> Reply {
    let mut resp3 = session.resp3;
    let mut name = None;
    if let Some(version) = args.get(1) {
        resp3 = match parse_i64(version) {
            Some(2) => false,
            Some(3) => true,
            Some(_) => {
                return Reply::Error("NOPROTO unsupported protocol version".to_owned());
            }
            None => {
                return Reply::error("Protocol version is not an integer or out of range");
            }
        };
    }
    let mut options = Options::after(args, 2);
    while let Some(word) = options.word() {
        match (word.as_str(), options.value()) {
            ("SETNAME", Ok(given)) if is_name(given) => name = Some(given.clone()),
            ("SETNAME", Ok(_)) => return bad_name(),
            ("AUTH", Ok(_)) => return no_password(),
            _ => {
                return Reply::error(format!(
                    "Syntax error in HELLO option '{}'",
                    word.escape_default()
                ));
            }
        }
    }
    session.resp3 = resp3;
    session.name = name.unwrap_or_else(|| session.name.clone());
    let pair = |key: &str, value| (Reply::text(key), value);
    Reply::Map(vec![
        pair("server", Reply::text("redis")),
        pair("version", Reply::text(REDIS_VERSION)),
        pair("proto", Reply::Integer(if resp3 { 3 } else { 2 })),
        pair("id", Reply::Integer(session.id as i64)),
        pair("mode", Reply::text("standalone")),
        pair("role", Reply::text("master")),
        pair("modules", Reply::Array(vec![])),
    ])
}

fn no_password() -> Reply {
    Reply::error(
        "AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?",
    )
}

pub(crate) fn auth(_: &mut Session, _: &[Bytes]) -> Reply {
    no_password()
}

fn is_name(name: &[u8]) -> bool {
    name.iter().all(|byte| (b'!'..=b'~').contains(byte))
}

fn bad_name() -> Reply {
    Reply::error("Client names cannot contain spaces, newlines or special characters.")
}

pub(crate) fn client(session: &mut Session, args: &[Bytes]) -> Step {
    let what = upper(&args[1]);
    let reply = match (what.as_str(), args.len()) {
        ("ID", 2) => Reply::Integer(session.id as i64),
        ("GETNAME", 2) if session.name.is_empty() => Reply::Nil,
        ("GETNAME", 2) => Reply::Bulk(session.name.clone()),
        ("SETNAME", 3) if is_name(&args[2]) => {
            session.name = args[2].clone();
            Reply::OK
        }
        ("SETNAME", 3) => bad_name(),
        ("REPLY", 3) if session.mute(&upper(&args[2])) => Reply::OK,
        ("REPLY", 3) => syntax(),
        ("SETINFO", 4) => Reply::OK,
        ("NO-EVICT" | "NO-TOUCH", 3) if is(&args[2], "on") || is(&args[2], "off") => Reply::OK,
        ("NO-EVICT" | "NO-TOUCH", 3) => syntax(),
        ("INFO", 2) | ("LIST" | "KILL", _) => return Step::Job(Job::Server(args.to_vec())),
        ("ID" | "GETNAME" | "SETNAME" | "REPLY" | "SETINFO" | "NO-EVICT" | "INFO", _) => {
            wrong_number(&format!("client|{what}"))
        }
        _ => unknown_subcommand(&args[1], "CLIENT"),
    };
    Step::Reply(reply)
}

/// `CONFIG`, `INFO`: answered by whoever knows the server.
pub(crate) fn of_server(_: &mut Session, args: &[Bytes]) -> Step {
    Step::Job(Job::Server(args.to_vec()))
}

pub(crate) fn select(_: &mut Session, args: &[Bytes]) -> Step {
    match integer(&args[1]) {
        Ok(db) if (0..i64::from(DATABASES)).contains(&db) => Step::Job(Job::Select(db as u8)),
        Ok(_) => Step::Reply(Reply::error("DB index is out of range")),
        Err(_) => Step::Reply(Reply::error("value is not an integer or out of range")),
    }
}

pub(crate) fn time(session: &mut Session, _: &[Bytes]) -> Reply {
    let now = session.now_ms;
    let micros = now % 1000 * 1000;
    Reply::Array(vec![Reply::text((now / 1000).to_string()), Reply::text(micros.to_string())])
}

/// Every answered write is on disk already.
pub(crate) fn save(_: &mut Session, _: &[Bytes]) -> Reply {
    Reply::OK
}

pub(crate) fn shutdown(_: &mut Session, _: &[Bytes]) -> Reply {
    Reply::error("SHUTDOWN is not supported: send the gateway's process a SIGTERM")
}

/// Every answered write is on a majority already: with three replicas, on one beside the leader.
pub(crate) fn wait(_: &mut Session, args: &[Bytes]) -> Reply {
    match (integer(&args[1]), integer(&args[2])) {
        (Ok(wanted), Ok(0..)) => Reply::Integer(wanted.clamp(0, 1)),
        (Ok(_), Ok(_)) => Reply::error("timeout is negative"),
        (Err(error), _) | (_, Err(error)) => error,
    }
}

pub(crate) fn multi(session: &mut Session, _: &[Bytes]) -> Reply {
    session.begin()
}

pub(crate) fn discard(session: &mut Session, _: &[Bytes]) -> Reply {
    session.discard()
}

pub(crate) fn unwatch(session: &mut Session, _: &[Bytes]) -> Reply {
    session.unwatch()
}

pub(crate) fn exec(session: &mut Session, _: &[Bytes]) -> Step {
    session.exec()
}

pub(crate) fn watch(session: &mut Session, args: &[Bytes]) -> Step {
    session.start_watching(&args[1..])
}

fn flush(args: &[Bytes], all: bool) -> Step {
    let known = args.get(1).is_none_or(|word| is(word, "sync") || is(word, "async"));
    if args.len() > 2 || !known {
        return Step::Reply(syntax());
    }
    Step::Job(Job::Flush { all })
}

pub(crate) fn flushdb(_: &mut Session, args: &[Bytes]) -> Step {
    flush(args, false)
}

pub(crate) fn flushall(_: &mut Session, args: &[Bytes]) -> Step {
    flush(args, true)
}

pub(crate) fn dbsize(_: &mut Session, _: &[Bytes]) -> Step {
    Step::Job(Job::DbSize)
}

pub(crate) fn keys(_: &mut Session, args: &[Bytes]) -> Step {
    Step::Job(Job::Keys(args[1].clone()))
}

pub(crate) fn randomkey(_: &mut Session, _: &[Bytes]) -> Step {
    Step::Job(Job::RandomKey)
}

pub(crate) fn scan(_: &mut Session, args: &[Bytes]) -> Step {
    match parse_scan(args) {
        Ok(scan) => Step::Job(Job::Scan(scan)),
        Err(reply) => Step::Reply(reply),
    }
}

fn parse_scan(args: &[Bytes]) -> Result<Scan, Reply> {
    let cursor =
        crate::number::parse_u64(&args[1]).ok_or_else(|| Reply::error("invalid cursor"))?;
    let mut scan = Scan { cursor, pattern: None, count: 10, nothing: false };
    let mut options = Options::after(args, 2);
    while let Some(word) = options.word() {
        match word.as_str() {
            "COUNT" => match options.integer()? {
                ..1 => return Err(syntax()),
                count => scan.count = count as usize,
            },
            "MATCH" => scan.pattern = Some(options.value()?.clone()).filter(|text| text != "*"),
            "TYPE" => scan.nothing = !is(options.value()?, "string"),
            _ => return Err(syntax()),
        }
    }
    Ok(scan)
}

/// Commands that keep nothing here, and say so.
pub(crate) fn slowlog(_: &mut Session, args: &[Bytes]) -> Reply {
    match upper(&args[1]).as_str() {
        "GET" => Reply::Array(vec![]),
        "LEN" => Reply::Integer(0),
        "RESET" => Reply::OK,
        _ => unknown_subcommand(&args[1], "SLOWLOG"),
    }
}

pub(crate) fn latency(_: &mut Session, args: &[Bytes]) -> Reply {
    match upper(&args[1]).as_str() {
        "LATEST" | "HISTORY" => Reply::Array(vec![]),
        "RESET" => Reply::Integer(0),
        _ => unknown_subcommand(&args[1], "LATENCY"),
    }
}

pub(crate) fn function(_: &mut Session, args: &[Bytes]) -> Reply {
    match upper(&args[1]).as_str() {
        "FLUSH" => Reply::OK,
        "LIST" => Reply::Array(vec![]),
        _ => unknown_subcommand(&args[1], "FUNCTION"),
    }
}

pub(crate) fn command(_: &mut Session, args: &[Bytes]) -> Reply {
    let Some(what) = args.get(1) else {
        return Reply::Array(table::COMMANDS.iter().map(table::Spec::describe).collect());
    };
    match upper(what).as_str() {
        "COUNT" => Reply::Integer(table::COMMANDS.len() as i64),
        "LIST" => listed(args),
        "INFO" if args.len() == 2 => {
            Reply::Array(table::COMMANDS.iter().map(table::Spec::describe).collect())
        }
        "INFO" => Reply::Array(
            args[2..]
                .iter()
                .map(|name| table::find(name).map_or(Reply::NilArray, table::Spec::describe))
                .collect(),
        ),
        "DOCS" => docs(&args[2..]),
        "GETKEYS" if args.len() > 2 => get_keys(&args[2..]),
        "GETKEYS" => wrong_number("command|getkeys"),
        _ => unknown_subcommand(what, "COMMAND"),
    }
}

fn listed(args: &[Bytes]) -> Reply {
    let pattern = match args {
        [_, _] => None,
        [_, _, filter, kind, pattern] if is(filter, "filterby") && is(kind, "pattern") => {
            Some(pattern)
        }
        [_, _, filter, kind, _]
            if is(filter, "filterby") && (is(kind, "module") || is(kind, "aclcat")) =>
        {
            return Reply::Array(vec![]);
        }
        _ => return syntax(),
    };
    let names = table::COMMANDS.iter().map(|spec| spec.name);
    let wanted =
        names.filter(|name| pattern.is_none_or(|text| glob::matches(text, name.as_bytes())));
    Reply::Array(wanted.map(Reply::text).collect())
}

fn docs(names: &[Bytes]) -> Reply {
    let wanted = table::COMMANDS
        .iter()
        .filter(|spec| names.is_empty() || names.iter().any(|name| is(name, spec.name)));
    Reply::Map(wanted.map(|spec| (Reply::text(spec.name), spec.docs())).collect())
}

fn get_keys(args: &[Bytes]) -> Reply {
    let Some(spec) = table::find(&args[0]) else {
        return Reply::error("Invalid command specified");
    };
    if !spec.accepts(args.len()) {
        return Reply::error("Invalid number of arguments specified for command");
    }
    match spec.keys_of(args) {
        keys if keys.is_empty() => Reply::error("The command has no key arguments"),
        keys => Reply::Array(keys.into_iter().map(Reply::Bulk).collect()),
    }
}

/// Settings that `CONFIG` shows. They are kept, so that tools which set and restore them work; they
/// change nothing, as the cluster has settings of its own.
pub struct Settings(BTreeMap<&'static str, String>);

impl Default for Settings {
    fn default() -> Self {
        Settings(SETTINGS.iter().map(|(name, value)| (*name, (*value).to_owned())).collect())
    }
}

const SETTINGS: [(&str, &str); 24] = [
    ("appendfsync", "always"),
    ("appendonly", "yes"),
    ("databases", "16"),
    ("hash-max-listpack-entries", "512"),
    ("hash-max-ziplist-entries", "512"),
    ("latency-monitor-threshold", "0"),
    ("lazyfree-lazy-user-del", "no"),
    ("lazyfree-lazy-user-flush", "no"),
    ("list-max-listpack-size", "-2"),
    ("list-max-ziplist-size", "-2"),
    ("lua-time-limit", "5000"),
    ("maxclients", "10000"),
    ("maxmemory", "0"),
    ("maxmemory-policy", "noeviction"),
    ("maxmemory-samples", "5"),
    ("min-replicas-to-write", "0"),
    ("notify-keyspace-events", ""),
    ("proto-max-bulk-len", "8388608"),
    ("save", ""),
    ("set-max-intset-entries", "512"),
    ("slowlog-log-slower-than", "-1"),
    ("slowlog-max-len", "128"),
    ("timeout", "0"),
    ("zset-max-listpack-entries", "128"),
];
/// Longest value of a setting.
const SETTING_MAX_BYTES: usize = 1024;

fn without_unit(amount: &[u8]) -> &[u8] {
    let end = amount.iter().rposition(|byte| !byte.is_ascii_alphabetic()).map_or(0, |at| at + 1);
    let (digits, unit) = amount.split_at(end);
    let known = ["", "b", "k", "kb", "m", "mb", "g", "gb"];
    if known.iter().any(|known| is(unit, known)) { digits } else { amount }
}

impl Settings {
    /// Carries `CONFIG` out.
    pub fn command(&mut self, args: &[Bytes]) -> Reply {
        match upper(args.get(1).map_or(&[][..], |word| word)).as_str() {
            "GET" if args.len() > 2 => self.get(&args[2..]),
            "SET" if args.len() > 3 && args.len().is_multiple_of(2) => self.set(&args[2..]),
            "RESETSTAT" if args.len() == 2 => Reply::OK,
            "REWRITE" if args.len() == 2 => {
                Reply::error("The server is running without a config file")
            }
            what @ ("GET" | "SET" | "RESETSTAT" | "REWRITE") => {
                wrong_number(&format!("config|{what}"))
            }
            _ => unknown_subcommand(args.get(1).map_or(&[][..], |word| word), "CONFIG"),
        }
    }

    fn get(&self, patterns: &[Bytes]) -> Reply {
        let wanted = self.0.iter().filter(|(name, _)| {
            patterns
                .iter()
                .any(|pattern| glob::matches(&pattern.to_ascii_lowercase(), name.as_bytes()))
        });
        Reply::Map(wanted.map(|(name, value)| (Reply::text(*name), Reply::text(value))).collect())
    }

    fn set(&mut self, pairs: &[Bytes]) -> Reply {
        let (pairs, _) = pairs.as_chunks::<2>();
        for [name, value] in pairs {
            let known = SETTINGS.iter().any(|(known, _)| is(name, known));
            if !known || value.len() > SETTING_MAX_BYTES {
                let name = String::from_utf8_lossy(&name[..name.len().min(128)]).into_owned();
                return Reply::error(format!(
                    "Unknown option or number of arguments for CONFIG SET - '{name}'"
                ));
            }
        }
        for [name, value] in pairs {
            let is_number = |text: &[u8]| parse_i64(text).is_some();
            let wants_number = SETTINGS
                .iter()
                .any(|(known, usual)| is(name, known) && is_number(usual.as_bytes()));
            // Amounts of memory may have a unit.
            let digits = without_unit(value);
            if wants_number && !is_number(digits) {
                let name = String::from_utf8_lossy(name).into_owned();
                return Reply::error(format!(
                    "CONFIG SET failed (possibly related to argument '{name}') - argument must be a number"
                ));
            }
        }
        for [name, value] in pairs {
            if let Some((known, _)) = SETTINGS.iter().find(|(known, _)| is(name, known)) {
                self.0.insert(known, String::from_utf8_lossy(value).into_owned());
            }
        }
        Reply::OK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(settings: &mut Settings, line: &str) -> Reply {
        let args: Vec<Bytes> = line.split(' ').map(|word| Bytes::from(word.to_owned())).collect();
        settings.command(&args)
    }

    #[test]
    fn settings_are_kept_and_bad_ones_change_nothing() {
        let mut settings = Settings::default();
        assert_eq!(config(&mut settings, "config set MAXMEMORY 100mb timeout 5"), Reply::OK);
        for bad in ["config set timeout 9 maxmemory bla", "config set timeout 9 nonsense 1"] {
            assert!(config(&mut settings, bad).is_error(), "{bad}");
        }
        let found =
            |name: &str, value: &str| Reply::Map(vec![(Reply::text(name), Reply::text(value))]);
        assert_eq!(config(&mut settings, "config get time*"), found("timeout", "5"));
        assert_eq!(config(&mut settings, "config get maxmemory"), found("maxmemory", "100mb"));
    }
}
