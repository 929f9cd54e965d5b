//! What the library doesn't check, checked before a volume is opened.
//!
//! - The manifest. `current` names it and holds its checksum: version (u64 LE), XXH3 of the file
//!   `v<version>` (u128 LE), kind of checksum (u8, 0). The library writes this checksum and
//!   doesn't look at it.
//! - The table of contents of each table in the manifest. It has a checksum that the library
//!   looks at after it has believed the count in it, and asked for memory for as many entries.
//!
//! Both files are containers of sections, with a table of contents behind them and a trailer at
//! the end: magic, version (u8), kind of checksum (u8), XXH3 of the table of contents (u128 LE),
//! its place and its length (u64 LE each). The blocks of a table carry checksums that the library
//! checks whenever it reads one.

use crate::error::is_damage;
use std::fs::File;
use std::io::{self, Cursor};
use std::os::unix::fs::FileExt;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_128;

const CURRENT_BYTES: usize = 25;
const TRAILER_BYTES: usize = 38;
/// Far above what the sections of a table take.
const MOST_CONTENTS_BYTES: u64 = 64 * 1024;

/// What is wrong with the volume in `folder`, with the file; `None` if nothing is found. A missing
/// manifest is damage: a volume gets its name when its manifest is there.
///
/// # Errors
/// If a file can't be read, and so may be whole.
pub(crate) fn damage(folder: &Path) -> io::Result<Option<String>> {
    match check(folder) {
        Ok(()) => Ok(None),
        Err(Problem::Damage(what)) => Ok(Some(what)),
        Err(Problem::Unreadable(error)) => Err(error),
    }
}

enum Problem {
    Damage(String),
    Unreadable(io::Error),
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> Problem {
    Problem::Damage(format!("{}: {what}", path.display()))
}

/// Sorts the errors of reading `path`.
fn read<T>(path: &Path, result: io::Result<T>) -> Result<T, Problem> {
    result.map_err(|error| match is_damage(&error) {
        true => damaged(path, error),
        false => Problem::Unreadable(error),
    })
}

fn check(folder: &Path) -> Result<(), Problem> {
    let (version, checksum) = current(&folder.join("current"))?;
    let path = folder.join(format!("v{version}"));
    let manifest = read(&path, std::fs::read(&path))?;
    if xxh3_128(&manifest) != checksum {
        return Err(damaged(&path, "its checksum does not match"));
    }
    let tables = tables(&manifest).ok_or_else(|| damaged(&path, "has no list of tables"))?;
    for table in tables {
        let path = folder.join("tables").join(table.to_string());
        let file = read(&path, File::open(&path))?;
        if !read(&path, has_whole_contents(&file))? {
            return Err(damaged(&path, "its table of contents is not what was written"));
        }
    }
    Ok(())
}

/// Version and checksum of the manifest.
fn current(path: &Path) -> Result<(u64, u128), Problem> {
    let content = read(path, std::fs::read(path))?;
    if content.len() != CURRENT_BYTES {
        let what = format!("has {} bytes instead of {CURRENT_BYTES}", content.len());
        return Err(damaged(path, what));
    }
    let mut fields = Fields(&content);
    match (fields.u64(), fields.u128(), fields.u8()) {
        (Some(version), Some(checksum), Some(0)) => Ok((version, checksum)),
        _ => Err(damaged(path, "names an unknown kind of checksum")),
    }
}

/// The tables of a manifest whose checksum matches.
fn tables(manifest: &[u8]) -> Option<Vec<u64>> {
    let reader = sfa::Reader::from_reader(&mut Cursor::new(manifest)).ok()?;
    let section = reader.toc().section(b"tables")?;
    let (start, length) = (usize::try_from(section.pos()), usize::try_from(section.len()));
    let start = start.ok()?;
    let mut fields = Fields(manifest.get(start..start.checked_add(length.ok()?)?)?);
    let mut tables = Vec::new();
    for _level in 0..fields.u8()? {
        for _run in 0..fields.u8()? {
            for _table in 0..fields.u32()? {
                tables.push(fields.u64()?);
                let (_kind, _checksum, _sequence) = (fields.u8()?, fields.u128()?, fields.u64()?);
            }
        }
    }
    Some(tables)
}

fn has_whole_contents(table: &File) -> io::Result<bool> {
    let Some(end) = table.metadata()?.len().checked_sub(TRAILER_BYTES as u64) else {
        return Ok(false);
    };
    let mut trailer = [0; TRAILER_BYTES];
    table.read_exact_at(&mut trailer, end)?;
    // Behind the magic, the version and the kind of checksum, which the library looks at.
    let mut fields = Fields(&trailer[6..]);
    let (Some(checksum), Some(start)) = (fields.u128(), fields.u64()) else { return Ok(false) };
    let Some(length) = end.checked_sub(start).filter(|length| *length <= MOST_CONTENTS_BYTES)
    else {
        return Ok(false);
    };
    let mut contents = vec![0; length as usize];
    table.read_exact_at(&mut contents, start)?;
    Ok(xxh3_128(&contents) == checksum)
}

/// Little-endian numbers, one after the other, as far as they go.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn u128(&mut self) -> Option<u128> {
        self.take().map(u128::from_le_bytes)
    }
}
