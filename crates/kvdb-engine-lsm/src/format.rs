//! The mark of an engine's folder: which format it has.
//!
//! `ENGINE` holds a magic of 8 bytes and the format (u32 LE). Another format is refused, never
//! guessed at. Volumes without a mark are refused too: the mark is written before the first.

use crate::error::{LsmError, io};
use crate::files;
use std::io::ErrorKind;
use std::path::Path;

const MAGIC: &[u8; 8] = b"KVDBENG\n";
/// What this binary writes, and the only one that it reads.
pub(crate) const FORMAT: u32 = 1;

/// Checks the mark, or sets it in a folder that holds nothing yet.
pub(crate) fn check_or_mark(folder: &Path, volumes: &Path) -> Result<(), LsmError> {
    let path = folder.join("ENGINE");
    let content = match std::fs::read(&path) {
        Ok(content) => content,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if io(volumes, std::fs::read_dir(volumes))?.next().is_some() {
                return Err(LsmError::NotAnEngine { path });
            }
            let content = [&MAGIC[..], &FORMAT.to_le_bytes()].concat();
            return io(&path, files::write_whole(&path, &content));
        }
        Err(source) => return Err(LsmError::Io { path, source }),
    };
    match content.strip_prefix(MAGIC).and_then(|rest| rest.try_into().ok()) {
        Some(format) => match u32::from_le_bytes(format) {
            FORMAT => Ok(()),
            found => Err(LsmError::UnknownFormat { path, found }),
        },
        None => Err(LsmError::NotAnEngine { path }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LsmConfig, LsmEngine};
    use kvdb_engine::Engine;
    use kvdb_model::VolumeId;
    use std::fs;

    fn refusal(folder: &Path) -> String {
        LsmEngine::open(folder, LsmConfig::default()).err().unwrap().to_string()
    }

    #[test]
    fn an_engine_of_another_format_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        drop(LsmEngine::open(folder.path(), LsmConfig::default()).unwrap());
        let path = folder.path().join("ENGINE");
        fs::write(&path, [&MAGIC[..], &9u32.to_le_bytes()].concat()).unwrap();
        let refused = refusal(folder.path());
        assert!(refused.ends_with("has format 9; this binary reads format 1"), "{refused}");
        for strange in [&b"something else"[..], b"", b"KVDBENG\n", b"KVDBENG\n\x01\0\0\0\0"] {
            fs::write(&path, strange).unwrap();
            assert!(refusal(folder.path()).ends_with("is not a KvDB engine file"));
        }
    }

    #[test]
    fn volumes_without_a_mark_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let engine = LsmEngine::open(folder.path(), LsmConfig::default()).unwrap();
        engine.create_volume(VolumeId(1)).unwrap();
        drop(engine);
        fs::remove_file(folder.path().join("ENGINE")).unwrap();
        assert!(refusal(folder.path()).ends_with("is not a KvDB engine file"));
    }

    #[test]
    fn settings_out_of_their_limits_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let config = LsmConfig { stall_at_runs: 65, ..LsmConfig::default() };
        let refused = LsmEngine::open(folder.path(), config).err().unwrap();
        assert!(matches!(refused, LsmError::Config(what) if what.contains("up to 64, not 65")));
    }
}
