//! What a Redis client sends: any bytes, cut anywhere, and whatever commands they come to.

use bytes::BytesMut;
use kvdb_redis::dump;
use kvdb_redis::{Parser, ProtocolError, Request, Session};

/// More than this a request under way may not hold beside its own bytes, for each of them.
const HELD_PER_BYTE: usize = 16;

/// The first byte chooses how the rest is cut. Requests must not depend on it; each is then given to
/// a connection.
pub fn redis_requests(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else { return };
    let whole = read(&[stream]);
    let pieces: Vec<&[u8]> = stream.chunks(usize::from(*cut) + 1).collect();
    assert_eq!(read(&pieces), whole, "it depends on how the stream is cut");
    let mut session = Session::new(1);
    for request in whole.0 {
        let _ = session.take(request, 1_700_000_000_000);
    }
}

fn read(pieces: &[&[u8]]) -> (Vec<Request>, Option<ProtocolError>) {
    let mut parser = Parser::default();
    let mut input = BytesMut::new();
    let mut requests = Vec::new();
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            match parser.next(&mut input) {
                Ok(Some(request)) => requests.push(request),
                Ok(None) => break,
                Err(error) => return (requests, Some(error)),
            }
        }
        let most = HELD_PER_BYTE * (input.len() + 64);
        assert!(parser.held_bytes() <= most, "it holds more than what has come");
    }
    (requests, None)
}

/// What a client gives to `RESTORE`: any bytes, and the same under a right checksum. What is taken for good
/// must be the same after it was dumped.
pub fn redis_dumps(data: &[u8]) {
    let sealed = dump::sealed(data.to_vec());
    for content in [dump::read(data), dump::read(&sealed)].into_iter().flatten() {
        let again = dump::read(&dump::of(&content));
        assert_eq!(again.as_ref(), Ok(&content), "a dump comes back as another");
    }
}
