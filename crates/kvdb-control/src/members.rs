//! The coordinators themselves: who they are, where, and with which data directory.
//!
//! The record of a coordinator says who is *wanted*; the descriptor of their group says who votes.
//! Whoever leads brings the second in line with the first. A number is never given twice, and it
//! belongs to one data directory for ever: one that comes back with an emptied directory has
//! forgotten its votes.

use crate::alone::{MOST_COORDINATOR_ID, replica_in};
use crate::command::{ControlError, ControlResponse};
use crate::report::check_address;
use crate::state::ControlState;
use kvdb_model::{NodeId, Replica, ReplicaId, Role};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// More of them only make each decision slower.
pub const MOST_COORDINATORS: usize = 9;

/// One coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorRecord {
    /// Its gRPC address.
    pub address: String,
    /// Made with its data directory.
    pub token: u128,
    /// It is gone, and its number stays taken.
    pub is_removed: bool,
}

/// Coordinators by number.
pub type Coordinators = BTreeMap<NodeId, CoordinatorRecord>;

/// A coordinator's replica of the group has its number, until the group is recovered.
pub(crate) fn voter(id: NodeId) -> Replica {
    Replica { node_id: id, replica_id: ReplicaId(id.0), role: Role::Voter }
}

impl ControlState {
    /// All coordinators that there are or were; empty until the group has been founded.
    pub fn coordinators(&self) -> &Coordinators {
        &self.coordinators
    }

    /// The group as it is wanted: a voter for each coordinator that isn't removed.
    pub fn wanted_coordinators(&self) -> Vec<Replica> {
        let wanted = self.coordinators.iter().filter(|(_, record)| !record.is_removed);
        wanted.map(|(id, _)| replica_in(&self.map.generation, *id)).collect()
    }

    /// Where they are.
    pub fn coordinator_addresses(&self) -> Vec<String> {
        let present = self.coordinators.values().filter(|record| !record.is_removed);
        present.map(|record| record.address.clone()).collect()
    }

    pub(crate) fn found(&mut self, founders: &Coordinators) -> ControlResponse {
        // The first one counts.
        if self.coordinators.is_empty() {
            self.coordinators.clone_from(founders);
        }
        ControlResponse::Done(self.map.version)
    }

    pub(crate) fn add_coordinator(
        &mut self,
        id: NodeId,
        address: &str,
        token: u128,
    ) -> Result<ControlResponse, ControlError> {
        check_address(address)?;
        if id.0 == 0 {
            return Err(ControlError::OutOfRange {
                field: "id".to_owned(),
                value: 0,
                accepted: "at least 1".to_owned(),
            });
        }
        if id.0 > MOST_COORDINATOR_ID {
            return Err(ControlError::OutOfRange {
                field: "id".to_owned(),
                value: id.0,
                accepted: format!("at most {MOST_COORDINATOR_ID}"),
            });
        }
        if self.coordinators.is_empty() {
            return Err(ControlError::NotFounded);
        }
        match self.coordinators.get(&id) {
            Some(known) if known.is_removed => return Err(ControlError::CoordinatorRemoved(id)),
            Some(known) if known.token == token && known.address == address => {
                return Err(ControlError::NothingToDo(format!(
                    "coordinator {id} is there already"
                )));
            }
            Some(_) => return Err(ControlError::CoordinatorExists(id)),
            None => {}
        }
        let present = || self.coordinators.iter().filter(|(_, record)| !record.is_removed);
        // 0 is a token that nobody knows.
        let same = |record: &CoordinatorRecord| {
            record.address == address || token != 0 && record.token == token
        };
        if let Some((other, _)) = present().find(|(_, record)| same(record)) {
            return Err(ControlError::CoordinatorExists(*other));
        }
        if present().count() >= MOST_COORDINATORS {
            return Err(ControlError::OutOfRange {
                field: "the number of coordinators".to_owned(),
                value: MOST_COORDINATORS as u64 + 1,
                accepted: format!("at most {MOST_COORDINATORS}"),
            });
        }
        let record = CoordinatorRecord { address: address.to_owned(), token, is_removed: false };
        self.coordinators.insert(id, record);
        Ok(ControlResponse::Done(self.map.version))
    }

    /// It has moved. Whoever held the address before is where it says itself.
    pub(crate) fn set_coordinator_address(
        &mut self,
        id: NodeId,
        address: &str,
    ) -> Result<ControlResponse, ControlError> {
        check_address(address)?;
        let record = self.coordinators.get_mut(&id).ok_or(ControlError::UnknownCoordinator(id))?;
        if record.is_removed {
            return Err(ControlError::CoordinatorRemoved(id));
        }
        address.clone_into(&mut record.address);
        Ok(ControlResponse::Done(self.map.version))
    }

    pub(crate) fn remove_coordinator(
        &mut self,
        id: NodeId,
    ) -> Result<ControlResponse, ControlError> {
        let present = self.coordinators.values().filter(|record| !record.is_removed).count();
        let record = self.coordinators.get_mut(&id).ok_or(ControlError::UnknownCoordinator(id))?;
        if record.is_removed {
            let why = format!("coordinator {id} was removed already");
            return Err(ControlError::NothingToDo(why));
        }
        if present == 1 {
            return Err(ControlError::LastCoordinator(id));
        }
        record.is_removed = true;
        Ok(ControlResponse::Done(self.map.version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::ControlCommand;

    fn founded() -> ControlState {
        let founder = |id: u64| {
            let address = format!("127.0.0.1:{}", 7100 + id);
            (NodeId(id), CoordinatorRecord { address, token: id.into(), is_removed: false })
        };
        let mut state = ControlState::default();
        let command =
            ControlCommand::FoundCoordinators { founders: (1..=3).map(founder).collect() };
        state.apply(&command).result.unwrap();
        state
    }

    fn add(state: &mut ControlState, id: u64, port: u16) -> Result<(), ControlError> {
        let command = ControlCommand::AddCoordinator {
            id: NodeId(id),
            address: format!("127.0.0.1:{port}"),
            token: u128::from(port),
        };
        state.apply(&command).result.map(|_| ())
    }

    fn remove(state: &mut ControlState, id: u64) -> Result<(), ControlError> {
        let command = ControlCommand::RemoveCoordinator { id: NodeId(id) };
        state.apply(&command).result.map(|_| ())
    }

    fn wanted(state: &ControlState) -> Vec<u64> {
        state.wanted_coordinators().iter().map(|replica| replica.node_id.0).collect()
    }

    #[test]
    fn a_group_is_founded_once() {
        let mut state = founded();
        let other = ControlCommand::FoundCoordinators { founders: BTreeMap::new() };
        state.apply(&other).result.unwrap();
        assert_eq!(wanted(&state), [1, 2, 3]);
    }

    #[test]
    fn a_number_or_an_address_is_never_given_twice() {
        let mut state = founded();
        assert_eq!(add(&mut state, 3, 7104), Err(ControlError::CoordinatorExists(NodeId(3))));
        assert_eq!(add(&mut state, 4, 7103), Err(ControlError::CoordinatorExists(NodeId(3))));
        add(&mut state, 4, 7104).unwrap();
        assert!(matches!(add(&mut state, 4, 7104), Err(ControlError::NothingToDo(_))));
        remove(&mut state, 3).unwrap();
        assert_eq!(wanted(&state), [1, 2, 4]);
        assert_eq!(add(&mut state, 3, 7103), Err(ControlError::CoordinatorRemoved(NodeId(3))));
        // The address is free again for another number.
        add(&mut state, 5, 7103).unwrap();
        assert_eq!(wanted(&state), [1, 2, 4, 5]);
    }

    #[test]
    fn one_coordinator_stays_and_nine_are_enough() {
        let mut state = founded();
        remove(&mut state, 1).unwrap();
        assert!(matches!(remove(&mut state, 1), Err(ControlError::NothingToDo(_))));
        remove(&mut state, 2).unwrap();
        assert_eq!(remove(&mut state, 3), Err(ControlError::LastCoordinator(NodeId(3))));
        assert_eq!(remove(&mut state, 8), Err(ControlError::UnknownCoordinator(NodeId(8))));
        for id in 4..12 {
            add(&mut state, id, 7200 + id as u16).unwrap();
        }
        assert!(matches!(add(&mut state, 20, 7300), Err(ControlError::OutOfRange { .. })));
        assert!(matches!(add(&mut state, 0, 7300), Err(ControlError::OutOfRange { .. })));
    }

    #[test]
    fn a_coordinator_that_has_moved_is_where_it_was_found() {
        let mut state = founded();
        let mut set = |id, address: &str| {
            let (id, address) = (NodeId(id), address.to_owned());
            state.apply(&ControlCommand::SetCoordinatorAddress { id, address }).result
        };
        set(2, "127.0.0.1:7103").unwrap();
        set(3, "elsewhere:7103").unwrap();
        assert_eq!(set(8, "a:1"), Err(ControlError::UnknownCoordinator(NodeId(8))));
        assert_eq!(set(2, "nowhere"), Err(ControlError::BadAddress("nowhere".to_owned())));
        let addresses = ["127.0.0.1:7101", "127.0.0.1:7103", "elsewhere:7103"];
        assert_eq!(state.coordinator_addresses(), addresses);
    }

    #[test]
    fn a_group_that_was_never_founded_takes_nobody() {
        let mut state = ControlState::default();
        assert_eq!(add(&mut state, 4, 7104), Err(ControlError::NotFounded));
    }
}
