//! When a replica's state and log may become those of a new one, alone in its shard: the majority
//! is lost for good, and somebody has decided to go on with what is left.
//!
//! # What makes it sound
//!
//! - The old replica's end and the new one's birth are records of one frame of the log: after a
//!   crash there is either the one or the other. From then on the old one neither votes nor
//!   acknowledges anything, so whoever of the majority comes back can't count on it.
//! - All of the old log goes along, whether it is known to be committed or not: what the majority
//!   has acknowledged to anybody may be in it. So the log must end where it ended when the copy
//!   was made.
//! - A replica that hears a leader isn't without a majority.

use super::Group;
use crate::convert::entry_to_model;
use crate::effect::CantGoOn;
use kvdb_model::{LogEntry, LogIndex, LogPosition, Term};
use raft::{INVALID_ID, Storage as _};

impl<T> Group<T> {
    /// What keeps the replica from going on as another one.
    pub(crate) fn cant_go_on(&self) -> Result<(), CantGoOn> {
        if self.engine_lost || self.volume.is_none() {
            Err(CantGoOn::WithoutState)
        } else if self.is_leader() || self.raw.raft.leader_id != INVALID_ID {
            Err(CantGoOn::HasLeader)
        } else if self.is_receiving() {
            Err(CantGoOn::Changing)
        } else {
            Ok(())
        }
    }

    /// Where its log ends.
    pub(crate) fn log_end(&self) -> LogPosition {
        let log = &self.raw.raft.raft_log;
        LogPosition { index: LogIndex(log.last_index()), term: Term(log.last_term()) }
    }

    /// What its log holds after a position; `None` if it doesn't lead there.
    pub(crate) fn log_after(&self, position: LogPosition) -> Option<Vec<LogEntry>> {
        let log = &self.raw.raft.raft_log;
        if log.term(position.index.0).ok()? != position.term.0
            || position.index < self.raw.store().start().index
        {
            return None;
        }
        let context = raft::GetEntriesContext::empty(false);
        let first = position.index.0 + 1;
        if first > log.last_index() {
            return Some(Vec::new());
        }
        // What was handed out to be persisted is in the store; what wasn't is no longer than this
        // step.
        let stored = self.raw.store().last_index().ok()?;
        if stored != log.last_index() {
            return None;
        }
        let entries = self.raw.store().entries(first, stored + 1, None, context).ok()?;
        Some(entries.iter().map(entry_to_model).collect())
    }
}
