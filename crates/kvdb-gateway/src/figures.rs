//! Figures by keyspace: requests, refusals and times of each.
//!
//! The label is the keyspace's name, and there are at most [`MOST`]: the first that are used, until
//! they are dropped. What is asked of others counts under `(other)`, what is asked of keyspaces that
//! don't exist under `(unknown)`; no name can look like either. So neither many keyspaces nor clients
//! that make names up cost more than a bounded number of series.

use arc_swap::ArcSwap;
use kvdb_router::Routes;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use rustc_hash::FxHashMap;
use std::sync::Arc;
use std::time::Instant;

/// Keyspaces with figures of their own.
const MOST: usize = 64;
const OTHER: &str = "(other)";
const UNKNOWN: &str = "(unknown)";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Label {
    keyspace: Arc<str>,
}

/// Those of one keyspace.
#[derive(Clone)]
pub(crate) struct Figures {
    answered: Counter,
    failed: Counter,
    seconds: Histogram,
}

impl Figures {
    /// A request that began at `started` is over.
    pub(crate) fn count(&self, started: Instant, is_answered: bool) {
        match is_answered {
            true => self.count_many(started, 1, 0),
            false => self.count_many(started, 0, 1),
        }
    }

    /// Requests that ran together, from `started` on: their time counts once.
    pub(crate) fn count_many(&self, started: Instant, answered: u64, failed: u64) {
        self.answered.inc_by(answered);
        self.failed.inc_by(failed);
        self.seconds.observe(started.elapsed().as_secs_f64());
    }
}

#[derive(Clone)]
struct Families {
    answered: Family<Label, Counter>,
    failed: Family<Label, Counter>,
    seconds: Family<Label, Histogram>,
}

impl Families {
    fn of(&self, keyspace: &str) -> Arc<Figures> {
        let label = Label { keyspace: keyspace.into() };
        Arc::new(Figures {
            answered: self.answered.get_or_create(&label).clone(),
            failed: self.failed.get_or_create(&label).clone(),
            seconds: self.seconds.get_or_create(&label).clone(),
        })
    }

    fn remove(&self, keyspace: &str) {
        let label = Label { keyspace: keyspace.into() };
        self.answered.remove(&label);
        self.failed.remove(&label);
        self.seconds.remove(&label);
    }
}

type Known = FxHashMap<Arc<str>, Arc<Figures>>;

/// Those of all keyspaces.
#[derive(Clone)]
pub(crate) struct KeyspaceFigures {
    families: Families,
    known: Arc<ArcSwap<Known>>,
    writer: Arc<Mutex<()>>,
    other: Arc<Figures>,
    unknown: Arc<Figures>,
}

impl KeyspaceFigures {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let families = Families {
            answered: Family::default(),
            failed: Family::default(),
            seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.000_1, 4.0, 9))
            }),
        };
        let help = "Requests of a keyspace that were carried out, over gRPC and Redis";
        registry.register("kvdb_keyspace_requests", help, families.answered.clone());
        let help = "Requests of a keyspace that were refused or failed";
        registry.register("kvdb_keyspace_errors", help, families.failed.clone());
        let help =
            "Time of a keyspace's requests; those of a Redis pipeline that ran together count once";
        registry.register("kvdb_keyspace_request_seconds", help, families.seconds.clone());
        KeyspaceFigures {
            other: families.of(OTHER),
            unknown: families.of(UNKNOWN),
            families,
            known: Arc::default(),
            writer: Arc::default(),
        }
    }

    /// The figures of a keyspace; the empty name is `default`.
    pub(crate) fn of(&self, name: &str, routes: &Routes) -> Arc<Figures> {
        let name = if name.is_empty() { "default" } else { name };
        match self.known.load().get(name) {
            Some(known) => known.clone(),
            None if routes.keyspace(name).is_none() => self.unknown.clone(),
            None => self.begin(name, routes),
        }
    }

    fn begin(&self, name: &str, routes: &Routes) -> Arc<Figures> {
        let _writer = self.writer.lock();
        let mut known = Known::clone(&self.known.load());
        if let Some(there) = known.get(name) {
            return there.clone();
        }
        if known.len() >= MOST {
            let dropped = |name: &&Arc<str>| routes.keyspace(name).is_none();
            let dropped: Vec<_> = known.keys().filter(dropped).cloned().collect();
            for name in dropped {
                known.remove(&name);
                self.families.remove(&name);
            }
        }
        if known.len() >= MOST {
            return self.other.clone();
        }
        let new = self.families.of(name);
        known.insert(name.into(), new.clone());
        self.known.store(Arc::new(known));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::{Keyspace, KeyspaceId, MapChange, Partitioning, ShardMap};

    fn routes(names: impl Iterator<Item = String>) -> Routes {
        let mut map = ShardMap::default();
        for (id, name) in (1..).zip(names) {
            map.change(MapChange::Keyspace(Keyspace::new(
                KeyspaceId(id),
                &name,
                Partitioning::Hash,
            )));
        }
        let mut cache = kvdb_router::MapCache::default();
        cache.snapshot(map);
        cache.routes()
    }

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn each_keyspace_counts_for_itself_and_made_up_names_cost_nothing() {
        let mut registry = Registry::default();
        let figures = KeyspaceFigures::new(&mut registry);
        let names = ["default", "orders"].map(str::to_owned);
        let routes = routes(names.into_iter());
        let now = Instant::now();
        figures.of("", &routes).count(now, true);
        figures.of("default", &routes).count(now, true);
        figures.of("orders", &routes).count(now, false);
        for number in 0..1000 {
            figures.of(&format!("made-up-{number}"), &routes).count(now, false);
        }
        let text = text(&registry);
        assert!(text.contains("kvdb_keyspace_requests_total{keyspace=\"default\"} 2"), "{text}");
        assert!(text.contains("kvdb_keyspace_errors_total{keyspace=\"orders\"} 1"), "{text}");
        assert!(text.contains("kvdb_keyspace_errors_total{keyspace=\"(unknown)\"} 1000"));
        assert!(!text.contains("made-up"));
    }

    #[test]
    fn there_are_so_many_labels_and_those_of_dropped_keyspaces_go() {
        let mut registry = Registry::default();
        let figures = KeyspaceFigures::new(&mut registry);
        let name = |number: usize| format!("k{number}");
        let many = routes((0..MOST + 10).map(name));
        for number in 0..MOST + 10 {
            figures.of(&name(number), &many).count(Instant::now(), true);
        }
        let all = text(&registry);
        let series = all.matches("kvdb_keyspace_requests_total{").count();
        assert_eq!(series, MOST + 2);
        assert!(all.contains("kvdb_keyspace_requests_total{keyspace=\"(other)\"} 10"));
        // The first is dropped: its place goes to the next that comes.
        let fewer = routes((1..MOST + 10).map(name));
        figures.of(&name(MOST), &fewer).count(Instant::now(), true);
        let all = text(&registry);
        assert!(!all.contains("keyspace=\"k0\"") && all.contains(&format!("\"k{MOST}\"")), "{all}");
    }
}
