//! What several sets have in common, together, or only the first of them.

use super::{Command, Done, Effect, Fault};
use crate::command::{CHANGED_MOST, ReplySize, STORED_MAX_BYTES, wrong};
use crate::record::Type;
use crate::tx::{Collection, Tx};
use crate::unordered::name_at;
use bytes::Bytes;
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::wrong_value::{REPLY_TOO_LARGE, RESULT_TOO_LARGE, TOO_MUCH_TO_COMBINE};
use kvdb_model::{CommandId, Reply};
use std::collections::BTreeSet;

/// Most members that one command looks at. A part of the state machine: fixed.
const LOOKED_AT_MOST: u64 = 1_000_000;

/// How many members a command has looked at.
#[derive(Debug, Default)]
pub(crate) struct Effort(u64);

impl Effort {
    /// # Errors
    /// If it is more than one command may look at.
    pub(crate) fn look(&mut self) -> Result<(), Fault> {
        self.0 += 1;
        match self.0 > LOOKED_AT_MOST {
            true => Err(wrong(TOO_MUCH_TO_COMBINE)),
            false => Ok(()),
        }
    }
}

/// How sets are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combination {
    /// Members of all of them.
    Intersection,
    /// Members of any of them.
    Union,
    /// Members of the first that are in none of the others.
    Difference,
}

impl Combination {
    pub(crate) fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        match input.u8()? {
            0 => Ok(Combination::Intersection),
            1 => Ok(Combination::Union),
            2 => Ok(Combination::Difference),
            other => Err(DecodeError::unknown_tag("combination of sets", other)),
        }
    }
}

/// Combines the sets of all keys. Replies with a list of the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Combine {
    /// How.
    pub combination: Combination,
}

impl Command for Combine {
    const ID: CommandId = CommandId(0x0509);
    const EFFECT: Effect = Effect::Read;
    const OTHERS: (usize, usize) = (0, usize::MAX - 1);

    fn encode(&self, out: &mut Writer) {
        out.u8(self.combination as u8);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Combine { combination: Combination::decode(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let mut size = ReplySize::default();
        let places = combined(tx, 0, self.combination, |place| {
            if size.add(place.len()) { Ok(true) } else { Err(REPLY_TOO_LARGE) }
        })?;
        let names = places.iter().map(|place| Reply::Bytes(name_at(place))).collect();
        Ok(Done::APPLIED.with(Reply::List(names)))
    }
}

/// Combines the sets of the other keys into the own one, whatever that held. Replies with the number of
/// members; without any the own key is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CombineInto {
    /// How.
    pub combination: Combination,
}

impl Command for CombineInto {
    const ID: CommandId = CommandId(0x050a);
    const EFFECT: Effect = Effect::Grow;
    const OTHERS: (usize, usize) = (1, usize::MAX - 1);

    fn encode(&self, out: &mut Writer) {
        out.u8(self.combination as u8);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(CombineInto { combination: Combination::decode(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let (mut size, mut count) = (0, 0);
        let places = combined(tx, 1, self.combination, |place| {
            size += place.len();
            count += 1;
            let is_too_large = size > STORED_MAX_BYTES || count > CHANGED_MOST;
            if is_too_large { Err(RESULT_TOO_LARGE) } else { Ok(true) }
        })?;
        let reply = Reply::Integer(places.len() as i64);
        if places.is_empty() && tx.get(0)?.is_none() {
            return Ok(Done::NOT_APPLIED.with(reply));
        }
        let mut set = Collection::new(Type::Set);
        for place in places {
            tx.set_element(0, &mut set, place, Bytes::new())?;
        }
        tx.store(0, set)?;
        Ok(Done::APPLIED.with(reply))
    }
}

/// Counts the members that are in the sets of all keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountCommon {
    /// Count no further; 0 = all.
    pub limit: u64,
}

impl Command for CountCommon {
    const ID: CommandId = CommandId(0x050b);
    const EFFECT: Effect = Effect::Read;
    const OTHERS: (usize, usize) = (0, usize::MAX - 1);

    fn encode(&self, out: &mut Writer) {
        out.varint(self.limit);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(CountCommon { limit: input.varint()? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let mut count = 0;
        let sets = sets_of(tx, 0)?;
        Walk::over(tx, &sets).common(|_| {
            count += 1;
            Ok(self.limit == 0 || count < self.limit)
        })?;
        Ok(Done::APPLIED.with(Reply::Integer(count as i64)))
    }
}

/// The set of each key, from a place among them on.
type Sets = Vec<(usize, Option<Collection>)>;

/// All keys are looked at, so that one with another type is told of in any case.
fn sets_of(tx: &mut Tx<'_>, from: usize) -> Result<Sets, Fault> {
    (from..tx.key_count()).map(|place| Ok((place, tx.collection(place, Type::Set)?))).collect()
}

/// Places of the members that a combination has. `admit` says which are too many.
fn combined(
    tx: &mut Tx<'_>,
    from: usize,
    combination: Combination,
    mut admit: impl FnMut(&Bytes) -> Result<bool, &'static str>,
) -> Result<BTreeSet<Bytes>, Fault> {
    let sets = sets_of(tx, from)?;
    let mut walk = Walk::over(tx, &sets);
    let mut found = BTreeSet::new();
    let mut take = |place: Bytes| match found.contains(&place) {
        true => Ok(true),
        false => {
            let more = admit(&place);
            found.insert(place);
            more
        }
    };
    match combination {
        Combination::Intersection => walk.common(take)?,
        Combination::Union => walk.all(&mut take)?,
        Combination::Difference => walk.difference(take)?,
    }
    Ok(found)
}

/// A walk through sets, with a limit on how many members it looks at.
struct Walk<'a, 'tx> {
    tx: &'a Tx<'tx>,
    sets: &'a Sets,
    effort: Effort,
}

impl<'a, 'tx> Walk<'a, 'tx> {
    fn over(tx: &'a Tx<'tx>, sets: &'a Sets) -> Self {
        Walk { tx, sets, effort: Effort::default() }
    }

    /// Members of one set that `wanted` finds, while `take` says so.
    fn each(
        &mut self,
        (place, set): (usize, &Collection),
        mut wanted: impl FnMut(&mut Self, &Bytes) -> Result<bool, Fault>,
        take: &mut impl FnMut(Bytes) -> Result<bool, &'static str>,
    ) -> Result<(), Fault> {
        let tx = self.tx;
        let mut step = |member: Bytes| -> Result<bool, Fault> {
            self.effort.look()?;
            match wanted(self, &member)? {
                true => take(member).map_err(wrong),
                false => Ok(true),
            }
        };
        let mut problem = None;
        tx.scan(place, set, &[], |member, _| {
            step(member).unwrap_or_else(|fault| {
                problem = Some(fault);
                false
            })
        })?;
        problem.map_or(Ok(()), Err)
    }

    fn is_in(&mut self, (place, set): (usize, &Collection), member: &[u8]) -> Result<bool, Fault> {
        self.effort.look()?;
        Ok(self.tx.element(place, set, member)?.is_some())
    }

    fn common(
        &mut self,
        mut take: impl FnMut(Bytes) -> Result<bool, &'static str>,
    ) -> Result<(), Fault> {
        let mut there = Vec::with_capacity(self.sets.len());
        for (place, set) in self.sets {
            let Some(set) = set else { return Ok(()) };
            there.push((*place, set));
        }
        // Smallest first: what isn't in it is looked for nowhere else.
        there.sort_by_key(|(_, set)| set.count());
        let Some((smallest, others)) = there.split_first() else { return Ok(()) };
        let in_all = |walk: &mut Self, member: &Bytes| {
            for other in others {
                if !walk.is_in(*other, member)? {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        self.each(*smallest, in_all, &mut take)
    }

    fn all(
        &mut self,
        take: &mut impl FnMut(Bytes) -> Result<bool, &'static str>,
    ) -> Result<(), Fault> {
        for (place, set) in self.sets {
            if let Some(set) = set {
                self.each((*place, set), |_, _| Ok(true), take)?;
            }
        }
        Ok(())
    }

    fn difference(
        &mut self,
        mut take: impl FnMut(Bytes) -> Result<bool, &'static str>,
    ) -> Result<(), Fault> {
        let Some(((place, Some(first)), others)) = self.sets.split_first() else { return Ok(()) };
        let in_none = |walk: &mut Self, member: &Bytes| {
            for (place, other) in others {
                if let Some(other) = other
                    && walk.is_in((*place, other), member)?
                {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        self.each((*place, first), in_none, &mut take)
    }
}
