//! Volumes: made, deleted, many of them, and ranges that are dropped.

use super::{Subject, VOLUME, bytes, contents, contents_of, pairs, put};
use crate::{Batch, Engine, EngineError};
use kvdb_model::{KeyRange, VolumeId};

pub(super) fn run<S: Subject>(fresh: &mut impl FnMut() -> S) {
    missing_and_existing_volumes_are_errors(fresh().engine());
    a_created_volume_is_there_after_a_crash(&mut fresh());
    a_deleted_volume_is_gone_but_open_snapshots_stay_readable(&mut fresh());
    many_volumes_do_not_mix(&mut fresh());
    a_dropped_range_leaves_the_rest_alone(&mut fresh());
}

fn missing_and_existing_volumes_are_errors<E: Engine>(engine: &E) {
    fn missing<T>(result: Result<T, EngineError>) -> bool {
        matches!(result, Err(EngineError::VolumeMissing(VOLUME)))
    }
    assert!(missing(engine.write(VOLUME, put("a", "1"))));
    assert!(missing(engine.flush(VOLUME)));
    assert!(missing(engine.stats(VOLUME)));
    assert!(missing(engine.snapshot(VOLUME)));
    assert!(missing(engine.drop_range(VOLUME, &KeyRange::ALL)));
    engine.create_volume(VOLUME).expect("created");
    assert!(matches!(engine.create_volume(VOLUME), Err(EngineError::VolumeExists(VOLUME))));
    let ingested = engine.ingest_volume(VOLUME, &mut std::iter::empty());
    assert!(matches!(ingested, Err(EngineError::VolumeExists(VOLUME))));
    engine.create_volume(VolumeId(9)).expect("created");
    assert_eq!(engine.volumes(), [VOLUME, VolumeId(9)]);
}

fn a_created_volume_is_there_after_a_crash<S: Subject>(subject: &mut S) {
    subject.engine().create_volume(VOLUME).expect("created");
    subject.crash();
    assert_eq!(subject.engine().volumes(), [VOLUME]);
    assert_eq!(contents(subject.engine()), []);
}

fn a_deleted_volume_is_gone_but_open_snapshots_stay_readable<S: Subject>(subject: &mut S) {
    let engine = subject.engine();
    engine.create_volume(VOLUME).expect("created");
    engine.write(VOLUME, put("a", "1")).expect("written");
    engine.flush(VOLUME).expect("flushed");
    engine.write(VOLUME, put("b", "2")).expect("written");
    let snapshot = engine.snapshot(VOLUME).expect("there");
    engine.delete_volume(VOLUME).expect("deleted");
    engine.delete_volume(VOLUME).expect("deleting again is fine");
    assert!(engine.volumes().is_empty());
    assert!(matches!(engine.snapshot(VOLUME), Err(EngineError::VolumeMissing(_))));
    while engine.maintain().expect("maintained") {}
    assert_eq!(snapshot.get(b"a").expect("readable"), Some(bytes("1")));
    assert_eq!(snapshot.scan(&KeyRange::ALL, true).count(), 2);
    drop(snapshot);
    // Nobody reads it any more: the id is free, and what it held stays away.
    engine.create_volume(VOLUME).expect("created anew");
    assert_eq!(contents(engine), []);
    engine.delete_volume(VOLUME).expect("deleted");
    subject.crash();
    assert!(subject.engine().volumes().is_empty());
}

fn many_volumes_do_not_mix<S: Subject>(subject: &mut S) {
    let volumes: Vec<VolumeId> = (1..=30).map(VolumeId).collect();
    for volume in &volumes {
        subject.engine().create_volume(*volume).expect("created");
        subject.engine().write(*volume, put("k", &volume.to_string())).expect("written");
    }
    for volume in volumes.iter().filter(|volume| volume.0 % 3 == 0) {
        subject.engine().delete_volume(*volume).expect("deleted");
    }
    for volume in subject.engine().volumes() {
        subject.engine().flush(volume).expect("flushed");
    }
    while subject.engine().maintain().expect("maintained") {}
    subject.crash();
    let left: Vec<VolumeId> = volumes.into_iter().filter(|volume| volume.0 % 3 != 0).collect();
    assert_eq!(subject.engine().volumes(), left);
    for volume in left {
        let expected = pairs([("k", &volume.to_string())]);
        assert_eq!(contents_of(subject.engine(), volume), expected);
    }
}

fn a_dropped_range_leaves_the_rest_alone<S: Subject>(subject: &mut S) {
    let engine = subject.engine();
    engine.create_volume(VOLUME).expect("created");
    for round in 0..3 {
        let mut batch = Batch::default();
        for key in 0..300 {
            batch.put(format!("{key:03}"), format!("{round}"));
        }
        engine.write(VOLUME, batch).expect("written");
        if round < 2 {
            engine.flush(VOLUME).expect("flushed");
        }
    }
    let dropped = KeyRange::new("100", "200");
    engine.drop_range(VOLUME, &dropped).expect("dropped");
    engine.drop_range(VOLUME, &KeyRange::new("200", "200")).expect("an empty range is fine");
    while engine.maintain().expect("maintained") {}
    engine.flush(VOLUME).expect("flushed");
    subject.crash();
    let kept: Vec<_> =
        contents(subject.engine()).into_iter().filter(|(key, _)| !dropped.contains(key)).collect();
    assert_eq!(kept.len(), 200);
    assert!(kept.iter().all(|(_, value)| *value == bytes("2")));
}
