//! Watches: every write once, in order, none left out.

use kvdb_checker::watch::{self, WatchAnomaly};
use kvdb_checker::{
    Answer, Call, ClientId, Delivery, Lane, OpId, Recorder, Time, Verdict, Version, WatchId,
    WatchRecord, Written,
};

/// Four puts to `a1` and `b1` by turns, at versions 10, 20, 30, 40, then a put of unknown outcome.
fn writes() -> Recorder {
    let mut recorder = Recorder::new();
    for place in 1..=4u64 {
        let key = if place % 2 == 1 { "a1" } else { "b1" };
        let op = recorder.call(ClientId(1), Call::put(key, format!("v{place}")), Time(place * 10));
        let answer = Written {
            applied: Some(true),
            version: Some(Version(place * 10)),
            ..Written::default()
        };
        recorder.ok(op, Answer::Written(answer), Time(place * 10 + 1));
    }
    let lost = recorder.call(ClientId(1), Call::put("a1", "lost"), Time(50));
    recorder.unknown(lost);
    recorder
}

fn started() -> Delivery {
    Delivery::Started { prefix: "".into(), time: Time(5), after: None }
}

fn event(key: &str, value: &str, version: u64) -> Delivery {
    let lane = Lane(u64::from(key.as_bytes()[0]));
    Delivery::Event { lane, key: key.into(), value: Some(value.into()), version: Version(version) }
}

fn drained() -> Delivery {
    Delivery::Drained { time: Time(100) }
}

fn anomalies(deliveries: &[Delivery]) -> Vec<WatchAnomaly> {
    let mut recorder = writes();
    for delivery in deliveries {
        recorder.watch(WatchRecord { watch: WatchId(1), delivery: delivery.clone() });
    }
    let report = watch::check(recorder.history());
    report.anomalies.into_iter().map(|(_, anomaly)| anomaly).collect()
}

fn all() -> Vec<Delivery> {
    vec![
        started(),
        event("b1", "v2", 20),
        event("a1", "v1", 10),
        event("a1", "v3", 30),
        event("b1", "v4", 40),
        drained(),
    ]
}

#[test]
fn every_write_once_and_in_order_is_fine_whatever_came_of_the_unknown_one() {
    assert_eq!(anomalies(&all()), []);
    let mut with_lost = all();
    with_lost.insert(5, event("a1", "lost", 60));
    assert_eq!(anomalies(&with_lost), []);
}

#[test]
fn a_missing_event_is_found_if_it_was_due() {
    let mut missing = all();
    missing.remove(3);
    let expected =
        WatchAnomaly::Missing { key: "a1".into(), version: Version(30), operation: OpId(2) };
    assert_eq!(anomalies(&missing), [expected]);
    // Not due: the watch was never drained, and nothing later of the key came.
    missing.pop();
    assert_eq!(anomalies(&missing), []);
    // Due after all: something later of the key came.
    missing.push(event("a1", "lost", 60));
    assert_eq!(anomalies(&missing).len(), 1);
}

#[test]
fn a_gap_that_the_watch_owns_up_to_excuses_what_it_spans() {
    let mut gap = all();
    gap[3] = Delivery::Gap { after: Version(20), through: Version(30) };
    assert_eq!(anomalies(&gap), []);
    gap[3] = Delivery::Gap { after: Version(30), through: Version(39) };
    assert_eq!(anomalies(&gap).len(), 1);
}

#[test]
fn a_watch_that_started_late_owes_only_what_came_later_or_what_it_resumes_after() {
    let late = |after| Delivery::Started { prefix: "a".into(), time: Time(25), after };
    assert_eq!(anomalies(&[late(None), event("a1", "v3", 30), drained()]), []);
    let resumed = [late(Some(Version(5))), event("a1", "v3", 30), drained()];
    assert!(matches!(
        anomalies(&resumed)[..],
        [WatchAnomaly::Missing { version: Version(10), .. }]
    ));
}

#[test]
fn doubled_events_are_found_also_over_lanes() {
    let mut doubled = all();
    doubled.insert(4, event("a1", "v3", 30));
    assert!(matches!(
        anomalies(&doubled)[..],
        [WatchAnomaly::Repeated { version: Version(30), .. }]
    ));
    doubled[4] = Delivery::Event {
        lane: Lane(9),
        key: "a1".into(),
        value: Some("v1".into()),
        version: Version(10),
    };
    assert!(matches!(
        anomalies(&doubled)[..],
        [WatchAnomaly::Repeated { version: Version(10), earlier: Version(30), .. }]
    ));
}

#[test]
fn events_below_what_their_lane_has_reached_are_out_of_order() {
    let mut early_progress = all();
    early_progress.insert(3, Delivery::Progress { lane: Lane(97), version: Version(30) });
    assert!(matches!(
        anomalies(&early_progress)[..],
        [WatchAnomaly::OutOfOrder { version: Version(30), reached: Version(31), .. }]
    ));
    early_progress[3] = Delivery::Progress { lane: Lane(97), version: Version(29) };
    assert_eq!(anomalies(&early_progress), []);
}

#[test]
fn events_that_nobody_wrote_are_found() {
    for invented in [event("a1", "other", 30), event("a1", "v3", 31), event("c1", "v3", 30)] {
        let mut deliveries = all();
        deliveries[3] = invented;
        let found = anomalies(&deliveries);
        assert!(
            found.iter().any(|one| matches!(one, WatchAnomaly::NeverWritten { .. })),
            "{found:?}"
        );
    }
    // The unknown write stands for one event, not for two.
    let mut twice = all();
    twice.insert(5, event("a1", "lost", 60));
    twice.insert(6, event("a1", "lost", 70));
    assert!(matches!(
        anomalies(&twice)[..],
        [WatchAnomaly::NeverWritten { version: Version(70), .. }]
    ));
}

#[test]
fn a_watch_is_recorded_from_its_start() {
    assert_eq!(anomalies(&all()[1..])[0], WatchAnomaly::Misrecorded);
    let recorder = writes();
    let report = watch::check(recorder.history());
    assert_eq!((report.verdict(), report.watches), (Verdict::Ok, 0));
}
