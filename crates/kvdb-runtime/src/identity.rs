//! The data directory of a process: whose it is.
//!
//! `IDENTITY`: magic, format (u32 LE), crc32c (u32 LE) over the rest, then role (u8; 128 is added
//! once the log has begun), cluster id (u128 BE), node id (u64 BE), token (u128 BE). Replaced as a
//! whole. `LOCK` is held while a process uses the directory.
//!
//! That the log has begun is written down because a process without its log has forgotten its
//! votes: it must not begin another under the same number.

use kvdb_model::{ClusterId, NodeId};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use thiserror::Error;

const MAGIC: &[u8; 8] = b"KVDBNODE";
const FORMAT: u32 = 1;
const BYTES: usize = 16 + 41;
/// Added to the role once there is a log.
const LOG_BEGAN: u8 = 128;

/// What a directory's process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A coordinator.
    Coordinator,
    /// A storage node.
    Node,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::Coordinator => "coordinator",
            Role::Node => "node",
        })
    }
}

/// Whose directory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its role.
    pub role: Role,
    /// Its cluster; unknown until it was told.
    pub cluster_id: ClusterId,
    /// Its number; 0 until it was told.
    pub node_id: NodeId,
    /// By which it registers: the same on every try.
    pub token: u128,
    /// Whether it has had a log: one that is missing is lost.
    pub log_began: bool,
}

/// Why a directory can't be used.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has it.
    #[error("{0} is used by another kvdb process; stop it, or choose another --data")]
    InUse(PathBuf),
    /// It holds something else.
    #[error("{0} is not empty and holds no KvDB data; choose another --data")]
    NotOurs(PathBuf),
    /// Its identity is damaged.
    #[error(
        "{0} is damaged; this process must not run on it. Rebuild it from its peers with `kvdb admin replace` and an empty directory"
    )]
    Damaged(PathBuf),
    /// It has had a log, which isn't there.
    #[error(
        "{0}: the write-ahead log is gone. What is missing was promised to others: this process must \
         not run without it. Put it back, or rebuild this node from the others with \
         `kvdb admin replace NODE` and an empty directory"
    )]
    LogGone(PathBuf),
    /// It was made by a newer version.
    #[error("{path} has format {found}; this binary reads format {FORMAT}")]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// It belongs to something else.
    #[error("{path} belongs to {theirs}, not to {ours}; choose another --data")]
    Mismatch {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        theirs: String,
        /// Who asks.
        ours: String,
    },
}

/// A directory that is held by this process.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    identity: Identity,
    _lock: File,
}

impl DataDirectory {
    /// Opens a directory for a role, or begins one. `node_id` is what the process was told on its
    /// command line; 0 if it doesn't know.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn open(path: &Path, role: Role, node_id: NodeId) -> Result<Self, IdentityError> {
        at(path, fs::create_dir_all(path))?;
        let lock_path = path.join("LOCK");
        let file = path.join("IDENTITY");
        let began = file.exists();
        if !began && holds_other_things(path)? {
            return Err(IdentityError::NotOurs(path.to_owned()));
        }
        let lock = at(
            &lock_path,
            File::options().create(true).truncate(false).write(true).open(&lock_path),
        )?;
        let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        if rustix::fs::flock(&lock, operation).is_err() {
            return Err(IdentityError::InUse(path.to_owned()));
        }
        let identity = if began {
            let found = read(&file)?;
            check(path, &found, role, node_id)?;
            let wal = path.join("wal");
            if found.log_began && !has_segments(&wal)? {
                return Err(IdentityError::LogGone(wal));
            }
            Identity { node_id: found.node_id.max(node_id), ..found }
        } else {
            let mut token = [0; 16];
            getrandom::fill(&mut token).map_err(|error| IdentityError::Io {
                path: file.clone(),
                source: io::Error::other(error.to_string()),
            })?;
            let token = u128::from_be_bytes(token);
            Identity { role, cluster_id: ClusterId::UNKNOWN, node_id, token, log_began: false }
        };
        let directory = DataDirectory { path: path.to_owned(), identity, _lock: lock };
        directory.write()?;
        Ok(directory)
    }

    /// Whose it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Remembers what the cluster has told.
    ///
    /// # Errors
    /// [`IdentityError::Mismatch`] if it is another cluster or number than before.
    pub fn adopt(&mut self, cluster_id: ClusterId, node_id: NodeId) -> Result<(), IdentityError> {
        let known = self.identity;
        let other_cluster = known.cluster_id.is_known() && known.cluster_id != cluster_id;
        if other_cluster || (known.node_id.0 != 0 && known.node_id != node_id) {
            return Err(IdentityError::Mismatch {
                path: self.path.clone(),
                theirs: format!("{} {} of cluster {}", known.role, known.node_id, known.cluster_id),
                ours: format!("{} {node_id} of cluster {cluster_id}", known.role),
            });
        }
        if known.cluster_id != cluster_id || known.node_id != node_id {
            self.identity = Identity { cluster_id, node_id, ..known };
            self.write()?;
        }
        Ok(())
    }

    /// Remembers that there is a log now. To be called before the process makes any promise.
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    pub fn log_has_begun(&mut self) -> Result<(), IdentityError> {
        if !self.identity.log_began {
            self.identity.log_began = true;
            self.write()?;
        }
        Ok(())
    }

    fn write(&self) -> Result<(), IdentityError> {
        let role = match self.identity.role {
            Role::Coordinator => 1,
            Role::Node => 2,
        };
        let mut content = vec![role | if self.identity.log_began { LOG_BEGAN } else { 0 }];
        content.extend_from_slice(&self.identity.cluster_id.0.to_be_bytes());
        content.extend_from_slice(&self.identity.node_id.0.to_be_bytes());
        content.extend_from_slice(&self.identity.token.to_be_bytes());
        let crc = crc32c::crc32c(&content);
        let content = [&MAGIC[..], &FORMAT.to_le_bytes(), &crc.to_le_bytes(), &content].concat();
        let path = self.path.join("IDENTITY");
        at(&path, replace(&path, &content))
    }
}

/// Puts a file in the place of another as a whole, durably: after a crash it is the old one or the
/// new one. What is written first is beside it, with `tmp` for an extension.
///
/// # Errors
/// Whatever writing, syncing or renaming meets. Where only the last sync has failed, either file may
/// be there after a crash.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, IdentityError> {
    result.map_err(|source| IdentityError::Io { path: path.to_owned(), source })
}

fn holds_other_things(path: &Path) -> Result<bool, IdentityError> {
    for entry in at(path, fs::read_dir(path))? {
        let name = at(path, entry)?.file_name();
        if name != "LOCK" && name != "IDENTITY.tmp" && name != "lost+found" {
            return Ok(true);
        }
    }
    Ok(false)
}

fn has_segments(wal: &Path) -> Result<bool, IdentityError> {
    let entries = match fs::read_dir(wal) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => at(wal, other)?,
    };
    for entry in entries {
        if at(wal, entry)?.path().extension().is_some_and(|kind| kind == "wal") {
            return Ok(true);
        }
    }
    Ok(false)
}

fn read(path: &Path) -> Result<Identity, IdentityError> {
    let bytes = at(path, fs::read(path))?;
    let damaged = || IdentityError::Damaged(path.to_owned());
    if bytes.len() < 16 || &bytes[..8] != MAGIC {
        return Err(damaged());
    }
    let number =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if number(8) != FORMAT {
        return Err(IdentityError::UnknownFormat { path: path.to_owned(), found: number(8) });
    }
    if bytes.len() != BYTES || crc32c::crc32c(&bytes[16..]) != number(12) {
        return Err(damaged());
    }
    let wide = |at: usize| {
        let mut raw = [0; 16];
        raw.copy_from_slice(&bytes[at..at + 16]);
        u128::from_be_bytes(raw)
    };
    let mut node = [0; 8];
    node.copy_from_slice(&bytes[33..41]);
    Ok(Identity {
        role: match bytes[16] & !LOG_BEGAN {
            1 => Role::Coordinator,
            2 => Role::Node,
            _ => return Err(damaged()),
        },
        cluster_id: ClusterId(wide(17)),
        node_id: NodeId(u64::from_be_bytes(node)),
        token: wide(41),
        log_began: bytes[16] & LOG_BEGAN != 0,
    })
}

fn check(path: &Path, found: &Identity, role: Role, node_id: NodeId) -> Result<(), IdentityError> {
    let other_node = node_id.0 != 0 && found.node_id.0 != 0 && found.node_id != node_id;
    if found.role != role || other_node {
        return Err(IdentityError::Mismatch {
            path: path.to_owned(),
            theirs: format!("{} {}", found.role, found.node_id),
            ours: format!("{role} {node_id}"),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_remembers_whose_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let mut directory = DataDirectory::open(folder.path(), Role::Node, NodeId(0)).unwrap();
        let token = directory.identity().token;
        directory.adopt(ClusterId(7), NodeId(3)).unwrap();
        assert!(matches!(
            directory.adopt(ClusterId(8), NodeId(3)),
            Err(IdentityError::Mismatch { .. })
        ));
        drop(directory);
        let again = DataDirectory::open(folder.path(), Role::Node, NodeId(0)).unwrap();
        let expected = Identity {
            role: Role::Node,
            cluster_id: ClusterId(7),
            node_id: NodeId(3),
            token,
            log_began: false,
        };
        assert_eq!(again.identity(), expected);
    }

    #[test]
    fn a_directory_without_the_log_that_it_had_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let open = || DataDirectory::open(folder.path(), Role::Node, NodeId(3));
        let wal = folder.path().join("wal");
        // One that never had a log may begin.
        drop(open().unwrap());
        fs::create_dir(&wal).unwrap();
        fs::write(wal.join("1.wal"), "frames").unwrap();
        open().unwrap().log_has_begun().unwrap();
        assert!(open().unwrap().identity().log_began);
        fs::remove_file(wal.join("1.wal")).unwrap();
        fs::write(wal.join("spare-1"), "space").unwrap();
        let refused = open().unwrap_err().to_string();
        assert!(refused.contains("log is gone") && refused.contains("replace"), "{refused}");
        fs::remove_dir_all(&wal).unwrap();
        assert!(matches!(open(), Err(IdentityError::LogGone(path)) if path == wal));
    }

    #[test]
    fn two_processes_cannot_share_a_directory() {
        let folder = tempfile::tempdir().unwrap();
        let _first = DataDirectory::open(folder.path(), Role::Node, NodeId(0)).unwrap();
        let second = DataDirectory::open(folder.path(), Role::Node, NodeId(0));
        assert!(matches!(second, Err(IdentityError::InUse(_))));
    }

    #[test]
    fn a_directory_of_another_role_or_number_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        drop(DataDirectory::open(folder.path(), Role::Coordinator, NodeId(2)).unwrap());
        for (role, id) in [(Role::Node, 0), (Role::Coordinator, 1)] {
            let refused = DataDirectory::open(folder.path(), role, NodeId(id));
            assert!(matches!(refused, Err(IdentityError::Mismatch { .. })), "{role} {id}");
        }
    }

    #[test]
    fn a_folder_with_other_things_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.txt"), "do not touch").unwrap();
        let refused = DataDirectory::open(folder.path(), Role::Node, NodeId(0));
        assert!(matches!(refused, Err(IdentityError::NotOurs(_))));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn every_flipped_bit_of_an_identity_is_found() {
        let folder = tempfile::tempdir().unwrap();
        drop(DataDirectory::open(folder.path(), Role::Node, NodeId(5)).unwrap());
        let path = folder.path().join("IDENTITY");
        let content = fs::read(&path).unwrap();
        for bit in 0..content.len() * 8 {
            let mut flipped = content.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, flipped).unwrap();
            assert!(
                DataDirectory::open(folder.path(), Role::Node, NodeId(5)).is_err(),
                "bit {bit}"
            );
        }
    }
}
