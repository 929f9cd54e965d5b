//! Recording a history while it happens.

use crate::history::{Answer, Call, ClientId, Event, EventError, History, OpId, RequestId, Time};
use crate::watch::WatchRecord;

/// Builds a [`History`], giving out the names of operations.
///
/// Its methods panic where an event can't be: an operation that ends twice, returns before its call
/// or with an answer of the wrong kind is a mistake of the test that records, not of the store.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    history: History,
    next: u64,
}

impl Recorder {
    /// Nothing recorded yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// `client` asks for something at `time`.
    pub fn call(&mut self, client: ClientId, call: Call, time: Time) -> OpId {
        self.begin(client, None, call, time)
    }

    /// `client` tries a request at `time`, for the first time or again.
    pub fn try_request(
        &mut self,
        client: ClientId,
        request: RequestId,
        call: Call,
        time: Time,
    ) -> OpId {
        self.begin(client, Some(request), call, time)
    }

    fn begin(
        &mut self,
        client: ClientId,
        request: Option<RequestId>,
        call: Call,
        time: Time,
    ) -> OpId {
        let op = OpId(self.next);
        self.next += 1;
        self.push(Event::Call { op, client, time, request, call });
        op
    }

    /// An operation returned at `time`.
    ///
    /// # Panics
    /// If it wasn't called, has ended, was called after `time` or can't have this answer.
    pub fn ok(&mut self, op: OpId, answer: Answer, time: Time) {
        self.push(Event::Ok { op, time, answer });
    }

    /// An operation's outcome won't be known. It needn't be said at the end of a test.
    ///
    /// # Panics
    /// If it wasn't called or has ended.
    pub fn unknown(&mut self, op: OpId) {
        self.push(Event::Unknown { op });
    }

    /// An operation was refused: it didn't and won't take effect.
    ///
    /// # Panics
    /// If it wasn't called or has ended.
    pub fn fail(&mut self, op: OpId) {
        self.push(Event::Fail { op });
    }

    /// A watch delivered something.
    pub fn watch(&mut self, record: WatchRecord) {
        self.push(Event::Watch(record));
    }

    fn push(&mut self, event: Event) {
        let result: Result<(), EventError> = self.history.push(event);
        if let Err(error) = result {
            panic!("a history was recorded wrongly: {error}");
        }
    }

    /// What was recorded so far; operations under way are of unknown outcome.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// What was recorded.
    pub fn finish(self) -> History {
        self.history
    }
}
