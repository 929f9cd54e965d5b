//! How fresh a read must be, and whether this replica is.
//!
//! The leader serves any read. Another replica knows how old its state is by *shard time*: what it has
//! applied reaches up to one time, and its own clock says what that is now, going on from what it
//! heard of its leader last ([`kvdb_replication::ShardTime`]). Entries reach a replica in order, so one
//! that has applied a version has applied all that was acknowledged up to then. An idle shard has no
//! new versions; its leader then lets time pass, but only while somebody asks.

use crate::access::Access;
use kvdb_model::{EntryCommand, RangeEpoch, Refusal, ShardId, Version};
use kvdb_replication::Input;
use kvdb_runtime::drive::Ticket;
use kvdb_wire::{proto, requests};
use std::time::{Duration, Instant};

use crate::operation::Submit;

/// Of a bounded read that doesn't say.
const DEFAULT_STALENESS_MS: u64 = 1000;
/// Shortest time between two time entries that reads of one shard ask for.
const TIME_EVERY: Duration = Duration::from_millis(50);

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// Linearizable, and the state has reached the version.
    Strong { min_version: Version },
    /// As `Strong`, by the leader; the read would do with less, and other replicas shall be able
    /// to serve the next one.
    StrongFor { max_staleness_ms: u64, min_version: Version },
    /// From this replica, if it is no older and has reached the version.
    Within { max_staleness_ms: u64, min_version: Version },
    /// From this replica, if it has reached the version.
    Any { min_version: Version },
}

impl Freshness {
    /// What a request asks for.
    pub(crate) fn of(
        consistency: i32,
        max_staleness_ms: u64,
        min_version: u64,
    ) -> Result<Self, Refusal> {
        let min_version = Version(min_version);
        Ok(match requests::consistency_from(consistency)? {
            proto::Consistency::Strong => Freshness::Strong { min_version },
            proto::Consistency::Bounded => {
                let max_staleness_ms = match max_staleness_ms {
                    0 => DEFAULT_STALENESS_MS,
                    given => given,
                };
                Freshness::Within { max_staleness_ms, min_version }
            }
            proto::Consistency::Eventual => Freshness::Any { min_version },
        })
    }

    /// Whether the leader was asked before the read.
    pub(crate) fn is_linearizable(self) -> bool {
        matches!(self, Freshness::Strong { .. } | Freshness::StrongFor { .. })
    }
}

/// How old state is that has reached `shard_time`; `None` if nothing was heard of a leader here.
fn age_ms(shard_time: Version, now_ms: u64) -> Option<u64> {
    (now_ms > 0).then(|| now_ms.saturating_sub(shard_time.millis()))
}

impl Access {
    /// Whether the read may be served here, and how it starts.
    pub(crate) fn accept_read(
        &self,
        shard: ShardId,
        epoch: RangeEpoch,
        key: &[u8],
        fresh: Freshness,
    ) -> Result<(Freshness, Submit), Refusal> {
        let view = self.replica(shard, epoch, key)?;
        Ok(match fresh {
            Freshness::Within { max_staleness_ms, min_version } if view.is_leader => {
                let fresh = Freshness::StrongFor { max_staleness_ms, min_version };
                (fresh, self.strong_read(shard, &view))
            }
            Freshness::Any { min_version } if view.is_leader && min_version > Version::ZERO => {
                (Freshness::Strong { min_version }, self.strong_read(shard, &view))
            }
            Freshness::Within { .. } | Freshness::Any { .. } => (fresh, Submit::Nothing),
            _ if !view.is_leader => return Err(self.not_leader(shard)),
            _ => (fresh, self.strong_read(shard, &view)),
        })
    }

    /// Whether state that has reached `shard_time` is fresh enough, where shard time is `now_ms`. If
    /// not, the leader is; and if this is the leader's, the version that it is yet to reach is returned.
    pub(crate) fn check_freshness(
        &self,
        shard: ShardId,
        fresh: Freshness,
        shard_time: Version,
        now_ms: u64,
    ) -> Result<Option<Version>, Refusal> {
        let age = || age_ms(shard_time, now_ms);
        let is_fresh = match fresh {
            Freshness::Strong { min_version } | Freshness::StrongFor { min_version, .. }
                if shard_time < min_version =>
            {
                return Ok(Some(min_version));
            }
            Freshness::Strong { .. } => true,
            Freshness::StrongFor { max_staleness_ms, .. } => {
                if age().is_some_and(|age| age > max_staleness_ms / 2) {
                    self.let_time_pass(shard);
                }
                true
            }
            Freshness::Within { max_staleness_ms, min_version } => {
                shard_time >= min_version && age().is_some_and(|age| age <= max_staleness_ms)
            }
            Freshness::Any { min_version } => shard_time >= min_version,
        };
        if is_fresh { Ok(None) } else { Err(self.not_leader(shard)) }
    }

    /// Has shard time reach the present soon, unless that was asked for a moment ago.
    fn let_time_pass(&self, shard: ShardId) {
        let now = Instant::now();
        {
            let mut asked = self.time_asked.lock();
            if asked.get(&shard).is_some_and(|last| now - *last < TIME_EVERY) {
                return;
            }
            // As many as there are shards here at most: those that left are swept out.
            asked.retain(|_, last| now - *last < TIME_EVERY);
            asked.insert(shard, now);
        }
        let command = EntryCommand::AdvanceTime.to_bytes();
        let ticket = Ticket::nobody();
        // Under overload freshness can wait.
        let _ = self.drive.submit(Input::Propose { shard, command, version_count: 1, ticket });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_is_what_has_passed_of_shard_time_where_that_is_known() {
        let at = Version::from_millis;
        assert_eq!(age_ms(at(1000), 1300), Some(300));
        assert_eq!(age_ms(at(1400), 1300), Some(0));
        assert_eq!(age_ms(at(2000), 0), None);
    }
}
