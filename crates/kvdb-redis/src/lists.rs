//! Commands on lists.

use crate::args::{Options, Planned, integer, is, syntax, upper, wrong_number};
use crate::number::parse_i64;
use crate::plan::{Plan, change, value_of};
use crate::reply::Reply;
use crate::strings::integer_of;
use bytes::Bytes;
use kvdb_model::WriteResult;
use kvdb_store::End;
use kvdb_store::list::{
    Find, Index, Insert, Length, Move, Pop, Push, Range, Remove, Replace, Trim,
};

type Typed = kvdb_model::Reply;

fn push(args: &[Bytes], end: End, only_present: bool) -> Planned {
    let push = Push { end, only_present, values: args[2..].to_vec() };
    Ok(Plan::write(args[1].clone(), &push, integer_of))
}

pub(crate) fn lpush(args: &[Bytes]) -> Planned {
    push(args, End::First, false)
}

pub(crate) fn rpush(args: &[Bytes]) -> Planned {
    push(args, End::Last, false)
}

pub(crate) fn lpushx(args: &[Bytes]) -> Planned {
    push(args, End::First, true)
}

pub(crate) fn rpushx(args: &[Bytes]) -> Planned {
    push(args, End::Last, true)
}

/// From which of the keys something was taken, and what.
fn taken(result: &WriteResult) -> Option<(usize, Vec<Reply>)> {
    let Typed::List(parts) = &result.reply else { return None };
    let [place, Typed::List(values)] = &parts[..] else { return None };
    let values = values.iter().map(|value| Reply::bulk_or_nil(value.bytes().cloned())).collect();
    Some((usize::try_from(place.integer()?).ok()?, values))
}

fn pop(args: &[Bytes], end: End) -> Planned {
    if args.len() > 3 {
        return Err(wrong_number(&upper(&args[0])));
    }
    let Some(count) = args.get(2) else {
        return Ok(Plan::write(args[1].clone(), &Pop { end, count: 1 }, |result| {
            taken(result).and_then(|(_, mut values)| values.pop()).unwrap_or(Reply::Nil)
        }));
    };
    let count = parse_i64(count).and_then(|count| u64::try_from(count).ok());
    let count = count.ok_or_else(|| Reply::error("value is out of range, must be positive"))?;
    Ok(Plan::write(args[1].clone(), &Pop { end, count }, |result| {
        taken(result).map_or(Reply::NilArray, |(_, values)| Reply::Array(values))
    }))
}

pub(crate) fn lpop(args: &[Bytes]) -> Planned {
    pop(args, End::First)
}

pub(crate) fn rpop(args: &[Bytes]) -> Planned {
    pop(args, End::Last)
}

fn end_of(word: &[u8]) -> Result<End, Reply> {
    match () {
        () if is(word, "left") => Ok(End::First),
        () if is(word, "right") => Ok(End::Last),
        () => Err(syntax()),
    }
}

/// A number above 0 that counts something.
fn above_zero(word: &[u8], what: &str) -> Result<u64, Reply> {
    let count = parse_i64(word).and_then(|count| u64::try_from(count).ok());
    count
        .filter(|count| *count > 0)
        .ok_or_else(|| Reply::error(format!("{what} should be greater than 0")))
}

pub(crate) fn lmpop(args: &[Bytes]) -> Planned {
    let keys = above_zero(&args[1], "numkeys")?;
    let keys = usize::try_from(keys).ok().and_then(|keys| args[2..].split_at_checked(keys));
    let (keys, rest) = keys.ok_or_else(syntax)?;
    let end = end_of(rest.first().ok_or_else(syntax)?)?;
    let mut count = None;
    let mut options = Options::after(rest, 1);
    while let Some(word) = options.word() {
        if word != "COUNT" || count.is_some() {
            return Err(syntax());
        }
        count = Some(above_zero(options.value()?, "count")?);
    }
    let count = count.unwrap_or(1);
    let keys = keys.to_vec();
    let step = change(keys[0].clone(), &Pop { end, count }).and(keys[1..].to_vec());
    Ok(Plan::one(step, move |result, _| match taken(result) {
        Some((place, values)) if place < keys.len() => {
            Reply::Array(vec![Reply::Bulk(keys[place].clone()), Reply::Array(values)])
        }
        _ => Reply::NilArray,
    }))
}

pub(crate) fn llen(args: &[Bytes]) -> Planned {
    Ok(Plan::write(args[1].clone(), &Length, integer_of))
}

/// A wrong argument of a command that looks at the key first.
fn failing(key: &Bytes, error: Reply, missing: Reply) -> Planned {
    Ok(Plan::failing(change(key.clone(), &Length), error, missing))
}

pub(crate) fn lindex(args: &[Bytes]) -> Planned {
    match integer(&args[2]) {
        Ok(index) => Ok(Plan::write(args[1].clone(), &Index { index }, |result| {
            Reply::bulk_or_nil(value_of(result))
        })),
        Err(error) => failing(&args[1], error, Reply::Nil),
    }
}

pub(crate) fn lset(args: &[Bytes]) -> Planned {
    match integer(&args[2]) {
        Ok(index) => {
            let replace = Replace { index, value: args[3].clone() };
            Ok(Plan::write(args[1].clone(), &replace, |_| Reply::OK))
        }
        Err(error) => failing(&args[1], error, Reply::error("no such key")),
    }
}

pub(crate) fn linsert(args: &[Bytes]) -> Planned {
    let before = match () {
        () if is(&args[2], "before") => true,
        () if is(&args[2], "after") => false,
        () => return Err(syntax()),
    };
    let insert = Insert { before, pivot: args[3].clone(), value: args[4].clone() };
    Ok(Plan::write(args[1].clone(), &insert, integer_of))
}

fn list_of(result: &WriteResult) -> Vec<Reply> {
    let Typed::List(values) = &result.reply else { return vec![] };
    let rendered = values.iter().map(|value| match value {
        Typed::Integer(number) => Reply::Integer(*number),
        value => Reply::bulk_or_nil(value.bytes().cloned()),
    });
    rendered.collect()
}

pub(crate) fn lrange(args: &[Bytes]) -> Planned {
    let range = Range { start: integer(&args[2])?, stop: integer(&args[3])? };
    Ok(Plan::write(args[1].clone(), &range, |result| Reply::Array(list_of(result))))
}

pub(crate) fn lrem(args: &[Bytes]) -> Planned {
    let remove = Remove { count: integer(&args[2])?, value: args[3].clone() };
    Ok(Plan::write(args[1].clone(), &remove, integer_of))
}

pub(crate) fn ltrim(args: &[Bytes]) -> Planned {
    let trim = Trim { start: integer(&args[2])?, stop: integer(&args[3])? };
    Ok(Plan::write(args[1].clone(), &trim, |_| Reply::OK))
}

pub(crate) fn lpos(args: &[Bytes]) -> Planned {
    let (mut rank, mut count, mut most) = (1, None, 0);
    let mut options = Options::after(args, 3);
    let unsigned = |number: i64, name: &str| {
        u64::try_from(number).map_err(|_| Reply::error(format!("{name} can't be negative")))
    };
    while let Some(word) = options.word() {
        match word.as_str() {
            "RANK" => rank = options.integer()?,
            "COUNT" => count = Some(unsigned(options.integer()?, "COUNT")?),
            "MAXLEN" => most = unsigned(options.integer()?, "MAXLEN")?,
            _ => return Err(syntax()),
        }
        if rank == 0 {
            return Err(Reply::error(
                "RANK can't be zero: use 1 to start from the first match, 2 from the second ... or use negative to start from the end of the list",
            ));
        }
    }
    let find = Find {
        value: args[2].clone(),
        skip: rank.unsigned_abs() - 1,
        from_end: rank < 0,
        count: count.unwrap_or(1),
        most,
    };
    Ok(Plan::write(args[1].clone(), &find, move |result| {
        let mut found = list_of(result);
        match count {
            Some(_) => Reply::Array(found),
            None => found.pop().unwrap_or(Reply::Nil),
        }
    }))
}

fn moved(args: &[Bytes], from: End, to: End) -> Planned {
    let step = change(args[1].clone(), &Move { from, to }).and(vec![args[2].clone()]);
    Ok(Plan::one(step, |result, _| Reply::bulk_or_nil(value_of(result))))
}

pub(crate) fn lmove(args: &[Bytes]) -> Planned {
    let (from, to) = (end_of(&args[3])?, end_of(&args[4])?);
    moved(args, from, to)
}

pub(crate) fn rpoplpush(args: &[Bytes]) -> Planned {
    moved(args, End::Last, End::First)
}
