//! The data API against a real cluster of three nodes: one process, real sockets and files.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use bytes::Bytes;
use kvdb_client::{
    AdminClient, BatchOperation, Client, Consistency, Options, ReadOptions, Reply, ScanOptions,
    Watch, WatchEvent, WatchOptions, WatchUpdate, WriteOptions,
};
use kvdb_model::{NodeId, Partitioning, Refusal, ShardId, Version};
use kvdb_wire::proto;
use kvdb_wire::proto::kv_client::KvClient;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
const GATEWAY_PORT: u16 = 7400;

struct Cluster {
    process: Child,
    endpoint: String,
    folder: tempfile::TempDir,
    /// Kept open: a process that can't print ends.
    _stdout: Option<ChildStdout>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

impl Cluster {
    fn start() -> Self {
        // Ports are taken in a block: somebody else may have one of them, so there are tries.
        for _ in 0..10 {
            if let Some(cluster) = Self::try_start() {
                return cluster;
            }
        }
        panic!("no development cluster comes up");
    }

    fn try_start() -> Option<Self> {
        let offset = kvdb_torture::free_offset().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        // Killed, it removes nothing itself: its temporary directory is in the test's own.
        let process = Command::new(env!("CARGO_BIN_EXE_kvdb"))
            .env("TMPDIR", folder.path())
            .args(["dev", "--temporary", "--shards", "4", "--port-offset", &offset.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let endpoint = format!("127.0.0.1:{}", GATEWAY_PORT + offset);
        let mut cluster = Cluster { process, endpoint, folder, _stdout: None };
        let mut stdout = BufReader::new(cluster.process.stdout.take().unwrap());
        let mut line = String::new();
        while stdout.read_line(&mut line).unwrap() > 0 {
            if line.contains("KvDB is ready") {
                cluster._stdout = Some(stdout.into_inner());
                return Some(cluster);
            }
        }
        None
    }

    fn options(&self) -> Options {
        Options { deadline: PATIENCE, ..Options::to(&self.endpoint) }
    }

    fn client(&self) -> Client {
        Client::new(self.options()).unwrap()
    }

    fn admin(&self) -> AdminClient {
        AdminClient::new(self.options()).unwrap()
    }

    /// The generated client, without retries or mending of its own.
    async fn bare(&self) -> KvClient<tonic::transport::Channel> {
        let endpoint = kvdb_wire::transport::endpoint(&self.endpoint).unwrap();
        KvClient::new(endpoint.connect().await.unwrap())
            .max_decoding_message_size(kvdb_wire::transport::MAX_MESSAGE_BYTES)
    }

    /// Moves the leadership of every shard to another node, and waits until it is there.
    async fn move_leaders(&self, turn: usize) {
        let admin = self.admin();
        let map = admin.shard_map().await.unwrap();
        let mut wanted: BTreeMap<ShardId, NodeId> = BTreeMap::new();
        for shard in map.shards.values() {
            let nodes: Vec<NodeId> =
                shard.descriptor.replicas.iter().map(|replica| replica.node_id).collect();
            let other = nodes[turn % nodes.len()];
            wanted.insert(shard.descriptor.shard_id, other);
        }
        let mut asked_at = None;
        loop {
            let map = admin.shard_map().await.unwrap();
            let elsewhere =
                |(shard, node): &(&ShardId, &NodeId)| map.shards[shard].leader != Some(**node);
            let mut open = wanted.iter().filter(elsewhere).peekable();
            if open.peek().is_none() {
                return;
            }
            // Again after each change: the cluster spreads leaders by itself meanwhile.
            if asked_at != Some(map.version) {
                for (shard, node) in open {
                    admin.set_shard_leader(*shard, *node).await.unwrap();
                }
                asked_at = Some(map.version);
            }
            tokio::task::yield_now().await;
        }
    }
}

async fn update(watch: &mut Watch) -> WatchUpdate {
    tokio::time::timeout(PATIENCE, watch.next()).await.expect("a watch says something").unwrap()
}

/// Hears changes until there are so many.
async fn hear(watch: &mut Watch, count: usize) -> Vec<WatchEvent> {
    let mut events = Vec::new();
    while events.len() < count {
        match update(watch).await {
            WatchUpdate::Events(more) => events.extend(more),
            WatchUpdate::Progress(_) => {}
            WatchUpdate::Gap(version) => panic!("a gap up to {version}"),
        }
    }
    events
}

/// A watch that stands.
async fn watch(client: &Client, options: WatchOptions) -> Watch {
    let mut watch = client.watch(options);
    assert!(matches!(update(&mut watch).await, WatchUpdate::Progress(_)));
    watch
}

fn with_prefix(prefix: &str) -> WatchOptions {
    WatchOptions { prefix: Bytes::from(prefix.to_owned()), ..WatchOptions::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_through_changes_of_leaders_and_gateways_misses_and_repeats_nothing() {
    let cluster = Cluster::start();
    let client = cluster.client();
    let mut first = watch(&client, with_prefix("w-")).await;
    let writer = {
        let client = client.clone();
        tokio::spawn(async move {
            let mut written = Vec::new();
            for number in 0..400 {
                let key = format!("w-{}", number % 20);
                let value = Bytes::from(number.to_string());
                let version = if number % 7 == 6 {
                    let deleted = client.delete(key.clone()).await.unwrap();
                    if !deleted.applied {
                        continue;
                    }
                    written.push((key, None, deleted.version));
                    continue;
                } else {
                    client.put(key.clone(), value.clone()).await.unwrap().version
                };
                written.push((key, Some(value), version));
                client.put(format!("other-{number}"), "x").await.unwrap();
            }
            written
        })
    };
    let mover = async {
        for turn in 0..10 {
            cluster.move_leaders(turn).await;
        }
    };
    let listener = async {
        let mut heard = hear(&mut first, 100).await;
        // Another client goes on where this one was.
        let cursor = first.cursor().clone();
        drop(first);
        let mut second = cluster.client().watch(WatchOptions { cursor, ..with_prefix("w-") });
        let written = writer.await.unwrap();
        heard.extend(hear(&mut second, written.len() - heard.len()).await);
        (heard, written)
    };
    let ((), (heard, written)) = tokio::join!(mover, listener);
    // In the order of each key, which is on one shard.
    let by_key = |key: &str| {
        let heard: Vec<_> = heard
            .iter()
            .filter(|event| event.key == key.as_bytes())
            .map(|event| (event.value.clone(), event.version))
            .collect();
        let written: Vec<_> = written
            .iter()
            .filter(|(written, ..)| written == key)
            .map(|(_, value, version)| (value.clone(), *version))
            .collect();
        (heard, written)
    };
    assert_eq!(heard.len(), written.len());
    for number in 0..20 {
        let (heard, written) = by_key(&format!("w-{number}"));
        assert_eq!(heard, written, "w-{number}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_key_is_watched_from_a_version_on() {
    let cluster = Cluster::start();
    let client = cluster.client();
    let first = client.put("k", "1").await.unwrap().version;
    client.put("k", "2").await.unwrap();
    client.put("k2", "no").await.unwrap();
    client.batch_write(&[BatchOperation::delete("k")], false).await.unwrap();
    let key = Bytes::from("k");
    let options = WatchOptions { key, from_version: Some(first), ..WatchOptions::default() };
    let mut watched = client.watch(options);
    let heard = hear(&mut watched, 2).await;
    let values: Vec<_> = heard.iter().map(|event| event.value.clone()).collect();
    assert_eq!(values, [Some(Bytes::from("2")), None]);

    let of_others = WatchOptions { cursor: watched.cursor().clone(), ..with_prefix("k") };
    let error = client.watch(of_others).next().await.unwrap_err();
    assert!(error.to_string().contains("other keys"), "{error}");
    let long_ago = WatchOptions {
        key: Bytes::from("k"),
        from_version: Some(Version(1)),
        ..WatchOptions::default()
    };
    // The replicas have been there since the key was first written.
    assert_eq!(hear(&mut client.watch(long_ago), 3).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_key_is_hidden_at_once_and_freed_soon() {
    let cluster = Cluster::start();
    let client = cluster.client();
    let mut watched = watch(&client, with_prefix("t-")).await;
    let soon = WriteOptions { ttl_ms: Some(50), ..WriteOptions::default() };
    for number in 0..20 {
        client.put_with(format!("t-{number}"), "v", soon.clone()).await.unwrap();
    }
    client.put_with("t-kept", "v", WriteOptions { ttl_ms: Some(600_000), ..soon }).await.unwrap();
    assert!(client.expire("t-kept", None).await.unwrap().applied);
    assert!(!client.expire("t-missing", None).await.unwrap().applied);
    // 22 puts (an expiry that changes is one), then each key that has expired goes once.
    let events = hear(&mut watched, 42).await;
    let gone = events.iter().filter(|event| event.value.is_none()).count();
    assert_eq!(gone, 20);
    let kept = client.get("t-kept").await.unwrap().unwrap();
    assert_eq!((&kept.value[..], kept.expires_at_ms), (&b"v"[..], None));
    assert_eq!(client.get("t-3").await.unwrap(), None);
    client.put("n", "5").await.unwrap();
    client.expire("n", Some(40)).await.unwrap();
    while client.get("n").await.unwrap().is_some() {
        tokio::task::yield_now().await;
    }
    assert_eq!(client.increment("n", 1).await.unwrap().value, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_into_an_answer_is_marked_and_comes_when_asked_again() {
    let cluster = Cluster::start();
    let client = cluster.client();
    let value = Bytes::from(vec![7; 1 << 20]);
    let keys: Vec<Bytes> = (0..40).map(|number| Bytes::from(format!("big-{number}"))).collect();
    for key in &keys {
        client.put(key.clone(), value.clone()).await.unwrap();
    }
    let request = proto::BatchGetRequest { keys: keys.clone(), ..Default::default() };
    let answer = cluster.bare().await.batch_get(request).await.unwrap().into_inner();
    assert_eq!(answer.results.len(), 40);
    let marked = answer.results.iter().filter_map(|result| result.refusal.as_ref());
    let marked: Vec<_> = marked.map(|refusal| refusal.code.clone()).collect();
    assert!((20..30).contains(&marked.len()), "{}", marked.len());
    assert!(marked.iter().all(|code| code == "RESPONSE_TOO_LARGE"));

    let mut asked = keys.clone();
    asked.push(Bytes::from("missing"));
    asked.push(keys[0].clone());
    let found = client.batch_get(asked, ReadOptions::default()).await.unwrap();
    assert!(
        found[..40].iter().all(|found| found.as_ref().unwrap().as_ref().unwrap().value == value)
    );
    assert_eq!(found[40].as_ref().unwrap(), &None);
    assert!(found[41].as_ref().unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_serve_reads_that_need_not_be_strong_and_own_writes_are_seen() {
    let cluster = Cluster::start();
    let client = cluster.client();
    let mut served_by = std::collections::BTreeSet::new();
    for number in 0..60 {
        let version = client.put("k", number.to_string()).await.unwrap().version;
        let consistency =
            if number % 2 == 0 { Consistency::Eventual } else { Consistency::Bounded };
        let own = ReadOptions { consistency, min_version: version, ..ReadOptions::default() };
        let record = client.get_with("k", own).await.unwrap().unwrap();
        assert_eq!(record.value, number.to_string());
        assert!(record.as_of >= version);
        let any = ReadOptions { consistency, ..ReadOptions::default() };
        // Without a version to ask for, a replica may not have heard of the very first one yet.
        let seen = client.get_with("k", any).await.unwrap();
        assert!(seen.is_some() || number == 0);
        served_by.extend(seen.map(|record| record.served_by));
        let many = client.batch_get(vec!["k".into(), "x".into()], own).await.unwrap();
        assert_eq!(many[0].as_ref().unwrap().as_ref().unwrap().value, number.to_string());
    }
    assert_eq!(served_by.len(), 3, "every replica serves some: {served_by:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_serve_commands_that_only_read_and_own_writes_are_seen() {
    let cluster = Cluster::start();
    let client = cluster.client();
    let run = async |line: &str, options| {
        client.execute_with(line.split(' ').map(|word| Bytes::from(word.to_owned())), options).await
    };
    let strong = ReadOptions::default();
    let mut served_by = std::collections::BTreeSet::new();
    for number in 0..60 {
        let pushed = run(&format!("rpush list {number}"), strong).await.unwrap();
        assert_eq!((pushed.reply, pushed.served_by), (Reply::Integer(number + 1), NodeId(0)));
        let consistency =
            if number % 2 == 0 { Consistency::Eventual } else { Consistency::Bounded };
        let own = ReadOptions { consistency, min_version: pushed.version, ..strong };
        let last = run("lindex list -1", own).await.unwrap();
        assert_eq!(last.reply, Reply::Bytes(number.to_string().into()));
        assert!(last.as_of >= pushed.version && last.version == Version::ZERO);
        let seen = run("llen list", ReadOptions { consistency, ..strong }).await.unwrap();
        let Reply::Integer(length) = seen.reply else { panic!("{seen:?}") };
        assert!((0..=number + 1).contains(&length), "{length} of {number}");
        served_by.insert(seen.served_by);
        // Keys of several shards: each is read so.
        let many = run("exists list x y z", own).await;
        // A version of one shard may lie ahead of another one, which is then waited for.
        assert_eq!(many.unwrap().reply, Reply::Integer(1));
    }
    assert_eq!(served_by.len(), 3, "every replica serves some: {served_by:?}");

    // What is over is over at every replica, whatever it has heard of.
    run("hset hash f v g w", strong).await.unwrap();
    let expiring = run("hpexpire hash 300 fields 1 f", strong).await.unwrap();
    let bounded = |max_staleness_ms| ReadOptions {
        consistency: Consistency::Bounded,
        max_staleness_ms: Some(max_staleness_ms),
        min_version: expiring.version,
        ..strong
    };
    let until = Instant::now() + PATIENCE;
    while run("hlen hash", bounded(60_000)).await.unwrap().reply != Reply::Integer(1) {
        assert!(Instant::now() < until, "the field never ends");
    }
    for _ in 0..10 {
        let told = run("hgetall hash", bounded(60_000)).await.unwrap();
        let (g, w) = (Reply::Bytes("g".into()), Reply::Bytes("w".into()));
        assert_eq!(told.reply, Reply::Map(vec![(g, w)]));
    }

    // What may change something can't be carried out on an older state.
    for (line, options, field) in [
        ("lpop list", ReadOptions { consistency: Consistency::Bounded, ..strong }, "consistency"),
        ("set k v", ReadOptions { consistency: Consistency::Eventual, ..strong }, "consistency"),
        ("hset h f v", ReadOptions { max_staleness_ms: Some(5), ..strong }, "max_staleness_ms"),
        ("zadd z 1 m", ReadOptions { min_version: Version(1), ..strong }, "min_version"),
    ] {
        let refused = run(line, options).await.unwrap_err();
        let Some(Refusal::InvalidArgument { field: named, problem }) = refused.refusal() else {
            panic!("{line}: {refused}");
        };
        let command = line.split(' ').next().unwrap().to_uppercase();
        assert!(*named == field && problem.contains(&command), "{line}: {refused}");
    }
    assert_eq!(run("llen list", strong).await.unwrap().reply, Reply::Integer(60));
    assert_eq!(run("exists k h z", strong).await.unwrap().reply, Reply::Integer(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_over_all_shards_are_put_together_in_order() {
    let cluster = Cluster::start();
    let client = cluster.client();
    let operations: Vec<_> =
        (0..500).map(|n| BatchOperation::put(format!("b{n}"), n.to_string())).collect();
    let written = client.batch_write(&operations, false).await.unwrap();
    assert!(written.iter().all(|result| result.as_ref().unwrap().applied));
    let keys: Vec<Bytes> = (0..500).rev().map(|n| Bytes::from(format!("b{n}"))).collect();
    let found = client.batch_get(keys, ReadOptions::default()).await.unwrap();
    for (place, found) in found.into_iter().enumerate() {
        assert_eq!(found.unwrap().unwrap().value, (499 - place).to_string());
    }
    let error = client.batch_write(&operations, true).await.unwrap_err();
    assert!(matches!(error.refusal(), Some(Refusal::CrossShard { .. })), "{error}");
    let together = ["{t}a", "{t}b", "{t}c"].map(|key| BatchOperation::put(key, "1"));
    let written = client.batch_write(&together, true).await.unwrap();
    let versions: std::collections::BTreeSet<_> =
        written.into_iter().map(|result| result.unwrap().version).collect();
    assert_eq!(versions.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_keyspace_is_scanned_in_order_and_watched_by_prefix() {
    let cluster = Cluster::start();
    cluster.admin().create_keyspace("sorted", Partitioning::Range, 0, 0).await.unwrap();
    let client = cluster.client().keyspace("sorted");
    let mut watched = watch(&client, with_prefix("k1")).await;
    for number in [3, 1, 2, 10, 11] {
        client.put(format!("k{number}"), number.to_string()).await.unwrap();
    }
    let heard = hear(&mut watched, 3).await;
    let heard: Vec<_> = heard.into_iter().map(|event| event.key).collect();
    assert_eq!(heard, ["k1", "k10", "k11"].map(Bytes::from));
    let mut scan = client.scan(ScanOptions { start: "k1".into(), ..ScanOptions::default() });
    let mut keys = Vec::new();
    while let Some(items) = scan.next_chunk().await.unwrap() {
        keys.extend(items.into_iter().map(|item| item.key));
    }
    assert_eq!(keys, ["k1", "k10", "k11", "k2", "k3"].map(Bytes::from));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyspace_is_there_for_whoever_was_told_that_it_was_made() {
    let cluster = Cluster::start();
    let admin = cluster.admin();
    for number in 0..20 {
        let name = format!("k{number}");
        admin.create_keyspace(&name, Partitioning::Hash, 1, 0).await.unwrap();
        cluster.client().keyspace(&name).put("key", "value").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_keyspace_is_gone_and_its_name_is_free_for_an_empty_one() {
    let cluster = Cluster::start();
    let admin = cluster.admin();
    admin.create_keyspace("k", Partitioning::Hash, 2, 0).await.unwrap();
    let client = cluster.client().keyspace("k");
    client.put("key", "value").await.unwrap();
    let mut watched = watch(&client, WatchOptions::default()).await;
    admin.drop_keyspace("k").await.unwrap();
    assert!(admin.drop_keyspace("k").await.is_err());
    assert!(admin.drop_keyspace("default").await.is_err());
    let is_unknown = |error: &kvdb_client::Error| {
        matches!(error.refusal(), Some(Refusal::UnknownKeyspace { .. }))
    };
    let over = loop {
        match watched.next().await {
            Ok(WatchUpdate::Progress(_)) => {}
            other => break other.unwrap_err(),
        }
    };
    assert!(is_unknown(&over), "{over}");
    assert!(is_unknown(&client.get("key").await.unwrap_err()));

    // The nodes free what they held.
    let map = admin.shard_map().await.unwrap();
    for node in map.nodes.values() {
        let endpoint = kvdb_wire::transport::endpoint(&node.address).unwrap();
        let channel = endpoint.connect().await.unwrap();
        let mut node = kvdb_wire::proto::node_client::NodeClient::new(channel);
        // Shards 1 to 4 are those of `default`.
        for shard_id in 5..=6 {
            while node.digest(proto::NodeDigestRequest { shard_id }).await.is_ok() {
                tokio::task::yield_now().await;
            }
        }
    }
    admin.create_keyspace("k", Partitioning::Range, 0, 0).await.unwrap();
    assert_eq!(client.get("key").await.unwrap(), None);
    client.put("key", "new").await.unwrap();
}
