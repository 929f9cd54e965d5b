//! Opening trees: those that are there, and new ones.
//!
//! A volume is made in `tmp-<id>` and gets its name when it is complete and synced. What a crash
//! left of a volume that was being made (`tmp-`) or deleted (it holds a file `gone`) is removed
//! when the engine is opened.

use crate::engine::{LsmEngine, Shared};
use crate::error::{LsmError, engine_io, io, no_room, of_tree};
use crate::filter::FilterFactory;
use crate::volume::{Dropped, Volume};
use crate::{LsmConfig, files, format, manifest};
use bytes::Bytes;
use kvdb_engine::{EngineError, Item, check_key};
use kvdb_model::VolumeId;
use lsm_tree::{AnyTree, Config, SequenceNumberCounter};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A volume that can't be opened: its replicas need a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedVolume {
    /// The volume.
    pub volume: VolumeId,
    /// What is wrong, with the file.
    pub what: String,
}

/// The file that marks a deleted volume.
const GONE: &str = "gone";
/// The file that marks a volume in which damage was met, and says what it was. Not all damage
/// shows when a volume is opened.
const DAMAGED: &str = "damaged";

/// Marks a volume, as well as the disk lets it.
pub(crate) fn mark_damaged(path: &Path, what: &str) {
    if let Err(error) = files::write_whole(&path.join(DAMAGED), what.as_bytes()) {
        tracing::warn!(path = %path.display(), %error, "a damaged volume can't be marked as such");
    }
}

fn remembered_damage(path: &Path) -> std::io::Result<Option<String>> {
    match fs::read_to_string(path.join(DAMAGED)) {
        Ok(what) => Ok(Some(what)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl LsmEngine {
    /// Opens the engine in `folder`, or makes one there. Volumes that are damaged are left aside;
    /// see [`LsmEngine::damaged`].
    ///
    /// # Errors
    /// [`LsmError`]. Also where a volume can't be read for another reason than damage: it may
    /// well be whole.
    pub fn open(folder: &Path, config: LsmConfig) -> Result<Self, LsmError> {
        config.validate().map_err(LsmError::Config)?;
        let volumes = folder.join("volumes");
        io(&volumes, files::make_folder(&volumes))?;
        format::check_or_mark(folder, &volumes)?;
        let shared = Arc::new(Shared::new(config, volumes.clone()));
        let mut damaged = Vec::new();
        for entry in io(&volumes, fs::read_dir(&volumes))? {
            let path = io(&volumes, entry)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match name.parse::<u64>() {
                _ if name.starts_with("tmp-") || path.join(GONE).exists() => {
                    io(&path, files::remove_folder(&path))?;
                }
                Ok(id) => damaged.extend(shared.open_volume(VolumeId(id), &path)?),
                Err(_) => tracing::warn!(path = %path.display(), "ignored: not a volume"),
            }
        }
        damaged.sort_by_key(|damaged| damaged.volume);
        Ok(LsmEngine { shared, damaged })
    }
}

impl Shared {
    /// Opens a volume that is there, or says what is wrong with it.
    fn open_volume(
        self: &Arc<Self>,
        volume: VolumeId,
        path: &Path,
    ) -> Result<Option<DamagedVolume>, LsmError> {
        let damage = match io(path, remembered_damage(path))? {
            Some(what) => Some(format!("damage was met before: {what}")),
            None => io(path, manifest::damage(path))?,
        };
        let damage = match damage {
            Some(damage) => damage,
            None => match self.open_tree(volume, path) {
                Ok(opened) => {
                    self.volumes.write().insert(volume, Arc::new(opened));
                    return Ok(None);
                }
                Err(EngineError::Io { source, .. }) => return io(path, Err(source)),
                Err(error @ EngineError::NoRoom { .. }) => {
                    return io(path, Err(std::io::Error::other(error.to_string())));
                }
                Err(EngineError::Damaged { what, .. }) => what,
                Err(other) => other.to_string(),
            },
        };
        tracing::error!(volume = volume.0, what = damage, "a volume is damaged");
        Ok(Some(DamagedVolume { volume, what: damage }))
    }

    fn open_tree(self: &Arc<Self>, id: VolumeId, path: &Path) -> Result<Volume, EngineError> {
        let counter = SequenceNumberCounter::new(1);
        let dropped = Dropped::default();
        let factory = FilterFactory::new(Arc::downgrade(self), dropped.clone());
        let config = self
            .tree_config(path, counter.clone())
            .with_compaction_filter_factory(Some(Arc::new(factory)));
        match config.open().map_err(|error| of_tree(id, path, error))? {
            AnyTree::Standard(tree) => {
                let common = self.common.clone();
                Ok(Volume::new(id, path.to_owned(), (tree, counter), dropped, common))
            }
            AnyTree::Blob(_) => {
                let what = format!("{}: values apart from keys", path.display());
                Err(EngineError::Damaged { volume: id, what })
            }
        }
    }

    fn tree_config(&self, path: &Path, counter: SequenceNumberCounter) -> Config {
        // What the tree would call visible is raised by flushes past a batch in flight: unused.
        let visible = SequenceNumberCounter::default();
        Config::new(path, counter, visible)
            .use_cache(self.cache.clone())
            .use_descriptor_table(Some(self.open_files.clone()))
    }

    pub(crate) fn path_of(&self, volume: VolumeId) -> PathBuf {
        self.folder.join(volume.0.to_string())
    }

    /// Makes a volume, filled with `items`, durably. On an error nothing is left of it.
    pub(crate) fn make_volume(
        self: &Arc<Self>,
        id: VolumeId,
        items: &mut dyn Iterator<Item = Item>,
    ) -> Result<(), EngineError> {
        self.remove_deleted()?;
        let path = self.path_of(id);
        if !self.config.room.may(|room| room.for_volume()) {
            return Err(no_room(&path));
        }
        let temporary = self.folder.join(format!("tmp-{id}"));
        if !self.making.lock().insert(id) {
            return Err(EngineError::VolumeExists(id));
        }
        let made = if self.volumes.read().contains_key(&id) || path.exists() {
            Err(EngineError::VolumeExists(id))
        } else {
            self.fill(id, &temporary, items).and_then(|()| {
                engine_io(&path, fs::rename(&temporary, &path))?;
                engine_io(&self.folder, files::sync_folder(&self.folder))?;
                self.open_tree(id, &path)
            })
        };
        if made.is_err() && files::remove_folder(&temporary).is_err() {
            tracing::warn!(path = %temporary.display(), "can't be removed before the next start");
        }
        let made = made.map(|volume| self.volumes.write().insert(id, Arc::new(volume)));
        self.making.lock().remove(&id);
        made.map(|_| ())
    }

    fn fill(
        &self,
        id: VolumeId,
        temporary: &Path,
        items: &mut dyn Iterator<Item = Item>,
    ) -> Result<(), EngineError> {
        engine_io(temporary, files::remove_folder(temporary))?;
        let failed = |error| of_tree(id, temporary, error);
        let tree =
            self.tree_config(temporary, SequenceNumberCounter::new(1)).open().map_err(failed)?;
        let mut ingestion = tree.ingestion().map_err(failed)?;
        let mut last = Bytes::new();
        for item in items {
            let (key, value) = item?;
            check_key(&key)?;
            // The first is above no key at all: keys have at least a byte.
            if key <= last {
                return Err(EngineError::NotAscending(key.escape_ascii().to_string()));
            }
            last = key.clone();
            ingestion.write(key, value).map_err(failed)?;
        }
        ingestion.finish().map_err(failed)?;
        engine_io(temporary, files::sync_folder(temporary))
    }

    /// Marks a deleted volume, durably: its files go when nobody reads them any more.
    pub(crate) fn mark_gone(&self, path: &Path) -> Result<(), EngineError> {
        engine_io(path, files::write_whole(&path.join(GONE), b""))
    }
}
