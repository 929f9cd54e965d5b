//! A shard becomes two: metadata only (but for the change history of keyspaces that keep one, of which
//! the child's part is copied), in one batch.
//!
//! Both sides go on in the same volume. The batch that holds the parent's narrower range also
//! holds the child's own records: its state, at the position where every new log starts, and a
//! copy of the request window, so that a retry finds its answer on whichever side its key is now.
//! A flush therefore takes the split as a whole or not at all: after a crash a volume has the
//! child's state exactly if the parent's state in it is past the split.

use crate::apply::ApplyError;
use crate::layout::{all_replicas, kept_under, replica_of, replica_range};
use crate::machine::Machine;
use crate::overlay::Overlay;
use crate::shard::{OpenError, Shard, State};
use kvdb_engine::Snapshot;
use kvdb_model::log::INITIAL_POSITION;
use kvdb_model::planted::{Bug, has};
use kvdb_model::{KeyRange, ReplicaId, ShardDescriptor, SplitPlan, TimeMark, Version};

/// A shard that was split off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Born {
    /// The parent after the split.
    pub parent: ShardDescriptor,
    /// The child.
    pub child: ShardDescriptor,
    /// The child's replica that lives in the volume of the parent's.
    pub replica: ReplicaId,
    /// How far the child's time has come.
    pub time: TimeMark,
}

impl<M: Machine> Shard<M> {
    /// Splits the shard, unless the plan doesn't fit it any more.
    pub(crate) fn apply_split(
        &mut self,
        plan: &SplitPlan,
        version: Version,
        run: &mut Overlay,
    ) -> Result<Option<Born>, ApplyError> {
        let Some((parent, child)) = plan.apply_to(&self.state.descriptor) else { return Ok(None) };
        let own = parent.replica(self.replica).map(|own| own.node_id);
        let Some(replica) = own.and_then(|node| child.replica_on(node)) else { return Ok(None) };
        let replica = replica.replica_id;
        let time = TimeMark { version, ..self.state.time };
        let incarnation = run.changes.incarnation;
        let descriptor = child.clone();
        let state = State { applied: INITIAL_POSITION, time, descriptor, incarnation };
        state.write(replica, &mut run.records);
        if !has(Bug::WindowLostInSplit) {
            self.sessions.copy_to(replica, &mut run.records);
        }
        self.history.copy_to(replica, &child.range, &mut run.history_store(self.replica))?;
        self.state.descriptor = parent.clone();
        Ok(Some(Born { parent, child, replica, time }))
    }
}

/// Whether a volume holds a replica's state.
///
/// # Errors
/// If its record can't be read.
pub fn is_in(snapshot: &dyn Snapshot, replica: ReplicaId) -> Result<bool, OpenError> {
    Ok(State::read(snapshot, replica)?.is_some())
}

/// The replicas whose state is in a volume: id, descriptor and shard time.
///
/// # Errors
/// If a record can't be read.
pub fn replicas_in(
    snapshot: &dyn Snapshot,
) -> Result<Vec<(ReplicaId, ShardDescriptor, TimeMark)>, OpenError> {
    let mut found = Vec::new();
    let mut rest = all_replicas();
    loop {
        let Some(next) = snapshot.scan(&rest, false).next() else { return Ok(found) };
        let Some(replica) = replica_of(&next?.0) else { return Ok(found) };
        if let Some(state) = State::read(snapshot, replica)? {
            found.push((replica, state.descriptor, state.time));
        }
        rest.start = replica_range(replica).end;
    }
}

/// What a replica leaves behind in a volume that others go on using: ranges of engine keys that
/// nobody reads any more.
pub fn left_behind(replica: ReplicaId, range: &KeyRange) -> impl Iterator<Item = KeyRange> {
    kept_under(range).into_iter().chain([replica_range(replica)])
}
