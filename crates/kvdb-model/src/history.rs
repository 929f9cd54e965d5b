//! How much of its past a keyspace keeps for watchers.

use crate::codec::{DecodeError, Reader, Writer};
use serde::{Deserialize, Serialize};

/// Bounds of the change history of each shard of a keyspace. Whichever is reached first counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryLimits {
    /// Changes older than this may be forgotten, in milliseconds of shard time.
    pub max_age_ms: u64,
    /// Bytes of changes a shard. More lets watchers be away for longer, and costs as much disk on
    /// every replica, in snapshots, and time in a split, which copies the child's part of it.
    pub max_bytes: u64,
}

impl HistoryLimits {
    /// What `max_age_ms` may be: a second to thirty days.
    pub const AGES_MS: std::ops::RangeInclusive<u64> = 1000..=30 * 24 * 3_600_000;
    /// What `max_bytes` may be: 1 to 256 MiB.
    pub const SIZES_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=256 << 20;
    /// `max_age_ms` where only the other is given: a day.
    pub const DEFAULT_AGE_MS: u64 = 24 * 3_600_000;
    /// `max_bytes` where only the other is given: 32 MiB.
    pub const DEFAULT_BYTES: u64 = 32 << 20;

    /// What is wrong with it: the field, its value, and what is accepted.
    pub fn problem(&self) -> Option<(&'static str, u64, String)> {
        let Self { max_age_ms: age, max_bytes: bytes } = *self;
        let accepted = |range: std::ops::RangeInclusive<u64>| {
            let (least, most) = range.into_inner();
            format!("{least} to {most}")
        };
        if !Self::AGES_MS.contains(&age) {
            return Some(("history_max_age_ms", age, accepted(Self::AGES_MS)));
        }
        let is_bad = !Self::SIZES_BYTES.contains(&bytes);
        is_bad.then(|| ("history_max_bytes", bytes, accepted(Self::SIZES_BYTES)))
    }
}

/// What was last decided about the history of a keyspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryPolicy {
    /// Rises with each decision, so that a shard that has heard of a later one keeps to it.
    pub revision: u64,
    /// `None`: no history is kept.
    pub limits: Option<HistoryLimits>,
}

impl HistoryPolicy {
    /// Writes it, for records and the log.
    pub fn encode(&self, out: &mut Writer) {
        out.varint(self.revision);
        let limits = self.limits.unwrap_or(HistoryLimits { max_age_ms: 0, max_bytes: 0 });
        out.varint(limits.max_age_ms);
        out.varint(limits.max_bytes);
    }

    /// Reads what [`HistoryPolicy::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let revision = input.varint()?;
        let limits = HistoryLimits { max_age_ms: input.varint()?, max_bytes: input.varint()? };
        let is_on = limits.max_bytes > 0;
        Ok(HistoryPolicy { revision, limits: is_on.then_some(limits) })
    }
}
