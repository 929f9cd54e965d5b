//! Sizes that every layer agrees on. Checked at the gateway before anything is sent and again by
//! the node, so that a forged request meets the same wall.

use crate::refusal::Refusal;
use serde::{Deserialize, Serialize};

/// Longest decimal number, as text, that a string action works with: as in Redis.
pub const FLOAT_TEXT_MAX_BYTES: usize = 5 * 1024 - 1;

/// Most bytes of previous values and replies in the answers of one write, each of which alone has less: so
/// that they fit in a message. A part of the state machine: fixed.
pub const ANSWER_MAX_BYTES: usize = 9 << 20;

/// Limits on what a client may send. Bytes throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Longest user key. Raising it makes every index block and routing message larger.
    pub key_max_bytes: usize,
    /// Largest value. Raising it lengthens the longest pause that one entry causes in a log sync.
    pub value_max_bytes: usize,
    /// Largest request, all its keys and values together. Raising it raises the memory that one
    /// connection may hold.
    pub request_max_bytes: usize,
    /// Most operations or keys in one request.
    pub request_max_items: usize,
    /// Longest client id in a request id.
    pub client_id_max_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            key_max_bytes: 16 * 1024,
            value_max_bytes: 8 * 1024 * 1024,
            request_max_bytes: 16 * 1024 * 1024,
            request_max_items: 10_000,
            client_id_max_bytes: 64,
        }
    }
}

impl Limits {
    /// Checks the length of a user key.
    ///
    /// # Errors
    /// [`Refusal::InvalidArgument`] naming field and limit if it is empty or too long.
    pub fn check_key(&self, key: &[u8]) -> Result<(), Refusal> {
        if key.is_empty() {
            return Err(Refusal::invalid("key", "is empty; a key has at least 1 byte"));
        }
        if key.len() > self.key_max_bytes {
            return Err(Refusal::invalid(
                "key",
                format!("is {} bytes; the limit is {}", key.len(), self.key_max_bytes),
            ));
        }
        Ok(())
    }

    /// Checks the length of a value.
    ///
    /// # Errors
    /// [`Refusal::InvalidArgument`] naming field and limit if it is too long.
    pub fn check_value(&self, value: &[u8]) -> Result<(), Refusal> {
        if value.len() > self.value_max_bytes {
            return Err(Refusal::invalid(
                "value",
                format!("is {} bytes; the limit is {}", value.len(), self.value_max_bytes),
            ));
        }
        Ok(())
    }
}
