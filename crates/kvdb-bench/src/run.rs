//! A run from start to end: connect, fill, warm up, measure.

use crate::load::{Action, Generator, Load, Operation};
use crate::measure::Measured;
use crate::options::{Extent, Options, OptionsError};
use crate::report::Report;
use crate::round::{Claim, Round};
use crate::target::{ConnectError, Failed, Session, connect};
use crate::usage::Usage;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::task::JoinSet;

/// Keys that are on their way at once when a store is filled, all clients together.
const FILL_IN_FLIGHT: u32 = 1024;

/// Why a run has no report. Requests that fail are no such reason: the report counts them.
#[derive(Debug, Error)]
pub enum Error {
    /// Options.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// Nobody is there.
    #[error("the target can't be used: {0}")]
    Connect(Failed),
    /// Not all keys could be written.
    #[error("the store can't be filled: {0}")]
    Fill(Failed),
    /// The system doesn't tell what a process uses, or gives no thread.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl From<ConnectError> for Error {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Options(error) => Error::Options(error),
            ConnectError::Failed(error) => Error::Connect(error),
        }
    }
}

/// How far a run is, for those who watch it.
#[derive(Debug, Default)]
pub struct Progress {
    phase: AtomicU64,
    done: AtomicU64,
    errors: AtomicU64,
}

/// Parts of a run, in order.
const PHASES: [&str; 4] = ["connecting", "filling", "warming up", "measuring"];

impl Progress {
    /// What is being done.
    pub fn phase(&self) -> &'static str {
        PHASES[self.phase.load(Ordering::Relaxed) as usize]
    }

    /// Requests of this phase that have ended.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Requests of this phase that have failed.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    fn enter(&self, phase: u64) {
        self.phase.store(phase, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
        self.errors.store(0, Ordering::Relaxed);
    }
}

/// One client.
struct Client {
    session: Session,
    generator: Generator,
}

/// What a round of clients does.
#[derive(Clone, Copy)]
struct Manner {
    filling: bool,
    pipeline: u64,
}

/// Runs what the options say. Dropping it ends the run.
///
/// # Errors
/// [`enum@Error`], if nothing could be measured.
pub async fn run(options: &Options, progress: &Arc<Progress>) -> Result<Report, Error> {
    options.validate()?;
    progress.enter(0);
    let sessions = connect(options).await?;
    let load = Load::new(options);
    let client = |(session, number)| Client { session, generator: load.generator(number) };
    let mut clients: Vec<Client> = sessions.into_iter().zip(0..).map(client).collect();
    if options.fill {
        progress.enter(1);
        fill(&mut clients, options, &load, progress).await?;
    }
    let manner = Manner { filling: false, pipeline: options.pipeline.into() };
    if !options.warm_up.is_zero() {
        progress.enter(2);
        let extent = Extent::Time(options.warm_up);
        let round = Round::begin(extent, options.rate, options.max_errors);
        drive(&mut clients, &round, manner, &load, progress).await?;
    }
    progress.enter(3);
    let servers = Usage::of(&options.server_pids)?;
    let own = Usage::of_this_process()?;
    let round = Round::measured(options);
    let measured = drive(&mut clients, &round, manner, &load, progress).await?;
    let took = round.start().elapsed();
    let servers = Usage::of(&options.server_pids)? - servers;
    let own = Usage::of_this_process()? - own;
    Ok(Report::new(options, measured, round.unsent(), took, servers, own))
}

async fn fill(
    clients: &mut Vec<Client>,
    options: &Options,
    load: &Arc<Load>,
    progress: &Arc<Progress>,
) -> Result<(), Error> {
    let pipeline = FILL_IN_FLIGHT.div_ceil(options.clients).max(options.pipeline);
    let manner = Manner { filling: true, pipeline: pipeline.into() };
    let round = Round::begin(Extent::Requests(options.keys), None, 0);
    let measured = drive(clients, &round, manner, load, progress).await?;
    let failed = measured.into_iter().find_map(|one| one.first_error);
    failed.map_or(Ok(()), |failed| Err(Error::Fill(failed)))
}

/// Has all clients go through one round.
async fn drive(
    clients: &mut Vec<Client>,
    round: &Arc<Round>,
    manner: Manner,
    load: &Arc<Load>,
    progress: &Arc<Progress>,
) -> Result<Vec<Measured>, Error> {
    let pacer = round.pace()?;
    let mut tasks = JoinSet::new();
    for client in clients.drain(..) {
        let (round, load, progress) = (Arc::clone(round), Arc::clone(load), Arc::clone(progress));
        tasks.spawn(async move { run_client(client, &round, manner, &load, &progress).await });
    }
    let mut all = Vec::new();
    for (client, measured) in tasks.join_all().await {
        clients.push(client);
        all.push(measured);
    }
    if let Some(pacer) = pacer {
        // It sees within a nap that the round is over.
        let _ = tokio::task::spawn_blocking(|| pacer.join()).await;
    }
    Ok(all)
}

async fn run_client(
    mut client: Client,
    round: &Round,
    manner: Manner,
    load: &Load,
    progress: &Progress,
) -> (Client, Measured) {
    let mut measured = Measured::default();
    let mut wave: Vec<Operation> = Vec::new();
    while let Some(Claim { first, count }) = round.claim(manner.pipeline).await {
        let numbers = first..first + count;
        wave.clear();
        wave.extend(numbers.clone().map(|number| match manner.filling {
            true => client.generator.filling(number),
            false => client.generator.operation(number),
        }));
        let sent = Instant::now();
        let done = client.session.wave(&wave).await;
        for ((number, operation), done) in numbers.zip(&wave).zip(done) {
            let from = round.due(number).unwrap_or(sent);
            match done.result {
                Ok(answer) => {
                    let latency: Duration = done.at.saturating_duration_since(from);
                    measured.answered(operation.action, latency, answer);
                    if operation.action == Action::Insert {
                        load.inserted();
                    }
                }
                Err(failed) => {
                    round.failed();
                    progress.errors.fetch_add(1, Ordering::Relaxed);
                    measured.failed(failed);
                }
            }
        }
        progress.done.fetch_add(count, Ordering::Relaxed);
    }
    (client, measured)
}
