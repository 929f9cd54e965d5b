//! How a node that starts comes to take part: whom it asks, when, and what follows from the answers.
//!
//! Until then its replicas are held back. The coordinators are asked, who compare and swap. Where none of them
//! answers, a majority of the other voters of each of its groups is enough: so a restart of everything needs no
//! coordinator. One that starts elsewhere than the process before it always needs that majority: who vouches for it
//! turns the older one away, so that the two never find a majority each. A replica that is alone in its group has
//! nobody to turn the other one away. It goes on if the process before has ended in order, or if somebody says that
//! its directory was moved.
//!
//! Nothing is sent from here: [`Entry::asks`] gives questions, whoever has the network puts them, and brings the
//! answers. There is at most one question to the coordinators and one to peers at a time.

use crate::start::{Start, Succession};
use crate::starts::{NotVouched, Others};
use kvdb_model::planted::{Bug, has};
use kvdb_model::{NodeId, ShardId};
use std::collections::BTreeSet;

/// The coordinators are given so long before peers are asked to vouch.
const COORDINATORS_FIRST_US: u64 = 500_000;
/// Between two questions to the coordinators.
const REGISTER_AGAIN_US: u64 = 200_000;
/// Between two questions to peers.
const ASK_AGAIN_US: u64 = 300_000;
/// Peers are given so long to object to a start.
const OBJECTIONS_US: u64 = 300_000;
/// Peers are given so long to answer anything else.
const PATIENCE_US: u64 = 1_000_000;

/// What is to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// The coordinators: to accept the start.
    Coordinators {
        /// Only whether they would.
        only_asks: bool,
    },
    /// Other nodes: to vouch for the start.
    Peers {
        /// Which.
        nodes: BTreeSet<NodeId>,
        /// The process before it is known to be gone, or not to count any more.
        succeeds: bool,
        /// Only whether they would: nobody is turned away yet. Otherwise the number of the start is spent first.
        only_asks: bool,
        /// What isn't answered by then won't be waited for, in microseconds.
        patience_us: u64,
    },
}

/// What the coordinators say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It is the start that counts.
    Accepted {
        /// On how many older copies that somebody has accepted the node was started, this one included.
        copies: u64,
    },
    /// It would be.
    Would {
        /// As one on an older copy that somebody has accepted.
        as_copy: bool,
    },
    /// It never will be.
    Refused,
    /// Not now.
    KeptOut,
    /// None that leads answers.
    Nobody,
}

/// What a peer says; `None`: nothing.
pub type Answer = Option<Result<(), NotVouched>>;

/// How a start takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The coordinators have accepted it.
    pub by_coordinators: bool,
    /// Shards whose only replica may be alive elsewhere.
    pub held: BTreeSet<ShardId>,
}

/// Why a start never takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The coordinators refuse it.
    Coordinators,
    /// A peer knows that its directory is older.
    Peer(NodeId, String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// The process before is gone. Who knows that the directory is older? The coordinators may not: a start that was
    /// vouched for without them says nothing to them until it is accepted.
    Objections,
    /// Somebody does; unless it was accepted as it is.
    Objected(NodeId, String),
    /// Whoever answers first: the coordinators, or enough peers.
    Entering,
    /// The process before may be alive: nobody is turned away before it is sure that enough others would vouch.
    Asking,
    /// Would they?
    Canvassing,
    /// They would: the coordinators swap the start.
    Registering,
    /// Enough others turn the older one away.
    Fencing,
    /// Of an older copy that somebody has accepted no replica takes part: nobody else has to vouch for them.
    OnCopy,
}

/// When something can be asked next; `None`: it is being asked.
type Due = Option<u64>;

/// A start on its way to be heard.
#[derive(Clone, Debug)]
pub struct Entry {
    follows_end: bool,
    moved: bool,
    copies: u64,
    phase: Phase,
    since_us: u64,
    coordinators: Due,
    peers: Due,
    is_kept_out: bool,
    by_coordinators: bool,
    vouched: BTreeSet<NodeId>,
    end: Option<Result<Heard, Refused>>,
}

impl Entry {
    /// Begins. `moved`: somebody says that nobody runs on the directory elsewhere. `copies`: on how many accepted older
    /// copies the directory knows to have been started. Times are microseconds of one clock that doesn't jump.
    pub fn new(start: &Start, moved: bool, copies: u64, now_us: u64) -> Self {
        let elsewhere = start.succession() == Succession::Elsewhere;
        let mut entry = Entry {
            follows_end: start.has_ended,
            moved,
            copies,
            phase: if elsewhere { Phase::Asking } else { Phase::Objections },
            since_us: now_us,
            coordinators: Some(now_us),
            peers: Some(now_us),
            is_kept_out: false,
            by_coordinators: false,
            vouched: BTreeSet::new(),
            end: None,
        };
        if has(Bug::StartNotMute) {
            entry.is_heard(BTreeSet::new());
        }
        entry
    }

    /// How it has ended, once it has.
    pub fn end(&self) -> Option<&Result<Heard, Refused>> {
        self.end.as_ref()
    }

    /// What is to be asked now. `others`: the other voters of each group of the node, as it knows them.
    pub fn asks(&mut self, others: &BTreeSet<Others>, now_us: u64) -> Vec<Question> {
        if self.end.is_some() {
            return Vec::new();
        }
        let is_due = |due: Due| due.is_some_and(|due_us| now_us >= due_us);
        let mut questions = Vec::new();
        if is_due(self.coordinators_due()) {
            self.coordinators = None;
            let only_asks = matches!(self.phase, Phase::Objected(..) | Phase::Asking);
            questions.push(Question::Coordinators { only_asks });
        }
        if is_due(self.peers_due(others)) {
            let nodes = self.untold(others);
            let only_asks = matches!(self.phase, Phase::Objections | Phase::Canvassing);
            let succeeds = match self.phase {
                Phase::Objections | Phase::Entering => true,
                _ => self.by_coordinators,
            };
            let patience_us = match self.phase {
                Phase::Objections => OBJECTIONS_US,
                _ => PATIENCE_US,
            };
            self.peers = None;
            questions.push(Question::Peers { nodes, succeeds, only_asks, patience_us });
        }
        questions
    }

    /// When [`Entry::asks`] has more to ask, if nobody answers before; `None`: only then.
    pub fn asks_next_us(&self, others: &BTreeSet<Others>) -> Option<u64> {
        self.coordinators_due().into_iter().chain(self.peers_due(others)).min()
    }

    fn coordinators_due(&self) -> Due {
        match self.phase {
            Phase::Objections | Phase::Canvassing | Phase::Fencing => None,
            _ => self.coordinators,
        }
    }

    fn peers_due(&self, others: &BTreeSet<Others>) -> Due {
        match self.phase {
            Phase::Objections | Phase::Canvassing | Phase::Fencing => self.peers,
            // The coordinators know better: if they refuse it, nobody else is asked. And of a directory that knows no
            // group to vote in only they can tell whether it did so later.
            Phase::Entering if !self.is_kept_out && !others.is_empty() => {
                let coordinators_first_us = self.since_us + COORDINATORS_FIRST_US;
                self.peers.map(|due_us| due_us.max(coordinators_first_us))
            }
            _ => None,
        }
    }

    /// Whom it asks: all of them for objections; later those who haven't vouched, where more have to.
    fn untold(&self, others: &BTreeSet<Others>) -> BTreeSet<NodeId> {
        let needs_all = self.phase == Phase::Objections;
        let lacks = |others: &&Others| needs_all || !others.are_enough(&self.vouched);
        let nodes = others.iter().filter(lacks).flat_map(|others| &others.nodes);
        nodes.filter(|node| !self.vouched.contains(node)).copied().collect()
    }

    /// The coordinators have answered.
    pub fn coordinators_say(&mut self, word: Word, others: &BTreeSet<Others>, now_us: u64) {
        if self.coordinators.is_some() || self.end.is_some() {
            return;
        }
        self.coordinators = Some(now_us + REGISTER_AGAIN_US);
        self.is_kept_out = word == Word::KeptOut;
        if word == Word::Refused && !matches!(self.phase, Phase::Objected(..)) {
            self.end = Some(Err(Refused::Coordinators));
            return;
        }
        match (self.phase.clone(), word) {
            (Phase::Objected(..) | Phase::Asking, Word::Would { as_copy: true }) => {
                self.goes_to(Phase::OnCopy, now_us);
            }
            (Phase::Objected(node, why), _) => self.end = Some(Err(Refused::Peer(node, why))),
            (Phase::Asking, Word::Would { .. } | Word::Nobody) => {
                self.by_coordinators = word != Word::Nobody;
                // Of a replica that is alone only the coordinators know whether another process may run; and whether
                // it votes, where the directory knows no group.
                let is_alone = others.is_empty() || others.iter().any(|one| one.nodes.is_empty());
                match self.by_coordinators || self.moved || !is_alone {
                    true => self.goes_to(Phase::Canvassing, now_us),
                    false => self.coordinators = Some(now_us + ASK_AGAIN_US),
                }
            }
            (Phase::Asking, _) => self.coordinators = Some(now_us + ASK_AGAIN_US),
            (Phase::Registering, Word::Accepted { copies }) if copies <= self.copies => {
                self.goes_to(Phase::Fencing, now_us);
                if has(Bug::OlderNotFenced) {
                    self.is_heard(BTreeSet::new());
                }
            }
            (Phase::Entering | Phase::Registering | Phase::OnCopy, Word::Accepted { .. }) => {
                self.by_coordinators = true;
                self.is_heard(BTreeSet::new());
            }
            _ => {}
        }
    }

    /// All of those that were asked have answered, or won't.
    pub fn peers_say(
        &mut self,
        answers: Vec<(NodeId, Answer)>,
        others: &BTreeSet<Others>,
        now_us: u64,
    ) {
        if self.peers.is_some() || self.end.is_some() {
            return;
        }
        self.peers = Some(now_us + ASK_AGAIN_US);
        if matches!(self.phase, Phase::Objections | Phase::Entering) {
            let objection = answers.iter().find_map(|(node, answer)| match answer {
                Some(Err(NotVouched::Older(why))) => Some((*node, why.clone())),
                _ => None,
            });
            if let Some((node, why)) = objection {
                return self.goes_to(Phase::Objected(node, why), now_us);
            }
        }
        if self.phase == Phase::Objections {
            return self.goes_to(Phase::Entering, now_us);
        }
        let vouched = answers.into_iter().filter(|(_, answer)| matches!(answer, Some(Ok(()))));
        self.vouched.extend(vouched.map(|(node, _)| node));
        let are_enough = others.iter().all(|others| others.are_enough(&self.vouched));
        match self.phase {
            Phase::Canvassing if are_enough && self.by_coordinators => {
                self.goes_to(Phase::Registering, now_us);
            }
            Phase::Canvassing if are_enough => self.goes_to(Phase::Fencing, now_us),
            Phase::Canvassing => {
                self.goes_to(Phase::Asking, now_us);
                self.coordinators = Some(now_us + ASK_AGAIN_US);
            }
            Phase::Entering if are_enough => {
                self.by_coordinators = false;
                self.is_heard(BTreeSet::new());
            }
            Phase::Fencing if are_enough => {
                let is_alone = self.moved || self.by_coordinators && self.follows_end;
                let lone = others.iter().filter(|others| others.nodes.is_empty());
                let held = lone.filter(|_| !is_alone).map(|others| others.shard);
                self.is_heard(held.collect());
            }
            _ => {}
        }
    }

    /// Answers to what was asked before are no answers to what is asked next.
    fn goes_to(&mut self, phase: Phase, now_us: u64) {
        self.phase = phase;
        self.since_us = now_us;
        self.vouched.clear();
        (self.coordinators, self.peers) = (Some(now_us), Some(now_us));
    }

    fn is_heard(&mut self, held: BTreeSet<ShardId>) {
        self.end = Some(Ok(Heard { by_coordinators: self.by_coordinators, held }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::start::Place;

    const HERE: Place = Place { boot: 1, file: 2, machine: 3 };

    /// The second start of a directory, after one that took part in `there`.
    fn start(there: Place) -> Start {
        let mut first = Start::after(None, 10, there);
        first.takes_part(true);
        Start::after(Some(first), 20, HERE)
    }

    fn group(shard: u64, nodes: &[u64]) -> Others {
        let nodes = nodes.iter().map(|node| NodeId(*node)).collect();
        Others { shard: ShardId(shard), nodes }
    }

    /// A node of three, with the questions and answers of one story.
    struct Story {
        entry: Entry,
        others: BTreeSet<Others>,
        now_us: u64,
    }

    impl Story {
        fn new(there: Place, others: &[Others]) -> Self {
            let entry = Entry::new(&start(there), false, 0, 0);
            Story { entry, others: others.iter().cloned().collect(), now_us: 0 }
        }

        fn asks(&mut self) -> Vec<Question> {
            self.entry.asks(&self.others, self.now_us)
        }

        /// Lets time pass until something is asked: as long as it says, and no shorter.
        fn waits(&mut self) -> Vec<Question> {
            let Some(next_us) = self.entry.asks_next_us(&self.others) else { return Vec::new() };
            if next_us > self.now_us {
                self.now_us = next_us - 1;
                assert_eq!(self.asks(), []);
                self.now_us = next_us;
            }
            self.asks()
        }

        fn word(&mut self, word: Word) {
            self.entry.coordinators_say(word, &self.others, self.now_us);
        }

        fn answers(&mut self, answers: &[(u64, Answer)]) {
            let answers = answers.iter().map(|(node, answer)| (NodeId(*node), answer.clone()));
            self.entry.peers_say(answers.collect(), &self.others, self.now_us);
        }

        fn is_heard(&self, by_coordinators: bool, held: &[u64]) {
            let held = held.iter().map(|shard| ShardId(*shard)).collect();
            assert_eq!(self.entry.end(), Some(&Ok(Heard { by_coordinators, held })));
        }
    }

    fn peers(nodes: &[u64], succeeds: bool, only_asks: bool) -> Question {
        let nodes = nodes.iter().map(|node| NodeId(*node)).collect();
        Question::Peers { nodes, succeeds, only_asks, patience_us: PATIENCE_US }
    }

    fn objections(nodes: &[u64]) -> Question {
        let nodes = nodes.iter().map(|node| NodeId(*node)).collect();
        let (succeeds, only_asks, patience_us) = (true, true, OBJECTIONS_US);
        Question::Peers { nodes, succeeds, only_asks, patience_us }
    }

    const ASKED: Question = Question::Coordinators { only_asks: true };
    const REGISTERS: Question = Question::Coordinators { only_asks: false };
    const YES: Answer = Some(Ok(()));

    fn older() -> Answer {
        Some(Err(NotVouched::Older("it is older".to_owned())))
    }

    #[test]
    fn one_in_the_same_place_asks_for_objections_and_then_the_coordinators() {
        let mut story = Story::new(HERE, &[group(4, &[2, 3])]);
        assert_eq!(story.asks(), [objections(&[2, 3])]);
        assert_eq!(story.asks(), []);
        story.answers(&[(2, None), (3, YES)]);
        assert_eq!(story.asks(), [REGISTERS]);
        story.word(Word::Nobody);
        assert_eq!(story.asks(), []);
        assert_eq!(story.waits(), [REGISTERS]);
        story.word(Word::Accepted { copies: 0 });
        story.is_heard(true, &[]);
    }

    #[test]
    fn without_coordinators_a_majority_of_the_others_is_enough_and_less_is_not() {
        let mut story = Story::new(HERE, &[group(4, &[2, 3]), group(5, &[2, 3, 4, 5])]);
        assert_eq!(story.asks(), [objections(&[2, 3, 4, 5])]);
        story.answers(&[]);
        assert_eq!(story.asks(), [REGISTERS]);
        // They don't answer at all.
        assert_eq!(story.waits(), [peers(&[2, 3, 4, 5], true, false)]);
        assert!(story.now_us >= COORDINATORS_FIRST_US);
        story.answers(&[(2, YES), (3, None), (4, YES), (5, YES)]);
        // Only of the first group too few have vouched.
        assert_eq!(story.waits(), [peers(&[3], true, false)]);
        story.answers(&[(3, YES)]);
        story.is_heard(false, &[]);
    }

    #[test]
    fn peers_are_not_asked_while_the_coordinators_keep_it_out() {
        let mut story = Story::new(HERE, &[group(4, &[2, 3])]);
        story.asks();
        story.answers(&[]);
        for _ in 0..10 {
            assert_eq!(story.waits(), [REGISTERS]);
            story.word(Word::KeptOut);
        }
        assert!(story.now_us > COORDINATORS_FIRST_US);
        assert_eq!(story.waits(), [REGISTERS]);
        story.word(Word::Refused);
        assert_eq!(story.entry.end(), Some(&Err(Refused::Coordinators)));
    }

    #[test]
    fn a_directory_that_knows_no_group_waits_for_the_coordinators() {
        let mut story = Story::new(HERE, &[]);
        assert_eq!(story.asks(), [objections(&[])]);
        story.answers(&[]);
        for _ in 0..20 {
            assert_eq!(story.waits(), [REGISTERS]);
            story.word(Word::Nobody);
        }
        let elsewhere = Place { file: 9, ..HERE };
        let mut story = Story::new(elsewhere, &[]);
        for _ in 0..20 {
            assert_eq!(story.waits(), [ASKED]);
            story.word(Word::Nobody);
        }
    }

    #[test]
    fn an_objection_ends_it_unless_somebody_has_accepted_the_directory() {
        for (word, ends) in [(Word::Would { as_copy: false }, true), (Word::Nobody, true)] {
            let mut story = Story::new(HERE, &[group(4, &[2, 3])]);
            story.asks();
            story.answers(&[(2, YES), (3, older())]);
            assert_eq!(story.asks(), [ASKED]);
            story.word(word);
            let refused = Refused::Peer(NodeId(3), "it is older".to_owned());
            assert_eq!(story.entry.end() == Some(&Err(refused)), ends);
        }
        let mut story = Story::new(HERE, &[group(4, &[2, 3])]);
        story.asks();
        story.answers(&[(3, older())]);
        story.asks();
        story.word(Word::Would { as_copy: true });
        assert_eq!(story.asks(), [REGISTERS]);
        story.word(Word::Accepted { copies: 1 });
        story.is_heard(true, &[]);
    }

    #[test]
    fn an_objection_that_comes_late_ends_it_as_well() {
        let mut story = Story::new(HERE, &[group(4, &[2, 3])]);
        story.asks();
        // Nobody can be reached yet.
        story.answers(&[(2, None), (3, None)]);
        assert_eq!(story.asks(), [REGISTERS]);
        assert_eq!(story.waits(), [peers(&[2, 3], true, false)]);
        story.answers(&[(2, None), (3, older())]);
        // What the coordinators say to the question from before is no answer to this one.
        assert_eq!(story.asks(), [ASKED]);
        story.word(Word::Would { as_copy: false });
        let refused = Refused::Peer(NodeId(3), "it is older".to_owned());
        assert_eq!(story.entry.end(), Some(&Err(refused)));
    }

    #[test]
    fn one_elsewhere_turns_nobody_away_before_enough_would_vouch_and_acknowledges_only_after_that()
    {
        let elsewhere = Place { file: 9, ..HERE };
        let mut story = Story::new(elsewhere, &[group(4, &[2, 3])]);
        assert_eq!(story.asks(), [ASKED]);
        story.word(Word::KeptOut);
        assert_eq!(story.waits(), [ASKED]);
        story.word(Word::Would { as_copy: false });
        assert_eq!(story.asks(), [peers(&[2, 3], true, true)]);
        story.answers(&[(2, YES), (3, None)]);
        // Anew: what was said before may not be so any more.
        assert_eq!(story.waits(), [ASKED]);
        story.word(Word::Would { as_copy: false });
        assert_eq!(story.asks(), [peers(&[2, 3], true, true)]);
        story.answers(&[(2, YES), (3, YES)]);
        assert_eq!(story.asks(), [REGISTERS]);
        story.word(Word::Accepted { copies: 0 });
        assert_eq!(story.asks(), [peers(&[2, 3], true, false)]);
        story.answers(&[(2, YES), (3, None)]);
        assert_eq!(story.entry.end(), None);
        assert_eq!(story.waits(), [peers(&[3], true, false)]);
        story.answers(&[(3, YES)]);
        story.is_heard(true, &[]);
    }

    #[test]
    fn one_elsewhere_goes_on_without_coordinators_but_for_replicas_that_are_alone() {
        let elsewhere = Place { file: 9, ..HERE };
        let mut story = Story::new(elsewhere, &[group(4, &[2, 3])]);
        story.asks();
        story.word(Word::Nobody);
        // A process that is heard still may be the older one: it isn't known to be gone.
        assert_eq!(story.asks(), [peers(&[2, 3], false, true)]);
        story.answers(&[(2, YES), (3, YES)]);
        assert_eq!(story.asks(), [peers(&[2, 3], false, false)]);
        story.answers(&[(2, YES), (3, YES)]);
        story.is_heard(false, &[]);

        let mut story = Story::new(elsewhere, &[group(4, &[2, 3]), group(6, &[])]);
        story.asks();
        story.word(Word::Nobody);
        assert_eq!(story.waits(), [ASKED]);
        story.word(Word::Would { as_copy: false });
        story.asks();
        story.answers(&[(2, YES), (3, YES)]);
        story.asks();
        story.word(Word::Accepted { copies: 0 });
        story.asks();
        story.answers(&[(2, YES), (3, YES)]);
        story.is_heard(true, &[6]);
    }
}
