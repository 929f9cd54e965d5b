//! `kvdb bench`: options into a run of `kvdb-bench`, and its report out again.

use crate::cli::ClientArgs;
use crate::exit::Failure;
use crate::output::{Output, is_watched};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use kvdb_bench::compare::Rows;
use kvdb_bench::{
    EchoServer, Error, Extent, Failed, Mix, Options, Progress, Report, Spread, TargetKind,
};
use kvdb_client::AdminClient;
use kvdb_model::Partitioning;
use serde_json::Value;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two looks at a new keyspace.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Measure KvDB, Redis or etcd with puts, gets or a workload.
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  kvdb bench
  kvdb bench --mode get --clients 256 --requests 500000
  kvdb bench --workload a --fill --seconds 30
  kvdb bench --rate 5000 --seconds 30
  kvdb bench --target redis --mode put --pipeline 16
  kvdb bench --target etcd --address 127.0.0.1:2379 --server-pid 4711
  kvdb bench --keyspace load --mode put && kvdb export --keyspace load load.tsv
  kvdb bench --json --row put-c64 >>rows.jsonl && kvdb bench compare rows.jsonl

Keys are `bench:` and a number of ten digits. A bench of KvDB over gRPC creates a keyspace of its \
own, fills it for what reads, and drops it at the end. With --keyspace it uses that one, and leaves \
what it wrote: run puts before gets then, or say --fill. The same for other targets.

Without --rate each client waits for its answer before it sends again (a closed loop). With --rate \
requests are sent when they are due, and latencies count from that moment, so that a target that \
stands still pays for all whom it kept waiting (an open loop).

Workloads are those of YCSB, with one value a record: a half reads, half updates; b 95 % reads; \
c reads; d 95 % reads of the newest keys, 5 % inserts; e 95 % scans of up to 100 keys, 5 % inserts \
(needs a range keyspace); f half reads, half read-modify-writes."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    other: Option<Other>,
    /// System to measure
    #[arg(long, value_enum, default_value_t = Target::KvdbGrpc)]
    target: Target,
    /// Where the target is, or several places separated by commas: by default --endpoint for
    /// kvdb-grpc and kvdb-batch, 127.0.0.1:7379 for redis, 127.0.0.1:2379 for etcd; an echo is started
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// What to measure
    #[arg(long, value_enum, default_value_t = Mode::Put, conflicts_with = "workload")]
    mode: Mode,
    /// A workload of YCSB instead
    #[arg(long, value_enum)]
    workload: Option<Workload>,
    /// Write all keys first
    #[arg(long)]
    fill: bool,
    /// Number of concurrent clients
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clients: u32,
    /// Requests that each client sends before it waits for answers
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pipeline: u32,
    /// Requests in all
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// Measure for this long instead of counting requests
    #[arg(long, conflicts_with = "requests", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: Option<u32>,
    /// Run for this long first, without measuring [default: 1 with --seconds, otherwise 0]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=3600))]
    warm_up: Option<u32>,
    /// Requests a second, all clients together
    #[arg(long, value_name = "REQUESTS")]
    rate: Option<f64>,
    /// Connections to each address; a client of the Redis protocol has its own
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Different keys
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    keys: u32,
    /// Which keys come how often: each equally often, uniformly at random, by Zipf's law, or so with
    /// the newest first. `even`, or what the workload says, if not given
    #[arg(long, value_enum)]
    spread: Option<KeySpread>,
    /// The exponent of Zipf's law
    #[arg(long, default_value_t = 0.99, value_name = "NUMBER")]
    zipf_exponent: f64,
    /// Bytes of each value, or the least and the most of them as in 100-1000
    #[arg(long, default_value = "128", value_parser = value_bytes)]
    value_bytes: RangeInclusive<u32>,
    /// Names the sequence of keys and values
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Let KvDB's client give each write a request id, as services do
    #[arg(long)]
    exactly_once: bool,
    /// Fail if there are more errors than this
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    max_errors: u64,
    /// Processes of the servers, whose processor time and memory are shown separately
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    server_pid: Vec<u32>,
    /// What the report calls the system, for `compare`; by default after the target
    #[arg(long, value_name = "NAME", requires = "row")]
    system: Option<String>,
    /// What the report calls this run, for `compare`
    #[arg(long, value_name = "NAME")]
    row: Option<String>,
}

#[derive(clap::Subcommand)]
enum Other {
    /// Put the reports of several runs side by side, beside the targets that KvDB is held to
    Compare(Compare),
    /// Serve requests at once and keep nothing: the ceiling for --target echo
    EchoServer(Echo),
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb bench --json --row put-c64 >>rows.jsonl
  kvdb bench compare rows.jsonl
  kvdb bench compare rows.jsonl --out bench/results --name 2026-11-25

`make bench` measures all rows that the targets ask for.")]
struct Compare {
    /// Reports, one a line
    #[arg(value_name = "FILE")]
    rows: PathBuf,
    /// Write NAME.json, NAME.md and plots into this directory too
    #[arg(long, value_name = "DIR", requires = "name")]
    out: Option<PathBuf>,
    /// What the files are called
    #[arg(long)]
    name: Option<String>,
    /// What was measured where, for the files
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    about: String,
}

#[derive(clap::Args)]
#[command(after_help = "\
Example:
  kvdb bench echo-server --listen 127.0.0.1:7499 &
  kvdb bench --target echo --address 127.0.0.1:7499")]
struct Echo {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:7499", value_name = "HOST:PORT")]
    listen: SocketAddr,
    /// Bytes of the value that every read finds
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(0..=8_388_608))]
    value_bytes: u32,
    /// End when standard input is closed
    #[arg(long, hide = true)]
    until_input_ends: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Target {
    /// KvDB's Rust client, a unary call an operation
    KvdbGrpc,
    /// KvDB's Rust client, a batch for all operations of a pipeline
    KvdbBatch,
    /// The Redis protocol: KvDB's port for it, or Redis
    Redis,
    /// etcd's version 3 interface, a unary call an operation
    Etcd,
    /// A server that answers at once: the ceiling of a unary gRPC service
    Echo,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Mode {
    Put,
    Get,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Workload {
    A,
    B,
    C,
    D,
    E,
    F,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum KeySpread {
    Even,
    Uniform,
    Zipf,
    Latest,
}

fn value_bytes(text: &str) -> Result<RangeInclusive<u32>, String> {
    let number = |text: &str| text.parse::<u32>().map_err(|error| error.to_string());
    match text.split_once('-') {
        Some((least, most)) => Ok(number(least)?..=number(most)?),
        None => number(text).map(|bytes| bytes..=bytes),
    }
}

impl Args {
    /// Whether the command serves rather than asks: then it may use the whole machine.
    pub(super) fn is_server(&self) -> bool {
        matches!(self.other, Some(Other::EchoServer(_)))
    }

    /// Whether the run is to have a keyspace of its own.
    fn wants_own_keyspace(&self, args: &ClientArgs) -> bool {
        let over_grpc = matches!(self.target, Target::KvdbGrpc | Target::KvdbBatch);
        over_grpc && args.keyspace.is_empty()
    }

    /// Whether it asks for keys that must be there.
    fn reads(&self) -> bool {
        self.workload.is_some() || matches!(self.mode, Mode::Get)
    }

    fn target_kind(&self) -> TargetKind {
        match self.target {
            Target::KvdbGrpc => TargetKind::KvdbGrpc,
            Target::KvdbBatch => TargetKind::KvdbBatch,
            Target::Redis => TargetKind::Redis,
            Target::Etcd => TargetKind::Etcd,
            Target::Echo => TargetKind::Echo,
        }
    }

    fn workload(&self) -> Option<kvdb_bench::Workload> {
        self.workload.map(|workload| match workload {
            Workload::A => kvdb_bench::Workload::A,
            Workload::B => kvdb_bench::Workload::B,
            Workload::C => kvdb_bench::Workload::C,
            Workload::D => kvdb_bench::Workload::D,
            Workload::E => kvdb_bench::Workload::E,
            Workload::F => kvdb_bench::Workload::F,
        })
    }

    /// What is measured, in a word.
    fn mode(&self) -> &'static str {
        match (self.workload(), self.mode) {
            (Some(workload), _) => workload.name(),
            (None, Mode::Put) => "put",
            (None, Mode::Get) => "get",
        }
    }

    fn spread(&self) -> Spread {
        match (self.spread, self.workload()) {
            (None, Some(workload)) => workload.spread(),
            (None | Some(KeySpread::Even), _) => Spread::Even,
            (Some(KeySpread::Uniform), _) => Spread::Uniform,
            (Some(KeySpread::Zipf), _) => Spread::Zipf(self.zipf_exponent),
            (Some(KeySpread::Latest), _) => Spread::Latest(self.zipf_exponent),
        }
    }

    fn options(&self, args: &ClientArgs, echo: Option<&EchoServer>) -> Options {
        let by_default = match self.target {
            Target::KvdbGrpc | Target::KvdbBatch => &args.endpoint,
            Target::Redis => "127.0.0.1:7379",
            Target::Etcd => "127.0.0.1:2379",
            Target::Echo => echo.map_or("127.0.0.1:7499", EchoServer::address),
        };
        let addresses = self.address.as_deref().unwrap_or(by_default);
        let mut server_pids = self.server_pid.clone();
        server_pids.extend(echo.map(EchoServer::pid));
        Options {
            target: self.target_kind(),
            addresses: addresses.split(',').map(|one| one.trim().to_owned()).collect(),
            keyspace: args.keyspace.clone(),
            mix: match (self.workload(), self.mode) {
                (Some(workload), _) => workload.mix(),
                (None, Mode::Put) => Mix::PUT,
                (None, Mode::Get) => Mix::GET,
            },
            fill: self.fill,
            keys: self.keys.into(),
            spread: self.spread(),
            value_bytes: self.value_bytes.clone(),
            seed: self.seed,
            clients: self.clients,
            pipeline: self.pipeline,
            connections: self.connections.into(),
            rate: self.rate,
            warm_up: Duration::from_secs(
                self.warm_up.unwrap_or(self.seconds.is_some().into()).into(),
            ),
            extent: match self.seconds {
                Some(seconds) => Extent::Time(Duration::from_secs(seconds.into())),
                None => Extent::Requests(self.requests.into()),
            },
            timeout: args.timeout(),
            exactly_once: self.exactly_once,
            max_errors: self.max_errors,
            server_pids,
        }
    }
}

pub(super) async fn run(command: Args, args: &ClientArgs) -> Result<(), Failure> {
    match &command.other {
        Some(Other::Compare(command)) => compare(command, args.json),
        Some(Other::EchoServer(command)) => serve(command).await,
        None => measure(&command, args).await,
    }
}

async fn measure(command: &Args, args: &ClientArgs) -> Result<(), Failure> {
    let echo = match (command.target, &command.address) {
        (Target::Echo, None) => Some(start_echo(command)?),
        _ => None,
    };
    let mut options = command.options(args, echo.as_ref());
    let own = match command.wants_own_keyspace(args) {
        true => Some(OwnKeyspace::create(command, args, &options.addresses).await?),
        false => None,
    };
    if let Some(own) = &own {
        options.keyspace.clone_from(&own.name);
        options.fill |= command.reads();
    }
    let progress = Arc::new(Progress::default());
    let bar = bar(&options);
    let report = tokio::select! {
        report = kvdb_bench::run(&options, &progress) => report.map_err(failed),
        () = show_progress(&progress, &options, &bar) => unreachable!("progress is shown for ever"),
        Ok(()) = tokio::signal::ctrl_c() => Err(Failure::Interrupted("interrupted".to_owned())),
    };
    bar.finish_and_clear();
    let dropped = match own {
        Some(own) => own.drop().await,
        None => Ok(()),
    };
    let report = report?;
    show(command, &report, args.json)?;
    dropped?;
    judge(report, command.max_errors)
}

/// A keyspace that is there for one run.
struct OwnKeyspace {
    admin: AdminClient,
    name: String,
}

impl OwnKeyspace {
    /// Creates it, and waits until all its shards have leaders.
    async fn create(
        command: &Args,
        args: &ClientArgs,
        addresses: &[String],
    ) -> Result<Self, Failure> {
        let options = kvdb_client::Options { addresses: addresses.to_vec(), ..args.options() };
        let admin = AdminClient::new(options)?;
        let random = getrandom::u32()
            .map_err(|error| Failure::Unavailable(format!("no random bytes: {error}")))?;
        let own = OwnKeyspace { admin, name: format!("kvdb-bench-{random:08x}") };
        let layout = match command.workload {
            Some(Workload::E) => Partitioning::Range,
            _ => Partitioning::Hash,
        };
        let id = own.admin.create_keyspace(&own.name, layout, 0, 0).await?.keyspace_id;
        let begun = Instant::now();
        loop {
            let map = own.admin.shard_map().await?;
            let mut shards = map.shards.values().filter(|shard| shard.descriptor.keyspace_id == id);
            if shards.all(|shard| shard.leader.is_some()) {
                return Ok(own);
            }
            if begun.elapsed() > args.timeout() {
                let words =
                    format!("keyspace {} has shards without a leader; see `kvdb status`", own.name);
                own.drop().await?;
                return Err(Failure::Unavailable(words));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn drop(self) -> Result<(), Failure> {
        let dropped = self.admin.drop_keyspace(&self.name).await;
        dropped.map(|_| ()).map_err(|error| {
            let name = &self.name;
            Failure::from(error).map_words(&|words| {
                format!(
                    "keyspace {name} stays ({words}); `kvdb admin drop-keyspace {name}` drops it"
                )
            })
        })
    }
}

fn start_echo(command: &Args) -> Result<EchoServer, Failure> {
    let unavailable = |error| Failure::Unavailable(format!("cannot start the echo: {error}"));
    let program = std::env::current_exe().map_err(unavailable)?;
    let bytes = command.value_bytes.end().to_string();
    let words = ["bench", "echo-server", "--listen", "127.0.0.1:0", "--until-input-ends"];
    let words = [&words[..], &["--value-bytes", &bytes]].concat();
    EchoServer::start(&program, &words).map_err(unavailable)
}

fn failed(error: Error) -> Failure {
    match error {
        Error::Options(error) => Failure::Usage(error.to_string()),
        Error::Connect(Failed::Kvdb(error)) => error.into(),
        error => Failure::Unavailable(error.to_string()),
    }
}

fn show(command: &Args, report: &Report, json: bool) -> Result<(), Failure> {
    let mut output = Output::new();
    if json {
        output.json(&document(command, report))?;
    } else {
        output.line(report.text(command.mode()))?;
    }
    output.finish()
}

fn document(command: &Args, report: &Report) -> Value {
    let mut document = serde_json::to_value(report).expect("a report has only text keys");
    document["mode"] = command.mode().into();
    if let Some(row) = &command.row {
        document["row"] = row.as_str().into();
        let by_default = match command.target {
            Target::KvdbGrpc | Target::KvdbBatch => "kvdb",
            Target::Redis => "redis",
            Target::Etcd => "etcd",
            Target::Echo => "echo",
        };
        document["system"] = command.system.as_deref().unwrap_or(by_default).into();
    }
    document
}

/// The exit code: that of the first error, if there were too many.
fn judge(report: Report, max_errors: u64) -> Result<(), Failure> {
    let errors = report.errors;
    match report.first_error {
        Some(first) if errors > max_errors => Err(match first {
            Failed::Kvdb(error) => error.into(),
            other => Failure::Unavailable(format!(
                "{} requests failed, first: {other}",
                HumanCount(errors)
            )),
        }),
        _ => Ok(()),
    }
}

fn bar(options: &Options) -> ProgressBar {
    if !is_watched() {
        return ProgressBar::hidden();
    }
    let template = "{msg} {wide_bar}";
    let style = ProgressStyle::with_template(template).expect("the template is well formed");
    let length = match options.extent {
        Extent::Requests(requests) => requests,
        Extent::Time(time) => time.as_millis() as u64,
    };
    ProgressBar::new(length).with_style(style)
}

/// Moves the bar and tells the rate of the last moments, for ever.
async fn show_progress(progress: &Progress, options: &Options, bar: &ProgressBar) {
    let mut ticks = tokio::time::interval(Duration::from_millis(250));
    let (mut phase, mut since) = ("", Instant::now());
    let (mut last, mut at) = (0, Instant::now());
    loop {
        ticks.tick().await;
        let done = progress.done();
        if phase != progress.phase() {
            (phase, since) = (progress.phase(), Instant::now());
            (last, at) = (done, since);
        }
        let per_second = done.saturating_sub(last) as f64 / at.elapsed().as_secs_f64().max(0.001);
        (last, at) = (done, Instant::now());
        bar.set_position(match (phase, options.extent) {
            ("measuring", Extent::Requests(_)) => done,
            ("measuring", Extent::Time(_)) => since.elapsed().as_millis() as u64,
            _ => 0,
        });
        let errors = match progress.errors() {
            0 => String::new(),
            errors => format!(", {} errors", HumanCount(errors)),
        };
        let (done, per_second) = (HumanCount(done), HumanCount(per_second as u64));
        bar.set_message(format!("{phase}: {done}, {per_second}/s{errors}"));
    }
}

fn compare(command: &Compare, json: bool) -> Result<(), Failure> {
    let name_of = |path: &Path| path.display().to_string();
    let text = std::fs::read_to_string(&command.rows)
        .map_err(|error| Failure::reading(&name_of(&command.rows), &error))?;
    let rows = Rows::parse(&text)
        .map_err(|error| Failure::Usage(format!("{}: {error}", command.rows.display())))?;
    if let (Some(folder), Some(name)) = (&command.out, &command.name) {
        let plots = rows.plots(name);
        let page = rows.markdown(&format!("Figures of {name}"), &command.about, &plots);
        let document = format!("{:#}\n", rows.json(&command.about));
        let mut files = vec![(format!("{name}.json"), document), (format!("{name}.md"), page)];
        files.extend(plots.into_iter().map(|plot| (plot.file, plot.svg)));
        for (file, content) in files {
            let path = folder.join(file);
            std::fs::create_dir_all(folder)
                .and_then(|()| std::fs::write(&path, content))
                .map_err(|error| Failure::writing(&name_of(&path), &error))?;
        }
    }
    let mut output = Output::new();
    match json {
        true => output.document(&rows.json(&command.about))?,
        false => output.raw(rows.text().as_bytes())?,
    }
    output.finish()
}

async fn serve(command: &Echo) -> Result<(), Failure> {
    let told = |address: SocketAddr| {
        let mut output = Output::new();
        // Whoever started it may not care.
        let _ = output.line(address.to_string()).and_then(|()| output.finish());
    };
    let until_input_ends = command.until_input_ends;
    let input_ends = async move {
        if !until_input_ends {
            return std::future::pending().await;
        }
        let read = || std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = tokio::task::spawn_blocking(read).await;
    };
    let failed =
        |error| Failure::Unavailable(format!("cannot serve on {}: {error}", command.listen));
    tokio::select! {
        served = kvdb_bench::serve_echo(command.listen, command.value_bytes, told) => served.map_err(failed),
        () = input_ends => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_sizes_are_a_number_or_a_range() {
        assert_eq!(value_bytes("128"), Ok(128..=128));
        assert_eq!(value_bytes("0-8388608"), Ok(0..=8_388_608));
        assert!(["", "-", "5-", "x", "-5"].iter().all(|text| value_bytes(text).is_err()));
    }
}
