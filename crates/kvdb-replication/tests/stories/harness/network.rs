//! The network between nodes: what it loses, delays, doubles and reorders.

use kvdb_replication::PeerMessage;
use kvdb_replication::message::{Message, MessageType};
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;

type Filter = Box<dyn FnMut(u64, u64, &PeerMessage) -> bool>;

pub struct Network {
    pub delay_us: u64,
    /// Added to the delay of each message, at random: messages overtake each other.
    pub jitter_us: u64,
    /// Of a thousand messages so many are lost.
    pub lost_permille: u64,
    /// Of a thousand messages so many arrive twice.
    pub doubled_permille: u64,
    cut: BTreeSet<(u64, u64)>,
    /// What it says true to is lost.
    pub drop_if: Option<Filter>,
}

impl Network {
    pub fn new() -> Self {
        Network {
            delay_us: 500,
            jitter_us: 0,
            lost_permille: 0,
            doubled_permille: 0,
            cut: BTreeSet::new(),
            drop_if: None,
        }
    }

    pub fn cut_one_way(&mut self, from: u64, to: u64) {
        self.cut.insert((from, to));
    }

    pub fn cut(&mut self, one: u64, other: u64) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    pub fn heal(&mut self) {
        self.cut.clear();
        self.drop_if = None;
    }

    pub fn connects(&self, from: u64, to: u64) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// After which delays copies of a message arrive.
    pub fn delays_of(
        &mut self,
        rng: &mut ChaCha8Rng,
        from: u64,
        to: u64,
        message: &PeerMessage,
    ) -> Vec<u64> {
        let filtered = self.drop_if.as_mut().is_some_and(|drop| drop(from, to, message));
        if !self.connects(from, to) || filtered || chance(rng, self.lost_permille) {
            return Vec::new();
        }
        let copies = if chance(rng, self.doubled_permille) { 2 } else { 1 };
        (0..copies).map(|_| self.delay_us + up_to(rng, self.jitter_us)).collect()
    }
}

pub fn chance(rng: &mut ChaCha8Rng, permille: u64) -> bool {
    permille > 0 && rng.next_u64() % 1000 < permille
}

pub fn up_to(rng: &mut ChaCha8Rng, limit: u64) -> u64 {
    if limit == 0 { 0 } else { rng.next_u64() % limit }
}

/// A message as a line of a trace.
pub fn describe(message: &Message) -> String {
    let term = message.term;
    let verdict = if message.reject { "no" } else { "yes" };
    match message.get_msg_type() {
        MessageType::MsgAppend => {
            let entries: Vec<String> =
                message.entries.iter().map(|entry| entry.index.to_string()).collect();
            format!(
                "append [{}] after {}/{}, commit {}, term {term}",
                entries.join(" "),
                message.index,
                message.log_term,
                message.commit
            )
        }
        MessageType::MsgAppendResponse if message.request_snapshot != 0 => {
            format!("ask for a snapshot, term {term}")
        }
        MessageType::MsgAppendResponse => {
            format!("appended {} {verdict}, term {term}", message.index)
        }
        MessageType::MsgRequestPreVote => format!("would you vote for me in term {term}?"),
        MessageType::MsgRequestPreVoteResponse => format!("would vote {verdict}, term {term}"),
        MessageType::MsgRequestVote => {
            format!("vote for me, term {term}, last {}/{}", message.index, message.log_term)
        }
        MessageType::MsgRequestVoteResponse => format!("vote {verdict}, term {term}"),
        MessageType::MsgBeat => "store heartbeat".to_owned(),
        MessageType::MsgHeartbeat if message.context[..] == *b"sleep" => {
            format!("hibernate, commit {}, term {term}", message.commit)
        }
        MessageType::MsgHeartbeat if !message.context.is_empty() => {
            format!("heartbeat for a read, commit {}, term {term}", message.commit)
        }
        MessageType::MsgHeartbeat => format!("heartbeat, commit {}, term {term}", message.commit),
        MessageType::MsgHeartbeatResponse => format!("heard, term {term}"),
        MessageType::MsgTimeoutNow => format!("take over, term {term}"),
        other => format!("{other:?}, term {term}"),
    }
}
