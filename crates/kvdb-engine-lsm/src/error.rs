//! Errors of opening, and what the library's errors mean.

use crate::format::FORMAT;
use kvdb_engine::EngineError;
use kvdb_model::VolumeId;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why an engine can't be opened.
#[derive(Debug, Error)]
pub enum LsmError {
    /// The operating system refused. Nothing is known about what is on disk: it may be whole.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The folder isn't an engine's.
    #[error("{path} is not a KvDB engine file")]
    NotAnEngine {
        /// The file.
        path: PathBuf,
    },
    /// It was made by another version.
    #[error("{path} has format {found}; this binary reads format {FORMAT}")]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A setting is out of its limits.
    #[error("engine settings: {0}")]
    Config(String),
}

pub(crate) fn io<T>(path: &Path, result: std::io::Result<T>) -> Result<T, LsmError> {
    result.map_err(|source| LsmError::Io { path: path.to_owned(), source })
}

pub(crate) fn engine_io<T>(path: &Path, result: std::io::Result<T>) -> Result<T, EngineError> {
    result.map_err(|source| of_io(path, source))
}

fn of_io(path: &Path, source: std::io::Error) -> EngineError {
    let place = path.display().to_string();
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => EngineError::NoRoom { place },
        _ => EngineError::Io { place, source },
    }
}

pub(crate) fn no_room(path: &Path) -> EngineError {
    EngineError::NoRoom { place: path.display().to_string() }
}

/// Whether an error of a read says that bytes aren't there which were written, and not that they
/// couldn't be read. (An invalid argument is a place in a file that a damaged one made up.)
pub(crate) fn is_damage(error: &std::io::Error) -> bool {
    use ErrorKind::{InvalidData, InvalidInput, NotFound, UnexpectedEof};
    matches!(error.kind(), NotFound | UnexpectedEof | InvalidData | InvalidInput)
}

/// What an error of a tree means for its volume.
pub(crate) fn of_tree(volume: VolumeId, path: &Path, error: lsm_tree::Error) -> EngineError {
    match error {
        lsm_tree::Error::Io(source) if !is_damage(&source) => of_io(path, source),
        other => EngineError::Damaged { volume, what: format!("{}: {other}", path.display()) },
    }
}
