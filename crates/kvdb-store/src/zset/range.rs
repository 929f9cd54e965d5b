//! Which members are meant: by rank, by score, by name.

use super::score::{Score, parse_row, row_of};
use super::{
    CHANGED_MOST, Collection, Command, Done, Effect, End, Fault, Members, Order, ReplySize,
    TOO_MANY_ELEMENTS, Tx, Type, add_up, flag, pair, remove_all, wrong,
};
use crate::apply::ApplyError;
use crate::changes::Direction;
use crate::order::ranks_of;
use bytes::{BufMut, Bytes, BytesMut};
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::{CommandId, Reply};

/// An end of a range of scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScoreBound {
    /// The score.
    pub score: Score,
    /// It doesn't belong to the range.
    pub is_exclusive: bool,
}

/// An end of a range of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LexBound {
    /// Before all names.
    Lowest,
    /// This name, which belongs to the range.
    Inclusive(Bytes),
    /// This name, which doesn't.
    Exclusive(Bytes),
    /// After all names.
    Highest,
}

/// A range of members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Range {
    /// By place among the others, both included; negative ones from the end.
    Ranks(i64, i64),
    /// By score.
    Scores(ScoreBound, ScoreBound),
    /// By name, among members of the same score.
    Names(LexBound, LexBound),
}

impl ScoreBound {
    fn encode(self, out: &mut Writer) {
        out.u8(u8::from(self.is_exclusive));
        self.score.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(ScoreBound { is_exclusive: flag(input)?, score: Score::decode(input)? })
    }
}

impl LexBound {
    fn encode(&self, out: &mut Writer) {
        match self {
            LexBound::Lowest => out.u8(0),
            LexBound::Inclusive(name) => {
                out.u8(1);
                out.bytes(name);
            }
            LexBound::Exclusive(name) => {
                out.u8(2);
                out.bytes(name);
            }
            LexBound::Highest => out.u8(3),
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(match input.u8()? {
            0 => LexBound::Lowest,
            1 => LexBound::Inclusive(input.bytes()?),
            2 => LexBound::Exclusive(input.bytes()?),
            3 => LexBound::Highest,
            other => return Err(DecodeError::unknown_tag("bound of names", other)),
        })
    }

    /// Whether a name is at or above this, as the lower end of a range.
    fn is_reached_by(&self, name: &[u8]) -> bool {
        match self {
            LexBound::Lowest => true,
            LexBound::Inclusive(bound) => *name >= bound[..],
            LexBound::Exclusive(bound) => *name > bound[..],
            LexBound::Highest => false,
        }
    }

    /// Whether a name is beyond this, as the upper end of a range.
    fn is_passed_by(&self, name: &[u8]) -> bool {
        match self {
            LexBound::Lowest => true,
            LexBound::Inclusive(bound) => *name > bound[..],
            LexBound::Exclusive(bound) => *name >= bound[..],
            LexBound::Highest => false,
        }
    }

    /// The first row at or above this, as the lower end of a range of one score; beyond it, as the upper one.
    fn row(&self, score: Score, is_upper: bool) -> Bytes {
        let beyond = |name: &[u8]| {
            let mut row = BytesMut::from(&row_of(score, name)[..]);
            row.put_u8(0);
            row.freeze()
        };
        match self {
            LexBound::Lowest => row_of(score, b""),
            LexBound::Highest => Bytes::copy_from_slice(&score.above()),
            LexBound::Inclusive(name) if is_upper => beyond(name),
            LexBound::Exclusive(name) if !is_upper => beyond(name),
            LexBound::Inclusive(name) | LexBound::Exclusive(name) => row_of(score, name),
        }
    }
}

impl Range {
    fn encode(&self, out: &mut Writer) {
        match self {
            Range::Ranks(start, stop) => {
                out.u8(0);
                out.signed(*start);
                out.signed(*stop);
            }
            Range::Scores(min, max) => {
                out.u8(1);
                min.encode(out);
                max.encode(out);
            }
            Range::Names(min, max) => {
                out.u8(2);
                min.encode(out);
                max.encode(out);
            }
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(match input.u8()? {
            0 => Range::Ranks(input.signed()?, input.signed()?),
            1 => Range::Scores(ScoreBound::decode(input)?, ScoreBound::decode(input)?),
            2 => Range::Names(LexBound::decode(input)?, LexBound::decode(input)?),
            other => return Err(DecodeError::unknown_tag("range of a sorted set", other)),
        })
    }

    /// Where its rows are.
    fn window(&self, rows: &mut Order<'_, '_>, reverse: bool) -> Result<Window, ApplyError> {
        match self {
            Range::Ranks(start, stop) => Ok(ranks_between(*start, *stop, rows.count(), reverse)),
            Range::Scores(min, max) => {
                let place = |score: Score, is_above: bool| {
                    Bytes::copy_from_slice(&if is_above { score.above() } else { score.to_bytes() })
                };
                let from = place(min.score, min.is_exclusive);
                Ok(Window::Places(from, place(max.score, !max.is_exclusive)))
            }
            Range::Names(min, max) => names_between(min, max, rows),
        }
    }
}

/// Rows that stand together.
enum Window {
    /// From a rank to below another.
    Ranks(u64, u64),
    /// From a place to below another.
    Places(Bytes, Bytes),
}

/// As Redis counts, from either end.
fn ranks_between(start: i64, stop: i64, count: u64, reverse: bool) -> Window {
    let Some((start, stop)) = ranks_of(start, stop, count) else {
        return Window::Ranks(0, 0);
    };
    let end = stop + 1;
    match reverse {
        false => Window::Ranks(start, end),
        true => Window::Ranks(count - end, count - start),
    }
}

fn names_between(
    min: &LexBound,
    max: &LexBound,
    rows: &mut Order<'_, '_>,
) -> Result<Window, ApplyError> {
    let ends = (rows.end(End::First)?, rows.end(End::Last)?);
    let (Some((first, _)), Some((last, _))) = ends else { return Ok(Window::Ranks(0, 0)) };
    let (lowest, highest) = (parse_row(&first).0, parse_row(&last).0);
    if lowest == highest {
        return Ok(Window::Places(min.row(lowest, false), max.row(lowest, true)));
    }
    // Names stand in their order among members of one score alone: of others any answer is as good, as
    // long as it is the same everywhere.
    let from = first_rank(rows, |name| min.is_reached_by(name))?;
    let to = first_rank(rows, |name| max.is_passed_by(name))?;
    Ok(Window::Ranks(from, to.max(from)))
}

/// The first rank whose name is one that is looked for, as if they stood in order.
fn first_rank(rows: &mut Order<'_, '_>, is_it: impl Fn(&[u8]) -> bool) -> Result<u64, ApplyError> {
    let (mut low, mut high) = (0, rows.count());
    while low < high {
        let middle = low + (high - low) / 2;
        match rows.at(middle)? {
            Some((row, _)) if !is_it(&parse_row(&row).1) => low = middle + 1,
            _ => high = middle,
        }
    }
    Ok(low)
}

impl Window {
    /// The same, by ranks.
    fn ranks(&self, rows: &mut Order<'_, '_>) -> Result<(u64, u64), ApplyError> {
        match self {
            Window::Ranks(from, to) => Ok((*from, *to)),
            Window::Places(from, to) if from >= to => Ok((0, 0)),
            Window::Places(from, to) => Ok((rows.rank(from)?, rows.rank(to)?)),
        }
    }
}

/// Members of a range, some or all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The range.
    pub range: Range,
    /// From the last one on.
    pub reverse: bool,
    /// Leave so many out first.
    pub skip: u64,
    /// No more than so many.
    pub most: Option<u64>,
}

impl Selection {
    pub(super) fn encode(&self, out: &mut Writer) {
        self.range.encode(out);
        out.u8(u8::from(self.reverse) | u8::from(self.most.is_some()) << 1);
        out.varint(self.skip);
        out.varint(self.most.unwrap_or(0));
    }

    pub(super) fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let range = Range::decode(input)?;
        let flags = input.u8()?;
        if flags > 3 {
            return Err(DecodeError::unknown_tag("flags of a selection", flags));
        }
        let (skip, most) = (input.varint()?, input.varint()?);
        Ok(Selection {
            range,
            reverse: flags & 1 != 0,
            skip,
            most: (flags & 2 != 0).then_some(most),
        })
    }

    /// Its rows, in order, while `take` says so.
    pub(super) fn rows(
        &self,
        rows: &mut Order<'_, '_>,
        mut take: impl FnMut(Bytes) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let window = self.range.window(rows, self.reverse)?;
        let mut left = self.most.unwrap_or(u64::MAX);
        let mut problem = None;
        let mut tell = |row: Bytes| {
            left -= 1;
            match take(row) {
                Ok(()) => left > 0,
                Err(fault) => {
                    problem = Some(fault);
                    false
                }
            }
        };
        if self.most == Some(0) {
            return Ok(());
        }
        match (window, self.reverse) {
            (Window::Places(from, to), _) if from >= to => {}
            // Those from a place on need not be counted.
            (Window::Places(from, to), false) if self.skip == 0 => {
                rows.scan(Some(&from), Direction::Ascending, |row, _| Ok(row < to && tell(row)))?;
            }
            (Window::Places(from, to), true) if self.skip == 0 => {
                rows.scan(Some(&to), Direction::Descending, |row, _| Ok(row >= from && tell(row)))?;
            }
            (window, reverse) => {
                let (from, to) = window.ranks(rows)?;
                let there = to.saturating_sub(from);
                let Some(mut left) = there.checked_sub(self.skip).filter(|left| *left > 0) else {
                    return Ok(());
                };
                let (rank, direction) = match reverse {
                    false => (from + self.skip, Direction::Ascending),
                    true => (to - 1 - self.skip, Direction::Descending),
                };
                let Some((first, _)) = rows.at(rank)? else { return Ok(()) };
                let mut start = BytesMut::from(&first[..]);
                if reverse {
                    // A walk downwards begins below its start.
                    start.put_u8(0);
                }
                rows.scan(Some(&start), direction, |row, _| {
                    left -= 1;
                    Ok(tell(row) && left > 0)
                })?;
            }
        }
        problem.map_or(Ok(()), Err)
    }
}

/// Reads members of a range. Replies with a list of them, or with a map of members and scores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Select {
    /// Which.
    pub selection: Selection,
    /// With their scores.
    pub with_scores: bool,
}

impl Command for Select {
    const ID: CommandId = CommandId(0x0607);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, out: &mut Writer) {
        out.u8(u8::from(self.with_scores));
        self.selection.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Select { with_scores: flag(input)?, selection: Selection::decode(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let (mut names, mut pairs) = (Vec::new(), Vec::new());
        let set = tx.collection(0, Type::SortedSet)?;
        let applied = set.is_some();
        if let Some(mut set) = set {
            let mut size = ReplySize::default();
            self.selection.rows(&mut tx.order(0, &mut set), |row| {
                let (member, score) = pair(&row);
                add_up(&mut size, &row)?;
                match self.with_scores {
                    true => pairs.push((member, score)),
                    false => names.push(member),
                }
                Ok(())
            })?;
        }
        let reply = if self.with_scores { Reply::Map(pairs) } else { Reply::List(names) };
        Ok(Done { applied, reply })
    }
}

/// Counts the members of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// Which.
    pub range: Range,
}

impl Command for Count {
    const ID: CommandId = CommandId(0x0608);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, out: &mut Writer) {
        self.range.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Count { range: Range::decode(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(mut set) = tx.collection(0, Type::SortedSet)? else {
            return Ok(Done::NOT_APPLIED.with(Reply::Integer(0)));
        };
        let mut rows = tx.order(0, &mut set);
        let (from, to) = self.range.window(&mut rows, false)?.ranks(&mut rows)?;
        Ok(Done::APPLIED.with(Reply::Integer(to.saturating_sub(from) as i64)))
    }
}

/// Stores members of a range of the other key's set under the own key, whatever that held. Replies with
/// their number; without any the own key is removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectInto {
    /// Which.
    pub selection: Selection,
}

impl Command for SelectInto {
    const ID: CommandId = CommandId(0x0609);
    const EFFECT: Effect = Effect::Grow;
    const OTHERS: (usize, usize) = (1, 1);

    fn encode(&self, out: &mut Writer) {
        self.selection.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(SelectInto { selection: Selection::decode(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let mut found = Vec::new();
        if let Some(mut set) = tx.collection(1, Type::SortedSet)? {
            self.selection.rows(&mut tx.order(1, &mut set), |row| {
                found.push(row);
                match found.len() as u64 > CHANGED_MOST {
                    true => Err(wrong(TOO_MANY_ELEMENTS)),
                    false => Ok(()),
                }
            })?;
        }
        store_rows(tx, &found)
    }
}

/// Stores a new set of these rows under the own key, whatever that held.
pub(super) fn store_rows(tx: &mut Tx<'_>, rows: &[Bytes]) -> Result<Done, Fault> {
    let reply = Reply::Integer(rows.len() as i64);
    if rows.is_empty() && tx.get(0)?.is_none() {
        return Ok(Done::NOT_APPLIED.with(reply));
    }
    let mut set = Collection::new(Type::SortedSet);
    fill_rows(tx, &mut set, rows)?;
    tx.store(0, set)?;
    Ok(Done::APPLIED.with(reply))
}

/// Puts these rows into a new set.
pub(super) fn fill_rows(
    tx: &mut Tx<'_>,
    set: &mut Collection,
    rows: &[Bytes],
) -> Result<(), ApplyError> {
    let mut order = tx.order(0, set);
    for row in rows {
        order.insert(row, Bytes::new())?;
    }
    order.close()
}

/// Removes the members of a range. Replies with how many there were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoveRange {
    /// Which.
    pub range: Range,
}

impl Command for RemoveRange {
    const ID: CommandId = CommandId(0x060a);
    const EFFECT: Effect = Effect::Free;

    fn encode(&self, out: &mut Writer) {
        self.range.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(RemoveRange { range: Range::decode(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(mut set) = tx.collection(0, Type::SortedSet)? else {
            return Ok(Done::NOT_APPLIED.with(Reply::Integer(0)));
        };
        let count = set.count();
        let mut rows = tx.order(0, &mut set);
        let (from, to) = self.range.window(&mut rows, false)?.ranks(&mut rows)?;
        let removed = to.saturating_sub(from);
        let reply = Reply::Integer(removed as i64);
        if removed == 0 {
            return Ok(Done::NOT_APPLIED.with(reply));
        }
        if removed == count {
            tx.remove(0)?;
            return Ok(Done::APPLIED.with(reply));
        }
        if removed > CHANGED_MOST {
            return Err(wrong(TOO_MANY_ELEMENTS));
        }
        // From the end that they stand at, if at any, so that no walk meets what was removed there.
        let (end, reverse) = match (from, to) {
            (0, _) => (Some(End::First), false),
            (_, to) if to == count => (Some(End::Last), true),
            _ => (None, false),
        };
        let range = Range::Ranks(from as i64, to as i64 - 1);
        let range = if reverse { Range::Ranks(0, removed as i64 - 1) } else { range };
        let selection = Selection { range, reverse, skip: 0, most: None };
        let mut found = Vec::with_capacity(removed as usize);
        selection.rows(&mut rows, |row| {
            found.push(row);
            Ok(())
        })?;
        remove_all(tx, 0, set, &found, end)?;
        Ok(Done::APPLIED.with(reply))
    }
}

impl Members<'_, '_> {
    /// Rows from one end on, so many or all.
    pub(super) fn at_end(&mut self, end: End, most: u64) -> Result<Vec<Bytes>, Fault> {
        let reverse = end == End::Last;
        let selection =
            Selection { range: Range::Ranks(0, -1), reverse, skip: 0, most: Some(most) };
        let (mut found, mut size) = (Vec::new(), ReplySize::default());
        selection.rows(&mut self.rows, |row| {
            add_up(&mut size, &row)?;
            found.push(row);
            Ok(())
        })?;
        Ok(found)
    }
}
