//! How long commands on a large sorted set take in one shard over the real engine, disks and network left
//! out: `sorted_set MEMBERS COMMANDS`, 1,000,000 and 2,000 unless they are given. Fails where the median of one is
//! above 2 ms; but for reads while many writes are in memory still, which are only told. (Each version of a
//! count that is there is walked past.)

use bytes::Bytes;
use kvdb_engine::Engine;
use kvdb_engine_lsm::{LsmConfig, LsmEngine};
use kvdb_model::log::INITIAL_POSITION;
use kvdb_model::{
    EntryCommand, EntryKind, EntryPayload, KeyRange, KeyspaceId, LogEntry, LogIndex,
    MembershipEpoch, NodeId, RangeEpoch, Replica, ReplicaId, Role, ShardDescriptor, ShardId, Term,
    Version, VolumeId, Write,
};
use kvdb_store::zset::{
    Add, AddRule, Count, Pop, Range, Rank, Remove, Score, ScoreBound, Select, Selection,
};
use kvdb_store::{Command, NoControl, Shard, View};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

const VOLUME: VolumeId = VolumeId(1);
const REPLICA: ReplicaId = ReplicaId(1);
const EPOCH: RangeEpoch = RangeEpoch(1);
const KEY: &[u8] = b"leaderboard";
/// The median that a command may take.
const GOAL: Duration = Duration::from_millis(2);
/// Members that are added by one entry.
const AT_ONCE: u64 = 1000;

struct Bench {
    engine: Arc<dyn Engine>,
    shard: Shard<NoControl>,
    index: LogIndex,
    random: u64,
}

impl Bench {
    fn write(&mut self, command: &impl Command) {
        self.index = self.index.next();
        let operation = command.on(Bytes::from_static(KEY)).sealed();
        let write =
            Write { epoch: EPOCH, atomic: false, request: None, operations: vec![operation] };
        let payload = EntryPayload {
            version: Version::from_millis(1_000_000 + self.index.0),
            version_count: 1,
            jump_ms: 0,
            commands: vec![EntryCommand::Write(write).to_bytes()],
        };
        let entry = LogEntry {
            index: self.index,
            term: Term(6),
            kind: EntryKind::Normal,
            data: payload.to_bytes(),
            context: Bytes::new(),
        };
        self.shard.apply(&[entry]).expect("the engine is well");
    }

    fn read(&self, command: &impl Command) {
        let snapshot = self.engine.snapshot(VOLUME).expect("the volume is there");
        let view = View::new(&*snapshot, REPLICA).expect("the replica is there");
        let operation = command.on(Bytes::from_static(KEY));
        let found = view.query(EPOCH, &[operation], 0, 16 << 20).expect("it can be read");
        assert!(found.is_some_and(|outcomes| outcomes.iter().all(Result::is_ok)));
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((u128::from(self.random) * u128::from(end)) >> 64) as u64
    }
}

fn member(number: u64) -> Bytes {
    Bytes::from(format!("player:{number:010}"))
}

fn add(members: Vec<(Score, Bytes)>) -> Add {
    Add { rule: AddRule::default(), count_changed: false, members }
}

fn score(number: u64) -> Score {
    Score::new(number as f64).unwrap_or(Score::ZERO)
}

/// Times a command so many times, and tells the median and the slowest of a hundred.
fn measure(name: &str, times: u64, mut step: impl FnMut()) -> bool {
    let mut took: Vec<Duration> = (0..times.max(1))
        .map(|_| {
            let start = Instant::now();
            step();
            start.elapsed()
        })
        .collect();
    took.sort_unstable();
    let at = |share: usize| took[(took.len() * share / 100).min(took.len() - 1)];
    println!("{name:24} p50 {:>9.1?}  p99 {:>9.1?}", at(50), at(99));
    at(50) <= GOAL
}

fn open(folder: &std::path::Path) -> Bench {
    let engine = LsmEngine::open(folder, LsmConfig::default()).expect("the folder is empty");
    let engine: Arc<dyn Engine> = Arc::new(engine);
    engine.create_volume(VOLUME).expect("the engine is empty");
    let descriptor = ShardDescriptor {
        shard_id: ShardId(1),
        keyspace_id: KeyspaceId(0),
        range: KeyRange::ALL,
        range_epoch: EPOCH,
        membership_epoch: MembershipEpoch(1),
        replicas: vec![Replica { node_id: NodeId(1), replica_id: REPLICA, role: Role::Voter }],
    };
    let birth = descriptor.to_bytes();
    let opened =
        Shard::open(Arc::clone(&engine), REPLICA, VOLUME, &birth, INITIAL_POSITION, NoControl);
    let shard = opened.expect("the volume is new");
    Bench { engine, shard, index: INITIAL_POSITION.index, random: 7 }
}

/// Reads of all kinds.
fn reads(bench: &mut Bench, members: u64, times: u64) -> bool {
    let mut is_good = true;
    is_good &= measure("ZRANK", times, || {
        let member = member(bench.below(members));
        bench.read(&Rank { member, reverse: false });
    });
    is_good &= measure("ZRANGE by rank, 10", times, || {
        let first = bench.below(members / 2) as i64;
        let range = Range::Ranks(first, first + 9);
        let selection = Selection { range, reverse: false, skip: 0, most: None };
        bench.read(&Select { selection, with_scores: true });
    });
    is_good &= measure("ZRANGE BYSCORE, LIMIT 10", times, || {
        let bound = |number| ScoreBound { score: score(number), is_exclusive: false };
        let range = Range::Scores(bound(bench.below(1 << 30)), bound(1 << 30));
        let selection = Selection { range, reverse: false, skip: 0, most: Some(10) };
        bench.read(&Select { selection, with_scores: true });
    });
    is_good &= measure("ZCOUNT", times, || {
        let bound = |number| ScoreBound { score: score(number), is_exclusive: false };
        let (one, other) = (bench.below(1 << 30), bench.below(1 << 30));
        let range = Range::Scores(bound(one.min(other)), bound(one.max(other)));
        bench.read(&Count { range });
    });
    is_good
}

/// Writes of all kinds.
fn writes(bench: &mut Bench, members: u64, times: u64) -> bool {
    let mut is_good = true;
    is_good &= measure("ZADD, a new member", times, || {
        let scored = (score(bench.below(1 << 30)), member(members + bench.index.0));
        bench.write(&add(vec![scored]));
    });
    is_good &= measure("ZADD, another score", times, || {
        let scored = (score(bench.below(1 << 30)), member(bench.below(members)));
        bench.write(&add(vec![scored]));
    });
    is_good &= measure("ZREM", times, || {
        let members = vec![member(bench.below(members))];
        bench.write(&Remove { members });
    });
    is_good &= measure("ZPOPMIN", times, || bench.write(&Pop { highest: false, count: 1 }));
    is_good
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).map(|word| word.parse().ok());
    let members: u64 = words.next().flatten().unwrap_or(1_000_000);
    let times: u64 = words.next().flatten().unwrap_or(2_000);
    let folder = tempfile::tempdir().expect("there is room");
    let mut bench = open(folder.path());
    let start = Instant::now();
    for first in (0..members).step_by(AT_ONCE as usize) {
        let numbers = first..(first + AT_ONCE).min(members);
        // Scores in no order.
        let scored = numbers.map(|number| (score(bench.below(1 << 30)), member(number)));
        let scored = scored.collect();
        bench.write(&add(scored));
        while bench.engine.maintain().expect("the engine is well") {}
    }
    bench.engine.flush(VOLUME).expect("the engine is well");
    while bench.engine.maintain().expect("the engine is well") {}
    println!("{members} members were added in {:.1?}", start.elapsed());

    let mut is_good = reads(&mut bench, members, times);
    is_good &= writes(&mut bench, members, times);
    println!("once more, over the {} writes that are in memory still:", 4 * times);
    reads(&mut bench, members, times);
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
