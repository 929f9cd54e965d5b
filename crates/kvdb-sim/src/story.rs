//! One seed's story, and its end.

use crate::process::Process;
use crate::schedule::Chosen;
use crate::world::{CLIENTS, World};
use kvdb_checker::Verdict;
use kvdb_checker::register::{self, Options};
use kvdb_model::{Role, ShardDescriptor, ShardId};
use kvdb_replication::GroupStatus;
use kvdb_store::digest;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How long to go on.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Simulated seconds with faults.
    pub storm_s: u64,
    /// Simulated seconds without, within which all must be well again.
    pub calm_s: u64,
    /// Keep the whole trace, not only its end.
    pub traces: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { storm_s: 20, calm_s: 20, traces: false }
    }
}

/// A story that went well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Operations in the history.
    pub operations: usize,
    /// Operations that were answered.
    pub succeeded: u64,
    /// Faults by kind (and snapshots that were taken in).
    pub faults: BTreeMap<&'static str, u64>,
    /// Simulated time, in microseconds.
    pub simulated_us: u64,
    /// Events.
    pub steps: u64,
    /// The same for the same seed, different if anything went differently.
    pub digest: u64,
    /// What happened, a line each, if [`Settings::traces`].
    pub trace: Vec<String>,
}

/// A story that broke a promise.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What is wrong.
    pub what: String,
    /// Faults drawn until then; those that were left out count too.
    pub drawn: u64,
    /// The end of what happened, a line each; all of it if [`Settings::traces`].
    pub trace: Vec<String>,
}

/// Tells the story of a seed.
///
/// # Errors
/// [`Failure`] if it breaks a promise.
pub fn run(seed: u64, settings: &Settings) -> Result<Report, Failure> {
    run_with(seed, settings, &Chosen::All)
}

/// As [`run`], with only some of its faults.
///
/// # Errors
/// [`Failure`] if it breaks a promise.
pub fn run_with(seed: u64, settings: &Settings, chosen: &Chosen) -> Result<Report, Failure> {
    let mut world = World::new(seed, settings.traces, chosen.clone());
    let told = catch_unwind(AssertUnwindSafe(|| tell(&mut world, settings)));
    let trace = world.trace().to_vec();
    let drawn = world.fault_schedule.drawn;
    match told {
        Ok(Ok(())) => Ok(Report {
            operations: world.history().operations().len(),
            succeeded: world.clients.iter().map(|client| client.succeeded).sum(),
            faults: world.faults.clone(),
            simulated_us: world.now_us,
            steps: world.steps(),
            digest: world.digest(),
            trace: if settings.traces { trace } else { Vec::new() },
        }),
        Ok(Err(what)) => Err(Failure { what, drawn, trace }),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            let what = format!("panic: {}", text.unwrap_or("without words"));
            Err(Failure { what, drawn, trace })
        }
    }
}

fn tell(world: &mut World, settings: &Settings) -> Result<(), String> {
    world.run_until(settings.storm_s * 1_000_000);
    nothing_violated(world)?;
    world.calm();
    let before: Vec<u64> = world.clients.iter().map(|client| client.succeeded).collect();
    let end_us = (settings.storm_s + settings.calm_s) * 1_000_000;
    world.run_until(end_us);
    nothing_violated(world)?;
    for (id, before) in before.iter().enumerate() {
        // Some at the very end too, not only right after the storm.
        if world.clients[id].succeeded < before + 10 * settings.calm_s {
            let after = world.clients[id].succeeded - before;
            return Err(format!(
                "client {id} got only {after} answers in {} s without faults: {}\n{}",
                settings.calm_s,
                world.doing(id),
                statuses(world, ShardId::CONTROL)
            ));
        }
    }
    a_leader_whose_disk_hangs_hands_over(world)?;
    let led = led_shards(world)?;
    shards_tile(&led)?;
    nothing_half_done(world, &led)?;
    replicas_agree(world, &led)?;
    expiry_holds(world)?;
    linearizable(world)
}

/// The disk of a node that leads hangs, and all is well otherwise: what it has begun to write and
/// can't must be led by somebody else soon.
fn a_leader_whose_disk_hangs_hands_over(world: &mut World) -> Result<(), String> {
    const HANGS_US: u64 = 2_000_000;
    const SOON_US: u64 = 600_000;
    let place = world.most_leading();
    world.freeze_disk(place, HANGS_US);
    let begun_us = world.now_us;
    world.run_until(begun_us + SOON_US);
    let before = stuck(world, place);
    world.run_until(begun_us + 2 * SOON_US);
    let stays = stuck(world, place).into_iter().find(|shard| before.contains(shard));
    if let Some(shard) = stays {
        return Err(format!(
            "shard {shard} is led by {} still, whose disk hangs:\n{}",
            world.processes[place].name,
            statuses(world, shard)
        ));
    }
    world.run_until(begun_us + HANGS_US + 3_000_000);
    nothing_violated(world)
}

/// Shards of three voters that a place leads with entries that its own log doesn't hold.
fn stuck(world: &World, place: usize) -> Vec<ShardId> {
    let Some(core) = &world.processes[place].core else { return Vec::new() };
    let has_tail = |status: &GroupStatus| {
        let own = status.progress.iter().find(|progress| progress.replica == status.replica);
        let voters = status.descriptor.as_ref().map_or(0, |descriptor| descriptor.replicas.len());
        voters >= 3 && own.is_some_and(|own| own.matched < status.last_index)
    };
    core.host.statuses().filter(has_tail).map(|status| status.shard).collect()
}

fn nothing_violated(world: &World) -> Result<(), String> {
    match world.checks.violations.first() {
        Some(first) => Err(first.clone()),
        None => Ok(()),
    }
}

/// How each replica of a shard is, and what operators wanted of it.
fn statuses(world: &World, shard: ShardId) -> String {
    let of = |process: &Process| {
        let status = process.core.as_ref()?.host.status(shard)?;
        Some(format!("{}: {status:?}", process.name))
    };
    let replicas = world.processes.iter().filter_map(of);
    let leader = world.processes.iter().filter_map(|process| process.core.as_ref());
    let leader = leader.filter(|core| core.leads(ShardId::CONTROL));
    let operators = leader.flat_map(|core| {
        core.control.with(|view| {
            let of_shard = view.state.operators().filter(|one| one.kind.shard() == Some(shard));
            of_shard.map(|operator| format!("{operator:?}")).collect::<Vec<_>>()
        })
    });
    replicas.chain(operators).collect::<Vec<_>>().join("\n")
}

/// Each shard as its leader in the end has it.
fn led_shards(world: &World) -> Result<Vec<ShardDescriptor>, String> {
    let cores = || world.processes.iter().filter_map(|process| process.core.as_ref());
    let mut shards: Vec<ShardId> = cores().flat_map(|core| core.shards.keys().copied()).collect();
    shards.sort();
    shards.dedup();
    let mut led = Vec::new();
    for shard in shards {
        let mut leaders = cores().filter(|core| core.leads(shard));
        let (Some(leader), None) = (leaders.next(), leaders.next()) else {
            let count = cores().filter(|core| core.leads(shard)).count();
            return Err(format!(
                "shard {shard} has {count} leaders in the end:\n{}",
                statuses(world, shard)
            ));
        };
        led.extend(leader.shards.get(&shard).map(|open| open.descriptor().clone()));
    }
    Ok(led)
}

/// Every key of the keyspace belongs to exactly one shard.
fn shards_tile(led: &[ShardDescriptor]) -> Result<(), String> {
    let mut ranges: Vec<_> = led
        .iter()
        .filter(|descriptor| descriptor.shard_id != ShardId::CONTROL)
        .map(|descriptor| (descriptor.range.clone(), descriptor.shard_id))
        .collect();
    ranges.sort();
    match ranges.windows(2).find(|pair| pair[0].0.end != pair[1].0.start) {
        Some(pair) => Err(format!("a gap or an overlap between shards: {pair:?}")),
        None => Ok(()),
    }
}

/// What operators began is finished: every replica votes.
fn nothing_half_done(world: &World, led: &[ShardDescriptor]) -> Result<(), String> {
    let is_plain = |descriptor: &&ShardDescriptor| {
        descriptor.replicas.iter().any(|replica| replica.role != Role::Voter)
    };
    match led.iter().find(is_plain) {
        Some(descriptor) => Err(format!(
            "a change of replicas is never finished: {descriptor:?}\n{}",
            statuses(world, descriptor.shard_id)
        )),
        None => Ok(()),
    }
}

/// Replicas at the same applied index hold the same bytes, and none is far behind.
fn replicas_agree(world: &World, led: &[ShardDescriptor]) -> Result<(), String> {
    for descriptor in led {
        let shard = descriptor.shard_id;
        let mut seen = BTreeMap::new();
        let mut furthest = 0;
        let mut least = u64::MAX;
        for replica in &descriptor.replicas {
            let is_there = |process: &&Process| {
                process.is_coordinator == (shard == ShardId::CONTROL)
                    && process.node_id == Some(replica.node_id)
            };
            let process = world.processes.iter().find(is_there);
            let open = process
                .and_then(|process| process.core.as_ref())
                .and_then(|core| core.shards.get(&shard))
                .filter(|open| open.replica() == replica.replica_id);
            let Some(open) = open else {
                return Err(format!(
                    "node {} has no replica {} of shard {shard}",
                    replica.node_id, replica.replica_id
                ));
            };
            let snapshot = open.engine_snapshot().map_err(|error| error.to_string())?;
            let (position, digest) =
                digest(&*snapshot, open.replica()).map_err(|error| error.to_string())?;
            furthest = furthest.max(position.index.0);
            least = least.min(position.index.0);
            let first = *seen.entry(position.index).or_insert(digest);
            if first != digest {
                return Err(format!(
                    "shard {shard}: replicas differ at index {} (node {} among them)",
                    position.index, replica.node_id
                ));
            }
        }
        // Followers learn of a commit with the next append or heartbeat.
        if furthest > least + 200 {
            return Err(format!("shard {shard}: a replica is at {least}, another at {furthest}"));
        }
    }
    Ok(())
}

/// By how much a record may live longer or shorter than it should, beside one percent: clocks that
/// agree may be 500 ms apart, and boot clocks drift by some milliseconds over a story.
const APART_US: u64 = 600_000;

fn expiry_holds(world: &World) -> Result<(), String> {
    world.fleeting.judge(APART_US, &world.nights)?;
    let (found, gone) = world.fleeting.reads();
    if found.min(gone) < 10 {
        return Err(format!("of keys that expire {found} reads saw a record, and {gone} none"));
    }
    Ok(())
}

fn linearizable(world: &World) -> Result<(), String> {
    let report = register::check(world.history(), &Options::default());
    match report.verdict() {
        Verdict::Ok => Ok(()),
        Verdict::Violated => Err(format!("not linearizable: {:?}", report.violations.first())),
        Verdict::Unknown => Err(format!("undecided: keys {:?}", report.undecided)),
    }?;
    let counted = kvdb_checker::counter::check(world.history());
    if counted.verdict() != Verdict::Ok {
        return Err(format!("a counter is wrong: {:?}", counted.anomalies.first()));
    }
    let answered = world.clients.iter().map(|client| client.succeeded).sum::<u64>();
    if answered < 100 * CLIENTS as u64 {
        return Err(format!("only {answered} operations were answered: this proves nothing"));
    }
    Ok(())
}
