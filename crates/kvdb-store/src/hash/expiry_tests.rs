//! Fields that expire, against a map with deadlines and a clock.

use super::*;
use crate::collection::INLINE_MOST;
use crate::command::tests::survives;
use crate::deadlines::FREED_MOST;
use crate::keys::{self, Expiry, ExpiryRule};
use crate::overlay::tests::{NOW_MS, Trial};
use crate::record::ElementTimes;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Values and deadlines (0 for never) by name.
type Model = BTreeMap<Bytes, (Bytes, u64)>;

fn name(number: impl std::fmt::Display) -> Bytes {
    Bytes::from(format!("f{number}"))
}

fn fill(trial: &mut Trial, key: &'static str, count: u64) {
    let fields = (0..count).map(|number| (name(number), "v".into())).collect();
    trial.run(&Set { fields, only_new: false }, &[key]).unwrap();
}

/// What a command on one field came to.
fn expire(trial: &mut Trial, field: &str, expiry: Expiry, rule: ExpiryRule) -> i64 {
    let fields = vec![Bytes::copy_from_slice(field.as_bytes())];
    let done = trial.run(&ExpireFields { expiry, rule, fields }, &["h"]).unwrap();
    first(&done.reply)
}

fn first(reply: &Reply) -> i64 {
    match reply {
        Reply::List(told) => told[0].integer().expect("it is a number"),
        other => panic!("it is a list: {other:?}"),
    }
}

fn expire_all(trial: &mut Trial, range: std::ops::Range<u64>, ms: u64) {
    let fields = range.map(name).collect();
    let expiry = Expiry::In(ms);
    trial.run(&ExpireFields { expiry, rule: ExpiryRule::ALWAYS, fields }, &["h"]).unwrap();
}

fn length(trial: &mut Trial, key: &'static str) -> i64 {
    trial.run(&Length, &[key]).unwrap().reply.integer().expect("it is a number")
}

fn is_there(trial: &mut Trial, key: &'static str) -> bool {
    trial.run(&keys::Look, &[key]).unwrap().applied
}

fn deadline(trial: &mut Trial, key: &'static str, field: &str) -> i64 {
    let fields = vec![Bytes::copy_from_slice(field.as_bytes())];
    first(&trial.run(&FieldDeadlines { fields }, &[key]).unwrap().reply)
}

fn all(trial: &mut Trial, key: &'static str) -> BTreeMap<Bytes, Bytes> {
    let result = trial.run(&Scan { cursor: 0, most: 0 }, &[key]).unwrap();
    let Reply::List(parts) = result.reply else { panic!("it is a list") };
    let [Reply::Integer(0), Reply::Map(pairs)] = &parts[..] else { panic!("it is all of it") };
    let bytes = |reply: &Reply| reply.bytes().cloned().expect("it is bytes");
    pairs.iter().map(|(field, value)| (bytes(field), bytes(value))).collect()
}

const SIZES: [u64; 2] = [5, 300];

#[test]
fn a_field_that_is_over_is_not_there_for_anybody_and_does_not_count() {
    for count in SIZES {
        let mut trial = Trial::new(&[]);
        fill(&mut trial, "h", count);
        expire_all(&mut trial, 0..2, 10);
        trial.advance(9);
        assert_eq!(length(&mut trial, "h"), count as i64);
        trial.advance(1);
        assert_eq!(length(&mut trial, "h"), count as i64 - 2, "the dead are not counted");
        assert_eq!(all(&mut trial, "h").len() as u64, count - 2);
        let get = Get { fields: vec![name(0), name(2)] };
        let found = trial.run(&get, &["h"]).unwrap().reply;
        assert_eq!(found, Reply::List(vec![Reply::Nil, Reply::Bytes("v".into())]));
        assert_eq!(deadline(&mut trial, "h", "f0"), -2);
        for seed in 0..200 {
            let random = Random { count: Some(3), with_values: false, seed };
            let chosen = trial.run(&random, &["h"]).unwrap().reply;
            let dead = [0, 1].map(|number| Reply::Bytes(name(number)));
            assert!(matches!(chosen, Reply::List(chosen) if chosen.len() == 3
                && !chosen.iter().any(|field| dead.contains(field))));
        }
    }
}

#[test]
fn a_field_that_is_over_is_never_revived() {
    for count in SIZES {
        let mut trial = Trial::new(&[]);
        fill(&mut trial, "h", count);
        let fields = vec![(name(0), "41".into())];
        trial.run(&Set { fields, only_new: false }, &["h"]).unwrap();
        expire_all(&mut trial, 0..5, 10);
        trial.advance(10);
        // By nothing that reads or removes it ...
        let changes = trial.changes();
        let fields = || vec![name(0), name(1)];
        assert!(!trial.run(&Delete { fields: fields() }, &["h"]).unwrap().applied);
        let taken = trial.run(&Take { fields: fields() }, &["h"]).unwrap();
        assert_eq!(taken.reply, Reply::List(vec![Reply::Nil; 2]));
        let expiry = Expiry::Never;
        let read = trial.run(&GetAndExpire { expiry, fields: fields() }, &["h"]).unwrap();
        assert_eq!((read.applied, read.reply), (false, Reply::List(vec![Reply::Nil; 2])));
        assert_eq!(
            first(&trial.run(&PersistFields { fields: fields() }, &["h"]).unwrap().reply),
            -2
        );
        assert_eq!(expire(&mut trial, "f0", Expiry::In(5), ExpiryRule::ALWAYS), -2);
        assert_eq!(trial.changes(), changes);
        // ... and what sets it sets a new one.
        let add = Increment { field: name(0), delta: 1 };
        if count > 5 {
            assert_eq!(trial.run(&add, &["h"]).unwrap().reply, Reply::Integer(1));
            assert_eq!(deadline(&mut trial, "h", "f0"), -1);
            assert_eq!(length(&mut trial, "h"), count as i64 - 4);
            let only_new = Set { fields: vec![(name(1), "new".into())], only_new: true };
            assert!(trial.run(&only_new, &["h"]).unwrap().applied);
            assert_eq!(length(&mut trial, "h"), count as i64 - 3);
        }
        trial.advance(1_000);
        trial.reclaim("h", FREED_MOST);
        assert_eq!(length(&mut trial, "h"), if count > 5 { count as i64 - 3 } else { 0 });
    }
}

#[test]
fn the_key_is_gone_with_its_last_field_and_the_next_one_of_its_name_is_new() {
    for count in SIZES {
        let mut trial = Trial::new(&[]);
        fill(&mut trial, "h", count);
        expire_all(&mut trial, 0..count - 1, 10);
        trial.advance(10);
        assert!(is_there(&mut trial, "h"), "one never expires");
        expire_all(&mut trial, count - 1..count, 10);
        trial.advance(9);
        assert_eq!((is_there(&mut trial, "h"), length(&mut trial, "h")), (true, 1));
        trial.advance(1);
        assert_eq!((is_there(&mut trial, "h"), length(&mut trial, "h")), (false, 0));
        let set = crate::string::Set { value: "x".into(), expiry: Expiry::Never };
        let absent = Some(kvdb_model::Condition::IfAbsent);
        let operation = kvdb_model::Operation { condition: absent, ..set.on("h".into()) };
        assert!(trial.carry_out(&operation).unwrap().applied, "SETNX sees no key");
        trial.run(&keys::Delete, &["h"]).unwrap();
        fill(&mut trial, "h", 1);
        trial.advance(100);
        assert_eq!(length(&mut trial, "h"), 1);
        for incarnation in [1, 2] {
            trial.free("h", incarnation);
        }
        assert_eq!(trial.elements(), 0, "nothing is left of the first one");
    }
}

#[test]
fn rules_are_those_of_keys_and_a_deadline_that_has_passed_removes() {
    for count in SIZES {
        let mut trial = Trial::new(&[]);
        fill(&mut trial, "h", count);
        let mut step = |ms, rule| expire(&mut trial, "f1", Expiry::In(ms), rule);
        assert_eq!(step(10, ExpiryRule::XX), 0);
        assert_eq!(step(10, ExpiryRule::GT), 0, "it lives for ever");
        assert_eq!(step(10, ExpiryRule::LT), 1);
        assert_eq!(step(20, ExpiryRule::LT), 0);
        assert_eq!(step(20, ExpiryRule::NX), 0);
        assert_eq!(step(20, ExpiryRule::GT), 1);
        assert_eq!(step(0, ExpiryRule::GT), 0, "the rule comes first");
        assert_eq!(expire(&mut trial, "f1", Expiry::At(1), ExpiryRule::ALWAYS), 2);
        assert_eq!(expire(&mut trial, "f1", Expiry::At(1), ExpiryRule::ALWAYS), -2);
        assert_eq!(length(&mut trial, "h"), count as i64 - 1);
        let nobody = ExpireFields {
            expiry: Expiry::In(1),
            rule: ExpiryRule::ALWAYS,
            fields: vec![name(0), name(1)],
        };
        let told = trial.run(&nobody, &["nothing"]).unwrap();
        assert_eq!(told.reply, Reply::List(vec![Reply::Integer(-2); 2]));
    }
}

#[test]
fn setting_a_field_takes_its_deadline_away_and_counting_in_it_does_not() {
    for count in SIZES {
        let mut trial = Trial::new(&[]);
        fill(&mut trial, "h", count);
        let set =
            |value: &'static str| Set { fields: vec![(name(0), value.into())], only_new: false };
        trial.run(&set("1"), &["h"]).unwrap();
        expire_all(&mut trial, 0..1, 50);
        let until = (NOW_MS + 50) as i64;
        trial.run(&Increment { field: name(0), delta: 1 }, &["h"]).unwrap();
        trial.run(&IncrementFloat { field: name(0), delta: "0.5".into() }, &["h"]).unwrap();
        assert_eq!(deadline(&mut trial, "h", "f0"), until);
        trial.run(&set("2"), &["h"]).unwrap();
        assert_eq!(deadline(&mut trial, "h", "f0"), -1);
        assert_eq!(trial.element_times("h"), Some(ElementTimes::default()));
        trial.advance(100);
        assert_eq!(length(&mut trial, "h"), count as i64);
    }
}

#[test]
fn deadlines_move_and_are_copied_with_their_fields() {
    for count in SIZES {
        let mut trial = Trial::new(&[]);
        fill(&mut trial, "h", count);
        expire_all(&mut trial, 0..2, 10);
        trial.run(&keys::Copy { only_absent: false }, &["h", "copy"]).unwrap();
        trial.run(&keys::Rename { only_absent: false }, &["h", "moved"]).unwrap();
        let set = Set { fields: vec![(name(0), "w".into())], only_new: false };
        trial.run(&set, &["copy"]).unwrap();
        assert_eq!(deadline(&mut trial, "moved", "f0"), (NOW_MS + 10) as i64);
        let always = ExpiryRule::ALWAYS;
        trial.run(&keys::SetExpiry { expiry: Expiry::In(500), rule: always }, &["moved"]).unwrap();
        trial.advance(10);
        assert_eq!(length(&mut trial, "copy"), count as i64 - 1);
        assert_eq!(length(&mut trial, "moved"), count as i64 - 2);
        assert_eq!(
            (trial.reclaim("copy", 9), trial.reclaim("moved", 9)),
            if count == 5 { (1, 1) } else { (1, 2) }
        );
        assert_eq!(length(&mut trial, "copy"), count as i64 - 1);
        assert_eq!(length(&mut trial, "moved"), count as i64 - 2);
        trial.advance(500);
        assert!(!is_there(&mut trial, "moved"), "the key's own expiry stays");
    }
}

#[test]
fn a_small_hash_takes_its_deadlines_along_when_it_grows() {
    let mut trial = Trial::new(&[]);
    fill(&mut trial, "h", 10);
    expire_all(&mut trial, 0..4, 10);
    fill_more(&mut trial, 10..300);
    assert!(trial.incarnation("h").is_some());
    assert_eq!(deadline(&mut trial, "h", "f3"), (NOW_MS + 10) as i64);
    trial.advance(10);
    assert_eq!(length(&mut trial, "h"), 296);
}

fn fill_more(trial: &mut Trial, range: std::ops::Range<u64>) {
    let fields = range.map(|number| (name(number), "v".into())).collect();
    trial.run(&Set { fields, only_new: false }, &["h"]).unwrap();
}

#[test]
fn what_is_over_is_freed_a_bounded_number_at_a_time_and_nothing_else_is() {
    let mut trial = Trial::new(&[]);
    fill(&mut trial, "h", 300);
    let plain = trial.elements();
    expire_all(&mut trial, 0..250, 10);
    expire_all(&mut trial, 250..260, 20);
    assert_eq!(trial.elements(), plain + 260, "a row each");
    assert_eq!(trial.reclaim("h", FREED_MOST), 0, "nothing is due");
    trial.advance(10);
    assert_eq!([100, 100, 100, 100].map(|most| trial.reclaim("h", most)), [100, 100, 50, 0]);
    assert_eq!((length(&mut trial, "h"), trial.elements()), (50, 60));
    let times = ElementTimes { first_ms: NOW_MS + 20, last_ms: 0 };
    assert_eq!(trial.element_times("h"), Some(times));
    trial.advance(10);
    assert_eq!((trial.reclaim("h", FREED_MOST), trial.elements()), (10, 40));
    assert_eq!(trial.element_times("h"), Some(ElementTimes::default()));
    assert_eq!(trial.reclaim("h", FREED_MOST), 0);
    expire_all(&mut trial, 260..300, 10);
    trial.advance(10);
    assert_eq!(trial.reclaim("h", FREED_MOST), 1, "the key as a whole");
    assert_eq!((trial.free("h", 1), trial.free("h", 2)), (40, 40));
    assert_eq!(trial.elements(), 0);
}

#[test]
fn fields_are_set_with_a_deadline_all_or_none() {
    for count in SIZES {
        let mut trial = Trial::new(&[]);
        fill(&mut trial, "h", count);
        let mut set = |expiry, condition, names: &[&str]| {
            let field = |name: &&str| (Bytes::copy_from_slice(name.as_bytes()), Bytes::from("w"));
            let fields = names.iter().map(field).collect();
            let done = trial.run(&SetUntil { expiry, condition, fields }, &["h"]).unwrap();
            done.reply.integer().expect("it is a number")
        };
        use FieldCondition::{AllAbsent, AllPresent, Always};
        assert_eq!(set(Expiry::In(10), AllAbsent, &["f0", "new"]), 0);
        assert_eq!(set(Expiry::In(10), AllPresent, &["f0", "new"]), 0);
        assert_eq!(set(Expiry::In(10), AllPresent, &["f0", "f1"]), 1);
        assert_eq!(set(Expiry::In(10), AllAbsent, &["new"]), 1);
        assert_eq!(set(Expiry::Keep, Always, &["f0", "f2"]), 1);
        assert_eq!(set(Expiry::At(1), Always, &["f3", "newer"]), 1);
        let told =
            ["f0", "f1", "new", "f2", "f3", "newer"].map(|name| deadline(&mut trial, "h", name));
        let until = (NOW_MS + 10) as i64;
        assert_eq!(told, [until, until, until, -1, -2, -2]);
        let nothing = SetUntil {
            expiry: Expiry::At(1),
            condition: Always,
            fields: vec![("a".into(), "b".into())],
        };
        trial.run(&nothing, &["other"]).unwrap();
        assert!(!is_there(&mut trial, "other"));
    }
}

#[test]
fn values_are_read_while_their_deadline_is_set_or_taken_away() {
    for count in SIZES {
        let mut trial = Trial::new(&[]);
        fill(&mut trial, "h", count);
        let mut read = |expiry, field: u64| {
            let fields = vec![name(field), "nothing".into()];
            let done = trial.run(&GetAndExpire { expiry, fields }, &["h"]).unwrap();
            let wanted = Reply::List(vec![Reply::Bytes("v".into()), Reply::Nil]);
            assert_eq!(done.reply, wanted);
            (done.applied, deadline(&mut trial, "h", &format!("f{field}")))
        };
        let until = (NOW_MS + 10) as i64;
        assert_eq!(read(Expiry::Never, 0), (false, -1));
        assert_eq!(read(Expiry::In(10), 0), (true, until));
        assert_eq!(read(Expiry::Never, 0), (true, -1));
        assert_eq!(read(Expiry::At(1), 0), (true, -2), "it was read for the last time");
        let fields = vec![name(1), name(1), name(2)];
        let taken = trial.run(&Take { fields }, &["h"]).unwrap().reply;
        let v = || Reply::Bytes("v".into());
        assert_eq!(taken, Reply::List(vec![v(), Reply::Nil, v()]));
        assert_eq!(length(&mut trial, "h"), count as i64 - 3);
    }
}

fn living(model: &Model, now_ms: u64) -> BTreeMap<Bytes, Bytes> {
    let lives = |(_, (_, until)): &(&Bytes, &(Bytes, u64))| *until == 0 || *until > now_ms;
    model.iter().filter(lives).map(|(name, (value, _))| (name.clone(), value.clone())).collect()
}

fn any_expiry() -> impl Strategy<Value = Expiry> {
    prop_oneof![
        Just(Expiry::Never),
        Just(Expiry::Keep),
        (0u64..40).prop_map(Expiry::In),
        (990u64..1100).prop_map(Expiry::At)
    ]
}

proptest! {
    #[test]
    fn commands_on_deadlines_survive_encoding(
        fields in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..4).prop_map(Bytes::from), 0..5),
        expiry in any_expiry(),
    ) {
        let rule = ExpiryRule::XX.and(ExpiryRule::LT);
        survives(&ExpireFields { expiry, rule, fields: fields.clone() });
        survives(&PersistFields { fields: fields.clone() });
        survives(&FieldDeadlines { fields: fields.clone() });
        survives(&Take { fields: fields.clone() });
        survives(&GetAndExpire { expiry, fields: fields.clone() });
        let pairs: Vec<_> = fields.iter().cloned().zip(fields.clone()).collect();
        for condition in [FieldCondition::Always, FieldCondition::AllAbsent, FieldCondition::AllPresent] {
            survives(&SetUntil { expiry, condition, fields: pairs.clone() });
        }
    }

    /// Against a map with deadlines, small and large: with a filler of so many fields.
    #[test]
    fn a_hash_is_a_map_with_deadlines(
        filler in prop::sample::select(vec![0, INLINE_MOST as u64 - 2, 300]),
        steps in prop::collection::vec((0u8..13, 0u8..5, any_expiry(), 0u64..12, any::<u64>()), 1..60),
    ) {
        let mut trial = Trial::new(&[]);
        let mut model = Model::new();
        for (step, number, expiry, ms, seed) in steps {
            let now_ms = trial.now_ms();
            model.retain(|_, (_, until)| *until == 0 || *until > now_ms);
            let field = Bytes::from(vec![0, number]);
            let value = Bytes::from(seed.to_string());
            let before = model.get(&field).cloned();
            let after = |before: u64| expiry.expires_at_ms(kvdb_model::Version::from_millis(now_ms), before);
            match step {
                0 => {
                    let set = Set { fields: vec![(field.clone(), value.clone())], only_new: seed % 2 == 0 };
                    let done = trial.run(&set, &["h"]).unwrap();
                    prop_assert_eq!(done.reply, Reply::Integer(i64::from(before.is_none())));
                    if before.is_none() || !set.only_new {
                        model.insert(field, (value, 0));
                    }
                }
                1 => {
                    let done = trial.run(&Delete { fields: vec![field.clone()] }, &["h"]).unwrap();
                    prop_assert_eq!(done.applied, model.remove(&field).is_some());
                }
                2 | 3 => {
                    let rule = [ExpiryRule::ALWAYS, ExpiryRule::NX, ExpiryRule::XX, ExpiryRule::GT][seed as usize % 4];
                    let done = trial.run(&ExpireFields { expiry, rule, fields: vec![field.clone()] }, &["h"]).unwrap();
                    let wanted = match before {
                        None => -2,
                        Some((_, before)) if !rule.allows(before, after(before)) => 0,
                        Some((value, before)) => {
                            let until = after(before);
                            if until != 0 && until <= now_ms {
                                model.remove(&field);
                                2
                            } else {
                                model.insert(field, (value, until));
                                1
                            }
                        }
                    };
                    prop_assert_eq!(first(&done.reply), wanted);
                }
                4 => {
                    let done = trial.run(&PersistFields { fields: vec![field.clone()] }, &["h"]).unwrap();
                    let wanted = match model.get_mut(&field) {
                        None => -2,
                        Some((_, 0)) => -1,
                        Some((_, until)) => {
                            *until = 0;
                            1
                        }
                    };
                    prop_assert_eq!(first(&done.reply), wanted);
                }
                5 => {
                    let done = trial.run(&Take { fields: vec![field.clone()] }, &["h"]).unwrap();
                    let taken = model.remove(&field).map_or(Reply::Nil, |(value, _)| Reply::Bytes(value));
                    prop_assert_eq!(done.reply, Reply::List(vec![taken]));
                }
                6 => {
                    let done = trial.run(&GetAndExpire { expiry, fields: vec![field.clone()] }, &["h"]).unwrap();
                    let read = before.clone().map_or(Reply::Nil, |(value, _)| Reply::Bytes(value));
                    prop_assert_eq!(done.reply, Reply::List(vec![read]));
                    if let Some((value, before)) = before {
                        let until = after(before);
                        model.insert(field, (value, until));
                    }
                }
                7 => {
                    let condition = [FieldCondition::Always, FieldCondition::AllAbsent, FieldCondition::AllPresent][seed as usize % 3];
                    let fields = vec![(field.clone(), value.clone())];
                    let done = trial.run(&SetUntil { expiry, condition, fields }, &["h"]).unwrap();
                    let holds = match condition {
                        FieldCondition::Always => true,
                        FieldCondition::AllAbsent => before.is_none(),
                        FieldCondition::AllPresent => before.is_some(),
                    };
                    prop_assert_eq!(done.reply, Reply::Integer(i64::from(holds)));
                    if holds {
                        let until = after(before.map_or(0, |(_, until)| until));
                        model.insert(field, (value, until));
                    }
                }
                8 if filler > 0 => {
                    fill(&mut trial, "h", filler);
                    model.extend((0..filler).map(|number| (name(number), ("v".into(), 0))));
                }
                9 if filler > 0 => {
                    expire_all(&mut trial, 0..filler / 2, ms + 1);
                    for number in 0..filler / 2 {
                        if let Some((_, until)) = model.get_mut(&name(number)) {
                            *until = now_ms + ms + 1;
                        }
                    }
                }
                10 => {
                    if trial.run(&keys::Rename { only_absent: false }, &["h", "other"]).is_ok() {
                        trial.run(&keys::Copy { only_absent: false }, &["other", "h"]).unwrap();
                    }
                }
                11 => {
                    trial.reclaim("h", seed % 200);
                }
                _ => trial.advance(ms),
            }
            let now_ms = trial.now_ms();
            let living = living(&model, now_ms);
            prop_assert_eq!(length(&mut trial, "h"), living.len() as i64);
            prop_assert_eq!(is_there(&mut trial, "h"), !living.is_empty());
            if let Some(times) = trial.element_times("h") {
                let untils = || model.values().map(|(_, until)| *until).filter(|until| *until > now_ms);
                let first_ms = untils().min();
                prop_assert!(first_ms.is_none_or(|first_ms| times.first_ms != 0 && times.first_ms <= first_ms));
                let all_end = model.iter().all(|(_, (_, until))| *until != 0);
                prop_assert_eq!(times.last_ms, if all_end { untils().max().unwrap_or(0) } else { 0 });
            }
        }
        prop_assert_eq!(all(&mut trial, "h"), living(&model, trial.now_ms()));
        let now_ms = trial.now_ms();
        for (name, (_, until)) in model.iter().filter(|(_, (_, until))| *until == 0 || *until > now_ms) {
            let fields = vec![name.clone()];
            let told = trial.run(&FieldDeadlines { fields }, &["h"]).unwrap().reply;
            prop_assert_eq!(first(&told), if *until == 0 { -1 } else { *until as i64 });
        }
    }
}
