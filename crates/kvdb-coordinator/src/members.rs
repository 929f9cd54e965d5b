//! Who belongs to the group of coordinators: its founding, newcomers, and those that must not come
//! back.
//!
//! A coordinator without data may be new, or it may have lost what it has promised. It can't tell
//! by itself, and while it takes part as if it were new, what a majority has acknowledged can be
//! forgotten. So it hears nobody until the others have told it what it is ([`Standing`]):
//!
//! - none of them has begun, and all of them have answered: they found a group together, and each
//!   first writes down the others' data directories (by their tokens);
//! - its own data directory is known: it is a founder, or was added by command, that has never
//!   promised anything yet;
//! - its number belongs to another data directory, or was taken from the group: it must not run.
//!
//! The control state says who is wanted ([`ControlState::wanted_coordinators`]); [`lead_on`] has
//! the group follow, one step at a time.

use crate::founders::Members;
use crate::service::Member;
use futures_util::future::join_all;
use kvdb_control::{ControlCommand, ControlState, CoordinatorRecord};
use kvdb_model::{NodeId, Refusal, Role, ShardDescriptor, ShardId, Work};
use kvdb_replication::ReplicaRole;
use kvdb_runtime::drive::steps;
use kvdb_wire::proto::coordinator_client::CoordinatorClient;
use kvdb_wire::proto::{self, greet_response::Standing};
use kvdb_wire::{status_of, token_from, transport};
use std::collections::BTreeMap;
use std::time::Duration;
use tonic::{Request, Status};

/// Longest that another coordinator may take to answer a greeting.
const GREETING: Duration = Duration::from_secs(1);
/// Between two rounds of greetings.
const GREET_AGAIN: Duration = Duration::from_millis(50);
const GREET_AGAIN_LATER: Duration = Duration::from_millis(500);
/// Rounds at the shorter distance: all are started at the same time, as a rule.
const EAGER_ROUNDS: u32 = 100;

/// What the process that greets is for this one. `descriptor` is that of the group as applied here;
/// `has_begun` says whether there is a replica here at all.
pub(crate) fn standing(
    state: &ControlState,
    founders: &Members,
    descriptor: Option<&ShardDescriptor>,
    has_begun: bool,
    (id, token): (NodeId, u128),
) -> Standing {
    if !has_begun {
        return Standing::NotBegun;
    }
    let is_founder = founders.get(&id).is_some_and(|founder| founder.token == token);
    let known = if state.coordinators().is_empty() { founders } else { state.coordinators() };
    match known.get(&id) {
        // A group that never wrote down who founded it: whoever has no data may have lost it.
        None if known.is_empty() => Standing::OtherDirectory,
        None => Standing::Stranger,
        Some(record) if record.token != token => Standing::OtherDirectory,
        // It votes until the group has changed.
        Some(record)
            if record.is_removed
                && descriptor.is_some_and(|group| group.replica_on(id).is_none()) =>
        {
            Standing::Removed
        }
        Some(_) if is_founder => Standing::Founder,
        Some(_) => Standing::Member,
    }
}

/// How a coordinator without data begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// All are new: they found a group.
    Found(Members),
    /// It is a founder, and another one has begun already: with these.
    Follow(Members),
    /// It was added: its replica comes from the others.
    Join,
}

/// What another coordinator has answered.
struct Answer {
    id: NodeId,
    token: u128,
    standing: Standing,
    /// Where the others are, if this process is one of them; with whom it means to begin, if it
    /// hasn't.
    members: BTreeMap<NodeId, String>,
    /// With whom the group was founded, if this process was one of them.
    founders: Members,
}

/// What comes of the answers, if it can be told.
fn decide(
    own: NodeId,
    peers: &BTreeMap<NodeId, String>,
    answers: &[Answer],
) -> Result<Option<Beginning>, String> {
    let any = |standing| answers.iter().any(|answer| answer.standing == standing);
    if any(Standing::OtherDirectory) {
        return Err(format!(
            "coordinator {own} has had another data directory: what it has promised there is gone, and it must not \
             come back without. Give it that directory again, or `kvdb admin coordinators remove {own}` and start \
             this one under a new number"
        ));
    }
    if any(Standing::Removed) {
        return Err(removed(own));
    }
    if let Some(answer) = answers.iter().find(|answer| answer.standing == Standing::Founder) {
        same_group(answer.id, answer.founders.keys(), peers)?;
        return Ok(Some(Beginning::Follow(answer.founders.clone())));
    }
    if any(Standing::Member) {
        return Ok(Some(Beginning::Join));
    }
    for answer in answers.iter().filter(|answer| answer.standing == Standing::NotBegun) {
        same_group(answer.id, answer.members.keys(), peers)?;
    }
    let all_are_new = answers.len() + 1 == peers.len()
        && answers.iter().all(|answer| answer.standing == Standing::NotBegun);
    let founders = || {
        let record = |answer: &Answer| CoordinatorRecord {
            address: peers.get(&answer.id).cloned().unwrap_or_default(),
            token: answer.token,
            is_removed: false,
        };
        answers.iter().map(|answer| (answer.id, record(answer))).collect()
    };
    Ok(all_are_new.then(|| Beginning::Found(founders())))
}

/// Two that begin with different groups in mind would be two groups.
fn same_group<'a>(
    other: NodeId,
    theirs: impl Iterator<Item = &'a NodeId> + Clone,
    peers: &BTreeMap<NodeId, String>,
) -> Result<(), String> {
    if theirs.clone().eq(peers.keys()) {
        return Ok(());
    }
    let names = |ids: Vec<String>| ids.join(", ");
    Err(format!(
        "the --peers of coordinator {other} names {}, that of this one {}: all must name the same at their first start",
        names(theirs.map(NodeId::to_string).collect()),
        names(peers.keys().map(NodeId::to_string).collect())
    ))
}

/// Why a coordinator that was removed doesn't run.
pub(crate) fn removed(own: NodeId) -> String {
    format!(
        "coordinator {own} was removed from its group, and its number stays taken; its data directory can be \
         deleted"
    )
}

impl Member {
    /// Where a coordinator is.
    pub(crate) fn address_of(&self, id: NodeId) -> Option<String> {
        let state = self.view.state();
        let known = state.coordinators().get(&id).map(|record| record.address.clone());
        known
            .or_else(|| self.introduced.lock().get(&id).cloned())
            .or_else(|| self.peers.get(&id).cloned())
    }

    /// What the process that greets is for this one.
    pub(crate) async fn standing_of(&self, id: NodeId, token: u128) -> Standing {
        let group = self.drive.views().get(ShardId::CONTROL);
        let descriptor = group.and_then(|view| view.descriptor.clone());
        let has_begun = !self.drive.statuses().await.is_empty();
        let state = self.view.state();
        standing(&state, &self.founders.known(), descriptor.as_deref(), has_begun, (id, token))
    }

    /// Asks the others what this process is, until it is clear how to begin.
    pub(crate) async fn begin(&self) -> Result<Beginning, String> {
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
                tracing::warn!(why, "waiting to begin");
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

    /// Who is a coordinator now, and where.
    pub(crate) fn present(&self) -> BTreeMap<NodeId, String> {
        let state = self.view.state();
        let present = state.coordinators().iter().filter(|(_, record)| !record.is_removed);
        present.map(|(id, record)| (*id, record.address.clone())).collect()
    }

    /// Whether the others say that this process was removed.
    pub(crate) async fn is_removed(&self) -> bool {
        let answers = self.greet_others().await;
        answers.iter().any(|answer| answer.standing == Standing::Removed)
    }

    async fn greet_others(&self) -> Vec<Answer> {
        let (own, token) = (self.drive.node_id(), self.token);
        let state = self.view.state();
        let mut others: std::collections::BTreeSet<NodeId> = self.peers.keys().copied().collect();
        others.extend(state.wanted_coordinators().iter().map(|replica| replica.node_id));
        others.extend(self.introduced.lock().keys());
        let others = others.into_iter().filter(|id| *id != own);
        let greetings = others.filter_map(|id| {
            let address = self.address_of(id)?;
            Some(async move {
                let answer = greet(&address, own, token).await.ok()?;
                (answer.id == id).then_some(answer)
            })
        });
        let answers: Vec<Answer> = join_all(greetings).await.into_iter().flatten().collect();
        let of_the_group = answers.iter().filter(|answer| answer.standing != Standing::NotBegun);
        let told = of_the_group.flat_map(|answer| answer.members.clone());
        self.introduced.lock().extend(told);
        answers
    }

    /// Asks a process that is to be added for its token.
    pub(crate) async fn newcomer(&self, id: NodeId, address: &str) -> Result<u128, Status> {
        let refuse = |why: String| Err(status_of(&Refusal::invalid("address", why)));
        let answer = match greet(address, self.drive.node_id(), 0).await {
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

async fn greet(address: &str, own: NodeId, token: u128) -> Result<Answer, String> {
    let endpoint = transport::endpoint(address).map_err(|error| error.to_string())?;
    let mut client = CoordinatorClient::new(endpoint.connect_lazy());
    let request = proto::GreetRequest { id: own.0, token: token.to_be_bytes().to_vec().into() };
    let answer = tokio::time::timeout(GREETING, client.greet(Request::new(request)))
        .await
        .map_err(|_| "no answer within a second".to_owned())?
        .map_err(|status| status.message().to_owned())?
        .into_inner();
    let token = token_from("token", &answer.token).map_err(|error| error.to_string())?;
    let standing = answer.standing();
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
    Ok(Answer { id: NodeId(answer.id), token, standing, members, founders })
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
        tracing::info!("a step towards the group of coordinators that is wanted");
        // Refused only under overload; the next round tries again.
        let _ = member.drive.submit(step);
    }
    None
}

/// The founders as they have met. A group from before that was written down has no tokens: no
/// data directory but those that are there is ever taken for one of its own.
fn founders_of(member: &Member) -> Members {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(id: u64, standing: Standing) -> Answer {
        let token = u128::from(id) * 10;
        Answer { id: NodeId(id), token, standing, members: three(), founders: Members::new() }
    }

    fn record(token: u128) -> CoordinatorRecord {
        CoordinatorRecord { address: format!("h:{token}"), token, is_removed: false }
    }

    fn three() -> BTreeMap<NodeId, String> {
        (1..=3).map(|id| (NodeId(id), format!("h:{id}"))).collect()
    }

    fn verdict(answers: &[Answer]) -> Result<Option<Beginning>, String> {
        decide(NodeId(3), &three(), answers)
    }

    #[test]
    fn coordinators_with_different_groups_in_mind_found_none() {
        let members =
            BTreeMap::from([(NodeId(1), "h:1".to_owned()), (NodeId(3), "h:3".to_owned())]);
        let other = Answer { members, ..answer(1, Standing::NotBegun) };
        let refused = verdict(&[other, answer(2, Standing::NotBegun)]).unwrap_err();
        assert!(
            refused.contains("coordinator 1 names 1, 3, that of this one 1, 2, 3"),
            "{refused}"
        );
    }

    #[test]
    fn a_group_is_founded_only_when_all_are_there_and_all_are_new() {
        let (first, second) = (answer(1, Standing::NotBegun), answer(2, Standing::NotBegun));
        let Ok(Some(Beginning::Found(founders))) = verdict(&[first, second]) else { panic!() };
        assert_eq!(founders[&NodeId(2)].address, "h:2");
        assert_eq!(founders[&NodeId(2)].token, 20);
        assert_eq!(verdict(&[answer(1, Standing::NotBegun)]), Ok(None));
        assert_eq!(verdict(&[]), Ok(None));
        let strange = [answer(1, Standing::NotBegun), answer(2, Standing::Stranger)];
        assert_eq!(verdict(&strange), Ok(None));
    }

    #[test]
    fn one_answer_is_enough_to_join_and_one_to_be_refused() {
        // Whoever follows must know the founders as well: it may be the one to lead.
        let founders: Members = (1..=3).map(|id| (NodeId(id), record(id.into()))).collect();
        let second = Answer { founders: founders.clone(), ..answer(2, Standing::Founder) };
        let founder = [answer(1, Standing::NotBegun), second];
        assert_eq!(verdict(&founder), Ok(Some(Beginning::Follow(founders.clone()))));
        // With the group that was founded, and no other.
        let founders = founders.into_iter().filter(|(id, _)| id.0 > 1).collect();
        let other = Answer { founders, ..answer(2, Standing::Founder) };
        assert!(verdict(&[other]).unwrap_err().contains("names 2, 3, that of this one 1, 2, 3"));
        assert_eq!(verdict(&[answer(1, Standing::Member)]), Ok(Some(Beginning::Join)));
        let emptied = [answer(1, Standing::NotBegun), answer(2, Standing::OtherDirectory)];
        assert!(verdict(&emptied).unwrap_err().contains("another data directory"));
        let gone = [answer(1, Standing::Member), answer(2, Standing::Removed)];
        assert!(verdict(&gone).unwrap_err().contains("was removed"));
    }

    #[test]
    fn a_number_belongs_to_one_data_directory() {
        let founders = Members::from([(NodeId(1), record(10)), (NodeId(2), record(20))]);
        let mut state = ControlState::default();
        let ask = |state: &ControlState, id, token| {
            standing(state, &founders, None, true, (NodeId(id), token))
        };
        // What is written down at the founding is enough until the log says the same.
        assert_eq!(ask(&state, 2, 20), Standing::Founder);
        assert_eq!(ask(&state, 2, 21), Standing::OtherDirectory);
        assert_eq!(ask(&state, 4, 40), Standing::Stranger);
        state.apply(&ControlCommand::FoundCoordinators { founders: founders.clone() });
        let (id, address) = (NodeId(4), "h:40".to_owned());
        state.apply(&ControlCommand::AddCoordinator {
            id,
            address: address.replace("40", "4"),
            token: 40,
        });
        assert_eq!(ask(&state, 4, 40), Standing::Member);
        assert_eq!(ask(&state, 4, 41), Standing::OtherDirectory);
        let before = standing(&state, &founders, None, false, (NodeId(4), 40));
        assert_eq!(before, Standing::NotBegun);
        let unwritten =
            standing(&ControlState::default(), &Members::new(), None, true, (NodeId(1), 10));
        assert_eq!(unwritten, Standing::OtherDirectory);
    }

    #[test]
    fn one_that_is_to_go_votes_until_the_group_has_changed() {
        let founders = Members::from([(NodeId(1), record(1)), (NodeId(2), record(2))]);
        let mut state = ControlState::default();
        state.apply(&ControlCommand::FoundCoordinators { founders: founders.clone() });
        let peers = |ids: &[u64]| ids.iter().map(|id| (*id, format!("h:{id}"))).collect();
        let both = crate::run::first_descriptor(&peers(&[1, 2]));
        let one = crate::run::first_descriptor(&peers(&[1]));
        state.apply(&ControlCommand::RemoveCoordinator { id: NodeId(2) });
        let ask = |group| standing(&state, &founders, Some(group), true, (NodeId(2), 2));
        assert_eq!(ask(&both), Standing::Founder);
        assert_eq!(ask(&one), Standing::Removed);
    }
}
