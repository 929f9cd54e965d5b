//! Between raft's protobuf types and the model's.

use kvdb_model::{EntryKind, HardState, LogEntry, LogIndex, ReplicaId, Term};
use raft::eraftpb;

pub(crate) fn entry_to_model(entry: &eraftpb::Entry) -> LogEntry {
    LogEntry {
        index: LogIndex(entry.index),
        term: Term(entry.term),
        kind: match entry.get_entry_type() {
            eraftpb::EntryType::EntryNormal => EntryKind::Normal,
            eraftpb::EntryType::EntryConfChange | eraftpb::EntryType::EntryConfChangeV2 => {
                EntryKind::ConfChange
            }
        },
        data: entry.data.clone(),
        context: entry.context.clone(),
    }
}

pub(crate) fn entry_to_raft(entry: &LogEntry) -> eraftpb::Entry {
    let mut out = eraftpb::Entry::default();
    out.index = entry.index.0;
    out.term = entry.term.0;
    out.set_entry_type(match entry.kind {
        EntryKind::Normal => eraftpb::EntryType::EntryNormal,
        EntryKind::ConfChange => eraftpb::EntryType::EntryConfChangeV2,
    });
    out.data = entry.data.clone();
    out.context = entry.context.clone();
    out
}

pub(crate) fn hard_state_to_model(state: &eraftpb::HardState) -> HardState {
    HardState {
        term: Term(state.term),
        vote: ReplicaId(state.vote),
        commit: LogIndex(state.commit),
    }
}

pub(crate) fn hard_state_to_raft(state: &HardState) -> eraftpb::HardState {
    let mut out = eraftpb::HardState::default();
    out.term = state.term.0;
    out.vote = state.vote.0;
    out.commit = state.commit.0;
    out
}
