//! How a node makes itself known to the coordinators, and stays known.

use crate::mute;
use crate::run::{NodeConfig, NodeError};
use kvdb_model::{ClusterId, Generation, NodeId, ReplicaId};
use kvdb_runtime::coordinators::Coordinators;
use kvdb_runtime::http::Readiness;
use kvdb_runtime::identity::Identity;
use kvdb_runtime::map::ClusterMap;
use kvdb_runtime::start::{Copy, Start};
use kvdb_wire::{
    cluster_id_from, cluster_id_to, generation_from, generation_to, proto, refusal_from_status,
};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tonic::{Code, Request, Status};

const REGISTER_AGAIN: Duration = Duration::from_millis(200);
/// Before that nobody is warned that no coordinator can be reached.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a node is for the coordinators.
pub(crate) struct Registered {
    pub(crate) cluster_id: ClusterId,
    pub(crate) node_id: NodeId,
    /// The last older copy of its directory that was accepted.
    pub(crate) copy: Copy,
}

/// Registers until it works or is refused for good.
pub(crate) async fn register(
    config: &NodeConfig,
    known: Identity,
    coordinators: &Coordinators,
    readiness: &Readiness,
    map: &ClusterMap,
    start: &proto::NodeStart,
) -> Result<Registered, Status> {
    let mut said = (false, String::new());
    let begun = Instant::now();
    loop {
        match try_register(config, known, coordinators, map, start).await {
            Ok(registered) => return Ok(registered),
            Err(status) if status.code() == Code::InvalidArgument => return Err(status),
            Err(status) => {
                let error = status.message();
                // A refusal that passes comes from one that is there: it takes a moment, no more. So
                // may the first call, where everything starts at once.
                let kept_out = status.code() == Code::FailedPrecondition;
                let begins = begun.elapsed() < PATIENCE;
                let waits = begins || refusal_from_status(&status).is_some() && !kept_out;
                if said != (waits, error.to_owned()) {
                    readiness.wait_for("registration", error);
                    if waits {
                        tracing::info!(error, "waiting for the coordinators");
                    } else if kept_out {
                        tracing::warn!(error, "the coordinators don't accept this node yet");
                    } else {
                        tracing::warn!(error, "no coordinator can be reached");
                    }
                    said = (waits, error.to_owned());
                }
                tokio::time::sleep(REGISTER_AGAIN).await;
            }
        }
    }
}

/// Whether the coordinators would accept a start; returns whether as one on an older copy.
pub(crate) async fn ask_whether(
    config: &NodeConfig,
    known: Identity,
    coordinators: &Coordinators,
    map: &ClusterMap,
    start: &proto::NodeStart,
) -> Result<bool, Status> {
    let answer = send_registration(config, known, coordinators, map, start, true).await?;
    Ok(answer.as_copy)
}

/// Coordinators that were left behind aren't listened to.
async fn send_registration(
    config: &NodeConfig,
    known: Identity,
    coordinators: &Coordinators,
    map: &ClusterMap,
    start: &proto::NodeStart,
    only_asks: bool,
) -> Result<proto::RegisterNodeResponse, Status> {
    coordinators
        .call(async |mut client| {
            let request = registration(config, known, map.generations.newest(), start, only_asks);
            let answer = client.register_node(Request::new(request)).await?.into_inner();
            hear_generation(map, answer.generation.clone()).await?;
            Ok(answer)
        })
        .await
}

pub(crate) async fn hear_generation(
    map: &ClusterMap,
    generation: Option<proto::Generation>,
) -> Result<(), Status> {
    let theirs =
        generation_from(generation).map_err(|error| Status::unavailable(error.to_string()))?;
    map.meet(theirs).await.map_err(Status::unavailable)?;
    map.generations.is_heard();
    Ok(())
}

fn registration(
    config: &NodeConfig,
    known: Identity,
    generation: Generation,
    start: &proto::NodeStart,
    only_asks: bool,
) -> proto::RegisterNodeRequest {
    proto::RegisterNodeRequest {
        token: bytes::Bytes::copy_from_slice(&known.token.to_be_bytes()),
        address: config.advertised().to_owned(),
        zone: config.zone.clone(),
        node_id: known.node_id.0,
        cluster_id: cluster_id_to(known.cluster_id),
        start: Some(start.clone()),
        only_asks,
        generation: generation_to(generation),
    }
}

pub(crate) async fn try_register(
    config: &NodeConfig,
    known: Identity,
    coordinators: &Coordinators,
    map: &ClusterMap,
    start: &proto::NodeStart,
) -> Result<Registered, Status> {
    let answer = send_registration(config, known, coordinators, map, start, false).await?;
    if !answer.unreachable.is_empty() {
        let (address, why) = (config.advertised(), answer.unreachable);
        tracing::warn!(address, why, "the coordinators can't reach this node: it gets no replicas");
    }
    let cluster_id =
        cluster_id_from(&answer.cluster_id).map_err(|error| Status::internal(error.to_string()))?;
    let least_replica = ReplicaId(answer.least_replica_id);
    let copy = Copy { count: answer.copies, least_replica };
    Ok(Registered { cluster_id, node_id: NodeId(answer.node_id), copy })
}

/// Of a start that takes part already.
#[derive(Clone)]
pub(crate) struct Registration {
    pub(crate) config: NodeConfig,
    pub(crate) identity: Identity,
    pub(crate) coordinators: Coordinators,
    pub(crate) readiness: Readiness,
    pub(crate) map: ClusterMap,
    pub(crate) start: Arc<Mutex<Start>>,
    /// Older copies of the directory that were accepted, as far as it knows.
    pub(crate) copies: u64,
    /// Whether the coordinators have accepted it.
    pub(crate) accepted: Arc<AtomicBool>,
}

impl Registration {
    /// Registers, until it works or is refused for good. A node that starts again may have another
    /// address. One that is refused (it was removed, or belongs to another cluster) has to end.
    pub(crate) async fn keep(self, synced: u64, refuse: mpsc::Sender<NodeError>) {
        let shown = mute::start_to(&self.start.lock(), synced);
        let registering = register(
            &self.config,
            self.identity,
            &self.coordinators,
            &self.readiness,
            &self.map,
            &shown,
        );
        match registering.await {
            // Its replicas take part already.
            Ok(registered) if registered.copy.count > self.copies => {
                let why = "the coordinators have taken this start for one on an older copy of the directory that was \
                           accepted: start the node again";
                let _ = refuse.send(NodeError::MustNotGoOn(why.to_owned())).await;
            }
            Ok(_) => {
                self.is_accepted();
                self.readiness.ready("registration");
            }
            Err(status) => {
                self.readiness.wait_for("registration", status.message());
                let data = self.config.data.display();
                let why = format!("{} (its directory: {data})", status.message());
                let _ = refuse.send(NodeError::Refused(why)).await;
            }
        }
    }

    fn is_accepted(&self) {
        self.accepted.store(true, Ordering::Relaxed);
        if let Err(error) = self.start.lock().takes_part(&self.config.data, true) {
            tracing::error!(%error, "can't record that this start was accepted");
        }
    }

    /// The coordinators don't take this start for the one that counts any more. They may have been
    /// put back to where they didn't know it yet: then they know one of those before it. Returns
    /// whether they take it for good.
    pub(crate) async fn is_known_after_all(&self, synced: u64) -> bool {
        let shown = mute::start_to(&self.start.lock(), synced);
        let Registration { config, identity, coordinators, map, .. } = self;
        match try_register(config, *identity, coordinators, map, &shown).await {
            Ok(_) => {
                tracing::warn!("the coordinators had forgotten this start of the node");
                true
            }
            // Asked again with the next heartbeat.
            Err(status) => status.code() != Code::InvalidArgument,
        }
    }
}
