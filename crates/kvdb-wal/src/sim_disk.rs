//! A disk for tests and the simulator: in memory, with what real disks do to the careless.
//!
//! What was written since the last sync of a file is pending. A crash keeps an arbitrary subset of
//! the pending pages (4 KiB), in no order, and forgets the rest.

use crate::disk::Disk;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::io;

const PAGE: usize = 4096;

#[derive(Clone, Default)]
struct SimFile {
    durable: Vec<u8>,
    now: Vec<u8>,
    /// Pages that differ, or may.
    pending: std::collections::BTreeSet<usize>,
}

/// A disk in memory.
#[derive(Clone, Default)]
pub struct SimDisk {
    files: BTreeMap<u64, SimFile>,
    /// Calls of `write`, `sync`, `create` and `remove` so far.
    operations: u64,
    /// Fail this operation and all after it.
    fail_from: Option<u64>,
    /// Refuse to make more files than this.
    max_files: Option<usize>,
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Operations that change something, so far.
    pub fn operations(&self) -> u64 {
        self.operations
    }

    /// The power goes out before the operation with this number: it and all after it fail.
    pub fn fail_from(&mut self, operation: u64) {
        self.fail_from = Some(operation);
    }

    /// The disk is full once it has so many files.
    pub fn limit_files(&mut self, files: usize) {
        self.max_files = Some(files);
    }

    /// What is on the disk after a power cut; the seed decides which unsynced pages made it.
    #[must_use]
    pub fn crash(&self, seed: u64) -> SimDisk {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut after = SimDisk::new();
        for (id, file) in &self.files {
            let mut durable = file.durable.clone();
            for page in &file.pending {
                let range = page * PAGE..((page + 1) * PAGE).min(file.now.len());
                // Sectors of a page may be torn too.
                for sector in range.step_by(512) {
                    let sector = sector..(sector + 512).min(file.now.len());
                    if random.next_u32().is_multiple_of(2) {
                        durable[sector.clone()].copy_from_slice(&file.now[sector]);
                    }
                }
            }
            let file = SimFile { now: durable.clone(), durable, ..SimFile::default() };
            after.files.insert(*id, file);
        }
        after
    }

    /// What a killed process leaves: all that was written, synced or not.
    #[must_use]
    pub fn killed(&self) -> SimDisk {
        let mut after = self.clone();
        after.operations = 0;
        after.fail_from = None;
        after
    }

    /// Flips one bit of what is stored. Bits are counted through all files; returns false past the
    /// last.
    pub fn flip_bit(&mut self, bit: u64) -> bool {
        let mut at = bit / 8;
        for file in self.files.values_mut() {
            let length = file.now.len() as u64;
            if at < length {
                file.now[at as usize] ^= 1 << (bit % 8);
                file.durable[at as usize] ^= 1 << (bit % 8);
                return true;
            }
            at -= length;
        }
        false
    }

    fn step(&mut self) -> io::Result<()> {
        self.operations += 1;
        match self.fail_from {
            Some(from) if self.operations >= from => Err(io::Error::other("the power is out")),
            _ => Ok(()),
        }
    }
}

impl Disk for SimDisk {
    fn segments(&self) -> io::Result<Vec<u64>> {
        Ok(self.files.keys().copied().collect())
    }

    fn name(&self, segment: u64) -> String {
        format!("{segment}.wal")
    }

    fn create(&mut self, segment: u64, size_bytes: u64) -> io::Result<()> {
        if self.max_files.is_some_and(|most| self.files.len() >= most) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.step()?;
        let content = vec![0; size_bytes as usize];
        self.files.insert(
            segment,
            SimFile { durable: content.clone(), now: content, ..SimFile::default() },
        );
        Ok(())
    }

    fn read(&self, segment: u64) -> io::Result<Vec<u8>> {
        let file = self.files.get(&segment).ok_or(io::ErrorKind::NotFound)?;
        Ok(file.now.clone())
    }

    fn write(&mut self, segment: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let failed = self.step();
        let file = self.files.get_mut(&segment).ok_or(io::ErrorKind::NotFound)?;
        let start = offset as usize;
        file.now[start..start + bytes.len()].copy_from_slice(bytes);
        file.pending.extend(start / PAGE..=(start + bytes.len().max(1) - 1) / PAGE);
        failed
    }

    fn sync(&mut self, segment: u64) -> io::Result<()> {
        self.step()?;
        let file = self.files.get_mut(&segment).ok_or(io::ErrorKind::NotFound)?;
        for page in std::mem::take(&mut file.pending) {
            let range = page * PAGE..((page + 1) * PAGE).min(file.now.len());
            file.durable[range.clone()].copy_from_slice(&file.now[range]);
        }
        Ok(())
    }

    fn remove(&mut self, segment: u64) -> io::Result<()> {
        self.step()?;
        self.files.remove(&segment);
        Ok(())
    }
}
