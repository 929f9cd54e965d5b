//! A queue into one thread, emptied a batch at a time.
//!
//! Whoever waits sleeps at once instead of spinning first: a process has more threads than a
//! small machine has cores, and who spins keeps the core from who would send. What has piled up
//! is taken under one lock. Not bounded: see the head of [`super`] for who bounds what goes in.

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// A queue and its two ends.
pub(crate) fn mailbox<T>() -> (Sender<T>, Receiver<T>) {
    let state = State { queue: VecDeque::new(), senders: 1, receives: true };
    let shared = Arc::new(Shared { state: Mutex::new(state), arrived: Condvar::new() });
    (Sender { shared: shared.clone() }, Receiver { shared, taken: VecDeque::new() })
}

struct Shared<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
}

struct State<T> {
    queue: VecDeque<T>,
    senders: usize,
    receives: bool,
}

/// How much waits in a queue.
pub(crate) type Depth = Box<dyn Fn() -> usize + Send + Sync>;

/// Where things are put in.
pub(crate) struct Sender<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Sender<T> {
    /// Puts `item` in. Where nobody receives any more, it is dropped.
    pub(crate) fn send(&self, item: T) {
        self.leave(item);
        self.wake();
    }

    /// Puts `item` in without waking who waits: it is found with the next one, or after
    /// [`Sender::wake`].
    pub(crate) fn leave(&self, item: T) {
        let mut state = self.shared.state.lock();
        if state.receives {
            state.queue.push_back(item);
        }
    }

    /// A way to see how much waits, which keeps nobody receiving.
    pub(crate) fn depth(&self) -> Depth
    where
        T: Send + 'static,
    {
        let shared = Arc::downgrade(&self.shared);
        Box::new(move || shared.upgrade().map_or(0, |shared| shared.state.lock().queue.len()))
    }

    /// Wakes who waits.
    pub(crate) fn wake(&self) {
        self.shared.arrived.notify_one();
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.state.lock().senders += 1;
        Sender { shared: self.shared.clone() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.senders -= 1;
        if state.senders == 0 {
            drop(state);
            self.shared.arrived.notify_one();
        }
    }
}

/// Why nothing was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nothing {
    /// The time is over.
    Yet,
    /// Nobody sends any more.
    Ever,
}

/// Where things are taken out, by one thread.
pub(crate) struct Receiver<T> {
    shared: Arc<Shared<T>>,
    /// What was taken off the queue, to be handed out without its lock.
    taken: VecDeque<T>,
}

impl<T> Receiver<T> {
    /// The next item, if it is here already.
    pub(crate) fn try_receive(&mut self) -> Option<T> {
        if self.taken.is_empty() {
            std::mem::swap(&mut self.taken, &mut self.shared.state.lock().queue);
        }
        self.taken.pop_front()
    }

    /// The next item; waits for it until the deadline, or for as long as somebody may send.
    pub(crate) fn receive(&mut self, deadline: Option<Instant>) -> Result<T, Nothing> {
        if let Some(item) = self.taken.pop_front() {
            return Ok(item);
        }
        let mut state = self.shared.state.lock();
        loop {
            if !state.queue.is_empty() {
                std::mem::swap(&mut self.taken, &mut state.queue);
                drop(state);
                return self.taken.pop_front().ok_or(Nothing::Yet);
            }
            if state.senders == 0 {
                return Err(Nothing::Ever);
            }
            match deadline {
                None => self.shared.arrived.wait(&mut state),
                Some(deadline) => {
                    let waited = self.shared.arrived.wait_until(&mut state, deadline);
                    if waited.timed_out() && state.queue.is_empty() {
                        return Err(Nothing::Yet);
                    }
                }
            }
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.receives = false;
        let left = std::mem::take(&mut state.queue);
        drop(state);
        // Outside the lock: what is dropped may tell others, who may send.
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_two_threads_send_arrives_once_and_in_each_ones_order() {
        let (sender, mut receiver) = mailbox();
        let threads: Vec<_> = (0..2u64)
            .map(|who| {
                let sender = sender.clone();
                std::thread::spawn(move || (0..10_000u64).for_each(|n| sender.send((who, n))))
            })
            .collect();
        drop(sender);
        let mut next = [0u64; 2];
        while let Ok((who, n)) = receiver.receive(None) {
            assert_eq!(n, next[who as usize]);
            next[who as usize] += 1;
        }
        assert_eq!(next, [10_000, 10_000]);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn what_is_left_is_received_before_the_end_is_told() {
        let (sender, mut receiver) = mailbox();
        sender.send(1);
        drop(sender);
        assert_eq!(receiver.receive(None), Ok(1));
        assert_eq!(receiver.receive(None), Err(Nothing::Ever));
    }

    #[test]
    fn a_deadline_ends_the_wait() {
        let (sender, mut receiver) = mailbox::<u8>();
        let deadline = Instant::now() + Duration::from_millis(5);
        assert_eq!(receiver.receive(Some(deadline)), Err(Nothing::Yet));
        assert!(Instant::now() >= deadline);
        assert_eq!(receiver.try_receive(), None);
        sender.send(2);
        assert_eq!(receiver.receive(Some(deadline)), Ok(2));
    }

    #[test]
    fn what_was_left_is_found_with_what_was_sent() {
        let (sender, mut receiver) = mailbox();
        sender.leave(1);
        sender.send(2);
        assert_eq!((receiver.receive(None), receiver.try_receive()), (Ok(1), Some(2)));
    }

    #[test]
    fn what_nobody_receives_is_dropped() {
        let (sender, receiver) = mailbox();
        let (kept, dropped) = (Arc::new(()), Arc::new(()));
        sender.send(kept.clone());
        drop(receiver);
        sender.send(dropped.clone());
        assert_eq!((Arc::strong_count(&kept), Arc::strong_count(&dropped)), (1, 1));
    }
}
