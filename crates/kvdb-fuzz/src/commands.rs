//! What log entries hold: payloads, commands of shards and of the coordinators, membership changes.

use bytes::Bytes;
use kvdb_control::{ControlCommand, decode_result, encode_result};
use kvdb_model::codec::{Reader, Writer};
use kvdb_model::{EntryCommand, EntryPayload, ShardDescriptor};
use kvdb_store::MembershipChange;

/// The first byte chooses what the rest is.
pub fn commands(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    let bytes = Bytes::copy_from_slice(rest);
    match choice % 6 {
        0 => payload(bytes),
        1 => command(bytes),
        2 => {
            if let Ok(read) = ControlCommand::decode(rest) {
                assert_eq!(ControlCommand::decode(&read.to_bytes()).as_ref(), Ok(&read));
            }
        }
        3 => {
            let read = decode_result(rest);
            if read.is_ok() {
                assert_eq!(decode_result(&encode_result(&read)), read);
            }
        }
        4 => {
            if let Ok(read) = ShardDescriptor::decode(&mut Reader::new(bytes)) {
                let mut out = Writer::new();
                read.encode(&mut out);
                let again = ShardDescriptor::decode(&mut Reader::new(out.finish()));
                assert_eq!(again.as_ref(), Ok(&read));
            }
        }
        _ => {
            let _ = MembershipChange::decode(&bytes);
        }
    }
}

fn payload(bytes: Bytes) {
    let peeked = EntryPayload::peek_time(&bytes);
    let Ok(read) = EntryPayload::decode(bytes) else { return };
    assert_eq!(peeked, Ok((read.version, read.last_version(), read.jump_ms)));
    assert_eq!(EntryPayload::decode(read.to_bytes()).as_ref(), Ok(&read));
    for packed in read.commands {
        command(packed);
    }
}

fn command(bytes: Bytes) {
    let Ok(read) = EntryCommand::decode(bytes) else { return };
    let _ = read.version_count();
    assert_eq!(EntryCommand::decode(read.to_bytes()).as_ref(), Ok(&read));
}
