//! Errors, and which of them leave the store usable.

use kvdb_model::VolumeId;
use thiserror::Error;

/// What can go wrong. [`EngineError::Damaged`] and [`EngineError::Io`] mean that the process
/// should stop: the store can't say any more what it holds. The others leave it as it was.
#[derive(Debug, Error)]
pub enum EngineError {
    /// No such volume, or one that is whole no more (its manifest is gone): it is to be rebuilt
    /// from a snapshot.
    #[error("volume {0} is not there")]
    VolumeMissing(VolumeId),
    /// The volume exists already.
    #[error("volume {0} exists already")]
    VolumeExists(VolumeId),
    /// Keys for an ingestion didn't rise.
    #[error("ingested keys must rise; {0} does not")]
    NotAscending(String),
    /// A key is empty, or longer than [`crate::MAX_KEY_BYTES`].
    #[error("a key has {0} bytes; the limits are 1 and {max}", max = crate::MAX_KEY_BYTES)]
    KeyLength(usize),
    /// The disk has no room for what was to be written. Nothing is lost: it is kept in memory, and
    /// may be tried again when there is room.
    #[error("there is no room on the disk of {place}")]
    NoRoom {
        /// The file or folder.
        place: String,
    },
    /// Something on disk isn't what was written.
    #[error("volume {volume} is damaged: {what}")]
    Damaged {
        /// The volume.
        volume: VolumeId,
        /// What is wrong, with file and place where known.
        what: String,
    },
    /// The operating system refused.
    #[error("i/o error in {place}: {source}")]
    Io {
        /// File or operation.
        place: String,
        /// The cause.
        source: std::io::Error,
    },
}
