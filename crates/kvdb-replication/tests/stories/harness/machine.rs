//! A state machine that is as simple as can be: a list of words, and the shard's descriptor.

use bytes::Bytes;
use kvdb_model::codec::Reader;
use kvdb_model::{
    EntryCommand, EntryKind, EntryPayload, LogEntry, LogPosition, ShardDescriptor, TimeMark,
    Version, VolumeId,
};
use kvdb_replication::ConfOutcome;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
pub struct State {
    pub applied: LogPosition,
    pub descriptor: ShardDescriptor,
    pub last_version: Version,
    /// By how much shard time was put forward.
    pub jumped_ms: u64,
    pub words: Vec<String>,
    /// The index of the last entry with words in it.
    pub last_write: u64,
}

impl State {
    pub fn born(birth: &Bytes, start: LogPosition) -> Self {
        let descriptor = ShardDescriptor::decode(&mut Reader::new(birth.clone())).unwrap();
        State {
            applied: start,
            descriptor,
            last_version: Version::ZERO,
            jumped_ms: 0,
            words: Vec::new(),
            last_write: 0,
        }
    }

    pub fn time(&self) -> TimeMark {
        TimeMark { version: self.last_version, jumped_ms: self.jumped_ms }
    }

    /// Returns what became of it, if it is a membership change.
    pub fn apply(&mut self, entry: &LogEntry) -> Option<ConfOutcome> {
        assert_eq!(entry.index, self.applied.index.next(), "entries are applied in order");
        self.applied = LogPosition { index: entry.index, term: entry.term };
        if entry.kind == EntryKind::ConfChange {
            return Some(self.apply_change(entry));
        }
        if entry.data.is_empty() {
            return None;
        }
        let payload = EntryPayload::decode(entry.data.clone()).unwrap();
        assert!(payload.version > self.last_version, "versions rise");
        let age_ms = self.last_version.millis().saturating_sub(self.jumped_ms);
        self.last_version = payload.last_version();
        self.jumped_ms += payload.jump_ms;
        assert!(payload.version.millis() >= age_ms + self.jumped_ms, "age goes on");
        self.words.extend(payload.commands.into_iter().map(word_of));
        self.last_write = entry.index.0;
        None
    }

    fn apply_change(&mut self, entry: &LogEntry) -> ConfOutcome {
        let next = ShardDescriptor::decode(&mut Reader::new(entry.context.clone())).unwrap();
        let follows = next.membership_epoch == self.descriptor.membership_epoch.next();
        if follows {
            self.descriptor = next;
        }
        ConfOutcome { index: entry.index, descriptor: follows.then(|| self.descriptor.clone()) }
    }
}

/// The words of an entry, for the checks.
pub fn words_in(entry: &LogEntry) -> Vec<String> {
    if entry.kind == EntryKind::ConfChange || entry.data.is_empty() {
        return Vec::new();
    }
    let payload = EntryPayload::decode(entry.data.clone()).unwrap();
    payload.commands.into_iter().map(word_of).collect()
}

pub fn command_of(word: &str) -> Bytes {
    EntryCommand::Control(Bytes::copy_from_slice(word.as_bytes())).to_bytes()
}

fn word_of(command: Bytes) -> String {
    match EntryCommand::decode(command).unwrap() {
        EntryCommand::Control(word) => String::from_utf8(word.to_vec()).unwrap(),
        other => panic!("nobody proposed {other:?}"),
    }
}

/// The engine: volumes in memory, and as they were when they were last flushed.
#[derive(Default)]
pub struct Volumes {
    pub memory: BTreeMap<VolumeId, State>,
    pub flushed: BTreeMap<VolumeId, State>,
    given: u64,
}

impl Volumes {
    pub fn fresh(&mut self) -> VolumeId {
        self.given += 1;
        VolumeId(self.given)
    }

    /// A snapshot arrives: durable at once.
    pub fn ingest(&mut self, state: State) -> VolumeId {
        let volume = self.fresh();
        self.memory.insert(volume, state.clone());
        self.flushed.insert(volume, state);
        volume
    }

    pub fn drop(&mut self, volume: VolumeId) {
        self.memory.remove(&volume);
        self.flushed.remove(&volume);
    }

    pub fn flush(&mut self, volume: VolumeId) {
        self.flushed.insert(volume, self.memory[&volume].clone());
    }
}
