//! A keyspace that keeps its changes, and a copy of it that is brought up to date after an absence.
//!
//! ```text
//! kvdb dev --temporary &
//! cargo run -p kvdb-client --example history -- 127.0.0.1:7400
//! ```

#![allow(dead_code, reason = "a test includes this file, and calls `run`")]

use bytes::Bytes;
use kvdb_client::{AdminClient, Client, Options, ScanOptions, Watch, WatchOptions, WatchUpdate};
use kvdb_model::{HistoryLimits, NewKeyspace, Partitioning, Version};
use std::collections::BTreeMap;
use std::error::Error;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7400".to_owned());
    run(&endpoint).await
}

type Copy = BTreeMap<Bytes, (Bytes, Version)>;

/// Everything, against a gateway.
pub async fn run(endpoint: &str) -> Result<(), Box<dyn Error>> {
    let name = "example-orders";
    let admin = AdminClient::new(Options::to(endpoint))?;
    let limits = HistoryLimits { max_age_ms: 24 * 3_600_000, max_bytes: 32 << 20 };
    let layout = Partitioning::Range;
    let new =
        NewKeyspace { partitioning: layout, history: Some(limits), ..NewKeyspace::named(name) };
    admin.create_keyspace_as(&new).await?;
    let orders = Client::new(Options::to(endpoint))?.keyspace(name);

    // First the watch, then the scan: nothing falls in between, and what comes twice does no harm.
    let mut watch = orders.watch(WatchOptions::default());
    while !matches!(watch.next().await?, WatchUpdate::Progress(_)) {}
    orders.put("1", "ordered").await?;
    let mut copy = read_all(&orders).await?;

    // Away for a while, with nothing kept but the copy and the cursor.
    let cursor = watch.cursor().clone();
    drop(watch);
    orders.put("1", "paid").await?;
    orders.put("2", "ordered").await?;
    let last = orders.delete("2").await?.version;

    let mut watch = orders.watch(WatchOptions { cursor, ..WatchOptions::default() });
    catch_up(&orders, &mut watch, &mut copy, last).await?;
    assert_eq!(copy.len(), 1);
    assert_eq!(&copy[&b"1"[..]].0[..], b"paid");
    admin.drop_keyspace(name).await?;
    Ok(())
}

async fn read_all(orders: &Client) -> Result<Copy, Box<dyn Error>> {
    let mut copy = Copy::new();
    let mut scan = orders.scan(ScanOptions::default());
    while let Some(chunk) = scan.next_chunk().await? {
        copy.extend(chunk.into_iter().map(|item| (item.key, (item.value, item.version))));
    }
    Ok(copy)
}

/// Takes changes over until that of a version has come.
async fn catch_up(
    orders: &Client,
    watch: &mut Watch,
    copy: &mut Copy,
    last: Version,
) -> Result<(), Box<dyn Error>> {
    loop {
        match watch.next().await? {
            WatchUpdate::Events(events) => {
                for event in &events {
                    // The scan may have seen it already, or a later one.
                    let is_old = copy.get(&event.key).is_some_and(|(_, at)| *at > event.version);
                    match &event.value {
                        _ if is_old => {}
                        Some(value) => {
                            copy.insert(event.key.clone(), (value.clone(), event.version));
                        }
                        None => {
                            copy.remove(&event.key);
                        }
                    }
                }
                if events.iter().any(|event| event.version >= last) {
                    return Ok(());
                }
            }
            // Away for longer than the history goes back: begin with a new copy.
            WatchUpdate::Gap(_) => *copy = read_all(orders).await?,
            WatchUpdate::Progress(_) => {}
        }
    }
}
