//! The log against a model: through crashes at every operation, torn pages and flipped bits.

#![allow(clippy::unwrap_used, reason = "a test fails by it, in its helpers too")]

use bytes::Bytes;
use kvdb_model::{
    EntryKind, HardState, LogEntry, LogIndex, LogPosition, ReplicaId, ShardId, Term, VolumeId,
    WalRecord,
};
use kvdb_wal::sim_disk::SimDisk;
use kvdb_wal::{FileDisk, LiveState, OpenError, Wal, WalConfig, WalError};
use proptest::prelude::*;

const SMALL: WalConfig =
    WalConfig { first_segment_bytes: 512, segment_bytes: 2048, max_segments: 4 };

fn entry(index: u64, term: u64, size: usize) -> LogEntry {
    LogEntry {
        index: LogIndex(index),
        term: Term(term),
        kind: EntryKind::Normal,
        data: Bytes::from(vec![index as u8; size]),
        context: Bytes::new(),
    }
}

fn created(replica: u64) -> WalRecord {
    WalRecord::Created {
        replica: ReplicaId(replica),
        shard: ShardId(replica),
        volume: Some(VolumeId(replica)),
        start: LogPosition { index: LogIndex(5), term: Term(5) },
        birth: Bytes::from_static(b"birth"),
    }
}

fn unborn_that_has_voted(id: u64) -> Vec<WalRecord> {
    let (replica, shard) = (ReplicaId(id), ShardId(id));
    let state = HardState { term: Term(9), vote: ReplicaId(77), commit: LogIndex(0) };
    vec![
        WalRecord::Created {
            replica,
            shard,
            volume: None,
            start: LogPosition::default(),
            birth: Bytes::new(),
        },
        WalRecord::HardState { replica, state },
    ]
}

/// What matters of a state: not in which segment it is.
fn content(state: &LiveState) -> String {
    let replicas: Vec<_> = state
        .replicas
        .iter()
        .map(|(id, replica)| {
            (id, replica.shard, replica.volume, replica.start, replica.hard_state, &replica.entries)
        })
        .collect();
    format!("{replicas:?} {:?}", state.tombstones())
}

/// Batches that make sense one after the other: several replicas, appends that replace, hard
/// states, compactions, switches, ends.
fn script(steps: &[(u8, u8, u8)]) -> Vec<Vec<WalRecord>> {
    let mut state = LiveStateModel::default();
    steps.iter().map(|step| state.step(*step)).filter(|records| !records.is_empty()).collect()
}

#[derive(Default)]
struct LiveStateModel {
    /// (replica id, first index - 1, last index, term)
    replicas: Vec<(u64, u64, u64, u64)>,
    /// One that a message has created.
    unborn: Option<u64>,
    next: u64,
}

impl LiveStateModel {
    fn step(&mut self, (kind, which, size): (u8, u8, u8)) -> Vec<WalRecord> {
        if self.replicas.is_empty() || kind == 0 && self.replicas.len() < 4 {
            if let Some(born) = self.unborn.take() {
                self.replicas.push((born, 5, 5, 5));
                return vec![created(born)];
            }
            self.next += 1;
            if which % 3 == 0 {
                self.unborn = Some(self.next);
                return unborn_that_has_voted(self.next);
            }
            self.replicas.push((self.next, 5, 5, 5));
            return vec![created(self.next)];
        }
        let place = usize::from(which) % self.replicas.len();
        let (id, start, last, term) = &mut self.replicas[place];
        let replica = ReplicaId(*id);
        match kind {
            1 if *last > *start => {
                // Another leader's entries take the place of the last ones.
                *term += 1;
                let from = (*last).max(*start + 1);
                *last = from;
                vec![WalRecord::Append { replica, entries: vec![entry(from, *term, size.into())] }]
            }
            2 if *last > *start => {
                *start += 1 + (*last - *start - 1) / 2;
                let through = LogPosition { index: LogIndex(*start), term: Term(*term) };
                vec![WalRecord::Compacted { replica, through }]
            }
            3 => {
                let state = HardState { term: Term(*term), vote: replica, commit: LogIndex(*last) };
                vec![WalRecord::HardState { replica, state }]
            }
            4 => {
                *last += 10;
                *start = *last;
                let position = LogPosition { index: LogIndex(*start), term: Term(*term) };
                let volume = VolumeId(1000 + *start);
                vec![WalRecord::VolumeSwitched { replica, volume, start: position }]
            }
            5 if which > 200 => {
                let shard = ShardId(*id);
                self.replicas.remove(place);
                vec![WalRecord::Destroyed { replica, shard }]
            }
            _ => {
                let count = 1 + u64::from(size % 3);
                let entries = (1..=count).map(|n| entry(*last + n, *term, size.into())).collect();
                *last += count;
                let state = HardState { term: Term(*term), vote: replica, commit: LogIndex(5) };
                vec![
                    WalRecord::Append { replica, entries },
                    WalRecord::HardState { replica, state },
                ]
            }
        }
    }
}

/// Runs batches (each synced) until the disk fails. Returns the states after each batch; the
/// first is the empty one, and the number of batches that were acknowledged.
fn run(disk: &mut SimDisk, batches: &[Vec<WalRecord>]) -> (Vec<String>, usize) {
    let taken = std::mem::take(disk);
    let mut states = vec![content(&LiveState::default())];
    let mut acknowledged = 0;
    let shared = Shared::new(taken);
    if let Ok((mut wal, _)) = Wal::open(shared.clone(), SMALL) {
        for batch in batches {
            let appended = wal.append(batch);
            states.push(content(wal.live()));
            if appended.and_then(|()| wal.sync()).is_err() {
                break;
            }
            acknowledged += 1;
        }
    }
    *disk = shared.take();
    (states, acknowledged)
}

/// A disk that the test still holds after the log is gone.
#[derive(Clone)]
struct Shared(std::rc::Rc<std::cell::RefCell<SimDisk>>);

impl Shared {
    fn new(disk: SimDisk) -> Self {
        Shared(std::rc::Rc::new(std::cell::RefCell::new(disk)))
    }

    fn take(&self) -> SimDisk {
        self.0.borrow().clone()
    }
}

impl kvdb_wal::Disk for Shared {
    fn segments(&self) -> std::io::Result<Vec<u64>> {
        self.0.borrow().segments()
    }
    fn name(&self, segment: u64) -> String {
        self.0.borrow().name(segment)
    }
    fn create(&mut self, segment: u64, size_bytes: u64) -> std::io::Result<()> {
        self.0.borrow_mut().create(segment, size_bytes)
    }
    fn read(&self, segment: u64) -> std::io::Result<Vec<u8>> {
        self.0.borrow().read(segment)
    }
    fn write(&mut self, segment: u64, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.0.borrow_mut().write(segment, offset, bytes)
    }
    fn sync(&mut self, segment: u64) -> std::io::Result<()> {
        self.0.borrow_mut().sync(segment)
    }
    fn remove(&mut self, segment: u64) -> std::io::Result<()> {
        self.0.borrow_mut().remove(segment)
    }
}

fn steps() -> impl Strategy<Value = Vec<(u8, u8, u8)>> {
    prop::collection::vec((0u8..9, any::<u8>(), any::<u8>()), 1..60)
}

/// The state after a crash must be that after some batch, the acknowledged ones at least.
fn check_survival(disk: SimDisk, states: &[String], acknowledged: usize, context: &str) -> SimDisk {
    let shared = Shared::new(disk);
    let (wal, found) = match Wal::open(shared.clone(), SMALL) {
        Ok(opened) => opened,
        Err(error) => panic!("{context}: a crash was taken for damage: {error}"),
    };
    let found = content(&found);
    // The one that was under way may be there as well; nothing later, nothing earlier.
    let last = (acknowledged + 1).min(states.len() - 1);
    assert!(
        states[acknowledged..=last].contains(&found),
        "{context}: {acknowledged} batches were acknowledged, found {found}"
    );
    drop(wal);
    shared.take()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_acknowledged_is_lost_whenever_the_power_fails(steps in steps(), seed in any::<u64>()) {
        let batches = script(&steps);
        let mut whole = SimDisk::new();
        let (states, _) = run(&mut whole, &batches);
        let operations = whole.operations();
        for at in 1..=operations + 1 {
            let mut disk = SimDisk::new();
            disk.fail_from(at);
            let (_, acknowledged) = run(&mut disk, &batches);
            let context = format!("power out at {at} of {operations}, seed {seed}");
            let after = check_survival(disk.crash(seed ^ at), &states, acknowledged, &context);
            // And again, with a crash right after the recovery.
            check_survival(after.crash(seed), &states, acknowledged, &context);
            let killed = format!("killed at {at}");
            check_survival(disk.killed(), &states, acknowledged, &killed);
        }
    }

    #[test]
    fn a_log_goes_on_after_any_number_of_crashes(rounds in prop::collection::vec((steps(), 1u64..200), 1..5), seed in any::<u64>()) {
        let all: Vec<_> = rounds.iter().flat_map(|(steps, _)| steps.clone()).collect();
        let batches = script(&all);
        let mut disk = SimDisk::new();
        let mut done = 0;
        for (_, fail_after) in &rounds {
            let shared = Shared::new(disk.killed());
            shared.0.borrow_mut().fail_from(*fail_after);
            if let Ok((mut wal, found)) = Wal::open(shared.clone(), SMALL) {
                // Whatever survived is the state after one of the batches: go on from there.
                let reference = |count: usize| {
                    let (states, _) = run(&mut SimDisk::new(), &batches[..count]);
                    states[count].clone()
                };
                let at = (done..=batches.len()).find(|count| reference(*count) == content(&found));
                prop_assert!(at.is_some(), "acknowledged {}", done);
                done = at.unwrap_or(done);
                while done < batches.len() {
                    if wal.append(&batches[done]).and_then(|()| wal.sync()).is_err() { break; }
                    done += 1;
                }
            }
            disk = shared.take().crash(seed);
        }
    }
}

/// Every bit of a small, cleanly synced log: found, or without consequence.
#[test]
fn a_replica_that_a_message_has_created_is_born_with_what_it_has_voted() {
    let shared = Shared::new(SimDisk::new());
    let (mut wal, _) = Wal::open(shared.clone(), SMALL).unwrap();
    wal.append(&unborn_that_has_voted(1)).unwrap();
    wal.append(&[created(1)]).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let (_, live) = Wal::open(Shared::new(shared.take()), SMALL).unwrap();
    let replica = &live.replicas[&ReplicaId(1)];
    assert_eq!(replica.hard_state.vote, ReplicaId(77));
    assert_eq!((replica.volume, replica.start.index), (Some(VolumeId(1)), LogIndex(5)));
}

#[test]
fn every_flipped_bit_is_found_or_harmless() {
    let batches = script(&[(0, 0, 0), (8, 0, 40), (3, 0, 0), (8, 0, 90), (2, 0, 0), (8, 0, 30)]);
    let config = WalConfig { first_segment_bytes: 1024, segment_bytes: 1024, max_segments: 4 };
    let shared = Shared::new(SimDisk::new());
    let (mut wal, _) = Wal::open(shared.clone(), config).unwrap();
    for batch in &batches {
        wal.append(batch).unwrap();
        wal.sync().unwrap();
    }
    wal.mark_idle().unwrap();
    let expected = content(wal.live());
    drop(wal);
    let disk = shared.take();
    let mut found = 0;
    for bit in 0.. {
        let mut flipped = disk.clone();
        if !flipped.flip_bit(bit) {
            break;
        }
        match Wal::open(flipped, config) {
            Ok((_, state)) => assert_eq!(content(&state), expected, "bit {bit}"),
            Err(OpenError::Damaged { .. } | OpenError::UnknownFormat { .. }) => found += 1,
            Err(error) => panic!("bit {bit}: {error}"),
        }
    }
    assert!(found > 1000, "{found} flips were found");
}

#[test]
fn segments_that_nothing_needs_go_and_idle_replicas_are_rewritten() {
    let shared = Shared::new(SimDisk::new());
    let (mut wal, _) = Wal::open(shared.clone(), SMALL).unwrap();
    wal.append(&[created(1), created(2)]).unwrap();
    let gone = WalRecord::Destroyed { replica: ReplicaId(9), shard: ShardId(9) };
    wal.append(&[gone]).unwrap();
    wal.append(&[WalRecord::Append { replica: ReplicaId(2), entries: vec![entry(6, 5, 10)] }])
        .unwrap();
    for index in 6..2000 {
        let replica = ReplicaId(1);
        wal.append(&[
            WalRecord::Append { replica, entries: vec![entry(index, 5, 100)] },
            WalRecord::Compacted {
                replica,
                through: LogPosition { index: LogIndex(index), term: Term(5) },
            },
        ])
        .unwrap();
        wal.sync().unwrap();
        assert!(wal.stats().segments <= SMALL.max_segments + 1);
    }
    assert!(wal.stats().rewrites > 0);
    let expected = content(wal.live());
    drop(wal);
    let (_, found) = Wal::open(shared.take(), SMALL).unwrap();
    assert_eq!(content(&found), expected);
    assert_eq!(found.tombstones()[&ShardId(9)], ReplicaId(9));
}

#[test]
fn a_rewrite_may_span_segments() {
    let shared = Shared::new(SimDisk::new());
    let (mut wal, _) = Wal::open(shared.clone(), SMALL).unwrap();
    wal.append(&[created(1)]).unwrap();
    let entries: Vec<_> = (6..40).map(|index| entry(index, 5, 200)).collect();
    for entry in entries {
        wal.append(&[WalRecord::Append { replica: ReplicaId(1), entries: vec![entry] }]).unwrap();
        wal.sync().unwrap();
    }
    let expected = content(wal.live());
    drop(wal);
    for seed in 0..20 {
        let (_, found) = Wal::open(shared.take().crash(seed), SMALL).unwrap();
        assert_eq!(content(&found), expected);
    }
}

#[test]
fn a_full_disk_refuses_without_damage() {
    let mut disk = SimDisk::new();
    disk.limit_files(2);
    let shared = Shared::new(disk);
    let (mut wal, _) = Wal::open(shared.clone(), SMALL).unwrap();
    wal.append(&[created(1)]).unwrap();
    wal.sync().unwrap();
    let mut kept = content(wal.live());
    for index in 6.. {
        let record =
            WalRecord::Append { replica: ReplicaId(1), entries: vec![entry(index, 5, 300)] };
        if let Err(error) = wal.append(&[record]).and_then(|()| wal.sync()) {
            assert!(matches!(error, WalError::Failed { .. }), "{error}");
            break;
        }
        kept = content(wal.live());
    }
    assert!(matches!(wal.append(&[]), Err(WalError::Poisoned)));
    drop(wal);
    let mut disk = shared.take().crash(1);
    disk.limit_files(usize::MAX);
    let (_, found) = Wal::open(disk, SMALL).unwrap();
    assert_eq!(content(&found), kept);
}

#[test]
fn a_record_that_fits_no_segment_is_refused_and_poisons_nothing() {
    let (mut wal, _) = Wal::open(SimDisk::new(), SMALL).unwrap();
    wal.append(&[created(1)]).unwrap();
    let large = WalRecord::Append { replica: ReplicaId(1), entries: vec![entry(6, 5, 5000)] };
    assert!(matches!(wal.append(&[large]), Err(WalError::TooLarge { .. })));
    wal.sync().unwrap();
}

#[test]
fn a_missing_segment_in_the_middle_is_damage() {
    let shared = Shared::new(SimDisk::new());
    let (mut wal, _) = Wal::open(shared.clone(), SMALL).unwrap();
    wal.append(&[created(1)]).unwrap();
    for index in 6..20 {
        wal.append(&[WalRecord::Append {
            replica: ReplicaId(1),
            entries: vec![entry(index, 5, 300)],
        }])
        .unwrap();
    }
    wal.sync().unwrap();
    drop(wal);
    let mut disk = shared.take();
    let segments = kvdb_wal::Disk::segments(&disk).unwrap();
    assert!(segments.len() > 2);
    kvdb_wal::Disk::remove(&mut disk, segments[1]).unwrap();
    let refused = Wal::open(disk, SMALL).err().unwrap();
    assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
}

/// Fills a log on files, over several segments, and returns their paths.
fn filled(folder: &std::path::Path, config: WalConfig) -> Vec<std::path::PathBuf> {
    let (mut wal, _) = Wal::open(FileDisk::open(folder).unwrap(), config).unwrap();
    wal.append(&[created(1)]).unwrap();
    for index in 6..100 {
        let entries = vec![entry(index, 5, 1000)];
        wal.append(&[WalRecord::Append { replica: ReplicaId(1), entries }]).unwrap();
    }
    wal.sync().unwrap();
    let mut segments: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "wal"))
        .collect();
    segments.sort();
    segments
}

#[test]
fn a_segment_that_was_cut_off_anywhere_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let config =
        WalConfig { first_segment_bytes: 64 * 1024, segment_bytes: 64 * 1024, max_segments: 4 };
    let segments = filled(folder.path(), config);
    assert!(segments.len() > 1);
    for segment in segments {
        let whole = std::fs::read(&segment).unwrap();
        for length in [0, 31, 32, 100, 5000, whole.len() - 1] {
            let cut = std::fs::File::options().write(true).open(&segment).unwrap();
            cut.set_len(length as u64).unwrap();
            let refused = Wal::open(FileDisk::open(folder.path()).unwrap(), config).err().unwrap();
            let named = segment.display().to_string();
            assert!(
                matches!(&refused, OpenError::Damaged { file, .. } if *file == named),
                "{length} bytes of {named}: {refused}"
            );
            assert!(refused.to_string().contains("replace"), "{refused}");
            std::fs::write(&segment, &whole).unwrap();
        }
    }
    Wal::open(FileDisk::open(folder.path()).unwrap(), config).unwrap();
}

#[test]
fn a_log_begins_small_and_its_segments_grow_to_the_largest() {
    let folder = tempfile::tempdir().unwrap();
    let config =
        WalConfig { first_segment_bytes: 4 * 1024, segment_bytes: 32 * 1024, max_segments: 8 };
    let kib = |segments: &[std::path::PathBuf]| -> Vec<u64> {
        segments.iter().map(|path| path.metadata().unwrap().len() / 1024).collect()
    };
    let segments = filled(folder.path(), config);
    assert_eq!(kib(&segments), [4, 8, 16, 32, 32, 32]);
    // One that was cut to the size of a smaller one is damaged all the same.
    let whole = std::fs::read(&segments[2]).unwrap();
    for length in [4 * 1024, 8 * 1024] {
        let cut = std::fs::File::options().write(true).open(&segments[2]).unwrap();
        cut.set_len(length).unwrap();
        let refused = Wal::open(FileDisk::open(folder.path()).unwrap(), config).err().unwrap();
        assert!(refused.to_string().contains("it had 16384 bytes"), "{refused}");
        std::fs::write(&segments[2], &whole).unwrap();
    }
    // After a start it begins small again, in space that was a large segment's too.
    std::fs::write(folder.path().join("spare-9"), vec![1; 32 * 1024]).unwrap();
    let (mut wal, found) = Wal::open(FileDisk::open(folder.path()).unwrap(), config).unwrap();
    assert_eq!(found.replicas[&ReplicaId(1)].last_index(), LogIndex(99));
    let newest = folder.path().join("0000000000000007.wal");
    assert_eq!(kib(&[newest]), [4]);
    // A frame that is larger than what is due gets a segment that it fits into.
    let large = vec![entry(100, 5, 20_000)];
    wal.append(&[WalRecord::Append { replica: ReplicaId(1), entries: large }]).unwrap();
    wal.sync().unwrap();
    assert_eq!(kib(&[folder.path().join("0000000000000008.wal")]), [32]);
    drop(wal);
    let (_, found) = Wal::open(FileDisk::open(folder.path()).unwrap(), config).unwrap();
    assert_eq!(found.replicas[&ReplicaId(1)].last_index(), LogIndex(100));
}

#[test]
fn a_log_in_the_format_without_sizes_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let config =
        WalConfig { first_segment_bytes: 64 * 1024, segment_bytes: 64 * 1024, max_segments: 4 };
    let segments = filled(folder.path(), config);
    for (place, path) in segments.iter().enumerate() {
        // The frames are the same, after a header of 32 bytes.
        let now = std::fs::read(path).unwrap();
        let mut then = now[..28].to_vec();
        then[8..12].copy_from_slice(&1u32.to_le_bytes());
        then.extend_from_slice(&crc32c::crc32c(&then).to_le_bytes());
        then.extend_from_slice(&now[40..]);
        then.resize(64 * 1024, 0);
        assert_eq!(then[12..20], (place as u64 + 1).to_le_bytes());
        std::fs::write(path, then).unwrap();
    }
    let open = || Wal::open(FileDisk::open(folder.path()).unwrap(), config);
    let cut = std::fs::File::options().write(true).open(&segments[1]).unwrap();
    cut.set_len(63 * 1024).unwrap();
    let refused = open().err().unwrap();
    assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
    cut.set_len(64 * 1024).unwrap();
    let (_, found) = open().unwrap();
    assert_eq!(found.replicas[&ReplicaId(1)].last_index(), LogIndex(99));
    let (_, found) = open().unwrap();
    assert_eq!(found.replicas[&ReplicaId(1)].last_index(), LogIndex(99));
}

#[test]
fn a_segment_that_was_being_made_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let config =
        WalConfig { first_segment_bytes: 64 * 1024, segment_bytes: 64 * 1024, max_segments: 4 };
    filled(folder.path(), config);
    // It has its name only when it has its size: until then it is spare space.
    std::fs::write(folder.path().join("spare-7"), b"part of it").unwrap();
    let (wal, found) = Wal::open(FileDisk::open(folder.path()).unwrap(), config).unwrap();
    assert_eq!(found.replicas[&ReplicaId(1)].last_index(), LogIndex(99));
    drop(wal);
    assert!(!folder.path().join("spare-7").exists(), "the space is used");
    Wal::open(FileDisk::open(folder.path()).unwrap(), config).unwrap();
}

/// A directory whose limit is its own: `None` where this user may not mount one.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(folder: &std::path::Path) -> Option<Self> {
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=512k", "kvdb-test"]).arg(folder);
        let mounted = mount.stderr(std::process::Stdio::null()).status();
        mounted.is_ok_and(|status| status.success()).then(|| SmallDisk(folder.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_log_waits_for_room_and_goes_on_without_losing_anything() {
    let folder = tempfile::tempdir().unwrap();
    let Some(small) = SmallDisk::mount(folder.path()) else {
        eprintln!("skipped: mounting a small file system takes root");
        return;
    };
    let config =
        WalConfig { first_segment_bytes: 64 * 1024, segment_bytes: 64 * 1024, max_segments: 8 };
    let filler = small.0.join("filler");
    let wal_folder = small.0.join("wal");
    let (mut wal, _) = Wal::open(FileDisk::open(&wal_folder).unwrap(), config).unwrap();
    // Space for one more segment is kept while there is some.
    wal.keep_spare();
    assert!(wal_folder.join("spare-1").exists());
    let free = 512 * 1024 - 2 * 64 * 1024;
    std::fs::write(&filler, vec![1; free - 16 * 1024]).unwrap();
    let waits = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = waits.clone();
    let (gone, kept) = (filler.clone(), waits.clone());
    wal.disk_mut().wait_for_room(Box::new(move || {
        if counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 2 {
            std::fs::remove_file(&gone).unwrap();
        }
        true
    }));
    wal.append(&[created(1)]).unwrap();
    for index in 6..200 {
        let entries = vec![entry(index, 5, 1000)];
        wal.append(&[WalRecord::Append { replica: ReplicaId(1), entries }]).unwrap();
        wal.sync().unwrap();
        // The spare lets it go on for a while.
        let used = wal.stats().segments;
        let waited = kept.load(std::sync::atomic::Ordering::Relaxed);
        assert!(used > 2 || waited == 0, "{used} segments");
    }
    assert_eq!(waits.load(std::sync::atomic::Ordering::Relaxed), 3);
    drop(wal);
    let (_, found) = Wal::open(FileDisk::open(&wal_folder).unwrap(), config).unwrap();
    assert_eq!(found.replicas[&ReplicaId(1)].last_index(), LogIndex(199));
}

#[test]
fn the_file_disk_keeps_what_was_synced() {
    let folder = tempfile::tempdir().unwrap();
    let config =
        WalConfig { first_segment_bytes: 64 * 1024, segment_bytes: 64 * 1024, max_segments: 4 };
    let mut expected = String::new();
    for round in 0..3u64 {
        let disk = FileDisk::open(folder.path()).unwrap();
        let (mut wal, found) = Wal::open(disk, config).unwrap();
        if round > 0 {
            assert_eq!(content(&found), expected);
        } else {
            wal.append(&[created(1)]).unwrap();
        }
        for n in 0..200 {
            let index = 6 + round * 200 + n;
            wal.append(&[WalRecord::Append {
                replica: ReplicaId(1),
                entries: vec![entry(index, 5, 1000)],
            }])
            .unwrap();
            if index > 50 {
                let through = LogPosition { index: LogIndex(index - 20), term: Term(5) };
                wal.append(&[WalRecord::Compacted { replica: ReplicaId(1), through }]).unwrap();
            }
        }
        wal.sync().unwrap();
        expected = content(wal.live());
    }
}

#[test]
fn where_one_replica_goes_on_as_another_a_crash_never_leaves_neither() {
    let (old, new) = (ReplicaId(1), ReplicaId(9));
    let state = HardState { term: Term(70), vote: ReplicaId(0), commit: LogIndex(6) };
    for size in (0..1900).step_by(13) {
        let handover = |batch: &mut Vec<WalRecord>| {
            batch.push(WalRecord::Destroyed { replica: old, shard: ShardId(1) });
            batch.push(WalRecord::Created {
                replica: new,
                shard: ShardId(1),
                volume: Some(VolumeId(9)),
                start: LogPosition { index: LogIndex(6), term: Term(5) },
                birth: Bytes::from_static(b"birth"),
            });
            batch.push(WalRecord::HardState { replica: new, state });
        };
        let entries = vec![entry(6, 5, size)];
        let mut batch = vec![WalRecord::Append { replica: ReplicaId(2), entries }];
        handover(&mut batch);
        let batches = vec![vec![created(1), created(2)], batch];
        let mut whole = SimDisk::new();
        run(&mut whole, &batches);
        for operation in 0..whole.operations() {
            let mut disk = SimDisk::new();
            disk.fail_from(operation);
            let (_, acknowledged) = run(&mut disk, &batches);
            let (_, live) = Wal::open(Shared::new(disk.crash(operation)), SMALL).unwrap();
            match (live.replicas.contains_key(&old), live.replicas.get(&new)) {
                (true, None) => assert!(acknowledged < 2),
                (false, Some(found)) => {
                    assert_eq!(found.hard_state, state);
                    assert_eq!(live.tombstones()[&ShardId(1)], old);
                }
                (false, None) => assert_eq!(acknowledged, 0),
                (true, Some(_)) => panic!("both live"),
            }
        }
    }
}
