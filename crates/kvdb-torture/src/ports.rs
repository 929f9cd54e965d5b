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
}
