use super::*;
use crate::collection::INLINE_MOST;
use crate::command::tests::survives;
use crate::keys;
use crate::overlay::tests::{Trial, record};
use crate::set::{self, Combination};
use kvdb_model::wrong_value;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn score(number: f64) -> Score {
    Score::new(number).unwrap()
}

fn name(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn add(members: &[(f64, &str)]) -> Add {
    let members = members.iter().map(|(number, member)| (score(*number), name(member))).collect();
    Add { rule: AddRule::default(), count_changed: false, members }
}

/// So many members, whose scores are their numbers.
fn many(count: usize) -> Add {
    let member = |number: usize| (score(number as f64), Bytes::from(format!("m{number:06}")));
    Add { members: (0..count).map(member).collect(), ..add(&[]) }
}

fn select(range: Range) -> Select {
    Select {
        selection: Selection { range, reverse: false, skip: 0, most: None },
        with_scores: true,
    }
}

const ALL: Range = Range::Ranks(0, -1);

fn pairs(reply: &Reply) -> Vec<(Bytes, f64)> {
    let Reply::Map(pairs) = reply else { panic!("it is a map: {reply:?}") };
    let one = |(member, score): &(Reply, Reply)| {
        (member.bytes().unwrap().clone(), score.as_double().unwrap())
    };
    pairs.iter().map(one).collect()
}

fn all(trial: &mut Trial, key: &'static str) -> Vec<(Bytes, f64)> {
    pairs(&trial.run(&select(ALL), &[key]).unwrap().reply)
}

fn names(found: &[(Bytes, f64)]) -> String {
    let names: Vec<_> = found.iter().map(|(name, _)| String::from_utf8_lossy(name)).collect();
    names.join(" ")
}

fn wrong_in(outcome: kvdb_model::OperationOutcome) -> &'static str {
    match outcome {
        Err(Refusal::WrongValue(why)) => why,
        other => panic!("it was carried out: {other:?}"),
    }
}

#[test]
fn a_member_counts_once_however_often_it_is_named() {
    let mut trial = Trial::new(&[]);
    let twice = add(&[(1.0, "a"), (2.0, "a"), (2.0, "b")]);
    assert_eq!(trial.run(&twice, &["z"]).unwrap().reply, Reply::Integer(2));
    assert_eq!(trial.run(&Length, &["z"]).unwrap().reply, Reply::Integer(2));
    assert_eq!(all(&mut trial, "z"), [(name("a"), 2.0), (name("b"), 2.0)]);
    let again = trial.run(&twice, &["z"]).unwrap();
    assert_eq!((again.applied, again.reply), (true, Reply::Integer(0)), "1 in between");
    let removed = Remove { members: vec![name("a"), name("a"), name("x")] };
    assert_eq!(trial.run(&removed, &["z"]).unwrap().reply, Reply::Integer(1));
}

#[test]
fn scores_are_set_as_the_rule_says() {
    let rule = |text: &str| AddRule {
        only_new: text.contains("nx"),
        only_present: text.contains("xx"),
        only_greater: text.contains("gt"),
        only_less: text.contains("lt"),
    };
    for (text, number, member, counted, expected) in [
        ("nx", 9.0, "a", 0, 5.0),
        ("nx", 9.0, "b", 1, 9.0),
        ("xx", 9.0, "a", 1, 9.0),
        ("xx", 9.0, "b", 0, f64::NAN),
        ("gt", 4.0, "a", 0, 5.0),
        ("gt", 6.0, "a", 1, 6.0),
        ("gt", 1.0, "b", 1, 1.0),
        ("lt", 4.0, "a", 1, 4.0),
        ("lt", 6.0, "a", 0, 5.0),
        ("lt xx", 1.0, "b", 0, f64::NAN),
        ("gt xx", 5.0, "a", 0, 5.0),
    ] {
        let mut trial = Trial::new(&[]);
        trial.run(&add(&[(5.0, "a")]), &["z"]).unwrap();
        let changing = Add { rule: rule(text), count_changed: true, ..add(&[(number, member)]) };
        let done = trial.run(&changing, &["z"]).unwrap();
        assert_eq!(done.reply, Reply::Integer(counted), "{text} {member}");
        assert_eq!(done.applied, counted > 0, "{text} {member}");
        let there = trial.run(&Scores { members: vec![name(member)] }, &["z"]).unwrap().reply;
        let expected = Score::new(expected).map_or(Reply::Nil, |s| Reply::double(s.number()));
        assert_eq!(there, Reply::List(vec![expected]), "{text} {member}");
    }
}

#[test]
fn a_score_counts_and_never_becomes_nan() {
    let mut trial = Trial::new(&[]);
    let plus = |number: f64| Increment {
        rule: AddRule::default(),
        delta: score(number),
        member: name("a"),
    };
    assert_eq!(trial.run(&plus(1.5), &["z"]).unwrap().reply, Reply::double(1.5));
    assert_eq!(
        trial.run(&plus(f64::INFINITY), &["z"]).unwrap().reply,
        Reply::double(f64::INFINITY)
    );
    assert_eq!(wrong_in(trial.run(&plus(f64::NEG_INFINITY), &["z"])), wrong_value::NOT_A_SCORE);
    assert_eq!(all(&mut trial, "z"), [(name("a"), f64::INFINITY)]);
    let greater = AddRule { only_greater: true, ..AddRule::default() };
    let refused = trial.run(&Increment { rule: greater, ..plus(-1.0) }, &["z"]).unwrap();
    assert_eq!((refused.applied, refused.reply), (false, Reply::Nil));
}

#[test]
fn ranges_are_those_of_redis() {
    for filler in [0, INLINE_MOST + 40] {
        let mut trial = Trial::new(&[]);
        let members = [(1.0, "a"), (2.0, "b"), (2.0, "c"), (2.5, "d"), (f64::INFINITY, "e")];
        trial.run(&add(&members), &["z"]).unwrap();
        let low = Add {
            members: (0..filler)
                .map(|n| (score(-1000.0 + n as f64), Bytes::from(format!("f{n}"))))
                .collect(),
            ..add(&[])
        };
        if filler > 0 {
            trial.run(&low, &["z"]).unwrap();
            assert!(trial.incarnation("z").is_some());
        }
        let bound = |number: f64, is_exclusive| ScoreBound { score: score(number), is_exclusive };
        let inf = f64::INFINITY;
        for (min, max, expected) in [
            (bound(1.0, false), bound(2.0, false), "a b c"),
            (bound(1.0, true), bound(2.5, true), "b c"),
            (bound(2.0, true), bound(inf, false), "d e"),
            (bound(2.0, false), bound(inf, true), "b c d"),
            (bound(3.0, false), bound(1.0, false), ""),
            (bound(2.0, true), bound(2.0, false), ""),
            (bound(2.0, true), bound(2.0, true), ""),
        ] {
            let range = Range::Scores(min, max);
            let found = pairs(&trial.run(&select(range.clone()), &["z"]).unwrap().reply);
            assert_eq!(names(&found), expected, "{min:?} {max:?}");
            let count = trial.run(&Count { range }, &["z"]).unwrap().reply;
            assert_eq!(count, Reply::Integer(found.len() as i64));
        }
        let from_end = |start, stop| {
            let range = Range::Ranks(start, stop);
            let selection = Selection { range, reverse: true, skip: 0, most: None };
            Select { selection, with_scores: true }
        };
        let found = trial.run(&from_end(0, 1), &["z"]).unwrap().reply;
        assert_eq!(names(&pairs(&found)), "e d");
        let found = trial.run(&from_end(1, 3), &["z"]).unwrap().reply;
        assert_eq!(names(&pairs(&found)), "d c b");
        let limited = |reverse, skip, most| {
            let range = Range::Scores(bound(1.0, false), bound(2.5, false));
            let selection = Selection { range, reverse, skip, most };
            Select { selection, with_scores: true }
        };
        for (reverse, skip, most, expected) in [
            (false, 0, Some(2), "a b"),
            (false, 1, Some(2), "b c"),
            (false, 1, None, "b c d"),
            (false, 4, None, ""),
            (false, 9, Some(1), ""),
            (false, 0, Some(0), ""),
            (true, 0, Some(2), "d c"),
            (true, 1, Some(2), "c b"),
            (true, 3, None, "a"),
            (true, 4, None, ""),
        ] {
            let found = trial.run(&limited(reverse, skip, most), &["z"]).unwrap().reply;
            assert_eq!(names(&pairs(&found)), expected, "{reverse} {skip} {most:?}");
        }
    }
}

#[test]
fn names_are_a_range_among_members_of_one_score() {
    for count in [5, 200] {
        let mut trial = Trial::new(&[]);
        let members = (0..count).map(|n| (score(7.0), Bytes::from(format!("m{n:03}")))).collect();
        trial.run(&Add { members, ..add(&[]) }, &["z"]).unwrap();
        let (including, excluding) =
            (|text| LexBound::Inclusive(name(text)), |text| LexBound::Exclusive(name(text)));
        for (min, max, expected) in [
            (LexBound::Lowest, excluding("m002"), "m000 m001"),
            (including("m001"), including("m003"), "m001 m002 m003"),
            (excluding("m001"), including("m003"), "m002 m003"),
            (excluding("m001"), excluding("m002"), ""),
            (including("m0015"), including("m002"), "m002"),
            (LexBound::Highest, LexBound::Lowest, ""),
            (including("m003"), including("m001"), ""),
            (including("m001"), excluding("m001"), ""),
        ] {
            let range = Range::Names(min, max);
            let found = pairs(&trial.run(&select(range.clone()), &["z"]).unwrap().reply);
            assert_eq!(names(&found), expected, "{range:?}");
            let counted = trial.run(&Count { range }, &["z"]).unwrap().reply;
            assert_eq!(counted, Reply::Integer(found.len() as i64));
        }
        let every = Count { range: Range::Names(LexBound::Lowest, LexBound::Highest) };
        assert_eq!(trial.run(&every, &["z"]).unwrap().reply, Reply::Integer(count));
    }
}

#[test]
fn a_set_that_is_trimmed_all_the_time_leaves_nothing_to_walk_through() {
    let mut trial = Trial::new(&[]);
    trial.run(&many(500), &["z"]).unwrap();
    for number in 500..1500 {
        let newest = add(&[(number as f64, "")]);
        let member = Bytes::from(format!("m{number:06}"));
        let newest = Add { members: vec![(newest.members[0].0, member)], ..newest };
        trial.run(&newest, &["z"]).unwrap();
        let trim = RemoveRange { range: Range::Ranks(0, -501) };
        assert_eq!(trial.run(&trim, &["z"]).unwrap().reply, Reply::Integer(1));
    }
    let before = trial.elements_looked_at();
    let first = trial.run(&select(Range::Ranks(0, 0)), &["z"]).unwrap().reply;
    assert_eq!(names(&pairs(&first)), "m001000");
    let read = trial.elements_looked_at() - before;
    // Chunks that are gone, of 6 rows each here, and of 256 outside tests; and a row or two.
    assert!(
        read < 1000 / 5,
        "{read} places were looked at; 1,000 were removed before the first row"
    );
}

#[test]
fn what_empties_the_key_takes_one_step_whatever_its_size() {
    let everything = ScoreBound { score: score(f64::NEG_INFINITY), is_exclusive: false };
    let infinity = ScoreBound { score: score(f64::INFINITY), is_exclusive: false };
    let mut trial = Trial::new(&[]);
    trial.run(&many(400), &["z"]).unwrap();
    let kept = trial.elements();
    let by_score = RemoveRange { range: Range::Scores(everything, infinity) };
    assert_eq!(trial.run(&by_score, &["z"]).unwrap().reply, Reply::Integer(400));
    assert_eq!(trial.elements(), kept + 1, "the elements, and that they are garbage");
    trial.run(&many(400), &["z"]).unwrap();
    let pop = Pop { highest: true, count: 1000 };
    assert_eq!(pairs(&trial.run(&pop, &["z"]).unwrap().reply).len(), 400);
    assert!(!trial.run(&keys::Look, &["z"]).unwrap().applied);
    assert!(trial.free("z", 1) > 0 && trial.free("z", 2) > 0);
    assert_eq!(trial.elements(), 0);
}

#[test]
fn other_types_are_refused_both_ways() {
    let mut trial = Trial::new(&[("s", record(b"v", 0))]);
    trial.run(&add(&[(1.0, "a")]), &["z"]).unwrap();
    let is_wrong = |outcome| wrong_in(outcome) == wrong_value::WRONG_TYPE;
    assert!(is_wrong(trial.run(&add(&[(1.0, "a")]), &["s"])));
    assert!(is_wrong(trial.run(&Length, &["s"])));
    assert!(is_wrong(trial.run(&Pop { highest: true, count: 0 }, &["s"])));
    assert!(is_wrong(trial.run(&PopAny { pop: Pop { highest: true, count: 1 } }, &["none", "s"])));
    assert!(is_wrong(trial.run(&CountCommon { limit: 0 }, &["none", "s"])));
    assert!(is_wrong(trial.run(&crate::hash::Length, &["z"])));
    assert!(is_wrong(trial.run(&crate::string::Append { value: "x".into() }, &["z"])));
}

#[test]
fn a_sorted_set_moves_and_is_copied_with_its_order() {
    for count in [3, 300] {
        let mut trial = Trial::new(&[]);
        trial.run(&many(count), &["z"]).unwrap();
        trial.run(&keys::Copy { only_absent: false }, &["z", "copy"]).unwrap();
        trial.run(&keys::Rename { only_absent: false }, &["z", "moved"]).unwrap();
        trial.run(&add(&[(-1.0, "m000002")]), &["moved"]).unwrap();
        assert_eq!(all(&mut trial, "z").len(), 0);
        assert_eq!(all(&mut trial, "copy")[2], (name("m000002"), 2.0));
        assert_eq!(all(&mut trial, "moved")[0], (name("m000002"), -1.0));
        let rank = Rank { member: name("m000002"), reverse: true };
        let Reply::List(found) = trial.run(&rank, &["moved"]).unwrap().reply else { panic!() };
        assert_eq!(found[0], Reply::Integer(count as i64 - 1));
        assert_eq!(all(&mut trial, "moved").len(), count);
    }
}

#[test]
fn a_walk_meets_each_member_once_whatever_its_score_becomes() {
    for count in [5, 300] {
        let mut trial = Trial::new(&[]);
        trial.run(&many(count), &["z"]).unwrap();
        let (mut cursor, mut seen) = (0, Vec::new());
        loop {
            let part = trial.run(&Scan { cursor, most: 7 }, &["z"]).unwrap();
            let Reply::List(part) = part.reply else { panic!("it is a list") };
            let found = pairs(&part[1]);
            // What was met moves to the end, what wasn't to the beginning.
            for (member, _) in &found {
                let moved = (score(1e9), member.clone());
                trial.run(&Add { members: vec![moved], ..add(&[]) }, &["z"]).unwrap();
            }
            seen.extend(found.into_iter().map(|(member, _)| member));
            match part[0].integer() {
                Some(next @ 1..) => cursor = next as u64,
                _ => break,
            }
        }
        assert_eq!(seen.len(), count);
        assert_eq!(seen.into_iter().collect::<BTreeSet<_>>().len(), count);
    }
}

#[test]
fn members_are_chosen_at_random_and_each_has_its_chance() {
    for count in [10usize, 300] {
        let mut trial = Trial::new(&[]);
        trial.run(&many(count), &["z"]).unwrap();
        let mut seen = BTreeSet::new();
        for seed in 0..count as u64 * 12 {
            let one = trial.run(&Random { count: None, seed }, &["z"]).unwrap().reply;
            seen.insert(one.bytes().unwrap().clone());
        }
        assert_eq!(seen.len(), count);
        let some = |count| Random { count: Some(count), seed: 1 };
        let distinct = pairs(&trial.run(&some(8), &["z"]).unwrap().reply);
        assert_eq!(distinct.iter().map(|(name, _)| name).collect::<BTreeSet<_>>().len(), 8);
        let whole = pairs(&trial.run(&some(1000), &["z"]).unwrap().reply);
        assert_eq!(whole, all(&mut trial, "z"));
        let repeating = pairs(&trial.run(&some(-1000), &["z"]).unwrap().reply);
        assert_eq!(repeating.len(), 1000);
        assert_eq!(wrong_in(trial.run(&some(i64::MIN), &["z"])), wrong_value::REPLY_TOO_LARGE);
    }
    let mut empty = Trial::new(&[]);
    let none = empty.run(&Random { count: None, seed: 1 }, &["z"]).unwrap().reply;
    assert_eq!(none, Reply::Nil);
}

#[test]
fn a_pop_takes_the_first_key_that_holds_any() {
    let mut trial = Trial::new(&[]);
    trial.run(&many(3), &["b"]).unwrap();
    let pop = PopAny { pop: Pop { highest: true, count: 2 } };
    let Reply::List(found) = trial.run(&pop, &["a", "b"]).unwrap().reply else { panic!() };
    assert_eq!(
        (&found[0], names(&pairs(&found[1]))),
        (&Reply::Integer(1), "m000002 m000001".into())
    );
    assert_eq!(trial.run(&pop, &["a"]).unwrap().reply, Reply::Nil);
}

#[test]
fn sets_are_combined_as_redis_does() {
    for filler in [0, 200] {
        let mut trial = Trial::new(&[]);
        let low = |key: &str| {
            let low = |n| (score(-1.0), Bytes::from(format!("{key}{n}")));
            Add { members: (0..filler).map(low).collect(), ..add(&[]) }
        };
        let inf = f64::INFINITY;
        for (key, members) in [
            ("x", vec![(1.0, "a"), (2.0, "b"), (inf, "i")]),
            ("y", vec![(10.0, "b"), (20.0, "c"), (-inf, "i")]),
        ] {
            trial.run(&add(&members), &[key]).unwrap();
            trial.run(&low(key), &[key]).unwrap();
        }
        let combine = |combination, aggregate, weights: &[f64]| Combine {
            combination,
            aggregate,
            weights: weights.iter().map(|weight| score(*weight)).collect(),
        };
        use Aggregate::{Max, Min, Sum};
        use Combination::{Difference, Intersection, Union};
        let mut found = |how: Combine| {
            let reply = trial.run(&how, &["x", "y"]).unwrap().reply;
            let stored = trial.run(&CombineInto { combine: how }, &["d", "x", "y"]).unwrap().reply;
            let found = pairs(&reply);
            assert_eq!(stored, Reply::Integer(found.len() as i64));
            assert_eq!(all(&mut trial, "d"), found);
            let told = found.iter().filter(|(name, _)| name.len() == 1);
            told.map(|(name, score)| format!("{}={score}", name.escape_ascii()))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(found(combine(Intersection, Sum, &[])), "i=0 b=12");
        assert_eq!(found(combine(Intersection, Max, &[2.0, 0.5])), "b=5 i=inf");
        assert_eq!(found(combine(Union, Sum, &[])), "i=0 a=1 b=12 c=20");
        assert_eq!(found(combine(Union, Min, &[1.0, -1.0])), "c=-20 b=-10 a=1 i=inf");
        assert_eq!(found(combine(Difference, Sum, &[])), "a=1");
        let common = |limit| CountCommon { limit };
        assert_eq!(trial.run(&common(0), &["x", "y"]).unwrap().reply, Reply::Integer(2));
        assert_eq!(trial.run(&common(1), &["x", "y"]).unwrap().reply, Reply::Integer(1));
        assert_eq!(trial.run(&common(0), &["x", "none"]).unwrap().reply, Reply::Integer(0));
        let none = CombineInto { combine: combine(Intersection, Sum, &[]) };
        assert!(trial.run(&none, &["d", "x", "none"]).unwrap().applied);
        assert!(!trial.run(&keys::Look, &["d"]).unwrap().applied, "what was there is gone");
        assert!(!trial.run(&none, &["d", "x", "none"]).unwrap().applied);
    }
}

#[test]
fn sets_without_scores_take_part_with_a_score_of_one() {
    for filler in [0, 200] {
        let mut trial = Trial::new(&[]);
        trial.run(&add(&[(5.0, "a"), (7.0, "b")]), &["z"]).unwrap();
        let others = (0..filler).map(|number| Bytes::from(format!("other{number}")));
        let members = [name("b"), name("c")].into_iter().chain(others).collect();
        trial.run(&set::Add { members }, &["s"]).unwrap();
        let combine = |combination| Combine {
            combination,
            aggregate: Aggregate::Sum,
            weights: vec![score(1.0), score(10.0)],
        };
        let mut found = |combination, keys| {
            let found = pairs(&trial.run(&combine(combination), keys).unwrap().reply);
            found.into_iter().filter(|(name, _)| name.len() == 1).collect::<Vec<_>>()
        };
        assert_eq!(found(Combination::Intersection, &["z", "s"]), [(name("b"), 17.0)]);
        let all = [(name("a"), 5.0), (name("c"), 10.0), (name("b"), 17.0)];
        assert_eq!(found(Combination::Union, &["z", "s"]), all);
        assert_eq!(found(Combination::Difference, &["z", "s"]), [(name("a"), 5.0)]);
        assert_eq!(found(Combination::Difference, &["s", "z"]), [(name("c"), 1.0)]);
    }
}

#[test]
fn more_than_one_command_may_change_is_refused_by_name() {
    let limits = Limits::default();
    let members = vec![(Score::ZERO, Bytes::new()); CHANGED_MOST as usize + 1];
    let refused = Add { members, ..add(&[]) }.check(&limits).unwrap_err().to_string();
    assert_eq!(refused, "members are 100001; the limit is 100000 a command");
    let long = add(&[(1.0, &"x".repeat(limits.key_max_bytes + 1))]);
    assert!(long.check(&limits).unwrap_err().to_string().contains("the limit is 16384"));
}

fn any_bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..4).prop_map(Bytes::from)
}

fn any_score() -> impl Strategy<Value = Score> {
    prop_oneof![
        (-3i8..4).prop_map(|number| score(f64::from(number) / 2.0)),
        Just(score(f64::INFINITY)),
        Just(score(f64::NEG_INFINITY)),
    ]
}

fn any_range() -> impl Strategy<Value = Range> {
    let bound = || {
        (any_score(), any::<bool>())
            .prop_map(|(score, is_exclusive)| ScoreBound { score, is_exclusive })
    };
    let lex = || {
        prop_oneof![
            Just(LexBound::Lowest),
            Just(LexBound::Highest),
            any_bytes().prop_map(LexBound::Inclusive),
            any_bytes().prop_map(LexBound::Exclusive),
        ]
    };
    prop_oneof![
        (-40i64..40, -40i64..40).prop_map(|(start, stop)| Range::Ranks(start, stop)),
        (bound(), bound()).prop_map(|(min, max)| Range::Scores(min, max)),
        (lex(), lex()).prop_map(|(min, max)| Range::Names(min, max)),
    ]
}

fn any_selection() -> impl Strategy<Value = Selection> {
    (any_range(), any::<bool>(), 0u64..9, prop::option::of(0u64..30))
        .prop_map(|(range, reverse, skip, most)| Selection { range, reverse, skip, most })
}

#[derive(Clone, Debug)]
enum Step {
    Add(Vec<(Score, u8)>),
    Increment(Score, u8),
    Remove(Vec<u8>),
    RemoveRange(Range),
    Pop(bool, u64),
    Select(Selection),
    Rank(u8, bool),
    Fill,
    Delete,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec((any_score(), 0u8..40), 1..12).prop_map(Step::Add),
        3 => (any_score(), 0u8..40).prop_map(|(by, member)| Step::Increment(by, member)),
        3 => prop::collection::vec(0u8..40, 1..6).prop_map(Step::Remove),
        3 => any_range().prop_map(Step::RemoveRange),
        2 => (any::<bool>(), 0u64..12).prop_map(|(highest, count)| Step::Pop(highest, count)),
        6 => any_selection().prop_map(Step::Select),
        3 => (0u8..40, any::<bool>()).prop_map(|(member, reverse)| Step::Rank(member, reverse)),
        1 => Just(Step::Fill),
        1 => Just(Step::Delete),
    ]
}

/// By member; and, made of that, by score and member.
type Model = BTreeMap<Bytes, Score>;

fn in_order(model: &Model) -> Vec<(Score, Bytes)> {
    let rows: BTreeSet<_> = model.iter().map(|(member, score)| (*score, member.clone())).collect();
    rows.into_iter().collect()
}

/// What a range is among rows in their order; `None` for names where scores differ.
fn meant(rows: &[(Score, Bytes)], range: &Range, reverse: bool) -> Option<Vec<(Score, Bytes)>> {
    let mut rows = rows.to_vec();
    match range {
        Range::Ranks(start, stop) => {
            if reverse {
                rows.reverse();
            }
            let count = rows.len() as i64;
            let place = |rank: i64| if rank < 0 { rank + count } else { rank };
            let (start, stop) = (place(*start).max(0), place(*stop).min(count - 1));
            let inside = |at: usize| (start..=stop).contains(&(at as i64));
            let found = rows.into_iter().enumerate().filter(|(at, _)| inside(*at));
            return Some(found.map(|(_, row)| row).collect());
        }
        Range::Scores(min, max) => rows.retain(|(score, _)| {
            let above = *score > min.score || (*score == min.score && !min.is_exclusive);
            let below = *score < max.score || (*score == max.score && !max.is_exclusive);
            above && below
        }),
        Range::Names(min, max) => {
            if rows.windows(2).any(|pair| pair[0].0 != pair[1].0) {
                return None;
            }
            rows.retain(|(_, name)| {
                let above = match min {
                    LexBound::Lowest => true,
                    LexBound::Inclusive(bound) => name >= bound,
                    LexBound::Exclusive(bound) => name > bound,
                    LexBound::Highest => false,
                };
                let below = match max {
                    LexBound::Lowest => false,
                    LexBound::Inclusive(bound) => name <= bound,
                    LexBound::Exclusive(bound) => name < bound,
                    LexBound::Highest => true,
                };
                above && below
            });
        }
    }
    if reverse {
        rows.reverse();
    }
    Some(rows)
}

fn as_pairs(rows: impl IntoIterator<Item = (Score, Bytes)>) -> Vec<(Bytes, f64)> {
    rows.into_iter().map(|(score, member)| (member, score.number())).collect()
}

fn member_of(number: u8) -> Bytes {
    Bytes::from(vec![number % 7; usize::from(number % 3)]).iter().copied().chain([number]).collect()
}

fn carry_out(trial: &mut Trial, model: &mut Model, step: Step, filler: usize) {
    let rows = in_order(model);
    match step {
        Step::Add(members) => {
            let members: Vec<_> =
                members.into_iter().map(|(score, number)| (score, member_of(number))).collect();
            let new = members
                .iter()
                .filter(|(score, member)| model.insert(member.clone(), *score).is_none())
                .count();
            let done = trial.run(&Add { members, ..add(&[]) }, &["z"]).unwrap();
            assert_eq!(done.reply, Reply::Integer(new as i64));
        }
        Step::Increment(delta, number) => {
            let member = member_of(number);
            let before = model.get(&member).map_or(0.0, |score| score.number());
            let rule = AddRule::default();
            let done = trial.run(&Increment { rule, delta, member: member.clone() }, &["z"]);
            match Score::new(before + delta.number()) {
                None => assert_eq!(wrong_in(done), NOT_A_SCORE),
                Some(after) => {
                    assert_eq!(done.unwrap().reply, Reply::double(after.number()));
                    model.insert(member, after);
                }
            }
        }
        Step::Remove(numbers) => {
            let members: Vec<_> = numbers.into_iter().map(member_of).collect();
            let there = members.iter().filter(|member| model.remove(*member).is_some()).count();
            let done = trial.run(&Remove { members }, &["z"]).unwrap();
            assert_eq!(done.reply, Reply::Integer(there as i64));
        }
        Step::RemoveRange(range) => {
            let Some(expected) = meant(&rows, &range, false) else { return };
            expected.iter().for_each(|(_, member)| {
                model.remove(member);
            });
            let done = trial.run(&RemoveRange { range }, &["z"]).unwrap();
            assert_eq!(done.reply, Reply::Integer(expected.len() as i64));
        }
        Step::Pop(highest, count) => {
            let mut rows = rows;
            if highest {
                rows.reverse();
            }
            rows.truncate(count as usize);
            rows.iter().for_each(|(_, member)| {
                model.remove(member);
            });
            let done = trial.run(&Pop { highest, count }, &["z"]).unwrap();
            assert_eq!(pairs(&done.reply), as_pairs(rows));
        }
        Step::Select(selection) => {
            let Some(all) = meant(&rows, &selection.range, selection.reverse) else { return };
            if !selection.reverse {
                let count = trial.run(&Count { range: selection.range.clone() }, &["z"]).unwrap();
                assert_eq!(count.reply, Reply::Integer(all.len() as i64), "{selection:?}");
            }
            let most = selection.most.map_or(usize::MAX, |most| most as usize);
            let expected = as_pairs(all.into_iter().skip(selection.skip as usize).take(most));
            let found = trial.run(&Select { selection, with_scores: true }, &["z"]).unwrap();
            assert_eq!(pairs(&found.reply), expected);
        }
        Step::Rank(number, reverse) => {
            let member = member_of(number);
            let mut rows = rows;
            if reverse {
                rows.reverse();
            }
            let at = rows.iter().position(|(_, found)| *found == member);
            let found = trial.run(&Rank { member, reverse }, &["z"]).unwrap().reply;
            let expected = at.map_or(Reply::Nil, |at| {
                Reply::List(vec![Reply::Integer(at as i64), Reply::double(rows[at].0.number())])
            });
            assert_eq!(found, expected);
        }
        Step::Fill => {
            let filler = many(filler);
            model.extend(filler.members.iter().map(|(score, member)| (member.clone(), *score)));
            if !filler.members.is_empty() {
                trial.run(&filler, &["z"]).unwrap();
            }
        }
        Step::Delete => {
            trial.run(&keys::Delete, &["z"]).unwrap();
            model.clear();
        }
    }
    assert_eq!(trial.run(&Length, &["z"]).unwrap().reply, Reply::Integer(model.len() as i64));
}

proptest! {
    #[test]
    fn commands_on_sorted_sets_survive_encoding(
        members in prop::collection::vec((any_score(), any_bytes()), 0..5),
        names in prop::collection::vec(any_bytes(), 0..5),
        selection in any_selection(), one in any_bytes(), number in any::<u64>(),
        flags in any::<[bool; 4]>(), delta in any_score(),
    ) {
        let [only_new, only_present, only_greater, only_less] = flags;
        let rule = AddRule { only_new, only_present, only_greater, only_less };
        let weights: Vec<Score> = members.iter().map(|(score, _)| *score).collect();
        survives(&Add { rule, count_changed: only_new, members });
        survives(&Increment { rule, delta, member: one.clone() });
        survives(&Remove { members: names.clone() });
        survives(&Scores { members: names });
        survives(&Length);
        survives(&Rank { member: one, reverse: only_new });
        survives(&Count { range: selection.range.clone() });
        survives(&RemoveRange { range: selection.range.clone() });
        survives(&SelectInto { selection: selection.clone() });
        survives(&Select { selection, with_scores: only_less });
        let pop = Pop { highest: only_new, count: number };
        survives(&pop);
        survives(&PopAny { pop });
        survives(&Random { count: only_new.then_some(number as i64), seed: number });
        survives(&Scan { cursor: number, most: number });
        survives(&CountCommon { limit: number });
        let combination = if only_new { Combination::Union } else { Combination::Difference };
        let aggregate = if only_less { Aggregate::Min } else { Aggregate::Max };
        let combine = Combine { combination, aggregate, weights };
        survives(&combine);
        survives(&CombineInto { combine });
    }

    /// Against members in the order of score and name, small and large: with a filler of so many.
    #[test]
    fn a_sorted_set_is_members_by_score(
        filler in prop::sample::select(vec![0, INLINE_MOST - 20, 300]),
        steps in prop::collection::vec(any_step(), 1..40),
    ) {
        let (mut trial, mut model) = (Trial::new(&[]), Model::new());
        for step in steps {
            carry_out(&mut trial, &mut model, step, filler);
        }
        prop_assert_eq!(all(&mut trial, "z"), as_pairs(in_order(&model)));
    }
}
