//! Commands about the connection and the server, and what they say.

use crate::args::{Options, integer, is, parse_cursor, syntax, upper, wrong_number};
use crate::number::parse_i64;
use crate::reply::Reply;
use crate::session::{DATABASES, Job, Scan, Session, Step};
use crate::{compatibility, describe, glob, subcommands};
use bytes::Bytes;
use std::collections::BTreeMap;

/// The version of Redis whose commands are spoken.
pub const REDIS_VERSION: &str = "7.0.15";

/// A command that doesn't exist here; said so if Redis has it.
pub fn unknown_command(args: &[Bytes]) -> Reply {
    let shown =
        |bytes: &Bytes| String::from_utf8_lossy(&bytes[..bytes.len().min(128)]).into_owned();
    let name = args.first().map(shown).unwrap_or_default();
    if let Some(what) = compatibility::missing(&name) {
        return Reply::error(format!("unknown command '{name}': KvDB doesn't have it ({what})"));
    }
    let mut with = String::new();
    for arg in args.iter().skip(1).take(20) {
        with.push_str(&format!("'{}' ", shown(arg)));
        if with.len() > 128 {
            break;
        }
    }
    Reply::error(format!("unknown command '{name}', with args beginning with: {with}"))
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
    let mut rest = args.get(2..).unwrap_or_default();
    while let Some((word, after)) = rest.split_first() {
        rest = match (upper(word).as_str(), after) {
            ("SETNAME", [given, after @ ..]) if is_name(given) => {
                // As in Redis, also if what follows is wrong.
                session.name = given.clone();
                after
            }
            ("SETNAME", [_, ..]) => return bad_name(),
            ("AUTH", [user, _, after @ ..]) => match user == "default" {
                true => after,
                false => return wrong_password(),
            },
            _ => {
                let shown = String::from_utf8_lossy(&word[..word.len().min(128)]);
                return Reply::error(format!("Syntax error in HELLO option '{shown}'"));
            }
        };
    }
    session.resp3 = resp3;
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

fn wrong_password() -> Reply {
    Reply::Error("WRONGPASS invalid username-password pair or user is disabled.".to_owned())
}

/// There is one user, who has no password and is let in with any.
pub(crate) fn auth(_: &mut Session, args: &[Bytes]) -> Reply {
    match args {
        [_, _] => no_password(),
        [_, user, _] if user == "default" => Reply::OK,
        [_, _, _] => wrong_password(),
        _ => syntax(),
    }
}

fn is_name(name: &[u8]) -> bool {
    name.iter().all(|byte| (b'!'..=b'~').contains(byte))
}

fn bad_name() -> Reply {
    Reply::error("Client names cannot contain spaces, newlines or special characters.")
}

pub(crate) fn client(session: &mut Session, args: &[Bytes]) -> Step {
    if let Some(help) = subcommands::help(args) {
        return Step::Reply(help);
    }
    let argument = args.get(2).map_or(&[][..], |word| word);
    let is_switch = is(argument, "on") || is(argument, "off");
    let reply = match upper(&args[1]).as_str() {
        "ID" => Reply::Integer(session.id as i64),
        "GETNAME" if session.name.is_empty() => Reply::Nil,
        "GETNAME" => Reply::Bulk(session.name.clone()),
        "SETNAME" if is_name(argument) => {
            session.name = Bytes::copy_from_slice(argument);
            Reply::OK
        }
        "SETNAME" => bad_name(),
        "REPLY" if session.mute(&upper(argument)) => Reply::OK,
        "SETINFO" if is(argument, "lib-name") || is(argument, "lib-ver") => Reply::OK,
        "SETINFO" => {
            let shown = String::from_utf8_lossy(&argument[..argument.len().min(128)]);
            Reply::error(format!("Unrecognized option '{shown}'"))
        }
        "NO-EVICT" | "NO-TOUCH" if is_switch => Reply::OK,
        "REPLY" | "NO-EVICT" | "NO-TOUCH" => syntax(),
        "GETREDIR" => Reply::Integer(-1),
        "TRACKINGINFO" => tracking_info(),
        "UNBLOCK" => unblock(args),
        _ => return Step::Job(Job::Server(args.to_vec())),
    };
    Step::Reply(reply)
}

fn tracking_info() -> Reply {
    let pair = |key: &str, value| (Reply::text(key), value);
    Reply::Map(vec![
        pair("flags", Reply::Set(vec![Reply::text("off")])),
        pair("redirect", Reply::Integer(-1)),
        pair("prefixes", Reply::Array(vec![])),
    ])
}

/// Nobody ever waits in a blocking command.
fn unblock(args: &[Bytes]) -> Reply {
    if args.len() > 4 {
        let name = String::from_utf8_lossy(&args[1]);
        return subcommands::too_many(&name, "CLIENT");
    }
    match args.get(3).map(|word| upper(word)).as_deref() {
        None | Some("TIMEOUT" | "ERROR") => match integer(&args[2]) {
            Ok(_) => Reply::Integer(0),
            Err(error) => error,
        },
        Some(_) => Reply::error("CLIENT UNBLOCK reason should be TIMEOUT or ERROR"),
    }
}

/// `CONFIG`, `INFO`, `WAIT`: answered by whoever knows the server.
pub(crate) fn of_server(_: &mut Session, args: &[Bytes]) -> Step {
    if let Some(help) = subcommands::help(args) {
        return Step::Reply(help);
    }
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

/// Answers `WAIT`: every answered write is on a majority already, `replicas` beside the leader.
pub fn wait(args: &[Bytes], replicas: u32) -> Reply {
    let [_, wanted, timeout] = args else { return wrong_number("wait") };
    match (integer(wanted), parse_i64(timeout)) {
        (Ok(_), Some(0..)) => Reply::Integer(replicas.into()),
        (Ok(_), Some(_)) => Reply::error("timeout is negative"),
        (Ok(_), None) => Reply::error("timeout is not an integer or out of range"),
        (Err(error), _) => error,
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
    let cursor = parse_cursor(&args[1])?;
    let mut scan = Scan { cursor, pattern: None, count: 10, kind: None };
    let mut options = Options::after(args, 2);
    while let Some(word) = options.word() {
        match word.as_str() {
            "COUNT" => match options.integer()? {
                ..1 => return Err(syntax()),
                count => scan.count = count as usize,
            },
            "MATCH" => scan.pattern = Some(options.value()?.clone()).filter(|text| text != "*"),
            "TYPE" => {
                scan.kind = Some(String::from_utf8_lossy(options.value()?).to_ascii_lowercase())
            }
            _ => return Err(syntax()),
        }
    }
    Ok(scan)
}

/// Commands that keep nothing here, and say so.
pub(crate) fn slowlog(_: &mut Session, args: &[Bytes]) -> Reply {
    if let Some(help) = subcommands::help(args) {
        return help;
    }
    match (upper(&args[1]).as_str(), args.get(2)) {
        ("LEN", _) => Reply::Integer(0),
        ("RESET", _) => Reply::OK,
        (_, None) => Reply::Array(vec![]),
        (_, Some(count)) if args.len() == 3 => match parse_i64(count) {
            Some(-1..) => Reply::Array(vec![]),
            _ => Reply::error("count should be greater than or equal to -1"),
        },
        _ => subcommands::too_many("GET", "SLOWLOG"),
    }
}

pub(crate) fn latency(_: &mut Session, args: &[Bytes]) -> Reply {
    if let Some(help) = subcommands::help(args) {
        return help;
    }
    match upper(&args[1]).as_str() {
        "RESET" => Reply::Integer(0),
        _ => Reply::Array(vec![]),
    }
}

pub(crate) fn function(_: &mut Session, args: &[Bytes]) -> Reply {
    if let Some(help) = subcommands::help(args) {
        return help;
    }
    if is(&args[1], "flush") {
        return match &args[2..] {
            [] => Reply::OK,
            [how] if is(how, "sync") || is(how, "async") => Reply::OK,
            [_] => Reply::error("FUNCTION FLUSH only supports SYNC|ASYNC option"),
            _ => subcommands::too_many("FLUSH", "FUNCTION"),
        };
    }
    let (mut with_code, mut named) = (false, false);
    let mut rest = &args[2..];
    while let Some((word, after)) = rest.split_first() {
        rest = match (upper(word).as_str(), after) {
            ("WITHCODE", after) if !with_code => {
                with_code = true;
                after
            }
            ("LIBRARYNAME", [_, after @ ..]) if !named => {
                named = true;
                after
            }
            ("LIBRARYNAME", []) if !named => {
                return Reply::error("library name argument was not given");
            }
            _ => {
                let shown = String::from_utf8_lossy(&word[..word.len().min(128)]);
                return Reply::error(format!("Unknown argument {shown}"));
            }
        };
    }
    Reply::Array(vec![])
}

pub(crate) fn command(_: &mut Session, args: &[Bytes]) -> Reply {
    subcommands::help(args).unwrap_or_else(|| describe::command(args))
}

/// Settings that `CONFIG` shows. What KvDB always does can't be changed; the others are kept, so
/// that tools which set and restore them work.
pub struct Settings(BTreeMap<&'static str, String>);

impl Default for Settings {
    fn default() -> Self {
        Settings(SETTINGS.iter().map(|(name, value, _)| (*name, (*value).to_owned())).collect())
    }
}

/// What a setting may be set to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum May {
    /// What it is: KvDB does that, and nothing else.
    Stay,
    /// Anything: it is about what a client can't see, such as how Redis keeps things in memory.
    Change,
}
use May::{Change, Stay};

const SETTINGS: &[(&str, &str, May)] = &[
    ("appendfsync", "always", Stay),
    ("appendonly", "yes", Stay),
    ("bind", "", Stay),
    ("databases", "16", Stay),
    ("hash-max-listpack-entries", "512", Change),
    ("hash-max-listpack-value", "64", Change),
    ("hash-max-ziplist-entries", "512", Change),
    ("hash-max-ziplist-value", "64", Change),
    ("hll-sparse-max-bytes", "3000", Change),
    ("latency-monitor-threshold", "0", Stay),
    ("lazyfree-lazy-user-del", "no", Change),
    ("lazyfree-lazy-user-flush", "no", Change),
    ("list-compress-depth", "0", Change),
    ("list-max-listpack-size", "-2", Change),
    ("list-max-ziplist-size", "-2", Change),
    ("lua-time-limit", "5000", Change),
    ("maxclients", "10000", Stay),
    ("maxmemory", "0", Stay),
    ("maxmemory-policy", "noeviction", Stay),
    ("maxmemory-samples", "5", Change),
    ("min-replicas-max-lag", "10", Change),
    ("min-replicas-to-write", "0", Stay),
    ("notify-keyspace-events", "", Stay),
    ("proto-max-bulk-len", "8388608", Stay),
    ("requirepass", "", Stay),
    ("save", "", Stay),
    ("set-max-intset-entries", "512", Change),
    ("slowlog-log-slower-than", "-1", Stay),
    ("slowlog-max-len", "128", Change),
    // Carried out by the gateway.
    ("timeout", "0", Change),
    ("zset-max-listpack-entries", "128", Change),
    ("zset-max-listpack-value", "64", Change),
    ("zset-max-ziplist-entries", "128", Change),
    ("zset-max-ziplist-value", "64", Change),
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
    /// Carries `CONFIG GET`, `SET` and `REWRITE` out.
    pub fn command(&mut self, args: &[Bytes]) -> Reply {
        match upper(args.get(1).map_or(&[][..], |word| word)).as_str() {
            "GET" => self.get(args.get(2..).unwrap_or_default()),
            "SET" if args.len().is_multiple_of(2) => self.set(args.get(2..).unwrap_or_default()),
            "SET" => syntax(),
            _ => Reply::error("The server is running without a config file"),
        }
    }

    /// Seconds after which a connection that says nothing is closed; 0 for never.
    pub fn timeout_seconds(&self) -> u64 {
        self.0.get("timeout").and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// A setting that is named without a pattern is told in the case in which it was asked for.
    fn get(&self, patterns: &[Bytes]) -> Reply {
        let wanted = self.0.iter().filter(|(name, _)| {
            patterns
                .iter()
                .any(|pattern| glob::matches(&pattern.to_ascii_lowercase(), name.as_bytes()))
        });
        let told = |name: &str| {
            let named = patterns.iter().find(|pattern| is(pattern, name));
            named.map_or_else(|| Reply::text(name), |named| Reply::Bulk(named.clone()))
        };
        Reply::Map(wanted.map(|(name, value)| (told(name), Reply::text(value))).collect())
    }

    fn set(&mut self, pairs: &[Bytes]) -> Reply {
        let (pairs, _) = pairs.as_chunks::<2>();
        let failed = |name: &[u8], why: &str| {
            let name = String::from_utf8_lossy(&name[..name.len().min(128)]).to_ascii_lowercase();
            Reply::error(format!(
                "CONFIG SET failed (possibly related to argument '{name}') - {why}"
            ))
        };
        for (place, [name, value]) in pairs.iter().enumerate() {
            let known = SETTINGS.iter().find(|(known, ..)| is(name, known));
            let Some((_, usual, may)) = known.filter(|_| value.len() <= SETTING_MAX_BYTES) else {
                let name = String::from_utf8_lossy(&name[..name.len().min(128)]).into_owned();
                return Reply::error(format!(
                    "Unknown option or number of arguments for CONFIG SET - '{name}'"
                ));
            };
            if pairs[..place].iter().any(|[before, _]| before.eq_ignore_ascii_case(name)) {
                return failed(name, "duplicate parameter");
            }
            // Amounts of memory may have a unit.
            let digits = without_unit(value);
            let wants_number = parse_i64(usual.as_bytes()).is_some();
            if wants_number && parse_i64(digits).is_none() {
                return failed(name, "argument couldn't be parsed into an integer");
            }
            if matches!(*usual, "yes" | "no") && !is(value, "yes") && !is(value, "no") {
                return failed(name, "argument must be 'yes' or 'no'");
            }
            if *may == Stay && !is(value, usual) && !is(digits, usual) {
                return failed(name, &format!("KvDB can't change it: it is always '{usual}'"));
            }
            if is(name, "timeout") && parse_i64(value).is_none_or(|seconds| seconds < 0) {
                return failed(name, "argument must be between 0 and 2147483647 inclusive");
            }
        }
        for [name, value] in pairs {
            if let Some((known, ..)) = SETTINGS.iter().find(|(known, ..)| is(name, known)) {
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
        assert_eq!(config(&mut settings, "config set MAXMEMORY 0mb timeout 5"), Reply::OK);
        for bad in [
            "config set timeout 9 maxmemory bla",
            "config set timeout 9 nonsense 1",
            "config set timeout 9 timeout 8",
            "config set timeout 9 appendonly no",
            "config set timeout 9 appendonly maybe",
            "config set timeout 9 notify-keyspace-events KEA",
            "config set timeout 9 maxmemory 100mb",
            "config set timeout -1",
            "config set timeout",
        ] {
            assert!(config(&mut settings, bad).is_error(), "{bad}");
        }
        let found =
            |name: &str, value: &str| Reply::Map(vec![(Reply::text(name), Reply::text(value))]);
        assert_eq!(config(&mut settings, "config get time*"), found("timeout", "5"));
        assert_eq!(settings.timeout_seconds(), 5);
        assert_eq!(config(&mut settings, "config get maxmemory"), found("maxmemory", "0mb"));
        for same in ["appendonly YES", "databases 16", "maxmemory-policy noeviction"] {
            assert_eq!(config(&mut settings, &format!("config set {same}")), Reply::OK, "{same}");
        }
    }
}
