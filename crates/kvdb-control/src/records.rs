//! The state as records: one for each thing in it, so that a command writes only what it changed.

use crate::command::{decode, encode};
use crate::operator::Operator;
use crate::state::ControlState;
use bytes::Bytes;
use kvdb_model::{MapChange, ShardId};
use std::collections::BTreeMap;

const META: &[u8] = b"meta";
const NODE: u8 = b'n';
const KEYSPACE: u8 = b'k';
const SHARD: u8 = b's';
const TOKEN: u8 = b't';
const WANTED: u8 = b'w';
const OPERATOR: u8 = b'o';
const WANTED_REPLICAS: u8 = b'r';

fn record_key(kind: u8, id: &[u8]) -> Bytes {
    Bytes::from([&[kind], id].concat())
}

impl ControlState {
    /// Every record of the state.
    pub(crate) fn records(&self) -> BTreeMap<Bytes, Bytes> {
        let mut out = BTreeMap::from([(Bytes::from_static(META), encode(&self.counters))]);
        for (id, node) in &self.map.nodes {
            out.insert(record_key(NODE, &id.0.to_be_bytes()), encode(node));
        }
        for (id, keyspace) in &self.map.keyspaces {
            out.insert(record_key(KEYSPACE, &id.0.to_be_bytes()), encode(keyspace));
        }
        for (id, shard) in &self.map.shards {
            out.insert(record_key(SHARD, &id.0.to_be_bytes()), encode(shard));
        }
        for (token, node) in &self.tokens {
            out.insert(record_key(TOKEN, &token.to_be_bytes()), encode(node));
        }
        for (shard, node) in &self.wanted_leaders {
            out.insert(record_key(WANTED, &shard.0.to_be_bytes()), encode(node));
        }
        for (shard, count) in &self.wanted_replicas {
            out.insert(record_key(WANTED_REPLICAS, &shard.0.to_be_bytes()), encode(count));
        }
        for (id, operator) in &self.operators {
            out.insert(record_key(OPERATOR, &id.0.to_be_bytes()), encode(operator));
        }
        out
    }

    /// Takes back one record.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn load(&mut self, key: &Bytes, value: &Bytes) -> Result<(), String> {
        let unreadable = || format!("control record {} can't be read", key.escape_ascii());
        if key == META {
            self.counters = decode(value).map_err(|_| unreadable())?;
            self.map.version = self.counters.map_version;
            self.map.cluster_id = self.counters.cluster_id;
            return Ok(());
        }
        let Some((kind, id)) = key.split_first() else { return Err(unreadable()) };
        match *kind {
            NODE => self.map.change(MapChange::Node(decode(value).map_err(|_| unreadable())?)),
            KEYSPACE => {
                self.map.change(MapChange::Keyspace(decode(value).map_err(|_| unreadable())?));
            }
            SHARD => self.map.change(MapChange::Shard(decode(value).map_err(|_| unreadable())?)),
            TOKEN => {
                let token = id.try_into().map_err(|_| unreadable())?;
                let node = decode(value).map_err(|_| unreadable())?;
                self.tokens.insert(u128::from_be_bytes(token), node);
            }
            WANTED => {
                let shard = id.try_into().map_err(|_| unreadable())?;
                let node = decode(value).map_err(|_| unreadable())?;
                self.wanted_leaders.insert(ShardId(u64::from_be_bytes(shard)), node);
            }
            WANTED_REPLICAS => {
                let shard = id.try_into().map_err(|_| unreadable())?;
                let count = decode(value).map_err(|_| unreadable())?;
                self.wanted_replicas.insert(ShardId(u64::from_be_bytes(shard)), count);
            }
            OPERATOR => {
                let operator: Operator = decode(value).map_err(|_| unreadable())?;
                self.operators.insert(operator.id, operator);
            }
            _ => return Err(unreadable()),
        }
        Ok(())
    }

    /// The records in which another state differs from this one.
    pub fn changed_records(&self, next: &ControlState) -> Vec<(Bytes, Option<Bytes>)> {
        let (before, after) = (self.records(), next.records());
        let gone = before.keys().filter(|key| !after.contains_key(*key));
        let mut changed: Vec<_> = gone.map(|key| (key.clone(), None)).collect();
        changed.extend(
            after
                .into_iter()
                .filter(|(key, value)| before.get(key) != Some(value))
                .map(|(key, value)| (key, Some(value))),
        );
        changed
    }
}
