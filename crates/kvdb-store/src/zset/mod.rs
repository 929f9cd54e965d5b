//! Commands on sorted sets: members with a score each, in the order of their scores.
//!
//! A row's place is the score and the member ([`crate::Order`]), so rows stand in the order in which they
//! are asked for. A promoted set keeps each member's score beside the rows, under a hash of the member and
//! itself, so that a walk through them needs no more than a number to go on from while scores change; a
//! small one looks through its rows.
//!
//! Reading order: [`score`](Score) for what a row is, `Members` below for how one is changed, `range` for
//! which rows are meant, `pop`, `scan`, `combine`.

mod combine;
mod pop;
mod range;
mod scan;
mod score;
#[cfg(test)]
mod tests;

pub use combine::{Aggregate, Combine, CombineInto, CountCommon};
pub use pop::{Pop, PopAny};
pub use range::{Count, LexBound, Range, RemoveRange, ScoreBound, Select, SelectInto, Selection};
pub use scan::{Random, Scan};
pub use score::Score;

use crate::apply::ApplyError;
use crate::collection::Elements;
use crate::command::{CHANGED_MOST, Command, Done, Effect, Fault, ReplySize, flag, wrong};
use crate::order::{End, MEMBER, Order, placed};
use crate::record::Type;
use crate::tx::{Collection, Tx};
use crate::unordered::{check_name, decode_list, encode_list, place_of};
use bytes::Bytes;
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::wrong_value::{NOT_A_SCORE, REPLY_TOO_LARGE, TOO_MANY_ELEMENTS};
use kvdb_model::{CommandId, Limits, Refusal, Reply};
use rustc_hash::FxHashMap;
pub(crate) use score::parse_row;
use score::{parse_score, row_of};

/// Writes the members of rows beside them, with their scores.
pub(crate) fn note_members<'a>(
    tx: &mut Tx<'_>,
    place: usize,
    collection: &Collection,
    rows: impl Iterator<Item = &'a Bytes>,
) {
    for row in rows {
        let (score, member) = parse_row(&row.slice(1..));
        let score = Bytes::copy_from_slice(&score.to_bytes());
        tx.set_row(place, collection, &placed(MEMBER, &place_of(&member)), Some(score));
    }
}

/// A sorted set under work: its rows, and the score of each member. What was changed counts once it is
/// [`closed`](Members::close) and the collection is stored.
struct Members<'t, 'a> {
    rows: Order<'t, 'a>,
    /// Of a small set.
    scores: FxHashMap<Bytes, Score>,
}

impl<'t, 'a> Members<'t, 'a> {
    fn of(tx: &'t mut Tx<'a>, place: usize, collection: &'t mut Collection) -> Self {
        let mut scores = FxHashMap::default();
        if let Elements::Inline(rows) = &collection.elements {
            scores.extend(rows.keys().map(|row| {
                let (score, member) = parse_row(&row.slice(1..));
                (member, score)
            }));
        }
        Members { rows: tx.order(place, collection), scores }
    }

    fn score(&self, member: &[u8]) -> Result<Option<Score>, ApplyError> {
        if !self.rows.is_promoted() {
            return Ok(self.scores.get(member).copied());
        }
        let stored = self.rows.beside(&placed(MEMBER, &place_of(member)))?;
        Ok(stored.as_ref().map(parse_score))
    }

    /// Sets the score of a member, which had another one before, or none.
    fn set(
        &mut self,
        member: &Bytes,
        before: Option<Score>,
        score: Score,
    ) -> Result<(), ApplyError> {
        if let Some(before) = before {
            self.rows.remove(&row_of(before, member), None)?;
        }
        self.rows.insert(&row_of(score, member), Bytes::new())?;
        self.rows.touch(member);
        if self.rows.is_promoted() {
            let score = Bytes::copy_from_slice(&score.to_bytes());
            self.rows.set_beside(&placed(MEMBER, &place_of(member)), Some(score));
        } else {
            self.scores.insert(member.clone(), score);
        }
        Ok(())
    }

    /// Removes a row that is there; `end` says that it is the first or the last one.
    fn remove(&mut self, row: &Bytes, end: Option<End>) -> Result<(), ApplyError> {
        self.rows.remove(row, end)?;
        let (_, member) = parse_row(row);
        self.rows.touch(&member);
        if self.rows.is_promoted() {
            self.rows.set_beside(&placed(MEMBER, &place_of(&member)), None);
        } else {
            self.scores.remove(&member);
        }
        Ok(())
    }

    fn close(self) -> Result<(), ApplyError> {
        self.rows.close()
    }
}

/// The score of one member.
pub(crate) fn score_in(
    tx: &mut Tx<'_>,
    place: usize,
    set: &mut Collection,
    member: &[u8],
) -> Result<Option<Score>, ApplyError> {
    Members::of(tx, place, set).score(member)
}

/// Puts members, each of them once, into a new set.
pub(crate) fn fill(
    tx: &mut Tx<'_>,
    set: &mut Collection,
    members: Vec<(Score, Bytes)>,
) -> Result<(), ApplyError> {
    let row = |(score, member): (Score, Bytes)| row_of(score, &member);
    let mut rows: Vec<Bytes> = members.into_iter().map(row).collect();
    rows.sort_unstable();
    range::fill_rows(tx, set, &rows)
}

/// Stores a new set of these members under the own key, whatever that held.
pub(crate) fn store_members(
    tx: &mut Tx<'_>,
    members: impl Iterator<Item = (Score, Bytes)>,
) -> Result<Done, Fault> {
    let rows: Vec<Bytes> = members.map(|(score, member)| row_of(score, &member)).collect();
    range::store_rows(tx, &rows)
}

/// Removes all rows of a list, from the first or the last one on.
fn remove_all(
    tx: &mut Tx<'_>,
    place: usize,
    mut set: Collection,
    rows: &[Bytes],
    end: Option<End>,
) -> Result<(), Fault> {
    if rows.len() as u64 == set.count() {
        return Ok(tx.remove(place)?);
    }
    let mut members = Members::of(tx, place, &mut set);
    for row in rows {
        members.remove(row, end)?;
    }
    members.close()?;
    Ok(tx.store(place, set)?)
}

/// Counts what goes into a reply.
fn add_up(size: &mut ReplySize, member: &[u8]) -> Result<(), Fault> {
    size.add(member.len());
    size.check()
}

/// A member with its score, as a part of a reply.
pub(crate) fn pair(row: &Bytes) -> (Reply, Reply) {
    let (score, member) = parse_row(row);
    (Reply::Bytes(member), Reply::double(score.number()))
}

fn check_count(count: usize) -> Result<(), Refusal> {
    if count as u64 > CHANGED_MOST {
        let problem = format!("are {count}; the limit is {CHANGED_MOST} a command");
        return Err(Refusal::invalid("members", problem));
    }
    Ok(())
}

/// Which scores are set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddRule {
    /// Not those of members that are there.
    pub only_new: bool,
    /// Only those of members that are there.
    pub only_present: bool,
    /// Of members that are there only to greater ones.
    pub only_greater: bool,
    /// Of members that are there only to less.
    pub only_less: bool,
}

impl AddRule {
    fn encode(self, out: &mut Writer) {
        let flags = [self.only_new, self.only_present, self.only_greater, self.only_less];
        out.u8(flags.iter().rev().fold(0, |bits, flag| bits << 1 | u8::from(*flag)));
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let bits = input.u8()?;
        if bits > 15 {
            return Err(DecodeError::unknown_tag("rule of a sorted set", bits));
        }
        let has = |place: u8| bits >> place & 1 == 1;
        Ok(AddRule {
            only_new: has(0),
            only_present: has(1),
            only_greater: has(2),
            only_less: has(3),
        })
    }

    fn allows(self, before: Option<Score>, after: Score) -> bool {
        match before {
            None => !self.only_present,
            Some(_) if self.only_new => false,
            Some(before) if self.only_greater && after <= before => false,
            Some(before) if self.only_less && after >= before => false,
            Some(_) => true,
        }
    }
}

/// Sets scores of members. Replies with how many are new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Add {
    /// Which ones.
    pub rule: AddRule,
    /// Count those too whose score changes.
    pub count_changed: bool,
    /// In order: of the same member the last one counts.
    pub members: Vec<(Score, Bytes)>,
}

impl Command for Add {
    const ID: CommandId = CommandId(0x0601);
    const EFFECT: Effect = Effect::Grow;

    fn encode(&self, out: &mut Writer) {
        self.rule.encode(out);
        out.u8(u8::from(self.count_changed));
        out.varint(self.members.len() as u64);
        for (score, member) in &self.members {
            score.encode(out);
            out.bytes(member);
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let (rule, count_changed) = (AddRule::decode(input)?, flag(input)?);
        let count = input.count(9)?;
        let member = |_| Ok((Score::decode(input)?, input.bytes()?));
        let members = (0..count).map(member).collect::<Result<_, DecodeError>>()?;
        Ok(Add { rule, count_changed, members })
    }

    fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        check_count(self.members.len())?;
        self.members.iter().try_for_each(|(_, member)| check_name("member", member, limits))
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let mut set = tx.collection_or_new(0, Type::SortedSet)?;
        let (mut new, mut changed) = (0, 0);
        let mut members = Members::of(tx, 0, &mut set);
        for (score, member) in self.members {
            let before = members.score(&member)?;
            if before == Some(score) || !self.rule.allows(before, score) {
                continue;
            }
            members.set(&member, before, score)?;
            new += i64::from(before.is_none());
            changed += i64::from(before.is_some());
        }
        members.close()?;
        let reply = Reply::Integer(if self.count_changed { new + changed } else { new });
        if new + changed == 0 {
            return Ok(Done::NOT_APPLIED.with(reply));
        }
        tx.store(0, set)?;
        Ok(Done::APPLIED.with(reply))
    }
}

/// Adds to the score of a member; an absent one counts as 0. Replies with the new one, or nil where the rule
/// doesn't allow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Increment {
    /// Whether at all.
    pub rule: AddRule,
    /// What to add.
    pub delta: Score,
    /// Whose.
    pub member: Bytes,
}

impl Command for Increment {
    const ID: CommandId = CommandId(0x0602);
    const EFFECT: Effect = Effect::Grow;

    fn encode(&self, out: &mut Writer) {
        self.rule.encode(out);
        self.delta.encode(out);
        out.bytes(&self.member);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Increment {
            rule: AddRule::decode(input)?,
            delta: Score::decode(input)?,
            member: input.bytes()?,
        })
    }

    fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        check_name("member", &self.member, limits)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let mut set = tx.collection_or_new(0, Type::SortedSet)?;
        let mut members = Members::of(tx, 0, &mut set);
        let before = members.score(&self.member)?;
        // What may not be changed isn't added up.
        let forbids = if before.is_some() { self.rule.only_new } else { self.rule.only_present };
        if forbids {
            return Ok(Done::NOT_APPLIED.with(Reply::Nil));
        }
        let sum = before.map_or(0.0, Score::number) + self.delta.number();
        let after = Score::new(sum).ok_or(wrong(NOT_A_SCORE))?;
        if !self.rule.allows(before, after) {
            return Ok(Done::NOT_APPLIED.with(Reply::Nil));
        }
        let reply = Reply::double(after.number());
        if before == Some(after) {
            return Ok(Done::NOT_APPLIED.with(reply));
        }
        members.set(&self.member, before, after)?;
        members.close()?;
        tx.store(0, set)?;
        Ok(Done::APPLIED.with(reply))
    }
}

/// Removes members. Replies with how many were there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remove {
    /// Which.
    pub members: Vec<Bytes>,
}

impl Command for Remove {
    const ID: CommandId = CommandId(0x0603);
    const EFFECT: Effect = Effect::Free;

    fn encode(&self, out: &mut Writer) {
        encode_list(&self.members, out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Remove { members: decode_list(input)? })
    }

    fn check(&self, _limits: &Limits) -> Result<(), Refusal> {
        check_count(self.members.len())
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(mut set) = tx.collection(0, Type::SortedSet)? else {
            return Ok(Done::NOT_APPLIED.with(Reply::Integer(0)));
        };
        let mut removed = 0;
        let mut members = Members::of(tx, 0, &mut set);
        for member in &self.members {
            if let Some(score) = members.score(member)? {
                members.remove(&row_of(score, member), None)?;
                removed += 1;
            }
        }
        members.close()?;
        if removed == 0 {
            return Ok(Done::NOT_APPLIED.with(Reply::Integer(0)));
        }
        tx.store(0, set)?;
        Ok(Done::APPLIED.with(Reply::Integer(removed)))
    }
}

/// Reads scores. Replies with a list: a score a member, nil where it isn't there. Applies if the key is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scores {
    /// Whose.
    pub members: Vec<Bytes>,
}

impl Command for Scores {
    const ID: CommandId = CommandId(0x0604);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, out: &mut Writer) {
        encode_list(&self.members, out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Scores { members: decode_list(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(mut set) = tx.collection(0, Type::SortedSet)? else {
            return Ok(Done::NOT_APPLIED.with(Reply::List(vec![Reply::Nil; self.members.len()])));
        };
        let members = Members::of(tx, 0, &mut set);
        let mut found = Vec::with_capacity(self.members.len());
        for member in &self.members {
            let score = members.score(member)?;
            found.push(score.map_or(Reply::Nil, |score| Reply::double(score.number())));
        }
        Ok(Done::APPLIED.with(Reply::List(found)))
    }
}

/// Counts the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length;

impl Command for Length {
    const ID: CommandId = CommandId(0x0605);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, _out: &mut Writer) {}

    fn decode(_input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Length)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let set = tx.collection(0, Type::SortedSet)?;
        let count = set.as_ref().map_or(0, |set| set.count() as i64);
        Ok(Done { applied: set.is_some(), reply: Reply::Integer(count) })
    }
}

/// Tells how many members stand before one: replies with a list of that and its score, or nil.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rank {
    /// Which.
    pub member: Bytes,
    /// From the last one on.
    pub reverse: bool,
}

impl Command for Rank {
    const ID: CommandId = CommandId(0x0606);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, out: &mut Writer) {
        out.u8(u8::from(self.reverse));
        out.bytes(&self.member);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Rank { reverse: flag(input)?, member: input.bytes()? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(mut set) = tx.collection(0, Type::SortedSet)? else {
            return Ok(Done::NOT_APPLIED.with(Reply::Nil));
        };
        let mut members = Members::of(tx, 0, &mut set);
        let Some(score) = members.score(&self.member)? else {
            return Ok(Done::NOT_APPLIED.with(Reply::Nil));
        };
        let rank = members.rows.rank(&row_of(score, &self.member))?;
        let count = members.rows.count();
        let rank = if self.reverse { count.saturating_sub(rank + 1) } else { rank };
        let found = vec![Reply::Integer(rank as i64), Reply::double(score.number())];
        Ok(Done::APPLIED.with(Reply::List(found)))
    }
}
