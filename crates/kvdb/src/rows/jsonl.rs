//! One JSON object a line. Bytes that aren't UTF-8 go as base64 (standard alphabet, padded).

use super::{Content, Kind, Part, Row, RowError};
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
    #[serde(rename = "type")]
    kind: Option<Kind>,
    #[serde(default)]
    at: u64,
    items: Option<Vec<String>>,
    items_b64: Option<Vec<String>>,
    items_ttl_ms: Option<Vec<u64>>,
}

pub(super) fn parse(line: &[u8]) -> Result<Row, RowError> {
    let fields: Fields =
        serde_json::from_slice(line).map_err(|error| RowError::new(in_line(&error)))?;
    let content = match fields.kind {
        None if fields.items.is_some()
            || fields.items_b64.is_some()
            || fields.items_ttl_ms.is_some() =>
        {
            return Err(RowError::new("items need a type: hash, list, set or zset"));
        }
        None => Content::Value(either("value", fields.value, fields.value_b64)?),
        Some(_) if fields.value.is_some() || fields.value_b64.is_some() => {
            return Err(RowError::new("a row with a type has items instead of a value"));
        }
        Some(kind) => {
            let part = part(kind, fields.at, fields.items, fields.items_b64)?;
            Content::Part(with_lifetimes(part, fields.items_ttl_ms.unwrap_or_default())?)
        }
    };
    Ok(Row {
        key: either("key", fields.key, fields.key_b64)?,
        content,
        ttl_ms: fields.ttl_ms.filter(|ttl_ms| *ttl_ms != 0),
    })
}

fn part(
    kind: Kind,
    at: u64,
    text: Option<Vec<String>>,
    b64: Option<Vec<String>>,
) -> Result<Part, RowError> {
    let items: Vec<Bytes> = match (text, b64) {
        (Some(text), None) => text.into_iter().map(Bytes::from).collect(),
        (None, Some(b64)) => {
            let decoded = b64.into_iter().map(|item| STANDARD.decode(item).map(Bytes::from));
            decoded.collect::<Result<_, _>>().map_err(|error| {
                RowError::new(format!("items_b64 holds what is not base64: {error}"))
            })?
        }
        (None, None) => return Err(RowError::new("there is neither items nor items_b64")),
        (Some(_), Some(_)) => return Err(RowError::new("there are both items and items_b64")),
    };
    if !items.len().is_multiple_of(kind.width()) {
        let problem = format!("a {} has items in pairs, and here are {}", kind.name(), items.len());
        return Err(RowError::new(problem));
    }
    Ok(Part { kind, at, items, ttls_ms: vec![] })
}

fn with_lifetimes(part: Part, ttls_ms: Vec<u64>) -> Result<Part, RowError> {
    let count = part.items.len() / part.kind.width();
    if !ttls_ms.is_empty() && part.kind != Kind::Hash {
        return Err(RowError::new("items_ttl_ms is for the fields of a hash alone"));
    }
    if !ttls_ms.is_empty() && ttls_ms.len() != count {
        let problem = format!("items_ttl_ms has {} numbers for {count} fields", ttls_ms.len());
        return Err(RowError::new(problem));
    }
    Ok(Part { ttls_ms, ..part })
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
    match &row.content {
        Content::Value(value) => insert_bytes(&mut object, "value", value),
        Content::Part(part) => insert_part(&mut object, part),
    }
    if let Some(ttl_ms) = row.ttl_ms {
        object.insert("ttl_ms".to_owned(), ttl_ms.into());
    }
    out.extend_from_slice(Value::Object(object).to_string().as_bytes());
    out.push(b'\n');
}

fn insert_part(object: &mut Map<String, Value>, part: &Part) {
    object.insert("type".to_owned(), part.kind.name().into());
    if part.at > 0 {
        object.insert("at".to_owned(), part.at.into());
    }
    let text: Option<Vec<&str>> =
        part.items.iter().map(|item| std::str::from_utf8(item).ok()).collect();
    match text {
        Some(text) => object.insert("items".to_owned(), text.into()),
        None => {
            let items: Vec<String> = part.items.iter().map(|item| STANDARD.encode(item)).collect();
            object.insert("items_b64".to_owned(), items.into())
        }
    };
    if !part.ttls_ms.is_empty() {
        object.insert("items_ttl_ms".to_owned(), part.ttls_ms.clone().into());
    }
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
        assert_eq!(problem(r#"{"key":"a","type":"set"}"#), "there is neither items nor items_b64");
        assert_eq!(
            problem(r#"{"key":"a","type":"hash","items":["f"]}"#),
            "a hash has items in pairs, and here are 1"
        );
        assert_eq!(
            problem(r#"{"key":"a","type":"hash","items":["f","v"],"items_ttl_ms":[1,2]}"#),
            "items_ttl_ms has 2 numbers for 1 fields"
        );
        assert!(
            problem(r#"{"key":"a","type":"set","items":["m"],"items_ttl_ms":[1]}"#)
                .contains("for the fields of a hash alone")
        );
        assert!(problem(r#"{"key":"a","value":"b","items_ttl_ms":[1]}"#).contains("need a type"));
        assert!(problem(r#"{"key":"a","type":"stream","items":[]}"#).contains("unknown variant"));
        assert!(problem(r#"{"key":"a","items":[]}"#).contains("need a type"));
        assert!(problem(r#"{"key":"a","type":"set","value":"v"}"#).contains("instead of a value"));
        assert!(problem(r#"{"key":"a""#).ends_with("(column 10)"));
    }
}
