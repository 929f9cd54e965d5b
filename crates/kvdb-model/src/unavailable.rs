//! Why a shard can't serve for now, in the words of [`crate::Refusal::ShardUnavailable`] that nodes
//! give. They travel as text, so that whoever asked at a gateway is told the same.

/// The node knows of no such replica.
pub const NO_REPLICA: &str = "it has no replica here";
/// The node is younger than the keyspace, as it were: the map that tells of it is on its way.
pub const KEYSPACE_UNHEARD: &str = "this node doesn't know the keyspace yet";
/// The replica was created and has no state yet.
pub const NO_STATE: &str = "the replica waits for its first snapshot";
/// The replica's state is being exchanged for a snapshot.
pub const REPLACED: &str = "its replica is being replaced";
/// Nothing is proposed while another replica takes over.
pub const HANDED_OVER: &str = "leadership is being handed over";
/// The leader's disk is full.
pub const LEADER_FULL: &str = "its leader's disk is full, and it hands over";
/// A read asked for a state that is yet to come.
pub const BEHIND: &str = "its state hasn't reached min_version yet";

/// All of them.
pub const ALL: [&str; 7] =
    [NO_REPLICA, KEYSPACE_UNHEARD, NO_STATE, REPLACED, HANDED_OVER, LEADER_FULL, BEHIND];

/// The one that a message ends with.
pub fn known(message: &str) -> Option<&'static str> {
    ALL.into_iter().find(|known| message.ends_with(known))
}
