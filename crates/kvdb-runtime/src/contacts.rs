//! Which peers a process reaches, where, and how long messages to them and back take.

use crate::means::Means;
use kvdb_model::NodeId;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Which peers are reached, and where.
#[derive(Clone, Debug, Default)]
pub struct Contacts {
    peers: Arc<Mutex<HashMap<NodeId, Contact>>>,
}

#[derive(Clone, Debug, Default)]
struct Contact {
    /// Where it was reached last.
    at: Option<String>,
    is_reached: bool,
    /// When the ping under way was sent, by the boot clock.
    asked_us: Option<u64>,
    round_trips: Means,
}

impl Contacts {
    /// Where a peer was reached last.
    pub fn address(&self, peer: NodeId) -> Option<String> {
        self.peers.lock().get(&peer)?.at.clone()
    }

    /// All that were tried, and whether they are reached.
    pub fn all(&self) -> Vec<(NodeId, bool)> {
        self.peers.lock().iter().map(|(peer, contact)| (*peer, contact.is_reached)).collect()
    }

    /// How long messages to peers and back take lately, in microseconds, as far as is known.
    pub fn round_trips_us(&self, now_us: u64) -> Vec<(NodeId, u64)> {
        let peers = self.peers.lock();
        let figure = |(peer, contact): (&NodeId, &Contact)| {
            let under_way = contact.asked_us.map(|asked_us| now_us.saturating_sub(asked_us));
            (*peer, contact.round_trips.figure(now_us, under_way.unwrap_or_default()))
        };
        peers.iter().map(figure).filter(|(_, round_trip_us)| *round_trip_us > 0).collect()
    }

    pub(crate) fn reached(&self, peer: NodeId, address: &str) {
        let mut peers = self.peers.lock();
        let contact = peers.entry(peer).or_default();
        (contact.at, contact.is_reached) = (Some(address.to_owned()), true);
    }

    pub(crate) fn missed(&self, peer: NodeId) {
        let mut peers = self.peers.lock();
        let contact = peers.entry(peer).or_default();
        (contact.is_reached, contact.asked_us) = (false, None);
    }

    /// Returns whether a ping may be sent now: one is under way at a time.
    pub(crate) fn asks(&self, peer: NodeId, now_us: u64) -> bool {
        let mut peers = self.peers.lock();
        let contact = peers.entry(peer).or_default();
        let asks = contact.is_reached && contact.asked_us.is_none();
        if asks {
            contact.asked_us = Some(now_us);
        }
        asks
    }

    /// The ping that was sent at `asked_us` was answered.
    pub(crate) fn answered(&self, peer: NodeId, asked_us: u64, now_us: u64) {
        let mut peers = self.peers.lock();
        let Some(contact) = peers.get_mut(&peer) else { return };
        if contact.asked_us == Some(asked_us) {
            contact.asked_us = None;
            // None at all would mean that nothing is known.
            contact.round_trips.note(now_us, now_us.saturating_sub(asked_us).max(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_as_slow_as_its_pings_and_as_what_is_under_way() {
        let (contacts, peer) = (Contacts::default(), NodeId(2));
        assert!(!contacts.asks(peer, 1_000_000), "it isn't reached");
        contacts.reached(peer, "a:1");
        assert!(contacts.asks(peer, 1_000_000));
        assert!(!contacts.asks(peer, 1_500_000), "one is under way");
        contacts.answered(peer, 7, 1_600_000);
        contacts.answered(peer, 1_000_000, 1_040_000);
        assert_eq!(contacts.round_trips_us(1_100_000), [(peer, 40_000)]);
        assert!(contacts.asks(peer, 2_000_000));
        assert_eq!(contacts.round_trips_us(4_000_000), [(peer, 1_020_000)]);
        // What breaks has no answer: that is told otherwise.
        contacts.missed(peer);
        assert_eq!(contacts.round_trips_us(4_000_000), [(peer, 40_000)]);
        assert_eq!(contacts.address(peer).as_deref(), Some("a:1"));
    }
}
