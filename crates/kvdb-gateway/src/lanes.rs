//! Request ids for the gateway's own retries.
//!
//! A lane a shard, so that one stuck shard doesn't hold back what the others have acknowledged;
//! random per process, so that no two gateways share one.
//!
//! How long an id is valid is stamped when it is first sent ([`crate::ages`]).

use crate::ages::UNSTAMPED;
use bytes::Bytes;
use kvdb_model::{RequestTag, ShardId};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

#[derive(Default)]
struct Lane {
    next: u64,
    unsettled: BTreeSet<u64>,
}

/// All lanes of a process.
#[derive(Clone)]
pub(crate) struct Lanes {
    process: u64,
    lanes: Arc<Mutex<HashMap<ShardId, Lane>>>,
}

/// A request under way; settled when it is dropped.
pub(crate) struct Ticket {
    pub(crate) tag: RequestTag,
    shard: ShardId,
    lanes: Lanes,
}

impl Lanes {
    pub(crate) fn new(process: u64) -> Self {
        Lanes { process, lanes: Arc::default() }
    }

    /// An id for a write that goes to `shard`. It stays the same wherever the write ends up.
    pub(crate) fn begin(&self, shard: ShardId) -> Ticket {
        let mut lanes = self.lanes.lock();
        let lane = lanes.entry(shard).or_default();
        let sequence = lane.next;
        lane.next += 1;
        lane.unsettled.insert(sequence);
        let acked_below = lane.unsettled.first().copied().unwrap_or(sequence);
        let tag = RequestTag {
            client_id: Bytes::from(format!("gw-{:016x}-{shard}", self.process)),
            sequence,
            acked_below,
            valid_until: UNSTAMPED,
        };
        Ticket { tag, shard, lanes: self.clone() }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // One that was given up as unknown counts as acknowledged too: nobody asks again.
        if let Some(lane) = self.lanes.lanes.lock().get_mut(&self.shard) {
            lane.unsettled.remove(&self.tag.sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_acknowledges_all_below_the_oldest_that_is_under_way() {
        let lanes = Lanes::new(7);
        let first = lanes.begin(ShardId(1));
        let second = lanes.begin(ShardId(1));
        assert_eq!((second.tag.sequence, second.tag.acked_below), (1, 0));
        drop(first);
        let third = lanes.begin(ShardId(1));
        assert_eq!((third.tag.sequence, third.tag.acked_below), (2, 1));
        drop(second);
        drop(third);
        let fourth = lanes.begin(ShardId(1));
        assert_eq!((fourth.tag.sequence, fourth.tag.acked_below), (3, 3));
    }

    #[test]
    fn lanes_of_shards_do_not_hold_each_other_back() {
        let lanes = Lanes::new(7);
        let _stuck = lanes.begin(ShardId(1));
        for sequence in 0..3 {
            let other = lanes.begin(ShardId(2));
            assert_eq!(other.tag.acked_below, sequence);
            assert_ne!(other.tag.client_id, _stuck.tag.client_id);
        }
    }
}
