//! What commands answer with, whatever protocol asked.
//!
//! Typed once here and rendered by each front: a gRPC message, a RESP2 or RESP3 reply, a line of
//! JSON. Also a part of the stored answers of the request window, so it has one stable encoding.

use crate::codec::{DecodeError, Reader, Writer};
use bytes::Bytes;

/// Deepest list inside a list: no command nests more, and a decoder mustn't recurse without bound.
const DEEPEST: u8 = 4;

/// The reply of a command, beside whether it applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reply {
    /// Nothing beside that.
    #[default]
    None,
    /// There is nothing.
    Nil,
    /// A number.
    Integer(i64),
    /// A decimal number, by its bits: see [`Reply::double`].
    Double(u64),
    /// Bytes.
    Bytes(Bytes),
    /// In order.
    List(Vec<Reply>),
    /// Fields and values in turn.
    Map(Vec<(Reply, Reply)>),
}

const NONE: u8 = 0;
const NIL: u8 = 1;
const INTEGER: u8 = 2;
const BYTES: u8 = 3;
const LIST: u8 = 4;
const MAP: u8 = 5;
const DOUBLE: u8 = 6;

impl Reply {
    /// A decimal number.
    pub fn double(number: f64) -> Self {
        Reply::Double(number.to_bits())
    }

    /// The decimal number, if it is one.
    pub fn as_double(&self) -> Option<f64> {
        match self {
            Reply::Double(bits) => Some(f64::from_bits(*bits)),
            _ => None,
        }
    }

    /// The number, if it is one.
    pub fn integer(&self) -> Option<i64> {
        match self {
            Reply::Integer(number) => Some(*number),
            _ => None,
        }
    }

    /// The bytes, if it is any.
    pub fn bytes(&self) -> Option<&Bytes> {
        match self {
            Reply::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Copies the bytes in it, where they are a part of something larger.
    pub fn detach(&mut self) {
        match self {
            Reply::None | Reply::Nil | Reply::Integer(_) | Reply::Double(_) => {}
            Reply::Bytes(bytes) => *bytes = Bytes::copy_from_slice(bytes),
            Reply::List(items) => items.iter_mut().for_each(Reply::detach),
            Reply::Map(pairs) => pairs.iter_mut().for_each(|(field, value)| {
                field.detach();
                value.detach();
            }),
        }
    }

    /// Roughly how many bytes it takes up in a message.
    pub fn size_bytes(&self) -> usize {
        match self {
            Reply::None | Reply::Nil => 1,
            Reply::Integer(_) => 6,
            Reply::Double(_) => 9,
            Reply::Bytes(bytes) => bytes.len() + 4,
            Reply::List(items) => 4 + items.iter().map(Reply::size_bytes).sum::<usize>(),
            Reply::Map(pairs) => {
                let size =
                    |(field, value): &(Reply, Reply)| field.size_bytes() + value.size_bytes();
                4 + pairs.iter().map(size).sum::<usize>()
            }
        }
    }

    /// The encoding.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = Writer::with_capacity(self.size_bytes());
        self.encode(&mut out);
        out.finish()
    }

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Writer) {
        match self {
            Reply::None => out.u8(NONE),
            Reply::Nil => out.u8(NIL),
            Reply::Integer(number) => {
                out.u8(INTEGER);
                out.signed(*number);
            }
            Reply::Double(bits) => {
                out.u8(DOUBLE);
                out.u64(*bits);
            }
            Reply::Bytes(bytes) => {
                out.u8(BYTES);
                out.bytes(bytes);
            }
            Reply::List(items) => {
                out.u8(LIST);
                out.varint(items.len() as u64);
                items.iter().for_each(|item| item.encode(out));
            }
            Reply::Map(pairs) => {
                out.u8(MAP);
                out.varint(pairs.len() as u64);
                for (field, value) in pairs {
                    field.encode(out);
                    value.encode(out);
                }
            }
        }
    }

    /// Reads what [`Reply::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`] for anything else.
    pub fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Self::decode_inside(input, DEEPEST)
    }

    /// Reads what [`Reply::to_bytes`] wrote; it must take up the whole input.
    ///
    /// # Errors
    /// [`DecodeError`] for anything else.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes);
        let reply = Self::decode(&mut input)?;
        input.end()?;
        Ok(reply)
    }

    fn decode_inside(input: &mut Reader, depth: u8) -> Result<Self, DecodeError> {
        let inside =
            |tag| depth.checked_sub(1).ok_or(DecodeError::unknown_tag("nested reply", tag));
        Ok(match input.u8()? {
            NONE => Reply::None,
            NIL => Reply::Nil,
            INTEGER => Reply::Integer(input.signed()?),
            DOUBLE => Reply::Double(input.u64()?),
            BYTES => Reply::Bytes(input.bytes()?),
            LIST => {
                let depth = inside(LIST)?;
                let count = input.count(1)?;
                let items = (0..count).map(|_| Self::decode_inside(input, depth));
                Reply::List(items.collect::<Result<_, _>>()?)
            }
            MAP => {
                let depth = inside(MAP)?;
                let count = input.count(2)?;
                let mut pair =
                    || Ok((Self::decode_inside(input, depth)?, Self::decode_inside(input, depth)?));
                Reply::Map((0..count).map(|_| pair()).collect::<Result<_, DecodeError>>()?)
            }
            other => return Err(DecodeError::unknown_tag("reply", other)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_reply() -> impl Strategy<Value = Reply> {
        let leaf = prop_oneof![
            Just(Reply::None),
            Just(Reply::Nil),
            any::<i64>().prop_map(Reply::Integer),
            any::<f64>().prop_map(Reply::double),
            prop::collection::vec(any::<u8>(), 0..9).prop_map(|bytes| Reply::Bytes(bytes.into())),
        ];
        leaf.prop_recursive(u32::from(DEEPEST) - 1, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Reply::List),
                prop::collection::vec((inner.clone(), inner), 0..4).prop_map(Reply::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn replies_survive_encoding(reply in any_reply()) {
            prop_assert_eq!(Reply::from_bytes(reply.to_bytes()), Ok(reply));
        }

        #[test]
        fn junk_never_panics(junk in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = Reply::from_bytes(Bytes::from(junk));
        }
    }

    #[test]
    fn a_reply_that_is_nested_too_deep_is_refused() {
        let deep = Bytes::from([LIST, 1].repeat(100_000));
        assert!(Reply::from_bytes(deep).is_err());
    }
}
