use super::*;
use crate::command::Command;
use crate::keys::Expiry;
use crate::string::Set;
use kvdb_engine::{Engine, MemoryEngine};
use kvdb_model::{VolumeId, WriteResult};
use proptest::prelude::*;

const REPLICA: ReplicaId = ReplicaId(9);
const VOLUME: VolumeId = VolumeId(1);
const LIMITS: SessionLimits = SessionLimits {
    window_ms: 1000,
    grace_ms: 100,
    tolerance_ms: 50,
    client_max_bytes: 1000,
    shard_max_bytes: 2000,
};

fn tag(client: &'static str, sequence: u64, acked_below: u64, valid_until_ms: u64) -> RequestTag {
    let valid_until = ValidUntil::Time(valid_until_ms);
    RequestTag { client_id: client.into(), sequence, acked_below, valid_until }
}

fn at(millis: u64) -> Version {
    Version::from_millis(millis)
}

fn put(item: u32, value: &'static str) -> Operation {
    let set = Set { value: value.into(), expiry: Expiry::Never };
    Operation { item, ..set.on("k".into()) }
}

/// A client's session: `acked_below`, size and requests.
type Content = (Bytes, u64, usize, Vec<(u64, Request)>);

/// Sessions with the volume that holds their records.
struct Window {
    engine: MemoryEngine,
    sessions: Sessions,
}

impl Window {
    fn new() -> Self {
        let engine = MemoryEngine::new();
        engine.create_volume(VOLUME).unwrap();
        Window { engine, sessions: Sessions::new(LIMITS) }
    }

    /// What apply does with a request: its answers are that it was applied at `version`.
    fn carry_out(
        &mut self,
        tag: &RequestTag,
        version: Version,
        operation: &Operation,
    ) -> OperationOutcome {
        let room = self.sessions.admit(tag, version, version)?;
        if let Some(earlier) = self.sessions.find(tag, operation) {
            return earlier;
        }
        room.check()?;
        let outcome = Ok(WriteResult { applied: true, version, ..WriteResult::default() });
        let mut batch = Batch::default();
        let answered = std::iter::once((operation, &outcome));
        self.sessions.remember(REPLICA, tag, version, answered, &mut batch);
        self.engine.write(VOLUME, batch).unwrap();
        outcome
    }

    fn expire(&mut self, now: Version, limit: usize) {
        let mut batch = Batch::default();
        self.sessions.expire(REPLICA, now, limit, &mut batch);
        self.engine.write(VOLUME, batch).unwrap();
    }

    fn reload(&mut self) {
        let snapshot = self.engine.snapshot(VOLUME).unwrap();
        self.sessions = Sessions::load(LIMITS, &*snapshot, REPLICA).unwrap();
    }

    fn records(&self) -> usize {
        let snapshot = self.engine.snapshot(VOLUME).unwrap();
        snapshot.scan(&kind_range(REPLICA, Kind::Request), false).count()
    }

    /// Everything that decisions depend on.
    fn content(&self) -> Vec<Content> {
        let clients = self.sessions.clients.iter();
        let listed = clients.map(|(client, session)| {
            let requests = session.requests.iter();
            let requests = requests.map(|(at, held)| (*at, held.request.clone())).collect();
            (client.clone(), session.acked_below, session.size_bytes, requests)
        });
        listed.collect()
    }
}

#[test]
fn a_retry_gets_the_first_answer_and_another_payload_is_refused() {
    let mut window = Window::new();
    let request = tag("c", 1, 0, 500);
    let first = window.carry_out(&request, at(10), &put(0, "a")).unwrap();
    let again = window.carry_out(&request, at(20), &put(0, "a")).unwrap();
    assert_eq!(again, WriteResult { deduplicated: true, ..first });
    let other = window.carry_out(&request, at(30), &put(0, "b")).unwrap_err();
    assert_eq!(other.code(), "REQUEST_ID_REUSED");
    let item = window.carry_out(&request, at(40), &put(1, "b")).unwrap();
    assert!(!item.deduplicated, "another item of the request is another operation");
    let stranger = window.carry_out(&tag("d", 1, 0, 500), at(50), &put(0, "b")).unwrap();
    assert!(!stranger.deduplicated, "another client's request is another request");
}

#[test]
fn what_is_acknowledged_is_forgotten_and_late_copies_are_refused() {
    let mut window = Window::new();
    for sequence in 1..=3 {
        window.carry_out(&tag("c", sequence, 0, 900), at(10), &put(0, "a")).unwrap();
    }
    window.carry_out(&tag("c", 4, 3, 900), at(20), &put(0, "a")).unwrap();
    assert_eq!(window.records(), 2);
    for sequence in 1..=2 {
        let copy = window.carry_out(&tag("c", sequence, 0, 900), at(30), &put(0, "a"));
        assert_eq!(copy.unwrap_err().code(), "REQUEST_ID_EXPIRED");
    }
    assert!(window.carry_out(&tag("c", 3, 0, 900), at(30), &put(0, "a")).unwrap().deduplicated);
}

#[test]
fn an_acknowledgement_can_not_reach_beyond_its_own_request() {
    let mut window = Window::new();
    window.carry_out(&tag("c", 5, u64::MAX, 900), at(10), &put(0, "a")).unwrap();
    assert!(window.carry_out(&tag("c", 5, 0, 900), at(20), &put(0, "a")).unwrap().deduplicated);
    assert!(window.carry_out(&tag("c", 6, 0, 900), at(20), &put(0, "a")).is_ok());
}

#[test]
fn the_window_is_bounded_at_both_ends() {
    let mut window = Window::new();
    let code = |outcome: OperationOutcome| outcome.unwrap_err().code();
    // Clients' clocks may be behind by so much.
    let late = 50 + LIMITS.tolerance_ms;
    assert_eq!(
        code(window.carry_out(&tag("c", 1, 0, 50), at(late), &put(0, "a"))),
        "REQUEST_ID_EXPIRED"
    );
    assert!(window.carry_out(&tag("c", 1, 0, 51), at(late), &put(0, "a")).is_ok());
    let tag_of_front =
        |until_ms| RequestTag { valid_until: ValidUntil::Age(until_ms), ..tag("f", 1, 0, 1) };
    assert_eq!(
        code(window.carry_out(&tag_of_front(60), at(60), &put(0, "a"))),
        "REQUEST_ID_EXPIRED"
    );
    assert_eq!(
        code(window.carry_out(&tag_of_front(1061), at(60), &put(0, "a"))),
        "REQUEST_ID_EXPIRED",
        "it was stamped by a wrong guess"
    );
    assert!(window.carry_out(&tag_of_front(61), at(60), &put(0, "a")).is_ok());
    assert_eq!(
        code(window.carry_out(&tag("c", 2, 0, 1061), at(60), &put(0, "a"))),
        "INVALID_ARGUMENT"
    );
    assert!(window.carry_out(&tag("c", 2, 0, 1060), at(60), &put(0, "a")).is_ok());
}

#[test]
fn a_jump_of_shard_time_ends_no_id_of_a_front_and_forgets_no_answer() {
    let mut window = Window::new();
    let front = RequestTag { valid_until: ValidUntil::Age(1000), ..tag("f", 1, 0, 1) };
    window.carry_out(&front, at(10), &put(0, "a")).unwrap();
    // Shard time is put forward by a day; the shard is only a moment older.
    let day_ms = 86_400_000;
    window.expire(at(20), 100);
    let admitted = window.sessions.admit(&front, at(day_ms + 20), at(20));
    assert_eq!(admitted, Ok(Room::Free));
    assert!(window.sessions.find(&front, &put(0, "a")).unwrap().unwrap().deduplicated);
    // A client's own id has been valid until some time that has passed now.
    let own = tag("c", 1, 0, 1000);
    let refused = window.sessions.admit(&own, at(day_ms + 20), at(20)).unwrap_err();
    let words = refused.to_string();
    assert!(words.contains("1970-01-01 00:00:01") && words.contains("1970-01-02"), "{words}");
}

#[test]
fn client_ids_that_fit_no_key_are_refused() {
    let mut window = Window::new();
    let mut request = tag("", 1, 0, 900);
    for (length, fits) in [(0, true), (255, true), (256, false), (100_000, false)] {
        request.client_id = vec![b'c'; length].into();
        assert_eq!(window.carry_out(&request, at(10), &put(0, "a")).is_ok(), fits, "{length}");
    }
}

#[test]
fn a_full_window_refuses_new_requests_but_answers_retries_until_some_are_acknowledged() {
    let mut window = Window::new();
    let mut known = 0;
    let refused = loop {
        match window.carry_out(&tag("c", known, 0, 900), at(10), &put(0, "a")) {
            Ok(_) => known += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refused.code(), "OVERLOADED");
    assert!(known > 1);
    for sequence in 0..known {
        let retry = window.carry_out(&tag("c", sequence, 0, 900), at(20), &put(0, "a"));
        assert!(retry.unwrap().deduplicated);
    }
    // A further item of a known request needs room as well.
    let item = window.carry_out(&tag("c", 0, 0, 900), at(20), &put(1, "a"));
    assert_eq!(item.unwrap_err().code(), "OVERLOADED");
    assert!(window.carry_out(&tag("d", 0, 0, 900), at(20), &put(0, "a")).is_ok());
    window.expire(at(2000), 1);
    assert!(window.carry_out(&tag("c", known, known, 2900), at(2001), &put(0, "a")).is_ok());
    assert!(window.carry_out(&tag("c", known + 1, known, 2900), at(2002), &put(0, "a")).is_ok());
}

#[test]
fn a_shard_full_of_clients_refuses_another() {
    let mut window = Window::new();
    let clients = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"];
    let outcomes: Vec<_> = clients
        .iter()
        .map(|client| window.carry_out(&tag(client, 1, 0, 900), at(10), &put(0, "a")))
        .collect();
    assert!(outcomes[0].is_ok());
    assert_eq!(outcomes.last().unwrap().clone().unwrap_err().code(), "OVERLOADED");
    assert!(window.sessions.size_bytes < LIMITS.shard_max_bytes + 300);
}

#[test]
fn answers_outlive_the_window_and_then_go_a_few_at_a_time() {
    let mut window = Window::new();
    for sequence in 1..=3 {
        window.carry_out(&tag("c", sequence, 0, 1000), at(sequence), &put(0, "a")).unwrap();
    }
    window.expire(at(1100), 9);
    assert_eq!(window.records(), 3);
    window.expire(at(1102), 9);
    assert_eq!(window.records(), 1);
    window.expire(at(9000), 0);
    assert_eq!(window.records(), 1);
    window.expire(at(9000), 9);
    assert_eq!(window.records(), 0);
    assert_eq!(window.content(), vec![]);
    assert_eq!(window.sessions.size_bytes, 0);
    assert!(window.sessions.expiries.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Request { client: bool, sequence: u64, acked_below: u64, item: u32, value: bool },
    Expire { limit: usize },
    Wait { millis: u64 },
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<bool>(), 0u64..12, 0u64..16, 0u32..3, prop::bool::weighted(0.1)).prop_map(
            |(client, sequence, acked_below, item, value)| Step::Request {
                client, sequence, acked_below, item, value,
            }
        ),
        2 => (0usize..4).prop_map(|limit| Step::Expire { limit }),
        2 => (0u64..400).prop_map(|millis| Step::Wait { millis }),
    ]
}

proptest! {
    /// The one thing that replicas which restart at different times depend on.
    #[test]
    fn what_is_loaded_is_what_was_in_memory(steps in prop::collection::vec(any_step(), 0..80)) {
        let mut window = Window::new();
        let mut now = at(1000);
        for step in steps {
            now = now.plus(1);
            match step {
                Step::Request { client, sequence, acked_below, item, value } => {
                    let client = if client { "c" } else { "other" };
                    let request = tag(client, sequence, acked_below, now.millis() + 500);
                    let _ = window.carry_out(&request, now, &put(item, if value { "b" } else { "a" }));
                }
                Step::Expire { limit } => window.expire(now, limit),
                Step::Wait { millis } => now = at(now.millis() + millis),
            }
            let before = (window.content(), window.sessions.size_bytes, window.sessions.expiries.clone());
            window.reload();
            let after = (window.content(), window.sessions.size_bytes, window.sessions.expiries.clone());
            prop_assert_eq!(before, after);
        }
    }

    #[test]
    fn an_operation_is_carried_out_once_however_often_it_comes(
        tries in prop::collection::vec((0u64..8, 0u64..8, 0u64..300, any::<bool>()), 1..80)
    ) {
        let mut window = Window::new();
        let mut now = at(1000);
        let mut carried_out = std::collections::BTreeSet::new();
        for (sequence, acked_below, wait_ms, restart) in tries {
            now = at(now.millis() + wait_ms).plus(1);
            // Sent at most a window ago, and valid as of then.
            let request = tag("c", sequence, acked_below, 1000 + sequence * 100 + 900);
            if let Ok(result) = window.carry_out(&request, now, &put(0, "a")) && !result.deduplicated {
                prop_assert!(carried_out.insert(sequence), "{} a second time", sequence);
            }
            window.expire(now, 2);
            if restart { window.reload(); }
        }
    }
}
