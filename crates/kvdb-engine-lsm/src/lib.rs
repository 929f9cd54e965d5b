//! The engine on `lsm-tree`: one tree a volume, no journal.
//!
//! What the library leaves to its user, and where it is done:
//!
//! - **Published numbers** (`volume`): each batch takes one number from the tree's counter and is
//!   published when it is complete. Reads go through a published number, so none sees half a batch.
//! - **Memtables** (`memtable`): found by hash, put in order for scans and flushes only. One is frozen
//!   between batches, so a flush takes whole ones.
//! - **Views** (`view`): a snapshot holds on to the memtables and tables that it reads, and to no
//!   others.
//! - **Checks** (`manifest`): the library doesn't check the checksum of its manifest, nor of a
//!   table's contents before it believes them; we do, before a volume is opened.
//! - **Flushing** (`maintain`, `budget`): one budget for the memtables of all volumes and an age
//!   limit, so that the write-ahead log stays short. Where flushing or compacting falls behind,
//!   writes wait, for a bounded time that is counted.
//! - **Compacting** (`filter`): at a bounded rate, giving way to flushes, leaving out what was
//!   dropped.
//!
//! On disk: `ENGINE` (magic and format), and `volumes/<id>/` for each volume. `volumes/tmp-<id>/`
//! is one that was being made, a folder with a file `gone` one that was deleted; both are removed
//! when the engine is opened.
//!
//! A full disk is no failure: before a flush, a compaction or a new volume the engine asks
//! [`Room`] for as much as it may write, and puts off what there is no room for. Should the disk
//! fill up in the middle, the tree is as it was, and what was written is removed when the engine
//! is next opened.
//!
//! Not here: a journal (the write-ahead log is the only one). Another i/o error of a flush or
//! compaction means that the process should stop.

mod budget;
mod config;
mod engine;
mod error;
mod files;
mod filter;
mod format;
mod maintain;
mod manifest;
mod memtable;
mod open;
mod short_lived;
mod view;
mod volume;

pub use config::{Asks, LsmConfig, Room};
pub use engine::LsmEngine;
pub use error::LsmError;
pub use open::DamagedVolume;
