//! `key TAB value`: everything after the first tab is the value.

use super::{Row, RowError};
use bytes::Bytes;

pub(super) fn parse(line: &Bytes) -> Result<Row, RowError> {
    let Some(tab) = line.iter().position(|byte| *byte == b'\t') else {
        return Err(RowError::new("there is no tab between key and value"));
    };
    Ok(Row { key: line.slice(..tab), value: line.slice(tab + 1..), ttl_ms: None })
}

pub(super) fn write(row: &Row, out: &mut Vec<u8>) -> Result<(), RowError> {
    if row.key.iter().any(|byte| matches!(byte, b'\t' | b'\n')) {
        return Err(RowError::new("the key contains a tab or a newline"));
    }
    if row.value.contains(&b'\n') {
        return Err(RowError::new("the value contains a newline"));
    }
    if row.ttl_ms.is_some() {
        return Err(RowError::new("the key expires, which TSV has no place for"));
    }
    out.extend_from_slice(&row.key);
    out.push(b'\t');
    out.extend_from_slice(&row.value);
    out.push(b'\n');
    Ok(())
}
