//! Files that aren't what was written: found, named, and never served.

#![expect(clippy::unwrap_used, reason = "a test fails by it, in its helpers too")]

mod support;

use bytes::Bytes;
use kvdb_engine::conformance::Subject;
use kvdb_engine::{Batch, Engine, EngineError};
use kvdb_engine_lsm::LsmConfig;
use kvdb_model::{KeyRange, VolumeId};
use std::fs;
use std::path::PathBuf;
use support::OnDisk;

const VOLUME: VolumeId = VolumeId(1);
const KEYS: u32 = 40;

fn with_a_table() -> OnDisk {
    let subject = OnDisk::new(LsmConfig::default());
    let engine = subject.engine();
    engine.create_volume(VOLUME).unwrap();
    let mut batch = Batch::default();
    for key in 0..KEYS {
        batch.put(format!("key {key:03}"), format!("value {}", key * 7));
    }
    engine.write(VOLUME, batch).unwrap();
    engine.flush(VOLUME).unwrap();
    subject
}

fn files(subject: &OnDisk, inside: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(subject.path(inside))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files
}

#[test]
fn a_flipped_bit_in_a_manifest_is_found_before_the_volume_is_opened() {
    let mut subject = with_a_table();
    for file in files(&subject, "volumes/1") {
        let whole = fs::read(&file).unwrap();
        for place in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[place] ^= 1 << (place % 8);
            fs::write(&file, &flipped).unwrap();
            subject.crash();
            let damaged = subject.engine().damaged();
            assert_eq!(damaged.len(), 1, "{}, byte {place}", file.display());
            assert_eq!(damaged[0].volume, VOLUME);
            assert!(damaged[0].what.contains("volumes/1/"), "{}", damaged[0].what);
            assert!(subject.engine().volumes().is_empty());
        }
        fs::write(&file, &whole[..whole.len() - 1]).unwrap();
        subject.crash();
        assert_eq!(subject.engine().damaged().len(), 1);
        fs::write(&file, &whole).unwrap();
    }
    subject.crash();
    assert_eq!(subject.engine().damaged(), []);
    assert_eq!(subject.engine().volumes(), [VOLUME]);
}

#[test]
fn a_missing_file_is_a_damaged_volume_and_not_an_empty_one() {
    let subject = with_a_table();
    let mut lost = files(&subject, "volumes/1");
    lost.extend(files(&subject, "volumes/1/tables"));
    assert_eq!(lost.len(), 3);
    for file in lost {
        let mut subject = with_a_table();
        let inside = file.strip_prefix(file.ancestors().nth(4).unwrap()).unwrap().to_owned();
        let inside = inside.to_string_lossy().into_owned();
        let start = inside.find("volumes/").unwrap();
        fs::remove_file(subject.path(&inside[start..])).unwrap();
        subject.crash();
        let engine = subject.engine();
        assert_eq!(engine.damaged().len(), 1, "{inside}");
        assert!(matches!(engine.snapshot(VOLUME), Err(EngineError::VolumeMissing(VOLUME))));
        assert!(matches!(engine.create_volume(VOLUME), Err(EngineError::VolumeExists(VOLUME))));
        // It can be cleared away and made anew.
        engine.delete_volume(VOLUME).unwrap();
        engine.create_volume(VOLUME).unwrap();
        subject.crash();
        assert_eq!(subject.engine().volumes(), [VOLUME]);
        assert_eq!(subject.engine().damaged(), []);
    }
}

fn flip_every_byte_of_the_table(subject: &mut OnDisk) {
    let read = |subject: &OnDisk| -> Result<Vec<_>, EngineError> {
        let snapshot = subject.engine().snapshot(VOLUME)?;
        snapshot.scan(&KeyRange::ALL, false).collect()
    };
    let expected = read(subject).unwrap();
    let tables = files(subject, "volumes/1/tables");
    let [table] = &tables[..] else { panic!("{} tables", tables.len()) };
    let whole = fs::read(table).unwrap();
    let mut found = 0;
    for place in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[place] ^= 1 << (place % 8);
        fs::write(table, &flipped).unwrap();
        // What was met at the place before is forgotten.
        let _ = fs::remove_file(subject.path("volumes/1/damaged"));
        subject.crash();
        match read(subject) {
            Ok(seen) => assert_eq!(seen, expected, "byte {place}"),
            Err(EngineError::Damaged { .. } | EngineError::VolumeMissing(_)) => found += 1,
            Err(other) => panic!("byte {place}: {other}"),
        }
    }
    // A few bytes aren't used by a scan.
    assert!(found > whole.len() * 9 / 10, "{found} of {}", whole.len());
}

#[test]
fn a_flipped_bit_in_a_flushed_table_never_shows_other_data() {
    flip_every_byte_of_the_table(&mut with_a_table());
}

#[test]
fn a_flipped_bit_in_a_compressed_table_never_shows_other_data() {
    let mut subject = OnDisk::new(LsmConfig::default());
    let mut items =
        (0..KEYS).map(|key| Ok((Bytes::from(format!("key {key:03}")), Bytes::from(vec![7; 100]))));
    subject.engine().ingest_volume(VOLUME, &mut items).unwrap();
    flip_every_byte_of_the_table(&mut subject);
}

#[test]
fn damage_that_was_met_is_remembered_at_the_next_start() {
    let mut subject = with_a_table();
    let table = files(&subject, "volumes/1/tables").remove(0);
    let whole = fs::read(&table).unwrap();
    let mut flipped = whole.clone();
    flipped[10] ^= 1;
    fs::write(&table, &flipped).unwrap();
    subject.crash();
    // It shows only when the place is read.
    assert_eq!(subject.engine().damaged(), []);
    let read = subject.engine().snapshot(VOLUME).unwrap().get(b"key 000");
    assert!(matches!(read, Err(EngineError::Damaged { .. })), "{read:?}");

    subject.crash();
    let damaged = subject.engine().damaged();
    assert_eq!(damaged.len(), 1);
    assert!(damaged[0].what.contains("damage was met before"), "{}", damaged[0].what);
    // What takes its place is not concerned.
    subject.engine().delete_volume(VOLUME).unwrap();
    subject.engine().create_volume(VOLUME).unwrap();
    subject.crash();
    assert_eq!(subject.engine().damaged(), []);
}

#[test]
fn what_an_interrupted_creation_or_deletion_left_is_cleared_away() {
    let mut subject = with_a_table();
    fs::create_dir(subject.path("volumes/tmp-5")).unwrap();
    fs::write(subject.path("volumes/tmp-5/current"), b"half").unwrap();
    fs::write(subject.path("volumes/1/gone"), b"").unwrap();
    fs::create_dir(subject.path("volumes/not a volume")).unwrap();
    subject.crash();
    assert!(subject.engine().volumes().is_empty());
    assert_eq!(subject.engine().damaged(), []);
    let left: Vec<_> = fs::read_dir(subject.path("volumes")).unwrap().collect();
    assert_eq!(left.len(), 1);
    assert!(subject.path("volumes/not a volume").exists());
}
