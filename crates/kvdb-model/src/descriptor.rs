//! The shard descriptor: who a shard is. Part of the shard's own replicated state.

use crate::codec::{DecodeError, Reader, Writer};
use crate::id::{KeyspaceId, MembershipEpoch, NodeId, RangeEpoch, ReplicaId, ShardId};
use crate::key::KeyRange;
use serde::{Deserialize, Serialize};

/// What a replica does in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// Votes, in both halves of a joint configuration if there is one.
    Voter,
    /// Receives the log, has no vote.
    Learner,
    /// Votes in the incoming half of a joint configuration only; a voter once it is left.
    Incoming,
    /// Votes in the outgoing half of a joint configuration only; gone once it is left.
    Outgoing,
}

/// One replica of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Replica {
    /// The node that hosts it.
    pub node_id: NodeId,
    /// Its identity, never reused.
    pub replica_id: ReplicaId,
    /// What it does.
    pub role: Role,
}

/// A shard's identity, range and replicas, with the epochs that order their changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardDescriptor {
    /// The shard.
    pub shard_id: ShardId,
    /// The keyspace that it belongs to; a shard never straddles two.
    pub keyspace_id: KeyspaceId,
    /// The routing keys that it owns.
    pub range: KeyRange,
    /// Raised when `range` changes.
    pub range_epoch: RangeEpoch,
    /// Raised when `replicas` changes.
    pub membership_epoch: MembershipEpoch,
    /// Ordered by replica id.
    pub replicas: Vec<Replica>,
}

impl ShardDescriptor {
    /// The replica on `node`, if there is one. (Two replicas never share a node.)
    pub fn replica_on(&self, node: NodeId) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.node_id == node)
    }

    /// The replica with this id.
    pub fn replica(&self, id: ReplicaId) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.replica_id == id)
    }

    /// Whether a joint configuration is in force.
    pub fn is_joint(&self) -> bool {
        self.replicas.iter().any(|replica| matches!(replica.role, Role::Incoming | Role::Outgoing))
    }

    /// Whether the replicas on the nodes that are there can decide for the shard. In a joint
    /// configuration both halves must agree.
    pub fn has_majority(&self, is_there: impl Fn(NodeId) -> bool) -> bool {
        let half = |other: Role| {
            let voters =
                || self.replicas.iter().filter(|one| one.role == Role::Voter || one.role == other);
            2 * voters().filter(|one| is_there(one.node_id)).count() > voters().count()
        };
        half(Role::Incoming) && half(Role::Outgoing)
    }

    /// Appends the encoding that [`ShardDescriptor::decode`] reads.
    pub fn encode(&self, out: &mut Writer) {
        out.u8(1);
        out.varint(self.shard_id.0);
        out.varint(u64::from(self.keyspace_id.0));
        out.bytes(&self.range.start);
        out.bytes(&self.range.end);
        out.varint(self.range_epoch.0);
        out.varint(self.membership_epoch.0);
        encode_replicas(&self.replicas, out);
    }

    /// The encoding as bytes of its own.
    pub fn to_bytes(&self) -> bytes::Bytes {
        let mut out = Writer::new();
        self.encode(&mut out);
        out.finish()
    }

    /// Reads one descriptor.
    ///
    /// # Errors
    /// [`DecodeError`] for a version, role or length that this binary doesn't know.
    pub fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        input.version("shard descriptor", 1)?;
        let shard_id = ShardId(input.varint()?);
        let keyspace_id = KeyspaceId(input.varint_u32()?);
        let range = KeyRange { start: input.bytes()?, end: input.bytes()? };
        let range_epoch = RangeEpoch(input.varint()?);
        let membership_epoch = MembershipEpoch(input.varint()?);
        let replicas = decode_replicas(input)?;
        Ok(ShardDescriptor {
            shard_id,
            keyspace_id,
            range,
            range_epoch,
            membership_epoch,
            replicas,
        })
    }
}

pub(crate) fn encode_replicas(replicas: &[Replica], out: &mut Writer) {
    out.varint(replicas.len() as u64);
    for replica in replicas {
        out.varint(replica.node_id.0);
        out.varint(replica.replica_id.0);
        out.u8(match replica.role {
            Role::Voter => 0,
            Role::Learner => 1,
            Role::Incoming => 2,
            Role::Outgoing => 3,
        });
    }
}

pub(crate) fn decode_replicas(input: &mut Reader) -> Result<Vec<Replica>, DecodeError> {
    let count = input.count(3)?;
    let mut replicas = Vec::with_capacity(count);
    for _ in 0..count {
        replicas.push(Replica {
            node_id: NodeId(input.varint()?),
            replica_id: ReplicaId(input.varint()?),
            role: match input.u8()? {
                0 => Role::Voter,
                1 => Role::Learner,
                2 => Role::Incoming,
                3 => Role::Outgoing,
                other => return Err(DecodeError::unknown_tag("replica role", other)),
            },
        });
    }
    Ok(replicas)
}
