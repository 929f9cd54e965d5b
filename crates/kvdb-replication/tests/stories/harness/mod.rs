//! A small world for hosts to live in: nodes with disks that forget what wasn't synced, engines
//! that forget what wasn't flushed, a network that can be cut, and one clock.
//!
//! Everything happens in the order of one queue of timed events, so that a story goes the same way
//! each time. The rules in [`checks`] are held against every step. What is worth telling goes into
//! a trace, which golden files remember.

pub mod checks;
pub mod disk;
pub mod golden;
pub mod machine;
pub mod network;
pub mod node;
mod run;

pub use golden::assert_golden;
pub use network::{chance, up_to};
pub use node::EPOCH_MS;

use bytes::Bytes;
use checks::Checks;
use kvdb_model::{
    KeyRange, KeyspaceId, MembershipEpoch, NodeId, RangeEpoch, Replica, ReplicaId, Role,
    ShardDescriptor, ShardId,
};
use kvdb_replication::message::MessageType;
use kvdb_replication::{
    GroupStatus, HostConfig, Input, PeerMessage, PromiseLost, Rejection, ReplicaRole,
    SnapshotRefusal,
};
use machine::{State, command_of};
use network::Network;
use node::Node;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::collections::BTreeMap;

/// The shard that most stories are about.
pub const SHARD: ShardId = ShardId(1);

pub enum Event {
    Tick {
        node: u64,
        life: u64,
    },
    Deliver {
        from: u64,
        to: u64,
        message: PeerMessage,
    },
    Synced {
        node: u64,
        life: u64,
    },
    ApplyNext {
        node: u64,
        life: u64,
    },
    Local {
        node: u64,
        life: u64,
        input: Input<u64>,
    },
    /// A snapshot has reached the node that it was sent to.
    Offer(Box<Offer>),
}

#[derive(Clone)]
pub struct Offer {
    pub from: u64,
    pub life: u64,
    pub to: u64,
    pub shard: ShardId,
    pub message: kvdb_replication::message::Message,
    pub state: State,
}

/// What became of what a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The write is applied, as part of the entry at this index.
    Written(u64),
    /// The membership change was applied, or refused by the shard.
    Changed(bool),
    /// What was read.
    Read(Vec<String>),
    Refused(Rejection),
    /// The node stopped before it could answer.
    Lost,
}

pub enum Question {
    Write(String),
    /// With the highest write that clients knew of when it was asked.
    Read(u64),
    Change,
}

pub struct Asked {
    pub node: u64,
    pub question: Question,
    pub outcome: Option<Outcome>,
}

pub struct World {
    pub now_us: u64,
    pub network: Network,
    pub nodes: BTreeMap<u64, Node>,
    pub rng: ChaCha8Rng,
    pub disk_us: u64,
    pub apply_us: u64,
    /// Whether messages are told in the trace.
    pub tell_messages: bool,
    pub snapshots_sent: usize,
    pub last_offer: Option<Offer>,
    pub snapshot_refusals: Vec<SnapshotRefusal>,
    /// Told by nodes that were stopped for it.
    pub lost_promises: Vec<PromiseLost>,
    config: HostConfig,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    checks: Checks,
    /// Whether nodes hear from the control plane who is no member any more.
    pub control_plane_tells: bool,
    /// What the control plane has heard of members.
    settled: BTreeMap<ShardId, ShardDescriptor>,
    asked: Vec<Asked>,
    offers: BTreeMap<u64, Offer>,
    trace: Vec<String>,
}

/// The id of the replica of a shard that a story puts on a node first.
pub fn replica_on(shard: ShardId, node: u64) -> ReplicaId {
    ReplicaId(shard.0 * 100 + node)
}

pub fn voter(node: u64) -> Replica {
    member(node, Role::Voter)
}

pub fn member(node: u64, role: Role) -> Replica {
    Replica { node_id: NodeId(node), replica_id: replica_on(SHARD, node), role }
}

impl World {
    /// Nodes 1 to `count`, without shards.
    pub fn new(count: u64) -> Self {
        World::configured(count, 1, |_| {})
    }

    pub fn configured(count: u64, seed: u64, change: impl Fn(&mut HostConfig)) -> Self {
        let mut config = HostConfig::new(NodeId(0), seed);
        change(&mut config);
        let mut world = World {
            now_us: 0,
            network: Network::new(),
            nodes: BTreeMap::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            disk_us: 200,
            apply_us: 20,
            tell_messages: false,
            snapshots_sent: 0,
            last_offer: None,
            snapshot_refusals: Vec::new(),
            lost_promises: Vec::new(),
            config,
            events: BTreeMap::new(),
            next_event: 0,
            checks: Checks::default(),
            control_plane_tells: true,
            settled: BTreeMap::new(),
            asked: Vec::new(),
            offers: BTreeMap::new(),
            trace: Vec::new(),
        };
        for id in 1..=count {
            let node = Node::new(world.config_of(id), 0);
            world.nodes.insert(id, node);
            world.start_ticking(id);
        }
        world
    }

    /// A world with one shard on all its nodes, led by node 1.
    pub fn with_leader(count: u64) -> Self {
        let mut world = World::new(count);
        world.create(SHARD, &(1..=count).collect::<Vec<_>>(), 1);
        world.run_ms(20);
        assert_eq!(world.leader(SHARD), Some(1));
        world
    }

    pub fn config_of(&self, node: u64) -> HostConfig {
        let mut config = self.config.clone();
        config.node_id = NodeId(node);
        config
    }

    fn start_ticking(&mut self, id: u64) {
        // Nodes don't tick in step.
        let phase_us = self.config.tick_ms * 1000 + id * 700;
        let life = self.nodes[&id].life;
        self.schedule(phase_us, Event::Tick { node: id, life });
    }

    pub fn schedule(&mut self, after_us: u64, event: Event) {
        self.next_event += 1;
        self.events.insert((self.now_us + after_us, self.next_event), event);
    }

    // ---- telling ------------------------------------------------------------------------

    pub fn say(&mut self, words: impl Into<String>) {
        self.trace.push(format!("-- {}", words.into()));
    }

    pub fn tell(&mut self, line: String) {
        let (ms, us) = (self.now_us / 1000, self.now_us % 1000);
        self.trace.push(format!("{ms:>5}.{us:03}  {line}"));
    }

    pub fn trace(&self) -> String {
        let mut text = self.trace.join("\n");
        text.push('\n');
        text
    }

    // ---- what a story can do ------------------------------------------------------------

    pub fn descriptor(&self, shard: ShardId, nodes: &[u64]) -> ShardDescriptor {
        let edge = |value: u64| bytes::Bytes::copy_from_slice(&value.to_be_bytes());
        ShardDescriptor {
            shard_id: shard,
            keyspace_id: KeyspaceId(1),
            range: KeyRange { start: edge(shard.0), end: edge(shard.0 + 1) },
            range_epoch: RangeEpoch(1),
            membership_epoch: MembershipEpoch(1),
            replicas: nodes
                .iter()
                .map(|node| Replica {
                    node_id: NodeId(*node),
                    replica_id: replica_on(shard, *node),
                    role: Role::Voter,
                })
                .collect(),
        }
    }

    pub fn create(&mut self, shard: ShardId, nodes: &[u64], first_leader: u64) {
        let descriptor = self.descriptor(shard, nodes);
        for id in nodes {
            self.create_on(*id, descriptor.clone(), *id == first_leader);
        }
    }

    pub fn create_on(&mut self, id: u64, descriptor: ShardDescriptor, campaign: bool) {
        let node = self.nodes.get_mut(&id).unwrap();
        let volume = node.volumes.fresh();
        self.feed(id, Input::Create { descriptor, volume, campaign });
    }

    pub fn write(&mut self, node: u64, word: &str) -> usize {
        self.write_all(node, &[word])[0]
    }

    /// Writes that come in together.
    pub fn write_all(&mut self, node: u64, words: &[&str]) -> Vec<usize> {
        let asked: Vec<usize> =
            words.iter().map(|word| self.ask(node, Question::Write((*word).to_owned()))).collect();
        let inputs = asked.iter().zip(words).map(|(ticket, word)| Input::Propose {
            shard: SHARD,
            command: command_of(word),
            version_count: 1,
            ticket: *ticket as u64,
        });
        self.feed_all(node, inputs.collect());
        asked
    }

    pub fn read(&mut self, node: u64) -> usize {
        let known = self.checks.known(SHARD);
        let ticket = self.ask(node, Question::Read(known));
        self.feed(node, Input::Read { shard: SHARD, ticket: ticket as u64 });
        ticket
    }

    /// As a thread beside the host does it, where that may.
    pub fn read_beside(&mut self, id: u64) -> Option<usize> {
        let node = self.nodes.get(&id).filter(|node| !node.paused)?;
        let (replica, _) = node.homes.get(&SHARD)?;
        let permit = node.host.as_ref()?.permit(SHARD, *replica)?;
        if !permit.covers(node.now(self.now_us).boot_us) {
            return None;
        }
        let known = self.checks.known(SHARD);
        let ticket = self.ask(id, Question::Read(known));
        self.serve(id, SHARD, ticket as u64);
        Some(ticket)
    }

    /// Proposes `replicas` as what follows the present ones.
    pub fn change(&mut self, node: u64, replicas: &[Replica]) -> usize {
        let present = self.nodes[&node].state(SHARD).map(|state| state.descriptor.clone());
        let mut next = present.unwrap_or_else(|| self.descriptor(SHARD, &[]));
        next.membership_epoch = next.membership_epoch.next();
        next.replicas = replicas.to_vec();
        self.change_with(node, replicas, next.to_bytes())
    }

    /// Proposes a change with a context of the story's own.
    pub fn change_with(&mut self, node: u64, replicas: &[Replica], context: Bytes) -> usize {
        let ticket = self.ask(node, Question::Change);
        self.feed(
            node,
            Input::ChangeMembership {
                shard: SHARD,
                replicas: replicas.to_vec(),
                context,
                ticket: ticket as u64,
            },
        );
        ticket
    }

    fn ask(&mut self, node: u64, question: Question) -> usize {
        self.asked.push(Asked { node, question, outcome: None });
        self.asked.len() - 1
    }

    pub fn transfer(&mut self, node: u64, to: u64) {
        self.tell(format!("n{node} is told to hand over to n{to}"));
        let to = Some(replica_on(SHARD, to));
        self.feed(node, Input::TransferLeader { shard: SHARD, to });
    }

    pub fn crash(&mut self, node: u64) {
        self.crash_keeping(node, 0);
    }

    /// Of the records that weren't synced, the first `kept` happen to survive.
    pub fn crash_keeping(&mut self, id: u64, kept: usize) {
        self.tell(format!("n{id} crashes"));
        self.nodes.get_mut(&id).unwrap().stop(kept);
        for asked in self.asked.iter_mut().filter(|asked| asked.node == id) {
            asked.outcome.get_or_insert(Outcome::Lost);
        }
    }

    pub fn restart(&mut self, id: u64) {
        self.restart_untold(id);
        let now_us = self.now_us;
        self.nodes.get_mut(&id).unwrap().hear_time(now_us);
        self.settle(id);
    }

    /// Each node hears what the wall clocks of the others say.
    pub fn exchange_clocks(&mut self) {
        let now_us = self.now_us;
        let walls: Vec<(u64, u64)> =
            self.nodes.values().map(|node| (node.id, node.now(now_us).wall_ms)).collect();
        for id in 1..=self.nodes.len() as u64 {
            for (from, wall_ms) in walls.iter().filter(|(from, _)| *from != id) {
                let from_node = kvdb_model::NodeId(*from);
                self.feed(id, Input::PeerClock { from_node, wall_ms: *wall_ms });
            }
        }
    }

    /// As [`World::restart`], without coordinators that tell the time.
    pub fn restart_untold(&mut self, id: u64) {
        self.tell(format!("n{id} starts again"));
        let config = self.config_of(id);
        let now_us = self.now_us;
        self.nodes.get_mut(&id).unwrap().start(config, now_us);
        self.start_ticking(id);
        self.settle(id);
    }

    /// The node's flushed state is gone, its log isn't.
    pub fn lose_engine(&mut self, id: u64) {
        self.nodes.get_mut(&id).unwrap().volumes.flushed.clear();
    }

    pub fn pause(&mut self, id: u64) {
        self.tell(format!("n{id} is paused"));
        self.nodes.get_mut(&id).unwrap().paused = true;
    }

    pub fn resume(&mut self, id: u64) {
        self.tell(format!("n{id} goes on"));
        let node = self.nodes.get_mut(&id).unwrap();
        node.paused = false;
        let inbox = std::mem::take(&mut node.inbox);
        self.feed_all(id, inbox.into());
    }

    pub fn isolate(&mut self, id: u64) {
        self.tell(format!("n{id} is cut off"));
        for other in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.network.cut(id, other);
        }
    }

    pub fn heal(&mut self) {
        self.tell("the network is whole".to_owned());
        self.network.heal();
    }

    pub fn hold_disk(&mut self, id: u64) {
        self.nodes.get_mut(&id).unwrap().disk.held = true;
    }

    pub fn release_disk(&mut self, id: u64) {
        self.nodes.get_mut(&id).unwrap().disk.held = false;
        self.settle(id);
    }

    pub fn hold_apply(&mut self, id: u64) {
        self.nodes.get_mut(&id).unwrap().apply_held = true;
    }

    pub fn release_apply(&mut self, id: u64) {
        self.nodes.get_mut(&id).unwrap().apply_held = false;
        self.settle(id);
    }

    pub fn flush(&mut self, id: u64, shard: ShardId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some((replica, volume)) = node.homes.get(&shard).copied() else { return };
        let Some(applied) = node.state(shard).map(|state| state.applied.index) else { return };
        node.volumes.flush(volume);
        self.feed(id, Input::Flushed { shard, replica, applied });
    }

    /// A paused node never gets what was sent to it meanwhile.
    pub fn forget_inbox(&mut self, id: u64) {
        self.nodes.get_mut(&id).unwrap().inbox.clear();
    }

    /// A snapshot is offered (again).
    pub fn offer(&mut self, offer: Offer) {
        self.schedule(0, Event::Offer(Box::new(offer)));
    }

    pub fn drop_messages(&mut self, kind: MessageType) {
        self.network.drop_if =
            Some(Box::new(move |_, _, message| message.message.get_msg_type() == kind));
    }

    // ---- what a story can see -----------------------------------------------------------

    pub fn outcome(&self, ticket: usize) -> Option<&Outcome> {
        self.asked[ticket].outcome.as_ref()
    }

    pub fn unanswered(&self) -> usize {
        self.asked.iter().filter(|asked| asked.outcome.is_none()).count()
    }

    pub fn status(&self, node: u64) -> Option<GroupStatus> {
        self.nodes[&node].host.as_ref()?.status(SHARD)
    }

    pub fn words(&self, node: u64) -> Vec<String> {
        self.nodes[&node].state(SHARD).map(|state| state.words.clone()).unwrap_or_default()
    }

    /// The node that leads in the highest term.
    pub fn leader(&self, shard: ShardId) -> Option<u64> {
        let statuses = self
            .nodes
            .values()
            .filter(|node| !node.paused)
            .filter_map(|node| Some((node.id, node.host.as_ref()?.status(shard)?)));
        statuses
            .filter(|(_, status)| status.role == ReplicaRole::Leader)
            .max_by_key(|(_, status)| status.term)
            .map(|(id, _)| id)
    }
}
