//! Mutations from a seed: small damage of the kinds that find bugs in decoders.

/// Makes new inputs of old ones. The same seed makes the same.
pub struct Mutator(u64);

impl Mutator {
    /// Mutations that follow from `seed`.
    pub fn new(seed: u64) -> Self {
        // Xorshift doesn't leave zero.
        Mutator(seed | 1)
    }

    fn any(&mut self) -> u64 {
        // Marsaglia, "Xorshift RNGs" (2003).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number from 0 to `limit`, exclusive; 0 if that is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        if limit == 0 { 0 } else { (self.any() >> 11) as usize % limit }
    }

    /// One to four changes of `input`, now and then with a part of `other`.
    pub fn mutate(&mut self, input: &[u8], other: &[u8]) -> Vec<u8> {
        let mut out = input.to_vec();
        for _ in 0..=self.below(4) {
            self.change(&mut out, other);
        }
        out
    }

    fn change(&mut self, out: &mut Vec<u8>, other: &[u8]) {
        const TELLING: [u8; 8] = [0, 1, 2, 0x7f, 0x80, 0xff, b'{', b'\n'];
        let place = self.below(out.len());
        match self.below(8) {
            _ if out.is_empty() => out.push(self.any() as u8),
            0 => out[place] ^= 1 << self.below(8),
            1 => out[place] = self.any() as u8,
            2 => out[place] = TELLING[self.below(TELLING.len())],
            3 => out.truncate(place),
            4 => {
                out.remove(place);
            }
            5 => out.insert(place, self.any() as u8),
            6 => {
                let end = place + self.below((out.len() - place).min(64));
                let part = out[place..end].to_vec();
                out.splice(place..place, part);
            }
            _ => {
                let from = self.below(other.len());
                let end = from + self.below((other.len() - from).min(64));
                out.splice(place..place, other[from..end].iter().copied());
            }
        }
    }
}
