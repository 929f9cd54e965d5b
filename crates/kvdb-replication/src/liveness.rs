//! Which peers are alive, for the groups that hibernate: see `group/hibernation.rs`.

use crate::effect::PeerMessage;
use kvdb_model::{NodeId, ShardId};
use raft::eraftpb::{Message, MessageType};
use std::collections::BTreeMap;

/// When each peer was last heard to be alive, in ticks.
#[derive(Default)]
pub(crate) struct NodeLiveness {
    now: u64,
    heard: BTreeMap<NodeId, u64>,
}

impl NodeLiveness {
    pub(crate) fn tick(&mut self) {
        self.now += 1;
    }

    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    pub(crate) fn heard(&mut self, from: NodeId) {
        self.heard.insert(from, self.now);
    }

    /// Whether a peer was last heard just so long ago.
    pub(crate) fn any_falls_silent(&self, ticks: usize) -> bool {
        self.heard.values().any(|last| last + ticks as u64 == self.now)
    }

    /// Whether nothing was heard of a peer for so long; nobody expected anything before `since`.
    pub(crate) fn is_silent(&self, peer: NodeId, since: u64, ticks: usize) -> bool {
        let last = self.heard.get(&peer).copied().unwrap_or_default().max(since);
        last + ticks as u64 <= self.now
    }
}

/// What a host sends to another one for all groups together: that it is alive.
pub(crate) fn store_heartbeat() -> PeerMessage {
    let mut message = Message::default();
    message.set_msg_type(MessageType::MsgBeat);
    PeerMessage { shard: ShardId(0), message }
}
