//! Answers, in both versions of the protocol.

use crate::number::double_text;
use bytes::{BufMut, Bytes, BytesMut};

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// A status.
    Simple(&'static str),
    /// A status that was put together.
    Status(String),
    /// An error: a code in capitals, a space, and what is wrong.
    Error(String),
    /// A number.
    Integer(i64),
    /// Bytes.
    Bulk(Bytes),
    /// Nothing.
    Nil,
    /// No list.
    NilArray,
    /// A list.
    Array(Vec<Reply>),
    /// Pairs; a flat list in version 2.
    Map(Vec<(Reply, Reply)>),
    /// A list of pairs; a flat list in version 2.
    Pairs(Vec<(Reply, Reply)>),
    /// A list without order or repetition.
    Set(Vec<Reply>),
    /// A decimal number, as text in version 2.
    Double(f64),
    /// A decimal number as text that was made already.
    Decimal(String),
    /// Text for people.
    Verbatim(String),
}

impl Reply {
    /// Done.
    pub const OK: Reply = Reply::Simple("OK");

    /// An error with the code `ERR`.
    pub fn error(problem: impl AsRef<str>) -> Reply {
        Reply::Error(format!("ERR {}", problem.as_ref()))
    }

    /// Bytes of a text.
    pub fn text(text: impl Into<String>) -> Reply {
        Reply::Bulk(Bytes::from(text.into()))
    }

    /// Bytes, or nothing.
    pub fn bulk_or_nil(bytes: Option<Bytes>) -> Reply {
        bytes.map_or(Reply::Nil, Reply::Bulk)
    }

    /// 1 or 0.
    pub fn flag(set: bool) -> Reply {
        Reply::Integer(i64::from(set))
    }

    /// Whether it is an error.
    pub fn is_error(&self) -> bool {
        matches!(self, Reply::Error(_))
    }

    /// Roughly how many bytes it takes up.
    pub fn size_bytes(&self) -> usize {
        match self {
            Reply::Bulk(bytes) => bytes.len() + 16,
            Reply::Array(items) | Reply::Set(items) => {
                16 + items.iter().map(Reply::size_bytes).sum::<usize>()
            }
            Reply::Map(pairs) | Reply::Pairs(pairs) => {
                16 + pairs
                    .iter()
                    .map(|(key, value)| key.size_bytes() + value.size_bytes())
                    .sum::<usize>()
            }
            Reply::Error(text)
            | Reply::Verbatim(text)
            | Reply::Status(text)
            | Reply::Decimal(text) => text.len() + 16,
            _ => 24,
        }
    }

    /// Appends it in version 2 or 3.
    pub fn write(&self, out: &mut BytesMut, resp3: bool) {
        match self {
            Reply::Simple(text) => line(out, b'+', text),
            Reply::Status(text) => line(out, b'+', &one_line(text)),
            Reply::Error(text) => line(out, b'-', &one_line(text)),
            Reply::Integer(number) => header(out, b':', *number),
            Reply::Bulk(bytes) => bulk(out, b'$', bytes),
            Reply::Nil if resp3 => out.put_slice(b"_\r\n"),
            Reply::Nil => out.put_slice(b"$-1\r\n"),
            Reply::NilArray if resp3 => out.put_slice(b"_\r\n"),
            Reply::NilArray => out.put_slice(b"*-1\r\n"),
            Reply::Array(items) => list(out, b'*', items, resp3),
            Reply::Set(items) => list(out, if resp3 { b'~' } else { b'*' }, items, resp3),
            Reply::Map(pairs) | Reply::Pairs(pairs) => {
                let is_map = matches!(self, Reply::Map(_));
                let kind = if resp3 && is_map { b'%' } else { b'*' };
                let count = if resp3 { pairs.len() } else { pairs.len() * 2 };
                header(out, kind, count as i64);
                for (key, value) in pairs {
                    if resp3 && !is_map {
                        header(out, b'*', 2);
                    }
                    key.write(out, resp3);
                    value.write(out, resp3);
                }
            }
            Reply::Double(number) if resp3 => line(out, b',', &double_text(*number)),
            Reply::Double(number) => bulk(out, b'$', double_text(*number).as_bytes()),
            Reply::Decimal(text) if resp3 => line(out, b',', text),
            Reply::Decimal(text) => bulk(out, b'$', text.as_bytes()),
            Reply::Verbatim(text) if resp3 => bulk(out, b'=', format!("txt:{text}").as_bytes()),
            Reply::Verbatim(text) => bulk(out, b'$', text.as_bytes()),
        }
    }
}

fn one_line(text: &str) -> String {
    text.replace(['\r', '\n'], " ")
}

fn line(out: &mut BytesMut, kind: u8, text: &str) {
    out.put_u8(kind);
    out.put_slice(text.as_bytes());
    out.put_slice(b"\r\n");
}

/// A number after its kind, without going through text of its own.
fn header(out: &mut BytesMut, kind: u8, number: i64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.put_u8(kind);
    if number < 0 {
        out.put_u8(b'-');
    }
    out.put_slice(&digits[at..]);
    out.put_slice(b"\r\n");
}

fn bulk(out: &mut BytesMut, kind: u8, bytes: &[u8]) {
    header(out, kind, bytes.len() as i64);
    out.put_slice(bytes);
    out.put_slice(b"\r\n");
}

fn list(out: &mut BytesMut, kind: u8, items: &[Reply], resp3: bool) {
    header(out, kind, items.len() as i64);
    items.iter().for_each(|item| item.write(out, resp3));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(reply: &Reply) -> (String, String) {
        let text = |resp3| {
            let mut out = BytesMut::new();
            reply.write(&mut out, resp3);
            String::from_utf8(out.to_vec()).unwrap()
        };
        (text(false), text(true))
    }

    #[test]
    fn each_kind_has_its_form_in_both_versions() {
        let map = Reply::Map(vec![(Reply::text("a"), Reply::Integer(i64::MIN))]);
        for (reply, second, third) in [
            (Reply::OK, "+OK\r\n", "+OK\r\n"),
            (Reply::error("no\r\nway"), "-ERR no  way\r\n", "-ERR no  way\r\n"),
            (Reply::Integer(-12), ":-12\r\n", ":-12\r\n"),
            (Reply::text("hi"), "$2\r\nhi\r\n", "$2\r\nhi\r\n"),
            (Reply::Nil, "$-1\r\n", "_\r\n"),
            (Reply::NilArray, "*-1\r\n", "_\r\n"),
            (Reply::Array(vec![Reply::Integer(0)]), "*1\r\n:0\r\n", "*1\r\n:0\r\n"),
            (Reply::Set(vec![]), "*0\r\n", "~0\r\n"),
            (
                map,
                "*2\r\n$1\r\na\r\n:-9223372036854775808\r\n",
                "%1\r\n$1\r\na\r\n:-9223372036854775808\r\n",
            ),
            (
                Reply::Pairs(vec![(Reply::text("a"), Reply::Integer(1)); 2]),
                "*4\r\n$1\r\na\r\n:1\r\n$1\r\na\r\n:1\r\n",
                "*2\r\n*2\r\n$1\r\na\r\n:1\r\n*2\r\n$1\r\na\r\n:1\r\n",
            ),
            (Reply::Decimal("1.50".to_owned()), "$4\r\n1.50\r\n", ",1.50\r\n"),
            (Reply::Double(1.5), "$3\r\n1.5\r\n", ",1.5\r\n"),
            (Reply::Verbatim("x".into()), "$1\r\nx\r\n", "=5\r\ntxt:x\r\n"),
        ] {
            assert_eq!(both(&reply), (second.to_owned(), third.to_owned()));
        }
    }
}
