//! Messages from clients, peers and coordinators, and what they are turned into.

use bytes::Bytes;
use kvdb_model::Limits;
use kvdb_wire::{execute, proto, requests};
use prost::Message;

/// The first byte chooses which message the rest is.
pub fn protobuf(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    let limits = Limits::default();
    match choice % 12 {
        0 => there_and_back(rest, kvdb_wire::descriptor_from, kvdb_wire::descriptor_to),
        1 => there_and_back(rest, kvdb_wire::shard_map_from, kvdb_wire::shard_map_to),
        2 => there_and_back(rest, kvdb_wire::map_delta_from, kvdb_wire::map_delta_to),
        3 => with(rest, |refusal: proto::Refusal| {
            let read = kvdb_wire::refusal_from_proto(refusal);
            let _ = read.to_string();
            let status = kvdb_wire::status_of(&read);
            let _ = kvdb_wire::refusal_from_status(&status);
        }),
        4 => with(rest, |request: proto::RequestId| {
            let _ = kvdb_wire::request_tag_from(Some(request), &limits);
        }),
        5 => with(rest, |put: proto::PutRequest| {
            let _ = requests::put_operation(
                put.key,
                put.value,
                put.ttl_ms,
                put.condition,
                put.return_previous,
                &limits,
            );
        }),
        6 => with(rest, |batch: proto::BatchWriteRequest| {
            let _ = requests::batch_operations(batch.operations, &limits);
        }),
        7 => with(rest, |scan: proto::ScanRequest| {
            let _ = requests::check_scan(&scan, &limits);
        }),
        8 => with(rest, |batch: proto::NodeBatchRequest| {
            use proto::node_operation::Operation;
            for operation in batch.operations.into_iter().filter_map(|asked| asked.operation) {
                let Operation::Execute(asked) = operation else { continue };
                let Ok(write) = execute::write_from(asked.write, &limits) else { continue };
                for operation in &write.operations {
                    let _ = kvdb_store::check(operation, &limits);
                    let _ = kvdb_store::on_nothing(operation);
                }
            }
        }),
        9 => with(rest, |frame: proto::PeerFrame| {
            if let Some(proto::peer_frame::Frame::Messages(messages)) = frame.frame {
                for one in messages.messages {
                    raft_message(&one.message);
                }
            }
        }),
        10 => with(rest, |heartbeat: proto::HeartbeatRequest| {
            let _ = kvdb_wire::cluster_id_from(&heartbeat.cluster_id);
            for report in heartbeat.led {
                let _ = report.descriptor.map(kvdb_wire::descriptor_from);
            }
        }),
        _ => raft_message(&Bytes::copy_from_slice(rest)),
    }
}

fn with<P: Message + Default>(bytes: &[u8], check: impl FnOnce(P)) {
    if let Ok(message) = P::decode(bytes) {
        check(message);
    }
}

/// What is taken for good is the same after it was sent on.
fn there_and_back<P, T, E>(bytes: &[u8], from: impl Fn(P) -> Result<T, E>, to: impl Fn(&T) -> P)
where
    P: Message + Default,
    T: PartialEq + std::fmt::Debug,
    E: std::fmt::Display,
{
    with(bytes, |message: P| match from(message) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(read) => match from(to(&read)) {
            Ok(again) => assert_eq!(again, read),
            Err(error) => panic!("it is refused when it is sent on: {error}"),
        },
    });
}

fn raft_message(bytes: &Bytes) {
    if let Ok(message) = kvdb_replication::message::decode(bytes) {
        let sent = Bytes::from(kvdb_replication::message::encode(&message));
        let again = kvdb_replication::message::decode(&sent).expect("what was written is read");
        assert_eq!(again, message);
    }
}
