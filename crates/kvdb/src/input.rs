//! Keys and values from the command line, from files and from standard input. All are bytes.

use crate::exit::Failure;
use bytes::Bytes;
use kvdb_model::Limits;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// Hands out the words of a command line, and standard input at most once.
pub(crate) struct Words {
    rest: std::vec::IntoIter<OsString>,
    stdin_taken: bool,
}

impl Words {
    pub(crate) fn new(words: Vec<OsString>) -> Self {
        Words { rest: words.into_iter(), stdin_taken: false }
    }

    /// A key: from `file` if given, else the next word; `-` is standard input.
    pub(crate) fn key(&mut self, file: Option<&Path>) -> Result<Bytes, Failure> {
        self.take("KEY", file, Limits::default().key_max_bytes)
    }

    /// A value, in the same way.
    pub(crate) fn value(&mut self, file: Option<&Path>) -> Result<Bytes, Failure> {
        self.take("VALUE", file, Limits::default().value_max_bytes)
    }

    /// That no word is left.
    pub(crate) fn end(mut self) -> Result<(), Failure> {
        match self.rest.next() {
            None => Ok(()),
            Some(word) => Err(Failure::Usage(format!(
                "there is an argument too many: `{}`; quote values that contain spaces",
                word.display()
            ))),
        }
    }

    fn take(
        &mut self,
        what: &'static str,
        file: Option<&Path>,
        limit: usize,
    ) -> Result<Bytes, Failure> {
        let path = match file {
            Some(path) => path.to_owned(),
            None => match self.rest.next() {
                Some(word) if word == "-" => PathBuf::from("-"),
                Some(word) => return Ok(Bytes::from(word.into_vec())),
                None => return Err(Failure::Usage(format!("{what} is missing; see --help"))),
            },
        };
        if path.as_os_str() != "-" {
            let place = path.display().to_string();
            let file = File::open(&path).map_err(|error| Failure::reading(&place, &error))?;
            return read_bounded(file, &place, limit);
        }
        if std::mem::replace(&mut self.stdin_taken, true) {
            return Err(Failure::Usage("standard input can be only one of them".into()));
        }
        read_bounded(io::stdin().lock(), "standard input", limit)
    }
}

/// Everything, unless it is more than the cluster takes: the rest isn't even read.
fn read_bounded(source: impl Read, place: &str, limit: usize) -> Result<Bytes, Failure> {
    let mut content = Vec::new();
    source
        .take(limit as u64 + 1)
        .read_to_end(&mut content)
        .map_err(|error| Failure::reading(place, &error))?;
    if content.len() > limit {
        return Err(Failure::Refused(format!("{place} has more than {limit} bytes, the limit")));
    }
    Ok(Bytes::from(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Words {
        Words::new(words.iter().map(OsString::from).collect())
    }

    #[test]
    fn words_are_taken_in_order_and_none_is_left() {
        let mut words = words(&["k", "v", "more"]);
        assert_eq!(words.key(None), Ok(Bytes::from("k")));
        assert_eq!(words.value(None), Ok(Bytes::from("v")));
        assert!(words.end().is_err());
    }

    #[test]
    fn a_missing_word_is_named() {
        assert_eq!(words(&[]).key(None), Err(Failure::Usage("KEY is missing; see --help".into())));
    }

    #[test]
    fn a_file_takes_the_place_of_a_word() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"a\xff\n").unwrap();
        let mut words = words(&["v"]);
        assert_eq!(words.key(Some(file.path())), Ok(Bytes::from_static(b"a\xff\n")));
        assert_eq!(words.value(None), Ok(Bytes::from("v")));
        assert_eq!(words.end(), Ok(()));
    }

    #[test]
    fn a_file_that_is_too_long_is_refused() {
        let refused = read_bounded(&[0u8; 9][..], "big.bin", 8).unwrap_err();
        assert_eq!(refused, Failure::Refused("big.bin has more than 8 bytes, the limit".into()));
        assert!(read_bounded(&[0u8; 8][..], "big.bin", 8).is_ok());
    }
}
