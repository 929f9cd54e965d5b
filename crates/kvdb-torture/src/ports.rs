//! Ports for processes that are about to be started.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

const FIRST: u32 = 10_000;
const END: u32 = 32_000;
/// Each process begins to look in a place of its own.
const APART: u32 = 64;

/// Ports of the loopback address that were free a moment ago. All are held until all are chosen.
/// They lie below those that the system gives to outgoing connections: one of those may sit on a
/// port before whoever is to listen there has been started, or while it is being started again.
///
/// # Errors
/// If there are not so many.
pub fn free_ports(count: usize) -> std::io::Result<Vec<u16>> {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let own = std::process::id().wrapping_mul(APART);
    let mut held = Vec::with_capacity(count);
    for _ in FIRST..END {
        if held.len() == count {
            break;
        }
        let place = own.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let port = (FIRST + place % (END - FIRST)) as u16;
        held.extend(TcpListener::bind(("127.0.0.1", port)));
    }
    if held.len() < count {
        let words =
            format!("{count} ports of {FIRST} to {END} are needed, {} are free", held.len());
        return Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, words));
    }
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// By how much to shift the ports of `kvdb dev` so that all of them were free a moment ago: those of four nodes, of a
/// coordinator and of a gateway. They lie where [`free_ports`] finds some.
///
/// # Errors
/// If there is no such shift.
pub fn free_offset() -> std::io::Result<u16> {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    const ROLES: [(u16, u16); 5] =
        [(7101, 7104), (7181, 7184), (7201, 7204), (7281, 7284), (7379, 7380)];
    const FRONT: [(u16, u16); 2] = [(7400, 7400), (7480, 7480)];
    const MOST: u32 = END - 7500;
    const LEAST: u32 = FIRST - 7100;
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let own = std::process::id().wrapping_mul(APART);
    for _ in 0..(MOST - LEAST) / APART {
        let step = TAKEN.fetch_add(1, Ordering::Relaxed).wrapping_mul(APART);
        let offset = (LEAST + own.wrapping_add(step) % (MOST - LEAST)) as u16;
        let mut ports = ROLES.into_iter().chain(FRONT).flat_map(|(first, last)| first..=last);
        if ports.all(|port| is_free(port + offset)) {
            return Ok(offset);
        }
    }
    let words = "no shift of the ports of `kvdb dev` leaves all of them free";
    Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_distinct_and_none_of_outgoing_connections() {
        let ports = free_ports(40).unwrap();
        let distinct: std::collections::BTreeSet<u16> = ports.iter().copied().collect();
        assert_eq!(distinct.len(), 40);
        assert!(ports.iter().all(|port| (FIRST..END).contains(&u32::from(*port))));
    }

    #[test]
    fn a_shift_for_a_development_cluster_leaves_its_ports_free_and_below_outgoing_connections() {
        let [one, other] = [free_offset().unwrap(), free_offset().unwrap()];
        assert_ne!(one, other);
        for offset in [one, other] {
            let ports = [7101, 7484].map(|port| u32::from(port + offset));
            assert!(ports.into_iter().all(|port| (FIRST..END).contains(&port)), "{offset}");
        }
        // One that is taken is passed over, whichever of them.
        let taken = TcpListener::bind(("127.0.0.1", 7400 + other)).unwrap();
        assert!((0..400).all(|_| free_offset().unwrap() != other));
        drop(taken);
    }
}
