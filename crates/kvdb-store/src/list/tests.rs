use super::*;
use crate::command::tests::survives;
use crate::keys;
use crate::overlay::tests::{Trial, record};
use crate::string;
use kvdb_model::wrong_value::REPLY_TOO_LARGE;
use kvdb_model::{OperationOutcome, wrong_value};
use proptest::prelude::*;
use std::collections::VecDeque;

fn owned(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn push_last(values: &[&str]) -> Push {
    let values = values.iter().map(|value| owned(value)).collect();
    Push { end: End::Last, only_present: false, values }
}

fn numbers(count: usize) -> Push {
    let values = (0..count).map(|number| number.to_string().into()).collect();
    Push { end: End::Last, only_present: false, values }
}

fn strings(reply: &Reply) -> Vec<String> {
    let Reply::List(items) = reply else { panic!("{reply:?} is no list") };
    let text = |item: &Reply| {
        let bytes = item.bytes().expect("it is bytes");
        String::from_utf8(bytes.to_vec()).expect("it is text")
    };
    items.iter().map(text).collect()
}

fn all(trial: &mut Trial, key: &'static str) -> Vec<String> {
    strings(&trial.run(&Range { start: 0, stop: -1 }, &[key]).unwrap().reply)
}

#[derive(Clone, Debug)]
enum Step {
    Push(End, bool, Vec<u8>),
    Pop(End, u8),
    Index(i16),
    Range(i16, i16),
    Replace(i16, u8),
    Insert(bool, u8, u8),
    Remove(i8, u8),
    Trim(i16, i16),
    Find(u8, u8, bool, u8, u8),
    Move(End, End, bool),
    Copy,
    Delete,
}

fn any_end() -> impl Strategy<Value = End> {
    prop_oneof![Just(End::First), Just(End::Last)]
}

fn any_step() -> impl Strategy<Value = Step> {
    let value = || 0u8..12;
    let index = || -140i16..140;
    prop_oneof![
        8 => (any_end(), any::<bool>(), prop::collection::vec(value(), 1..60))
            .prop_map(|(end, only, values)| Step::Push(end, only, values)),
        3 => (any_end(), 0u8..20).prop_map(|(end, count)| Step::Pop(end, count)),
        2 => index().prop_map(Step::Index),
        2 => (index(), index()).prop_map(|(start, stop)| Step::Range(start, stop)),
        2 => (index(), value()).prop_map(|(index, value)| Step::Replace(index, value)),
        4 => (any::<bool>(), value(), value()).prop_map(|(b, pivot, v)| Step::Insert(b, pivot, v)),
        2 => (-3i8..4, value()).prop_map(|(count, value)| Step::Remove(count, value)),
        1 => (-200i16..40, -40i16..200).prop_map(|(start, stop)| Step::Trim(start, stop)),
        2 => (value(), 0u8..3, any::<bool>(), 0u8..4, 0u8..50)
            .prop_map(|(v, skip, end, count, most)| Step::Find(v, skip, end, count, most)),
        3 => (any_end(), any_end(), any::<bool>()).prop_map(|(from, to, s)| Step::Move(from, to, s)),
        1 => Just(Step::Copy),
        1 => Just(Step::Delete),
    ]
}

fn text(value: u8) -> Bytes {
    // Long enough that a hundred need records of their own.
    Bytes::from(format!("value {value:40}"))
}

type Model = VecDeque<Bytes>;

fn take(model: &mut Model, end: End) -> Option<Bytes> {
    match end {
        End::First => model.pop_front(),
        End::Last => model.pop_back(),
    }
}

fn put(model: &mut Model, end: End, value: Bytes) {
    match end {
        End::First => model.push_front(value),
        End::Last => model.push_back(value),
    }
}

fn place(model: &Model, index: i16) -> Option<usize> {
    let length = model.len() as i64;
    let index = i64::from(index);
    let index = if index < 0 { index + length } else { index };
    (0..length).contains(&index).then_some(index as usize)
}

fn span(model: &Model, start: i16, stop: i16) -> std::ops::Range<usize> {
    let length = model.len() as i64;
    let at = |index: i16| if index < 0 { length + i64::from(index) } else { i64::from(index) };
    let (start, stop) = (at(start).max(0), at(stop).min(length - 1));
    if start > stop { 0..0 } else { start as usize..stop as usize + 1 }
}

fn bytes(values: impl IntoIterator<Item = Bytes>) -> Reply {
    Reply::List(values.into_iter().map(Reply::Bytes).collect())
}

/// What a list replies, in both worlds: `a` and `b` are lists, the others never.
fn carry_out(trial: &mut Trial, a: &mut Model, b: &mut Model, step: &Step) {
    let reply = |outcome: OperationOutcome| outcome.map(|result| result.reply);
    let is_there = !a.is_empty();
    let (found, expected) = match step.clone() {
        Step::Push(end, only_present, values) => {
            let values: Vec<_> = values.into_iter().map(text).collect();
            let push = Push { end, only_present, values: values.clone() };
            if is_there || !only_present {
                values.into_iter().for_each(|value| put(a, end, value));
            }
            (reply(trial.run(&push, &["a"])), Ok(Reply::Integer(a.len() as i64)))
        }
        Step::Pop(end, count) => {
            let taken: Vec<_> = (0..count).map_while(|_| take(a, end)).collect();
            let expected = match is_there {
                true => Reply::List(vec![Reply::Integer(1), bytes(taken)]),
                false => Reply::Nil,
            };
            let pop = Pop { end, count: count.into() };
            (reply(trial.run(&pop, &["none", "a"])), Ok(expected))
        }
        Step::Index(index) => {
            let expected = place(a, index).map_or(Reply::Nil, |at| Reply::Bytes(a[at].clone()));
            (reply(trial.run(&Index { index: index.into() }, &["a"])), Ok(expected))
        }
        Step::Range(start, stop) => {
            let expected = bytes(a.range(span(a, start, stop)).cloned());
            let range = Range { start: start.into(), stop: stop.into() };
            (reply(trial.run(&range, &["a"])), Ok(expected))
        }
        Step::Replace(index, value) => {
            let expected = match place(a, index) {
                Some(at) => {
                    a[at] = text(value);
                    Ok(Reply::None)
                }
                None if is_there => Err(Refusal::WrongValue(NO_SUCH_PLACE)),
                None => Err(Refusal::WrongValue(NO_SUCH_KEY)),
            };
            let replace = Replace { index: index.into(), value: text(value) };
            (reply(trial.run(&replace, &["a"])), expected)
        }
        Step::Insert(before, pivot, value) => {
            let expected = match a.iter().position(|found| *found == text(pivot)) {
                None => {
                    if is_there {
                        -1
                    } else {
                        0
                    }
                }
                Some(at) => {
                    a.insert(if before { at } else { at + 1 }, text(value));
                    a.len() as i64
                }
            };
            let insert = Insert { before, pivot: text(pivot), value: text(value) };
            (reply(trial.run(&insert, &["a"])), Ok(Reply::Integer(expected)))
        }
        Step::Remove(count, value) => {
            let mut left = if count == 0 { usize::MAX } else { usize::from(count.unsigned_abs()) };
            let mut keep = |found: &Bytes| {
                let removes = *found == text(value) && left > 0;
                left -= usize::from(removes);
                !removes
            };
            let before = a.len();
            if count < 0 {
                *a = a.iter().rev().filter(|found| keep(found)).cloned().collect();
                a.make_contiguous().reverse();
            } else {
                a.retain(keep);
            }
            let remove = Remove { count: count.into(), value: text(value) };
            (reply(trial.run(&remove, &["a"])), Ok(Reply::Integer((before - a.len()) as i64)))
        }
        Step::Trim(start, stop) => {
            *a = a.range(span(a, start, stop)).cloned().collect();
            let trim = Trim { start: start.into(), stop: stop.into() };
            (reply(trial.run(&trim, &["a"])), Ok(Reply::None))
        }
        Step::Find(value, skip, from_end, count, most) => {
            let mut places: Vec<usize> = (0..a.len()).collect();
            if from_end {
                places.reverse();
            }
            let most_looked = if most == 0 { usize::MAX } else { most.into() };
            let most_found = if count == 0 { usize::MAX } else { count.into() };
            let found = places.into_iter().take(most_looked).filter(|at| a[*at] == text(value));
            let found = found.skip(skip.into()).take(most_found);
            let expected = Reply::List(found.map(|at| Reply::Integer(at as i64)).collect());
            let (skip, count, most) = (skip.into(), count.into(), most.into());
            let find = Find { value: text(value), skip, from_end, count, most };
            (reply(trial.run(&find, &["a"])), Ok(expected))
        }
        Step::Move(from, to, to_same) => {
            let taken = take(a, from);
            if let Some(value) = &taken {
                put(if to_same { a } else { b }, to, value.clone());
            }
            let keys = ["a", if to_same { "a" } else { "b" }];
            let outcome = trial.run(&Move { from, to }, &keys);
            (reply(outcome), Ok(taken.map_or(Reply::Nil, Reply::Bytes)))
        }
        Step::Copy if is_there => {
            b.clone_from(a);
            (reply(trial.run(&keys::Copy { only_absent: false }, &["a", "b"])), Ok(Reply::None))
        }
        Step::Copy => return,
        Step::Delete => {
            a.clear();
            (reply(trial.run(&keys::Delete, &["a"])), Ok(Reply::None))
        }
    };
    assert_eq!(found, expected, "{step:?}");
    for (key, model) in [("a", &*a), ("b", &*b)] {
        let length = trial.run(&Length, &[key]).unwrap().reply;
        assert_eq!(length, Reply::Integer(model.len() as i64), "{step:?}");
    }
}

proptest! {
    #[test]
    fn a_list_is_what_a_list_in_memory_is(steps in prop::collection::vec(any_step(), 1..80)) {
        let mut trial = Trial::new(&[]);
        let (mut a, mut b) = (Model::new(), Model::new());
        for step in &steps {
            carry_out(&mut trial, &mut a, &mut b, step);
        }
        for (key, model) in [("a", &a), ("b", &b)] {
            let found = trial.run(&Range { start: 0, stop: -1 }, &[key]).unwrap().reply;
            prop_assert_eq!(found, bytes(model.iter().cloned()));
        }
    }

    #[test]
    fn arguments_survive_encoding(
        end in any_end(),
        flag in any::<bool>(),
        (index, stop) in (any::<i64>(), any::<i64>()),
        (count, most) in (any::<u64>(), any::<u64>()),
        value in prop::collection::vec(any::<u8>(), 0..9).prop_map(Bytes::from),
    ) {
        survives(&Push { end, only_present: flag, values: vec![value.clone(); 3] });
        survives(&Pop { end, count });
        survives(&Length);
        survives(&Index { index });
        survives(&Range { start: index, stop });
        survives(&Replace { index, value: value.clone() });
        survives(&Insert { before: flag, pivot: value.clone(), value: "v".into() });
        survives(&Remove { count: index, value: value.clone() });
        survives(&Trim { start: index, stop });
        survives(&Find { value, skip: count, from_end: flag, count, most });
        survives(&Move { from: end, to: End::First });
    }
}

#[test]
fn there_is_always_room_between_two_elements() {
    let mut trial = Trial::new(&[]);
    trial.run(&push_last(&["first", "last"]), &["l"]).unwrap();
    let mut model = vec!["first".to_owned()];
    let mut behind = Vec::new();
    for number in 0..3_000 {
        // Always before the last one, then always behind the first one.
        let before = number < 1_500;
        let pivot = owned(if before { "last" } else { "first" });
        let insert = Insert { before, pivot, value: number.to_string().into() };
        let reply = trial.run(&insert, &["l"]).unwrap().reply;
        assert_eq!(reply, Reply::Integer(number + 3));
        if before { model.push(number.to_string()) } else { behind.push(number.to_string()) }
    }
    model.splice(1..1, behind.into_iter().rev());
    model.push("last".to_owned());
    assert_eq!(all(&mut trial, "l"), model);
}

#[test]
fn a_small_list_and_a_large_one_have_records_as_they_should() {
    let mut trial = Trial::new(&[]);
    trial.run(&numbers(128), &["l"]).unwrap();
    assert_eq!((trial.incarnation("l"), trial.elements()), (None, 0));
    trial.run(&push_last(&["one more"]), &["l"]).unwrap();
    assert_eq!(trial.incarnation("l"), Some(1));
    assert!(trial.elements() > 129, "elements and their directory");
    trial.run(&Trim { start: 5, stop: 7 }, &["l"]).unwrap();
    assert_eq!(all(&mut trial, "l"), ["5", "6", "7"]);
    assert_eq!(trial.incarnation("l"), None, "few that stay are small again");
    trial.free("l", 1);
    assert_eq!(trial.elements(), 0, "directory and all");
}

#[test]
fn a_move_between_wrong_types_changes_nothing() {
    let mut trial = Trial::new(&[("s", record(b"text", 0))]);
    trial.run(&push_last(&["1"]), &["l"]).unwrap();
    let step = Move { from: End::First, to: End::Last };
    let wrong = Err(Refusal::WrongValue(wrong_value::WRONG_TYPE));
    assert_eq!(trial.run(&step, &["l", "s"]), wrong);
    assert_eq!(trial.run(&step, &["s", "l"]), wrong);
    assert_eq!(trial.run(&string::Get { strings_only: false }, &["l"]), wrong);
    assert_eq!(all(&mut trial, "l"), ["1"]);
    assert!(!trial.run(&step, &["none", "s"]).unwrap().applied, "nothing to move: no error");
}

#[test]
fn what_lives_on_as_another_list_keeps_its_expiry() {
    let mut trial = Trial::new(&[]);
    trial.run(&numbers(300), &["l"]).unwrap();
    let expiry = keys::Expiry::At(9_999_999);
    let expire = keys::SetExpiry { expiry, rule: keys::ExpiryRule::ALWAYS };
    assert!(trial.run(&expire, &["l"]).unwrap().applied);
    trial.run(&Trim { start: 0, stop: 1 }, &["l"]).unwrap();
    assert_eq!(trial.value("l").unwrap().1, 9_999_999);
    trial.run(&Pop { end: End::First, count: 9 }, &["l"]).unwrap();
    assert_eq!(trial.value("l"), None, "a list without elements isn't there");
    trial.run(&push_last(&["1"]), &["l"]).unwrap();
    assert_eq!(trial.value("l").unwrap().1, 0, "and a new one has no end");
}

#[test]
fn too_large_a_reply_and_too_large_a_change_are_refused_whole() {
    let mut trial = Trial::new(&[]);
    let values = vec![Bytes::from(vec![7; 1 << 20]); 9];
    trial.run(&Push { end: End::Last, only_present: false, values }, &["l"]).unwrap();
    let too_large = Err(Refusal::WrongValue(REPLY_TOO_LARGE));
    assert_eq!(trial.run(&Range { start: 0, stop: -1 }, &["l"]), too_large);
    assert_eq!(trial.run(&Pop { end: End::First, count: 9 }, &["l"]), too_large);
    assert_eq!(trial.run(&Length, &["l"]).unwrap().reply, Reply::Integer(9));
}

#[test]
fn a_reply_is_bounded_in_elements_though_they_are_empty() {
    let mut trial = Trial::new(&[]);
    let empty = Push { end: End::Last, only_present: false, values: vec![Bytes::new(); 90_000] };
    for _ in 0..6 {
        trial.run(&empty, &["l"]).expect("they are added");
    }
    let refused = trial.run(&Range { start: 0, stop: -1 }, &["l"]);
    assert_eq!(refused, Err(Refusal::WrongValue(REPLY_TOO_LARGE)));
    let told = trial.run(&Range { start: 0, stop: 500_000 }, &["l"]).expect("they fit").reply;
    assert!(matches!(told, Reply::List(found) if found.len() == 500_001));
    let long = Push { values: vec![Bytes::from(vec![0; 8 << 20])], ..empty };
    trial.run(&long, &["one"]).expect("it is added");
    let told = trial.run(&Range { start: 0, stop: -1 }, &["one"]).expect("one fits alone").reply;
    assert!(matches!(told, Reply::List(found) if found.len() == 1));
}
