//! The files under the log: a narrow trait, and the real thing.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Numbered files that can be made, written in place, synced and removed.
pub trait Disk {
    /// Ids of the segments that exist, ascending.
    ///
    /// # Errors
    /// As the operating system reports.
    fn segments(&self) -> io::Result<Vec<u64>>;

    /// What to call a segment in messages.
    fn name(&self, segment: u64) -> String;

    /// Makes a segment with room for `size_bytes`, durably. Its content is arbitrary. It has its
    /// full size from when it can first be seen: one that is shorter was damaged.
    ///
    /// # Errors
    /// As the operating system reports; nothing is left then.
    fn create(&mut self, segment: u64, size_bytes: u64) -> io::Result<()>;

    /// Keeps space for a later segment, if there is some and none is kept yet: the log can then go
    /// on for a while on a full disk. For when nothing else is to be done.
    fn keep_spare(&mut self, _size_bytes: u64) {}

    /// All bytes of a segment.
    ///
    /// # Errors
    /// As the operating system reports.
    fn read(&self, segment: u64) -> io::Result<Vec<u8>>;

    /// Writes in place. What was written beyond `bytes` in an earlier use may change.
    ///
    /// # Errors
    /// As the operating system reports; part of it may have been written.
    fn write(&mut self, segment: u64, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes all that was written to a segment durable.
    ///
    /// # Errors
    /// As the operating system reports. What was written since the last sync may be lost, and a
    /// second try proves nothing.
    fn sync(&mut self, segment: u64) -> io::Result<()>;

    /// Removes a segment (or keeps its space for the next).
    ///
    /// # Errors
    /// As the operating system reports.
    fn remove(&mut self, segment: u64) -> io::Result<()>;
}

/// Files kept for the next segments: rewriting allocated blocks makes for cheaper syncs.
const SPARES: usize = 2;

/// Bytes written ahead of the end of a segment at a time. The first write to a block that was only
/// reserved changes the file's metadata, which makes its sync cost a second, journalled write: so
/// blocks are written once, many at a time, before they are needed.
const PREPARE_BYTES: u64 = 1024 * 1024;

/// What to do when there is no room for a segment: waits, and returns whether to try again.
pub type Patience = Box<dyn FnMut() -> bool + Send>;

/// A [`Disk`] in a folder: `<id>.wal`, and `spare-<n>` for space to be used again.
pub struct FileDisk {
    folder: PathBuf,
    open: BTreeMap<u64, Segment>,
    spares: Vec<Spare>,
    next_spare: u64,
    patience: Option<Patience>,
}

struct Segment {
    file: File,
    size_bytes: u64,
    /// Blocks below this have been written.
    prepared: u64,
}

/// A file to be used again.
struct Spare {
    path: PathBuf,
    /// Blocks below this have been written.
    prepared: u64,
}

impl Segment {
    fn new(file: File, prepared: u64) -> io::Result<Self> {
        let size_bytes = file.metadata()?.len();
        Ok(Segment { file, size_bytes, prepared: prepared.min(size_bytes) })
    }

    /// Writes zeros from `end`, where the log will go on, if blocks beyond it may not be written
    /// yet. What was there is the tail of an earlier use.
    fn prepare(&mut self, end: u64) -> io::Result<()> {
        if end <= self.prepared || end >= self.size_bytes {
            return Ok(());
        }
        let through = (end + PREPARE_BYTES).min(self.size_bytes);
        let zeros = vec![0; (through - end) as usize];
        self.file.write_all_at(&zeros, end)?;
        self.prepared = through;
        Ok(())
    }
}

impl FileDisk {
    /// The disk in `folder`, which is made if it isn't there.
    ///
    /// # Errors
    /// As the operating system reports.
    pub fn open(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut disk = FileDisk {
            folder: folder.to_owned(),
            open: BTreeMap::new(),
            spares: Vec::new(),
            next_spare: 0,
            patience: None,
        };
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(number) = name.strip_prefix("spare-").and_then(|n| n.parse::<u64>().ok()) {
                disk.next_spare = disk.next_spare.max(number + 1);
                disk.spares.push(Spare { path, prepared: 0 });
            } else if let Some(id) = segment_id(&name) {
                let file = OpenOptions::new().read(true).write(true).open(&path)?;
                disk.open.insert(id, Segment::new(file, 0)?);
            }
        }
        Ok(disk)
    }

    /// From now on a segment that there is no room for is waited for, as long as `patience` says
    /// so. Nothing is lost by it: what came before is synced, and what follows isn't written yet.
    pub fn wait_for_room(&mut self, patience: Patience) {
        self.patience = Some(patience);
    }

    fn path(&self, segment: u64) -> PathBuf {
        self.folder.join(format!("{segment:016}.wal"))
    }

    fn file(&self, segment: u64) -> io::Result<&File> {
        let open = self.open.get(&segment);
        open.map(|segment| &segment.file).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// A name for a file to be used later; nothing is made yet.
    fn new_spare(&mut self) -> Spare {
        let path = self.folder.join(format!("spare-{}", self.next_spare));
        self.next_spare += 1;
        Spare { path, prepared: 0 }
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    fn make(&self, path: &Path, size_bytes: u64) -> io::Result<File> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        // Space that is used again may be of a larger segment.
        if file.metadata()?.len() > size_bytes {
            file.set_len(size_bytes)?;
        }
        let flags = rustix::fs::FallocateFlags::empty();
        if let Err(error) = rustix::fs::fallocate(&file, flags, 0, size_bytes) {
            if error != rustix::io::Errno::OPNOTSUPP {
                return Err(error.into());
            }
            file.set_len(size_bytes)?;
        }
        file.sync_all()?;
        Ok(file)
    }
}

/// Whether an error says that there is no room, now.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn segment_id(name: &str) -> Option<u64> {
    name.strip_suffix(".wal")?.parse().ok()
}

impl Disk for FileDisk {
    fn segments(&self) -> io::Result<Vec<u64>> {
        Ok(self.open.keys().copied().collect())
    }

    fn name(&self, segment: u64) -> String {
        self.path(segment).display().to_string()
    }

    fn create(&mut self, segment: u64, size_bytes: u64) -> io::Result<()> {
        let spare = self.spares.pop().unwrap_or_else(|| self.new_spare());
        let path = self.path(segment);
        loop {
            let made = self
                .make(&spare.path, size_bytes)
                .and_then(|file| std::fs::rename(&spare.path, &path).map(|()| file));
            match made {
                Ok(file) => {
                    self.open.insert(segment, Segment::new(file, spare.prepared)?);
                    return self.sync_folder();
                }
                Err(error) => {
                    let _ = std::fs::remove_file(&spare.path);
                    let waits =
                        is_full(&error) && self.patience.as_mut().is_some_and(|wait| wait());
                    if !waits {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn keep_spare(&mut self, size_bytes: u64) {
        if !self.spares.is_empty() {
            return;
        }
        let spare = self.new_spare();
        match self.make(&spare.path, size_bytes) {
            Ok(_) => self.spares.push(spare),
            // There is no room for it: then there isn't.
            Err(_) => {
                let _ = std::fs::remove_file(&spare.path);
            }
        }
    }

    fn read(&self, segment: u64) -> io::Result<Vec<u8>> {
        let file = self.file(segment)?;
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let mut content = vec![0; length];
        file.read_exact_at(&mut content, 0)?;
        Ok(content)
    }

    fn write(&mut self, segment: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let open = self.open.get_mut(&segment).ok_or(io::ErrorKind::NotFound)?;
        open.prepare(offset + bytes.len() as u64)?;
        open.file.write_all_at(bytes, offset)
    }

    fn sync(&mut self, segment: u64) -> io::Result<()> {
        self.file(segment)?.sync_data()
    }

    fn remove(&mut self, segment: u64) -> io::Result<()> {
        let prepared = self.open.remove(&segment).map_or(0, |segment| segment.prepared);
        let path = self.path(segment);
        if self.spares.len() < SPARES {
            let spare = self.new_spare();
            std::fs::rename(&path, &spare.path)?;
            self.spares.push(Spare { prepared, ..spare });
        } else {
            std::fs::remove_file(&path)?;
        }
        self.sync_folder()
    }
}
