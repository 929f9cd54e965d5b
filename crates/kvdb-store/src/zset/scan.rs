//! Members in parts, and members at random.

use super::score::{parse_row, parse_score};
use super::{
    Collection, Command, Done, Effect, Fault, MEMBER, Members, REPLY_TOO_LARGE, ReplySize, Tx,
    Type, add_up, pair, placed, wrong,
};
use crate::apply::ApplyError;
use crate::changes::Direction;
use crate::collection::Elements;
use crate::command::REPLIED_MOST;
use crate::unordered::{
    Numbers, PLACES, cursor_of, decode_random, encode_random, name_at, place_at, place_of,
};
use bytes::Bytes;
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::{CommandId, Reply};
use std::collections::{BTreeMap, BTreeSet};

/// Reads a part of the members: from a cursor on, about so many. Replies with a list of the cursor to go
/// on from (0 at the end) and a map of members and scores. A member that is there from the first part to
/// the last comes once, whatever its score becomes meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// 0 at the beginning.
    pub cursor: u64,
    /// About so many members, at least 1.
    pub most: u64,
}

impl Command for Scan {
    const ID: CommandId = CommandId(0x060e);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, out: &mut Writer) {
        out.varint(self.most);
        out.varint(self.cursor);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Scan { most: input.varint()?, cursor: input.varint()? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let set = tx.collection(0, Type::SortedSet)?;
        let applied = set.is_some();
        let (mut found, mut size) = (Vec::new(), ReplySize::default());
        let (mut last, mut next) = (None, 0);
        let mut step = |place: Bytes, score: f64| {
            let fits = size.add(place.len());
            let cursor = cursor_of(&place);
            let is_full = found.len() as u64 >= self.most.max(1) || !fits;
            // Members with the same hash come together.
            if is_full && last.is_some_and(|last| last != cursor) {
                next = cursor;
                return false;
            }
            last = Some(cursor);
            found.push((Reply::Bytes(name_at(&place)), Reply::double(score)));
            true
        };
        if let Some(set) = set.filter(|_| self.cursor < PLACES) {
            walk(tx, &set, self.cursor, &mut step)?;
        }
        let reply = Reply::List(vec![Reply::Integer(next as i64), Reply::Map(found)]);
        Ok(Done { applied, reply })
    }
}

/// Members by the hash of their names, from a cursor on, while `more` says so.
fn walk(
    tx: &Tx<'_>,
    set: &Collection,
    cursor: u64,
    more: &mut impl FnMut(Bytes, f64) -> bool,
) -> Result<(), ApplyError> {
    let start = Bytes::copy_from_slice(&place_at(cursor));
    if let Elements::Inline(rows) = &set.elements {
        let mut by_hash = BTreeMap::new();
        for row in rows.keys() {
            let (score, member) = parse_row(&row.slice(1..));
            by_hash.insert(place_of(&member), score);
        }
        for (place, score) in by_hash.range(start..) {
            if !more(place.clone(), score.number()) {
                break;
            }
        }
        return Ok(());
    }
    let range = (placed(MEMBER, &start), placed(MEMBER + 1, b""));
    tx.scan_places(0, set, range, Direction::Ascending, |place, score| {
        Ok(more(place.slice(1..), parse_score(&score).number()))
    })
}

/// Chooses members at random. Replies with a member, or nil; where a count is given, with a list of lists of
/// a member and its score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Random {
    /// So many different ones; negative: so many, each out of all.
    pub count: Option<i64>,
    /// What chance is made of.
    pub seed: u64,
}

/// Rows that are looked at to find one by its rank, about: for so many ranks that one walk through all rows
/// is shorter, that is taken.
const LOOKED_AT: u64 = 256;

impl Command for Random {
    const ID: CommandId = CommandId(0x060d);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, out: &mut Writer) {
        out.u64(self.seed);
        encode_random(self.count, out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let seed = input.u64()?;
        Ok(Random { seed, count: decode_random(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(mut set) = tx.collection(0, Type::SortedSet)? else {
            let nothing = if self.count.is_some() { Reply::List(vec![]) } else { Reply::Nil };
            return Ok(Done::NOT_APPLIED.with(nothing));
        };
        let ranks = self.ranks(set.count())?;
        let rows = at_ranks(&mut Members::of(tx, 0, &mut set), &ranks)?;
        let reply = match (self.count, rows.first()) {
            (None, Some(row)) => pair(row).0,
            _ => Reply::Map(rows.iter().map(pair).collect()),
        };
        Ok(Done::APPLIED.with(reply))
    }
}

impl Random {
    fn ranks(self, there: u64) -> Result<Vec<u64>, Fault> {
        let mut numbers = Numbers(self.seed);
        let (wanted, is_distinct) = match self.count {
            None => (1, true),
            Some(count) => (count.unsigned_abs(), count >= 0),
        };
        let wanted = if is_distinct { wanted.min(there) } else { wanted };
        if wanted > REPLIED_MOST {
            return Err(wrong(REPLY_TOO_LARGE));
        }
        if !is_distinct {
            return Ok((0..wanted).map(|_| numbers.below(there)).collect());
        }
        Ok(numbers.sample(wanted, there).into_iter().collect())
    }
}

/// The rows at these ranks.
fn at_ranks(members: &mut Members<'_, '_>, ranks: &[u64]) -> Result<Vec<Bytes>, Fault> {
    let mut found = BTreeMap::new();
    let is_walk = (ranks.len() as u64).saturating_mul(LOOKED_AT) >= members.rows.count();
    if is_walk {
        let wanted: BTreeSet<u64> = ranks.iter().copied().collect();
        let last = wanted.last().copied();
        let mut rank = 0;
        members.rows.scan(None, Direction::Ascending, |row, _| {
            if wanted.contains(&rank) {
                found.insert(rank, row);
            }
            rank += 1;
            Ok(last.is_some_and(|last| rank <= last))
        })?;
    } else {
        for rank in ranks {
            if let Some((row, _)) = members.rows.at(*rank)? {
                found.insert(*rank, row);
            }
        }
    }
    let mut size = ReplySize::default();
    let mut rows = Vec::with_capacity(ranks.len());
    for row in ranks.iter().filter_map(|rank| found.get(rank)) {
        add_up(&mut size, row)?;
        rows.push(row.clone());
    }
    Ok(rows)
}
