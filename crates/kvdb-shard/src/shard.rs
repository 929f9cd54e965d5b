//! One replica's state machine: what it is, and how it comes back after a restart.

use crate::layout::{CONTROL, kind_range, state_key, suffix_of};
use crate::machine::Machine;
use crate::sessions::{LoadError, SessionLimits, Sessions};
use bytes::Bytes;
use kvdb_engine::{Engine, EngineError, Snapshot};
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::{
    LogIndex, LogPosition, ReplicaId, ShardDescriptor, ShardId, Term, Version, VolumeId,
};
use std::sync::Arc;
use thiserror::Error;

/// The replica's own record: everything about it that isn't data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) applied: LogPosition,
    pub(crate) last_version: Version,
    pub(crate) descriptor: ShardDescriptor,
}

impl State {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Writer::new();
        out.u8(1);
        out.u64(self.applied.index.0);
        out.u64(self.applied.term.0);
        out.u64(self.last_version.0);
        self.descriptor.encode(&mut out);
        let crc = crc32c::crc32c(out.as_slice());
        out.u32(crc);
        out.finish()
    }

    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let Some(content) = bytes.len().checked_sub(4) else {
            return Err(DecodeError::Truncated { missing: 4 });
        };
        let stored = Reader::new(bytes.slice(content..)).u32()?;
        if stored != crc32c::crc32c(&bytes[..content]) {
            return Err(DecodeError::NumberOutOfRange);
        }
        let mut input = Reader::new(bytes.slice(..content));
        input.version("replica state", 1)?;
        let state = State {
            applied: LogPosition { index: LogIndex(input.u64()?), term: Term(input.u64()?) },
            last_version: Version(input.u64()?),
            descriptor: ShardDescriptor::decode(&mut input)?,
        };
        input.end()?;
        Ok(state)
    }

    pub(crate) fn read(
        snapshot: &dyn Snapshot,
        replica: ReplicaId,
    ) -> Result<Option<Self>, OpenError> {
        match snapshot.get(&state_key(replica))? {
            Some(bytes) => Ok(Some(State::decode(&bytes)?)),
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
    /// A record of the replica is damaged or of an unknown version.
    #[error("a record of the replica can't be read: {0}")]
    Record(#[from] DecodeError),
    /// The coordinators' state machine refused a record.
    #[error("a control record can't be read: {0}")]
    Control(String),
}

impl From<LoadError> for OpenError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Engine(error) => OpenError::Engine(error),
            LoadError::Decode(error) => OpenError::Record(error),
        }
    }
}

/// One replica of one shard.
pub struct Shard<M> {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) replica: ReplicaId,
    pub(crate) volume: VolumeId,
    pub(crate) state: State,
    pub(crate) sessions: Sessions,
    pub(crate) machine: M,
}

impl<M: Machine> Shard<M> {
    /// Opens a replica in its volume. Where nothing of it was flushed before a crash, it is as it
    /// was born: `birth` is the descriptor, `start` the position.
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
            None => State {
                applied: start,
                last_version: Version::ZERO,
                descriptor: ShardDescriptor::decode(&mut Reader::new(birth.clone()))?,
            },
        };
        let sessions = Sessions::load(SessionLimits::default(), &*snapshot, replica)?;
        machine.clear();
        for item in snapshot.scan(&kind_range(replica, CONTROL), false) {
            let (key, value) = item?;
            machine.load(&suffix_of(&key), &value).map_err(OpenError::Control)?;
        }
        machine.loaded();
        drop(snapshot);
        Ok(Shard { engine, replica, volume, state, sessions, machine })
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
        self.state.last_version
    }

    /// As of the last entry applied.
    pub fn descriptor(&self) -> &ShardDescriptor {
        &self.state.descriptor
    }

    /// The coordinators' state machine.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// Takes the machine out, for the replica's next life in another volume.
    pub fn into_machine(self) -> M {
        self.machine
    }

    /// A consistent view of the volume as of now.
    ///
    /// # Errors
    /// If the volume is gone.
    pub fn engine_snapshot(&self) -> Result<Box<dyn Snapshot>, EngineError> {
        self.engine.snapshot(self.volume)
    }
}
