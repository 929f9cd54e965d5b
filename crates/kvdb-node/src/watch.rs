//! Watching one shard: a long poll, so that nothing is remembered of who watches and nothing piles
//! up for the slow.
//!
//! Whoever watches says after which version it wants to hear, and gets what the replica still
//! remembers of that, or else what the shard's history tells, if its keyspace keeps one. Only a leader answers: not because others would tell anything wrong (all that
//! is told is committed, in the order of the log), but because it hears of changes first. Leadership
//! is asked for once, when a watch begins "from now": then everything that was acknowledged
//! before is behind it.

use crate::access::Access;
use crate::service::{overloaded, stopping};
use bytes::Bytes;
use kvdb_model::{KeyRange, KeyspaceId, RangeEpoch, Refusal, ShardId, Version, unavailable};
use kvdb_replication::Input;
use kvdb_runtime::drive::{Outcome, ShardChanges, Ticket};
use kvdb_store::{ChangeEvent, ChangePage, WatchQuery};
use kvdb_wire::proto;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Bytes of events in one answer, unless one version has more.
const MOST_BYTES: usize = 1024 * 1024;

impl Access {
    /// Answers with the next changes, or after a while with how far there are none.
    pub(crate) async fn watch(
        &self,
        request: proto::NodeWatchRequest,
    ) -> Result<proto::NodeWatchResponse, Refusal> {
        let shard = ShardId(request.shard_id);
        let epoch = RangeEpoch(request.epoch);
        let range = KeyRange { start: request.start, end: request.end };
        let view = self.leader(shard, epoch, &range.start)?;
        let keyspace = view.descriptor.as_ref().map_or(KeyspaceId(0), |known| known.keyspace_id);
        let prefix_len = self.partitioning(shard, keyspace)?.prefix_len();
        if request.from_now {
            self.confirm_leadership(shard).await?;
            self.begin_time(shard).await?;
            let version = self.changes_of(shard)?.last().0;
            return Ok(proto::NodeWatchResponse { version, ..Default::default() });
        }
        self.begin_time(shard).await?;
        let changes = self.changes_of(shard)?;
        let until = Instant::now() + Duration::from_millis(request.wait_ms).min(LONGEST_WAIT);
        let max_bytes = (request.max_bytes as usize).clamp(1, MOST_BYTES);
        let mut after = Version(request.after_version);
        let mut roles = self.drive.role_changes();
        loop {
            let changed = changes.changed();
            tokio::pin!(changed);
            // From here on nothing is missed between the look and the wait.
            changed.as_mut().enable();
            let query = WatchQuery {
                epoch,
                after,
                range: &range,
                user_prefix: &request.user_prefix,
                prefix_len,
                max_bytes,
            };
            let Ok(mut page) = changes.read(&query) else { return Err(self.over(shard, &range)) };
            let mut is_past = false;
            if let Some(gap) = page.gap
                && let Some(told) = self.past(shard, &query).await?
                && told.gap.is_none_or(|known| known < gap)
            {
                (page, is_past) = (told, true);
            }
            after = page.version;
            let events: Vec<_> =
                page.events.into_iter().map(|event| event_to(event, prefix_len)).collect();
            if !events.is_empty() || page.gap.is_some() || Instant::now() >= until {
                return Ok(proto::NodeWatchResponse {
                    events,
                    version: after.0,
                    gap_up_to_version: page.gap.map_or(0, |version| version.0),
                });
            }
            // There may be more of the past, whether or not anything changes now.
            if is_past {
                continue;
            }
            tokio::select! {
                () = changed => {}
                _ = roles.changed() => self.still_leads(shard, &changes)?,
                () = tokio::time::sleep_until(until.into()) => {}
            }
        }
    }

    /// Changes out of the shard's history; `None` if it keeps none.
    async fn past(
        &self,
        shard: ShardId,
        query: &WatchQuery<'_>,
    ) -> Result<Option<ChangePage>, Refusal> {
        let keeps = self.drive.views().get(shard).is_some_and(|view| view.history.limits.is_some());
        if !keeps {
            return Ok(None);
        }
        let (access, range) = (self.clone(), query.range.clone());
        let WatchQuery { epoch, after, prefix_len, max_bytes, .. } = *query;
        let user_prefix = Bytes::copy_from_slice(query.user_prefix);
        let read = move || {
            let reader = access.reader(shard)?;
            let (range, user_prefix) = (&range, &user_prefix[..]);
            let query = WatchQuery { epoch, after, range, user_prefix, prefix_len, max_bytes };
            let page = reader.view().and_then(|view| view.history(&query));
            page.map_err(|error| access.unread(shard, error))
        };
        tokio::task::spawn_blocking(read).await.map_err(|_| stopping())?
    }

    /// Gives a shard that was never written a first version: until there is one, nobody can say up to
    /// where nothing has happened.
    async fn begin_time(&self, shard: ShardId) -> Result<(), Refusal> {
        if self.changes_of(shard)?.last() > Version::ZERO {
            return Ok(());
        }
        self.advance_time(shard).await
    }

    fn changes_of(&self, shard_id: ShardId) -> Result<Arc<ShardChanges>, Refusal> {
        let reason = unavailable::REPLACED;
        self.drive.changes().get(shard_id).ok_or(Refusal::ShardUnavailable { shard_id, reason })
    }

    fn still_leads(&self, shard: ShardId, changes: &Arc<ShardChanges>) -> Result<(), Refusal> {
        let leads = self.drive.views().get(shard).is_some_and(|view| view.is_leader);
        let same = self.drive.changes().get(shard).is_some_and(|now| Arc::ptr_eq(&now, changes));
        if leads && same { Ok(()) } else { Err(self.not_leader(shard)) }
    }

    async fn confirm_leadership(&self, shard: ShardId) -> Result<(), Refusal> {
        let (ticket, receiver) = Ticket::oneshot();
        self.drive.submit(Input::Read { shard, ticket }).map_err(|_| overloaded())?;
        match receiver.await.map_err(|_| stopping())? {
            Outcome::ReadReady => Ok(()),
            _ => Err(self.not_leader(shard)),
        }
    }

    /// The shard was split: everything up to there has been told.
    fn over(&self, shard: ShardId, range: &KeyRange) -> Refusal {
        match self.replica(shard, RangeEpoch(0), &range.start) {
            Err(refusal) => refusal,
            Ok(_) => self.not_leader(shard),
        }
    }
}

fn event_to(event: ChangeEvent, prefix_len: usize) -> proto::WatchEvent {
    use proto::watch_event::Kind;
    let key = event.routing_key.slice(prefix_len.min(event.routing_key.len())..);
    let version = event.version.0;
    match event.record {
        Some(record) => proto::WatchEvent {
            kind: Kind::Put.into(),
            key,
            r#type: kvdb_wire::type_to(record.kind),
            value: record.value,
            version,
            expires_at_ms: record.expires_at_ms,
            count: event.elements.count,
            elements: event.elements.names,
            more_elements: event.elements.has_more,
        },
        None => proto::WatchEvent { kind: Kind::Delete.into(), key, version, ..Default::default() },
    }
}
