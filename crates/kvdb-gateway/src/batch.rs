//! Batches: grouped by shard, a message to each, and put together again.
//!
//! Shards split and move while a batch is under way, so a part of a group may turn out to belong
//! elsewhere. Such items go into another round: grouped anew by what the refusals have taught, under
//! the same request id and with the same places in the request, so that an item whose first try has
//! an unknown outcome is answered from the request window instead of being carried out twice.
//! Only a deadline ends the rounds.

use crate::ages::Stamping;
use crate::route::{Gateway, Nature, Place};
use crate::service::{Freshness, Identified, other_kind};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream;
use kvdb_model::{
    Keyspace, Operation, OperationOutcome, Refusal, RequestTag, RetryClass, ShardId, Write,
    WriteResult,
};
use kvdb_router::{Failure, Next, RequestMachine, Route};
use kvdb_wire::proto::node_answer::Answer;
use kvdb_wire::proto::node_operation::Operation as Asked;
use kvdb_wire::{
    client_tag_from, execute, proto, refusal_from_proto, refusal_to_proto, requests, transport,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Shards that one `BatchGet` asks at the same time. Each may hold an answer as large as a
/// message.
const SHARDS_AT_ONCE: usize = 16;
/// What a result takes up beside its key and value: numbers, or a refusal in words.
const RESULT_OVERHEAD_BYTES: usize = 192;

/// The rounds of one batch.
struct Rounds {
    machine: RequestMachine,
    started: Instant,
}

impl Rounds {
    fn new(gateway: &Gateway, deadline: Instant, is_write: bool) -> Self {
        let started = Instant::now();
        let deadline_ms = deadline.saturating_duration_since(started).as_millis() as u64;
        let seed = gateway.seeds.fetch_add(1, Ordering::Relaxed);
        Rounds { machine: RequestMachine::new(deadline_ms, is_write, true, seed), started }
    }

    /// Waits for the next round after a part was refused, or says that there is none.
    async fn next(&mut self, gateway: &Gateway, refusal: Refusal) -> bool {
        let now_ms = self.started.elapsed().as_millis() as u64;
        let next = match self.machine.failed(Failure::Refused(refusal), None, None, now_ms) {
            Next::Fail(_) => return false,
            next => next,
        };
        gateway.follow(next, &mut None).await.is_ok()
    }
}

/// Whether an item belongs to another shard than it was sent to.
fn is_elsewhere(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::StaleEpoch { .. } | Refusal::ShardMoved { .. })
}

/// An operation of a batch.
struct Item {
    /// With its routing key.
    operation: Operation,
    /// Which of the batch's request ids it goes under; chosen once.
    id: Option<usize>,
    /// A try of it may have been carried out, and nothing has settled that.
    is_unsure: bool,
}

/// What a group came to: by place in the batch.
struct Written {
    outcomes: Vec<(usize, OperationOutcome)>,
    is_unsure: bool,
}

impl Gateway {
    pub(crate) async fn get_many(
        &self,
        request: proto::BatchGetRequest,
        deadline: Instant,
    ) -> Result<proto::BatchGetResponse, Refusal> {
        let keyspace = self.current_keyspace(&request.keyspace).await?;
        requests::check_keys(&request.keys, &self.limits)?;
        let fresh = Freshness {
            consistency: request.consistency,
            max_staleness_ms: request.max_staleness_ms,
            min_version: request.min_version,
        };
        requests::consistency_from(fresh.consistency)?;
        let routing: Vec<Bytes> = request
            .keys
            .iter()
            .map(|key| self.routing_key(&keyspace, key))
            .collect::<Result<_, _>>()?;
        let budget = budget_of(&request.keys);
        let mut results = vec![proto::BatchGetResult::default(); routing.len()];
        let mut open: Vec<usize> = (0..routing.len()).collect();
        let mut rounds = Rounds::new(self, deadline, false);
        while !open.is_empty() {
            let groups = self.grouped(open.iter().map(|place| (*place, &routing[*place])));
            let reads = groups.into_values().map(|places| {
                self.get_group(&keyspace, &request, &routing, fresh, budget, places, deadline)
            });
            let read = stream::iter(reads).buffer_unordered(SHARDS_AT_ONCE).collect::<Vec<_>>();
            open.clear();
            let mut elsewhere = None;
            for (place, result) in read.await.into_iter().flatten() {
                let refusal = result.refusal.clone().map(refusal_from_proto);
                if let Some(refusal) = refusal.filter(is_elsewhere) {
                    self.learn_from(&refusal);
                    elsewhere = Some(refusal);
                    open.push(place);
                }
                results[place] = result;
            }
            if let Some(refusal) = elsewhere
                && !rounds.next(self, refusal).await
            {
                let late = Some(refusal_to_proto(&Refusal::DeadlineExceeded));
                open.drain(..).for_each(|place| results[place].refusal = late.clone());
            }
        }
        mark_beyond(&mut results, budget);
        Ok(proto::BatchGetResponse { results })
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one request, used in one place")]
    async fn get_group(
        &self,
        keyspace: &Keyspace,
        request: &proto::BatchGetRequest,
        routing: &[Bytes],
        fresh: Freshness,
        budget: usize,
        places: Vec<usize>,
        deadline: Instant,
    ) -> Vec<(usize, proto::BatchGetResult)> {
        let keys: Vec<Bytes> = places.iter().map(|place| request.keys[*place].clone()).collect();
        let build = |route: &Route, _: Stamping<'_>| {
            Asked::BatchGet(proto::NodeBatchGetRequest {
                shard_id: route.shard_id.0,
                epoch: route.epoch.0,
                keyspace_id: keyspace.keyspace_id.0,
                keys: keys.clone(),
                consistency: fresh.consistency,
                head_only: request.head_only,
                max_staleness_ms: fresh.max_staleness_ms,
                min_version: fresh.min_version,
                max_bytes: budget as u64,
            })
        };
        let place = Place::At(&routing[places[0]]);
        let asked = self.ask(place, fresh.nature(), deadline, build).await;
        let refusal = match asked.map(|asked| asked.answer) {
            Ok(Answer::BatchGet(answer)) if answer.results.len() == keys.len() => {
                return places.into_iter().zip(answer.results).collect();
            }
            Ok(_) => other_kind(),
            Err(refusal) => refusal,
        };
        let refused = |key| proto::BatchGetResult {
            key,
            refusal: Some(refusal_to_proto(&refusal)),
            ..Default::default()
        };
        places.into_iter().zip(keys.into_iter().map(refused)).collect()
    }

    pub(crate) async fn write_many(
        &self,
        request: proto::BatchWriteRequest,
        deadline: Instant,
    ) -> Result<proto::BatchWriteResponse, Refusal> {
        let keyspace = self.current_keyspace(&request.keyspace).await?;
        let own = client_tag_from(request.request_id.clone(), &self.limits)?;
        let operations = requests::batch_operations(request.operations, &self.limits)?;
        let outcomes = if request.atomic {
            self.write_together(&keyspace, operations, own, deadline).await?
        } else {
            self.write_each(&keyspace, operations, own, deadline).await?
        };
        let mut results: Vec<_> = outcomes.into_iter().map(requests::batch_result).collect();
        requests::omit_previous_beyond(&mut results, self.limits.request_max_bytes);
        Ok(proto::BatchWriteResponse { results })
    }

    /// One operation on a user key.
    pub(crate) async fn write_one(
        &self,
        keyspace: &Keyspace,
        operation: Operation,
        own: Option<RequestTag>,
        deadline: Instant,
    ) -> OperationOutcome {
        let operation = self.with_routing_key(keyspace, operation)?;
        let id = self.identify(own, &operation.key);
        let place = Place::At(&operation.key);
        let mut is_unsure = false;
        let mut rounds = None;
        loop {
            let build = |route: &Route, stamping: Stamping<'_>| {
                execute_on(route, vec![operation.clone()], false, &id.tag, stamping)
            };
            let asked = self.ask(place, Nature::TaggedWrite, deadline, build).await?;
            is_unsure |= asked.is_unsure;
            let outcome = outcomes_of(asked.answer, 1)?.pop().ok_or_else(other_kind)?;
            let refusal = match outcome {
                Err(refusal) if is_elsewhere(&refusal) => refusal,
                mut outcome => {
                    stay_unsure(is_unsure, &mut outcome);
                    return outcome;
                }
            };
            self.learn_from(&refusal);
            let rounds = rounds.get_or_insert_with(|| Rounds::new(self, deadline, true));
            if !rounds.next(self, refusal).await {
                return Err(if is_unsure { unsure() } else { Refusal::DeadlineExceeded });
            }
        }
    }

    /// An operation with its routing key.
    fn with_routing_key(
        &self,
        keyspace: &Keyspace,
        operation: Operation,
    ) -> Result<Operation, Refusal> {
        let key = self.routing_key(keyspace, &operation.key)?;
        Ok(Operation { key, ..operation }.sealed())
    }

    /// Operations that stand alone: an outcome for each.
    async fn write_each(
        &self,
        keyspace: &Keyspace,
        operations: Vec<Operation>,
        own: Option<RequestTag>,
        deadline: Instant,
    ) -> Result<Vec<OperationOutcome>, Refusal> {
        let mut items = self.items_of(keyspace, operations)?;
        let mut ids: Vec<Identified> = Vec::new();
        let mut outcomes: Vec<OperationOutcome> =
            items.iter().map(|_| Err(Refusal::DeadlineExceeded)).collect();
        let mut open: Vec<usize> = (0..items.len()).collect();
        let mut size = 0;
        let mut rounds = Rounds::new(self, deadline, true);
        while !open.is_empty() {
            let groups = self.write_groups(&mut items, &open, own.as_ref(), &mut ids);
            let writes = groups
                .iter()
                .map(|(id, places)| self.write_group(&items, places, &ids[*id], deadline));
            let written = join_all(writes).await;
            open.clear();
            let mut elsewhere = None;
            for Written { outcomes: answered, is_unsure } in written {
                for (place, outcome) in answered {
                    items[place].is_unsure |= is_unsure;
                    size += outcome.as_ref().map_or(0, WriteResult::answer_bytes);
                    // It wasn't carried out, and there is room for its answer yet.
                    let is_beyond = matches!(outcome, Err(Refusal::ResponseTooLarge { .. }));
                    if is_beyond && size <= self.limits.request_max_bytes {
                        open.push(place);
                    }
                    if let Err(refusal) = &outcome
                        && is_elsewhere(refusal)
                    {
                        self.learn_from(refusal);
                        elsewhere = Some(refusal.clone());
                        open.push(place);
                    }
                    outcomes[place] = outcome;
                }
            }
            if let Some(refusal) = elsewhere
                && !rounds.next(self, refusal).await
            {
                open.drain(..).for_each(|place| outcomes[place] = Err(Refusal::DeadlineExceeded));
            }
        }
        for (item, outcome) in items.iter().zip(&mut outcomes) {
            stay_unsure(item.is_unsure, outcome);
        }
        Ok(outcomes)
    }

    fn items_of(
        &self,
        keyspace: &Keyspace,
        operations: Vec<Operation>,
    ) -> Result<Vec<Item>, Refusal> {
        let item = |operation: Operation| {
            let operation = self.with_routing_key(keyspace, operation)?;
            Ok(Item { operation, id: None, is_unsure: false })
        };
        operations.into_iter().map(item).collect()
    }

    /// Places by the shard that holds them now.
    fn grouped<'a>(
        &self,
        places: impl Iterator<Item = (usize, &'a Bytes)>,
    ) -> BTreeMap<ShardId, Vec<usize>> {
        let mut groups: BTreeMap<ShardId, Vec<usize>> = BTreeMap::new();
        for (place, key) in places {
            groups.entry(self.shard_of(key)).or_default().push(place);
        }
        groups
    }

    /// The shard of a key; 0 where none is known.
    fn shard_of(&self, routing_key: &[u8]) -> ShardId {
        self.find(Place::At(routing_key), None).map_or(ShardId(0), |route| route.shard_id)
    }

    /// What goes together: one shard, one request id. An item that has an id keeps it.
    fn write_groups(
        &self,
        items: &mut [Item],
        open: &[usize],
        own: Option<&RequestTag>,
        ids: &mut Vec<Identified>,
    ) -> Vec<(usize, Vec<usize>)> {
        let shards = self.grouped(open.iter().map(|place| (*place, &items[*place].operation.key)));
        let mut groups = Vec::new();
        for places in shards.into_values() {
            let mut by_id: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            let mut new = None;
            for place in places {
                let Item { id, operation, .. } = &mut items[place];
                let id = *id.get_or_insert_with(|| {
                    *new.get_or_insert_with(|| match own {
                        // All go under the caller's own.
                        Some(_) if !ids.is_empty() => 0,
                        _ => {
                            ids.push(self.identify(own.cloned(), &operation.key));
                            ids.len() - 1
                        }
                    })
                });
                by_id.entry(id).or_default().push(place);
            }
            groups.extend(by_id);
        }
        groups
    }

    async fn write_group(
        &self,
        items: &[Item],
        places: &[usize],
        id: &Identified,
        deadline: Instant,
    ) -> Written {
        let operations = || places.iter().map(|place| items[*place].operation.clone()).collect();
        let place = Place::At(&items[places[0]].operation.key);
        let build = |route: &Route, stamping: Stamping<'_>| {
            execute_on(route, operations(), false, &id.tag, stamping)
        };
        let asked = self.ask(place, Nature::TaggedWrite, deadline, build).await;
        let (answered, is_unsure) = match asked {
            Ok(asked) => match outcomes_of(asked.answer, places.len()) {
                Ok(outcomes) => (Ok(outcomes), asked.is_unsure),
                Err(refusal) => (Err(refusal), true),
            },
            Err(refusal) => (Err(refusal), false),
        };
        let outcomes = answered
            .unwrap_or_else(|refusal| places.iter().map(|_| Err(refusal.clone())).collect());
        Written { outcomes: places.iter().copied().zip(outcomes).collect(), is_unsure }
    }

    /// All operations or none.
    async fn write_together(
        &self,
        keyspace: &Keyspace,
        operations: Vec<Operation>,
        own: Option<RequestTag>,
        deadline: Instant,
    ) -> Result<Vec<OperationOutcome>, Refusal> {
        let items = self.items_of(keyspace, operations)?;
        let shards_of = || items.iter().map(|item| self.shard_of(&item.operation.key));
        let shards: BTreeSet<ShardId> = shards_of().collect();
        // One that comes again under its caller's id may have been carried out when its keys were
        // on one shard still: both sides of a split know the answer.
        if shards.len() > 1 && own.is_none() {
            return Err(Refusal::CrossShard { shards: shards.into_iter().collect() });
        }
        let id = self.identify(own, &items[0].operation.key);
        let operations = || items.iter().map(|item| item.operation.clone()).collect();
        let mut rounds = Rounds::new(self, deadline, true);
        let mut is_unsure = false;
        loop {
            let place = Place::At(&items[0].operation.key);
            let build = |route: &Route, stamping: Stamping<'_>| {
                execute_on(route, operations(), true, &id.tag, stamping)
            };
            let asked = self.ask(place, Nature::TaggedWrite, deadline, build).await?;
            is_unsure |= asked.is_unsure;
            let outcomes = outcomes_of(asked.answer, items.len())?;
            let refusal = outcomes.iter().find_map(|outcome| outcome.as_ref().err());
            let Some(refusal) = refusal.filter(|refusal| is_elsewhere(refusal)).cloned() else {
                return Ok(outcomes);
            };
            self.learn_from(&refusal);
            let shards: BTreeSet<ShardId> = shards_of().collect();
            if matches!(refusal, Refusal::ShardMoved { .. }) && shards.len() > 1 {
                // The shard of the first key has no answer and can't carry it out any more, nor
                // can an earlier try: its epoch is over.
                return Err(Refusal::CrossShard { shards: shards.into_iter().collect() });
            }
            if !rounds.next(self, refusal).await {
                return Err(if is_unsure { unsure() } else { Refusal::DeadlineExceeded });
            }
        }
    }
}

/// A write for the shard that it is routed to.
pub(crate) fn execute_on(
    route: &Route,
    operations: Vec<Operation>,
    atomic: bool,
    tag: &RequestTag,
    mut stamping: Stamping<'_>,
) -> Asked {
    let request = Some(stamping.tag(tag));
    let write = Write { epoch: route.epoch, atomic, request, operations };
    Asked::Execute(execute::execute_request(route.shard_id, write))
}

/// What each of `count` operations came to.
pub(crate) fn outcomes_of(answer: Answer, count: usize) -> Result<Vec<OperationOutcome>, Refusal> {
    match answer {
        Answer::Execute(answer) if answer.results.len() == count => {
            Ok(answer.results.into_iter().map(execute::outcome_from).collect())
        }
        _ => Err(other_kind()),
    }
}

fn unsure() -> Refusal {
    Refusal::OutcomeUnknown { reason: "an earlier try may have been carried out" }
}

/// A refusal doesn't settle an operation whose earlier try may have been carried out, unless it comes
/// from the request window itself.
fn stay_unsure(is_unsure: bool, outcome: &mut OperationOutcome) {
    let Err(refusal) = outcome else { return };
    let settles = matches!(refusal, Refusal::RequestIdReused { .. } | Refusal::WrongValue(_));
    if is_unsure && !settles && refusal.class() != RetryClass::OutcomeUnknown {
        *refusal = unsure();
    }
}

/// Bytes of values that fit into an answer for these keys.
fn budget_of(keys: &[Bytes]) -> usize {
    let keys: usize = keys.iter().map(|key| key.len() + RESULT_OVERHEAD_BYTES).sum();
    transport::MAX_MESSAGE_BYTES.saturating_sub(keys)
}

/// Marks what doesn't fit.
fn mark_beyond(results: &mut [proto::BatchGetResult], budget: usize) {
    let mut left = budget;
    for result in results {
        match left.checked_sub(result.value.len()) {
            Some(rest) => left = rest,
            None => {
                let refusal = Refusal::ResponseTooLarge { limit_bytes: budget as u64 };
                *result = proto::BatchGetResult {
                    key: std::mem::take(&mut result.key),
                    refusal: Some(refusal_to_proto(&refusal)),
                    ..Default::default()
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    #[test]
    fn what_does_not_fit_is_marked_and_the_answer_stays_within_a_message() {
        let keys: Vec<Bytes> = (0..5000u32).map(|n| Bytes::from(format!("key-{n:0900}"))).collect();
        let value = Bytes::from(vec![0; 8192]);
        let mut results: Vec<_> = keys
            .iter()
            .map(|key| proto::BatchGetResult {
                key: key.clone(),
                found: true,
                value: value.clone(),
                version: u64::MAX,
                expires_at_ms: u64::MAX,
                served_by: 7,
                refusal: None,
                as_of_version: u64::MAX,
            })
            .collect();
        mark_beyond(&mut results, budget_of(&keys));
        let fitting = results.iter().filter(|result| result.refusal.is_none()).count();
        assert!(fitting > 1000, "{fitting}");
        assert!(results.iter().zip(&keys).all(|(result, key)| result.key == key));
        let marked = results.last().unwrap().refusal.clone().unwrap();
        assert_eq!(marked.code, "RESPONSE_TOO_LARGE");
        let size = proto::BatchGetResponse { results }.encoded_len();
        assert!(size <= transport::MAX_MESSAGE_BYTES, "{size}");
        assert!(size > transport::MAX_MESSAGE_BYTES * 9 / 10, "{size}");
    }

    #[test]
    fn only_the_request_window_settles_what_was_unsure() {
        let code = |is_unsure, refusal: &Refusal| {
            let mut outcome = Err(refusal.clone());
            stay_unsure(is_unsure, &mut outcome);
            outcome.map_err(|refusal| refusal.code())
        };
        assert_eq!(code(false, &Refusal::DeadlineExceeded), Err("DEADLINE_EXCEEDED"));
        assert_eq!(code(true, &Refusal::DeadlineExceeded), Err("OUTCOME_UNKNOWN"));
        assert_eq!(code(true, &Refusal::WrongValue("no number")), Err("WRONG_VALUE"));
    }
}
