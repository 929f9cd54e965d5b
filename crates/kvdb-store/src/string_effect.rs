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
        StringAction::Rename { to, only_absent } => scene.hand_over(to, *only_absent, true),
        StringAction::Copy { to, only_absent } => scene.hand_over(to, *only_absent, false),
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

    /// There was nothing to change.
    fn idle(self) -> Effect {
        let mut effect = self.unchanged();
        effect.result.applied = false;
        effect
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
        self.idle()
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
        if value == self.value() {
            return Ok(self.idle());
        }
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
        // As in Redis, also for a number that then doesn't fit.
        let mut value = self.grown_to(written.max().unwrap_or(0))?;
        let answers: Vec<Option<i64>> =
            steps.iter().map(|step| bits::step(&mut value, *step)).collect();
        self.result.reply = Some(encode_bitfield_answers(&answers));
        if value == self.value() {
            return Ok(self.idle());
        }
        let expires_at_ms = self.expires_at_ms();
        Ok(self.store(value.into(), expires_at_ms))
    }

    fn hand_over(self, to: &Bytes, only_absent: bool, moves: bool) -> Outcome {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::effect_of;
    use kvdb_model::string_action::bitfield_answers;
    use kvdb_model::{
        Action, BitOperation, BitRange, Condition, ExpiryRule, Overflow, wrong_value,
    };
    use proptest::prelude::*;

    const NOW_MS: u64 = 1_000;

    fn record(value: &[u8], expires_at_ms: u64) -> Record {
        Record { version: Version(1), expires_at_ms, value: Bytes::copy_from_slice(value) }
    }

    fn operation(action: StringAction) -> Operation {
        let action = Action::String(action);
        Operation { key: "k".into(), item: 0, action, condition: None, return_previous: false }
    }

    fn carry_out(action: StringAction, current: Option<&Record>) -> Outcome {
        with_others(action, current, &[])
    }

    fn with_others(
        action: StringAction,
        current: Option<&Record>,
        others: &[Option<Record>],
    ) -> Outcome {
        effect_of(&operation(action), current, others, Version::from_millis(NOW_MS))
    }

    /// Value and expiry after it.
    fn after(effect: &Effect) -> Option<(Vec<u8>, u64)> {
        match effect.change.as_ref()? {
            Change::Set(record) => Some((record.value.to_vec(), record.expires_at_ms)),
            Change::Remove => None,
        }
    }

    #[test]
    fn a_change_of_a_part_keeps_the_expiry() {
        let there = record(b"10", 9_000);
        for (action, value) in [
            (StringAction::Append { value: "1".into() }, &b"101"[..]),
            (StringAction::SetRange { offset: 1, value: "55".into() }, b"155"),
            (StringAction::Increment { delta: -3 }, b"7"),
            (StringAction::IncrementFloat { delta: "0.5".into() }, b"10.5"),
            (StringAction::SetBit { offset: 23, bit: true }, b"10\x01"),
            (StringAction::Set { value: "x".into(), expiry: Expiry::Keep }, b"x"),
        ] {
            let effect = carry_out(action, Some(&there)).unwrap();
            assert_eq!(after(&effect), Some((value.to_vec(), 9_000)));
        }
    }

    #[test]
    fn an_expiry_is_set_by_the_clock_of_the_log_and_one_that_has_passed_removes() {
        let there = record(b"v", 0);
        let set = |expiry| {
            let action = StringAction::SetExpiry { expiry, rule: ExpiryRule::ALWAYS };
            carry_out(action, Some(&there)).unwrap()
        };
        assert_eq!(after(&set(Expiry::In(5))), Some((b"v".to_vec(), NOW_MS + 5)));
        assert_eq!(after(&set(Expiry::At(7_777))), Some((b"v".to_vec(), 7_777)));
        let passed = set(Expiry::At(NOW_MS));
        assert!(passed.result.applied && passed.change == Some(Change::Remove));
        let never = set(Expiry::Never);
        assert!(!never.result.applied && never.change.is_none(), "it never expired");
        let action = StringAction::SetExpiry { expiry: Expiry::In(5), rule: ExpiryRule::XX };
        assert!(!carry_out(action.clone(), Some(&there)).unwrap().result.applied);
        assert!(!carry_out(action, None).unwrap().result.applied);
    }

    #[test]
    fn a_rename_moves_value_and_expiry_to_the_other_key() {
        let there = record(b"v", 9_000);
        let rename = |only_absent| StringAction::Rename { to: "other".into(), only_absent };
        let effect = with_others(rename(true), Some(&there), &[None]).unwrap();
        assert_eq!(effect.change, Some(Change::Remove));
        let version = Version::from_millis(NOW_MS);
        let moved = Change::Set(Record { version, ..there.clone() });
        assert_eq!(effect.also, Some(("other".into(), moved)));
        let taken = [Some(record(b"w", 0))];
        let effect = with_others(rename(true), Some(&there), &taken).unwrap();
        assert!(!effect.result.applied && effect.change.is_none() && effect.also.is_none());
        assert!(with_others(rename(false), Some(&there), &taken).unwrap().also.is_some());
        let absent = with_others(rename(false), None, &[None]);
        assert!(matches!(absent, Err(Refusal::WrongValue(wrong_value::NO_SUCH_KEY))));
        let onto_itself = StringAction::Rename { to: "k".into(), only_absent: false };
        let effect = with_others(onto_itself, Some(&there), &[Some(there.clone())]).unwrap();
        assert!(effect.result.applied && effect.change.is_none() && effect.also.is_none());
    }

    #[test]
    fn no_value_grows_beyond_the_limit() {
        for action in [
            StringAction::SetRange { offset: VALUE_MAX_BYTES, value: "x".into() },
            StringAction::SetRange { offset: u64::MAX, value: "x".into() },
            StringAction::SetBit { offset: u64::MAX, bit: true },
        ] {
            let refused = carry_out(action, None);
            assert!(matches!(refused, Err(Refusal::WrongValue(wrong_value::TOO_LONG))));
        }
    }

    #[test]
    fn an_empty_combination_removes_the_key() {
        let operation = BitOperation::Or;
        let action = StringAction::BitOp { operation, sources: vec!["a".into(), "b".into()] };
        let effect = with_others(action.clone(), None, &[None, None]).unwrap();
        assert_eq!((effect.result.counter, effect.change), (Some(0), Some(Change::Remove)));
        let sources = [Some(record(b"\x01\x02", 0)), Some(record(b"\x10", 0))];
        let effect = with_others(action, None, &sources).unwrap();
        assert_eq!(after(&effect), Some((vec![0x11, 0x02], 0)));
    }

    #[test]
    fn a_check_and_a_read_change_nothing() {
        let there = record(b"v", 0);
        assert!(carry_out(StringAction::Read, Some(&there)).unwrap().change.is_none());
        assert!(!carry_out(StringAction::Read, None).unwrap().result.applied);
        let check = Operation {
            condition: Some(Condition::IfVersion(Version(1))),
            ..operation(StringAction::Check)
        };
        let version = Version::from_millis(NOW_MS);
        assert!(effect_of(&check, Some(&there), &[], version).unwrap().result.applied);
        assert!(!effect_of(&check, None, &[], version).unwrap().result.applied);
    }

    #[test]
    fn a_bit_field_makes_room_for_what_it_writes_even_where_a_number_does_not_fit() {
        let range = BitRange { signed: false, bits: 2, offset: 8 };
        let steps =
            vec![BitFieldStep::Increment(range, 9, Overflow::Fail), BitFieldStep::Get(range)];
        let there = record(b"long", 0);
        let action = StringAction::BitField { steps: steps.clone() };
        assert!(carry_out(action, Some(&there)).unwrap().change.is_none());
        let effect = carry_out(StringAction::BitField { steps }, None).unwrap();
        assert_eq!(after(&effect), Some((vec![0, 0], 0)));
        let answers = bitfield_answers(effect.result.reply.unwrap());
        assert_eq!(answers, Ok(vec![None, Some(0)]));
    }

    proptest! {
        #[test]
        fn a_part_is_where_it_was_written_and_the_rest_as_before(
            before in prop::collection::vec(any::<u8>(), 0..20),
            offset in 0usize..30,
            part in prop::collection::vec(any::<u8>(), 1..10),
        ) {
            let action = StringAction::SetRange { offset: offset as u64, value: part.clone().into() };
            let effect = carry_out(action, Some(&record(&before, 0))).unwrap();
            let (value, _) = after(&effect).unwrap();
            prop_assert_eq!(value.len(), before.len().max(offset + part.len()));
            prop_assert_eq!(&value[offset..offset + part.len()], &part[..]);
            for (place, byte) in value.iter().enumerate() {
                if !(offset..offset + part.len()).contains(&place) {
                    prop_assert_eq!(*byte, before.get(place).copied().unwrap_or(0));
                }
            }
        }

        #[test]
        fn no_string_action_panics(
            before in prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
            offset in any::<u64>(), delta in "[-+0-9.e]{0,6}", number in any::<i64>(),
        ) {
            let there = before.map(|value| record(&value, 0));
            let range = BitRange { signed: true, bits: 64, offset };
            for action in [
                StringAction::SetRange { offset, value: "abc".into() },
                StringAction::SetBit { offset, bit: true },
                StringAction::IncrementFloat { delta: delta.clone().into() },
                StringAction::Increment { delta: number },
                StringAction::BitField { steps: vec![
                    BitFieldStep::Get(range),
                    BitFieldStep::Set(BitRange { offset: offset % 64, ..range }, number, Overflow::Wrap),
                    BitFieldStep::Increment(BitRange { offset: offset % 64, ..range }, number, Overflow::Saturate),
                ] },
            ] {
                let _ = carry_out(action, there.as_ref());
            }
        }
    }
}
