//! What a node does when a disk runs full: its own, or those of a shard's other replicas.
//!
//! Of a shard whose writes would need room that isn't there only deletes are taken, and at the
//! very end only reads. A node that has too little itself doesn't lead where others can: it hands
//! leadership to replicas with room, so that one full disk of three refuses nobody anything.

use crate::access::Access;
use kvdb_model::{NodeId, Operation, Refusal, ReplicaId, Role, ShardDescriptor, ShardId};
use kvdb_replication::Input;
use kvdb_runtime::drive::{Drive, Level, ShardView};
use kvdb_runtime::shutdown::Shutdown;
use kvdb_store::{Effect, effect_of};
use std::time::Duration;

/// How often leadership is offered again while a disk stays full.
const OFFER_EVERY: Duration = Duration::from_millis(500);

impl Access {
    /// Whether there is room for a write on the disks that it goes to.
    pub(crate) fn check_room(
        &self,
        view: &ShardView,
        operations: &[Operation],
    ) -> Result<(), Refusal> {
        let Some(descriptor) = &view.descriptor else { return Ok(()) };
        let own = self.drive.node_id();
        let others = other_voters(descriptor, own).map(|(node, _)| node);
        let may = match self.drive.room().of_shard(others) {
            Level::Ample => true,
            Level::Low => operations.iter().all(|operation| effect_of(operation) <= Effect::Free),
            Level::Out => false,
        };
        let shard_id = descriptor.shard_id;
        match may {
            true => Ok(()),
            // It was elected, or the disk has filled, a moment ago: another one leads soon.
            false if successor(&self.drive, descriptor).is_some() => {
                let reason = kvdb_model::unavailable::LEADER_FULL;
                Err(Refusal::ShardUnavailable { shard_id, reason })
            }
            false => Err(Refusal::DiskFull { shard_id }),
        }
    }
}

fn other_voters(
    descriptor: &ShardDescriptor,
    own: NodeId,
) -> impl Iterator<Item = (NodeId, ReplicaId)> {
    let voters = descriptor
        .replicas
        .iter()
        .filter(|replica| matches!(replica.role, Role::Voter | Role::Incoming));
    voters
        .map(|replica| (replica.node_id, replica.replica_id))
        .filter(move |(node, _)| *node != own)
}

/// Hands over what is led here while the disk is full, until it is time to stop.
pub(crate) async fn hand_over_when_full(drive: Drive, shutdown: Shutdown) {
    let mut levels = drive.room().changes();
    let mut roles = drive.role_changes();
    loop {
        let full = *levels.borrow_and_update() != Level::Ample;
        roles.mark_unchanged();
        if full {
            hand_over(&drive);
        }
        tokio::select! {
            _ = levels.changed() => {}
            _ = roles.changed(), if full => {}
            () = tokio::time::sleep(OFFER_EVERY), if full => {}
            () = shutdown.wait() => return,
        }
    }
}

fn hand_over(drive: &Drive) {
    let views = drive.views().all();
    for (shard, view) in views.iter().filter(|(_, view)| view.is_leader) {
        let Some(descriptor) = &view.descriptor else { continue };
        if let Some(to) = successor(drive, descriptor) {
            tracing::info!(shard = shard.0, "leadership handed over: this disk is full");
            submit(drive, *shard, to);
        }
    }
}

/// Who may lead, if the others with room are a majority without this node: a voter with room, or
/// `None` within for whichever is furthest.
fn successor(drive: &Drive, descriptor: &ShardDescriptor) -> Option<Option<ReplicaId>> {
    let others: Vec<_> = other_voters(descriptor, drive.node_id()).collect();
    let mut roomy = others.iter().filter(|(node, _)| !drive.room().is_short(*node));
    let count = roomy.clone().count();
    let enough = count > others.len().div_ceil(2);
    enough.then(|| if count == others.len() { None } else { roomy.next().map(|(_, id)| *id) })
}

fn submit(drive: &Drive, shard: ShardId, to: Option<ReplicaId>) {
    // Refused only under overload; it is offered again.
    let _ = drive.submit(Input::TransferLeader { shard, to });
}
