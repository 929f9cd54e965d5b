//! Rows in their order, and how many there are: which one stands at a rank, and at which rank one
//! stands.
//!
//! Lists and sorted sets are rows, ascending by their place. A small collection counts them as it walks
//! through. A promoted one keeps a *directory* of two levels beside its rows: a chunk says how many rows
//! stand from its bound to the next chunk's, a span says the same of chunks. Each has a few hundred at
//! most, so finding a rank among a million rows reads a few hundred records, and a change of a row
//! writes three.
//!
//! ```text
//! places:  0 row   1 member (of sorted sets)   2 bound of a chunk   3 bound of a span
//! chunk:   rows (varint)  low (bytes)  high (bytes)
//! span:    rows (varint)  chunks (varint)
//! ```
//!
//! Invariants:
//! - The first chunk and the first span have an empty bound, and are there as long as the collection is.
//!   Others have at least one row.
//! - A row belongs to the chunk with the highest bound at or below it; a chunk belongs to the span with
//!   the highest bound at or below its own. A span's bound is that of its first chunk.
//! - The rows of a chunk lie in `[low, high)`. What was removed before the first row isn't walked through
//!   again: a queue leaves behind what an engine has yet to forget.
//!
//! Sizes of chunks and spans are a part of the state machine: fixed. Left out: what rows mean (the
//! families), and members.

use crate::apply::ApplyError;
use crate::changes::Direction;
use crate::tx::{Collection, Tx};
use bytes::{BufMut, Bytes, BytesMut};
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::planted::{Bug, has};
use std::ops::Bound;

/// Most rows of a chunk, and most chunks of a span: few in tests and simulations, so that a few rows need
/// several.
const MOST: u64 = match () {
    () if cfg!(feature = "small-collections") => 4,
    () if cfg!(test) => 6,
    () => 256,
};

/// What the places of elements begin with where a collection has several kinds.
pub(crate) const ROW: u8 = 0;
pub(crate) const MEMBER: u8 = 1;
const CHUNK: u8 = 2;
const SPAN: u8 = 3;

/// A place of a kind.
pub(crate) fn placed(kind: u8, rest: &[u8]) -> Bytes {
    let mut place = BytesMut::with_capacity(1 + rest.len());
    place.put_u8(kind);
    place.put_slice(rest);
    place.freeze()
}

/// The lowest row above one.
fn after(row: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(row.len() + 1);
    next.put_slice(row);
    next.put_u8(0);
    next.freeze()
}

/// The ranks from one index to another one of so many, both included, below 0 from the end; `None` for none.
pub(crate) fn ranks_of(start: i64, stop: i64, count: u64) -> Option<(u64, u64)> {
    let length = i64::try_from(count).unwrap_or(i64::MAX);
    let place = |index: i64| if index < 0 { length.saturating_add(index) } else { index };
    let (start, stop) = (place(start).max(0), place(stop).min(length - 1));
    (start <= stop).then_some((start as u64, stop as u64))
}

/// Which end of the rows a row stands at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is the first one.
    First,
    /// It is the last one.
    Last,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Chunk {
    rows: u64,
    low: Bytes,
    high: Bytes,
}

impl Chunk {
    fn encode(&self) -> Bytes {
        let mut out = Writer::with_capacity(16 + self.low.len() + self.high.len());
        out.varint(self.rows);
        out.bytes(&self.low);
        out.bytes(&self.high);
        out.finish()
    }

    fn decode(stored: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(stored);
        let chunk = Chunk { rows: input.varint()?, low: input.bytes()?, high: input.bytes()? };
        input.end()?;
        Ok(chunk)
    }

    fn widen(&mut self, row: &[u8]) {
        if self.rows == 0 || *row < self.low[..] {
            self.low = Bytes::copy_from_slice(row);
        }
        if self.rows == 0 || *row >= self.high[..] {
            self.high = after(row);
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Span {
    rows: u64,
    chunks: u64,
}

impl Span {
    fn encode(&self) -> Bytes {
        let mut out = Writer::with_capacity(8);
        out.varint(self.rows);
        out.varint(self.chunks);
        out.finish()
    }

    fn decode(stored: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(stored);
        let span = Span { rows: input.varint()?, chunks: input.varint()? };
        input.end()?;
        Ok(span)
    }
}

/// The chunk that was worked on last, and its span: written back when another one is.
#[derive(Debug)]
struct Open {
    span_bound: Bytes,
    span: Span,
    bound: Bytes,
    chunk: Chunk,
    /// The bound of the next chunk, once it was looked at.
    next: Option<Option<Bytes>>,
}

/// The rows of a collection. What was changed counts once it is [`closed`](Order::close) and the
/// collection is stored.
pub struct Order<'t, 'a> {
    tx: &'t mut Tx<'a>,
    place: usize,
    collection: &'t mut Collection,
    open: Option<Open>,
}

type Done<T> = Result<T, ApplyError>;

impl<'a> Tx<'a> {
    /// The rows of a collection of a key.
    pub fn order<'t>(&'t mut self, place: usize, collection: &'t mut Collection) -> Order<'t, 'a> {
        Order { tx: self, place, collection, open: None }
    }
}

impl Order<'_, '_> {
    /// How many rows there are.
    pub fn count(&self) -> u64 {
        self.collection.count()
    }

    /// Sets a row. Returns whether it is new.
    ///
    /// # Errors
    /// If what is there can't be read.
    pub fn insert(&mut self, row: &[u8], payload: Bytes) -> Done<bool> {
        let place = placed(ROW, row);
        if !self.is_promoted() {
            return self.tx.set_element(self.place, self.collection, place, payload);
        }
        if !self.tx.set_element(self.place, self.collection, place.clone(), payload)? {
            return Ok(false);
        }
        self.seek(row)?;
        if self.opened().chunk.rows >= MOST {
            self.split_for(row)?;
        }
        let open = self.opened();
        open.chunk.widen(row);
        open.chunk.rows += 1;
        open.span.rows += 1;
        Ok(true)
    }

    /// Removes a row, if it is there. Returns what it held. `end` says that it is the first or the last
    /// row of all.
    ///
    /// # Errors
    /// If what is there can't be read.
    pub fn remove(&mut self, row: &[u8], end: Option<End>) -> Done<Option<Bytes>> {
        let place = placed(ROW, row);
        let Some(payload) = self.tx.element(self.place, self.collection, &place)? else {
            return Ok(None);
        };
        self.tx.remove_element(self.place, self.collection, &place)?;
        if !self.is_promoted() {
            return Ok(Some(payload));
        }
        self.seek(row)?;
        let (low, rows) = (self.opened().chunk.low.clone(), self.opened().chunk.rows);
        let is_first = match end {
            Some(end) => end == End::First,
            // Whoever removes the lowest again and again leaves the place of each behind.
            None => rows > 1 && self.first_in(&low, row)?.is_none(),
        };
        let open = self.opened();
        open.chunk.rows = open.chunk.rows.saturating_sub(1);
        open.span.rows = open.span.rows.saturating_sub(1);
        if is_first {
            open.chunk.low = after(row);
        }
        if end == Some(End::Last) || open.chunk.high == after(row) {
            open.chunk.high = Bytes::copy_from_slice(row);
        }
        if open.chunk.rows == 0 {
            self.leave_empty()?;
        }
        Ok(Some(payload))
    }

    /// How many rows stand below a place.
    ///
    /// # Errors
    /// If they can't be read.
    pub fn rank(&mut self, row: &[u8]) -> Done<u64> {
        let mut rank = 0;
        let Some((chunk_bound, chunk)) = self.chunk_at(Bound::Included(row))? else {
            self.rows(b"", Some(row), Direction::Ascending, |_, _| {
                rank += 1;
                Ok(true)
            })?;
            return Ok(rank);
        };
        let span_bound = self.last_at(SPAN, &chunk_bound)?.map(|(bound, _)| bound);
        let span_bound = span_bound.unwrap_or_default();
        self.directory(SPAN, b"", Some(&span_bound), |_, stored| {
            rank += Span::decode(stored)?.rows;
            Ok(true)
        })?;
        self.directory(CHUNK, &span_bound, Some(&chunk_bound), |_, stored| {
            rank += Chunk::decode(stored)?.rows;
            Ok(true)
        })?;
        self.rows(&chunk.low, Some(row), Direction::Ascending, |_, _| {
            rank += 1;
            Ok(true)
        })?;
        Ok(rank)
    }

    /// The row at a rank, and what it holds.
    ///
    /// # Errors
    /// If they can't be read.
    pub fn at(&mut self, rank: u64) -> Done<Option<(Bytes, Bytes)>> {
        if rank >= self.count() {
            return Ok(None);
        }
        let mut left = rank;
        let mut from = Bytes::new();
        if self.is_promoted() {
            self.flush()?;
            let mut span_bound = Bytes::new();
            self.directory(SPAN, b"", None, |bound, stored| {
                span_bound = bound;
                Ok(pass(&mut left, Span::decode(stored)?.rows))
            })?;
            self.directory(CHUNK, &span_bound, None, |_, stored| {
                let chunk = Chunk::decode(stored)?;
                from = chunk.low;
                Ok(pass(&mut left, chunk.rows))
            })?;
        }
        let mut found = None;
        self.rows(&from, None, Direction::Ascending, |row, payload| {
            let passes = pass(&mut left, 1);
            if !passes {
                found = Some((row, payload));
            }
            Ok(passes)
        })?;
        Ok(found)
    }

    /// Rows from a place on (inclusive) upwards, or from below a place (exclusive; `None` is the end)
    /// downwards, while `more` says so.
    ///
    /// # Errors
    /// If they can't be read.
    pub fn scan(
        &mut self,
        from: Option<&[u8]>,
        direction: Direction,
        more: impl FnMut(Bytes, Bytes) -> Done<bool>,
    ) -> Done<()> {
        match direction {
            Direction::Ascending => {
                let Some(start) = self.start_at(from.unwrap_or_default())? else { return Ok(()) };
                self.rows(&start, None, direction, more)
            }
            Direction::Descending => {
                let Some(end) = self.end_below(from)? else { return Ok(()) };
                self.rows(b"", end.as_deref(), direction, more)
            }
        }
    }

    /// The first or the last row, and what it holds.
    ///
    /// # Errors
    /// If they can't be read.
    pub fn end(&mut self, end: End) -> Done<Option<(Bytes, Bytes)>> {
        let direction = match end {
            End::First => Direction::Ascending,
            End::Last => Direction::Descending,
        };
        let mut found = None;
        self.scan(None, direction, |row, payload| {
            found = Some((row, payload));
            Ok(false)
        })?;
        Ok(found)
    }

    /// What a row holds.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn get(&self, row: &[u8]) -> Done<Option<Bytes>> {
        self.tx.element(self.place, self.collection, &placed(ROW, row))
    }

    /// What is kept at a place beside the rows of a promoted collection.
    pub(crate) fn beside(&self, place: &[u8]) -> Done<Option<Bytes>> {
        self.tx.element(self.place, self.collection, place)
    }

    /// Sets or removes what is kept at a place beside the rows of a promoted collection.
    pub(crate) fn set_beside(&mut self, place: &[u8], payload: Option<Bytes>) {
        self.tx.set_row(self.place, self.collection, place, payload);
    }

    /// Notes that what a row is about has changed, by its name.
    pub(crate) fn touch(&mut self, name: &[u8]) {
        self.tx.touch(self.place, name);
    }

    /// Writes back what was changed in the directory.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn close(mut self) -> Done<()> {
        self.flush()
    }

    pub(crate) fn is_promoted(&self) -> bool {
        self.collection.is_promoted()
    }

    /// Rows in a range, whatever the directory says.
    fn rows(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        direction: Direction,
        mut more: impl FnMut(Bytes, Bytes) -> Done<bool>,
    ) -> Done<()> {
        let range = (placed(ROW, from), end_of(ROW, to));
        self.tx.scan_places(self.place, self.collection, range, direction, |place, payload| {
            more(place.slice(1..), payload)
        })
    }

    /// The first row of a range.
    fn first_in(&self, from: &[u8], to: &[u8]) -> Done<Option<Bytes>> {
        let mut found = None;
        self.rows(from, Some(to), Direction::Ascending, |row, _| {
            found = Some(row);
            Ok(false)
        })?;
        Ok(found)
    }

    // The directory: of promoted collections only.

    fn write(&mut self, kind: u8, bound: &[u8], stored: Option<Bytes>) {
        self.tx.set_row(self.place, self.collection, &placed(kind, bound), stored);
    }

    /// Entries of a level from a bound (inclusive) to another one (exclusive).
    fn directory(
        &self,
        kind: u8,
        from: &[u8],
        to: Option<&[u8]>,
        mut more: impl FnMut(Bytes, Bytes) -> Done<bool>,
    ) -> Done<()> {
        let range = (placed(kind, from), end_of(kind, to));
        let direction = Direction::Ascending;
        self.tx.scan_places(self.place, self.collection, range, direction, |place, stored| {
            more(place.slice(1..), stored)
        })
    }

    /// The entry of a level with the highest bound at or below a place.
    fn last_at(&self, kind: u8, place: &[u8]) -> Done<Option<(Bytes, Bytes)>> {
        let range = (placed(kind, b""), placed(kind, &after(place)));
        let mut found = None;
        let direction = Direction::Descending;
        self.tx.scan_places(self.place, self.collection, range, direction, |place, stored| {
            found = Some((place.slice(1..), stored));
            Ok(false)
        })?;
        Ok(found)
    }

    /// The chunk that a place belongs to, or the one before it if it begins there.
    fn chunk_at(&mut self, place: Bound<&[u8]>) -> Done<Option<(Bytes, Chunk)>> {
        if !self.is_promoted() {
            return Ok(None);
        }
        self.flush()?;
        let found = match place {
            Bound::Included(place) => self.last_at(CHUNK, place)?,
            Bound::Excluded(place) => self.last_below(placed(CHUNK, place))?,
            Bound::Unbounded => self.last_below(placed(CHUNK + 1, b""))?,
        };
        found.map(|(bound, stored)| Ok((bound, Chunk::decode(stored)?))).transpose()
    }

    fn last_below(&self, end: Bytes) -> Done<Option<(Bytes, Bytes)>> {
        let mut found = None;
        let range = (placed(CHUNK, b""), end);
        let direction = Direction::Descending;
        self.tx.scan_places(self.place, self.collection, range, direction, |place, stored| {
            found = Some((place.slice(1..), stored));
            Ok(false)
        })?;
        Ok(found)
    }

    /// Where to begin a walk upwards, so that it meets nothing that was removed before its first row.
    fn start_at(&mut self, from: &[u8]) -> Done<Option<Bytes>> {
        let Some((bound, chunk)) = self.chunk_at(Bound::Included(from))? else {
            return Ok(Some(Bytes::copy_from_slice(from)));
        };
        if chunk.rows > 0 && *from < chunk.high[..] {
            return Ok(Some(chunk.low.max(Bytes::copy_from_slice(from))));
        }
        let mut start = None;
        self.directory(CHUNK, &after(&bound), None, |_, stored| {
            let chunk = Chunk::decode(stored)?;
            if chunk.rows > 0 {
                start = Some(chunk.low);
            }
            Ok(start.is_none())
        })?;
        Ok(start)
    }

    /// Below which place to begin a walk downwards: `Some(None)` for the end.
    fn end_below(&mut self, below: Option<&[u8]>) -> Done<Option<Option<Bytes>>> {
        if !self.is_promoted() {
            return Ok(Some(below.map(Bytes::copy_from_slice)));
        }
        let mut bound = below.map_or(Bound::Unbounded, Bound::Excluded);
        let mut chunk_bound;
        while let Some((found, chunk)) = self.chunk_at(bound)? {
            let reaches = below.is_none_or(|below| chunk.low[..] < *below);
            if chunk.rows > 0 && reaches {
                let below = below.map(Bytes::copy_from_slice);
                return Ok(Some(Some(below.map_or(chunk.high.clone(), |b| b.min(chunk.high)))));
            }
            chunk_bound = found;
            bound = Bound::Excluded(&chunk_bound);
        }
        Ok(None)
    }

    fn opened(&mut self) -> &mut Open {
        self.open.as_mut().expect("a chunk was sought before")
    }

    /// Opens the chunk that a row belongs to.
    fn seek(&mut self, row: &[u8]) -> Done<()> {
        if self.covers(row)? {
            return Ok(());
        }
        self.flush()?;
        let found = self.last_at(CHUNK, row)?;
        let Some((bound, stored)) = found else {
            let span = Span { rows: 0, chunks: 1 };
            let (bound, chunk) = (Bytes::new(), Chunk::default());
            self.open =
                Some(Open { span_bound: Bytes::new(), span, bound, chunk, next: Some(None) });
            return Ok(());
        };
        let chunk = Chunk::decode(stored)?;
        let (span_bound, stored) = self.last_at(SPAN, &bound)?.unwrap_or_default();
        let span = Span::decode(stored)?;
        self.open = Some(Open { span_bound, span, bound, chunk, next: None });
        Ok(())
    }

    fn covers(&mut self, row: &[u8]) -> Done<bool> {
        let Some(open) = &self.open else { return Ok(false) };
        if *row < open.bound[..] {
            return Ok(false);
        }
        if *row < open.chunk.high[..] {
            return Ok(true);
        }
        let next = match &open.next {
            Some(next) => next.clone(),
            None => self.bound_after(&open.bound)?,
        };
        let covers = next.as_ref().is_none_or(|next| *row < next[..]);
        self.opened().next = Some(next);
        Ok(covers)
    }

    /// Where the next chunk begins.
    fn bound_after(&self, bound: &[u8]) -> Done<Option<Bytes>> {
        let mut next = None;
        self.directory(CHUNK, &after(bound), None, |bound, _| {
            next = Some(bound);
            Ok(false)
        })?;
        Ok(next)
    }

    /// Makes room for a row in the open chunk, which is full.
    fn split_for(&mut self, row: &[u8]) -> Done<()> {
        let open = self.opened();
        let Chunk { rows, low, high } = open.chunk.clone();
        open.span.chunks += 1;
        if *row >= high[..] {
            // What grows at its end fills its chunks.
            let bound = open.bound.clone();
            self.write(CHUNK, &bound, Some(Chunk { rows, low, high }.encode()));
            let open = self.opened();
            open.bound = Bytes::copy_from_slice(row);
            open.chunk = Chunk::default();
        } else if *row < low[..] {
            open.next = Some(Some(low.clone()));
            open.chunk = Chunk::default();
            self.write(CHUNK, &low, Some(Chunk { rows, low: low.clone(), high }.encode()));
        } else {
            self.split_in_the_middle(row, rows, low, high)?;
        }
        if self.opened().span.chunks > MOST {
            self.split_span()?;
        }
        Ok(())
    }

    fn split_in_the_middle(&mut self, row: &[u8], rows: u64, low: Bytes, high: Bytes) -> Done<()> {
        let half = rows / 2;
        let (mut seen, mut last, mut middle) = (0, Bytes::new(), None);
        self.rows(&low, Some(&high), Direction::Ascending, |found, _| {
            // It is stored already, and not counted yet.
            if found == *row {
                return Ok(true);
            }
            if seen == half {
                middle = Some(found);
                return Ok(false);
            }
            seen += 1;
            last = found;
            Ok(true)
        })?;
        let Some(middle) = middle else { return Ok(()) };
        let left = Chunk { rows: half, low, high: after(&last) };
        let right = Chunk { rows: rows - half, low: middle.clone(), high };
        let open = self.opened();
        if *row < middle[..] {
            open.chunk = left;
            open.next = Some(Some(middle.clone()));
            self.write(CHUNK, &middle, Some(right.encode()));
        } else {
            let bound = std::mem::replace(&mut open.bound, middle);
            open.chunk = right;
            self.write(CHUNK, &bound, Some(left.encode()));
        }
        Ok(())
    }

    /// Cuts the open chunk's span in two.
    fn split_span(&mut self) -> Done<()> {
        self.flush_open();
        let Some(Open { span_bound, span, bound, .. }) = &self.open else { return Ok(()) };
        let (from, span, bound) = (span_bound.clone(), span.clone(), bound.clone());
        let half = span.chunks / 2;
        let (mut left, mut middle) = (Span::default(), None);
        self.directory(CHUNK, &from, None, |bound, stored| {
            if left.chunks == half {
                middle = Some(bound);
                return Ok(false);
            }
            left.chunks += 1;
            left.rows += Chunk::decode(stored)?.rows;
            Ok(true)
        })?;
        let Some(middle) = middle else { return Ok(()) };
        let right = Span {
            rows: span.rows.saturating_sub(left.rows),
            chunks: span.chunks.saturating_sub(left.chunks),
        };
        let is_right = bound >= middle;
        self.write(SPAN, &from, Some(left.encode()));
        self.write(SPAN, &middle, Some(right.encode()));
        let open = self.opened();
        if is_right {
            (open.span_bound, open.span) = (middle, right);
        } else {
            open.span = left;
        }
        Ok(())
    }

    /// Gives up the open chunk, which has no row any more.
    fn leave_empty(&mut self) -> Done<()> {
        let open = self.opened();
        if open.bound.is_empty() {
            open.chunk = Chunk::default();
            return Ok(());
        }
        open.span.chunks = open.span.chunks.saturating_sub(1);
        let Some(open) = self.open.take() else { return Ok(()) };
        self.write(CHUNK, &open.bound, None);
        // A span begins where its first chunk does, so that what comes before that never counts for it.
        let span_bound = match open.bound == open.span_bound {
            false => Some(open.span_bound.clone()),
            true if open.span.chunks == 0 => None,
            true => self.bound_after(&open.bound)?,
        };
        if span_bound.as_ref() != Some(&open.span_bound) {
            self.write(SPAN, &open.span_bound, None);
        }
        if let Some(span_bound) = span_bound {
            self.write(SPAN, &span_bound, Some(open.span.encode()));
        }
        Ok(())
    }

    fn flush_open(&mut self) {
        let Some(open) = &self.open else { return };
        let (chunk, span) = (open.chunk.encode(), open.span.encode());
        let (bound, span_bound) = (open.bound.clone(), open.span_bound.clone());
        self.write(CHUNK, &bound, Some(chunk));
        if has(Bug::SpanNotWritten) && self.last_at(SPAN, &span_bound).is_ok_and(|it| it.is_some())
        {
            return;
        }
        self.write(SPAN, &span_bound, Some(span));
    }

    fn flush(&mut self) -> Done<()> {
        self.flush_open();
        self.open = None;
        Ok(())
    }
}

/// Takes so many off what is left; whether it was enough to go on.
fn pass(left: &mut u64, rows: u64) -> bool {
    match left.checked_sub(rows) {
        Some(rest) => {
            *left = rest;
            true
        }
        None => false,
    }
}

fn end_of(kind: u8, to: Option<&[u8]>) -> Bytes {
    match to {
        Some(to) => placed(kind, to),
        None => placed(kind + 1, b""),
    }
}

#[cfg(test)]
mod tests;
