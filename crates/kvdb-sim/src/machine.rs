//! The state machine beside the data: the cluster's on coordinators, none on nodes.

use bytes::Bytes;
use kvdb_control::{ControlCommand, ControlState, History, Since, encode_result};
use kvdb_model::{MapDelta, MapVersion, ShardMap, Version};
use kvdb_store::{ControlOutcome, Machine};
use std::sync::{Arc, Mutex, PoisonError};

const MOST_DELTAS: usize = 16;
const MOST_CHANGES: usize = 200;

/// The cluster's state as a coordinator has applied it, with the deltas that watchers get.
pub(crate) struct ControlView {
    pub(crate) state: ControlState,
    history: History,
}

impl Default for ControlView {
    fn default() -> Self {
        let history = History::new(MOST_DELTAS, MOST_CHANGES);
        ControlView { state: ControlState::default(), history }
    }
}

/// What a watcher is told.
#[derive(Clone, Debug)]
pub(crate) enum News {
    Deltas(Vec<Arc<MapDelta>>),
    Snapshot(Box<ShardMap>),
}

impl ControlView {
    pub(crate) fn since(&self, version: MapVersion) -> News {
        match self.history.since(version, self.state.map().version) {
            Since::Deltas(deltas) => News::Deltas(deltas),
            Since::Snapshot => News::Snapshot(Box::new(self.state.map().clone())),
        }
    }
}

/// Shared between the machine, which changes it, and its process, which serves from it.
#[derive(Clone, Default)]
pub(crate) struct SharedControl(Arc<Mutex<ControlView>>);

impl SharedControl {
    pub(crate) fn with<R>(&self, look: impl FnOnce(&mut ControlView) -> R) -> R {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A coordinator's or a node's.
pub(crate) enum SimMachine {
    Control(SharedControl),
    Data,
}

impl Machine for SimMachine {
    fn load(&mut self, key: &Bytes, value: &Bytes) -> Result<(), String> {
        match self {
            SimMachine::Control(control) => control.with(|view| view.state.load(key, value)),
            SimMachine::Data => Err("a data shard holds a control record".to_owned()),
        }
    }

    fn clear(&mut self) {
        if let SimMachine::Control(control) = self {
            control.with(|view| *view = ControlView::default());
        }
    }

    fn apply(&mut self, command: &Bytes, _version: Version) -> ControlOutcome {
        let SimMachine::Control(control) = self else { return ControlOutcome::default() };
        let applied = match ControlCommand::decode(command) {
            Ok(command) => control.with(|view| view.state.apply(&command)),
            Err(error) => {
                return ControlOutcome { result: encode_result(&Err(error)), changes: vec![] };
            }
        };
        if let Some(delta) = applied.delta {
            control.with(|view| view.history.push(Arc::new(delta)));
        }
        ControlOutcome { result: encode_result(&applied.result), changes: applied.records }
    }
}
