//! Scans: shard after shard, a page at a time, as fast as the client reads.
//!
//! A cursor holds where to go on, and is good for a scan of the same keys in the same direction only:
//!
//! ```text
//! format (u8)  2
//! checksum (u32)  CRC32C of keyspace, bounds, direction and of what follows
//! next  a routing key, never a shard, which may be split meanwhile
//! ```

use crate::route::{Gateway, Nature, Place};
use crate::service::other_kind;
use bytes::Bytes;
use kvdb_model::codec::{Reader, Writer};
use kvdb_model::key::prefix_end;
use kvdb_model::{KeyRange, Keyspace, Partitioning, Refusal};
use kvdb_wire::proto::node_answer::Answer;
use kvdb_wire::proto::node_operation::Operation as Asked;
use kvdb_wire::{proto, requests, status_of};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

const CURSOR_FORMAT: u8 = 2;
/// Pages between the nodes and the client.
const QUEUE: usize = 4;
/// Longest that one page takes, retries included.
const PAGE_PATIENCE: Duration = Duration::from_secs(30);

type Pages = ReceiverStream<Result<proto::ScanResponse, Status>>;

/// Checks a scan and starts it.
pub(crate) async fn start(
    gateway: &Gateway,
    request: proto::ScanRequest,
) -> Result<Pages, Refusal> {
    requests::check_scan(&request, &gateway.limits)?;
    let keyspace = gateway.current_keyspace(&request.keyspace).await?;
    let mut range = bounds(&keyspace, &request);
    let cursors = Cursors::new(&keyspace, &request);
    if !request.cursor.is_empty() {
        let next = cursors.read(&request.cursor, &range)?;
        if request.reverse {
            range.end = next;
        } else {
            range.start = next;
        }
    }
    let (pages, receiver) = mpsc::channel(QUEUE);
    let gateway = gateway.clone();
    tokio::spawn(async move {
        if let Err(refusal) = walk(&gateway, &keyspace, request, cursors, range, &pages).await {
            let _ = pages.send(Err(status_of(&refusal))).await;
        }
    });
    Ok(ReceiverStream::new(receiver))
}

/// The routing keys that may match. In a hash keyspace that is all of it: the nodes look at the
/// user keys.
fn bounds(keyspace: &Keyspace, request: &proto::ScanRequest) -> KeyRange {
    let whole = KeyRange::of_keyspace(keyspace.keyspace_id);
    if keyspace.partitioning == Partitioning::Hash {
        return whole;
    }
    let key = |user: &[u8]| keyspace.partitioning.routing_key(keyspace.keyspace_id, user);
    let range = if request.prefix.is_empty() {
        let end = if request.end.is_empty() { whole.end.clone() } else { key(&request.end) };
        KeyRange { start: key(&request.start), end }
    } else {
        let start = key(&request.prefix);
        KeyRange { end: prefix_end(&start), start }
    };
    range.intersection(&whole)
}

/// Makes and reads the cursors of one scan.
struct Cursors {
    /// Of what is scanned.
    checksum: u32,
}

impl Cursors {
    fn new(keyspace: &Keyspace, request: &proto::ScanRequest) -> Self {
        let mut out = Writer::new();
        out.u32(keyspace.keyspace_id.0);
        out.u8(u8::from(request.reverse));
        for bound in [&request.prefix, &request.start, &request.end] {
            out.bytes(bound);
        }
        Cursors { checksum: crc32c::crc32c(out.as_slice()) }
    }

    fn at(&self, next: &[u8]) -> Bytes {
        let mut out = Writer::with_capacity(next.len() + 5);
        out.u8(CURSOR_FORMAT);
        out.u32(crc32c::crc32c_append(self.checksum, next));
        out.raw(next);
        out.finish()
    }

    fn read(&self, cursor: &Bytes, range: &KeyRange) -> Result<Bytes, Refusal> {
        let bad = |problem: &str| Refusal::invalid("cursor", problem);
        let mut input = Reader::new(cursor.clone());
        input
            .version("cursor", CURSOR_FORMAT)
            .map_err(|_| bad("is not one that a scan of this version has given out"))?;
        let checksum = input.u32().map_err(|_| bad("is cut off"))?;
        let next = input.raw(input.remaining()).map_err(|_| bad("is cut off"))?;
        if checksum != crc32c::crc32c_append(self.checksum, &next) {
            return Err(bad(
                "is damaged, or belongs to a scan of another keyspace, with other bounds or in the \
                 other direction",
            ));
        }
        let inside = next >= range.start && (range.end.is_empty() || next <= range.end);
        if inside { Ok(next) } else { Err(bad("belongs to a scan with other bounds")) }
    }
}

async fn walk(
    gateway: &Gateway,
    keyspace: &Keyspace,
    request: proto::ScanRequest,
    cursors: Cursors,
    mut range: KeyRange,
    pages: &mpsc::Sender<Result<proto::ScanResponse, Status>>,
) -> Result<(), Refusal> {
    let mut left = if request.limit == 0 { u64::MAX } else { request.limit };
    let hash = keyspace.partitioning == Partitioning::Hash;
    while left > 0 && !range.is_empty() {
        let page = Page { request: &request, range: &range, left, hash };
        let place =
            if request.reverse { Place::Before(&range.end) } else { Place::At(&range.start) };
        let deadline = Instant::now() + PAGE_PATIENCE;
        let asked = gateway.ask(place, Nature::Read, deadline, |route, _| page.ask(route)).await?;
        let route = asked.route;
        let Answer::Scan(answer) = asked.answer else { return Err(other_kind()) };
        left -= (answer.items.len() as u64).min(left);
        let resume = (!answer.resume.is_empty()).then_some(answer.resume);
        if request.reverse {
            range.end = resume.unwrap_or(route.range.start);
        } else {
            range.start = resume.unwrap_or(route.range.end);
            if range.start.is_empty() {
                // The last shard of the whole space.
                range = KeyRange { start: range.end.clone(), end: range.end };
            }
        }
        let over = range.is_empty() || (request.reverse && range.end <= range.start);
        let next = if request.reverse { &range.end } else { &range.start };
        let cursor = if over { Bytes::new() } else { cursors.at(next) };
        let full = left == 0;
        if !answer.items.is_empty() || over || full {
            let response = proto::ScanResponse { items: answer.items, cursor };
            if pages.send(Ok(response)).await.is_err() {
                return Ok(());
            }
        }
        if over {
            return Ok(());
        }
    }
    Ok(())
}

/// What a page asks of whichever shard it is routed to.
struct Page<'a> {
    request: &'a proto::ScanRequest,
    range: &'a KeyRange,
    left: u64,
    hash: bool,
}

impl Page<'_> {
    fn ask(&self, route: &kvdb_router::Route) -> Asked {
        let user = |bound: &Bytes| if self.hash { bound.clone() } else { Bytes::new() };
        Asked::Scan(proto::NodeScanRequest {
            shard_id: route.shard_id.0,
            epoch: route.epoch.0,
            start: self.range.start.clone(),
            end: self.range.end.clone(),
            limit: self.left.min(1000) as u32,
            reverse: self.request.reverse,
            keys_only: self.request.keys_only,
            user_prefix: user(&self.request.prefix),
            user_start: user(&self.request.start),
            user_end: user(&self.request.end),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::KeyspaceId;

    fn range() -> KeyRange {
        KeyRange::of_keyspace(KeyspaceId(1))
    }

    fn cursors(keyspace: u32, request: &proto::ScanRequest) -> Cursors {
        let keyspace = Keyspace::new(KeyspaceId(keyspace), "k", Partitioning::Range);
        Cursors::new(&keyspace, request)
    }

    fn of_prefix(prefix: &'static str) -> proto::ScanRequest {
        proto::ScanRequest { prefix: prefix.into(), ..Default::default() }
    }

    #[test]
    fn a_cursor_gives_back_its_place() {
        let next = Bytes::from_static(&[0, 0, 0, 1, 9]);
        let given = cursors(1, &of_prefix("a")).at(&next);
        let later = proto::ScanRequest { limit: 3, keys_only: true, ..of_prefix("a") };
        assert_eq!(cursors(1, &later).read(&given, &range()).unwrap(), next);
    }

    #[test]
    fn a_cursor_of_another_scan_is_refused() {
        let next = Bytes::from_static(&[0, 0, 0, 1, 9]);
        let given = cursors(1, &of_prefix("a")).at(&next);
        let backwards = proto::ScanRequest { reverse: true, ..of_prefix("a") };
        let bounded =
            proto::ScanRequest { start: "a".into(), end: "b".into(), ..Default::default() };
        for other in [of_prefix("b"), of_prefix(""), backwards, bounded] {
            let refused = cursors(1, &other).read(&given, &range()).unwrap_err();
            assert!(refused.to_string().contains("belongs to a scan of another"), "{refused}");
        }
        assert!(cursors(2, &of_prefix("a")).read(&given, &range()).is_err());
    }

    #[test]
    fn a_cursor_that_was_cut_or_damaged_is_refused() {
        let cursors = cursors(1, &of_prefix("a"));
        let given = cursors.at(&[0, 0, 0, 1, 9]);
        for length in 0..given.len() {
            assert!(cursors.read(&given.slice(..length), &range()).is_err(), "{length}");
        }
        for bit in 0..given.len() * 8 {
            let mut flipped = given.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(cursors.read(&flipped.into(), &range()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn bounds_of_a_range_keyspace_are_those_of_its_user_keys() {
        let keyspace = Keyspace::new(KeyspaceId(1), "r", Partitioning::Range);
        let prefix = proto::ScanRequest { prefix: "ab".into(), ..Default::default() };
        let bounds_of = bounds(&keyspace, &prefix);
        assert!(bounds_of.contains(b"\0\0\0\x01abz") && !bounds_of.contains(b"\0\0\0\x01ac"));
        let all = bounds(&keyspace, &proto::ScanRequest::default());
        assert_eq!(all, range());
    }
}
