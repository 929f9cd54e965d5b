//! Streams to the nodes. Whatever waits for a node when its stream is free goes in one message.

use kvdb_model::ShardTimes;
use kvdb_router::Failure;
use kvdb_wire::proto::node_answer::Answer;
use kvdb_wire::proto::node_client::NodeClient;
use kvdb_wire::proto::node_operation::Operation as Asked;
use kvdb_wire::{pack, proto, refusal_from_proto, transport};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

/// Operations that wait for one stream; callers wait beyond.
const QUEUE: usize = 4096;
/// Operations in one message, at most.
const BATCH: usize = 512;

type Reply = oneshot::Sender<Result<Heard, Failure>>;

/// An answer, and what the shard's clock said with it.
pub(crate) struct Heard {
    pub(crate) answer: Answer,
    pub(crate) times: ShardTimes,
}

struct Job {
    asked: Asked,
    reply: Reply,
}

/// By address and lane.
type Queues = HashMap<(Arc<str>, usize), mpsc::Sender<Job>>;

/// Streams to all nodes, made when they are first needed.
#[derive(Clone, Default)]
pub(crate) struct Links {
    links: Arc<Mutex<Queues>>,
}

impl Links {
    /// Asks the node at `address`. `lane` spreads callers over its streams.
    pub(crate) async fn ask(
        &self,
        address: &Arc<str>,
        lane: usize,
        asked: Asked,
    ) -> Result<Heard, Failure> {
        let lane = lane % streams();
        let queue = self.queue(address, lane);
        let (reply, answer) = oneshot::channel();
        if queue.send(Job { asked, reply }).await.is_err() {
            self.links.lock().remove(&(address.clone(), lane));
            return Err(Failure::NotSent);
        }
        answer.await.unwrap_or(Err(Failure::NoAnswer))
    }

    fn queue(&self, address: &Arc<str>, lane: usize) -> mpsc::Sender<Job> {
        let mut links = self.links.lock();
        let known = links.get(&(address.clone(), lane)).filter(|queue| !queue.is_closed());
        if let Some(queue) = known {
            return queue.clone();
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        links.insert((address.clone(), lane), sender.clone());
        tokio::spawn(run(address.clone(), receiver));
        sender
    }
}

/// Streams to one node, one connection each: as many as there are threads to serve them. More
/// would only make the messages smaller.
fn streams() -> usize {
    tokio::runtime::Handle::current().metrics().num_workers()
}

/// One stream, until it breaks. What was sent then has no answer; what wasn't was not sent.
async fn run(address: Arc<str>, mut queue: mpsc::Receiver<Job>) {
    let mut waiting: HashMap<u64, Reply> = HashMap::new();
    if let Err(error) = converse(&address, &mut queue, &mut waiting).await {
        tracing::debug!(%address, error, "stream to a node has ended");
    }
    for (_, reply) in waiting.drain() {
        let _ = reply.send(Err(Failure::NoAnswer));
    }
    queue.close();
    while let Some(job) = queue.recv().await {
        let _ = job.reply.send(Err(Failure::NotSent));
    }
}

async fn converse(
    address: &str,
    queue: &mut mpsc::Receiver<Job>,
    waiting: &mut HashMap<u64, Reply>,
) -> Result<(), String> {
    let endpoint = transport::endpoint(address).map_err(|error| error.to_string())?;
    let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
    let mut client = NodeClient::new(channel)
        .max_decoding_message_size(transport::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(usize::MAX);
    let (messages, receiver) = mpsc::channel(4);
    let answers = client.batch(Request::new(ReceiverStream::new(receiver))).await;
    let mut answers = answers.map_err(|status| status.message().to_owned())?.into_inner();
    let mut next = 0u64;
    let mut jobs = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            count = queue.recv_many(&mut jobs, BATCH) => {
                if count == 0 {
                    return Ok(());
                }
                let mut operations = Vec::with_capacity(jobs.len());
                for job in jobs.drain(..) {
                    next += 1;
                    waiting.insert(next, job.reply);
                    operations.push(proto::NodeOperation { id: next, operation: Some(job.asked) });
                }
                for operations in pack(operations) {
                    let message = proto::NodeBatchRequest { operations };
                    messages.send(message).await.map_err(|_| "the stream has closed")?;
                }
            }
            heard = answers.message() => {
                let heard = heard.map_err(|status| status.message().to_owned())?;
                let Some(response) = heard else {
                    return Err("the node has closed the stream".to_owned());
                };
                for answer in response.answers {
                    settle(waiting, answer);
                }
            }
        }
    }
}

fn settle(waiting: &mut HashMap<u64, Reply>, answer: proto::NodeAnswer) {
    let Some(reply) = waiting.remove(&answer.id) else { return };
    let times = ShardTimes { time_ms: answer.shard_time_ms, age_ms: answer.shard_age_ms };
    let result = match answer.answer {
        Some(Answer::Refusal(refusal)) => Err(Failure::Refused(refusal_from_proto(refusal))),
        Some(answer) => Ok(Heard { answer, times }),
        None => Err(Failure::NoAnswer),
    };
    // Whoever asked may have given up at its deadline.
    let _ = reply.send(result);
}
