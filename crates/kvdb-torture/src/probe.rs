//! One writer a shard: when did it last take a write? And what must it hold in the end?

use crate::cluster::Cluster;
use crate::timeline::{Gap, SHORTEST_GAP};
use bytes::Bytes;
use kvdb_client::Client;
use kvdb_model::{Partitioning, ShardId, ShardMap};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How a probe writes, and what it notes.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    /// Between an answer and the next write.
    pub(crate) pause: Duration,
    /// Gaps below this aren't noted.
    pub(crate) shortest_gap: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { pause: Duration::from_millis(4), shortest_gap: SHORTEST_GAP }
    }
}

/// Keys that are tried until every shard has one.
const NAMES_MAX: u64 = 1_000_000;

/// The writer of one shard.
pub(crate) struct Probe {
    /// The shard that it writes to.
    pub(crate) shard: ShardId,
    key: String,
    start: Instant,
    pace: Pace,
    state: Mutex<State>,
    /// How many writes were answered.
    answered: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    last_ms: u64,
    gaps: Vec<Gap>,
    /// The number last acknowledged, and the one last sent.
    acknowledged: u64,
    sent: u64,
    failed: u64,
}

/// A key of each shard of the default keyspace.
fn keys(map: &ShardMap) -> Vec<(ShardId, String)> {
    let Some(keyspace) = map.keyspace_named("default") else { return Vec::new() };
    let partitioning: Partitioning = keyspace.partitioning;
    let mut found = std::collections::BTreeMap::new();
    for name in 0..NAMES_MAX {
        if found.len() == map.shards.len() {
            break;
        }
        let key = format!("probe/{name}");
        let routing = partitioning.routing_key(keyspace.keyspace_id, key.as_bytes());
        let mut shards = map.shards.iter();
        let shard = shards.find(|(_, shard)| shard.descriptor.range.contains(&routing));
        if let Some((shard, _)) = shard {
            found.entry(*shard).or_insert(key);
        }
    }
    found.into_iter().collect()
}

/// Probes for all shards, none of which runs yet.
pub(crate) async fn probes(
    cluster: &Cluster,
    start: Instant,
    pace: Pace,
) -> Result<Vec<Arc<Probe>>, kvdb_client::Error> {
    let map = cluster.map().await?;
    let probes = keys(&map).into_iter().map(|(shard, key)| {
        let answered = watch::Sender::new(0);
        Arc::new(Probe { shard, key, start, pace, state: Mutex::default(), answered })
    });
    Ok(probes.collect())
}

/// Waits for each of them that it takes writes. They are waited for together: one after the other
/// would take as many times longer as there are shards.
pub(crate) fn all_take_writes(probes: &[Arc<Probe>]) -> JoinSet<()> {
    probes.iter().map(|probe| probe.takes_writes()).collect()
}

/// Each of them writes, through a client of its own, until it is time to end.
pub(crate) fn all_write(
    probes: &[Arc<Probe>],
    cluster: &Cluster,
    deadline: Duration,
    stopped: &watch::Receiver<bool>,
    writers: &mut JoinSet<()>,
) -> Result<(), crate::Error> {
    for probe in probes {
        let client = crate::cluster::client(&cluster.endpoints(), deadline)?;
        writers.spawn(Arc::clone(probe).run(client, stopped.clone()));
    }
    Ok(())
}

/// Waits for each of them for so long at most; says which takes no writes.
pub(crate) async fn take_writes_within(
    probes: &[Arc<Probe>],
    patience: Duration,
) -> Result<(), String> {
    for probe in probes {
        if tokio::time::timeout(patience, probe.takes_writes()).await.is_err() {
            return Err(format!("shard {} takes no writes", probe.shard));
        }
    }
    Ok(())
}

impl Probe {
    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// Writes until it is time to end.
    pub(crate) async fn run(self: Arc<Self>, client: Client, mut stop: watch::Receiver<bool>) {
        self.state.lock().last_ms = self.now_ms();
        while !*stop.borrow() {
            let number = {
                let mut state = self.state.lock();
                state.sent += 1;
                state.sent
            };
            match client.put(self.key.clone(), Bytes::from(number.to_string())).await {
                Ok(_) => self.took(number),
                Err(_) => self.state.lock().failed += 1,
            }
            if !self.pace.pause.is_zero() {
                let _ = tokio::time::timeout(self.pace.pause, stop.wait_for(|stop| *stop)).await;
            }
        }
    }

    fn took(&self, number: u64) {
        let now_ms = self.now_ms();
        let mut state = self.state.lock();
        let gap = Gap { from_ms: state.last_ms, until_ms: now_ms };
        if gap.until_ms - gap.from_ms >= self.pace.shortest_gap.as_millis() as u64 {
            state.gaps.push(gap);
        }
        state.last_ms = now_ms;
        state.acknowledged = number;
        drop(state);
        self.answered.send_modify(|count| *count += 1);
    }

    /// Waits until a write was answered that was sent after this call.
    pub(crate) fn takes_writes(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut answered = self.answered.subscribe();
        // One may be on its way already.
        let wanted = *answered.borrow_and_update() + 2;
        async move {
            // Without the probe there is nothing to wait for.
            let _ = answered.wait_for(|count| *count >= wanted).await;
        }
    }

    /// The gaps so far, with one that is still open.
    pub(crate) fn gaps(&self) -> Vec<Gap> {
        let state = self.state.lock();
        let open = Gap { from_ms: state.last_ms, until_ms: self.now_ms() };
        state.gaps.iter().copied().chain([open]).collect()
    }

    /// Whether the shard holds what was acknowledged last, or something sent after it.
    pub(crate) async fn verify(&self, client: &Client) -> Result<bool, kvdb_client::Error> {
        let held = client.get(self.key.clone()).await?;
        let number = held.and_then(|record| std::str::from_utf8(&record.value).ok()?.parse().ok());
        let state = self.state.lock();
        Ok((state.acknowledged..=state.sent).contains(&number.unwrap_or(0)))
    }

    /// Writes that were refused, or whose outcome isn't known.
    pub(crate) fn failed(&self) -> u64 {
        self.state.lock().failed
    }

    /// Writes that were answered.
    pub(crate) fn count(&self) -> u64 {
        *self.answered.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(shard: u64) -> Arc<Probe> {
        Arc::new(Probe {
            shard: ShardId(shard),
            key: format!("probe/{shard}"),
            start: Instant::now(),
            pace: Pace::default(),
            state: Mutex::default(),
            answered: watch::Sender::new(0),
        })
    }

    #[tokio::test]
    async fn shards_are_waited_for_together() {
        let probes: Vec<_> = (1..=6).map(probe).collect();
        let mut waits = all_take_writes(&probes);
        for number in 1..=2 {
            assert_eq!(waits.len(), 6);
            probes.iter().for_each(|probe| probe.took(number));
        }
        // Two answers of each are enough for all six: nobody's wait begins after another's.
        while waits.join_next().await.is_some() {}
    }
}
