//! The value of a HyperLogLog, as Redis keeps it: an ordinary string.
//!
//! 16 bytes of header: `HYLL`, the encoding, three bytes that nobody uses, and the estimate that was counted last, of
//! which the highest bit says that it is stale. Then the registers:
//!
//! - *dense*: six bits each, from the lowest bit of the first byte on.
//! - *sparse*: runs of registers with the same value. `00nnnnnn` are n + 1 zeros, `01nnnnnn nnnnnnnn` likewise up to
//!   16,384 of them, `1vvvvvnn` n + 1 times the value v + 1. Made dense once it takes up more than 3,000 bytes, or a
//!   value doesn't fit.
//!
//! How runs are split and joined is a part of the format, too: replicas, and a Redis beside them, come to the same
//! bytes.

use super::estimator::Histogram;
use super::hash::{REGISTERS, position};
use crate::command::{Fault, wrong};
use bytes::Bytes;
use kvdb_model::wrong_value::{DAMAGED_HYPERLOGLOG, NOT_A_HYPERLOGLOG};

const MAGIC: &[u8; 4] = b"HYLL";
const HEADER_BYTES: usize = 16;
const ENCODING_AT: usize = 4;
const ESTIMATE_AT: usize = 8;
const DENSE: u8 = 0;
const SPARSE: u8 = 1;
/// In the last byte of the header.
const STALE: u8 = 0x80;
const DENSE_BYTES: usize = REGISTERS * 6 / 8;
/// Longest sparse value, header included, that becomes longer still. A part of the state machine: fixed.
const SPARSE_MAX_BYTES: usize = 3000;
/// Most zeros in a run of one byte.
const SHORT_MOST: usize = 64;
/// The highest value in a run.
const VALUE_MOST: u8 = 32;
/// Most registers in a run that isn't of zeros.
const VALUE_RUN_MOST: usize = 4;
/// Runs that are looked at, to be joined, after a change: from the one before it on.
const JOINED_RUNS: usize = 5;

type Header = [u8; HEADER_BYTES];

/// What is wrong with registers.
fn damaged() -> Fault {
    wrong(DAMAGED_HYPERLOGLOG)
}

/// Registers with the same value, as the sparse encoding has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    value: u8,
    registers: usize,
    /// How many bytes it takes up.
    bytes: usize,
}

impl Run {
    /// The run that bytes begin with.
    fn read(bytes: &[u8]) -> Option<Run> {
        let first = *bytes.first()?;
        let six_bits = usize::from(first & 0x3f);
        Some(match first >> 6 {
            0 => Run { value: 0, registers: six_bits + 1, bytes: 1 },
            1 => {
                let low = usize::from(*bytes.get(1)?);
                Run { value: 0, registers: (six_bits << 8 | low) + 1, bytes: 2 }
            }
            _ => Run {
                value: (first >> 2 & 0x1f) + 1,
                registers: usize::from(first & 3) + 1,
                bytes: 1,
            },
        })
    }

    fn write(value: u8, registers: usize, out: &mut Vec<u8>) {
        let Some(most) = registers.checked_sub(1) else { return };
        match value {
            0 if registers > SHORT_MOST => {
                out.extend_from_slice(&[0x40 | (most >> 8) as u8, most as u8]);
            }
            0 => out.push(most as u8),
            value => out.push(0x80 | (value - 1) << 2 | most as u8),
        }
    }
}

/// Gives each run of registers, and checks that there are exactly as many as there have to be.
fn each_run(body: &[u8], mut take: impl FnMut(usize, Run)) -> Result<(), Fault> {
    let (mut at, mut first) = (0, 0);
    while at < body.len() {
        let run = Run::read(&body[at..]).ok_or_else(damaged)?;
        if first + run.registers > REGISTERS {
            return Err(damaged());
        }
        take(first, run);
        at += run.bytes;
        first += run.registers;
    }
    if first == REGISTERS { Ok(()) } else { Err(damaged()) }
}

/// Gives each register of a dense body.
fn each_register(body: &[u8], mut take: impl FnMut(usize, u8)) {
    for (group, bytes) in body.chunks_exact(3).enumerate() {
        let bits = bytes.iter().rev().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
        for place in 0..4 {
            take(group * 4 + place, (bits >> (6 * place) & 0x3f) as u8);
        }
    }
}

/// A value as it is stored, of which header and length are checked, the registers not yet.
struct Stored<'a> {
    header: Header,
    body: &'a [u8],
}

impl<'a> Stored<'a> {
    fn of(value: &'a [u8]) -> Result<Self, Fault> {
        let (header, body) = value.split_first_chunk().ok_or_else(|| wrong(NOT_A_HYPERLOGLOG))?;
        let fits = match header[ENCODING_AT] {
            DENSE => body.len() == DENSE_BYTES,
            SPARSE => true,
            _ => false,
        };
        match fits && header.starts_with(MAGIC) {
            true => Ok(Stored { header: *header, body }),
            false => Err(wrong(NOT_A_HYPERLOGLOG)),
        }
    }

    fn is_dense(&self) -> bool {
        self.header[ENCODING_AT] == DENSE
    }

    /// Gives registers with their value: where they begin, how many.
    fn each(&self, mut take: impl FnMut(usize, u8, usize)) -> Result<(), Fault> {
        if self.is_dense() {
            each_register(self.body, |index, value| take(index, value, 1));
            return Ok(());
        }
        each_run(self.body, |index, run| take(index, run.value, run.registers))
    }

    /// What was counted last, if nothing has changed since.
    fn last_estimate(&self) -> Option<u64> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.header[ESTIMATE_AT..]);
        (self.header[HEADER_BYTES - 1] & STALE == 0).then_some(u64::from_le_bytes(bytes))
    }
}

/// How many elements a value stands for.
///
/// # Errors
/// If it isn't one, or is damaged.
pub fn estimate(value: &[u8]) -> Result<u64, Fault> {
    let stored = Stored::of(value)?;
    if let Some(known) = stored.last_estimate() {
        return Ok(known);
    }
    let mut histogram = Histogram::new();
    stored.each(|_, value, registers| histogram.add(value, registers))?;
    histogram.estimate().ok_or_else(damaged)
}

/// The registers of several values together: the highest of each.
pub struct Union {
    registers: Vec<u8>,
    /// Whether any of them is dense.
    is_dense: bool,
}

impl Default for Union {
    /// That of no values.
    fn default() -> Self {
        Union { registers: vec![0; REGISTERS], is_dense: false }
    }
}

impl Union {
    /// Adds a value.
    ///
    /// # Errors
    /// If the value isn't one, or is damaged.
    pub fn add(&mut self, value: &[u8]) -> Result<(), Fault> {
        let stored = Stored::of(value)?;
        self.is_dense |= stored.is_dense();
        let all = &mut self.registers;
        stored.each(|first, value, registers| {
            all[first..first + registers].iter_mut().for_each(|known| *known = value.max(*known));
        })
    }

    /// How many elements it stands for.
    ///
    /// # Errors
    /// If no number of elements makes such registers.
    pub fn estimate(&self) -> Result<u64, Fault> {
        let mut histogram = Histogram::new();
        self.registers.iter().for_each(|value| histogram.add(*value, 1));
        histogram.estimate().ok_or_else(damaged)
    }
}

/// A place among runs: where a run begins, and with which register.
#[derive(Clone, Copy, Default)]
struct Place {
    at: usize,
    register: usize,
}

/// Registers in the sparse encoding.
struct Sparse {
    runs: Vec<u8>,
    /// The value of each.
    values: Vec<u8>,
}

impl Sparse {
    fn read(body: &[u8]) -> Result<Self, Fault> {
        let mut values = vec![0; REGISTERS];
        each_run(body, |first, run| values[first..first + run.registers].fill(run.value))?;
        Ok(Sparse { runs: body.to_vec(), values })
    }

    /// Raises a register that is lower. Looks for its run from a place on that is before it; what is returned
    /// is good for any register behind it. Nothing where it would become too long.
    fn raise(&mut self, from: Place, index: usize, value: u8) -> Option<Place> {
        let (mut earlier, mut before, mut here) = (from, from, from);
        let mut run = Run::read(&self.runs[here.at..])?;
        while here.register + run.registers <= index {
            (earlier, before) = (before, here);
            here = Place { at: here.at + run.bytes, register: here.register + run.registers };
            run = Run::read(&self.runs[here.at..])?;
        }
        let mut split = Vec::with_capacity(5);
        Run::write(run.value, index - here.register, &mut split);
        Run::write(value, 1, &mut split);
        Run::write(run.value, here.register + run.registers - 1 - index, &mut split);
        let length = HEADER_BYTES + self.runs.len() - run.bytes + split.len();
        if split.len() > run.bytes && length > SPARSE_MAX_BYTES {
            return None;
        }
        self.runs.splice(here.at..here.at + run.bytes, split);
        self.values[index] = value;
        self.join(before.at);
        Some(earlier)
    }

    /// Joins neighbours that have the same value and fit into one run.
    fn join(&mut self, mut at: usize) {
        for _ in 0..JOINED_RUNS {
            let Some(run) = self.runs.get(at..).and_then(Run::read) else { return };
            let next = at + run.bytes;
            let following = self.runs.get(next..).and_then(Run::read);
            let together = following.filter(|_| run.value != 0).and_then(|following| {
                let registers = run.registers + following.registers;
                let fits = following.value == run.value && registers <= VALUE_RUN_MOST;
                fits.then_some(registers)
            });
            match together {
                None => at = next,
                Some(registers) => {
                    let mut joined = Vec::with_capacity(1);
                    Run::write(run.value, registers, &mut joined);
                    self.runs.splice(at..=next, joined);
                }
            }
        }
    }

    fn to_dense(&self) -> Vec<u8> {
        let group = |values: &[u8]| {
            let bits = values.iter().rev().fold(0u32, |bits, value| bits << 6 | u32::from(*value));
            let [first, second, third, _] = bits.to_le_bytes();
            [first, second, third]
        };
        self.values.chunks_exact(4).flat_map(group).collect()
    }
}

/// Raises a register of a dense body. Returns whether it was lower.
fn raise_dense(body: &mut [u8], index: usize, value: u8) -> bool {
    let (group, shift) = (index / 4 * 3, index % 4 * 6);
    let bytes = &mut body[group..group + 3];
    let bits = bytes.iter().rev().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
    if (bits >> shift & 0x3f) as u8 >= value {
        return false;
    }
    let raised = bits & !(0x3f << shift) | u32::from(value) << shift;
    bytes.copy_from_slice(&raised.to_le_bytes()[..3]);
    true
}

enum Registers {
    Dense(Vec<u8>),
    Sparse(Sparse),
}

/// A HyperLogLog that is changed.
pub struct Sketch {
    header: Header,
    registers: Registers,
}

impl Default for Sketch {
    /// One without elements.
    fn default() -> Self {
        let mut header = [0; HEADER_BYTES];
        header[..MAGIC.len()].copy_from_slice(MAGIC);
        header[ENCODING_AT] = SPARSE;
        let mut runs = Vec::with_capacity(2);
        Run::write(0, REGISTERS, &mut runs);
        let sparse = Sparse { runs, values: vec![0; REGISTERS] };
        Sketch { header, registers: Registers::Sparse(sparse) }
    }
}

impl Sketch {
    /// Reads a value.
    ///
    /// # Errors
    /// If the value isn't one, or is damaged.
    pub fn decode(value: &[u8]) -> Result<Self, Fault> {
        let stored = Stored::of(value)?;
        let registers = match stored.is_dense() {
            true => Registers::Dense(stored.body.to_vec()),
            false => Registers::Sparse(Sparse::read(stored.body)?),
        };
        Ok(Sketch { header: stored.header, registers })
    }

    /// Adds an element. Returns whether that has changed a register.
    pub fn add(&mut self, element: &[u8]) -> bool {
        let (index, value) = position(element);
        self.raise(index, value)
    }

    /// Raises a register that is lower. Returns whether it was.
    pub(super) fn raise(&mut self, index: usize, value: u8) -> bool {
        self.raise_from(&mut Place::default(), index, value)
    }

    /// Raises each register to that of a union.
    pub fn merge(&mut self, union: &Union) {
        if union.is_dense {
            self.make_dense();
        }
        let mut from = Place::default();
        for (index, value) in union.registers.iter().enumerate().filter(|(_, value)| **value != 0) {
            self.raise_from(&mut from, index, *value);
        }
    }

    /// The same; registers are raised in their order, each from where the one before has left `from`.
    fn raise_from(&mut self, from: &mut Place, index: usize, value: u8) -> bool {
        if let Registers::Sparse(sparse) = &mut self.registers {
            if sparse.values[index] >= value {
                return false;
            }
            let place = match value <= VALUE_MOST {
                true => sparse.raise(*from, index, value),
                false => None,
            };
            if let Some(place) = place {
                *from = place;
                return true;
            }
        }
        raise_dense(self.make_dense(), index, value)
    }

    fn make_dense(&mut self) -> &mut [u8] {
        if let Registers::Sparse(sparse) = &self.registers {
            self.header[ENCODING_AT] = DENSE;
            self.registers = Registers::Dense(sparse.to_dense());
        }
        match &mut self.registers {
            Registers::Dense(body) => body,
            Registers::Sparse(_) => unreachable!("it was made dense above"),
        }
    }

    /// The value; what was counted last is stale.
    pub fn changed(mut self) -> Bytes {
        self.header[HEADER_BYTES - 1] |= STALE;
        let body = match &self.registers {
            Registers::Dense(body) => body,
            Registers::Sparse(sparse) => &sparse.runs,
        };
        [&self.header[..], body].concat().into()
    }
}
