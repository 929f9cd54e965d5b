//! Commands on sets.

use crate::args::{
    Options, Planned, integer, parse_cursor, random_count, scan_options, seed, syntax,
};
use crate::glob;
use crate::plan::{Plan, change, value_of};
use crate::reply::Reply;
use crate::strings::integer_of;
use bytes::Bytes;
use kvdb_model::WriteResult;
use kvdb_store::Command;
use kvdb_store::set::{
    Add, Combination, Combine, CombineInto, Contains, CountCommon, Length, Move, Pop, Random,
    Remove, Scan,
};

type Typed = kvdb_model::Reply;

pub(crate) fn sadd(args: &[Bytes]) -> Planned {
    Ok(Plan::write(args[1].clone(), &Add { members: args[2..].to_vec() }, integer_of))
}

pub(crate) fn srem(args: &[Bytes]) -> Planned {
    Ok(Plan::write(args[1].clone(), &Remove { members: args[2..].to_vec() }, integer_of))
}

/// What a list in a reply holds.
fn items(reply: &Typed) -> Vec<Reply> {
    let shown = |item: &Typed| match item {
        Typed::Integer(number) => Reply::Integer(*number),
        item => Reply::bulk_or_nil(item.bytes().cloned()),
    };
    match reply {
        Typed::List(items) => items.iter().map(shown).collect(),
        _ => vec![],
    }
}

pub(crate) fn sismember(args: &[Bytes]) -> Planned {
    let contains = Contains { members: vec![args[2].clone()] };
    Ok(Plan::write(args[1].clone(), &contains, |result| {
        items(&result.reply).pop().unwrap_or(Reply::Integer(0))
    }))
}

pub(crate) fn smismember(args: &[Bytes]) -> Planned {
    let contains = Contains { members: args[2..].to_vec() };
    Ok(Plan::write(args[1].clone(), &contains, |result| Reply::Array(items(&result.reply))))
}

pub(crate) fn scard(args: &[Bytes]) -> Planned {
    Ok(Plan::write(args[1].clone(), &Length, integer_of))
}

/// Cursor to go on from, and members.
fn part(result: &WriteResult) -> (i64, Vec<Reply>) {
    let Typed::List(part) = &result.reply else { return (0, vec![]) };
    let [cursor, found] = &part[..] else { return (0, vec![]) };
    (cursor.integer().unwrap_or(0), items(found))
}

pub(crate) fn smembers(args: &[Bytes]) -> Planned {
    let scan = Scan { cursor: 0, most: 0 };
    Ok(Plan::write(args[1].clone(), &scan, |result| Reply::Set(part(result).1)))
}

pub(crate) fn spop(args: &[Bytes]) -> Planned {
    let Some(count) = args.get(2) else {
        let pop = Pop { count: None, seed: seed() };
        return Ok(Plan::write(args[1].clone(), &pop, |result| {
            Reply::bulk_or_nil(value_of(result))
        }));
    };
    if args.len() > 3 {
        return Err(syntax());
    }
    let count = integer(count).ok().and_then(|count| u64::try_from(count).ok());
    let count = count.ok_or_else(|| Reply::error("value is out of range, must be positive"))?;
    let pop = Pop { count: Some(count), seed: seed() };
    Ok(Plan::write(args[1].clone(), &pop, |result| Reply::Set(items(&result.reply))))
}

pub(crate) fn srandmember(args: &[Bytes]) -> Planned {
    let Some(count) = args.get(2) else {
        let random = Random { count: None, seed: seed() };
        return Ok(Plan::write(args[1].clone(), &random, |result| {
            Reply::bulk_or_nil(value_of(result))
        }));
    };
    if args.len() > 3 {
        return Err(syntax());
    }
    let random = Random { count: Some(random_count(count)?), seed: seed() };
    Ok(Plan::write(args[1].clone(), &random, |result| Reply::Array(items(&result.reply))))
}

pub(crate) fn smove(args: &[Bytes]) -> Planned {
    let step = change(args[1].clone(), &Move { member: args[3].clone() });
    Ok(Plan::one(step.and(vec![args[2].clone()]), |result, _| integer_of(result)))
}

/// A command on the sets of keys, the first of which is the own one.
fn on_keys(
    keys: &[Bytes],
    command: &impl Command,
    finish: impl FnOnce(&mut WriteResult) -> Reply + Send + 'static,
) -> Planned {
    let step = change(keys[0].clone(), command).and(keys[1..].to_vec());
    Ok(Plan::one(step, |result, _| finish(result)))
}

fn combine(args: &[Bytes], combination: Combination) -> Planned {
    on_keys(&args[1..], &Combine { combination }, |result| Reply::Set(items(&result.reply)))
}

fn combine_into(args: &[Bytes], combination: Combination) -> Planned {
    on_keys(&args[1..], &CombineInto { combination }, integer_of)
}

pub(crate) fn sinter(args: &[Bytes]) -> Planned {
    combine(args, Combination::Intersection)
}

pub(crate) fn sunion(args: &[Bytes]) -> Planned {
    combine(args, Combination::Union)
}

pub(crate) fn sdiff(args: &[Bytes]) -> Planned {
    combine(args, Combination::Difference)
}

pub(crate) fn sinterstore(args: &[Bytes]) -> Planned {
    combine_into(args, Combination::Intersection)
}

pub(crate) fn sunionstore(args: &[Bytes]) -> Planned {
    combine_into(args, Combination::Union)
}

pub(crate) fn sdiffstore(args: &[Bytes]) -> Planned {
    combine_into(args, Combination::Difference)
}

pub(crate) fn sintercard(args: &[Bytes]) -> Planned {
    let count = integer(&args[1]).ok().and_then(|count| usize::try_from(count).ok());
    let count = count
        .filter(|count| *count > 0)
        .ok_or_else(|| Reply::error("numkeys should be greater than 0"))?;
    let keys = args[2..]
        .get(..count)
        .ok_or_else(|| Reply::error("Number of keys can't be greater than number of args"))?;
    let mut limit = 0;
    let mut options = Options::after(args, 2 + count);
    while let Some(word) = options.word() {
        match word.as_str() {
            "LIMIT" if options.has_more() => {
                let given = options.integer().ok().and_then(|limit| u64::try_from(limit).ok());
                limit = given.ok_or_else(|| Reply::error("LIMIT can't be negative"))?;
            }
            _ => return Err(syntax()),
        }
    }
    on_keys(keys, &CountCommon { limit }, integer_of)
}

fn scanned(cursor: i64, members: Vec<Reply>) -> Reply {
    Reply::Array(vec![Reply::text(cursor.to_string()), Reply::Array(members)])
}

pub(crate) fn sscan(args: &[Bytes]) -> Planned {
    let cursor = parse_cursor(&args[2])?;
    let (most, pattern) = match scan_options(args) {
        Ok(options) => options,
        // A key that isn't there, or holds another type, comes first.
        Err(error) => {
            return Ok(Plan::write(args[1].clone(), &Length, move |result| match result.applied {
                true => error,
                false => scanned(0, vec![]),
            }));
        }
    };
    Ok(Plan::write(args[1].clone(), &Scan { cursor, most }, move |result| {
        let (cursor, mut members) = part(result);
        if let Some(pattern) = &pattern {
            members.retain(
                |member| matches!(member, Reply::Bulk(name) if glob::matches(pattern, name)),
            );
        }
        scanned(cursor, members)
    }))
}
