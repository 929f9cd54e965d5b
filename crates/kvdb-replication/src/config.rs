//! What can be tuned about replication, and what each choice costs.

use kvdb_model::NodeId;
use thiserror::Error;

/// Settings that make no sense.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HostConfigError {
    /// A setting must be at least 1.
    #[error("{0} is 0; it must be at least 1")]
    Zero(&'static str),
    /// Groups would hibernate between two heartbeats.
    #[error(
        "hibernate_ticks is {hibernate_ticks} and heartbeat_ticks {heartbeat_ticks}; a group must have \
         been idle for a heartbeat at least before it hibernates, or never hibernate (0)"
    )]
    EarlyHibernation {
        /// As configured.
        hibernate_ticks: usize,
        /// As configured.
        heartbeat_ticks: usize,
    },
    /// Followers would stand for election between two heartbeats.
    #[error(
        "heartbeat_ticks is {heartbeat_ticks} and election_ticks {election_ticks}; heartbeats \
         must come more often than elections, at best several times"
    )]
    SlowHeartbeat {
        /// As configured.
        heartbeat_ticks: usize,
        /// As configured.
        election_ticks: usize,
    },
}

/// Settings of a [`crate::Host`].
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// The node that the host runs on.
    pub node_id: NodeId,
    /// Seeds the election timeouts. Two hosts of a group should have different seeds.
    pub seed: u64,
    /// Milliseconds between [`crate::Input::Tick`]s. Raising it saves CPU on idle groups and slows
    /// failover in proportion.
    pub tick_ms: u64,
    /// Ticks without word from the leader before a follower may stand for election; the actual
    /// timeout is drawn from `[election_ticks, election_ticks + election_spread_ticks)`. Raising it
    /// avoids needless elections on a starved machine and lengthens the write gap after a crash.
    /// Leases rely on it: it and `tick_ms` must be the same on all nodes of a cluster.
    pub election_ticks: usize,
    /// Width of the range that election timeouts are drawn from. Raising it makes split votes
    /// rarer and the longest wait longer.
    pub election_spread_ticks: usize,
    /// Ticks between a leader's heartbeats. Raising it saves messages and shortens what remains
    /// of the election timeout when one is lost.
    pub heartbeat_ticks: usize,
    /// Ticks without anything to do after which a group hibernates: its members neither count ticks nor
    /// send heartbeats until something happens. 0 for never. Raising it makes groups that are used
    /// now and then answer sooner (whoever wakes must ask the others before it reads), and costs
    /// their ticks and heartbeats.
    pub hibernate_ticks: usize,
    /// How much faster a follower's clock may run than the leader's, in milliseconds over one
    /// election timeout. Taken off the read lease.
    pub clock_drift_ms: u64,
    /// Ticks without anything back from the log, while something is out, after which leaderships are
    /// handed to others; 0 for never. Lowering it shortens the write gap when a disk hangs, and moves
    /// leaderships about where disks are merely slow.
    pub stall_ticks: usize,
    /// Ticks after that in which the log must be well until others may be handed leadership to this
    /// host again.
    pub wary_ticks: usize,
    /// Whether leaders serve strong reads by a lease. Without it each read asks a quorum, and nothing
    /// relies on how fast boot-time clocks run.
    pub lease: bool,
    /// Largest entry that proposals are packed into. Raising it makes bigger log writes and longer
    /// single apply steps.
    pub max_entry_bytes: usize,
    /// Most entry bytes in one append message.
    pub max_message_bytes: u64,
    /// Most append messages on their way to one follower.
    pub max_inflight_messages: usize,
    /// Bytes that a group may have proposed but not yet applied; beyond it proposals are refused
    /// as overloaded. Raising it buys throughput over slow disks with memory and latency.
    pub max_unapplied_bytes: usize,
    /// Commands of one group that may wait for their answer; beyond it they are refused.
    pub max_waiting_commands: usize,
    /// Bytes of flushed log that are kept for followers that lag, and by followers in case they
    /// lead. Raising it avoids snapshots after short absences and costs that much memory a group.
    pub log_retain_bytes: usize,
}

impl HostConfig {
    /// The defaults: a heartbeat each 50 ms, elections after 200 to 320 ms of silence.
    pub fn new(node_id: NodeId, seed: u64) -> Self {
        HostConfig {
            node_id,
            seed,
            tick_ms: 10,
            election_ticks: 20,
            election_spread_ticks: 12,
            heartbeat_ticks: 5,
            hibernate_ticks: 100,
            clock_drift_ms: 10,
            stall_ticks: 30,
            wary_ticks: 1_000,
            lease: true,
            max_entry_bytes: 1024 * 1024,
            max_message_bytes: 1024 * 1024,
            max_inflight_messages: 256,
            max_unapplied_bytes: 64 * 1024 * 1024,
            max_waiting_commands: 100_000,
            log_retain_bytes: 4 * 1024 * 1024,
        }
    }

    /// Checks that the settings make sense together.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn validate(&self) -> Result<(), HostConfigError> {
        if self.tick_ms == 0 {
            return Err(HostConfigError::Zero("tick_ms"));
        }
        if self.heartbeat_ticks == 0 {
            return Err(HostConfigError::Zero("heartbeat_ticks"));
        }
        if (1..self.heartbeat_ticks).contains(&self.hibernate_ticks) {
            return Err(HostConfigError::EarlyHibernation {
                hibernate_ticks: self.hibernate_ticks,
                heartbeat_ticks: self.heartbeat_ticks,
            });
        }
        if self.max_inflight_messages == 0 {
            return Err(HostConfigError::Zero("max_inflight_messages"));
        }
        if self.election_ticks <= self.heartbeat_ticks {
            return Err(HostConfigError::SlowHeartbeat {
                heartbeat_ticks: self.heartbeat_ticks,
                election_ticks: self.election_ticks,
            });
        }
        Ok(())
    }

    /// Length of a read lease from the moment it is counted from, in microseconds.
    ///
    /// One tick is taken off because a follower's first tick may come right after it heard from
    /// the leader.
    pub(crate) fn lease_us(&self) -> u64 {
        if !self.lease {
            return 0;
        }
        let ticks = (self.election_ticks as u64).saturating_sub(1);
        (ticks * self.tick_ms).saturating_sub(self.clock_drift_ms) * 1000
    }
}
