//! Commands that take more than one wave.

use super::connection::{Connection, answer_max_bytes, too_large};
use super::count;
use super::info::{Around, Keys, wants_keys};
use super::scan::{self, Pages};
use super::wave::{self, Outcome, Wave};
use crate::route::Place;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use kvdb_model::{Condition, Keyspace, NewKeyspace, Refusal, Version, WriteResult};
use kvdb_redis::args::is;
use kvdb_redis::plan::{change, change_if, look, refused};
use kvdb_redis::session::{DATABASES, Job, Part, Scan, Transaction, Watched};
use kvdb_redis::{Plan, Reply, glob};
use kvdb_store::keys::{Check, Delete};
use kvdb_wire::new_keyspace_to;
use std::time::{Duration, Instant};
use tonic::Request;

/// Longest that making a keyspace takes.
const SELECT_PATIENCE: Duration = Duration::from_secs(10);
/// Shards that are walked at the same time.
pub(super) const WALKS: usize = 8;

type Done = Result<Reply, Refusal>;

impl Connection {
    pub(super) async fn job(&mut self, job: Job) -> Reply {
        let done = match job {
            Job::Reset => {
                self.session.reset();
                Ok(Reply::Simple("RESET"))
            }
            Job::Server(args) => Ok(self.of_server(&args).await),
            Job::Select(db) => {
                self.choose(db);
                Ok(Reply::OK)
            }
            Job::Flush { all: false } => match self.current_keyspace().await {
                Ok(Some(_)) => self.flush_db(self.session.db).await,
                Ok(None) => Ok(Reply::OK),
                Err(refusal) => Err(refusal),
            },
            Job::Flush { all: true } => self.flush_all().await,
            Job::DbSize => self.db_size().await,
            Job::Keys(pattern) => self.keys(&pattern).await,
            Job::Scan(asked) => self.scan(&asked).await,
            Job::RandomKey => self.random_key().await,
            Job::Watch(keys) => self.watch(keys).await,
            Job::Exec(transaction) => self.exec(transaction).await,
        };
        done.unwrap_or_else(|refusal| refused(&refusal))
    }

    async fn of_server(&mut self, args: &[Bytes]) -> Reply {
        let around = if is(&args[0], "info") || is(&args[0], "wait") {
            let keys = match is(&args[0], "info") && wants_keys(args) {
                true => self.counted_keys().await,
                false => vec![],
            };
            Around { replicas: self.replicas(), keys }
        } else {
            Around::default()
        };
        self.clients.command(&self.client.entry, args, &around)
    }

    /// Replicas beside the leader that are sure to have an answered write of this database,
    /// whatever its shard.
    fn replicas(&self) -> u32 {
        let Ok(keyspace) = self.gateway.database(self.session.db) else {
            return 0;
        };
        let voters = self.gateway.routes().fewest_voters(keyspace.keyspace_id);
        voters.map_or(0, |voters| voters as u32 / 2)
    }

    async fn counted_keys(&self) -> Vec<(u8, Keys)> {
        let mut all = Vec::new();
        for db in 0..DATABASES {
            let Ok(keyspace) = self.gateway.database(db) else {
                continue;
            };
            if let Some(keys) = self.clients.counts.of(&self.gateway, keyspace).await {
                all.push((db, keys));
            }
        }
        all
    }

    /// Makes a database, all of whose keys are on one shard, and waits until it can be used.
    pub(super) async fn make_database(&self, db: u8) -> Result<(), Refusal> {
        let name = &self.gateway.routes().database_name(db);
        let deadline = Instant::now() + SELECT_PATIENCE;
        let mut changes = self.gateway.map.changes();
        let new = NewKeyspace { colocated: true, redis_db: db, ..NewKeyspace::named(name) };
        let request = new_keyspace_to(&new);
        let made = self
            .gateway
            .coordinators
            .call(async |mut client| client.create_keyspace(Request::new(request.clone())).await)
            .await;
        // Somebody else may have made it meanwhile, maybe under another name.
        if let Err(status) = made
            && self.gateway.current_database(db).await.is_err()
        {
            tracing::warn!(name, error = status.message(), "a keyspace can't be made");
            return Err(Refusal::UnknownKeyspace { name: name.clone() });
        }
        loop {
            changes.mark_unchanged();
            if let Ok(keyspace) = self.gateway.database(db) {
                let start = keyspace.partitioning.routing_key(keyspace.keyspace_id, b"");
                if self.gateway.find(Place::At(&start), None).is_some() {
                    return Ok(());
                }
            }
            if Instant::now() >= deadline {
                return Err(Refusal::UnknownKeyspace { name: name.clone() });
            }
            let _ = tokio::time::timeout(Duration::from_millis(100), changes.changed()).await;
        }
    }

    async fn flush_all(&mut self) -> Done {
        for db in 0..DATABASES {
            match self.flush_db(db).await {
                Ok(_) | Err(Refusal::UnknownKeyspace { .. }) => {}
                Err(refusal) => return Err(refusal),
            }
        }
        Ok(Reply::OK)
    }

    async fn flush_db(&mut self, db: u8) -> Done {
        let keyspace = self.gateway.database(db)?;
        let gateway = &self.gateway;
        let starts = scan::shard_starts(gateway, &keyspace);
        let walks = stream::iter(starts).map(|range| {
            let keyspace = &keyspace;
            async move {
                let mut pages = Pages::new(gateway, keyspace, range);
                while let Some(page) = pages.next(scan::PAGE_KEYS).await? {
                    remove(gateway, keyspace, page.keys).await?;
                }
                Ok(())
            }
        });
        let ends: Vec<Result<(), Refusal>> = walks.buffer_unordered(WALKS).collect().await;
        ends.into_iter().collect::<Result<(), Refusal>>()?;
        Ok(Reply::OK)
    }

    async fn scan(&mut self, asked: &Scan) -> Done {
        match self.current_keyspace().await? {
            Some(keyspace) => scan::step(&self.gateway, &keyspace, asked).await,
            None => Ok(Reply::Array(vec![Reply::text("0"), Reply::Array(vec![])])),
        }
    }

    async fn db_size(&mut self) -> Done {
        let Some(keyspace) = self.current_keyspace().await? else { return Ok(Reply::Integer(0)) };
        let counted = count::count(&self.gateway, &keyspace).await?;
        Ok(Reply::Integer(counted.keys as i64))
    }

    async fn keys(&mut self, pattern: &[u8]) -> Done {
        let Some(keyspace) = self.current_keyspace().await? else {
            return Ok(Reply::Array(vec![]));
        };
        let mut pages = Pages::new(&self.gateway, &keyspace, scan::whole(&keyspace));
        let mut found = Vec::new();
        let mut size = 0;
        while let Some(page) = pages.next(scan::PAGE_KEYS).await? {
            for key in page.keys {
                if !glob::matches(pattern, &key) {
                    continue;
                }
                size += key.len() + 64;
                if size > answer_max_bytes() {
                    return Ok(too_large());
                }
                found.push(Reply::Bulk(key));
            }
        }
        Ok(Reply::Array(found))
    }

    async fn random_key(&mut self) -> Done {
        let Some(keyspace) = self.current_keyspace().await? else { return Ok(Reply::Nil) };
        let key = scan::any_key(&self.gateway, &keyspace).await?;
        Ok(Reply::bulk_or_nil(key))
    }

    async fn watch(&mut self, keys: Vec<Bytes>) -> Done {
        let gateway = self.gateway.clone();
        let steps: Vec<_> = keys.iter().cloned().map(look).collect();
        let outcomes = match self.current_keyspace().await? {
            None => steps.iter().map(|step| wave::on_nothing(&gateway, step)).collect(),
            Some(keyspace) => {
                let mut wave = Wave::new(&gateway, &keyspace, steps);
                wave.start().await;
                while !wave.is_done(0..keys.len()) {
                    wave.go_on(0..keys.len()).await;
                }
                wave.take(0..wave.len())
            }
        };
        let db = self.session.db;
        let mut watched = Vec::with_capacity(keys.len());
        for (key, outcome) in keys.into_iter().zip(outcomes) {
            let version = outcome?.version.0;
            watched.push(Watched { db, key, version });
        }
        self.session.watch(watched);
        Ok(Reply::OK)
    }

    async fn exec(&mut self, transaction: Transaction) -> Done {
        let Transaction { parts, watched, name } = transaction;
        if watched.iter().any(|watched| watched.db != self.session.db) {
            return Ok(Reply::error(
                "keys of another database are watched; WATCH and EXEC must see the same one",
            ));
        }
        let checks = watched.len();
        let mut steps: Vec<_> = watched.into_iter().map(check).collect();
        let mut plans: Vec<Planned> = Vec::with_capacity(parts.len());
        for part in parts {
            plans.push(match part {
                Part::Reply(reply) => Planned::Reply(reply),
                Part::Server(args) => Planned::Server(args),
                Part::Plan(mut plan) => {
                    // What is beyond a limit fails its own command alone.
                    let checked =
                        plan.steps.iter().try_for_each(|step| wave::check(&self.gateway, step));
                    if let Err(refusal) = checked {
                        plans.push(Planned::Reply(refused(&refusal)));
                        continue;
                    }
                    let count = plan.steps.len();
                    steps.append(&mut plan.steps);
                    Planned::Plan(plan, count)
                }
            });
        }
        let (mut outcomes, mut now_ms) = (Vec::new(), self.gateway.now_ms());
        if !steps.is_empty() {
            (outcomes, now_ms) = self.run_together(steps).await?;
        }
        let is_same = |outcome: &Outcome| matches!(outcome, Ok(WriteResult { applied: true, .. }));
        let rest = outcomes.split_off(checks.min(outcomes.len()));
        if !outcomes.iter().all(is_same) {
            return Ok(Reply::NilArray);
        }
        self.session.name = name;
        let mut rest = rest.into_iter();
        let mut answers = Vec::with_capacity(plans.len());
        for planned in plans {
            answers.push(match planned {
                Planned::Reply(reply) => reply,
                Planned::Server(args) => self.of_server(&args).await,
                Planned::Plan(plan, count) => {
                    plan.finish(rest.by_ref().take(count).collect(), now_ms)
                }
            });
        }
        Ok(Reply::Array(answers))
    }
}

/// A command of a transaction whose work on keys, if it has any, is under way.
enum Planned {
    Reply(Reply),
    Server(Vec<Bytes>),
    /// With so many steps.
    Plan(Plan, usize),
}

fn check(watched: Watched) -> kvdb_redis::plan::Step {
    let condition = match watched.version {
        0 => Condition::IfAbsent,
        version => Condition::IfVersion(Version(version)),
    };
    change_if(watched.key, &Check, Some(condition), false)
}

async fn remove(
    gateway: &crate::route::Gateway,
    keyspace: &Keyspace,
    keys: Vec<Bytes>,
) -> Result<(), Refusal> {
    let count = keys.len();
    let steps = keys.into_iter().map(|key| change(key, &Delete)).collect();
    let mut wave = Wave::new(gateway, keyspace, steps);
    wave.start().await;
    wave.take(0..count).into_iter().try_for_each(|outcome| outcome.map(|_| ()))
}
