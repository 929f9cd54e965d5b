//! Collections without an order, hashes and sets: where their elements stand, how they are walked
//! through, and how some are chosen at random.
//!
//! An element's place is a hash of its name and the name. So a walk needs no more than a number to go
//! on from, whatever comes and goes meanwhile, and a random place is as good as a random element: see
//! [`choose`]. All of it is a part of the state machine: fixed.

use crate::apply::ApplyError;
use crate::command::{Done, Fault, REPLIED_MOST, ReplySize, flag, wrong};
use crate::record::Type;
use crate::tx::{Collection, Tx};
use bytes::{BufMut, Bytes, BytesMut};
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::wrong_value::REPLY_TOO_LARGE;
use kvdb_model::{Limits, Refusal, Reply};
use std::collections::BTreeSet;
use xxhash_rust::xxh3::xxh3_64;

/// Bytes of a name's hash. So few that clients which take a cursor for a floating-point number can
/// hold it.
const PLACE_BYTES: usize = 6;
/// How many hashes there are.
pub(crate) const PLACES: u64 = 1 << (8 * PLACE_BYTES);

/// Elements that a window of places has on average.
const WINDOW: u64 = 8;
/// Slots that a window is taken to have. A window with more elements than that, one in 10^10, hides
/// the rest.
const SLOTS: u64 = 32;
/// Draws that may meet an empty slot, three of four on average, until elements are counted instead.
const DRAWS: u32 = 64;
/// Elements that are looked at for one that is drawn, about: if so many are wanted that a walk through
/// all of them is shorter, that is taken.
const LOOKED_AT: u64 = 64;
pub(crate) fn encode_list(list: &[Bytes], out: &mut Writer) {
    out.varint(list.len() as u64);
    list.iter().for_each(|item| out.bytes(item));
}

pub(crate) fn decode_list(input: &mut Reader) -> Result<Vec<Bytes>, DecodeError> {
    let count = input.count(1)?;
    (0..count).map(|_| input.bytes()).collect()
}

/// How many elements are chosen at random, if a number is given.
pub(crate) fn encode_random(count: Option<i64>, out: &mut Writer) {
    out.u8(u8::from(count.is_some()));
    out.signed(count.unwrap_or(0));
}

pub(crate) fn decode_random(input: &mut Reader) -> Result<Option<i64>, DecodeError> {
    let (is_given, count) = (flag(input)?, input.signed()?);
    Ok(is_given.then_some(count))
}

/// A name is kept as a part of a key.
pub(crate) fn check_name(what: &'static str, name: &[u8], limits: &Limits) -> Result<(), Refusal> {
    let limit = limits.key_max_bytes;
    if name.len() > limit {
        let problem = format!("is {} bytes; the limit is {limit}", name.len());
        return Err(Refusal::invalid(what, problem));
    }
    Ok(())
}

/// Where an element stands among the others.
pub(crate) fn place_of(name: &[u8]) -> Bytes {
    let hash = xxh3_64(name).to_be_bytes();
    let mut place = BytesMut::with_capacity(PLACE_BYTES + name.len());
    place.put_slice(&hash[..PLACE_BYTES]);
    place.put_slice(name);
    place.freeze()
}

/// The name of the element at a place.
pub(crate) fn name_at(place: &Bytes) -> Bytes {
    place.slice(PLACE_BYTES.min(place.len())..)
}

/// The same, borrowed.
pub(crate) fn name_in(place: &[u8]) -> &[u8] {
    &place[PLACE_BYTES.min(place.len())..]
}

/// The number to go on from, so that an element is the next one; and back.
pub(crate) fn cursor_of(place: &[u8]) -> u64 {
    let bytes = place.iter().take(PLACE_BYTES);
    bytes.fold(0, |cursor, byte| cursor << 8 | u64::from(*byte))
}

pub(crate) fn place_at(cursor: u64) -> [u8; PLACE_BYTES] {
    let mut place = [0; PLACE_BYTES];
    place.copy_from_slice(&cursor.to_be_bytes()[size_of::<u64>() - PLACE_BYTES..]);
    place
}

/// A part of the elements, from a cursor on, about `most` of them: places with payloads, and the cursor
/// to go on from (0 at the end). An element that is there from the first part to the last comes once.
/// Without `most` all of them.
///
/// # Errors
/// If all of them are more than a reply holds.
pub(crate) fn part(
    tx: &Tx<'_>,
    place: usize,
    collection: &Collection,
    cursor: u64,
    most: u64,
) -> Result<(u64, Vec<(Bytes, Bytes)>), Fault> {
    let mut found = Vec::new();
    if cursor >= PLACES {
        return Ok((0, found));
    }
    let (mut size, mut last, mut next) = (ReplySize::default(), None, 0);
    tx.scan(place, collection, &place_at(cursor), |element, payload| {
        let fits = size.add(element.len() + payload.len());
        let cursor = cursor_of(&element);
        let is_full = most > 0 && found.len() as u64 >= most;
        // Names with the same hash come together.
        if (is_full || !fits) && last.is_some_and(|last| last != cursor) {
            next = cursor;
            return false;
        }
        last = Some(cursor);
        found.push((element, payload));
        true
    })?;
    if most == 0 && next != 0 {
        return Err(wrong(REPLY_TOO_LARGE));
    }
    Ok((next, found))
}

/// Numbers that look random, the same ones from the same seed (SplitMix64: Steele, Lea and Flood, 2014).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// One from 0 to below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    /// So many different ones from 0 to below `end` (Floyd's way: Bentley, Programming Pearls, CACM 30:9,
    /// 1987).
    pub(crate) fn sample(&mut self, wanted: u64, end: u64) -> BTreeSet<u64> {
        let mut sample = BTreeSet::new();
        for last in end - wanted..end {
            let number = self.below(last + 1);
            if !sample.insert(number) {
                sample.insert(last);
            }
        }
        sample
    }
}

/// Removes elements by their names. Replies with how many were there.
pub(crate) fn remove(tx: &mut Tx<'_>, kind: Type, names: &[Bytes]) -> Result<Done, Fault> {
    let Some(mut collection) = tx.collection(0, kind)? else {
        return Ok(Done::NOT_APPLIED.with(Reply::Integer(0)));
    };
    let mut removed = 0;
    for name in names {
        removed += i64::from(tx.remove_element(0, &mut collection, &place_of(name))?);
    }
    if removed == 0 {
        return Ok(Done::NOT_APPLIED.with(Reply::Integer(0)));
    }
    tx.store(0, collection)?;
    Ok(Done::APPLIED.with(Reply::Integer(removed)))
}

/// How many elements are chosen at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// So many different ones; all, if there aren't more.
    Distinct(u64),
    /// So many, each out of all.
    Repeating(u64),
}

impl Choice {
    /// As Redis gives it: below 0 for repeating ones; one without a count.
    pub(crate) fn of(count: Option<i64>) -> Self {
        match count {
            None => Choice::Distinct(1),
            Some(count @ 0..) => Choice::Distinct(count.unsigned_abs()),
            Some(count) => Choice::Repeating(count.unsigned_abs()),
        }
    }
}

/// Chooses elements at random, each as likely as any other: places with payloads.
///
/// Few of a large collection are found without a walk through it. A window of places is drawn, so
/// narrow that about 8 elements stand in it, and one of 32 slots. The element in that slot is taken, if
/// the window has so many; otherwise both are drawn again. Every element has the same chance, whatever
/// windows look like.
///
/// # Errors
/// If they are more than a reply holds.
pub(crate) fn choose(
    tx: &Tx<'_>,
    place: usize,
    collection: &Collection,
    choice: Choice,
    seed: u64,
) -> Result<Vec<(Bytes, Bytes)>, Fault> {
    let there = tx.count(place, collection)?;
    let wanted = match choice {
        Choice::Distinct(count) if count >= there => {
            return Ok(part(tx, place, collection, 0, 0)?.1);
        }
        Choice::Distinct(count) | Choice::Repeating(count) => count,
    };
    if wanted > REPLIED_MOST {
        return Err(wrong(REPLY_TOO_LARGE));
    }
    let mut chooser = Chooser { tx, place, collection, there, numbers: Numbers(seed) };
    let chosen = match wanted.saturating_mul(LOOKED_AT) < there {
        true => chooser.by_place(choice, wanted)?,
        false => chooser.by_rank(choice, wanted)?,
    };
    Ok(chosen)
}

/// Counts what goes into a reply.
fn add_up(size: &mut ReplySize, (element, payload): &(Bytes, Bytes)) -> Result<(), Fault> {
    size.add(element.len() - PLACE_BYTES.min(element.len()) + payload.len());
    size.check()
}

struct Chooser<'a, 'tx> {
    tx: &'a Tx<'tx>,
    place: usize,
    collection: &'a Collection,
    there: u64,
    numbers: Numbers,
}

impl Chooser<'_, '_> {
    fn by_place(&mut self, choice: Choice, wanted: u64) -> Result<Vec<(Bytes, Bytes)>, Fault> {
        let mut seen = BTreeSet::new();
        let mut chosen = Vec::new();
        let mut size = ReplySize::default();
        while (chosen.len() as u64) < wanted {
            let Some(found) = self.draw()? else { break };
            let is_new = !matches!(choice, Choice::Distinct(_)) || seen.insert(found.0.clone());
            if is_new {
                add_up(&mut size, &found)?;
                chosen.push(found);
            }
        }
        Ok(chosen)
    }

    fn draw(&mut self) -> Result<Option<(Bytes, Bytes)>, Fault> {
        let windows = (self.there / WINDOW).max(1);
        let start_of =
            |window: u64| (u128::from(window) * u128::from(PLACES) / u128::from(windows)) as u64;
        for _ in 0..DRAWS {
            let window = self.numbers.below(windows);
            let slot = self.numbers.below(SLOTS);
            let (start, end) = (start_of(window), start_of(window + 1));
            if let Some(found) = self.nth(start, end, slot)? {
                return Ok(Some(found));
            }
        }
        let rank = self.numbers.below(self.there);
        Ok(self.nth(0, PLACES, rank)?)
    }

    /// The element after so many others, among those between two places.
    fn nth(&self, start: u64, end: u64, rank: u64) -> Result<Option<(Bytes, Bytes)>, ApplyError> {
        let (mut passed, mut found) = (0, None);
        self.tx.scan(self.place, self.collection, &place_at(start), |element, payload| {
            if cursor_of(&element) >= end {
                return false;
            }
            if passed == rank {
                found = Some((element, payload));
            }
            passed += 1;
            found.is_none()
        })?;
        Ok(found)
    }

    /// In one walk, up to the last one that is wanted.
    fn by_rank(&mut self, choice: Choice, wanted: u64) -> Result<Vec<(Bytes, Bytes)>, Fault> {
        let mut ranks: Vec<(u64, usize)> = Vec::with_capacity(wanted as usize);
        match choice {
            Choice::Distinct(_) => {
                ranks.extend(self.numbers.sample(wanted, self.there).into_iter().zip(0..));
            }
            Choice::Repeating(_) => {
                ranks.extend((0..wanted as usize).map(|at| (self.numbers.below(self.there), at)));
                ranks.sort_unstable();
            }
        }
        let mut chosen = vec![None; ranks.len()];
        let (mut passed, mut next, mut size) = (0, 0, ReplySize::default());
        let mut problem = None;
        self.tx.scan(self.place, self.collection, &[], |element, payload| {
            while let Some((rank, at)) = ranks.get(next)
                && *rank == passed
            {
                let found = (element.clone(), payload.clone());
                if let Err(fault) = add_up(&mut size, &found) {
                    problem = Some(fault);
                    return false;
                }
                chosen[*at] = Some(found);
                next += 1;
            }
            passed += 1;
            next < ranks.len()
        })?;
        problem.map_or_else(|| Ok(chosen.into_iter().flatten().collect()), Err)
    }
}
