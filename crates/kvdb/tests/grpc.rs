//! What any gRPC client may ask of each role, and how it is refused.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use kvdb_client::{
    AdminClient, BatchOperation, Client, Consistency, Error, Options, ReadOptions, Reply,
    ScanOptions, WatchOptions, WatchUpdate,
};
use kvdb_model::{Partitioning, Refusal, Version};
use kvdb_wire::proto::coordinator_client::CoordinatorClient;
use kvdb_wire::proto::kv_client::KvClient;
use kvdb_wire::proto::node_client::NodeClient;
use kvdb_wire::{proto, transport};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use support::{Cluster, Part};
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

fn argument(part: &Part, flag: &str) -> String {
    let place = part.args.iter().position(|word| word == flag).unwrap();
    part.args[place + 1].clone()
}

fn channel(address: &str) -> Channel {
    transport::endpoint(address).unwrap().connect_lazy()
}

fn trailer<'a>(status: &'a Status, name: &str) -> Option<&'a str> {
    status.metadata().get(name).map(|value| value.to_str().unwrap())
}

macro_rules! listed {
    ($version:ident, $address:expr) => {{
        use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
        let request = tonic_reflection::pb::$version::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut client = ServerReflectionClient::new(channel($address));
        let requests = tokio_stream::iter([request]);
        let mut answers = client.server_reflection_info(requests).await.unwrap().into_inner();
        match answers.next().await.unwrap().unwrap().message_response.unwrap() {
            MessageResponse::ListServicesResponse(list) => {
                list.service.into_iter().map(|service| service.name).collect::<BTreeSet<_>>()
            }
            other => panic!("{other:?}"),
        }
    }};
}

#[tokio::test]
async fn each_role_describes_the_services_that_it_serves_and_is_well_for_each() {
    let cluster = Cluster::of(1);
    let roles = [
        (cluster.endpoint.clone(), ["kvdb.v1.Kv", "kvdb.v1.Coordinator"]),
        (argument(&cluster.nodes[0], "--listen"), ["kvdb.v1.Node", "kvdb.v1.Peer"]),
        (argument(&cluster.coordinators[0], "--listen"), ["kvdb.v1.Coordinator", "kvdb.v1.Peer"]),
    ];
    let common = [
        "kvdb.v1.Identity",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ];
    for (address, own) in &roles {
        let expected: BTreeSet<_> = own.iter().chain(&common).map(|it| (*it).to_owned()).collect();
        assert_eq!(listed!(v1, address), expected);
        assert_eq!(listed!(v1alpha, address), expected);
        let mut health = HealthClient::new(channel(address));
        let mut check = async |service: &str| {
            let message = HealthCheckRequest { service: service.to_owned() };
            health.check(message).await.map(|answer| answer.into_inner().status)
        };
        for service in expected.iter().map(String::as_str).chain([""]) {
            assert_eq!(check(service).await.unwrap(), 1, "{service:?} at {address}");
        }
        for service in ["kvdb.v1.Kv", "kvdb.v1.Node", "kvdb.v1.Coordinator"] {
            if !expected.contains(service) {
                assert_eq!(check(service).await.unwrap_err().code(), Code::NotFound);
            }
        }
    }
}

#[tokio::test]
async fn requests_that_are_wrong_are_refused_by_what_is_wrong_with_them() {
    let cluster = Cluster::of(1);
    let node = argument(&cluster.nodes[0], "--listen");

    // Larger than a server reads, at each of them.
    let value = bytes::Bytes::from(vec![0; transport::MAX_MESSAGE_BYTES + 1]);
    let put = proto::PutRequest { key: "k".into(), value: value.clone(), ..Default::default() };
    let at_gateway = KvClient::new(channel(&cluster.endpoint)).put(put).await.unwrap_err();
    let put = proto::NodePutRequest { key: "k".into(), value, ..Default::default() };
    let at_node = NodeClient::new(channel(&node)).put(put).await.unwrap_err();
    for status in [at_gateway, at_node] {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert_eq!(trailer(&status, "x-error-code"), Some("REQUEST_TOO_LARGE"));
        let limit = transport::MAX_MESSAGE_BYTES.to_string();
        assert!(status.message().contains(&limit), "{}", status.message());
    }
    let client = Client::new(Options::to(&cluster.endpoint)).unwrap();
    let refused = client.put("k", vec![0; transport::MAX_MESSAGE_BYTES + 1]).await.unwrap_err();
    let limit_bytes = transport::MAX_MESSAGE_BYTES as u64;
    assert_eq!(refused.refusal(), Some(&Refusal::RequestTooLarge { limit_bytes }), "{refused}");

    // A node is asked about a shard: whatever is wrong, the refusal says which.
    let mut client = NodeClient::new(channel(&node));
    let get = proto::NodeGetRequest { shard_id: 777, key: "k".into(), ..Default::default() };
    let status = client.get(get.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("keyspace_id is 0"), "{}", status.message());
    assert_eq!(trailer(&status, "x-shard-id"), Some("777"));
    let unheard = proto::NodeGetRequest { keyspace_id: 999, ..get.clone() };
    let status = client.get(unheard).await.unwrap_err();
    assert_eq!(trailer(&status, "x-shard-id"), Some("777"), "{status:?}");
    let batch = proto::NodeBatchRequest {
        operations: vec![proto::NodeOperation {
            id: 5,
            operation: Some(proto::node_operation::Operation::Get(get)),
        }],
    };
    let mut answers = client.batch(tokio_stream::iter([batch])).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap().answers.remove(0);
    let Some(proto::node_answer::Answer::Refusal(refusal)) = answer.answer else {
        panic!("{answer:?}");
    };
    assert_eq!((refusal.field.as_str(), refusal.shard_id), ("keyspace_id", Some(777)));
}

#[tokio::test]
async fn operations_are_found_under_their_former_name_too() {
    let cluster = Cluster::start();
    assert!(cluster.kvdb(&["admin", "split", "1", "--wait"]).status.success());
    let mut client = CoordinatorClient::new(channel(&cluster.endpoint));
    let all = || proto::ListOperationsRequest { running_only: false };
    let now = client.list_operations(all()).await.unwrap().into_inner().operations;
    let before = client.list_operators(all()).await.unwrap().into_inner().operations;
    assert!(now.iter().any(|one| one.kind == "split" && one.state == "done"), "{now:?}");
    assert_eq!(before.len(), now.len());
    let unknown = || proto::CancelOperationRequest { operator_id: 1234 };
    let refused = client.cancel_operation(unknown()).await.unwrap_err();
    assert!(refused.message().contains("operation 1234 does not exist"), "{refused}");
    let before = client.cancel_operator(unknown()).await.unwrap_err();
    assert_eq!(before.message(), refused.message());
}

#[tokio::test]
async fn a_version_that_no_state_has_reached_is_waited_for_or_refused() {
    let cluster = Cluster::start();
    let client = Client::new(Options::to(&cluster.endpoint)).unwrap();
    let version = client.put("k", "v").await.unwrap().version;
    let kinds = [Consistency::Eventual, Consistency::Bounded, Consistency::Strong];
    for consistency in kinds {
        let with = |min_version| ReadOptions { consistency, min_version, ..Default::default() };
        // No write has had it, and none will within any deadline.
        let never = with(Version(version.0 + (3_600_000 << 16)));
        let refused = client.get_with("k", never).await.unwrap_err();
        let Some(Refusal::InvalidArgument { field: "min_version", .. }) = refused.refusal() else {
            panic!("{consistency:?}: {refused}");
        };
        let many = client.batch_get(vec!["k".into()], never).await.unwrap();
        assert!(many[0].is_err(), "{consistency:?}: {many:?}");
        assert!(client.get_with("k", with(Version(u64::MAX))).await.is_err(), "{consistency:?}");
        // Soon there is one.
        let as_of = client.get("k").await.unwrap().unwrap().as_of;
        let soon = Version(as_of.0 + (1_000 << 16));
        let found = client.get_with("k", with(soon)).await.unwrap().unwrap();
        assert!(found.as_of >= soon, "{consistency:?}: {} < {soon}", found.as_of);
        // Commands that only read are no exception.
        let ahead = client.execute_with(["get", "k"], never).await.unwrap_err();
        let Some(Refusal::InvalidArgument { field: "min_version", .. }) = ahead.refusal() else {
            panic!("{consistency:?}: {ahead}");
        };
        let soon = Version(found.as_of.0 + (1_000 << 16));
        let found = client.execute_with(["get", "k"], with(soon)).await.unwrap();
        assert!(found.as_of >= soon && found.reply == Reply::Bytes("v".into()), "{found:?}");
    }
    // Not within this deadline.
    let deadline = Duration::from_millis(1_500);
    let hasty = Client::new(Options { deadline, ..Options::to(&cluster.endpoint) }).unwrap();
    let as_of = client.get("k").await.unwrap().unwrap().as_of;
    let min_version = Version(as_of.0 + (60_000 << 16));
    let late = ReadOptions { min_version, ..Default::default() };
    let refused = hasty.get_with("k", late).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { .. } | Error::Unavailable { .. }), "{refused}");
}

#[tokio::test]
async fn a_cursor_goes_on_with_its_own_scan_only() {
    let cluster = Cluster::of(1);
    let admin = AdminClient::new(Options::to(&cluster.endpoint)).unwrap();
    let client = Client::new(Options::to(&cluster.endpoint)).unwrap();
    for name in ["one", "two"] {
        admin.create_keyspace(name, Partitioning::Range, 0, 0).await.unwrap();
        let rows: Vec<_> = (0..20).map(|n| BatchOperation::put(format!("k{n:02}"), "v")).collect();
        let client = client.keyspace(name);
        assert!(client.batch_write(&rows, false).await.unwrap().iter().all(Result::is_ok));
    }
    let own = ScanOptions { prefix: "k".into(), limit: Some(5), ..Default::default() };
    let mut scan = client.keyspace("one").scan(own.clone());
    scan.next_chunk().await.unwrap().unwrap();
    let cursor = scan.cursor().clone();
    let own = ScanOptions { cursor: cursor.clone(), ..own };
    let next = client.keyspace("one").scan(own.clone()).next_chunk().await.unwrap().unwrap();
    assert_eq!(&next[0].key[..], b"k05");

    let bounded = ScanOptions { start: "k".into(), prefix: "".into(), ..own.clone() };
    for (keyspace, options) in [
        ("two", own.clone()),
        ("default", own.clone()),
        ("one", ScanOptions { prefix: "k0".into(), ..own.clone() }),
        ("one", ScanOptions { reverse: true, ..own.clone() }),
        ("one", bounded),
        ("one", ScanOptions { cursor: cursor.slice(..cursor.len() - 1), ..own.clone() }),
        ("one", ScanOptions { cursor: cursor.slice(..1), ..own.clone() }),
    ] {
        let refused = client.keyspace(keyspace).scan(options.clone()).next_chunk().await;
        let refused = refused.map(|chunk| panic!("{keyspace} {options:?}: {chunk:?}")).unwrap_err();
        let Some(Refusal::InvalidArgument { field: "cursor", .. }) = refused.refusal() else {
            panic!("{refused}");
        };
    }
}

#[tokio::test]
async fn a_watch_of_some_keys_isnt_held_up_by_a_backlog_of_others() {
    let cluster = Cluster::of(1);
    let admin = AdminClient::new(Options::to(&cluster.endpoint)).unwrap();
    admin.create_keyspace("busy", Partitioning::Hash, 1, 0).await.unwrap();
    let client = Client::new(Options::to(&cluster.endpoint)).unwrap().keyspace("busy");
    let first = client.put("first", "v").await.unwrap().version;
    for part in 0..12 {
        let rows: Vec<_> = (0..1000)
            .map(|n| BatchOperation::put(format!("other{part}/{n}"), "x".repeat(30)))
            .collect();
        assert!(client.batch_write(&rows, false).await.unwrap().iter().all(Result::is_ok));
    }
    client.put("wanted", "v").await.unwrap();
    let began = Instant::now();
    let options =
        WatchOptions { prefix: "want".into(), from_version: Some(first), ..Default::default() };
    let mut watch = client.watch(options);
    loop {
        match watch.next().await.unwrap() {
            WatchUpdate::Events(events) => {
                assert_eq!(&events[0].key[..], b"wanted");
                break;
            }
            WatchUpdate::Progress(_) => {}
            WatchUpdate::Gap(version) => panic!("a gap up to {version}"),
        }
    }
    // Each page that held nothing used to wait two seconds for a change.
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test]
async fn progress_of_a_keyspace_passes_over_shards_that_were_never_written() {
    let cluster = Cluster::of(1);
    let admin = AdminClient::new(Options::to(&cluster.endpoint)).unwrap();
    admin.create_keyspace("sparse", Partitioning::Hash, 8, 0).await.unwrap();
    let client = Client::new(Options::to(&cluster.endpoint)).unwrap().keyspace("sparse");
    let written = client.put("k", "v").await.unwrap().version;
    let WatchUpdate::Progress(progress) =
        client.watch(WatchOptions::default()).next().await.unwrap()
    else {
        panic!("a watch begins with its progress");
    };
    assert!(progress >= written, "{progress} < {written}");
}

#[test]
fn a_watch_ends_after_as_many_changes_as_were_asked_for() {
    let cluster = Cluster::of(1);
    let rows = cluster.folder.path().join("rows.tsv");
    // One batch, so that they come together.
    std::fs::write(&rows, "{t}a\t1\n{t}b\t2\n{t}c\t3\n").unwrap();
    let client = tokio::runtime::Runtime::new().unwrap();
    let before = client.block_on(async {
        let client = Client::new(Options::to(&cluster.endpoint)).unwrap();
        client.put("{t}first", "v").await.unwrap().version
    });
    assert!(cluster.kvdb(&["import", rows.to_str().unwrap()]).status.success());
    let told = |more: &[&str]| -> Vec<serde_json::Value> {
        let output = cluster.kvdb(&[&["watch", "--prefix", "{t}", "--json"][..], more].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let one = told(&["--from-version", &before.0.to_string(), "--limit", "1"]);
    assert_eq!(one.len(), 1, "{one:?}");
    // Nothing is lost by going on from where it ended.
    let cursor = one[0]["cursor"].as_str().unwrap();
    let all = told(&["--cursor", cursor, "--limit", "3"]);
    let keys: BTreeSet<_> = all.iter().map(|line| line["key"].as_str().unwrap()).collect();
    assert_eq!(keys, BTreeSet::from(["{t}a", "{t}b", "{t}c"]), "{all:?}");
}
