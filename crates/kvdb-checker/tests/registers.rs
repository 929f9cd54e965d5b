//! Plain keys: stories that are right or wrong, and what a report looks like.

use kvdb_checker::register::{self, ViolationKind};
use kvdb_checker::{
    Answer, Call, ClientId, Condition, Options, Previous, Recorder, RequestId, Time, Verdict,
    Written,
};

/// Records operations that may overlap: (called, returned, call, answer).
fn record(operations: &[(u64, u64, Call, Answer)]) -> Recorder {
    let mut recorder = Recorder::new();
    for (client, (called, returned, call, answer)) in operations.iter().enumerate() {
        let op = recorder.call(ClientId(client as u64), call.clone(), Time(*called));
        recorder.ok(op, answer.clone(), Time(*returned));
    }
    recorder
}

fn check(recorder: &Recorder) -> register::Report {
    register::check(recorder.history(), &Options::default())
}

#[track_caller]
fn assert_right(operations: &[(u64, u64, Call, Answer)]) {
    let report = check(&record(operations));
    assert_eq!(report.verdict(), Verdict::Ok, "{report}");
}

#[track_caller]
fn assert_wrong(operations: &[(u64, u64, Call, Answer)]) -> register::Violation {
    let mut report = check(&record(operations));
    assert_eq!(report.verdict(), Verdict::Violated);
    report.violations.remove(0)
}

#[test]
fn a_read_during_a_write_may_see_either_value_but_not_go_back() {
    let put = |value| (Call::put("a", value), Answer::applied());
    let [(first, done), (second, _)] = [put("x"), put("y")];
    let base = [(1, 2, first, done.clone()), (3, 20, second, done)];
    let read = |at, value: &str| (at, at + 1, Call::get("a"), Answer::found(value));
    let with = |reads: &[(u64, u64, Call, Answer)]| [&base, reads].concat();
    assert_right(&with(&[read(5, "x"), read(7, "y")]));
    assert_right(&with(&[read(5, "y"), read(7, "y")]));
    assert_wrong(&with(&[read(5, "y"), read(7, "x")]));
}

#[test]
fn what_happens_at_equal_times_is_concurrent() {
    assert_right(&[
        (1, 5, Call::put("a", "x"), Answer::applied()),
        (5, 9, Call::get("a"), Answer::absent()),
    ]);
    assert_wrong(&[
        (1, 5, Call::put("a", "x"), Answer::applied()),
        (6, 9, Call::get("a"), Answer::absent()),
    ]);
}

#[test]
fn a_write_of_unknown_outcome_may_take_effect_late_once_or_never() {
    let mut recorder = Recorder::new();
    let lost = recorder.call(ClientId(0), Call::put("a", "x"), Time(1));
    recorder.unknown(lost);
    let answers = ["absent", "y", "x", "y"];
    for (place, seen) in answers.iter().enumerate().take(3) {
        if place == 1 {
            let put = recorder.call(ClientId(1), Call::put("a", "y"), Time(20));
            recorder.ok(put, Answer::applied(), Time(21));
        }
        let at = 30 * place as u64 + 10;
        let get = recorder.call(ClientId(2), Call::get("a"), Time(at));
        let answer = if *seen == "absent" { Answer::absent() } else { Answer::found(*seen) };
        recorder.ok(get, answer, Time(at + 1));
    }
    assert_eq!(check(&recorder).verdict(), Verdict::Ok);
    let get = recorder.call(ClientId(2), Call::get("a"), Time(200));
    recorder.ok(get, Answer::found("y"), Time(201));
    assert_eq!(check(&recorder).verdict(), Verdict::Violated);
}

#[test]
fn what_failed_never_takes_effect() {
    let mut recorder = Recorder::new();
    let refused = recorder.call(ClientId(0), Call::put("a", "x"), Time(1));
    recorder.fail(refused);
    let get = recorder.call(ClientId(1), Call::get("a"), Time(2));
    recorder.ok(get, Answer::found("x"), Time(3));
    let report = check(&recorder);
    let expected = ViolationKind::NeverWritten { value: "x".into() };
    assert_eq!(report.violations[0].kind, expected);
}

#[test]
fn tries_of_one_request_take_effect_once() {
    let request = RequestId { client: 1, sequence: 1 };
    let history = |first: Option<i64>, second: i64, read: &str| {
        let mut recorder = Recorder::new();
        let call = Call::increment("n", 1);
        let one = recorder.try_request(ClientId(1), request, call.clone(), Time(1));
        match first {
            Some(value) => recorder.ok(one, Answer::counter(value), Time(2)),
            None => recorder.unknown(one),
        }
        let two = recorder.try_request(ClientId(1), request, call, Time(3));
        recorder.ok(two, Answer::counter(second), Time(4));
        let get = recorder.call(ClientId(2), Call::get("n"), Time(5));
        recorder.ok(get, Answer::found(read), Time(6));
        recorder
    };
    assert_eq!(check(&history(None, 1, "1")).verdict(), Verdict::Ok);
    assert_eq!(check(&history(Some(1), 1, "1")).verdict(), Verdict::Ok);
    assert_eq!(check(&history(None, 2, "2")).verdict(), Verdict::Violated);
    let report = check(&history(Some(1), 2, "2"));
    assert_eq!(report.violations[0].kind, ViolationKind::TriesDisagree);
}

#[test]
fn conditions_hold_when_they_are_said_to() {
    let if_x = || Some(Condition::IfValue("x".into()));
    let put_if = |condition| Call::put_if("a", "y", condition);
    assert_right(&[
        (1, 2, put_if(Condition::IfPresent), Answer::not_applied()),
        (3, 4, put_if(Condition::IfAbsent), Answer::applied()),
        (5, 6, Call::delete("a"), Answer::applied()),
        (7, 8, Call::delete("a"), Answer::not_applied()),
        (9, 10, Call::Delete { key: "a".into(), condition: if_x() }, Answer::not_applied()),
    ]);
    // Two clients both win the same race.
    let violation = assert_wrong(&[
        (1, 2, Call::put("a", "x"), Answer::applied()),
        (3, 10, put_if(Condition::IfValue("x".into())), Answer::applied()),
        (4, 9, Call::put_if("a", "z", Condition::IfValue("x".into())), Answer::applied()),
    ]);
    assert!(violation.operations.len() >= 2, "{violation}");
}

#[test]
fn previous_values_are_believed_and_held_against_the_rest() {
    let was = |previous| {
        Answer::Written(Written {
            applied: Some(true),
            previous: Some(previous),
            ..Written::default()
        })
    };
    assert_right(&[
        (1, 9, Call::put("a", "x"), was(Previous::Absent)),
        (1, 9, Call::put("a", "y"), was(Previous::Value("x".into()))),
    ]);
    assert_wrong(&[
        (1, 9, Call::put("a", "x"), was(Previous::Value("y".into()))),
        (1, 9, Call::put("a", "y"), was(Previous::Value("x".into()))),
    ]);
}

#[test]
fn a_counter_refuses_what_is_no_number() {
    assert_right(&[
        (1, 2, Call::put("n", "seven"), Answer::applied()),
        (3, 4, Call::increment("n", 1), Answer::WrongValue),
        (5, 6, Call::put("n", i64::MAX.to_string()), Answer::applied()),
        (7, 8, Call::increment("n", 1), Answer::WrongValue),
        (9, 10, Call::increment("n", -1), Answer::counter(i64::MAX - 1)),
    ]);
    assert_wrong(&[(3, 4, Call::increment("n", 1), Answer::WrongValue)]);
}

#[test]
fn a_report_shows_the_operations_that_contradict_each_other_and_no_others() {
    let mut operations = Vec::new();
    for round in 0..50u64 {
        let (at, value) = (round * 10, format!("v{round}"));
        operations.push((at, at + 2, Call::put("a", value.clone()), Answer::applied()));
        operations.push((at + 3, at + 5, Call::get("a"), Answer::found(value)));
    }
    operations.push((600, 601, Call::get("a"), Answer::found("v48")));
    let report = check(&record(&operations));
    let expected = "\
linearizability: violated (1 keys, 101 operations, 0 steps)
key \"a\": \"v48\" and \"v49\" must both have been there at the same time
        called     returned       op   client  operation
           480          482       96       96  put \"a\" = \"v48\" -> applied
           490          492       98       98  put \"a\" = \"v49\" -> applied
           493          495       99       99  get \"a\" -> \"v49\"
           600          601      100      100  get \"a\" -> \"v48\"
";
    assert_eq!(report.to_string(), expected);
}

#[test]
fn a_failure_that_only_the_search_finds_is_shown_as_small() {
    let mut operations = Vec::new();
    for round in 0..40u64 {
        let at = round * 10;
        operations.push((at, at + 2, Call::put("a", "x"), Answer::applied()));
        operations.push((at + 3, at + 5, Call::delete("a"), Answer::applied()));
    }
    operations.push((500, 501, Call::get("a"), Answer::found("x")));
    operations.push((502, 503, Call::put("a", "x"), Answer::applied()));
    let report = check(&record(&operations));
    let expected = "\
linearizability: violated (1 keys, 82 operations, 80 steps)
key \"a\": no order explains the answer of operation 80; before it: absent
        called     returned       op   client  operation
           393          395       79       79  delete \"a\" -> applied
           500          501       80       80  get \"a\" -> \"x\"
";
    assert_eq!(report.to_string(), expected);
}
