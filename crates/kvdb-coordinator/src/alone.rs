//! A group of coordinators that has lost its majority for good goes on from one of them.
//!
//! Done before the coordinator runs: nobody hears it meanwhile. Its replica ends, and another one goes on from
//! what it has left, alone in the group and in the next generation ([`kvdb_control::plan_alone`]). That is one
//! frame of the log, so a crash leaves the one or the other. The new generation's first entry says so to the
//! state: the coordinator writes it when it leads, and answers nobody before (`Member::finish_recovery`).

use crate::machine::ControlMachine;
use crate::run::{CoordinatorConfig, CoordinatorError, drive_config};
use crate::view::View;
use futures_util::future::join_all;
use kvdb_control::{ControlCommand, ControlState, generation_of, plan_alone};
use kvdb_model::{
    EntryCommand, EntryKind, EntryPayload, Generation, GenerationOrder, MOST_GENERATIONS, NodeId,
    NodeStatus, ReplicaId, Role, ShardDescriptor, ShardId, Term,
};
use kvdb_replication::GroupStatus;
use kvdb_runtime::dial;
use kvdb_runtime::drive::Drive;
use kvdb_runtime::identity::{self, DataDirectory};
use prometheus_client::registry::Registry;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

/// A node that was answered by the coordinators' leader so lately proves that there is one.
const HEARD_LATELY_MS: u64 = 10_000;
/// Longer than somebody takes to answer.
const NO_TICK_MS: u64 = 24 * 3_600_000;
/// A replica may be busy with what it has found in its log.
const TRIES: u32 = 20;
const TRY_AGAIN: Duration = Duration::from_millis(250);

/// Recovers the group of coordinators from one of them, if `confirm` agrees to what it is shown. The
/// coordinator is to run afterwards.
///
/// # Errors
/// [`CoordinatorError`]: nothing was changed.
pub async fn recover_alone(
    config: &CoordinatorConfig,
    confirm: impl FnOnce(&str) -> Result<(), String>,
) -> Result<(), CoordinatorError> {
    let refuse = |why: String| {
        let why = format!("--recover-alone is refused: {why}");
        CoordinatorError::NotRecovered(why)
    };
    let id = NodeId(config.id);
    if !config.data.join("IDENTITY").exists() {
        let why = format!("{} holds no data of a coordinator", config.data.display());
        return Err(refuse(why));
    }
    let directory = DataDirectory::open(&config.data, identity::Role::Coordinator, id)?;
    let view = Arc::new(View::default());
    let machine_view = view.clone();
    let mut drive_config = drive_config(&config.data, id, directory.identity().token);
    // It doesn't stand for election meanwhile.
    drive_config.host.tick_ms = NO_TICK_MS;
    let (drive, threads, _outgoing) = Drive::start(
        drive_config,
        move || ControlMachine::new(machine_view.clone()),
        &mut Registry::default(),
    )?;
    let recovery = Recovery { config, id, drive, view };
    let recovered = recovery.run(confirm).await;
    let _ = tokio::task::spawn_blocking(move || threads.stop()).await;
    recovered.map_err(refuse)
}

struct Recovery<'a> {
    config: &'a CoordinatorConfig,
    id: NodeId,
    drive: Drive,
    view: Arc<View>,
}

/// What others say, as far as they can be reached.
struct Others {
    /// Coordinators that run, and where.
    alive: Vec<(NodeId, String)>,
    /// Nodes, and what they know of the coordinators.
    nodes: Vec<(NodeId, dial::About)>,
    silent: Vec<NodeId>,
}

impl Recovery<'_> {
    async fn run(&self, confirm: impl FnOnce(&str) -> Result<(), String>) -> Result<(), String> {
        let groups = self.drive.statuses().await;
        let Some(group) = groups.into_iter().find(|group| group.shard == ShardId::CONTROL) else {
            return Err("this coordinator has never been a part of a group".to_owned());
        };
        let state = self.state_with_all_of_the_log(group.replica).await?;
        if !state.map().cluster_id.is_known() {
            return Err("this coordinator has heard of no cluster yet: begin anew".to_owned());
        }
        let Some(descriptor) = group.descriptor.clone().filter(|_| !group.awaits_snapshot) else {
            return Err(
                "this coordinator has no state of its own: recover from another one".to_owned()
            );
        };
        let others = self.ask_others(&state, &descriptor).await;
        self.check(&state, &descriptor, &others)?;
        let newest = others.nodes.iter().map(|(_, about)| about.generation.number);
        let own = state.generation().number.max(generation_of(group.replica));
        // Its nonce is drawn when it begins.
        let number = newest.fold(own, u64::max) + 1;
        if number > MOST_GENERATIONS {
            return Err(format!("a group can be recovered {MOST_GENERATIONS} times"));
        }
        let generation = Generation { number, nonce: 0 };
        let plan = plan_alone(&descriptor, self.id, &generation, Term(group.term.0))?;
        confirm(&self.preview(&state, &group, &descriptor, &others))?;
        for tries in 1.. {
            let machine = ControlMachine::new(Arc::default());
            match self.drive.go_on_alone(ShardId::CONTROL, plan.clone(), machine).await {
                Ok(unconfirmed) => {
                    tracing::warn!(
                        generation = number,
                        unconfirmed,
                        "the coordinators are recovered from this one"
                    );
                    break;
                }
                Err(error) if error.is_final() || tries == TRIES => return Err(error.to_string()),
                Err(_) => tokio::time::sleep(TRY_AGAIN).await,
            }
        }
        Ok(())
    }

    /// What the log holds at its end isn't known to be decided, and is taken for it.
    async fn state_with_all_of_the_log(&self, replica: ReplicaId) -> Result<ControlState, String> {
        let read = self.drive.state_and_log(ShardId::CONTROL, replica).await;
        let (_, tail) = read.map_err(|error| error.to_string())?;
        let mut state = (*self.view.state()).clone();
        for entry in tail.entries.iter().filter(|entry| entry.kind == EntryKind::Normal) {
            let payload = EntryPayload::decode(entry.data.clone()).map(|payload| payload.commands);
            for command in payload.unwrap_or_default() {
                if let Ok(EntryCommand::Control(command)) = EntryCommand::decode(command)
                    && let Ok(command) = ControlCommand::decode(&command)
                {
                    let _ = state.apply(&command);
                }
            }
        }
        Ok(state)
    }

    /// Who else is there.
    async fn ask_others(&self, state: &ControlState, group: &ShardDescriptor) -> Others {
        let cluster_id = state.map().cluster_id;
        let voters = group.replicas.iter().map(|replica| replica.node_id);
        let present = state.coordinators().iter().filter(|(_, record)| !record.is_removed);
        let known = present.map(|(id, _)| *id);
        let ids: BTreeSet<NodeId> = voters.chain(known).filter(|id| *id != self.id).collect();
        let places = ids.into_iter().flat_map(|id| {
            let configured = self.config.peers.get(&id.0).cloned();
            let logged = state.coordinators().get(&id).map(|record| record.address.clone());
            let places: BTreeSet<String> = configured.into_iter().chain(logged).collect();
            places.into_iter().map(move |address| (id, address))
        });
        let coordinators = places.map(|(id, address)| async move {
            let found = dial::identify(&address, cluster_id, &[], Generation::default()).await;
            let is_there = found.is_ok_and(|found| {
                found.role == Some(identity::Role::Coordinator)
                    && (found.cluster_id, found.id) == (cluster_id, id)
            });
            is_there.then_some((id, address))
        });
        let nodes = state.map().nodes.values().filter(|node| node.status != NodeStatus::Removed);
        let nodes = nodes.map(|node| async move {
            let found = dial::identify(&node.address, cluster_id, &[], Generation::default()).await;
            let found = found.ok().filter(|found| {
                found.role == Some(identity::Role::Node)
                    && (found.cluster_id, found.id) == (cluster_id, node.node_id)
            });
            (node.node_id, found.map(|found| found.about))
        });
        let (alive, asked) = tokio::join!(join_all(coordinators), join_all(nodes));
        let mut others = Others {
            alive: alive.into_iter().flatten().collect(),
            nodes: Vec::new(),
            silent: Vec::new(),
        };
        others.alive.dedup_by_key(|(id, _)| *id);
        for (node, about) in asked {
            match about {
                Some(about) => others.nodes.push((node, about)),
                None => others.silent.push(node),
            }
        }
        others
    }

    fn check(
        &self,
        state: &ControlState,
        group: &ShardDescriptor,
        others: &Others,
    ) -> Result<(), String> {
        let is_alive =
            |id: NodeId| id == self.id || others.alive.iter().any(|(other, _)| *other == id);
        let alive: Vec<String> =
            others.alive.iter().map(|(id, address)| format!("{id} (at {address})")).collect();
        let own = state.generation();
        let is_behind = others
            .nodes
            .iter()
            .any(|(_, about)| own.compare(&about.generation) != GenerationOrder::Same);
        let voters = group.replicas.iter().filter(|replica| replica.role != Role::Learner).count();
        if voters == 1 && !is_behind && group.replica_on(self.id).is_some() {
            return Err(format!(
                "coordinator {} is the only one of its group and needs nobody else: start it without --recover-alone",
                self.id
            ));
        }
        if voters > 1 && group.has_majority(is_alive) {
            return Err(format!(
                "a majority of the {voters} coordinators is alive: this one, and {}. Start this one without \
                 --recover-alone",
                alive.join(", ")
            ));
        }
        if !alive.is_empty() {
            return Err(format!(
                "coordinator {} is alive. Recover from the one whose log ends last, and stop the others for good \
                 first",
                alive.join(", ")
            ));
        }
        let led = others.nodes.iter().find_map(|(node, about)| {
            about.leader_silent_ms.filter(|ms| *ms < HEARD_LATELY_MS).map(|ms| (node, ms))
        });
        if let Some((node, ms)) = led {
            return Err(format!(
                "node {node} has heard a leader of the coordinators {:.1} s ago: a majority of them is alive, and \
                 this one doesn't reach it. If they have just been stopped, try again in {} s",
                ms as f64 / 1000.0,
                HEARD_LATELY_MS / 1000
            ));
        }
        Ok(())
    }

    /// What may be lost, for people.
    fn preview(
        &self,
        state: &ControlState,
        group: &GroupStatus,
        descriptor: &ShardDescriptor,
        others: &Others,
    ) -> String {
        let ids = |ids: &mut dyn Iterator<Item = NodeId>| {
            ids.map(|id| id.to_string()).collect::<Vec<_>>().join(", ")
        };
        let map = state.map();
        let mut lost =
            descriptor.replicas.iter().map(|replica| replica.node_id).filter(|id| *id != self.id);
        let mut words = format!(
            "Coordinator {} goes on alone. Its log ends at entry {} of term {} ({} of them applied); its map has version \
             {}, with {} nodes, {} keyspaces and {} shards.\n",
            self.id,
            group.last_index,
            group.last_term,
            group.applied,
            map.version,
            map.nodes.len(),
            map.keyspaces.values().filter(|keyspace| !keyspace.is_dropped()).count(),
            map.shards.len(),
        );
        let mut line = |text: String| _ = writeln!(words, "- {text}");
        line(format!(
            "Coordinators {} are left behind for good: their directories are refused from now on, should they come \
             back.",
            ids(&mut lost)
        ));
        line(
            "What they decided and this one never heard is lost, but for what nodes have heard of: keyspaces, nodes \
             and shards come back as nodes report them. Operations that are running end."
                .to_owned(),
        );
        let later = others.nodes.iter().filter(|(_, about)| about.map_version > map.version.0);
        if let Some((node, about)) = later.max_by_key(|(_, about)| about.map_version) {
            line(format!(
                "Node {node} has seen version {} of the map: this coordinator isn't the one that has heard most.",
                about.map_version
            ));
        }
        let newest = others.nodes.iter().max_by_key(|(_, about)| about.generation.number);
        if let Some((node, about)) =
            newest.filter(|(_, about)| about.generation != state.generation())
        {
            line(format!(
                "Node {node} follows coordinators of generation {}, and this directory is of generation {}: it is an \
                 older copy, or another coordinator was recovered before. What was decided there is lost.",
                about.generation,
                state.generation()
            ));
        }
        if !others.silent.is_empty() {
            line(format!(
                "Nothing is planned before every node has reported. Nodes {} don't answer: start them, or declare \
                 those that are gone for good (`kvdb admin replace NODE`).",
                ids(&mut others.silent.iter().copied())
            ));
        }
        words
    }
}
