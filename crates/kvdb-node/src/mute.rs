//! Before a node that starts again takes part: it neither votes nor acknowledges until it is sure that
//! it is the node, and not an older copy or a second process of it.
//!
//! Until then its replicas are held back ([`Drive::release`]): they don't even tick, so nothing enters
//! the log. The coordinators are asked, who compare and swap ([`kvdb_runtime::start`]). Where none of
//! them answers, a majority of the other voters of each of its groups is enough: so a restart of
//! everything needs no coordinator. One that starts elsewhere than the process before it always needs
//! that majority: who vouches for it turns the older one away, so that the two never find a majority
//! each. A replica that is alone in its group has nobody to turn the other one away. It goes on if the
//! process before has ended in order, or if somebody says that its directory was moved.

use crate::link::{self, Registered};
use crate::run::{NodeConfig, NodeError};
use arc_swap::ArcSwap;
use futures_util::future::join_all;
use kvdb_model::{NodeId, ShardId};
use kvdb_replication::starts::{NotVouched, Others, Said};
use kvdb_router::Routes;
use kvdb_runtime::coordinators::Coordinators;
use kvdb_runtime::dial::{self, Unvouched, Vouching};
use kvdb_runtime::drive::Drive;
use kvdb_runtime::http::Readiness;
use kvdb_runtime::identity::Identity;
use kvdb_runtime::map::ClusterMap;
use kvdb_runtime::shutdown::Shutdown;
use kvdb_runtime::start::{Copy, Start, Succession, until_replaced};
use kvdb_wire::proto;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::{Code, Status};

/// The coordinators are given so long before peers are asked.
const COORDINATORS_FIRST: Duration = Duration::from_millis(500);
/// Peers are given so long to object to a start.
const OBJECTIONS: Duration = Duration::from_millis(300);
/// Between two rounds of asking peers.
const ASK_AGAIN: Duration = Duration::from_millis(300);
/// Between two rounds of telling the others of this start.
const INTRODUCE_AGAIN: Duration = Duration::from_secs(1);
/// Reasons that are told in the log, at most.
const MOST_SAID: usize = 64;

/// A node that isn't heard yet.
pub(crate) struct Mute<'a> {
    pub(crate) drive: &'a Drive,
    pub(crate) config: &'a NodeConfig,
    pub(crate) identity: Identity,
    pub(crate) coordinators: &'a Coordinators,
    pub(crate) readiness: &'a Readiness,
    pub(crate) map: ClusterMap,
    pub(crate) start: Arc<Mutex<Start>>,
    /// The last older copy of the directory that was accepted, as it knows itself.
    pub(crate) copy: Copy,
}

/// Who has vouched so far, and what was told in the log.
#[derive(Default)]
struct Round {
    vouched: BTreeSet<NodeId>,
    said: BTreeSet<String>,
}

/// What a node that is heard may do.
pub(crate) struct Heard {
    /// The coordinators have accepted this start.
    pub(crate) by_coordinators: bool,
    /// Shards whose only replica may be alive elsewhere.
    pub(crate) held: BTreeSet<ShardId>,
    /// The last older copy of the directory that was accepted, as the coordinators know.
    pub(crate) copy: Copy,
}

impl Mute<'_> {
    /// Waits until somebody who knows has vouched for this start.
    ///
    /// # Errors
    /// Why it must not take part.
    pub(crate) async fn until_heard(&self, succession: Succession) -> Result<Heard, NodeError> {
        if succession == Succession::Elsewhere {
            return self.until_heard_elsewhere().await;
        }
        if let Some(objection) = self.objection().await {
            // Unless somebody has accepted the directory as it is.
            return match self.would_be_copy().await {
                Ok(true) => self.heard_on_copy().await,
                _ => Err(objection),
            };
        }
        let is_refused = AtomicBool::new(false);
        let by_coordinators = tokio::select! {
            registered = self.register(&is_refused) => Some(registered?.copy),
            () = async {
                tokio::time::sleep(COORDINATORS_FIRST).await;
                let mut round = Round::default();
                // The coordinators know better: if they refuse it, nobody else is asked.
                while is_refused.load(Ordering::Relaxed) || !self.ask(&mut round, true, false).await {
                    tokio::time::sleep(ASK_AGAIN).await;
                }
            } => None,
        };
        Ok(Heard {
            by_coordinators: by_coordinators.is_some(),
            held: BTreeSet::new(),
            copy: by_coordinators.unwrap_or(self.copy),
        })
    }

    /// Whether the coordinators would accept this start; whether as one on an older copy.
    async fn would_be_copy(&self) -> Result<bool, Status> {
        let shown = self.shown();
        let Mute { config, identity, coordinators, map, .. } = self;
        link::ask_whether(config, *identity, coordinators, map, &shown).await
    }

    /// Of an older copy that somebody has accepted no replica takes part: nobody else has to vouch for them.
    async fn heard_on_copy(&self) -> Result<Heard, NodeError> {
        let copy = self.register(&AtomicBool::new(false)).await?.copy;
        Ok(Heard { by_coordinators: true, held: BTreeSet::new(), copy })
    }

    /// The process before may be alive. Nobody is turned away for this start before it is sure that
    /// enough others would vouch for it.
    async fn until_heard_elsewhere(&self) -> Result<Heard, NodeError> {
        let lone = self.lone();
        let (start, moved) = (self.start.lock().clone(), self.config.moved);
        let mut said = BTreeSet::new();
        let by_coordinators = loop {
            let by_coordinators = match self.would_be_copy().await {
                Ok(true) => return self.heard_on_copy().await,
                Ok(false) => true,
                Err(status) if status.code() == Code::InvalidArgument => {
                    return Err(self.refused(&status));
                }
                Err(status) if status.code() == Code::FailedPrecondition => {
                    self.say(&mut said, status.message().to_owned());
                    tokio::time::sleep(ASK_AGAIN).await;
                    continue;
                }
                Err(status) => {
                    self.say(&mut said, format!("no coordinator answers: {}", status.message()));
                    false
                }
            };
            // Of a replica that is alone only the coordinators know whether another process may run.
            let is_known = by_coordinators || moved || lone.is_empty();
            let mut round = Round { said: std::mem::take(&mut said), ..Round::default() };
            let would = is_known && self.ask(&mut round, by_coordinators, true).await;
            said = round.said;
            if would {
                break by_coordinators;
            }
            tokio::time::sleep(ASK_AGAIN).await;
        };
        let mut copy = self.copy;
        if by_coordinators {
            copy = self.register(&AtomicBool::new(false)).await?.copy;
        }
        if copy.count > self.copy.count {
            return Ok(Heard { by_coordinators, held: BTreeSet::new(), copy });
        }
        let mut round = Round::default();
        while !self.ask(&mut round, by_coordinators, false).await {
            tokio::time::sleep(ASK_AGAIN).await;
        }
        let is_alone = moved || by_coordinators && start.follows_end();
        let held = if is_alone { BTreeSet::new() } else { lone };
        if !held.is_empty() {
            let shards: Vec<String> = held.iter().map(ShardId::to_string).collect();
            tracing::warn!(
                shards = shards.join(", "),
                "this directory was copied or moved from a process that didn't end in order. Replicas that have no \
                 others take no part: that process may serve them still. If it is gone for good, `kvdb claim {}` and \
                 start this node again",
                self.config.data.display()
            );
        }
        Ok(Heard { by_coordinators, held, copy })
    }

    /// Waits until the coordinators have accepted this start. `is_refused` is set while they don't.
    async fn register(&self, is_refused: &AtomicBool) -> Result<Registered, NodeError> {
        let shown = self.shown();
        let Mute { config, identity, coordinators, readiness, map, .. } = self;
        link::register(config, *identity, coordinators, readiness, map, &shown, is_refused)
            .await
            .map_err(|status| self.refused(&status))
    }

    fn shown(&self) -> proto::NodeStart {
        start_to(&self.start.lock(), self.drive.synced())
    }

    fn refused(&self, status: &Status) -> NodeError {
        let data = self.config.data.display();
        NodeError::Refused(format!("{} (its directory: {data})", status.message()))
    }

    /// Who of the other voters knows that the directory is older than what it has told. The coordinators
    /// may not: a start that was vouched for without them says nothing to them until it is accepted.
    async fn objection(&self) -> Option<NodeError> {
        let nodes: BTreeSet<NodeId> =
            self.others().into_iter().flat_map(|others| others.nodes).collect();
        let (asked, routes) = (self.asked(true, true), self.map.routes.load_full());
        let asking = nodes.into_iter().filter_map(|node| routes.address(node).cloned()).map(|at| {
            let asked = &asked;
            async move {
                let answer = dial::ask_to_vouch(&at, asked);
                tokio::time::timeout(OBJECTIONS, answer).await.ok()?.err()
            }
        });
        let answers = join_all(asking).await;
        answers.into_iter().flatten().find_map(|why| match why {
            Unvouched::Refused(at, NotVouched::Older(why)) => {
                Some(NodeError::MustNotGoOn(format!("{why} (as {at} knows)")))
            }
            _ => None,
        })
    }

    fn say(&self, said: &mut BTreeSet<String>, why: String) {
        self.readiness.wait_for("registration", format!("mute: {why}"));
        // An age in it changes all the time.
        let words: String = why.chars().filter(|each| !each.is_ascii_digit()).collect();
        if said.len() < MOST_SAID && said.insert(words) {
            tracing::warn!(why, "mute until others vouch for this start of the node");
        }
    }

    fn others(&self) -> BTreeSet<Others> {
        let own = self.drive.node_id();
        let views = self.drive.views().all();
        let descriptors = views.values().filter_map(|view| view.descriptor.as_ref());
        descriptors.flat_map(|descriptor| Others::of(descriptor, own)).collect()
    }

    /// Shards that have no other voter.
    fn lone(&self) -> BTreeSet<ShardId> {
        let alone = self.others().into_iter().filter(|others| others.nodes.is_empty());
        alone.map(|others| others.shard).collect()
    }

    /// Asks those who haven't vouched yet. Returns whether a majority of the other voters of each group
    /// has.
    async fn ask(&self, round: &mut Round, succeeds: bool, only_asks: bool) -> bool {
        if !only_asks && let Err(error) = self.start.lock().spends_number(&self.config.data) {
            self.say(&mut round.said, error.to_string());
            return false;
        }
        let asked = self.asked(succeeds, only_asks);
        let all = self.others();
        let untold: BTreeSet<NodeId> = all
            .iter()
            .filter(|others| !others.are_enough(&round.vouched))
            .flat_map(|others| others.nodes.difference(&round.vouched))
            .copied()
            .collect();
        let routes = self.map.routes.load_full();
        let asking = untold.into_iter().map(|node| {
            let (asked, address) = (&asked, routes.address(node).cloned());
            async move {
                let address =
                    address.ok_or_else(|| format!("node {node}: its address isn't known"))?;
                let vouched = dial::ask_to_vouch(&address, asked).await;
                let found = vouched.map_err(|why| why.to_string())?;
                match found == node {
                    true => Ok(node),
                    false => Err(format!("{address} is node {found}, not {node}")),
                }
            }
        });
        for answer in join_all(asking).await {
            match answer {
                Ok(node) => _ = round.vouched.insert(node),
                Err(why) => self.say(&mut round.said, why),
            }
        }
        all.iter().all(|others| others.are_enough(&round.vouched))
    }

    fn asked(&self, succeeds: bool, only_asks: bool) -> Vouching {
        let start = self.start.lock();
        Vouching {
            cluster_id: self.identity.cluster_id,
            coordinator: false,
            node: self.identity.node_id,
            said: Said {
                number: start.number,
                nonce: start.nonce,
                synced: Some(self.drive.synced()),
                address: self.config.advertised().to_owned(),
            },
            shown: start.shown.clone(),
            succeeds,
            is_heard: false,
            only_asks,
        }
    }
}

/// Tells each other node once of this start, so that it knows an older one when it meets it.
pub(crate) async fn introduce(
    identity: Identity,
    start: Start,
    address: String,
    routes: Arc<ArcSwap<Routes>>,
    shutdown: Shutdown,
) {
    let said = Said { number: start.number, nonce: start.nonce, synced: None, address };
    let introduction = Vouching {
        cluster_id: identity.cluster_id,
        coordinator: false,
        node: identity.node_id,
        said,
        shown: Vec::new(),
        succeeds: true,
        is_heard: true,
        only_asks: false,
    };
    let mut told = BTreeSet::new();
    let mut interval = tokio::time::interval(INTRODUCE_AGAIN);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = shutdown.wait() => return,
        }
        let routes = routes.load_full();
        let others = routes.nodes().filter(|(node, _)| *node != identity.node_id);
        let untold: Vec<_> = others.filter(|(node, _)| !told.contains(node)).collect();
        let telling = untold.into_iter().map(|(node, address)| {
            let introduction = &introduction;
            async move {
                let answer = dial::ask_to_vouch(&address, introduction).await;
                answer.ok().filter(|answered| *answered == node)
            }
        });
        told.extend(join_all(telling).await.into_iter().flatten());
    }
}

/// Ends the node if its data directory is replaced under it.
pub(crate) async fn watch_directory(
    start: Arc<Mutex<Start>>,
    data: std::path::PathBuf,
    refuse: mpsc::Sender<NodeError>,
    shutdown: Shutdown,
) {
    tokio::select! {
        why = until_replaced(start, data) => {
            let _ = refuse.send(NodeError::MustNotGoOn(why)).await;
        }
        () = shutdown.wait() => {}
    }
}

/// A start as the coordinators are told of it.
pub(crate) fn start_to(start: &Start, synced: u64) -> proto::NodeStart {
    let bytes = |nonce: u128| bytes::Bytes::copy_from_slice(&nonce.to_be_bytes());
    proto::NodeStart {
        nonce: bytes(start.nonce),
        shown: start.shown.iter().map(|nonce| bytes(*nonce)).collect(),
        synced,
        place: bytes(start.place()),
    }
}
