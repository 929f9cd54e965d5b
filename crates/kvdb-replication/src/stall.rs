//! A log that can't be synced: noticing it, and handing leadership over without it.
//!
//! A leader applies, and so answers, only what its own log holds durably. So a disk that hangs under
//! a leader holds up every write of the shard, though a majority may have committed it: followers
//! hear the heartbeats and see no reason to stand. The host notices that nothing comes back from its
//! log for [`crate::HostConfig::stall_ticks`] although something was handed to it, and hands what it
//! leads to followers that have proved to be able to write.
//!
//! # Why that is sound, and why it needs nothing of the disk
//!
//! Let `L` be the leader of term `t` with entries up to `n`, of which its own disk holds those up to
//! `p < n`.
//!
//! 1. *Nobody counts on the tail `p+1..n` at `L`.* Raft counts the leader's own copy only when it is
//!    reported durable ([`crate::Input::Persisted`]); what was committed of the tail was committed by
//!    followers, whose acknowledgements wait for their disks. `L` applies and answers only up to
//!    `p`. So a crash of `L` that loses the tail takes back nothing that anybody was told.
//! 2. *A hand-over promises nothing.* `MsgTimeoutNow` only makes the follower stand at once; it wins
//!    by votes of a majority like any other, and votes go to logs that hold all that is committed.
//!    So it may leave before the tail is durable, as the leader's appends do (`group/ready.rs`).
//! 3. *No read is stale.* The hand-over ends the read lease for the whole term before the message
//!    leaves ([`crate::lease`]); a read that `L` takes after that asks a majority first.
//! 4. *`L` needn't vote.* It hears the new term and keeps what it would answer until term and vote
//!    are durable, like everybody. So the others must have a majority without `L`: that is checked,
//!    against both sets of voters while members change.
//! 5. *The successor can go on at once.* Only a follower that has acknowledged all of `L`'s log is
//!    asked, so raft waits for nothing, and its disk is known to work: it has written what `L`'s
//!    couldn't. Where a group has no tail, the same must be known of its node by another group.
//!    Where disks hang everywhere (one disk under all of them), nobody qualifies, and all stays.
//!
//! What waits at `L` is told at once that its outcome is unknown: `L` itself can't learn it before
//! its disk goes on. Who has a request id asks the successor.
//!
//! # No way back for a while
//!
//! A host whose log has stalled is *wary* until its log was well for [`crate::HostConfig::wary_ticks`]:
//! it stands for election an election timeout later than others would, and it says so
//! ([`crate::Host::is_wary`]), so that nobody hands leadership to it. Each stall begins that anew: a
//! disk that hangs every other second costs one hand-over.
//!
//! Stalls are counted in ticks, of which a host that is starved or paused has fewer: its own lack of
//! processor time doesn't look like a slow disk.

use crate::config::HostConfig;
use kvdb_model::planted::{Bug, has};

/// How the host's log does.
#[derive(Debug, Default)]
pub(crate) struct Stall {
    /// The last batch that was handed out, and the last that is durable.
    issued: u64,
    durable: u64,
    /// Ticks since something came back, while something is out.
    silent_ticks: usize,
    /// Ticks for which it is wary still.
    wary_ticks: usize,
}

impl Stall {
    pub(crate) fn issued(&mut self, batch: u64) {
        if self.issued <= self.durable {
            self.silent_ticks = 0;
        }
        self.issued = batch;
    }

    pub(crate) fn persisted(&mut self, batch: u64) {
        self.durable = self.durable.max(batch);
        self.silent_ticks = 0;
    }

    pub(crate) fn tick(&mut self, config: &HostConfig) {
        if self.issued > self.durable {
            self.silent_ticks += 1;
        }
        self.wary_ticks = match self.is_stalled(config) {
            true => config.wary_ticks,
            false => self.wary_ticks.saturating_sub(1),
        };
    }

    /// Whether nothing came back for so long that leadership is better elsewhere.
    pub(crate) fn is_stalled(&self, config: &HostConfig) -> bool {
        config.stall_ticks > 0
            && self.silent_ticks >= config.stall_ticks
            && !has(Bug::StalledLeaderStays)
    }

    /// Whether it is stalled, or was not long ago.
    pub(crate) fn is_wary(&self) -> bool {
        self.wary_ticks > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::NodeId;

    fn config() -> HostConfig {
        HostConfig { stall_ticks: 30, wary_ticks: 1000, ..HostConfig::new(NodeId(1), 1) }
    }

    fn ticks(stall: &mut Stall, count: usize) {
        (0..count).for_each(|_| stall.tick(&config()));
    }

    #[test]
    fn a_log_is_stalled_when_nothing_comes_back_and_something_is_out() {
        let mut stall = Stall::default();
        ticks(&mut stall, 100);
        stall.issued(1);
        ticks(&mut stall, 29);
        assert!(!stall.is_stalled(&config()));
        ticks(&mut stall, 1);
        assert!(stall.is_stalled(&config()) && stall.is_wary());
        // More of it changes nothing; one that comes back does.
        stall.issued(2);
        assert!(stall.is_stalled(&config()));
        stall.persisted(1);
        assert!(!stall.is_stalled(&config()) && stall.is_wary());
        ticks(&mut stall, 30);
        assert!(stall.is_stalled(&config()));
        stall.persisted(2);
        ticks(&mut stall, 999);
        assert!(stall.is_wary());
        ticks(&mut stall, 1);
        assert!(!stall.is_wary());
    }

    #[test]
    fn a_busy_log_that_goes_on_is_not_stalled_and_never_again_is_never() {
        let mut stall = Stall::default();
        for batch in 1..100 {
            stall.issued(batch);
            ticks(&mut stall, 29);
            assert!(!stall.is_stalled(&config()));
            stall.persisted(batch - 1);
        }
        let never = HostConfig { stall_ticks: 0, ..config() };
        (0..1000).for_each(|_| stall.tick(&never));
        assert!(!stall.is_stalled(&never) && !stall.is_wary());
    }

    #[test]
    fn a_log_that_stalls_every_other_second_is_wary_all_the_time() {
        let mut stall = Stall::default();
        let mut batch = 0;
        let mut changes = Vec::new();
        let mut was = false;
        for tick in 0..60_000 {
            let hangs = tick / 100 % 2 == 0;
            if !hangs {
                stall.persisted(batch);
            }
            batch += 1;
            stall.issued(batch);
            stall.tick(&config());
            if stall.is_wary() != was {
                was = !was;
                changes.push((tick, was));
            }
        }
        assert_eq!(changes, [(29, true)]);
    }
}
