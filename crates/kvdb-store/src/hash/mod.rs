//! Commands on hashes: fields with a value each.
//!
//! A field is an element whose payload is its value. Its place is a hash of its name and the name
//! (`unordered`).

mod expiry;

pub use expiry::{
    ExpireFields, FieldCondition, FieldDeadlines, GetAndExpire, PersistFields, SetUntil, Take,
};

use crate::command::{Command, Done, Effect, Fault, flag, wrong};
use crate::record::Type;
use crate::string::{decimal, parse_counter};
use crate::tx::Tx;
use crate::unordered::{
    Choice, check_name, choose, decode_list, decode_random, encode_list, encode_random, name_at,
    part, place_of, remove,
};
use bytes::Bytes;
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::wrong_value::{
    DELTA_NOT_FINITE, FIELD_NOT_A_FLOAT, FIELD_NOT_A_NUMBER, NOT_A_FLOAT, NOT_FINITE, OVERFLOW,
};
use kvdb_model::{CommandId, Limits, Refusal, Reply};

/// Sets fields; with `only_new` only those that aren't there. Replies with how many are new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Names and values, in order: of the same name the last one counts.
    pub fields: Vec<(Bytes, Bytes)>,
    /// Leave fields alone that are there.
    pub only_new: bool,
}

impl Command for Set {
    const ID: CommandId = CommandId(0x0401);
    const EFFECT: Effect = Effect::Grow;

    fn encode(&self, out: &mut Writer) {
        out.u8(u8::from(self.only_new));
        out.varint(self.fields.len() as u64);
        for (field, value) in &self.fields {
            out.bytes(field);
            out.bytes(value);
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let only_new = flag(input)?;
        let count = input.count(2)?;
        let field = |_| Ok((input.bytes()?, input.bytes()?));
        let fields = (0..count).map(field).collect::<Result<_, DecodeError>>()?;
        Ok(Set { fields, only_new })
    }

    fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        self.fields.iter().try_for_each(|(field, value)| {
            check_name("field", field, limits)?;
            limits.check_value(value)
        })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let mut hash = tx.collection_or_new(0, Type::Hash)?;
        let mut new = 0;
        let mut changed = false;
        for (field, value) in self.fields {
            if self.only_new && tx.element(0, &hash, &place_of(&field))?.is_some() {
                continue;
            }
            new += i64::from(tx.set_element(0, &mut hash, place_of(&field), value)?);
            changed = true;
        }
        if !changed {
            return Ok(Done::NOT_APPLIED.with(Reply::Integer(0)));
        }
        tx.store(0, hash)?;
        Ok(Done::APPLIED.with(Reply::Integer(new)))
    }
}

/// Removes fields. Replies with how many were there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delete {
    /// Their names.
    pub fields: Vec<Bytes>,
}

impl Command for Delete {
    const ID: CommandId = CommandId(0x0402);
    const EFFECT: Effect = Effect::Free;

    fn encode(&self, out: &mut Writer) {
        encode_list(&self.fields, out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Delete { fields: decode_list(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        remove(tx, Type::Hash, &self.fields)
    }
}

/// Adds to a field that is decimal text; an absent one counts as 0. Replies with the new value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Increment {
    /// Its name.
    pub field: Bytes,
    /// What to add.
    pub delta: i64,
}

impl Command for Increment {
    const ID: CommandId = CommandId(0x0403);
    const EFFECT: Effect = Effect::Grow;

    fn encode(&self, out: &mut Writer) {
        out.signed(self.delta);
        out.bytes(&self.field);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Increment { delta: input.signed()?, field: input.bytes()? })
    }

    fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        check_name("field", &self.field, limits)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let mut hash = tx.collection_or_new(0, Type::Hash)?;
        let place = place_of(&self.field);
        let (before, until_ms) = match tx.element_until(0, &hash, &place)? {
            None => (0, 0),
            Some((value, until_ms)) => {
                (parse_counter(&value).ok_or(wrong(FIELD_NOT_A_NUMBER))?, until_ms)
            }
        };
        let after = before.checked_add(self.delta).ok_or(wrong(OVERFLOW))?;
        tx.set_element_until(0, &mut hash, place, after.to_string().into(), until_ms)?;
        tx.store(0, hash)?;
        Ok(Done::APPLIED.with(Reply::Integer(after)))
    }
}

/// Adds to a field that is a decimal number. Replies with the new one, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncrementFloat {
    /// Its name.
    pub field: Bytes,
    /// What to add, as text.
    pub delta: Bytes,
}

impl Command for IncrementFloat {
    const ID: CommandId = CommandId(0x0404);
    const EFFECT: Effect = Effect::Grow;

    fn encode(&self, out: &mut Writer) {
        out.bytes(&self.field);
        out.bytes(&self.delta);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(IncrementFloat { field: input.bytes()?, delta: input.bytes()? })
    }

    fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        check_name("field", &self.field, limits)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        // What is wrong with the argument comes first.
        decimal::add(b"0", &self.delta).map_err(|why| match why {
            NOT_FINITE => wrong(DELTA_NOT_FINITE),
            why => wrong(why),
        })?;
        let mut hash = tx.collection_or_new(0, Type::Hash)?;
        let place = place_of(&self.field);
        let before = tx.element_until(0, &hash, &place)?;
        let (before, until_ms) = before.unwrap_or((Bytes::from_static(b"0"), 0));
        let sum = decimal::add(&before, &self.delta).map_err(|why| match why {
            NOT_A_FLOAT => wrong(FIELD_NOT_A_FLOAT),
            why => wrong(why),
        })?;
        let sum = Bytes::from(sum);
        tx.set_element_until(0, &mut hash, place, sum.clone(), until_ms)?;
        tx.store(0, hash)?;
        Ok(Done::APPLIED.with(Reply::Bytes(sum)))
    }
}

/// Reads fields. Replies with a list: a value a field, nil where there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Get {
    /// Their names.
    pub fields: Vec<Bytes>,
}

impl Command for Get {
    const ID: CommandId = CommandId(0x0405);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, out: &mut Writer) {
        encode_list(&self.fields, out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Get { fields: decode_list(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(hash) = tx.collection(0, Type::Hash)? else {
            return Ok(Done::NOT_APPLIED.with(Reply::List(vec![Reply::Nil; self.fields.len()])));
        };
        Ok(Done::APPLIED.with(expiry::listed(expiry::values(tx, &hash, &self.fields)?)))
    }
}

/// Counts the fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length;

impl Command for Length {
    const ID: CommandId = CommandId(0x0406);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, _out: &mut Writer) {}

    fn decode(_input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Length)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(hash) = tx.collection(0, Type::Hash)? else {
            return Ok(Done::NOT_APPLIED.with(Reply::Integer(0)));
        };
        Ok(Done::APPLIED.with(Reply::Integer(tx.count(0, &hash)? as i64)))
    }
}

/// Reads a part of the fields: from a cursor on, about so many. Replies with a list of the cursor to go
/// on from (0 at the end) and a map of names and values. A field that is there from the first part to
/// the last comes once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// 0 at the beginning.
    pub cursor: u64,
    /// About so many fields; 0 = all, refused where they don't fit into a reply.
    pub most: u64,
}

impl Command for Scan {
    const ID: CommandId = CommandId(0x0407);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, out: &mut Writer) {
        out.varint(self.most);
        out.varint(self.cursor);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Scan { most: input.varint()?, cursor: input.varint()? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let reply = |next: u64, found: Vec<(Bytes, Bytes)>| {
            let pairs = found.into_iter();
            let pairs =
                pairs.map(|(place, value)| (Reply::Bytes(name_at(&place)), Reply::Bytes(value)));
            Reply::List(vec![Reply::Integer(next as i64), Reply::Map(pairs.collect())])
        };
        let Some(hash) = tx.collection(0, Type::Hash)? else {
            return Ok(Done::NOT_APPLIED.with(reply(0, vec![])));
        };
        let (next, found) = part(tx, 0, &hash, self.cursor, self.most)?;
        Ok(Done::APPLIED.with(reply(next, found)))
    }
}

/// Chooses fields at random. Replies with a field, or nil; where a count is given, with a list of fields
/// or a map of fields and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Random {
    /// So many different ones; negative: so many, each out of all.
    pub count: Option<i64>,
    /// With their values; only where a count is given.
    pub with_values: bool,
    /// What chance is made of.
    pub seed: u64,
}

impl Command for Random {
    const ID: CommandId = CommandId(0x0408);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, out: &mut Writer) {
        out.u64(self.seed);
        out.u8(u8::from(self.with_values));
        encode_random(self.count, out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let (seed, with_values) = (input.u64()?, flag(input)?);
        Ok(Random { seed, with_values, count: decode_random(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(hash) = tx.collection(0, Type::Hash)? else {
            let nothing = if self.count.is_some() { Reply::List(vec![]) } else { Reply::Nil };
            return Ok(Done::NOT_APPLIED.with(nothing));
        };
        let chosen = choose(tx, 0, &hash, Choice::of(self.count), self.seed)?;
        let name = |place: &Bytes| Reply::Bytes(name_at(place));
        let reply = match (self.count, chosen.first()) {
            (None, Some((place, _))) => name(place),
            _ if self.with_values => {
                let pairs = chosen.into_iter();
                Reply::Map(
                    pairs.map(|(place, value)| (name(&place), Reply::Bytes(value))).collect(),
                )
            }
            _ => Reply::List(chosen.iter().map(|(place, _)| name(place)).collect()),
        };
        Ok(Done::APPLIED.with(reply))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collection::INLINE_MOST;
    use crate::command::tests::survives;
    use crate::keys;
    use crate::overlay::tests::{Trial, record};
    use crate::string;
    use kvdb_model::{Operation, wrong_value};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn set(fields: &[(&str, &str)]) -> Set {
        let owned = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let fields = fields.iter().map(|(field, value)| (owned(field), owned(value))).collect();
        Set { fields, only_new: false }
    }

    fn many(count: usize) -> Set {
        let field = |number| (Bytes::from(format!("f{number:05}")), Bytes::from("v"));
        Set { fields: (0..count).map(field).collect(), only_new: false }
    }

    fn all(trial: &mut Trial, key: &'static str) -> BTreeMap<Bytes, Bytes> {
        let result = trial.run(&Scan { cursor: 0, most: 0 }, &[key]).unwrap();
        let Reply::List(parts) = result.reply else { panic!("it is a list") };
        let [Reply::Integer(0), Reply::Map(pairs)] = &parts[..] else { panic!("it is all of it") };
        let bytes = |reply: &Reply| reply.bytes().cloned().expect("it is bytes");
        pairs.iter().map(|(field, value)| (bytes(field), bytes(value))).collect()
    }

    #[test]
    fn a_large_hash_that_was_removed_leaves_nothing_to_the_next_one_of_its_name() {
        let mut trial = Trial::new(&[]);
        trial.run(&many(INLINE_MOST), &["h"]).unwrap();
        assert_eq!(trial.incarnation("h"), None);
        trial.run(&set(&[("one more", "v")]), &["h"]).unwrap();
        assert_eq!((trial.incarnation("h"), trial.elements()), (Some(1), INLINE_MOST + 1));
        trial.run(&keys::Delete, &["h"]).unwrap();
        assert_eq!(trial.elements(), INLINE_MOST + 2, "the elements, and that they are garbage");
        assert_eq!(trial.run(&Length, &["h"]).unwrap().reply, Reply::Integer(0));
        trial.run(&set(&[("a", "1")]), &["h"]).unwrap();
        assert_eq!(all(&mut trial, "h").len(), 1);
        trial.run(&many(INLINE_MOST + 1), &["h"]).unwrap();
        assert_eq!(trial.incarnation("h"), Some(2), "each life has its own");
        assert_eq!(trial.free("h", 2), 0, "what lives is not freed");
        assert_eq!(trial.free("h", 1), INLINE_MOST as u64 + 1);
        assert_eq!(
            (all(&mut trial, "h").len(), trial.elements()),
            (INLINE_MOST + 2, INLINE_MOST + 2)
        );
    }

    #[test]
    fn a_string_in_the_place_of_a_large_hash_makes_its_elements_garbage() {
        let mut trial = Trial::new(&[]);
        trial.run(&many(200), &["h"]).unwrap();
        let set = string::Set { value: "x".into(), expiry: keys::Expiry::Never };
        trial.run(&set, &["h"]).unwrap();
        assert_eq!(trial.value("h"), Some((b"x".to_vec(), 0)));
        assert_eq!(trial.free("h", 1), 200);
        assert_eq!(trial.elements(), 0);
    }

    #[test]
    fn a_hash_moves_and_is_copied_with_its_fields_and_a_rename_to_itself_changes_nothing() {
        for count in [3, 300] {
            let mut trial = Trial::new(&[]);
            trial.run(&many(count), &["h"]).unwrap();
            trial.run(&keys::Rename { only_absent: false }, &["h", "h"]).unwrap();
            assert_eq!(trial.changes(), 1);
            trial.run(&keys::Copy { only_absent: false }, &["h", "copy"]).unwrap();
            trial.run(&keys::Rename { only_absent: false }, &["h", "moved"]).unwrap();
            trial.run(&set(&[("f00000", "changed")]), &["moved"]).unwrap();
            assert_eq!(all(&mut trial, "h").len(), 0);
            assert_eq!(all(&mut trial, "copy")[&b"f00000"[..]], "v");
            assert_eq!(all(&mut trial, "moved")[&b"f00000"[..]], "changed");
            assert_eq!(all(&mut trial, "moved").len(), count);
        }
    }

    #[test]
    fn the_last_field_takes_the_hash_with_it() {
        for count in [1, 300] {
            let mut trial = Trial::new(&[]);
            trial.run(&many(count), &["h"]).unwrap();
            let fields = many(count).fields.into_iter().map(|(field, _)| field).collect();
            let removed = trial.run(&Delete { fields }, &["h"]).unwrap();
            assert_eq!(removed.reply, Reply::Integer(count as i64));
            assert!(!trial.run(&keys::Look, &["h"]).unwrap().applied);
        }
    }

    #[test]
    fn other_types_are_refused_both_ways() {
        let mut trial = Trial::new(&[("s", record(b"v", 0))]);
        trial.run(&set(&[("f", "v")]), &["h"]).unwrap();
        let is_wrong =
            |outcome| matches!(outcome, Err(Refusal::WrongValue(wrong_value::WRONG_TYPE)));
        assert!(is_wrong(trial.run(&set(&[("f", "v")]), &["s"])));
        assert!(is_wrong(trial.run(&Length, &["s"])));
        assert!(is_wrong(trial.run(&string::Get { strings_only: false }, &["h"])));
        let lenient = trial.run(&string::Get { strings_only: true }, &["h"]).unwrap();
        assert_eq!((lenient.applied, lenient.reply), (false, Reply::Nil));
        assert!(is_wrong(trial.run(&string::Append { value: "x".into() }, &["h"])));
        assert!(is_wrong(trial.run(&string::Increment { delta: 1 }, &["h"])));
        let set = string::Set { value: "x".into(), expiry: keys::Expiry::Never };
        let only_new = Some(kvdb_model::Condition::IfAbsent);
        let operation =
            Operation { return_previous: true, condition: only_new, ..set.on("h".into()) };
        assert!(is_wrong(trial.carry_out(&operation)), "also where the condition fails");
    }

    #[test]
    fn a_field_counts() {
        let mut trial = Trial::new(&[]);
        let add = |field: &'static str, delta| Increment { field: field.into(), delta };
        assert_eq!(trial.run(&add("n", 5), &["h"]).unwrap().reply, Reply::Integer(5));
        assert_eq!(trial.run(&add("n", -7), &["h"]).unwrap().reply, Reply::Integer(-2));
        trial.run(&set(&[("text", "x"), ("most", "9223372036854775807")]), &["h"]).unwrap();
        let wrong = |outcome| match outcome {
            Err(Refusal::WrongValue(why)) => why,
            _ => "",
        };
        assert_eq!(wrong(trial.run(&add("text", 1), &["h"])), FIELD_NOT_A_NUMBER);
        assert_eq!(wrong(trial.run(&add("most", 1), &["h"])), OVERFLOW);
        let add = |field: &'static str, delta: &'static str| IncrementFloat {
            field: field.into(),
            delta: delta.into(),
        };
        let sum = trial.run(&add("x", "1.5"), &["h"]).unwrap().reply;
        assert_eq!(sum, Reply::Bytes("1.5".into()));
        assert_eq!(wrong(trial.run(&add("text", "1"), &["h"])), FIELD_NOT_A_FLOAT);
        assert_eq!(wrong(trial.run(&add("text", "y"), &["h"])), NOT_A_FLOAT);
        assert_eq!(wrong(trial.run(&add("x", "inf"), &["h"])), DELTA_NOT_FINITE);
    }

    fn any_bytes() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..4).prop_map(Bytes::from)
    }

    proptest! {
        #[test]
        fn commands_on_hashes_survive_encoding(
            pairs in prop::collection::vec((any_bytes(), any_bytes()), 0..5),
            fields in prop::collection::vec(any_bytes(), 0..5),
            field in any_bytes(), only_new in any::<bool>(), delta in any::<i64>(), most in any::<u64>(),
        ) {
            survives(&Set { fields: pairs, only_new });
            survives(&Delete { fields: fields.clone() });
            survives(&Get { fields });
            survives(&Increment { field: field.clone(), delta });
            survives(&IncrementFloat { field: field.clone(), delta: field.clone() });
            survives(&Scan { cursor: most, most });
            survives(&Length);
        }

        /// Against a map in memory, small and large: with a filler of so many fields.
        #[test]
        fn a_hash_is_a_map(
            filler in prop::sample::select(vec![0, INLINE_MOST - 2, 300]),
            steps in prop::collection::vec((0u8..6, 0u8..6, 0u8..4), 1..60),
        ) {
            let mut trial = Trial::new(&[]);
            let mut model: BTreeMap<Bytes, Bytes> = BTreeMap::new();
            for (step, field, value) in steps {
                let name = |number: u8| Bytes::from(vec![0, number]);
                let (field, value) = (name(field), Bytes::from(vec![b'0' + value]));
                match step {
                    0 => {
                        let new = !model.contains_key(&field);
                        let done = trial.run(&Set { fields: vec![(field.clone(), value.clone())], only_new: false }, &["h"]).unwrap();
                        prop_assert_eq!(done.reply, Reply::Integer(i64::from(new)));
                        model.insert(field, value);
                    }
                    1 => {
                        let new = !model.contains_key(&field);
                        let done = trial.run(&Set { fields: vec![(field.clone(), value.clone())], only_new: true }, &["h"]).unwrap();
                        prop_assert_eq!(done.applied, new);
                        model.entry(field).or_insert(value);
                    }
                    2 => {
                        let there = model.remove(&field).is_some();
                        let done = trial.run(&Delete { fields: vec![field] }, &["h"]).unwrap();
                        prop_assert_eq!(done.applied, there);
                    }
                    3 => {
                        trial.run(&keys::Delete, &["h"]).unwrap();
                        model.clear();
                    }
                    4 if filler > 0 => {
                        trial.run(&many(filler), &["h"]).unwrap();
                        model.extend(many(filler).fields);
                    }
                    _ => {
                        let done = trial.run(&Get { fields: vec![field.clone()] }, &["h"]).unwrap();
                        let expected = model.get(&field).cloned().map_or(Reply::Nil, Reply::Bytes);
                        prop_assert_eq!(done.reply, Reply::List(vec![expected]));
                    }
                }
                let length = trial.run(&Length, &["h"]).unwrap().reply;
                prop_assert_eq!(length, Reply::Integer(model.len() as i64));
            }
            prop_assert_eq!(all(&mut trial, "h"), model);
        }
    }

    #[test]
    fn a_hash_is_read_in_parts_and_each_field_comes_once() {
        for count in [5, 300] {
            let mut trial = Trial::new(&[]);
            trial.run(&many(count), &["h"]).unwrap();
            let (mut cursor, mut seen) = (0, 0);
            loop {
                let part = trial.run(&Scan { cursor, most: 7 }, &["h"]).unwrap();
                let Reply::List(part) = part.reply else { panic!("it is a list") };
                let Reply::Map(found) = &part[1] else { panic!("it is a map") };
                seen += found.len();
                match part[0].integer() {
                    Some(next @ 1..) => cursor = next as u64,
                    _ => break,
                }
            }
            assert_eq!(seen, count);
        }
    }
}

#[cfg(test)]
mod expiry_tests;
