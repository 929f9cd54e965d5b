//! The cluster state machine, as the shard applies it.

use crate::view::View;
use bytes::Bytes;
use kvdb_control::{ControlCommand, ControlState, encode_result};
use kvdb_model::Version;
use kvdb_store::{ControlOutcome, Machine};
use std::sync::Arc;

pub(crate) struct ControlMachine {
    state: ControlState,
    view: Arc<View>,
}

impl ControlMachine {
    pub(crate) fn new(view: Arc<View>) -> Self {
        ControlMachine { state: ControlState::default(), view }
    }
}

impl Machine for ControlMachine {
    fn load(&mut self, key: &Bytes, value: &Bytes) -> Result<(), String> {
        self.state.load(key, value)
    }

    fn loaded(&mut self) {
        self.view.publish(self.state.clone(), None);
    }

    fn clear(&mut self) {
        self.state = ControlState::default();
    }

    fn apply(&mut self, command: &Bytes, _version: Version) -> ControlOutcome {
        let applied = match ControlCommand::decode(command) {
            Ok(command) => self.state.apply(&command),
            Err(error) => {
                return ControlOutcome { result: encode_result(&Err(error)), changes: vec![] };
            }
        };
        self.view.publish(self.state.clone(), applied.delta);
        ControlOutcome { result: encode_result(&applied.result), changes: applied.records }
    }
}
