//! The history, in windows: each has keys of its own, so that it can be judged and forgotten while
//! the run goes on. An operation belongs to the window in which it was called.

use kvdb_checker::{Answer, Call, ClientId, Element, History, OpId, Recorder, Time};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// One window.
pub(crate) struct Window {
    /// From 0.
    pub(crate) number: usize,
    start: Instant,
    content: Mutex<Content>,
    /// One permit for each that may be inside.
    inside: Arc<Semaphore>,
    capacity: u32,
}

#[derive(Default)]
struct Content {
    recorder: Recorder,
    acknowledged: Vec<u64>,
}

impl Window {
    fn new(number: usize, capacity: u32, start: Instant) -> Self {
        let inside = Arc::new(Semaphore::new(capacity as usize));
        Window { number, start, content: Mutex::default(), inside, capacity }
    }

    pub(crate) fn now(&self) -> Time {
        Time(self.start.elapsed().as_nanos() as u64)
    }

    /// An operation begins.
    pub(crate) fn call(&self, client: u64, call: Call) -> OpId {
        // The time is taken inside the lock, so that the order of events is that of their times.
        let mut content = self.content.lock();
        let now = self.now();
        content.recorder.call(ClientId(client), call, now)
    }

    /// It returned.
    pub(crate) fn ok(&self, op: OpId, answer: Answer, returned: Time) {
        self.content.lock().recorder.ok(op, answer, returned);
    }

    /// Nobody knows whether it took effect.
    pub(crate) fn unknown(&self, op: OpId) {
        self.content.lock().recorder.unknown(op);
    }

    /// It certainly didn't.
    pub(crate) fn fail(&self, op: OpId) {
        self.content.lock().recorder.fail(op);
    }

    /// An element was added for good.
    pub(crate) fn acknowledge(&self, element: Element) {
        self.content.lock().acknowledged.push(element.0);
    }

    /// Waits until everybody who was inside has left, and gives out what was recorded and which
    /// elements were acknowledged. The window must have been replaced before.
    pub(crate) async fn close(&self) -> (History, Vec<u64>) {
        // The semaphore is never closed.
        let _all = self.inside.acquire_many(self.capacity).await;
        let content = std::mem::take(&mut *self.content.lock());
        (content.recorder.finish(), content.acknowledged)
    }
}

/// The window of the moment.
pub(crate) struct Windows {
    current: Mutex<Arc<Window>>,
    capacity: u32,
    start: Instant,
}

impl Windows {
    /// The first window, for at most `capacity` operations at a time.
    pub(crate) fn new(capacity: u32, start: Instant) -> Self {
        let first = Arc::new(Window::new(0, capacity, start));
        Windows { current: Mutex::new(first), capacity, start }
    }

    /// Enters the window of the moment; leaving it is dropping the permit.
    pub(crate) fn enter(&self) -> (Arc<Window>, Option<OwnedSemaphorePermit>) {
        let current = self.current.lock();
        let permit = Arc::clone(&current.inside).try_acquire_owned().ok();
        (Arc::clone(&current), permit)
    }

    /// Begins the next window, and gives out the last.
    pub(crate) fn turn(&self) -> Arc<Window> {
        let mut current = self.current.lock();
        let next = Window::new(current.number + 1, self.capacity, self.start);
        std::mem::replace(&mut *current, Arc::new(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_window_closes_when_the_last_has_left_and_holds_what_they_did() {
        let windows = Windows::new(2, Instant::now());
        let (window, permit) = windows.enter();
        let op = window.call(1, Call::put("k", "v"));
        let last = windows.turn();
        assert_eq!(last.number, 0);
        assert_eq!(windows.enter().0.number, 1);
        let closing = tokio::spawn(async move { last.close().await });
        window.ok(op, Answer::applied(), window.now());
        window.acknowledge(Element(7));
        assert!(!closing.is_finished());
        drop(permit);
        let (history, acknowledged) = closing.await.unwrap();
        assert!(history.operations()[0].returned().is_some());
        assert_eq!(acknowledged, [7]);
    }
}
