//! Strings in the form of `DUMP` and `RESTORE`: a type, the string as in an RDB file, the version of
//! that format, and a CRC64. What Redis dumps can be restored here and the other way round.

use bytes::Bytes;

const TYPE_STRING: u8 = 0;
/// Of Redis 7.0.
const VERSION: u16 = 10;
const VERSION_MAX: u16 = 12;
/// Longest string that is restored, in bytes.
const STRING_MAX_BYTES: usize = 8 << 20;
const BAD: &str = "Bad data format";
const BAD_SUM: &str = "DUMP payload version or checksum are wrong";

/// The dump of a string.
pub(crate) fn of_string(value: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(value.len() + 16);
    out.push(TYPE_STRING);
    match value.len() {
        length @ ..64 => out.push(length as u8),
        length @ ..16384 => out.extend_from_slice(&(0x4000 | length as u16).to_be_bytes()),
        length => {
            out.push(0x80);
            out.extend_from_slice(&(length as u32).to_be_bytes());
        }
    }
    out.extend_from_slice(value);
    out.extend_from_slice(&VERSION.to_le_bytes());
    let sum = crc64(&out);
    out.extend_from_slice(&sum.to_le_bytes());
    out.into()
}

/// The string in a dump.
pub(crate) fn read_string(dump: &[u8]) -> Result<Vec<u8>, &'static str> {
    let (content, sum) = dump.split_last_chunk::<8>().ok_or(BAD_SUM)?;
    let (content, version) =
        content.split_last_chunk::<2>().filter(|(rest, _)| !rest.is_empty()).ok_or(BAD_SUM)?;
    let summed = &dump[..dump.len() - 8];
    let sum = u64::from_le_bytes(*sum);
    // Redis writes 0 where checksums are turned off.
    if u16::from_le_bytes(*version) > VERSION_MAX || (sum != 0 && sum != crc64(summed)) {
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
