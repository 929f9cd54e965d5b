//! Reaching the coordinators: whichever leads, through hints.

use kvdb_model::Refusal;
use kvdb_wire::proto::coordinator_client::CoordinatorClient;
use kvdb_wire::{refusal_from_status, transport};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Longest that one try at one coordinator takes.
const TRY: Duration = Duration::from_secs(5);

/// The coordinators of a cluster. Clones share connections and what is known of the leader.
#[derive(Clone)]
pub struct Coordinators {
    shared: Arc<Shared>,
}

struct Shared {
    /// As configured.
    addresses: Vec<String>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// As they have told.
    told: Vec<String>,
    /// Those that there are, as they have told, and then those that were configured.
    all: Vec<String>,
    /// The one to ask next.
    current: usize,
    /// Not among the addresses, but named as leader.
    hinted: Option<String>,
    channels: HashMap<String, Channel>,
}

impl State {
    fn current_address(&self) -> Option<String> {
        self.all.get(self.current % self.all.len().max(1)).cloned()
    }
}

impl Coordinators {
    /// The coordinators at these addresses.
    pub fn new(addresses: Vec<String>) -> Self {
        let state = State { all: addresses.clone(), ..State::default() };
        Coordinators { shared: Arc::new(Shared { addresses, state: Mutex::new(state) }) }
    }

    /// Where they are, as they have told; empty until then.
    pub fn told(&self) -> Vec<String> {
        self.shared.state.lock().told.clone()
    }

    /// They have told where they are. They may be others than those that were configured.
    pub fn learn(&self, told: Vec<String>) {
        let configured = self.shared.addresses.iter().filter(|known| !told.contains(known));
        let configured: Vec<String> = configured.cloned().collect();
        let mut locked = self.shared.state.lock();
        let state = &mut *locked;
        if state.told == told {
            return;
        }
        state.told.clone_from(&told);
        let current = state.current_address();
        state.all = told.into_iter().chain(configured).collect();
        state.channels.retain(|address, _| state.all.contains(address));
        // Whoever was asked stays the one to ask.
        let place =
            current.and_then(|address| state.all.iter().position(|known| *known == address));
        state.current = place.unwrap_or_default();
    }

    /// A client for the one that is thought to lead, and its address.
    ///
    /// # Errors
    /// If its address isn't one.
    pub fn client(&self) -> Result<(String, CoordinatorClient<Channel>), Status> {
        let mut state = self.shared.state.lock();
        let address = state
            .hinted
            .clone()
            .or_else(|| state.current_address())
            .ok_or_else(|| Status::invalid_argument("no coordinators are configured"))?;
        let channel = match state.channels.get(&address) {
            Some(channel) => channel.clone(),
            None => {
                let endpoint = transport::endpoint(&address)
                    .map_err(|error| Status::invalid_argument(error.to_string()))?;
                let channel = endpoint.connect_lazy();
                state.channels.insert(address.clone(), channel.clone());
                channel
            }
        };
        let client = CoordinatorClient::new(channel).max_decoding_message_size(256 * 1024 * 1024);
        Ok((address, client))
    }

    /// One of them has failed: takes its hint, or goes on to the next.
    pub fn failed(&self, address: &str, status: &Status) {
        let hint = match refusal_from_status(status) {
            Some(Refusal::NotLeader { leader_hint, .. }) => leader_hint,
            _ => None,
        };
        let mut state = self.shared.state.lock();
        match hint.filter(|hint| hint != address) {
            Some(hint) => match state.all.iter().position(|known| *known == hint) {
                Some(place) => {
                    state.current = place;
                    state.hinted = None;
                }
                None => state.hinted = Some(hint),
            },
            None => {
                state.hinted = None;
                state.current = (state.current + 1) % state.all.len().max(1);
            }
        }
    }

    /// Calls the leader, trying each coordinator and hint at most a few times.
    ///
    /// # Errors
    /// The last refusal. One that says that the outcome is unknown is not tried again.
    pub async fn call<T, F>(
        &self,
        mut call: impl FnMut(CoordinatorClient<Channel>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut last = Status::unavailable("no coordinator was asked");
        let tries = 2 * self.shared.state.lock().all.len().max(1);
        for _ in 0..tries {
            let (address, client) = self.client()?;
            let result = match tokio::time::timeout(TRY, call(client)).await {
                Ok(result) => result,
                Err(_) => Err(Status::unavailable(format!("coordinator {address} doesn't answer"))),
            };
            match result {
                Ok(answer) => return Ok(answer),
                Err(status) if !elsewhere(&status) => return Err(status),
                Err(status) => {
                    self.failed(&address, &status);
                    last = status;
                }
            }
        }
        Err(last)
    }
}

/// Whether another coordinator may do better.
fn elsewhere(status: &Status) -> bool {
    match refusal_from_status(status) {
        Some(Refusal::NotLeader { .. } | Refusal::ShardUnavailable { .. }) => true,
        // One of another cluster is there where one of ours was, or is thought to be.
        Some(Refusal::InvalidArgument { field: "cluster_id", .. }) => true,
        Some(_) => false,
        // What knows none of these calls is no coordinator.
        None => matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Unimplemented
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::ShardId;
    use kvdb_wire::status_of;

    fn asks(coordinators: &Coordinators) -> String {
        coordinators.client().unwrap().0
    }

    #[tokio::test]
    async fn coordinators_that_are_told_of_are_asked_before_those_of_the_command_line() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        let coordinators = Coordinators::new(names(&["a:1", "b:1"]));
        let gone = Status::unavailable("gone");
        coordinators.failed("a:1", &gone);
        assert_eq!(asks(&coordinators), "b:1");
        // The one that answers stays the one to ask.
        coordinators.learn(names(&["c:1", "b:1"]));
        assert_eq!(asks(&coordinators), "b:1");
        let leader_hint = Some("c:1".to_owned());
        let hint = Refusal::NotLeader { shard_id: ShardId::CONTROL, leader_hint };
        coordinators.failed("b:1", &status_of(&hint));
        assert_eq!(asks(&coordinators), "c:1");
        coordinators.learn(names(&["d:1"]));
        assert_eq!(asks(&coordinators), "d:1");
        coordinators.failed("d:1", &gone);
        assert_eq!(asks(&coordinators), "a:1");
    }
}
