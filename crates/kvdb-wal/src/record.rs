//! Records as bytes.

use bytes::Bytes;
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::{
    EntryKind, HardState, LogEntry, LogIndex, LogPosition, ReplicaId, ShardId, Term, VolumeId,
    WalRecord,
};

pub(crate) fn encode(record: &WalRecord, out: &mut Writer) {
    match record {
        WalRecord::Created { replica, shard, volume, start, birth } => {
            out.u8(1);
            out.varint(replica.0);
            out.varint(shard.0);
            out.u8(u8::from(volume.is_some()));
            out.varint(volume.unwrap_or_default().0);
            position(out, *start);
            out.bytes(birth);
        }
        WalRecord::Append { replica, entries } => {
            out.u8(2);
            out.varint(replica.0);
            out.varint(entries.len() as u64);
            out.varint(entries.first().map_or(0, |entry| entry.index.0));
            for entry in entries {
                out.varint(entry.term.0);
                out.u8(match entry.kind {
                    EntryKind::Normal => 0,
                    EntryKind::ConfChange => 1,
                });
                out.bytes(&entry.data);
                out.bytes(&entry.context);
            }
        }
        WalRecord::HardState { replica, state } => {
            out.u8(3);
            out.varint(replica.0);
            out.varint(state.term.0);
            out.varint(state.vote.0);
            out.varint(state.commit.0);
        }
        WalRecord::Compacted { replica, through } => {
            out.u8(4);
            out.varint(replica.0);
            position(out, *through);
        }
        WalRecord::VolumeSwitched { replica, volume, start } => {
            out.u8(5);
            out.varint(replica.0);
            out.varint(volume.0);
            position(out, *start);
        }
        WalRecord::Destroyed { replica, shard } => {
            out.u8(6);
            out.varint(replica.0);
            out.varint(shard.0);
        }
        WalRecord::Split { replica, shard, volume, birth, parent, index } => {
            out.u8(7);
            out.varint(replica.0);
            out.varint(shard.0);
            out.varint(volume.0);
            out.bytes(birth);
            out.varint(parent.0);
            out.varint(index.0);
        }
    }
}

fn position(out: &mut Writer, position: LogPosition) {
    out.varint(position.index.0);
    out.varint(position.term.0);
}

fn read_position(input: &mut Reader) -> Result<LogPosition, DecodeError> {
    Ok(LogPosition { index: LogIndex(input.varint()?), term: Term(input.varint()?) })
}

/// All records of a frame.
pub(crate) fn decode_all(content: Bytes) -> Result<Vec<WalRecord>, DecodeError> {
    let mut input = Reader::new(content);
    let mut records = Vec::new();
    while input.remaining() > 0 {
        records.push(decode(&mut input)?);
    }
    Ok(records)
}

fn decode(input: &mut Reader) -> Result<WalRecord, DecodeError> {
    let tag = input.u8()?;
    let replica = ReplicaId(input.varint()?);
    Ok(match tag {
        1 => {
            let shard = ShardId(input.varint()?);
            let has_volume = input.u8()? != 0;
            let volume = VolumeId(input.varint()?);
            let start = read_position(input)?;
            let birth = input.bytes()?;
            WalRecord::Created {
                replica,
                shard,
                volume: has_volume.then_some(volume),
                start,
                birth,
            }
        }
        2 => {
            let count = input.count(4)?;
            let first = input.varint()?;
            let mut entries = Vec::with_capacity(count);
            for place in 0..count as u64 {
                let index = first.checked_add(place).ok_or(DecodeError::NumberOutOfRange)?;
                entries.push(decode_entry(input, LogIndex(index))?);
            }
            WalRecord::Append { replica, entries }
        }
        3 => WalRecord::HardState {
            replica,
            state: HardState {
                term: Term(input.varint()?),
                vote: ReplicaId(input.varint()?),
                commit: LogIndex(input.varint()?),
            },
        },
        4 => WalRecord::Compacted { replica, through: read_position(input)? },
        5 => {
            let volume = VolumeId(input.varint()?);
            WalRecord::VolumeSwitched { replica, volume, start: read_position(input)? }
        }
        6 => WalRecord::Destroyed { replica, shard: ShardId(input.varint()?) },
        7 => WalRecord::Split {
            replica,
            shard: ShardId(input.varint()?),
            volume: VolumeId(input.varint()?),
            birth: input.bytes()?,
            parent: ReplicaId(input.varint()?),
            index: LogIndex(input.varint()?),
        },
        other => return Err(DecodeError::unknown_tag("log record", other)),
    })
}

fn decode_entry(input: &mut Reader, index: LogIndex) -> Result<LogEntry, DecodeError> {
    let term = Term(input.varint()?);
    let kind = match input.u8()? {
        0 => EntryKind::Normal,
        1 => EntryKind::ConfChange,
        other => return Err(DecodeError::unknown_tag("entry kind", other)),
    };
    Ok(LogEntry { index, term, kind, data: input.bytes()?, context: input.bytes()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_the_shortest_entries_survives_encoding() {
        let entry = |index| LogEntry {
            index: LogIndex(index),
            term: Term(0),
            kind: EntryKind::Normal,
            data: Bytes::new(),
            context: Bytes::new(),
        };
        let record = WalRecord::Append {
            replica: ReplicaId(0),
            entries: vec![entry(0), entry(1), entry(2)],
        };
        let mut out = Writer::new();
        encode(&record, &mut out);
        assert_eq!(decode_all(out.finish()), Ok(vec![record]));
    }
}
