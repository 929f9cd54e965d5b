//! How the memory of a node is shared out, and how much it takes if nobody says.
//!
//! What is written stays in memory until it is flushed, twice: in a memtable, and in the log from which a
//! follower catches up. Writes wait when twice as much waits for a flush as should. So four times
//! that, the block cache and the latest changes for watchers make up the budget. What a node takes beside
//! it (connections, requests under way, a few KiB a replica) doesn't grow with what is stored.

use std::path::Path;

/// The least that a node works with.
pub const LEAST_MEMORY_BYTES: u64 = 64 << 20;

/// More would make a restart long: what isn't flushed is applied again from the log.
const MOST_UNFLUSHED_BYTES: u64 = 64 << 20;

/// More would serve only watchers that were away for long.
const MOST_CHANGES_BYTES: u64 = 64 << 20;

/// Memory for what grows with use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Written and not flushed, at which the largest memtable is flushed.
    pub(crate) unflushed_bytes: u64,
    /// Blocks of tables.
    pub(crate) cache_bytes: u64,
    /// The latest changes, for watchers.
    pub(crate) changes_bytes: u64,
}

impl Shares {
    /// Of `budget_bytes`, at least [`LEAST_MEMORY_BYTES`].
    pub(crate) fn of(budget_bytes: u64) -> Self {
        let eighth = budget_bytes.max(LEAST_MEMORY_BYTES) / 8;
        let unflushed_bytes = eighth.min(MOST_UNFLUSHED_BYTES);
        let changes_bytes = eighth.min(MOST_CHANGES_BYTES);
        let cache_bytes = eighth * 8 - 4 * unflushed_bytes - changes_bytes;
        Shares { unflushed_bytes, cache_bytes, changes_bytes }
    }
}

/// A quarter of the machine's memory, or of what the control group may use if that is less.
pub fn default_memory_bytes() -> u64 {
    let machine = read("/proc/meminfo").and_then(|text| total_of(&text));
    let group = read("/proc/self/cgroup").and_then(|text| limit_of(&text, read));
    let available = [machine, group].into_iter().flatten().min();
    // Where neither is told, as much as a small machine has.
    available.map_or(512 << 20, |bytes| (bytes / 4).max(LEAST_MEMORY_BYTES))
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn total_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The least limit of the control group that `own` tells of and of those that it is in, read by `read`.
fn limit_of(own: &str, read: impl Fn(String) -> Option<String>) -> Option<u64> {
    let mut least = None::<u64>;
    for line in own.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let (root, file) = match controllers {
            // Version 2 has one hierarchy.
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        for folder in Path::new(path).ancestors().filter_map(Path::to_str) {
            let folder = folder.trim_end_matches('/');
            let limit = read(format!("{root}{folder}/{file}"));
            // `max` is none.
            let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
            least = least.into_iter().chain(limit).min();
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn shares_make_up_the_budget() {
        for budget in [64 * MIB, 448 * MIB, 512 * MIB, 6 << 30] {
            let Shares { unflushed_bytes, cache_bytes, changes_bytes } = Shares::of(budget);
            assert_eq!(4 * unflushed_bytes + cache_bytes + changes_bytes, budget);
            assert!(cache_bytes >= budget / 4, "{budget}");
        }
        assert_eq!(Shares::of(0), Shares::of(LEAST_MEMORY_BYTES));
        assert_eq!(Shares::of(6 << 30).unflushed_bytes, 64 * MIB);
    }

    #[test]
    fn the_machine_s_memory_is_read() {
        assert_eq!(total_of("MemTotal:       25165824 kB\nMemFree: 1 kB\n"), Some(24 << 30));
        assert_eq!(total_of("MemFree: 1 kB\n"), None);
        assert!(default_memory_bytes() >= LEAST_MEMORY_BYTES);
    }

    #[test]
    fn the_least_limit_of_the_groups_around_counts() {
        let files = |path: String| match path.as_str() {
            "/sys/fs/cgroup/pods/one/memory.max" => Some("max\n".to_owned()),
            "/sys/fs/cgroup/pods/memory.max" => Some("536870912\n".to_owned()),
            "/sys/fs/cgroup/memory/old/memory.limit_in_bytes" => Some("1073741824\n".to_owned()),
            _ => None,
        };
        assert_eq!(limit_of("0::/pods/one\n", files), Some(512 * MIB));
        assert_eq!(limit_of("4:cpu:/old\n7:memory:/old\n", files), Some(1024 * MIB));
        assert_eq!(limit_of("0::/other\n", files), None);
        assert_eq!(limit_of("nonsense\n", files), None);
    }
}
