//! The load: clients that each ask, wait for the answer, note both, and ask again.

use crate::timeline::Meter;
use crate::window::{Window, Windows};
use bytes::Bytes;
use kvdb_checker::{Answer, Call, Condition, Element, OpId, Version, Written};
use kvdb_client::{Client, Error, ScanOptions, WriteOptions};
use kvdb_model::RetryClass;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Plain keys of a window.
const REGISTERS: u64 = 24;
/// Counters of a window.
const COUNTERS: u64 = 6;
/// Between two reads of a whole set.
const SET_READS: Duration = Duration::from_millis(1500);

/// What all clients share.
pub(crate) struct Load {
    pub(crate) client: Client,
    pub(crate) windows: Arc<Windows>,
    pub(crate) meter: Arc<Meter>,
    /// Pause of a client between an answer and its next question.
    pub(crate) pause: Duration,
    pub(crate) seed: u64,
    /// True once it is time to end.
    pub(crate) stop: watch::Receiver<bool>,
}

fn register(window: &Window, number: u64) -> String {
    format!("t{:05}/r{:02}", window.number, number % REGISTERS)
}

fn counter(window: &Window, number: u64) -> String {
    format!("t{:05}/c{:02}", window.number, number % COUNTERS)
}

/// All elements of a window's set are keys with this prefix.
pub(crate) fn set_prefix(window: usize) -> String {
    format!("t{window:05}/s/")
}

fn element_key(window: usize, element: u64) -> String {
    format!("{}{element:016x}", set_prefix(window))
}

/// The element that a key of a set stands for.
pub(crate) fn element_of(prefix: &str, key: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(key).ok()?.strip_prefix(prefix)?, 16).ok()
}

/// One client, until the end.
pub(crate) async fn run_client(load: Arc<Load>, number: u64) {
    let mut one = One {
        random: ChaCha8Rng::seed_from_u64(load.seed ^ (number + 1).wrapping_mul(0x9E37_79B9)),
        stop: load.stop.clone(),
        load,
        number,
        made: 0,
        seen: HashMap::new(),
    };
    while !*one.stop.borrow() {
        let (window, place) = one.load.windows.enter();
        if place.is_some() {
            let called = std::time::Instant::now();
            one.ask(&window).await;
            one.load.meter.took(called);
        }
        drop(place);
        let _ = tokio::time::timeout(one.load.pause, one.stop.wait_for(|stop| *stop)).await;
    }
}

/// Reads the window's whole set, now and then, until the end.
pub(crate) async fn run_reader(load: Arc<Load>, number: u64) {
    let mut stop = load.stop.clone();
    while !*stop.borrow() {
        let (window, place) = load.windows.enter();
        if place.is_some() {
            read_set(&load, &window, number).await;
        }
        drop(place);
        let _ = tokio::time::timeout(SET_READS, stop.wait_for(|stop| *stop)).await;
    }
}

/// Reads a whole set, and notes what it saw.
pub(crate) async fn read_set(load: &Load, window: &Window, number: u64) {
    let prefix = set_prefix(window.number);
    let op = window.call(number, Call::Members { key: prefix.as_str().into() });
    match elements(&load.client, &prefix).await {
        Ok(found) => {
            let found = found.into_iter().map(Element).collect();
            window.ok(op, Answer::Members(found), window.now());
            load.meter.answered();
        }
        Err(_) => window.fail(op),
    }
}

/// All elements of a set, in the store's order.
pub(crate) async fn elements(client: &Client, prefix: &str) -> Result<Vec<u64>, Error> {
    let options = ScanOptions {
        prefix: Bytes::from(prefix.to_owned()),
        keys_only: true,
        ..Default::default()
    };
    let mut scan = client.scan(options);
    let mut found = Vec::new();
    while let Some(items) = scan.next_chunk().await? {
        found.extend(items.iter().filter_map(|item| element_of(prefix, &item.key)));
    }
    Ok(found)
}

struct One {
    load: Arc<Load>,
    number: u64,
    random: ChaCha8Rng,
    stop: watch::Receiver<bool>,
    /// Values and elements made so far; each is unique.
    made: u64,
    /// Values last seen, for compare and set.
    seen: HashMap<String, Bytes>,
}

impl One {
    async fn ask(&mut self, window: &Window) {
        let choice = self.random.next_u64();
        match choice % 100 {
            0..30 => self.get(window, register(window, choice >> 8)).await,
            30..35 => self.get(window, counter(window, choice >> 8)).await,
            35..60 => self.put(window, register(window, choice >> 8)).await,
            60..70 => self.swap(window, register(window, choice >> 8)).await,
            70..75 => self.delete(window, register(window, choice >> 8)).await,
            75..88 => self.increment(window, counter(window, choice >> 8)).await,
            _ => self.add(window).await,
        }
    }

    /// A number that nobody else makes in this run.
    fn unique(&mut self) -> u64 {
        self.made += 1;
        (self.number << 40) | self.made
    }

    async fn get(&mut self, window: &Window, key: String) {
        let op = window.call(self.number, Call::get(key.as_str()));
        let result = self.load.client.get(key.clone()).await;
        let returned = window.now();
        match result {
            Ok(Some(record)) => {
                let (value, version) = (&record.value[..], Version(record.version.0));
                let answer = Answer::Got { value: Some(value.into()), version: Some(version) };
                window.ok(op, answer, returned);
                self.load.meter.answered();
                self.remember(window, key, record.value);
            }
            Ok(None) => {
                window.ok(op, Answer::absent(), returned);
                self.load.meter.answered();
            }
            // Whatever happened to a read, it changed nothing.
            Err(error) => self.fail(window, op, &error, false),
        }
    }

    fn remember(&mut self, window: &Window, key: String, value: Bytes) {
        let current = format!("t{:05}/", window.number);
        if self.seen.len() > 256 {
            self.seen.retain(|key, _| key.starts_with(&current));
        }
        self.seen.insert(key, value);
    }

    async fn put(&mut self, window: &Window, key: String) {
        let value = format!("v{:x}", self.unique());
        self.write(window, key, value, None).await;
    }

    /// Compare and set, with the value that was last seen; if none was, only where there is none.
    async fn swap(&mut self, window: &Window, key: String) {
        let value = format!("v{:x}", self.unique());
        let condition = match self.seen.get(&key) {
            Some(seen) => kvdb_model::Condition::IfValue(seen.clone()),
            None => kvdb_model::Condition::IfAbsent,
        };
        self.write(window, key, value, Some(condition)).await;
    }

    async fn write(
        &mut self,
        window: &Window,
        key: String,
        value: String,
        condition: Option<kvdb_model::Condition>,
    ) {
        let noted = condition.as_ref().map(|condition| match condition {
            kvdb_model::Condition::IfValue(value) => Condition::IfValue((&value[..]).into()),
            _ => Condition::IfAbsent,
        });
        let (noted_key, noted_value) = (key.as_str().into(), value.as_str().into());
        let call = Call::Put { key: noted_key, value: noted_value, condition: noted };
        let op = window.call(self.number, call);
        let options = WriteOptions { condition, ..WriteOptions::default() };
        let bytes = Bytes::from(value);
        let result = self.load.client.put_with(key.clone(), bytes.clone(), options).await;
        let returned = window.now();
        match result {
            Ok(written) => {
                let applied = written.applied;
                self.written(window, op, &written, returned);
                if applied {
                    self.remember(window, key, bytes);
                }
            }
            Err(error) => self.fail(window, op, &error, true),
        }
    }

    fn written(
        &self,
        window: &Window,
        op: OpId,
        written: &kvdb_client::Written,
        returned: kvdb_checker::Time,
    ) {
        let version = written.applied.then_some(Version(written.version.0));
        let answer = Written { applied: Some(written.applied), version, ..Written::default() };
        window.ok(op, Answer::Written(answer), returned);
        self.load.meter.answered();
    }

    async fn delete(&mut self, window: &Window, key: String) {
        let op = window.call(self.number, Call::delete(key.as_str()));
        let result = self.load.client.delete(key).await;
        let returned = window.now();
        match result {
            Ok(written) => self.written(window, op, &written, returned),
            Err(error) => self.fail(window, op, &error, true),
        }
    }

    async fn increment(&mut self, window: &Window, key: String) {
        let op = window.call(self.number, Call::increment(key.as_str(), 1));
        let result = self.load.client.increment(key, 1).await;
        let returned = window.now();
        match result {
            Ok(counter) => {
                window.ok(op, Answer::counter(counter.value), returned);
                self.load.meter.answered();
            }
            Err(error) => self.fail(window, op, &error, true),
        }
    }

    async fn add(&mut self, window: &Window) {
        let element = Element(self.unique());
        let key = set_prefix(window.number);
        let op = window.call(self.number, Call::Add { key: key.as_str().into(), element });
        let key = element_key(window.number, element.0);
        let result = self.load.client.put(key, Bytes::from_static(b"1")).await;
        let returned = window.now();
        match result {
            Ok(_) => {
                window.ok(op, Answer::Done, returned);
                window.acknowledge(element);
                self.load.meter.answered();
            }
            Err(error) => self.fail(window, op, &error, true),
        }
    }

    /// Believes the client when it says that nothing was done: that is a promise, too.
    fn fail(&self, window: &Window, op: OpId, error: &Error, is_write: bool) {
        let may_have_been_done = matches!(error, Error::Unexpected { .. })
            || error.class() == RetryClass::OutcomeUnknown;
        if is_write && may_have_been_done {
            window.unknown(op);
        } else {
            window.fail(op);
        }
        self.load.meter.refused(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_is_found_again_in_its_key() {
        let key = element_key(12, 0xABC);
        assert_eq!(element_of(&set_prefix(12), key.as_bytes()), Some(0xABC));
        assert_eq!(element_of(&set_prefix(13), key.as_bytes()), None);
        assert_eq!(element_of(&set_prefix(12), b"t00012/s/xyz"), None);
    }
}
