//! String commands.

use crate::args::{
    MILLIS, Options, Planned, SECONDS, TimeUnit, integer, positive_expiry, syntax, unit_of,
    wrong_number,
};
use crate::number::span;
use crate::plan::{Plan, Step, change, change_if, read, value_of};
use crate::reply::Reply;
use bytes::Bytes;
use kvdb_model::limits::FLOAT_TEXT_MAX_BYTES;
use kvdb_model::{Condition, WriteResult};
use kvdb_store::keys::{Check, Delete, Expiry, ExpiryRule, SetExpiry};
use kvdb_store::string::{Append, Get, Increment, IncrementFloat, Set, SetRange};

fn previous_value(result: &mut WriteResult) -> Reply {
    Reply::bulk_or_nil(result.previous.take().map(|previous| previous.value))
}

pub(crate) fn integer_of(result: &mut WriteResult) -> Reply {
    Reply::Integer(result.reply.integer().unwrap_or_default())
}

fn set_always(value: &Bytes) -> Set {
    Set { value: value.clone(), expiry: Expiry::Never }
}

pub(crate) fn get(args: &[Bytes]) -> Planned {
    Ok(Plan::read(args[1].clone(), Reply::bulk_or_nil))
}

/// How long a key lives, as options say it: not looked at until all of them are understood.
#[derive(Default)]
struct Lifetime<'a> {
    /// `KEEPTTL` or `PERSIST`.
    word: Option<Expiry>,
    time: Option<(TimeUnit, &'a Bytes)>,
}

impl<'a> Lifetime<'a> {
    /// Takes an option word. The same may come again, others may not.
    fn take(
        &mut self,
        word: &str,
        keyword: (&str, Expiry),
        options: &mut Options<'a>,
    ) -> Result<(), Reply> {
        if word == keyword.0 && self.time.is_none() {
            self.word = Some(keyword.1);
            return Ok(());
        }
        let unit = unit_of(word).filter(|_| self.word.is_none()).ok_or_else(syntax)?;
        if self.time.is_some_and(|(known, _)| known != unit) {
            return Err(syntax());
        }
        self.time = Some((unit, options.value()?));
        Ok(())
    }

    fn expiry(&self, command: &str) -> Result<Option<Expiry>, Reply> {
        match self.time {
            Some((unit, text)) => positive_expiry(command, text, unit).map(Some),
            None => Ok(self.word),
        }
    }
}

pub(crate) fn set(args: &[Bytes]) -> Planned {
    let mut lifetime = Lifetime::default();
    let mut condition = None;
    let mut get = false;
    let mut options = Options::after(args, 3);
    while let Some(word) = options.word() {
        match word.as_str() {
            "NX" if condition != Some(Condition::IfPresent) => {
                condition = Some(Condition::IfAbsent);
            }
            "XX" if condition != Some(Condition::IfAbsent) => {
                condition = Some(Condition::IfPresent);
            }
            "GET" => get = true,
            other => lifetime.take(other, ("KEEPTTL", Expiry::Keep), &mut options)?,
        }
    }
    let expiry = lifetime.expiry("set")?.unwrap_or(Expiry::Never);
    let action = Set { value: args[2].clone(), expiry };
    Ok(Plan::one(
        change_if(args[1].clone(), &action, condition, get),
        move |result, _| match result.applied {
            _ if get => previous_value(result),
            true => Reply::OK,
            false => Reply::Nil,
        },
    ))
}

pub(crate) fn setnx(args: &[Bytes]) -> Planned {
    let step = change_if(args[1].clone(), &set_always(&args[2]), Some(Condition::IfAbsent), false);
    Ok(Plan::one(step, |result, _| Reply::flag(result.applied)))
}

pub(crate) fn setex(args: &[Bytes]) -> Planned {
    set_expiring(args, positive_expiry("setex", &args[2], SECONDS)?)
}

pub(crate) fn psetex(args: &[Bytes]) -> Planned {
    set_expiring(args, positive_expiry("psetex", &args[2], MILLIS)?)
}

fn set_expiring(args: &[Bytes], expiry: Expiry) -> Planned {
    let action = Set { value: args[3].clone(), expiry };
    Ok(Plan::write(args[1].clone(), &action, |_| Reply::OK))
}

pub(crate) fn getset(args: &[Bytes]) -> Planned {
    let step = change_if(args[1].clone(), &set_always(&args[2]), None, true);
    Ok(Plan::one(step, |result, _| previous_value(result)))
}

pub(crate) fn getdel(args: &[Bytes]) -> Planned {
    let step = change_if(args[1].clone(), &Delete, None, true);
    Ok(Plan::one(step, |result, _| previous_value(result)))
}

pub(crate) fn getex(args: &[Bytes]) -> Planned {
    let mut lifetime = Lifetime::default();
    let mut options = Options::after(args, 2);
    while let Some(word) = options.word() {
        lifetime.take(&word, ("PERSIST", Expiry::Never), &mut options)?;
    }
    let expiry = match lifetime.expiry("getex") {
        Ok(Some(expiry)) => expiry,
        Ok(None) => return get(args),
        // A key that isn't there comes first.
        Err(error) => return Ok(Plan::failing(read(args[1].clone()), error, Reply::Nil)),
    };
    // A key that never expired stays as it is.
    let rule = if expiry == Expiry::Never { ExpiryRule::XX } else { ExpiryRule::ALWAYS };
    let action = SetExpiry { expiry, rule };
    let step = change_if(args[1].clone(), &action, None, true);
    Ok(Plan::one(step, |result, _| previous_value(result)))
}

pub(crate) fn mget(args: &[Bytes]) -> Planned {
    // What isn't a string counts as missing.
    let step = |key: &Bytes| change(key.clone(), &Get { strings_only: true });
    Ok(Plan::new(args[1..].iter().map(step).collect(), |results, _| {
        Reply::Array(results.iter().map(|result| Reply::bulk_or_nil(value_of(result))).collect())
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
        .map(|(key, value)| change(key.clone(), &set_always(value)))
        .collect();
    Ok(Plan::new(steps, |_, _| Reply::OK))
}

/// Looks that no key is there, then sets them all; nothing if one is.
pub(crate) fn msetnx(args: &[Bytes]) -> Planned {
    let pairs = pairs(args, "msetnx")?;
    let check = |key: &Bytes| change_if(key.clone(), &Check, Some(Condition::IfAbsent), false);
    let checks = pairs.iter().map(|(key, _)| check(key));
    let sets = pairs.iter().map(|(key, value)| change((*key).clone(), &set_always(value)));
    let steps: Vec<Step> = checks.chain(sets).collect();
    let applied =
        |results: &mut [WriteResult], _| Reply::flag(results.iter().all(|result| result.applied));
    Ok(Plan::new(steps, applied).atomic())
}

pub(crate) fn append(args: &[Bytes]) -> Planned {
    Ok(Plan::write(args[1].clone(), &Append { value: args[2].clone() }, integer_of))
}

pub(crate) fn strlen(args: &[Bytes]) -> Planned {
    Ok(Plan::read(args[1].clone(), |found| {
        Reply::Integer(found.map_or(0, |value| value.len() as i64))
    }))
}

pub(crate) fn getrange(args: &[Bytes]) -> Planned {
    let (start, end) = (integer(&args[2])?, integer(&args[3])?);
    Ok(Plan::read(args[1].clone(), move |found| {
        let value = found.unwrap_or_default();
        Reply::Bulk(
            span(value.len(), start, end).map_or(Bytes::new(), |(from, to)| value.slice(from..to)),
        )
    }))
}

pub(crate) fn setrange(args: &[Bytes]) -> Planned {
    let offset =
        u64::try_from(integer(&args[2])?).map_err(|_| Reply::error("offset is out of range"))?;
    let action = SetRange { offset, value: args[3].clone() };
    Ok(Plan::write(args[1].clone(), &action, integer_of))
}

fn increment(key: &Bytes, delta: i64) -> Planned {
    Ok(Plan::write(key.clone(), &Increment { delta }, integer_of))
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
    // Whether it is a number is looked at where it is added.
    if args[2].len() > FLOAT_TEXT_MAX_BYTES {
        return Err(Reply::error("value is not a valid float"));
    }
    let action = IncrementFloat { delta: args[2].clone() };
    Ok(Plan::write(args[1].clone(), &action, |result| {
        Reply::bulk_or_nil(result.reply.bytes().cloned())
    }))
}
