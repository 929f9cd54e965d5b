//! The mark of an engine's folder: which format it has.
//!
//! `ENGINE` holds the same mark twice: a magic of 8 bytes, the format (u32 LE) and their CRC32C (u32
//! LE). One that is whole says which format it is; a damaged one beside it is written anew. Another
//! format is refused, never guessed at. Volumes without a mark are refused too: the mark is written
//! before the first.

use crate::error::{LsmError, io};
use crate::files;
use std::io::ErrorKind;
use std::path::Path;

const MAGIC: &[u8; 8] = b"KVDBENG\n";
/// What this binary writes, and the only one that it reads.
pub(crate) const FORMAT: u32 = 2;
const MARK_BYTES: usize = 16;

/// Checks the mark, or sets it in a folder that holds nothing yet.
pub(crate) fn check_or_mark(folder: &Path, volumes: &Path) -> Result<(), LsmError> {
    let path = folder.join("ENGINE");
    let content = match std::fs::read(&path) {
        Ok(content) => content,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if io(volumes, std::fs::read_dir(volumes))?.next().is_some() {
                return Err(LsmError::NotAnEngine { path });
            }
            return io(&path, files::write_whole(&path, &marks()));
        }
        Err(source) => return Err(LsmError::Io { path, source }),
    };
    match format_in(&content) {
        Some(FORMAT) if content != marks() => {
            tracing::error!(path = %path.display(), "a part of the mark was damaged: written anew");
            io(&path, files::write_whole(&path, &marks()))
        }
        Some(FORMAT) => Ok(()),
        Some(found) => Err(LsmError::UnknownFormat { path, found }),
        None => Err(LsmError::NotAnEngine { path }),
    }
}

fn mark(format: u32) -> Vec<u8> {
    let mut mark = [&MAGIC[..], &format.to_le_bytes()].concat();
    mark.extend_from_slice(&crc32c::crc32c(&mark).to_le_bytes());
    mark
}

fn marks() -> Vec<u8> {
    mark(FORMAT).repeat(2)
}

/// The format that a whole mark names. (Those of format 1 had neither checksum nor copy.)
fn format_in(content: &[u8]) -> Option<u32> {
    let number = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_le_bytes);
    if content.len() < MARK_BYTES {
        return number(content.strip_prefix(MAGIC)?);
    }
    let named = |part: &[u8]| number(part.get(MAGIC.len()..MAGIC.len() + 4)?);
    content.chunks(MARK_BYTES).find_map(|part| named(part).filter(|format| part == mark(*format)))
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
        for (content, format) in
            [(mark(9).repeat(2), 9), ([&MAGIC[..], &1u32.to_le_bytes()].concat(), 1)]
        {
            fs::write(&path, content).unwrap();
            let refused = refusal(folder.path());
            let expected = format!("has format {format}; this binary reads format 2");
            assert!(refused.ends_with(&expected), "{refused}");
        }
        for strange in [&b"something else"[..], b"", b"KVDBENG\n", b"KVDBENG\n\x01\0\0\0\0"] {
            fs::write(&path, strange).unwrap();
            assert!(refusal(folder.path()).ends_with("is not a KvDB engine file"));
        }
    }

    #[test]
    fn a_flipped_bit_in_the_mark_is_mended_from_its_copy() {
        let folder = tempfile::tempdir().unwrap();
        drop(LsmEngine::open(folder.path(), LsmConfig::default()).unwrap());
        let path = folder.path().join("ENGINE");
        for bit in 0..marks().len() * 8 {
            let mut flipped = marks();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &flipped).unwrap();
            drop(LsmEngine::open(folder.path(), LsmConfig::default()).unwrap());
            assert_eq!(fs::read(&path).unwrap(), marks(), "bit {bit}");
        }
        let mut both = marks();
        both[0] ^= 1;
        both[MARK_BYTES + 9] ^= 1;
        fs::write(&path, &both).unwrap();
        assert!(refusal(folder.path()).ends_with("is not a KvDB engine file"));
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
