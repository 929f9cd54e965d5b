//! What operators do in the life of a cluster.

/// One of these things, done while clients go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Two nodes come.
    AddNodes,
    /// Replicas and leaders are spread over them.
    Rebalance,
    /// Four shards are cut in two, one after another.
    Split,
    /// A replica moves to another node and back, ten times.
    MoveBackAndForth,
    /// A node is emptied.
    Drain,
    /// A node dies for good; its replicas are rebuilt from the others.
    LoseNode,
    /// A bit of a node's log flips, the node refuses to start, and is replaced by an empty one.
    Replace,
    /// A coordinator comes, and another one goes.
    ReplaceCoordinator,
    /// There are no coordinators, for a minute.
    NoCoordinators,
}

impl Duty {
    /// All of them, in the order in which they are done.
    pub const ALL: [Duty; 9] = [
        Duty::AddNodes,
        Duty::Rebalance,
        Duty::Split,
        Duty::MoveBackAndForth,
        Duty::Drain,
        Duty::LoseNode,
        Duty::Replace,
        Duty::ReplaceCoordinator,
        Duty::NoCoordinators,
    ];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Duty::AddNodes => "add-nodes",
            Duty::Rebalance => "rebalance",
            Duty::Split => "split",
            Duty::MoveBackAndForth => "move",
            Duty::Drain => "drain",
            Duty::LoseNode => "lose-node",
            Duty::Replace => "replace",
            Duty::ReplaceCoordinator => "replace-coordinator",
            Duty::NoCoordinators => "no-coordinators",
        }
    }

    /// The longest gap between writes that is promised, in milliseconds. A node that dies is no
    /// planned step: its shards find other leaders first.
    pub fn promised_gap_ms(self) -> u64 {
        match self {
            Duty::LoseNode | Duty::Replace => 500,
            _ => 100,
        }
    }

    /// The duty of this name.
    pub(crate) fn named(name: &str) -> Option<Duty> {
        Duty::ALL.into_iter().find(|duty| duty.name() == name)
    }
}
