use super::*;
use crate::collection::INLINE_MOST;
use crate::command::tests::survives;
use crate::overlay::tests::{NOW_MS, Trial, record};
use crate::{hash, keys, string};
use kvdb_model::wrong_value::{self, TOO_MUCH_TO_COMBINE};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

type Model = BTreeSet<Bytes>;

fn names(members: &[&str]) -> Vec<Bytes> {
    members.iter().map(|member| Bytes::copy_from_slice(member.as_bytes())).collect()
}

fn many(range: std::ops::Range<u32>) -> Vec<Bytes> {
    range.map(|number| Bytes::from(format!("m{number:06}"))).collect()
}

fn add(trial: &mut Trial, key: &'static str, members: Vec<Bytes>) -> i64 {
    let done = trial.run(&Add { members }, &[key]).unwrap();
    done.reply.integer().expect("it is a number")
}

fn listed(reply: &Reply) -> Vec<Bytes> {
    let Reply::List(items) = reply else { panic!("it is a list: {reply:?}") };
    items.iter().map(|item| item.bytes().cloned().expect("it is bytes")).collect()
}

fn all(trial: &mut Trial, key: &'static str) -> Model {
    let result = trial.run(&Scan { cursor: 0, most: 0 }, &[key]).unwrap();
    let Reply::List(parts) = result.reply else { panic!("it is a list") };
    assert_eq!(parts[0], Reply::Integer(0), "it is all of it");
    let members = listed(&parts[1]);
    let set: Model = members.iter().cloned().collect();
    assert_eq!(set.len(), members.len(), "each comes once");
    set
}

fn length(trial: &mut Trial, key: &'static str) -> i64 {
    trial.run(&Length, &[key]).unwrap().reply.integer().expect("it is a number")
}

fn refused(outcome: kvdb_model::OperationOutcome) -> &'static str {
    match outcome {
        Err(Refusal::WrongValue(why)) => why,
        other => panic!("it is refused: {other:?}"),
    }
}

#[test]
fn a_member_that_comes_twice_in_one_command_counts_once() {
    let mut trial = Trial::new(&[]);
    assert_eq!(add(&mut trial, "s", names(&["a", "b", "a", "a"])), 2);
    assert_eq!(length(&mut trial, "s"), 2);
    let remove = Remove { members: names(&["a", "a", "c"]) };
    assert_eq!(trial.run(&remove, &["s"]).unwrap().reply, Reply::Integer(1));
    // Where members have records of their own, too.
    let twice = [many(0..200), many(0..200)].concat();
    assert_eq!(add(&mut trial, "large", twice.clone()), 200);
    assert_eq!(add(&mut trial, "large", [twice, many(200..201), many(200..201)].concat()), 1);
    assert_eq!(length(&mut trial, "large"), 201);
    let remove = Remove { members: [many(0..10), many(0..10)].concat() };
    assert_eq!(trial.run(&remove, &["large"]).unwrap().reply, Reply::Integer(10));
    assert_eq!(length(&mut trial, "large"), 191);
}

#[test]
fn what_is_in_a_set_already_changes_nothing() {
    let mut trial = Trial::new(&[]);
    add(&mut trial, "s", names(&["a", "b"]));
    assert_eq!(add(&mut trial, "s", names(&["a"])), 0);
    trial.run(&Remove { members: names(&["x"]) }, &["s"]).unwrap();
    trial.run(&Move { member: "a".into() }, &["s", "s"]).unwrap();
    assert_eq!(trial.changes(), 1);
}

#[test]
fn the_last_member_takes_the_set_with_it() {
    for count in [1, 300] {
        let mut trial = Trial::new(&[]);
        add(&mut trial, "s", many(0..count));
        for step in 0..count {
            let popped = trial.run(&Pop { count: None, seed: step.into() }, &["s"]).unwrap();
            assert!(popped.reply.bytes().is_some());
        }
        assert!(!trial.run(&keys::Look, &["s"]).unwrap().applied);
        let none = trial.run(&Pop { count: None, seed: 1 }, &["s"]).unwrap();
        assert_eq!((none.applied, none.reply), (false, Reply::Nil));
    }
}

#[test]
fn a_set_that_is_popped_as_a_whole_takes_one_step() {
    let mut trial = Trial::new(&[]);
    add(&mut trial, "s", many(0..300));
    let popped = trial.run(&Pop { count: Some(1_000), seed: 7 }, &["s"]).unwrap();
    assert_eq!(listed(&popped.reply).len(), 300);
    assert_eq!((length(&mut trial, "s"), trial.elements()), (0, 301), "they became garbage");
    assert_eq!(trial.free("s", 1), 300);
}

#[test]
fn a_member_moves_and_an_expiry_stays_with_its_set() {
    let mut trial = Trial::new(&[]);
    add(&mut trial, "from", names(&["a", "b"]));
    add(&mut trial, "to", names(&["b"]));
    let expiry = keys::Expiry::At(NOW_MS + 5);
    let rule = keys::ExpiryRule::ALWAYS;
    trial.run(&keys::SetExpiry { expiry, rule }, &["to"]).unwrap();
    let mut step = |member: &'static str| {
        trial.run(&Move { member: member.into() }, &["from", "to"]).unwrap().reply
    };
    assert_eq!([step("a"), step("a"), step("b")], [1, 0, 1].map(Reply::Integer));
    assert_eq!(all(&mut trial, "to"), names(&["a", "b"]).into_iter().collect());
    assert_eq!(trial.value("to").map(|(_, expires)| expires), Some(NOW_MS + 5));
    assert!(!trial.run(&keys::Look, &["from"]).unwrap().applied);
}

#[test]
fn other_types_are_refused_whatever_else_is_there() {
    let mut trial = Trial::new(&[("string", record(b"v", 0))]);
    add(&mut trial, "s", names(&["a"]));
    let is_wrong = |outcome| assert_eq!(refused(outcome), wrong_value::WRONG_TYPE);
    is_wrong(trial.run(&Add { members: names(&["a"]) }, &["string"]));
    is_wrong(trial.run(&Pop { count: Some(0), seed: 0 }, &["string"]));
    is_wrong(trial.run(&Move { member: "x".into() }, &["s", "string"]));
    is_wrong(trial.run(&hash::Length, &["s"]));
    is_wrong(trial.run(&string::Get { strings_only: false }, &["s"]));
    for combination in [Combination::Intersection, Combination::Union, Combination::Difference] {
        is_wrong(trial.run(&Combine { combination }, &["nothing", "s", "string"]));
        is_wrong(trial.run(&CombineInto { combination }, &["s", "nothing", "string"]));
        // What was there before the result is nobody's business.
        trial.run(&CombineInto { combination }, &["other", "s"]).unwrap();
    }
    is_wrong(trial.run(&CountCommon { limit: 1 }, &["nothing", "string"]));
    let over = CombineInto { combination: Combination::Union };
    assert_eq!(trial.run(&over, &["string", "s"]).unwrap().reply, Reply::Integer(1));
    assert_eq!(all(&mut trial, "string"), names(&["a"]).into_iter().collect());
}

#[test]
fn a_set_moves_and_is_copied_with_its_members() {
    for count in [3, 300] {
        let mut trial = Trial::new(&[]);
        add(&mut trial, "s", many(0..count));
        trial.run(&keys::Copy { only_absent: false }, &["s", "copy"]).unwrap();
        trial.run(&keys::Rename { only_absent: false }, &["s", "moved"]).unwrap();
        add(&mut trial, "moved", names(&["one more"]));
        assert_eq!((length(&mut trial, "s"), length(&mut trial, "copy")), (0, count.into()));
        assert_eq!(all(&mut trial, "moved").len(), count as usize + 1);
    }
}

#[test]
fn a_result_replaces_a_large_set_and_its_expiry_and_an_empty_one_removes_it() {
    let mut trial = Trial::new(&[]);
    add(&mut trial, "large", many(0..300));
    add(&mut trial, "s", many(100..300));
    let expiry = keys::Expiry::At(NOW_MS + 5);
    let rule = keys::ExpiryRule::ALWAYS;
    trial.run(&keys::SetExpiry { expiry, rule }, &["large"]).unwrap();
    let store = |combination| CombineInto { combination };
    let done = trial.run(&store(Combination::Difference), &["large", "large", "s"]).unwrap();
    assert_eq!(done.reply, Reply::Integer(100));
    assert_eq!(all(&mut trial, "large"), many(0..100).into_iter().collect());
    assert_eq!(trial.value("large").map(|(_, expires)| expires), Some(0));
    assert_eq!(trial.free("large", 1), 300);
    let done = trial.run(&store(Combination::Intersection), &["large", "large", "s"]).unwrap();
    assert_eq!((done.applied, done.reply), (true, Reply::Integer(0)));
    assert!(!trial.run(&keys::Look, &["large"]).unwrap().applied);
    let done = trial.run(&store(Combination::Intersection), &["large", "large", "s"]).unwrap();
    assert!(!done.applied, "there was nothing to remove");
}

#[test]
fn counting_what_is_common_stops_at_the_limit() {
    let mut trial = Trial::new(&[]);
    add(&mut trial, "a", many(0..300));
    add(&mut trial, "b", many(50..150));
    let mut count = |limit| trial.run(&CountCommon { limit }, &["a", "b"]).unwrap().reply;
    assert_eq!([0, 1, 99, 100, 101].map(&mut count), [100, 1, 99, 100, 100].map(Reply::Integer));
}

#[test]
fn what_is_too_much_for_one_command_is_refused_by_name_and_nothing_is_done() {
    let mut trial = Trial::new(&[]);
    for part in 0..10 {
        add(&mut trial, "s", many(part * 10_001..(part + 1) * 10_001));
    }
    let store = CombineInto { combination: Combination::Union };
    assert_eq!(refused(trial.run(&store, &["other", "s"])), RESULT_TOO_LARGE);
    let pop = |count| Pop { count: Some(count), seed: 3 };
    assert_eq!(refused(trial.run(&pop(100_009), &["s"])), RESULT_TOO_LARGE);
    assert_eq!((length(&mut trial, "s"), length(&mut trial, "other")), (100_010, 0));
    // Eleven look-ups a member are too many.
    let keys = ["s"; 11];
    let count = CountCommon { limit: 0 };
    assert_eq!(refused(trial.run(&count, &keys)), TOO_MUCH_TO_COMBINE);
    assert_eq!(trial.run(&count, &keys[..9]).unwrap().reply, Reply::Integer(100_010));
    let long: Vec<Bytes> = (0..20u8).map(|number| vec![number; 500_000].into()).collect();
    add(&mut trial, "long", long);
    let read = Combine { combination: Combination::Union };
    assert_eq!(refused(trial.run(&read, &["long"])), wrong_value::REPLY_TOO_LARGE);
    assert_eq!(refused(trial.run(&store, &["other", "long"])), RESULT_TOO_LARGE);
    assert_eq!(
        refused(trial.run(&Scan { cursor: 0, most: 0 }, &["long"])),
        wrong_value::REPLY_TOO_LARGE
    );
    let random = |count| Random { count: Some(count), seed: 1 };
    for count in [19, -19, i64::MIN, i64::MAX] {
        assert_eq!(refused(trial.run(&random(count), &["long"])), wrong_value::REPLY_TOO_LARGE);
    }
}

#[test]
fn a_member_beyond_the_limit_is_refused_with_it() {
    let limits = Limits::default();
    let long = Bytes::from(vec![b'x'; limits.key_max_bytes + 1]);
    let told = |refused: Result<(), Refusal>| refused.unwrap_err().to_string();
    let wanted = "member is 16385 bytes; the limit is 16384";
    assert_eq!(told(Add { members: vec!["a".into(), long.clone()] }.check(&limits)), wanted);
    assert_eq!(told(Move { member: long }.check(&limits)), wanted);
}

#[test]
fn a_set_is_kept_as_redis_would_keep_it() {
    let mut trial = Trial::new(&[]);
    let numbers = |range: std::ops::Range<i64>| range.map(|n| n.to_string().into()).collect();
    add(&mut trial, "few", numbers(-3..9));
    add(&mut trial, "most", numbers(0..512));
    add(&mut trial, "more", numbers(0..513));
    add(&mut trial, "words", names(&["1", "01"]));
    let mut told = |key| {
        let told = trial.run(&keys::Encoding, &[key]).unwrap().reply;
        String::from_utf8(told.bytes().unwrap().to_vec()).unwrap()
    };
    let kept = ["few", "most", "more", "words"].map(&mut told);
    assert_eq!(kept, ["intset", "intset", "hashtable", "hashtable"]);
}

#[test]
fn a_set_is_read_in_parts_and_each_member_comes_once() {
    for count in [5, 300] {
        let mut trial = Trial::new(&[]);
        add(&mut trial, "s", many(0..count));
        let (mut cursor, mut seen) = (0, Vec::new());
        loop {
            let part = trial.run(&Scan { cursor, most: 7 }, &["s"]).unwrap();
            let Reply::List(part) = part.reply else { panic!("it is a list") };
            seen.extend(listed(&part[1]));
            // What comes and goes meanwhile does no harm.
            add(&mut trial, "s", vec![format!("new{cursor}").into()]);
            match part[0].integer() {
                Some(next @ 1..) => cursor = next as u64,
                _ => break,
            }
        }
        seen.retain(|member| !member.starts_with(b"new"));
        assert_eq!(seen.len(), count as usize);
        assert_eq!(seen.into_iter().collect::<Model>(), many(0..count).into_iter().collect());
    }
}

/// Each of some members about equally often: more than five standard deviations off is no chance.
fn is_even(counts: &BTreeMap<Bytes, u32>, members: u32, draws: u32) {
    assert_eq!(counts.len(), members as usize, "every member has its turn");
    let expected = f64::from(draws) / f64::from(members);
    for (member, count) in counts {
        let off = (f64::from(*count) - expected).abs();
        assert!(off < 5.5 * expected.sqrt(), "{}: {count}, not {expected}", member.escape_ascii());
    }
}

#[test]
fn every_member_is_chosen_as_often_as_any_other() {
    // In the key's record, in one walk, and by places.
    for (members, count) in
        [(10, None), (10, Some(-3)), (10, Some(4)), (500, Some(-100)), (500, None)]
    {
        let mut trial = Trial::new(&[]);
        add(&mut trial, "s", many(0..members));
        let (mut counts, mut draws, mut seed) = (BTreeMap::new(), 0, 0);
        while draws < 60 * members {
            seed += 1;
            let reply = trial.run(&Random { count, seed }, &["s"]).unwrap().reply;
            let chosen = match count {
                None => vec![reply.bytes().cloned().unwrap()],
                Some(_) => listed(&reply),
            };
            if count.is_some_and(|count| count > 0) {
                assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), chosen.len());
            }
            draws += chosen.len() as u32;
            chosen.into_iter().for_each(|member| *counts.entry(member).or_default() += 1);
        }
        is_even(&counts, members, draws);
    }
}

#[test]
fn few_of_many_are_different_ones_and_all_of_them_are_there() {
    let mut trial = Trial::new(&[]);
    add(&mut trial, "s", many(0..2_000));
    for seed in 0..20 {
        let chosen = listed(&trial.run(&Random { count: Some(20), seed }, &["s"]).unwrap().reply);
        assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), 20);
        let there = trial.run(&Contains { members: chosen }, &["s"]).unwrap().reply;
        assert_eq!(there, Reply::List(vec![Reply::Integer(1); 20]));
    }
}

#[test]
fn a_few_of_very_many_are_found_without_a_walk_through_them() {
    let mut trial = Trial::new(&[]);
    add(&mut trial, "s", many(0..20_000));
    let before = trial.elements_looked_at();
    for seed in 0..50 {
        trial.run(&Random { count: Some(2), seed }, &["s"]).unwrap();
        trial.run(&Pop { count: None, seed }, &["s"]).unwrap();
    }
    let looked_at = (trial.elements_looked_at() - before) / 150;
    assert!(looked_at < 100, "{looked_at} for each, on average");
}

#[test]
fn a_choice_ends_also_where_chance_does_not_help() {
    let mut trial = Trial::new(&[]);
    add(&mut trial, "s", many(0..1_000));
    // All but a few of a range of places go, so that most windows are empty.
    let reply = trial.run(&Scan { cursor: 0, most: 990 }, &["s"]).unwrap().reply;
    let Reply::List(part) = reply else { panic!("it is a list") };
    let members = listed(&part[1]);
    trial.run(&Remove { members }, &["s"]).unwrap();
    let left = all(&mut trial, "s");
    assert_eq!(left.len(), 10);
    for seed in 0..50 {
        let reply = trial.run(&Random { count: None, seed }, &["s"]).unwrap().reply;
        assert!(left.contains(reply.bytes().unwrap()));
    }
}

fn any_bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..4).prop_map(Bytes::from)
}

fn combined(combination: Combination, sets: &[&Model]) -> Model {
    let (first, others) = sets.split_first().unwrap();
    match combination {
        Combination::Intersection => {
            first.iter().filter(|m| others.iter().all(|set| set.contains(*m))).cloned().collect()
        }
        Combination::Union => sets.iter().flat_map(|set| set.iter().cloned()).collect(),
        Combination::Difference => {
            first.iter().filter(|m| !others.iter().any(|set| set.contains(*m))).cloned().collect()
        }
    }
}

const KEYS: [&str; 3] = ["a", "b", "c"];
const COMBINATIONS: [Combination; 3] =
    [Combination::Intersection, Combination::Union, Combination::Difference];

proptest! {
    #[test]
    fn commands_on_sets_survive_encoding(
        members in prop::collection::vec(any_bytes(), 0..5),
        member in any_bytes(), count in prop::option::of(any::<i64>()), seed in any::<u64>(),
    ) {
        survives(&Add { members: members.clone() });
        survives(&Remove { members: members.clone() });
        survives(&Contains { members });
        survives(&Move { member });
        survives(&Pop { count: count.map(i64::unsigned_abs), seed });
        survives(&Random { count, seed });
        survives(&Scan { cursor: seed, most: seed });
        survives(&Length);
        survives(&CountCommon { limit: seed });
        for combination in COMBINATIONS {
            survives(&Combine { combination });
            survives(&CombineInto { combination });
        }
    }

    /// Against sets in memory, small and large: with a filler of so many members.
    #[test]
    fn a_set_is_a_set(
        filler in prop::sample::select(vec![0, INLINE_MOST as u32 - 2, 300]),
        steps in prop::collection::vec((0u8..10, 0usize..3, 0usize..3, 0u8..6, any::<u64>()), 1..50),
    ) {
        let mut trial = Trial::new(&[]);
        let mut model: [Model; 3] = Default::default();
        for (step, one, other, number, seed) in steps {
            let member = Bytes::from(vec![0, number]);
            let key = KEYS[one];
            match step {
                0 | 1 => {
                    let members = vec![member.clone(), Bytes::from(vec![0, number / 2]), member];
                    let new = members.iter().filter(|m| model[one].insert((*m).clone())).count();
                    prop_assert_eq!(add(&mut trial, key, members), new as i64);
                }
                2 => {
                    let there = model[one].remove(&member);
                    let done = trial.run(&Remove { members: vec![member] }, &[key]).unwrap();
                    prop_assert_eq!(done.applied, there);
                }
                3 => {
                    let popped = trial.run(&Pop { count: None, seed }, &[key]).unwrap().reply;
                    match popped.bytes() {
                        Some(member) => prop_assert!(model[one].remove(member)),
                        None => prop_assert!(model[one].is_empty()),
                    }
                }
                4 => {
                    let count = seed % 200;
                    let popped = trial.run(&Pop { count: Some(count), seed }, &[key]).unwrap();
                    let popped = listed(&popped.reply);
                    prop_assert_eq!(popped.len(), model[one].len().min(count as usize));
                    prop_assert!(popped.iter().all(|member| model[one].remove(member)));
                }
                5 => {
                    let there = model[one].contains(&member);
                    let done = trial.run(&Move { member: member.clone() }, &[key, KEYS[other]]).unwrap();
                    prop_assert_eq!(done.reply, Reply::Integer(i64::from(there)));
                    if there {
                        model[one].remove(&member);
                        model[other].insert(member);
                    }
                }
                6 => {
                    add(&mut trial, key, many(0..filler));
                    model[one].extend(many(0..filler));
                }
                7 => {
                    let combination = COMBINATIONS[usize::from(number) % 3];
                    let wanted = combined(combination, &[&model[one], &model[other]]);
                    let keys = ["c", key, KEYS[other]];
                    let done = trial.run(&CombineInto { combination }, &keys).unwrap();
                    prop_assert_eq!(done.reply, Reply::Integer(wanted.len() as i64));
                    model[2] = wanted;
                }
                8 => {
                    let combination = COMBINATIONS[usize::from(number) % 3];
                    let wanted = combined(combination, &[&model[one], &model[other], &model[0]]);
                    let keys = [key, KEYS[other], "a"];
                    let done = trial.run(&Combine { combination }, &keys).unwrap();
                    prop_assert_eq!(listed(&done.reply).into_iter().collect::<Model>(), wanted);
                    let common = combined(Combination::Intersection, &[&model[one], &model[other]]);
                    let done = trial.run(&CountCommon { limit: 0 }, &keys[..2]).unwrap();
                    prop_assert_eq!(done.reply, Reply::Integer(common.len() as i64));
                }
                _ => {
                    let found = trial.run(&Contains { members: vec![member.clone()] }, &[key]).unwrap();
                    let there = i64::from(model[one].contains(&member));
                    prop_assert_eq!(found.reply, Reply::List(vec![Reply::Integer(there)]));
                    let random = trial.run(&Random { count: None, seed }, &[key]).unwrap().reply;
                    match random.bytes() {
                        Some(member) => prop_assert!(model[one].contains(member)),
                        None => prop_assert!(model[one].is_empty()),
                    }
                }
            }
            prop_assert_eq!(length(&mut trial, key), model[one].len() as i64);
        }
        for (key, model) in KEYS.iter().zip(model) {
            prop_assert_eq!(all(&mut trial, key), model);
        }
    }
}
