//! One connection: what has come is read as far as it goes, commands that may run together run
//! together, answers leave in order.
//!
//! While answers wait to be read, nothing more is read from the client: what it can make the
//! gateway hold is one request, the commands of one wave, and their answers up to a bound.

use super::clients::{Client, Clients};
use super::wave::{self, Outcome, Wave};
use crate::figures::Figures;
use crate::route::Gateway;
use bytes::{Buf, Bytes, BytesMut};
use kvdb_model::{Keyspace, Refusal};
use kvdb_redis::plan::refused;
use kvdb_redis::session::Step;
use kvdb_redis::{Job, Parser, Plan, Reply, Session, table};
use std::sync::Arc;
use std::time::Instant;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Most commands of a wave. More would share messages with more others, and hold more of a client
/// that doesn't read its answers: about a kibibyte each.
const WAVE_COMMANDS: usize = 256;
/// Most steps of a wave, those of one command more at most.
const WAVE_STEPS: usize = 1024;
/// Bytes of answers after which they are sent.
const FLUSH_BYTES: usize = 64 << 10;
/// Largest answer of one command.
const ANSWER_MAX_BYTES: usize = 64 << 20;
/// Room that is made for reading.
const READ_BYTES: usize = 16 << 10;

/// A connection.
pub(crate) struct Connection {
    pub(super) gateway: Gateway,
    pub(super) clients: Arc<Clients>,
    pub(super) client: Client,
    stream: TcpStream,
    pub(super) session: Session,
    parser: Parser,
    input: BytesMut,
    output: BytesMut,
    keyspace: Option<(u8, Keyspace)>,
    over: bool,
}

/// A command of a wave.
enum Slot {
    Ready(Reply),
    Plan(Plan, std::ops::Range<usize>),
}

/// How an answer is written.
#[derive(Clone, Copy)]
struct Manner {
    silent: bool,
    resp3: bool,
    /// The command's place among all.
    command: Option<usize>,
}

/// Commands that run together, and what ends them.
#[derive(Default)]
struct Batch {
    slots: Vec<(Slot, Manner)>,
    steps: Vec<kvdb_redis::plan::Step>,
    last: Option<(Last, Manner)>,
}

enum Last {
    Together(Plan),
    Job(Job),
    Close(Reply),
    HangUp,
}

impl Connection {
    pub(crate) fn new(
        gateway: Gateway,
        clients: Arc<Clients>,
        client: Client,
        stream: TcpStream,
    ) -> Self {
        let session = Session::new(client.entry.id);
        Connection {
            gateway,
            clients,
            client,
            stream,
            session,
            parser: Parser::default(),
            input: BytesMut::new(),
            output: BytesMut::new(),
            keyspace: None,
            over: false,
        }
    }

    /// Answers until either side ends it.
    pub(crate) async fn talk(mut self) {
        while !self.over {
            let batch = self.collect();
            let came = !batch.slots.is_empty() || batch.last.is_some();
            if came {
                // Boxed, so that a connection that waits is small.
                if Box::pin(self.carry_out(batch)).await.is_err() {
                    return;
                }
                continue;
            }
            if self.flush().await.is_err() || !self.read().await {
                return;
            }
        }
        if self.flush().await.is_ok() {
            let _ = self.stream.shutdown().await;
        }
    }

    /// Takes what has come, as far as it may run together.
    fn collect(&mut self) -> Batch {
        let now = self.gateway.now_ms();
        let mut batch = Batch::default();
        let mut name: Option<[Bytes; 2]> = None;
        let mut count = 0;
        while batch.last.is_none()
            && batch.slots.len() < WAVE_COMMANDS
            && batch.steps.len() < WAVE_STEPS
        {
            let request = match self.parser.next(&mut self.input) {
                Ok(Some(request)) => request,
                Ok(None) => break,
                Err(error) => {
                    let manner = Manner { silent: false, resp3: self.session.resp3, command: None };
                    batch.last = Some((Last::Close(Reply::Error(error.to_string())), manner));
                    break;
                }
            };
            count += 1;
            name = request
                .first()
                .map(|name| [name.clone(), request.get(1).cloned().unwrap_or_default()]);
            let command = request.first().and_then(|name| table::position(name));
            let (step, silent) = self.session.take(request, now);
            batch.push(step, Manner { silent, resp3: self.session.resp3, command });
        }
        if count > 0 {
            self.client.show(&self.session, name, count);
        }
        batch
    }

    async fn carry_out(&mut self, batch: Batch) -> std::io::Result<()> {
        if !batch.slots.is_empty() {
            self.run_wave(batch.slots, batch.steps).await?;
        }
        let Some((last, manner)) = batch.last else { return Ok(()) };
        let started = Instant::now();
        let reply = match last {
            Last::Together(plan) => {
                let reply = self.together(plan).await;
                self.figures().count(started, !matches!(reply, Reply::Error(_)));
                reply
            }
            Last::Job(job) => {
                let reply = self.job(job).await;
                self.over |= self.client.entry.is_over();
                self.figures().count(started, !matches!(reply, Reply::Error(_)));
                reply
            }
            Last::Close(reply) => {
                self.over = true;
                reply
            }
            Last::HangUp => {
                tracing::warn!("a client of the Redis port speaks HTTP; it is cut off");
                self.over = true;
                return Ok(());
            }
        };
        self.answer(&reply, manner);
        self.flush_if_large().await
    }

    async fn run_wave(
        &mut self,
        slots: Vec<(Slot, Manner)>,
        steps: Vec<kvdb_redis::plan::Step>,
    ) -> std::io::Result<()> {
        let gateway = self.gateway.clone();
        let (started, mut answered, mut failed) = (Instant::now(), 0, 0);
        let keyspace = match steps.is_empty() {
            true => None,
            false => Some(self.keyspace_for(&steps).await),
        };
        let mut nothing: Vec<Outcome> = Vec::new();
        let mut wave = match &keyspace {
            Some(Ok(None)) => {
                nothing = steps.iter().map(|step| wave::on_nothing(&gateway, step)).collect();
                None
            }
            Some(Ok(Some(keyspace))) => {
                let mut wave = Wave::new(&gateway, keyspace, steps);
                wave.start().await;
                self.clients.changed(wave.take_changes());
                Some(wave)
            }
            _ => None,
        };
        for (slot, manner) in slots {
            let reply = match (slot, &mut wave) {
                (Slot::Ready(reply), _) => reply,
                (Slot::Plan(plan, range), Some(wave)) => {
                    while !wave.is_done(range.clone()) {
                        if wave.size_bytes(range.clone()) > ANSWER_MAX_BYTES {
                            break;
                        }
                        // More than this command's, so that those after it wait less.
                        let ahead = range.start..(range.end + 64).min(wave.len());
                        wave.go_on(ahead).await;
                        self.clients.changed(wave.take_changes());
                    }
                    if wave.size_bytes(range.clone()) > ANSWER_MAX_BYTES {
                        too_large()
                    } else {
                        let now_ms = wave.now_ms(&range);
                        plan.finish(wave.take(range), now_ms)
                    }
                }
                (Slot::Plan(plan, range), None) => match &keyspace {
                    Some(Err(refusal)) => refused(refusal),
                    _ => {
                        let found = nothing.get(range).unwrap_or_default();
                        plan.finish(found.to_vec(), gateway.now_ms())
                    }
                },
            };
            match &reply {
                Reply::Error(_) => failed += 1,
                _ => answered += 1,
            }
            self.answer(&reply, manner);
            drop(reply);
            if self.output.len() >= FLUSH_BYTES && !self.flush_at_once()? {
                if let Some(wave) = &mut wave {
                    wave.detach();
                }
                self.flush().await?;
            }
        }
        if keyspace.is_some() {
            self.figures().count_many(started, answered, failed);
        }
        Ok(())
    }

    /// The figures of the database that is selected.
    fn figures(&self) -> Arc<Figures> {
        self.gateway
            .figures
            .of(&self.gateway.routes().database_name(self.session.db), &self.gateway.routes())
    }

    /// A command that is carried out as a whole or not at all.
    async fn together(&mut self, plan: Plan) -> Reply {
        let mut plan = plan;
        let steps = std::mem::take(&mut plan.steps);
        match self.run_together(steps).await {
            Ok((outcomes, now_ms)) => plan.finish(outcomes, now_ms),
            Err(refusal) => refused(&refusal),
        }
    }

    pub(super) async fn run_together(
        &mut self,
        steps: Vec<kvdb_redis::plan::Step>,
    ) -> Result<(Vec<Outcome>, u64), Refusal> {
        let count = steps.len();
        let gateway = self.gateway.clone();
        let Some(keyspace) = self.keyspace_for(&steps).await? else {
            let found = steps.iter().map(|step| wave::on_nothing(&gateway, step)).collect();
            return Ok((found, gateway.now_ms()));
        };
        let mut wave = Wave::new(&gateway, &keyspace, steps);
        wave.together().await?;
        self.clients.changed(wave.take_changes());
        let now_ms = wave.now_ms(&(0..count));
        Ok((wave.take(0..count), now_ms))
    }

    /// The keyspace of the database that is selected; `None` if nothing was ever written to it.
    ///
    /// # Errors
    /// Also if it was dropped since it was selected: what is another one now isn't taken for it.
    pub(super) async fn current_keyspace(&mut self) -> Result<Option<Keyspace>, Refusal> {
        let db = self.session.db;
        if let Some((known, keyspace)) = &self.keyspace
            && *known == db
        {
            let now = self.gateway.database(db).map(|now| now.keyspace_id);
            return match now == Ok(keyspace.keyspace_id) {
                true => Ok(Some(keyspace.clone())),
                false => Err(Refusal::UnknownKeyspace { name: keyspace.name.clone() }),
            };
        }
        let keyspace = match self.gateway.current_database(db).await {
            Err(Refusal::UnknownKeyspace { .. }) if db > 0 => return Ok(None),
            found => found?,
        };
        self.keyspace = Some((db, keyspace.clone()));
        Ok(Some(keyspace))
    }

    /// The same for steps: if one of them writes what isn't there yet, the keyspace is made.
    async fn keyspace_for(
        &mut self,
        steps: &[kvdb_redis::plan::Step],
    ) -> Result<Option<Keyspace>, Refusal> {
        let found = self.current_keyspace().await?;
        if found.is_some() || !steps.iter().any(wave::makes) {
            return Ok(found);
        }
        self.make_database(self.session.db).await?;
        self.current_keyspace().await
    }

    /// Chooses a database, anew if it is the same one.
    pub(super) fn choose(&mut self, db: u8) {
        self.session.db = db;
        self.keyspace = None;
    }

    fn answer(&mut self, reply: &Reply, manner: Manner) {
        self.gateway.metrics.redis_command(manner.command, reply.is_error());
        if reply.is_error() {
            self.client.failed();
        }
        if !manner.silent {
            reply.write(&mut self.output, manner.resp3);
        }
    }

    async fn flush_if_large(&mut self) -> std::io::Result<()> {
        if self.output.len() >= FLUSH_BYTES { self.flush().await } else { Ok(()) }
    }

    /// Sends what the network takes without waiting. Returns whether that was all.
    fn flush_at_once(&mut self) -> std::io::Result<bool> {
        while self.output.has_remaining() {
            match self.stream.try_write(&self.output) {
                Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.client.moved(0, count);
                    self.output.advance(count);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.let_go_of_output();
        Ok(true)
    }

    /// A large answer leaves no large buffer behind.
    fn let_go_of_output(&mut self) {
        if self.output.capacity() > FLUSH_BYTES {
            self.output = BytesMut::new();
        }
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        while self.output.has_remaining() {
            match self.stream.write_buf(&mut self.output).await? {
                0 => return Err(std::io::ErrorKind::WriteZero.into()),
                count => self.client.moved(0, count),
            }
        }
        self.let_go_of_output();
        Ok(())
    }

    /// Waits for more; false at the end.
    async fn read(&mut self) -> bool {
        if self.input.is_empty() && self.input.capacity() > 0 {
            // What waits holds nothing.
            self.input = BytesMut::new();
            self.output = BytesMut::new();
        }
        let held = self.input.capacity() + self.parser.held_bytes() + self.session.held_bytes();
        if !self.client.holds(held) {
            let reply =
                "input memory of all clients is used up; send smaller requests, or fewer at a time";
            let manner = Manner { silent: false, resp3: self.session.resp3, command: None };
            self.answer(&Reply::error(reply), manner);
            let _ = self.flush().await;
            return false;
        }
        loop {
            let readable = self.stream.readable();
            let readable = match self.client.patience() {
                None => readable.await.is_ok(),
                Some(patience) => {
                    tokio::time::timeout(patience, readable).await.is_ok_and(|found| found.is_ok())
                }
            };
            if !readable {
                return false;
            }
            self.input.reserve(READ_BYTES);
            match self.stream.try_read_buf(&mut self.input) {
                Ok(0) => return false,
                Ok(count) => {
                    self.client.moved(count, 0);
                    return true;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
        }
    }
}

impl Batch {
    fn push(&mut self, step: Step, manner: Manner) {
        match step {
            Step::Reply(reply) => self.slots.push((Slot::Ready(reply), manner)),
            Step::Plan(plan) if plan.atomic => self.last = Some((Last::Together(plan), manner)),
            Step::Plan(mut plan) => {
                let from = self.steps.len();
                self.steps.append(&mut plan.steps);
                self.slots.push((Slot::Plan(plan, from..self.steps.len()), manner));
            }
            Step::Job(job) => self.last = Some((Last::Job(job), manner)),
            Step::Close(reply) => self.last = Some((Last::Close(reply), manner)),
            Step::HangUp => self.last = Some((Last::HangUp, manner)),
        }
    }
}

pub(super) fn too_large() -> Reply {
    Reply::error(format!(
        "the answer is larger than {ANSWER_MAX_BYTES} bytes; ask for less at a time"
    ))
}

/// The most bytes that an answer may have.
pub(super) const fn answer_max_bytes() -> usize {
    ANSWER_MAX_BYTES
}
