//! Random operations compared with a map in memory, while the nodes that lead are killed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use bytes::Bytes;
use kvdb_client::{BatchOperation, Client, Options, ReadOptions, ScanOptions, WriteOptions};
use kvdb_model::{Condition, Version};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use support::{Cluster, PATIENCE};

const KEYS: u64 = 12;
const OPERATIONS: usize = 3000;
const KILLS: usize = 6;

/// SplitMix64 (Steele, Lea, Flood, 2014): the same seed, the same operations.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

#[derive(Clone, Debug, PartialEq)]
struct Known {
    value: Bytes,
    version: Version,
}

/// What the cluster holds under keys that don't expire.
type Model = BTreeMap<Bytes, Known>;

/// One client: each call has a certain outcome, since it is repeated under its request id.
struct Player {
    client: Client,
    dice: Dice,
    model: Model,
    /// Keys that expire: value, and when; `None` if it was taken back.
    mortal: BTreeMap<Bytes, (Bytes, Option<u64>)>,
}

impl Player {
    fn key(&mut self) -> Bytes {
        Bytes::from(format!("m-{}", self.dice.below(KEYS)))
    }

    fn value(&mut self) -> Bytes {
        Bytes::from(self.dice.below(5).to_string())
    }

    fn condition(&mut self, key: &Bytes) -> Option<Condition> {
        let known = self.model.get(key).cloned();
        match (self.dice.below(8), known) {
            (0, _) => Some(Condition::IfAbsent),
            (1, _) => Some(Condition::IfPresent),
            (2, Some(known)) => Some(Condition::IfVersion(known.version)),
            (3, _) => Some(Condition::IfVersion(Version(77))),
            (4, _) => Some(Condition::IfValue(self.value())),
            _ => None,
        }
    }

    fn holds(&self, key: &Bytes, condition: Option<&Condition>) -> bool {
        let known = self.model.get(key);
        match condition {
            None => true,
            Some(Condition::IfAbsent) => known.is_none(),
            Some(Condition::IfPresent) => known.is_some(),
            Some(Condition::IfVersion(version)) => known.is_some_and(|it| it.version == *version),
            Some(Condition::IfValue(value)) => known.is_some_and(|it| it.value == value),
        }
    }

    async fn play(&mut self) {
        match self.dice.below(10) {
            0 | 1 => self.put().await,
            2 => self.delete().await,
            3 => self.increment().await,
            4 => self.batch().await,
            5 => self.read_many().await,
            6 => self.scan().await,
            7 => self.put_mortal().await,
            8 => self.look_at_mortal().await,
            _ => self.get().await,
        }
    }

    async fn put(&mut self) {
        let (key, value) = (self.key(), self.value());
        let condition = self.condition(&key);
        let holds = self.holds(&key, condition.as_ref());
        let options = WriteOptions { condition, return_previous: true, ..Default::default() };
        let written = self.client.put_with(key.clone(), value.clone(), options).await.unwrap();
        assert_eq!(written.applied, holds, "{key:?}");
        let before = self.model.get(&key).map(|known| known.value.clone());
        assert_eq!(written.previous.map(|previous| previous.value), before, "{key:?}");
        if holds {
            self.model.insert(key, Known { value, version: written.version });
        }
    }

    async fn delete(&mut self) {
        let key = self.key();
        let condition = self.condition(&key);
        let holds = self.holds(&key, condition.as_ref()) && self.model.contains_key(&key);
        let options = WriteOptions { condition, ..Default::default() };
        let deleted = self.client.delete_with(key.clone(), options).await.unwrap();
        assert_eq!(deleted.applied, holds, "{key:?}");
        if holds {
            self.model.remove(&key);
        }
    }

    async fn increment(&mut self) {
        let key = self.key();
        let delta = self.dice.below(9) as i64 - 4;
        let before = self.model.get(&key).map_or("0".into(), |known| known.value.clone());
        let before: i64 = std::str::from_utf8(&before).unwrap().parse().unwrap();
        let counter = self.client.increment(key.clone(), delta).await.unwrap();
        assert_eq!(counter.value, before + delta, "{key:?} counts each increment once");
        let value = Bytes::from(counter.value.to_string());
        self.model.insert(key, Known { value, version: counter.version });
    }

    async fn batch(&mut self) {
        let count = 1 + self.dice.below(6);
        let mut operations = Vec::new();
        for _ in 0..count {
            let key = self.key();
            // Each key once: what stands alone has no order.
            if operations.iter().any(|known: &BatchOperation| known.key == key) {
                continue;
            }
            operations.push(match self.dice.below(3) {
                0 => BatchOperation::delete(key),
                _ => BatchOperation::put(key, self.value()),
            });
        }
        let written = self.client.batch_write(&operations, false).await.unwrap();
        for (operation, result) in operations.into_iter().zip(written) {
            let (key, written) = (operation.key, result.unwrap());
            match operation.action {
                kvdb_client::BatchAction::Put { value, .. } => {
                    assert!(written.applied);
                    self.model.insert(key, Known { value, version: written.version });
                }
                _ => assert_eq!(written.applied, self.model.remove(&key).is_some(), "{key:?}"),
            }
        }
    }

    async fn get(&mut self) {
        let key = self.key();
        let found = self.client.get(key.clone()).await.unwrap();
        let found = found.map(|it| Known { value: it.value, version: it.version });
        assert_eq!(found.as_ref(), self.model.get(&key), "{key:?}");
    }

    async fn read_many(&mut self) {
        let keys: Vec<Bytes> = (0..KEYS).map(|n| Bytes::from(format!("m-{n}"))).collect();
        let found = self.client.batch_get(keys.clone(), ReadOptions::default()).await.unwrap();
        for (key, found) in keys.iter().zip(found) {
            let found = found.unwrap().map(|it| Known { value: it.value, version: it.version });
            assert_eq!(found.as_ref(), self.model.get(key), "{key:?}");
        }
    }

    async fn scan(&mut self) {
        let options = ScanOptions { prefix: "m-".into(), ..ScanOptions::default() };
        let mut scan = self.client.scan(options);
        let mut found = Model::new();
        while let Some(chunk) = scan.next_chunk().await.unwrap() {
            for it in chunk {
                let known = Known { value: it.value, version: it.version };
                assert_eq!(found.insert(it.key, known), None, "a scan repeats nothing");
            }
        }
        assert_eq!(found, self.model);
    }

    async fn put_mortal(&mut self) {
        let key = Bytes::from(format!("t-{}", self.dice.below(KEYS)));
        let (value, ttl_ms) = (self.value(), 20 + self.dice.below(2000));
        let options = WriteOptions { ttl_ms: Some(ttl_ms), ..Default::default() };
        let written = self.client.put_with(key.clone(), value.clone(), options).await.unwrap();
        assert!(written.applied);
        self.mortal.insert(key, (value, Some(written.version.millis() + ttl_ms)));
    }

    /// Reads a key that expires, or takes its expiry back. Between the two looks at the clock it may
    /// be either; what has gone once never comes back.
    async fn look_at_mortal(&mut self) {
        let Some((key, (value, expires))) = self
            .mortal
            .iter()
            .nth(self.dice.below(KEYS) as usize)
            .map(|(k, v)| (k.clone(), v.clone()))
        else {
            return;
        };
        let before = now_ms();
        let is_there = match self.dice.below(4) {
            0 => {
                let kept = self.client.expire(key.clone(), None).await.unwrap().applied;
                if kept {
                    self.mortal.insert(key.clone(), (value.clone(), None));
                }
                kept
            }
            _ => match self.client.get(key.clone()).await.unwrap() {
                Some(record) => {
                    assert_eq!(record.value, value, "{key:?}");
                    assert_eq!(record.expires_at_ms, expires, "{key:?}");
                    true
                }
                None => false,
            },
        };
        let after = now_ms();
        match expires {
            None => assert!(is_there, "{key:?} doesn't expire"),
            // Shard time may be ahead of the clock by what was counted within a millisecond.
            Some(at) if at + 50 < before => assert!(!is_there, "{key:?} came back"),
            Some(at) if at > after + 50 => assert!(is_there, "{key:?} went too early"),
            Some(_) => {}
        }
        if !is_there {
            self.mortal.remove(&key);
        }
    }
}

/// The node with most leaders.
fn leading(cluster: &Cluster) -> usize {
    let map = cluster.json(&["admin", "shards", "--json"]);
    let mut leads = [0; 3];
    let shards = map.as_ref().and_then(|map| map["shards"].as_array()).cloned();
    for shard in shards.unwrap_or_default() {
        if let Some(node) = shard["leader_node_id"].as_u64().filter(|node| (1..=3).contains(node)) {
            leads[node as usize - 1] += 1;
        }
    }
    (0..3).max_by_key(|node| leads[*node]).unwrap_or(0)
}

#[test]
fn random_operations_come_to_what_a_map_says_whoever_is_killed() {
    let seed = now_ms();
    println!("seed {seed}");
    let mut cluster = Cluster::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let options = Options { deadline: PATIENCE, ..Options::to(&cluster.endpoint) };
    let client = runtime.block_on(async { Client::new(options).unwrap() });
    let (done, killed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let game = runtime.spawn({
        let (done, killed) = (done.clone(), killed.clone());
        async move {
            let mut player =
                Player { client, dice: Dice(seed), model: Model::new(), mortal: BTreeMap::new() };
            while done.load(Ordering::Relaxed) < OPERATIONS || !killed.load(Ordering::Relaxed) {
                player.play().await;
                done.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    for kill in 1..=KILLS {
        let due = kill * OPERATIONS / (KILLS + 1);
        let is_due = || done.load(Ordering::Relaxed) >= due || game.is_finished();
        cluster.until("the game goes on", |_| is_due());
        let node = leading(&cluster);
        cluster.nodes[node].kill();
        let at = done.load(Ordering::Relaxed);
        cluster.until("it goes on without the node", |_| {
            done.load(Ordering::Relaxed) > at + 50 || game.is_finished()
        });
        cluster.nodes[node].start();
    }
    killed.store(true, Ordering::Relaxed);
    runtime.block_on(game).unwrap();
}
