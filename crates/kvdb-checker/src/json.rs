//! Histories as JSON lines: one event a line, for another judge, another day, or `grep`.
//!
//! ```text
//! {"event":"call","op":0,"client":1,"time":10,"do":"put","key":"a","value":"x"}
//! {"event":"call","op":1,"client":2,"time":12,"do":"get","key":"a"}
//! {"event":"ok","op":0,"time":15,"answer":{"written":{"applied":true,"version":7}}}
//! {"event":"ok","op":1,"time":16,"answer":{"got":{"value":"x","version":7}}}
//! {"event":"call","op":2,"client":1,"time":20,"do":"put","key":"a","value":"y","condition":{"if_value":"x"}}
//! {"event":"unknown","op":2}
//! ```
//!
//! | field | of | what |
//! |---|---|---|
//! | `event` | all | `call`, `ok`, `unknown`, `fail` (certainly not applied) or `watch` |
//! | `op` | all but `watch` | a number that names the operation, new with each `call` |
//! | `client` | `call` | a number |
//! | `time` | `call`, `ok` | a logical time: what happens at equal times is concurrent |
//! | `request` | `call` | optional: `{"client":1,"sequence":7}`; the same on every try of one request |
//! | `do` | `call` | `get`, `put`, `delete`, `increment` (with `key`, `value`, `delta`, `condition`), `add` (`key`, `element`), `members` (`key`), `transaction` (`steps`: `{"append":{"key":…,"element":…}}`, `{"read":{"key":…}}`) |
//! | `condition` | `call` | optional: `"if_absent"`, `"if_present"`, `{"if_value":…}` |
//! | `answer` | `ok` | `{"got":{"value":…,"version":…}}` (`null` for an absent key), `{"written":{"applied":…,"previous":…,"counter":…,"version":…}}` (each optional; `previous` is `"absent"` or `{"value":…}`), `"wrong_value"`, `"done"`, `{"members":[…]}`, `{"lists":[[…],…]}` |
//! | `watch` | `watch` | a number that names the watch, with one of the forms of [`crate::watch::Delivery`] |
//!
//! Keys and values are strings, or `{"b64":"…"}` where the bytes aren't UTF-8. A line is one event;
//! empty lines are skipped; an operation without an end is of unknown outcome, so a file that was
//! cut off by a crash after a whole line is a history.

use crate::history::{Event, EventError, History};
use std::io::{BufRead, Write};
use thiserror::Error;

/// Longest line that is read, in bytes: above two of the largest values that KvDB takes, in base64.
pub const LINE_MAX_BYTES: u64 = 32 * 1024 * 1024;

/// Why a history can't be read. Lines count from 1.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The input can't be read.
    #[error("line {line} can't be read: {source}")]
    Io {
        /// Where.
        line: u64,
        /// Why.
        source: std::io::Error,
    },
    /// A line is too long.
    #[error("line {line} is longer than {LINE_MAX_BYTES} bytes")]
    TooLong {
        /// Where.
        line: u64,
    },
    /// A line isn't an event.
    #[error("line {line} is not an event: {source}")]
    NotAnEvent {
        /// Where.
        line: u64,
        /// Why.
        source: serde_json::Error,
    },
    /// An event doesn't fit those before it.
    #[error("line {line}: {source}")]
    Misfit {
        /// Where.
        line: u64,
        /// Why.
        source: EventError,
    },
}

/// Reads a history to the end of `input`.
///
/// # Errors
/// [`ReadError`], which names the line.
pub fn read(mut input: impl BufRead) -> Result<History, ReadError> {
    let mut history = History::new();
    let mut buffer = Vec::new();
    for line in 1.. {
        buffer.clear();
        let mut bounded = std::io::Read::take(&mut input, LINE_MAX_BYTES + 1);
        let length = bounded
            .read_until(b'\n', &mut buffer)
            .map_err(|source| ReadError::Io { line, source })?;
        if length == 0 {
            break;
        }
        if length as u64 > LINE_MAX_BYTES {
            return Err(ReadError::TooLong { line });
        }
        if buffer.trim_ascii().is_empty() {
            continue;
        }
        let event = serde_json::from_slice(&buffer)
            .map_err(|source| ReadError::NotAnEvent { line, source })?;
        history.push(event).map_err(|source| ReadError::Misfit { line, source })?;
    }
    Ok(history)
}

/// Writes one event and a line feed: for a test that records as it goes. The writer should be
/// buffered.
///
/// # Errors
/// Those of `output`.
pub fn write_event(output: &mut impl Write, event: &Event) -> std::io::Result<()> {
    serde_json::to_writer(&mut *output, event)?;
    output.write_all(b"\n")
}

/// Writes a whole history. The writer should be buffered.
///
/// # Errors
/// Those of `output`.
pub fn write(output: &mut impl Write, history: &History) -> std::io::Result<()> {
    history.events().iter().try_for_each(|event| write_event(output, event))
}
