//! Commands on HyperLogLogs: about how many different elements were added, in 12 KiB whatever their number
//! (Flajolet et al. 2007; Heule et al. 2013 for the registers of 64-bit hashes). The error is about 0.81 %.
//!
//! A HyperLogLog is a string in Redis's own format (`sketch`), so that every command on strings works on it. Only
//! what adds elements writes: counting never does, though Redis keeps in the value what it has counted.

mod estimator;
mod hash;
mod sketch;
#[cfg(test)]
mod tests;

pub use sketch::{Sketch, Union, estimate};

use crate::command::{Command, Done, Effect, Fault};
use crate::tx::Tx;
use crate::unordered::{decode_list, encode_list};
use bytes::Bytes;
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::{CommandId, Limits, Refusal, Reply};

/// Most keys that one command takes: their registers are looked at one by one. A part of the state machine: fixed.
const KEYS_MOST: usize = 10_000;

/// Adds elements. Replies with 1 if that may have changed the count, also where the key is new, or else 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Add {
    /// Maybe none.
    pub elements: Vec<Bytes>,
}

impl Command for Add {
    const ID: CommandId = CommandId(0x0801);
    const EFFECT: Effect = Effect::Grow;

    fn encode(&self, out: &mut Writer) {
        encode_list(&self.elements, out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Add { elements: decode_list(input)? })
    }

    fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        self.elements.iter().try_for_each(|element| limits.check_value(element))
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let (mut sketch, mut is_changed, expires_at_ms) = match tx.string(0)? {
            None => (Sketch::default(), true, 0),
            Some((value, expires_at_ms)) => (Sketch::decode(&value)?, false, expires_at_ms),
        };
        for element in &self.elements {
            is_changed |= sketch.add(element);
        }
        if !is_changed {
            return Ok(Done::NOT_APPLIED.with(Reply::Integer(0)));
        }
        tx.set(0, sketch.changed(), expires_at_ms)?;
        Ok(Done::APPLIED.with(Reply::Integer(1)))
    }
}

/// Estimates how many different elements were added under any of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count;

impl Command for Count {
    const ID: CommandId = CommandId(0x0802);
    const EFFECT: Effect = Effect::Read;
    const OTHERS: (usize, usize) = (0, KEYS_MOST - 1);

    fn encode(&self, _out: &mut Writer) {}

    fn decode(_input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Count)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let count = match tx.key_count() {
            1 => tx.string(0)?.map_or(Ok(0), |(value, _)| estimate(&value))?,
            _ => union_of(tx)?.estimate()?,
        };
        Ok(Done::APPLIED.with(Reply::Integer(count as i64)))
    }
}

/// Adds to the own key what was added under any of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge;

impl Command for Merge {
    const ID: CommandId = CommandId(0x0803);
    const EFFECT: Effect = Effect::Grow;
    const OTHERS: (usize, usize) = (0, KEYS_MOST - 1);

    fn encode(&self, _out: &mut Writer) {}

    fn decode(_input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Merge)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let union = union_of(tx)?;
        let (mut sketch, expires_at_ms) = match tx.string(0)? {
            None => (Sketch::default(), 0),
            Some((value, expires_at_ms)) => (Sketch::decode(&value)?, expires_at_ms),
        };
        sketch.merge(&union);
        tx.set(0, sketch.changed(), expires_at_ms)?;
        Ok(Done::APPLIED)
    }
}

/// All keys together; those that aren't there add nothing.
fn union_of(tx: &mut Tx<'_>) -> Result<Union, Fault> {
    let mut union = Union::default();
    for place in 0..tx.key_count() {
        if let Some((value, _)) = tx.string(place)? {
            union.add(&value)?;
        }
    }
    Ok(union)
}
