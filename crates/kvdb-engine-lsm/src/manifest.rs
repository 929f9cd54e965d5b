//! Checking a tree's manifest before it is opened.
//!
//! `current` holds: version (u64 LE), checksum (u128 LE, XXH3 of the file `v<version>`), kind of
//! checksum (u8, 0). Tables carry checksums of their own that the library checks as it reads.

use std::path::Path;

/// What is wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// There is none: the volume was never complete, or lost its root.
    Missing,
    /// It isn't what was written.
    Damaged(String),
}

const CURRENT_BYTES: usize = 25;

pub(crate) fn check(folder: &Path) -> Result<(), Problem> {
    let path = folder.join("current");
    let current = match std::fs::read(&path) {
        Ok(current) => current,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(Problem::Missing),
        Err(error) => return Err(Problem::Damaged(format!("{}: {error}", path.display()))),
    };
    let damaged = |what: &str| Err(Problem::Damaged(format!("{}: {what}", path.display())));
    if current.len() != CURRENT_BYTES {
        return damaged(&format!("has {} bytes instead of {CURRENT_BYTES}", current.len()));
    }
    let mut version = [0; 8];
    version.copy_from_slice(&current[..8]);
    let mut checksum = [0; 16];
    checksum.copy_from_slice(&current[8..24]);
    if current[24] != 0 {
        return damaged("names an unknown kind of checksum");
    }
    let version_path = folder.join(format!("v{}", u64::from_le_bytes(version)));
    let content = match std::fs::read(&version_path) {
        Ok(content) => content,
        Err(error) => {
            return Err(Problem::Damaged(format!("{}: {error}", version_path.display())));
        }
    };
    if xxhash_rust::xxh3::xxh3_128(&content) != u128::from_le_bytes(checksum) {
        return Err(Problem::Damaged(format!(
            "{}: its checksum does not match",
            version_path.display()
        )));
    }
    Ok(())
}
