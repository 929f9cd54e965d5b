//! Judges what clients of a store saw: is there an explanation in which nothing was lost, doubled,
//! stale or out of order?
//!
//! A test records a [`History`] with a [`Recorder`], or reads one that somebody else wrote as JSON
//! lines ([`json`]). [`check_all`] runs every checker on it, each of which looks at the operations that
//! it understands:
//!
//! | checker | of | finds |
//! |---|---|---|
//! | [`register`] | get, put, delete, increment, with conditions | keys that aren't linearizable |
//! | [`counter`] | keys with nothing but increments and gets | requests that were lost or applied twice |
//! | [`set`] | elements that are only added | lost, stale and invented elements |
//! | [`append`] | transactions on lists | dirty writes, circular information flow, stale reads |
//! | [`watch`] | events that a watch delivered | events out of order, doubled, missing, invented |
//!
//! A reported violation is real: no store that keeps its word could have answered so. The other way
//! round, [`register`] is exact within its budget (it says so where that is used up), while the others
//! look for what is certainly wrong and may let a subtle error pass.
//!
//! The crate knows nothing of KvDB's code, so that an error there can't hide here too. It is pure: no
//! clock, file, thread or randomness. `kvdb-checker FILE` (`src/bin`) is a command around it.
//!
//! ```
//! use kvdb_checker::{Answer, Call, ClientId, Recorder, Time, Verdict, check_all};
//!
//! let mut recorder = Recorder::new();
//! let put = recorder.call(ClientId(1), Call::put("a", "x"), Time(1));
//! recorder.ok(put, Answer::applied(), Time(2));
//! let get = recorder.call(ClientId(2), Call::get("a"), Time(3));
//! recorder.ok(get, Answer::absent(), Time(4));
//! let report = check_all(recorder.history(), &Default::default());
//! assert_eq!(report.verdict(), Verdict::Violated);
//! ```

pub mod append;
pub mod counter;
pub mod data;
pub mod history;
pub mod json;
pub mod recorder;
pub mod register;
pub mod set;
mod table;
pub mod verdict;
pub mod watch;

pub use data::Data;
pub use history::{
    Answer, Call, ClientId, Condition, Element, Event, EventError, History, OpId, Operation,
    Outcome, Previous, RequestId, Step, Time, Version, Written,
};
pub use recorder::Recorder;
pub use register::Options;
pub use verdict::Verdict;
pub use watch::{Delivery, Lane, WatchId, WatchRecord};

use std::fmt;

/// What all checkers found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Plain keys.
    pub register: register::Report,
    /// Counters.
    pub counter: counter::CounterReport,
    /// Sets.
    pub set: set::SetReport,
    /// Lists.
    pub append: append::AppendReport,
    /// Watches.
    pub watch: watch::WatchReport,
}

/// Runs every checker. `options` are those of [`register::check`].
pub fn check_all(history: &History, options: &Options) -> Report {
    Report {
        register: register::check(history, options),
        counter: counter::check(history),
        set: set::check(history),
        append: append::check(history),
        watch: watch::check(history),
    }
}

impl Report {
    /// In one word: the worst of all.
    pub fn verdict(&self) -> Verdict {
        self.register
            .verdict()
            .and(self.counter.verdict())
            .and(self.set.verdict())
            .and(self.append.verdict())
            .and(self.watch.verdict())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.register, f)?;
        fmt::Display::fmt(&self.counter, f)?;
        fmt::Display::fmt(&self.set, f)?;
        fmt::Display::fmt(&self.append, f)?;
        fmt::Display::fmt(&self.watch, f)
    }
}
