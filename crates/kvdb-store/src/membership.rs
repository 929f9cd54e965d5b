//! A step of a membership change, as it travels in an entry's context.

use bytes::Bytes;
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::{MembershipEpoch, Replica, ShardDescriptor};

/// All replicas after the step, and the epoch that it starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipChange {
    /// The shard's membership epoch before the step; with another one it is refused.
    pub expected: MembershipEpoch,
    /// All replicas after it.
    pub replicas: Vec<Replica>,
}

impl MembershipChange {
    /// The encoding: the descriptor of the shard `of` with these replicas and the expected epoch.
    /// Only the two count; range and range epoch are those at apply.
    pub fn to_bytes(&self, of: &ShardDescriptor) -> Bytes {
        let mut out = Writer::new();
        ShardDescriptor {
            membership_epoch: self.expected,
            replicas: self.replicas.clone(),
            ..of.clone()
        }
        .encode(&mut out);
        out.finish()
    }

    /// Reads what [`MembershipChange::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`] for anything else.
    pub fn decode(context: &Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(context.clone());
        let descriptor = ShardDescriptor::decode(&mut input)?;
        input.end()?;
        Ok(MembershipChange {
            expected: descriptor.membership_epoch,
            replicas: descriptor.replicas,
        })
    }

    /// The descriptor after the step, or `None` if it is refused: the shard's membership has moved
    /// on, or the replicas are none, or two share a node or an id.
    pub fn apply_to(&self, descriptor: &ShardDescriptor) -> Option<ShardDescriptor> {
        if descriptor.membership_epoch != self.expected || !self.is_sound() {
            return None;
        }
        let mut replicas = self.replicas.clone();
        replicas.sort_by_key(|replica| replica.replica_id);
        Some(ShardDescriptor {
            membership_epoch: self.expected.next(),
            replicas,
            ..descriptor.clone()
        })
    }

    fn is_sound(&self) -> bool {
        let repeats = |(place, replica): (usize, &Replica)| {
            self.replicas[..place].iter().any(|other| {
                other.replica_id == replica.replica_id || other.node_id == replica.node_id
            })
        };
        !self.replicas.is_empty() && !self.replicas.iter().enumerate().any(repeats)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::{KeyRange, KeyspaceId, NodeId, RangeEpoch, ReplicaId, Role, ShardId};

    fn replica(node: u64, id: u64) -> Replica {
        Replica { node_id: NodeId(node), replica_id: ReplicaId(id), role: Role::Voter }
    }

    fn descriptor() -> ShardDescriptor {
        ShardDescriptor {
            shard_id: ShardId(3),
            keyspace_id: KeyspaceId(1),
            range: KeyRange::of_keyspace(KeyspaceId(1)),
            range_epoch: RangeEpoch(7),
            membership_epoch: MembershipEpoch(4),
            replicas: vec![replica(1, 10)],
        }
    }

    fn change(expected: u64, replicas: Vec<Replica>) -> MembershipChange {
        MembershipChange { expected: MembershipEpoch(expected), replicas }
    }

    #[test]
    fn a_step_sets_the_replicas_and_raises_only_the_membership_epoch() {
        let step = change(4, vec![replica(2, 11), replica(1, 10)]);
        let step = MembershipChange::decode(&step.to_bytes(&descriptor())).unwrap();
        let after = step.apply_to(&descriptor()).unwrap();
        assert_eq!(
            after,
            ShardDescriptor {
                membership_epoch: MembershipEpoch(5),
                replicas: vec![replica(1, 10), replica(2, 11)],
                ..descriptor()
            }
        );
        assert_eq!(step.apply_to(&after), None, "the same step a second time");
    }

    #[test]
    fn unsound_steps_are_refused() {
        for replicas in
            [vec![], vec![replica(1, 10), replica(1, 11)], vec![replica(1, 10), replica(2, 10)]]
        {
            assert_eq!(change(4, replicas).apply_to(&descriptor()), None);
        }
        assert_eq!(change(3, vec![replica(2, 11)]).apply_to(&descriptor()), None);
        assert_eq!(change(5, vec![replica(2, 11)]).apply_to(&descriptor()), None);
    }
}
