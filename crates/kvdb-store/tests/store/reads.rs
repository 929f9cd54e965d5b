//! What reads see.

use crate::support::*;
use bytes::Bytes;
use kvdb_model::{KeyRange, RangeEpoch, Refusal, ReplicaId};
use kvdb_store::{ReadError, ScanPage, ScanRequest, ScannedItem, View};
use proptest::prelude::*;

fn whole() -> ScanRequest {
    ScanRequest {
        epoch: EPOCH,
        range: KeyRange::ALL,
        reverse: false,
        keys_only: false,
        limit: usize::MAX,
        max_bytes: usize::MAX,
        max_examined: usize::MAX,
        now_ms: 0,
    }
}

fn scan(single: &Single, request: &ScanRequest) -> ScanPage {
    let snapshot = snapshot(&single.engine);
    kvdb_store::scan(&*snapshot, REPLICA, request, &|_| true).expect("it is in range")
}

fn keys(items: &[ScannedItem]) -> Vec<String> {
    items.iter().map(|item| item.routing_key.escape_ascii().to_string()).collect()
}

fn letters() -> Single {
    let mut single = Single::new();
    let operations = "bcdefghij".chars().map(|letter| put(&letter.to_string(), "value"));
    single.write(write(operations.collect()));
    single
}

#[test]
fn reads_check_epoch_and_range_in_the_snapshot_that_they_are_served_from() {
    let single = letters();
    let snapshot = snapshot(&single.engine);
    let view = View::new(&*snapshot, REPLICA).unwrap();
    assert_eq!(view.descriptor(), &descriptor());
    assert_eq!(view.applied(), single.shard.applied());
    assert_eq!(view.last_version(), single.shard.last_version());
    let refusal = |outcome: Result<_, ReadError>| match outcome {
        Err(ReadError::Refused(refusal)) => refusal.code(),
        other => panic!("{other:?}"),
    };
    assert_eq!(refusal(view.get(RangeEpoch(2), b"c", 0)), "STALE_EPOCH");
    assert_eq!(refusal(view.get(EPOCH, b"a", 0)), "SHARD_MOVED");
    assert_eq!(refusal(view.get(EPOCH, b"y", 0)), "SHARD_MOVED");
    assert!(view.get(EPOCH, b"c", 0).unwrap().record.is_some());
    assert!(view.get(EPOCH, b"cc", 0).unwrap().record.is_none());
    let stale = ScanRequest { epoch: RangeEpoch(4), ..whole() };
    let refused = view.scan(&stale, &|_| true);
    assert!(matches!(refused, Err(ReadError::Refused(Refusal::StaleEpoch { .. }))));
}

#[test]
fn a_view_does_not_move_with_the_shard() {
    let mut single = letters();
    let before = snapshot(&single.engine);
    let view = View::new(&*before, REPLICA).unwrap();
    single.one(put("c", "new")).unwrap();
    single.one(delete("d")).unwrap();
    assert_eq!(view.get(EPOCH, b"c", 0).unwrap().record.unwrap().value, "value");
    assert!(view.get(EPOCH, b"d", 0).unwrap().record.is_some());
    assert_eq!(single.value("c"), Some("new".into()));
}

#[test]
fn a_newborn_shard_can_be_read_and_another_replica_is_not_here() {
    let (engine, _shard) = newborn();
    let snapshot = snapshot(&engine);
    let read = kvdb_store::get(&*snapshot, REPLICA, EPOCH, b"c", 0).unwrap();
    assert_eq!((read.record, read.expires_by_clock), (None, false));
    let other = kvdb_store::get(&*snapshot, ReplicaId(11), EPOCH, b"c", 0);
    assert!(matches!(other, Err(ReadError::NotHere(ReplicaId(11)))));
}

#[test]
fn damage_is_never_served() {
    let single = letters();
    damage(&single.engine, b"e");
    let snapshot = snapshot(&single.engine);
    let view = View::new(&*snapshot, REPLICA).unwrap();
    assert!(matches!(view.get(EPOCH, b"e", 0), Err(ReadError::Damage(_))));
    assert!(matches!(view.scan(&whole(), &|_| true), Err(ReadError::Damage(_))));
    assert!(view.get(EPOCH, b"d", 0).is_ok());
    damage(&single.engine, &[10, 0]);
    let snapshot = crate::support::snapshot(&single.engine);
    assert!(matches!(View::new(&*snapshot, REPLICA).err(), Some(ReadError::State(_))));
}

#[test]
fn a_scan_is_clipped_and_ordered() {
    let single = letters();
    let page = scan(&single, &whole());
    assert_eq!(keys(&page.items), ["b", "c", "d", "e", "f", "g", "h", "i", "j"]);
    assert_eq!(page.rest, None);
    assert!(page.items.iter().all(|item| item.record.value == "value"));
    let part = ScanRequest { range: KeyRange::new("c", "f"), reverse: true, ..whole() };
    assert_eq!(keys(&scan(&single, &part).items), ["e", "d", "c"]);
    for outside in [KeyRange::new("", "b"), KeyRange::new("y", ""), KeyRange::new("f", "c")] {
        let page = scan(&single, &ScanRequest { range: outside, ..whole() });
        assert_eq!((page.items, page.rest), (vec![], None));
    }
}

#[test]
fn a_page_ends_at_any_of_its_limits_and_says_what_is_left() {
    let single = letters();
    let limited = scan(&single, &ScanRequest { limit: 2, ..whole() });
    assert_eq!(keys(&limited.items), ["b", "c"]);
    assert_eq!(limited.rest, Some(KeyRange::new("d", "y")));
    let backwards = scan(&single, &ScanRequest { limit: 2, reverse: true, ..whole() });
    assert_eq!(keys(&backwards.items), ["j", "i"]);
    assert_eq!(backwards.rest, Some(KeyRange::new("b", "h\0")));
    let small = scan(&single, &ScanRequest { max_bytes: 0, ..whole() });
    assert_eq!(keys(&small.items), ["b"], "at least one item, however small the limit");
    let hasty = scan(&single, &ScanRequest { max_examined: 3, ..whole() });
    assert_eq!(keys(&hasty.items), ["b", "c", "d"]);
    let snapshot = snapshot(&single.engine);
    let choosy = ScanRequest { max_examined: 3, ..whole() };
    let unwanted =
        kvdb_store::scan(&*snapshot, REPLICA, &choosy, &|key| key.as_ref() > &b"d"[..]).unwrap();
    assert_eq!((unwanted.items, unwanted.rest), (vec![], Some(KeyRange::new("e", "y"))));
}

#[test]
fn keys_alone_come_with_version_and_expiry() {
    let mut single = letters();
    let version = single.one(put_for("c", "value", 50)).unwrap().version;
    let request = ScanRequest { keys_only: true, range: KeyRange::new("c", "d"), ..whole() };
    let page = scan(&single, &request);
    let record = &page.items[0].record;
    assert_eq!(record.value, Bytes::new());
    assert_eq!((record.version, record.expires_at_ms), (version, version.millis() + 50));
}

#[test]
fn a_scan_leaves_out_what_has_expired_and_says_what_is_about_to() {
    let mut single = letters();
    let expires_at_ms = single.one(put_for("c", "value", 50)).unwrap().version.millis() + 50;
    let late = ScanRequest { now_ms: expires_at_ms, ..whole() };
    let page = scan(&single, &late);
    assert_eq!((page.items.len(), page.expires_by_clock), (9, true));
    let early = ScanRequest { now_ms: expires_at_ms - 1, ..whole() };
    assert!(!scan(&single, &early).expires_by_clock);
    single.advance_time(50);
    let page = scan(&single, &late);
    assert_eq!((page.items.len(), page.expires_by_clock), (8, false));
}

proptest! {
    #[test]
    fn pages_together_are_the_whole_scan(
        names in prop::collection::btree_set("[b-x]{1,3}", 0..30),
        reverse in any::<bool>(),
        limit in 1usize..5,
        max_bytes in 0usize..120,
        max_examined in 1usize..5,
    ) {
        let mut single = Single::new();
        if !names.is_empty() {
            single.write(write(names.iter().map(|name| put(name, "value")).collect()));
        }
        let mut request =
            ScanRequest { reverse, limit, max_bytes, max_examined, ..whole() };
        let mut found = Vec::new();
        loop {
            let page = scan(&single, &request);
            prop_assert!(page.items.len() <= limit);
            found.extend(keys(&page.items));
            match page.rest {
                Some(rest) => request.range = rest,
                None => break,
            }
        }
        let mut expected: Vec<_> = names.into_iter().collect();
        if reverse { expected.reverse(); }
        prop_assert_eq!(found, expected);
    }
}
