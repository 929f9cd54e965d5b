//! With whom a coordinator has founded its group, on disk.
//!
//! `FOUNDERS`: crc32c (u32 LE) over the rest, then the command that writes the same into the
//! group's log. Written before a founder makes its first promise: from then on each founder knows
//! the data directories of the others, and one that comes back with another is told so, whatever
//! of the log has been applied where.

use bytes::Bytes;
use kvdb_control::{ControlCommand, Coordinators};
use kvdb_runtime::identity::replace;
use parking_lot::RwLock;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The founders, once they have met.
pub(crate) struct Founders {
    folder: PathBuf,
    known: RwLock<Coordinators>,
}

impl Founders {
    /// What is known from an earlier start.
    pub(crate) fn open(folder: &Path) -> Result<Self, String> {
        let path = folder.join("FOUNDERS");
        let known = match fs::read(&path) {
            Ok(content) => decode(&content)
                .ok_or_else(|| format!("{} is damaged; put it back from a backup, or replace this coordinator by a new one", path.display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Coordinators::new(),
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        Ok(Founders { folder: folder.to_owned(), known: RwLock::new(known) })
    }

    pub(crate) fn known(&self) -> Coordinators {
        self.known.read().clone()
    }

    /// Remembers them for ever.
    pub(crate) fn remember(&self, founders: Coordinators) -> Result<(), String> {
        let command = ControlCommand::FoundCoordinators { founders: founders.clone() }.to_bytes();
        let content = [&crc32c::crc32c(&command).to_le_bytes()[..], &command].concat();
        let path = self.folder.join("FOUNDERS");
        replace(&path, &content).map_err(|error| format!("{}: {error}", path.display()))?;
        *self.known.write() = founders;
        Ok(())
    }
}

fn decode(content: &[u8]) -> Option<Coordinators> {
    let (crc, command) = content.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*crc) != crc32c::crc32c(command) {
        return None;
    }
    match ControlCommand::decode(&Bytes::copy_from_slice(command)) {
        Ok(ControlCommand::FoundCoordinators { founders }) => Some(founders),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_control::CoordinatorRecord;
    use kvdb_model::NodeId;

    #[test]
    fn founders_are_remembered_and_damage_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let founders = Founders::open(folder.path()).unwrap();
        assert!(founders.known().is_empty());
        let record = CoordinatorRecord { address: "a:1".to_owned(), token: 7, is_removed: false };
        let members = Coordinators::from([(NodeId(1), record)]);
        founders.remember(members.clone()).unwrap();
        assert_eq!(founders.known(), members);
        assert_eq!(Founders::open(folder.path()).unwrap().known(), members);

        let path = folder.path().join("FOUNDERS");
        let content = fs::read(&path).unwrap();
        for bit in 0..content.len() * 8 {
            let mut flipped = content.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, flipped).unwrap();
            assert!(Founders::open(folder.path()).is_err(), "bit {bit}");
        }
    }
}
