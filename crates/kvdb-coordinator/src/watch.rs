//! What a watcher of the shard map is sent.

use crate::service::Member;
use kvdb_control::Since;
use kvdb_model::MapVersion;
use kvdb_wire::{map_delta_to, proto, shard_map_to};
use tokio::sync::mpsc;
use tonic::Status;

/// Sends a watcher every delta in order, or a snapshot, while this member leads.
pub(crate) async fn feed(
    member: Member,
    mut have: MapVersion,
    updates: mpsc::Sender<Result<proto::ShardMapUpdate, Status>>,
) {
    use proto::shard_map_update::Update;
    let mut changes = member.view.changes();
    let mut roles = member.drive.role_changes();
    let mut first = true;
    let mut told = Vec::new();
    loop {
        changes.mark_unchanged();
        let (since, state) = member.view.since(have);
        let mut messages: Vec<_> = match since {
            Since::Deltas(deltas) if !(first && have.0 == 0) => {
                deltas.iter().map(|delta| Some(Update::Delta(map_delta_to(delta)))).collect()
            }
            _ => vec![Some(Update::Snapshot(shard_map_to(state.map())))],
        };
        first = false;
        have = state.map().version;
        let mut coordinators = Vec::new();
        let now = state.coordinator_addresses();
        if now != told {
            told.clone_from(&now);
            coordinators = now;
            if messages.is_empty() {
                messages.push(None);
            }
        }
        for update in messages {
            let coordinators = std::mem::take(&mut coordinators);
            let update = proto::ShardMapUpdate { update, coordinators };
            if updates.send(Ok(update)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            _ = roles.changed() => {}
            () = updates.closed() => return,
        }
        if !member.leads() {
            let _ = updates.send(Err(member.not_leader())).await;
            return;
        }
    }
}
