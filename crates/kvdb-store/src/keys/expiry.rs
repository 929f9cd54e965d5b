//! When a key expires, and on which keys that may be changed.

use kvdb_model::Version;
use kvdb_model::codec::{DecodeError, Reader, Writer};

/// When a key expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Never.
    Never,
    /// As before; never if the key is new.
    Keep,
    /// So many milliseconds after the write's version.
    In(u64),
    /// At this time, in milliseconds since 1970. One that has passed removes the key.
    At(u64),
}

impl Expiry {
    /// So many milliseconds after the write's version, or never for `None`.
    pub fn after(ttl_ms: Option<u64>) -> Self {
        ttl_ms.map_or(Expiry::Never, Expiry::In)
    }

    /// The time in milliseconds since 1970 (0 for never), of a write at `version` where the key
    /// expired at `before`.
    pub fn expires_at_ms(self, version: Version, before: u64) -> u64 {
        match self {
            Expiry::Never => 0,
            Expiry::Keep => before,
            Expiry::In(ms) => version.millis().saturating_add(ms).max(1),
            Expiry::At(ms) => ms.max(1),
        }
    }

    pub(crate) fn encode(self, out: &mut Writer) {
        match self {
            Expiry::Never => out.u8(0),
            Expiry::Keep => out.u8(1),
            Expiry::In(ms) => {
                out.u8(2);
                out.varint(ms);
            }
            Expiry::At(ms) => {
                out.u8(3);
                out.varint(ms);
            }
        }
    }

    pub(crate) fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(match input.u8()? {
            0 => Expiry::Never,
            1 => Expiry::Keep,
            2 => Expiry::In(input.varint()?),
            3 => Expiry::At(input.varint()?),
            other => return Err(DecodeError::unknown_tag("expiry", other)),
        })
    }
}

/// On which keys a change of expiry is carried out. A key that never expires counts as one that
/// expires in the far future.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpiryRule(pub(crate) u8);

impl ExpiryRule {
    /// On every key.
    pub const ALWAYS: ExpiryRule = ExpiryRule(0);
    /// On keys that never expire.
    pub const NX: ExpiryRule = ExpiryRule(1);
    /// On keys that expire.
    pub const XX: ExpiryRule = ExpiryRule(2);
    /// If the key lives longer then.
    pub const GT: ExpiryRule = ExpiryRule(4);
    /// If the key lives shorter then.
    pub const LT: ExpiryRule = ExpiryRule(8);

    /// Both rules.
    #[must_use]
    pub fn and(self, other: ExpiryRule) -> ExpiryRule {
        ExpiryRule(self.0 | other.0)
    }

    /// Whether all of `other` is in it.
    pub fn has(self, other: ExpiryRule) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether an expiry may become `after` where it was `before` (0 for never).
    pub fn allows(self, before: u64, after: u64) -> bool {
        let far = |at: u64| if at == 0 { u64::MAX } else { at };
        !(self.has(Self::NX) && before != 0
            || self.has(Self::XX) && before == 0
            || self.has(Self::GT) && far(after) <= far(before)
            || self.has(Self::LT) && far(after) >= far(before))
    }

    pub(crate) fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        match input.u8()? {
            rule if rule < 16 => Ok(ExpiryRule(rule)),
            other => Err(DecodeError::unknown_tag("expiry rule", other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_expiry_take_never_for_the_far_future() {
        assert!(ExpiryRule::NX.allows(0, 5) && !ExpiryRule::NX.allows(9, 5));
        assert!(ExpiryRule::XX.allows(9, 5) && !ExpiryRule::XX.allows(0, 5));
        assert!(ExpiryRule::GT.allows(4, 5) && !ExpiryRule::GT.allows(0, 5));
        assert!(ExpiryRule::LT.allows(0, 5) && !ExpiryRule::LT.allows(5, 5));
        assert!(!ExpiryRule::XX.and(ExpiryRule::LT).allows(0, 5));
    }
}
