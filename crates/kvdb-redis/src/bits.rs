//! Bit commands.

use crate::args::{Planned, bit_offset, integer, is, syntax, upper};
use crate::number::{parse_i64, parse_u64, span};
use crate::plan::{Plan, change, read};
use crate::reply::Reply;
use crate::strings::integer_of;
use bytes::Bytes;
use kvdb_store::bits::{BitField, BitFieldStep, BitOp, BitOperation, BitRange, Overflow, SetBit};

fn bit_at(value: &[u8], at: usize) -> bool {
    value.get(at / 8).is_some_and(|byte| byte >> (7 - at % 8) & 1 == 1)
}

pub(crate) fn setbit(args: &[Bytes]) -> Planned {
    let offset = bit_offset(&args[2])?;
    let bit = match &args[3][..] {
        b"0" => false,
        b"1" => true,
        _ => return Err(Reply::error("bit is not an integer or out of range")),
    };
    Ok(Plan::write(args[1].clone(), &SetBit { offset, bit }, integer_of))
}

pub(crate) fn getbit(args: &[Bytes]) -> Planned {
    let offset = bit_offset(&args[2])?;
    Ok(Plan::read(args[1].clone(), move |found| {
        Reply::flag(bit_at(&found.unwrap_or_default(), offset as usize))
    }))
}

/// A part of a string that is asked for, from `args[at]` on: start, end and unit.
#[derive(Clone, Copy)]
struct Part {
    start: i64,
    end: Option<i64>,
    bits: bool,
}

impl Part {
    fn parse(args: &[Bytes], at: usize) -> Result<Self, Reply> {
        if args.len() > at + 3 {
            return Err(syntax());
        }
        let start = args.get(at).map_or(Ok(0), |text| integer(text))?;
        let bits = match args.get(at + 2) {
            None => false,
            Some(unit) if is(unit, "BIT") => true,
            Some(unit) if is(unit, "BYTE") => false,
            Some(_) => return Err(syntax()),
        };
        let end = args.get(at + 1).map(|text| integer(text)).transpose()?;
        Ok(Part { start, end, bits })
    }

    fn length(self, value: &[u8]) -> usize {
        if self.bits { value.len() * 8 } else { value.len() }
    }

    fn in_bits(self, (from, to): (usize, usize)) -> (usize, usize) {
        if self.bits { (from, to) } else { (from * 8, to * 8) }
    }

    /// The bits, as a half-open range. A start behind the end is no range, also where both are
    /// before the string.
    fn of(self, value: &[u8]) -> Option<(usize, usize)> {
        let range = span(self.length(value), self.start, self.end.unwrap_or(-1))?;
        Some(self.in_bits(range))
    }

    /// The same, but what is before the string counts as its first place.
    fn clamped(self, value: &[u8]) -> Option<(usize, usize)> {
        let length = i64::try_from(self.length(value)).ok().filter(|length| *length > 0)?;
        let place = |at: i64| if at < 0 { length.saturating_add(at).max(0) } else { at };
        let (start, end) = (place(self.start), place(self.end.unwrap_or(-1)));
        let range = span(self.length(value), start, end)?;
        Some(self.in_bits(range))
    }
}

fn count(value: &[u8], (from, to): (usize, usize)) -> u64 {
    let whole = from.div_ceil(8)..to / 8;
    if whole.start >= whole.end {
        return (from..to).filter(|at| bit_at(value, *at)).count() as u64;
    }
    let edges = (from..whole.start * 8).chain(whole.end * 8..to);
    let bytes = value.get(whole).unwrap_or_default();
    bytes.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>()
        + edges.filter(|at| bit_at(value, *at)).count() as u64
}

/// Parses a part as the two commands that have one do: not before it is known that there is a key.
fn parsed(key: &Bytes, part: Result<Part, Reply>, missing: i64) -> Result<Part, Plan> {
    part.map_err(|error| Plan::failing(read(key.clone()), error, Reply::Integer(missing)))
}

pub(crate) fn bitcount(args: &[Bytes]) -> Planned {
    let part = if args.len() == 3 { Err(syntax()) } else { count_part(args) };
    let part = match parsed(&args[1], part, 0) {
        Ok(part) => part,
        Err(plan) => return Ok(plan),
    };
    Ok(Plan::read(args[1].clone(), move |found| {
        let value = found.unwrap_or_default();
        Reply::Integer(part.of(&value).map_or(0, |range| count(&value, range) as i64))
    }))
}

/// What is wrong comes in Redis's order: the places, whether they are any, the unit.
fn count_part(args: &[Bytes]) -> Result<Part, Reply> {
    if let ([start, end, _], 5) = (args.get(2..).unwrap_or_default(), args.len()) {
        let (start, end) = (integer(start)?, integer(end)?);
        if start < 0 && end < 0 && start > end {
            return Ok(Part { start, end: Some(end), bits: false });
        }
    }
    Part::parse(args, 2)
}

pub(crate) fn bitpos(args: &[Bytes]) -> Planned {
    let wanted = match integer(&args[2])? {
        0 => false,
        1 => true,
        _ => return Err(Reply::error("The bit argument must be 1 or 0.")),
    };
    let missing = if wanted { -1 } else { 0 };
    let part = match parsed(&args[1], Part::parse(args, 3), missing) {
        Ok(part) => part,
        Err(plan) => return Ok(plan),
    };
    Ok(Plan::read(args[1].clone(), move |found| {
        let Some(value) = found else { return Reply::Integer(missing) };
        Reply::Integer(position(&value, wanted, part))
    }))
}

fn position(value: &[u8], wanted: bool, part: Part) -> i64 {
    let Some((from, to)) = part.clamped(value) else { return -1 };
    let skip = if wanted { 0u8 } else { 0xff };
    let mut at = from;
    while at < to {
        if at % 8 == 0 && to - at >= 8 && value[at / 8] == skip {
            at += 8;
            continue;
        }
        if bit_at(value, at) == wanted {
            return at as i64;
        }
        at += 1;
    }
    // Without an end the string counts as followed by zeros.
    if !wanted && part.end.is_none() { (value.len() * 8) as i64 } else { -1 }
}

pub(crate) fn bitop(args: &[Bytes]) -> Planned {
    let operation = match upper(&args[1]).as_str() {
        "AND" => BitOperation::And,
        "OR" => BitOperation::Or,
        "XOR" => BitOperation::Xor,
        "NOT" => BitOperation::Not,
        _ => return Err(syntax()),
    };
    let sources = args[3..].to_vec();
    if operation == BitOperation::Not && sources.len() != 1 {
        return Err(Reply::error("BITOP NOT must be called with a single source key."));
    }
    let step = change(args[2].clone(), &BitOp { operation }).and(sources);
    Ok(Plan::one(step, |result, _| integer_of(result)))
}

fn bit_range(kind: &[u8], offset: &[u8]) -> Result<BitRange, Reply> {
    let bad_type = || {
        Reply::error(
            "Invalid bitfield type. Use something like i16 u8. Note that u64 is not supported but i64 is.",
        )
    };
    let (signed, digits) = match kind {
        [b'i', digits @ ..] => (true, digits),
        [b'u', digits @ ..] => (false, digits),
        _ => return Err(bad_type()),
    };
    let most = if signed { 64 } else { 63 };
    let bits =
        parse_i64(digits).filter(|bits| (1..=most).contains(bits)).ok_or_else(bad_type)? as u8;
    let bad_offset = || Reply::error("bit offset is not an integer or out of range");
    let offset = match offset {
        [b'#', digits @ ..] => {
            parse_u64(digits).and_then(|place| place.checked_mul(u64::from(bits)))
        }
        digits => parse_u64(digits),
    };
    let offset = offset.filter(|offset| *offset < 1 << 32);
    Ok(BitRange { signed, bits, offset: offset.ok_or_else(bad_offset)? })
}

fn steps(args: &[Bytes]) -> Result<Vec<BitFieldStep>, Reply> {
    let mut overflow = Overflow::Wrap;
    let mut steps = Vec::new();
    let mut rest = args.get(2..).unwrap_or_default();
    while let Some((word, after)) = rest.split_first() {
        // What an option needs must be there before any of it is looked at.
        let (used, step) = match (upper(word).as_str(), after) {
            ("GET", [kind, offset, ..]) => (2, BitFieldStep::Get(bit_range(kind, offset)?)),
            ("SET", [kind, offset, value, ..]) => {
                (3, BitFieldStep::Set(bit_range(kind, offset)?, integer(value)?, overflow))
            }
            ("INCRBY", [kind, offset, value, ..]) => {
                (3, BitFieldStep::Increment(bit_range(kind, offset)?, integer(value)?, overflow))
            }
            ("OVERFLOW", [kind, after @ ..]) => {
                overflow = match upper(kind).as_str() {
                    "WRAP" => Overflow::Wrap,
                    "SAT" => Overflow::Saturate,
                    "FAIL" => Overflow::Fail,
                    _ => return Err(Reply::error("Invalid OVERFLOW type specified")),
                };
                rest = after;
                continue;
            }
            _ => return Err(syntax()),
        };
        steps.push(step);
        rest = after.get(used..).unwrap_or_default();
    }
    Ok(steps)
}

fn only_reads(steps: &[BitFieldStep]) -> bool {
    steps.iter().all(|step| matches!(step, BitFieldStep::Get(_)))
}

fn bit_fields(key: &Bytes, steps: Vec<BitFieldStep>) -> Planned {
    Ok(Plan::write(key.clone(), &BitField { steps }, |result| {
        let kvdb_model::Reply::List(answers) = &result.reply else {
            return Reply::Array(vec![]);
        };
        let answer =
            |answer: &kvdb_model::Reply| answer.integer().map_or(Reply::Nil, Reply::Integer);
        Reply::Array(answers.iter().map(answer).collect())
    }))
}

pub(crate) fn bitfield(args: &[Bytes]) -> Planned {
    let steps = steps(args)?;
    if only_reads(&steps) {
        return read_fields(&args[1], steps);
    }
    bit_fields(&args[1], steps)
}

pub(crate) fn bitfield_ro(args: &[Bytes]) -> Planned {
    let steps = steps(args)?;
    if !only_reads(&steps) {
        return Err(Reply::error("BITFIELD_RO only supports the GET subcommand"));
    }
    read_fields(&args[1], steps)
}

fn read_fields(key: &Bytes, steps: Vec<BitFieldStep>) -> Planned {
    Ok(Plan::read(key.clone(), move |found| {
        let value = found.unwrap_or_default();
        let read = steps.into_iter().filter_map(|step| match step {
            BitFieldStep::Get(range) => Some(Reply::Integer(read_number(&value, range))),
            _ => None,
        });
        Reply::Array(read.collect())
    }))
}

fn read_number(value: &[u8], range: BitRange) -> i64 {
    let mut number = 0u64;
    for place in 0..u64::from(range.bits) {
        number = number << 1 | u64::from(bit_at(value, (range.offset + place) as usize));
    }
    // Moves the number's sign to where an i64 has it, and back.
    let unused = 64 - u32::from(range.bits);
    if range.signed { ((number << unused) as i64) >> unused } else { number as i64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_of_clear_bits_go_on_after_the_end_unless_there_is_one() {
        let whole = Part { start: 0, end: None, bits: false };
        assert_eq!(position(b"\xff\xff", false, whole), 16);
        assert_eq!(position(b"\xff\xff", false, Part { end: Some(-1), ..whole }), -1);
        assert_eq!(position(b"\xff\xf0\x00", false, whole), 12);
        assert_eq!(position(b"\x00\x0f", true, whole), 12);
        assert_eq!(position(b"", false, whole), -1);
    }

    #[test]
    fn bits_are_counted_in_whole_bytes_and_at_the_edges() {
        let value = b"foobar";
        for from in 0..48 {
            for to in from..48 {
                let slow = (from..to).filter(|at| bit_at(value, *at)).count() as u64;
                assert_eq!(count(value, (from, to)), slow, "{from} {to}");
            }
        }
    }

    #[test]
    fn numbers_are_read_with_their_sign() {
        let range = |signed, bits, offset| BitRange { signed, bits, offset };
        assert_eq!(read_number(b"\xff", range(true, 8, 0)), -1);
        assert_eq!(read_number(b"\xff", range(false, 8, 0)), 255);
        assert_eq!(read_number(b"\x0f", range(true, 5, 3)), 15);
        assert_eq!(read_number(b"\xff", range(true, 64, 0)), -72_057_594_037_927_936);
        assert_eq!(read_number(b"", range(true, 64, 1 << 31)), 0);
    }
}
