//! Which start of its data directory a process is, and which starts of others it has met.
//!
//! `START`, in each data directory: crc32c (u32 LE) over the rest, then number (u64) and nonce (u128)
//! of the last start, whether others may have heard of it (u8), the nonce that was accepted last (u128), where the last start has run that took
//! part (boot id (u128), lock file (u64), machine (u128)) and whether it has ended in order (u8), and how
//! many (u8) and which nonces (u128 each) are shown; big endian. `MET`: crc32c, then node (u64), number
//! (u64), nonce (u128) and last synced frame (u64) of the newest start of each process that was met.
//! Both are replaced as a whole, and synced.
//!
//! `COPY`, in the directory of a node that runs on an older copy which somebody has accepted: crc32c, then how many such
//! copies there were (u64), and the id of the replica (u64) below which none takes part.
//!
//! An older copy of a directory shows an older nonce, or a log that ends earlier. The coordinators
//! know the start that counts; so do the peers, each what it has met: that is enough where no
//! coordinator is there. Who vouches for a start turns away all older ones from then on, so that two
//! processes of one directory never find a majority each.

use crate::clock;
use crate::identity::{DataDirectory, IdentityError, Role, replace};
use crate::shutdown::Shutdown;
use kvdb_model::{NodeId, ReplicaId};
pub use kvdb_replication::start::Succession;
use kvdb_replication::start::{self as own, Place};
use kvdb_replication::starts::{NotVouched, Said, Starts, Then};
use parking_lot::Mutex;
use std::fs;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// What tells one machine from another, whenever it is booted.
const MACHINE_IDS: [&str; 2] = ["/etc/machine-id", "/sys/class/dmi/id/product_uuid"];
/// Between two looks at the data directory.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often it is written down how far the logs of others are synced.
const KEEP_EVERY: Duration = Duration::from_secs(1);

/// An older copy of a node's directory that somebody has accepted, to recover shards from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    /// How many there were; 0 for a directory that is none.
    pub count: u64,
    /// Replicas with lower ids take no part.
    pub least_replica: ReplicaId,
}

impl Copy {
    /// What is known from an earlier start.
    ///
    /// # Errors
    /// [`IdentityError`]: without it, replicas that have forgotten what they promised would take part.
    pub fn open(directory: &Path) -> Result<Self, IdentityError> {
        let path = directory.join("COPY");
        match fs::read(&path) {
            Ok(content) => Copy::decode(&content).ok_or(IdentityError::Damaged(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Copy::default()),
            Err(source) => Err(IdentityError::Io { path, source }),
        }
    }

    fn decode(content: &[u8]) -> Option<Self> {
        let mut rest = checked(content)?;
        let (count, least) = (u64_of(&mut rest)?, u64_of(&mut rest)?);
        rest.is_empty().then_some(Copy { count, least_replica: ReplicaId(least) })
    }

    fn encode(&self) -> Vec<u8> {
        summed(&[self.count.to_be_bytes(), self.least_replica.0.to_be_bytes()].concat())
    }
}

/// A start of a directory, and the file that keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start(own::Start);

impl Deref for Start {
    type Target = own::Start;

    fn deref(&self) -> &own::Start {
        &self.0
    }
}

impl Start {
    /// Begins the next start of a directory, and remembers it. Returns how it follows the last one that
    /// took part.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn begin(directory: &DataDirectory) -> Result<(Self, Succession), IdentityError> {
        let path = directory.path().join("START");
        let failed = |source| IdentityError::Io { path: path.clone(), source };
        let before = match fs::read(&path) {
            Ok(content) => {
                let damaged = || IdentityError::Damaged(path.clone());
                Some(Start::decode(&content).ok_or_else(damaged)?)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        let file = lock_file(directory.path()).map_err(failed)?;
        let boot = fs::read_to_string(BOOT_ID).map_err(failed)?;
        let boot = number_in(&boot)
            .ok_or_else(|| failed(io::Error::other(format!("{BOOT_ID} holds no boot id"))))?;
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(|error| failed(io::Error::other(error.to_string())))?;
        let here = Place { boot, file, machine: machine() };
        let before = before.map(|before| before.0);
        let mut start = own::Start::after(before, u128::from_be_bytes(nonce), here);
        // A crash may have come between the two files.
        let copies = Copy::open(directory.path())?.count;
        if start.number >> 32 < copies {
            start.is_on_copy(copies);
        }
        let start = Start(start);
        start.write(&path)?;
        let succession = start.succession();
        Ok((start, succession))
    }

    /// Others are to turn older starts away for it, from now on.
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    pub fn spends_number(&mut self, directory: &Path) -> Result<(), IdentityError> {
        match self.0.spends_number() {
            true => self.write(&directory.join("START")),
            false => Ok(()),
        }
    }

    /// Somebody has accepted the directory as an older copy. Written down before anything takes part.
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    pub fn is_on_copy(&mut self, directory: &Path, copy: &Copy) -> Result<(), IdentityError> {
        let path = directory.join("COPY");
        let written = replace(&path, &copy.encode());
        written.map_err(|source| IdentityError::Io { path, source })?;
        self.0.is_on_copy(copy.count);
        self.write(&directory.join("START"))
    }

    /// It takes part from now on; `accepted` by the coordinators, or by the word of others alone.
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    pub fn takes_part(&mut self, directory: &Path, accepted: bool) -> Result<(), IdentityError> {
        self.0.takes_part(accepted);
        self.write(&directory.join("START"))
    }

    /// Somebody says that the process which used a node's directory before is gone for good.
    ///
    /// # Errors
    /// [`IdentityError`]: a process uses the directory, or it isn't one of a node.
    pub fn claim(directory: &Path) -> Result<(), IdentityError> {
        let path = directory.join("START");
        if !path.exists() {
            return Err(IdentityError::NotOurs(directory.to_owned()));
        }
        let _held = DataDirectory::open(directory, Role::Node, NodeId(0))?;
        let content =
            fs::read(&path).map_err(|source| IdentityError::Io { path: path.clone(), source })?;
        let start = Start::decode(&content).ok_or_else(|| IdentityError::Damaged(path.clone()))?;
        Start(own::Start { has_ended: true, ..start.0 }).write(&path)
    }

    /// Whether the last start that took part has ended in order.
    pub fn follows_end(&self) -> bool {
        self.has_ended
    }

    /// The process, which took part, ends in order: nothing more is written to its directory.
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    pub fn ends(&mut self, directory: &Path) -> Result<(), IdentityError> {
        self.0.has_ended = true;
        self.write(&directory.join("START"))
    }

    /// Whether a directory is still the one that this start has begun in.
    ///
    /// # Errors
    /// Why not.
    pub fn is_there(&self, directory: &Path) -> Result<(), String> {
        let path = directory.join("START");
        let found = fs::read(&path).ok().and_then(|content| Start::decode(&content));
        let same_file = lock_file(directory).is_ok_and(|file| file == self.here.file);
        if same_file && found.is_some_and(|found| found.nonce == self.nonce) {
            return Ok(());
        }
        Err(format!(
            "the data directory {} was taken away or replaced while this process ran on it: this process must not \
             go on. Put its own directory back and start it again; if that is lost, `kvdb admin replace` it",
            directory.display()
        ))
    }

    fn write(&self, path: &Path) -> Result<(), IdentityError> {
        let mut content = self.number.to_be_bytes().to_vec();
        content.extend(self.nonce.to_be_bytes());
        content.push(u8::from(self.is_spent));
        content.extend(self.accepted.to_be_bytes());
        content.extend(self.heard.boot.to_be_bytes());
        content.extend(self.heard.file.to_be_bytes());
        content.extend(self.heard.machine.to_be_bytes());
        content.push(u8::from(self.has_ended));
        content.push(self.shown.len() as u8);
        self.shown.iter().for_each(|nonce| content.extend(nonce.to_be_bytes()));
        let written = replace(path, &summed(&content));
        written.map_err(|source| IdentityError::Io { path: path.to_owned(), source })
    }

    fn decode(content: &[u8]) -> Option<Self> {
        let mut rest = checked(content)?;
        let (number, nonce) = (u64_of(&mut rest)?, u128_of(&mut rest)?);
        let (spent, after) = rest.split_first()?;
        rest = after;
        let (accepted, boot) = (u128_of(&mut rest)?, u128_of(&mut rest)?);
        let (file, machine) = (u64_of(&mut rest)?, u128_of(&mut rest)?);
        let (ended, rest) = rest.split_first()?;
        let (count, mut rest) = rest.split_first()?;
        let shown = (0..*count).map(|_| u128_of(&mut rest)).collect::<Option<_>>()?;
        rest.is_empty().then_some(Start(own::Start {
            number,
            nonce,
            is_spent: *spent != 0,
            shown,
            accepted,
            here: Place::default(),
            heard: Place { boot, file, machine },
            has_ended: *ended != 0,
        }))
    }
}

fn lock_file(directory: &Path) -> io::Result<u64> {
    let lock = fs::metadata(directory.join("LOCK"))?;
    Ok(lock.ino() ^ lock.dev().rotate_left(48))
}

fn number_in(text: &str) -> Option<u128> {
    u128::from_str_radix(&text.trim().replace('-', ""), 16).ok()
}

fn machine() -> u128 {
    let ids = MACHINE_IDS.iter().filter_map(|path| number_in(&fs::read_to_string(path).ok()?));
    ids.fold(0, |all, id| all.rotate_left(1) ^ id)
}

fn summed(content: &[u8]) -> Vec<u8> {
    [&crc32c::crc32c(content).to_le_bytes()[..], content].concat()
}

fn checked(content: &[u8]) -> Option<&[u8]> {
    let (crc, rest) = content.split_first_chunk::<4>()?;
    (u32::from_le_bytes(*crc) == crc32c::crc32c(rest)).then_some(rest)
}

fn u64_of(rest: &mut &[u8]) -> Option<u64> {
    let (raw, after) = rest.split_first_chunk::<8>()?;
    *rest = after;
    Some(u64::from_be_bytes(*raw))
}

fn u128_of(rest: &mut &[u8]) -> Option<u128> {
    let (raw, after) = rest.split_first_chunk::<16>()?;
    *rest = after;
    Some(u128::from_be_bytes(*raw))
}

/// Waits until a data directory isn't the one any more that a start has begun in, and says so.
pub async fn until_replaced(start: Arc<Mutex<Start>>, data: PathBuf) -> String {
    let mut interval = tokio::time::interval(LOOK_EVERY);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let (start, data) = (start.lock().clone(), data.clone());
        // The disk may hang.
        let looking = tokio::task::spawn_blocking(move || start.is_there(&data));
        if let Ok(Err(why)) = looking.await {
            return why;
        }
    }
}

/// The newest starts of peers that were met ([`Starts`]), in a file. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Met {
    /// `None`: nothing is remembered, and everybody is heard.
    path: Option<PathBuf>,
    starts: Arc<Mutex<Starts>>,
    /// Held while the file is replaced. Nobody who only hears others waits for the disk.
    writing: Arc<Mutex<()>>,
}

/// A stream from a start of a peer, while it is open.
#[derive(Debug)]
pub struct Open {
    met: Met,
    node: NodeId,
    number: u64,
}

impl Open {
    /// Something has come through it; the sender's log is synced so far. Returns whether that is to
    /// be heard: whether it is from the newest start.
    pub fn hears(&self, synced: u64) -> bool {
        let now_us = clock::boot_us();
        self.met.path.is_none()
            || self.met.starts.lock().hears(self.node, self.number, synced, now_us)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.met.starts.lock().closes(self.node, self.number);
    }
}

impl Met {
    /// What is known from an earlier start. What is damaged is forgotten: this process then vouches
    /// for nobody until it has met them again.
    pub fn open(folder: &Path) -> Self {
        let path = folder.join("MET");
        let starts = match fs::read(&path) {
            Ok(content) => decode_met(&content).unwrap_or_else(|| {
                tracing::error!(path = %path.display(), "it is damaged and forgotten");
                Starts::default()
            }),
            Err(_) => Starts::default(),
        };
        Met { path: Some(path), starts: Arc::new(Mutex::new(starts)), writing: Arc::default() }
    }

    /// A stream from a start of a peer is open as long as what is returned lives.
    pub fn opens(&self, node: NodeId, number: u64) -> Open {
        self.starts.lock().opens(node, number);
        Open { met: self.clone(), node, number }
    }

    /// As [`Starts::meet`]. May wait for the disk.
    ///
    /// # Errors
    /// Why it isn't heard.
    pub fn meet(&self, node: NodeId, said: &Said) -> Result<(), String> {
        if self.path.is_none() {
            return Ok(());
        }
        let then = self.starts.lock().meet(node, said, clock::boot_us())?;
        self.keep_what_is_new(then)
    }

    /// A start that was met has told, beside its streams, how far its log is synced.
    pub fn hears(&self, node: NodeId, said: &Said) {
        let synced = said.synced.unwrap_or_default();
        self.starts.lock().hears(node, said.number, synced, clock::boot_us());
    }

    /// As [`Starts::vouch`]; as [`Starts::may_vouch`] if it `only_asks`. May wait for the disk.
    ///
    /// # Errors
    /// Why not.
    pub fn vouch(
        &self,
        node: NodeId,
        said: &Said,
        shown: &[u128],
        succeeds: bool,
        only_asks: bool,
    ) -> Result<(), NotVouched> {
        let now_us = clock::boot_us();
        if only_asks {
            return self.starts.lock().may_vouch(node, said, shown, succeeds, now_us);
        }
        let then = self.starts.lock().vouch(node, said, shown, succeeds, now_us)?;
        self.keep_what_is_new(then).map_err(NotVouched::Waits)
    }

    fn keep_what_is_new(&self, then: Then) -> Result<(), String> {
        match then {
            Then::Go => Ok(()),
            Then::Keep => self.write(),
        }
    }

    /// Writes down, once a second, how far the logs of others are synced, if that has changed.
    pub async fn keep(self, shutdown: Shutdown) {
        let mut kept = Vec::new();
        let mut interval = tokio::time::interval(KEEP_EVERY);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = interval.tick() => {}
                () = shutdown.wait() => return,
            }
            let known: Vec<_> = self.starts.lock().kept().collect();
            if known == kept {
                continue;
            }
            let met = self.clone();
            match tokio::task::spawn_blocking(move || met.write()).await {
                Ok(Ok(())) => kept = known,
                Ok(Err(error)) => tracing::warn!(error, "what is known of others can't be written"),
                Err(_) => return,
            }
        }
    }

    /// Writes down all that is known by now.
    fn write(&self) -> Result<(), String> {
        let Some(path) = &self.path else { return Ok(()) };
        let _writing = self.writing.lock();
        let starts = self.starts.lock().clone();
        let mut content = Vec::new();
        for (node, (number, nonce, synced)) in starts.kept() {
            content.extend(node.0.to_be_bytes());
            content.extend(number.to_be_bytes());
            content.extend(nonce.to_be_bytes());
            content.extend(synced.to_be_bytes());
        }
        replace(path, &summed(&content)).map_err(|error| format!("{}: {error}", path.display()))?;
        self.starts.lock().are_kept(&starts);
        Ok(())
    }
}

fn decode_met(content: &[u8]) -> Option<Starts> {
    let mut rest = checked(content)?;
    let mut kept = Vec::new();
    while !rest.is_empty() {
        let (node, number) = (u64_of(&mut rest)?, u64_of(&mut rest)?);
        let (nonce, synced) = (u128_of(&mut rest)?, u64_of(&mut rest)?);
        kept.push((NodeId(node), (number, nonce, synced)));
    }
    Some(Starts::from_kept(kept))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_replication::starts::MOST_SHOWN;

    fn begin(folder: &Path) -> (Start, Succession) {
        let directory = DataDirectory::open(folder, Role::Node, NodeId(0)).unwrap();
        Start::begin(&directory).unwrap()
    }

    #[test]
    fn each_start_shows_those_before_it_and_never_drops_the_one_that_was_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let (mut first, succession) = begin(folder.path());
        assert_eq!((first.number, succession), (1, Succession::SamePlace));
        assert!(first.shown.is_empty());
        first.takes_part(folder.path(), true).unwrap();
        let (mut second, _) = begin(folder.path());
        second.spends_number(folder.path()).unwrap();
        let (third, succession) = begin(folder.path());
        assert_eq!(third.shown, [first.nonce, second.nonce]);
        assert_eq!((third.number, succession), (3, Succession::SamePlace));
        // Of the third nobody has heard.
        assert_eq!(begin(folder.path()).0.number, 3);
        let last = (0..40).fold(third, |_, _| begin(folder.path()).0);
        assert_eq!((last.shown.len(), last.shown[0]), (MOST_SHOWN, first.nonce));
    }

    #[test]
    fn a_copy_of_a_directory_is_elsewhere_until_it_takes_part() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut start, _) = begin(here.path());
        start.takes_part(here.path(), false).unwrap();
        assert!(start.is_there(here.path()).is_ok());
        for name in ["IDENTITY", "START", "LOCK"] {
            fs::copy(here.path().join(name), there.path().join(name)).unwrap();
        }
        assert!(start.is_there(there.path()).unwrap_err().contains("was taken away or replaced"));
        // However often it is started in vain.
        for _ in 0..3 {
            let (copied, succession) = begin(there.path());
            assert_eq!((copied.follows_end(), succession), (false, Succession::Elsewhere));
        }
        begin(there.path()).0.takes_part(there.path(), true).unwrap();
        assert_eq!(begin(there.path()).1, Succession::SamePlace);
    }

    #[test]
    fn an_end_in_order_is_known_until_a_start_takes_part() {
        let folder = tempfile::tempdir().unwrap();
        let (mut start, _) = begin(folder.path());
        start.takes_part(folder.path(), true).unwrap();
        assert!(!begin(folder.path()).0.follows_end());
        start.ends(folder.path()).unwrap();
        assert!(begin(folder.path()).0.follows_end());
        let (mut start, _) = begin(folder.path());
        assert!(start.follows_end());
        start.takes_part(folder.path(), true).unwrap();
        assert!(!begin(folder.path()).0.follows_end());
        // Or somebody says so.
        Start::claim(folder.path()).unwrap();
        assert!(begin(folder.path()).0.follows_end());
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(Start::claim(empty.path()), Err(IdentityError::NotOurs(_))));
        let directory = DataDirectory::open(folder.path(), Role::Node, NodeId(0)).unwrap();
        assert!(matches!(Start::claim(folder.path()), Err(IdentityError::InUse(_))));
        drop(directory);
    }

    #[test]
    fn an_older_copy_that_was_accepted_stays_one_over_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let (mut start, _) = begin(folder.path());
        assert_eq!(Copy::open(folder.path()).unwrap(), Copy::default());
        let copy = Copy { count: 2, least_replica: ReplicaId(77) };
        let before = fs::read(folder.path().join("START")).unwrap();
        start.is_on_copy(folder.path(), &copy).unwrap();
        start.takes_part(folder.path(), true).unwrap();
        assert_eq!(start.number, (2 << 32) | 1);
        assert_eq!(Copy::open(folder.path()).unwrap(), copy);
        assert_eq!(begin(folder.path()).0.number, (2 << 32) | 2);
        // After a crash between the two files.
        fs::write(folder.path().join("START"), before).unwrap();
        assert_eq!(begin(folder.path()).0.number >> 32, 2);
        let content = copy.encode();
        for bit in 0..content.len() * 8 {
            let mut flipped = content.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Copy::decode(&flipped).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn a_start_that_is_damaged_is_told() {
        let folder = tempfile::tempdir().unwrap();
        begin(folder.path());
        begin(folder.path());
        let content = fs::read(folder.path().join("START")).unwrap();
        for bit in 0..content.len() * 8 {
            let mut flipped = content.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Start::decode(&flipped).is_none(), "bit {bit}");
        }
        for length in 0..content.len() {
            assert!(Start::decode(&content[..length]).is_none(), "{length} bytes");
        }
    }

    #[test]
    fn who_was_met_is_known_after_a_restart_unless_that_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let node = NodeId(3);
        let said = |number, nonce, synced| Said {
            number,
            nonce,
            synced: Some(synced),
            address: "host:1".to_owned(),
        };
        let met = Met::open(folder.path());
        met.meet(node, &said(1, 10, 5)).unwrap();
        assert!(met.opens(node, 1).hears(9));
        met.vouch(node, &said(2, 20, 9), &[10], true, true).unwrap();
        met.meet(node, &said(1, 10, 9)).unwrap();
        met.vouch(node, &said(2, 20, 9), &[10], true, false).unwrap();
        let met = Met::open(folder.path());
        assert!(met.meet(node, &said(1, 10, 9)).is_err());
        assert!(met.meet(node, &said(2, 20, 8)).unwrap_err().contains("ends at frame 8"));
        met.meet(node, &said(2, 20, 9)).unwrap();
        fs::write(folder.path().join("MET"), "damaged").unwrap();
        let forgetful = Met::open(folder.path());
        assert!(forgetful.vouch(node, &said(3, 30, 9), &[20], true, false).is_err());
    }
}
