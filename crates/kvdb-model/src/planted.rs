//! Bugs planted on purpose, to see that the nets catch them.
//!
//! Only with the feature `planted` can a bug be there, and only on a thread that asked for it:
//! without the feature [`has`] is the constant `false`, and nothing of a bug is compiled.

/// A bug that some product of this kind had, or could have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it; `Bug::what` says it in words")]
pub enum Bug {
    AcknowledgeBeforeSync,
    LeaseWithoutEnd,
    ReadIndexSkipped,
    ReadBeforeApply,
    TransferKeepsLease,
    VoteNotStored,
    TornFrameAccepted,
    RewriteForgetsVote,
    FlushOverstated,
    AppliedAheadOfData,
    WindowLostInSnapshot,
    WindowLostAtRestart,
    WindowForgetsEarly,
    RetryWithoutId,
    ConditionIgnored,
    DeleteLost,
    VersionsFromClockAlone,
    WindowLostInSplit,
    ChildStartsBeforeParent,
    RangeIgnored,
    ParentKeepsRange,
    EmptiedDirectoryTrusted,
    FreedThoughWritten,
    GoneByClockAlone,
    StalledLeaderStays,
    WallClockTrusted,
    FrontClockInIds,
    JumpExpiresIds,
    HiddenByWallClock,
    IncarnationReused,
    LiveElementsFreed,
    DeadElementsRead,
    SpanNotWritten,
    LastElementOutlived,
    ElementTimesLost,
    OlderNonceTaken,
    FramesNotCompared,
    StartNotMute,
    OlderNotFenced,
    FenceForgotten,
    ForOthersTaken,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 35] = [
        Bug::AcknowledgeBeforeSync,
        Bug::LeaseWithoutEnd,
        Bug::ReadIndexSkipped,
        Bug::ReadBeforeApply,
        Bug::TransferKeepsLease,
        Bug::VoteNotStored,
        Bug::TornFrameAccepted,
        Bug::RewriteForgetsVote,
        Bug::FlushOverstated,
        Bug::AppliedAheadOfData,
        Bug::WindowLostInSnapshot,
        Bug::WindowLostAtRestart,
        Bug::WindowForgetsEarly,
        Bug::RetryWithoutId,
        Bug::ConditionIgnored,
        Bug::DeleteLost,
        Bug::VersionsFromClockAlone,
        Bug::WindowLostInSplit,
        Bug::ChildStartsBeforeParent,
        Bug::RangeIgnored,
        Bug::ParentKeepsRange,
        Bug::EmptiedDirectoryTrusted,
        Bug::FreedThoughWritten,
        Bug::GoneByClockAlone,
        Bug::StalledLeaderStays,
        Bug::WallClockTrusted,
        Bug::FrontClockInIds,
        Bug::JumpExpiresIds,
        Bug::HiddenByWallClock,
        Bug::IncarnationReused,
        Bug::LiveElementsFreed,
        Bug::DeadElementsRead,
        Bug::SpanNotWritten,
        Bug::LastElementOutlived,
        Bug::ElementTimesLost,
    ];

    /// Those that only stories with copies of directories can show; no story has them yet.
    pub const OF_COPIES: [Bug; 6] = [
        Bug::OlderNonceTaken,
        Bug::FramesNotCompared,
        Bug::StartNotMute,
        Bug::OlderNotFenced,
        Bug::FenceForgotten,
        Bug::ForOthersTaken,
    ];

    /// What is wrong, in a few words.
    pub fn what(self) -> &'static str {
        match self {
            Bug::AcknowledgeBeforeSync => "entries and votes count before they are synced",
            Bug::LeaseWithoutEnd => "a read lease never ends within its term",
            Bug::ReadIndexSkipped => "reads are served without asking a quorum",
            Bug::ReadBeforeApply => "reads don't wait for what is committed to be applied",
            Bug::TransferKeepsLease => "a leader keeps its lease while it hands over",
            Bug::VoteNotStored => "a vote isn't in what is stored of it",
            Bug::TornFrameAccepted => "the log takes frames whose checksum is wrong",
            Bug::RewriteForgetsVote => "freeing a log segment forgets term and vote",
            Bug::FlushOverstated => "the log is cut up to what is applied, not flushed",
            Bug::AppliedAheadOfData => "the applied index is written ahead of its data",
            Bug::WindowLostInSnapshot => "a snapshot leaves the deduplication table out",
            Bug::WindowLostAtRestart => "the deduplication table is empty after a restart",
            Bug::WindowForgetsEarly => "an answer is forgotten as soon as it is given",
            Bug::RetryWithoutId => "a retry goes out under an id of its own",
            Bug::ConditionIgnored => "a condition on a write isn't looked at",
            Bug::DeleteLost => "a delete is acknowledged and not done",
            Bug::VersionsFromClockAlone => "a new leader's versions may be below its log's",
            Bug::WindowLostInSplit => "a split leaves the deduplication table out of the child",
            Bug::RangeIgnored => "what an old map has routed is taken",
            Bug::ParentKeepsRange => "a split leaves the parent its whole range",
            Bug::EmptiedDirectoryTrusted => {
                "a coordinator that has lost its directory votes as if it hadn't"
            }
            Bug::FreedThoughWritten => "what had expired is freed though it was written again",
            Bug::GoneByClockAlone => "a key is gone by the clock of one leader alone",
            Bug::StalledLeaderStays => "a leader whose log hangs doesn't hand over",
            Bug::WallClockTrusted => "a leader makes versions from its own wall clock",
            Bug::FrontClockInIds => "a front makes request ids by its own wall clock",
            Bug::JumpExpiresIds => "a request id ends because shard time was put forward",
            Bug::HiddenByWallClock => "a read hides what has expired by its wall clock",
            Bug::IncarnationReused => "a collection gets the number of an earlier life",
            Bug::LiveElementsFreed => "elements are freed whatever life they are of",
            Bug::DeadElementsRead => "a read of elements takes those of an earlier life",
            Bug::SpanNotWritten => "a list's directory isn't told of elements that were added",
            Bug::LastElementOutlived => "a key stays when its last element expires",
            Bug::ElementTimesLost => "when elements expire isn't in what is stored of a key",
            Bug::OlderNonceTaken => "the nonce that a directory shows isn't compared",
            Bug::FramesNotCompared => "how far a log is synced isn't compared",
            Bug::StartNotMute => "a node that starts takes part before anybody vouches for it",
            Bug::OlderNotFenced => "a second process takes part before the older one is fenced",
            Bug::FenceForgotten => "a restart forgets which starts of others are turned away",
            Bug::ForOthersTaken => "what is said to another node is taken",
            Bug::ChildStartsBeforeParent => {
                "after a restart a child starts before its parent's log"
            }
        }
    }
}

/// Whether this bug is there.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn has(_bug: Bug) -> bool {
    false
}

#[cfg(feature = "planted")]
mod planting {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Whether this bug is there, on this thread.
    pub fn has(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Plants a bug on this thread, or none.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }
}

#[cfg(feature = "planted")]
pub use planting::{has, plant};
