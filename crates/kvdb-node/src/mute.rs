//! Before a node that starts again takes part: it neither votes nor acknowledges until it is sure that
//! it is the node, and not an older copy or a second process of it.
//!
//! Until then its replicas are held back ([`Drive::release`]): they don't even tick, so nothing enters the log. Whom it
//! asks, when, and what follows from the answers is decided in [`kvdb_replication::entry`]; here it is asked.

use crate::registration::{self, Registered};
use crate::run::{NodeConfig, NodeError};
use arc_swap::ArcSwap;
use futures_util::future::join_all;
use kvdb_model::{NodeId, ShardId};
use kvdb_replication::entry::{self, Answer, Entry, Question, Refused, Word};
use kvdb_replication::starts::{Others, Said};
use kvdb_router::Routes;
use kvdb_runtime::clock;
use kvdb_runtime::coordinators::Coordinators;
use kvdb_runtime::dial::{self, Unvouched, Vouching};
use kvdb_runtime::drive::Drive;
use kvdb_runtime::http::Readiness;
use kvdb_runtime::identity::Identity;
use kvdb_runtime::map::ClusterMap;
use kvdb_runtime::shutdown::Shutdown;
use kvdb_runtime::start::{Copy, Start, until_replaced};
use kvdb_wire::{proto, refusal_from_status};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tonic::Code;

/// Between two rounds of telling the others of this start.
const INTRODUCE_AGAIN: Duration = Duration::from_secs(1);
/// Before that nobody is warned.
const PATIENCE: Duration = Duration::from_secs(3);
/// Reasons that are told in the log, at most.
const MOST_SAID: usize = 64;

/// A node that isn't heard yet.
pub(crate) struct Mute<'a> {
    pub(crate) drive: &'a Drive,
    pub(crate) config: &'a NodeConfig,
    pub(crate) identity: Identity,
    pub(crate) coordinators: &'a Coordinators,
    pub(crate) readiness: &'a Readiness,
    pub(crate) map: ClusterMap,
    pub(crate) start: Arc<Mutex<Start>>,
    /// The last older copy of the directory that was accepted, as it knows itself.
    pub(crate) copy: Copy,
}

/// What a node that is heard may do.
pub(crate) struct Heard {
    /// The coordinators have accepted this start.
    pub(crate) by_coordinators: bool,
    /// Shards whose only replica may be alive elsewhere.
    pub(crate) held: BTreeSet<ShardId>,
    /// The last older copy of the directory that was accepted, as the coordinators know.
    pub(crate) copy: Copy,
}

/// What somebody has answered.
enum Answered {
    Coordinators(Word),
    Peers(Vec<(NodeId, Answer)>),
}

type Answering<'a> = Pin<Box<dyn Future<Output = Answered> + Send + 'a>>;

/// Why it isn't heard, as far as it was told: in the log once, and to whoever asks for its readiness.
struct Told {
    begun: Instant,
    said: BTreeSet<String>,
    /// Why the coordinators refuse it for good.
    refusal: String,
    /// What they have made of it.
    copy: Option<Copy>,
}

impl Mute<'_> {
    /// Waits until somebody who knows has vouched for this start.
    ///
    /// # Errors
    /// Why it must not take part.
    pub(crate) async fn until_heard(&self) -> Result<Heard, NodeError> {
        let start = self.start.lock().clone();
        let mut entry = Entry::new(&start, self.config.moved, self.copy.count, clock::boot_us());
        let told = Mutex::new(Told {
            begun: Instant::now(),
            said: BTreeSet::new(),
            refusal: String::new(),
            copy: None,
        });
        let (mut from_coordinators, mut from_peers): (Option<Answering>, Option<Answering>) =
            (None, None);
        loop {
            let others = self.others();
            for question in entry.asks(&others, clock::boot_us()) {
                match question {
                    Question::Coordinators { only_asks } => {
                        from_coordinators = Some(Box::pin(self.ask_coordinators(only_asks, &told)));
                    }
                    Question::Peers { nodes, succeeds, only_asks, patience_us } => {
                        let patience = Duration::from_micros(patience_us);
                        let asked = self.ask_peers(nodes, (succeeds, only_asks), patience, &told);
                        from_peers = Some(Box::pin(asked));
                    }
                }
            }
            let answered = tokio::select! {
                answered = answer(&mut from_coordinators) => answered,
                answered = answer(&mut from_peers) => answered,
                () = until(entry.asks_next_us(&others)) => continue,
            };
            let (others, now_us) = (self.others(), clock::boot_us());
            match answered {
                Answered::Coordinators(word) => entry.coordinators_say(word, &others, now_us),
                Answered::Peers(answers) => entry.peers_say(answers, &others, now_us),
            }
            let Some(end) = entry.end() else { continue };
            let told = told.lock();
            return match end {
                Ok(heard) => {
                    self.warn_of(&heard.held);
                    let copy = told.copy.unwrap_or(self.copy);
                    let entry::Heard { by_coordinators, held } = heard.clone();
                    Ok(Heard { by_coordinators, held, copy })
                }
                Err(Refused::Coordinators) => {
                    let data = self.config.data.display();
                    Err(NodeError::Refused(format!("{} (its directory: {data})", told.refusal)))
                }
                Err(Refused::Peer(node, why)) => {
                    let at = self.map.routes.load().address(*node).cloned();
                    let at = at.map_or_else(|| format!("node {node}"), |at| at.to_string());
                    Err(NodeError::MustNotGoOn(format!("{why} (as {at} knows)")))
                }
            };
        }
    }

    fn warn_of(&self, held: &BTreeSet<ShardId>) {
        if held.is_empty() {
            return;
        }
        let shards: Vec<String> = held.iter().map(ShardId::to_string).collect();
        tracing::warn!(
            shards = shards.join(", "),
            "this directory was copied or moved from a process that didn't end in order. Replicas that have no others \
             take no part: that process may serve them still. If it is gone for good, `kvdb claim {}` and start this \
             node again",
            self.config.data.display()
        );
    }

    async fn ask_coordinators(&self, only_asks: bool, told: &Mutex<Told>) -> Answered {
        let shown = start_to(&self.start.lock(), self.drive.synced());
        let Mute { config, identity, coordinators, map, .. } = self;
        let answer = if only_asks {
            let would =
                registration::ask_whether(config, *identity, coordinators, map, &shown).await;
            would.map(|as_copy| Word::Would { as_copy })
        } else {
            let registered =
                registration::try_register(config, *identity, coordinators, map, &shown).await;
            registered.map(|Registered { copy, .. }| {
                told.lock().copy = Some(copy);
                Word::Accepted { copies: copy.count }
            })
        };
        let word = answer.unwrap_or_else(|status| {
            let why = status.message().to_owned();
            match status.code() {
                Code::InvalidArgument => {
                    told.lock().refusal = why;
                    Word::Refused
                }
                // A refusal that passes comes from one that is there: it takes a moment, no more.
                Code::FailedPrecondition if only_asks || refusal_from_status(&status).is_none() => {
                    self.say(told, why);
                    Word::KeptOut
                }
                _ => {
                    self.say(told, format!("no coordinator answers: {why}"));
                    Word::Nobody
                }
            }
        });
        Answered::Coordinators(word)
    }

    async fn ask_peers(
        &self,
        nodes: BTreeSet<NodeId>,
        (succeeds, only_asks): (bool, bool),
        patience: Duration,
        told: &Mutex<Told>,
    ) -> Answered {
        if !only_asks && let Err(error) = self.start.lock().spends_number(&self.config.data) {
            self.say(told, error.to_string());
            return Answered::Peers(Vec::new());
        }
        let (asked, routes) = (self.asked(succeeds, only_asks), self.map.routes.load_full());
        let asking = nodes.into_iter().map(|node| {
            let (asked, address) = (&asked, routes.address(node).cloned());
            async move {
                let Some(address) = address else {
                    self.say(told, format!("node {node}: its address isn't known"));
                    return (node, None);
                };
                let vouching = dial::ask_to_vouch(&address, asked);
                let answer = match tokio::time::timeout(patience, vouching).await {
                    Ok(Ok(found)) if found == node => return (node, Some(Ok(()))),
                    Ok(Ok(found)) => format!("{address} is node {found}, not {node}"),
                    Ok(Err(Unvouched::Refused(at, why))) => {
                        self.say(told, format!("{at}: {why}"));
                        return (node, Some(Err(why)));
                    }
                    Ok(Err(Unvouched::Unreached(why))) => why,
                    Err(_) => format!("{address}: it doesn't answer"),
                };
                self.say(told, answer);
                (node, None)
            }
        });
        Answered::Peers(join_all(asking).await)
    }

    fn say(&self, told: &Mutex<Told>, why: String) {
        self.readiness.wait_for("registration", format!("mute: {why}"));
        // An age in it changes all the time.
        let words: String = why.chars().filter(|each| !each.is_ascii_digit()).collect();
        let mut told = told.lock();
        // Where everything starts at once the first calls come too early.
        let begins = told.begun.elapsed() < PATIENCE;
        if told.said.len() >= MOST_SAID || !told.said.insert(format!("{begins} {words}")) {
        } else if begins {
            tracing::info!(why, "mute until others vouch for this start of the node");
        } else {
            tracing::warn!(why, "mute until others vouch for this start of the node");
        }
    }

    fn others(&self) -> BTreeSet<Others> {
        let own = self.drive.node_id();
        let views = self.drive.views().all();
        let descriptors = views.values().filter_map(|view| view.descriptor.as_ref());
        descriptors.flat_map(|descriptor| Others::of(descriptor, own)).collect()
    }

    fn asked(&self, succeeds: bool, only_asks: bool) -> Vouching {
        let start = self.start.lock();
        Vouching {
            cluster_id: self.identity.cluster_id,
            coordinator: false,
            node: self.identity.node_id,
            said: Said {
                number: start.number,
                nonce: start.nonce,
                synced: Some(self.drive.synced()),
                address: self.config.advertised().to_owned(),
            },
            shown: start.shown.clone(),
            succeeds,
            is_heard: false,
            only_asks,
        }
    }
}

/// The answer to what is being asked; never, if nothing is.
async fn answer(asking: &mut Option<Answering<'_>>) -> Answered {
    let Some(asked) = asking else { return std::future::pending().await };
    let answered = asked.await;
    *asking = None;
    answered
}

/// Waits until the boot clock says `at_us`; for ever, if there is nothing to wait for.
async fn until(at_us: Option<u64>) {
    let Some(at_us) = at_us else { return std::future::pending().await };
    tokio::time::sleep(Duration::from_micros(at_us.saturating_sub(clock::boot_us()))).await;
}

/// Tells each other node once of this start, so that it knows an older one when it meets it.
pub(crate) async fn introduce(
    identity: Identity,
    start: Start,
    address: String,
    routes: Arc<ArcSwap<Routes>>,
    shutdown: Shutdown,
) {
    let said = Said { number: start.number, nonce: start.nonce, synced: None, address };
    let introduction = Vouching {
        cluster_id: identity.cluster_id,
        coordinator: false,
        node: identity.node_id,
        said,
        shown: Vec::new(),
        succeeds: true,
        is_heard: true,
        only_asks: false,
    };
    let mut told = BTreeSet::new();
    let mut interval = tokio::time::interval(INTRODUCE_AGAIN);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = shutdown.wait() => return,
        }
        let routes = routes.load_full();
        let others = routes.nodes().filter(|(node, _)| *node != identity.node_id);
        let untold: Vec<_> = others.filter(|(node, _)| !told.contains(node)).collect();
        let telling = untold.into_iter().map(|(node, address)| {
            let introduction = &introduction;
            async move {
                let answer = dial::ask_to_vouch(&address, introduction).await;
                answer.ok().filter(|answered| *answered == node)
            }
        });
        told.extend(join_all(telling).await.into_iter().flatten());
    }
}

/// Ends the node if its data directory is replaced under it.
pub(crate) async fn watch_directory(
    start: Arc<Mutex<Start>>,
    data: std::path::PathBuf,
    refuse: mpsc::Sender<NodeError>,
    shutdown: Shutdown,
) {
    tokio::select! {
        why = until_replaced(start, data) => {
            let _ = refuse.send(NodeError::MustNotGoOn(why)).await;
        }
        () = shutdown.wait() => {}
    }
}

/// A start as the coordinators are told of it.
pub(crate) fn start_to(start: &Start, synced: u64) -> proto::NodeStart {
    let bytes = |nonce: u128| bytes::Bytes::copy_from_slice(&nonce.to_be_bytes());
    proto::NodeStart {
        nonce: bytes(start.nonce),
        shown: start.shown.iter().map(|nonce| bytes(*nonce)).collect(),
        synced,
        place: bytes(start.place()),
    }
}
