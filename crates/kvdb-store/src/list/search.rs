//! Elements that are found by their value.

use super::{position, push};

use crate::changes::Direction;
use crate::command::{CHANGED_MOST, Command, Done, Effect, Fault, flag, wrong};
use crate::order::{End, Order};
use crate::record::Type;
use crate::tx::Tx;
use bytes::Bytes;
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::wrong_value::{TOO_MANY_ELEMENTS, TOO_MANY_TO_SEARCH};
use kvdb_model::{CommandId, Limits, Refusal, Reply};

/// Most elements that one command looks through. A part of the state machine: fixed.
const SEARCHED_MOST: u64 = 1_000_000;
/// Neighbours that are spread anew at first, where there is no room for another one.
const SPREAD_FIRST: u64 = 32;

/// Puts a value before or behind the first element that is the same as another value. Replies with how
/// many elements there are then: -1 if there is no such element, 0 if there is no list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Insert {
    /// Before it, rather than behind it.
    pub before: bool,
    /// The element to look for.
    pub pivot: Bytes,
    /// What to put.
    pub value: Bytes,
}

impl Command for Insert {
    const ID: CommandId = CommandId(0x0707);
    const EFFECT: Effect = Effect::Grow;

    fn encode(&self, out: &mut Writer) {
        out.u8(u8::from(self.before));
        out.bytes(&self.pivot);
        out.bytes(&self.value);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Insert { before: flag(input)?, pivot: input.bytes()?, value: input.bytes()? })
    }

    fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        limits.check_value(&self.value)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(mut list) = tx.collection(0, Type::List)? else {
            return Ok(Done::NOT_APPLIED.with(Reply::Integer(0)));
        };
        let mut order = tx.order(0, &mut list);
        let mut pivot = None;
        search(&mut order, Direction::Ascending, SEARCHED_MOST, |row, value| {
            if *value == self.pivot {
                pivot = Some(row);
            }
            pivot.is_none()
        })?;
        let Some(pivot) = pivot else { return Ok(Done::NOT_APPLIED.with(Reply::Integer(-1))) };
        insert_beside(&mut order, &pivot, self.before, self.value)?;
        order.close()?;
        let count = list.count();
        tx.store(0, list)?;
        Ok(Done::APPLIED.with(Reply::Integer(count as i64)))
    }
}

/// Looks through elements while `more` says so, and through so many at most.
fn search(
    order: &mut Order<'_, '_>,
    direction: Direction,
    most: u64,
    mut more: impl FnMut(Bytes, &Bytes) -> bool,
) -> Result<(), Fault> {
    let (mut seen, mut is_over) = (0, false);
    order.scan(None, direction, |row, value| {
        if seen == most {
            is_over = most == SEARCHED_MOST;
            return Ok(false);
        }
        seen += 1;
        Ok(more(row, &value))
    })?;
    if is_over { Err(wrong(TOO_MANY_TO_SEARCH)) } else { Ok(()) }
}

/// Rows next to one, that one excluded: nearest first.
fn neighbours(
    order: &mut Order<'_, '_>,
    row: &[u8],
    direction: Direction,
    count: u64,
) -> Result<Vec<(Bytes, Bytes)>, Fault> {
    let mut found: Vec<(Bytes, Bytes)> = Vec::new();
    order.scan(Some(row), direction, |next, value| {
        if next != *row {
            found.push((next, value));
        }
        Ok((found.len() as u64) < count)
    })?;
    Ok(found)
}

fn insert_beside(
    order: &mut Order<'_, '_>,
    pivot: &Bytes,
    before: bool,
    value: Bytes,
) -> Result<(), Fault> {
    let direction = if before { Direction::Descending } else { Direction::Ascending };
    let own = position::decode(pivot);
    let Some((neighbour, _)) = neighbours(order, pivot, direction, 1)?.pop() else {
        return push(order, if before { End::First } else { End::Last }, [value]);
    };
    let other = position::decode(&neighbour);
    if let Some(place) = position::between(own.min(other), own.max(other)) {
        order.insert(&position::encode(place), value)?;
        return Ok(());
    }
    let (low, high) = if before { (neighbour, pivot.clone()) } else { (pivot.clone(), neighbour) };
    spread_around(order, &low, &high, value)
}

/// Gives the elements around a place that is too narrow other positions, a value between them: as many as
/// it takes until they have room.
fn spread_around(
    order: &mut Order<'_, '_>,
    low: &Bytes,
    high: &Bytes,
    value: Bytes,
) -> Result<(), Fault> {
    let mut width = SPREAD_FIRST;
    loop {
        let mut left = neighbours(order, low, Direction::Descending, width)?;
        let mut right = neighbours(order, high, Direction::Ascending, width)?;
        let place = |row: &(Bytes, Bytes)| position::decode(&row.0);
        // Those farthest away stay. Where there is none, there is all the room that a push has.
        let from = match (left.len() as u64) < width {
            true => position::before(Some(left.last().map_or(position::decode(low), place))),
            false => left.pop().as_ref().map_or(0, place),
        };
        let to = match (right.len() as u64) < width {
            true => position::behind(Some(right.last().map_or(position::decode(high), place))),
            false => right.pop().as_ref().map_or(u128::MAX, place),
        };
        let count = (left.len() + right.len() + 3) as u64;
        if count > CHANGED_MOST {
            return Err(wrong(TOO_MANY_ELEMENTS));
        }
        let Some(positions) = position::spread(count, from, to) else {
            width *= 2;
            continue;
        };
        let held = |order: &Order<'_, '_>, row: &Bytes| {
            Ok::<_, Fault>(order.get(row)?.unwrap_or_default())
        };
        let low = (low.clone(), held(order, low)?);
        let high = (high.clone(), held(order, high)?);
        let rows: Vec<_> = left.into_iter().rev().chain([low]).collect();
        let behind: Vec<_> = [high].into_iter().chain(right).collect();
        for (row, _) in rows.iter().chain(&behind) {
            order.remove(row, None)?;
        }
        let values = rows.into_iter().map(|(_, value)| value).chain([value]);
        let values = values.chain(behind.into_iter().map(|(_, value)| value));
        for (position, value) in positions.zip(values) {
            order.insert(&position::encode(position), value)?;
        }
        return Ok(());
    }
}

/// Removes elements that are the same as a value. Replies with how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remove {
    /// How many at most; below 0 from the end, 0 for all.
    pub count: i64,
    /// The value.
    pub value: Bytes,
}

impl Command for Remove {
    const ID: CommandId = CommandId(0x0708);
    const EFFECT: Effect = Effect::Free;

    fn encode(&self, out: &mut Writer) {
        out.signed(self.count);
        out.bytes(&self.value);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Remove { count: input.signed()?, value: input.bytes()? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(mut list) = tx.collection(0, Type::List)? else {
            return Ok(Done::NOT_APPLIED.with(Reply::Integer(0)));
        };
        let direction = if self.count < 0 { Direction::Descending } else { Direction::Ascending };
        let most = if self.count == 0 { u64::MAX } else { self.count.unsigned_abs() };
        let mut order = tx.order(0, &mut list);
        let mut found = Vec::new();
        search(&mut order, direction, SEARCHED_MOST, |row, value| {
            if *value == self.value {
                found.push(row);
            }
            (found.len() as u64) < most
        })?;
        if found.is_empty() {
            return Ok(Done::NOT_APPLIED.with(Reply::Integer(0)));
        }
        // What leaves nothing behind needs no look at each.
        if found.len() as u64 == order.count() {
            tx.remove(0)?;
            return Ok(Done::APPLIED.with(Reply::Integer(found.len() as i64)));
        }
        if found.len() as u64 > CHANGED_MOST {
            return Err(wrong(TOO_MANY_ELEMENTS));
        }
        for row in &found {
            order.remove(row, None)?;
        }
        order.close()?;
        tx.store(0, list)?;
        Ok(Done::APPLIED.with(Reply::Integer(found.len() as i64)))
    }
}

/// Finds elements that are the same as a value. Replies with a list of their indexes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Find {
    /// The value.
    pub value: Bytes,
    /// Leave out so many matches.
    pub skip: u64,
    /// From the end on.
    pub from_end: bool,
    /// How many at most; 0 for all.
    pub count: u64,
    /// Look at so many elements at most; 0 for all.
    pub most: u64,
}

impl Command for Find {
    const ID: CommandId = CommandId(0x070a);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, out: &mut Writer) {
        out.bytes(&self.value);
        out.varint(self.skip);
        out.u8(u8::from(self.from_end));
        out.varint(self.count);
        out.varint(self.most);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let (value, skip, from_end) = (input.bytes()?, input.varint()?, flag(input)?);
        Ok(Find { value, skip, from_end, count: input.varint()?, most: input.varint()? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(mut list) = tx.collection(0, Type::List)? else {
            return Ok(Done::NOT_APPLIED.with(Reply::List(vec![])));
        };
        let length = list.count();
        let direction = if self.from_end { Direction::Descending } else { Direction::Ascending };
        let most = if self.most == 0 { SEARCHED_MOST } else { self.most.min(SEARCHED_MOST) };
        let (mut found, mut seen, mut left) = (Vec::new(), 0, self.skip);
        search(&mut tx.order(0, &mut list), direction, most, |_, value| {
            let index = if self.from_end { length - 1 - seen } else { seen };
            seen += 1;
            if *value == self.value {
                match left.checked_sub(1) {
                    Some(rest) => left = rest,
                    None => found.push(Reply::Integer(index as i64)),
                }
            }
            self.count == 0 || (found.len() as u64) < self.count
        })?;
        Ok(Done::APPLIED.with(Reply::List(found)))
    }
}
