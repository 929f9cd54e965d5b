//! When a request is sent: numbers are handed out to clients, at once (closed loop) or when they
//! are due (open loop).

use crate::options::{Extent, Options};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// A round goes on for a while after it has more errors than allowed, so that their kinds show.
const ERRORS_TO_SEE: u64 = 1000;
/// How long the pacer sleeps at most before it looks whether the round is over.
const LONGEST_NAP: Duration = Duration::from_millis(50);

/// Neighbouring numbers that one client sends together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) first: u64,
    pub(crate) count: u64,
}

/// One run of the loop over all clients.
pub(crate) struct Round {
    start: Instant,
    /// Requests in all.
    limit: u64,
    /// Nothing is sent from here on.
    end: Option<Instant>,
    open: Option<Open>,
    next: AtomicU64,
    errors: AtomicU64,
    most_errors: u64,
    over: AtomicBool,
}

/// The open loop's schedule.
struct Open {
    interval_ns: f64,
    /// One permit for each request that is due and not yet sent.
    due: Semaphore,
}

impl Round {
    /// A round that begins now.
    pub(crate) fn begin(extent: Extent, rate: Option<f64>, max_errors: u64) -> Arc<Self> {
        let start = Instant::now();
        let (limit, end) = match (extent, rate) {
            (Extent::Requests(limit), _) => (limit, None),
            (Extent::Time(time), None) => (u64::MAX, Some(start + time)),
            (Extent::Time(time), Some(rate)) => {
                ((time.as_secs_f64() * rate).ceil() as u64, Some(start + time * 2))
            }
        };
        let open = rate.map(|rate| Open { interval_ns: 1e9 / rate, due: Semaphore::new(0) });
        Arc::new(Round {
            start,
            limit,
            end,
            open,
            next: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            most_errors: max_errors.saturating_add(ERRORS_TO_SEE),
            over: AtomicBool::new(false),
        })
    }

    /// As the options say.
    pub(crate) fn measured(options: &Options) -> Arc<Self> {
        Round::begin(options.extent, options.rate, options.max_errors)
    }

    /// Releases requests when they are due, in a thread of its own: timers of the runtime are as
    /// coarse as a millisecond. `None` in a closed loop.
    pub(crate) fn pace(self: &Arc<Self>) -> std::io::Result<Option<JoinHandle<()>>> {
        if self.open.is_none() {
            return Ok(None);
        }
        let round = Arc::clone(self);
        let thread = std::thread::Builder::new().name("bench-pacer".to_owned());
        thread.spawn(move || round.release()).map(Some)
    }

    fn release(&self) {
        let Some(open) = &self.open else { return };
        let mut released = 0;
        while released < self.limit && !self.over.load(Ordering::Relaxed) {
            let elapsed_ns = self.start.elapsed().as_nanos() as f64;
            let due = ((elapsed_ns / open.interval_ns) as u64 + 1).min(self.limit);
            open.due.add_permits((due - released) as usize);
            released = due;
            let next =
                self.start + Duration::from_nanos((released as f64 * open.interval_ns) as u64);
            let wait = next.saturating_duration_since(Instant::now());
            std::thread::sleep(wait.min(LONGEST_NAP));
        }
    }

    /// The next requests of a client, at most `most` of them; `None` when the round is over.
    pub(crate) async fn claim(&self, most: u64) -> Option<Claim> {
        let count = match &self.open {
            None => most,
            Some(open) => {
                // Everything has been handed out: no more permits will come.
                if self.next.load(Ordering::Relaxed) >= self.limit {
                    return None;
                }
                open.due.acquire().await.ok()?.forget();
                let more = (1..most).take_while(|_| match open.due.try_acquire() {
                    Ok(permit) => {
                        permit.forget();
                        true
                    }
                    Err(_) => false,
                });
                1 + more.count() as u64
            }
        };
        if self.is_over() {
            self.finish();
            return None;
        }
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        let count = count.min(self.limit.saturating_sub(first));
        if first.saturating_add(count) >= self.limit {
            self.finish();
        }
        (count > 0).then_some(Claim { first, count })
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
            || self.errors.load(Ordering::Relaxed) > self.most_errors
            || self.end.is_some_and(|end| Instant::now() >= end)
    }

    /// Nothing more is to be handed out: clients that wait needn't.
    fn finish(&self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(open) = &self.open {
            open.due.close();
        }
    }

    /// When the request with this number was due; `None` in a closed loop.
    pub(crate) fn due(&self, number: u64) -> Option<Instant> {
        let open = self.open.as_ref()?;
        Some(self.start + Duration::from_nanos((number as f64 * open.interval_ns) as u64))
    }

    pub(crate) fn failed(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn start(&self) -> Instant {
        self.start
    }

    /// Requests that were due and never sent.
    pub(crate) fn unsent(&self) -> u64 {
        match self.limit {
            u64::MAX => 0,
            limit => limit.saturating_sub(self.next.load(Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_round_hands_out_every_number_once() {
        let round = Round::begin(Extent::Requests(10), None, 0);
        let mut seen = Vec::new();
        while let Some(claim) = round.claim(4).await {
            seen.extend(claim.first..claim.first + claim.count);
        }
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
        assert_eq!(round.unsent(), 0);
        assert_eq!(round.due(3), None);
    }

    #[tokio::test]
    async fn an_open_round_hands_out_nothing_before_it_is_due() {
        let round = Round::begin(Extent::Requests(20), Some(1000.0), 0);
        let pacer = round.pace().unwrap().unwrap();
        let mut seen = Vec::new();
        while let Some(claim) = round.claim(1).await {
            assert!(Instant::now() >= round.due(claim.first).unwrap());
            seen.push(claim.first);
        }
        assert_eq!(seen, (0..20).collect::<Vec<_>>());
        pacer.join().unwrap();
    }

    /// A client that was held up finds all that became due meanwhile, with the moments at which
    /// they were due: latencies count from there.
    #[tokio::test]
    async fn what_was_held_up_keeps_the_moment_at_which_it_was_due() {
        let round = Round::begin(Extent::Requests(10), Some(1000.0), 0);
        round.pace().unwrap().unwrap().join().unwrap();
        let claim = round.claim(100).await.unwrap();
        assert_eq!(claim, Claim { first: 0, count: 10 });
        let due = round.due(9).unwrap();
        assert_eq!(due - round.start(), Duration::from_millis(9));
        assert!(Instant::now() >= due);
        assert_eq!(round.claim(1).await, None);
    }

    #[tokio::test]
    async fn too_many_errors_end_a_round() {
        let round = Round::begin(Extent::Time(Duration::from_secs(3600)), None, 5);
        for _ in 0..=5 + ERRORS_TO_SEE {
            assert!(round.claim(1).await.is_some());
            round.failed();
        }
        assert_eq!(round.claim(1).await, None);
    }

    #[tokio::test]
    async fn clients_that_wait_are_told_that_an_open_round_is_over() {
        let round = Round::begin(Extent::Requests(1), Some(1000.0), 0);
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let round = Arc::clone(&round);
                tokio::spawn(async move { round.claim(1).await.is_some() })
            })
            .collect();
        round.pace().unwrap().unwrap().join().unwrap();
        let mut claims = 0;
        for client in waiting {
            claims += u32::from(client.await.unwrap());
        }
        assert_eq!(claims, 1);
    }
}
