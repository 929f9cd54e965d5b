//! The client against a gateway that misbehaves.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod fake;

use bytes::Bytes;
use fake::{Fake, Fault};
use futures_util::TryStreamExt as _;
use kvdb_client::{
    AdminClient, BatchOperation, Client, Error, Options, ReadOptions, ScanOptions, WriteOptions,
};
use kvdb_model::{Condition, NodeId, NodeStatus, Refusal, RetryClass, ShardId};
use std::time::Duration;

fn options(address: &str) -> Options {
    Options { first_pause: Duration::from_millis(1), ..Options::to(address) }
}

async fn cluster() -> (Fake, Client) {
    let fake = Fake::default();
    let client = Client::new(options(&fake.serve().await)).unwrap();
    (fake, client)
}

fn busy() -> Refusal {
    Refusal::ShardUnavailable { shard_id: ShardId(1), reason: "no leader" }
}

/// An address where nobody listens.
async fn nobody() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

#[tokio::test]
async fn what_is_put_is_read_until_it_is_deleted() {
    let (_fake, client) = cluster().await;
    assert_eq!(client.get("k").await.unwrap(), None);
    let written = client.put("k", "v").await.unwrap();
    let record = client.get("k").await.unwrap().unwrap();
    assert_eq!((&record.value[..], record.version), (&b"v"[..], written.version));
    assert!(client.delete("k").await.unwrap().applied);
    assert!(!client.delete("k").await.unwrap().applied);
    assert_eq!(client.get("k").await.unwrap(), None);
}

#[tokio::test]
async fn a_failed_condition_is_an_answer() {
    let (_fake, client) = cluster().await;
    client.put("k", "old").await.unwrap();
    let written = client
        .put_with(
            "k",
            "new",
            WriteOptions {
                condition: Some(Condition::IfAbsent),
                return_previous: true,
                ..Default::default()
            },
        )
        .await
        .unwrap();
    assert!(!written.applied);
    assert_eq!(&written.previous.unwrap().value[..], b"old");
}

#[tokio::test]
async fn what_was_not_carried_out_is_tried_again() {
    let (fake, client) = cluster().await;
    fake.fail_next(Fault::Refuse(busy()));
    fake.fail_next(Fault::Refuse(busy()));
    assert!(client.put("k", "v").await.unwrap().applied);
    assert_eq!(fake.state.lock().unwrap().request_ids.len(), 3);
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_takes_effect_once() {
    let (fake, client) = cluster().await;
    fake.fail_next(Fault::LoseAnswer);
    assert!(client.put("k", "v").await.unwrap().applied);
    let state = fake.state.lock().unwrap();
    assert_eq!(state.puts, 1);
    assert_eq!(state.request_ids.len(), 2);
    assert_eq!(state.request_ids[0], state.request_ids[1]);
}

#[tokio::test]
async fn a_write_without_an_id_is_never_repeated_when_its_answer_was_lost() {
    let fake = Fake::default();
    let options = Options { exactly_once: false, ..options(&fake.serve().await) };
    let client = Client::new(options).unwrap();
    fake.fail_next(Fault::LoseAnswer);
    let error = client.put("k", "v").await.unwrap_err();
    assert_eq!(error.class(), RetryClass::OutcomeUnknown, "{error}");
    assert_eq!(fake.state.lock().unwrap().request_ids, [None]);
}

/// The year 2080, where an earlier version left a shard; and 1970, where a client's clock is ahead of it.
const FAR_MS: u64 = 3_471_292_800_000;
const PAST_MS: u64 = 86_400_000;

#[tokio::test]
async fn a_write_is_stamped_anew_by_the_clock_of_a_shard_that_is_years_off() {
    for time_ms in [FAR_MS, PAST_MS] {
        let (fake, client) = cluster().await;
        fake.state.lock().unwrap().clocks = vec![("", time_ms)];
        assert!(client.put("k", "v").await.unwrap().applied);
        assert!(client.expire("k", Some(1000)).await.unwrap().applied);
        assert!(client.delete("k").await.unwrap().applied);
        let state = fake.state.lock().unwrap();
        assert_eq!(state.puts, 1);
        let ids: Vec<_> = state.request_ids.iter().flatten().collect();
        assert_eq!(ids[0].sequence, ids[1].sequence, "it is the same request");
        let stamps: Vec<u64> = ids.iter().map(|id| id.valid_until_ms).collect();
        assert_eq!(stamps[1], time_ms + 300_000);
        // The second is refused once, too; by the third time the client knows.
        assert_eq!(ids.len(), 5, "{stamps:?}");
    }
}

#[tokio::test]
async fn a_write_that_may_have_been_carried_out_is_never_stamped_anew() {
    let (fake, client) = cluster().await;
    fake.fail_next(Fault::LoseAnswer);
    let valid_until = kvdb_model::ValidUntil::Time(1);
    let shard = kvdb_model::ShardTimes { time_ms: FAR_MS, age_ms: FAR_MS };
    let client_id = "c".to_owned();
    fake.fail_next(Fault::Refuse(Refusal::RequestIdExpired {
        client_id,
        sequence: 1,
        valid_until,
        shard,
    }));
    let error = client.put("k", "v").await.unwrap_err();
    assert_eq!(error.class(), RetryClass::OutcomeUnknown, "{error}");
    let state = fake.state.lock().unwrap();
    assert_eq!(state.request_ids.len(), 2);
    assert_eq!(state.request_ids[0], state.request_ids[1]);
}

#[tokio::test]
async fn a_batch_over_shards_with_different_clocks_is_written_once() {
    let (fake, client) = cluster().await;
    fake.state.lock().unwrap().clocks = vec![("far-", FAR_MS), ("past-", PAST_MS)];
    let keys = ["far-1", "near-1", "past-1", "far-2", "near-2", "past-2"];
    let operations = keys.map(|key| BatchOperation::put(key, "v"));
    let results = client.batch_write(&operations, false).await.unwrap();
    assert!(results.iter().all(|result| result.as_ref().unwrap().applied), "{results:?}");
    let state = fake.state.lock().unwrap();
    assert_eq!(state.puts, 6);
    assert_eq!(state.data.len(), 6);
}

#[tokio::test]
async fn a_read_whose_answer_was_lost_is_asked_again() {
    let (fake, client) = cluster().await;
    fake.fail_next(Fault::LoseAnswer);
    assert_eq!(client.get("k").await.unwrap(), None);
}

#[tokio::test]
async fn a_call_ends_by_its_deadline() {
    let fake = Fake::default();
    let deadline = Duration::from_millis(500);
    let client = Client::new(Options { deadline, ..options(&fake.serve().await) }).unwrap();
    fake.fail_next(Fault::Hang);
    let read = client.get("k").await.unwrap_err();
    assert!(matches!(read, Error::Unavailable { .. }), "{read}");
    fake.fail_next(Fault::Hang);
    let write = client.put("k", "v").await.unwrap_err();
    assert!(matches!(write, Error::OutcomeUnknown { .. }), "{write}");
}

#[tokio::test]
async fn without_a_connection_nothing_was_done() {
    let deadline = Duration::from_millis(50);
    let client = Client::new(Options { deadline, ..options(&nobody().await) }).unwrap();
    let error = client.put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
}

/// A server that takes no connections keeps those waiting that want one.
#[tokio::test]
async fn a_write_that_got_no_connection_in_time_was_not_done() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    let connect = || tokio::net::TcpStream::connect(address);
    while let Ok(connected) = tokio::time::timeout(Duration::from_millis(500), connect()).await {
        waiting.push(connected.unwrap());
    }
    let options = Options {
        deadline: Duration::from_millis(50),
        exactly_once: false,
        ..options(&address.to_string())
    };
    let error = Client::new(options).unwrap().put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("no connection"), "{error}");
}

#[tokio::test]
async fn a_refused_connection_is_told_as_such() {
    let deadline = Duration::from_secs(1);
    let client = Client::new(Options { deadline, ..options(&nobody().await) }).unwrap();
    let error = client.ping().await.unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn another_gateway_takes_over_from_one_that_is_gone() {
    let fake = Fake::default();
    let addresses = format!("{},{}", nobody().await, fake.serve().await);
    let client = Client::new(options(&addresses)).unwrap();
    for _ in 0..4 {
        client.put("k", "v").await.unwrap();
    }
}

#[tokio::test]
async fn a_final_refusal_arrives_with_its_facts() {
    let (_fake, client) = cluster().await;
    let error = client.put("", "v").await.unwrap_err();
    let refusal = Refusal::invalid("key", "is empty; a key has at least 1 byte");
    assert_eq!(error.refusal(), Some(&refusal));
    let error = client.keyspace("nowhere").get("k").await.unwrap_err();
    assert_eq!(error.refusal(), Some(&Refusal::UnknownKeyspace { name: "nowhere".into() }));
}

#[tokio::test]
async fn a_batch_sends_refused_operations_again_under_the_same_id() {
    let (fake, client) = cluster().await;
    fake.fail_next(Fault::RefuseItem(1, busy()));
    let operations = [BatchOperation::put("a", "1"), BatchOperation::put("b", "2")];
    let results = client.batch_write(&operations, false).await.unwrap();
    assert!(results.iter().all(|result| result.as_ref().is_ok_and(|written| written.applied)));
    let state = fake.state.lock().unwrap();
    assert_eq!(state.puts, 2);
    assert_eq!(state.request_ids[0], state.request_ids[1]);
}

#[tokio::test]
async fn a_batch_read_answers_in_the_order_asked() {
    let (_fake, client) = cluster().await;
    client.put("a", "1").await.unwrap();
    let keys = ["b", "a", "a"].map(Bytes::from).to_vec();
    let found = client.batch_get(keys, ReadOptions::default()).await.unwrap();
    let found: Vec<bool> = found.into_iter().map(|result| result.unwrap().is_some()).collect();
    assert_eq!(found, [false, true, true]);
}

#[tokio::test]
async fn counters_count_and_say_when_they_are_none() {
    let (_fake, client) = cluster().await;
    assert_eq!(client.increment("n", 2).await.unwrap().value, 2);
    assert_eq!(client.increment("n", -5).await.unwrap().value, -3);
    client.put("n", "text").await.unwrap();
    let error = client.increment("n", 1).await.unwrap_err();
    assert!(matches!(error.refusal(), Some(Refusal::WrongValue(_))), "{error}");
}

async fn scanned(client: &Client, options: ScanOptions) -> Vec<String> {
    let items: Vec<_> = client.scan(options).items().try_collect().await.unwrap();
    items.iter().map(|item| String::from_utf8_lossy(&item.key).into_owned()).collect()
}

#[tokio::test]
async fn a_scan_that_broke_goes_on_where_it_was() {
    let (fake, client) = cluster().await;
    let keys: Vec<String> = (0..10).map(|number| format!("k{number}")).collect();
    for key in &keys {
        client.put(key.clone(), "v").await.unwrap();
    }
    assert_eq!(scanned(&client, ScanOptions::default()).await, keys);

    fake.fail_next(Fault::BreakScanAfter(2));
    fake.fail_next(Fault::BreakScanAfter(0));
    assert_eq!(scanned(&client, ScanOptions::default()).await, keys);

    fake.fail_next(Fault::BreakScanAfter(1));
    let limited = ScanOptions { limit: Some(5), ..Default::default() };
    assert_eq!(scanned(&client, limited).await, keys[..5]);
}

#[tokio::test]
async fn a_scan_resumes_from_its_cursor() {
    let (_fake, client) = cluster().await;
    for number in 0..5 {
        client.put(format!("k{number}"), "v").await.unwrap();
    }
    let mut scan = client.scan(ScanOptions::default());
    let first = scan.next_chunk().await.unwrap().unwrap();
    let rest = ScanOptions { cursor: scan.cursor().clone(), ..Default::default() };
    assert_eq!(first.len() + scanned(&client, rest).await.len(), 5);
}

#[tokio::test]
async fn a_ping_goes_there_and_back() {
    let (_fake, client) = cluster().await;
    client.ping().await.unwrap();
}

#[tokio::test]
async fn the_admin_client_follows_the_hint_to_the_leader() {
    let leader = Fake::default().with_map();
    let follower = Fake::default();
    follower.state.lock().unwrap().leader_elsewhere = Some(leader.serve().await);
    let admin = AdminClient::new(options(&follower.serve().await)).unwrap();
    assert_eq!(admin.status().await.unwrap().leader, Some(NodeId(1)));
    assert_eq!(admin.shard_map().await.unwrap().nodes.len(), 1);
    assert!(admin.init_shards(8, 3).await.unwrap().created);
}

#[tokio::test]
async fn members_that_send_each_other_the_client_do_so_until_the_deadline_only() {
    let (one, other) = (Fake::default(), Fake::default());
    let (at_one, at_other) = (one.serve().await, other.serve().await);
    one.state.lock().unwrap().leader_elsewhere = Some(at_other);
    other.state.lock().unwrap().leader_elsewhere = Some(at_one.clone());
    let deadline = Duration::from_millis(100);
    let admin = AdminClient::new(Options { deadline, ..options(&at_one) }).unwrap();
    // Refused, or cut off in the middle of the last attempt.
    let error = admin.set_shard_leader(ShardId(1), NodeId(1)).await.unwrap_err();
    assert_ne!(error.class(), RetryClass::Final, "{error}");
}

#[tokio::test]
async fn a_refused_change_of_the_cluster_names_the_field() {
    let fake = Fake::default();
    let admin = AdminClient::new(options(&fake.serve().await)).unwrap();
    let error = admin.set_node_status(NodeId(9), NodeStatus::Draining).await.unwrap_err();
    assert_eq!(error.to_string(), "node_id is not registered");
    let error = admin.register_node(7, "nowhere", "").await.unwrap_err();
    assert_eq!(error.class(), RetryClass::Final);
}

/// Passes connections on to an address, until it hangs: then it takes all and answers nothing.
struct Passage {
    address: String,
    hangs: tokio::sync::watch::Sender<bool>,
}

impl Passage {
    async fn to(target: String) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (hangs, is_hung) = tokio::sync::watch::channel(false);
        tokio::spawn(async move {
            while let Ok((inner, _)) = listener.accept().await {
                let outer = tokio::net::TcpStream::connect(&target).await.unwrap();
                let (inner, outer) = (inner.into_split(), outer.into_split());
                tokio::spawn(pass(inner.0, outer.1, is_hung.clone()));
                tokio::spawn(pass(outer.0, inner.1, is_hung.clone()));
            }
        });
        Passage { address, hangs }
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut is_hung: tokio::sync::watch::Receiver<bool>,
) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut piece = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut piece).await {
        if is_hung.wait_for(|hangs| !hangs).await.is_err() {
            return;
        }
        if to.write_all(&piece[..count]).await.is_err() {
            return;
        }
    }
}

/// A client of a gateway that can hang, and of another that is well, which share their data.
async fn two(fake: &Fake, options_of: impl Fn(&str) -> Options) -> (Passage, Client) {
    let passage = Passage::to(fake.serve().await).await;
    let both = format!("{},{}", passage.address, fake.serve().await);
    (passage, Client::new(options_of(&both)).unwrap())
}

/// "Within a second", and what a busy machine adds.
const PATIENCE: Duration = Duration::from_millis(1500);

async fn takes<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let began = std::time::Instant::now();
    let done = work.await;
    (done, began.elapsed())
}

#[tokio::test]
async fn a_hung_gateway_costs_one_call_a_second_and_no_other_call_anything() {
    let fake = Fake::default();
    let (passage, client) = two(&fake, options).await;
    client.put("k", "v").await.unwrap();
    passage.hangs.send_replace(true);
    let mut slow = 0;
    for _ in 0..20 {
        let (found, took) = takes(client.get("k")).await;
        assert!(found.unwrap().is_some());
        assert!(took < PATIENCE, "{took:?}");
        slow += usize::from(took > Duration::from_millis(200));
    }
    assert!(slow <= 1, "{slow} calls waited");
    passage.hangs.send_replace(false);
}

#[tokio::test]
async fn a_short_deadline_leaves_time_for_another_gateway() {
    let fake = Fake::default();
    let short = |both: &str| Options { deadline: Duration::from_millis(800), ..options(both) };
    let (passage, client) = two(&fake, short).await;
    passage.hangs.send_replace(true);
    for n in 0..4 {
        client.put(format!("k{n}"), "v").await.unwrap();
    }
}

#[tokio::test]
async fn a_write_that_must_not_be_repeated_goes_where_somebody_is() {
    let fake = Fake::default();
    let once = |both: &str| Options { exactly_once: false, ..options(both) };
    let (passage, client) = two(&fake, once).await;
    passage.hangs.send_replace(true);
    for n in 0..4 {
        let (written, took) = takes(client.put(format!("k{n}"), "v")).await;
        assert!(written.unwrap().applied);
        assert!(took < PATIENCE, "{took:?}");
    }
    assert_eq!(fake.state.lock().unwrap().puts, 4);
}

#[tokio::test]
async fn a_slow_answer_of_a_gateway_that_is_well_is_waited_for() {
    let fake = Fake::default();
    let deadline = Duration::from_secs(2);
    let slow = |both: &str| Options { deadline, exactly_once: false, ..options(both) };
    let (_passage, client) = two(&fake, slow).await;
    fake.fail_next(Fault::Hang);
    let (written, took) = takes(client.put("k", "v")).await;
    assert_eq!(written.unwrap_err().class(), RetryClass::OutcomeUnknown);
    assert!(took >= deadline, "{took:?}");
    assert_eq!(fake.state.lock().unwrap().request_ids.len(), 1, "it was sent once");
}

#[tokio::test]
async fn a_scan_goes_on_elsewhere_when_its_gateway_hangs() {
    let fake = Fake::default();
    let (passage, client) = two(&fake, options).await;
    for n in 0..30 {
        client.put(format!("k{n:02}"), "v").await.unwrap();
    }
    let mut keys = Vec::new();
    // One of the two runs through the passage.
    for _ in 0..2 {
        let mut scan = client.scan(ScanOptions::default());
        keys.extend(scan.next_chunk().await.unwrap().unwrap());
        passage.hangs.send_replace(true);
        loop {
            let (chunk, took) = takes(scan.next_chunk()).await;
            assert!(took < PATIENCE, "{took:?}");
            let Some(chunk) = chunk.unwrap() else { break };
            keys.extend(chunk);
        }
        passage.hangs.send_replace(false);
    }
    let keys: Vec<_> = keys.iter().map(|item| item.key.clone()).collect();
    let whole: Vec<_> = (0..30).map(|n| Bytes::from(format!("k{n:02}"))).collect();
    assert_eq!(keys, [&whole[..], &whole[..]].concat());
}

#[tokio::test]
async fn where_nobody_listens_a_call_says_so_within_a_second_and_what_to_do() {
    let both = format!("{},{}", nobody().await, nobody().await);
    for addresses in [nobody().await, both] {
        let client = Client::new(Options::to(&addresses)).unwrap();
        let admin = AdminClient::new(Options::to(&addresses)).unwrap();
        let mut scan = client.scan(ScanOptions::default());
        for (error, took) in [
            takes(async { client.get("k").await.unwrap_err() }).await,
            takes(async { client.put("k", "v").await.unwrap_err() }).await,
            takes(async { scan.next_chunk().await.unwrap_err() }).await,
            takes(async { admin.status().await.unwrap_err() }).await,
        ] {
            assert!(took < PATIENCE, "{took:?}");
            assert!(matches!(error, Error::Unavailable { .. }), "{error}");
            let words = error.to_string();
            for part in ["nothing listens there", "refused", "kvdb dev", "--endpoint"] {
                assert!(words.contains(part), "{words}");
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_was_answered_before_waits_for_its_gateway_to_come_back() {
    let fake = Fake::default();
    let passage = Passage::to(fake.serve().await).await;
    let client = Client::new(options(&passage.address)).unwrap();
    client.put("k", "v").await.unwrap();
    passage.hangs.send_replace(true);
    let coming_back = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        passage.hangs.send_replace(false);
    };
    let (found, ()) = tokio::join!(client.get("k"), coming_back);
    assert!(found.unwrap().is_some());
}
