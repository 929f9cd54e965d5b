//! How a check ends.

use std::fmt;

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing wrong; everything was looked at.
    Ok,
    /// Something is certainly wrong.
    Violated,
    /// Nothing wrong was found, but something couldn't be settled.
    Unknown,
}

impl Verdict {
    /// Of two checks: a violation outweighs a doubt, a doubt outweighs an ok.
    #[must_use]
    pub fn and(self, other: Verdict) -> Verdict {
        match (self, other) {
            (Verdict::Violated, _) | (_, Verdict::Violated) => Verdict::Violated,
            (Verdict::Unknown, _) | (_, Verdict::Unknown) => Verdict::Unknown,
            (Verdict::Ok, Verdict::Ok) => Verdict::Ok,
        }
    }

    /// Of a check that settles everything: wrong iff it found something.
    pub(crate) fn of<T>(anomalies: &[T]) -> Verdict {
        if anomalies.is_empty() { Verdict::Ok } else { Verdict::Violated }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Ok => "ok",
            Verdict::Violated => "violated",
            Verdict::Unknown => "unknown",
        })
    }
}
