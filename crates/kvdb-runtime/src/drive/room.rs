//! Room on the disk: noticing in time that it runs out, and going on when there is some again.
//!
//! A full disk must cost nobody anything but the writes that it has no room for. So a process
//! looks at its file system often, and says in good time that there is too little ([`Level::Low`]):
//! from then on clients' writes are refused, except those that free space. What it still has to
//! write by itself goes on: the log in segments whose blocks it has already, the engine's flushes
//! and compactions in the *reserve*, a file of zeros that is removed when they need its room. It is
//! made only when the end comes nearer: on a disk with plenty of room it would be room for nothing.
//! When even that is used up ([`Level::Out`]) nothing is taken from clients but reads.
//!
//! Nothing stops the process meanwhile: a segment or a flush that finds no room waits for it, and
//! nothing is acknowledged that isn't durable. A replica that waits takes no entries, which its
//! leader sees as a slow follower. So a leader also asks whether enough of the shard's other
//! voters have room: their processes tell it over the streams of the replicas' messages.
//!
//! Left out: quotas of less than the file system (they show as errors only, and then the log
//! waits), and file systems that can't reserve blocks: there the reserve is empty, and a write
//! into a segment that fails stops the process, as any failed write does.

use kvdb_engine_lsm::Room as EngineRoom;
use kvdb_model::NodeId;
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// Bytes that are kept for what must be written on a full disk, if the file system is large
/// enough.
pub const RESERVE_BYTES: u64 = 64 * 1024 * 1024;
/// The reserve takes no more than this part of a file system.
const LARGEST_PART: u64 = 32;
/// How often the file system is looked at. A disk that fills at 1 GiB/s fills by a third of the
/// reserve meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Looks in a row that must find room again before it counts as such: half a second.
const LOOKS_TO_BE_SURE: u32 = 25;
/// Times the reserve that are left when space for one more segment of the log is set aside.
const TIGHT: u64 = 8;
/// Times the reserve that are left when it is made: 4 GiB for the usual one. Who fills a disk by
/// more than that between two looks finds no reserve: then deletes wait for room as well.
const FAR: u64 = 64;
/// What metadata takes beside what is written.
const MARGIN_BYTES: u64 = 2 * 1024 * 1024;

/// How much room there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Enough.
    Ample,
    /// Only writes that free space are taken.
    Low,
    /// No writes are taken.
    Out,
}

impl Level {
    fn from_u8(number: u8) -> Self {
        match number {
            0 => Level::Ample,
            1 => Level::Low,
            _ => Level::Out,
        }
    }
}

/// The room of a process, and what it knows of its peers'.
pub struct Room {
    folder: PathBuf,
    reserve_path: PathBuf,
    wanted_bytes: u64,
    /// With as much left, there is no reserve yet.
    far_bytes: u64,
    /// Bytes in the reserve file.
    reserved_bytes: AtomicU64,
    /// One change of the reserve file at a time.
    reserve: Mutex<()>,
    free_bytes: AtomicU64,
    level: AtomicU8,
    log_waits: AtomicBool,
    flush_waits: AtomicBool,
    /// How often in a row there was more room than the level says.
    better: AtomicU32,
    told: watch::Sender<Level>,
    /// Peers that have said that they have too little.
    short_peers: Mutex<BTreeSet<NodeId>>,
    /// This process or a peer has too little: where nobody has, nothing else is looked at.
    anyone_short: AtomicBool,
    stop: (Mutex<bool>, Condvar),
}

impl Room {
    /// The room of what lives in `folder`. Takes the reserve where less than 64 times as much
    /// is left, as far as there is room for it.
    ///
    /// # Errors
    /// If the file system can't be looked at.
    pub fn new(folder: &Path, reserve_bytes: u64) -> io::Result<Self> {
        Self::with_reserve_within(folder, reserve_bytes, reserve_bytes.saturating_mul(FAR))
    }

    fn with_reserve_within(folder: &Path, reserve_bytes: u64, far_bytes: u64) -> io::Result<Self> {
        let size = file_system(folder)?;
        let room = Room {
            folder: folder.to_owned(),
            reserve_path: folder.join("reserve"),
            wanted_bytes: reserve_bytes.min(size.total_bytes / LARGEST_PART),
            far_bytes,
            reserved_bytes: AtomicU64::new(0),
            reserve: Mutex::new(()),
            free_bytes: AtomicU64::new(size.free_bytes),
            level: AtomicU8::new(Level::Ample as u8),
            log_waits: AtomicBool::new(false),
            flush_waits: AtomicBool::new(false),
            better: AtomicU32::new(0),
            told: watch::Sender::new(Level::Ample),
            short_peers: Mutex::default(),
            anyone_short: AtomicBool::new(false),
            stop: Default::default(),
        };
        let left = std::fs::metadata(&room.reserve_path).map_or(0, |found| found.len());
        room.reserved_bytes.store(left, Ordering::Relaxed);
        room.look();
        Ok(room)
    }

    /// How much there is.
    pub fn level(&self) -> Level {
        Level::from_u8(self.level.load(Ordering::Relaxed))
    }

    /// Bytes that the file system has free, without the reserve.
    pub fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }

    /// Changes with the level.
    pub fn changes(&self) -> watch::Receiver<Level> {
        self.told.subscribe()
    }

    /// How much a shard has whose leader is here and whose other voters are on `others`. It takes
    /// writes while a majority has room.
    pub fn of_shard(&self, others: impl Iterator<Item = NodeId>) -> Level {
        let own = self.level();
        if own != Level::Ample || !self.anyone_short.load(Ordering::Relaxed) {
            return own;
        }
        let short = self.short_peers.lock();
        let (mut voters, mut ample) = (1, 1);
        for node in others {
            voters += 1;
            ample += usize::from(!short.contains(&node));
        }
        if ample > voters / 2 { Level::Ample } else { Level::Low }
    }

    /// Whether the end is in sight.
    pub(crate) fn is_tight(&self) -> bool {
        self.free_bytes() < self.wanted_bytes.saturating_mul(TIGHT)
    }

    /// Whether a peer has said that it has too little.
    pub fn is_short(&self, peer: NodeId) -> bool {
        self.anyone_short.load(Ordering::Relaxed) && self.short_peers.lock().contains(&peer)
    }

    /// A peer has said how much it has, or can't be heard any more.
    pub(crate) fn peer_is(&self, peer: NodeId, short: bool) {
        let mut peers = self.short_peers.lock();
        if short {
            peers.insert(peer)
        } else {
            peers.remove(&peer)
        };
        let own = self.level() != Level::Ample;
        self.anyone_short.store(own || !peers.is_empty(), Ordering::Relaxed);
    }

    /// The log has no room for its next segment. Waits a little; returns whether to try again
    /// (and not to end).
    pub(crate) fn log_waits(&self) -> bool {
        self.log_waits.store(true, Ordering::Relaxed);
        self.look();
        self.pause()
    }

    /// The log goes on.
    pub(crate) fn log_goes_on(&self) {
        self.log_waits.store(false, Ordering::Relaxed);
    }

    /// Whether all waiting was ended.
    pub(crate) fn is_stopped(&self) -> bool {
        *self.stop.0.lock()
    }

    /// Waits until it is time to look again. Returns whether the process goes on.
    pub(crate) fn pause(&self) -> bool {
        let (stopped, stopping) = &self.stop;
        let mut stopped = stopped.lock();
        if !*stopped {
            stopping.wait_for(&mut stopped, LOOK_EVERY);
        }
        !*stopped
    }

    /// Ends all waiting.
    pub(crate) fn stop(&self) {
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
    }

    /// Looks again and again until the process stops.
    pub(crate) fn watch(&self) {
        while self.pause() {
            self.look();
        }
    }

    fn look(&self) {
        let Ok(size) = file_system(&self.folder) else { return };
        self.free_bytes.store(size.free_bytes, Ordering::Relaxed);
        let facts = Facts {
            free_bytes: size.free_bytes,
            reserved_bytes: self.reserved_bytes.load(Ordering::Relaxed),
            wanted_bytes: self.wanted_bytes,
            far_bytes: self.far_bytes,
            log_waits: self.log_waits.load(Ordering::Relaxed),
            flush_waits: self.flush_waits.load(Ordering::Relaxed),
        };
        if facts.may_reserve() {
            self.fill_reserve();
        }
        let before = self.level();
        let now = facts.level(before);
        // Worse at once, better when it lasts: who fills a disk may do it in several goes.
        let lasts =
            now < before && self.better.fetch_add(1, Ordering::Relaxed) + 1 >= LOOKS_TO_BE_SURE;
        if now >= before || lasts {
            self.better.store(0, Ordering::Relaxed);
        }
        if now > before || lasts {
            self.change(before, now, &facts);
        }
    }

    fn change(&self, before: Level, now: Level, facts: &Facts) {
        self.level.store(now as u8, Ordering::Relaxed);
        {
            let peers = self.short_peers.lock();
            let short = now != Level::Ample || !peers.is_empty();
            self.anyone_short.store(short, Ordering::Relaxed);
        }
        self.told.send_replace(now);
        let free_mib = facts.free_bytes >> 20;
        let folder = self.folder.display();
        match now {
            Level::Ample => {
                tracing::info!(%folder, free_mib, "there is disk space again: writes are accepted")
            }
            Level::Low if before == Level::Ample => tracing::error!(
                %folder, free_mib,
                "the disk is full: writes are refused, reads and deletes go on; free disk space"
            ),
            Level::Low => {
                tracing::warn!(%folder, free_mib, "there is disk space for deletes again")
            }
            Level::Out => tracing::error!(
                %folder, free_mib,
                "the disk is full and the reserve is used up: only reads go on; free disk space"
            ),
        }
    }

    fn fill_reserve(&self) {
        let _one = self.reserve.lock();
        if reserve(&self.reserve_path, self.wanted_bytes).is_ok() {
            self.reserved_bytes.store(self.wanted_bytes, Ordering::Relaxed);
        } else {
            let _ = std::fs::remove_file(&self.reserve_path);
            self.reserved_bytes.store(0, Ordering::Relaxed);
        }
    }

    /// Lets go of the reserve. Returns whether there was one.
    fn release(&self) -> bool {
        let _one = self.reserve.lock();
        let held = self.reserved_bytes.swap(0, Ordering::Relaxed) > 0;
        if held && std::fs::remove_file(&self.reserve_path).is_ok() {
            tracing::warn!(folder = %self.folder.display(), "the reserve is used to flush");
        }
        held
    }

    fn has(&self, bytes: u64) -> bool {
        // A file system that can't be asked is tried.
        file_system(&self.folder).map_or(true, |size| size.free_bytes >= bytes + MARGIN_BYTES)
    }
}

impl EngineRoom for Room {
    fn for_flush(&self, bytes: u64) -> bool {
        let enough = self.has(bytes) || self.release() && self.has(bytes);
        self.flush_waits.store(!enough, Ordering::Relaxed);
        enough
    }

    fn for_compaction(&self, bytes: u64) -> bool {
        // Nothing is freed on a full disk without a compaction.
        self.has(bytes) || self.level() != Level::Ample && self.release() && self.has(bytes)
    }

    fn for_volume(&self) -> bool {
        self.level() == Level::Ample
    }
}

/// What a level is decided by.
struct Facts {
    free_bytes: u64,
    reserved_bytes: u64,
    wanted_bytes: u64,
    far_bytes: u64,
    log_waits: bool,
    flush_waits: bool,
}

impl Facts {
    fn is_whole(&self) -> bool {
        self.reserved_bytes >= self.wanted_bytes
    }

    /// Whether the reserve is to be filled: when the end comes nearer, with as much left again as
    /// makes a level ample.
    fn may_reserve(&self) -> bool {
        !self.is_whole()
            && self.free_bytes < self.far_bytes
            && self.free_bytes >= self.wanted_bytes.saturating_mul(3)
    }

    /// The level, with a gap between going down and coming up, so that it doesn't flicker.
    fn level(&self, before: Level) -> Level {
        let wanted = self.wanted_bytes;
        let waits = self.log_waits || self.flush_waits;
        if waits || self.free_bytes + self.reserved_bytes < wanted / 8 {
            return Level::Out;
        }
        let enough = match before {
            Level::Ample => wanted,
            Level::Low | Level::Out => wanted + wanted / 2,
        };
        if self.free_bytes < enough { Level::Low } else { Level::Ample }
    }
}

/// A file system's size.
struct Size {
    total_bytes: u64,
    free_bytes: u64,
}

fn file_system(folder: &Path) -> io::Result<Size> {
    let found = rustix::fs::statvfs(folder)?;
    Ok(Size {
        total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
        free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
    })
}

fn reserve(path: &Path, bytes: u64) -> io::Result<()> {
    let file: File = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn facts(free: u64, reserved: u64) -> Facts {
        Facts {
            free_bytes: free * MIB,
            reserved_bytes: reserved * MIB,
            wanted_bytes: 64 * MIB,
            far_bytes: 4096 * MIB,
            log_waits: false,
            flush_waits: false,
        }
    }

    #[test]
    fn writes_stop_before_the_disk_is_full_and_deletes_when_the_reserve_is_gone() {
        assert_eq!(facts(64, 64).level(Level::Ample), Level::Ample);
        assert_eq!(facts(63, 64).level(Level::Ample), Level::Low);
        assert_eq!(facts(0, 64).level(Level::Low), Level::Low);
        assert_eq!(facts(8, 0).level(Level::Low), Level::Low);
        assert_eq!(facts(7, 0).level(Level::Low), Level::Out);
    }

    #[test]
    fn writes_go_on_with_more_room_than_they_stopped_at() {
        assert_eq!(facts(95, 0).level(Level::Low), Level::Low);
        assert_eq!(facts(96, 0).level(Level::Low), Level::Ample);
        assert_eq!(facts(96, 0).level(Level::Out), Level::Ample);
    }

    #[test]
    fn a_log_or_flush_that_waits_takes_nothing_more_whatever_is_free() {
        assert_eq!(Facts { log_waits: true, ..facts(500, 64) }.level(Level::Ample), Level::Out);
        assert_eq!(Facts { flush_waits: true, ..facts(500, 64) }.level(Level::Ample), Level::Out);
    }

    #[test]
    fn filling_the_reserve_never_makes_the_room_low_again() {
        let before = facts(192, 0);
        assert!(before.may_reserve());
        assert_eq!(facts(192 - 64, 64).level(Level::Low), Level::Ample);
        assert!(!facts(191, 0).may_reserve());
        assert!(!facts(500, 64).may_reserve());
    }

    #[test]
    fn a_reserve_is_made_only_when_the_end_comes_nearer() {
        assert!(!facts(4096, 0).may_reserve());
        assert!(facts(4095, 0).may_reserve());
        let folder = tempfile::tempdir().unwrap();
        // Nobody's disk has so little left that this is near.
        Room::with_reserve_within(folder.path(), MIB, 1).unwrap();
        assert!(!folder.path().join("reserve").exists());
    }

    #[test]
    fn a_flush_gets_the_reserve_when_the_file_system_has_no_room() {
        let folder = tempfile::tempdir().unwrap();
        let room = Room::with_reserve_within(folder.path(), 4 * MIB, u64::MAX).unwrap();
        assert_eq!(room.reserved_bytes.load(Ordering::Relaxed), 4 * MIB);
        assert!(room.for_flush(MIB));
        assert!(folder.path().join("reserve").exists());
        // More than any disk has: the reserve goes, and it isn't enough.
        assert!(!room.for_flush(u64::MAX / 2));
        assert!(!folder.path().join("reserve").exists());
        room.look();
        assert_eq!(room.level(), Level::Out);
        assert!(room.for_flush(MIB));
        for _ in 1..LOOKS_TO_BE_SURE {
            room.look();
            assert_eq!(room.level(), Level::Out);
        }
        room.look();
        assert_eq!(room.level(), Level::Ample);
        assert!(folder.path().join("reserve").exists());
    }

    #[test]
    fn a_shard_takes_writes_while_a_majority_of_its_voters_has_room() {
        let folder = tempfile::tempdir().unwrap();
        let room = Room::new(folder.path(), MIB).unwrap();
        let level = || room.of_shard([2, 3].map(NodeId).into_iter());
        assert_eq!(level(), Level::Ample);
        room.peer_is(NodeId(2), true);
        // The leader and the third are a majority.
        assert_eq!(level(), Level::Ample);
        room.peer_is(NodeId(3), true);
        assert_eq!(level(), Level::Low);
        assert_eq!(room.of_shard([4, 5].map(NodeId).into_iter()), Level::Ample);
        room.peer_is(NodeId(2), false);
        assert_eq!(level(), Level::Ample);
    }
}
