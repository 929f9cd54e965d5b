//! Watches: every write once, in order, none left out.
//!
//! A watch delivers the writes to the keys under a prefix in *lanes*. A lane is whatever the store
//! promises an order for: in KvDB the shard that a key is in at the time. The checker holds what was
//! delivered against the writes of the history that were answered with a version:
//!
//! - within a lane versions don't fall, and none is at or below a progress mark before it;
//! - the versions of one key rise strictly, over all lanes: nothing comes twice;
//! - what is delivered was written: by the write that was answered with this key and version, or by
//!   one of unknown outcome, each of which stands for one event at most;
//! - nothing is left out: a write that applied is due if it was called after the watch had started
//!   (or lies above the version that it resumes after) and returned before it was drained, and in any
//!   case if its version lies between two that were delivered for its key. A gap that the watch owns
//!   up to excuses the versions that it spans.
//!
//! Writes whose answer has no version, or doesn't tell whether they applied, are never due.

use crate::data::Data;
use crate::history::{Answer, Call, History, OpId, Operation, RequestId, Time, Version, Written};
use crate::verdict::Verdict;
use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Names a watch. One that breaks and resumes from its cursor goes on under the same name.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct WatchId(pub u64);

/// What events are ordered by: the shard, say.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Lane(pub u64);

/// Something that a watch delivered, or that was done to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchRecord {
    /// Which watch.
    pub watch: WatchId,
    /// What.
    #[serde(flatten)]
    pub delivery: Delivery,
}

/// What a watch delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "delivery", rename_all = "snake_case")]
pub enum Delivery {
    /// The first record of each watch: it covers what is called after `time`.
    Started {
        /// The keys that it covers.
        prefix: Data,
        /// When it was certainly in place.
        time: Time,
        /// It also covers everything above this version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<Version>,
    },
    /// A write.
    Event {
        /// In which order it stands.
        lane: Lane,
        /// The key.
        key: Data,
        /// Its value; `None` for a delete.
        #[serde(default)]
        value: Option<Data>,
        /// The version of the write.
        version: Version,
    },
    /// Nothing at or below this version will come in the lane any more.
    Progress {
        /// The lane.
        lane: Lane,
        /// The version.
        version: Version,
    },
    /// Something above `after` and at or below `through` may have been left out.
    Gap {
        /// The last version before it.
        after: Version,
        /// The last version in it.
        through: Version,
    },
    /// Everything that had returned before `time` has been delivered by now.
    Drained {
        /// When.
        time: Time,
    },
}

/// What is wrong with a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchAnomaly {
    /// Its first record isn't its start, or it starts twice.
    Misrecorded,
    /// An event is below what its lane had reached.
    OutOfOrder {
        /// The key.
        key: Data,
        /// The version delivered.
        version: Version,
        /// What its lane had reached.
        reached: Version,
    },
    /// An event came twice, or an older one of its key came after a newer.
    Repeated {
        /// The key.
        key: Data,
        /// The version delivered.
        version: Version,
        /// The version of the key that was delivered before.
        earlier: Version,
    },
    /// An event is no write of the history, or has another value.
    NeverWritten {
        /// The key.
        key: Data,
        /// The version delivered.
        version: Version,
    },
    /// A write that was due didn't come.
    Missing {
        /// The key.
        key: Data,
        /// Its version.
        version: Version,
        /// The write.
        operation: OpId,
    },
}

/// What the check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchReport {
    /// Watches looked at.
    pub watches: usize,
    /// Events that they delivered.
    pub events: usize,
    /// What is wrong, by watch.
    pub anomalies: Vec<(WatchId, WatchAnomaly)>,
}

impl WatchReport {
    /// In one word.
    pub fn verdict(&self) -> Verdict {
        Verdict::of(&self.anomalies)
    }
}

/// Checks all watches of a history against its writes.
pub fn check(history: &History) -> WatchReport {
    let writes = Writes::of(history);
    let mut streams: BTreeMap<WatchId, Vec<&Delivery>> = BTreeMap::new();
    for record in history.watches() {
        streams.entry(record.watch).or_default().push(&record.delivery);
    }
    let mut report = WatchReport { watches: streams.len(), events: 0, anomalies: Vec::new() };
    for (watch, deliveries) in streams {
        let mut stream = Stream::default();
        for (place, delivery) in deliveries.into_iter().enumerate() {
            if (place == 0) != matches!(delivery, Delivery::Started { .. }) {
                stream.anomalies.push(WatchAnomaly::Misrecorded);
            }
            stream.take(delivery, &writes);
        }
        stream.find_missing(&writes);
        report.events += stream.events;
        let anomalies = stream.anomalies.into_iter();
        report.anomalies.extend(anomalies.map(|anomaly| (watch, anomaly)));
    }
    report
}

/// A write that was answered as applied, with a version.
struct Write<'a> {
    operation: &'a Operation,
    returned: Time,
    key: &'a Data,
    version: Version,
}

/// What a write leaves, as far as the history tells.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left<'a> {
    This(Option<&'a Data>),
    /// The sum of a counter that wasn't told.
    SomeNumber,
}

impl Left<'_> {
    fn is(self, value: Option<&Data>) -> bool {
        match self {
            Left::This(left) => left == value,
            Left::SomeNumber => value.is_some_and(|value| value.as_number().is_some()),
        }
    }
}

struct Writes<'a> {
    known: Vec<Write<'a>>,
    by_version: FxHashMap<(&'a Data, Version), Option<Data>>,
    /// Writes that may or may not have applied, or whose version wasn't told.
    open: FxHashMap<&'a Data, Vec<(OpId, Left<'a>)>>,
}

impl<'a> Writes<'a> {
    fn of(history: &'a History) -> Self {
        let mut writes = Writes {
            known: Vec::new(),
            by_version: FxHashMap::default(),
            open: FxHashMap::default(),
        };
        // A request is tried until a try is answered: the others stand for nothing of their own.
        let mut settled: FxHashSet<RequestId> = FxHashSet::default();
        let (answered, open): (Vec<_>, Vec<_>) =
            history.operations().iter().partition(|operation| operation.returned().is_some());
        for operation in answered.into_iter().chain(open) {
            let again = operation.request.is_some_and(|request| settled.contains(&request));
            let is_open = operation.returned().is_none();
            if operation.has_failed() || again && is_open {
                continue;
            }
            settled.extend(operation.request);
            if let Some(key) = operation.call.register_key() {
                writes.add(operation, key);
            }
        }
        // What leaves one value is matched before what may leave any number.
        for open in writes.open.values_mut() {
            open.sort_by_key(|(_, left)| *left == Left::SomeNumber);
        }
        writes
    }

    fn add(&mut self, operation: &'a Operation, key: &'a Data) {
        let left = match &operation.call {
            Call::Put { value, .. } => Left::This(Some(value)),
            Call::Delete { .. } => Left::This(None),
            Call::Increment { .. } => Left::SomeNumber,
            _ => return,
        };
        match operation.returned() {
            Some((_, Answer::WrongValue)) => {}
            Some((_, Answer::Written(Written { applied: Some(false), .. }))) => {}
            Some((returned, Answer::Written(written))) if written.applied == Some(true) => {
                let Some(version) = written.version else {
                    self.open.entry(key).or_default().push((operation.id, left));
                    return;
                };
                let value = match (left, written.counter) {
                    (Left::This(value), _) => value.cloned(),
                    (_, Some(counter)) => Some(counter.to_string().into()),
                    (Left::SomeNumber, None) => {
                        self.open.entry(key).or_default().push((operation.id, left));
                        return;
                    }
                };
                self.by_version.insert((key, version), value);
                self.known.push(Write { operation, returned, key, version });
            }
            _ => self.open.entry(key).or_default().push((operation.id, left)),
        }
    }
}

/// One watch, as its deliveries are gone through.
#[derive(Default)]
struct Stream {
    prefix: Option<Data>,
    from: Time,
    after: Option<Version>,
    drained: Option<Time>,
    events: usize,
    lanes: FxHashMap<Lane, Version>,
    keys: FxHashMap<Data, Delivered>,
    gaps: Vec<(Version, Version)>,
    used: FxHashSet<OpId>,
    anomalies: Vec<WatchAnomaly>,
}

/// The versions that came for one key.
struct Delivered {
    first: Version,
    last: Version,
    all: FxHashSet<Version>,
}

impl Stream {
    fn take(&mut self, delivery: &Delivery, writes: &Writes<'_>) {
        match delivery {
            Delivery::Started { prefix, time, after } => {
                self.prefix = Some(prefix.clone());
                (self.from, self.after) = (*time, *after);
            }
            Delivery::Progress { lane, version } => {
                let reached = self.lanes.entry(*lane).or_default();
                // Above everything at or below it.
                *reached = (*reached).max(Version(version.0.saturating_add(1)));
            }
            Delivery::Gap { after, through } => self.gaps.push((*after, *through)),
            Delivery::Drained { time } => self.drained = self.drained.max(Some(*time)),
            Delivery::Event { lane, key, value, version } => {
                self.events += 1;
                self.note_order(*lane, key, *version);
                self.note_origin(key, value.as_ref(), *version, writes);
            }
        }
    }

    fn note_order(&mut self, lane: Lane, key: &Data, version: Version) {
        let reached = self.lanes.entry(lane).or_default();
        if version < *reached {
            let reached = *reached;
            self.anomalies.push(WatchAnomaly::OutOfOrder { key: key.clone(), version, reached });
        } else {
            *reached = version;
        }
        match self.keys.get_mut(key) {
            None => {
                let all = FxHashSet::from_iter([version]);
                self.keys.insert(key.clone(), Delivered { first: version, last: version, all });
            }
            Some(delivered) => {
                delivered.all.insert(version);
                if version <= delivered.last {
                    let earlier = delivered.last;
                    self.anomalies.push(WatchAnomaly::Repeated {
                        key: key.clone(),
                        version,
                        earlier,
                    });
                } else {
                    delivered.last = version;
                }
            }
        }
    }

    fn note_origin(
        &mut self,
        key: &Data,
        value: Option<&Data>,
        version: Version,
        writes: &Writes<'_>,
    ) {
        let covered = self.prefix.as_ref().is_some_and(|prefix| covers(prefix, key));
        let written = match writes.by_version.get(&(key, version)) {
            Some(written) => written.as_ref() == value,
            None => writes
                .open
                .get(key)
                .into_iter()
                .flatten()
                .any(|(operation, left)| left.is(value) && self.used.insert(*operation)),
        };
        if !(covered && written) {
            self.anomalies.push(WatchAnomaly::NeverWritten { key: key.clone(), version });
        }
    }

    fn find_missing(&mut self, writes: &Writes<'_>) {
        let Some(prefix) = self.prefix.clone() else { return };
        let missing = writes.known.iter().filter(|write| {
            covers(&prefix, write.key)
                && self.is_due(write)
                && !self.keys.get(write.key).is_some_and(|key| key.all.contains(&write.version))
        });
        let missing: Vec<_> = missing
            .map(|write| WatchAnomaly::Missing {
                key: write.key.clone(),
                version: write.version,
                operation: write.operation.id,
            })
            .collect();
        self.anomalies.extend(missing);
    }

    fn is_due(&self, write: &Write<'_>) -> bool {
        let version = write.version;
        if self.gaps.iter().any(|(after, through)| *after < version && version <= *through) {
            return false;
        }
        let between =
            self.keys.get(write.key).is_some_and(|key| key.first < version && version < key.last);
        let started =
            write.operation.called > self.from || self.after.is_some_and(|after| version > after);
        let drained = self.drained.is_some_and(|drained| write.returned < drained);
        between || started && drained
    }
}

fn covers(prefix: &Data, key: &Data) -> bool {
    key.as_bytes().starts_with(prefix.as_bytes())
}

impl fmt::Display for WatchAnomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WatchAnomaly::Misrecorded => {
                f.write_str("recorded wrongly: it must start once, before anything else")
            }
            WatchAnomaly::OutOfOrder { key, version, reached } => {
                write!(f, "{key} at version {version} came when its lane had reached {reached}")
            }
            WatchAnomaly::Repeated { key, version, earlier } => {
                write!(f, "{key} at version {version} came after version {earlier}")
            }
            WatchAnomaly::NeverWritten { key, version } => {
                write!(f, "{key} at version {version} is no write of the history")
            }
            WatchAnomaly::Missing { key, version, operation } => {
                write!(f, "{key} at version {version} (operation {operation}) never came")
            }
        }
    }
}

impl fmt::Display for WatchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = self.verdict();
        writeln!(f, "watches: {verdict} ({} watches, {} events)", self.watches, self.events)?;
        self.anomalies
            .iter()
            .try_for_each(|(watch, anomaly)| writeln!(f, "watch {}: {anomaly}", watch.0))
    }
}
