//! Sets and counters: each anomaly is found, and nothing else is called one.

use kvdb_checker::counter::{self, CounterAnomaly};
use kvdb_checker::set::{self, SetAnomaly};
use kvdb_checker::{Answer, Call, ClientId, Element, OpId, Recorder, RequestId, Time, Verdict};

fn add(recorder: &mut Recorder, element: u64, called: u64) -> OpId {
    let call = Call::Add { key: "s".into(), element: Element(element) };
    recorder.call(ClientId(element), call, Time(called))
}

fn read(recorder: &mut Recorder, elements: &[u64], called: u64) -> OpId {
    let op = recorder.call(ClientId(99), Call::Members { key: "s".into() }, Time(called));
    let elements = elements.iter().copied().map(Element).collect();
    recorder.ok(op, Answer::Members(elements), Time(called + 1));
    op
}

/// Elements 1 and 2 are acknowledged, 3 is of unknown outcome, 4 has failed.
fn four_adds() -> Recorder {
    let mut recorder = Recorder::new();
    for element in 1..=4 {
        let op = add(&mut recorder, element, element * 10);
        match element {
            3 => recorder.unknown(op),
            4 => recorder.fail(op),
            _ => recorder.ok(op, Answer::Done, Time(element * 10 + 1)),
        }
    }
    recorder
}

#[test]
fn a_set_may_have_what_is_unknown_or_not() {
    for last in [&[1, 2][..], &[1, 2, 3]] {
        let mut recorder = four_adds();
        read(&mut recorder, &[1], 15);
        read(&mut recorder, last, 100);
        let report = set::check(recorder.history());
        assert_eq!(report.verdict(), Verdict::Ok, "{report}");
        assert_eq!((report.acknowledged, report.unknown), (2, 1));
        assert_eq!(report.recovered, last.len() - 2);
    }
}

#[test]
fn lost_stale_invented_and_doubled_elements_are_told_apart() {
    let anomaly = |reads: &[(&[u64], u64)]| {
        let mut recorder = four_adds();
        let ops: Vec<OpId> =
            reads.iter().map(|(elements, at)| read(&mut recorder, elements, *at)).collect();
        let mut report = set::check(recorder.history());
        assert_eq!(report.anomalies.len(), 1, "{report}");
        (report.anomalies.remove(0).1, ops)
    };
    let (found, ops) = anomaly(&[(&[1], 50), (&[1], 60)]);
    assert_eq!(found, SetAnomaly::Lost { element: Element(2), missed_by: ops[0] });
    let (found, ops) = anomaly(&[(&[1], 50), (&[1, 2], 60)]);
    assert_eq!(found, SetAnomaly::Stale { element: Element(2), missed_by: ops[0] });
    // Of unknown outcome, but it was seen.
    let (found, ops) = anomaly(&[(&[1, 2, 3], 50), (&[1, 2], 60)]);
    assert_eq!(found, SetAnomaly::Lost { element: Element(3), missed_by: ops[1] });
    let (found, ops) = anomaly(&[(&[1, 2, 4], 50)]);
    assert_eq!(found, SetAnomaly::NeverAdded { element: Element(4), read_by: ops[0] });
    let (found, ops) = anomaly(&[(&[1, 2, 2], 50)]);
    assert_eq!(found, SetAnomaly::Doubled { element: Element(2), read_by: ops[0] });
}

#[test]
fn an_element_that_no_read_could_miss_is_counted_as_never_read() {
    let mut recorder = four_adds();
    read(&mut recorder, &[1], 15);
    let report = set::check(recorder.history());
    assert_eq!((report.verdict(), report.never_read), (Verdict::Ok, 1));
}

/// Increments: (delta, what was answered). `None` is of unknown outcome. One after another.
fn counted(increments: &[(i64, Option<Answer>)], last: i64) -> counter::CounterReport {
    let mut recorder = Recorder::new();
    for (place, (delta, answer)) in increments.iter().enumerate() {
        let at = 10 * place as u64;
        let op = recorder.call(ClientId(place as u64), Call::increment("n", *delta), Time(at));
        match answer {
            Some(answer) => recorder.ok(op, answer.clone(), Time(at + 1)),
            None => recorder.unknown(op),
        }
    }
    let get = recorder.call(ClientId(0), Call::get("n"), Time(1000));
    recorder.ok(get, Answer::found(last.to_string()), Time(1001));
    counter::check(recorder.history())
}

#[test]
fn a_counter_is_between_what_was_acknowledged_and_what_was_asked() {
    let done = || Some(Answer::applied());
    let increments = [(5, done()), (5, done()), (5, None), (-2, None)];
    for (last, expected) in [
        (10, Verdict::Ok),
        (15, Verdict::Ok),
        (8, Verdict::Ok),
        (13, Verdict::Ok),
        (12, Verdict::Violated),
        (5, Verdict::Violated),
        (20, Verdict::Violated),
    ] {
        assert_eq!(counted(&increments, last).verdict(), expected, "{last}");
    }
    let report = counted(&increments, 20);
    assert!(matches!(
        report.anomalies[0].1,
        CounterAnomaly::OutOfBounds { value: 20, least: 8, most: 15, .. }
    ));
    let report = counted(&increments, 12);
    assert!(matches!(report.anomalies[0].1, CounterAnomaly::NoSum { value: 12, .. }));
}

#[test]
fn a_value_that_two_requests_were_told_means_that_one_was_lost() {
    let mut recorder = Recorder::new();
    let ops: Vec<OpId> = (0..2)
        .map(|client| recorder.call(ClientId(client), Call::increment("n", 1), Time(1)))
        .collect();
    ops.iter().for_each(|op| recorder.ok(*op, Answer::counter(1), Time(2)));
    let report = counter::check(recorder.history());
    let expected = CounterAnomaly::ToldTwice { first: ops[0], second: ops[1], value: 1 };
    assert_eq!(report.anomalies, [("n".into(), expected)]);
}

#[test]
fn many_tries_of_one_request_count_once() {
    let request = RequestId { client: 5, sequence: 9 };
    for (last, expected) in [("1", Verdict::Ok), ("2", Verdict::Violated)] {
        let mut recorder = Recorder::new();
        for attempt in 0..3 {
            let call = Call::increment("n", 1);
            let op = recorder.try_request(ClientId(5), request, call, Time(attempt * 10));
            if attempt == 2 {
                recorder.ok(op, Answer::counter(1), Time(25));
            }
        }
        let get = recorder.call(ClientId(6), Call::get("n"), Time(30));
        recorder.ok(get, Answer::found(last), Time(31));
        let report = counter::check(recorder.history());
        assert_eq!(report.verdict(), expected, "{report}");
        assert_eq!((report.acknowledged, report.unknown), (1, 0));
    }
}

#[test]
fn keys_with_other_writes_are_no_counters() {
    let mut recorder = Recorder::new();
    for (at, call) in [(1, Call::increment("n", 1)), (3, Call::put("n", "9"))] {
        let op = recorder.call(ClientId(1), call, Time(at));
        recorder.ok(op, Answer::applied(), Time(at + 1));
    }
    assert_eq!(counter::check(recorder.history()).counters, 0);
}
