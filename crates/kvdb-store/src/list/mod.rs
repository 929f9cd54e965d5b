//! Commands on lists: values in the order in which they were put.
//!
//! An element is a row ([`crate::Order`]): its place is a position (`position`) between its neighbours', its
//! payload is the value.

mod position;

use crate::changes::Direction;
use crate::command::{CHANGED_MOST, Command, Done, Effect, Fault, REPLY_MAX_BYTES, flag, wrong};
use crate::order::{End, Order};
use crate::record::Type;
use crate::tx::{Collection, Tx};
use bytes::Bytes;
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::wrong_value::{
    NO_SUCH_KEY, NO_SUCH_PLACE, REPLY_TOO_LARGE, TOO_MANY_ELEMENTS, TOO_MANY_TO_SEARCH,
};
use kvdb_model::{CommandId, Limits, Refusal, Reply};

/// Most elements that one command looks through. A part of the state machine: fixed.
const SEARCHED_MOST: u64 = 1_000_000;
/// Neighbours that are spread anew at first, where there is no room for another one.
const SPREAD_FIRST: u64 = 32;

fn encode_end(end: End, out: &mut Writer) {
    out.u8(u8::from(end == End::Last));
}

fn decode_end(input: &mut Reader) -> Result<End, DecodeError> {
    Ok(if flag(input)? { End::Last } else { End::First })
}

/// The rank that an index stands for; one below 0 counts from the end.
fn rank_of(index: i64, count: u64) -> Option<u64> {
    let rank = if index < 0 { index.checked_add_unsigned(count)? } else { index };
    u64::try_from(rank).ok().filter(|rank| *rank < count)
}

/// The ranks from one index to another one, both included; `None` for none.
fn ranks_of(start: i64, stop: i64, count: u64) -> Option<(u64, u64)> {
    let length = i64::try_from(count).unwrap_or(i64::MAX);
    let place = |index: i64| if index < 0 { length.saturating_add(index) } else { index };
    let (start, stop) = (place(start).max(0), place(stop).min(length - 1));
    (start <= stop).then_some((start as u64, stop as u64))
}

/// Adds values at an end, one after the other.
pub(crate) fn push(
    order: &mut Order<'_, '_>,
    end: End,
    values: impl IntoIterator<Item = Bytes>,
) -> Result<(), Fault> {
    let mut neighbour = order.end(end)?.map(|(row, _)| position::decode(&row));
    for value in values {
        let position = match end {
            End::First => position::before(neighbour),
            End::Last => position::behind(neighbour),
        };
        order.insert(&position::encode(position), value)?;
        neighbour = Some(position);
    }
    Ok(())
}

/// Takes so many elements off an end.
fn pop(order: &mut Order<'_, '_>, end: End, count: u64) -> Result<Vec<Reply>, Fault> {
    let direction = match end {
        End::First => Direction::Ascending,
        End::Last => Direction::Descending,
    };
    let (mut taken, mut rows, mut size) = (Vec::new(), Vec::new(), 0);
    if count > 0 {
        order.scan(None, direction, |row, value| {
            size += value.len();
            rows.push(row);
            taken.push(Reply::Bytes(value));
            Ok(size <= REPLY_MAX_BYTES && (rows.len() as u64) < count)
        })?;
    }
    if size > REPLY_MAX_BYTES {
        return Err(wrong(REPLY_TOO_LARGE));
    }
    if rows.len() as u64 > CHANGED_MOST {
        return Err(wrong(TOO_MANY_ELEMENTS));
    }
    for row in rows {
        order.remove(&row, Some(end))?;
    }
    Ok(taken)
}

/// Adds values at an end, one after the other. Replies with how many elements there are then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    /// Where.
    pub end: End,
    /// Only to a list that is there.
    pub only_present: bool,
    /// What.
    pub values: Vec<Bytes>,
}

impl Command for Push {
    const ID: CommandId = CommandId(0x0701);
    const EFFECT: Effect = Effect::Grow;

    fn encode(&self, out: &mut Writer) {
        encode_end(self.end, out);
        out.u8(u8::from(self.only_present));
        out.varint(self.values.len() as u64);
        self.values.iter().for_each(|value| out.bytes(value));
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let (end, only_present) = (decode_end(input)?, flag(input)?);
        let count = input.count(1)?;
        let values = (0..count).map(|_| input.bytes()).collect::<Result<_, DecodeError>>()?;
        Ok(Push { end, only_present, values })
    }

    fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        self.values.iter().try_for_each(|value| limits.check_value(value))
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let mut list = match tx.collection(0, Type::List)? {
            Some(list) => list,
            None if self.only_present => return Ok(Done::NOT_APPLIED.with(Reply::Integer(0))),
            None => Collection::new(Type::List),
        };
        let mut order = tx.order(0, &mut list);
        push(&mut order, self.end, self.values)?;
        order.close()?;
        let count = list.count();
        if count > 0 {
            tx.store(0, list)?;
        }
        Ok(Done::APPLIED.with(Reply::Integer(count as i64)))
    }
}

/// Takes elements off an end of the first of its keys that has any. Replies with the place of that key
/// among them, and a list of what was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pop {
    /// Where.
    pub end: End,
    /// How many at most.
    pub count: u64,
}

impl Command for Pop {
    const ID: CommandId = CommandId(0x0702);
    const EFFECT: Effect = Effect::Free;
    const OTHERS: (usize, usize) = (0, usize::MAX - 1);

    fn encode(&self, out: &mut Writer) {
        encode_end(self.end, out);
        out.varint(self.count);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Pop { end: decode_end(input)?, count: input.varint()? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        for place in 0..tx.key_count() {
            let Some(mut list) = tx.collection(place, Type::List)? else { continue };
            let mut order = tx.order(place, &mut list);
            let taken = pop(&mut order, self.end, self.count)?;
            order.close()?;
            if !taken.is_empty() {
                tx.store(place, list)?;
            }
            let reply = vec![Reply::Integer(place as i64), Reply::List(taken)];
            return Ok(Done::APPLIED.with(Reply::List(reply)));
        }
        Ok(Done::NOT_APPLIED.with(Reply::Nil))
    }
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
        let (mut found, mut size) = (Vec::new(), 0);
        let count = stop - start + 1;
        if let Some((first, _)) = order.at(start)? {
            order.scan(Some(&first), Direction::Ascending, |_, value| {
                size += value.len();
                found.push(Reply::Bytes(value));
                Ok((found.len() as u64) < count && size <= REPLY_MAX_BYTES)
            })?;
        }
        if size > REPLY_MAX_BYTES {
            return Err(wrong(REPLY_TOO_LARGE));
        }
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

/// Takes an element off an end and puts it at an end of another list, or of the same one. Replies with
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Where to take it.
    pub from: End,
    /// Where to put it.
    pub to: End,
}

impl Command for Move {
    const ID: CommandId = CommandId(0x070b);
    const EFFECT: Effect = Effect::Grow;
    const OTHERS: (usize, usize) = (1, 1);

    fn encode(&self, out: &mut Writer) {
        encode_end(self.from, out);
        encode_end(self.to, out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Move { from: decode_end(input)?, to: decode_end(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(mut list) = tx.collection(0, Type::List)? else {
            return Ok(Done::NOT_APPLIED.with(Reply::Nil));
        };
        let is_same = tx.is_same_key(0, 1);
        // Where it would go is looked at before anything is taken.
        let target = if is_same { None } else { Some(tx.collection_or_new(1, Type::List)?) };
        let mut order = tx.order(0, &mut list);
        let taken = pop(&mut order, self.from, 1)?;
        let Some(Reply::Bytes(value)) = taken.into_iter().next() else {
            return Ok(Done::NOT_APPLIED.with(Reply::Nil));
        };
        let Some(mut target) = target else {
            push(&mut order, self.to, [value.clone()])?;
            order.close()?;
            tx.store(0, list)?;
            return Ok(Done::APPLIED.with(Reply::Bytes(value)));
        };
        order.close()?;
        tx.store(0, list)?;
        let mut order = tx.order(1, &mut target);
        push(&mut order, self.to, [value.clone()])?;
        order.close()?;
        tx.store(1, target)?;
        Ok(Done::APPLIED.with(Reply::Bytes(value)))
    }
}

#[cfg(test)]
mod tests;
