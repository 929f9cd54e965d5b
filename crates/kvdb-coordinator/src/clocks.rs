//! What time it is, as the leading coordinator knows it, and whose wall clock is wrong.
//!
//! Nodes tell their wall clocks with each heartbeat; where a majority of them agree, cluster time
//! follows ([`kvdb_model::time`]). Gateways and the other coordinators ask for the time and are only
//! compared with it. A cluster of one node has nobody to agree with: its time starts by the wall
//! clock and goes on by the boot clock.

use crate::service::Member;
use kvdb_control::{ControlState, Reason};
use kvdb_model::time::MAX_CLOCK_SKEW_MS;
use kvdb_model::{NodeId, NodeStatus, ShardId};
use kvdb_runtime::clock;
use kvdb_wire::proto;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};

/// A process that hasn't asked for so long is forgotten.
const FORGET_AFTER_US: u64 = 10_000_000;
/// Processes that are remembered; more aren't compared.
const MOST_PROCESSES: usize = 10_000;
/// Until a wrong clock makes a node a less preferred leader.
const WRONG_FOR_MS: u64 = 10_000;
const LONGEST_NAME: usize = 64;

/// What was heard of the clocks of gateways and coordinators.
#[derive(Default)]
pub(crate) struct Clocks {
    /// By kind and address: how far ahead, and when that was heard.
    others: BTreeMap<(String, String), (i64, u64)>,
}

/// A clock that differs from cluster time by more than [`MAX_CLOCK_SKEW_MS`].
pub(crate) struct WrongClock {
    pub(crate) process: String,
    pub(crate) address: String,
    pub(crate) node: NodeId,
    pub(crate) ahead_ms: i64,
}

impl Clocks {
    fn hear(&mut self, process: String, address: String, ahead_ms: i64, boot_us: u64) {
        self.others.retain(|_, (_, at_us)| boot_us < *at_us + FORGET_AFTER_US);
        let name = (process, address);
        if self.others.len() < MOST_PROCESSES || self.others.contains_key(&name) {
            self.others.insert(name, (ahead_ms, boot_us));
        }
    }
}

/// Nodes that count: those that were told to go don't.
fn members(state: &ControlState) -> impl Iterator<Item = NodeId> {
    let nodes = state.map().nodes.iter();
    nodes.filter(|(_, record)| record.status != NodeStatus::Removed).map(|(node, _)| *node)
}

impl Member {
    /// A node has told its wall clock with a heartbeat.
    pub(crate) fn hear_node_clock(&self, node: NodeId, wall_ms: u64) {
        if wall_ms > 0 {
            self.time.with(|clock| clock.heard(node, wall_ms, clock::boot_us()));
        }
    }

    /// Cluster time in milliseconds since 1970; 0 while it isn't known.
    pub(crate) fn cluster_ms(&self) -> u64 {
        self.time.now_ms().unwrap_or_default()
    }

    /// A gateway or another coordinator asks for the time.
    pub(crate) fn sync_clock(&self, request: proto::SyncClockRequest) -> proto::SyncClockResponse {
        let boot_us = clock::boot_us();
        let ahead_ms = self.time.with(|clock| clock.wall_ahead_ms(request.wall_ms, boot_us));
        if let Some(ahead_ms) = ahead_ms {
            let short = |text: String| text.chars().take(LONGEST_NAME).collect();
            let (process, address) = (short(request.process), short(request.address));
            self.clocks.lock().hear(process, address, ahead_ms, boot_us);
        }
        proto::SyncClockResponse { cluster_time_ms: self.cluster_ms() }
    }

    /// A look of the leader at the clocks, a few times a second. Others only go on.
    pub(crate) fn look_at_clocks(&self, state: &ControlState) {
        let now = clock::now();
        let known: BTreeSet<_> = members(state).collect();
        // What the group's own log has reached was cluster time once.
        let logged = self.drive.changes().get(ShardId::CONTROL);
        let logged_ms = logged.map_or(0, |changes| changes.last().millis());
        self.time.with(|clock| {
            clock.keep_only(|node| known.contains(&node));
            clock.look_as_leader(known.len(), now.wall_ms, logged_ms, now.boot_us);
        });
        for node in known {
            let ahead_ms = self.time.with(|clock| clock.ahead_ms(node, now.boot_us));
            let Some(ahead_ms) = ahead_ms else { continue };
            let is_wrong = ahead_ms.unsigned_abs() > MAX_CLOCK_SKEW_MS;
            let reason = Reason::WrongClock { ahead_ms };
            let mut standings = self.standings.lock();
            let preferences = &mut standings.preferences;
            preferences.note(node, reason, is_wrong, WRONG_FOR_MS, now.boot_us / 1000);
        }
        self.time.compare_own();
        if let Some(now_ms) = self.time.now_ms() {
            self.drive.cluster_time_is(now_ms);
        }
    }

    /// Whose wall clock is wrong.
    pub(crate) fn wrong_clocks(&self, state: &ControlState) -> Vec<WrongClock> {
        let now = clock::now();
        let is_wrong = |ahead_ms: i64| ahead_ms.unsigned_abs() > MAX_CLOCK_SKEW_MS;
        let mut wrong: Vec<WrongClock> = self.time.with(|clock| {
            let nodes = state.map().nodes.iter();
            let nodes = nodes.filter_map(|(node, record)| {
                let ahead_ms = clock.ahead_ms(*node, now.boot_us)?;
                let address = record.address.clone();
                Some(WrongClock { process: "node".to_owned(), address, node: *node, ahead_ms })
            });
            let own = clock.wall_ahead_ms(now.wall_ms, now.boot_us).map(|ahead_ms| WrongClock {
                process: "coordinator".to_owned(),
                address: self.address_of(self.drive.node_id()).unwrap_or_default(),
                node: NodeId(0),
                ahead_ms,
            });
            nodes.chain(own).collect()
        });
        let clocks = self.clocks.lock();
        let fresh = |at_us: u64| now.boot_us < at_us + FORGET_AFTER_US;
        wrong.extend(clocks.others.iter().filter(|(_, (_, at_us))| fresh(*at_us)).map(
            |((process, address), (ahead_ms, _))| WrongClock {
                process: process.clone(),
                address: address.clone(),
                node: NodeId(0),
                ahead_ms: *ahead_ms,
            },
        ));
        wrong.retain(|clock| is_wrong(clock.ahead_ms));
        wrong
    }
}

/// Shared by the clones of a member.
pub(crate) type SharedClocks = std::sync::Arc<Mutex<Clocks>>;
