//! A run of duties: each is done to its end while the clients of the run go on, none of which may
//! see an error.

use super::Run;
use crate::Error;
use crate::cluster::{COORDINATORS, PATIENCE, node};
use crate::duty::Duty;
use crate::inject::damage_beginning;
use crate::network::Part;
use crate::timeline::Span;
use kvdb_client::{AdminClient, OperatorStatus};
use kvdb_model::{NodeId, OperatorId, Role, ShardId, ShardMap};
use std::time::{Duration, Instant};

/// Longest that one operator may take.
const OPERATOR_PATIENCE: Duration = Duration::from_secs(300);
/// After this long without a word a dead node's replicas are rebuilt.
pub(super) const REPAIR_AFTER: Duration = Duration::from_secs(15);
const SPLITS: usize = 4;
const MOVES: usize = 10;
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// The load goes on for so long before the first duty, between two, and after the last.
const CALM: Duration = Duration::from_secs(5);

impl Run<'_> {
    /// All duties, in order.
    pub(super) async fn attend(&mut self, without_coordinators: Duration) -> Result<(), Error> {
        tokio::time::sleep(CALM).await;
        self.calm_until = Some(self.start.elapsed());
        for duty in Duty::ALL {
            if self.stuck {
                break;
            }
            self.attend_to(duty, without_coordinators).await?;
            tokio::time::sleep(CALM).await;
        }
        self.account_for_operators().await
    }

    async fn attend_to(&mut self, duty: Duty, hold: Duration) -> Result<(), Error> {
        let from_ms = self.now_ms();
        (self.tell)(&format!("{:7.1} s  {}", from_ms as f64 / 1000.0, duty.name()));
        let target = match duty {
            Duty::AddNodes => self.add_nodes().await?,
            Duty::Rebalance => self.rebalance().await?,
            Duty::Split => self.split().await?,
            Duty::MoveBackAndForth => self.move_back_and_forth().await?,
            Duty::Drain => self.drain(node(0)).await?,
            Duty::LoseNode => self.lose(node(1)).await?,
            Duty::Replace => self.replace(node(2)).await?,
            Duty::ReplaceCoordinator => self.replace_coordinator().await?,
            Duty::NoCoordinators => self.without_coordinators(hold).await?,
        };
        let until_ms = self.now_ms();
        let mut notes = Vec::new();
        let recovered = self.recover(&mut notes).await?;
        let end_ms = self.now_ms();
        let (gap_ms, slowest_ms) = self.longest_between(from_ms, end_ms);
        (self.tell)(&format!(
            "{:7.1} s  done: {target}; longest write gap {gap_ms} ms, slowest operation \
             {slowest_ms} ms",
            end_ms as f64 / 1000.0
        ));
        if !recovered {
            self.stuck = true;
            self.findings.tell(format!("after {} not every shard took writes again", duty.name()));
        }
        for note in &notes {
            self.findings.wrong += 1;
            self.findings.tell(format!("during {}: {note}", duty.name()));
        }
        self.spans.push(Span {
            fault: duty.name(),
            target,
            from_ms,
            until_ms,
            recovered_ms: recovered.then_some(end_ms),
            gap_ms,
            slowest_ms,
            note: notes.join("; "),
        });
        Ok(())
    }

    // ---- the duties -----------------------------------------------------------------------

    async fn add_nodes(&mut self) -> Result<String, Error> {
        let names = [self.cluster.add_node().await?, self.cluster.add_node().await?];
        Ok(names.join(", "))
    }

    async fn rebalance(&mut self) -> Result<String, Error> {
        let plan = self.cluster.admin().plan_rebalance(true).await?;
        if let Some(operator) = plan.operator {
            self.cluster.operator_done(operator, OPERATOR_PATIENCE).await?;
        }
        // Leaders follow the replicas, and what the coordinators do by themselves ends, too.
        self.cluster.operators_end(OPERATOR_PATIENCE).await?;
        self.cluster.settle().await?;
        let map = self.cluster.map().await?;
        let held = |node: &NodeId| {
            let held =
                |shard: &&kvdb_model::ShardRecord| shard.descriptor.replica_on(*node).is_some();
            format!("{node}: {}", map.shards.values().filter(held).count())
        };
        let held: Vec<_> = map.nodes.keys().map(held).collect();
        Ok(format!("replicas by node {}", held.join(", ")))
    }

    async fn split(&mut self) -> Result<String, Error> {
        let shards: Vec<ShardId> = self.cluster.map().await?.shards.keys().copied().collect();
        for shard in shards.iter().cycle().take(SPLITS) {
            self.carry_out(async |admin| admin.split_shard(*shard, None).await).await?;
        }
        let after = self.cluster.map().await?.shards.len();
        Ok(format!("{} shards became {after}", shards.len()))
    }

    async fn move_back_and_forth(&mut self) -> Result<String, Error> {
        let map = self.cluster.map().await?;
        let Some(shard) = map.shards.keys().next().copied() else {
            return Err(self.cluster.not_ready("there are no shards"));
        };
        for _ in 0..MOVES {
            // The coordinators may have moved it, too: what is possible now counts.
            self.carry_out(async |admin| {
                let map = admin.shard_map().await?;
                let (from, to) = one_and_another(&map, shard);
                admin.move_replica(shard, from, to).await
            })
            .await?;
        }
        Ok(format!("shard {shard}, {MOVES} times"))
    }

    async fn drain(&mut self, part: Part) -> Result<String, Error> {
        let (node, name) = self.known(part).await?;
        self.carry_out(async |admin| Ok(admin.drain_node(node).await?.operator)).await?;
        Ok(name)
    }

    async fn lose(&mut self, part: Part) -> Result<String, Error> {
        let (node, name) = self.known(part).await?;
        self.cluster.parts[part].kill();
        let problem = format!("{name} still has replicas");
        self.until_map(&problem, |map| is_empty(map, node)).await?;
        self.cluster.operators_end(OPERATOR_PATIENCE).await?;
        Ok(name)
    }

    async fn replace(&mut self, part: Part) -> Result<String, Error> {
        let (node, name) = self.known(part).await?;
        self.cluster.parts[part].kill();
        let data = self.cluster.data_of(part);
        let damaged = damage_beginning(&data.join("wal"))?;
        self.cluster.start_part(part)?;
        let refused = self.ends_by_itself(part).await?;
        if !refused.contains("is damaged at offset") {
            self.findings.wrong += 1;
            self.findings.tell(format!("a damaged log isn't named: {refused}"));
        }
        let operator = self.cluster.admin().replace_node(node).await?.operator;
        std::fs::remove_dir_all(&data)?;
        self.cluster.start_part(part)?;
        self.cluster.operator_done(operator, OPERATOR_PATIENCE).await?;
        self.until_map(&format!("{name} still has replicas"), |map| is_empty(map, node)).await?;
        Ok(format!("{name}, {damaged}"))
    }

    async fn replace_coordinator(&mut self) -> Result<String, Error> {
        let gone = COORDINATORS - 1;
        let (old, name) = (NodeId(gone as u64 + 1), self.cluster.parts[gone].name.clone());
        let (new, address) = self.cluster.start_coordinator()?;
        let since = Instant::now();
        // It answers once it listens.
        while let Err(error) = self.cluster.admin().add_coordinator(new, &address).await {
            if since.elapsed() > PATIENCE {
                return Err(error.into());
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        self.cluster.coordinator_is(new, Some(Role::Voter)).await?;
        self.cluster.admin().remove_coordinator(old).await?;
        self.cluster.coordinator_is(old, None).await?;
        let words = self.ends_by_itself(gone).await?;
        if !words.contains("was removed from its group") {
            self.findings.wrong += 1;
            self.findings.tell(format!("a removed coordinator doesn't say so: {words}"));
        }
        Ok(format!("{name} by coordinator-{new}"))
    }

    async fn without_coordinators(&mut self, hold: Duration) -> Result<String, Error> {
        let names = |part: &Part| self.cluster.parts[*part].name.starts_with("coordinator");
        let all: Vec<Part> = (0..self.cluster.parts.len()).filter(names).collect();
        let running: Vec<Part> =
            all.into_iter().filter(|part| self.cluster.parts[*part].id().is_some()).collect();
        let before = self.cluster.map().await?;
        running.iter().for_each(|part| self.cluster.parts[*part].kill());
        tokio::time::sleep(hold).await;
        for part in &running {
            self.cluster.start_part(*part)?;
        }
        let since = Instant::now();
        let after = loop {
            match self.cluster.map().await {
                Ok(map) => break map,
                Err(error) if since.elapsed() > PATIENCE => return Err(error.into()),
                Err(_) => tokio::time::sleep(ASK_AGAIN).await,
            }
        };
        let members = |map: &ShardMap| {
            let descriptor =
                |(id, shard): (&ShardId, &kvdb_model::ShardRecord)| (*id, shard.descriptor.clone());
            map.shards.iter().map(descriptor).collect::<Vec<_>>()
        };
        if members(&before) != members(&after) || after.version < before.version {
            self.findings.wrong += 1;
            self.findings.tell("the map has changed while there were no coordinators".to_owned());
        }
        Ok(format!("all {} for {} s", running.len(), hold.as_secs()))
    }

    // ---- what they need -------------------------------------------------------------------

    /// Has an operator do something, once what the coordinators do by themselves is out of its way.
    async fn carry_out(
        &self,
        ask: impl AsyncFn(&AdminClient) -> Result<OperatorId, kvdb_client::Error>,
    ) -> Result<(), Error> {
        let since = Instant::now();
        let operator = loop {
            match ask(self.cluster.admin()).await {
                Ok(operator) => break operator,
                Err(kvdb_client::Error::Refused { .. }) if since.elapsed() < PATIENCE => {
                    self.cluster.operators_end(OPERATOR_PATIENCE).await?;
                }
                Err(error) => return Err(error.into()),
            }
        };
        self.cluster.operator_done(operator, OPERATOR_PATIENCE).await
    }

    /// The node that a part is, and its name.
    async fn known(&self, part: Part) -> Result<(NodeId, String), Error> {
        let name = self.cluster.parts[part].name.clone();
        let map = self.cluster.map().await?;
        match self.cluster.node_of(&map, part) {
            Some(node) => Ok((node, name)),
            None => Err(self.cluster.not_ready(&format!("{name} isn't in the map"))),
        }
    }

    async fn until_map(&self, problem: &str, so: impl Fn(&ShardMap) -> bool) -> Result<(), Error> {
        let since = Instant::now();
        while !so(&self.cluster.map().await?) {
            if since.elapsed() > OPERATOR_PATIENCE {
                return Err(self.cluster.not_ready(problem));
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        Ok(())
    }

    /// Waits for a process to stop by itself. Returns what it says why.
    async fn ends_by_itself(&mut self, part: Part) -> Result<String, Error> {
        let since = Instant::now();
        loop {
            let mut notes = Vec::new();
            if self.note_ended(&mut notes).contains(&part) {
                return Ok(notes.join("; "));
            }
            if since.elapsed() > PATIENCE {
                let name = &self.cluster.parts[part].name;
                return Err(self.cluster.not_ready(&format!("{name} runs though it must not")));
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Whatever was done is remembered, with its reason, steps and times.
    async fn account_for_operators(&mut self) -> Result<(), Error> {
        let operators = self.cluster.admin().operators(false).await?;
        let told = |known: &OperatorStatus| {
            !known.reason.is_empty()
                && !known.steps.is_empty()
                && known.ended_ms >= known.started_ms
                && known.is_running() == (known.ended_ms == 0)
        };
        for known in operators.iter().filter(|known| !told(known)) {
            self.findings.wrong += 1;
            self.findings.tell(format!("an operation has no reason or no steps: {known:?}"));
        }
        (self.tell)(&format!(
            "{} operations are listed, {} of them done",
            operators.len(),
            operators.iter().filter(|known| known.is_done()).count()
        ));
        Ok(())
    }
}

/// A node with a replica of the shard, the lowest, and one without: asked again after that move, the
/// other way round.
fn one_and_another(map: &ShardMap, shard: ShardId) -> (NodeId, NodeId) {
    let descriptor = &map.shards[&shard].descriptor;
    let mut nodes = map.nodes.keys().copied();
    let with = nodes.clone().find(|node| descriptor.replica_on(*node).is_some());
    let without = nodes.find(|node| descriptor.replica_on(*node).is_none());
    (with.unwrap_or_default(), without.unwrap_or_default())
}

fn is_empty(map: &ShardMap, node: NodeId) -> bool {
    map.shards.values().all(|shard| shard.descriptor.replica_on(node).is_none())
}
