//! Who dials? All processes share one machine and one address, so a connection is known by its
//! port: `/proc/net/tcp` leads to the socket, and `/proc/PID/fd` from the socket to its process.

use std::collections::HashMap;

/// The inode of the socket that is bound to `local` and connected to `remote` on loopback.
fn inode_of(table: &str, local: u16, remote: u16) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let own = port_of(words.nth(1)?)?;
        let other = port_of(words.next()?)?;
        let inode = words.nth(6)?;
        (own == local && other == remote).then(|| inode.parse().ok())?
    })
}

fn port_of(address: &str) -> Option<u16> {
    u16::from_str_radix(address.split_once(':')?.1, 16).ok()
}

/// Which of these processes (part by process number) holds the other end of a connection from port
/// `local` to port `remote`.
pub(crate) fn find(local: u16, remote: u16, parts: &HashMap<u32, usize>) -> Option<usize> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let socket = format!("socket:[{}]", inode_of(&table, local, remote)?);
    parts.iter().find_map(|(process, part)| {
        let files = std::fs::read_dir(format!("/proc/{process}/fd")).ok()?;
        let mut links = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
        links.any(|link| link.as_os_str() == socket.as_str()).then_some(*part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_found_in_the_table() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1CE8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1
   1: 0100007F:A001 0100007F:1CE8 01 00000000:00000000 00:00000000 00000000     0        0 222 1
";
        assert_eq!(inode_of(table, 0xA001, 0x1CE8), Some(222));
        assert_eq!(inode_of(table, 0x1CE8, 0xA001), None);
    }

    #[test]
    fn this_process_is_found_by_its_connection() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let remote = listener.local_addr().unwrap().port();
        let connection = std::net::TcpStream::connect(("127.0.0.1", remote)).unwrap();
        let local = connection.local_addr().unwrap().port();
        let parts = HashMap::from([(std::process::id(), 5)]);
        assert_eq!(find(local, remote, &parts), Some(5));
        assert_eq!(find(local, remote, &HashMap::new()), None);
    }
}
