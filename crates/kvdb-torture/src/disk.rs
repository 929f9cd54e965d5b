//! A file system of a node's own, in a file: its power can be cut, it can be full or stand still.

use rustix::fs::FallocateFlags;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Size of a node's disk. The file is sparse: it takes what the node writes.
const DISK_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// `EXT4_IOC_SHUTDOWN`, the same as `FS_IOC_SHUTDOWN`: `_IOR('X', 125, __u32)`.
const SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);
/// Nothing that is in memory only gets to the disk, the file system's own journal included.
const WITHOUT_FLUSH: u32 = 2;

/// A mounted file system in a file.
pub(crate) struct Disk {
    image: PathBuf,
    mount: PathBuf,
    mounted: bool,
    frozen: bool,
}

fn run(program: &str, args: &[&std::ffi::OsStr]) -> io::Result<()> {
    let output = Command::new(program).args(args).output()?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program}: {}", words.trim())))
}

impl Disk {
    /// Makes one and mounts it at `mount`.
    pub(crate) fn create(image: PathBuf, mount: PathBuf) -> io::Result<Self> {
        File::create(&image)?.set_len(DISK_BYTES)?;
        std::fs::create_dir_all(&mount)?;
        let mkfs = ["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1"].map(std::ffi::OsStr::new);
        run("mkfs.ext4", &[&mkfs[..], &[image.as_os_str()]].concat())?;
        let mut disk = Disk { image, mount, mounted: false, frozen: false };
        disk.attach()?;
        Ok(disk)
    }

    fn attach(&mut self) -> io::Result<()> {
        run("mount", &["-o".as_ref(), "loop".as_ref(), self.image.as_ref(), self.mount.as_ref()])?;
        self.mounted = true;
        Ok(())
    }

    fn detach(&mut self) -> io::Result<()> {
        run("umount", &[self.mount.as_ref()])?;
        self.mounted = false;
        Ok(())
    }

    /// Cuts the power: what was synced stays, the rest is gone. Every access fails until it is
    /// plugged in again.
    pub(crate) fn cut_power(&self) -> io::Result<()> {
        let folder = File::open(&self.mount)?;
        let mut how = WITHOUT_FLUSH;
        // SAFETY: the request reads one u32 through the pointer, as its opcode says.
        let request = unsafe { rustix::ioctl::Updater::<SHUTDOWN, u32>::new(&mut how) };
        // SAFETY: as above; the file is open, and the call has no effect on this process.
        unsafe { rustix::ioctl::ioctl(&folder, request) }?;
        Ok(())
    }

    /// Mounts it anew, so that it replays its journal. Nobody may have a file of it open.
    pub(crate) fn plug_in(&mut self) -> io::Result<()> {
        self.detach()?;
        self.attach()
    }

    fn filler(&self) -> PathBuf {
        self.mount.join("filler")
    }

    /// Leaves no room.
    pub(crate) fn fill(&self) -> io::Result<()> {
        let room = rustix::fs::statvfs(&self.mount)?;
        let filler =
            File::options().create(true).truncate(false).write(true).open(self.filler())?;
        let mut length = room.f_bavail * room.f_frsize;
        // What is free is not all to be had in one piece; ever smaller ones take the rest.
        let mut offset = 0;
        while length >= 4096 {
            match rustix::fs::fallocate(&filler, FallocateFlags::empty(), offset, length) {
                Ok(()) => offset += length,
                Err(rustix::io::Errno::NOSPC) => length /= 2,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Makes room again.
    pub(crate) fn make_room(&self) -> io::Result<()> {
        match std::fs::remove_file(self.filler()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes wait until it is thawed.
    pub(crate) fn freeze(&mut self, frozen: bool) -> io::Result<()> {
        let flag = if frozen { "-f" } else { "-u" };
        run("fsfreeze", &[flag.as_ref(), self.mount.as_ref()])?;
        self.frozen = frozen;
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.frozen {
            let _ = self.freeze(false);
        }
        if self.mounted && self.detach().is_err() {
            // Somebody still has a file open; it goes when they do.
            let _ = run("umount", &["-l".as_ref(), self.mount.as_ref()]);
        }
    }
}

/// Flips one bit of a file, chosen by `choice` among its bytes that aren't zero (the rest may be
/// room that nobody reads). Returns where; `None` if there is none.
pub(crate) fn flip_a_bit(path: &Path, choice: u64, within: u64) -> io::Result<Option<u64>> {
    let mut content = std::fs::read(path)?;
    let end = content.len().min(usize::try_from(within).unwrap_or(usize::MAX));
    let used: Vec<usize> = (0..end).filter(|place| content[*place] != 0).collect();
    if used.is_empty() {
        return Ok(None);
    }
    let place = used[(choice % used.len() as u64) as usize];
    content[place] ^= 1 << ((choice >> 32) % 8);
    std::fs::write(path, content)?;
    Ok(Some(place as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_flips_where_something_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let before = b"\0\0\0abc\0".to_vec();
        std::fs::write(&path, &before).unwrap();
        for choice in [0, 1, 2, 0x7_0000_0003, u64::MAX] {
            std::fs::write(&path, &before).unwrap();
            let place = flip_a_bit(&path, choice, u64::MAX).unwrap().unwrap() as usize;
            let after = std::fs::read(&path).unwrap();
            assert!((3..6).contains(&place));
            assert_eq!((after[place] ^ before[place]).count_ones(), 1);
            let others = (0..before.len()).filter(|at| after[*at] != before[*at]).count();
            assert_eq!(others, 1);
        }
        std::fs::write(&path, [0; 8]).unwrap();
        assert_eq!(flip_a_bit(&path, 1, u64::MAX).unwrap(), None);
    }
}
