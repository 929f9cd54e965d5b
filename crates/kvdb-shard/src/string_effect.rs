//! What a string action does to its key, and to the one beside it.

use crate::bits;
use crate::decimal;
use crate::effect::{Change, Effect, increment, unapplied};
use crate::record::Record;
use bytes::Bytes;
use kvdb_model::string_action::encode_bitfield_answers;
use kvdb_model::wrong_value::{NO_SUCH_KEY, TOO_LONG};
use kvdb_model::{BitFieldStep, Expiry, Operation, Refusal, StringAction, Version, WriteResult};

/// Longest value that a string action makes. A part of the state machine: fixed.
const VALUE_MAX_BYTES: u64 = 8 << 20;

/// What is known when a string action is carried out.
pub(crate) struct Scene<'a> {
    pub(crate) operation: &'a Operation,
    pub(crate) current: Option<&'a Record>,
    /// Of [`StringAction::other_keys`].
    pub(crate) others: &'a [Option<Record>],
    pub(crate) version: Version,
    /// What is answered if it applies.
    pub(crate) result: WriteResult,
}

type Outcome = Result<Effect, Refusal>;

pub(crate) fn string_effect(action: &StringAction, scene: Scene<'_>) -> Outcome {
    match action {
        StringAction::Read => Ok(scene.read()),
        StringAction::Check => Ok(scene.unchanged()),
        StringAction::Set { value, expiry } => {
            let before = scene.current.map_or(0, |record| record.expires_at_ms);
            let expires_at_ms = expiry.expires_at_ms(scene.version, before);
            Ok(scene.store(value.clone(), expires_at_ms))
        }
        StringAction::Remove if scene.current.is_none() => Ok(scene.unapplied()),
        StringAction::Remove => Ok(scene.change(Change::Remove)),
        StringAction::Increment { delta } => {
            let (counter, record) = increment(scene.current, *delta, scene.version)?;
            Ok(scene.count(counter, record))
        }
        StringAction::IncrementFloat { delta } => scene.increment_float(delta),
        StringAction::Append { value } => {
            let offset = scene.current.map_or(0, |record| record.value.len() as u64);
            scene.overwrite(offset, value)
        }
        StringAction::SetRange { value, .. } if value.is_empty() => Ok(scene.length()),
        StringAction::SetRange { offset, value } => scene.overwrite(*offset, value),
        StringAction::SetBit { offset, bit } => scene.set_bit(*offset, *bit),
        StringAction::BitField { steps } => scene.bit_field(steps),
        StringAction::SetExpiry { expiry, rule } => {
            let Some(current) = scene.current else { return Ok(scene.unapplied()) };
            let after = expiry.expires_at_ms(scene.version, current.expires_at_ms);
            let changes = *expiry != Expiry::Never || current.expires_at_ms != 0;
            if !changes || !rule.allows(current.expires_at_ms, after) {
                return Ok(scene.unapplied());
            }
            let value = current.value.clone();
            Ok(scene.store(value, after))
        }
        StringAction::Rename { to, only_absent } => scene.to_other(to, *only_absent, true),
        StringAction::Copy { to, only_absent } => scene.to_other(to, *only_absent, false),
        StringAction::BitOp { operation, .. } => {
            let sources: Vec<&[u8]> = scene
                .others
                .iter()
                .map(|record| record.as_ref().map_or(&[][..], |record| &record.value))
                .collect();
            let value = bits::combine(*operation, &sources);
            Ok(scene.keep_combined(value))
        }
    }
}

impl Scene<'_> {
    fn value(&self) -> &[u8] {
        self.current.map_or(&[], |record| &record.value)
    }

    fn expires_at_ms(&self) -> u64 {
        self.current.map_or(0, |record| record.expires_at_ms)
    }

    fn unapplied(self) -> Effect {
        Effect { result: unapplied(self.operation, self.current), change: None, also: None }
    }

    fn read(self) -> Effect {
        let there = self.current.map(|record| record.version);
        let mut effect = self.unapplied();
        effect.result.applied = there.is_some();
        effect
    }

    /// It applies, and changes nothing.
    fn unchanged(self) -> Effect {
        let version = self.current.map_or(Version::ZERO, |record| record.version);
        Effect { result: WriteResult { version, ..self.result }, change: None, also: None }
    }

    fn change(self, change: Change) -> Effect {
        Effect { result: self.result, change: Some(change), also: None }
    }

    /// Stores a value, unless it has expired already.
    fn store(self, value: Bytes, expires_at_ms: u64) -> Effect {
        let version = self.version;
        let record = Record { version, expires_at_ms, value };
        let gone = record.is_expired(version);
        self.change(if gone { Change::Remove } else { Change::Set(record) })
    }

    fn count(mut self, counter: i64, record: Record) -> Effect {
        self.result.counter = Some(counter);
        self.change(Change::Set(record))
    }

    fn length(mut self) -> Effect {
        self.result.counter = Some(self.value().len() as i64);
        self.unchanged()
    }

    fn increment_float(mut self, delta: &[u8]) -> Outcome {
        let before = if self.current.is_some() { self.value() } else { b"0" };
        let sum = Bytes::from(decimal::add(before, delta).map_err(Refusal::WrongValue)?);
        self.result.reply = Some(sum.clone());
        let expires_at_ms = self.expires_at_ms();
        Ok(self.store(sum, expires_at_ms))
    }

    fn grown_to(&self, least_bytes: u64) -> Result<Vec<u8>, Refusal> {
        if least_bytes > VALUE_MAX_BYTES {
            return Err(Refusal::WrongValue(TOO_LONG));
        }
        let before = self.value();
        let length = before.len().max(least_bytes as usize);
        let mut value = Vec::with_capacity(length);
        value.extend_from_slice(before);
        value.resize(length, 0);
        Ok(value)
    }

    fn overwrite(mut self, offset: u64, part: &[u8]) -> Outcome {
        let end = offset.saturating_add(part.len() as u64);
        let mut value = self.grown_to(end)?;
        // It is below the limit now, and so is a place in memory.
        value[offset as usize..end as usize].copy_from_slice(part);
        self.result.counter = Some(value.len() as i64);
        let expires_at_ms = self.expires_at_ms();
        Ok(self.store(value.into(), expires_at_ms))
    }

    fn set_bit(mut self, offset: u64, on: bool) -> Outcome {
        let mut value = self.grown_to(offset / 8 + 1)?;
        let before = bits::set_bit(&mut value, offset, on);
        self.result.counter = Some(i64::from(before));
        let expires_at_ms = self.expires_at_ms();
        Ok(self.store(value.into(), expires_at_ms))
    }

    fn bit_field(mut self, steps: &[BitFieldStep]) -> Outcome {
        let written = steps.iter().filter_map(|step| match step {
            BitFieldStep::Get(_) => None,
            BitFieldStep::Set(range, ..) | BitFieldStep::Increment(range, ..) => {
                Some(bits::end_byte(*range))
            }
        });
        let mut value = self.grown_to(written.max().unwrap_or(0))?;
        let mut wrote = false;
        let answers: Vec<Option<i64>> = steps
            .iter()
            .map(|step| {
                let (answer, changed) = bits::step(&mut value, *step);
                wrote |= changed;
                answer
            })
            .collect();
        self.result.reply = Some(encode_bitfield_answers(&answers));
        if !wrote {
            return Ok(self.unchanged());
        }
        let expires_at_ms = self.expires_at_ms();
        Ok(self.store(value.into(), expires_at_ms))
    }

    fn to_other(self, to: &Bytes, only_absent: bool, moves: bool) -> Outcome {
        let Some(current) = self.current else { return Err(Refusal::WrongValue(NO_SUCH_KEY)) };
        let taken = self.others.first().is_some_and(Option::is_some);
        if only_absent && taken {
            return Ok(self.unapplied());
        }
        if *to == self.operation.key {
            return Ok(self.unchanged());
        }
        let record = Record { version: self.version, ..current.clone() };
        let also = Some((to.clone(), Change::Set(record)));
        let change = moves.then_some(Change::Remove);
        Ok(Effect { result: self.result, change, also })
    }

    fn keep_combined(mut self, value: Vec<u8>) -> Effect {
        self.result.counter = Some(value.len() as i64);
        if value.is_empty() {
            return self.change(Change::Remove);
        }
        self.store(value.into(), 0)
    }
}
