//! Which operation comes next. From a seed: two runs with the same options ask for the same keys.

use crate::options::{KEY_DIGITS, Mix, Options, Spread};
use bytes::Bytes;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Zipf};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use xxhash_rust::xxh3::xxh3_64;

/// Longest scan, in keys; their lengths are drawn evenly from 1 on.
const LONGEST_SCAN: u32 = 100;
/// Values begin anywhere in so many random bytes.
const NOISE_BYTES: usize = 64 * 1024;

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) action: Action,
    /// 16 bytes: `bench:` and ten digits.
    pub(crate) key: Bytes,
    /// Of writes; empty otherwise.
    pub(crate) value: Bytes,
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Action {
    Read,
    Update,
    Insert,
    /// Of so many keys.
    Scan(u32),
    Modify,
}

impl Action {
    pub(crate) const COUNT: usize = 5;
    pub(crate) const NAMES: [&'static str; Self::COUNT] =
        ["read", "update", "insert", "scan", "read_modify_write"];

    pub(crate) fn index(self) -> usize {
        match self {
            Action::Read => 0,
            Action::Update => 1,
            Action::Insert => 2,
            Action::Scan(_) => 3,
            Action::Modify => 4,
        }
    }

    pub(crate) fn is_read(self) -> bool {
        matches!(self, Action::Read | Action::Scan(_))
    }
}

/// What all clients share.
pub(crate) struct Load {
    mix: Mix,
    spread: Spread,
    keys: u64,
    value_bytes: RangeInclusive<u32>,
    /// Random text: values in which the same comes twice would flatter a store that compresses, and
    /// text can be exported as it is.
    noise: Bytes,
    seed: u64,
    /// Keys that were inserted beyond the first `keys`, or are about to be.
    insert_begun: AtomicU64,
    inserted: AtomicU64,
}

impl Load {
    pub(crate) fn new(options: &Options) -> Arc<Self> {
        let mut noise = vec![0; NOISE_BYTES + *options.value_bytes.end() as usize];
        ChaCha8Rng::seed_from_u64(options.seed).fill_bytes(&mut noise);
        // 64 characters that are printable: from `0` to `o`.
        noise.iter_mut().for_each(|byte| *byte = b'0' + (*byte & 63));
        Arc::new(Load {
            mix: options.mix,
            spread: options.spread,
            keys: options.keys,
            value_bytes: options.value_bytes.clone(),
            noise: noise.into(),
            seed: options.seed,
            insert_begun: AtomicU64::new(0),
            inserted: AtomicU64::new(0),
        })
    }

    /// The operations of one client.
    pub(crate) fn generator(self: &Arc<Self>, client: u32) -> Generator {
        // Not seed + client: a neighbouring seed would share all but one of its clients.
        let random = ChaCha8Rng::seed_from_u64(xxh3_64(
            &[self.seed.to_le_bytes(), u64::from(client).to_le_bytes()].concat(),
        ));
        let exponent = match self.spread {
            Spread::Zipf(exponent) | Spread::Latest(exponent) => exponent,
            Spread::Even | Spread::Uniform => 0.0,
        };
        Generator { load: Arc::clone(self), random, zipf: zipf(self.keys, exponent), exponent }
    }

    /// An insert was acknowledged.
    pub(crate) fn inserted(&self) {
        self.inserted.fetch_add(1, Ordering::Relaxed);
    }
}

fn zipf(keys: u64, exponent: f64) -> Zipf<f64> {
    Zipf::new(keys as f64, exponent).expect("there is a key, and the exponent was checked")
}

/// The operations of one client.
pub(crate) struct Generator {
    load: Arc<Load>,
    random: ChaCha8Rng,
    zipf: Zipf<f64>,
    exponent: f64,
}

impl Generator {
    /// The operation of the request with this number.
    pub(crate) fn operation(&mut self, number: u64) -> Operation {
        let action = self.action();
        let key = match action {
            Action::Insert => {
                self.load.keys + self.load.insert_begun.fetch_add(1, Ordering::Relaxed)
            }
            _ => self.key(number),
        };
        let value = if action.is_read() { Bytes::new() } else { self.value() };
        Operation { action, key: key_of(key), value }
    }

    /// The write of one key, in order: what fills the store.
    pub(crate) fn filling(&mut self, number: u64) -> Operation {
        Operation { action: Action::Update, key: key_of(number), value: self.value() }
    }

    fn action(&mut self) -> Action {
        let Mix { read, update, insert, scan, modify: _ } = self.load.mix;
        // One kind of operation alone needs no die.
        if read == 100 {
            return Action::Read;
        }
        if update == 100 {
            return Action::Update;
        }
        match self.random.random_range(0..100) {
            part if part < read => Action::Read,
            part if part < read + update => Action::Update,
            part if part < read + update + insert => Action::Insert,
            part if part < read + update + insert + scan => {
                Action::Scan(self.random.random_range(1..=LONGEST_SCAN))
            }
            _ => Action::Modify,
        }
    }

    /// The number of the key of the request with this number.
    fn key(&mut self, number: u64) -> u64 {
        let keys = self.load.keys;
        match self.load.spread {
            Spread::Even => scattered(number, keys),
            Spread::Uniform => self.random.random_range(0..keys),
            Spread::Zipf(_) => {
                let rank = self.zipf.sample(&mut self.random) as u64;
                xxh3_64(&rank.to_le_bytes()) % keys
            }
            Spread::Latest(exponent) => {
                let keys = keys + self.load.inserted.load(Ordering::Relaxed);
                debug_assert!(exponent == self.exponent);
                let rank = zipf(keys, exponent).sample(&mut self.random) as u64;
                keys - rank.clamp(1, keys)
            }
        }
    }

    fn value(&mut self) -> Bytes {
        let Load { value_bytes, noise, .. } = &*self.load;
        let (least, most) = (*value_bytes.start(), *value_bytes.end());
        let length =
            if least == most { least } else { self.random.random_range(least..=most) } as usize;
        let start = self.random.random_range(0..NOISE_BYTES);
        noise.slice(start..start + length)
    }
}

/// Neighbouring requests get keys that are far apart (by a step that is prime to most counts).
fn scattered(number: u64, keys: u64) -> u64 {
    number.wrapping_mul(2_654_435_761) % keys
}

fn key_of(number: u64) -> Bytes {
    let mut key = *b"bench:0000000000";
    let mut left = number;
    for digit in key.iter_mut().rev().take(KEY_DIGITS as usize) {
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
    }
    Bytes::copy_from_slice(&key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{TargetKind, Workload};
    use std::collections::{BTreeMap, BTreeSet};

    fn generator(options: Options) -> Generator {
        Load::new(&options).generator(0)
    }

    fn options() -> Options {
        Options::for_tests(TargetKind::KvdbGrpc, "a:1")
    }

    fn counts(spread: Spread, keys: u64, draws: u64) -> BTreeMap<Bytes, u64> {
        let mut generator = generator(Options { spread, keys, mix: Mix::GET, ..options() });
        let mut counts = BTreeMap::new();
        for number in 0..draws {
            *counts.entry(generator.operation(number).key).or_default() += 1;
        }
        counts
    }

    #[test]
    fn keys_have_sixteen_bytes() {
        assert_eq!(key_of(0), &b"bench:0000000000"[..]);
        assert_eq!(key_of(1_234_567_890), &b"bench:1234567890"[..]);
    }

    #[test]
    fn spread_evenly_all_keys_are_used_equally_often() {
        let counts = counts(Spread::Even, 1000, 3000);
        assert_eq!(counts.len(), 1000);
        assert!(counts.values().all(|count| *count == 3));
    }

    #[test]
    fn uniform_keys_stay_near_their_share() {
        let counts = counts(Spread::Uniform, 100, 100_000);
        assert!(counts.values().all(|count| (800..1200).contains(count)), "{counts:?}");
    }

    /// The shares of the frequent keys follow 1/rank^0.99: with 1,000 keys the first has 13.0 %,
    /// the second half of that.
    #[test]
    fn zipf_keys_follow_the_law() {
        let mut counts: Vec<u64> =
            counts(Spread::Zipf(0.99), 1000, 200_000).into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let sum: f64 = (1..=1000).map(|rank| f64::from(rank).powf(-0.99)).sum();
        let share = |rank: f64| rank.powf(-0.99) / sum;
        let found = |rank: usize| counts[rank - 1] as f64 / 200_000.0;
        assert!((found(1) - share(1.0)).abs() < 0.01, "{}", found(1));
        assert!((found(2) - share(2.0)).abs() < 0.01, "{}", found(2));
    }

    #[test]
    fn the_latest_keys_are_read_most_and_new_ones_join_them() {
        let options = Options { keys: 1000, mix: Workload::D.mix(), ..options() };
        let load = Load::new(&Options { spread: Workload::D.spread(), ..options });
        let mut generator = load.generator(0);
        let mut inserted = BTreeSet::new();
        let mut read_inserted = 0;
        for number in 0..20_000 {
            let operation = generator.operation(number);
            match operation.action {
                Action::Insert => {
                    assert!(inserted.insert(operation.key), "inserted twice");
                    load.inserted();
                }
                _ => read_inserted += u32::from(inserted.contains(&operation.key)),
            }
        }
        assert!((800..1200).contains(&inserted.len()), "{}", inserted.len());
        assert!(read_inserted > 10_000, "{read_inserted}");
    }

    #[test]
    fn a_mix_has_its_proportions() {
        let mut generator = generator(Options { mix: Workload::E.mix(), ..options() });
        let actions: Vec<Action> = (0..10_000).map(|n| generator.operation(n).action).collect();
        let scans = actions.iter().filter(|action| matches!(action, Action::Scan(1..=100))).count();
        assert!((9400..9600).contains(&scans), "{scans}");
        assert!(actions.iter().all(|a| matches!(a, Action::Scan(_) | Action::Insert)));
    }

    #[test]
    fn a_seed_names_the_operations() {
        let of = |seed, client| {
            let load = Load::new(&Options { seed, mix: Workload::A.mix(), ..options() });
            let mut generator = load.generator(client);
            (0..50).map(|number| generator.operation(number)).collect::<Vec<_>>()
        };
        assert_eq!(of(1, 1), of(1, 1));
        assert_ne!(of(1, 1), of(1, 2));
        assert_ne!(of(1, 1), of(2, 0));
    }

    #[test]
    fn values_are_printable_text() {
        let mut generator = generator(options());
        for _ in 0..100 {
            let value = generator.value();
            assert!(value.iter().all(u8::is_ascii_graphic), "{value:?}");
        }
    }

    #[test]
    fn values_have_the_sizes_asked_for() {
        let mut generator = generator(Options { value_bytes: 10..=20, ..options() });
        let sizes: BTreeSet<usize> =
            (0..1000).map(|n| generator.operation(n).value.len()).collect();
        assert_eq!(sizes, (10..=20).collect());
    }
}
