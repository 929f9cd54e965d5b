//! Scans: shard after shard, a page at a time, as fast as the client reads.
//!
//! A cursor holds where to go on: a format byte, the direction, and a routing key (never a shard,
//! which may be split meanwhile).

use crate::route::{Gateway, Nature, Place};
use crate::service::other_kind;
use bytes::{BufMut, Bytes, BytesMut};
use kvdb_model::key::prefix_end;
use kvdb_model::{KeyRange, Keyspace, Partitioning, Refusal};
use kvdb_wire::proto::node_answer::Answer;
use kvdb_wire::proto::node_operation::Operation as Asked;
use kvdb_wire::{proto, requests, status_of};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

const CURSOR_FORMAT: u8 = 1;
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
    if !request.cursor.is_empty() {
        let next = read_cursor(&request.cursor, request.reverse, &range)?;
        if request.reverse {
            range.end = next;
        } else {
            range.start = next;
        }
    }
    let (pages, receiver) = mpsc::channel(QUEUE);
    let gateway = gateway.clone();
    tokio::spawn(async move {
        if let Err(refusal) = walk(&gateway, &keyspace, request, range, &pages).await {
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

fn cursor(reverse: bool, next: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(next.len() + 2);
    out.put_u8(CURSOR_FORMAT);
    out.put_u8(u8::from(reverse));
    out.put_slice(next);
    out.freeze()
}

fn read_cursor(cursor: &Bytes, reverse: bool, range: &KeyRange) -> Result<Bytes, Refusal> {
    let bad = |problem: &str| Err(Refusal::invalid("cursor", problem));
    let (Some(&format), Some(&direction)) = (cursor.first(), cursor.get(1)) else {
        return bad("is not one that a scan has given out");
    };
    if format != CURSOR_FORMAT || direction > 1 {
        return bad("is not one that this version has given out");
    }
    if (direction == 1) != reverse {
        return bad("belongs to a scan in the other direction");
    }
    let next = cursor.slice(2..);
    let inside = next >= range.start && (range.end.is_empty() || next <= range.end);
    if inside { Ok(next) } else { bad("belongs to a scan with other bounds") }
}

async fn walk(
    gateway: &Gateway,
    keyspace: &Keyspace,
    request: proto::ScanRequest,
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
        let asked = gateway.ask(place, Nature::Read, deadline, |route| page.ask(route)).await?;
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
        let cursor = if over { Bytes::new() } else { cursor(request.reverse, next) };
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

    #[test]
    fn a_cursor_gives_back_its_place() {
        let next = Bytes::from_static(&[0, 0, 0, 1, 9]);
        let given = cursor(false, &next);
        assert_eq!(read_cursor(&given, false, &range()).unwrap(), next);
        assert!(read_cursor(&given, true, &range()).is_err());
    }

    #[test]
    fn a_forged_cursor_is_refused() {
        let other_keyspace = cursor(false, &[0, 0, 0, 2, 9]);
        assert!(read_cursor(&other_keyspace, false, &range()).is_err());
        for junk in [&b""[..], b"\x01", b"\x02\x00", b"\x01\x07"] {
            assert!(read_cursor(&Bytes::from_static(junk), false, &range()).is_err());
        }
    }

    #[test]
    fn bounds_of_a_range_keyspace_are_those_of_its_user_keys() {
        let keyspace = Keyspace {
            keyspace_id: KeyspaceId(1),
            name: "r".into(),
            partitioning: Partitioning::Range,
            history: Default::default(),
            replicas: 3,
        };
        let prefix = proto::ScanRequest { prefix: "ab".into(), ..Default::default() };
        let bounds_of = bounds(&keyspace, &prefix);
        assert!(bounds_of.contains(b"\0\0\0\x01abz") && !bounds_of.contains(b"\0\0\0\x01ac"));
        let all = bounds(&keyspace, &proto::ScanRequest::default());
        assert_eq!(all, range());
    }
}
