//! Strings in the form of `DUMP` and `RESTORE`: a type, the string as in an RDB file, the version of
//! that format, and a CRC64. What Redis dumps can be restored here and the other way round.

use crate::number::parse_i64;
use bytes::Bytes;

const TYPE_STRING: u8 = 0;
/// Of Redis 7.0.
const VERSION: u16 = 10;
const VERSION_MAX: u16 = 12;
/// Longest string that is restored, in bytes.
const STRING_MAX_BYTES: usize = 8 << 20;
const BAD: &str = "Bad data format";
const BAD_SUM: &str = "DUMP payload version or checksum are wrong";

/// The dump of a string, byte for byte as Redis 7.0 makes it.
pub(crate) fn of_string(value: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(value.len() + 24);
    out.push(TYPE_STRING);
    let number = (value.len() <= 11).then(|| parse_i64(value)).flatten();
    if !number.is_some_and(|number| write_number(number, &mut out)) {
        match pack(value) {
            Some(packed) => {
                out.push(0xc3);
                write_length(packed.len(), &mut out);
                write_length(value.len(), &mut out);
                out.extend_from_slice(&packed);
            }
            None => {
                write_length(value.len(), &mut out);
                out.extend_from_slice(value);
            }
        }
    }
    out.extend_from_slice(&VERSION.to_le_bytes());
    let sum = crc64(&out);
    out.extend_from_slice(&sum.to_le_bytes());
    out.into()
}

fn write_length(length: usize, out: &mut Vec<u8>) {
    match length {
        0..64 => out.push(length as u8),
        64..16384 => out.extend_from_slice(&(0x4000 | length as u16).to_be_bytes()),
        _ => {
            out.push(0x80);
            out.extend_from_slice(&(length as u32).to_be_bytes());
        }
    }
}

/// False if the number is too large for it.
fn write_number(number: i64, out: &mut Vec<u8>) -> bool {
    if let Ok(number) = i8::try_from(number) {
        out.push(0xc0);
        out.extend_from_slice(&number.to_le_bytes());
    } else if let Ok(number) = i16::try_from(number) {
        out.push(0xc1);
        out.extend_from_slice(&number.to_le_bytes());
    } else if let Ok(number) = i32::try_from(number) {
        out.push(0xc2);
        out.extend_from_slice(&number.to_le_bytes());
    } else {
        return false;
    }
    true
}

/// Longest run of bytes that are kept as they are.
const LITERALS_MAX: usize = 32;
/// How far back a copy may begin.
const BACK_MAX: usize = 1 << 13;
/// Longest copy.
const COPY_MAX: usize = 264;
const PLACES_BITS: u32 = 16;

/// What LZF, as Redis is built with it, makes of a string; `None` if that isn't at least 4 bytes
/// shorter.
fn pack(input: &[u8]) -> Option<Vec<u8>> {
    if input.len() <= 20 {
        return None;
    }
    let mut out = Packed { bytes: vec![0], literals: 0, most: input.len() - 4 };
    // The last place at which three bytes of a kind were seen; the first place never counts.
    let mut places = vec![0u32; 1 << PLACES_BITS];
    let three = |at: usize| u32::from_be_bytes([0, input[at], input[at + 1], input[at + 2]]);
    let slot = |three: u32| {
        let mixed = (three >> (24 - PLACES_BITS)).wrapping_sub(three.wrapping_mul(5));
        (mixed & ((1 << PLACES_BITS) - 1)) as usize
    };
    let last = input.len() - 2;
    let mut at = 0;
    while at < last {
        let slot_here = slot(three(at));
        let before = std::mem::replace(&mut places[slot_here], at as u32) as usize;
        let is_near = before > 0 && at - before <= BACK_MAX;
        if !is_near || three(before) != three(at) {
            out.literal(input[at])?;
            at += 1;
            continue;
        }
        let length = copy_length(input, before, at);
        out.copy(at - before, length)?;
        at += length;
        if at >= last {
            break;
        }
        for place in [at - 2, at - 1] {
            places[slot(three(place))] = place as u32;
        }
    }
    out.end(&input[at..])
}

/// How many bytes from `at` on are those from `before` on, at least 3.
fn copy_length(input: &[u8], before: usize, at: usize) -> usize {
    let same = |length: usize| input[before + length] == input[at + length];
    let most = (input.len() - at - 2).min(COPY_MAX);
    let mut length = 2;
    // The first sixteen are compared without a look at the limit, which is two short of the end.
    if most > 16 {
        for _ in 0..16 {
            length += 1;
            if !same(length) {
                return length;
            }
        }
    }
    loop {
        length += 1;
        if length >= most || !same(length) {
            return length;
        }
    }
}

/// What was packed so far. The place for the length of the run under way is there already.
struct Packed {
    bytes: Vec<u8>,
    literals: usize,
    most: usize,
}

impl Packed {
    fn literal(&mut self, byte: u8) -> Option<()> {
        if self.bytes.len() >= self.most {
            return None;
        }
        self.put(byte);
        Some(())
    }

    fn put(&mut self, byte: u8) {
        self.bytes.push(byte);
        self.literals += 1;
        if self.literals == LITERALS_MAX {
            self.end_run();
            self.bytes.push(0);
        }
    }

    /// Ends the run of literals; an empty one gives its place back.
    fn end_run(&mut self) {
        let place = self.bytes.len() - self.literals - 1;
        match self.literals {
            0 => {
                self.bytes.pop();
            }
            count => self.bytes[place] = count as u8 - 1,
        }
        self.literals = 0;
    }

    fn copy(&mut self, back: usize, length: usize) -> Option<()> {
        if self.bytes.len() - usize::from(self.literals == 0) + 4 >= self.most {
            return None;
        }
        self.end_run();
        let (back, more) = (back - 1, length - 2);
        let high = (back >> 8) as u8;
        if more < 7 {
            self.bytes.push(high | (more as u8) << 5);
        } else {
            self.bytes.push(high | 7 << 5);
            self.bytes.push((more - 7) as u8);
        }
        self.bytes.extend_from_slice(&[back as u8, 0]);
        Some(())
    }

    fn end(mut self, rest: &[u8]) -> Option<Vec<u8>> {
        if self.bytes.len() + 3 > self.most {
            return None;
        }
        rest.iter().for_each(|byte| self.put(*byte));
        self.end_run();
        Some(self.bytes)
    }
}

/// The string in a dump.
pub(crate) fn read_string(dump: &[u8]) -> Result<Vec<u8>, &'static str> {
    let (content, sum) = dump.split_last_chunk::<8>().ok_or(BAD_SUM)?;
    let (content, version) =
        content.split_last_chunk::<2>().filter(|(rest, _)| !rest.is_empty()).ok_or(BAD_SUM)?;
    let summed = &dump[..dump.len() - 8];
    let sum = u64::from_le_bytes(*sum);
    if u16::from_le_bytes(*version) > VERSION_MAX || sum != crc64(summed) {
        return Err(BAD_SUM);
    }
    match content.split_first() {
        Some((&TYPE_STRING, rest)) => {
            let mut rest = rest;
            let value = string(&mut rest)?;
            if rest.is_empty() { Ok(value) } else { Err(BAD) }
        }
        _ => Err(BAD),
    }
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], &'static str> {
    let (taken, after) = rest.split_at_checked(count).ok_or(BAD)?;
    *rest = after;
    Ok(taken)
}

fn array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], &'static str> {
    take(rest, N)?.try_into().map_err(|_| BAD)
}

/// A length, or the kind of a special encoding.
fn length(rest: &mut &[u8]) -> Result<Result<usize, u8>, &'static str> {
    let [first] = array(rest)?;
    Ok(Ok(match first >> 6 {
        0 => usize::from(first & 0x3f),
        1 => usize::from(first & 0x3f) << 8 | usize::from(array::<1>(rest)?[0]),
        2 if first == 0x80 => u32::from_be_bytes(array(rest)?) as usize,
        2 if first == 0x81 => usize::try_from(u64::from_be_bytes(array(rest)?)).map_err(|_| BAD)?,
        3 => return Ok(Err(first & 0x3f)),
        _ => return Err(BAD),
    }))
}

fn string(rest: &mut &[u8]) -> Result<Vec<u8>, &'static str> {
    let number = match length(rest)? {
        Ok(count) => return Ok(take(rest, count)?.to_vec()),
        Err(0) => i64::from(i8::from_le_bytes(array(rest)?)),
        Err(1) => i64::from(i16::from_le_bytes(array(rest)?)),
        Err(2) => i64::from(i32::from_le_bytes(array(rest)?)),
        Err(3) => return compressed(rest),
        Err(_) => return Err(BAD),
    };
    Ok(number.to_string().into_bytes())
}

/// LZF: runs of literals, and copies of what came before.
fn compressed(rest: &mut &[u8]) -> Result<Vec<u8>, &'static str> {
    let (Ok(packed), Ok(whole)) = (length(rest)?, length(rest)?) else { return Err(BAD) };
    if whole > STRING_MAX_BYTES {
        return Err(BAD);
    }
    let mut input = take(rest, packed)?;
    let mut out = Vec::new();
    while let Ok([control]) = array::<1>(&mut input) {
        if control < 32 {
            out.extend_from_slice(take(&mut input, usize::from(control) + 1)?);
        } else {
            let mut count = usize::from(control >> 5);
            if count == 7 {
                count += usize::from(array::<1>(&mut input)?[0]);
            }
            let [low] = array(&mut input)?;
            let back = (usize::from(control & 0x1f) << 8 | usize::from(low)) + 1;
            let from = out.len().checked_sub(back).ok_or(BAD)?;
            for place in from..from + count + 2 {
                out.push(out[place]);
            }
        }
        if out.len() > whole {
            return Err(BAD);
        }
    }
    if out.len() == whole { Ok(out) } else { Err(BAD) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What Redis 7.0 gives: `SET k 10`, `DUMP k`.
    const TEN: &[u8] = b"\x00\xc0\n\n\x00n\x9fWE\x0e\xaec\xbb";

    #[test]
    fn the_checksum_is_that_of_redis() {
        assert_eq!(crc64(b"123456789"), 0xe9c6_d914_c4b8_d9ca);
    }

    #[test]
    fn strings_of_all_lengths_come_back() {
        for length in [0, 1, 63, 64, 16383, 16384, 70000] {
            let value: Vec<u8> = (0..length).map(|place| place as u8).collect();
            assert_eq!(read_string(&of_string(&value)), Ok(value));
        }
    }

    #[test]
    fn what_redis_dumps_is_read() {
        assert_eq!(read_string(TEN), Ok(b"10".to_vec()));
    }

    #[test]
    fn dumps_are_those_of_redis() {
        let of = |value: &[u8]| of_string(value).to_vec();
        assert_eq!(of(b"10"), TEN);
        assert_eq!(
            of(&[b'a'; 100]),
            b"\x00\xc3\t@d\x01aa\xe0W\x00\x01aa\n\x00\xe8\xa3\xb5\x07\xb0m\xf2q"
        );
        assert_eq!(
            of(b"123456789012"),
            b"\x00\x0c123456789012\n\x00\x91\x10\x01\xb1\xd1\x16\xe7\xac"
        );
        for (number, form) in [
            ("-128", &b"\xc0\x80"[..]),
            ("128", b"\xc1\x80\x00"),
            ("-32769", b"\xc2\xff\x7f\xff\xff"),
            ("2147483648", b"\x0a2147483648"),
            ("010", b"\x03010"),
        ] {
            assert_eq!(of(number.as_bytes())[1..][..form.len()], *form, "{number}");
        }
    }

    #[test]
    fn a_dump_without_a_checksum_is_refused() {
        let mut dump = of_string(b"value").to_vec();
        let length = dump.len();
        dump[length - 8..].fill(0);
        assert!(read_string(&dump).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_packed_comes_back(value in prop::collection::vec(0u8..4, 0..600), times in 1usize..4) {
            let value = value.repeat(times);
            prop_assert_eq!(read_string(&of_string(&value)), Ok(value));
        }
    }

    #[test]
    fn compressed_strings_are_unpacked() {
        // "a", then a copy of it nine times.
        let mut dump = vec![TYPE_STRING, 0xc3, 5, 10, 0, b'a', 0xe0, 0, 0];
        dump.extend_from_slice(&VERSION.to_le_bytes());
        let sum = crc64(&dump);
        dump.extend_from_slice(&sum.to_le_bytes());
        assert_eq!(read_string(&dump), Ok(b"aaaaaaaaaa".to_vec()));
    }

    #[test]
    fn damaged_dumps_are_refused() {
        let good = of_string(b"value");
        for place in 0..good.len() * 8 {
            let mut bad = good.to_vec();
            bad[place / 8] ^= 1 << (place % 8);
            assert!(read_string(&bad).is_err(), "bit {place}");
        }
        for length in 0..good.len() {
            assert!(read_string(&good[..length]).is_err());
        }
    }
}
