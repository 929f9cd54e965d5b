//! Log entries and records as they are on disks now. A directory, a log or a snapshot of an earlier
//! build must be read as it was meant, and every replica of a shard must come to the same records,
//! whichever build it runs: so neither the bytes of an entry nor what comes of it may change within
//! a format.
//!
//! `golden/format-2.txt` is a story in text: `> COMMAND ...` is given, `= ...` is the log entry that
//! holds it, `* ...` is a record that is there at the end. A new command is added to the story, then
//! `KVDB_WRITE_GOLDEN=1 cargo test -p kvdb-redis --test golden` writes the rest. What was there before
//! must stay as it is; if it doesn't, the format has changed.

use bytes::Bytes;
use kvdb_engine::{Engine, MemoryEngine};
use kvdb_model::log::INITIAL_POSITION;
use kvdb_model::{
    EntryCommand, EntryKind, EntryPayload, KeyRange, KeyspaceId, LogEntry, LogIndex,
    MembershipEpoch, NodeId, Operation, RangeEpoch, Replica, ReplicaId, RequestTag, Role,
    ShardDescriptor, ShardId, Term, ValidUntil, Version, VolumeId, Write,
};
use kvdb_redis::session::{Session, Step};
use kvdb_redis::{plan, table};
use kvdb_store::{CommandOutcome, NoControl, Shard};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

const START_MS: u64 = 1_700_000_000_000;
const VOLUME: VolumeId = VolumeId(1);

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/format-2.txt")
}

fn story() -> String {
    std::fs::read_to_string(path()).expect("the story is there")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn from_hex(text: &str) -> Bytes {
    let digits: Vec<u8> = text.bytes().collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16);
    digits.chunks(2).map(|two| pair(two).expect("two digits")).collect()
}

/// The words of a command. `*200` stands for 200 words, `000` to `199`, so that a collection outgrows one
/// record; `0x00ff` for bytes.
fn words(line: &str) -> Vec<Bytes> {
    let mut words = Vec::new();
    for word in line.split(' ') {
        let count = word.strip_prefix('*').and_then(|count| count.parse::<u32>().ok());
        match (count, word.strip_prefix("0x")) {
            (Some(count), _) => {
                words.extend((0..count).map(|number| Bytes::from(format!("{number:03}"))));
            }
            (None, Some(digits)) => words.push(from_hex(digits)),
            (None, None) => words.push(Bytes::from(word.to_owned())),
        }
    }
    words
}

fn operation(step: &plan::Step, item: u32) -> Operation {
    let operation = Operation {
        others: step.others.clone(),
        item,
        condition: step.condition.clone(),
        return_previous: step.return_previous,
        required: step.is_required(),
        ..Operation::new(step.key.clone(), step.body.clone())
    };
    operation.sealed()
}

/// The entry of the story's `number`th command. Each comes a second after the one before.
fn entry_of(line: &str, number: u64) -> Bytes {
    let now_ms = START_MS + number * 1000;
    let version = Version::from_millis(now_ms);
    let mut session = Session::new(1);
    let (Step::Plan(plan), _) = session.take(words(line), now_ms) else {
        panic!("{line} is no plan on keys")
    };
    let operations: Vec<Operation> =
        (0..).zip(&plan.steps).map(|(item, step)| operation(step, item)).collect();
    let request = RequestTag {
        client_id: "golden".into(),
        sequence: number + 1,
        acked_below: number,
        valid_until: ValidUntil::Time(now_ms + 60_000),
    };
    let write =
        Write { epoch: RangeEpoch(3), atomic: plan.atomic, request: Some(request), operations };
    let command = EntryCommand::Write(write);
    let payload = EntryPayload {
        version,
        version_count: command.version_count(),
        jump_ms: 0,
        commands: vec![command.to_bytes()],
    };
    payload.to_bytes()
}

/// What a shard holds that these entries were applied to, one after the other.
fn records_after(entries: &[Bytes]) -> Vec<(Bytes, Bytes)> {
    let engine = MemoryEngine::new();
    engine.create_volume(VOLUME).expect("the engine is empty");
    let replica_id = ReplicaId(10);
    let birth = ShardDescriptor {
        shard_id: ShardId(4),
        keyspace_id: KeyspaceId(0),
        range: KeyRange::ALL,
        range_epoch: RangeEpoch(3),
        membership_epoch: MembershipEpoch(1),
        replicas: vec![Replica { node_id: NodeId(1), replica_id, role: Role::Voter }],
    };
    let shared: Arc<dyn Engine> = Arc::new(engine.clone());
    let mut shard =
        Shard::open(shared, replica_id, VOLUME, &birth.to_bytes(), INITIAL_POSITION, NoControl)
            .expect("the volume is sound");
    for (number, data) in (1..).zip(entries) {
        let index = LogIndex(INITIAL_POSITION.index.0 + number);
        let (term, kind, context) = (Term(6), EntryKind::Normal, Bytes::new());
        let entry = LogEntry { index, term, kind, data: data.clone(), context };
        let applied = shard.apply(&[entry]).expect("the volume is sound");
        for outcome in applied.entries.iter().flat_map(|entry| &entry.commands) {
            let CommandOutcome::Written(outcomes) = outcome else { panic!("{outcome:?}") };
            let refused = outcomes.iter().find(|outcome| outcome.is_err());
            assert_eq!(refused, None, "entry {number}");
        }
    }
    let snapshot = engine.snapshot(VOLUME).expect("it is there");
    snapshot.scan(&KeyRange::ALL, false).collect::<Result<_, _>>().expect("it can be read")
}

fn told(records: &[(Bytes, Bytes)]) -> Vec<String> {
    records.iter().map(|(key, value)| format!("* {} {}", hex(key), hex(value))).collect()
}

fn commands(story: &str) -> Vec<&str> {
    story.lines().filter_map(|line| line.strip_prefix("> ")).collect()
}

fn kept(story: &str) -> Vec<Bytes> {
    story.lines().filter_map(|line| line.strip_prefix("= ")).map(from_hex).collect()
}

/// The story with entries and records as they come out now.
fn written_anew(story: &str) -> String {
    let mut text = String::new();
    let mut entries = Vec::new();
    for line in story.lines().filter(|line| !line.starts_with(['=', '*'])) {
        let _ = writeln!(text, "{line}");
        if let Some(command) = line.strip_prefix("> ") {
            let entry = entry_of(command, entries.len() as u64);
            let _ = writeln!(text, "= {}", hex(&entry));
            entries.push(entry);
        }
    }
    for record in told(&records_after(&entries)) {
        let _ = writeln!(text, "{record}");
    }
    text
}

#[test]
fn entries_are_encoded_as_they_always_were() {
    if std::env::var_os("KVDB_WRITE_GOLDEN").is_some() {
        std::fs::write(path(), written_anew(&story())).unwrap();
    }
    let story = story();
    let (commands, kept) = (commands(&story), kept(&story));
    assert_eq!(commands.len(), kept.len(), "each command has its entry");
    for (number, (command, kept)) in (0..).zip(commands.iter().zip(kept)) {
        // It holds a number that is drawn anew each time.
        if command.starts_with("SPOP ") {
            continue;
        }
        assert_eq!(hex(&entry_of(command, number)), hex(&kept), "{command}");
    }
}

#[test]
fn entries_that_were_kept_come_to_the_records_that_were_kept() {
    let story = story();
    let records: Vec<&str> = story.lines().filter(|line| line.starts_with("* ")).collect();
    assert!(records.len() > 300, "collections have outgrown their records: {}", records.len());
    assert_eq!(told(&records_after(&kept(&story))), records);
}

#[test]
fn every_command_that_writes_keys_is_in_the_story() {
    // They are no plans on keys, or always refused.
    const WITHOUT: &[&str] = &["flushall", "flushdb", "move", "swapdb"];
    let story = story();
    let told: BTreeSet<String> = commands(&story)
        .iter()
        .map(|line| line.split(' ').next().unwrap_or_default().to_lowercase())
        .collect();
    let missing: Vec<&str> = table::COMMANDS
        .iter()
        .filter(|spec| spec.flags.split(' ').any(|flag| flag == "write"))
        .map(|spec| spec.name)
        .filter(|name| !told.contains(*name) && !WITHOUT.contains(name))
        .collect();
    assert_eq!(missing, Vec::<&str>::new());
}
