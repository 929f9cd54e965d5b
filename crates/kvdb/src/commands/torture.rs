//! `kvdb torture`: what happens to data when machines fail, shown on the user's own machine.

use crate::cli::ClientArgs;
use crate::exit::Failure;
use crate::output::{Output, is_watched, table};
use indicatif::ProgressBar;
use kvdb_torture::{
    Error, Failover, Fault, How, Options, PlannedWork, Report, Tools, Verdict, Work, parse_list,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Kill, pause and starve a disposable cluster under load, and judge what its clients saw.
#[derive(clap::Args)]
#[group(skip)]
#[command(group(clap::ArgGroup::new("work").args(["planned", "duties"])))]
#[command(after_help = "\
Examples:
  kvdb torture
  kvdb torture --seconds 600 --seed 7 --html report.html
  kvdb torture --faults kill-leader,pause-leader,partition
  kvdb torture --faults all,-clock-jump
  kvdb torture --list-faults
  kvdb torture --failover 20
  kvdb torture --planned 10 --hold 600
  kvdb torture --duties --clients 64 --html report.html

It starts 3 coordinators, 3 nodes and 2 gateways of its own binary on free loopback ports, with \
their data in a temporary directory, and ends them. Your own cluster is not touched. The last line \
has the verdict: verdict=ok lost=0 wrong=0 stale=0 worst_gap_ms=310. Exit code 3 if the verdict isn't ok.")]
pub(crate) struct Args {
    /// Length of load and faults
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(5..=86_400))]
    seconds: u32,
    /// Seed of the schedule of faults [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Faults, separated by commas: names, `all`, or `-name` to leave one out
    #[arg(long, default_value = "all", value_name = "LIST", allow_hyphen_values = true)]
    faults: String,
    /// List the faults, and which of them this machine allows
    #[arg(long)]
    list_faults: bool,
    /// Number of concurrent clients
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1000))]
    clients: u32,
    /// Target rate of all clients together, in operations a second
    #[arg(long, default_value_t = 800, value_parser = clap::value_parser!(u32).range(20..=100_000))]
    rate: u32,
    /// Number of shards
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=64))]
    shards: u32,
    /// Empty directory for data, logs and histories, which is kept [default: a temporary one, which
    /// is kept only if something is wrong]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Keep the history of every operation as JSON lines (with --data)
    #[arg(long, requires = "data")]
    histories: bool,
    /// Write the report as a page with a timeline
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    json_file: Option<PathBuf>,
    /// Do planned work instead of faults: add nodes, split and move shards, drain, lose and replace
    /// nodes, replace a coordinator, stop all of them; no operation of a client may fail
    #[arg(long, conflicts_with_all = ["faults", "seconds", "failover", "planned"])]
    duties: bool,
    /// Measure the write gap of this many kills of a leader, and of as many pauses, instead
    #[arg(long, value_name = "ROUNDS", value_parser = clap::value_parser!(u32).range(1..=1000))]
    failover: Option<u32>,
    /// Measure what clients notice of this many leader moves, restarts, splits and moves, instead
    #[arg(long, value_name = "ROUNDS", conflicts_with = "failover",
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    planned: Option<u32>,
    /// Time without coordinators, with --planned and --duties (and, with --planned, time beside
    /// threads that use up the processor)
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "work",
        value_parser = clap::value_parser!(u32).range(1..=86_400))]
    hold: u32,
}

/// Where a run has its files.
struct Place {
    folder: PathBuf,
    temporary: Option<tempfile::TempDir>,
}

impl Place {
    fn choose(data: Option<&Path>) -> Result<Self, Failure> {
        if let Some(folder) = data {
            // Mounts and logs are named in messages: a path that holds everywhere.
            let folder = std::path::absolute(folder).map_err(|error| unusable(folder, &error))?;
            return Ok(Place { folder, temporary: None });
        }
        let temporary = tempfile::Builder::new().prefix("kvdb-torture-").tempdir();
        let temporary = temporary.map_err(|error| unusable(&std::env::temp_dir(), &error))?;
        Ok(Place { folder: temporary.path().to_owned(), temporary: Some(temporary) })
    }

    /// Has the files stay, for somebody to look at them.
    fn keep(self) -> PathBuf {
        match self.temporary {
            Some(temporary) => temporary.keep(),
            None => self.folder,
        }
    }
}

fn unusable(folder: &Path, error: &std::io::Error) -> Failure {
    Failure::Usage(format!("cannot use {}: {error}", folder.display()))
}

pub(super) async fn run(command: Args, args: &ClientArgs) -> Result<(), Failure> {
    if command.list_faults {
        return list_faults();
    }
    let faults = parse_list(&command.faults).map_err(Failure::Usage)?;
    let program = std::env::current_exe()
        .map_err(|error| Failure::Unavailable(format!("cannot find this binary: {error}")))?;
    match (command.failover, command.planned) {
        (Some(rounds), _) => measure(&command, args, program, rounds).await,
        (_, Some(rounds)) => planned(&command, args, program, rounds).await,
        _ => torture(&command, args, program, faults).await,
    }
}

fn list_faults() -> Result<(), Failure> {
    let tools = Tools::find();
    let rows: Vec<Vec<String>> = Fault::ALL
        .iter()
        .map(|fault| {
            let here = fault.missing(&tools).unwrap_or_else(|| "yes".to_owned());
            vec![fault.name().to_owned(), fault.about().to_owned(), here]
        })
        .collect();
    let mut output = Output::new();
    output.line(table(&["FAULT", "WHAT", "HERE"], &rows))?;
    output.finish()
}

/// Tells what happens: on standard error, so that standard output is the report alone.
struct Teller {
    progress: ProgressBar,
}

impl Teller {
    fn new() -> Self {
        let progress =
            if is_watched() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        progress.enable_steady_tick(Duration::from_millis(200));
        Teller { progress }
    }

    fn tell(&self, line: &str) {
        if self.progress.is_hidden() {
            eprintln!("{line}");
        } else {
            self.progress.println(line);
            self.progress.set_message(line.trim().to_owned());
        }
    }
}

async fn torture(
    command: &Args,
    args: &ClientArgs,
    program: PathBuf,
    faults: Vec<Fault>,
) -> Result<(), Failure> {
    let place = Place::choose(command.data.as_deref())?;
    let seed = command.seed.unwrap_or_else(|| getrandom::u64().unwrap_or(1) % 1_000_000);
    let options = Options {
        program,
        folder: place.folder.clone(),
        length: Duration::from_secs(command.seconds.into()),
        seed,
        work: if command.duties {
            Work::Duties { without_coordinators: Duration::from_secs(command.hold.into()) }
        } else {
            Work::Faults(faults)
        },
        clients: command.clients,
        rate: command.rate,
        shards: command.shards,
        keep_histories: command.histories,
    };
    let teller = Teller::new();
    teller.tell(&format!("seed {seed}; files in {}", place.folder.display()));
    let interrupted = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let result = kvdb_torture::run(&options, &|line| teller.tell(line), interrupted).await;
    teller.progress.finish_and_clear();
    let report = match result {
        Ok(report) => report,
        Err(error) => {
            let kept = place.keep();
            let failure = failed(&error);
            eprintln!("kvdb: logs and data stay in {}", kept.display());
            return Err(failure);
        }
    };
    write_files(command, &report)?;
    show(&report, args.json)?;
    if report.verdict == Verdict::Ok {
        return Ok(());
    }
    let kept = place.keep();
    let words =
        format!("the verdict is {}; logs and histories are in {}", report.verdict, kept.display());
    Err(Failure::Failed(words))
}

fn failed(error: &Error) -> Failure {
    match error {
        Error::Options(words) => Failure::Usage(words.clone()),
        _ => Failure::Unavailable(error.to_string()),
    }
}

fn write_files(command: &Args, report: &Report) -> Result<(), Failure> {
    let write = |path: &Path, content: String| {
        std::fs::write(path, content)
            .map_err(|error| Failure::writing(&path.display().to_string(), &error))
    };
    if let Some(path) = &command.html {
        write(path, report.html())?;
    }
    if let Some(path) = &command.json_file {
        let json = serde_json::to_string_pretty(report).expect("a report has only text keys");
        write(path, json + "\n")?;
    }
    Ok(())
}

fn show(report: &Report, json: bool) -> Result<(), Failure> {
    let mut output = Output::new();
    if json {
        let value = serde_json::to_value(report).expect("a report has only text keys");
        output.json(&value)?;
    } else {
        output.line(report.to_string())?;
    }
    output.finish()
}

/// What is measured, or word that Ctrl-C was pressed. The cluster ends with its measurement.
async fn unless_interrupted<T>(measured: impl Future<Output = T>) -> Result<T, Failure> {
    tokio::select! {
        measured = measured => Ok(measured),
        Ok(()) = tokio::signal::ctrl_c() => Err(Failure::Interrupted("interrupted".to_owned())),
    }
}

async fn measure(
    command: &Args,
    args: &ClientArgs,
    program: PathBuf,
    rounds: u32,
) -> Result<(), Failure> {
    let place = Place::choose(command.data.as_deref())?;
    let teller = Teller::new();
    let mut results = Vec::new();
    for (how, name) in [(How::Kill, "kill"), (How::Pause, "pause")] {
        let folder = place.folder.join(name);
        let tell = |line: &str| teller.tell(line);
        let program = program.clone();
        let measured = kvdb_torture::failover(program, folder, command.shards, how, rounds, tell);
        match unless_interrupted(measured).await? {
            Ok(measured) => results.push(measured),
            Err(error) => {
                let failure = failed(&error);
                eprintln!("kvdb: logs and data stay in {}", place.keep().display());
                return Err(failure);
            }
        }
    }
    teller.progress.finish_and_clear();
    let mut output = Output::new();
    for one in &results {
        if args.json {
            output.json(&serde_json::to_value(one).expect("it has only text keys"))?;
        } else {
            output.line(failover_line(one))?;
        }
    }
    output.finish()
}

fn failover_line(one: &Failover) -> String {
    let how = if one.how == How::Kill { "kill -9" } else { "pause" };
    format!(
        "{how} of a leader's node: write gap median {} ms, worst {} ms of {} (promised: median \
         300, worst 500)",
        one.median_ms,
        one.worst_ms,
        one.gaps_ms.len()
    )
}

async fn planned(
    command: &Args,
    args: &ClientArgs,
    program: PathBuf,
    rounds: u32,
) -> Result<(), Failure> {
    let place = Place::choose(command.data.as_deref())?;
    let folder = place.folder.join("planned");
    std::fs::create_dir_all(&folder).map_err(|error| unusable(&folder, &error))?;
    let teller = Teller::new();
    let hold = Duration::from_secs(command.hold.into());
    let tell = |line: &str| teller.tell(line);
    let measured = kvdb_torture::planned(program, folder, command.shards, rounds, hold, tell);
    let measured = unless_interrupted(measured).await?;
    teller.progress.finish_and_clear();
    let measured = match measured {
        Ok(measured) => measured,
        Err(error) => {
            let failure = failed(&error);
            eprintln!("kvdb: logs and data stay in {}", place.keep().display());
            return Err(failure);
        }
    };
    let mut output = Output::new();
    if args.json {
        output.json(&serde_json::to_value(&measured).expect("it has only text keys"))?;
    } else {
        for line in planned_lines(&measured) {
            output.line(line)?;
        }
    }
    output.finish()?;
    if measured.failed_writes() == 0 && measured.lost == 0 {
        return Ok(());
    }
    let (failed, lost) = (measured.failed_writes(), measured.lost);
    let kept = place.keep();
    let words = format!(
        "{failed} writes failed and {lost} shards lost one; logs are in {}",
        kept.display()
    );
    Err(Failure::Failed(words))
}

fn planned_lines(measured: &PlannedWork) -> Vec<String> {
    let rows: Vec<Vec<String>> = measured
        .noticed
        .iter()
        .map(|one| {
            let promised = one.change.promised_ms().map_or("-".to_owned(), |ms| ms.to_string());
            vec![
                one.change.name().to_owned(),
                one.gaps_ms.len().to_string(),
                one.median_ms.to_string(),
                one.worst_ms.to_string(),
                promised,
                one.failed_writes.to_string(),
            ]
        })
        .collect();
    let names = ["CHANGE", "ROUNDS", "GAP MS MEDIAN", "WORST", "PROMISED", "FAILED WRITES"];
    let (alone, crowded) = (&measured.alone, &measured.crowded);
    vec![
        table(&names, &rows),
        format!(
            "all coordinators down for {} s: {:.0} writes/s, {:.1}% of the {:.0} before; {} failed",
            alone.seconds,
            alone.writes_without,
            100.0 * alone.writes_without / alone.writes_before.max(f64::MIN_POSITIVE),
            alone.writes_before,
            alone.failed_writes
        ),
        format!(
            "{} s beside {} threads that use up the processor: {} elections, {:.0} writes/s, {} failed",
            crowded.seconds,
            crowded.threads,
            crowded.elections,
            crowded.writes,
            crowded.failed_writes
        ),
        format!("failed={} lost={}", measured.failed_writes(), measured.lost),
    ]
}
