//! Request ids, by lanes.
//!
//! A request id is (client id, sequence), and each request tells below which sequence everything
//! is settled (`acked_below`), so that the cluster can forget those answers. With one sequence for
//! all requests of a process a single slow one would hold back that mark for all. So each request
//! in flight has a *lane*: a client id of its own with a sequence of its own, taken when the
//! request starts and given back when it ends. On a lane one request follows the other; whatever
//! came before is settled (or given up, which counts as settled), and `acked_below` is simply the
//! request's own sequence. There are as many lanes as there ever were requests at a time.

use kvdb_wire::proto;
use parking_lot::Mutex;

/// The lanes of one client.
pub(crate) struct Lanes {
    /// Random, so that no two clients share request ids.
    client: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    free: Vec<Lane>,
    made: u64,
}

struct Lane {
    number: u64,
    /// Of the next request.
    sequence: u64,
}

/// A lane in use. Comes back when it is dropped, also when the call is cancelled.
pub(crate) struct Ticket<'a> {
    lanes: &'a Lanes,
    lane: Option<Lane>,
    /// The same for every attempt of the request, until one tells that it was stamped by another clock
    /// than the shard's ([`crate::stamps`]).
    pub(crate) request_id: proto::RequestId,
}

impl Lanes {
    pub(crate) fn new(client: u64) -> Self {
        Lanes { client, state: Mutex::default() }
    }

    pub(crate) fn take(&self, valid_until_ms: u64) -> Ticket<'_> {
        let lane = {
            let mut state = self.state.lock();
            state.free.pop().unwrap_or_else(|| {
                state.made += 1;
                Lane { number: state.made, sequence: 1 }
            })
        };
        let request_id = proto::RequestId {
            client_id: format!("{:016x}-{}", self.client, lane.number),
            sequence: lane.sequence,
            acked_below: lane.sequence,
            valid_until_ms,
            valid_until_age_ms: 0,
        };
        Ticket { lanes: self, lane: Some(lane), request_id }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if let Some(mut lane) = self.lane.take() {
            lane.sequence += 1;
            self.lanes.state.lock().free.push(lane);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_at_a_time_have_lanes_of_their_own() {
        let lanes = Lanes::new(7);
        let first = lanes.take(300_000);
        let second = lanes.take(300_000);
        assert_ne!(first.request_id.client_id, second.request_id.client_id);
    }

    #[test]
    fn a_lane_settles_what_came_before() {
        let lanes = Lanes::new(7);
        let first = lanes.take(300_000).request_id.clone();
        let second = lanes.take(300_000).request_id.clone();
        assert_eq!(second.client_id, first.client_id);
        assert_eq!(second.sequence, first.sequence + 1);
        assert_eq!(second.acked_below, second.sequence);
        assert_eq!(second.valid_until_ms, 300_000);
    }
}
