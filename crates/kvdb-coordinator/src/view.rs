//! The cluster state as applied here, for whoever reads or watches it.

use kvdb_control::{ControlState, History, Since};
use kvdb_model::{MapDelta, MapVersion};
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use tokio::sync::watch;

const MOST_DELTAS: usize = 10_000;
const MOST_CHANGES: usize = 50_000;

/// Published by the apply thread.
pub(crate) struct View {
    state: RwLock<Arc<ControlState>>,
    history: Mutex<History>,
    version: watch::Sender<u64>,
}

impl Default for View {
    fn default() -> Self {
        View {
            state: RwLock::default(),
            history: Mutex::new(History::new(MOST_DELTAS, MOST_CHANGES)),
            version: watch::Sender::new(0),
        }
    }
}

impl View {
    pub(crate) fn state(&self) -> Arc<ControlState> {
        self.state.read().clone()
    }

    pub(crate) fn publish(&self, state: ControlState, delta: Option<MapDelta>) {
        let version = state.map().version;
        if let Some(delta) = delta {
            self.history.lock().push(Arc::new(delta));
        }
        *self.state.write() = Arc::new(state);
        self.version.send_replace(version.0);
    }

    /// Changes with each map version.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub(crate) fn since(&self, version: MapVersion) -> (Since, Arc<ControlState>) {
        let history = self.history.lock();
        let state = self.state();
        (history.since(version, state.map().version), state)
    }
}
