//! Commands on lists: values in the order in which they were put.
//!
//! An element is a row ([`crate::Order`]): its place is a position (`position`) between its neighbours', its
//! payload is the value.

mod ends;
mod position;
mod search;

pub(crate) use ends::push;
pub use ends::{Move, Pop, Push};
pub use search::{Find, Insert, Remove};

use crate::changes::Direction;
use crate::command::{CHANGED_MOST, Command, Done, Effect, Fault, ReplySize, wrong};
use crate::order::{End, Order, ranks_of};
use crate::record::Type;
use crate::tx::{Collection, Tx};
use bytes::Bytes;
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::wrong_value::{NO_SUCH_KEY, NO_SUCH_PLACE, TOO_MANY_ELEMENTS};
use kvdb_model::{CommandId, Limits, Refusal, Reply};

/// The rank that an index stands for; one below 0 counts from the end.
fn rank_of(index: i64, count: u64) -> Option<u64> {
    let rank = if index < 0 { index.checked_add_unsigned(count)? } else { index };
    u64::try_from(rank).ok().filter(|rank| *rank < count)
}

/// Counts the elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length;

impl Command for Length {
    const ID: CommandId = CommandId(0x0703);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, _out: &mut Writer) {}

    fn decode(_input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Length)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let list = tx.collection(0, Type::List)?;
        let count = list.as_ref().map_or(0, |list| list.count() as i64);
        Ok(Done { applied: list.is_some(), reply: Reply::Integer(count) })
    }
}

/// Reads one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Index {
    /// Which one; below 0 from the end.
    pub index: i64,
}

impl Command for Index {
    const ID: CommandId = CommandId(0x0704);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, out: &mut Writer) {
        out.signed(self.index);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Index { index: input.signed()? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(mut list) = tx.collection(0, Type::List)? else {
            return Ok(Done::NOT_APPLIED.with(Reply::Nil));
        };
        let found = match rank_of(self.index, list.count()) {
            Some(rank) => tx.order(0, &mut list).at(rank)?,
            None => None,
        };
        Ok(Done::APPLIED.with(found.map_or(Reply::Nil, |(_, value)| Reply::Bytes(value))))
    }
}

/// Reads the elements from one index to another one, both included. Replies with a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first; below 0 from the end.
    pub start: i64,
    /// The last; below 0 from the end.
    pub stop: i64,
}

impl Command for Range {
    const ID: CommandId = CommandId(0x0705);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, out: &mut Writer) {
        out.signed(self.start);
        out.signed(self.stop);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Range { start: input.signed()?, stop: input.signed()? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(mut list) = tx.collection(0, Type::List)? else {
            return Ok(Done::NOT_APPLIED.with(Reply::List(vec![])));
        };
        let Some((start, stop)) = ranks_of(self.start, self.stop, list.count()) else {
            return Ok(Done::APPLIED.with(Reply::List(vec![])));
        };
        let mut order = tx.order(0, &mut list);
        let (mut found, mut size) = (Vec::new(), ReplySize::default());
        let count = stop - start + 1;
        if let Some((first, _)) = order.at(start)? {
            order.scan(Some(&first), Direction::Ascending, |_, value| {
                let more = size.add(value.len());
                found.push(Reply::Bytes(value));
                Ok(more && (found.len() as u64) < count)
            })?;
        }
        size.check()?;
        Ok(Done::APPLIED.with(Reply::List(found)))
    }
}

/// Overwrites one element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replace {
    /// Which one; below 0 from the end.
    pub index: i64,
    /// By what.
    pub value: Bytes,
}

impl Command for Replace {
    const ID: CommandId = CommandId(0x0706);
    const EFFECT: Effect = Effect::Grow;

    fn encode(&self, out: &mut Writer) {
        out.signed(self.index);
        out.bytes(&self.value);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Replace { index: input.signed()?, value: input.bytes()? })
    }

    fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        limits.check_value(&self.value)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(mut list) = tx.collection(0, Type::List)? else {
            return Err(wrong(NO_SUCH_KEY));
        };
        let rank = rank_of(self.index, list.count()).ok_or(wrong(NO_SUCH_PLACE))?;
        let mut order = tx.order(0, &mut list);
        let (row, _) = order.at(rank)?.ok_or(wrong(NO_SUCH_PLACE))?;
        order.insert(&row, self.value)?;
        order.close()?;
        tx.store(0, list)?;
        Ok(Done::APPLIED)
    }
}

/// Keeps the elements from one index to another one, both included, and removes the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trim {
    /// The first to keep; below 0 from the end.
    pub start: i64,
    /// The last to keep; below 0 from the end.
    pub stop: i64,
}

impl Command for Trim {
    const ID: CommandId = CommandId(0x0709);
    const EFFECT: Effect = Effect::Free;

    fn encode(&self, out: &mut Writer) {
        out.signed(self.start);
        out.signed(self.stop);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Trim { start: input.signed()?, stop: input.signed()? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(mut list) = tx.collection(0, Type::List)? else {
            return Ok(Done::NOT_APPLIED);
        };
        let count = list.count();
        let Some((start, stop)) = ranks_of(self.start, self.stop, count) else {
            tx.remove(0)?;
            return Ok(Done::APPLIED);
        };
        let (kept, behind) = (stop - start + 1, count - 1 - stop);
        if kept == count {
            return Ok(Done::NOT_APPLIED);
        }
        if kept < count - kept && list.is_promoted() {
            return keep(tx, list, start, kept);
        }
        if count - kept > CHANGED_MOST {
            return Err(wrong(TOO_MANY_ELEMENTS));
        }
        let mut order = tx.order(0, &mut list);
        for (end, count) in [(End::First, start), (End::Last, behind)] {
            for row in rows_at(&mut order, end, count)? {
                order.remove(&row, Some(end))?;
            }
        }
        order.close()?;
        tx.store(0, list)?;
        Ok(Done::APPLIED)
    }
}

fn rows_at(order: &mut Order<'_, '_>, end: End, count: u64) -> Result<Vec<Bytes>, Fault> {
    let direction = match end {
        End::First => Direction::Ascending,
        End::Last => Direction::Descending,
    };
    let mut rows = Vec::new();
    if count > 0 {
        order.scan(None, direction, |row, _| {
            rows.push(row);
            Ok((rows.len() as u64) < count)
        })?;
    }
    Ok(rows)
}

/// Writes the few elements that stay anew, and leaves the others to be freed.
fn keep(tx: &mut Tx<'_>, mut list: Collection, start: u64, kept: u64) -> Result<Done, Fault> {
    if kept > CHANGED_MOST {
        return Err(wrong(TOO_MANY_ELEMENTS));
    }
    let mut rows = Vec::new();
    let mut order = tx.order(0, &mut list);
    if let Some((first, _)) = order.at(start)? {
        order.scan(Some(&first), Direction::Ascending, |row, value| {
            rows.push((row, value));
            Ok((rows.len() as u64) < kept)
        })?;
    }
    let mut rest = list.emptied();
    let mut order = tx.order(0, &mut rest);
    for (row, value) in rows {
        order.insert(&row, value)?;
    }
    order.close()?;
    tx.store(0, rest)?;
    Ok(Done::APPLIED)
}

#[cfg(test)]
mod tests;
