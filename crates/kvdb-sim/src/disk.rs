//! The log's disk, shared between a process and the world, which decides what a crash leaves.

use kvdb_wal::Disk;
use kvdb_wal::sim_disk::SimDisk;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A disk that outlives the process that writes to it.
#[derive(Clone, Default)]
pub(crate) struct SharedDisk(Arc<Mutex<SimDisk>>);

impl SharedDisk {
    fn lock(&self) -> MutexGuard<'_, SimDisk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power went out: some of what wasn't synced is there, some isn't, by the seed.
    pub(crate) fn lose_power(&self, seed: u64) {
        let mut disk = self.lock();
        *disk = disk.crash(seed);
    }

    /// The process was killed: everything that it wrote is there.
    pub(crate) fn be_killed(&self) {
        let mut disk = self.lock();
        *disk = disk.killed();
    }

    /// Fails everything after a few more operations, as a dying disk does.
    pub(crate) fn fail_after(&self, operations: u64) {
        let mut disk = self.lock();
        let from = disk.operations() + operations + 1;
        disk.fail_from(from);
    }
}

impl Disk for SharedDisk {
    fn segments(&self) -> io::Result<Vec<u64>> {
        self.lock().segments()
    }

    fn name(&self, segment: u64) -> String {
        self.lock().name(segment)
    }

    fn create(&mut self, segment: u64, size_bytes: u64) -> io::Result<()> {
        self.lock().create(segment, size_bytes)
    }

    fn read(&self, segment: u64) -> io::Result<Vec<u8>> {
        self.lock().read(segment)
    }

    fn write(&mut self, segment: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.lock().write(segment, offset, bytes)
    }

    fn sync(&mut self, segment: u64) -> io::Result<()> {
        self.lock().sync(segment)
    }

    fn remove(&mut self, segment: u64) -> io::Result<()> {
        self.lock().remove(segment)
    }
}
