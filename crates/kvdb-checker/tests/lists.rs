//! Lists: what is a cycle, of which kind, and what is wrong without one.

use kvdb_checker::append::{self, AppendAnomaly, CycleKind};
use kvdb_checker::{Answer, Call, ClientId, Element, OpId, Recorder, Step, Time, Verdict};

fn append(key: &str, element: u64) -> Step {
    Step::Append { key: key.into(), element: Element(element) }
}

fn read(key: &str) -> Step {
    Step::Read { key: key.into() }
}

struct Story(Recorder);

impl Story {
    fn new() -> Self {
        Story(Recorder::new())
    }

    /// A transaction from `called` to `returned` that read these lists.
    fn did(mut self, called: u64, returned: u64, steps: &[Step], lists: &[&[u64]]) -> Self {
        let call = Call::Transaction { steps: steps.to_vec() };
        let op = self.0.call(ClientId(called), call, Time(called));
        let lists: Vec<Vec<Element>> =
            lists.iter().map(|list| list.iter().copied().map(Element).collect()).collect();
        let answer = if lists.is_empty() { Answer::Done } else { Answer::Lists(lists) };
        self.0.ok(op, answer, Time(returned));
        self
    }

    fn unknown(mut self, called: u64, steps: &[Step]) -> Self {
        let op = self.0.call(
            ClientId(called),
            Call::Transaction { steps: steps.to_vec() },
            Time(called),
        );
        self.0.unknown(op);
        self
    }

    fn failed(mut self, called: u64, steps: &[Step]) -> Self {
        let op = self.0.call(
            ClientId(called),
            Call::Transaction { steps: steps.to_vec() },
            Time(called),
        );
        self.0.fail(op);
        self
    }

    fn anomalies(&self) -> Vec<AppendAnomaly> {
        append::check(self.0.history()).anomalies
    }

    #[track_caller]
    fn assert_cycle(&self, expected: CycleKind, length: usize) {
        let report = append::check(self.0.history());
        match &report.anomalies[..] {
            [AppendAnomaly::Cycle { kind, steps }] => {
                assert_eq!((*kind, steps.len()), (expected, length), "{report}");
            }
            _ => panic!("{report}"),
        }
    }
}

#[test]
fn appends_and_reads_that_have_an_order_are_fine() {
    let story = Story::new()
        .did(1, 10, &[append("a", 1)], &[])
        .did(2, 9, &[append("a", 2), read("a")], &[&[1, 2]])
        .unknown(3, &[append("a", 3)])
        .unknown(3, &[append("a", 4)])
        .did(11, 12, &[read("a")], &[&[1, 2]])
        .did(13, 14, &[read("a")], &[&[1, 2, 4]])
        .did(13, 30, &[read("a"), append("a", 5), read("a")], &[&[1, 2, 4], &[1, 2, 4, 5]]);
    let report = append::check(story.0.history());
    assert_eq!(report.verdict(), Verdict::Ok, "{report}");
    assert_eq!((report.lists, report.transactions), (1, 7));
}

#[test]
fn a_stale_read_is_a_cycle_in_real_time() {
    Story::new()
        .did(1, 2, &[append("a", 1)], &[])
        .did(3, 4, &[append("a", 2)], &[])
        .did(5, 6, &[read("a")], &[&[1]])
        .did(7, 8, &[read("a")], &[&[1, 2]])
        .assert_cycle(CycleKind::SingleMiss { real_time: true }, 2);
}

#[test]
fn an_acknowledged_append_that_no_read_ever_sees_is_lost() {
    Story::new()
        .did(1, 2, &[append("a", 1)], &[])
        .did(3, 4, &[append("a", 2)], &[])
        .did(5, 6, &[read("a")], &[&[1]])
        .assert_cycle(CycleKind::SingleMiss { real_time: true }, 2);
    Story::new()
        .did(3, 4, &[append("a", 2)], &[])
        .did(5, 6, &[read("a")], &[&[]])
        .assert_cycle(CycleKind::SingleMiss { real_time: true }, 2);
}

#[test]
fn cycles_are_named_after_what_they_are_made_of() {
    // Two transactions append to two lists in opposite orders.
    Story::new()
        .did(1, 20, &[append("a", 1), append("b", 1)], &[])
        .did(1, 20, &[append("a", 2), append("b", 2)], &[])
        .did(21, 22, &[read("a"), read("b")], &[&[1, 2], &[2, 1]])
        .assert_cycle(CycleKind::DirtyWrite { real_time: false }, 2);
    // Each reads what the other appended.
    Story::new()
        .did(1, 20, &[append("a", 1), read("b")], &[&[1]])
        .did(1, 20, &[append("b", 1), read("a")], &[&[1]])
        .assert_cycle(CycleKind::CircularFlow { real_time: false }, 2);
    // One reads the other's first list without, its second with the append.
    Story::new()
        .did(1, 20, &[append("a", 1), append("b", 1)], &[])
        .did(1, 20, &[read("a"), read("b")], &[&[], &[1]])
        .did(21, 22, &[read("a")], &[&[1]])
        .assert_cycle(CycleKind::SingleMiss { real_time: false }, 2);
    // Write skew.
    Story::new()
        .did(1, 20, &[read("a"), append("b", 1)], &[&[]])
        .did(1, 20, &[read("b"), append("a", 1)], &[&[]])
        .did(21, 22, &[read("a"), read("b")], &[&[1], &[1]])
        .assert_cycle(CycleKind::SeveralMisses { real_time: false }, 2);
    // The order of appends against that of real time.
    Story::new()
        .did(1, 2, &[append("a", 1)], &[])
        .did(3, 4, &[append("a", 2)], &[])
        .did(5, 6, &[read("a")], &[&[2, 1]])
        .assert_cycle(CycleKind::DirtyWrite { real_time: true }, 2);
}

#[test]
fn what_needs_no_cycle_is_found_without() {
    let found =
        Story::new().failed(1, &[append("a", 1)]).did(2, 3, &[read("a")], &[&[1]]).anomalies();
    assert!(matches!(found[..], [AppendAnomaly::NeverAppended { element: Element(1), .. }]));

    let found =
        Story::new().unknown(1, &[append("a", 1)]).did(2, 3, &[read("a")], &[&[1, 1]]).anomalies();
    assert!(matches!(
        found[0],
        AppendAnomaly::Doubled { element: Element(1), read_by: OpId(1), .. }
    ));

    let found = Story::new()
        .unknown(1, &[append("a", 1), append("a", 2)])
        .did(2, 3, &[read("a")], &[&[1]])
        .anomalies();
    assert!(matches!(found[..], [AppendAnomaly::Intermediate { element: Element(1), .. }]));

    let found = Story::new().did(1, 2, &[append("a", 1), read("a")], &[&[]]).anomalies();
    assert!(matches!(found[0], AppendAnomaly::Internal { operation: OpId(0), .. }));

    let found = Story::new()
        .unknown(1, &[append("a", 1)])
        .unknown(1, &[append("a", 2)])
        .did(2, 3, &[read("a")], &[&[1, 2]])
        .did(2, 3, &[read("a")], &[&[2]])
        .anomalies();
    assert!(matches!(found[0], AppendAnomaly::Disagree { first: OpId(3), second: OpId(2), .. }));

    let found =
        Story::new().unknown(1, &[append("a", 1)]).unknown(2, &[append("a", 1)]).anomalies();
    assert!(matches!(found[..], [AppendAnomaly::AppendedByTwo { element: Element(1), .. }]));
}

#[test]
fn long_histories_without_a_cycle_are_judged_without_recursion() {
    let mut story = Story::new();
    for place in 0..20_000u64 {
        let list: Vec<u64> = (place.saturating_sub(1)..place).collect();
        let key = format!("k{}", place / 2);
        let seen = if place % 2 == 0 { &[][..] } else { &list[..] };
        story = story.did(place * 3, place * 3 + 1, &[read(&key), append(&key, place)], &[seen]);
    }
    let report = append::check(story.0.history());
    assert_eq!(report.verdict(), Verdict::Ok);
}
