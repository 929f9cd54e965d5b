//! What can be asked for, and what of it can't be had together.

use std::ops::RangeInclusive;
use std::time::Duration;
use thiserror::Error;

/// Digits of a key's number.
pub(crate) const KEY_DIGITS: u32 = 10;
/// The largest number of keys: their numbers have ten digits.
pub const MAX_KEYS: u64 = 10u64.pow(KEY_DIGITS);

/// Everything that a run needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// How operations are put.
    pub target: TargetKind,
    /// Where, `host:port` each. Clients and connections are spread evenly over them.
    pub addresses: Vec<String>,
    /// The keyspace of KvDB; empty is `default`.
    pub keyspace: String,
    /// What to do, in which proportions.
    pub mix: Mix,
    /// Whether to write all keys first.
    pub fill: bool,
    /// How many keys there are, `1..=10^10`.
    pub keys: u64,
    /// Which of them come how often.
    pub spread: Spread,
    /// Bytes of a value; drawn evenly if it is a range.
    pub value_bytes: RangeInclusive<u32>,
    /// Names the sequence of keys and values.
    pub seed: u64,
    /// Clients, each of which waits for its answers.
    pub clients: u32,
    /// Requests that a client has on its way at once.
    pub pipeline: u32,
    /// Connections to each address, shared by the clients. (A client of Redis has its own.)
    pub connections: u32,
    /// Requests a second, all clients together: the open loop. `None`: the closed one.
    pub rate: Option<f64>,
    /// How long to run before the measurement.
    pub warm_up: Duration,
    /// When the measurement ends.
    pub extent: Extent,
    /// How long a request may take.
    pub timeout: Duration,
    /// Whether KvDB's client gives each write a request id.
    pub exactly_once: bool,
    /// More errors than this end the run.
    pub max_errors: u64,
    /// Processes whose processor time and memory are the servers'.
    pub server_pids: Vec<u32>,
}

/// When a measurement ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Extent {
    /// After so many requests.
    Requests(u64),
    /// After this time. An open loop sends all requests that were due in it, for at most twice
    /// the time.
    Time(Duration),
}

/// How operations are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetKind {
    /// KvDB's Rust client, a unary call an operation.
    KvdbGrpc,
    /// KvDB's Rust client, a batch for all operations of a pipeline.
    KvdbBatch,
    /// The Redis protocol over plain TCP: KvDB's port for it, or Redis itself.
    Redis,
    /// etcd's version 3 interface, a unary call an operation.
    Etcd,
    /// etcd's messages to a server that answers at once.
    Echo,
}

impl TargetKind {
    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            TargetKind::KvdbGrpc => "kvdb-grpc",
            TargetKind::KvdbBatch => "kvdb-batch",
            TargetKind::Redis => "redis",
            TargetKind::Etcd => "etcd",
            TargetKind::Echo => "echo",
        }
    }
}

/// Which keys come how often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spread {
    /// Each as often as any other, in a scattered order without chance: a run with as many
    /// requests as keys meets each once.
    Even,
    /// Drawn, each as likely as any other.
    Uniform,
    /// Drawn by Zipf's law with this exponent; the frequent keys are scattered over all of them.
    Zipf(f64),
    /// Drawn by Zipf's law with this exponent, the newest key first.
    Latest(f64),
}

impl Spread {
    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Spread::Even => "even",
            Spread::Uniform => "uniform",
            Spread::Zipf(_) => "zipf",
            Spread::Latest(_) => "latest",
        }
    }
}

/// Parts of a hundred of each operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mix {
    /// Reads of one key.
    pub read: u32,
    /// Writes of a key that is there.
    pub update: u32,
    /// Writes of a key that is new.
    pub insert: u32,
    /// Reads of 1 to 100 keys in order.
    pub scan: u32,
    /// A read, then a write if nobody else wrote meanwhile, again until it succeeds.
    pub modify: u32,
}

impl Mix {
    /// Nothing but writes.
    pub const PUT: Mix = Mix { update: 100, ..Mix::NONE };
    /// Nothing but reads.
    pub const GET: Mix = Mix { read: 100, ..Mix::NONE };
    const NONE: Mix = Mix { read: 0, update: 0, insert: 0, scan: 0, modify: 0 };
}

/// The core workloads of YCSB (Cooper and others, "Benchmarking Cloud Serving Systems with YCSB",
/// 2010, table 2). A record is one value here, not ten fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Half reads, half updates.
    A,
    /// Mostly reads.
    B,
    /// Only reads.
    C,
    /// Reads of what was inserted of late.
    D,
    /// Short scans.
    E,
    /// Half reads, half read-modify-write.
    F,
}

/// YCSB's constant for Zipf's law.
const YCSB_EXPONENT: f64 = 0.99;

impl Workload {
    /// Its operations.
    pub fn mix(self) -> Mix {
        match self {
            Workload::A => Mix { read: 50, update: 50, ..Mix::NONE },
            Workload::B => Mix { read: 95, update: 5, ..Mix::NONE },
            Workload::C => Mix { read: 100, ..Mix::NONE },
            Workload::D => Mix { read: 95, insert: 5, ..Mix::NONE },
            Workload::E => Mix { scan: 95, insert: 5, ..Mix::NONE },
            Workload::F => Mix { read: 50, modify: 50, ..Mix::NONE },
        }
    }

    /// Its keys.
    pub fn spread(self) -> Spread {
        match self {
            Workload::D => Spread::Latest(YCSB_EXPONENT),
            _ => Spread::Zipf(YCSB_EXPONENT),
        }
    }

    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Workload::A => "a",
            Workload::B => "b",
            Workload::C => "c",
            Workload::D => "d",
            Workload::E => "e",
            Workload::F => "f",
        }
    }
}

/// Options that don't go together, or out of bounds.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct OptionsError(pub String);

impl Options {
    /// Checks what one option alone can't tell.
    ///
    /// # Errors
    /// Says which option is wrong and what to do.
    pub fn validate(&self) -> Result<(), OptionsError> {
        let refuse = |words: &str| Err(OptionsError(words.to_owned()));
        if self.addresses.is_empty() {
            return refuse("there is no address to send to");
        }
        if self.keys == 0 || self.keys > MAX_KEYS {
            return refuse(&format!("--keys must be 1 to {MAX_KEYS}"));
        }
        let (least, most) = (self.value_bytes.start(), self.value_bytes.end());
        if least > most || *most > MAX_VALUE_BYTES {
            return refuse(&format!(
                "--value-bytes must be a number or a range MIN-MAX up to {MAX_VALUE_BYTES}"
            ));
        }
        if self.clients == 0 || self.pipeline == 0 || self.connections == 0 {
            return refuse("--clients, --pipeline and --connections must be at least 1");
        }
        if self.rate.is_some_and(|rate| !(0.001..=1e9).contains(&rate)) {
            return refuse("--rate must be 0.001 to 1000000000 requests a second");
        }
        if let Spread::Zipf(exponent) | Spread::Latest(exponent) = self.spread
            && !(0.0..=10.0).contains(&exponent)
        {
            return refuse("--zipf-exponent must be 0 to 10");
        }
        if self.mix.scan > 0 && self.target == TargetKind::Redis {
            return refuse(
                "workload e scans keys in order, which the Redis protocol has no command for; \
                 use --target kvdb-grpc or etcd",
            );
        }
        if self.mix.scan + self.mix.modify > 0 && self.target == TargetKind::KvdbBatch {
            return refuse(
                "a batch holds reads and writes of single keys; use --target kvdb-grpc for \
                 workloads e and f",
            );
        }
        Ok(())
    }
}

/// The largest value that KvDB takes.
const MAX_VALUE_BYTES: u32 = 8 * 1024 * 1024;

#[cfg(test)]
impl Options {
    /// Short and small.
    pub(crate) fn for_tests(target: TargetKind, address: &str) -> Self {
        Options {
            target,
            addresses: vec![address.to_owned()],
            keyspace: String::new(),
            mix: Mix::PUT,
            fill: false,
            keys: 100,
            spread: Spread::Even,
            value_bytes: 16..=16,
            seed: 1,
            clients: 4,
            pipeline: 1,
            connections: 2,
            rate: None,
            warm_up: Duration::ZERO,
            extent: Extent::Requests(400),
            timeout: Duration::from_secs(10),
            exactly_once: false,
            max_errors: 0,
            server_pids: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mix_is_of_a_hundred_parts() {
        use Workload::{A, B, C, D, E, F};
        for mix in [A, B, C, D, E, F].map(Workload::mix).into_iter().chain([Mix::PUT, Mix::GET]) {
            assert_eq!(mix.read + mix.update + mix.insert + mix.scan + mix.modify, 100, "{mix:?}");
        }
    }

    #[test]
    fn what_a_target_cannot_do_is_refused_before_anything_is_sent() {
        let refused = |target, mix| {
            let options = Options { mix, ..Options::for_tests(target, "a:1") };
            options.validate().unwrap_err().to_string()
        };
        assert!(refused(TargetKind::Redis, Workload::E.mix()).contains("kvdb-grpc or etcd"));
        assert!(refused(TargetKind::KvdbBatch, Workload::F.mix()).contains("kvdb-grpc"));
        assert!(Options::for_tests(TargetKind::Redis, "a:1").validate().is_ok());
    }

    #[test]
    fn sizes_and_rates_are_bounded() {
        let good = Options::for_tests(TargetKind::Etcd, "a:1");
        let bad = [
            Options { keys: 0, ..good.clone() },
            Options { value_bytes: RangeInclusive::new(9, 8), ..good.clone() },
            Options { value_bytes: 0..=u32::MAX, ..good.clone() },
            Options { rate: Some(f64::NAN), ..good.clone() },
            Options { spread: Spread::Zipf(-1.0), ..good.clone() },
            Options { pipeline: 0, ..good.clone() },
        ];
        for options in bad {
            assert!(options.validate().is_err(), "{options:?}");
        }
    }
}
