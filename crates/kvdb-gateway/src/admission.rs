//! How much a gateway takes on at a time.
//!
//! What it has accepted waits for nodes, holds memory, and makes all others wait longer. So there is
//! a bound, and what comes on top is refused at once, before any work, with the time after which to try
//! again.
//!
//! Half of the room is for whoever comes. Of the other half each connection has its equal share,
//! so that one that asks for very much doesn't keep the others out.

use kvdb_model::Refusal;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// Requests under way, unless something else is configured.
pub const MOST_REQUESTS: usize = 8192;
/// Bytes of requests under way.
pub(crate) const MOST_BYTES: usize = 256 << 20;
/// So many operations of a batch count as one request.
const BATCHED: usize = 32;
/// Until a refused caller tries again, at the earliest; its own pauses come on top.
const RETRY_AFTER_MS: u64 = 50;

/// What a batch of so many operations counts for.
pub(crate) fn weight_of(operations: usize) -> usize {
    1 + operations / BATCHED
}

/// Whom a request is counted for: a connection, or all for which that isn't known.
type Caller = Option<SocketAddr>;

/// What is under way.
#[derive(Default)]
struct Load {
    requests: usize,
    bytes: usize,
    by_caller: HashMap<Caller, usize>,
}

struct Shared {
    most_requests: usize,
    most_bytes: usize,
    load: Mutex<Load>,
}

/// The room that a gateway has.
#[derive(Clone)]
pub(crate) struct Admission(Arc<Shared>);

/// A request that was admitted, until it is dropped.
pub(crate) struct Admitted {
    admission: Admission,
    caller: Caller,
    requests: usize,
    bytes: usize,
}

impl Admission {
    pub(crate) fn new(most_requests: usize, most_bytes: usize) -> Self {
        Admission(Arc::new(Shared { most_requests, most_bytes, load: Mutex::default() }))
    }

    /// A request comes that counts for so many, and has so many bytes. One that is larger than all
    /// the room is taken if it is alone.
    pub(crate) fn admit(
        &self,
        caller: Caller,
        requests: usize,
        bytes: usize,
    ) -> Result<Admitted, Refusal> {
        let refuse = |what| Err(Refusal::Overloaded { what, retry_after_ms: RETRY_AFTER_MS });
        let mut load = self.0.load.lock();
        let is_alone = load.requests == 0;
        let own = load.by_caller.get(&caller).copied().unwrap_or_default();
        let callers = load.by_caller.len() + usize::from(own == 0);
        let all = load.requests + requests;
        let share = (self.0.most_requests / 2 / callers).max(1);
        if !is_alone && all > self.0.most_requests {
            return refuse("the gateway");
        }
        if !is_alone && all > self.0.most_requests / 2 && own + requests > share {
            return refuse("the gateway's room for one connection");
        }
        if !is_alone && load.bytes + bytes > self.0.most_bytes {
            return refuse("the gateway's memory for requests");
        }
        load.requests = all;
        load.bytes += bytes;
        *load.by_caller.entry(caller).or_default() += requests;
        Ok(Admitted { admission: self.clone(), caller, requests, bytes })
    }

    #[cfg(test)]
    fn under_way(&self) -> usize {
        self.0.load.lock().requests
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut load = self.admission.0.load.lock();
        load.requests -= self.requests;
        load.bytes -= self.bytes;
        if let Some(own) = load.by_caller.get_mut(&self.caller) {
            *own -= self.requests;
            if *own == 0 {
                load.by_caller.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn caller(port: u16) -> Caller {
        Some(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    #[test]
    fn what_comes_on_top_is_refused_until_something_is_done() {
        let admission = Admission::new(100, 1000);
        let mut admitted: Vec<_> =
            (0..100).map(|port| admission.admit(caller(port), 1, 1).unwrap()).collect();
        let refused = admission.admit(caller(1), 1, 1).err().unwrap();
        assert!(matches!(refused, Refusal::Overloaded { .. }), "{refused}");
        admitted.pop();
        admission.admit(caller(200), 1, 1).unwrap();
    }

    #[test]
    fn a_connection_that_asks_for_much_leaves_room_for_others() {
        let admission = Admission::new(100, 1000);
        let greedy: Vec<_> =
            (0..1000).filter_map(|_| admission.admit(caller(1), 1, 1).ok()).collect();
        assert_eq!(greedy.len(), 50);
        // With two of them half of the other half is each one's.
        let second: Vec<_> =
            (0..1000).filter_map(|_| admission.admit(caller(2), 1, 1).ok()).collect();
        assert_eq!(second.len(), 25);
        let third: Vec<_> =
            (0..1000).filter_map(|_| admission.admit(caller(3), 1, 1).ok()).collect();
        assert_eq!(third.len(), 16);
        drop((greedy, second, third));
        assert_eq!(admission.under_way(), 0);
    }

    #[test]
    fn a_request_larger_than_the_room_is_taken_alone() {
        let admission = Admission::new(100, 1000);
        let large = admission.admit(caller(1), 500, 5000).unwrap();
        assert!(admission.admit(caller(2), 1, 1).is_err());
        drop(large);
        let _small = admission.admit(caller(2), 1, 1).unwrap();
        assert!(admission.admit(caller(1), 500, 1).is_err());
        assert!(admission.admit(caller(1), 1, 5000).is_err());
    }

    proptest! {
        #[test]
        fn what_is_under_way_stays_within_bounds_and_is_given_back(
            requests in prop::collection::vec((0u16..5, 1usize..20, 0usize..300, any::<bool>()), 1..200),
        ) {
            let admission = Admission::new(50, 1000);
            let mut admitted = Vec::new();
            for (port, operations, bytes, ends) in requests {
                if let Ok(one) = admission.admit(caller(port), operations, bytes) {
                    admitted.push(one);
                }
                let all: usize = admitted.iter().map(|one| one.requests).sum();
                let held: usize = admitted.iter().map(|one| one.bytes).sum();
                prop_assert_eq!(all, admission.under_way());
                prop_assert!(all <= 50 && held <= 1000);
                if ends && !admitted.is_empty() {
                    admitted.remove(0);
                }
            }
            admitted.clear();
            prop_assert_eq!(admission.under_way(), 0);
            prop_assert!(admission.0.load.lock().by_caller.is_empty());
        }
    }
}
