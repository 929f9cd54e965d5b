//! Shards that are to go on from the replica here, without the majority that they have lost.
//!
//! Copying a shard takes longer than a heartbeat, so it goes on beside them; the coordinators ask
//! again with each heartbeat, and hear what can't be done.

use crate::tasks::Impossible;
use kvdb_model::{OperatorId, RecoveryPlan, ShardId, ShardTask, Work};
use kvdb_runtime::drive::Drive;
use kvdb_store::NoControl;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Copies under way, and what came of those that can't end otherwise.
#[derive(Clone, Default)]
pub(crate) struct Recoveries {
    known: Arc<Mutex<BTreeMap<OperatorId, Option<String>>>>,
}

impl Recoveries {
    /// Begins what is asked for, unless it is under way; says what has turned out impossible. What
    /// isn't asked for any more is forgotten.
    pub(crate) fn carry_out(&self, drive: &Drive, tasks: &[ShardTask]) -> Impossible {
        let asked: BTreeMap<OperatorId, (ShardId, &RecoveryPlan)> = tasks
            .iter()
            .filter_map(|task| match &task.work {
                Work::ForceRecover(plan) => Some((task.operator, (task.shard, plan))),
                _ => None,
            })
            .collect();
        let mut known = self.known.lock();
        known.retain(|operator, failed| failed.is_none() || asked.contains_key(operator));
        for (operator, (shard, plan)) in asked {
            let here = drive.views().get(shard).map(|view| view.replica);
            if known.contains_key(&operator) || here == Some(plan.replica.replica_id) {
                continue;
            }
            known.insert(operator, None);
            tokio::spawn(self.clone().recover(drive.clone(), operator, shard, plan.clone()));
        }
        known.iter().filter_map(|(operator, why)| Some((*operator, why.clone()?))).collect()
    }

    async fn recover(self, drive: Drive, operator: OperatorId, shard: ShardId, plan: RecoveryPlan) {
        tracing::warn!(
            shard = shard.0,
            "unsafe recovery: the shard has lost its majority, and goes on from the replica here"
        );
        let replica = plan.replica.replica_id;
        let done = drive.go_on_alone(shard, plan, NoControl).await;
        let mut known = self.known.lock();
        match done {
            Ok(unconfirmed) => {
                tracing::warn!(
                    shard = shard.0,
                    replica = replica.0,
                    unconfirmed,
                    "unsafe recovery done: the shard serves again"
                );
                known.remove(&operator);
            }
            Err(error) if error.is_final() => {
                tracing::error!(shard = shard.0, %error, "unsafe recovery failed");
                known.insert(operator, Some(error.to_string()));
            }
            // Asked for again, it is tried again.
            Err(error) => {
                tracing::warn!(shard = shard.0, %error, "unsafe recovery is not possible yet");
                known.remove(&operator);
            }
        }
    }
}
