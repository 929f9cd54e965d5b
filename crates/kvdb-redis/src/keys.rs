//! Commands on keys, whatever they hold, and on their expiry.

use crate::args::{
    BASE_MS, MILLIS, Options, Planned, SECONDS, TimeUnit, UNIX_MILLIS, UNIX_SECONDS, expiry,
    integer, syntax, upper,
};
use crate::dump;
use crate::plan::{Plan, change, change_if, look, value_of};
use crate::reply::Reply;
use crate::session::{DATABASES, Session};
use crate::subcommands;
use bytes::Bytes;
use kvdb_model::{Condition, WriteResult};
use kvdb_store::Type;
use kvdb_store::keys::{
    Content, Copy, Delete, Encoding, Expiry, ExpiryRule, ReadWhole, Rename, Restore, SetExpiry,
    Size,
};

fn count_applied(results: &mut [WriteResult]) -> Reply {
    Reply::Integer(results.iter().filter(|result| result.applied).count() as i64)
}

pub(crate) fn del(args: &[Bytes]) -> Planned {
    let steps = args[1..].iter().map(|key| change(key.clone(), &Delete)).collect();
    Ok(Plan::new(steps, |results, _| count_applied(results)))
}

pub(crate) fn exists(args: &[Bytes]) -> Planned {
    let steps = args[1..].iter().cloned().map(look).collect();
    Ok(Plan::new(steps, |results, _| count_applied(results)))
}

pub(crate) fn kind(args: &[Bytes]) -> Planned {
    Ok(Plan::one(look(args[1].clone()), |result, _| {
        Reply::Simple(about(result).map_or("none", |(kind, _)| kind))
    }))
}

pub(crate) fn rename(args: &[Bytes]) -> Planned {
    let step = change(args[1].clone(), &Rename { only_absent: false });
    Ok(Plan::one(step.and(vec![args[2].clone()]), |_, _| Reply::OK))
}

pub(crate) fn renamenx(args: &[Bytes]) -> Planned {
    let step = change(args[1].clone(), &Rename { only_absent: true });
    Ok(Plan::one(step.and(vec![args[2].clone()]), |result, _| Reply::flag(result.applied)))
}

pub(crate) fn copy(session: &Session, args: &[Bytes]) -> Planned {
    let mut only_absent = true;
    let mut db = i64::from(session.db);
    let mut options = Options::after(args, 3);
    while let Some(word) = options.word() {
        match word.as_str() {
            "REPLACE" => only_absent = false,
            "DB" => db = database(options.integer()?)?,
            _ => return Err(syntax()),
        }
    }
    if db != i64::from(session.db) {
        return Err(Reply::error(
            "COPY between databases is not supported: they are on different shards",
        ));
    }
    if args[1] == args[2] {
        return Err(Reply::error("source and destination objects are the same"));
    }
    let copy = Copy { only_absent };
    let step = change_if(args[1].clone(), &copy, Some(Condition::IfPresent), false);
    let step = step.and(vec![args[2].clone()]);
    Ok(Plan::one(step, |result, _| Reply::flag(result.applied)))
}

/// A number that a database may have.
fn database(number: i64) -> Result<i64, Reply> {
    match (0..i64::from(DATABASES)).contains(&number) {
        true => Ok(number),
        false => Err(Reply::error("DB index is out of range")),
    }
}

/// Two databases are on two shards: a key would be in both for a while, or in none.
pub(crate) fn move_key(session: &Session, args: &[Bytes]) -> Planned {
    if database(integer(&args[2])?)? == i64::from(session.db) {
        return Err(Reply::error("source and destination objects are the same"));
    }
    Err(Reply::error(
        "MOVE between databases is not supported: they are on different shards; DUMP, RESTORE and DEL move a key step by step",
    ))
}

pub(crate) fn swap_db(_: &[Bytes]) -> Planned {
    Err(Reply::error(
        "SWAPDB is not supported: databases are on different shards, which can't be swapped at one moment",
    ))
}

fn expire_with(args: &[Bytes], command: &'static str, unit: TimeUnit) -> Planned {
    let mut rule = ExpiryRule::ALWAYS;
    for word in args.get(3..).unwrap_or_default() {
        rule = rule.and(match upper(word).as_str() {
            "NX" => ExpiryRule::NX,
            "XX" => ExpiryRule::XX,
            "GT" => ExpiryRule::GT,
            "LT" => ExpiryRule::LT,
            _ => {
                let shown = String::from_utf8_lossy(&word[..word.len().min(128)]);
                return Err(Reply::error(format!("Unsupported option {shown}")));
            }
        });
    }
    if rule.has(ExpiryRule::NX) && rule != ExpiryRule::NX {
        return Err(Reply::error(
            "NX and XX, GT or LT options at the same time are not compatible",
        ));
    }
    if rule.has(ExpiryRule::GT) && rule.has(ExpiryRule::LT) {
        return Err(Reply::error("GT and LT options at the same time are not compatible"));
    }
    let action = SetExpiry { expiry: expiry(command, &args[2], unit)?, rule };
    Ok(Plan::write(args[1].clone(), &action, |result| Reply::flag(result.applied)))
}

pub(crate) fn expire(args: &[Bytes]) -> Planned {
    expire_with(args, "expire", SECONDS)
}

pub(crate) fn pexpire(args: &[Bytes]) -> Planned {
    expire_with(args, "pexpire", MILLIS)
}

pub(crate) fn expireat(args: &[Bytes]) -> Planned {
    expire_with(args, "expireat", UNIX_SECONDS)
}

pub(crate) fn pexpireat(args: &[Bytes]) -> Planned {
    expire_with(args, "pexpireat", UNIX_MILLIS)
}

pub(crate) fn persist(args: &[Bytes]) -> Planned {
    // A key that never expired stays as it is.
    let action = SetExpiry { expiry: Expiry::Never, rule: ExpiryRule::XX };
    Ok(Plan::write(args[1].clone(), &action, |result| Reply::flag(result.applied)))
}

/// What a look at a key has found: its type, and when it expires.
fn about(result: &WriteResult) -> Option<(&'static str, i64)> {
    let kvdb_model::Reply::List(about) = &result.reply else { return None };
    let [kind, expires_at_ms] = &about[..] else { return None };
    let kind = Type::from_code(u8::try_from(kind.integer()?).ok()?)?;
    Some((kind.name(), expires_at_ms.integer()?))
}

/// -2 if the key isn't there, -1 if it never expires.
fn remaining(result: &WriteResult, of: impl Fn(i64) -> i64) -> Reply {
    Reply::Integer(match about(result) {
        None => -2,
        Some((_, 0)) => -1,
        Some((_, expires_at_ms)) => of(expires_at_ms),
    })
}

fn ask_expiry(args: &[Bytes], of: impl Fn(i64, i64) -> i64 + Send + 'static) -> Planned {
    Ok(Plan::one(look(args[1].clone()), move |result, now| {
        remaining(result, |at| of(at, now as i64))
    }))
}

pub(crate) fn ttl(args: &[Bytes]) -> Planned {
    ask_expiry(args, |at, now| (at.saturating_sub(now).max(0).saturating_add(500)) / 1000)
}

pub(crate) fn pttl(args: &[Bytes]) -> Planned {
    ask_expiry(args, |at, now| at.saturating_sub(now).max(0))
}

pub(crate) fn expiretime(args: &[Bytes]) -> Planned {
    ask_expiry(args, |at, _| at.saturating_add(500) / 1000)
}

pub(crate) fn pexpiretime(args: &[Bytes]) -> Planned {
    ask_expiry(args, |at, _| at)
}

pub(crate) fn dump_key(args: &[Bytes]) -> Planned {
    Ok(Plan::write(args[1].clone(), &ReadWhole, |result| {
        Reply::bulk_or_nil(Content::in_reply(&result.reply).map(|content| dump::of(&content)))
    }))
}

pub(crate) fn restore(args: &[Bytes]) -> Planned {
    let (mut replace, mut absolute) = (false, false);
    let (mut idle, mut frequency) = (false, false);
    let mut options = Options::after(args, 4);
    while let Some(word) = options.word() {
        match word.as_str() {
            "REPLACE" => replace = true,
            "ABSTTL" => absolute = true,
            "IDLETIME" if !frequency && options.has_more() => {
                if options.integer()? < 0 {
                    return Err(Reply::error("Invalid IDLETIME value, must be >= 0"));
                }
                idle = true;
            }
            "FREQ" if !idle && options.has_more() => {
                if !(0..=255).contains(&options.integer()?) {
                    return Err(Reply::error("Invalid FREQ value, must be >= 0 and <= 255"));
                }
                frequency = true;
            }
            _ => return Err(syntax()),
        }
    }
    let busy = || Reply::Error("BUSYKEY Target key name already exists.".to_owned());
    let action = match restored(&args[2], absolute, &args[3]) {
        Ok(restored) => restored,
        Err(error) if replace => return Err(error),
        // A key that is in the way comes first.
        Err(error) => return Ok(Plan::failing(look(args[1].clone()), busy(), error)),
    };
    let condition = (!replace).then_some(Condition::IfAbsent);
    let step = change_if(args[1].clone(), &action, condition, false);
    Ok(Plan::one(step, move |result, _| if result.applied { Reply::OK } else { busy() }))
}

fn restored(ttl: &[u8], absolute: bool, dump: &[u8]) -> Result<Restore, Reply> {
    let ttl = u64::try_from(integer(ttl)?)
        .map_err(|_| Reply::error("Invalid TTL value, must be >= 0"))?;
    let expiry = match ttl {
        0 => Expiry::Never,
        at if absolute => Expiry::At(at),
        // In Redis its end is beyond what it can count to, and the key is gone at once.
        ms if ms > TTL_MAX_MS => {
            return Err(Reply::error(format!("Invalid TTL value, must be <= {TTL_MAX_MS}")));
        }
        ms => Expiry::In(ms),
    };
    Ok(Restore { content: dump::read(dump).map_err(Reply::error)?, expiry })
}

/// Longest lifetime, so that its end can be told as a time since 1970.
const TTL_MAX_MS: u64 = (i64::MAX - BASE_MS) as u64;

pub(crate) fn object(args: &[Bytes]) -> Planned {
    if let Some(help) = subcommands::help(args) {
        return Err(help);
    }
    let Some(key) = args.get(2).cloned() else {
        return Err(crate::args::wrong_number("object"));
    };
    let no_key = || Reply::Nil;
    match upper(&args[1]).as_str() {
        "ENCODING" => {
            Ok(Plan::one(change(key, &Encoding), |result, _| Reply::bulk_or_nil(value_of(result))))
        }
        "REFCOUNT" => Ok(Plan::one(look(key), move |result, _| match result.applied {
            true => Reply::Integer(1),
            false => no_key(),
        })),
        "IDLETIME" => Ok(Plan::one(look(key), move |result, _| match result.applied {
            true => Reply::Integer(0),
            false => no_key(),
        })),
        _ => {
            let error = Reply::error(
                "An LFU maxmemory policy is not selected, access frequency not tracked. Please note that when switching between policies at runtime LRU and LFU data will take some time to adjust.",
            );
            Ok(Plan::failing(look(key), error, no_key()))
        }
    }
}

pub(crate) fn memory(args: &[Bytes]) -> Planned {
    if let Some(help) = subcommands::help(args) {
        return Err(help);
    }
    let Some(key) = args.get(2).cloned() else {
        return Err(crate::args::wrong_number("memory"));
    };
    let mut samples = 5;
    let mut options = Options::after(args, 3);
    while let Some(word) = options.word() {
        match word.as_str() {
            "SAMPLES" if options.has_more() => match options.integer()? {
                0 => samples = u64::MAX,
                count => samples = u64::try_from(count).map_err(|_| syntax())?,
            },
            _ => return Err(syntax()),
        }
    }
    Ok(Plan::write(key, &Size { samples }, |result| match result.reply.integer() {
        Some(size) => Reply::Integer(size),
        None => Reply::Nil,
    }))
}
