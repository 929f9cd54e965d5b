//! A scan: a stream of chunks that goes on where it was when its connection breaks.
//!
//! Each chunk that arrives brings the cursor after it, so a scan that broke off is opened again
//! from there, at whichever gateway is next. Nothing is told twice and nothing is left out.

use crate::call::{Manner, attempt, is_worth_explaining, random};
use crate::client::{Shared, kv};
use crate::error::{Effect, Error};
use crate::outgoing::Outgoing;
use crate::pool::{Connection, Hung, Pool};
use crate::retry::{Next, Retries};
use crate::types::{Item, ScanOptions, expiry_from, kind_from};
use crate::whois::explain;
use bytes::Bytes;
use futures_util::Stream;
use kvdb_model::Version;
use kvdb_wire::proto;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::time::{Instant, sleep, timeout};
use tonic::Streaming;

/// A scan under way. Dropping it ends it.
pub struct Scan {
    shared: Arc<Shared>,
    /// What is left to be asked for.
    request: proto::ScanRequest,
    limited: bool,
    open: Option<Open>,
    /// Who was asked last.
    asked: Option<Connection>,
    done: bool,
}

struct Open {
    connection: Connection,
    chunks: Streaming<proto::ScanResponse>,
}

impl Scan {
    pub(crate) fn new(shared: Arc<Shared>, keyspace: String, options: ScanOptions) -> Self {
        let request = proto::ScanRequest {
            keyspace,
            prefix: options.prefix,
            start: options.start,
            end: options.end,
            limit: options.limit.unwrap_or_default(),
            reverse: options.reverse,
            keys_only: options.keys_only,
            cursor: options.cursor,
        };
        let done = options.limit == Some(0);
        Scan { shared, request, limited: options.limit.is_some(), open: None, asked: None, done }
    }

    /// Where the scan is: [`ScanOptions::cursor`] of another that shall go on from here. Empty at
    /// the beginning and at the end.
    pub fn cursor(&self) -> &Bytes {
        &self.request.cursor
    }

    /// The next items, never none of them; `None` at the end.
    ///
    /// # Errors
    /// [`Error`] if a chunk can't be had within the deadline. The scan may be asked again.
    pub async fn next_chunk(&mut self) -> Result<Option<Vec<Item>>, Error> {
        while !self.done {
            let chunk = self.receive().await?;
            let items = self.fold(chunk);
            if !items.is_empty() {
                return Ok(Some(items));
            }
        }
        Ok(None)
    }

    /// The items one by one.
    pub fn items(self) -> impl Stream<Item = Result<Item, Error>> {
        let state = (self, VecDeque::new());
        futures_util::stream::try_unfold(state, |(mut scan, mut items)| async move {
            if items.is_empty() {
                items = scan.next_chunk().await?.unwrap_or_default().into();
            }
            Ok(items.pop_front().map(|item| (item, (scan, items))))
        })
    }

    /// The next chunk, by as many attempts as the deadline allows; `None` at the end.
    async fn receive(&mut self) -> Result<Option<proto::ScanResponse>, Error> {
        let began = Instant::now();
        let deadline = began + self.shared.options.deadline;
        let mut retries = Retries::new(&self.shared.options, Manner::READ.repeatable);
        loop {
            let error = match self.try_receive(deadline).await {
                Ok(chunk) => return Ok(chunk),
                Err(error) => error,
            };
            self.open = None;
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(asked) = &self.asked
                && is_worth_explaining(&self.shared.pool, began, left, &error)
            {
                return Err(explain(asked, error).await);
            }
            match retries.after(error, left, random()) {
                Next::Again(pause) => sleep(pause).await,
                Next::GiveUp(error) => return Err(error),
            }
        }
    }

    async fn try_receive(
        &mut self,
        deadline: Instant,
    ) -> Result<Option<proto::ScanResponse>, Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let connection = self.shared.pool.next().clone();
                let pool = &self.shared.pool;
                self.asked = Some(connection.clone());
                let chunks = open_stream(pool, &connection, &self.request, deadline).await?;
                self.open.insert(Open { connection, chunks })
            }
        };
        let Open { connection, chunks } = open;
        let address = &connection.address;
        let coming = self.shared.pool.listen(connection, chunks.message());
        match timeout(left, coming).await {
            Ok(Ok(Ok(chunk))) => {
                self.shared.pool.heard(connection);
                Ok(chunk)
            }
            Ok(Ok(Err(status))) => Err(Effect::Read.failed(address, &status)),
            Ok(Err(Hung)) => Err(Effect::Read.unanswered(address, "the gateway hangs")),
            Err(_) => Err(Effect::Read.unanswered(address, "no chunk came in time")),
        }
    }

    fn fold(&mut self, chunk: Option<proto::ScanResponse>) -> Vec<Item> {
        let Some(mut chunk) = chunk else {
            self.done = true;
            self.open = None;
            return Vec::new();
        };
        if self.limited {
            // A server that sends too much must not break the promise made here.
            chunk.items.truncate(usize::try_from(self.request.limit).unwrap_or(usize::MAX));
            self.request.limit -= chunk.items.len() as u64;
        }
        self.done = chunk.cursor.is_empty() || (self.limited && self.request.limit == 0);
        self.request.cursor = chunk.cursor;
        chunk.items.into_iter().map(item_from).collect()
    }
}

/// Opens the stream. The deadline covers the opening only: a scan as a whole has none.
async fn open_stream(
    pool: &Pool,
    connection: &Connection,
    request: &proto::ScanRequest,
    deadline: Instant,
) -> Result<Streaming<proto::ScanResponse>, Error> {
    let left = deadline.saturating_duration_since(Instant::now());
    let send = |outgoing: Outgoing, mut request: tonic::Request<proto::ScanRequest>| async move {
        request.metadata_mut().remove("grpc-timeout");
        kv(outgoing).scan(request).await
    };
    attempt(pool, connection, left, Effect::Read, request, &send).await
}

fn item_from(item: proto::ScanItem) -> Item {
    Item {
        key: item.key,
        value: item.value,
        version: Version(item.version),
        expires_at_ms: expiry_from(item.expires_at_ms),
        kind: kind_from(item.r#type),
    }
}
