//! Keys and values: bytes that are cheap to share and pleasant to read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::sync::Arc;

/// A key or a value.
///
/// In JSON it is a string where the bytes are UTF-8, and `{"b64": "…"}` (standard alphabet, padded)
/// where they aren't.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Data(Arc<[u8]>);

impl Data {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The number that the bytes spell: decimal text that fits 64 bits, as counters are kept.
    pub fn as_number(&self) -> Option<i64> {
        std::str::from_utf8(&self.0).ok()?.parse().ok()
    }
}

impl From<&[u8]> for Data {
    fn from(bytes: &[u8]) -> Self {
        Data(bytes.into())
    }
}

impl From<Vec<u8>> for Data {
    fn from(bytes: Vec<u8>) -> Self {
        Data(bytes.into())
    }
}

impl From<&str> for Data {
    fn from(text: &str) -> Self {
        Data(text.as_bytes().into())
    }
}

impl From<String> for Data {
    fn from(text: String) -> Self {
        Data(text.into_bytes().into())
    }
}

impl fmt::Display for Data {
    /// As a quoted string with escapes, cut after 64 bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shown, rest) = self.0.split_at(self.0.len().min(64));
        write!(f, "\"{}\"", shown.escape_ascii())?;
        if rest.is_empty() { Ok(()) } else { write!(f, "… ({} bytes)", self.0.len()) }
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Json {
    Text(String),
    Binary { b64: String },
}

impl Serialize for Data {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => Json::Binary { b64: STANDARD.encode(&self.0) }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Json::deserialize(deserializer)? {
            Json::Text(text) => Ok(text.into()),
            Json::Binary { b64 } => Ok(STANDARD.decode(b64).map_err(D::Error::custom)?.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_survive_json(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let data = Data::from(bytes);
            let json = serde_json::to_string(&data).unwrap();
            prop_assert_eq!(serde_json::from_str::<Data>(&json).unwrap(), data);
        }
    }

    #[test]
    fn text_stays_text_in_json_and_long_values_are_cut_in_messages() {
        assert_eq!(serde_json::to_string(&Data::from("käse")).unwrap(), "\"käse\"");
        let long = Data::from(vec![b'x'; 100]).to_string();
        assert!(long.ends_with("x\"… (100 bytes)"), "{long}");
    }
}
