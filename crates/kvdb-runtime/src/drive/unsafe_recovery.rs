//! A shard goes on from the replica here, alone: the majority is lost for good.
//!
//! The copy is made beside the replica, which goes on as it is; only the host's step at the end
//! counts ([`kvdb_replication::Input::RecoverUnsafely`]), and it is refused if anything has changed
//! meanwhile. What a failed try has left is a volume that nobody names: it goes.

use super::apply::ApplyWork;
use super::{Drive, Event};
use kvdb_model::{RecoveryPlan, ReplicaId, ShardId, VolumeId};
use kvdb_recovery::{UnsafeRecoveryError, copy_alone};
use kvdb_replication::{CantGoOn, Input, LogTail};
use kvdb_store::{Machine, SnapshotWriter};
use thiserror::Error;
use tokio::sync::oneshot;

/// Why a shard doesn't go on from the replica here.
#[derive(Debug, Error)]
pub enum GoOnError {
    /// The replica can't, or not now.
    #[error(transparent)]
    Cant(#[from] CantGoOn),
    /// The copy.
    #[error(transparent)]
    Copy(#[from] UnsafeRecoveryError),
    /// The process is stopping, or the replica can't be read (the log says why).
    #[error("the replica can't be read")]
    Unreadable,
}

impl GoOnError {
    /// Whether another try can't end otherwise.
    pub fn is_final(&self) -> bool {
        match self {
            GoOnError::Cant(why) => *why != CantGoOn::Changing,
            GoOnError::Copy(why) => why.is_final(),
            GoOnError::Unreadable => false,
        }
    }
}

impl Drive {
    /// Carries out a recovery plan, with a machine for the copy. Returns how many entries were applied that weren't known to be
    /// committed. Copies the whole shard: it takes its time.
    ///
    /// # Errors
    /// [`GoOnError`]; the replica is as it was.
    pub async fn go_on_alone(
        &self,
        shard: ShardId,
        plan: RecoveryPlan,
        machine: impl Machine,
    ) -> Result<u64, GoOnError> {
        let (exported, tail) = self.state_and_log(shard, plan.survivor).await?;
        let replica = plan.replica.replica_id;
        let (engine, volume) = (self.engine.clone(), self.fresh_volume());
        let copying = tokio::task::spawn_blocking(move || {
            copy_alone(&engine, &exported, &tail, &plan, volume, machine)
        });
        let copied = match copying.await {
            Ok(Ok(copied)) => copied,
            Ok(Err(error)) => {
                self.drop_copy(volume);
                return Err(error.into());
            }
            Err(_) => {
                self.drop_copy(volume);
                return Err(GoOnError::Unreadable);
            }
        };
        self.inform(Event::Internal(Input::RecoverUnsafely(copied.unsafe_recovery)));
        // In turn: the host has taken it by then, or not.
        let taken = self.statuses_from(shard, 1).await;
        match taken.first().filter(|group| group.shard == shard) {
            Some(group) if group.replica == replica => Ok(copied.unconfirmed),
            _ => Err(CantGoOn::Changing.into()),
        }
    }

    /// A replica's state as it is applied, and what its log holds after that.
    ///
    /// # Errors
    /// [`GoOnError`].
    pub async fn state_and_log(
        &self,
        shard: ShardId,
        replica: ReplicaId,
    ) -> Result<(SnapshotWriter, LogTail), GoOnError> {
        let (reply, exported) = oneshot::channel();
        self.inform(Event::ForApply(ApplyWork::Export { shard, replica, reply }));
        let exported = exported.await;
        let position = exported.as_ref().map(|writer| writer.position()).unwrap_or_default();
        let (reply, tail) = oneshot::channel();
        self.inform(Event::LogAfter { shard, replica, position, reply });
        // Asked first, since it knows best why there is nothing to export.
        let tail = tail.await.map_err(|_| GoOnError::Unreadable)??;
        Ok((exported.map_err(|_| GoOnError::Unreadable)?, tail))
    }

    fn drop_copy(&self, volume: VolumeId) {
        self.inform(Event::ForApply(ApplyWork::DropVolume(volume)));
    }
}
