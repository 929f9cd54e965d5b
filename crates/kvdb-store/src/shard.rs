//! One replica's state machine: what it is, and how it comes back after a restart.

use crate::history::History;
use crate::layout::{Kind, kind_range, record_key, suffix_of};
use crate::machine::Machine;
use crate::record::RecordDamage;
use crate::seal::{seal, unseal};
use crate::sessions::{SessionLimits, Sessions};
use bytes::Bytes;
use kvdb_engine::{Batch, Engine, EngineError, Snapshot};
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::{
    HistoryPolicy, LogIndex, LogPosition, ReplicaId, ShardDescriptor, ShardId, Term, TimeMark,
    Version, VolumeId,
};
use std::sync::Arc;
use thiserror::Error;

/// The replica's own record: everything about it that isn't data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) applied: LogPosition,
    pub(crate) time: TimeMark,
    pub(crate) descriptor: ShardDescriptor,
    /// The last one given to a collection that has elements; 0 if there never was any here.
    pub(crate) incarnation: u64,
}

impl State {
    /// The shard's age at a version, as a version: see [`kvdb_model::time`].
    pub(crate) fn age_at(&self, version: Version) -> Version {
        Version(version.0.saturating_sub(Version::from_millis(self.time.jumped_ms).0))
    }

    fn encode(&self) -> Bytes {
        let mut out = Writer::with_capacity(128);
        out.u8(3);
        out.u64(self.applied.index.0);
        out.u64(self.applied.term.0);
        out.u64(self.time.version.0);
        out.u64(self.time.jumped_ms);
        out.varint(self.incarnation);
        self.descriptor.encode(&mut out);
        out.finish()
    }

    fn decode(content: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(content);
        input.version("replica state", 3)?;
        let state = State {
            applied: LogPosition { index: LogIndex(input.u64()?), term: Term(input.u64()?) },
            time: TimeMark { version: Version(input.u64()?), jumped_ms: input.u64()? },
            incarnation: input.varint()?,
            descriptor: ShardDescriptor::decode(&mut input)?,
        };
        input.end()?;
        Ok(state)
    }

    pub(crate) fn write(&self, replica: ReplicaId, batch: &mut Batch) {
        let key = record_key(replica, Kind::State, &[]);
        batch.put(key, seal(Kind::State, &[], &self.encode()));
    }

    /// The state of a replica as of an engine snapshot, if it is in that volume.
    pub(crate) fn read(
        snapshot: &dyn Snapshot,
        replica: ReplicaId,
    ) -> Result<Option<Self>, OpenError> {
        let key = record_key(replica, Kind::State, &[]);
        match snapshot.get(&key)? {
            Some(stored) => Ok(Some(State::decode(unseal(Kind::State, &key, &stored)?)?)),
            None => Ok(None),
        }
    }
}

/// Why a replica's state can't be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A record of the replica is damaged.
    #[error(transparent)]
    Damage(#[from] RecordDamage),
    /// A record of the replica, or the descriptor it was born with, is of an unknown version.
    #[error("a record of the replica can't be read: {0}")]
    Record(#[from] DecodeError),
    /// The coordinators' state machine refused a record.
    #[error("a control record can't be read: {0}")]
    Control(String),
}

/// One replica of one shard. Owned by the apply thread; reads go through engine snapshots.
pub struct Shard<M> {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) replica: ReplicaId,
    pub(crate) volume: VolumeId,
    pub(crate) state: State,
    pub(crate) sessions: Sessions,
    pub(crate) history: History,
    pub(crate) machine: M,
}

impl<M: Machine> Shard<M> {
    /// Opens a replica in its volume. Where the volume has nothing of it (it was just made, or
    /// nothing was flushed before a crash) it is as it was born: `birth` is the encoded
    /// descriptor, `start` the position; its state is then written, so that reads find it.
    /// All control records are fed to `machine`, which is cleared first.
    ///
    /// # Errors
    /// If the volume is gone or damaged, or `birth` is needed and unreadable.
    pub fn open(
        engine: Arc<dyn Engine>,
        replica: ReplicaId,
        volume: VolumeId,
        birth: &Bytes,
        start: LogPosition,
        mut machine: M,
    ) -> Result<Self, OpenError> {
        let snapshot = engine.snapshot(volume)?;
        let state = match State::read(&*snapshot, replica)? {
            Some(state) => state,
            None => born(&*engine, replica, volume, birth, start)?,
        };
        let sessions = Sessions::load(SessionLimits::default(), &*snapshot, replica)?;
        let history = History::load(&*snapshot, replica)?;
        machine.clear();
        for item in snapshot.scan(&kind_range(replica, Kind::Control), false) {
            let (key, stored) = item?;
            let value = unseal(Kind::Control, &key, &stored)?;
            machine.load(&suffix_of(&key), &value).map_err(OpenError::Control)?;
        }
        machine.loaded();
        drop(snapshot);
        Ok(Shard { engine, replica, volume, state, sessions, history, machine })
    }

    /// The replica.
    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// Its shard.
    pub fn shard_id(&self) -> ShardId {
        self.state.descriptor.shard_id
    }

    /// Where it lives.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// The last entry applied.
    pub fn applied(&self) -> LogPosition {
        self.state.applied
    }

    /// Shard time: the highest version applied.
    pub fn last_version(&self) -> Version {
        self.state.time.version
    }

    /// How far its time has come.
    pub fn time(&self) -> TimeMark {
        self.state.time
    }

    /// As of the last entry applied.
    pub fn descriptor(&self) -> &ShardDescriptor {
        &self.state.descriptor
    }

    /// What was last decided about its change history, as applied.
    pub fn history_policy(&self) -> HistoryPolicy {
        self.history.policy()
    }

    /// The coordinators' state machine.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// Takes the machine out, for the replica's next life in another volume.
    pub fn into_machine(self) -> M {
        self.machine
    }

    /// Puts another descriptor in the place of the shard's own, beside its log: only for a replica
    /// that begins a life of its own from what another has left. Durable with the next flush.
    ///
    /// # Errors
    /// An i/o error, or if the volume is gone.
    pub fn redescribe(&mut self, descriptor: ShardDescriptor) -> Result<(), EngineError> {
        self.state.descriptor = descriptor;
        let mut batch = Batch::default();
        self.state.write(self.replica, &mut batch);
        self.engine.write(self.volume, batch).map(|_| ())
    }

    /// A consistent view of the volume as of now.
    ///
    /// # Errors
    /// If the volume is gone.
    pub fn engine_snapshot(&self) -> Result<Box<dyn Snapshot>, EngineError> {
        self.engine.snapshot(self.volume)
    }
}

fn born(
    engine: &dyn Engine,
    replica: ReplicaId,
    volume: VolumeId,
    birth: &Bytes,
    start: LogPosition,
) -> Result<State, OpenError> {
    let mut input = Reader::new(birth.clone());
    let descriptor = ShardDescriptor::decode(&mut input)?;
    input.end()?;
    let state = State { applied: start, time: TimeMark::default(), descriptor, incarnation: 0 };
    let mut batch = Batch::default();
    state.write(replica, &mut batch);
    engine.write(volume, batch)?;
    Ok(state)
}
