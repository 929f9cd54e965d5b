//! LZF, as Redis is built with it: runs of literals, and copies of what came before.

use super::{BAD, Input};

/// Longest run of bytes that are kept as they are.
const LITERALS_MAX: usize = 32;
/// How far back a copy may begin.
const BACK_MAX: usize = 1 << 13;
/// Longest copy.
const COPY_MAX: usize = 264;
const PLACES_BITS: u32 = 16;

/// Makes strings shorter. What it has learned of one it forgets with the next.
#[derive(Default)]
pub(super) struct Packer {
    /// The last place at which three bytes of a kind were seen, counted over all strings so far.
    places: Vec<u32>,
    /// Where the string under work begins.
    base: u32,
}

impl Packer {
    /// What Redis makes of a string; `None` if that isn't at least 4 bytes shorter.
    pub(super) fn pack(&mut self, input: &[u8]) -> Option<Vec<u8>> {
        if input.len() <= 20 {
            return None;
        }
        let length = u32::try_from(input.len()).ok()?;
        let end = self.base.checked_add(length).filter(|_| !self.places.is_empty());
        let end = end.unwrap_or_else(|| {
            self.places = vec![0; 1 << PLACES_BITS];
            self.base = 0;
            length
        });
        let base = std::mem::replace(&mut self.base, end);
        pack(input, base, &mut self.places)
    }
}

/// `places` holds nothing beyond `base`; the first place of the string never counts.
fn pack(input: &[u8], base: u32, places: &mut [u32]) -> Option<Vec<u8>> {
    let mut out = Packed { bytes: vec![0], literals: 0, most: input.len() - 4 };
    let three = |at: usize| u32::from_be_bytes([0, input[at], input[at + 1], input[at + 2]]);
    let slot = |three: u32| {
        let mixed = (three >> (24 - PLACES_BITS)).wrapping_sub(three.wrapping_mul(5));
        (mixed & ((1 << PLACES_BITS) - 1)) as usize
    };
    let last = input.len() - 2;
    let mut at = 0;
    while at < last {
        let before = std::mem::replace(&mut places[slot(three(at))], base + at as u32);
        let before = before.saturating_sub(base) as usize;
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
            places[slot(three(place))] = base + place as u32;
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

/// Unpacks a string that was so long before.
pub(super) fn unpack(packed: &[u8], whole: usize) -> Result<Vec<u8>, &'static str> {
    let mut input = Input::new(packed);
    let mut out = Vec::new();
    while let Ok([control]) = input.array::<1>() {
        if control < 32 {
            out.extend_from_slice(input.take(usize::from(control) + 1)?);
        } else {
            let mut count = usize::from(control >> 5);
            if count == 7 {
                count += usize::from(input.array::<1>()?[0]);
            }
            let [low] = input.array()?;
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
