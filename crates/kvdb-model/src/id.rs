//! Newtypes for identifiers, terms, indexes and epochs, so that two swapped `u64`s don't compile.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl $name {
            /// The number itself.
            pub const fn get(self) -> $inner {
                self.0
            }

            /// The one after this.
            ///
            /// # Panics
            /// On overflow, which no running cluster can reach.
            #[must_use]
            pub const fn next(self) -> Self {
                match self.0.checked_add(1) {
                    Some(value) => Self(value),
                    None => panic!("identifier overflow"),
                }
            }
        }
    };
}

number!(
    /// A storage node, or (in the coordinators' own group) a coordinator. 0 is never given out.
    NodeId,
    u64
);
number!(
    /// A shard: one Raft group. [`ShardId::CONTROL`] is the coordinators' group.
    ShardId,
    u64
);
number!(
    /// One replica of one shard. Given by the coordinators, unique in the cluster, never reused.
    /// It is also the identity under which the replica votes in Raft.
    ReplicaId,
    u64
);
number!(
    /// One ordered tree of the engine on one node. Local to the node, never reused.
    VolumeId,
    u64
);
number!(
    /// A keyspace: the first four bytes (big endian) of every routing key in it.
    KeyspaceId,
    u32
);
number!(
    /// An operator: one running or finished change of the shard map.
    OperatorId,
    u64
);
number!(
    /// Raised by one each time the range of a shard changes.
    RangeEpoch,
    u64
);
number!(
    /// Raised by one at each step (joint, then final) of a change of a shard's replicas.
    MembershipEpoch,
    u64
);
number!(
    /// The version of the shard map. Raised by one with each command that changes the map.
    MapVersion,
    u64
);
number!(
    /// A Raft term.
    Term,
    u64
);
number!(
    /// The index of an entry in a Raft log.
    LogIndex,
    u64
);

impl ShardId {
    /// The coordinators' own group. Data shards start at 1.
    pub const CONTROL: ShardId = ShardId(0);
}

/// The identity of a cluster, made at bootstrap and checked at every handshake.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub u128);

impl ClusterId {
    /// No cluster yet: what a process says of itself before it has been told.
    pub const UNKNOWN: ClusterId = ClusterId(0);

    /// Whether a cluster id is known.
    pub const fn is_known(self) -> bool {
        self.0 != 0
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}
