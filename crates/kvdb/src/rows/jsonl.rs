//! One JSON object a line. Bytes that aren't UTF-8 go as base64 (standard alphabet, padded).

use super::{Row, RowError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};

/// Puts bytes into an object: as `name` if they are text, else as `name_b64`.
pub(crate) fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: &Bytes) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_b64"), STANDARD.encode(bytes).into()),
    };
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    key: Option<String>,
    key_b64: Option<String>,
    value: Option<String>,
    value_b64: Option<String>,
    ttl_ms: Option<u64>,
}

pub(super) fn parse(line: &[u8]) -> Result<Row, RowError> {
    let fields: Fields =
        serde_json::from_slice(line).map_err(|error| RowError::new(in_line(&error)))?;
    Ok(Row {
        key: either("key", fields.key, fields.key_b64)?,
        value: either("value", fields.value, fields.value_b64)?,
        ttl_ms: fields.ttl_ms.filter(|ttl_ms| *ttl_ms != 0),
    })
}

/// serde_json counts lines within what it was given, which is always one.
fn in_line(error: &serde_json::Error) -> String {
    let words = error.to_string();
    let column = error.column();
    match words.split_once(" at line ") {
        Some((problem, _)) => format!("{problem} (column {column})"),
        None => words,
    }
}

fn either(name: &str, text: Option<String>, b64: Option<String>) -> Result<Bytes, RowError> {
    match (text, b64) {
        (Some(text), None) => Ok(Bytes::from(text)),
        (None, Some(b64)) => match STANDARD.decode(b64) {
            Ok(bytes) => Ok(Bytes::from(bytes)),
            Err(error) => Err(RowError::new(format!("{name}_b64 is not base64: {error}"))),
        },
        (None, None) => Err(RowError::new(format!("there is neither {name} nor {name}_b64"))),
        (Some(_), Some(_)) => Err(RowError::new(format!("there are both {name} and {name}_b64"))),
    }
}

pub(super) fn write(row: &Row, out: &mut Vec<u8>) {
    let mut object = Map::new();
    insert_bytes(&mut object, "key", &row.key);
    insert_bytes(&mut object, "value", &row.value);
    if let Some(ttl_ms) = row.ttl_ms {
        object.insert("ttl_ms".to_owned(), ttl_ms.into());
    }
    out.extend_from_slice(Value::Object(object).to_string().as_bytes());
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_line_is_said() {
        let problem = |line: &str| parse(line.as_bytes()).unwrap_err().to_string();
        assert_eq!(problem(r#"{"value":"b"}"#), "there is neither key nor key_b64");
        assert_eq!(
            problem(r#"{"key":"a","key_b64":"YQ==","value":"b"}"#),
            "there are both key and key_b64"
        );
        assert!(problem(r#"{"key":"a","value_b64":"?"}"#).starts_with("value_b64 is not base64"));
        assert!(problem(r#"{"key":"a","ttl":5}"#).contains("unknown field `ttl`"));
        assert!(problem(r#"{"key":"a""#).ends_with("(column 10)"));
    }
}
