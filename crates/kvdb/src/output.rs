//! Standard output: bytes as they are, as text that a terminal survives, as JSON, as tables.

use crate::exit::Failure;
pub(crate) use crate::rows::insert_bytes;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write};

/// Buffered standard output. Flushed by [`Output::finish`], so that an error isn't lost.
pub(crate) struct Output {
    out: BufWriter<Stdout>,
}

impl Output {
    pub(crate) fn new() -> Self {
        Output { out: BufWriter::new(io::stdout()) }
    }

    /// Exactly these bytes.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes).map_err(failed)
    }

    /// One line.
    pub(crate) fn line(&mut self, text: impl AsRef<str>) -> Result<(), Failure> {
        writeln!(self.out, "{}", text.as_ref()).map_err(failed)
    }

    /// One object on one line.
    pub(crate) fn json(&mut self, object: &Value) -> Result<(), Failure> {
        self.line(object.to_string())
    }

    /// One document over several lines.
    pub(crate) fn document(&mut self, document: &Value) -> Result<(), Failure> {
        self.line(format!("{document:#}"))
    }

    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush().map_err(failed)
    }

    /// The end of the output.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        self.flush()
    }
}

fn failed(error: io::Error) -> Failure {
    Failure::writing("standard output", &error)
}

/// Whether somebody watches standard error: then there are progress bars.
pub(crate) fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// Bytes in JSON: text where they are UTF-8, `{"b64": …}` where they aren't.
pub(crate) fn text_or_base64(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({ "b64": STANDARD.encode(bytes) }),
    }
}

/// Bytes as one line of text that says exactly which bytes they are: what isn't printable is
/// escaped as in `\n`, `\t` or `\xff`, and so is the backslash.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => out.push_str("\\\\"),
                character if character.is_control() => out.extend(character.escape_default()),
                character => out.push(character),
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// A value as `get` shows it: text as it is, anything else escaped.
pub(crate) fn shown(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) if text.chars().all(is_text) => text.to_owned(),
        _ => printable(value),
    }
}

fn is_text(character: char) -> bool {
    !character.is_control() || matches!(character, '\n' | '\t')
}

/// Columns that line up, each as wide as its widest cell.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let lines: Vec<&Vec<String>> = std::iter::once(&head).chain(rows).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..head.len()).filter_map(width).collect();
    let mut out = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    out.pop();
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use serde_json::Map;

    #[test]
    fn bytes_are_shown_without_harm_to_the_terminal() {
        assert_eq!(printable("naïve".as_bytes()), "naïve");
        assert_eq!(printable(b"a\tb\n\\ \x1b[31m \xff"), "a\\tb\\n\\\\ \\u{1b}[31m \\xff");
        assert_eq!(shown(b"two\nlines"), "two\nlines");
        assert_eq!(shown(b"\x1b[31m"), "\\u{1b}[31m");
    }

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["1".into(), "a".into()], vec!["200".into(), "é".into()]];
        assert_eq!(table(&["ID", "ZONE"], &rows), "ID   ZONE\n1    a\n200  é");
    }

    #[test]
    fn bytes_that_are_not_text_become_base64() {
        let mut object = Map::new();
        insert_bytes(&mut object, "key", &Bytes::from("k"));
        insert_bytes(&mut object, "value", &Bytes::from_static(b"\xff"));
        assert_eq!(Value::Object(object).to_string(), r#"{"key":"k","value_b64":"/w=="}"#);
    }
}
