//! The log itself: opening, appending, syncing, making room.

use crate::disk::Disk;
use crate::frame::{
    ALIGN, FORMAT, Frame, FrameKind, Header, SEGMENT_HEADER, frame_bytes, parse_frame,
    parse_header, push_frame, segment_header,
};
use crate::live::LiveState;
use crate::record::{decode_all, encode};
use bytes::Bytes;
use kvdb_model::codec::Writer;
use kvdb_model::{ReplicaId, WalRecord};
use std::collections::BTreeMap;
use std::io;
use thiserror::Error;

/// Settings of a [`Wal`].
#[derive(Clone, Copy, Debug)]
pub struct WalConfig {
    /// Size of the first segment after a start; each one after it is twice as large. Raising it
    /// takes more space for a log that is hardly used.
    pub first_segment_bytes: u64,
    /// Size of the largest segments. The largest record must fit. Raising it makes rolling rarer
    /// and space coarser.
    pub segment_bytes: u64,
    /// Segments beyond which the oldest is made to go, by writing again what pins it. Raising it
    /// trades disk space and restart time for fewer rewrites.
    pub max_segments: usize,
}

impl Default for WalConfig {
    fn default() -> Self {
        WalConfig {
            first_segment_bytes: 4 * 1024 * 1024,
            segment_bytes: 64 * 1024 * 1024,
            max_segments: 8,
        }
    }
}

/// Why a log can't be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The operating system refused.
    #[error("{place}: {source}")]
    Io {
        /// The file.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// Synced bytes are not what was written.
    #[error(
        "{file} is damaged at offset {offset}: {what}. This node's replicas must not vote again; \
         rebuild them from the others with `kvdb admin replace NODE` and start with an empty directory"
    )]
    Damaged {
        /// The file.
        file: String,
        /// Where.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// It was made by a newer version.
    #[error("{file} has log format {found}; this binary reads formats up to {FORMAT}")]
    UnknownFormat {
        /// The file.
        file: String,
        /// Its format.
        found: u32,
    },
}

/// Why the log can't be written.
#[derive(Debug, Error)]
pub enum WalError {
    /// A write or sync failed: what is on disk is not known any more, and the process should stop.
    #[error("{place}: {source}")]
    Failed {
        /// The file.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// An earlier call failed.
    #[error("the log has failed before and takes nothing more")]
    Poisoned,
    /// A record is larger than a segment.
    #[error("a record of {size_bytes} bytes doesn't fit into a segment of {segment_bytes}")]
    TooLarge {
        /// Its size.
        size_bytes: usize,
        /// A segment's size.
        segment_bytes: u64,
    },
}

/// Figures about the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalStats {
    /// Segments on disk.
    pub segments: usize,
    /// Bytes appended since the log was opened.
    pub appended_bytes: u64,
    /// Replicas written again to free a segment since the log was opened.
    pub rewrites: u64,
}

/// The log. One thread appends to it.
pub struct Wal<D> {
    disk: D,
    config: WalConfig,
    live: LiveState,
    /// Ids of all segments, ascending; the last is written to.
    segments: Vec<u64>,
    /// Size of the segment that is written to.
    size_bytes: u64,
    offset: u64,
    next_sequence: u64,
    synced_through: u64,
    dirty: bool,
    poisoned: bool,
    stats: WalStats,
}

impl<D: Disk> Wal<D> {
    /// Opens the log on `disk`, or starts one there. Returns it with what it holds.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is changed then.
    pub fn open(mut disk: D, config: WalConfig) -> Result<(Self, LiveState), OpenError> {
        let found = Recovered::read(&disk, config.segment_bytes)?;
        // What was read may be in the page cache only; the next segment says that it is durable.
        for segment in found.segments.iter().rev().take(2) {
            open_io(&disk.name(*segment), disk.sync(*segment))?;
        }
        for empty in &found.unused {
            open_io(&disk.name(*empty), disk.remove(*empty))?;
        }
        let mut wal = Wal {
            disk,
            config,
            live: found.live.clone(),
            segments: found.segments,
            size_bytes: 0,
            offset: 0,
            next_sequence: found.next_sequence,
            synced_through: found.next_sequence - 1,
            dirty: false,
            poisoned: false,
            stats: WalStats::default(),
        };
        wal.start_segment(0).map_err(|error| match error {
            WalError::Failed { place, source } => OpenError::Io { place, source },
            other => OpenError::Io { place: "the log".to_owned(), source: io::Error::other(other) },
        })?;
        Ok((wal, found.live))
    }

    /// What the log amounts to.
    pub fn live(&self) -> &LiveState {
        &self.live
    }

    /// Figures.
    pub fn stats(&self) -> WalStats {
        WalStats { segments: self.segments.len(), ..self.stats }
    }

    /// Appends records, in order. They are durable after the next [`Wal::sync`].
    ///
    /// # Errors
    /// [`WalError`]. After [`WalError::Failed`] the log takes nothing more.
    ///
    /// # Panics
    /// If a record doesn't follow what came before it: the caller's own invariant is broken.
    pub fn append(&mut self, records: &[WalRecord]) -> Result<(), WalError> {
        self.check_usable()?;
        for content in self.split(records)? {
            self.write_frame(FrameKind::Records, &content.bytes)?;
            let segment = self.segment();
            for record in &records[content.records] {
                if let Err(error) = self.live.follow(record, segment) {
                    panic!("the log is asked to remember what can't be: {}", error.0);
                }
            }
        }
        self.make_room()
    }

    /// Makes everything appended so far durable.
    ///
    /// # Errors
    /// [`WalError::Failed`]: nothing may be acknowledged any more.
    pub fn sync(&mut self) -> Result<(), WalError> {
        self.check_usable()?;
        if self.dirty {
            let segment = self.segment();
            let synced = self.disk.sync(segment);
            self.checked(segment, synced)?;
            self.dirty = false;
        }
        self.synced_through = self.next_sequence - 1;
        Ok(())
    }

    /// The last frame that is synced. It never falls, and each that was synced is found when the log
    /// is opened again.
    pub fn synced_through(&self) -> u64 {
        self.synced_through
    }

    /// Writes a marker that says how far the log is synced, so that damage to what was last
    /// written can be told from a crash. For when nothing else is going to be written.
    ///
    /// # Errors
    /// As [`Wal::append`].
    pub fn mark_idle(&mut self) -> Result<(), WalError> {
        self.check_usable()?;
        self.write_frame(FrameKind::Marker, &[])?;
        self.sync()
    }

    /// Keeps space for one more segment, if there is any: for when the disk is filling up.
    pub fn keep_spare(&mut self) {
        self.disk.keep_spare(self.next_size(0));
    }

    /// The disk under the log.
    pub fn disk_mut(&mut self) -> &mut D {
        &mut self.disk
    }

    fn segment(&self) -> u64 {
        self.segments.last().copied().unwrap_or_default()
    }

    fn check_usable(&self) -> Result<(), WalError> {
        if self.poisoned { Err(WalError::Poisoned) } else { Ok(()) }
    }

    fn checked<T>(&mut self, segment: u64, result: io::Result<T>) -> Result<T, WalError> {
        result.map_err(|source| {
            self.poisoned = true;
            WalError::Failed { place: self.disk.name(segment), source }
        })
    }

    fn largest_content(&self) -> usize {
        self.config.segment_bytes as usize - SEGMENT_HEADER - 2 * frame_bytes(0)
    }

    /// Records as the contents of frames: as few as fit into segments.
    fn split(&self, records: &[WalRecord]) -> Result<Vec<Content>, WalError> {
        let largest = self.largest_content();
        let mut contents: Vec<Content> = Vec::new();
        let mut out = Writer::new();
        let mut first = 0;
        let mut place = 0;
        while place < records.len() {
            let mut one = Writer::new();
            let together = kept_together(&records[place..]);
            for record in &records[place..place + together] {
                encode(record, &mut one);
            }
            if one.len() > largest {
                return Err(WalError::TooLarge {
                    size_bytes: one.len(),
                    segment_bytes: self.config.segment_bytes,
                });
            }
            if out.len() + one.len() > largest {
                let bytes = std::mem::take(&mut out).finish();
                contents.push(Content { bytes, records: first..place });
                first = place;
            }
            out.raw(one.as_slice());
            place += together;
        }
        if !out.is_empty() {
            contents.push(Content { bytes: out.finish(), records: first..records.len() });
        }
        Ok(contents)
    }

    fn write_frame(&mut self, kind: FrameKind, content: &[u8]) -> Result<(), WalError> {
        let frame = frame_bytes(content.len()) as u64;
        if self.offset + frame > self.size_bytes {
            self.sync()?;
            self.start_segment(frame)?;
        }
        let segment = self.segment();
        let mut out = Vec::with_capacity(frame_bytes(content.len()));
        push_frame(&mut out, segment, kind, self.next_sequence, self.synced_through, content);
        let written = self.disk.write(segment, self.offset, &out);
        self.checked(segment, written)?;
        self.offset += out.len() as u64;
        self.next_sequence += 1;
        self.dirty = true;
        self.stats.appended_bytes += out.len() as u64;
        Ok(())
    }

    /// The size of the segment that comes next, with room for a frame of so many bytes.
    fn next_size(&self, frame: u64) -> u64 {
        let least = frame + (SEGMENT_HEADER + frame_bytes(0)) as u64;
        let (first, largest) = (self.config.first_segment_bytes, self.config.segment_bytes);
        let mut size = first.max(self.size_bytes.saturating_mul(2)).clamp(ALIGN as u64, largest);
        while size < least && size < largest {
            size = size.saturating_mul(2).min(largest);
        }
        size
    }

    /// Goes on in a new segment, in which a frame of so many bytes fits. Everything before must be
    /// synced.
    fn start_segment(&mut self, frame: u64) -> Result<(), WalError> {
        let id = self.segments.last().map_or(1, |last| last + 1);
        let size = self.next_size(frame);
        let created = self.disk.create(id, size);
        self.checked(id, created)?;
        self.size_bytes = size;
        let header = segment_header(id, self.next_sequence, size);
        let written = self.disk.write(id, 0, &header);
        self.checked(id, written)?;
        let synced = self.disk.sync(id);
        self.checked(id, synced)?;
        self.segments.push(id);
        self.offset = SEGMENT_HEADER as u64;
        self.dirty = false;
        Ok(())
    }

    /// Lets go of segments that nothing needs, and of the oldest one where there are too many.
    fn make_room(&mut self) -> Result<(), WalError> {
        self.free_unneeded()?;
        // Rewriting can itself fill segments; each pass must free at least as many.
        let mut attempts = self.segments.len();
        while self.segments.len() > self.config.max_segments && attempts > 0 {
            attempts -= 1;
            let oldest = self.segments[0];
            let (replicas, tombstones) = self.live.pinned_by(oldest);
            for replica in replicas {
                self.rewrite(replica)?;
            }
            if !tombstones.is_empty() {
                for content in self.split(&tombstones)? {
                    self.write_frame(FrameKind::Records, &content.bytes)?;
                }
                let segment = self.segment();
                for record in &tombstones {
                    // A tombstone follows anything.
                    let _ = self.live.follow(record, segment);
                }
            }
            self.sync()?;
            self.free_unneeded()?;
        }
        Ok(())
    }

    fn rewrite(&mut self, replica: ReplicaId) -> Result<(), WalError> {
        let records = self.live.rewrite_of(replica);
        let contents = self.split(&records)?;
        let last = contents.len().saturating_sub(1);
        // If the parts lie in several segments, the first of them is what is needed.
        let mut first_segment = None;
        for (place, content) in contents.iter().enumerate() {
            let kind = if place == last { FrameKind::RewriteEnd } else { FrameKind::RewritePart };
            self.write_frame(kind, &content.bytes)?;
            first_segment.get_or_insert(self.segment());
        }
        let segment = first_segment.unwrap_or_else(|| self.segment());
        if let Err(error) = self.live.replace(&records, segment) {
            panic!("a replica's own state doesn't follow itself: {}", error.0);
        }
        self.stats.rewrites += 1;
        Ok(())
    }

    fn free_unneeded(&mut self) -> Result<(), WalError> {
        let current = self.segment();
        let needed = self.live.oldest_needed().unwrap_or(current).min(current);
        while self.segments.first().is_some_and(|oldest| *oldest < needed) {
            // What took its place must be durable first.
            self.sync()?;
            let oldest = self.segments[0];
            let removed = self.disk.remove(oldest);
            self.checked(oldest, removed)?;
            self.segments.remove(0);
        }
        Ok(())
    }
}

struct Content {
    bytes: Bytes,
    records: std::ops::Range<usize>,
}

fn open_io<T>(place: &str, result: io::Result<T>) -> Result<T, OpenError> {
    result.map_err(|source| OpenError::Io { place: place.to_owned(), source })
}

/// What reading a log back gave.
struct Recovered {
    live: LiveState,
    segments: Vec<u64>,
    /// Files that were made for a segment which was never begun.
    unused: Vec<u64>,
    next_sequence: u64,
}

impl Recovered {
    fn read<D: Disk>(disk: &D, segment_bytes: u64) -> Result<Self, OpenError> {
        let ids = open_io("the log", disk.segments())?;
        let mut frames: Vec<(u64, Frame)> = Vec::new();
        let mut segments = Vec::new();
        let mut unused = Vec::new();
        let mut next_sequence = None;
        for (place, id) in ids.iter().enumerate() {
            let is_last = place + 1 == ids.len();
            if let Some(previous) = segments.last()
                && *id != previous + 1
            {
                return Err(damaged(
                    disk,
                    *id,
                    0,
                    format!("segment {} is missing before it", previous + 1),
                ));
            }
            let content = Bytes::from(open_io(&disk.name(*id), disk.read(*id))?);
            let whole = |size_bytes: u64| {
                let length = content.len() as u64;
                if length >= size_bytes {
                    return Ok(());
                }
                // Its end may have been synced: what a crash leaves has its full size.
                let what = format!("it was cut off; it had {size_bytes} bytes");
                Err(damaged(disk, *id, length, what))
            };
            // No segment is as short as that, not even one that was never begun.
            whole(SEGMENT_HEADER as u64)?;
            let (first_sequence, header_end) = match parse_header(&content, *id) {
                Header::Good { first_sequence, size_bytes, end } => {
                    whole(size_bytes.unwrap_or(segment_bytes))?;
                    (first_sequence, end)
                }
                Header::Unknown { format } => {
                    return Err(OpenError::UnknownFormat { file: disk.name(*id), found: format });
                }
                Header::Bad if is_last && !any_frame(&content, *id, 0, |_| true) => {
                    // Made, but the process ended before its header was synced.
                    unused.push(*id);
                    continue;
                }
                Header::Bad => {
                    return Err(damaged(
                        disk,
                        *id,
                        0,
                        "its header is not what was written".to_owned(),
                    ));
                }
            };
            let due = next_sequence.unwrap_or(first_sequence);
            if due != first_sequence {
                // The segment before ends too early: its end was synced before this one began.
                let before = segments.last().copied().unwrap_or(*id);
                let offset = frames.last().map_or(SEGMENT_HEADER, |(_, frame)| frame.end);
                return Err(damaged(
                    disk,
                    before,
                    offset as u64,
                    format!("frame {due} is missing or unreadable"),
                ));
            }
            let (sequence, end) =
                read_frames(&content, *id, first_sequence, header_end, &mut frames);
            if is_last && any_frame(&content, *id, end, |frame| frame.synced_through >= sequence) {
                return Err(damaged(
                    disk,
                    *id,
                    end as u64,
                    format!("frame {sequence} was synced and is unreadable"),
                ));
            }
            next_sequence = Some(sequence);
            segments.push(*id);
        }
        let live = replay(disk, &frames)?;
        Ok(Recovered { live, segments, unused, next_sequence: next_sequence.unwrap_or(1) })
    }
}

fn damaged<D: Disk>(disk: &D, segment: u64, offset: u64, what: String) -> OpenError {
    OpenError::Damaged { file: disk.name(segment), offset, what }
}

/// Reads the unbroken run of frames from `offset` and `first_sequence` on. Returns the sequence that is due
/// next and where it would be.
fn read_frames(
    content: &Bytes,
    segment: u64,
    first_sequence: u64,
    mut offset: usize,
    frames: &mut Vec<(u64, Frame)>,
) -> (u64, usize) {
    let mut sequence = first_sequence;
    while let Some(frame) =
        parse_frame(content, segment, offset).filter(|frame| frame.sequence == sequence)
    {
        offset = frame.end;
        sequence += 1;
        frames.push((segment, frame));
    }
    (sequence, offset)
}

/// Whether a whole frame that `wanted` accepts lies anywhere from `offset` on.
fn any_frame(
    content: &Bytes,
    segment: u64,
    offset: usize,
    wanted: impl Fn(&Frame) -> bool,
) -> bool {
    (offset..content.len())
        .step_by(ALIGN)
        .any(|at| parse_frame(content, segment, at).is_some_and(|frame| wanted(&frame)))
}

/// How many of the next records a crash must take or leave as one. Where a replica ends and another
/// of the shard goes on at once from a state of its own, there must never be neither.
fn kept_together(records: &[WalRecord]) -> usize {
    match records {
        [
            WalRecord::Destroyed { shard, .. },
            WalRecord::Created { replica, shard: same, volume: Some(_), .. },
            WalRecord::HardState { replica: next, .. },
            ..,
        ] if shard == same && replica == next => 3,
        _ => 1,
    }
}

fn replay<D: Disk>(disk: &D, frames: &[(u64, Frame)]) -> Result<LiveState, OpenError> {
    let mut decoded = Vec::with_capacity(frames.len());
    for (segment, frame) in frames {
        let records = decode_all(frame.content.clone())
            .map_err(|error| damaged(disk, *segment, frame.end as u64, error.to_string()))?;
        decoded.push((*segment, frame, records));
    }
    // Before its last complete rewrite, or its end, what a replica wrote is of no consequence,
    // and a part of it may be gone.
    let mut begins: BTreeMap<ReplicaId, u64> = BTreeMap::new();
    for (_, frame, records) in &decoded {
        for record in records {
            let settles = match frame.kind {
                FrameKind::RewriteEnd => true,
                FrameKind::Records => matches!(record, WalRecord::Destroyed { .. }),
                _ => false,
            };
            if settles {
                begins.insert(record.replica(), frame.sequence);
            }
        }
    }
    let mut live = LiveState::default();
    let mut parts: Vec<WalRecord> = Vec::new();
    let mut parts_segment = 0;
    for (segment, frame, records) in decoded {
        let follow = |live: &mut LiveState, record: &WalRecord| {
            live.follow(record, segment)
                .map_err(|error| damaged(disk, segment, frame.end as u64, error.0))
        };
        match frame.kind {
            FrameKind::Marker => {}
            FrameKind::Records => {
                parts.clear();
                for (place, record) in records.iter().enumerate() {
                    let begin = begins.get(&record.replica()).copied().unwrap_or(0);
                    // In the very frame that ends a replica, only its end counts.
                    let ends_later = || {
                        records[place + 1..].iter().any(|later| {
                            matches!(later, WalRecord::Destroyed { replica, .. } if *replica == record.replica())
                        })
                    };
                    if frame.sequence > begin || frame.sequence == begin && !ends_later() {
                        follow(&mut live, record)?;
                    }
                }
            }
            FrameKind::RewritePart | FrameKind::RewriteEnd => {
                if parts.is_empty() {
                    parts_segment = segment;
                }
                // A rewrite begins with `Created`: what an interrupted one left goes.
                if matches!(records.first(), Some(WalRecord::Created { .. })) {
                    parts.clear();
                    parts_segment = segment;
                }
                parts.extend(records);
                if frame.kind == FrameKind::RewriteEnd {
                    let whole = std::mem::take(&mut parts);
                    let replica = whole.first().map(WalRecord::replica).unwrap_or_default();
                    if begins.get(&replica).is_some_and(|begin| frame.sequence < *begin) {
                        // Replaced later; its first parts may be gone already.
                        continue;
                    }
                    live.replace(&whole, parts_segment)
                        .map_err(|error| damaged(disk, segment, frame.end as u64, error.0))?;
                }
            }
        }
    }
    Ok(live)
}
