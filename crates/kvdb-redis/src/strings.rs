//! String commands.

use crate::args::{MILLIS, SECONDS};
use crate::args::{Options, Planned, integer, positive_expiry, syntax, unit_of, wrong_number};
use crate::number::{parse_f64, span};
use crate::plan::{Plan, Step, change, change_if, read};
use crate::reply::Reply;
use bytes::Bytes;
use kvdb_model::{Condition, Expiry, ExpiryRule, Previous, StringAction, WriteResult};

pub(crate) fn value_of(previous: Option<Previous>) -> Option<Bytes> {
    previous.map(|previous| previous.value)
}

fn previous_value(result: &mut WriteResult) -> Reply {
    Reply::bulk_or_nil(value_of(result.previous.take()))
}

fn counter(result: &mut WriteResult) -> Reply {
    Reply::Integer(result.counter.unwrap_or_default())
}

fn set_always(value: &Bytes) -> StringAction {
    StringAction::Set { value: value.clone(), expiry: Expiry::Never }
}

pub(crate) fn get(args: &[Bytes]) -> Planned {
    Ok(Plan::read(args[1].clone(), |found, _| Reply::bulk_or_nil(value_of(found))))
}

pub(crate) fn set(args: &[Bytes]) -> Planned {
    let mut expiry = None;
    let mut condition = None;
    let mut get = false;
    let mut options = Options::after(args, 3);
    while let Some(word) = options.word() {
        match word.as_str() {
            "NX" if condition.is_none() => condition = Some(Condition::IfAbsent),
            "XX" if condition.is_none() => condition = Some(Condition::IfPresent),
            "GET" => get = true,
            "KEEPTTL" if expiry.is_none() => expiry = Some(Expiry::Keep),
            other => {
                let unit = unit_of(other).filter(|_| expiry.is_none()).ok_or_else(syntax)?;
                expiry = Some(positive_expiry("set", options.value()?, unit)?);
            }
        }
    }
    let expiry = expiry.unwrap_or(Expiry::Never);
    let action = StringAction::Set { value: args[2].clone(), expiry };
    Ok(Plan::one(change_if(args[1].clone(), action, condition, get), move |result, _| match result
        .applied
    {
        _ if get => previous_value(result),
        true => Reply::OK,
        false => Reply::Nil,
    }))
}

pub(crate) fn setnx(args: &[Bytes]) -> Planned {
    let step = change_if(args[1].clone(), set_always(&args[2]), Some(Condition::IfAbsent), false);
    Ok(Plan::one(step, |result, _| Reply::flag(result.applied)))
}

pub(crate) fn setex(args: &[Bytes]) -> Planned {
    set_expiring(args, positive_expiry("setex", &args[2], SECONDS)?)
}

pub(crate) fn psetex(args: &[Bytes]) -> Planned {
    set_expiring(args, positive_expiry("psetex", &args[2], MILLIS)?)
}

fn set_expiring(args: &[Bytes], expiry: Expiry) -> Planned {
    let action = StringAction::Set { value: args[3].clone(), expiry };
    Ok(Plan::write(args[1].clone(), action, |_| Reply::OK))
}

pub(crate) fn getset(args: &[Bytes]) -> Planned {
    let step = change_if(args[1].clone(), set_always(&args[2]), None, true);
    Ok(Plan::one(step, |result, _| previous_value(result)))
}

pub(crate) fn getdel(args: &[Bytes]) -> Planned {
    let step = change_if(args[1].clone(), StringAction::Remove, None, true);
    Ok(Plan::one(step, |result, _| previous_value(result)))
}

pub(crate) fn getex(args: &[Bytes]) -> Planned {
    let mut expiry = None;
    let mut options = Options::after(args, 2);
    while let Some(word) = options.word() {
        if expiry.is_some() {
            return Err(syntax());
        }
        expiry = Some(match word.as_str() {
            "PERSIST" => Expiry::Never,
            other => {
                let unit = unit_of(other).ok_or_else(syntax)?;
                positive_expiry("getex", options.value()?, unit)?
            }
        });
    }
    let Some(expiry) = expiry else { return get(args) };
    let action = StringAction::SetExpiry { expiry, rule: ExpiryRule::ALWAYS };
    let step = change_if(args[1].clone(), action, None, true);
    Ok(Plan::one(step, |result, _| previous_value(result)))
}

pub(crate) fn mget(args: &[Bytes]) -> Planned {
    let steps = args[1..].iter().cloned().map(read).collect();
    Ok(Plan::new(steps, |results, _| {
        Reply::Array(results.iter_mut().map(previous_value).collect())
    }))
}

/// Keys and values in turn.
fn pairs<'a>(args: &'a [Bytes], command: &str) -> Result<Vec<(&'a Bytes, &'a Bytes)>, Reply> {
    let (pairs, rest) = args[1..].as_chunks::<2>();
    if !rest.is_empty() {
        return Err(wrong_number(command));
    }
    Ok(pairs.iter().map(|[key, value]| (key, value)).collect())
}

pub(crate) fn mset(args: &[Bytes]) -> Planned {
    let steps = pairs(args, "mset")?
        .into_iter()
        .map(|(key, value)| change(key.clone(), set_always(value)))
        .collect();
    Ok(Plan::new(steps, |_, _| Reply::OK))
}

/// Looks that no key is there, then sets them all; nothing if one is.
pub(crate) fn msetnx(args: &[Bytes]) -> Planned {
    let pairs = pairs(args, "msetnx")?;
    let check =
        |key: &Bytes| change_if(key.clone(), StringAction::Check, Some(Condition::IfAbsent), false);
    let checks = pairs.iter().map(|(key, _)| check(key));
    let sets = pairs.iter().map(|(key, value)| change((*key).clone(), set_always(value)));
    let steps: Vec<Step> = checks.chain(sets).collect();
    let applied =
        |results: &mut [WriteResult], _| Reply::flag(results.iter().all(|result| result.applied));
    Ok(Plan::new(steps, applied).atomic())
}

pub(crate) fn append(args: &[Bytes]) -> Planned {
    Ok(Plan::write(args[1].clone(), StringAction::Append { value: args[2].clone() }, counter))
}

pub(crate) fn strlen(args: &[Bytes]) -> Planned {
    Ok(Plan::read(args[1].clone(), |found, _| {
        Reply::Integer(found.map_or(0, |found| found.value.len() as i64))
    }))
}

pub(crate) fn getrange(args: &[Bytes]) -> Planned {
    let (start, end) = (integer(&args[2])?, integer(&args[3])?);
    Ok(Plan::read(args[1].clone(), move |found, _| {
        let value = value_of(found).unwrap_or_default();
        Reply::Bulk(
            span(value.len(), start, end).map_or(Bytes::new(), |(from, to)| value.slice(from..to)),
        )
    }))
}

pub(crate) fn setrange(args: &[Bytes]) -> Planned {
    let offset =
        u64::try_from(integer(&args[2])?).map_err(|_| Reply::error("offset is out of range"))?;
    let action = StringAction::SetRange { offset, value: args[3].clone() };
    Ok(Plan::write(args[1].clone(), action, counter))
}

fn increment(key: &Bytes, delta: i64) -> Planned {
    Ok(Plan::write(key.clone(), StringAction::Increment { delta }, counter))
}

pub(crate) fn incr(args: &[Bytes]) -> Planned {
    increment(&args[1], 1)
}

pub(crate) fn decr(args: &[Bytes]) -> Planned {
    increment(&args[1], -1)
}

pub(crate) fn incrby(args: &[Bytes]) -> Planned {
    increment(&args[1], integer(&args[2])?)
}

pub(crate) fn decrby(args: &[Bytes]) -> Planned {
    let delta = integer(&args[2])?.checked_neg();
    increment(&args[1], delta.ok_or_else(|| Reply::error("decrement would overflow"))?)
}

pub(crate) fn incrbyfloat(args: &[Bytes]) -> Planned {
    if parse_f64(&args[2]).is_none() {
        return Err(Reply::error("value is not a valid float"));
    }
    let action = StringAction::IncrementFloat { delta: args[2].clone() };
    Ok(Plan::write(args[1].clone(), action, |result| Reply::bulk_or_nil(result.reply.take())))
}
