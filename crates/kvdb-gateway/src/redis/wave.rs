//! Steps on keys, carried out together: one message a shard for what is written, one for what is
//! read.
//!
//! Steps on one key keep their order: they are on one shard, and what is written there goes in one
//! batch, in order. A read of keys one of which is written in the same wave goes with the writes; other
//! reads don't enter the log.
//!
//! A batch is sent again under the same request id until it is settled, so each step takes effect
//! once. After a split its steps go separate ways, each still known by its place in the wave.
//!
//! Where the answers of a batch are more than a message holds, the steps after that wait until those before them
//! were taken: nothing that was taken away is lost on the way, and a gateway holds no more than a message of
//! answers a shard.

use crate::ages::Stamping;
use crate::batch::{execute_on, outcomes_of};
use crate::execute::Own;
use crate::route::{Answered, Gateway, Nature, Place};
use crate::service::{Freshness, Identified, other_kind};
use bytes::Bytes;
use futures_util::future::{join, join_all};
use kvdb_model::{Keyspace, Operation, Refusal, RetryClass, ShardId, WriteResult};
use kvdb_redis::plan::Step;
use kvdb_router::Route;
use kvdb_store::{Effect, command};
use kvdb_wire::proto::node_answer::Answer;
use kvdb_wire::proto::node_operation::Operation as Asked;
use kvdb_wire::{execute, proto};
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Longest that a wave takes, retries included.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest pause before what was refused is asked for again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Most steps in one message.
const BATCH_STEPS: usize = 1024;
/// Most bytes in one message, a step more at most.
const BATCH_BYTES: usize = 4 << 20;
/// Bytes after which the answers to reads of several keys end, those of all shards together; a value
/// more of each at most.
const READ_BYTES: u64 = 128 << 10;
/// Of which each shard may have so many in any case.
const LEAST_READ_BYTES: u64 = 16 << 10;

/// What a step came to.
pub(crate) type Outcome = Result<WriteResult, Refusal>;

struct Placed {
    step: Step,
    routing_key: Bytes,
    outcome: Option<Outcome>,
    writes: bool,
    /// Shard time as its outcome was answered, in milliseconds since 1970; 0 before.
    now_ms: AtomicU64,
}

/// Steps of one keyspace, and what has become of them.
pub(crate) struct Wave<'a> {
    gateway: &'a Gateway,
    keyspace: &'a Keyspace,
    deadline: Instant,
    /// Whether that holds for all of it, however often it goes on.
    is_deadline_fixed: bool,
    own: Option<Own>,
    /// Of what it reads without writing.
    fresh: Freshness,
    seen: Seen,
    placed: Vec<Placed>,
    /// Steps that have changed their key, until they are asked for.
    changes: u64,
    /// What hasn't been written yet, since the answers before it filled a message.
    unwritten: Vec<Unwritten>,
}

/// The states that reads came from.
struct Seen {
    /// The earliest time of any of the shards; above all others before.
    as_of: AtomicU64,
    /// One of the nodes; 0 before.
    served_by: AtomicU64,
}

/// Steps of one shard that are to be written one after the other.
struct Unwritten {
    shard: ShardId,
    id: Identified,
    /// Of the present batch.
    open: Vec<usize>,
    /// After it.
    rest: Vec<usize>,
}

impl<'a> Wave<'a> {
    pub(crate) fn new(gateway: &'a Gateway, keyspace: &'a Keyspace, steps: Vec<Step>) -> Self {
        let mut written = HashSet::new();
        for step in &steps {
            if effect(step) > Effect::Read || step.is_required() {
                written.insert(step.key.clone());
                written.extend(step.others.iter().cloned());
            }
        }
        let placed = steps
            .into_iter()
            .map(|step| {
                let writes = written.contains(&step.key)
                    || step.others.iter().any(|key| written.contains(key));
                let outcome = check(gateway, &step).err().map(Err);
                let routing_key =
                    keyspace.partitioning.routing_key(keyspace.keyspace_id, &step.key);
                Placed { step, routing_key, outcome, writes, now_ms: AtomicU64::new(0) }
            })
            .collect();
        let deadline = Instant::now() + PATIENCE;
        Wave {
            gateway,
            keyspace,
            deadline,
            is_deadline_fixed: false,
            own: None,
            fresh: Freshness::STRONG,
            seen: Seen { as_of: AtomicU64::new(u64::MAX), served_by: AtomicU64::new(0) },
            placed,
            changes: 0,
            unwritten: vec![],
        }
    }

    /// The same, done by a deadline.
    #[must_use]
    pub(crate) fn until(self, deadline: Instant) -> Self {
        Wave { deadline, is_deadline_fixed: true, ..self }
    }

    /// The same, under a client's own request id, if there is one.
    #[must_use]
    pub(crate) fn identified(self, own: Option<Own>) -> Self {
        Wave { own, ..self }
    }

    /// The same, with reads that are no older than that.
    #[must_use]
    pub(crate) fn fresh(self, fresh: Freshness) -> Self {
        Wave { fresh, ..self }
    }

    /// Whether no step may change anything.
    pub(crate) fn only_reads(&self) -> bool {
        self.placed.iter().all(|placed| !placed.writes)
    }

    /// A node that has served reads, and the earliest time of their shards in the states that were read; zeros if
    /// nothing was read.
    pub(crate) fn seen(&self) -> (u64, u64) {
        match self.seen.served_by.load(Relaxed) {
            0 => (0, 0),
            served_by => (served_by, self.seen.as_of.load(Relaxed)),
        }
    }

    /// The request id of writes to a shard.
    fn ticket(&self, shard: ShardId) -> Identified {
        match &self.own {
            Some(own) => Identified { tag: own.tag.clone(), lane: None },
            None => {
                let lane = self.gateway.lanes.begin(shard);
                Identified { tag: lane.tag.clone(), lane: Some(lane) }
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.placed.len()
    }

    /// Carries writes out, as far as their answers fit in a message a shard, and begins to read.
    pub(crate) async fn start(&mut self) {
        let open =
            |place: &usize| self.placed[*place].writes && self.placed[*place].outcome.is_none();
        let groups = self.by_shard((0..self.placed.len()).filter(open));
        self.unwritten = groups
            .into_iter()
            .map(|(shard, rest)| Unwritten { shard, id: self.ticket(shard), open: vec![], rest })
            .collect();
        self.write_and_read(0..self.placed.len()).await;
    }

    async fn write_and_read(&mut self, range: std::ops::Range<usize>) {
        let unwritten = std::mem::take(&mut self.unwritten);
        let writes = join_all(unwritten.into_iter().map(|unwritten| self.write(unwritten)));
        let (written, read) = join(writes, self.read_some(range)).await;
        for (settled, unwritten) in written {
            self.settle(settled);
            self.unwritten.extend(unwritten);
        }
        self.settle(read);
    }

    /// Writes what is left, and reads more of the steps in a range, in order.
    pub(crate) async fn go_on(&mut self, range: std::ops::Range<usize>) {
        if !self.is_deadline_fixed {
            self.deadline = Instant::now() + PATIENCE;
        }
        self.write_and_read(range).await;
    }

    /// How many steps have changed their key since this was asked last.
    pub(crate) fn take_changes(&mut self) -> u64 {
        std::mem::take(&mut self.changes)
    }

    /// Whether all steps in a range are done.
    pub(crate) fn is_done(&self, range: std::ops::Range<usize>) -> bool {
        self.placed[range].iter().all(|placed| placed.outcome.is_some())
    }

    /// Bytes that the steps in a range have come to so far.
    pub(crate) fn size_bytes(&self, range: std::ops::Range<usize>) -> usize {
        let size = |placed: &Placed| match &placed.outcome {
            Some(Ok(WriteResult { previous, reply, .. })) => {
                previous.as_ref().map_or(0, |previous| previous.value.len())
                    + reply.size_bytes()
                    + 32
            }
            _ => 0,
        };
        self.placed[range].iter().map(size).sum()
    }

    /// Copies the values that it holds. They come as parts of messages for many clients, and one who
    /// doesn't read its answers would keep all of these.
    pub(crate) fn detach(&mut self) {
        for placed in &mut self.placed {
            let Some(Ok(WriteResult { previous, reply, .. })) = &mut placed.outcome else {
                continue;
            };
            reply.detach();
            if let Some(previous) = previous {
                previous.value = Bytes::copy_from_slice(&previous.value);
            }
        }
    }

    /// Shard time as the first step of a range was answered, in milliseconds since 1970.
    pub(crate) fn now_ms(&self, range: &std::ops::Range<usize>) -> u64 {
        let first = self.placed.get(range.start).map(|placed| placed.now_ms.load(Relaxed));
        first.filter(|now_ms| *now_ms > 0).unwrap_or_else(|| self.gateway.now_ms())
    }

    fn answered_at(&self, places: &[usize], now_ms: u64) {
        places.iter().for_each(|place| self.placed[*place].now_ms.store(now_ms, Relaxed));
    }

    /// Takes the outcomes of a range.
    pub(crate) fn take(&mut self, range: std::ops::Range<usize>) -> Vec<Outcome> {
        self.placed[range]
            .iter_mut()
            .map(|placed| placed.outcome.take().unwrap_or_else(|| Err(other_kind())))
            .collect()
    }

    fn settle(&mut self, outcomes: impl IntoIterator<Item = (usize, Outcome)>) {
        for (place, outcome) in outcomes {
            let placed = &mut self.placed[place];
            let changes = effect(&placed.step) > Effect::Read;
            self.changes += u64::from(changes && outcome.as_ref().is_ok_and(|done| done.applied));
            placed.outcome = Some(outcome);
        }
    }

    /// The steps that are to be written, by the shard they are on now.
    fn by_shard(&self, places: impl IntoIterator<Item = usize>) -> BTreeMap<ShardId, Vec<usize>> {
        let mut groups: BTreeMap<ShardId, Vec<usize>> = BTreeMap::new();
        for place in places {
            let route = self.gateway.find(Place::At(&self.placed[place].routing_key), None);
            // Those without a route wait for one together.
            let shard = route.map_or(ShardId(0), |route| route.shard_id);
            groups.entry(shard).or_default().push(place);
        }
        groups
    }

    /// Writes steps of one shard: as few batches as they fit in, one after the other, up to one whose answers are
    /// more than a message holds. What is left comes back.
    async fn write(&self, mut unwritten: Unwritten) -> (Vec<(usize, Outcome)>, Option<Unwritten>) {
        let mut settled = Vec::with_capacity(unwritten.open.len() + unwritten.rest.len());
        loop {
            if unwritten.open.is_empty() {
                if unwritten.rest.is_empty() {
                    return (settled, None);
                }
                let length = self.batch_length(&unwritten.rest);
                unwritten.open = unwritten.rest.drain(..length).collect();
                unwritten.id = self.ticket(unwritten.shard);
            }
            let is_unsure = self.write_batch(&mut unwritten, &mut settled).await;
            if !unwritten.open.is_empty() {
                // What was certainly not carried out needs the id no more, and its answers needn't be kept.
                if !is_unsure {
                    unwritten.id = self.ticket(unwritten.shard);
                }
                return (settled, Some(unwritten));
            }
        }
    }

    fn batch_length(&self, places: &[usize]) -> usize {
        let mut size = 0;
        let mut count = 0;
        for place in places.iter().take(BATCH_STEPS) {
            if size >= BATCH_BYTES {
                break;
            }
            size += size_of(&self.placed[*place].step);
            count += 1;
        }
        count
    }

    /// Writes a batch; what stays open was refused because the answers before it filled a message. Returns
    /// whether an earlier try of that may have been carried out.
    async fn write_batch(
        &self,
        unwritten: &mut Unwritten,
        settled: &mut Vec<(usize, Outcome)>,
    ) -> bool {
        let Unwritten { id, open, .. } = unwritten;
        open.retain(|place| match self.on_one_shard(*place) {
            Ok(()) => true,
            Err(refusal) => {
                settled.push((*place, Err(refusal)));
                false
            }
        });
        let mut was_unsure = false;
        while let Some(first) = open.first() {
            let place = Place::At(&self.placed[*first].routing_key);
            // Only what is on the shard that it is routed to.
            let here = |route: &Route| -> Vec<usize> {
                open.iter().copied().filter(|place| self.is_on(*place, route)).collect()
            };
            let build = |route: &Route, stamping: Stamping<'_>| {
                let operations = here(route).iter().map(|place| self.operation(*place)).collect();
                execute_on(route, operations, false, &id.tag, stamping)
            };
            let asked = self.gateway.ask(place, Nature::TaggedWrite, self.deadline, build).await;
            let (answer, sent) = match asked {
                Ok(Answered { answer: Answer::Execute(answer), route, now_ms, is_unsure }) => {
                    was_unsure |= is_unsure;
                    let sent = here(&route);
                    self.answered_at(&sent, now_ms);
                    (answer, sent)
                }
                asked => {
                    let why = asked.err().unwrap_or_else(other_kind);
                    self.refuse(open, &why, settled);
                    open.clear();
                    return was_unsure;
                }
            };
            let outcomes = answer.results.into_iter().map(execute::outcome_from);
            let mut is_full = false;
            for (place, outcome) in sent.into_iter().zip(outcomes) {
                if matches!(outcome, Err(Refusal::ResponseTooLarge { .. })) {
                    is_full = true;
                    continue;
                }
                if let Err(refusal) = &outcome
                    && refusal.class() == RetryClass::RetryElsewhere
                    && self.learn_and_wait(refusal).await
                {
                    // It was not carried out; maybe its keys have gone separate ways.
                    let Err(apart @ Refusal::CrossShard { .. }) = self.on_one_shard(place) else {
                        continue;
                    };
                    open.retain(|open| *open != place);
                    settled.push((place, Err(apart)));
                    continue;
                }
                open.retain(|open| *open != place);
                settled.push((place, outcome));
            }
            if is_full {
                return was_unsure;
            }
        }
        was_unsure
    }

    fn refuse(&self, open: &[usize], why: &Refusal, settled: &mut Vec<(usize, Outcome)>) {
        settled.extend(open.iter().map(|place| (*place, Err(why.clone()))));
    }

    /// Whether it is worth another try.
    async fn learn_and_wait(&self, refusal: &Refusal) -> bool {
        let mut changes = self.gateway.map.changes();
        changes.mark_unchanged();
        if let Refusal::StaleEpoch { descriptors, .. } | Refusal::ShardMoved { descriptors, .. } =
            refusal
        {
            self.gateway.map.learn(descriptors);
        }
        self.gateway.map.refresh();
        // A change of the map, also what was learned just now, is worth trying at once.
        let _ = tokio::time::timeout(RETRY_PAUSE, changes.changed()).await;
        Instant::now() < self.deadline
    }

    fn is_on(&self, place: usize, route: &Route) -> bool {
        route.range.contains(&self.placed[place].routing_key)
    }

    /// Whether the other keys of a step are on the shard of its own.
    fn on_one_shard(&self, place: usize) -> Result<(), Refusal> {
        let placed = &self.placed[place];
        if placed.step.others.is_empty() {
            return Ok(());
        }
        let others = placed.step.others.iter().map(|key| self.routing_key(key));
        self.one_shard(others.chain([placed.routing_key.clone()])).map(|_| ())
    }

    fn one_shard(&self, keys: impl Iterator<Item = Bytes>) -> Result<ShardId, Refusal> {
        let shard = |key: Bytes| {
            let route = self.gateway.find(Place::At(&key), None);
            route.map(|route| route.shard_id).ok_or_else(|| {
                self.gateway.dropped(Place::At(&key)).unwrap_or(Refusal::NotInitialised)
            })
        };
        let mut shards = keys.map(shard).collect::<Result<Vec<_>, _>>()?;
        shards.sort_unstable();
        shards.dedup();
        match shards[..] {
            [shard] => Ok(shard),
            _ => Err(Refusal::CrossShard { shards }),
        }
    }

    /// Carries all steps out together or not at all; all are then done.
    ///
    /// # Errors
    /// Why none was carried out, or the outcome is unknown.
    pub(crate) async fn together(&mut self) -> Result<(), Refusal> {
        if let Some(Err(refusal)) = self.placed.iter().find_map(|placed| placed.outcome.clone()) {
            return Err(refusal);
        }
        (0..self.placed.len()).try_for_each(|place| self.on_one_shard(place))?;
        let keys = self.placed.iter().map(|placed| placed.routing_key.clone());
        let shard = self.one_shard(keys)?;
        let ticket = self.ticket(shard);
        let operations: Vec<_> =
            (0..self.placed.len()).map(|place| self.operation(place)).collect();
        loop {
            let Some(first) = self.placed.first() else { return Ok(()) };
            let build = |route: &Route, stamping: Stamping<'_>| {
                execute_on(route, operations.clone(), true, &ticket.tag, stamping)
            };
            let place = Place::At(&first.routing_key);
            let asked = self.gateway.ask(place, Nature::TaggedWrite, self.deadline, build).await?;
            let all: Vec<usize> = (0..self.placed.len()).collect();
            self.answered_at(&all, asked.now_ms);
            let outcomes = outcomes_of(asked.answer, self.placed.len())?;
            let moved = outcomes.iter().find_map(|outcome| match outcome {
                // These are about one command alone.
                Err(Refusal::WrongValue(_) | Refusal::InvalidArgument { .. }) => None,
                Err(refusal) => Some(refusal.clone()),
                _ => None,
            });
            let Some(refusal) = moved else {
                self.settle(outcomes.into_iter().enumerate());
                return Ok(());
            };
            if refusal.class() != RetryClass::RetryElsewhere || !self.learn_and_wait(&refusal).await
            {
                return Err(refusal);
            }
            self.one_shard(self.placed.iter().map(|placed| placed.routing_key.clone()))?;
        }
    }

    fn operation(&self, place: usize) -> Operation {
        let Placed { step, routing_key, .. } = &self.placed[place];
        let operation = Operation {
            others: step.others.iter().map(|key| self.routing_key(key)).collect(),
            item: place as u32,
            condition: step.condition.clone(),
            return_previous: step.return_previous,
            required: step.is_required(),
            sealed: self.own.as_ref().map_or(0, |own| own.fingerprint),
            ..Operation::new(routing_key.clone(), step.body.clone())
        };
        operation.sealed()
    }

    fn routing_key(&self, key: &[u8]) -> Bytes {
        self.keyspace.partitioning.routing_key(self.keyspace.keyspace_id, key)
    }

    async fn read_some(&self, range: std::ops::Range<usize>) -> Vec<(usize, Outcome)> {
        let open = |place: &usize| {
            let placed = &self.placed[*place];
            !placed.writes && placed.outcome.is_none()
        };
        let mut places: Vec<usize> = range.filter(open).collect();
        let mut settled = Vec::new();
        places.retain(|place| match self.on_one_shard(*place) {
            Ok(()) => true,
            Err(refusal) => {
                settled.push((*place, Err(refusal)));
                false
            }
        });
        let groups = self.by_shard(places);
        let max_bytes = (READ_BYTES / groups.len().max(1) as u64).max(LEAST_READ_BYTES);
        let read = groups.into_values().map(|places| self.read_group(places, max_bytes));
        settled.extend(join_all(read).await.into_iter().flatten());
        settled
    }

    /// The first of the reads of one shard, as many as fit in an answer.
    async fn read_group(&self, places: Vec<usize>, max_bytes: u64) -> Vec<(usize, Outcome)> {
        let Some(first) = places.first() else { return vec![] };
        let here = |route: &Route| {
            let here = places.iter().copied().filter(|place| self.is_on(*place, route));
            here.take(BATCH_STEPS).collect::<Vec<usize>>()
        };
        let build = |route: &Route, _: Stamping<'_>| {
            let steps = here(route).into_iter().map(|place| self.operation(place)).collect();
            Asked::Query(proto::NodeQueryRequest {
                consistency: self.fresh.consistency,
                max_staleness_ms: self.fresh.max_staleness_ms,
                min_version: self.fresh.min_version,
                ..execute::query_request(route.shard_id, route.epoch, steps, max_bytes)
            })
        };
        let place = Place::At(&self.placed[*first].routing_key);
        match self.gateway.ask(place, self.fresh.nature(), self.deadline, build).await {
            Ok(Answered { answer: Answer::Query(answer), route, now_ms, .. }) => {
                let read = here(&route);
                self.seen.as_of.fetch_min(answer.as_of_version, Relaxed);
                self.seen.served_by.store(answer.served_by, Relaxed);
                self.answered_at(&read, now_ms);
                read.into_iter()
                    .zip(answer.results.into_iter().map(execute::outcome_from))
                    .collect()
            }
            Ok(_) => vec![(*first, Err(other_kind()))],
            Err(refusal) => {
                // Keys that have gone separate ways meanwhile are what is to be said of a step.
                let why = |place: &usize| match self.on_one_shard(*place) {
                    Err(apart @ Refusal::CrossShard { .. }) => apart,
                    _ => refusal.clone(),
                };
                places.iter().map(|place| (*place, Err(why(place)))).collect()
            }
        }
    }
}

/// What a step may do to what is stored.
fn effect(step: &Step) -> Effect {
    command::find(&step.body).map_or(Effect::Grow, |row| row.effect)
}

/// Whether a step may leave something in a database that nothing was ever written to.
pub(crate) fn makes(step: &Step) -> bool {
    effect(step) == Effect::Grow
}

/// What a step that makes nothing comes to where there are no keys at all.
pub(crate) fn on_nothing(gateway: &Gateway, step: &Step) -> Outcome {
    check(gateway, step)?;
    kvdb_store::on_nothing(&bare(step))
}

/// A step as an operation on its user keys.
fn bare(step: &Step) -> Operation {
    Operation {
        others: step.others.clone(),
        condition: step.condition.clone(),
        return_previous: step.return_previous,
        ..Operation::new(step.key.clone(), step.body.clone())
    }
}

/// Whether a step keeps to the limits.
pub(super) fn check(gateway: &Gateway, step: &Step) -> Result<(), Refusal> {
    let limits = &gateway.limits;
    std::iter::once(&step.key).chain(&step.others).try_for_each(|key| limits.check_key(key))?;
    kvdb_store::check(&bare(step), limits).map(|_| ())
}

fn size_of(step: &Step) -> usize {
    let others: usize = step.others.iter().map(|key| key.len() + 8).sum();
    step.key.len() + step.body.args.len() + others + 48
}
