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
    /// The encoding: a descriptor of which only the replicas and the epoch count.
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

    /// The descriptor after the step, or `None` if the shard has moved on.
    pub fn apply_to(&self, descriptor: &ShardDescriptor) -> Option<ShardDescriptor> {
        (descriptor.membership_epoch == self.expected).then(|| ShardDescriptor {
            membership_epoch: self.expected.next(),
            replicas: self.replicas.clone(),
            ..descriptor.clone()
        })
    }
}
