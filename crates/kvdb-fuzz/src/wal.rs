//! Segments of the write-ahead log.

use kvdb_wal::sim_disk::SimDisk;
use kvdb_wal::{Disk, LiveState, Wal, WalConfig};

const CONFIG: WalConfig =
    WalConfig { first_segment_bytes: 64 * 1024, segment_bytes: 64 * 1024, max_segments: 4 };
const HEADER: usize = 32;

/// The first byte chooses: bytes as they lie in a segment (with its header, or from the first
/// byte on), or contents of frames that are whole.
pub fn wal_frames(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    let segment = match choice % 3 {
        0 => rest.to_vec(),
        1 => [&segment_header(1, 1), rest].concat(),
        _ => frames(rest),
    };
    if segment.len() as u64 > CONFIG.segment_bytes {
        return;
    }
    let mut disk = SimDisk::new();
    let put = |disk: &mut SimDisk| {
        disk.create(1, CONFIG.segment_bytes)?;
        disk.write(1, 0, &segment)?;
        disk.sync(1)
    };
    put(&mut disk).expect("a disk in memory takes it");
    let before = disk.killed();
    let Ok((wal, live)) = Wal::open(disk, CONFIG) else { return };
    assert_eq!(shown(wal.live()), shown(&live));
    // Reading changes nothing of what was read: the second time it is the same.
    let (_, again) = Wal::open(before, CONFIG).expect("it could be opened before");
    assert_eq!(shown(&again), shown(&live));
}

fn shown(live: &LiveState) -> String {
    let replicas: Vec<_> = live
        .replicas
        .iter()
        .map(|(id, found)| {
            (id, found.shard, found.volume, found.start, found.hard_state, &found.entries)
        })
        .collect();
    format!("{replicas:?} {:?}", live.tombstones())
}

/// Whole frames from `length (2 bytes), kind, content`, one after the other.
fn frames(mut rest: &[u8]) -> Vec<u8> {
    let mut out = segment_header(1, 1).to_vec();
    let mut sequence = 1;
    while let [low, high, kind, content @ ..] = rest {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(content.len());
        let (content, after) = content.split_at(length);
        push_frame(&mut out, kind % 4, sequence, content);
        sequence += 1;
        rest = after;
    }
    out
}

/// As the log writes it. Written again here on purpose: a format is what others can read.
pub(crate) fn segment_header(id: u64, first_sequence: u64) -> [u8; HEADER] {
    let mut out = [0; HEADER];
    out[..8].copy_from_slice(b"1LAWBDVK");
    out[8..12].copy_from_slice(&1u32.to_le_bytes());
    out[12..20].copy_from_slice(&id.to_le_bytes());
    out[20..28].copy_from_slice(&first_sequence.to_le_bytes());
    let crc = crc32c::crc32c(&out[..28]);
    out[28..].copy_from_slice(&crc.to_le_bytes());
    out
}

fn push_frame(out: &mut Vec<u8>, kind: u8, sequence: u64, content: &[u8]) {
    let start = out.len();
    out.extend_from_slice(b"MRFK");
    out.extend_from_slice(&(content.len() as u32).to_le_bytes());
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&(sequence - 1).to_le_bytes());
    out.extend_from_slice(&[kind, 0, 0, 0]);
    let crc = crc32c::crc32c(&1u64.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &out[start..]);
    let crc = crc32c::crc32c_append(crc, content);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(8), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_made_here_are_frames_to_the_log() {
        let mut disk = SimDisk::new();
        disk.create(1, CONFIG.segment_bytes).unwrap();
        // Replica 3 of shard 2 is created in volume 1, at index 5 and term 5, born as "x".
        let created = [1, 3, 2, 1, 1, 5, 5, 1, b'x'];
        let packed = [&[9, 0, 0][..], &created].concat();
        disk.write(1, 0, &frames(&packed)).unwrap();
        let (_, live) = Wal::open(disk, CONFIG).unwrap();
        assert_eq!(live.replicas.len(), 1);
    }
}
