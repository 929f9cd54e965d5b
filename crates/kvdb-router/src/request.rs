//! One request's way through refusals.
//!
//! - `NOT_LEADER`: once, at once, at the hint, if that is a registered node's address.
//! - `SHARD_MOVED`, `STALE_EPOCH`: at once, after the map has been refreshed.
//! - anything else that may pass: after a pause that doubles, with jitter.
//!
//! A write whose outcome is unknown is tried again only if it carries a request id. Once unknown it
//! stays so until a try under the same id settles it: later refusals don't prove that the first
//! try did nothing.

use kvdb_model::{NodeId, Refusal, RetryClass};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

const FIRST_PAUSE_MS: u64 = 2;
const LONGEST_PAUSE_MS: u64 = 100;

/// Why a try came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The node has said why.
    Refused(Refusal),
    /// It was never sent.
    NotSent,
    /// It was sent, and no answer came.
    NoAnswer,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Try at this node, now.
    TryAt(NodeId),
    /// Refresh the map (`refresh`), wait, and route again, without the node that failed.
    TryAgain {
        /// How long to wait, in milliseconds.
        after_ms: u64,
        /// Whether the map is known to be stale: wait for a newer one as well.
        refresh: bool,
        /// A node to leave out, if there is another.
        avoid: Option<NodeId>,
    },
    /// It has failed for good.
    Fail(Refusal),
}

/// One request under way.
#[derive(Debug)]
pub struct RequestMachine {
    deadline_ms: u64,
    /// A read, or a write under a request id: trying twice does no harm.
    repeatable: bool,
    is_write: bool,
    unknown: bool,
    hint_used: bool,
    pause_ms: u64,
    random: ChaCha8Rng,
}

impl RequestMachine {
    /// A request that must end by `deadline_ms`. `repeatable` says whether a second try does no
    /// harm though the first may have been carried out.
    pub fn new(deadline_ms: u64, is_write: bool, repeatable: bool, seed: u64) -> Self {
        RequestMachine {
            deadline_ms,
            repeatable,
            is_write,
            unknown: false,
            hint_used: false,
            pause_ms: FIRST_PAUSE_MS,
            random: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// A try at `node` has failed; `hint` is the registered node that the refusal points to.
    pub fn failed(
        &mut self,
        failure: Failure,
        node: Option<NodeId>,
        hint: Option<NodeId>,
        now_ms: u64,
    ) -> Next {
        let (class, refusal) = match failure {
            Failure::Refused(refusal) => (refusal.class(), refusal),
            Failure::NotSent => (
                RetryClass::RetryHere,
                Refusal::ShardUnavailable {
                    shard_id: kvdb_model::ShardId(0),
                    reason: "no node of the shard can be reached (`kvdb admin shards` tells whether it has lost its \
                             majority, and what can be done)",
                },
            ),
            Failure::NoAnswer => {
                (RetryClass::OutcomeUnknown, Refusal::OutcomeUnknown { reason: "no answer came" })
            }
        };
        match class {
            RetryClass::Final => return self.end(refusal),
            RetryClass::OutcomeUnknown => {
                self.unknown |= self.is_write;
                if !self.repeatable {
                    return self.end(refusal);
                }
            }
            RetryClass::RetryHere | RetryClass::RetryElsewhere => {}
        }
        if now_ms >= self.deadline_ms {
            return self.end(Refusal::DeadlineExceeded);
        }
        match &refusal {
            Refusal::NotLeader { .. } if !self.hint_used && hint.is_some() && hint != node => {
                self.hint_used = true;
                hint.map_or_else(|| self.pause(now_ms, false, node), Next::TryAt)
            }
            Refusal::NotLeader { .. } => {
                self.hint_used = false;
                self.pause(now_ms, false, node)
            }
            Refusal::ShardMoved { .. } | Refusal::StaleEpoch { .. } => {
                self.pause(now_ms, true, None)
            }
            Refusal::Overloaded { retry_after_ms, .. } => {
                self.pause_ms = self.pause_ms.max(*retry_after_ms);
                self.pause(now_ms, false, None)
            }
            // A node that can't serve or doesn't answer: perhaps another one leads by now.
            _ => self.pause(now_ms, false, node),
        }
    }

    /// Whether a try may have been carried out without an answer. An answer under the same id
    /// settles it, if it says what became of the request.
    pub fn is_unknown(&self) -> bool {
        self.unknown
    }

    /// The deadline has passed while waiting for the answer of the last try.
    pub fn timed_out(&mut self, was_sent: bool) -> Refusal {
        self.unknown |= was_sent && self.is_write;
        if self.unknown {
            Refusal::OutcomeUnknown { reason: "the deadline passed before an answer came" }
        } else {
            Refusal::DeadlineExceeded
        }
    }

    fn end(&self, refusal: Refusal) -> Next {
        if !self.unknown {
            return Next::Fail(refusal);
        }
        // A try under the same id that reached the shard's own window settles what came before.
        match refusal {
            Refusal::RequestIdReused { .. } | Refusal::WrongValue(_) => Next::Fail(refusal),
            _ => Next::Fail(Refusal::OutcomeUnknown {
                reason: "an earlier try may have been carried out",
            }),
        }
    }

    fn pause(&mut self, now_ms: u64, refresh: bool, avoid: Option<NodeId>) -> Next {
        let jitter = self.random.next_u64() % self.pause_ms.max(1);
        let left = self.deadline_ms - now_ms;
        let after_ms = (self.pause_ms / 2 + jitter).min(left);
        self.pause_ms = (self.pause_ms * 2).min(LONGEST_PAUSE_MS);
        Next::TryAgain { after_ms, refresh, avoid }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::ShardId;

    const NODE: Option<NodeId> = Some(NodeId(1));

    fn not_leader() -> Failure {
        Failure::Refused(Refusal::NotLeader { shard_id: ShardId(1), leader_hint: None })
    }

    fn stale() -> Failure {
        Failure::Refused(Refusal::StaleEpoch {
            shard_id: ShardId(1),
            current: kvdb_model::RangeEpoch(2),
            descriptors: vec![],
        })
    }

    #[test]
    fn a_hint_is_followed_once_and_then_there_is_a_pause() {
        let mut request = RequestMachine::new(1000, true, true, 1);
        let hint = Some(NodeId(2));
        assert_eq!(request.failed(not_leader(), NODE, hint, 0), Next::TryAt(NodeId(2)));
        let next = request.failed(not_leader(), hint, NODE, 0);
        assert!(matches!(next, Next::TryAgain { refresh: false, .. }), "{next:?}");
    }

    #[test]
    fn a_stale_map_is_refreshed() {
        let mut request = RequestMachine::new(1000, true, false, 1);
        assert!(matches!(
            request.failed(stale(), NODE, None, 0),
            Next::TryAgain { refresh: true, avoid: None, .. }
        ));
    }

    #[test]
    fn an_unknown_write_without_an_id_is_not_tried_again() {
        let mut request = RequestMachine::new(1000, true, false, 1);
        assert!(matches!(
            request.failed(Failure::NoAnswer, NODE, None, 0),
            Next::Fail(Refusal::OutcomeUnknown { .. })
        ));
        let mut read = RequestMachine::new(1000, false, true, 1);
        let next = read.failed(Failure::NoAnswer, NODE, None, 0);
        assert!(matches!(next, Next::TryAgain { .. }), "{next:?}");
        assert_eq!(read.timed_out(true), Refusal::DeadlineExceeded);
    }

    #[test]
    fn once_unknown_a_later_refusal_does_not_make_it_a_plain_failure() {
        let mut request = RequestMachine::new(1000, true, true, 1);
        request.failed(Failure::NoAnswer, NODE, None, 0);
        let expired = Refusal::RequestIdExpired {
            client_id: "c".into(),
            sequence: 1,
            valid_until: kvdb_model::ValidUntil::Age(1),
            shard: kvdb_model::ShardTimes::default(),
        };
        assert!(matches!(
            request.failed(Failure::Refused(expired), NODE, None, 1),
            Next::Fail(Refusal::OutcomeUnknown { .. })
        ));
        let mut request = RequestMachine::new(1000, true, true, 1);
        request.failed(Failure::NoAnswer, NODE, None, 0);
        assert!(matches!(request.timed_out(false), Refusal::OutcomeUnknown { .. }));
    }

    #[test]
    fn pauses_grow_and_end_by_the_deadline() {
        let mut request = RequestMachine::new(1000, false, true, 1);
        let mut now = 0;
        let mut tries = 0;
        loop {
            match request.failed(Failure::NotSent, NODE, None, now) {
                Next::TryAgain { after_ms, .. } => {
                    assert!(after_ms <= LONGEST_PAUSE_MS * 2);
                    now += after_ms;
                }
                Next::Fail(refusal) => {
                    assert_eq!(refusal, Refusal::DeadlineExceeded);
                    break;
                }
                Next::TryAt(node) => panic!("there was no hint to {node}"),
            }
            tries += 1;
        }
        assert_eq!(now, 1000);
        assert!((10..40).contains(&tries), "{tries}");
    }
}
