//! Heartbeats to the coordinators: what they tell, and what comes of the answers.

use crate::recoveries::Recoveries;
use crate::registration::{Registration, hear_generation};
use crate::reports::Reports;
use crate::run::NodeError;
use crate::sizes::Sizes;
use crate::tasks::{self, Impossible};
use arc_swap::ArcSwap;
use futures_util::future::join_all;
use kvdb_model::{ClusterId, Generation, NodeId, ShardId};
use kvdb_replication::Input;
use kvdb_router::Routes;
use kvdb_runtime::clock;
use kvdb_runtime::cluster_time::ClusterTime;
use kvdb_runtime::contacts::Contacts;
use kvdb_runtime::coordinators::Coordinators;
use kvdb_runtime::dial;
use kvdb_runtime::drive::{Drive, Level};
use kvdb_runtime::identity::Role;
use kvdb_runtime::shutdown::Shutdown;
use kvdb_wire::{
    HIGHEST_SYNCED, cluster_id_to, descriptor_to, generation_to, proto, refusal_from_status,
    shard_map_to, shard_task_from,
};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::{Code, Request, Status};

const HEARTBEAT: Duration = Duration::from_millis(500);
/// While a shard that is led here is being changed.
const HEARTBEAT_AT_WORK: Duration = Duration::from_millis(50);
/// Nodes that are dialled because the coordinators can't reach them.
const MOST_DIALLED: usize = 64;

/// What heartbeats tell of the process itself.
pub(crate) struct Own {
    pub(crate) cluster_id: ClusterId,
    pub(crate) incarnation: u64,
    /// Where it is reached.
    pub(crate) address: String,
    /// Whom it reaches.
    pub(crate) contacts: Contacts,
    /// Where the others are.
    pub(crate) routes: Arc<ArcSwap<Routes>>,
    pub(crate) registration: Registration,
    /// Told why this process has to end.
    pub(crate) refuse: mpsc::Sender<NodeError>,
}

impl Own {
    /// Dials nodes that the coordinators can't reach.
    async fn dial(&self, nodes: Vec<u64>) -> Vec<(NodeId, bool)> {
        let routes = self.routes.load();
        let dials = nodes.into_iter().take(MOST_DIALLED).map(NodeId).map(|node| {
            let address = routes.address(node).cloned();
            async move {
                let Some(address) = address else { return (node, false) };
                let found =
                    dial::identify(&address, self.cluster_id, &[], Generation::default()).await;
                let is_there = found.is_ok_and(|found| {
                    found.role == Some(Role::Node)
                        && (found.cluster_id, found.id) == (self.cluster_id, node)
                });
                (node, is_there)
            }
        });
        join_all(dials).await
    }
}

/// Sends heartbeats until it is time to stop.
pub(crate) async fn heartbeats(
    drive: Drive,
    own: Own,
    coordinators: Coordinators,
    sizes: Arc<Sizes>,
    time: ClusterTime,
    shutdown: Shutdown,
) {
    let own = Arc::new(own);
    // Answers come when they come: a heartbeat waits for nobody else.
    let dialled: Arc<Mutex<Vec<(NodeId, bool)>>> = Arc::default();
    let dialling = Arc::new(AtomicBool::new(false));
    let mut interval = tokio::time::interval(HEARTBEAT);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut roles = drive.role_changes();
    let mut impossible = Impossible::new();
    let recoveries = Recoveries::default();
    let mut reports = Reports::new(sizes.clone());
    let map = own.registration.map.clone();
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            // A new leader is told at once, so that gateways needn't find it by themselves.
            _ = roles.changed() => {}
            () = shutdown.wait() => return,
        }
        let replicas = reports.next(&drive).await;
        let mut request = heartbeat(&drive, &own, replicas, &impossible);
        let found = std::mem::take(&mut *dialled.lock());
        for (node, is_reached) in own.contacts.all().into_iter().chain(found) {
            let told = if is_reached { &mut request.reached } else { &mut request.unreached };
            told.push(node.0);
        }
        let generation = map.generations.newest();
        request.generation = generation_to(generation);
        request.map_before = map.generations.map_before().as_ref().map(shard_map_to);
        let asked_us = AtomicU64::new(0);
        let answer = coordinators
            .call(async |mut client| {
                let now = clock::now();
                asked_us.store(now.boot_us, Ordering::Relaxed);
                let request = proto::HeartbeatRequest { wall_ms: now.wall_ms, ..request.clone() };
                let answer = client.heartbeat(Request::new(request)).await?.into_inner();
                hear_generation(&map, answer.generation.clone()).await?;
                Ok(answer)
            })
            .await;
        let answered_us = clock::boot_us();
        match answer {
            Ok(answer) => {
                if map.generations.newest() == generation {
                    map.generations.has_told();
                } else {
                    // Only the next one is taken for a report.
                    interval.reset_immediately();
                }
                let asked_us = asked_us.load(Ordering::Relaxed);
                if let Some(now_ms) = time.told(answer.cluster_time_ms, asked_us, answered_us) {
                    drive.cluster_time_is(now_ms);
                }
                transfer(&drive, &answer.transfers);
                if !answer.dial.is_empty() && !dialling.swap(true, Ordering::Relaxed) {
                    let (own, dialled) = (own.clone(), dialled.clone());
                    let dialling = dialling.clone();
                    tokio::spawn(async move {
                        let found = own.dial(answer.dial).await;
                        *dialled.lock() = found;
                        dialling.store(false, Ordering::Relaxed);
                    });
                }
                sizes.set_limit(answer.split_size_bytes);
                // What can't be read was made by a newer coordinator.
                let tasks: Vec<_> = answer
                    .tasks
                    .into_iter()
                    .filter_map(|task| shard_task_from(task).ok())
                    .collect();
                if !tasks.is_empty() {
                    interval.reset_after(HEARTBEAT_AT_WORK);
                }
                impossible = recoveries.carry_out(&drive, &tasks);
                impossible.extend(tasks::carry_out(&drive, tasks).await);
            }
            Err(status) if is_overtaken(&status, drive.synced()) => {
                tracing::debug!(error = status.message(), "a heartbeat was overtaken");
                interval.reset_immediately();
            }
            // Its log has gone back under it.
            Err(status) if status.code() == Code::Aborted => {
                let why = status.message().to_owned();
                let _ = own.refuse.send(NodeError::MustNotGoOn(why)).await;
            }
            // They have accepted this start, and don't take it for the one that counts any more.
            Err(status)
                if status.code() == Code::FailedPrecondition
                    && refusal_from_status(&status).is_none()
                    && own.registration.accepted.load(Ordering::Relaxed) =>
            {
                if !own.registration.is_known_after_all(request.synced).await {
                    let why = status.message().to_owned();
                    let _ = own.refuse.send(NodeError::MustNotGoOn(why)).await;
                }
            }
            Err(status) => tracing::debug!(error = status.message(), "heartbeat not answered"),
        }
    }
}

/// A refusal that takes the log for one that has gone back, though it reaches as far as was ever told: what this
/// heartbeat told was older than what was told beside it.
fn is_overtaken(status: &Status, synced: u64) -> bool {
    let highest =
        status.metadata().get(HIGHEST_SYNCED).and_then(|text| text.to_str().ok()?.parse().ok());
    status.code() == Code::Aborted && highest.is_some_and(|highest: u64| synced >= highest)
}

fn heartbeat(
    drive: &Drive,
    own: &Own,
    replicas: Vec<proto::ReplicaReport>,
    impossible: &Impossible,
) -> proto::HeartbeatRequest {
    let views = drive.views().all();
    let led = views
        .values()
        .filter(|view| view.is_settled())
        .filter_map(|view| {
            let descriptor = descriptor_to(view.descriptor.as_ref()?);
            Some(proto::ShardReport { descriptor: Some(descriptor), term: view.term.0 })
        })
        .collect();
    proto::HeartbeatRequest {
        node_id: drive.node_id().0,
        cluster_id: cluster_id_to(own.cluster_id),
        incarnation: own.incarnation,
        address: own.address.clone(),
        nonce: own.registration.start.lock().nonce.to_be_bytes().to_vec().into(),
        synced: drive.synced(),
        reached: Vec::new(),
        unreached: Vec::new(),
        led,
        replica_count: views.len() as u64,
        replicas,
        snapshot_bytes_per_second: drive.snapshot_bytes_per_second(),
        short_of_room: drive.room().level() != Level::Ample,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        disk_free_bytes: drive.room().free_bytes(),
        // The incarnation is when the process started.
        uptime_ms: kvdb_runtime::clock::now().boot_us.saturating_sub(own.incarnation) / 1000,
        log_sync_us: drive.log_health().sync_us(kvdb_runtime::clock::boot_us()),
        log_stalled: drive.log_health().is_wary(),
        paths: own
            .contacts
            .round_trips_us(kvdb_runtime::clock::boot_us())
            .into_iter()
            .map(|(node, round_trip_us)| proto::PeerPath { node_id: node.0, round_trip_us })
            .collect(),
        impossible: impossible
            .iter()
            .map(|(id, why)| proto::TaskProblem { operator_id: id.0, why: why.clone() })
            .collect(),
        // When it is sent.
        wall_ms: 0,
        generation: None,
        map_before: None,
    }
}

fn transfer(drive: &Drive, transfers: &[proto::LeaderTransfer]) {
    for wanted in transfers {
        let shard = ShardId(wanted.shard_id);
        let view = drive.views().get(shard);
        let to = view
            .and_then(|view| view.descriptor.clone())
            .and_then(|descriptor| descriptor.replica_on(NodeId(wanted.to_node_id)).copied());
        // One without room would hand it back.
        if let Some(to) = to.filter(|to| !drive.room().is_short(to.node_id)) {
            // Refused only under overload; the next heartbeat asks again.
            let _ = drive.submit(Input::TransferLeader { shard, to: Some(to.replica_id) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_that_was_overtaken_is_no_log_that_has_gone_back() {
        let refused = |code, highest: Option<&str>| {
            let mut status = Status::new(code, "it has gone back");
            if let Some(highest) = highest {
                status.metadata_mut().insert(HIGHEST_SYNCED, highest.parse().unwrap());
            }
            status
        };
        let aborted = refused(Code::Aborted, Some("8"));
        assert!(is_overtaken(&aborted, 8) && is_overtaken(&aborted, 9));
        assert!(!is_overtaken(&aborted, 7), "what was synced once is gone");
        // Who doesn't say how far it was is believed.
        assert!(!is_overtaken(&refused(Code::Aborted, None), 9));
        assert!(!is_overtaken(&refused(Code::Aborted, Some("far")), 9));
        assert!(!is_overtaken(&refused(Code::FailedPrecondition, Some("8")), 9));
    }
}
