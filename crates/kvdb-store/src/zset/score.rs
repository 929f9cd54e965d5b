//! Scores, and the rows that begin with them.

use bytes::{BufMut, Bytes, BytesMut};
use kvdb_model::codec::{DecodeError, Reader, Writer};

/// Bytes of a score at the beginning of a row.
pub(crate) const SCORE_BYTES: usize = 8;

const SIGN: u64 = 1 << 63;

/// A score: any number but NaN. -0 is 0. Kept so that its bytes, big endian, are in the order of scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score(u64);

impl Score {
    /// 0.
    pub const ZERO: Score = Score(SIGN);

    /// The score that is this number, unless it is none.
    pub fn new(number: f64) -> Option<Self> {
        if number.is_nan() {
            return None;
        }
        // What makes 0 of -0.
        let bits = (number + 0.0).to_bits();
        Some(Score(if bits & SIGN == 0 { bits | SIGN } else { !bits }))
    }

    /// The same; 0 for what is no number.
    pub(crate) fn or_zero(number: f64) -> Self {
        Self::new(number).unwrap_or(Score::ZERO)
    }

    /// As a number.
    pub fn number(self) -> f64 {
        f64::from_bits(if self.0 & SIGN == 0 { !self.0 } else { self.0 ^ SIGN })
    }

    pub(crate) fn to_bytes(self) -> [u8; SCORE_BYTES] {
        self.0.to_be_bytes()
    }

    fn of_bytes(bytes: [u8; SCORE_BYTES]) -> Self {
        Score(u64::from_be_bytes(bytes))
    }

    /// The first bytes of all rows above those with this score.
    pub(super) fn above(self) -> [u8; SCORE_BYTES] {
        // The highest score, infinity, is far below the highest number.
        (self.0 + 1).to_be_bytes()
    }

    pub(crate) fn encode(self, out: &mut Writer) {
        out.u64(self.0);
    }

    pub(crate) fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let score = Score(input.u64()?);
        match Score::new(score.number()) == Some(score) {
            true => Ok(score),
            false => Err(DecodeError::NumberOutOfRange),
        }
    }
}

/// The place of a member's row.
pub(super) fn row_of(score: Score, member: &[u8]) -> Bytes {
    let mut row = BytesMut::with_capacity(SCORE_BYTES + member.len());
    row.put_slice(&score.to_bytes());
    row.put_slice(member);
    row.freeze()
}

/// Score and member of a row.
pub(crate) fn parse_row(row: &Bytes) -> (Score, Bytes) {
    let score = row.first_chunk().expect("a row begins with a score: its checksum was right");
    (Score::of_bytes(*score), row.slice(SCORE_BYTES..))
}

/// A score that is kept beside the rows.
pub(super) fn parse_score(stored: &Bytes) -> Score {
    let score = stored.first_chunk().expect("it is a score: its checksum was right");
    Score::of_bytes(*score)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn score(number: f64) -> Score {
        Score::new(number).unwrap()
    }

    #[test]
    fn scores_stand_in_their_order_and_minus_zero_is_zero() {
        let ascending = [
            f64::NEG_INFINITY,
            f64::MIN,
            -1.5,
            -f64::MIN_POSITIVE,
            0.0,
            5e-324,
            1.0,
            f64::MAX,
            f64::INFINITY,
        ];
        assert!(ascending.windows(2).all(|pair| score(pair[0]) < score(pair[1])));
        assert_eq!(score(-0.0), Score::ZERO);
        assert_eq!(score(-0.0).number().to_bits(), 0);
        assert_eq!(Score::new(f64::NAN), None);
        assert!(score(f64::INFINITY).above() > score(f64::INFINITY).to_bytes());
    }

    #[test]
    fn what_is_no_score_is_not_read() {
        for bits in [0, u64::MAX, !SIGN, SIGN | f64::NAN.to_bits()] {
            let mut out = Writer::new();
            out.u64(bits);
            assert!(Score::decode(&mut Reader::new(out.finish())).is_err(), "{bits:x}");
        }
    }

    proptest! {
        #[test]
        fn bytes_are_in_the_order_of_numbers(one in any::<f64>(), other in any::<f64>()) {
            prop_assert_eq!(score(one).number(), one);
            let order = one.partial_cmp(&other).unwrap();
            prop_assert_eq!(score(one).to_bytes().cmp(&score(other).to_bytes()), order);
            let row = row_of(score(one), b"member");
            prop_assert_eq!(parse_row(&row), (score(one), Bytes::from("member")));
        }
    }
}
