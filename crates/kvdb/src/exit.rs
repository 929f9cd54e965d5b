//! What went wrong, as words and as an exit code.

use kvdb_client::{AddressError, Error};
use kvdb_model::{Refusal, RetryClass};
use std::io::{self, Write as _};
use std::process::ExitCode;

/// Why a command didn't do what it was asked. Each kind has its exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Something that was asked for isn't there. 1, with words where they help.
    NotFound(Option<String>),
    /// What was to be tested has failed the test. 1.
    Failed(String),
    /// The command line, or a file that it names, is wrong. 2.
    Usage(String),
    /// The cluster refused, or a condition failed; nothing was done. 3.
    Refused(String),
    /// No answer could be had, or the output couldn't be written. 4.
    Unavailable(String),
    /// A write may or may not have been carried out. 5.
    Unknown(String),
    /// Stopped by Ctrl-C. 130, as shells do.
    Interrupted(String),
    /// Whoever read the output has had enough. Nothing is wrong.
    OutputClosed,
}

impl Failure {
    /// Says on standard error what went wrong.
    pub(crate) fn report(&self) -> ExitCode {
        let words = match self {
            Failure::NotFound(words) => words.as_deref(),
            Failure::OutputClosed => None,
            Failure::Failed(words)
            | Failure::Usage(words)
            | Failure::Refused(words)
            | Failure::Unavailable(words)
            | Failure::Unknown(words)
            | Failure::Interrupted(words) => Some(words.as_str()),
        };
        if let Some(words) = words {
            // There is nobody left to tell if this fails.
            let _ = writeln!(io::stderr(), "kvdb: {words}");
        }
        ExitCode::from(self.code())
    }

    pub(crate) fn code(&self) -> u8 {
        match self {
            Failure::OutputClosed => 0,
            Failure::NotFound(_) | Failure::Failed(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Refused(_) => 3,
            Failure::Unavailable(_) => 4,
            Failure::Unknown(_) => 5,
            Failure::Interrupted(_) => 130,
        }
    }

    /// An error on the way out to standard output or a file.
    pub(crate) fn writing(place: &str, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::Unavailable(format!("cannot write {place}: {error}")),
        }
    }

    /// An error on the way in from standard input or a file.
    pub(crate) fn reading(place: &str, error: &io::Error) -> Self {
        Failure::Usage(format!("cannot read {place}: {error}"))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let words = error.to_string();
        match error.class() {
            RetryClass::OutcomeUnknown => Failure::Unknown(words),
            RetryClass::RetryHere | RetryClass::RetryElsewhere => Failure::Unavailable(words),
            RetryClass::Final => match error.refusal() {
                // Nothing is wrong with the request: the cluster wasn't ready for it.
                None
                | Some(
                    Refusal::DeadlineExceeded | Refusal::NotInitialised | Refusal::DiskFull { .. },
                ) => Failure::Unavailable(words),
                Some(_) => Failure::Refused(words),
            },
        }
    }
}

impl From<AddressError> for Failure {
    fn from(error: AddressError) -> Self {
        Failure::Usage(format!("--endpoint: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::ShardId;

    fn code_of(refusal: Refusal) -> u8 {
        Failure::from(Error::Refused { message: refusal.to_string(), refusal }).code()
    }

    #[test]
    fn refusals_have_the_exit_code_of_what_to_do_about_them() {
        assert_eq!(code_of(Refusal::invalid("key", "is empty")), 3);
        assert_eq!(code_of(Refusal::UnknownKeyspace { name: "x".into() }), 3);
        assert_eq!(code_of(Refusal::NotInitialised), 4);
        assert_eq!(code_of(Refusal::DeadlineExceeded), 4);
        assert_eq!(code_of(Refusal::Overloaded { what: "a queue", retry_after_ms: 1 }), 4);
        assert_eq!(code_of(Refusal::NotLeader { shard_id: ShardId(1), leader_hint: None }), 4);
        let unknown = Error::OutcomeUnknown { reason: "lost".into() };
        assert_eq!(Failure::from(unknown).code(), 5);
    }
}
