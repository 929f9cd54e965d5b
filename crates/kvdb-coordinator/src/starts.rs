//! Which process of a node counts: older copies of its directory and second processes are turned away.

use crate::refusals::bad_field;
use crate::service::Member;
use kvdb_control::{ControlCommand, ControlError, Heard, NodeStart, NotAccepted, NotCounted};
use kvdb_model::{NodeId, Refusal};
use kvdb_runtime::clock;
use kvdb_wire::{FieldError, HIGHEST_SYNCED, proto, status_of, token_from};
use tonic::Status;

pub(crate) fn start_from(start: proto::NodeStart) -> Result<NodeStart, FieldError> {
    let shown = start.shown.iter().take(kvdb_control::MOST_SHOWN + 1);
    Ok(NodeStart {
        shown: shown.map(|nonce| token_from("start.shown", nonce)).collect::<Result<_, _>>()?,
        nonce: token_from("start.nonce", &start.nonce)?,
        synced: start.synced,
        place: token_from("start.place", &start.place)?,
    })
}

impl Member {
    /// Whether a start may be accepted now. One from elsewhere waits while the process before it is
    /// heard; one that doesn't show what it must is refused for good.
    pub(crate) async fn check_start_alone(
        &self,
        token: u128,
        start: &NodeStart,
    ) -> Result<(), Status> {
        // What an earlier leader has accepted has to be known here.
        self.catch_up().await?;
        let state = self.view.state();
        let Some(node) = state.node_of(token) else { return Ok(()) };
        let heard = self.liveness.lock().heard_lately(node, clock::boot_us() / 1000);
        let at = state.map().nodes.get(&node).map_or("", |record| record.address.as_str());
        let admitted = self.synced.lock().admits(&state, node, start, heard);
        let why = match (admitted, heard) {
            (Ok(()), _) => return Ok(()),
            (Err(NotAccepted::Older), heard) => {
                let other = match heard {
                    Heard::Lately { silent_ms } => {
                        let silent = seconds(silent_ms);
                        format!(
                            ". The process that counts runs at {at} and was heard {silent} s ago"
                        )
                    }
                    Heard::NotLately | Heard::NotKnown => String::new(),
                };
                let why = format!("is refused: {}{other}", ControlError::OlderDirectory(node));
                return Err(status_of(&Refusal::invalid("start", why)));
            }
            (Err(NotAccepted::Waits), Heard::Lately { silent_ms }) => format!(
                "another process of node {node} runs at {at} and was heard {} s ago: this one takes no part while it \
                 does. Stop that one, or start a new node with an empty directory",
                seconds(silent_ms)
            ),
            (Err(NotAccepted::Waits), _) => format!(
                "it isn't known yet whether another process of node {node} runs, which was at {at}: this one waits \
                 for some seconds"
            ),
        };
        Err(Status::failed_precondition(why))
    }

    /// Whether a heartbeat is that of the start that counts, with the log that it has told of.
    pub(crate) async fn check_start(
        &self,
        node: NodeId,
        nonce: &[u8],
        synced: u64,
    ) -> Result<(), Status> {
        if nonce.is_empty() {
            return Ok(());
        }
        let nonce = token_from("nonce", nonce).map_err(bad_field)?;
        if self.compare_start(node, nonce, synced).is_err() {
            // What an earlier leader has accepted may not be known here yet.
            self.catch_up().await?;
        }
        self.compare_start(node, nonce, synced)
    }

    fn compare_start(&self, node: NodeId, nonce: u128, synced: u64) -> Result<(), Status> {
        let state = self.view.state();
        match self.synced.lock().hears(&state, node, nonce, synced) {
            Ok(()) => Ok(()),
            Err(NotCounted::StartedSince) => {
                let at = state.map().nodes.get(&node).map_or("", |record| record.address.as_str());
                let heard = self.liveness.lock().heard_lately(node, clock::boot_us() / 1000);
                let heard = match heard {
                    Heard::Lately { silent_ms } => {
                        format!(", and was heard there {} s ago", seconds(silent_ms))
                    }
                    Heard::NotLately | Heard::NotKnown => String::new(),
                };
                Err(Status::failed_precondition(format!(
                    "node {node} has been started again since, at {at}{heard}: this process is not the one that \
                     counts. Stop it for good and leave its directory alone, or delete it"
                )))
            }
            Err(NotCounted::GoneBack { highest }) => {
                let mut status = Status::aborted(format!(
                    "the log of node {node} has gone back from frame {highest} to {synced}: its machine was put back \
                     to an earlier moment, and what it has promised since is lost. `kvdb admin replace {node}`, and \
                     start a new node with an empty directory"
                ));
                status.metadata_mut().insert(HIGHEST_SYNCED, highest.into());
                Err(status)
            }
        }
    }

    /// What of it the log doesn't know yet.
    pub(crate) fn news_of_synced(&self) -> Option<ControlCommand> {
        self.synced.lock().news(&self.view.state())
    }
}

fn seconds(ms: u64) -> String {
    format!("{:.1}", ms as f64 / 1000.0)
}
