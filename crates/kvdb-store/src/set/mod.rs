//! Commands on sets: members, each once.
//!
//! A member is an element without a payload; its place is a hash of it and itself (`unordered`).

mod combine;

pub(crate) use combine::Effort;
pub use combine::{Combination, Combine, CombineInto, CountCommon};

use crate::command::{CHANGED_MOST, Command, Done, Effect, Fault, flag, wrong};
use crate::record::Type;
use crate::string::parse_counter;
use crate::tx::{Collection, Tx};
use crate::unordered::{
    Choice, check_name, choose, decode_list, decode_random, encode_list, encode_random, name_at,
    part, place_of, remove,
};
use bytes::Bytes;
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::wrong_value::RESULT_TOO_LARGE;
use kvdb_model::{CommandId, Limits, Refusal, Reply};

fn check_members(members: &[Bytes], limits: &Limits) -> Result<(), Refusal> {
    members.iter().try_for_each(|member| check_name("member", member, limits))
}

/// Their names, as a reply.
fn names(members: Vec<(Bytes, Bytes)>) -> Reply {
    Reply::List(members.iter().map(|(place, _)| Reply::Bytes(name_at(place))).collect())
}

/// Adds members. Replies with how many are new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Add {
    /// Whatever comes more than once counts once.
    pub members: Vec<Bytes>,
}

impl Command for Add {
    const ID: CommandId = CommandId(0x0501);
    const EFFECT: Effect = Effect::Grow;

    fn encode(&self, out: &mut Writer) {
        encode_list(&self.members, out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Add { members: decode_list(input)? })
    }

    fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        check_members(&self.members, limits)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let mut set = tx.collection_or_new(0, Type::Set)?;
        let mut new = 0;
        for member in &self.members {
            let place = place_of(member);
            if tx.element(0, &set, &place)?.is_none() {
                tx.set_element(0, &mut set, place, Bytes::new())?;
                new += 1;
            }
        }
        if new == 0 {
            return Ok(Done::NOT_APPLIED.with(Reply::Integer(0)));
        }
        tx.store(0, set)?;
        Ok(Done::APPLIED.with(Reply::Integer(new)))
    }
}

/// Removes members. Replies with how many were there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remove {
    /// Whatever comes more than once counts once.
    pub members: Vec<Bytes>,
}

impl Command for Remove {
    const ID: CommandId = CommandId(0x0502);
    const EFFECT: Effect = Effect::Free;

    fn encode(&self, out: &mut Writer) {
        encode_list(&self.members, out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Remove { members: decode_list(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        remove(tx, Type::Set, &self.members)
    }
}

/// Removes members at random. Replies with the member, or nil; where a count is given, with a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pop {
    /// So many, or all if there aren't more.
    pub count: Option<u64>,
    /// What chance is made of.
    pub seed: u64,
}

impl Command for Pop {
    const ID: CommandId = CommandId(0x0503);
    const EFFECT: Effect = Effect::Free;

    fn encode(&self, out: &mut Writer) {
        out.u64(self.seed);
        out.u8(u8::from(self.count.is_some()));
        out.varint(self.count.unwrap_or(0));
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let seed = input.u64()?;
        let (has_count, count) = (flag(input)?, input.varint()?);
        Ok(Pop { seed, count: has_count.then_some(count) })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let nothing = || if self.count.is_some() { Reply::List(vec![]) } else { Reply::Nil };
        let Some(mut set) = tx.collection(0, Type::Set)? else {
            return Ok(Done::NOT_APPLIED.with(nothing()));
        };
        let there = tx.count(0, &set)?;
        let wanted = self.count.unwrap_or(1).min(there);
        if wanted == 0 {
            return Ok(Done::NOT_APPLIED.with(nothing()));
        }
        // A set that goes as a whole takes one step.
        if wanted < there && wanted > CHANGED_MOST {
            return Err(wrong(RESULT_TOO_LARGE));
        }
        let chosen = choose(tx, 0, &set, Choice::Distinct(wanted), self.seed)?;
        if chosen.len() as u64 == there {
            tx.remove(0)?;
        } else {
            for (place, _) in &chosen {
                tx.remove_element(0, &mut set, place)?;
            }
            tx.store(0, set)?;
        }
        let reply = match (self.count, chosen.first()) {
            (None, Some((place, _))) => Reply::Bytes(name_at(place)),
            _ => names(chosen),
        };
        Ok(Done::APPLIED.with(reply))
    }
}

/// Moves a member to the set of the other key. Replies with 1 if it was there, otherwise with 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which.
    pub member: Bytes,
}

impl Command for Move {
    const ID: CommandId = CommandId(0x0504);
    const EFFECT: Effect = Effect::Grow;
    const OTHERS: (usize, usize) = (1, 1);

    fn encode(&self, out: &mut Writer) {
        out.bytes(&self.member);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Move { member: input.bytes()? })
    }

    fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        check_name("member", &self.member, limits)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let flag = |moved| Done { applied: moved, reply: Reply::Integer(i64::from(moved)) };
        let Some(mut source) = tx.collection(0, Type::Set)? else { return Ok(flag(false)) };
        let mut target = tx.collection_or_new(1, Type::Set)?;
        let place = place_of(&self.member);
        if tx.is_same_key(0, 1) {
            let is_there = tx.element(0, &source, &place)?.is_some();
            return Ok(Done { applied: false, ..flag(is_there) });
        }
        if !tx.remove_element(0, &mut source, &place)? {
            return Ok(flag(false));
        }
        tx.store(0, source)?;
        if tx.element(1, &target, &place)?.is_none() {
            tx.set_element(1, &mut target, place, Bytes::new())?;
            tx.store(1, target)?;
        }
        Ok(flag(true))
    }
}

/// Looks for members. Replies with a list: 1 for each that is there, 0 for each that isn't.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contains {
    /// Which.
    pub members: Vec<Bytes>,
}

impl Command for Contains {
    const ID: CommandId = CommandId(0x0505);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, out: &mut Writer) {
        encode_list(&self.members, out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Contains { members: decode_list(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(set) = tx.collection(0, Type::Set)? else {
            let none = vec![Reply::Integer(0); self.members.len()];
            return Ok(Done::NOT_APPLIED.with(Reply::List(none)));
        };
        let mut found = Vec::with_capacity(self.members.len());
        for member in &self.members {
            let is_there = tx.element(0, &set, &place_of(member))?.is_some();
            found.push(Reply::Integer(i64::from(is_there)));
        }
        Ok(Done::APPLIED.with(Reply::List(found)))
    }
}

/// Counts the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length;

impl Command for Length {
    const ID: CommandId = CommandId(0x0506);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, _out: &mut Writer) {}

    fn decode(_input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Length)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(set) = tx.collection(0, Type::Set)? else {
            return Ok(Done::NOT_APPLIED.with(Reply::Integer(0)));
        };
        Ok(Done::APPLIED.with(Reply::Integer(tx.count(0, &set)? as i64)))
    }
}

/// Reads a part of the members: from a cursor on, about so many. Replies with a list of the cursor to go
/// on from (0 at the end) and a list of members. One that is there from the first part to the last
/// comes once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// 0 at the beginning.
    pub cursor: u64,
    /// About so many members; 0 = all, refused where they don't fit into a reply.
    pub most: u64,
}

impl Command for Scan {
    const ID: CommandId = CommandId(0x0507);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, out: &mut Writer) {
        out.varint(self.most);
        out.varint(self.cursor);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Scan { most: input.varint()?, cursor: input.varint()? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let reply = |next: u64, found| Reply::List(vec![Reply::Integer(next as i64), names(found)]);
        let Some(set) = tx.collection(0, Type::Set)? else {
            return Ok(Done::NOT_APPLIED.with(reply(0, vec![])));
        };
        let (next, found) = part(tx, 0, &set, self.cursor, self.most)?;
        Ok(Done::APPLIED.with(reply(next, found)))
    }
}

/// Chooses members at random. Replies with a member, or nil; where a count is given, with a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Random {
    /// So many different ones; negative: so many, each out of all.
    pub count: Option<i64>,
    /// What chance is made of.
    pub seed: u64,
}

impl Command for Random {
    const ID: CommandId = CommandId(0x0508);
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
        let Some(set) = tx.collection(0, Type::Set)? else {
            let nothing = if self.count.is_some() { Reply::List(vec![]) } else { Reply::Nil };
            return Ok(Done::NOT_APPLIED.with(nothing));
        };
        let chosen = choose(tx, 0, &set, Choice::of(self.count), self.seed)?;
        let reply = match (self.count, chosen.first()) {
            (None, Some((place, _))) => Reply::Bytes(name_at(place)),
            _ => names(chosen),
        };
        Ok(Done::APPLIED.with(reply))
    }
}

/// Most members of a set that Redis keeps as whole numbers.
const INTEGERS_MOST: u64 = 512;

/// How Redis would keep a set: as whole numbers while it has few members and nothing else.
pub(crate) fn encoding(tx: &Tx<'_>, set: &Collection) -> Result<&'static str, Fault> {
    if tx.count(0, set)? > INTEGERS_MOST {
        return Ok("hashtable");
    }
    let mut are_integers = true;
    tx.scan(0, set, &[], |place, _| {
        are_integers = parse_counter(&name_at(&place)).is_some();
        are_integers
    })?;
    Ok(if are_integers { "intset" } else { "hashtable" })
}

#[cfg(test)]
mod tests;
