//! What a crash keeps and what it forgets.

use super::{Subject, VOLUME, ascending, bytes, contents, contents_of, pairs, put};
use crate::{Batch, Engine, EngineError, MAX_KEY_BYTES, SequenceNumber};
use bytes::Bytes;
use kvdb_model::VolumeId;

pub(super) fn run<S: Subject>(fresh: &mut impl FnMut() -> S) {
    a_crash_keeps_exactly_what_was_flushed(&mut fresh());
    a_flush_tells_what_it_covers(fresh().engine());
    volumes_are_flushed_apart(&mut fresh());
    a_batch_is_kept_or_forgotten_as_a_whole(&mut fresh());
    an_ingested_volume_is_durable_and_writable(&mut fresh());
    a_bad_ingestion_leaves_nothing(&mut fresh());
}

fn a_crash_keeps_exactly_what_was_flushed<S: Subject>(subject: &mut S) {
    let engine = subject.engine();
    engine.create_volume(VOLUME).expect("created");
    engine.write(VOLUME, put("a", "1")).expect("written");
    let flushed = engine.flush(VOLUME).expect("flushed");
    assert!(engine.stats(VOLUME).expect("there").flushed >= flushed);
    let later = engine.write(VOLUME, put("b", "2")).expect("written");
    assert!(engine.stats(VOLUME).expect("there").flushed < later);
    subject.crash();
    let engine = subject.engine();
    assert_eq!(contents(engine), pairs([("a", "1")]));
    let stats = engine.stats(VOLUME).expect("there");
    assert_eq!(stats.published, stats.flushed);
    let again = engine.write(VOLUME, put("c", "3")).expect("written");
    assert!(again > flushed);
    assert_eq!(contents(engine), pairs([("a", "1"), ("c", "3")]));
}

fn a_flush_tells_what_it_covers<E: Engine>(engine: &E) {
    engine.create_volume(VOLUME).expect("created");
    let flushed = |engine: &E| engine.stats(VOLUME).expect("there").flushed;
    let mut last = SequenceNumber(0);
    for round in 0..5 {
        last = engine.write(VOLUME, put("a", &round.to_string())).expect("written");
        assert!(flushed(engine) < last);
        let before = engine.stats(VOLUME).expect("there").memtable_bytes;
        assert!(before > 0);
        let covered = engine.flush(VOLUME).expect("flushed");
        assert!(covered >= last && flushed(engine) >= last);
        assert!(engine.stats(VOLUME).expect("there").published >= flushed(engine));
        assert_eq!(engine.stats(VOLUME).expect("there").memtable_bytes, 0);
    }
    // Nothing new to flush is fine, and takes nothing back.
    assert!(engine.flush(VOLUME).expect("flushed") >= last);
    while engine.maintain().expect("maintained") {}
    assert!(flushed(engine) >= last);
}

fn volumes_are_flushed_apart<S: Subject>(subject: &mut S) {
    let other = VolumeId(8);
    for volume in [VOLUME, other] {
        subject.engine().create_volume(volume).expect("created");
        subject.engine().write(volume, put("a", "1")).expect("written");
    }
    subject.engine().flush(other).expect("flushed");
    subject.crash();
    assert_eq!(contents(subject.engine()), []);
    assert_eq!(contents_of(subject.engine(), other), pairs([("a", "1")]));
}

fn a_batch_is_kept_or_forgotten_as_a_whole<S: Subject>(subject: &mut S) {
    subject.engine().create_volume(VOLUME).expect("created");
    let large = |mark: u8| {
        let mut batch = Batch::default();
        for key in 0..500 {
            batch.put(format!("{key:03}"), vec![mark; 100]);
        }
        batch
    };
    subject.engine().write(VOLUME, large(b'1')).expect("written");
    subject.engine().flush(VOLUME).expect("flushed");
    subject.engine().write(VOLUME, large(b'2')).expect("written");
    subject.crash();
    let found = contents(subject.engine());
    assert_eq!(found.len(), 500);
    assert!(found.iter().all(|(_, value)| value[..] == [b'1'; 100]));
}

fn an_ingested_volume_is_durable_and_writable<S: Subject>(subject: &mut S) {
    subject.engine().ingest_volume(VOLUME, &mut ascending(5000).into_iter()).expect("ingested");
    subject.crash();
    let engine = subject.engine();
    let expected: Vec<_> = ascending(5000).into_iter().map(|item| item.expect("a pair")).collect();
    assert_eq!(contents(engine), expected);
    let mut batch = Batch::default();
    batch.delete(bytes("00000000"));
    batch.put(bytes("00000001"), bytes("new"));
    engine.write(VOLUME, batch).expect("written");
    engine.flush(VOLUME).expect("flushed");
    while engine.maintain().expect("maintained") {}
    subject.crash();
    let all = contents(subject.engine());
    assert_eq!(all.len(), 4999);
    assert_eq!(all[0], (bytes("00000001"), bytes("new")));
}

fn a_bad_ingestion_leaves_nothing<S: Subject>(subject: &mut S) {
    let bad = |last| {
        let mut items = ascending(10);
        items.push(last);
        items.into_iter()
    };
    let engine = subject.engine();
    for key in ["00000003", "00000009"] {
        let refused = engine.ingest_volume(VOLUME, &mut bad(Ok((bytes(key), Bytes::new()))));
        assert!(matches!(refused, Err(EngineError::NotAscending(_))), "{refused:?}");
    }
    let long = Bytes::from(vec![b'9'; MAX_KEY_BYTES + 1]);
    let refused = engine.ingest_volume(VOLUME, &mut bad(Ok((long, Bytes::new()))));
    assert!(matches!(refused, Err(EngineError::KeyLength(_))), "{refused:?}");
    let broken = EngineError::Io { place: "a chunk".into(), source: std::io::Error::other("cut") };
    let refused = engine.ingest_volume(VOLUME, &mut bad(Err(broken)));
    assert!(matches!(refused, Err(EngineError::Io { place, .. }) if place == "a chunk"));
    assert!(engine.volumes().is_empty());
    subject.crash();
    assert!(subject.engine().volumes().is_empty());
    // An empty one is fine.
    subject.engine().ingest_volume(VOLUME, &mut std::iter::empty()).expect("ingested");
    subject.crash();
    assert_eq!(contents(subject.engine()), []);
}
