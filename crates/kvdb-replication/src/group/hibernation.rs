//! Idle groups hibernate: a thousand of them cost what one does.
//!
//! When a group has had nothing to do for a while, and all members have everything, its leader says
//! so with a last heartbeat, and no member counts ticks any more. Store heartbeats, which hosts send
//! once for all groups ([`crate::liveness`]), stand for the heartbeats of the group. A host that
//! misses the store heartbeats of another one for an election timeout wakes the groups that rely on
//! it. Their followers are ready to campaign, so a dead leader is missed as soon as ever. A leader
//! that may have lost its majority checks as usual whether it has.
//!
//! Anything that happens to a group wakes it: a request, a message, a change of its members. A
//! replica that wakes goes on where it had stopped.
//!
//! # What makes it sound
//!
//! - A hibernating follower votes for nobody: the time in which it refuses others since it heard
//!   its leader stands still. It is over only once nothing was heard of that leader's host for as
//!   long. So a leader's lease holds while it hibernates as it does otherwise.
//! - Hibernation changes timing only. A replica that hibernates while others don't, or while its
//!   leader has stepped down unheard, is woken by whoever campaigns; and it wakes by itself now and
//!   then.

use super::Group;
use crate::config::HostConfig;
use crate::effect::PeerMessage;
use crate::host::Outbox;
use crate::liveness::NodeLiveness;
use kvdb_model::{NodeId, Term};
use raft::ProgressState;
use raft::StateRole;
use raft::eraftpb::{Message, MessageType};

/// The context of a leader's last heartbeat. (Those of reads have eight bytes.)
const LAST_HEARTBEAT: &[u8] = b"sleep";

/// A leader wakes after so many hibernation timeouts, and makes sure that all is as it was.
const WAKE_AFTER: u64 = 60;

/// A replica that doesn't count ticks.
#[derive(Clone, Copy)]
pub(super) struct Hibernation {
    since: u64,
    /// Whose store heartbeats it relies on; if it leads, those of all others.
    leader: Option<NodeId>,
}

impl<T> Group<T> {
    pub(crate) fn is_hibernating(&self) -> bool {
        self.hibernation.is_some()
    }

    /// Something has happened.
    pub(crate) fn wake(&mut self) {
        self.hibernation = None;
        self.idle_ticks = 0;
    }

    /// Time has passed while it hibernated. Returns whether it still does.
    pub(crate) fn stays_hibernating(
        &mut self,
        config: &HostConfig,
        liveness: &NodeLiveness,
    ) -> bool {
        let Some(hibernation) = self.hibernation else { return false };
        let elapsed = liveness.now() - hibernation.since;
        let most = WAKE_AFTER * config.hibernate_ticks as u64;
        let is_silent =
            |node: NodeId| liveness.is_silent(node, hibernation.since, config.election_ticks);
        match hibernation.leader {
            Some(leader) if is_silent(leader) => {
                self.wake();
                let raft = &mut self.raw.raft;
                raft.election_elapsed = raft.election_elapsed.max(config.election_ticks);
            }
            Some(_) if elapsed >= 2 * most => self.wake(),
            None if elapsed >= most || self.others().any(is_silent) => self.wake(),
            _ => {}
        }
        self.is_hibernating()
    }

    /// Counts a tick without anything to do. Returns whether it could hibernate now.
    pub(super) fn could_hibernate(&mut self, config: &HostConfig) -> bool {
        self.idle_ticks += 1;
        config.hibernate_ticks > 0 && self.idle_ticks >= config.hibernate_ticks && self.is_leader()
    }

    /// Whether a leader has nothing to do, and all others have everything and were heard lately.
    fn may_hibernate(&self) -> bool {
        let raft = &self.raw.raft;
        let last = raft.raft_log.last_index();
        // As long after the heartbeat before it as can be: whoever hears that one later wakes.
        let is_due = raft.heartbeat_elapsed() + 1 >= raft.heartbeat_timeout();
        let has_all = |id: u64, progress: &raft::Progress| {
            id == self.replica.0
                || progress.matched == last
                    && progress.recent_active
                    && progress.state == ProgressState::Replicate
                    && progress.pending_request_snapshot == raft::INVALID_INDEX
        };
        self.is_leader()
            && is_due
            && self.is_quiet()
            && raft.commit_to_current_term()
            && raft.raft_log.committed == last
            && self.applied.0 == last
            && self.durable_term >= self.term()
            && raft.lead_transferee.is_none()
            && !self.snapshot_pending
            && self.proposals.waiting() == 0
            && self.proposals.arrived_bytes() == 0
            && self.reads.waiting() == 0
            && raft.prs().iter().all(|(id, progress)| has_all(*id, progress))
    }

    /// Whether no tick is counted for anything but elections and heartbeats.
    fn is_quiet(&self) -> bool {
        self.persisting.is_empty()
            && self.conf_changes.is_empty()
            && self.grace_ticks.is_none()
            && self.eager_ticks == 0
            && self.silent_ticks == 0
            && !self.engine_lost
            && self.incoming.is_none()
            && !self.raw.has_ready()
    }

    /// A leader that was idle for long enough sends its last heartbeat and hibernates.
    pub(super) fn hibernate(&mut self, config: &HostConfig, tick: u64, out: &mut Outbox<T>) {
        let is_idle = config.hibernate_ticks > 0 && self.idle_ticks >= config.hibernate_ticks;
        if !is_idle || self.hibernation.is_some() || !self.may_hibernate() {
            return;
        }
        let raft = &self.raw.raft;
        let (term, commit) = (raft.term, raft.raft_log.committed);
        let others: Vec<u64> =
            raft.prs().iter().map(|(id, _)| *id).filter(|id| *id != self.replica.0).collect();
        for to in others {
            let Some(node) = self.node_of(kvdb_model::ReplicaId(to)) else { continue };
            let mut message = Message::default();
            message.set_msg_type(MessageType::MsgHeartbeat);
            (message.from, message.to) = (self.replica.0, to);
            (message.term, message.commit) = (term, commit);
            message.context = LAST_HEARTBEAT.into();
            out.send(node, PeerMessage { shard: self.shard, message });
        }
        self.hibernation = Some(Hibernation { since: tick, leader: None });
    }

    /// A leader's last heartbeat was stepped: if all is as it says, this replica hibernates too.
    pub(super) fn follow_into_hibernation(&mut self, last: &LastHeartbeat, tick: u64) {
        let raft = &self.raw.raft;
        let is_so = raft.state == StateRole::Follower
            && Term(raft.term) == last.term
            && raft.leader_id == last.leader
            && raft.raft_log.last_index() == last.commit
            && raft.raft_log.committed == last.commit;
        let is_quiet = self.grace_ticks.is_none() && self.silent_ticks == 0 && !self.engine_lost;
        if is_so && is_quiet && self.volume.is_some() {
            self.hibernation = Some(Hibernation { since: tick, leader: Some(last.node) });
        } else {
            self.wake();
        }
    }

    /// The nodes of the other members.
    pub(crate) fn others(&self) -> impl Iterator<Item = NodeId> {
        let members = self.descriptor.iter().flat_map(|descriptor| &descriptor.replicas);
        members.filter(|one| one.replica_id != self.replica).map(|one| one.node_id)
    }
}

/// What a leader's last heartbeat says.
pub(super) struct LastHeartbeat {
    node: NodeId,
    leader: u64,
    term: Term,
    commit: u64,
}

impl LastHeartbeat {
    pub(super) fn read(node: NodeId, message: &Message) -> Option<Self> {
        let is_one = message.get_msg_type() == MessageType::MsgHeartbeat
            && message.context[..] == *LAST_HEARTBEAT;
        is_one.then_some(LastHeartbeat {
            node,
            leader: message.from,
            term: Term(message.term),
            commit: message.commit,
        })
    }
}

/// Whether a message may wake a replica. What others answer to heartbeats may come late, and says
/// nothing new.
pub(super) fn wakes(message: &Message, term: u64) -> bool {
    message.get_msg_type() != MessageType::MsgHeartbeatResponse || message.term > term
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_for_a_read_is_not_a_last_one() {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgHeartbeat);
        assert!(LastHeartbeat::read(NodeId(1), &message).is_none());
        message.context = 7_u64.to_le_bytes().to_vec().into();
        assert!(LastHeartbeat::read(NodeId(1), &message).is_none());
        message.context = LAST_HEARTBEAT.into();
        assert!(LastHeartbeat::read(NodeId(1), &message).is_some());
    }
}
