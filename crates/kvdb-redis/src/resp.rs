//! Reading requests, as they arrive and no faster.
//!
//! Nothing is ever allocated from a length that a client declares: arguments are places in the
//! bytes that have come. A [`Parser`] remembers how far it has got, so each byte is looked at once
//! however the network cuts the stream.

use bytes::{Buf, Bytes, BytesMut};
use std::fmt;

/// Longest line: an inline request, or a count.
const LINE_MAX_BYTES: usize = 64 * 1024;
/// Most arguments of a request.
const ARGUMENTS_MAX: i64 = 1024 * 1024;
/// Largest request, its framing included: what the cluster takes, and room for names and options.
pub const REQUEST_MAX_BYTES: usize = 17 * 1024 * 1024;
/// Longest argument.
const BULK_MAX_BYTES: i64 = 16 * 1024 * 1024;

/// A request: the name of a command, and its arguments.
pub type Request = Vec<Bytes>;

/// What ends a connection, in Redis's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// The number of arguments isn't one.
    MultibulkLength,
    /// The length of an argument isn't one.
    BulkLength,
    /// Something else where an argument should begin.
    ExpectedDollar(u8),
    /// An inline request without end.
    InlineTooBig,
    /// A number of arguments without end.
    MultibulkCountTooBig,
    /// A length without end.
    BulkCountTooBig,
    /// Quotes that don't match.
    UnbalancedQuotes,
    /// More than [`REQUEST_MAX_BYTES`].
    RequestTooBig,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ERR Protocol error: ")?;
        match self {
            ProtocolError::MultibulkLength => f.write_str("invalid multibulk length"),
            ProtocolError::BulkLength => f.write_str("invalid bulk length"),
            ProtocolError::ExpectedDollar(got) => {
                write!(f, "expected '$', got '{}'", got.escape_ascii())
            }
            ProtocolError::InlineTooBig => f.write_str("too big inline request"),
            ProtocolError::MultibulkCountTooBig => f.write_str("too big mbulk count string"),
            ProtocolError::BulkCountTooBig => f.write_str("too big bulk count string"),
            ProtocolError::UnbalancedQuotes => f.write_str("unbalanced quotes in request"),
            ProtocolError::RequestTooBig => {
                write!(f, "too big request; the limit is {REQUEST_MAX_BYTES} bytes")
            }
        }
    }
}

/// A request that has come in part.
#[derive(Debug, Default)]
pub struct Parser {
    /// How much of the buffer was understood.
    at: usize,
    /// From where a line end wasn't found yet.
    searched: usize,
    /// Arguments still to come, in a request that isn't inline.
    left: Option<usize>,
    /// Where the arguments are.
    arguments: Vec<(usize, usize)>,
    /// The length of the argument that is coming.
    bulk: Option<usize>,
}

impl Parser {
    /// Takes the next request out of `input`, if all of it is there. Empty requests are skipped.
    ///
    /// # Errors
    /// [`ProtocolError`]; nothing after it can be understood.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Request>, ProtocolError> {
        loop {
            if self.left.is_none() {
                match input.first() {
                    None => return Ok(None),
                    Some(b'*') => {}
                    Some(_) => match self.inline(input)? {
                        Some(request) if request.is_empty() => continue,
                        done => return Ok(done),
                    },
                }
                match self.line(input, ProtocolError::MultibulkCountTooBig)? {
                    None => return Ok(None),
                    Some(line) => {
                        let count = number(&input[line.0 + 1..line.1]);
                        let count = count.filter(|count| *count <= ARGUMENTS_MAX);
                        let count = count.ok_or(ProtocolError::MultibulkLength)?;
                        if count <= 0 {
                            self.drop_parsed(input);
                            continue;
                        }
                        self.left = Some(count as usize);
                    }
                }
            }
            return self.arguments(input);
        }
    }

    /// Bytes that are held for the request under way, beside the buffer itself.
    pub fn held_bytes(&self) -> usize {
        self.arguments.capacity() * size_of::<(usize, usize)>()
    }

    fn arguments(&mut self, input: &mut BytesMut) -> Result<Option<Request>, ProtocolError> {
        while let Some(left) = self.left.filter(|left| *left > 0) {
            let Some(length) = self.bulk_length(input)? else { return Ok(None) };
            let end = self.at + length;
            if end + 2 > REQUEST_MAX_BYTES {
                return Err(ProtocolError::RequestTooBig);
            }
            if input.len() < end + 2 {
                return Ok(None);
            }
            self.arguments.push((self.at, end));
            // As Redis does, whatever stands there.
            self.at = end + 2;
            self.searched = self.at;
            self.bulk = None;
            self.left = Some(left - 1);
        }
        let whole = input.split_to(self.at).freeze();
        let request = self.arguments.iter().map(|(start, end)| whole.slice(*start..*end)).collect();
        *self = Parser::default();
        Ok(Some(request))
    }

    fn bulk_length(&mut self, input: &BytesMut) -> Result<Option<usize>, ProtocolError> {
        if let Some(length) = self.bulk {
            return Ok(Some(length));
        }
        match input.get(self.at) {
            None => return Ok(None),
            Some(b'$') => {}
            Some(other) => return Err(ProtocolError::ExpectedDollar(*other)),
        }
        let Some(line) = self.line(input, ProtocolError::BulkCountTooBig)? else { return Ok(None) };
        let length = number(&input[line.0 + 1..line.1]);
        let length = length.filter(|length| (0..=BULK_MAX_BYTES).contains(length));
        let length = length.ok_or(ProtocolError::BulkLength)? as usize;
        self.bulk = Some(length);
        Ok(Some(length))
    }

    /// The next line's place, without its end; what is understood then ends after it.
    fn line(
        &mut self,
        input: &BytesMut,
        too_big: ProtocolError,
    ) -> Result<Option<(usize, usize)>, ProtocolError> {
        let start = self.at;
        let from = self.searched.max(start);
        let found = input[from..].iter().position(|byte| *byte == b'\r');
        match found.map(|place| from + place) {
            Some(end) if end - start > LINE_MAX_BYTES => Err(too_big),
            Some(end) if end + 1 < input.len() => {
                self.at = end + 2;
                self.searched = self.at;
                Ok(Some((start, end)))
            }
            Some(end) => {
                self.searched = end;
                Ok(None)
            }
            None if input.len() - start > LINE_MAX_BYTES => Err(too_big),
            None => {
                self.searched = input.len();
                Ok(None)
            }
        }
    }

    fn inline(&mut self, input: &mut BytesMut) -> Result<Option<Request>, ProtocolError> {
        let from = self.searched.min(input.len());
        match input[from..].iter().position(|byte| *byte == b'\n').map(|place| from + place) {
            Some(end) if end > LINE_MAX_BYTES => Err(ProtocolError::InlineTooBig),
            Some(end) => {
                let line = input.split_to(end);
                input.advance(1);
                *self = Parser::default();
                let text = line.strip_suffix(b"\r").unwrap_or(&line);
                split_words(text).ok_or(ProtocolError::UnbalancedQuotes).map(Some)
            }
            None if input.len() > LINE_MAX_BYTES => Err(ProtocolError::InlineTooBig),
            None => {
                self.searched = input.len();
                Ok(None)
            }
        }
    }

    fn drop_parsed(&mut self, input: &mut BytesMut) {
        input.advance(self.at);
        *self = Parser::default();
    }
}

fn number(text: &[u8]) -> Option<i64> {
    crate::number::parse_i64(text)
}

/// Splits an inline request into words, with quotes and escapes as redis-cli has them.
fn split_words(line: &[u8]) -> Option<Request> {
    let mut words = Request::new();
    let mut rest = line;
    loop {
        while let [space, after @ ..] = rest
            && space.is_ascii_whitespace()
        {
            rest = after;
        }
        if rest.is_empty() {
            return Some(words);
        }
        let (word, after) = next_word(rest)?;
        words.push(Bytes::from(word));
        rest = after;
    }
}

fn next_word(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut word = Vec::new();
    let mut rest = text;
    loop {
        match rest {
            [] => return Some((word, rest)),
            [space, ..] if space.is_ascii_whitespace() || *space == 0 => {
                return Some((word, &rest[1..]));
            }
            [quote @ (b'"' | b'\''), after @ ..] => {
                rest = quoted(*quote, after, &mut word)?;
                // A closing quote ends the word.
                return match rest {
                    [next, ..] if !next.is_ascii_whitespace() => None,
                    _ => Some((word, rest)),
                };
            }
            [byte, after @ ..] => {
                word.push(*byte);
                rest = after;
            }
        }
    }
}

/// Reads up to the closing quote; what follows it.
fn quoted<'a>(quote: u8, text: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    let mut rest = text;
    loop {
        rest = match rest {
            [] => return None,
            [end, after @ ..] if *end == quote => return Some(after),
            [b'\\', b'\'', after @ ..] if quote == b'\'' => {
                word.push(b'\'');
                after
            }
            [b'\\', b'x', high, low, after @ ..] if quote == b'"' && is_hex(*high, *low) => {
                word.push(hex(*high) << 4 | hex(*low));
                after
            }
            [b'\\', escaped, after @ ..] if quote == b'"' => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                after
            }
            [byte, after @ ..] => {
                word.push(*byte);
                after
            }
        }
    }
}

fn is_hex(high: u8, low: u8) -> bool {
    high.is_ascii_hexdigit() && low.is_ascii_hexdigit()
}

fn hex(digit: u8) -> u8 {
    (digit as char).to_digit(16).unwrap_or(0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Read = (Vec<Request>, Option<ProtocolError>);

    fn read_all(pieces: &[&[u8]]) -> Read {
        let mut parser = Parser::default();
        let mut input = BytesMut::new();
        let mut requests = Vec::new();
        for piece in pieces {
            input.extend_from_slice(piece);
            loop {
                match parser.next(&mut input) {
                    Ok(Some(request)) => requests.push(request),
                    Ok(None) => break,
                    Err(error) => return (requests, Some(error)),
                }
            }
        }
        (requests, None)
    }

    fn error_of(input: &[u8]) -> Option<String> {
        read_all(&[input]).1.map(|error| error.to_string())
    }

    #[test]
    fn requests_of_both_kinds_are_read() {
        let (requests, error) = read_all(&[
            b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\nPING\r\n\r\n*0\r\nset k \"a \\x41\\n\" 'b'\n",
        ]);
        assert_eq!(error, None);
        let words: Vec<Vec<&[u8]>> =
            requests.iter().map(|request| request.iter().map(|word| &word[..]).collect()).collect();
        assert_eq!(
            words,
            [vec![&b"GET"[..], b"k"], vec![b"PING"], vec![b"set", b"k", b"a A\n", b"b"]]
        );
    }

    #[test]
    fn junk_is_refused_in_redis_words() {
        for (input, words) in [
            (&b"*3000000000\r\n"[..], "invalid multibulk length"),
            (b"*abc\r\n", "invalid multibulk length"),
            (b"*1\r\n$-10\r\n", "invalid bulk length"),
            (b"*1\r\n$2000000000\r\n", "invalid bulk length"),
            (b"*1\r\n$blabla\r\n", "invalid bulk length"),
            (b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\nfooz\r\n", "expected '$', got 'f'"),
            (b"set \"a\r\n", "unbalanced quotes in request"),
            (b"set \"a\"b\r\n", "unbalanced quotes in request"),
        ] {
            assert_eq!(error_of(input), Some(format!("ERR Protocol error: {words}")));
        }
    }

    #[test]
    fn lines_without_end_are_cut_off() {
        for (start, words) in [
            (&b"x"[..], "too big inline request"),
            (b"*", "too big mbulk count string"),
            (b"*1\r\n$", "too big bulk count string"),
        ] {
            let mut input = start.to_vec();
            input.resize(LINE_MAX_BYTES + 100, b'1');
            assert_eq!(error_of(&input), Some(format!("ERR Protocol error: {words}")));
        }
    }

    #[test]
    fn a_declared_size_takes_no_memory() {
        let mut parser = Parser::default();
        let mut input = BytesMut::from(&b"*1048576\r\n$16777216\r\nabc"[..]);
        assert_eq!(parser.next(&mut input), Ok(None));
        assert!(input.capacity() < 1024 && parser.held_bytes() < 1024);
    }

    #[test]
    fn a_request_is_bounded_as_a_whole() {
        let mut input = b"*3\r\n".to_vec();
        for _ in 0..2 {
            input.extend_from_slice(b"$9000000\r\n");
            input.resize(input.len() + 9_000_000, b'x');
            input.extend_from_slice(b"\r\n");
        }
        assert!(error_of(&input).unwrap().contains("too big request"));
    }

    fn any_stream() -> impl Strategy<Value = Vec<u8>> {
        let request = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..4)
            .prop_map(|words| {
                let mut out = format!("*{}\r\n", words.len()).into_bytes();
                for word in words {
                    out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
                    out.extend_from_slice(&word);
                    out.extend_from_slice(b"\r\n");
                }
                out
            });
        let junk = prop::collection::vec(
            prop::sample::select(b"*$-0123456789\r\n\"'\\ abx\0".to_vec()),
            0..12,
        );
        prop::collection::vec(prop_oneof![3 => request, 1 => junk], 0..6)
            .prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn however_the_stream_is_cut_it_reads_the_same(
            stream in any_stream(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        ) {
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            places.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for place in places {
                pieces.push(&stream[from..place]);
                from = place;
            }
            pieces.push(&stream[from..]);
            prop_assert_eq!(read_all(&pieces), read_all(&[&stream]));
        }

        #[test]
        fn junk_never_panics(junk in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_all(&[&junk]);
        }
    }
}
