//! Nodes that should rather not lead, and why.
//!
//! A node can be alive and still hold up everybody whose shard it leads: its disk is slow or hangs,
//! its network path delays, its clock is wrong. Such a node is a *less preferred* leader. It keeps
//! its replicas and its votes, and leads where nobody else can; but the planner hands its
//! leaderships to others, and none to it.
//!
//! # No flapping
//!
//! Each reason is judged with hysteresis ([`Judgement`]): it holds once the evidence has held for a
//! while without a break, and ends once there was none for longer than that. A reason that comes back
//! soon after it has ended takes longer to end again. So a disk that is slow every other second is
//! slow all the time, and costs one hand-over, not one a second.
//!
//! # Another reason
//!
//! Add a variant to [`Reason`] and say when it holds ([`Preferences::note`]).

use kvdb_model::NodeId;
use std::collections::BTreeMap;

/// A node's syncs are slow from so many times its peers' on.
const SLOW_TIMES: u64 = 10;
/// And no more below so many times.
const FAST_TIMES: u64 = 5;
/// Syncs that are faster than this are never slow, whatever the peers' take.
const NEVER_SLOW_US: u64 = 5_000;
/// A path on which a message and its answer are faster than this is never slow.
const NEVER_SLOW_PATH_US: u64 = 10_000;
/// Until evidence counts.
const HOLDS_AFTER_MS: u64 = 10_000;
/// Until the lack of it does.
const ENDS_AFTER_MS: u64 = 30_000;
/// Longest that a reason which comes back stays.
const ENDS_AT_LAST_MS: u64 = 10 * 60_000;
/// What was heard longer ago says nothing of now.
const STALE_MS: u64 = 5_000;

/// Why a node is a less preferred leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its log could not be synced for a while, now or lately.
    StalledLog,
    /// Its log syncs far slower than those of its peers.
    SlowDisk {
        /// How long a sync takes, in microseconds.
        sync_us: u64,
        /// The median of its peers.
        peers_us: u64,
    },
    /// Messages between it and other nodes take far longer than between those.
    SlowPath {
        /// How long one to the nearer half of its peers and back takes, in microseconds.
        round_trip_us: u64,
        /// The median of the other nodes.
        peers_us: u64,
    },
    /// Its wall clock is wrong. Nothing relies on it; but something is amiss with the machine.
    WrongClock {
        /// How far it is ahead of cluster time, in milliseconds; behind, if negative.
        ahead_ms: i64,
    },
}

impl Reason {
    /// In a word, for metrics and JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Reason::StalledLog => "stalled_log",
            Reason::SlowDisk { .. } => "slow_disk",
            Reason::SlowPath { .. } => "slow_path",
            Reason::WrongClock { .. } => "wrong_clock",
        }
    }

    /// With the figures.
    pub fn describe(&self) -> String {
        match self {
            Reason::StalledLog => "its log could not be synced for 300 ms or more".to_owned(),
            Reason::SlowDisk { sync_us, peers_us } => format!(
                "a sync of its log takes {}, on the other nodes {}",
                milliseconds(*sync_us),
                milliseconds(*peers_us)
            ),
            Reason::SlowPath { round_trip_us, peers_us } => format!(
                "a message between it and other nodes takes {} there and back, between those {}",
                milliseconds(*round_trip_us),
                milliseconds(*peers_us)
            ),
            Reason::WrongClock { ahead_ms } => {
                let way = if *ahead_ms < 0 { "behind" } else { "ahead" };
                format!("its wall clock is {} ms {way}", ahead_ms.unsigned_abs())
            }
        }
    }
}

fn milliseconds(us: u64) -> String {
    match us {
        0..10_000 => format!("{}.{} ms", us / 1000, us % 1000 / 100),
        _ => format!("{} ms", us / 1000),
    }
}

/// Evidence over time, with hysteresis.
#[derive(Clone, Copy, Debug, Default)]
pub struct Judgement {
    holds: bool,
    /// Since when the evidence is other than what holds.
    differs_since: Option<u64>,
    ended_at: Option<u64>,
    ends_after_ms: u64,
}

impl Judgement {
    /// Takes in whether there is evidence now; it must have held for `holds_after_ms`. Returns
    /// whether it holds.
    pub fn take_in(&mut self, evidence: bool, now_ms: u64, holds_after_ms: u64) -> bool {
        if evidence == self.holds {
            self.differs_since = None;
            return self.holds;
        }
        let since = *self.differs_since.get_or_insert(now_ms);
        let needed = if self.holds { self.ends_after_ms } else { holds_after_ms };
        if now_ms.saturating_sub(since) < needed {
            return self.holds;
        }
        self.holds = evidence;
        self.differs_since = None;
        if evidence {
            let again =
                self.ended_at.is_some_and(|ended| now_ms.saturating_sub(ended) < ENDS_AT_LAST_MS);
            self.ends_after_ms = match again {
                true => (2 * self.ends_after_ms).min(ENDS_AT_LAST_MS),
                false => ENDS_AFTER_MS,
            };
        } else {
            self.ended_at = Some(now_ms);
        }
        self.holds
    }
}

/// What a node tells of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vitals {
    /// How long a sync of its log takes lately, in microseconds; 0 if there was none.
    pub sync_us: u64,
    /// Its log can't be synced, or couldn't a moment ago.
    pub stalled: bool,
}

#[derive(Debug, Default)]
struct Heard {
    at_ms: u64,
    vitals: Vitals,
    /// How long messages to other nodes and back take, and when it has said so.
    paths: BTreeMap<NodeId, u64>,
    paths_at_ms: u64,
    judgements: BTreeMap<&'static str, Judgement>,
    reasons: Vec<Reason>,
}

/// What is known of all nodes as leaders: in the memory of the leading coordinator alone.
#[derive(Debug, Default)]
pub struct Preferences {
    nodes: BTreeMap<NodeId, Heard>,
}

impl Preferences {
    /// A new leader knows nothing.
    pub fn reset(&mut self) {
        self.nodes.clear();
    }

    /// A node of the map tells how it is.
    pub fn heard(&mut self, node: NodeId, vitals: Vitals, now_ms: u64) {
        let heard = self.nodes.entry(node).or_default();
        (heard.vitals, heard.at_ms) = (vitals, now_ms);
        let slow = self.slow_disk(node, now_ms);
        self.note(node, Reason::StalledLog, vitals.stalled, 0, now_ms);
        // Where nothing is synced nothing is known: it stays as it was.
        if let Some((reason, slow)) = slow {
            self.note(node, reason, slow, HOLDS_AFTER_MS, now_ms);
        }
    }

    /// A node of the map tells how long messages to others and back take, in microseconds.
    pub fn heard_paths(
        &mut self,
        node: NodeId,
        paths: impl Iterator<Item = (NodeId, u64)>,
        now_ms: u64,
    ) {
        let heard = self.nodes.entry(node).or_default();
        (heard.paths, heard.paths_at_ms) = (paths.collect(), now_ms);
        if let Some((reason, slow)) = self.slow_path(node, now_ms) {
            self.note(node, reason, slow, HOLDS_AFTER_MS, now_ms);
        }
    }

    /// How long a message between two nodes takes there and back: each has its own connection, and what
    /// one sends is answered on the other's.
    fn between(&self, one: NodeId, other: NodeId, now_ms: u64) -> Option<u64> {
        let said = |from: NodeId, to: NodeId| {
            let heard = self.nodes.get(&from)?;
            let is_fresh = now_ms.saturating_sub(heard.paths_at_ms) < STALE_MS;
            heard.paths.get(&to).copied().filter(|_| is_fresh)
        };
        match (said(one, other), said(other, one)) {
            (Some(there), Some(back)) => Some(there / 2 + back / 2),
            (one, other) => one.or(other),
        }
    }

    /// What a message between a node and those that it needs for a majority takes.
    fn path_of(&self, node: NodeId, now_ms: u64) -> Option<u64> {
        let others = self.nodes.keys().filter(|other| **other != node);
        lower_median(others.filter_map(|other| self.between(node, *other, now_ms)))
    }

    /// What messages to and from a node take beside those among the others, and whether that is slow.
    fn slow_path(&self, node: NodeId, now_ms: u64) -> Option<(Reason, bool)> {
        let round_trip_us = self.path_of(node, now_ms)?;
        let others = self.nodes.keys().filter(|other| **other != node);
        let peers_us = lower_median(others.filter_map(|other| self.path_of(*other, now_ms)))?;
        let known = self.nodes.get(&node)?.reasons.iter();
        let known = known.clone().any(|reason| matches!(reason, Reason::SlowPath { .. }));
        let times = if known { FAST_TIMES } else { SLOW_TIMES };
        let slow =
            round_trip_us >= NEVER_SLOW_PATH_US && round_trip_us >= peers_us.saturating_mul(times);
        Some((Reason::SlowPath { round_trip_us, peers_us }, slow))
    }

    /// Takes in whether there is evidence for a reason now; it holds once there was for so long.
    pub fn note(
        &mut self,
        node: NodeId,
        reason: Reason,
        evidence: bool,
        holds_after_ms: u64,
        now_ms: u64,
    ) {
        let heard = self.nodes.entry(node).or_default();
        let judgement = heard.judgements.entry(reason.name()).or_default();
        let holds = judgement.take_in(evidence, now_ms, holds_after_ms);
        let known = heard.reasons.iter_mut().find(|known| known.name() == reason.name());
        match known {
            // The figures of when it was so last.
            Some(known) if holds && evidence => *known = reason,
            Some(_) if holds => {}
            Some(_) => heard.reasons.retain(|known| known.name() != reason.name()),
            None if holds => heard.reasons.push(reason),
            None => {}
        }
    }

    /// What a node's syncs take beside its peers', and whether that is slow.
    fn slow_disk(&self, node: NodeId, now_ms: u64) -> Option<(Reason, bool)> {
        let own = self.nodes.get(&node)?;
        let sync_us = Some(own.vitals.sync_us).filter(|sync_us| *sync_us > 0)?;
        let lately = |heard: &Heard| {
            heard.vitals.sync_us > 0 && now_ms.saturating_sub(heard.at_ms) < STALE_MS
        };
        let others = self.nodes.iter().filter(|(other, heard)| **other != node && lately(heard));
        let peers_us = lower_median(others.map(|(_, heard)| heard.vitals.sync_us))?;
        let known = own.reasons.iter().any(|reason| matches!(reason, Reason::SlowDisk { .. }));
        let times = if known { FAST_TIMES } else { SLOW_TIMES };
        let slow = sync_us >= NEVER_SLOW_US && sync_us >= peers_us.saturating_mul(times);
        Some((Reason::SlowDisk { sync_us, peers_us }, slow))
    }

    /// Why nodes are less preferred leaders; those that aren't are missing.
    pub fn reasons(&self) -> BTreeMap<NodeId, Vec<Reason>> {
        let nodes = self.nodes.iter().filter(|(_, heard)| !heard.reasons.is_empty());
        nodes.map(|(node, heard)| (*node, heard.reasons.clone())).collect()
    }

    /// How long a sync of a node's log takes lately, in microseconds, as far as is known.
    pub fn sync_us(&self, node: NodeId) -> Option<u64> {
        let heard = self.nodes.get(&node)?;
        (heard.vitals.sync_us > 0).then_some(heard.vitals.sync_us)
    }

    /// Forgets nodes that are gone.
    pub fn retain(&mut self, is_there: impl Fn(NodeId) -> bool) {
        self.nodes.retain(|node, _| is_there(*node));
    }
}

fn lower_median(figures: impl Iterator<Item = u64>) -> Option<u64> {
    let mut figures: Vec<u64> = figures.collect();
    figures.sort_unstable();
    figures.get(figures.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 500;

    /// Three nodes that tell how they are twice a second; the first one as `first` says.
    fn run(
        preferences: &mut Preferences,
        from_ms: u64,
        to_ms: u64,
        first: impl Fn(u64) -> Vitals,
    ) -> Vec<(u64, bool)> {
        let mut changes = Vec::new();
        let mut was = preferences.reasons().contains_key(&NodeId(1));
        for now_ms in (from_ms..to_ms).step_by(MS as usize) {
            for node in [2, 3] {
                let vitals = Vitals { sync_us: 1_000, stalled: false };
                preferences.heard(NodeId(node), vitals, now_ms);
            }
            preferences.heard(NodeId(1), first(now_ms), now_ms);
            let is = preferences.reasons().contains_key(&NodeId(1));
            if is != was {
                changes.push((now_ms, is));
            }
            was = is;
            assert!(!preferences.reasons().contains_key(&NodeId(2)));
        }
        changes
    }

    fn syncs(sync_us: u64) -> Vitals {
        Vitals { sync_us, stalled: false }
    }

    #[test]
    fn a_disk_ten_times_slower_than_its_peers_for_ten_seconds_is_named_with_the_figures() {
        let mut preferences = Preferences::default();
        let changes = run(&mut preferences, 0, 60_000, |_| syncs(12_000));
        assert_eq!(changes, [(10_000, true)]);
        let reasons = &preferences.reasons()[&NodeId(1)];
        assert_eq!(reasons[..], [Reason::SlowDisk { sync_us: 12_000, peers_us: 1_000 }]);
        assert!(reasons[0].describe().contains("takes 12 ms, on the other nodes 1.0 ms"));
        // Fast again: no more so half a minute later.
        let changes = run(&mut preferences, 60_000, 120_000, |_| syncs(1_000));
        assert_eq!(changes, [(90_000, false)]);
    }

    #[test]
    fn what_is_not_far_slower_or_not_for_long_is_nothing() {
        for sync_us in [0, 900, 9_900] {
            let changes = run(&mut Preferences::default(), 0, 60_000, |_| syncs(sync_us));
            assert_eq!(changes, [], "{sync_us}");
        }
        // Nine seconds, and another nine.
        let burst = |now_ms: u64| syncs(if now_ms % 10_000 < 9_000 { 50_000 } else { 1_000 });
        assert_eq!(run(&mut Preferences::default(), 0, 60_000, burst), []);
        // A fast disk beside very fast ones.
        let mut preferences = Preferences::default();
        for now_ms in (0..60_000).step_by(500) {
            for (node, sync_us) in [(1, 4_900), (2, 40), (3, 50)] {
                preferences.heard(NodeId(node), syncs(sync_us), now_ms);
            }
        }
        assert_eq!(preferences.reasons(), BTreeMap::new());
    }

    #[test]
    fn a_disk_that_stalls_every_other_second_is_less_preferred_all_the_time() {
        let mut preferences = Preferences::default();
        let every_other =
            |now_ms: u64| Vitals { sync_us: 1, stalled: (now_ms / 1000).is_multiple_of(2) };
        let changes = run(&mut preferences, 0, 600_000, every_other);
        assert_eq!(changes, [(0, true)]);
    }

    #[test]
    fn a_stall_that_comes_back_each_minute_takes_longer_to_be_forgotten_each_time() {
        let mut preferences = Preferences::default();
        let each_minute = |now_ms: u64| Vitals { sync_us: 1, stalled: now_ms % 60_000 < 1_000 };
        let changes = run(&mut preferences, 0, 3_600_000, each_minute);
        assert!(changes.len() <= 4, "{changes:?}");
    }

    #[test]
    fn a_slow_disk_that_nobody_uses_is_not_taken_to_be_fast() {
        let mut preferences = Preferences::default();
        let then_idle = |now_ms: u64| syncs(if now_ms < 20_000 { 50_000 } else { 0 });
        assert_eq!(run(&mut preferences, 0, 600_000, then_idle), [(10_000, true)]);
    }

    /// `nodes` nodes that tell twice a second how far each is from the others.
    fn run_paths(
        preferences: &mut Preferences,
        nodes: u64,
        (from_ms, to_ms): (u64, u64),
        path_us: impl Fn(u64, u64, u64) -> u64,
    ) -> Vec<(u64, Vec<u64>)> {
        let mut changes = Vec::new();
        let mut was: Vec<u64> = preferences.reasons().keys().map(|node| node.0).collect();
        for now_ms in (from_ms..to_ms).step_by(MS as usize) {
            for node in 1..=nodes {
                let others = (1..=nodes).filter(|other| *other != node);
                let paths = others.map(|other| (NodeId(other), path_us(now_ms, node, other)));
                preferences.heard_paths(NodeId(node), paths, now_ms);
            }
            let is: Vec<u64> = preferences.reasons().keys().map(|node| node.0).collect();
            if is != was {
                changes.push((now_ms, is.clone()));
                was = is;
            }
        }
        changes
    }

    #[test]
    fn a_node_behind_a_slow_path_is_named_with_the_figures_and_nobody_else() {
        for nodes in [3, 4, 5] {
            let mut preferences = Preferences::default();
            // Only what others send it is late, as behind a bad firewall: answers come that way, too.
            let late = |_, _, other| if other == 1 { 60_000 } else { 800 };
            let changes = run_paths(&mut preferences, nodes, (0, 60_000), late);
            // The very first report stands alone.
            assert_eq!(changes, [(10_000 + MS, vec![1])], "{nodes}");
            let reason = Reason::SlowPath { round_trip_us: 30_400, peers_us: 800 };
            assert_eq!(preferences.reasons()[&NodeId(1)], [reason]);
            assert_eq!(
                reason.describe(),
                "a message between it and other nodes takes 30 ms there and back, between those 0.8 ms"
            );
            let changes = run_paths(&mut preferences, nodes, (60_000, 120_000), |_, _, _| 800);
            assert_eq!(changes, [(90_000 + MS, vec![])], "{nodes}");
        }
    }

    #[test]
    fn paths_that_are_slow_for_all_for_a_moment_or_between_two_nodes_alone_are_nothing() {
        let cases: [fn(u64, u64, u64) -> u64; 4] = [
            |_, _, _| 60_000,
            |now_ms, one, _| if one == 1 && now_ms % 10_000 < 9_000 { 60_000 } else { 500 },
            // The third is near to both: each has a majority without the other.
            |_, one, other| if one + other == 3 { 60_000 } else { 500 },
            |_, one, other| if one == 1 || other == 1 { 9_000 } else { 50 },
        ];
        for slow in cases {
            assert_eq!(run_paths(&mut Preferences::default(), 3, (0, 60_000), slow), []);
        }
        // Of two nodes nobody can say whose path it is.
        assert_eq!(run_paths(&mut Preferences::default(), 2, (0, 60_000), |_, _, _| 60_000), []);
    }

    #[test]
    fn a_path_that_is_slow_every_other_second_does_not_flap() {
        let mut preferences = Preferences::default();
        let first = run_paths(&mut preferences, 3, (0, 20_000), |_, one, other| {
            if one == 1 || other == 1 { 60_000 } else { 500 }
        });
        assert_eq!(first, [(10_000 + MS, vec![1])]);
        let every_other = |now_ms: u64, one, other| {
            let late = (one == 1 || other == 1) && (now_ms / 1000).is_multiple_of(2);
            if late { 60_000 } else { 500 }
        };
        assert_eq!(run_paths(&mut preferences, 3, (20_000, 600_000), every_other), []);
    }

    #[test]
    fn a_reason_that_hovers_about_the_limit_does_not_flap() {
        let mut preferences = Preferences::default();
        // First 11 times, then between 9 and 11 times as slow as the peers.
        let hovers = |now_ms: u64| match now_ms {
            0..20_000 => syncs(11_000),
            _ => syncs(9_000 + now_ms / 500 % 5 * 500),
        };
        assert_eq!(run(&mut preferences, 0, 600_000, hovers), [(10_000, true)]);
    }
}
