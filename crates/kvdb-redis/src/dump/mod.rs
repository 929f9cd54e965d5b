//! The form of `DUMP` and `RESTORE`: a type, what the key holds as in an RDB file, the version of that
//! format, and a CRC64. What Redis dumps can be restored here, and what is dumped here in Redis 7.0 and later.
//!
//! Read is whatever Redis up to 7.4 writes for strings, hashes, lists, sets and sorted sets, but hashes whose
//! fields expire; written are the plain forms, in which Redis keeps large collections. A dump comes
//! from outside: no length in it is believed before it is compared with what is there, and the elements
//! together are bounded before they are unpacked.

mod lzf;
mod packed;
#[cfg(test)]
mod tests;

use crate::number::parse_i64;
use bytes::Bytes;
use kvdb_store::keys::Content;
use kvdb_store::zset::Score;
use std::collections::HashSet;

const STRING: u8 = 0;
const LIST: u8 = 1;
const SET: u8 = 2;
const SORTED_SET_TEXT: u8 = 3;
const HASH: u8 = 4;
const SORTED_SET: u8 = 5;
const MODULES: [u8; 2] = [6, 7];
const HASH_ZIPMAP: u8 = 9;
const LIST_ZIPLIST: u8 = 10;
const SET_INTSET: u8 = 11;
const SORTED_SET_ZIPLIST: u8 = 12;
const HASH_ZIPLIST: u8 = 13;
const LIST_OF_ZIPLISTS: u8 = 14;
const STREAMS: [u8; 3] = [15, 19, 21];
const HASH_LISTPACK: u8 = 16;
const SORTED_SET_LISTPACK: u8 = 17;
const LIST_OF_LISTPACKS: u8 = 18;
const SET_LISTPACK: u8 = 20;
const HASHES_THAT_EXPIRE: [u8; 4] = [22, 23, 24, 25];

/// In a list of listpacks: an element alone, or a listpack.
const NODE_PLAIN: usize = 1;
const NODE_PACKED: usize = 2;

/// Of Redis 7.0.
const VERSION: u16 = 10;
const VERSION_MAX: u16 = 12;
/// Most elements of a collection that is restored.
const ELEMENTS_MOST: usize = 100_000;
/// Most bytes of them.
const ELEMENTS_MAX_BYTES: usize = 8 << 20;
/// Most bytes that all compressed strings of a dump unpack to: elements may stand in them packed.
const UNPACKED_MAX_BYTES: usize = 16 << 20;
const BAD: &str = "Bad data format";
const BAD_SUM: &str = "DUMP payload version or checksum are wrong";
const TOO_LARGE: &str =
    "the payload holds more than 100,000 elements or 8 MiB: too much for one command";

/// The dump of what a key holds. That of a string is byte for byte as Redis 7.0 makes it.
pub fn of(content: &Content) -> Bytes {
    let mut out = Output::default();
    match content {
        Content::String(value) => {
            out.bytes.push(STRING);
            out.string(value);
        }
        Content::List(items) => out.strings(LIST, items),
        Content::Set(members) => out.strings(SET, members),
        Content::Hash(pairs) => {
            out.begin(HASH, pairs.len());
            for (field, value) in pairs {
                out.string(field);
                out.string(value);
            }
        }
        Content::SortedSet(members) => {
            out.begin(SORTED_SET, members.len());
            // As in Redis the last one comes first: whoever reads it puts each at the beginning.
            for (score, member) in members.iter().rev() {
                out.string(member);
                out.bytes.extend_from_slice(&score.number().to_le_bytes());
            }
        }
    }
    sealed(out.bytes)
}

/// A dump of a type and what belongs to it: with the version and the checksum.
pub fn sealed(content: Vec<u8>) -> Bytes {
    let mut out = content;
    out.extend_from_slice(&VERSION.to_le_bytes());
    let sum = crc64(&out);
    out.extend_from_slice(&sum.to_le_bytes());
    out.into()
}

#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    packer: lzf::Packer,
}

impl Output {
    fn begin(&mut self, kind: u8, count: usize) {
        self.bytes.push(kind);
        self.length(count);
    }

    fn strings(&mut self, kind: u8, items: &[Bytes]) {
        self.begin(kind, items.len());
        items.iter().for_each(|item| self.string(item));
    }

    /// A number, or a string that is shorter compressed, where Redis makes one of it.
    fn string(&mut self, value: &[u8]) {
        let number = (value.len() <= 11).then(|| parse_i64(value)).flatten();
        if number.is_some_and(|number| self.number(number)) {
            return;
        }
        match self.packer.pack(value) {
            Some(packed) => {
                self.bytes.push(0xc3);
                self.length(packed.len());
                self.length(value.len());
                self.bytes.extend_from_slice(&packed);
            }
            None => {
                self.length(value.len());
                self.bytes.extend_from_slice(value);
            }
        }
    }

    fn length(&mut self, length: usize) {
        match length {
            0..64 => self.bytes.push(length as u8),
            64..16384 => self.bytes.extend_from_slice(&(0x4000 | length as u16).to_be_bytes()),
            _ => {
                self.bytes.push(0x80);
                self.bytes.extend_from_slice(&(length as u32).to_be_bytes());
            }
        }
    }

    /// False if the number is too large for it.
    fn number(&mut self, number: i64) -> bool {
        if let Ok(number) = i8::try_from(number) {
            self.bytes.push(0xc0);
            self.bytes.extend_from_slice(&number.to_le_bytes());
        } else if let Ok(number) = i16::try_from(number) {
            self.bytes.push(0xc1);
            self.bytes.extend_from_slice(&number.to_le_bytes());
        } else if let Ok(number) = i32::try_from(number) {
            self.bytes.push(0xc2);
            self.bytes.extend_from_slice(&number.to_le_bytes());
        } else {
            return false;
        }
        true
    }
}

/// What a dump holds; the members of a sorted set in their order.
///
/// # Errors
/// What is wrong with it, in Redis's words where it has any.
pub fn read(dump: &[u8]) -> Result<Content, &'static str> {
    let (content, sum) = dump.split_last_chunk::<8>().ok_or(BAD_SUM)?;
    let (content, version) =
        content.split_last_chunk::<2>().filter(|(rest, _)| !rest.is_empty()).ok_or(BAD_SUM)?;
    let summed = &dump[..dump.len() - 8];
    let sum = u64::from_le_bytes(*sum);
    if u16::from_le_bytes(*version) > VERSION_MAX || sum != crc64(summed) {
        return Err(BAD_SUM);
    }
    let (kind, rest) = content.split_first().ok_or(BAD)?;
    let mut input = Input::new(rest);
    let content = input.content(*kind)?;
    if input.is_empty() { Ok(content) } else { Err(BAD) }
}

/// What is left to read of a dump, or of a part of it.
struct Input<'a> {
    rest: &'a [u8],
    /// How many bytes compressed strings may still unpack to.
    room: usize,
}

impl<'a> Input<'a> {
    fn new(rest: &'a [u8]) -> Self {
        Input { rest, room: UNPACKED_MAX_BYTES }
    }

    fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn left(&self) -> usize {
        self.rest.len()
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], &'static str> {
        let (taken, after) = self.rest.split_at_checked(count).ok_or(BAD)?;
        self.rest = after;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        self.take(N)?.try_into().map_err(|_| BAD)
    }

    /// A length, or the kind of a special encoding.
    fn length_or_kind(&mut self) -> Result<Result<usize, u8>, &'static str> {
        let [first] = self.array()?;
        Ok(Ok(match first >> 6 {
            0 => usize::from(first & 0x3f),
            1 => usize::from(first & 0x3f) << 8 | usize::from(self.array::<1>()?[0]),
            2 if first == 0x80 => u32::from_be_bytes(self.array()?) as usize,
            2 if first == 0x81 => {
                usize::try_from(u64::from_be_bytes(self.array()?)).map_err(|_| BAD)?
            }
            3 => return Ok(Err(first & 0x3f)),
            _ => return Err(BAD),
        }))
    }

    fn length(&mut self) -> Result<usize, &'static str> {
        self.length_or_kind()?.map_err(|_| BAD)
    }

    fn string(&mut self) -> Result<Bytes, &'static str> {
        let number = match self.length_or_kind()? {
            Ok(count) => return Ok(Bytes::copy_from_slice(self.take(count)?)),
            Err(0) => i64::from(i8::from_le_bytes(self.array()?)),
            Err(1) => i64::from(i16::from_le_bytes(self.array()?)),
            Err(2) => i64::from(i32::from_le_bytes(self.array()?)),
            Err(3) => {
                let (packed, whole) = (self.length()?, self.length()?);
                let packed = self.take(packed)?;
                self.room = self.room.checked_sub(whole).ok_or(TOO_LARGE)?;
                return lzf::unpack(packed, whole).map(Bytes::from);
            }
            Err(_) => return Err(BAD),
        };
        Ok(number.to_string().into())
    }

    fn content(&mut self, kind: u8) -> Result<Content, &'static str> {
        let mut found = Found::default();
        match kind {
            STRING => return self.string().map(Content::String),
            LIST | SET => self.strings(1, &mut found)?,
            HASH => self.strings(2, &mut found)?,
            SORTED_SET_TEXT => self.scored(&mut found, Self::text_score)?,
            SORTED_SET => self.scored(&mut found, |input| {
                Score::new(f64::from_le_bytes(input.array()?)).ok_or(BAD)
            })?,
            LIST_ZIPLIST | SORTED_SET_ZIPLIST | HASH_ZIPLIST => {
                packed::ziplist(&self.string()?, &mut found)?;
            }
            SET_INTSET => packed::intset(&self.string()?, &mut found)?,
            HASH_LISTPACK | SORTED_SET_LISTPACK | SET_LISTPACK => {
                packed::listpack(&self.string()?, &mut found)?;
            }
            LIST_OF_ZIPLISTS => {
                for _ in 0..self.length()? {
                    packed::ziplist(&self.string()?, &mut found)?;
                }
            }
            LIST_OF_LISTPACKS => {
                for _ in 0..self.length()? {
                    match self.length()? {
                        NODE_PLAIN => found.push(self.string()?)?,
                        NODE_PACKED => packed::listpack(&self.string()?, &mut found)?,
                        _ => return Err(BAD),
                    }
                }
            }
            kind => return Err(not_read(kind)),
        }
        match kind {
            LIST | LIST_ZIPLIST | LIST_OF_ZIPLISTS | LIST_OF_LISTPACKS => found.list(),
            SET | SET_INTSET | SET_LISTPACK => found.set(),
            HASH | HASH_ZIPLIST | HASH_LISTPACK => found.hash(),
            SORTED_SET_ZIPLIST | SORTED_SET_LISTPACK => found.packed_sorted_set(),
            _ => found.sorted_set(),
        }
    }

    /// A count, and so many strings for each.
    fn strings(&mut self, each: usize, found: &mut Found) -> Result<(), &'static str> {
        for _ in 0..self.length()? {
            for _ in 0..each {
                found.push(self.string()?)?;
            }
        }
        Ok(())
    }

    /// A count, and a member and its score for each.
    fn scored(
        &mut self,
        found: &mut Found,
        score: impl Fn(&mut Self) -> Result<Score, &'static str>,
    ) -> Result<(), &'static str> {
        for _ in 0..self.length()? {
            found.push(self.string()?)?;
            found.scores.push(score(self)?);
        }
        Ok(())
    }

    /// The length of a number as text, or one of three that have none.
    fn text_score(&mut self) -> Result<Score, &'static str> {
        let score = match self.array()? {
            [255] => f64::NEG_INFINITY,
            [254] => f64::INFINITY,
            [253] => f64::NAN,
            [count] => return parse_score(self.take(usize::from(count))?),
        };
        Score::new(score).ok_or(BAD)
    }
}

fn parse_score(text: &[u8]) -> Result<Score, &'static str> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.and_then(Score::new).ok_or(BAD)
}

fn not_read(kind: u8) -> &'static str {
    match kind {
        HASH_ZIPMAP => "RESTORE does not read the hashes of Redis before 2.6 (zipmaps)",
        kind if HASHES_THAT_EXPIRE.contains(&kind) => {
            "RESTORE does not read hashes with fields that expire: HPERSIST the fields before DUMP"
        }
        kind if STREAMS.contains(&kind) => "RESTORE does not read streams: KvDB has none",
        kind if MODULES.contains(&kind) => "RESTORE does not read types of modules: KvDB has none",
        _ => BAD,
    }
}

/// The elements that were found so far: of a hash fields and values in turn, of a packed sorted set members
/// and scores.
#[derive(Default)]
struct Found {
    items: Vec<Bytes>,
    scores: Vec<Score>,
    bytes: usize,
}

impl Found {
    fn push(&mut self, item: Bytes) -> Result<(), &'static str> {
        self.bytes += item.len();
        // Two of them are an element of a hash.
        if self.items.len() >= 2 * ELEMENTS_MOST || self.bytes > ELEMENTS_MAX_BYTES {
            return Err(TOO_LARGE);
        }
        self.items.push(item);
        Ok(())
    }

    fn list(self) -> Result<Content, &'static str> {
        check(&self.items, |_| None)?;
        Ok(Content::List(self.items))
    }

    fn set(self) -> Result<Content, &'static str> {
        check(&self.items, |member| Some(member))?;
        Ok(Content::Set(self.items))
    }

    fn pairs(self) -> Result<Vec<(Bytes, Bytes)>, &'static str> {
        let (pairs, rest) = self.items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(BAD);
        }
        Ok(pairs.iter().map(|[one, other]| (one.clone(), other.clone())).collect())
    }

    fn hash(self) -> Result<Content, &'static str> {
        let pairs = self.pairs()?;
        check(&pairs, |(field, _)| Some(field))?;
        Ok(Content::Hash(pairs))
    }

    fn sorted_set(self) -> Result<Content, &'static str> {
        let mut members: Vec<(Score, Bytes)> = self.scores.into_iter().zip(self.items).collect();
        members.sort_unstable();
        check(&members, |(_, member)| Some(member))?;
        Ok(Content::SortedSet(members))
    }

    /// One that stands in the order of its scores.
    fn packed_sorted_set(self) -> Result<Content, &'static str> {
        let score = |(member, score): (Bytes, Bytes)| Ok((parse_score(&score)?, member));
        let members: Vec<(Score, Bytes)> =
            self.pairs()?.into_iter().map(score).collect::<Result<_, &'static str>>()?;
        check(&members, |(_, member)| Some(member))?;
        if !members.is_sorted() {
            return Err(BAD);
        }
        Ok(Content::SortedSet(members))
    }
}

/// That there are elements, not too many, and that those with a name are different.
fn check<T>(elements: &[T], name: impl Fn(&T) -> Option<&Bytes>) -> Result<(), &'static str> {
    let mut names = HashSet::new();
    if elements.is_empty() || !elements.iter().filter_map(name).all(|name| names.insert(name)) {
        return Err(BAD);
    }
    if elements.len() > ELEMENTS_MOST { Err(TOO_LARGE) } else { Ok(()) }
}

const CRC64_TABLE: [u64; 256] = crc64_table();

/// The polynomial of Jones, reflected.
const fn crc64_table() -> [u64; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x95ac_9329_ac4b_c9b5 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

fn crc64(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |crc, byte| CRC64_TABLE[((crc ^ u64::from(*byte)) & 0xff) as usize] ^ crc >> 8)
}
