//! The engine on `lsm-tree`: one tree a volume, no journal.
//!
//! What the library leaves to its user, and where it is done:
//!
//! - **Published numbers** (`volume`): each batch takes one number from the tree's counter and is
//!   published when it is complete. Reads go through a published number, so none sees half a batch.
//! - **Sealing**: a memtable is only sealed between batches, so a flush takes whole ones.
//! - **What may be forgotten**: versions below the oldest open snapshot, or the published number.
//! - **Manifest** (`manifest`): the library writes a checksum of it and doesn't check it; we do,
//!   before a volume is opened.
//! - **Flushing** (`lsm`): one budget for the memtables of all volumes and an age limit, so that
//!   the write-ahead log stays short. Where flushing falls behind, writes wait, for a bounded time.
//!
//! On disk: `ENGINE` (magic and format), `volumes/<id>/` for each volume. A name that starts with
//! `tmp-` or `gone-` is what an interrupted creation or deletion left; it is removed at the start.

mod lsm;
mod manifest;
mod volume;

pub use lsm::{DamagedVolume, LsmConfig, LsmEngine, LsmError};
