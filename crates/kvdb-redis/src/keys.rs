//! Commands on keys, whatever they hold, and on their expiry.

use crate::args::{
    MILLIS, Options, Planned, SECONDS, TimeUnit, UNIX_MILLIS, UNIX_SECONDS, expiry, syntax, upper,
};
use crate::dump;
use crate::number::parse_i64;
use crate::plan::{Plan, change, change_if, look};
use crate::reply::Reply;
use crate::strings::value_of;
use bytes::Bytes;
use kvdb_model::{Condition, Expiry, ExpiryRule, Previous, StringAction, WriteResult};

fn count_applied(results: &mut [WriteResult]) -> Reply {
    Reply::Integer(results.iter().filter(|result| result.applied).count() as i64)
}

pub(crate) fn del(args: &[Bytes]) -> Planned {
    let steps = args[1..].iter().map(|key| change(key.clone(), StringAction::Remove)).collect();
    Ok(Plan::new(steps, |results, _| count_applied(results)))
}

pub(crate) fn exists(args: &[Bytes]) -> Planned {
    let steps = args[1..].iter().cloned().map(look).collect();
    Ok(Plan::new(steps, |results, _| count_applied(results)))
}

pub(crate) fn kind(args: &[Bytes]) -> Planned {
    Ok(Plan::one(look(args[1].clone()), |result, _| {
        Reply::Simple(if result.applied { "string" } else { "none" })
    }))
}

pub(crate) fn rename(args: &[Bytes]) -> Planned {
    let action = StringAction::Rename { to: args[2].clone(), only_absent: false };
    Ok(Plan::write(args[1].clone(), action, |_| Reply::OK))
}

pub(crate) fn renamenx(args: &[Bytes]) -> Planned {
    let action = StringAction::Rename { to: args[2].clone(), only_absent: true };
    Ok(Plan::write(args[1].clone(), action, |result| Reply::flag(result.applied)))
}

pub(crate) fn copy(args: &[Bytes]) -> Planned {
    let mut only_absent = true;
    let mut options = Options::after(args, 3);
    while let Some(word) = options.word() {
        match word.as_str() {
            "REPLACE" => only_absent = false,
            "DB" => {
                options.integer()?;
                return Err(Reply::error(
                    "COPY between databases is not supported: they are on different shards",
                ));
            }
            _ => return Err(syntax()),
        }
    }
    if args[1] == args[2] {
        return Err(Reply::error("source and destination objects are the same"));
    }
    let action = StringAction::Copy { to: args[2].clone(), only_absent };
    let step = change_if(args[1].clone(), action, Some(Condition::IfPresent), false);
    Ok(Plan::one(step, |result, _| Reply::flag(result.applied)))
}

pub(crate) fn move_key(_: &[Bytes]) -> Planned {
    Err(Reply::error("MOVE between databases is not supported: they are on different shards"))
}

pub(crate) fn swap_db(_: &[Bytes]) -> Planned {
    Err(Reply::error(
        "SWAPDB is not supported: databases are on different shards, which can't be swapped at one moment",
    ))
}

fn expire_with(args: &[Bytes], command: &'static str, unit: TimeUnit) -> Planned {
    let mut rule = ExpiryRule::ALWAYS;
    let mut options = Options::after(args, 3);
    while let Some(word) = options.word() {
        rule = rule.and(match word.as_str() {
            "NX" => ExpiryRule::NX,
            "XX" => ExpiryRule::XX,
            "GT" => ExpiryRule::GT,
            "LT" => ExpiryRule::LT,
            other => {
                return Err(Reply::error(format!("Unsupported option {}", other.escape_default())));
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
    let action = StringAction::SetExpiry { expiry: expiry(command, &args[2], unit)?, rule };
    Ok(Plan::write(args[1].clone(), action, |result| Reply::flag(result.applied)))
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
    let action = StringAction::SetExpiry { expiry: Expiry::Never, rule: ExpiryRule::ALWAYS };
    Ok(Plan::write(args[1].clone(), action, |result| Reply::flag(result.applied)))
}

/// -2 if the key isn't there, -1 if it never expires.
fn remaining(found: Option<Previous>, of: impl Fn(i64) -> i64) -> Reply {
    Reply::Integer(match found {
        None => -2,
        Some(found) if found.expires_at_ms == 0 => -1,
        Some(found) => of(i64::try_from(found.expires_at_ms).unwrap_or(i64::MAX)),
    })
}

fn ask_expiry(args: &[Bytes], of: impl Fn(i64, i64) -> i64 + Send + 'static) -> Planned {
    Ok(Plan::one(look(args[1].clone()), move |result, now| {
        remaining(result.previous.take(), |at| of(at, now as i64))
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
    Ok(Plan::read(args[1].clone(), |found, _| {
        Reply::bulk_or_nil(value_of(found).map(|value| dump::of_string(&value)))
    }))
}

pub(crate) fn restore(args: &[Bytes]) -> Planned {
    let (mut replace, mut absolute) = (false, false);
    let mut options = Options::after(args, 4);
    while let Some(word) = options.word() {
        match word.as_str() {
            "REPLACE" => replace = true,
            "ABSTTL" => absolute = true,
            "IDLETIME" if options.integer()? >= 0 => {}
            "IDLETIME" => return Err(Reply::error("Invalid IDLETIME value, must be >= 0")),
            "FREQ" if (0..=255).contains(&options.integer()?) => {}
            "FREQ" => return Err(Reply::error("Invalid FREQ value, must be >= 0 and <= 255")),
            _ => return Err(syntax()),
        }
    }
    let ttl = parse_i64(&args[2]).and_then(|ttl| u64::try_from(ttl).ok());
    let expiry = match ttl {
        None => return Err(Reply::error("Invalid TTL value, must be >= 0")),
        Some(0) => Expiry::Never,
        Some(at) if absolute => Expiry::At(at),
        Some(ms) => Expiry::In(ms),
    };
    let value = dump::read_string(&args[3]).map_err(Reply::error)?;
    let condition = (!replace).then_some(Condition::IfAbsent);
    let step = change_if(
        args[1].clone(),
        StringAction::Set { value: value.into(), expiry },
        condition,
        false,
    );
    Ok(Plan::one(step, |result, _| match result.applied {
        true => Reply::OK,
        false => Reply::Error("BUSYKEY Target key name already exists.".to_owned()),
    }))
}

pub(crate) fn object(args: &[Bytes]) -> Planned {
    let what = upper(&args[1]);
    let Some(key) = args.get(2).filter(|_| args.len() == 3) else {
        return Err(crate::args::wrong_number(&format!("object|{}", what.to_lowercase())));
    };
    let key = key.clone();
    let no_key = || Reply::Nil;
    match what.as_str() {
        "ENCODING" => Ok(Plan::read(key, move |found, _| match value_of(found) {
            None => no_key(),
            Some(value) => Reply::text(encoding(&value)),
        })),
        "REFCOUNT" => Ok(Plan::one(look(key), move |result, _| match result.applied {
            true => Reply::Integer(1),
            false => no_key(),
        })),
        "IDLETIME" => Ok(Plan::one(look(key), move |result, _| match result.applied {
            true => Reply::Integer(0),
            false => no_key(),
        })),
        "FREQ" => Err(Reply::error(
            "An LFU maxmemory policy is not selected, access frequency not tracked. Please note that when switching between policies at runtime LRU and LFU data will take some time to adjust.",
        )),
        _ => Err(crate::server::unknown_subcommand(&args[1], "OBJECT")),
    }
}

/// How Redis would keep it.
fn encoding(value: &[u8]) -> &'static str {
    match value.len() {
        _ if parse_i64(value).is_some() => "int",
        ..=44 => "embstr",
        _ => "raw",
    }
}
