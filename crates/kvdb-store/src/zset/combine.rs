//! What several sets have in common, together, or only the first of them. Sets without scores take part
//! with a score of 1.

use super::range::store_rows;
use super::score::{Score, parse_row, row_of};
use super::{
    CHANGED_MOST, Collection, Command, Done, Effect, Fault, Members, Reply, ReplySize,
    TOO_MANY_ELEMENTS, Tx, Type, add_up, pair, wrong,
};
use crate::changes::Direction;
use crate::set::{Combination, Effort};
use crate::unordered::{name_at, place_of};
use bytes::Bytes;
use kvdb_model::CommandId;
use kvdb_model::codec::{DecodeError, Reader, Writer};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

/// What becomes of the scores of a member in several sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregate {
    /// Their sum; 0 where there is none.
    Sum,
    /// The lowest.
    Min,
    /// The highest.
    Max,
}

impl Aggregate {
    fn of(self, one: f64, other: f64) -> f64 {
        match self {
            Aggregate::Sum => zero_if_nan(one + other),
            Aggregate::Min => {
                if other < one {
                    other
                } else {
                    one
                }
            }
            Aggregate::Max => {
                if other > one {
                    other
                } else {
                    one
                }
            }
        }
    }
}

fn zero_if_nan(number: f64) -> f64 {
    if number.is_nan() { 0.0 } else { number }
}

/// Combines the sets of all keys. Replies with a map of members and scores, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Combine {
    /// How.
    pub combination: Combination,
    /// What becomes of scores.
    pub aggregate: Aggregate,
    /// What the scores of each set are multiplied by; none for 1.
    pub weights: Vec<Score>,
}

impl Combine {
    fn encode(&self, out: &mut Writer) {
        out.u8(self.combination as u8);
        out.u8(self.aggregate as u8);
        out.varint(self.weights.len() as u64);
        self.weights.iter().for_each(|weight| weight.encode(out));
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let combination = Combination::decode(input)?;
        let aggregate = match input.u8()? {
            0 => Aggregate::Sum,
            1 => Aggregate::Min,
            2 => Aggregate::Max,
            other => return Err(DecodeError::unknown_tag("aggregate", other)),
        };
        let count = input.count(8)?;
        let weights = (0..count).map(|_| Score::decode(input)).collect::<Result<_, _>>()?;
        Ok(Combine { combination, aggregate, weights })
    }

    /// Rows of the combination of the sets from a key on, in their order.
    fn rows(&self, tx: &mut Tx<'_>, from: usize) -> Result<Vec<Bytes>, Fault> {
        let mut sources = sources(tx, from, &self.weights)?;
        let found = match self.combination {
            Combination::Intersection => {
                sources.sort_by_key(Source::count);
                common(tx, &mut sources, self.aggregate, u64::MAX)?
            }
            Combination::Union => {
                sources.sort_by_key(Source::count);
                together(tx, &mut sources, self.aggregate)?
            }
            Combination::Difference => difference(tx, &mut sources)?,
        };
        let row = |(member, score): (Bytes, f64)| row_of(Score::or_zero(score), &member);
        let mut rows: Vec<Bytes> = found.into_iter().map(row).collect();
        rows.sort_unstable();
        Ok(rows)
    }
}

impl Command for Combine {
    const ID: CommandId = CommandId(0x060f);
    const EFFECT: Effect = Effect::Read;
    const OTHERS: (usize, usize) = (0, usize::MAX - 1);

    fn encode(&self, out: &mut Writer) {
        Combine::encode(self, out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Combine::decode(input)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let rows = self.rows(tx, 0)?;
        let mut size = ReplySize::default();
        rows.iter().try_for_each(|row| add_up(&mut size, row))?;
        Ok(Done::APPLIED.with(Reply::Map(rows.iter().map(pair).collect())))
    }
}

/// Combines the sets of the other keys into the own one, whatever that held. Replies with the number of
/// members; without any the own key is removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CombineInto {
    /// How.
    pub combine: Combine,
}

impl Command for CombineInto {
    const ID: CommandId = CommandId(0x0610);
    const EFFECT: Effect = Effect::Grow;
    const OTHERS: (usize, usize) = (1, usize::MAX - 1);

    fn encode(&self, out: &mut Writer) {
        self.combine.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(CombineInto { combine: Combine::decode(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let rows = self.combine.rows(tx, 1)?;
        if rows.len() as u64 > CHANGED_MOST {
            return Err(wrong(TOO_MANY_ELEMENTS));
        }
        store_rows(tx, &rows)
    }
}

/// Counts the members that are in the sets of all keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountCommon {
    /// Count no further; 0 = all.
    pub limit: u64,
}

impl Command for CountCommon {
    const ID: CommandId = CommandId(0x0611);
    const EFFECT: Effect = Effect::Read;
    const OTHERS: (usize, usize) = (0, usize::MAX - 1);

    fn encode(&self, out: &mut Writer) {
        out.varint(self.limit);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(CountCommon { limit: input.varint()? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let mut sources = sources(tx, 0, &[])?;
        sources.sort_by_key(Source::count);
        let most = if self.limit == 0 { u64::MAX } else { self.limit };
        let found = common(tx, &mut sources, Aggregate::Sum, most)?;
        Ok(Done::APPLIED.with(Reply::Integer(found.len() as i64)))
    }
}

/// One of the sets that are combined.
struct Source {
    place: usize,
    weight: f64,
    /// `None` where the key isn't there.
    set: Option<Collection>,
    has_scores: bool,
    /// Of a small one, once somebody looks for a member.
    scores: Option<FxHashMap<Bytes, f64>>,
}

/// All keys are looked at, so that one with another type is told of in any case.
fn sources(tx: &mut Tx<'_>, from: usize, weights: &[Score]) -> Result<Vec<Source>, Fault> {
    let mut sources = Vec::new();
    for (at, place) in (from..tx.key_count()).enumerate() {
        let weight = weights.get(at).map_or(1.0, |weight| weight.number());
        let has_scores = tx.get(place)?.is_none_or(|record| record.kind != Type::Set);
        let kind = if has_scores { Type::SortedSet } else { Type::Set };
        let set = tx.collection(place, kind)?;
        sources.push(Source { place, weight, set, has_scores, scores: None });
    }
    Ok(sources)
}

impl Source {
    fn count(&self) -> u64 {
        self.set.as_ref().map_or(0, Collection::count)
    }

    /// All members with their scores, in their order.
    fn members(
        &mut self,
        tx: &mut Tx<'_>,
        effort: &mut Effort,
    ) -> Result<Vec<(Bytes, f64)>, Fault> {
        let Some(set) = &mut self.set else { return Ok(vec![]) };
        let (mut found, mut problem) = (Vec::new(), None);
        if !self.has_scores {
            tx.scan(self.place, set, b"", |place, _| {
                found.push((name_at(&place), 1.0));
                problem = effort.look().err();
                problem.is_none()
            })?;
            return problem.map_or(Ok(found), Err);
        }
        tx.order(self.place, set).scan(None, Direction::Ascending, |row, _| {
            let (score, member) = parse_row(&row);
            found.push((member, score.number()));
            problem = effort.look().err();
            Ok(problem.is_none())
        })?;
        problem.map_or(Ok(found), Err)
    }

    /// The score of a member.
    fn score(
        &mut self,
        tx: &mut Tx<'_>,
        member: &[u8],
        effort: &mut Effort,
    ) -> Result<Option<f64>, Fault> {
        effort.look()?;
        let Some(set) = &mut self.set else { return Ok(None) };
        if !self.has_scores {
            let is_there = tx.element(self.place, set, &place_of(member))?.is_some();
            return Ok(is_there.then_some(1.0));
        }
        if set.is_promoted() {
            let score = Members::of(tx, self.place, set).score(member)?;
            return Ok(score.map(Score::number));
        }
        if self.scores.is_none() {
            let all = self.members(tx, effort)?;
            self.scores = Some(all.into_iter().collect());
        }
        Ok(self.scores.as_ref().and_then(|scores| scores.get(member).copied()))
    }
}

type Found = Vec<(Bytes, f64)>;

/// Members of all sets, the smallest of which comes first: no more than `most`.
fn common(
    tx: &mut Tx<'_>,
    sources: &mut [Source],
    aggregate: Aggregate,
    most: u64,
) -> Result<Found, Fault> {
    let mut effort = Effort::default();
    let Some((smallest, others)) = sources.split_first_mut() else { return Ok(vec![]) };
    let mut found = Vec::new();
    'members: for (member, score) in smallest.members(tx, &mut effort)? {
        let mut sum = zero_if_nan(score * smallest.weight);
        for other in &mut *others {
            let Some(score) = other.score(tx, &member, &mut effort)? else { continue 'members };
            sum = aggregate.of(sum, score * other.weight);
        }
        found.push((member, sum));
        if found.len() as u64 >= most {
            break;
        }
    }
    Ok(found)
}

/// Members of any set.
fn together(tx: &mut Tx<'_>, sources: &mut [Source], aggregate: Aggregate) -> Result<Found, Fault> {
    let mut effort = Effort::default();
    let mut found: BTreeMap<Bytes, f64> = BTreeMap::new();
    for source in sources {
        for (member, score) in source.members(tx, &mut effort)? {
            let score = zero_if_nan(score * source.weight);
            let sum = found.get(&member).map_or(score, |sum| aggregate.of(*sum, score));
            found.insert(member, sum);
        }
    }
    Ok(found.into_iter().collect())
}

/// Members of the first set that are in none of the others.
fn difference(tx: &mut Tx<'_>, sources: &mut [Source]) -> Result<Found, Fault> {
    let mut effort = Effort::default();
    let Some((first, others)) = sources.split_first_mut() else { return Ok(vec![]) };
    let mut found = Vec::new();
    'members: for (member, score) in first.members(tx, &mut effort)? {
        for other in &mut *others {
            if other.score(tx, &member, &mut effort)?.is_some() {
                continue 'members;
            }
        }
        found.push((member, score));
    }
    Ok(found)
}
