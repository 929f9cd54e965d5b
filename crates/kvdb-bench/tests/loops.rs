//! The loop against servers of the test's own: one that stands still at times, one that refuses,
//! and the echo.
#![expect(clippy::unwrap_used, reason = "a test fails by it, in its helpers too")]

use kvdb_bench::{
    Error, Extent, Mix, Options, Progress, Report, Spread, TargetKind, Workload, run, serve_echo,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

const STALL: Duration = Duration::from_millis(400);

fn options(target: TargetKind, address: String) -> Options {
    Options {
        target,
        addresses: vec![address],
        keyspace: String::new(),
        mix: Mix::PUT,
        fill: false,
        keys: 100,
        spread: Spread::Even,
        // No value may look like a command to the servers below.
        value_bytes: 0..=0,
        seed: 1,
        clients: 4,
        pipeline: 1,
        connections: 2,
        rate: None,
        warm_up: Duration::ZERO,
        extent: Extent::Requests(800),
        timeout: Duration::from_secs(10),
        exactly_once: false,
        max_errors: 0,
        server_pids: Vec::new(),
    }
}

async fn report(options: &Options) -> Report {
    run(options, &Arc::new(Progress::default())).await.unwrap()
}

/// What a server of the Redis protocol does with the command of this number.
#[derive(Clone, Copy)]
enum Manner {
    /// Answers; but all stand still once this command has come.
    StallAt(u64),
    /// Refuses every command of this many.
    RefuseEach(u64),
}

/// Counts commands by their names, which is enough as long as values are empty.
async fn redis(manner: Manner) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // Held while the server stands still.
    let gate = Arc::new(tokio::sync::Mutex::new(()));
    let commands = Arc::new(AtomicU64::new(0));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream, manner, Arc::clone(&gate), Arc::clone(&commands)));
        }
    });
    address
}

async fn serve(
    mut stream: TcpStream,
    manner: Manner,
    gate: Arc<tokio::sync::Mutex<()>>,
    commands: Arc<AtomicU64>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        let text = String::from_utf8_lossy(&buffer[..length]);
        let mut answers = String::new();
        for word in text.split("\r\n").filter(|word| ["PING", "SET", "GET"].contains(word)) {
            let number = match word {
                "PING" => 0,
                _ => commands.fetch_add(1, Ordering::SeqCst) + 1,
            };
            let closed = gate.lock().await;
            match manner {
                Manner::StallAt(at) if number == at => tokio::time::sleep(STALL).await,
                Manner::RefuseEach(each) if number > 0 && number % each == 0 => {
                    answers.push_str("-BUSY not now\r\n");
                    continue;
                }
                _ => {}
            }
            drop(closed);
            answers.push_str("+OK\r\n");
        }
        if stream.write_all(answers.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn echo() -> String {
    let (sender, receiver) = oneshot::channel();
    let bound = move |address| sender.send(address).unwrap();
    tokio::spawn(serve_echo("127.0.0.1:0".parse().unwrap(), 16, bound));
    receiver.await.unwrap().to_string()
}

/// The same stall in both loops: a closed loop shows it once for each client that waited, an open
/// loop in every request that was due meanwhile.
#[tokio::test]
async fn an_open_loop_counts_what_a_stall_held_up() {
    let closed = options(TargetKind::Redis, redis(Manner::StallAt(400)).await);
    let closed = report(&closed).await;
    assert_eq!((closed.requests, closed.errors), (800, 0));
    assert!(closed.latency.max_us >= 399_000, "{:?}", closed.latency);
    // At most 4 of 800 waited.
    assert!(closed.latency.p99_us < 200_000, "{:?}", closed.latency);

    let address = redis(Manner::StallAt(400)).await;
    let open = Options { rate: Some(1000.0), ..options(TargetKind::Redis, address) };
    let open = report(&open).await;
    assert_eq!((open.requests, open.errors, open.unsent), (800, 0, 0));
    assert!(open.latency.max_us >= 399_000, "{:?}", open.latency);
    // Some 400 of 800 were due in the stall, half of which waited for more than 200 ms.
    assert!(open.latency.p90_us > 150_000, "{:?}", open.latency);
    assert!(open.seconds >= 0.79, "{}", open.seconds);
}

#[tokio::test]
async fn errors_count_by_kind_and_have_no_latency() {
    let options = options(TargetKind::Redis, redis(Manner::RefuseEach(4)).await);
    let report = report(&options).await;
    assert_eq!((report.requests, report.errors), (600, 200));
    assert_eq!(report.errors_by_kind["BUSY"].count, 200);
    assert_eq!(report.errors_by_kind["BUSY"].example, "BUSY not now");
    assert_eq!(report.latency.count, 600);
    assert!(report.first_error.is_some());
}

#[tokio::test]
async fn a_run_that_only_fails_ends_early() {
    let mut options = options(TargetKind::Redis, redis(Manner::RefuseEach(1)).await);
    options.extent = Extent::Time(Duration::from_secs(3600));
    let report = report(&options).await;
    assert_eq!(report.requests, 0);
    assert!((1000..1010).contains(&report.errors), "{}", report.errors);
}

#[tokio::test]
async fn a_pipeline_sends_many_at_once() {
    let options = Options {
        pipeline: 16,
        clients: 3,
        extent: Extent::Requests(1000),
        ..options(TargetKind::Redis, redis(Manner::StallAt(0)).await)
    };
    let report = report(&options).await;
    assert_eq!((report.requests, report.latency.count, report.errors), (1000, 1000, 0));
}

#[tokio::test]
async fn every_workload_runs_against_the_echo() {
    use Workload::{A, B, C, D, E, F};
    for workload in [A, B, C, D, E, F] {
        let options = Options {
            mix: workload.mix(),
            spread: workload.spread(),
            fill: true,
            pipeline: 3,
            value_bytes: 1..=64,
            server_pids: vec![std::process::id()],
            ..options(TargetKind::Echo, echo().await)
        };
        let report = report(&options).await;
        assert_eq!((report.requests, report.errors), (800, 0), "{workload:?}");
        let parts: u64 = report.by_operation.values().map(|part| part.count).sum();
        assert_eq!(parts, if workload == C { 0 } else { 800 }, "{workload:?}");
        assert!(report.server_peak_memory_bytes.is_some_and(|bytes| bytes > 0));
    }
}

/// Warming up sends requests that no figure shows.
#[tokio::test]
async fn what_warms_up_is_not_measured() {
    let address = redis(Manner::StallAt(1)).await;
    let warm =
        Options { warm_up: Duration::from_millis(50), ..options(TargetKind::Redis, address) };
    let started = Instant::now();
    let report = report(&warm).await;
    let outside = started.elapsed().as_secs_f64() - report.seconds;
    assert_eq!(report.requests, 800);
    assert!(report.latency.max_us < 399_000, "{:?}", report.latency);
    assert!(outside > 0.399, "the pause is in what was measured: {outside}");
}

#[tokio::test]
async fn nobody_at_the_other_end_is_said_at_once() {
    for target in [TargetKind::Redis, TargetKind::Etcd] {
        // A port that was just free.
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let options = options(target, address.to_string());
        let result = run(&options, &Arc::new(Progress::default())).await;
        let Err(Error::Connect(failed)) = result else { panic!("{target:?}: {result:?}") };
        assert!(failed.to_string().contains("refused") || target == TargetKind::Etcd, "{failed}");
    }
}
