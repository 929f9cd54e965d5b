//! Rows in files: what `import` reads and `export` writes.
//!
//! | format | a line is | can't hold |
//! |---|---|---|
//! | TSV | key, tab, value | a key with a tab or a newline, a value with a newline or with CR at its end, an expiry |
//! | JSON lines | an object with `key` or `key_b64`, `value` or `value_b64`, maybe `ttl_ms`; of a collection `type`, `items` or `items_b64` and maybe `at` and `items_ttl_ms` instead of a value | – |
//!
//! TSV is bytes: nothing is escaped, nothing needs to be UTF-8, and a value may contain tabs, so
//! that what is imported comes out again byte for byte. What it can't hold is refused at export,
//! never bent. A line may end in CR LF, and a byte order mark before the first is left out.

mod jsonl;
mod lines;
mod tsv;

pub(crate) use jsonl::insert_bytes;
pub(crate) use lines::{Line, Lines};

use bytes::Bytes;
use serde::Deserialize;
use std::path::Path;
use thiserror::Error;

/// What some programs put before the first byte of a text file.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) key: Bytes,
    pub(crate) content: Content,
    /// Milliseconds to live; for ever if `None`.
    pub(crate) ttl_ms: Option<u64>,
}

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A string.
    Value(Bytes),
    /// A part of a collection.
    Part(Part),
}

/// Elements of a collection that follow each other: a large one takes several rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) kind: Kind,
    /// How many elements stand in rows before this one; with 0 the key begins anew.
    pub(crate) at: u64,
    /// Of a hash field and value in turn, of a sorted set member and score.
    pub(crate) items: Vec<Bytes>,
    /// Of a hash whose fields expire by themselves: milliseconds to live of each, 0 for ever. Otherwise
    /// empty.
    pub(crate) ttls_ms: Vec<u64>,
}

/// The type of a collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Hash,
    List,
    Set,
    Zset,
}

impl Kind {
    pub(crate) const ALL: [Kind; 4] = [Kind::Hash, Kind::List, Kind::Set, Kind::Zset];

    /// As Redis calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Hash => "hash",
            Kind::List => "list",
            Kind::Set => "set",
            Kind::Zset => "zset",
        }
    }

    /// How many items an element has.
    pub(crate) fn width(self) -> usize {
        match self {
            Kind::Hash | Kind::Zset => 2,
            Kind::List | Kind::Set => 1,
        }
    }
}

/// How rows are written in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// `key TAB value`
    Tsv,
    /// One JSON object a line
    Jsonl,
}

/// A line that isn't a row, or a row that can't be a line. Says what is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub(crate) struct RowError(String);

impl RowError {
    fn new(problem: impl Into<String>) -> Self {
        RowError(problem.into())
    }
}

impl Format {
    /// The format that a file's name tells of.
    pub(crate) fn of_name(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "tsv" | "txt" | "tab" => Some(Format::Tsv),
            "jsonl" | "ndjson" | "json" => Some(Format::Jsonl),
            _ => None,
        }
    }

    /// The format that a first line looks like.
    pub(crate) fn of_line(line: &[u8]) -> Self {
        match jsonl::parse(line) {
            Ok(_) => Format::Jsonl,
            Err(_) if line.trim_ascii_start().starts_with(b"{") && !line.contains(&b'\t') => {
                Format::Jsonl
            }
            Err(_) => Format::Tsv,
        }
    }

    /// Reads a line without its newline.
    ///
    /// # Errors
    /// [`RowError`] if it isn't a row, or its key is empty.
    pub(crate) fn parse(self, line: &Bytes) -> Result<Row, RowError> {
        let row = match self {
            Format::Tsv => tsv::parse(line)?,
            Format::Jsonl => jsonl::parse(line)?,
        };
        match row.key.is_empty() {
            true => Err(RowError::new("the key is empty")),
            false => Ok(row),
        }
    }

    /// Appends a row and a newline.
    ///
    /// # Errors
    /// [`RowError`] if the format can't hold it; then nothing is appended.
    pub(crate) fn write(self, row: &Row, out: &mut Vec<u8>) -> Result<(), RowError> {
        match self {
            Format::Tsv => tsv::write(row, out),
            Format::Jsonl => {
                jsonl::write(row, out);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_row() -> impl Strategy<Value = Row> {
        let bytes = |least| {
            prop_oneof![
                prop::collection::vec(any::<u8>(), least..30),
                prop::collection::vec(
                    prop::sample::select(b"\t\n\r\"\\{}a\xff".to_vec()),
                    least..9
                ),
                "[a-zé ]{1,9}".prop_map(String::into_bytes),
            ]
        };
        let items = prop::collection::vec(bytes(0), 0..5);
        let part = (prop::sample::select(Kind::ALL.to_vec()), any::<u64>(), items).prop_map(
            |(kind, at, items)| {
                let items = items.iter().flat_map(|item| vec![item.clone(); kind.width()]);
                {
                    let items: Vec<Bytes> = items.map(Bytes::from).collect();
                    let expires = kind == Kind::Hash && at % 2 == 1;
                    let count = if expires { items.len() / 2 } else { 0 };
                    let ttls_ms = (0..count as u64).map(|number| number * 7).collect();
                    Content::Part(Part { kind, at, items, ttls_ms })
                }
            },
        );
        let content = prop_oneof![bytes(0).prop_map(|value| Content::Value(value.into())), part];
        (bytes(1), content, prop::option::of(1u64..)).prop_map(|(key, content, ttl_ms)| Row {
            key: key.into(),
            content,
            ttl_ms,
        })
    }

    /// Writes rows as a file and reads them again.
    fn there_and_back(format: Format, rows: &[Row]) -> Vec<Row> {
        let mut file = Vec::new();
        for row in rows {
            format.write(row, &mut file).unwrap();
        }
        let mut lines = Lines::new(&file[..], usize::MAX);
        let mut back = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            back.push(format.parse(&line.content).unwrap());
        }
        back
    }

    proptest! {
        #[test]
        fn json_lines_hold_every_row(rows in prop::collection::vec(any_row(), 0..9)) {
            prop_assert_eq!(there_and_back(Format::Jsonl, &rows), rows);
        }

        #[test]
        fn tsv_holds_every_row_that_it_does_not_refuse(rows in prop::collection::vec(any_row(), 0..9)) {
            let held: Vec<Row> = rows
                .into_iter()
                .filter(|row| Format::Tsv.write(row, &mut Vec::new()).is_ok())
                .collect();
            prop_assert_eq!(there_and_back(Format::Tsv, &held), held);
        }

        #[test]
        fn a_tsv_file_comes_out_as_it_went_in(lines in prop::collection::vec("[^\t\n]{1,9}\t[^\n]{0,9}\n", 0..9)) {
            let file = lines.concat();
            // A carriage return at the end of a line belongs to the line's end, and a byte order mark
            // at the start to the file.
            prop_assume!(!file.contains(['\r', '\u{feff}']));
            let mut out = Vec::new();
            for line in file.lines() {
                let row = Format::Tsv.parse(&Bytes::copy_from_slice(line.as_bytes())).unwrap();
                Format::Tsv.write(&row, &mut out).unwrap();
            }
            prop_assert_eq!(String::from_utf8(out).unwrap(), file);
        }

        #[test]
        fn junk_lines_never_panic(junk in prop::collection::vec(any::<u8>(), 0..64)) {
            let junk = Bytes::from(junk);
            let _ = Format::of_line(&junk);
            let _ = Format::Tsv.parse(&junk);
            let _ = Format::Jsonl.parse(&junk);
        }
    }

    #[test]
    fn the_format_shows_in_the_name_or_the_first_line() {
        assert_eq!(Format::of_name(Path::new("a.TSV")), Some(Format::Tsv));
        assert_eq!(Format::of_name(Path::new("a.jsonl")), Some(Format::Jsonl));
        assert_eq!(Format::of_name(Path::new("a")), None);
        assert_eq!(Format::of_line(br#"{"key":"a","value":"b"}"#), Format::Jsonl);
        assert_eq!(Format::of_line(br#"{"kye":"a"}"#), Format::Jsonl);
        assert_eq!(Format::of_line(b"{user}:1\tvalue"), Format::Tsv);
    }
}
