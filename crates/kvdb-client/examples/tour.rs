//! The data API, a step at a time.
//!
//! ```text
//! kvdb dev --temporary &
//! cargo run -p kvdb-client --example tour -- 127.0.0.1:7400
//! ```

#![allow(dead_code, reason = "a test includes this file, and calls `run`")]

use kvdb_client::{
    BatchOperation, Client, Consistency, Options, ReadOptions, ScanOptions, WatchOptions,
    WatchUpdate, WriteOptions,
};
use kvdb_model::Condition;
use std::error::Error;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7400".to_owned());
    run(&endpoint).await
}

/// Everything, against a gateway.
pub async fn run(endpoint: &str) -> Result<(), Box<dyn Error>> {
    let client = Client::new(Options::to(endpoint))?;

    // Put and get. Keys and values are bytes.
    let written = client.put("rust-tour:greeting", "hello").await?;
    let found = client.get("rust-tour:greeting").await?.ok_or("it was just written")?;
    assert_eq!(&found.value[..], b"hello");

    // Compare and set: only if nobody has written since.
    let only_then = WriteOptions {
        condition: Some(Condition::IfVersion(written.version)),
        ..WriteOptions::default()
    };
    let first = client.put_with("rust-tour:greeting", "hello again", only_then.clone()).await?;
    let second = client.put_with("rust-tour:greeting", "too late", only_then).await?;
    assert!(first.applied && !second.applied);

    // A lock that lets go by itself.
    let lock = WriteOptions {
        condition: Some(Condition::IfAbsent),
        ttl_ms: Some(30_000),
        ..WriteOptions::default()
    };
    assert!(client.put_with("rust-tour:lock", "me", lock.clone()).await?.applied);
    assert!(!client.put_with("rust-tour:lock", "somebody else", lock).await?.applied);
    client.delete("rust-tour:lock").await?;

    // A counter. Calls that get lost are repeated under their request id, and count once.
    client.delete("rust-tour:visits").await?;
    client.increment("rust-tour:visits", 2).await?;
    assert_eq!(client.increment("rust-tour:visits", 3).await?.value, 5);

    // Many at once: each has a result of its own.
    let puts: Vec<_> = (0..10)
        .map(|n| BatchOperation::put(format!("rust-tour:item:{n}"), n.to_string()))
        .collect();
    for result in client.batch_write(&puts, false).await? {
        assert!(result?.applied);
    }
    // Or all or none, for keys with the same hash tag: those are on one shard.
    let both = [
        BatchOperation::put("{rust-tour:account}from", "40"),
        BatchOperation::put("{rust-tour:account}to", "60"),
    ];
    client.batch_write(&both, true).await?;
    let keys = vec!["rust-tour:item:3".into(), "rust-tour:missing".into()];
    let found = client.batch_get(keys, ReadOptions::default()).await?;
    let found: Vec<bool> =
        found.into_iter().map(|one| one.is_ok_and(|one| one.is_some())).collect();
    assert_eq!(found, [true, false]);

    // A read that any replica may serve, but not from before our own write.
    let version = client.put("rust-tour:item:3", "three").await?.version;
    let own = ReadOptions {
        consistency: Consistency::Eventual,
        min_version: version,
        ..ReadOptions::default()
    };
    let read = client.get_with("rust-tour:item:3", own).await?.ok_or("it is there")?;
    assert_eq!(&read.value[..], b"three");

    // A scan comes in chunks, as fast as they are taken.
    let mut scan =
        client.scan(ScanOptions { prefix: "rust-tour:item:".into(), ..ScanOptions::default() });
    let mut items = 0;
    while let Some(chunk) = scan.next_chunk().await? {
        items += chunk.len();
    }
    assert_eq!(items, 10);

    // A watch. Its first update says that it stands: what is written from then on is told.
    let of_items = WatchOptions { prefix: "rust-tour:item:".into(), ..WatchOptions::default() };
    let mut watch = client.watch(of_items.clone());
    assert!(matches!(watch.next().await?, WatchUpdate::Progress(_)));
    client.delete("rust-tour:item:7").await?;
    let gone = loop {
        if let WatchUpdate::Events(events) = watch.next().await? {
            break events;
        }
    };
    assert_eq!((&gone[0].key[..], &gone[0].value), (&b"rust-tour:item:7"[..], &None));
    // Another goes on from its cursor, in another process if need be.
    let cursor = watch.cursor().clone();
    drop(watch);
    client.put("rust-tour:item:8", "new").await?;
    let mut watch = client.watch(WatchOptions { cursor, ..of_items });
    let next = loop {
        if let WatchUpdate::Events(events) = watch.next().await? {
            break events;
        }
    };
    assert_eq!(&next[0].key[..], b"rust-tour:item:8");
    Ok(())
}
