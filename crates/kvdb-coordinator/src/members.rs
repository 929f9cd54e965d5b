//! Who belongs to the group of coordinators: its founding, newcomers, and those that must not come
//! back.
//!
//! A coordinator without data hears nobody until the others have told it what it is
//! ([`kvdb_control::Standing`]): here they are asked, and answer.
//!
//! The control state says who is wanted ([`ControlState::wanted_coordinators`]); [`lead_on`] has
//! the group follow, one step at a time.

use crate::service::Member;
use futures_util::future::join_all;
use kvdb_control::{
    Beginning, ControlCommand, CoordinatorRecord, Coordinators, Greeted, Knowledge, MustNotBegin,
    Standing, decide, generation_of,
};
use kvdb_model::{Generation, GenerationOrder, NodeId, Refusal, Role, ShardId, Work};
use kvdb_replication::ReplicaRole;
use kvdb_runtime::drive::steps;
use kvdb_runtime::shutdown::Shutdown;
use kvdb_wire::proto::coordinator_client::CoordinatorClient;
use kvdb_wire::proto::{self, greet_response};
use kvdb_wire::{status_of, token_from, transport};
use std::time::Duration;
use tonic::{Request, Status};

/// Longest that another coordinator may take to answer a greeting.
const GREETING: Duration = Duration::from_secs(1);
/// Most coordinators that are known by hearsay.
const MOST_INTRODUCED: usize = 64;
/// Between two rounds of greetings.
const GREET_AGAIN: Duration = Duration::from_millis(50);
const GREET_AGAIN_LATER: Duration = Duration::from_millis(500);
/// Rounds at the shorter distance: all are started at the same time, as a rule.
const EAGER_ROUNDS: u32 = 100;

impl Member {
    /// Where a coordinator may be, the likeliest first: where it was reached, what it says itself, what
    /// others say, the log, `--peers`. Of itself this one knows best.
    pub(crate) fn addresses_of(&self, id: NodeId) -> Vec<String> {
        let configured = self.peers.get(&id).cloned();
        let own = configured.clone().filter(|_| id == self.drive.node_id());
        let logged = self.view.state().coordinators().get(&id).map(|known| known.address.clone());
        let introduced = self.introduced.lock().get(&id).cloned();
        let hearsay = self.hearsay.lock().get(&id).cloned();
        let mut addresses = Vec::new();
        let all = [own, self.contacts.address(id), introduced, hearsay, logged, configured];
        for address in all.into_iter().flatten() {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }

    /// Where a coordinator is, most likely.
    pub(crate) fn address_of(&self, id: NodeId) -> Option<String> {
        self.addresses_of(id).into_iter().next()
    }

    /// Where the coordinators are, most likely.
    pub(crate) fn all_addresses(&self) -> Vec<String> {
        let wanted = self.view.state().wanted_coordinators();
        wanted.iter().filter_map(|replica| self.address_of(replica.node_id)).collect()
    }

    /// What was made with a coordinator's data directory, where that is known.
    pub(crate) fn token_of(&self, id: NodeId) -> Option<u128> {
        let state = self.view.state();
        let logged = state.coordinators().get(&id).map(|record| record.token);
        let token = logged.or_else(|| self.founders.known().get(&id).map(|record| record.token));
        // A group from before tokens were written down has none.
        token.filter(|token| *token != 0)
    }

    /// Another coordinator has said where it is. It may have moved, or have been added while this one
    /// was cut off, and this one's vote for it must find its way.
    pub(crate) fn hear_address(&self, id: NodeId, address: String) {
        let mut introduced = self.introduced.lock();
        let has_room = introduced.len() < MOST_INTRODUCED || introduced.contains_key(&id);
        if id != self.drive.node_id() && has_room && transport::endpoint(&address).is_ok() {
            introduced.insert(id, address);
        }
    }

    /// What another coordinator is told that greets this one.
    pub(crate) async fn answer_to(&self, id: NodeId, token: u128) -> Greeted {
        let group = self.drive.views().get(ShardId::CONTROL);
        let descriptor = group.as_ref().and_then(|view| view.descriptor.clone());
        let knowledge = Knowledge {
            id: self.drive.node_id(),
            token: self.token,
            peers: &self.peers,
            founders: &self.founders.known(),
            state: &self.view.state(),
            group: descriptor.as_deref(),
            is_settled: group.is_some_and(|view| view.is_settled()),
            has_begun: !self.drive.statuses().await.is_empty(),
        };
        let mut answer = knowledge.answer_to(id, token);
        // The log may not know yet who has moved.
        if answer.standing != Standing::NotBegun {
            for (id, address) in &mut answer.members {
                if let Some(now) = self.address_of(*id) {
                    *address = now;
                }
            }
        }
        answer
    }

    /// Asks the others what this process is, until it is clear how to begin.
    pub(crate) async fn begin(&self) -> Result<Beginning, MustNotBegin> {
        let own = self.drive.node_id();
        let mut rounds = 0u32;
        loop {
            let answers = self.greet_others().await;
            if let Some(beginning) = decide(own, &self.peers, &answers)? {
                return Ok(beginning);
            }
            rounds += 1;
            if rounds == EAGER_ROUNDS {
                let strangers = answers.iter().any(|answer| answer.standing == Standing::Stranger);
                let why = match strangers {
                    true => format!(
                        "the group has no coordinator {own} yet: `kvdb admin coordinators add {own} HOST:PORT` adds it"
                    ),
                    false => format!(
                        "{} of {} other coordinators have answered; at their first start all must be seen once",
                        answers.len(),
                        self.peers.len() - 1
                    ),
                };
                tracing::warn!(why, "waiting for the other coordinators");
            }
            let eager = rounds < EAGER_ROUNDS;
            tokio::time::sleep(if eager { GREET_AGAIN } else { GREET_AGAIN_LATER }).await;
        }
    }

    /// Whether there is reason to ask: nobody leads it, or it has no vote to keep. (One that loses
    /// its vote seldom hears the end of that; where it does, its replica is gone.)
    pub(crate) fn may_be_removed(&self) -> bool {
        let group = self.drive.views().get(ShardId::CONTROL);
        group.is_none_or(|group| group.leader.is_none()) || !self.votes()
    }

    /// Whether this process is a full member of the group, as far as it knows.
    pub(crate) fn votes(&self) -> bool {
        let group = self.drive.views().get(ShardId::CONTROL);
        let own = self.drive.node_id();
        group.is_some_and(|group| {
            let known = group.descriptor.as_ref();
            let own = known.and_then(|known| known.replica_on(own));
            own.is_some_and(|replica| replica.role == Role::Voter)
        })
    }

    /// Whether the others say that this process was removed, or left behind.
    pub(crate) async fn is_removed(&self) -> Option<MustNotBegin> {
        let (answers, own) = (self.greet_others().await, self.drive.node_id());
        let any = |standing| answers.iter().any(|answer| answer.standing == standing);
        if any(Standing::LeftBehind) {
            return Some(MustNotBegin::LeftBehind(own));
        }
        any(Standing::Removed).then_some(MustNotBegin::Removed(own))
    }

    /// Why another coordinator must not take part any more: the group was recovered without it.
    pub(crate) fn left_behind(&self, id: NodeId) -> Option<String> {
        let is_so = self.view.state().is_left_behind(id);
        is_so.then(|| MustNotBegin::LeftBehind(id).to_string())
    }

    /// Whether the group was recovered from this coordinator, and the state doesn't say so yet.
    pub(crate) fn is_being_recovered(&self) -> bool {
        let group = self.drive.views().get(ShardId::CONTROL);
        let own = group.map_or(0, |group| generation_of(group.replica));
        own > self.view.state().generation().number
    }

    /// A node says which generation of coordinators it has met. If that is a newer one, this coordinator was
    /// left behind, and ends.
    pub(crate) fn check_generation(&self, who: &str, theirs: Generation) -> Result<(), Status> {
        // What was decided may not be applied here yet.
        if self.is_being_recovered() {
            return Err(Status::unavailable("the coordinators are being recovered"));
        }
        let own = self.view.state().generation();
        let order = own.compare(&theirs);
        if order == GenerationOrder::Newer {
            let why = format!(
                "{who} follows coordinators of generation {theirs}, and this one is of generation {own}. {}",
                MustNotBegin::LeftBehind(self.drive.node_id())
            );
            let _ = self.refuse.try_send(why.clone());
            return Err(Status::unavailable(why));
        }
        if order == GenerationOrder::Foreign && own.number == theirs.number {
            return Err(Status::unavailable(format!(
                "{who} follows coordinators of generation {theirs}, and this one is of generation {own}: two were \
                 recovered alone, each by itself"
            )));
        }
        Ok(())
    }

    async fn greet_others(&self) -> Vec<Greeted> {
        let (own, token) = (self.drive.node_id(), self.token);
        let state = self.view.state();
        let own_address = self.address_of(own).unwrap_or_default();
        let mut others: std::collections::BTreeSet<NodeId> = self.peers.keys().copied().collect();
        others.extend(state.wanted_coordinators().iter().map(|replica| replica.node_id));
        others.extend(self.introduced.lock().keys());
        others.extend(self.hearsay.lock().keys());
        let others = others.into_iter().filter(|id| *id != own);
        let places =
            others.flat_map(|id| self.addresses_of(id).into_iter().map(move |at| (id, at)));
        let greetings = places.map(|(id, address)| {
            let own_address = own_address.clone();
            async move {
                let answer = greet(&address, own, token, own_address).await.ok()?;
                (answer.id == id).then_some(answer)
            }
        });
        let mut answers: Vec<Greeted> = join_all(greetings).await.into_iter().flatten().collect();
        // One may be found under two addresses.
        answers.sort_by_key(|answer| answer.id);
        answers.dedup_by_key(|answer| (answer.id, answer.token));
        let of_the_group = answers.iter().filter(|answer| answer.standing != Standing::NotBegun);
        let told = of_the_group.flat_map(|answer| answer.members.clone());
        // The last word: whoever was asked before may not have known yet that one has moved.
        for (id, address) in told.filter(|(id, _)| *id != own) {
            let mut hearsay = self.hearsay.lock();
            if hearsay.len() < MOST_INTRODUCED || hearsay.contains_key(&id) {
                hearsay.insert(id, address);
            }
        }
        answers
    }

    /// Whether a coordinator is at an address.
    pub(crate) async fn is_at(&self, id: NodeId, address: &str) -> Result<(), String> {
        let answer = greet(address, self.drive.node_id(), 0, String::new())
            .await
            .map_err(|why| format!("{address} doesn't answer as a coordinator ({why})"))?;
        if answer.id != id {
            return Err(format!("{address} is coordinator {}, not {id}", answer.id));
        }
        match self.token_of(id) {
            Some(known) if known != answer.token => {
                Err(format!("coordinator {id} at {address} has another data directory"))
            }
            _ => Ok(()),
        }
    }

    /// Asks a process that is to be added for its token.
    pub(crate) async fn newcomer(&self, id: NodeId, address: &str) -> Result<u128, Status> {
        let refuse = |why: String| Err(status_of(&Refusal::invalid("address", why)));
        let answer = match greet(address, self.drive.node_id(), 0, String::new()).await {
            Ok(answer) => answer,
            Err(why) => {
                return refuse(format!(
                    "{address} doesn't answer ({why}): start coordinator {id} there first, with an empty data \
                     directory and a --peers that names all coordinators and itself"
                ));
            }
        };
        if answer.id != id {
            return refuse(format!("{address} is coordinator {}, not {id}", answer.id));
        }
        if answer.standing != Standing::NotBegun {
            return refuse(format!(
                "coordinator {id} at {address} has data of a group already: start it with an empty data directory"
            ));
        }
        Ok(answer.token)
    }
}

fn standing_from(standing: greet_response::Standing) -> Standing {
    match standing {
        greet_response::Standing::NotBegun => Standing::NotBegun,
        greet_response::Standing::Founder => Standing::Founder,
        greet_response::Standing::Member => Standing::Member,
        greet_response::Standing::Stranger => Standing::Stranger,
        greet_response::Standing::OtherDirectory => Standing::OtherDirectory,
        greet_response::Standing::Removed => Standing::Removed,
        greet_response::Standing::LeftBehind => Standing::LeftBehind,
    }
}

pub(crate) fn standing_to(standing: Standing) -> greet_response::Standing {
    match standing {
        Standing::NotBegun => greet_response::Standing::NotBegun,
        Standing::Founder => greet_response::Standing::Founder,
        Standing::Member => greet_response::Standing::Member,
        Standing::Stranger => greet_response::Standing::Stranger,
        Standing::OtherDirectory => greet_response::Standing::OtherDirectory,
        Standing::Removed => greet_response::Standing::Removed,
        Standing::LeftBehind => greet_response::Standing::LeftBehind,
    }
}

/// Between two looks at where the coordinators are.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Keeps the log's word of where the coordinators are, while this one leads. One that was found
/// elsewhere has moved if it isn't where the log says any more.
pub(crate) async fn keep_addresses(member: Member, shutdown: Shutdown) {
    let mut interval = tokio::time::interval(LOOK_AGAIN);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = shutdown.wait() => return,
        }
        if !member.leads() {
            continue;
        }
        let state = member.view.state();
        let present = state.coordinators().iter().filter(|(_, record)| !record.is_removed);
        for (id, record) in present {
            let Some(found) = member.address_of(*id).filter(|found| *found != record.address)
            else {
                continue;
            };
            if member.is_at(*id, &record.address).await.is_ok()
                || member.is_at(*id, &found).await.is_err()
            {
                continue;
            }
            let (id, before) = (*id, &record.address);
            tracing::info!(coordinator = id.0, before, now = found, "a coordinator has moved");
            let command = ControlCommand::SetCoordinatorAddress { id, address: found };
            if let Err(status) = member.propose(command).await {
                tracing::debug!(error = status.message(), "the address was not recorded");
            }
        }
    }
}

async fn greet(
    address: &str,
    own: NodeId,
    token: u128,
    own_address: String,
) -> Result<Greeted, String> {
    let endpoint = transport::endpoint(address).map_err(|error| error.to_string())?;
    let mut client = CoordinatorClient::new(endpoint.connect_lazy());
    let token = token.to_be_bytes().to_vec().into();
    let request = proto::GreetRequest { id: own.0, token, address: own_address };
    let answer = tokio::time::timeout(GREETING, client.greet(Request::new(request)))
        .await
        .map_err(|_| "no answer within a second".to_owned())?
        .map_err(|status| status.message().to_owned())?
        .into_inner();
    let token = token_from("token", &answer.token).map_err(|error| error.to_string())?;
    let standing = standing_from(answer.standing());
    let members = answer.members.into_iter();
    let members = members.map(|member| (NodeId(member.id), member.address)).collect();
    let founders = answer.founders.into_iter().map(|founder| {
        let token = token_from("founders.token", &founder.token);
        let record = CoordinatorRecord {
            address: founder.address,
            token: token.map_err(|error| error.to_string())?,
            is_removed: false,
        };
        Ok((NodeId(founder.id), record))
    });
    let founders = founders.collect::<Result<_, String>>()?;
    Ok(Greeted { id: NodeId(answer.id), token, standing, members, founders })
}

/// The next step towards the group that is wanted; for the leader.
pub(crate) async fn lead_on(member: &Member) -> Option<ControlCommand> {
    let state = member.view.state();
    if state.coordinators().is_empty() {
        return Some(ControlCommand::FoundCoordinators { founders: founders_of(member) });
    }
    let groups = member.drive.statuses().await;
    let group = groups.iter().find(|group| group.shard == ShardId::CONTROL)?;
    if group.role != ReplicaRole::Leader {
        return None;
    }
    let wanted = Work::Replicas(state.wanted_coordinators());
    if let Ok(Some(step)) = steps::next(group, &wanted) {
        tracing::info!("the members of the coordinators' group change");
        // Refused only under overload; the next round tries again.
        let _ = member.drive.submit(step);
    }
    None
}

/// The founders as they have met. A group from before that was written down has no tokens: no
/// data directory but those that are there is ever taken for one of its own.
fn founders_of(member: &Member) -> Coordinators {
    let known = member.founders.known();
    if !known.is_empty() {
        return known;
    }
    let of_before = member.peers.iter().map(|(id, address)| {
        let record = CoordinatorRecord { address: address.clone(), token: 0, is_removed: false };
        (*id, record)
    });
    of_before.collect()
}
