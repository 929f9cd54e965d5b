//! Who waits for an answer. A ticket travels with a proposal or a read through the host and comes
//! back with its outcome, exactly once; it costs a reference count, not an allocation.

use bytes::Bytes;
use kvdb_model::{LogPosition, OperationOutcome};
use kvdb_replication::Rejection;
use std::sync::Arc;

/// What became of a proposal or a read.
#[derive(Debug)]
pub enum Outcome {
    /// A write was applied (or refused by the shard's own state): one outcome an operation.
    Written(Vec<OperationOutcome>),
    /// A command of the coordinators' state machine was applied; its encoded result.
    Controlled(Bytes),
    /// A membership change was applied, or refused because its epoch had passed.
    MembershipChanged(bool),
    /// A split was applied, or refused because the shard had changed.
    Split(bool),
    /// So many expired records were freed.
    Reclaimed(u64),
    /// A decision about the shard's change history was applied.
    HistoryDecided,
    /// Shard time has advanced.
    TimeAdvanced(LogPosition),
    /// The read may be served from the shard's present state.
    ReadReady,
    /// It wasn't carried out by this replica.
    Rejected(Rejection),
}

/// Takes outcomes, from the replication and apply threads: must not block.
pub trait ReplySink: Send + Sync {
    /// The outcome of what was submitted under `id`.
    fn reply(&self, id: u64, outcome: Outcome);
}

/// A place for one outcome.
#[derive(Clone)]
pub struct Ticket {
    sink: Arc<dyn ReplySink>,
    id: u64,
}

impl Ticket {
    /// A ticket that answers to `sink` under `id`.
    pub fn new(sink: Arc<dyn ReplySink>, id: u64) -> Self {
        Ticket { sink, id }
    }

    /// A ticket for one waiting task.
    pub fn oneshot() -> (Self, tokio::sync::oneshot::Receiver<Outcome>) {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let sink = Arc::new(OneShot(parking_lot::Mutex::new(Some(sender))));
        (Ticket { sink, id: 0 }, receiver)
    }

    /// A ticket that nobody waits for.
    pub fn nobody() -> Self {
        Ticket { sink: Arc::new(Nobody), id: 0 }
    }

    pub(crate) fn reply(self, outcome: Outcome) {
        self.sink.reply(self.id, outcome);
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ticket({})", self.id)
    }
}

struct OneShot(parking_lot::Mutex<Option<tokio::sync::oneshot::Sender<Outcome>>>);

impl ReplySink for OneShot {
    fn reply(&self, _id: u64, outcome: Outcome) {
        if let Some(sender) = self.0.lock().take() {
            // The waiter may have given up at its deadline.
            let _ = sender.send(outcome);
        }
    }
}

struct Nobody;

impl ReplySink for Nobody {
    fn reply(&self, _id: u64, _outcome: Outcome) {}
}
