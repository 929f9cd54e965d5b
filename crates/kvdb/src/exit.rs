//! What went wrong, as words and as an exit code.

use kvdb_client::{AddressError, Error};
use kvdb_model::{Refusal, RetryClass};
use serde_json::{Value, json};
use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;

/// Why a command didn't do what it was asked. Each kind has its exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Something that was asked for isn't there. 1.
    NotFound(String),
    /// What was to be tested has failed the test. 3.
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
    /// What the cluster answered, with its error code (`x-error-code`).
    Answered(&'static str, Box<Failure>),
}

impl Failure {
    /// Says on standard error what went wrong: in words, or as one JSON object on one line.
    pub(crate) fn report(&self, json: bool) -> ExitCode {
        if let Some(words) = self.words() {
            // There is nobody left to tell if this fails.
            let _ = match json {
                true => writeln!(io::stderr(), "{}", self.document(words)),
                false => writeln!(io::stderr(), "kvdb: {words}"),
            };
        }
        ExitCode::from(self.code())
    }

    fn words(&self) -> Option<&str> {
        match self {
            Failure::OutputClosed => None,
            Failure::NotFound(words)
            | Failure::Failed(words)
            | Failure::Usage(words)
            | Failure::Refused(words)
            | Failure::Unavailable(words)
            | Failure::Unknown(words)
            | Failure::Interrupted(words) => Some(words.as_str()),
            Failure::Answered(_, failure) => failure.words(),
        }
    }

    fn document(&self, words: &str) -> Value {
        json!({ "error": self.name(), "message": words, "exit_code": self.code() })
    }

    /// What a program tells failures apart by: the cluster's code, or the kind.
    fn name(&self) -> &'static str {
        match self {
            Failure::OutputClosed => "OUTPUT_CLOSED",
            Failure::NotFound(_) => "NOT_FOUND",
            Failure::Failed(_) => "FAILED",
            Failure::Usage(_) => "USAGE",
            Failure::Refused(_) => "REFUSED",
            Failure::Unavailable(_) => "UNAVAILABLE",
            Failure::Unknown(_) => "OUTCOME_UNKNOWN",
            Failure::Interrupted(_) => "INTERRUPTED",
            Failure::Answered(code, _) => code,
        }
    }

    /// The same with other words.
    pub(crate) fn map_words(self, change: &dyn Fn(String) -> String) -> Self {
        match self {
            Failure::NotFound(words) => Failure::NotFound(change(words)),
            Failure::Failed(words) => Failure::Failed(change(words)),
            Failure::Usage(words) => Failure::Usage(change(words)),
            Failure::Refused(words) => Failure::Refused(change(words)),
            Failure::Unavailable(words) => Failure::Unavailable(change(words)),
            Failure::Unknown(words) => Failure::Unknown(change(words)),
            Failure::Interrupted(words) => Failure::Interrupted(change(words)),
            Failure::OutputClosed => Failure::OutputClosed,
            Failure::Answered(code, failure) => {
                Failure::Answered(code, Box::new(failure.map_words(change)))
            }
        }
    }

    pub(crate) fn code(&self) -> u8 {
        match self {
            Failure::OutputClosed => 0,
            Failure::NotFound(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Refused(_) | Failure::Failed(_) => 3,
            Failure::Unavailable(_) => 4,
            Failure::Unknown(_) => 5,
            Failure::Interrupted(_) => 130,
            Failure::Answered(_, failure) => failure.code(),
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

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words().unwrap_or_default())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let words = error.to_string();
        let code = error.refusal().map(Refusal::code);
        let failure = match error.class() {
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
        };
        match code {
            Some(code) => Failure::Answered(code, Box::new(failure)),
            None => failure,
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
        assert_eq!(Failure::Failed("stale reads".into()).code(), 3, "1 is `not found` alone");
    }

    #[test]
    fn a_program_is_told_the_cluster_s_code_or_the_kind() {
        let document = |failure: Failure| failure.document(failure.words().unwrap());
        let refusal = Refusal::UnknownKeyspace { name: "x".into() };
        let refused = Failure::from(Error::Refused { message: refusal.to_string(), refusal });
        let refused = document(refused.map_words(&|words| format!("line 3: {words}")));
        assert_eq!(
            (&refused["error"], &refused["exit_code"]),
            (&"UNKNOWN_KEYSPACE".into(), &3.into())
        );
        assert!(refused["message"].as_str().unwrap().starts_with("line 3: "), "{refused}");
        let missing = document(Failure::NotFound("not found".into()));
        assert_eq!((&missing["error"], &missing["exit_code"]), (&"NOT_FOUND".into(), &1.into()));
    }
}
