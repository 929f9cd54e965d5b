//! Commands on hashes.

use crate::args::{
    Planned, integer, is, parse_cursor, random_count, scan_options, seed, syntax, wrong_number,
};
use crate::glob;
use crate::plan::{Plan, value_of};
use crate::reply::Reply;
use crate::strings::integer_of;
use bytes::Bytes;
use kvdb_model::WriteResult;
use kvdb_model::limits::FLOAT_TEXT_MAX_BYTES;
use kvdb_store::hash::{Delete, Get, Increment, IncrementFloat, Length, Random, Scan, Set};

type Typed = kvdb_model::Reply;

/// Fields and values in turn, from `args[2]` on.
fn pairs(args: &[Bytes], command: &str) -> Result<Vec<(Bytes, Bytes)>, Reply> {
    let (pairs, rest) = args[2..].as_chunks::<2>();
    if !rest.is_empty() {
        return Err(wrong_number(command));
    }
    Ok(pairs.iter().map(|[field, value]| (field.clone(), value.clone())).collect())
}

pub(crate) fn hset(args: &[Bytes]) -> Planned {
    let set = Set { fields: pairs(args, "hset")?, only_new: false };
    Ok(Plan::write(args[1].clone(), &set, integer_of))
}

pub(crate) fn hmset(args: &[Bytes]) -> Planned {
    let set = Set { fields: pairs(args, "hmset")?, only_new: false };
    Ok(Plan::write(args[1].clone(), &set, |_| Reply::OK))
}

pub(crate) fn hsetnx(args: &[Bytes]) -> Planned {
    let set = Set { fields: pairs(args, "hsetnx")?, only_new: true };
    Ok(Plan::write(args[1].clone(), &set, |result| Reply::flag(result.applied)))
}

pub(crate) fn hdel(args: &[Bytes]) -> Planned {
    let delete = Delete { fields: args[2..].to_vec() };
    Ok(Plan::write(args[1].clone(), &delete, integer_of))
}

/// The values of the fields that were asked for.
fn values(result: &WriteResult) -> Vec<Option<Bytes>> {
    match &result.reply {
        Typed::List(values) => values.iter().map(|value| value.bytes().cloned()).collect(),
        _ => vec![],
    }
}

fn one_value(
    args: &[Bytes],
    finish: impl FnOnce(Option<Bytes>) -> Reply + Send + 'static,
) -> Planned {
    let get = Get { fields: vec![args[2].clone()] };
    Ok(Plan::write(args[1].clone(), &get, |result| finish(values(result).pop().flatten())))
}

pub(crate) fn hget(args: &[Bytes]) -> Planned {
    one_value(args, Reply::bulk_or_nil)
}

pub(crate) fn hexists(args: &[Bytes]) -> Planned {
    one_value(args, |value| Reply::flag(value.is_some()))
}

pub(crate) fn hstrlen(args: &[Bytes]) -> Planned {
    one_value(args, |value| Reply::Integer(value.map_or(0, |value| value.len() as i64)))
}

pub(crate) fn hmget(args: &[Bytes]) -> Planned {
    let get = Get { fields: args[2..].to_vec() };
    Ok(Plan::write(args[1].clone(), &get, |result| {
        Reply::Array(values(result).into_iter().map(Reply::bulk_or_nil).collect())
    }))
}

pub(crate) fn hlen(args: &[Bytes]) -> Planned {
    Ok(Plan::write(args[1].clone(), &Length, integer_of))
}

/// Cursor to go on from, names and values.
fn part(result: &WriteResult) -> (i64, Vec<(Reply, Reply)>) {
    let Typed::List(part) = &result.reply else { return (0, vec![]) };
    let [cursor, found] = &part[..] else { return (0, vec![]) };
    (cursor.integer().unwrap_or(0), pairs_in(found))
}

fn pairs_in(reply: &Typed) -> Vec<(Reply, Reply)> {
    let Typed::Map(found) = reply else { return vec![] };
    let bulk = |typed: &Typed| Reply::bulk_or_nil(typed.bytes().cloned());
    found.iter().map(|(field, value)| (bulk(field), bulk(value))).collect()
}

fn whole(
    args: &[Bytes],
    finish: impl FnOnce(Vec<(Reply, Reply)>) -> Reply + Send + 'static,
) -> Planned {
    let scan = Scan { cursor: 0, most: 0 };
    Ok(Plan::write(args[1].clone(), &scan, |result| finish(part(result).1)))
}

pub(crate) fn hgetall(args: &[Bytes]) -> Planned {
    whole(args, Reply::Map)
}

pub(crate) fn hkeys(args: &[Bytes]) -> Planned {
    whole(args, |pairs| Reply::Array(pairs.into_iter().map(|(field, _)| field).collect()))
}

pub(crate) fn hvals(args: &[Bytes]) -> Planned {
    whole(args, |pairs| Reply::Array(pairs.into_iter().map(|(_, value)| value).collect()))
}

pub(crate) fn hrandfield(args: &[Bytes]) -> Planned {
    let Some(count) = args.get(2) else {
        let random = Random { count: None, with_values: false, seed: seed() };
        return Ok(Plan::write(args[1].clone(), &random, |result| {
            Reply::bulk_or_nil(value_of(result))
        }));
    };
    let count = random_count(count)?;
    let with_values = args.len() > 3;
    if args.len() > 4 || with_values && !is(&args[3], "withvalues") {
        return Err(syntax());
    }
    // Twice as many must be a number, too.
    if with_values && count.checked_mul(2).is_none() {
        return Err(Reply::error("value is out of range"));
    }
    let random = Random { count: Some(count), with_values, seed: seed() };
    Ok(Plan::write(args[1].clone(), &random, |result| match &result.reply {
        Typed::Map(_) => Reply::Pairs(pairs_in(&result.reply)),
        _ => Reply::Array(values(result).into_iter().map(Reply::bulk_or_nil).collect()),
    }))
}

pub(crate) fn hincrby(args: &[Bytes]) -> Planned {
    let increment = Increment { field: args[2].clone(), delta: integer(&args[3])? };
    Ok(Plan::write(args[1].clone(), &increment, integer_of))
}

pub(crate) fn hincrbyfloat(args: &[Bytes]) -> Planned {
    // Whether it is a number is looked at where it is added.
    if args[3].len() > FLOAT_TEXT_MAX_BYTES {
        return Err(Reply::error("value is not a valid float"));
    }
    let increment = IncrementFloat { field: args[2].clone(), delta: args[3].clone() };
    Ok(Plan::write(args[1].clone(), &increment, |result| Reply::bulk_or_nil(value_of(result))))
}

fn scanned(cursor: i64, pairs: impl Iterator<Item = (Reply, Reply)>) -> Reply {
    let flat = pairs.flat_map(|(field, value)| [field, value]).collect();
    Reply::Array(vec![Reply::text(cursor.to_string()), Reply::Array(flat)])
}

pub(crate) fn hscan(args: &[Bytes]) -> Planned {
    let cursor = parse_cursor(&args[2])?;
    let (most, pattern) = match scan_options(args) {
        Ok(options) => options,
        // A key that isn't there, or holds another type, comes first.
        Err(error) => {
            return Ok(Plan::write(args[1].clone(), &Length, move |result| match result.applied {
                true => error,
                false => scanned(0, std::iter::empty()),
            }));
        }
    };
    Ok(Plan::write(args[1].clone(), &Scan { cursor, most }, move |result| {
        let (cursor, pairs) = part(result);
        let wanted = |field: &Reply| match (&pattern, field) {
            (Some(pattern), Reply::Bulk(field)) => glob::matches(pattern, field),
            _ => true,
        };
        scanned(cursor, pairs.into_iter().filter(|(field, _)| wanted(field)))
    }))
}
