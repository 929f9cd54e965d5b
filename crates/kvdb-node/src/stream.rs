//! The batch stream: many operations a message, answered as they are done, many a message.
//!
//! No task is spawned for an operation: the reading task submits, outcomes are collected by a
//! sink, and the writing task turns all that have come into one message.

use crate::access::Access;
use crate::metrics::Begun;
use crate::operation::{Accepted, Finished, Pending, Submit, shard_of};
use crate::service::overloaded;
use kvdb_model::{Refusal, ShardId};
use kvdb_runtime::drive::{Outcome, ReplySink, Ticket};
use kvdb_wire::proto::node_answer::Answer;
use kvdb_wire::{pack, proto, refusal_about, refusal_to_proto};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Operations of one stream that wait; reading pauses beyond.
const MOST_WAITING: usize = 8192;
/// Messages between writing task and network.
const QUEUE: usize = 16;

/// Whom an answer is for.
#[derive(Clone, Copy)]
struct Question {
    /// The client's number for it.
    id: u64,
    /// About which shard.
    shard: ShardId,
    begun: Begun,
}

/// What the replication and apply threads know of a stream.
#[derive(Default)]
struct Sink {
    state: Mutex<State>,
    /// Something is done.
    done: Notify,
    /// Fewer wait.
    room: Notify,
}

#[derive(Default)]
struct State {
    waiting: FxHashMap<u64, (Question, Pending)>,
    done: Vec<(Question, Pending, Outcome)>,
    ready: Vec<proto::NodeAnswer>,
    closed: bool,
}

impl ReplySink for Sink {
    fn reply(&self, id: u64, outcome: Outcome) {
        let mut state = self.state.lock();
        if let Some((question, pending)) = state.waiting.remove(&id) {
            state.done.push((question, pending, outcome));
            drop(state);
            self.done.notify_one();
        }
    }
}

impl Sink {
    fn answer(&self, access: &Access, question: Question, answer: Result<Answer, Refusal>) {
        let answer = answered(access, question, answer);
        self.state.lock().ready.push(answer);
        self.done.notify_one();
    }
}

fn answered(
    access: &Access,
    question: Question,
    answer: Result<Answer, Refusal>,
) -> proto::NodeAnswer {
    access.metrics.answered(question.begun, answer.as_ref().err());
    let refused = |refusal| Answer::Refusal(refusal_about(&refusal, question.shard));
    let answer = answer.unwrap_or_else(refused);
    let times = access.times(question.shard);
    proto::NodeAnswer {
        id: question.id,
        answer: Some(answer),
        shard_time_ms: times.time_ms,
        shard_age_ms: times.age_ms,
    }
}

/// Serves a stream until the client ends it.
pub(crate) fn serve(
    access: Access,
    requests: Streaming<proto::NodeBatchRequest>,
) -> ReceiverStream<Result<proto::NodeBatchResponse, Status>> {
    let (responses, receiver) = mpsc::channel(QUEUE);
    let sink = Arc::new(Sink::default());
    tokio::spawn(write(access.clone(), sink.clone(), responses));
    tokio::spawn(read(access, sink, requests));
    ReceiverStream::new(receiver)
}

async fn read(access: Access, sink: Arc<Sink>, mut requests: Streaming<proto::NodeBatchRequest>) {
    let mut next = 0u64;
    while let Ok(Some(request)) = requests.message().await {
        let now = Instant::now();
        for operation in request.operations {
            next += 1;
            take(&access, &sink, next, operation, now);
        }
        loop {
            let room = sink.room.notified();
            if sink.state.lock().waiting.len() < MOST_WAITING {
                break;
            }
            room.await;
        }
    }
    sink.state.lock().closed = true;
    sink.done.notify_one();
}

fn take(
    access: &Access,
    sink: &Arc<Sink>,
    number: u64,
    operation: proto::NodeOperation,
    now: Instant,
) {
    let id = operation.id;
    let Some(asked) = operation.operation else {
        let refusal = Refusal::invalid("operation", "is missing");
        let answer = Some(Answer::Refusal(refusal_to_proto(&refusal)));
        let answer = proto::NodeAnswer { id, answer, ..Default::default() };
        sink.state.lock().ready.push(answer);
        return sink.done.notify_one();
    };
    let question = Question { id, shard: shard_of(&asked), begun: Begun::new(&asked, now) };
    let Accepted { pending, submit } = match access.accept(asked) {
        Ok(accepted) => accepted,
        Err(refusal) => return sink.answer(access, question, Err(refusal)),
    };
    if matches!(submit, Submit::Nothing) {
        sink.state.lock().done.push((question, pending, Outcome::ReadReady));
        return sink.done.notify_one();
    }
    sink.state.lock().waiting.insert(number, (question, pending));
    let ticket = Ticket::new(sink.clone(), number);
    let submitted = submit.input(ticket).map(|input| access.drive.submit(input));
    if let Some(Err(_)) = submitted {
        sink.state.lock().waiting.remove(&number);
        sink.answer(access, question, Err(overloaded()));
    }
}

async fn write(
    access: Access,
    sink: Arc<Sink>,
    responses: mpsc::Sender<Result<proto::NodeBatchResponse, Status>>,
) {
    loop {
        let (done, mut answers, over) = {
            let mut state = sink.state.lock();
            let over = state.closed && state.waiting.is_empty();
            (std::mem::take(&mut state.done), std::mem::take(&mut state.ready), over)
        };
        sink.room.notify_one();
        if done.is_empty() && answers.is_empty() {
            if over {
                return;
            }
            tokio::select! {
                () = sink.done.notified() => {}
                () = responses.closed() => return,
            }
            continue;
        }
        for (question, pending, outcome) in done {
            if let Some(answer) = finish(&access, &sink, question, pending, outcome) {
                answers.push(answer);
            }
        }
        for answers in pack(answers) {
            if responses.send(Ok(proto::NodeBatchResponse { answers })).await.is_err() {
                return;
            }
        }
    }
}

/// The answer, unless it takes longer: a scan, or a read that waits for shard time.
fn finish(
    access: &Access,
    sink: &Arc<Sink>,
    question: Question,
    pending: Pending,
    outcome: Outcome,
) -> Option<proto::NodeAnswer> {
    let (pending, outcome) = if pending.takes_long() {
        (pending, outcome)
    } else {
        let answer = match access.finish(pending, outcome) {
            Ok(Finished::Answer(answer)) => Ok(answer),
            Err(refusal) => Err(refusal),
            Ok(Finished::NeedsTime(again)) => {
                later(access, sink, question, again, Outcome::ReadReady);
                return None;
            }
            Ok(Finished::Behind(behind)) => {
                later(access, sink, question, behind.pending, Outcome::ReadReady);
                return None;
            }
        };
        return Some(answered(access, question, answer));
    };
    later(access, sink, question, pending, outcome);
    None
}

fn later(
    access: &Access,
    sink: &Arc<Sink>,
    question: Question,
    pending: Pending,
    outcome: Outcome,
) {
    let (access, sink) = (access.clone(), sink.clone());
    tokio::spawn(async move {
        let answer = access.conclude(pending, outcome).await;
        sink.answer(&access, question, answer);
    });
}
