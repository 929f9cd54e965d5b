//! Collections that stand for values: what clients put in the place of one, and what a read makes of it.
//!
//! A collection holds one value many times, and how often. Whoever sees all of it sees a value; whoever
//! sees a part of it, or two lives of it at once, sees what no writer ever wrote. A counter may be the
//! length of a list: then all ways to count it must agree.

use crate::client::is_list_counter;
use bytes::Bytes;
use kvdb_model::{Operation, RangeEpoch, Reply};
use kvdb_store::keys::{Delete, Expiry};
use kvdb_store::{Command, End, View, hash, list, set};

/// The field, and the member, that says how many others there are.
const COUNT: &str = "count";

fn replace_by(commands: Vec<Operation>) -> Vec<Operation> {
    let mut all = vec![Delete.on(Bytes::new())];
    all.extend(commands);
    all
}

/// A hash: so many fields that hold the value.
pub(crate) fn hash(value: &str, count: u64) -> Vec<Operation> {
    let fields = fields_of(value, count);
    replace_by(vec![hash::Set { fields, only_new: false }.on(Bytes::new())])
}

/// The same, whose fields all expire by themselves: then the hash isn't there any more.
pub(crate) fn hash_until(value: &str, count: u64, ttl_ms: u64) -> Vec<Operation> {
    let (expiry, condition) = (Expiry::In(ttl_ms), hash::FieldCondition::Always);
    let set = hash::SetUntil { expiry, condition, fields: fields_of(value, count) };
    replace_by(vec![set.on(Bytes::new())])
}

fn fields_of(value: &str, count: u64) -> Vec<(Bytes, Bytes)> {
    let field = |number| (Bytes::from(format!("{number}")), Bytes::from(value.to_owned()));
    let mut fields: Vec<_> = (0..count).map(field).collect();
    fields.push((COUNT.into(), Bytes::from(count.to_string())));
    fields
}

/// A set: so many members that hold the value.
pub(crate) fn set(value: &str, count: u64) -> Vec<Operation> {
    let mut members: Vec<_> =
        (0..count).map(|number| Bytes::from(format!("{number}/{value}"))).collect();
    members.push(format!("{COUNT}/{count}").into());
    replace_by(vec![set::Add { members }.on(Bytes::new())])
}

/// A list: how often, then the value so often, put there from both ends and in the middle.
pub(crate) fn list(value: &str, count: u64) -> Vec<Operation> {
    let push =
        |end, values: Vec<Bytes>| list::Push { end, only_present: false, values }.on(Bytes::new());
    let value = Bytes::from(value.to_owned());
    let middle = list::Insert { before: true, pivot: value.clone(), value: value.clone() };
    replace_by(vec![
        push(End::Last, vec![value.clone(); count as usize - 1]),
        middle.on(Bytes::new()),
        push(End::First, vec![count.to_string().into()]),
        // What is taken off again must be what was put there last.
        push(End::Last, vec!["last".into()]),
        list::Pop { end: End::Last, count: 1 }.on(Bytes::new()),
    ])
}

/// One element more on a list that counts.
pub(crate) fn pushed(end: End, value: &str) -> list::Push {
    list::Push { end, only_present: false, values: vec![Bytes::from(value.to_owned())] }
}

/// The value that a collection stands for; anything else is told as it is, and no writer ever wrote that.
pub(crate) fn value_of(
    view: &View<'_>,
    epoch: RangeEpoch,
    key: &Bytes,
    now_ms: u64,
) -> Result<Bytes, String> {
    let ask = |operations: &[Operation]| {
        let read = view.query(epoch, operations, now_ms, usize::MAX);
        let read = read.map_err(|error| error.to_string())?;
        let outcomes = read.ok_or("it expires while it is read")?;
        let replies = outcomes.into_iter().map(|outcome| match outcome {
            Ok(result) => Ok(Some(result.reply)),
            // Of another type.
            Err(_) => Ok(None),
        });
        replies.collect::<Result<Vec<Option<Reply>>, String>>()
    };
    let whole = [
        hash::Scan { cursor: 0, most: 0 }.on(key.clone()),
        set::Scan { cursor: 0, most: 0 }.on(key.clone()),
        list::Range { start: 0, stop: -1 }.on(key.clone()),
        list::Length.on(key.clone()),
        list::Index { index: -1 }.on(key.clone()),
    ];
    let mut replies = ask(&whole)?.into_iter();
    let mut next = || replies.next().flatten();
    let (fields, members, elements, length, last) = (next(), next(), next(), next(), next());
    let torn =
        format!("a torn collection: {fields:?} {members:?} {elements:?} {length:?} {last:?}");
    let value = match (fields, members, elements) {
        (Some(fields), None, None) => of_fields(&fields),
        (None, Some(members), None) => of_members(&members),
        (None, None, Some(Reply::List(elements))) => {
            let is_counted = length == Some(Reply::Integer(elements.len() as i64))
                && elements.last() == last.as_ref();
            match is_list_counter(key) {
                _ if !is_counted => None,
                true => Some(Bytes::from(elements.len().to_string())),
                false => of_elements(&elements),
            }
        }
        _ => None,
    };
    Ok(value.unwrap_or_else(|| Bytes::from(torn)))
}

/// What a collection holds so often as it says itself.
fn so_often(count: &[u8], values: &[Bytes]) -> Option<Bytes> {
    let value = values.first()?;
    let is_whole =
        *count == *values.len().to_string().as_bytes() && values.iter().all(|other| other == value);
    is_whole.then(|| value.clone())
}

fn of_fields(reply: &Reply) -> Option<Bytes> {
    let Reply::List(part) = reply else { return None };
    let [_, Reply::Map(pairs)] = &part[..] else { return None };
    let (mut count, mut values) = (None, Vec::new());
    for (field, value) in pairs {
        match field.bytes()? == COUNT {
            true => count = value.bytes(),
            false => values.push(value.bytes()?.clone()),
        }
    }
    so_often(count?, &values)
}

fn of_members(reply: &Reply) -> Option<Bytes> {
    let Reply::List(part) = reply else { return None };
    let [_, Reply::List(members)] = &part[..] else { return None };
    let (mut count, mut values) = (None, Vec::new());
    for member in members {
        let member = member.bytes()?;
        let slash = member.iter().position(|byte| *byte == b'/')?;
        match member[..slash] == *COUNT.as_bytes() {
            true => count = Some(member.slice(slash + 1..)),
            false => values.push(member.slice(slash + 1..)),
        }
    }
    so_often(&count?, &values)
}

fn of_elements(elements: &[Reply]) -> Option<Bytes> {
    let (count, values) = elements.split_first()?;
    let values: Option<Vec<Bytes>> = values.iter().map(|value| value.bytes().cloned()).collect();
    so_often(count.bytes()?, &values?)
}
