//! What Redis packs small collections into: listpacks, ziplists and sets of whole numbers. Every length in
//! them is told twice or more; what disagrees is refused, as Redis does where it checks thoroughly.

use super::{BAD, Found, Input};
use bytes::Bytes;

/// The last byte of a listpack and of a ziplist.
const END: u8 = 0xff;
/// In the place of a count that doesn't fit: count yourself.
const COUNT_UNKNOWN: u16 = u16::MAX;
const LISTPACK_HEADER: usize = 6;
const ZIPLIST_HEADER: usize = 10;

fn bad<T>() -> Result<T, &'static str> {
    Err(BAD)
}

fn number<const N: usize>(input: &mut Input<'_>) -> Result<i64, &'static str> {
    let bytes: [u8; N] = input.array()?;
    let sign = if bytes[N - 1] & 0x80 == 0 { 0 } else { 0xff };
    let mut whole = [sign; 8];
    whole[..N].copy_from_slice(&bytes);
    Ok(i64::from_le_bytes(whole))
}

fn text(number: i64) -> Bytes {
    number.to_string().into()
}

/// What stands between the header and the end.
fn content(packed: &[u8], header: usize) -> Result<&[u8], &'static str> {
    match packed.split_last() {
        Some((&END, rest)) => rest.get(header..).ok_or(BAD),
        _ => bad(),
    }
}

fn check_count(told: u16, counted: usize) -> Result<(), &'static str> {
    if told == COUNT_UNKNOWN || usize::from(told) == counted { Ok(()) } else { bad() }
}

/// The elements of a listpack.
pub(super) fn listpack(packed: &[u8], found: &mut Found) -> Result<(), &'static str> {
    let mut header = Input::new(packed);
    let (size, told) = (u32::from_le_bytes(header.array()?), u16::from_le_bytes(header.array()?));
    if size as usize != packed.len() {
        return bad();
    }
    let mut input = Input::new(content(packed, LISTPACK_HEADER)?);
    let mut counted = 0;
    while !input.is_empty() {
        let before = input.left();
        let element = listpack_element(&mut input)?;
        let length = back_length(before - input.left());
        if input.take(length.len())? != length {
            return bad();
        }
        found.push(element)?;
        counted += 1;
    }
    check_count(told, counted)
}

fn listpack_element(input: &mut Input<'_>) -> Result<Bytes, &'static str> {
    let [first] = input.array()?;
    let long = |high: u8, input: &mut Input<'_>| {
        Ok::<_, &'static str>(i64::from(high) << 8 | i64::from(input.array::<1>()?[0]))
    };
    let count = match first {
        0..0x80 => return Ok(text(i64::from(first))),
        0x80..0xc0 => i64::from(first & 0x3f),
        0xc0..0xe0 => {
            let number = long(first & 0x1f, input)?;
            return Ok(text(if number < 1 << 12 { number } else { number - (1 << 13) }));
        }
        0xe0..0xf0 => long(first & 0x0f, input)?,
        0xf0 => i64::from(u32::from_le_bytes(input.array()?)),
        0xf1 => return Ok(text(number::<2>(input)?)),
        0xf2 => return Ok(text(number::<3>(input)?)),
        0xf3 => return Ok(text(number::<4>(input)?)),
        0xf4 => return Ok(text(number::<8>(input)?)),
        _ => return bad(),
    };
    Ok(Bytes::copy_from_slice(input.take(usize::try_from(count).map_err(|_| BAD)?)?))
}

/// How a listpack tells the length of an element behind it, so that it can be read backwards: seven bits a
/// byte, the highest first, all but that one marked.
fn back_length(length: usize) -> Vec<u8> {
    let groups = match length {
        0..=127 => 1,
        128..16383 => 2,
        16383..2_097_151 => 3,
        2_097_151..268_435_455 => 4,
        _ => 5,
    };
    let byte = |group: u32| {
        let bits = (length >> (7 * group)) as u8 & 0x7f;
        if group + 1 == groups { bits } else { bits | 0x80 }
    };
    (0..groups).rev().map(byte).collect()
}

/// The elements of a ziplist.
pub(super) fn ziplist(packed: &[u8], found: &mut Found) -> Result<(), &'static str> {
    let mut header = Input::new(packed);
    let (size, last) = (u32::from_le_bytes(header.array()?), u32::from_le_bytes(header.array()?));
    let told = u16::from_le_bytes(header.array()?);
    if size as usize != packed.len() {
        return bad();
    }
    let mut input = Input::new(content(packed, ZIPLIST_HEADER)?);
    let (mut counted, mut length_before, mut start) = (0, 0, ZIPLIST_HEADER);
    while !input.is_empty() {
        start = packed.len() - 1 - input.left();
        let told_before = match input.array()? {
            [0xfe] => u32::from_le_bytes(input.array()?) as usize,
            [END] => return bad(),
            [short] => usize::from(short),
        };
        if told_before != length_before {
            return bad();
        }
        found.push(ziplist_element(&mut input)?)?;
        length_before = packed.len() - 1 - input.left() - start;
        counted += 1;
    }
    if last as usize != start {
        return bad();
    }
    check_count(told, counted)
}

fn ziplist_element(input: &mut Input<'_>) -> Result<Bytes, &'static str> {
    let [first] = input.array()?;
    let count = match first {
        0..0x40 => usize::from(first),
        0x40..0x80 => usize::from(first & 0x3f) << 8 | usize::from(input.array::<1>()?[0]),
        0x80 => u32::from_be_bytes(input.array()?) as usize,
        0xc0 => return Ok(text(number::<2>(input)?)),
        0xd0 => return Ok(text(number::<4>(input)?)),
        0xe0 => return Ok(text(number::<8>(input)?)),
        0xf0 => return Ok(text(number::<3>(input)?)),
        0xfe => return Ok(text(number::<1>(input)?)),
        0xf1..=0xfd => return Ok(text(i64::from(first & 0x0f) - 1)),
        _ => return bad(),
    };
    Ok(Bytes::copy_from_slice(input.take(count)?))
}

/// The members of a set of whole numbers: all of the same width, ascending.
pub(super) fn intset(packed: &[u8], found: &mut Found) -> Result<(), &'static str> {
    let mut input = Input::new(packed);
    let (width, told) = (u32::from_le_bytes(input.array()?), u32::from_le_bytes(input.array()?));
    if !matches!(width, 2 | 4 | 8) || u64::from(told) * u64::from(width) != input.left() as u64 {
        return bad();
    }
    let mut before = None;
    while !input.is_empty() {
        let member = match width {
            2 => number::<2>(&mut input)?,
            4 => number::<4>(&mut input)?,
            _ => number::<8>(&mut input)?,
        };
        if before.is_some_and(|before| before >= member) {
            return bad();
        }
        before = Some(member);
        found.push(text(member))?;
    }
    Ok(())
}
