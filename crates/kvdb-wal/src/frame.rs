//! Segment headers and frames.

use bytes::Bytes;
use kvdb_model::planted::{Bug, has};

/// The newest format; format 1, whose header doesn't tell the size, is read too.
pub(crate) const FORMAT: u32 = 2;
const FORMAT_WITHOUT_SIZE: u32 = 1;
const SEGMENT_MAGIC: u64 = 0x4b56_4442_5741_4c31;
const FRAME_MAGIC: u32 = 0x4b46_524d;
/// Frames start at multiples of this.
pub(crate) const ALIGN: usize = 8;
pub(crate) const SEGMENT_HEADER: usize = 40;
const HEADER_WITHOUT_SIZE: usize = 32;
pub(crate) const FRAME_HEADER: usize = 32;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// Records, each in its own right.
    Records,
    /// Nothing but its `synced_through`.
    Marker,
    /// A part of a replica's whole state; more follows.
    RewritePart,
    /// The last part.
    RewriteEnd,
}

#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) kind: FrameKind,
    pub(crate) sequence: u64,
    pub(crate) synced_through: u64,
    pub(crate) content: Bytes,
    /// Where the next frame starts.
    pub(crate) end: usize,
}

/// What the start of a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// A segment of this log with the sequence of its first frame.
    Good {
        first_sequence: u64,
        /// Of the whole segment; not known of one in format 1.
        size_bytes: Option<u64>,
        /// Where the first frame starts.
        end: usize,
    },
    /// Another format.
    Unknown { format: u32 },
    /// Not a header, or not this segment's.
    Bad,
}

pub(crate) fn segment_header(
    id: u64,
    first_sequence: u64,
    size_bytes: u64,
) -> [u8; SEGMENT_HEADER] {
    let mut out = [0; SEGMENT_HEADER];
    out[..8].copy_from_slice(&SEGMENT_MAGIC.to_le_bytes());
    out[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    out[12..20].copy_from_slice(&id.to_le_bytes());
    out[20..28].copy_from_slice(&first_sequence.to_le_bytes());
    out[28..36].copy_from_slice(&size_bytes.to_le_bytes());
    let crc = crc32c::crc32c(&out[..36]);
    out[36..].copy_from_slice(&crc.to_le_bytes());
    out
}

pub(crate) fn parse_header(segment: &[u8], id: u64) -> Header {
    let Some(raw) = segment.get(..SEGMENT_HEADER) else { return Header::Bad };
    let format = number32(raw, 8);
    let end = if format == FORMAT_WITHOUT_SIZE { HEADER_WITHOUT_SIZE } else { SEGMENT_HEADER };
    let checked = end - 4;
    if number64(raw, 0) != SEGMENT_MAGIC
        || crc32c::crc32c(&raw[..checked]) != number32(raw, checked)
    {
        return Header::Bad;
    }
    if !(FORMAT_WITHOUT_SIZE..=FORMAT).contains(&format) {
        return Header::Unknown { format };
    }
    if number64(raw, 12) != id {
        return Header::Bad;
    }
    let size_bytes = (format != FORMAT_WITHOUT_SIZE).then(|| number64(raw, 28));
    Header::Good { first_sequence: number64(raw, 20), size_bytes, end }
}

fn number32(raw: &[u8], at: usize) -> u32 {
    let mut array = [0; 4];
    array.copy_from_slice(&raw[at..at + 4]);
    u32::from_le_bytes(array)
}

fn number64(raw: &[u8], at: usize) -> u64 {
    let mut array = [0; 8];
    array.copy_from_slice(&raw[at..at + 8]);
    u64::from_le_bytes(array)
}

/// Bytes that a frame with so much content takes up.
pub(crate) fn frame_bytes(content: usize) -> usize {
    (FRAME_HEADER + content).next_multiple_of(ALIGN)
}

/// Appends a frame to `out`, which must be aligned.
pub(crate) fn push_frame(
    out: &mut Vec<u8>,
    segment: u64,
    kind: FrameKind,
    sequence: u64,
    synced_through: u64,
    content: &[u8],
) {
    let start = out.len();
    out.extend_from_slice(&FRAME_MAGIC.to_le_bytes());
    out.extend_from_slice(&(content.len() as u32).to_le_bytes());
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&synced_through.to_le_bytes());
    out.extend_from_slice(&[kind_tag(kind), 0, 0, 0]);
    let crc = checksum(segment, &out[start..], content);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(content);
    out.resize(start + frame_bytes(content.len()), 0);
}

fn kind_tag(kind: FrameKind) -> u8 {
    match kind {
        FrameKind::Records => 0,
        FrameKind::Marker => 1,
        FrameKind::RewritePart => 2,
        FrameKind::RewriteEnd => 3,
    }
}

fn checksum(segment: u64, header: &[u8], content: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&segment.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(crc, header), content)
}

/// The frame at `offset`, if a whole and undamaged one of this segment is there.
pub(crate) fn parse_frame(segment_bytes: &Bytes, segment: u64, offset: usize) -> Option<Frame> {
    let raw = segment_bytes.get(offset..offset.checked_add(FRAME_HEADER)?)?;
    if number32(raw, 0) != FRAME_MAGIC {
        return None;
    }
    let length = number32(raw, 4) as usize;
    let start = offset + FRAME_HEADER;
    let content = segment_bytes.get(start..start.checked_add(length)?)?;
    if checksum(segment, &raw[..28], content) != number32(raw, 28) && !has(Bug::TornFrameAccepted) {
        return None;
    }
    let kind = match raw[24] {
        0 => FrameKind::Records,
        1 => FrameKind::Marker,
        2 => FrameKind::RewritePart,
        3 => FrameKind::RewriteEnd,
        _ => return None,
    };
    Some(Frame {
        kind,
        sequence: number64(raw, 8),
        synced_through: number64(raw, 16),
        content: segment_bytes.slice(start..start + length),
        end: offset + frame_bytes(length),
    })
}
