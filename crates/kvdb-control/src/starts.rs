//! Which start of a node counts: how an older copy of a data directory, and a second process on a
//! copy, are told from the node itself.
//!
//! A directory has a nonce that changes with every start that was accepted, and numbers the frames
//! of its log. A node enters by comparing and swapping: its directory shows the nonce that was
//! accepted last, and has synced no less than the node once reported. One that shows anything else
//! has been put back from an older copy, or a copy of it has been started since: what it promised
//! after that isn't in it.

use crate::command::{ControlCommand, ControlError, ControlResponse};
use crate::liveness::Heard;
use crate::state::ControlState;
use kvdb_model::planted::{Bug, has};
use kvdb_model::{NodeId, NodeStatus};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A nonce that a start may show beside the one that it was accepted with: of tries whose answer
/// never came.
pub const MOST_SHOWN: usize = 16;

/// A start as the directory tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStart {
    /// The nonce that was accepted last, and those that may have been: their answer never came.
    pub shown: Vec<u128>,
    /// The nonce of this start.
    pub nonce: u128,
    /// The last frame of the log that is synced.
    pub synced: u64,
    /// Which machine since when, and which lock file: two starts of the same place can't overlap.
    pub place: u128,
}

/// The start that counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartRecord {
    /// Rises with each.
    pub number: u64,
    /// The nonce that it was accepted with.
    pub nonce: u128,
    /// The highest frame that was reported as synced.
    pub synced: u64,
    /// As [`NodeStart::place`].
    pub place: u128,
}

/// Why a start isn't accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAccepted {
    /// It never will be: its directory is older than what is known.
    Older,
    /// Another process of the node may run: it is asked for again.
    Waits,
}

impl StartRecord {
    /// Whether a start may follow, in view of whether the process of this one was `heard` lately. That
    /// it wasn't proves nothing: a start from elsewhere needs the word of other nodes too.
    ///
    /// # Errors
    /// [`NotAccepted`].
    pub fn admits(&self, start: &NodeStart, heard: Heard) -> Result<(), NotAccepted> {
        if self.nonce == start.nonce {
            return Ok(());
        }
        if !self.is_shown_by(start) {
            return Err(NotAccepted::Older);
        }
        match self.place == start.place || heard == Heard::NotLately {
            true => Ok(()),
            false => Err(NotAccepted::Waits),
        }
    }

    /// Whether a directory holds all that this start, and those before it, have told.
    pub fn is_shown_by(&self, start: &NodeStart) -> bool {
        // The very start may say it again, later than it has told more with a heartbeat.
        let shows_nonce = start.shown.contains(&self.nonce) || has(Bug::OlderNonceTaken);
        let reaches = start.synced >= self.synced || has(Bug::FramesNotCompared);
        start.nonce == self.nonce || shows_nonce && reaches
    }
}

/// Why a heartbeat isn't taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotCounted {
    /// Another start of the node counts.
    StartedSince,
    /// Its log has told of this frame, and ends earlier now.
    GoneBack {
        /// The highest that was told.
        highest: u64,
    },
}

/// How far the logs of nodes are synced, as a leader of the coordinators has heard since it leads. The log knows it
/// somewhat later.
#[derive(Clone, Debug, Default)]
pub struct Synced {
    told: BTreeMap<NodeId, (u128, u64)>,
}

impl Synced {
    /// A new leader has heard nothing.
    pub fn clear(&mut self) {
        self.told.clear();
    }

    fn of(&self, node: NodeId, nonce: u128) -> u64 {
        let told = self.told.get(&node).filter(|(of, _)| *of == nonce);
        told.map_or(0, |(_, synced)| *synced)
    }

    /// Whether a start of a node may be accepted now. What the state says must be up to date.
    ///
    /// # Errors
    /// [`NotAccepted`].
    pub fn admits(
        &self,
        state: &ControlState,
        node: NodeId,
        start: &NodeStart,
        heard: Heard,
    ) -> Result<(), NotAccepted> {
        let Some(mut known) = state.start_of(node).cloned() else { return Ok(()) };
        if state.copies_of(node).is_awaited && known.nonce != start.nonce {
            // Somebody says that there is nobody else. If there is, it waits.
            return match heard {
                Heard::Lately { .. } => Err(NotAccepted::Waits),
                Heard::NotLately | Heard::NotKnown => Ok(()),
            };
        }
        known.synced = known.synced.max(self.of(node, known.nonce));
        known.admits(start, heard)
    }

    /// A heartbeat: which start of a node it comes from, and how far that one's log is synced.
    ///
    /// # Errors
    /// [`NotCounted`].
    pub fn hears(
        &mut self,
        state: &ControlState,
        node: NodeId,
        nonce: u128,
        synced: u64,
    ) -> Result<(), NotCounted> {
        let Some(known) = state.start_of(node) else { return Ok(()) };
        if nonce != known.nonce {
            return Err(NotCounted::StartedSince);
        }
        let highest = known.synced.max(self.of(node, nonce));
        if synced < highest && !has(Bug::FramesNotCompared) {
            return Err(NotCounted::GoneBack { highest });
        }
        self.told.insert(node, (nonce, synced));
        Ok(())
    }

    /// What of it the log doesn't know yet.
    pub fn news(&self, state: &ControlState) -> Option<ControlCommand> {
        let is_news = |(node, (nonce, synced)): &(&NodeId, &(u128, u64))| {
            let known = state.start_of(**node);
            known.is_some_and(|known| known.nonce == *nonce && known.synced < *synced)
        };
        let told = self.told.iter().filter(is_news);
        let told: Vec<_> = told.map(|(node, (nonce, synced))| (*node, *nonce, *synced)).collect();
        (!told.is_empty()).then_some(ControlCommand::NoteSynced { told })
    }
}

/// Older copies of a node's directory that somebody has accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copies {
    /// How many the node has started on.
    pub count: u64,
    /// The next start is another one.
    pub is_awaited: bool,
}

impl ControlState {
    /// Older copies of a node's directory that were accepted.
    pub fn copies_of(&self, node: NodeId) -> Copies {
        self.copies.get(&node).copied().unwrap_or_default()
    }

    /// The next start of a node will be on an older copy, of which only shards are recovered.
    pub(crate) fn accept_copy(&mut self, node: NodeId) -> Result<ControlResponse, ControlError> {
        let status = self.map.nodes.get(&node).ok_or(ControlError::UnknownNode(node))?.status;
        match status {
            NodeStatus::Removed => return Err(ControlError::NodeRemoved(node)),
            NodeStatus::Dead | NodeStatus::Draining => {}
            status => return Err(ControlError::NodeRuns { node, status }),
        }
        self.copies.entry(node).or_default().is_awaited = true;
        Ok(ControlResponse::Done(self.map.version))
    }

    /// The start has come. Every replica that the node has been given so far may have promised what this directory
    /// doesn't know, also one that isn't in it.
    fn begin_copy(&mut self, node: NodeId) {
        let copies = self.copies.entry(node).or_default();
        *copies = Copies { count: copies.count + 1, is_awaited: false };
        if let Some(record) = self.map.nodes.get_mut(&node) {
            record.least_replica = self.counters.next_replica;
        }
    }

    /// The start of a node that counts, if it has ever told one.
    pub fn start_of(&self, node: NodeId) -> Option<&StartRecord> {
        self.starts.get(&node)
    }

    /// Compares and swaps. The same start may come again.
    pub(crate) fn take_start(
        &mut self,
        node: NodeId,
        start: &NodeStart,
    ) -> Result<(), ControlError> {
        if start.shown.len() > MOST_SHOWN {
            return Err(ControlError::OutOfRange {
                field: "the number of nonces shown".to_owned(),
                value: start.shown.len() as u64,
                accepted: format!("at most {MOST_SHOWN}"),
            });
        }
        let known = self.starts.get(&node);
        // The answer to the same start may have been lost.
        let is_new = known.is_none_or(|known| known.nonce != start.nonce);
        let is_copy = is_new && self.copies_of(node).is_awaited;
        if !is_copy && known.is_some_and(|known| !known.is_shown_by(start)) {
            return Err(ControlError::OlderDirectory(node));
        }
        let told = known.filter(|_| !is_copy).map_or(0, |known| known.synced);
        let number = match known {
            Some(known) if known.nonce == start.nonce => known.number,
            Some(known) => known.number + 1,
            None => 1,
        };
        let (nonce, synced, place) = (start.nonce, start.synced.max(told), start.place);
        self.starts.insert(node, StartRecord { number, nonce, synced, place });
        if is_copy {
            self.begin_copy(node);
        }
        Ok(())
    }

    /// Nodes have told how far their logs are synced. What comes from another start than the one
    /// that counts says nothing.
    pub(crate) fn note_synced(&mut self, told: &[(NodeId, u128, u64)]) -> ControlResponse {
        for (node, nonce, synced) in told {
            if let Some(known) = self.starts.get_mut(node).filter(|known| known.nonce == *nonce) {
                known.synced = known.synced.max(*synced);
            }
        }
        ControlResponse::Done(self.map.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(shown: &[u128], nonce: u128, synced: u64) -> NodeStart {
        NodeStart { shown: shown.to_vec(), nonce, synced, place: 1 }
    }

    fn enter(state: &mut ControlState, start: NodeStart) -> Result<(), ControlError> {
        let command = ControlCommand::EnterNode {
            token: 7,
            address: "127.0.0.1:7001".to_owned(),
            zone: String::new(),
            is_reached: true,
            start: Some(start),
        };
        state.apply(&command).result.map(|_| ())
    }

    #[test]
    fn a_directory_that_shows_the_last_start_is_accepted_and_an_older_one_is_not() {
        let mut state = ControlState::default();
        enter(&mut state, start(&[], 10, 3)).unwrap();
        // The same start, whose answer was lost.
        enter(&mut state, start(&[], 10, 3)).unwrap();
        assert_eq!(state.start_of(NodeId(1)).unwrap().number, 1);
        enter(&mut state, start(&[10], 11, 3)).unwrap();
        assert_eq!(state.start_of(NodeId(1)).unwrap().number, 2);
        let older = Err(ControlError::OlderDirectory(NodeId(1)));
        assert_eq!(enter(&mut state, start(&[10], 12, 9)), older);
        assert_eq!(enter(&mut state, start(&[], 12, 9)), older);
        // One whose answer never came shows both.
        enter(&mut state, start(&[9, 11], 13, 3)).unwrap();
    }

    #[test]
    fn a_directory_with_fewer_frames_than_it_once_reported_is_older() {
        let mut state = ControlState::default();
        enter(&mut state, start(&[], 10, 3)).unwrap();
        let told = vec![(NodeId(1), 10, 8), (NodeId(1), 9, 100), (NodeId(4), 1, 1)];
        state.apply(&ControlCommand::NoteSynced { told }).result.unwrap();
        assert_eq!(state.start_of(NodeId(1)).unwrap().synced, 8);
        let older = Err(ControlError::OlderDirectory(NodeId(1)));
        assert_eq!(enter(&mut state, start(&[10], 11, 7)), older);
        // The one that counts says again what it said before.
        enter(&mut state, start(&[], 10, 3)).unwrap();
        assert_eq!(state.start_of(NodeId(1)).unwrap().synced, 8);
        assert_eq!(enter(&mut state, start(&[10], 11, 7)), older);
        enter(&mut state, start(&[10], 11, 8)).unwrap();
    }

    #[test]
    fn what_heartbeats_have_told_counts_before_the_log_knows_it() {
        let (mut state, mut told) = (ControlState::default(), Synced::default());
        let node = NodeId(1);
        enter(&mut state, start(&[], 10, 3)).unwrap();
        assert_eq!(told.news(&state), None);
        told.hears(&state, node, 10, 8).unwrap();
        let admits = |told: &Synced, state: &ControlState, start: &NodeStart| {
            told.admits(state, node, start, Heard::NotKnown)
        };
        assert_eq!(admits(&told, &state, &start(&[10], 11, 7)), Err(NotAccepted::Older));
        assert_eq!(admits(&told, &state, &start(&[10], 11, 8)), Ok(()));
        assert_eq!(told.hears(&state, node, 9, 100), Err(NotCounted::StartedSince));
        // Its log has gone back under it.
        assert_eq!(told.hears(&state, node, 10, 7), Err(NotCounted::GoneBack { highest: 8 }));
        let news = told.news(&state).unwrap();
        assert_eq!(news, ControlCommand::NoteSynced { told: vec![(node, 10, 8)] });
        state.apply(&news).result.unwrap();
        assert_eq!(told.news(&state), None);
        // The next leader knows it from the log.
        told.clear();
        assert_eq!(admits(&told, &state, &start(&[10], 11, 7)), Err(NotAccepted::Older));
        assert_eq!(told.hears(&state, node, 10, 7), Err(NotCounted::GoneBack { highest: 8 }));
        // Of an older copy that was accepted nothing is compared; only another process is waited for.
        let dead = ControlCommand::SetNodeStatus { node, status: NodeStatus::Dead };
        state.apply(&dead).result.unwrap();
        state.apply(&ControlCommand::AcceptCopy { node }).result.unwrap();
        let copy = start(&[8], 12, 1);
        assert_eq!(admits(&told, &state, &copy), Ok(()));
        let lately = Heard::Lately { silent_ms: 1 };
        assert_eq!(told.admits(&state, node, &copy, lately), Err(NotAccepted::Waits));
    }

    #[test]
    fn an_older_copy_that_was_accepted_is_taken_once_and_no_replica_of_it_counts() {
        let mut state = ControlState::default();
        let node = NodeId(1);
        enter(&mut state, start(&[], 10, 9)).unwrap();
        let init = ControlCommand::InitShards { shards: 2, replication_factor: 1 };
        state.apply(&init).result.unwrap();
        let accept = ControlCommand::AcceptCopy { node };
        let runs = Err(ControlError::NodeRuns { node, status: NodeStatus::Alive });
        assert_eq!(state.apply(&accept).result.map(|_| ()), runs);
        let set = |status| ControlCommand::SetNodeStatus { node, status };
        state.apply(&set(NodeStatus::Dead)).result.unwrap();
        assert_eq!(enter(&mut state, start(&[8], 11, 4)), Err(ControlError::OlderDirectory(node)));
        state.apply(&accept).result.unwrap();
        let mut loaded = ControlState::default();
        for (key, value) in ControlState::default().changed_records(&state) {
            loaded.load(&key, &value.unwrap()).unwrap();
        }
        assert_eq!(loaded, state);
        let descriptor = state.map.shards.values().next().unwrap().descriptor.clone();
        enter(&mut state, start(&[8], 11, 4)).unwrap();
        assert_eq!(state.copies_of(node), Copies { count: 1, is_awaited: false });
        assert_eq!(state.start_of(node).unwrap().synced, 4);
        assert!(
            !state.map.has_majority(&descriptor) && !state.map.takes_part(&descriptor.replicas[0])
        );
        // The answer was lost.
        enter(&mut state, start(&[8], 11, 4)).unwrap();
        assert_eq!(state.copies_of(node).count, 1);
        // Not another one, and not the directory that it was a copy of.
        assert_eq!(enter(&mut state, start(&[8], 12, 4)), Err(ControlError::OlderDirectory(node)));
        assert_eq!(enter(&mut state, start(&[10], 13, 9)), Err(ControlError::OlderDirectory(node)));
        enter(&mut state, start(&[8, 11], 14, 4)).unwrap();
        // Replicas that it gets from now on count.
        let name = "new".to_owned();
        let made = ControlCommand::CreateKeyspace(kvdb_model::NewKeyspace {
            name,
            partitioning: kvdb_model::Partitioning::Range,
            shards: 1,
            replicas: 1,
            history: None,
            colocated: false,
            redis_db: 0,
        });
        state.apply(&made).result.unwrap();
        let descriptor = &state.map.shards.values().last().unwrap().descriptor;
        assert!(state.map.has_majority(descriptor));
    }

    #[test]
    fn a_start_from_elsewhere_waits_while_the_process_before_it_may_run() {
        let known = StartRecord { number: 1, nonce: 10, synced: 5, place: 1 };
        let elsewhere = |shown, synced| NodeStart { place: 2, ..start(shown, 11, synced) };
        let lately = Heard::Lately { silent_ms: 500 };
        for heard in [lately, Heard::NotKnown] {
            assert_eq!(known.admits(&elsewhere(&[10], 5), heard), Err(NotAccepted::Waits));
            assert_eq!(known.admits(&elsewhere(&[9], 5), heard), Err(NotAccepted::Older));
            assert_eq!(known.admits(&elsewhere(&[10], 4), heard), Err(NotAccepted::Older));
            // The process before it, in the same place, is gone.
            assert_eq!(known.admits(&start(&[10], 11, 5), heard), Ok(()));
            assert_eq!(known.admits(&NodeStart { nonce: 10, ..elsewhere(&[], 5) }, heard), Ok(()));
        }
        assert_eq!(known.admits(&elsewhere(&[10], 5), Heard::NotLately), Ok(()));
        assert_eq!(known.admits(&elsewhere(&[9], 5), Heard::NotLately), Err(NotAccepted::Older));
    }
}
