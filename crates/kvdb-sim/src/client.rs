//! Clients with a gateway's routing core each: map cache, routes, retries, request ids.

use crate::collections;
use crate::dice::Dice;
use crate::fleeting::{Asked, Told};
use crate::machine::News;
use crate::network::Place;
use crate::packet::{Ask, Call, Found, Packet, Reply};
use crate::world::{COORDINATORS, Event, PROCESSES, World};
use bytes::Bytes;
use kvdb_checker::{
    Answer, Call as Checked, ClientId, Condition as CheckedCondition, OpId, Time, Written,
};
use kvdb_model::planted::{Bug, has};
use kvdb_model::{
    Condition, NodeId, Operation, Partitioning, Refusal, RequestTag, ShardId, ShardTimes,
    ValidUntil, Version, Write,
};
use kvdb_router::{Failure, MapCache, Next, RequestMachine, Routes};
use kvdb_store::keys::{Delete, Expiry};
use kvdb_store::string::{Increment, Set};
use kvdb_store::{Command, End};
use std::collections::BTreeMap;

/// Keys that are put, deleted, compared; few, so that clients meet.
const REGISTERS: u64 = 6;
/// Keys that only count.
const COUNTERS: u64 = 5;
/// Keys that expire.
const FLEETING: u64 = 6;
/// Of 1000 operations, how many are on these.
const EXPIRING: u64 = 150;
/// Of 1000 puts, how many leave a collection.
const COLLECTIONS: u64 = 400;
/// Elements of one that lies in its key's record, and of one that doesn't.
const SMALL: u64 = 4;
const LARGE: u64 = if cfg!(feature = "small-collections") { 24 } else { 135 };
/// Of the counters these are the lengths of lists.
const LIST_COUNTERS: u64 = 2;
const DEADLINE_MS: u64 = 3_000;
/// A stream that is silent for so long is taken for broken.
const ATTEMPT_US: u64 = 600_000;
/// Of 1000 attempts, how many go to any node.
const STRAYING: u64 = 150;
/// How often the first client asks for the map; each one after it is four times as lazy, and
/// follows older maps.
const REFRESH_US: u64 = 200_000;
const MAP_PATIENCE_US: u64 = 200_000;
const LONGEST_THOUGHT_US: u64 = 30_000;
const VALID_MS: u64 = 5 * 60 * 1000;

pub(crate) struct Client {
    id: usize,
    dice: Dice,
    cache: MapCache,
    routes: Routes,
    coordinator: usize,
    /// When it asked for the map, if it wasn't answered yet.
    refreshing_since_us: Option<u64>,
    sequence: u64,
    attempt: u64,
    current: Option<Current>,
    /// How old shards are, as they have said, and when.
    ages: BTreeMap<ShardId, (u64, u64)>,
    /// Operations that ended as they should.
    pub(crate) succeeded: u64,
}

/// Until when an id is valid, by the age of its shard.
#[derive(Clone, Copy)]
struct Stamped {
    until_ms: u64,
    at_us: u64,
    /// By what the shard had said; otherwise by a guess.
    was_told: bool,
}

/// Where an operation is noted.
#[derive(Clone, Copy)]
enum Noted {
    /// In the history of keys that stay until somebody deletes them.
    History(OpId),
    /// Among those on keys that expire.
    Fleeting(usize),
}

/// What is noted of an operation when it begins.
enum Note {
    History(Checked),
    Fleeting(u64, Asked),
}

/// The operation under way.
struct Current {
    noted: Noted,
    routing_key: Bytes,
    what: What,
    tag: RequestTag,
    machine: RequestMachine,
    began_us: u64,
    stamped: Option<Stamped>,
    /// Where it was sent last.
    shard: ShardId,
    node: Option<NodeId>,
    at: Option<NodeId>,
    avoid: Option<NodeId>,
}

#[derive(Clone)]
enum What {
    Get,
    /// All of them or none; what the last one comes to is the answer.
    Write(Vec<Operation>),
}

/// Folds news of the map into a cache.
pub(crate) fn learn_news(cache: &mut MapCache, news: News) {
    match news {
        News::Snapshot(map) => cache.snapshot(*map),
        News::Deltas(deltas) => {
            for delta in deltas {
                // One that doesn't follow: another answer was faster; the next poll mends it.
                if cache.delta(&delta).is_err() {
                    return;
                }
            }
        }
    }
}

fn fleeting(number: u64) -> String {
    format!("fleeting-{number}")
}

/// Whether this is the routing key of a key that expires.
pub(crate) fn expires(routing_key: &[u8]) -> bool {
    (0..FLEETING).any(|number| routing_key.ends_with(fleeting(number).as_bytes()))
}

fn operation(command: &impl Command, condition: Option<Condition>) -> What {
    What::Write(vec![Operation { condition, ..command.on(Bytes::new()) }])
}

fn counter(number: u64) -> String {
    format!("counter-{number}")
}

/// Whether a key counts by the length of a list.
pub(crate) fn is_list_counter(key: &[u8]) -> bool {
    (0..LIST_COUNTERS).any(|number| key.ends_with(counter(number).as_bytes()))
}

/// A key that clients count in: the most telling one for what must happen once.
pub(crate) fn a_counter(dice: &mut Dice) -> Bytes {
    counter(dice.below(COUNTERS)).into()
}

impl Client {
    pub(crate) fn new(id: usize, seed: u64) -> Self {
        Client {
            id,
            dice: Dice::new(seed),
            cache: MapCache::default(),
            routes: Routes::default(),
            coordinator: id % COORDINATORS,
            refreshing_since_us: None,
            sequence: 0,
            attempt: 0,
            current: None,
            ages: BTreeMap::new(),
            succeeded: 0,
        }
    }

    /// The next thing to do: what the judge is told, and what is asked.
    fn choose(&mut self) -> (Note, Bytes, What) {
        if self.dice.chance(EXPIRING) {
            let (key, asked, what) = self.choose_fleeting();
            return (Note::Fleeting(key, asked), fleeting(key).into(), what);
        }
        let (checked, key, what) = self.choose_lasting();
        (Note::History(checked), key, what)
    }

    fn choose_fleeting(&mut self) -> (u64, Asked, What) {
        let key = self.dice.below(FLEETING);
        if self.dice.chance(500) {
            return (key, Asked::Get, What::Get);
        }
        let ttl_ms = match self.dice.below(8) {
            0 => None,
            1..=2 => Some(self.dice.between(5_000, 30_000)),
            _ => Some(self.dice.between(10, 1_500)),
        };
        let value = format!("{}.{}", self.id, self.sequence);
        let what = match ttl_ms {
            // Half of what expires does so by its fields.
            Some(ttl_ms) if self.sequence.is_multiple_of(2) => {
                let fields = if self.sequence.is_multiple_of(4) { LARGE } else { SMALL };
                What::Write(collections::hash_until(&value, fields, ttl_ms))
            }
            _ => {
                let value = Bytes::from(value.clone());
                operation(&Set { value, expiry: Expiry::after(ttl_ms) }, None)
            }
        };
        (key, Asked::Put { value, ttl_ms }, what)
    }

    fn choose_lasting(&mut self) -> (Checked, Bytes, What) {
        let counts = self.dice.chance(400);
        let key = if counts {
            counter(self.dice.below(COUNTERS))
        } else {
            format!("key-{}", self.dice.below(REGISTERS))
        };
        let user_key = Bytes::from(key.clone());
        // Values are written once each, so that a read says whose write it saw.
        let value = format!("{}.{}", self.id, self.sequence);
        let put = Set { value: Bytes::from(value.clone()), expiry: Expiry::Never };
        let (checked, what) = match (counts, self.dice.below(10)) {
            (_, 0..=3) => (Checked::get(key.as_str()), What::Get),
            (true, _) => {
                let what = match is_list_counter(&user_key) {
                    true => {
                        let end = if self.dice.chance(500) { End::First } else { End::Last };
                        operation(&collections::pushed(end, &value), None)
                    }
                    false => operation(&Increment { delta: 1 }, None),
                };
                (Checked::increment(key.as_str(), 1), what)
            }
            (false, 4..=5) if self.dice.chance(COLLECTIONS) => {
                let most = if self.dice.chance(500) { LARGE } else { SMALL };
                let count = self.dice.between(most - 2, most);
                let what = match self.dice.below(3) {
                    0 => collections::hash(&value, count),
                    1 => collections::set(&value, count),
                    _ => collections::list(&value, count),
                };
                (Checked::put(key.as_str(), value.as_str()), What::Write(what))
            }
            (false, 4..=6) => (Checked::put(key.as_str(), value.as_str()), operation(&put, None)),
            (false, 7) => (Checked::delete(key.as_str()), operation(&Delete, None)),
            (false, 8) => (
                Checked::put_if(key.as_str(), value.as_str(), CheckedCondition::IfAbsent),
                operation(&put, Some(Condition::IfAbsent)),
            ),
            (false, _) => (
                Checked::put_if(key.as_str(), value.as_str(), CheckedCondition::IfPresent),
                operation(&put, Some(Condition::IfPresent)),
            ),
        };
        (checked, user_key, what)
    }
}

impl World {
    /// The time of this world and its nights, in microseconds.
    pub(crate) fn true_us(&self) -> u64 {
        self.now_us + self.nights_us
    }

    fn place_of_client(client: usize) -> Place {
        PROCESSES + client
    }

    /// What a client is about, for whoever wonders why it gets no further.
    pub(crate) fn doing(&self, id: usize) -> String {
        let client = &self.clients[id];
        let Some(current) = &client.current else { return "it rests".to_owned() };
        let key = String::from_utf8_lossy(current.routing_key.get(6..).unwrap_or_default());
        let route = client.routes.route(&current.routing_key, None);
        let replicas: Vec<String> = self
            .processes
            .iter()
            .filter(|process| !process.is_coordinator)
            .filter_map(|process| {
                let shard = route.as_ref()?.shard_id;
                let group = process.core.as_ref()?.host.status(shard)?;
                Some(format!("{}: {group:?}", process.name))
            })
            .collect();
        format!("it asks for {key}, by {route:?}; {}", replicas.join("; "))
    }

    /// A client begins its next operation.
    pub(crate) fn begin(&mut self, id: usize) {
        let now_us = self.now_us;
        let Some(keyspace) = self.clients[id].routes.keyspace("").cloned() else {
            self.ask_for_map(id);
            return self.schedule(20_000, Event::Begin { client: id });
        };
        let client = &mut self.clients[id];
        let (note, user_key, what) = client.choose();
        let routing_key = match keyspace.partitioning {
            Partitioning::Hash => Partitioning::Hash.routing_key(keyspace.keyspace_id, &user_key),
            other => other.routing_key(keyspace.keyspace_id, &user_key),
        };
        client.sequence += 1;
        let tag = RequestTag {
            client_id: Bytes::from(format!("client-{id}")),
            sequence: client.sequence,
            // One at a time: all before are settled, or given up as unknown.
            acked_below: client.sequence,
            valid_until: ValidUntil::Age(0),
        };
        let is_write = matches!(what, What::Write(_));
        let seed = client.dice.any();
        let noted = match note {
            Note::History(checked) => {
                Noted::History(self.recorder.call(ClientId(id as u64), checked, Time(now_us)))
            }
            Note::Fleeting(key, asked) => {
                let true_us = now_us + self.nights_us;
                Noted::Fleeting(self.fleeting.call(key, asked, true_us))
            }
        };
        client.current = Some(Current {
            noted,
            routing_key,
            what,
            tag,
            machine: RequestMachine::new(DEADLINE_MS, is_write, true, seed),
            began_us: now_us,
            stamped: None,
            shard: ShardId(0),
            node: None,
            at: None,
            avoid: None,
        });
        self.attempt(id);
    }

    fn attempt(&mut self, id: usize) {
        let now_us = self.now_us;
        let client = &mut self.clients[id];
        client.attempt += 1;
        let attempt = client.attempt;
        let Some(current) = &mut client.current else { return };
        // Now and then a gateway holds an old map, or a node's word is old.
        if client.dice.chance(STRAYING) {
            let nodes: Vec<NodeId> = client.cache.map().nodes.keys().copied().collect();
            current.at = nodes.get(client.dice.below(nodes.len() as u64) as usize).copied();
        }
        let route = client.routes.route(&current.routing_key, current.avoid).map(|route| {
            match current.at.take() {
                Some(node) => (node, client.routes.address(node).cloned(), route),
                None => (route.node, Some(route.address.clone()), route),
            }
        });
        let Some((node, Some(address), route)) = route else {
            current.node = None;
            return self.failed(id, Failure::NotSent, None);
        };
        current.node = Some(node);
        current.shard = route.shard_id;
        let stamped = current.stamped.get_or_insert_with(|| {
            let heard = client.ages.get(&route.shard_id);
            let heard = heard.filter(|_| !has(Bug::FrontClockInIds));
            // Without word of the shard it is a guess, by the clock of some machine.
            let guess_ms = self.processes[0].clock.at(now_us).wall_ms;
            let age_ms = heard.map_or(guess_ms, |(age_ms, at_us)| age_ms + (now_us - at_us) / 1000);
            Stamped {
                until_ms: age_ms.saturating_add(VALID_MS),
                at_us: now_us,
                was_told: heard.is_some(),
            }
        });
        current.tag.valid_until = ValidUntil::Age(stamped.until_ms);
        if has(Bug::RetryWithoutId) {
            client.sequence += 1;
            current.tag.sequence = client.sequence;
        }
        let ask = match &current.what {
            What::Get => Ask::Get { epoch: route.epoch, key: current.routing_key.clone() },
            What::Write(operations) => Ask::Write(Write {
                epoch: route.epoch,
                atomic: operations.len() > 1,
                request: Some(current.tag.clone()),
                operations: (0..)
                    .zip(operations)
                    .map(|(item, operation)| {
                        let key = current.routing_key.clone();
                        Operation { key, item, ..operation.clone() }
                    })
                    .collect(),
            }),
        };
        let left_us = (current.began_us + DEADLINE_MS * 1000).saturating_sub(now_us);
        let Some(target) = crate::node::place_at(&address) else { return };
        let packet = Packet::Ask { attempt, shard: route.shard_id, ask };
        self.send(Self::place_of_client(id), target, packet);
        self.schedule(left_us.min(ATTEMPT_US), Event::GiveUp { client: id, attempt });
    }

    /// No answer came in time.
    pub(crate) fn give_up(&mut self, id: usize, attempt: u64) {
        let now_us = self.now_us;
        let client = &mut self.clients[id];
        if client.attempt != attempt {
            return;
        }
        let Some(current) = &mut client.current else { return };
        if now_us >= current.began_us + DEADLINE_MS * 1000 {
            let refusal = current.machine.timed_out(true);
            return self.end(id, Err(refusal));
        }
        self.failed(id, Failure::NoAnswer, None);
    }

    pub(crate) fn retry(&mut self, id: usize, attempt: u64) {
        if self.clients[id].attempt == attempt && self.clients[id].current.is_some() {
            self.attempt(id);
        }
    }

    fn failed(&mut self, id: usize, failure: Failure, hint: Option<NodeId>) {
        if !matches!(failure, Failure::Refused(_)) {
            self.ask_for_map(id);
        }
        let now_us = self.now_us;
        let client = &mut self.clients[id];
        let attempt = client.attempt;
        let Some(current) = &mut client.current else { return };
        let elapsed_ms = (now_us - current.began_us) / 1000;
        match current.machine.failed(failure, current.node, hint, elapsed_ms) {
            Next::TryAt(node) => {
                current.at = Some(node);
                self.attempt(id);
            }
            Next::TryAgain { after_ms, refresh, avoid } => {
                current.avoid = avoid;
                if refresh {
                    self.ask_for_map(id);
                }
                self.schedule(after_ms * 1000, Event::Retry { client: id, attempt });
            }
            Next::Fail(refusal) => self.end(id, Err(refusal)),
        }
    }

    fn end(&mut self, id: usize, result: Result<Found, Refusal>) {
        let client = &mut self.clients[id];
        let Some(current) = client.current.take() else { return };
        client.succeeded += u64::from(result.is_ok());
        match current.noted {
            Noted::History(op) => self.note_history(op, &current.what, result),
            Noted::Fleeting(operation) => self.note_fleeting(operation, &current.what, result),
        }
        let thought_us = self.clients[id].dice.below(LONGEST_THOUGHT_US);
        self.schedule(thought_us, Event::Begin { client: id });
    }

    fn note_fleeting(&mut self, operation: usize, what: &What, result: Result<Found, Refusal>) {
        let told = match (what, result) {
            (What::Get, Ok(Found::Record(record))) => {
                Told::Got(record.map(|(value, version)| {
                    (String::from_utf8_lossy(&value).into_owned(), version)
                }))
            }
            (What::Write(_), Ok(Found::Written(result))) => Told::Put(result.version),
            (What::Write(_), Err(Refusal::OutcomeUnknown { .. })) => Told::Nothing,
            _ => Told::Refused,
        };
        let true_us = self.true_us();
        self.fleeting.end(operation, told, true_us);
    }

    fn note_history(&mut self, op: OpId, what: &What, result: Result<Found, Refusal>) {
        let now = Time(self.now_us);
        match (what, result) {
            (What::Get, Ok(Found::Record(record))) => {
                let (value, version) = record.unzip();
                let answer = Answer::Got {
                    value: value.map(|value: Bytes| value.as_ref().into()),
                    version: version.map(|version: Version| kvdb_checker::Version(version.0)),
                };
                self.recorder.ok(op, answer, now);
            }
            (What::Write(operations), Ok(Found::Written(result))) => {
                let version = kvdb_checker::Version(result.version.0);
                let counts = operations.iter().any(|operation| operation.body.id == Increment::ID);
                let answer = Answer::Written(Written {
                    applied: Some(result.applied),
                    previous: None,
                    counter: result.reply.integer().filter(|_| counts),
                    version: result.applied.then_some(version),
                });
                self.recorder.ok(op, answer, now);
            }
            (What::Write(_), Err(Refusal::OutcomeUnknown { .. })) => {
                self.recorder.unknown(op);
            }
            (_, Err(_)) => self.recorder.fail(op),
            (_, Ok(_)) => {
                self.checks.violations.push("an answer of another kind than was asked".to_owned());
            }
        }
    }

    pub(crate) fn client_hears(&mut self, id: usize, packet: Packet) {
        match packet {
            Packet::Answer { attempt, times, result } => {
                self.hear_age(id, attempt, times);
                // An answer to an attempt that was given up goes nowhere, as with a closed stream.
                if self.clients[id].attempt != attempt || self.clients[id].current.is_none() {
                    return;
                }
                match result {
                    Ok(found) => self.end(id, Ok(found)),
                    Err(refusal) if self.stamps_anew(id, &refusal) => self.attempt(id),
                    Err(refusal) => {
                        let hint = self.learn(id, &refusal);
                        self.failed(id, Failure::Refused(refusal), hint);
                    }
                }
            }
            Packet::Reply(Reply::Map(news)) => {
                let client = &mut self.clients[id];
                client.refreshing_since_us = None;
                learn_news(&mut client.cache, news);
                client.routes = client.cache.routes();
                let version = client.cache.version();
                self.checks.sees_map(Self::place_of_client(id), 0, version);
            }
            Packet::Reply(Reply::NotLeader) => {
                let client = &mut self.clients[id];
                client.refreshing_since_us = None;
                client.coordinator = (client.coordinator + 1) % COORDINATORS;
            }
            _ => {}
        }
    }

    fn hear_age(&mut self, id: usize, attempt: u64, times: ShardTimes) {
        let now_us = self.now_us;
        let client = &mut self.clients[id];
        if let Some(current) = &client.current
            && client.attempt == attempt
            && times.time_ms > 0
        {
            client.ages.insert(current.shard, (times.age_ms, now_us));
        }
    }

    /// As a gateway does: an id that was stamped with a wrong guess, and refused before anything can
    /// have been done, is stamped with what the refusal tells. One that was stamped with what the shard
    /// had said must not be refused.
    fn stamps_anew(&mut self, id: usize, refusal: &Refusal) -> bool {
        let Refusal::RequestIdExpired { valid_until, shard, .. } = refusal else { return false };
        let now_us = self.now_us;
        let client = &mut self.clients[id];
        let Some(current) = &mut client.current else { return false };
        let Some(stamped) = current.stamped else { return false };
        let is_young = now_us < stamped.at_us + VALID_MS * 900;
        if is_young && (stamped.was_told || has(Bug::FrontClockInIds)) {
            let age_ms = (now_us - stamped.at_us) / 1000;
            self.checks.violations.push(format!(
                "the id of client {id} is refused {age_ms} ms after it was stamped: {refusal}"
            ));
            return false;
        }
        let until_ms = valid_until.millis();
        let is_wrong = until_ms <= shard.age_ms || until_ms > shard.age_ms + 2 * VALID_MS;
        if current.machine.is_unknown() || !is_wrong {
            return false;
        }
        let until_ms = shard.age_ms + VALID_MS;
        current.stamped = Some(Stamped { until_ms, at_us: now_us, was_told: true });
        client.ages.insert(current.shard, (shard.age_ms, now_us));
        true
    }

    /// What a refusal teaches, and the registered node that it points to.
    fn learn(&mut self, id: usize, refusal: &Refusal) -> Option<NodeId> {
        let client = &mut self.clients[id];
        match refusal {
            Refusal::NotLeader { leader_hint, shard_id } => {
                let hint = leader_hint.as_deref().and_then(|hint| client.routes.node_at(hint));
                match hint {
                    Some(_) => {
                        client.cache.learn_leader(*shard_id, hint);
                        client.routes = client.cache.routes();
                    }
                    None => self.ask_for_map(id),
                }
                hint
            }
            Refusal::ShardMoved { descriptors, .. } | Refusal::StaleEpoch { descriptors, .. } => {
                client.cache.learn(descriptors);
                client.routes = client.cache.routes();
                self.ask_for_map(id);
                None
            }
            _ => None,
        }
    }

    /// The poll that stands in for a watch.
    pub(crate) fn refresh(&mut self, id: usize) {
        self.ask_for_map(id);
        self.schedule(REFRESH_US << (2 * id), Event::Refresh { client: id });
    }

    fn ask_for_map(&mut self, id: usize) {
        let now_us = self.now_us;
        let client = &mut self.clients[id];
        if let Some(asked_us) = client.refreshing_since_us {
            if now_us < asked_us + MAP_PATIENCE_US {
                return;
            }
            // It wasn't answered: another coordinator may be.
            client.coordinator = (client.coordinator + 1) % COORDINATORS;
        }
        client.refreshing_since_us = Some(now_us);
        let target = client.coordinator;
        let since = client.cache.version();
        self.send(Self::place_of_client(id), target, Packet::Call(Call::Map { since }));
    }
}
