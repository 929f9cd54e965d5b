//! What can go wrong with a call, sorted by what the caller can do about it.

use kvdb_model::{Refusal, RetryClass};
use kvdb_wire::refusal_from_status;
use std::error::Error as _;
use thiserror::Error;
use tonic::{Code, ConnectError, Status};

/// A call that didn't give an answer. [`Error::class`] says what to do about it.
#[derive(Clone, Debug, Error)]
pub enum Error {
    /// The cluster refused, and nothing was done.
    #[error("{message}")]
    Refused {
        /// Why, to match on.
        refusal: Refusal,
        /// The same in the server's words.
        message: String,
    },
    /// No answer could be had, and nothing was done: no connection, or a read that broke off.
    #[error("{address} is unavailable: {reason}")]
    Unavailable {
        /// Who was asked last.
        address: String,
        /// What happened.
        reason: String,
    },
    /// The write may have been carried out, or may yet be.
    #[error("the outcome is unknown: {reason}")]
    OutcomeUnknown {
        /// What happened.
        reason: String,
    },
    /// Something else than a gateway's gRPC port is there.
    #[error(
        "{address} is {found} of KvDB, not what this request is for: give the gRPC address of a \
         gateway (port 7400 by default)"
    )]
    WrongPort {
        /// Who was asked.
        address: String,
        /// What is there.
        found: &'static str,
    },
    /// Something answered that isn't KvDB, or is of another version.
    #[error("{address} answered with {}: {message}", status_name(*code))]
    Unexpected {
        /// Who answered.
        address: String,
        /// The gRPC code.
        code: Code,
        /// The gRPC message.
        message: String,
    },
}

impl Error {
    /// What to do about it: may it be tried again, and where?
    pub fn class(&self) -> RetryClass {
        match self {
            Error::Refused { refusal, .. } => refusal.class(),
            Error::Unavailable { .. } => RetryClass::RetryHere,
            Error::OutcomeUnknown { .. } => RetryClass::OutcomeUnknown,
            Error::WrongPort { .. } | Error::Unexpected { .. } => RetryClass::Final,
        }
    }

    /// The cluster's refusal, if it gave one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Error::Refused { refusal, .. } => Some(refusal),
            _ => None,
        }
    }
}

/// The name that gRPC has for a code, as other tools show it.
fn status_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// What a request does. Decides what a broken connection means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Changes nothing: without an answer it may simply be asked again.
    Read,
    /// Changes something: without an answer nobody knows whether it did.
    Write,
}

impl Effect {
    /// No answer came, for a reason other than a refusal.
    pub(crate) fn unanswered(self, address: &str, reason: impl Into<String>) -> Error {
        match self {
            Effect::Read => {
                Error::Unavailable { address: address.to_owned(), reason: reason.into() }
            }
            Effect::Write => {
                Error::OutcomeUnknown { reason: format!("{address}: {}", reason.into()) }
            }
        }
    }

    /// A status other than OK.
    pub(crate) fn failed(self, address: &str, status: &Status) -> Error {
        if let Some(refusal) = refusal_from_status(status) {
            return self.refused(address, refusal, status.message());
        }
        if was_not_sent(status) {
            let reason = format!("no connection ({})", root_cause(status));
            return Error::Unavailable { address: address.to_owned(), reason };
        }
        match status.code() {
            // Of the connection, not of the server: it has closed it, and said why.
            Code::ResourceExhausted if status.source().is_some() => {
                self.unanswered(address, format!("the request broke off ({})", root_cause(status)))
            }
            Code::Unavailable
            | Code::Cancelled
            | Code::Unknown
            | Code::Internal
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::DataLoss => {
                self.unanswered(address, format!("the request broke off ({})", root_cause(status)))
            }
            code => Error::Unexpected {
                address: address.to_owned(),
                code,
                message: status.message().to_owned(),
            },
        }
    }

    /// A refusal, with the server's own words.
    pub(crate) fn refused(self, address: &str, refusal: Refusal, message: &str) -> Error {
        match refusal.class() {
            RetryClass::OutcomeUnknown => self.unanswered(address, message),
            _ => Error::Refused { refusal, message: message.to_owned() },
        }
    }
}

/// Whether the request never left: there was no connection to send it on.
fn was_not_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// The innermost words: "Connection refused", not "transport error".
fn root_cause(status: &Status) -> String {
    let mut words = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        words = error.to_string();
        source = error.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::ShardId;
    use kvdb_wire::status_of;

    #[test]
    fn a_broken_write_is_unknown_and_a_broken_read_is_not() {
        let broken = Status::unavailable("connection reset");
        assert_eq!(Effect::Read.failed("a:1", &broken).class(), RetryClass::RetryHere);
        assert_eq!(Effect::Write.failed("a:1", &broken).class(), RetryClass::OutcomeUnknown);
    }

    #[test]
    fn a_refusal_keeps_its_class_and_words() {
        let refusal = Refusal::ShardUnavailable { shard_id: ShardId(3), reason: "no leader" };
        let error = Effect::Write.failed("a:1", &status_of(&refusal));
        assert_eq!(error.class(), RetryClass::RetryHere);
        assert_eq!(error.to_string(), "shard 3 is unavailable: no leader");
    }

    #[test]
    fn what_isnt_kvdb_is_not_asked_again() {
        let error = Effect::Write.failed("a:1", &Status::unimplemented("no such service"));
        assert_eq!(error.class(), RetryClass::Final);
        assert_eq!(error.to_string(), "a:1 answered with UNIMPLEMENTED: no such service");
    }
}
