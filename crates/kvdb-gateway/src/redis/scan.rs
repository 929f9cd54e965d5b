//! Walking keys, and `SCAN` cursors.
//!
//! A cursor is a place in the order of (slot, hash of the key), so it needs no memory at the
//! gateway and is good at any other: the slot in its upper bits, the hash in its lower 48. Keys come
//! a slot at a time; only a slot with many keys (those of one hash tag) is cut by the hash. A key
//! that is there from the start of a walk to its end is seen: its place never changes.

use crate::ages::Stamping;
use crate::route::{Gateway, Nature, Place};
use crate::service::other_kind;
use bytes::Bytes;
use kvdb_model::key::slot_start;
use kvdb_model::{KeyRange, Keyspace, Partitioning, Refusal, SLOT_COUNT, slot_of};
use kvdb_redis::session::Scan;
use kvdb_redis::{Reply, glob};
use kvdb_store::Type;
use kvdb_wire::proto;
use kvdb_wire::proto::node_answer::Answer;
use kvdb_wire::proto::node_operation::Operation as Asked;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Most keys of a page.
pub(crate) const PAGE_KEYS: usize = 1000;
/// Longest that a page takes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most pages that one `SCAN` looks at before it answers with what it has.
const PAGES_PER_SCAN: usize = 16;
/// Keys of one slot that are given out at once.
const SLOT_KEYS: usize = 2000;
const HASH_BITS: u32 = 48;

/// The whole range of a keyspace.
pub(crate) fn whole(keyspace: &Keyspace) -> KeyRange {
    KeyRange::of_keyspace(keyspace.keyspace_id)
}

/// The ranges of a keyspace's shards as the map has them now; together they are all of it.
pub(crate) fn shard_starts(gateway: &Gateway, keyspace: &Keyspace) -> Vec<KeyRange> {
    let whole = whole(keyspace);
    let mut ranges = Vec::new();
    let mut rest = whole.clone();
    while !rest.is_empty() {
        let Some(route) = gateway.find(Place::At(&rest.start), None) else { break };
        let range = route.range.intersection(&rest);
        if range.is_empty() || route.range.end.is_empty() {
            break;
        }
        rest.start = route.range.end.clone();
        ranges.push(range);
    }
    if !rest.is_empty() {
        ranges.push(rest);
    }
    ranges
}

/// Keys in the order in which the shards keep them.
pub(crate) struct Page {
    pub(crate) keys: Vec<Bytes>,
    /// When those that expire do, in milliseconds since 1970.
    pub(crate) ends_ms: Vec<u64>,
    /// Where the page ends: all keys before it were seen.
    pub(crate) end: Bytes,
}

/// Pages of a range, one after the other.
pub(crate) struct Pages<'a> {
    gateway: &'a Gateway,
    keyspace: &'a Keyspace,
    range: KeyRange,
    /// Only keys of this type.
    kind: Option<&'a str>,
}

impl<'a> Pages<'a> {
    pub(crate) fn new(gateway: &'a Gateway, keyspace: &'a Keyspace, range: KeyRange) -> Self {
        Pages { gateway, keyspace, range: range.intersection(&whole(keyspace)), kind: None }
    }

    fn of(self, kind: Option<&'a str>) -> Self {
        Pages { kind, ..self }
    }

    fn wants(&self, item: &proto::ScanItem) -> bool {
        let kind = if item.r#type.is_empty() { Type::String.name() } else { &item.r#type };
        self.kind.is_none_or(|wanted| wanted == kind)
    }

    /// The next page, which may be empty before the end.
    pub(crate) async fn next(&mut self, limit: usize) -> Result<Option<Page>, Refusal> {
        if self.range.is_empty() {
            return Ok(None);
        }
        let deadline = Instant::now() + PATIENCE;
        let range = self.range.clone();
        let build = |route: &kvdb_router::Route, _: Stamping<'_>| {
            Asked::Scan(proto::NodeScanRequest {
                shard_id: route.shard_id.0,
                epoch: route.epoch.0,
                start: range.start.clone(),
                end: range.end.clone(),
                limit: limit.clamp(1, PAGE_KEYS) as u32,
                keys_only: true,
                ..Default::default()
            })
        };
        let asked =
            self.gateway.ask(Place::At(&range.start), Nature::Read, deadline, build).await?;
        let (answer, route) = (asked.answer, asked.route);
        let Answer::Scan(answer) = answer else { return Err(other_kind()) };
        let end = if answer.resume.is_empty() { route.range.end } else { answer.resume };
        let end = if end.is_empty() || end > self.range.end { self.range.end.clone() } else { end };
        self.range.start = end.clone();
        let ends = answer.items.iter().map(|item| item.expires_at_ms).filter(|end| *end > 0);
        let ends_ms = ends.collect();
        let wanted = answer.items.into_iter().filter(|item| self.wants(item));
        let keys = wanted.map(|item| item.key).collect();
        Ok(Some(Page { keys, ends_ms, end }))
    }

    fn slot_at(&self, routing_key: &[u8]) -> u16 {
        slot_in(self.keyspace, routing_key)
    }
}

/// The slot that a routing key lies in; the number of slots beyond the last.
fn slot_in(keyspace: &Keyspace, routing_key: &[u8]) -> u16 {
    let own = keyspace.keyspace_id.0.to_be_bytes();
    match routing_key.strip_prefix(&own[..]) {
        Some([high, low, ..]) => u16::from_be_bytes([*high, *low]).min(SLOT_COUNT),
        Some([high]) => u16::from_be_bytes([*high, 0]).min(SLOT_COUNT),
        Some([]) => 0,
        None => SLOT_COUNT,
    }
}

/// Some key, from a place that the clock chooses.
pub(crate) async fn any_key(
    gateway: &Gateway,
    keyspace: &Keyspace,
) -> Result<Option<Bytes>, Refusal> {
    let random =
        gateway.seeds.fetch_add(0x9e37_79b9_7f4a_7c15, std::sync::atomic::Ordering::Relaxed);
    let slot = (random >> 20) as u16 % SLOT_COUNT;
    let middle = slot_start(keyspace.keyspace_id, slot);
    let whole = whole(keyspace);
    let after = KeyRange { start: middle.clone(), end: whole.end.clone() };
    let before = KeyRange { start: whole.start, end: middle };
    for range in [after, before] {
        let mut pages = Pages::new(gateway, keyspace, range);
        while let Some(page) = pages.next(16).await? {
            if !page.keys.is_empty() {
                let place = (random >> 8) as usize % page.keys.len();
                return Ok(page.keys.get(place).cloned());
            }
        }
    }
    Ok(None)
}

/// One `SCAN`.
pub(crate) async fn step(
    gateway: &Gateway,
    keyspace: &Keyspace,
    asked: &Scan,
) -> Result<Reply, Refusal> {
    if keyspace.partitioning != Partitioning::Hash {
        return Ok(Reply::error("SCAN walks hash keyspaces alone"));
    }
    let (slot, hash) = ((asked.cursor >> HASH_BITS) as u16, asked.cursor & ((1 << HASH_BITS) - 1));
    let (cursor, keys) = if slot >= SLOT_COUNT {
        (0, vec![])
    } else {
        walk(gateway, keyspace, (slot, hash), asked).await?
    };
    let wanted =
        |key: &Bytes| asked.pattern.as_ref().is_none_or(|pattern| glob::matches(pattern, key));
    let keys = keys.into_iter().filter(wanted).map(Reply::Bulk).collect();
    Ok(Reply::Array(vec![Reply::text(cursor.to_string()), Reply::Array(keys)]))
}

async fn walk(
    gateway: &Gateway,
    keyspace: &Keyspace,
    (slot, hash): (u16, u64),
    asked: &Scan,
) -> Result<(u64, Vec<Bytes>), Refusal> {
    let count = asked.count;
    if hash > 0 {
        return inside_slot(gateway, keyspace, (slot, hash), asked).await;
    }
    let start = slot_start(keyspace.keyspace_id, slot);
    let range = KeyRange { start, end: whole(keyspace).end };
    let mut pages = Pages::new(gateway, keyspace, range).of(asked.kind.as_deref());
    let mut keys: Vec<Bytes> = Vec::new();
    for _ in 0..PAGES_PER_SCAN {
        let left = count.saturating_sub(keys.len()).clamp(1, PAGE_KEYS);
        let Some(page) = pages.next(left).await? else { return Ok((0, keys)) };
        keys.extend(page.keys);
        // The slot in which the page ends isn't complete.
        let open = pages.slot_at(&page.end);
        if keys.len() < count {
            continue;
        }
        let whole = keys.iter().filter(|key| slot_of(key) < open).count();
        if whole > 0 || open > slot {
            keys.retain(|key| slot_of(key) < open);
            return Ok((cursor(open, 0), keys));
        }
        return inside_slot(gateway, keyspace, (slot, 0), asked).await;
    }
    let open = match pages.range.is_empty() {
        true => return Ok((0, keys)),
        false => pages.slot_at(&pages.range.start),
    };
    keys.retain(|key| slot_of(key) < open);
    if open > slot {
        return Ok((cursor(open, 0), keys));
    }
    inside_slot(gateway, keyspace, (slot, 0), asked).await
}

/// Keys of one slot, from a hash on: the lowest hashes.
async fn inside_slot(
    gateway: &Gateway,
    keyspace: &Keyspace,
    (slot, from): (u16, u64),
    asked: &Scan,
) -> Result<(u64, Vec<Bytes>), Refusal> {
    let most = asked.count.clamp(SLOT_KEYS, 10 * SLOT_KEYS);
    let id = keyspace.keyspace_id;
    let end = if slot + 1 == SLOT_COUNT { whole(keyspace).end } else { slot_start(id, slot + 1) };
    let range = KeyRange { start: slot_start(id, slot), end };
    let mut pages = Pages::new(gateway, keyspace, range).of(asked.kind.as_deref());
    let mut lowest: BTreeMap<u64, Vec<Bytes>> = BTreeMap::new();
    let mut held = 0;
    let mut more = false;
    while let Some(page) = pages.next(PAGE_KEYS).await? {
        for key in page.keys {
            let hash = hash_of(&key);
            if hash < from {
                continue;
            }
            lowest.entry(hash).or_default().push(key);
            held += 1;
            if held > most && lowest.len() > 1 {
                more = true;
                held -= lowest.pop_last().map_or(0, |(_, keys)| keys.len());
            }
        }
    }
    let next = match (more, lowest.last_key_value()) {
        (true, Some((hash, _))) if *hash + 1 < 1 << HASH_BITS => cursor(slot, hash + 1),
        _ => cursor(slot + 1, 0),
    };
    Ok((next, lowest.into_values().flatten().collect()))
}

fn cursor(slot: u16, hash: u64) -> u64 {
    if slot >= SLOT_COUNT { 0 } else { u64::from(slot) << HASH_BITS | hash }
}

/// The same at every gateway and in every version (FNV-1a, its upper bits).
fn hash_of(key: &[u8]) -> u64 {
    let hash = key.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash ^ hash >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - HASH_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::KeyspaceId;

    fn keyspace() -> Keyspace {
        Keyspace::new(KeyspaceId(3), "k", Partitioning::Hash)
    }

    #[test]
    fn a_place_lies_in_the_slot_it_was_made_of() {
        let keyspace = keyspace();
        for slot in [0, 1, 255, 256, SLOT_COUNT - 1] {
            assert_eq!(slot_in(&keyspace, &slot_start(KeyspaceId(3), slot)), slot);
        }
        assert_eq!(slot_in(&keyspace, &whole(&keyspace).end), SLOT_COUNT);
        assert_eq!(slot_in(&keyspace, &whole(&keyspace).start), 0);
    }

    #[test]
    fn the_cursor_after_the_last_slot_is_the_end() {
        assert_eq!(cursor(SLOT_COUNT, 0), 0);
        assert_eq!(cursor(2, 5) >> HASH_BITS, 2);
        assert!(cursor(SLOT_COUNT - 1, (1 << HASH_BITS) - 1) < 1 << 63);
    }

    #[test]
    fn hashes_stay_as_cursors_of_other_gateways_know_them() {
        assert_eq!(hash_of(b""), hash_of(b""));
        assert_ne!(hash_of(b"a"), hash_of(b"b"));
        assert!(hash_of(b"key:1") < 1 << HASH_BITS);
    }
}
