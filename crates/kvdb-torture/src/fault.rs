//! What can be done to a cluster: names, what each needs, how long it lasts, what is promised.

use crate::tools::Tools;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// A node dies (`kill -9`).
    KillNode,
    /// The node that leads a shard dies.
    KillLeader,
    /// A coordinator dies.
    KillCoordinator,
    /// A gateway dies.
    KillGateway,
    /// All coordinators die.
    KillCoordinators,
    /// Every process dies at once.
    KillAll,
    /// A node is stopped and goes on later (`SIGSTOP`, `SIGCONT`).
    PauseNode,
    /// The node that leads a shard is stopped and goes on later.
    PauseLeader,
    /// A coordinator is stopped and goes on later.
    PauseCoordinator,
    /// A node and all others hear nothing of each other.
    Partition,
    /// A node that leads a shard and all others hear nothing of each other.
    PartitionLeader,
    /// What a node sends reaches nobody; it hears the others.
    Mute,
    /// A node hears nobody; what it sends arrives.
    Deaf,
    /// Two nodes hear nothing of each other; everybody else hears both.
    Bridge,
    /// What goes to and from a node is late.
    SlowNetwork,
    /// All connections of a node break.
    Reset,
    /// A node's disk loses everything that wasn't synced, and the node dies.
    PowerCut,
    /// A node's disk has no room left.
    DiskFull,
    /// A node's disk stands still.
    FrozenDisk,
    /// A node's syncs take 0.2 s longer.
    SlowSync,
    /// A node's sync fails once.
    FailedSync,
    /// A node's clock jumps by some seconds.
    ClockJump,
    /// A node gets no more memory than it has, but for a little.
    MemoryLimit,
    /// A bit of a node's engine files flips while it is down.
    EngineDamage,
    /// A bit of a node's log flips while it is down. The last fault of a run: such a node must stay
    /// down.
    LogDamage,
}

impl Fault {
    /// All of them, gentle ones first.
    pub const ALL: [Fault; 25] = [
        Fault::KillNode,
        Fault::KillLeader,
        Fault::KillCoordinator,
        Fault::KillGateway,
        Fault::KillCoordinators,
        Fault::KillAll,
        Fault::PauseNode,
        Fault::PauseLeader,
        Fault::PauseCoordinator,
        Fault::Partition,
        Fault::PartitionLeader,
        Fault::Mute,
        Fault::Deaf,
        Fault::Bridge,
        Fault::SlowNetwork,
        Fault::Reset,
        Fault::PowerCut,
        Fault::DiskFull,
        Fault::FrozenDisk,
        Fault::SlowSync,
        Fault::FailedSync,
        Fault::ClockJump,
        Fault::MemoryLimit,
        Fault::EngineDamage,
        Fault::LogDamage,
    ];

    /// Its name, as typed and printed.
    pub fn name(self) -> &'static str {
        match self {
            Fault::KillNode => "kill-node",
            Fault::KillLeader => "kill-leader",
            Fault::KillCoordinator => "kill-coordinator",
            Fault::KillGateway => "kill-gateway",
            Fault::KillCoordinators => "kill-coordinators",
            Fault::KillAll => "kill-all",
            Fault::PauseNode => "pause-node",
            Fault::PauseLeader => "pause-leader",
            Fault::PauseCoordinator => "pause-coordinator",
            Fault::Partition => "partition",
            Fault::PartitionLeader => "partition-leader",
            Fault::Mute => "mute",
            Fault::Deaf => "deaf",
            Fault::Bridge => "bridge",
            Fault::SlowNetwork => "slow-network",
            Fault::Reset => "reset",
            Fault::PowerCut => "power-cut",
            Fault::DiskFull => "disk-full",
            Fault::FrozenDisk => "frozen-disk",
            Fault::SlowSync => "slow-sync",
            Fault::FailedSync => "failed-sync",
            Fault::ClockJump => "clock-jump",
            Fault::MemoryLimit => "memory-limit",
            Fault::EngineDamage => "engine-damage",
            Fault::LogDamage => "log-damage",
        }
    }

    /// What it does, in a line.
    pub fn about(self) -> &'static str {
        match self {
            Fault::KillNode => "kill -9 of a node, started again later",
            Fault::KillLeader => "kill -9 of the node that leads a shard, started again later",
            Fault::KillCoordinator => "kill -9 of a coordinator, started again later",
            Fault::KillGateway => "kill -9 of a gateway, started again later",
            Fault::KillCoordinators => "kill -9 of all coordinators, started again later",
            Fault::KillAll => "kill -9 of every process at once, all started again",
            Fault::PauseNode => "SIGSTOP of a node, SIGCONT later",
            Fault::PauseLeader => "SIGSTOP of the node that leads a shard, SIGCONT later",
            Fault::PauseCoordinator => "SIGSTOP of a coordinator, SIGCONT later",
            Fault::Partition => "a node is cut off from all others, both ways",
            Fault::PartitionLeader => "the node that leads a shard is cut off, both ways",
            Fault::Mute => "what a node sends is lost; it receives from the others",
            Fault::Deaf => "what is sent to a node is lost; the others receive from it",
            Fault::Bridge => "two nodes are cut off from each other and from nobody else",
            Fault::SlowNetwork => "20 ms more each way, and at most 3 MB/s, for one node",
            Fault::Reset => "all connections of a node break at once",
            Fault::PowerCut => "a node's file system drops all that wasn't synced; kill -9",
            Fault::DiskFull => "no room left on a node's disk",
            Fault::FrozenDisk => "a node's file system is frozen (fsfreeze)",
            Fault::SlowSync => "each sync of a node takes 0.2 s longer (strace)",
            Fault::FailedSync => "one sync of a node fails (strace); it must stop by itself",
            Fault::ClockJump => {
                "the wall clock of a process is wrong by seconds, hours or years, or stands"
            }
            Fault::MemoryLimit => "a node may use 64 MiB more memory and no more (cgroup)",
            Fault::EngineDamage => "a bit of a stopped node's engine files flips",
            Fault::LogDamage => {
                "a bit of a stopped node's log flips; it must stay down. Comes last"
            }
        }
    }

    /// The longest write gap that is promised, in milliseconds; `None` where no figure is.
    pub fn promised_gap_ms(self) -> Option<u64> {
        match self {
            Fault::KillNode | Fault::KillLeader | Fault::PauseNode | Fault::PauseLeader => {
                Some(500)
            }
            Fault::KillCoordinator | Fault::KillCoordinators | Fault::PauseCoordinator => Some(100),
            _ => None,
        }
    }

    /// How long it may last.
    pub(crate) fn lengths(self) -> (Duration, Duration) {
        let ms = Duration::from_millis;
        match self {
            Fault::PauseNode | Fault::PauseLeader | Fault::PauseCoordinator => {
                (ms(100), ms(10_000))
            }
            Fault::KillAll | Fault::Reset => (ms(10), ms(500)),
            Fault::SlowSync | Fault::FrozenDisk | Fault::DiskFull => (ms(1_000), ms(6_000)),
            Fault::EngineDamage | Fault::LogDamage | Fault::FailedSync => (ms(500), ms(3_000)),
            _ => (ms(500), ms(8_000)),
        }
    }

    /// Whether it is done to the connections between processes, so that they must lead through us.
    pub(crate) fn is_of_the_network(self) -> bool {
        use Fault::{Bridge, Deaf, Mute, Partition, PartitionLeader, Reset, SlowNetwork};
        matches!(self, Partition | PartitionLeader | Mute | Deaf | Bridge | SlowNetwork | Reset)
    }

    /// Whether each node needs a file system of its own.
    pub(crate) fn is_of_the_disk(self) -> bool {
        matches!(self, Fault::PowerCut | Fault::DiskFull | Fault::FrozenDisk)
    }

    /// Why it can't be done here, if it can't.
    pub fn missing(self, tools: &Tools) -> Option<String> {
        match self {
            Fault::PowerCut | Fault::DiskFull => tools.without_loop_mounts(),
            Fault::FrozenDisk => tools.without_loop_mounts().or_else(|| tools.without("fsfreeze")),
            Fault::SlowSync | Fault::FailedSync => {
                tools.without("strace").or_else(|| tools.without_tracing())
            }
            Fault::MemoryLimit => tools.without_memory_groups(),
            _ => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Fault::ALL.into_iter().find(|fault| fault.name() == text).ok_or_else(|| {
            format!("`{text}` is no fault; `kvdb torture --list-faults` shows them all")
        })
    }
}

/// The faults that a list names: names separated by commas, or `all`; one with a minus before it is
/// taken away.
///
/// # Errors
/// A name that isn't one.
pub fn parse_list(text: &str) -> Result<Vec<Fault>, String> {
    let words = || text.split(',').map(str::trim).filter(|word| !word.is_empty());
    let mut chosen = Vec::new();
    if words().all(|word| word.starts_with('-')) {
        chosen.extend(Fault::ALL);
    }
    for word in words() {
        if word == "all" {
            chosen.extend(Fault::ALL);
        } else if let Some(name) = word.strip_prefix('-') {
            let unwanted: Fault = name.parse()?;
            chosen.retain(|fault| *fault != unwanted);
        } else {
            chosen.push(word.parse()?);
        }
    }
    chosen.sort_unstable();
    chosen.dedup();
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_known_by_its_name() {
        for fault in Fault::ALL {
            assert_eq!(fault.name().parse(), Ok(fault));
            assert!(fault.lengths().0 < fault.lengths().1, "{fault}");
        }
        let sorted: std::collections::BTreeSet<_> = Fault::ALL.iter().collect();
        assert_eq!(sorted.len(), Fault::ALL.len());
    }

    #[test]
    fn a_list_adds_takes_away_and_names_what_it_does_not_know() {
        assert_eq!(parse_list("mute, kill-all"), Ok(vec![Fault::KillAll, Fault::Mute]));
        assert_eq!(parse_list("all").unwrap().len(), Fault::ALL.len());
        let but_one = parse_list("-mute").unwrap();
        assert!(but_one.len() == Fault::ALL.len() - 1 && !but_one.contains(&Fault::Mute));
        assert!(
            parse_list("kill-everything").unwrap_err().contains("`kill-everything` is no fault")
        );
    }
}
