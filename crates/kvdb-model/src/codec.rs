//! A small, bounded binary encoding: fixed bytes, LEB128 varints and length-prefixed byte strings.
//!
//! Used for what is on a hot path or on disk and must not copy values (log entries, records,
//! descriptors). The reader hands out [`Bytes`] slices that share the input's allocation, checks
//! every length against what is left before it trusts it, and never panics on any input.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

/// Why some bytes are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The input ended, or a length points past its end.
    #[error("the encoding ends {missing} bytes too early")]
    Truncated {
        /// How many more bytes were needed.
        missing: usize,
    },
    /// A varint has more than 64 bits or doesn't fit its field.
    #[error("a number in the encoding is out of range")]
    NumberOutOfRange,
    /// A tag that this binary doesn't know.
    #[error("{what} has the unknown tag {tag}")]
    UnknownTag {
        /// The field.
        what: &'static str,
        /// Its value.
        tag: u8,
    },
    /// A format version that this binary doesn't read.
    #[error("{what} has format version {found}; this binary reads version {supported}")]
    UnknownVersion {
        /// The structure.
        what: &'static str,
        /// The version found.
        found: u8,
        /// The version that can be read.
        supported: u8,
    },
    /// Bytes are left after the end of the structure.
    #[error("{0} bytes are left over after the encoding")]
    TrailingBytes(usize),
    /// A text field isn't UTF-8.
    #[error("a text field isn't valid UTF-8")]
    NotUtf8,
}

impl DecodeError {
    /// An unknown tag in `what`.
    pub fn unknown_tag(what: &'static str, tag: u8) -> Self {
        DecodeError::UnknownTag { what, tag }
    }
}

/// Appends to a growing buffer.
#[derive(Default)]
pub struct Writer {
    out: BytesMut,
}

impl Writer {
    /// An empty writer.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty writer with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Writer { out: BytesMut::with_capacity(capacity) }
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.out.put_u8(value);
    }

    /// Four bytes, little endian.
    pub fn u32(&mut self, value: u32) {
        self.out.put_u32_le(value);
    }

    /// Eight bytes, little endian.
    pub fn u64(&mut self, value: u64) {
        self.out.put_u64_le(value);
    }

    /// One to ten bytes: LEB128.
    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.put_u8((value as u8) | 0x80);
            value >>= 7;
        }
        self.out.put_u8(value as u8);
    }

    /// A signed number, zigzag-coded.
    pub fn signed(&mut self, value: i64) {
        self.varint(((value << 1) ^ (value >> 63)) as u64);
    }

    /// A length and that many bytes.
    pub fn bytes(&mut self, value: &[u8]) {
        self.varint(value.len() as u64);
        self.out.put_slice(value);
    }

    /// Bytes without a length.
    pub fn raw(&mut self, value: &[u8]) {
        self.out.put_slice(value);
    }

    /// How many bytes were written.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// What was written so far.
    pub fn as_slice(&self) -> &[u8] {
        &self.out
    }

    /// What was written.
    pub fn finish(self) -> Bytes {
        self.out.freeze()
    }
}

/// Reads what [`Writer`] wrote. Byte strings share the input's allocation.
#[derive(Clone, Debug)]
pub struct Reader {
    rest: Bytes,
}

impl Reader {
    /// Reads from the start of `input`.
    pub fn new(input: Bytes) -> Self {
        Reader { rest: input }
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    fn need(&self, count: usize) -> Result<(), DecodeError> {
        match count.checked_sub(self.rest.len()) {
            None | Some(0) => Ok(()),
            Some(missing) => Err(DecodeError::Truncated { missing }),
        }
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn raw(&mut self, count: usize) -> Result<Bytes, DecodeError> {
        self.need(count)?;
        Ok(self.rest.split_to(count))
    }

    /// The next bytes, copied: cheaper than a share of the input where they are few.
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.need(N)?;
        let mut array = [0; N];
        array.copy_from_slice(&self.rest[..N]);
        self.rest.advance(N);
        Ok(array)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    /// Four bytes, little endian.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes, little endian.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A LEB128 number.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] or [`DecodeError::NumberOutOfRange`].
    pub fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for (position, byte) in self.rest.iter().take(10).enumerate() {
            let bits = u64::from(byte & 0x7f);
            if position == 9 && bits > 1 {
                return Err(DecodeError::NumberOutOfRange);
            }
            value |= bits << (7 * position);
            if byte & 0x80 == 0 {
                self.rest.advance(position + 1);
                return Ok(value);
            }
        }
        if self.rest.len() >= 10 {
            Err(DecodeError::NumberOutOfRange)
        } else {
            Err(DecodeError::Truncated { missing: 1 })
        }
    }

    /// A LEB128 number of 32 bits.
    ///
    /// # Errors
    /// As [`Reader::varint`].
    pub fn varint_u32(&mut self) -> Result<u32, DecodeError> {
        u32::try_from(self.varint()?).map_err(|_| DecodeError::NumberOutOfRange)
    }

    /// A zigzag-coded number.
    ///
    /// # Errors
    /// As [`Reader::varint`].
    pub fn signed(&mut self) -> Result<i64, DecodeError> {
        let raw = self.varint()?;
        Ok(((raw >> 1) as i64) ^ -((raw & 1) as i64))
    }

    /// A length-prefixed byte string.
    ///
    /// # Errors
    /// As [`Reader::varint`].
    pub fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let length = usize::try_from(self.varint()?).map_err(|_| DecodeError::NumberOutOfRange)?;
        self.raw(length)
    }

    /// A length-prefixed text.
    ///
    /// # Errors
    /// As [`Reader::bytes`], or [`DecodeError::NotUtf8`].
    pub fn text(&mut self) -> Result<String, DecodeError> {
        let raw = self.bytes()?;
        std::str::from_utf8(&raw).map(str::to_owned).map_err(|_| DecodeError::NotUtf8)
    }

    /// A count of things of at least `least_bytes` each: never more than could be in what is left,
    /// so that it is safe to reserve room for.
    ///
    /// # Errors
    /// As [`Reader::varint`]; [`DecodeError::Truncated`] for a count that can't be true.
    pub fn count(&mut self, least_bytes: usize) -> Result<usize, DecodeError> {
        let count = usize::try_from(self.varint()?).map_err(|_| DecodeError::NumberOutOfRange)?;
        let least = count.checked_mul(least_bytes.max(1)).ok_or(DecodeError::NumberOutOfRange)?;
        self.need(least)?;
        Ok(count)
    }

    /// A version byte that must be `supported`.
    ///
    /// # Errors
    /// [`DecodeError::UnknownVersion`].
    pub fn version(&mut self, what: &'static str, supported: u8) -> Result<(), DecodeError> {
        let found = self.u8()?;
        if found == supported {
            Ok(())
        } else {
            Err(DecodeError::UnknownVersion { what, found, supported })
        }
    }

    /// That nothing is left.
    ///
    /// # Errors
    /// [`DecodeError::TrailingBytes`].
    pub fn end(&self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(DecodeError::TrailingBytes(left)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_and_bytes_survive(numbers in prop::collection::vec(any::<u64>(), 0..20), signed in any::<i64>(), bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut out = Writer::new();
            for number in &numbers { out.varint(*number); }
            out.signed(signed);
            out.bytes(&bytes);
            let mut input = Reader::new(out.finish());
            for number in &numbers { prop_assert_eq!(input.varint().unwrap(), *number); }
            prop_assert_eq!(input.signed().unwrap(), signed);
            prop_assert_eq!(&input.bytes().unwrap()[..], &bytes[..]);
            prop_assert!(input.end().is_ok());
        }

        #[test]
        fn junk_never_panics(junk in prop::collection::vec(any::<u8>(), 0..64)) {
            let junk = Bytes::from(junk);
            let _ = Reader::new(junk.clone()).varint();
            let _ = Reader::new(junk.clone()).bytes();
            let _ = Reader::new(junk.clone()).count(3);
            let _ = crate::ShardDescriptor::decode(&mut Reader::new(junk.clone()));
            let _ = crate::EntryPayload::decode(junk);
        }
    }
}
