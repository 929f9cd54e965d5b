//! `key TAB value`: everything after the first tab is the value, but for CR at the end of the line.

use super::{BYTE_ORDER_MARK, Content, Row, RowError};
use bytes::Bytes;

pub(super) fn parse(line: &Bytes) -> Result<Row, RowError> {
    let Some(tab) = line.iter().position(|byte| *byte == b'\t') else {
        return Err(RowError::new("there is no tab between key and value"));
    };
    let end = line.len() - usize::from(line[tab + 1..].ends_with(b"\r"));
    let content = Content::Value(line.slice(tab + 1..end));
    Ok(Row { key: line.slice(..tab), content, ttl_ms: None })
}

pub(super) fn write(row: &Row, out: &mut Vec<u8>) -> Result<(), RowError> {
    if row.key.iter().any(|byte| matches!(byte, b'\t' | b'\n')) {
        return Err(RowError::new("the key contains a tab or a newline"));
    }
    if row.key.starts_with(BYTE_ORDER_MARK) {
        return Err(RowError::new("the key begins with a byte order mark"));
    }
    let value = match &row.content {
        Content::Value(value) => value,
        Content::Part(part) => {
            return Err(RowError::new(format!("the key holds a {}", part.kind.name())));
        }
    };
    if value.ends_with(b"\r") {
        return Err(RowError::new("the value ends with a carriage return"));
    }
    if value.contains(&b'\n') {
        return Err(RowError::new("the value contains a newline"));
    }
    if row.ttl_ms.is_some() {
        return Err(RowError::new("the key expires, which TSV has no place for"));
    }
    out.extend_from_slice(&row.key);
    out.push(b'\t');
    out.extend_from_slice(value);
    out.push(b'\n');
    Ok(())
}
