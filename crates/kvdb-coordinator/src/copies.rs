//! Before a coordinator that starts again takes part: the others compare what they know of it. An older
//! copy of its directory, or a second process beside it, hears nobody and is heard by nobody.
//!
//! Coordinators tell each other every second which start they are and how far their log is synced, and
//! keep it. So whichever others are there know an older copy: it is told so when it asks, and their
//! streams refuse it. One that starts elsewhere than the process before it waits until a majority of the
//! others has turned that one away.

use crate::service::Member;
use futures_util::future::join_all;
use kvdb_model::{ClusterId, NodeId, ShardId};
use kvdb_replication::starts::{NotVouched, Others, Said};
use kvdb_runtime::dial::{self, Unvouched, Vouching};
use kvdb_runtime::shutdown::Shutdown;
use kvdb_runtime::start::{Start, Succession};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Between two rounds of asking the others.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// Between two rounds of telling the others.
const INTRODUCE_EVERY: Duration = Duration::from_secs(1);
/// Reasons that are told in the log, at most.
const MOST_SAID: usize = 64;

/// A coordinator that isn't heard yet.
pub(crate) struct Starting {
    pub(crate) member: Member,
    pub(crate) cluster_id: ClusterId,
    pub(crate) address: String,
    pub(crate) start: Arc<Mutex<Start>>,
}

impl Starting {
    fn others(&self) -> Vec<Others> {
        let view = self.member.drive.views().get(ShardId::CONTROL);
        let descriptor = view.and_then(|view| view.descriptor.clone());
        descriptor.map_or_else(Vec::new, |group| Others::of(&group, self.member.drive.node_id()))
    }

    fn vouching(&self, succeeds: bool, only_asks: bool, is_heard: bool) -> Vouching {
        let start = self.start.lock();
        Vouching {
            cluster_id: self.cluster_id,
            coordinator: true,
            node: self.member.drive.node_id(),
            said: Said {
                number: start.number,
                nonce: start.nonce,
                synced: Some(self.member.drive.synced()),
                address: self.address.clone(),
            },
            shown: start.shown.clone(),
            succeeds,
            is_heard,
            only_asks,
        }
    }

    /// What each of some others answers.
    async fn ask(
        &self,
        nodes: BTreeSet<NodeId>,
        asked: &Vouching,
    ) -> Vec<(NodeId, Result<(), Unvouched>)> {
        let asking = nodes.into_iter().map(|node| async move {
            let mut last =
                Unvouched::Unreached(format!("coordinator {node}: its address isn't known"));
            for address in self.member.addresses_of(node) {
                match dial::ask_to_vouch(&address, asked).await {
                    Ok(found) if found == node => return (node, Ok(())),
                    Ok(found) => {
                        let why = format!("{address} is coordinator {found}, not {node}");
                        last = Unvouched::Unreached(why);
                    }
                    Err(refused @ Unvouched::Refused(..)) => return (node, Err(refused)),
                    Err(why) => last = why,
                }
            }
            (node, Err(last))
        });
        join_all(asking).await
    }

    /// Asks the others about this start; one from elsewhere waits until enough of them have vouched for
    /// it.
    ///
    /// # Errors
    /// Why it must not take part.
    pub(crate) async fn until_heard(
        &self,
        succession: Succession,
        data: &Path,
    ) -> Result<(), String> {
        let elsewhere = succession == Succession::Elsewhere;
        let mut only_asks = true;
        let mut vouched = BTreeSet::new();
        let mut said = BTreeSet::new();
        loop {
            let all = self.others();
            if all.iter().all(|others| others.are_enough(&vouched)) {
                if !elsewhere || !only_asks {
                    return Ok(());
                }
                // From now on they turn the older one away.
                only_asks = false;
                vouched.clear();
                self.start.lock().spends_number(data).map_err(|error| error.to_string())?;
                continue;
            }
            let untold = all.iter().flat_map(|others| others.nodes.difference(&vouched)).copied();
            let asked = self.vouching(!elsewhere, only_asks, false);
            for (node, answer) in self.ask(untold.collect(), &asked).await {
                match answer {
                    Ok(()) => _ = vouched.insert(node),
                    Err(Unvouched::Refused(_, NotVouched::NeverMet(_))) => {
                        // One that knows nobody of this number learns of this one.
                        let asked = self.vouching(!elsewhere, false, true);
                        let told = only_asks || self.ask([node].into(), &asked).await[0].1.is_ok();
                        if told {
                            vouched.insert(node);
                        }
                    }
                    Err(Unvouched::Refused(_, NotVouched::Older(why))) => return Err(why),
                    Err(why) => {
                        let why = why.to_string();
                        // An age in it changes all the time.
                        let words: String =
                            why.chars().filter(|each| !each.is_ascii_digit()).collect();
                        if said.len() < MOST_SAID && said.insert(words) {
                            tracing::info!(
                                why,
                                "waiting for other coordinators to accept this start"
                            );
                        }
                    }
                }
            }
            // The process before it is gone, and nobody has said that the directory is older. Those that
            // aren't there may not be in the group any more; they are told when they come.
            if !elsewhere {
                return Ok(());
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Tells the others which start this is, and how far its log is synced.
    pub(crate) async fn introduce(self, refuse: mpsc::Sender<String>, shutdown: Shutdown) {
        let mut interval = tokio::time::interval(INTRODUCE_EVERY);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = interval.tick() => {}
                () = shutdown.wait() => return,
            }
            let others = self.others().into_iter().flat_map(|others| others.nodes).collect();
            let asked = self.vouching(true, false, true);
            for (_, answer) in self.ask(others, &asked).await {
                // Who isn't there hears it later.
                if let Err(Unvouched::Refused(_, NotVouched::Older(why))) = answer {
                    let _ = refuse.send(why).await;
                    return;
                }
            }
        }
    }
}
