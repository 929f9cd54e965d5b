//! Streams between nodes: who is there is asked before anything is said, and which start it is.
//!
//! As [`kvdb_replication::starts`] wants it: a stream begins with a hello, whose frame number is compared;
//! whatever comes through it counts only while it is from the newest start. A process that was started
//! again knows nothing of streams from before.

use crate::network::Place;
use crate::packet::{Hello, Packet};
use crate::world::World;
use kvdb_model::NodeId;
use kvdb_replication::starts::{Said, is_meant};
use kvdb_replication::{Input, PeerMessage};

/// Without an answer a hello is said again after that.
const AGAIN_US: u64 = 100_000;
/// Messages that wait for an answer, at most.
const MOST_WAITING: usize = 1024;
/// As often in a row a peer must say that this process isn't the one that counts.
const REFUSED_FOR_GOOD: u32 = 3;
/// Between two words of how far the log is synced, where nothing else is said.
const BEAT_US: u64 = 500_000;

/// A stream to a peer, or the attempt to open one.
#[derive(Default)]
pub(crate) struct Stream {
    number: u64,
    target: Place,
    is_open: bool,
    asked_us: u64,
    /// Addresses that were tried.
    tried: usize,
    refused: u32,
    waiting: Vec<PeerMessage>,
}

/// What a peer answers to a hello.
#[derive(Clone, Debug)]
pub(crate) enum Greeting {
    Hears,
    /// Somebody else is there.
    IsAnother,
    /// It isn't the start that counts.
    TurnedAway(String),
}

impl World {
    /// Where a node may be, as another one knows: what the map says, and what it has said itself.
    pub(crate) fn places_of(&self, place: Place, node: NodeId) -> Vec<Place> {
        let Some(core) = &self.processes[place].core else { return Vec::new() };
        let mapped = core.cache.map().nodes.get(&node);
        let mapped = mapped.and_then(|record| crate::node::place_at(&record.address));
        let said = core.met_at.get(&node).copied().filter(|said| Some(*said) != mapped);
        mapped.into_iter().chain(said).collect()
    }

    /// Where a peer was reached, or may be.
    pub(crate) fn likeliest_place_of(&self, place: Place, node: NodeId) -> Option<Place> {
        let core = self.processes[place].core.as_ref()?;
        let reached = core.streams.get(&node).filter(|stream| stream.is_open);
        reached.map(|stream| stream.target).or_else(|| self.places_of(place, node).first().copied())
    }

    pub(crate) fn say_to_peer(&mut self, place: Place, to: NodeId, messages: Vec<PeerMessage>) {
        let places = self.places_of(place, to);
        let (number, now_us) = (self.last_question + 1, self.now_us);
        let Some(core) = self.processes[place].core.as_mut() else { return };
        let stream = core.streams.entry(to).or_default();
        if stream.is_open {
            let (number, target) = (stream.number, stream.target);
            return self.say_through(place, (number, target), to, messages);
        }
        if stream.waiting.len() < MOST_WAITING {
            stream.waiting.extend(messages);
        }
        if places.is_empty() || stream.number > 0 && now_us < stream.asked_us + AGAIN_US {
            return;
        }
        if stream.number > 0 {
            stream.tried += 1;
        }
        let target = places[stream.tried % places.len()];
        (stream.number, stream.target, stream.asked_us) = (number, target, now_us);
        self.last_question = number;
        self.say_hello(place, number, target, to);
    }

    fn say_hello(&mut self, place: Place, number: u64, target: Place, to: NodeId) {
        let process = &self.processes[place];
        if let (Some(from), Some(said)) = (process.node_id, process.said(place)) {
            self.send(place, target, Packet::Hello { number, hello: Hello { from, to, said } });
        }
    }

    fn say_through(
        &mut self,
        place: Place,
        (stream, target): (u64, Place),
        to: NodeId,
        messages: Vec<PeerMessage>,
    ) {
        let process = &self.processes[place];
        let Some(from) = process.node_id else { return };
        let (wall_ms, synced) = (process.now(self.now_us).wall_ms, process.synced());
        self.send(place, target, Packet::Raft { stream, from, to, wall_ms, synced, messages });
    }

    pub(crate) fn hear_hello(&mut self, from: Place, place: Place, number: u64, hello: &Hello) {
        let now_us = self.processes[place].now(self.now_us).boot_us;
        let process = &mut self.processes[place];
        let (Some(own), Some(core)) = (process.node_id, &mut process.core) else { return };
        let greeting = if !is_meant(own, hello.to) {
            Greeting::IsAnother
        } else {
            match core.starts.meet(hello.from, &hello.said, now_us) {
                Err(why) => Greeting::TurnedAway(why),
                Ok(then) => {
                    let key = (hello.from, hello.said.number);
                    if core.heard_from.insert(key, number).is_none() {
                        core.starts.opens(hello.from, hello.said.number);
                    }
                    core.met_at.insert(hello.from, from);
                    self.keep_starts(place, then);
                    Greeting::Hears
                }
            }
        };
        self.send(place, from, Packet::Greeting { number, greeting });
    }

    pub(crate) fn hear_greeting_back(&mut self, place: Place, number: u64, greeting: Greeting) {
        let Some(core) = self.processes[place].core.as_mut() else { return };
        let found = core.streams.iter_mut().find(|(_, stream)| stream.number == number);
        let Some((to, stream)) = found else { return };
        let to = *to;
        match greeting {
            Greeting::Hears => {
                (stream.is_open, stream.refused) = (true, 0);
                let target = stream.target;
                let waiting = std::mem::take(&mut stream.waiting);
                self.say_through(place, (number, target), to, waiting);
            }
            // The next address, with what is said next.
            Greeting::IsAnother => stream.waiting.clear(),
            Greeting::TurnedAway(why) => {
                stream.refused += 1;
                stream.waiting.clear();
                if stream.refused >= REFUSED_FOR_GOOD {
                    self.must_end(place, &why);
                }
            }
        }
    }

    /// Through a stream that is open here. What isn't heard any more closes it.
    pub(crate) fn hears_through(
        &mut self,
        place: Place,
        (from, stream): (NodeId, u64),
        to: NodeId,
        synced: u64,
    ) -> bool {
        let now_us = self.processes[place].now(self.now_us).boot_us;
        let process = &mut self.processes[place];
        let (Some(own), Some(core)) = (process.node_id, &mut process.core) else { return false };
        let open =
            core.heard_from.iter().find(|((node, _), open)| *node == from && **open == stream);
        let Some(number) = open.map(|((_, number), _)| *number).filter(|_| is_meant(own, to))
        else {
            return false;
        };
        if core.starts.hears(from, number, synced, now_us) {
            return true;
        }
        core.heard_from.remove(&(from, number));
        core.starts.closes(from, number);
        false
    }

    /// The other end knows nothing of a stream any more.
    pub(crate) fn stream_is_closed(&mut self, place: Place, number: u64) {
        let Some(core) = self.processes[place].core.as_mut() else { return };
        let found = core.streams.iter_mut().find(|(_, stream)| stream.number == number);
        let Some((to, stream)) = found.filter(|(_, stream)| stream.is_open) else { return };
        let to = *to;
        *stream = Stream { tried: stream.tried, refused: stream.refused, ..Stream::default() };
        self.feed(place, Input::PeerUnreachable(to));
    }

    /// Whether a snapshot comes from a start that is heard.
    pub(crate) fn meets_sender(&mut self, from: Place, place: Place, hello: &Hello) -> bool {
        let now_us = self.processes[place].now(self.now_us).boot_us;
        let Some(core) = self.processes[place].core.as_mut() else { return false };
        let said = Said { synced: None, ..hello.said.clone() };
        match core.starts.meet(hello.from, &said, now_us) {
            Ok(then) => {
                core.met_at.insert(hello.from, from);
                self.keep_starts(place, then);
                true
            }
            Err(_) => false,
        }
    }

    /// Peers hear how far the log is synced, also those that are told nothing else.
    pub(crate) fn beat(&mut self, place: Place) {
        let now_us = self.now_us;
        let Some(core) = self.processes[place].core.as_mut() else { return };
        if now_us < core.beat_us + BEAT_US {
            return;
        }
        core.beat_us = now_us;
        let open: Vec<_> = core
            .streams
            .iter()
            .filter(|(_, stream)| stream.is_open)
            .map(|(to, stream)| (*to, (stream.number, stream.target)))
            .collect();
        for (to, stream) in open {
            self.say_through(place, stream, to, Vec::new());
        }
    }
}
