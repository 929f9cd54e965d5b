//! The state as records: one for each thing in it, so that a command writes only what it changed.

use crate::command::{decode, encode};
use crate::operator::Operator;
use crate::state::ControlState;
use bytes::Bytes;
use kvdb_model::{KeyspaceId, MapChange, NodeId, ShardId};
use serde::Serialize;
use std::cmp::Ordering;
use std::collections::BTreeMap;

const META: &[u8] = b"meta";
const GENERATION: &[u8] = b"generation";
const NODE: u8 = b'n';
const KEYSPACE: u8 = b'k';
const SHARD: u8 = b's';
const TOKEN: u8 = b't';
const WANTED: u8 = b'w';
const OPERATOR: u8 = b'o';
const WANTED_REPLICAS: u8 = b'r';
const COORDINATOR: u8 = b'c';
const START: u8 = b'b';
const COPIES: u8 = b'y';

/// The records in which two tables differ, found in one walk over both.
fn differences<K: Ord, V: PartialEq + Serialize>(
    kind: u8,
    id: impl Fn(&K) -> Vec<u8>,
    (before, after): (&BTreeMap<K, V>, &BTreeMap<K, V>),
    out: &mut Vec<(Bytes, Option<Bytes>)>,
) {
    let key = |of: &K| Bytes::from([&[kind], &id(of)[..]].concat());
    let (mut old, mut new) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (Some((left, _)), Some((right, _))) => left.cmp(right),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return,
        };
        let was = if order.is_le() { old.next() } else { None };
        let is = if order.is_ge() { new.next() } else { None };
        match (was, is) {
            (Some((gone, _)), None) => out.push((key(gone), None)),
            (None, Some((here, value))) => out.push((key(here), Some(encode(value)))),
            (Some((_, was)), Some((here, is))) if was != is => {
                out.push((key(here), Some(encode(is))));
            }
            _ => {}
        }
    }
}

fn wide(id: u64) -> Vec<u8> {
    id.to_be_bytes().to_vec()
}

impl ControlState {
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
        if key == GENERATION {
            (self.map.generation, self.recovered) = decode(value).map_err(|_| unreadable())?;
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
            COORDINATOR => {
                let id = id.try_into().map_err(|_| unreadable())?;
                let coordinator = decode(value).map_err(|_| unreadable())?;
                self.coordinators.insert(NodeId(u64::from_be_bytes(id)), coordinator);
            }
            START => {
                let id = id.try_into().map_err(|_| unreadable())?;
                let start = decode(value).map_err(|_| unreadable())?;
                self.starts.insert(NodeId(u64::from_be_bytes(id)), start);
            }
            COPIES => {
                let id = id.try_into().map_err(|_| unreadable())?;
                let copies = decode(value).map_err(|_| unreadable())?;
                self.copies.insert(NodeId(u64::from_be_bytes(id)), copies);
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
        let mut out = Vec::new();
        if self.counters != next.counters {
            out.push((Bytes::from_static(META), Some(encode(&next.counters))));
        }
        let (old, new) = (&self.map, &next.map);
        let recovered = (&next.map.generation, &next.recovered);
        if (&old.generation, &self.recovered) != recovered {
            out.push((Bytes::from_static(GENERATION), Some(encode(&recovered))));
        }
        differences(NODE, |id| wide(id.0), (&old.nodes, &new.nodes), &mut out);
        let keyspace = |id: &KeyspaceId| id.0.to_be_bytes().to_vec();
        differences(KEYSPACE, keyspace, (&old.keyspaces, &new.keyspaces), &mut out);
        differences(SHARD, |id| wide(id.0), (&old.shards, &new.shards), &mut out);
        let token = |token: &u128| token.to_be_bytes().to_vec();
        differences(TOKEN, token, (&self.tokens, &next.tokens), &mut out);
        let leaders = (&self.wanted_leaders, &next.wanted_leaders);
        differences(WANTED, |id| wide(id.0), leaders, &mut out);
        let counts = (&self.wanted_replicas, &next.wanted_replicas);
        differences(WANTED_REPLICAS, |id| wide(id.0), counts, &mut out);
        let coordinators = (&self.coordinators, &next.coordinators);
        differences(COORDINATOR, |id| wide(id.0), coordinators, &mut out);
        differences(START, |id| wide(id.0), (&self.starts, &next.starts), &mut out);
        differences(COPIES, |id| wide(id.0), (&self.copies, &next.copies), &mut out);
        differences(OPERATOR, |id| wide(id.0), (&self.operators, &next.operators), &mut out);
        out
    }
}
