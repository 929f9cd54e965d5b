//! What one coordinator is for another: how a group is founded, joined, and kept free of those that
//! have forgotten what they promised.
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

use crate::members::{CoordinatorRecord, Coordinators, voter};
use crate::state::ControlState;
use kvdb_model::planted::{Bug, has};
use kvdb_model::{
    KeyRange, KeyspaceId, MembershipEpoch, NodeId, RangeEpoch, ShardDescriptor, ShardId,
};
use std::collections::BTreeMap;
use thiserror::Error;

/// What the process that greets is for the one that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The one that answers has no group itself yet.
    NotBegun,
    /// It founded the group, with this data directory.
    Founder,
    /// It was added to the group, with this data directory.
    Member,
    /// The group has no coordinator of this number.
    Stranger,
    /// Its number belongs to another data directory.
    OtherDirectory,
    /// It was taken from the group.
    Removed,
    /// The group was recovered without it.
    LeftBehind,
}

/// What a coordinator knows when another one greets it.
#[derive(Clone, Copy, Debug)]
pub struct Knowledge<'a> {
    /// Its number.
    pub id: NodeId,
    /// Made with its data directory.
    pub token: u128,
    /// Where the others were when it was started first, itself included.
    pub peers: &'a BTreeMap<NodeId, String>,
    /// With whom it has founded its group, if it has.
    pub founders: &'a Coordinators,
    /// The state as it has applied it.
    pub state: &'a ControlState,
    /// The group as it has applied it.
    pub group: Option<&'a ShardDescriptor>,
    /// Whether it leads the group, and can do without whoever isn't in it any more.
    pub is_settled: bool,
    /// Whether it has a replica of the group at all.
    pub has_begun: bool,
}

impl Knowledge<'_> {
    /// What it answers to the process of this number and data directory.
    pub fn answer_to(&self, id: NodeId, token: u128) -> Greeted {
        let standing = self.standing_of(id, token);
        let members = match standing {
            Standing::NotBegun => self.peers.clone(),
            Standing::Founder | Standing::Member => self.members(),
            Standing::Stranger
            | Standing::OtherDirectory
            | Standing::Removed
            | Standing::LeftBehind => BTreeMap::new(),
        };
        let founders = match standing {
            Standing::Founder => self.founders.clone(),
            _ => Coordinators::new(),
        };
        Greeted { id: self.id, token: self.token, standing, members, founders }
    }

    /// Those that are wanted, and those that are to go and haven't: one of these may lead still, and
    /// wait for the newcomer to answer it.
    fn members(&self) -> BTreeMap<NodeId, String> {
        let votes = |id| self.group.is_some_and(|group| group.replica_on(id).is_some());
        let known = self.state.coordinators().iter();
        let known = known.filter(|(id, record)| !record.is_removed || votes(**id));
        known.map(|(id, record)| (*id, record.address.clone())).collect()
    }

    fn standing_of(&self, id: NodeId, token: u128) -> Standing {
        if !self.has_begun {
            return Standing::NotBegun;
        }
        if self.state.is_left_behind(id) {
            return Standing::LeftBehind;
        }
        let is_founder = self.founders.get(&id).is_some_and(|founder| founder.token == token);
        let written = self.state.coordinators();
        let known = if written.is_empty() { self.founders } else { written };
        match known.get(&id) {
            // It has joined, and its state is on the way: others know.
            None if known.is_empty() && self.group.is_none() => Standing::Stranger,
            // A group that never wrote down who founded it: whoever has no data may have lost it.
            None if known.is_empty() => Standing::OtherDirectory,
            None => Standing::Stranger,
            Some(record) if record.token != token && !has(Bug::EmptiedDirectoryTrusted) => {
                Standing::OtherDirectory
            }
            // It votes until the group has changed, and may be needed for a moment after that.
            Some(record)
                if record.is_removed
                    && self.group.is_some_and(|group| group.replica_on(id).is_none()) =>
            {
                if self.is_settled { Standing::Removed } else { Standing::Stranger }
            }
            Some(_)
                if is_founder
                    || has(Bug::EmptiedDirectoryTrusted) && self.founders.contains_key(&id) =>
            {
                Standing::Founder
            }
            Some(_) => Standing::Member,
        }
    }
}

/// How a coordinator without data begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// All are new: they found a group.
    Found(Coordinators),
    /// It is a founder, and another one has begun already: with these.
    Follow(Coordinators),
    /// It was added: its replica comes from the others.
    Join,
}

/// What another coordinator has answered to a greeting.
#[derive(Clone, Debug)]
pub struct Greeted {
    /// Who it is.
    pub id: NodeId,
    /// Made with its data directory.
    pub token: u128,
    /// What the process that greets is for it.
    pub standing: Standing,
    /// Where the others are, if the process that greets is one of them; with whom it means to
    /// begin itself, if it hasn't.
    pub members: BTreeMap<NodeId, String>,
    /// With whom the group was founded, if the process that greets was one of them.
    pub founders: Coordinators,
}

/// Why a coordinator must not begin.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MustNotBegin {
    /// What it has promised is gone.
    #[error(
        "coordinator {0} has had another data directory: what it has promised there is gone, and it must not come \
         back without. Give it that directory again, or `kvdb admin coordinators remove {0}` and start this one \
         under a new number"
    )]
    OtherDirectory(NodeId),
    /// The group goes on without it.
    #[error(
        "coordinator {0} was removed from its group, and its number stays taken; its data directory can be deleted"
    )]
    Removed(NodeId),
    /// The group was recovered without it.
    #[error(
        "coordinator {0} was left behind: the group of coordinators has lost its majority, was recovered from another \
         one alone (`--recover-alone`) and goes on in a newer generation. This directory must not be used again: \
         delete it, and start a new coordinator under a new number"
    )]
    LeftBehind(NodeId),
    /// Two that begin with different groups in mind would be two groups.
    #[error(
        "the --peers of coordinator {other} names {theirs}, that of this one {own}: all must name the same at their \
         first start"
    )]
    OtherPeers {
        /// Who has others in mind.
        other: NodeId,
        /// Whom that one names.
        theirs: String,
        /// Whom this one names.
        own: String,
    },
}

/// What comes of the answers, if it can be told.
///
/// # Errors
/// [`MustNotBegin`].
pub fn decide(
    own: NodeId,
    peers: &BTreeMap<NodeId, String>,
    answers: &[Greeted],
) -> Result<Option<Beginning>, MustNotBegin> {
    let any = |standing| answers.iter().any(|answer| answer.standing == standing);
    if any(Standing::OtherDirectory) {
        return Err(MustNotBegin::OtherDirectory(own));
    }
    if any(Standing::LeftBehind) {
        return Err(MustNotBegin::LeftBehind(own));
    }
    if any(Standing::Removed) {
        return Err(MustNotBegin::Removed(own));
    }
    if let Some(answer) = answers.iter().find(|answer| answer.standing == Standing::Founder) {
        same_group(answer.id, answer.founders.keys(), peers)?;
        return Ok(Some(Beginning::Follow(answer.founders.clone())));
    }
    if any(Standing::Member) {
        return Ok(Some(Beginning::Join));
    }
    if any(Standing::Stranger) {
        // There is a group, which doesn't know this one yet; whoever else waits to be added matters
        // nothing.
        return Ok(None);
    }
    for answer in answers.iter().filter(|answer| answer.standing == Standing::NotBegun) {
        same_group(answer.id, answer.members.keys(), peers)?;
    }
    let all_are_new = answers.len() + 1 == peers.len()
        && answers.iter().all(|answer| answer.standing == Standing::NotBegun);
    let founders = || {
        let record = |answer: &Greeted| CoordinatorRecord {
            address: peers.get(&answer.id).cloned().unwrap_or_default(),
            token: answer.token,
            is_removed: false,
        };
        answers.iter().map(|answer| (answer.id, record(answer))).collect()
    };
    Ok(all_are_new.then(|| Beginning::Found(founders())))
}

fn same_group<'a>(
    other: NodeId,
    theirs: impl Iterator<Item = &'a NodeId> + Clone,
    peers: &BTreeMap<NodeId, String>,
) -> Result<(), MustNotBegin> {
    if theirs.clone().eq(peers.keys()) {
        return Ok(());
    }
    let names = |ids: Vec<String>| ids.join(", ");
    Err(MustNotBegin::OtherPeers {
        other,
        theirs: names(theirs.map(NodeId::to_string).collect()),
        own: names(peers.keys().map(NodeId::to_string).collect()),
    })
}

/// The group as its founders create it: a voter for each of them.
pub fn first_descriptor(founders: impl Iterator<Item = NodeId>) -> ShardDescriptor {
    ShardDescriptor {
        shard_id: ShardId::CONTROL,
        keyspace_id: KeyspaceId(0),
        range: KeyRange::ALL,
        range_epoch: RangeEpoch(1),
        membership_epoch: MembershipEpoch(1),
        replicas: founders.map(voter).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::ControlCommand;

    fn answer(id: u64, standing: Standing) -> Greeted {
        let token = u128::from(id) * 10;
        Greeted { id: NodeId(id), token, standing, members: three(), founders: Coordinators::new() }
    }

    fn record(token: u128) -> CoordinatorRecord {
        CoordinatorRecord { address: format!("h:{token}"), token, is_removed: false }
    }

    fn three() -> BTreeMap<NodeId, String> {
        (1..=3).map(|id| (NodeId(id), format!("h:{id}"))).collect()
    }

    fn verdict(answers: &[Greeted]) -> Result<Option<Beginning>, String> {
        let decided = decide(NodeId(3), &three(), answers);
        decided.map_err(|why| why.to_string())
    }

    #[test]
    fn coordinators_with_different_groups_in_mind_found_none() {
        let members =
            BTreeMap::from([(NodeId(1), "h:1".to_owned()), (NodeId(3), "h:3".to_owned())]);
        let other = Greeted { members, ..answer(1, Standing::NotBegun) };
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
        // Two that wait to be added don't name each other.
        let members = BTreeMap::from([(NodeId(5), "h:5".to_owned())]);
        let other = Greeted { members, ..answer(5, Standing::NotBegun) };
        assert_eq!(verdict(&[other, answer(2, Standing::Stranger)]), Ok(None));
    }

    #[test]
    fn one_answer_is_enough_to_join_and_one_to_be_refused() {
        // Whoever follows must know the founders as well: it may be the one to lead.
        let founders: Coordinators = (1..=3).map(|id| (NodeId(id), record(id.into()))).collect();
        let second = Greeted { founders: founders.clone(), ..answer(2, Standing::Founder) };
        let founder = [answer(1, Standing::NotBegun), second];
        assert_eq!(verdict(&founder), Ok(Some(Beginning::Follow(founders.clone()))));
        // With the group that was founded, and no other.
        let founders = founders.into_iter().filter(|(id, _)| id.0 > 1).collect();
        let other = Greeted { founders, ..answer(2, Standing::Founder) };
        assert!(verdict(&[other]).unwrap_err().contains("names 2, 3, that of this one 1, 2, 3"));
        assert_eq!(verdict(&[answer(1, Standing::Member)]), Ok(Some(Beginning::Join)));
        let emptied = [answer(1, Standing::NotBegun), answer(2, Standing::OtherDirectory)];
        assert!(verdict(&emptied).unwrap_err().contains("another data directory"));
        let gone = [answer(1, Standing::Member), answer(2, Standing::Removed)];
        assert!(verdict(&gone).unwrap_err().contains("was removed"));
    }

    /// What a coordinator that has begun, and knows this, says of another.
    fn ask(
        state: &ControlState,
        founders: &Coordinators,
        group: Option<&ShardDescriptor>,
        is_settled: bool,
        (id, token): (u64, u128),
    ) -> Greeted {
        let knowledge = Knowledge {
            id: NodeId(1),
            token: 10,
            peers: &three(),
            founders,
            state,
            group,
            is_settled,
            has_begun: true,
        };
        knowledge.answer_to(NodeId(id), token)
    }

    #[test]
    fn a_number_belongs_to_one_data_directory() {
        let founders = Coordinators::from([(NodeId(1), record(10)), (NodeId(2), record(20))]);
        let mut state = ControlState::default();
        let standing = |state: &ControlState, id, token| {
            ask(state, &founders, None, false, (id, token)).standing
        };
        // What is written down at the founding is enough until the log says the same.
        assert_eq!(standing(&state, 2, 20), Standing::Founder);
        assert_eq!(standing(&state, 2, 21), Standing::OtherDirectory);
        assert_eq!(standing(&state, 4, 40), Standing::Stranger);
        state.apply(&ControlCommand::FoundCoordinators { founders: founders.clone() });
        let (id, address, token) = (NodeId(4), "h:4".to_owned(), 40);
        state.apply(&ControlCommand::AddCoordinator { id, address, token });
        assert_eq!(standing(&state, 4, 40), Standing::Member);
        assert_eq!(standing(&state, 4, 41), Standing::OtherDirectory);
    }

    #[test]
    fn one_that_waits_for_its_state_sends_nobody_away() {
        let (state, nobody) = (ControlState::default(), Coordinators::new());
        let standing = |group| ask(&state, &nobody, group, false, (4, 40)).standing;
        assert_eq!(standing(None), Standing::Stranger);
        // With its state, and no word of founders in it, it can't tell whether this one is new.
        let group = first_descriptor([NodeId(1)].into_iter());
        assert_eq!(standing(Some(&group)), Standing::OtherDirectory);
    }

    #[test]
    fn one_that_has_not_begun_says_with_whom_it_means_to() {
        let (founders, state) = (Coordinators::new(), ControlState::default());
        let knowledge = Knowledge {
            id: NodeId(1),
            token: 10,
            peers: &three(),
            founders: &founders,
            state: &state,
            group: None,
            is_settled: false,
            has_begun: false,
        };
        let answer = knowledge.answer_to(NodeId(4), 40);
        assert_eq!((answer.standing, answer.members), (Standing::NotBegun, three()));
    }

    #[test]
    fn one_that_the_group_was_recovered_without_is_told_so_with_its_directory_and_without() {
        let founders = Coordinators::from([(NodeId(1), record(1)), (NodeId(2), record(2))]);
        let mut state = ControlState::default();
        state.apply(&ControlCommand::FoundCoordinators { founders: founders.clone() });
        let generation = kvdb_model::Generation { number: 1, nonce: 7 };
        let (id, address, token) = (NodeId(1), "h:1".to_owned(), 1);
        state.apply(&ControlCommand::RecoverAlone { id, address, token, generation });
        let group = first_descriptor([NodeId(1)].into_iter());
        for token in [2, 22] {
            let told = ask(&state, &founders, Some(&group), false, (2, token));
            assert_eq!(told.standing, Standing::LeftBehind);
            assert!(verdict(&[told]).unwrap_err().contains("coordinator 3 was left behind"));
        }
    }

    #[test]
    fn one_that_is_to_go_votes_and_is_told_of_until_the_group_has_changed() {
        let founders = Coordinators::from([(NodeId(1), record(1)), (NodeId(2), record(2))]);
        let mut state = ControlState::default();
        state.apply(&ControlCommand::FoundCoordinators { founders: founders.clone() });
        let (id, address, token) = (NodeId(4), "h:4".to_owned(), 40);
        state.apply(&ControlCommand::AddCoordinator { id, address, token });
        let both = first_descriptor([1, 2].map(NodeId).into_iter());
        let one = first_descriptor([NodeId(1)].into_iter());
        state.apply(&ControlCommand::RemoveCoordinator { id: NodeId(2) });
        let standing =
            |group, is_settled| ask(&state, &founders, Some(group), is_settled, (2, 2)).standing;
        assert_eq!(standing(&both, true), Standing::Founder);
        assert_eq!(standing(&one, false), Standing::Stranger, "it may be needed still");
        assert_eq!(standing(&one, true), Standing::Removed);
        // It may lead, and a newcomer must be able to answer it.
        let told = |group| ask(&state, &founders, Some(group), true, (4, 40)).members;
        assert_eq!(told(&both).into_keys().collect::<Vec<_>>(), [1, 2, 4].map(NodeId));
        assert_eq!(told(&one).into_keys().collect::<Vec<_>>(), [1, 4].map(NodeId));
    }
}
