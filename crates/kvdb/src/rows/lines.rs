//! Lines of a file with their numbers, never longer than a limit.

use bytes::Bytes;
use std::io::{self, BufRead, Read as _};

/// A line without its newline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// From 1.
    pub(crate) number: u64,
    pub(crate) content: Bytes,
    /// Bytes of the file up to and with it.
    pub(crate) end: u64,
}

/// Reads lines. The last may lack its newline.
pub(crate) struct Lines<R> {
    source: R,
    max_bytes: usize,
    number: u64,
    end: u64,
}

impl<R: BufRead> Lines<R> {
    /// Lines of at most `max_bytes`: a file without newlines mustn't fill the memory.
    pub(crate) fn new(source: R, max_bytes: usize) -> Self {
        Lines { source, max_bytes, number: 0, end: 0 }
    }

    /// The next line; `None` at the end.
    ///
    /// # Errors
    /// What reading gives, or [`io::ErrorKind::InvalidData`] for a line that is too long.
    pub(crate) fn next(&mut self) -> io::Result<Option<Line>> {
        let mut content = Vec::new();
        let most = (self.max_bytes as u64).saturating_add(1);
        let read = (&mut self.source).take(most).read_until(b'\n', &mut content)?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        self.end += read as u64;
        if content.last() == Some(&b'\n') {
            content.pop();
        } else if content.len() > self.max_bytes {
            let words = format!("line {} has more than {} bytes", self.number, self.max_bytes);
            return Err(io::Error::new(io::ErrorKind::InvalidData, words));
        }
        Ok(Some(Line { number: self.number, content: content.into(), end: self.end }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_and_the_last_may_lack_its_newline() {
        let mut lines = Lines::new(&b"a\n\nbc"[..], 2);
        let mut next = || lines.next().unwrap().map(|line| (line.number, line.content, line.end));
        assert_eq!(next(), Some((1, Bytes::from("a"), 2)));
        assert_eq!(next(), Some((2, Bytes::new(), 3)));
        assert_eq!(next(), Some((3, Bytes::from("bc"), 5)));
        assert_eq!(next(), None);
    }

    #[test]
    fn a_line_that_is_too_long_is_an_error_with_its_number() {
        let mut lines = Lines::new(&b"ab\nabc\n"[..], 2);
        assert!(lines.next().is_ok());
        let error = lines.next().unwrap_err();
        assert_eq!(error.to_string(), "line 2 has more than 2 bytes");
    }
}
