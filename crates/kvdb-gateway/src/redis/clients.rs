//! Who is connected, and what they hold.

use bytes::Bytes;
use kvdb_redis::args::{is, upper, wrong_number};
use kvdb_redis::number::parse_i64;
use kvdb_redis::server::{REDIS_VERSION, Settings, unknown_subcommand};
use kvdb_redis::{Reply, Session};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;
use tokio::sync::Notify;

/// Most connections.
const CLIENTS_MAX: usize = 10_000;
/// Most bytes of requests under way, all connections together; beyond it those that hold much are
/// closed.
const HELD_MAX_BYTES: usize = 192 << 20;
/// What a connection may always hold.
const HELD_FREE_BYTES: usize = 64 << 10;

/// Everyone who is connected.
pub(crate) struct Clients {
    port: u16,
    started: Instant,
    next: AtomicU64,
    commands: AtomicU64,
    changes: AtomicU64,
    held_bytes: AtomicUsize,
    entries: Mutex<BTreeMap<u64, Arc<Entry>>>,
    settings: Mutex<Settings>,
}

/// One who is connected, for the others to see.
pub(crate) struct Entry {
    pub(crate) id: u64,
    address: SocketAddr,
    since: Instant,
    state: Mutex<Shown>,
    kill: Notify,
}

#[derive(Default)]
struct Shown {
    name: Bytes,
    db: u8,
    resp3: bool,
    in_transaction: bool,
    command: Bytes,
}

impl Entry {
    /// Until somebody asks for its end.
    pub(crate) async fn killed(&self) {
        self.kill.notified().await;
    }

    fn line(&self) -> String {
        let shown = self.state.lock();
        format!(
            "id={} addr={} laddr= fd=0 name={} age={} idle=0 flags={} db={} sub=0 psub=0 ssub=0 multi={} cmd={} user=default redir=-1 resp={}",
            self.id,
            self.address,
            String::from_utf8_lossy(&shown.name),
            self.since.elapsed().as_secs(),
            if shown.in_transaction { "x" } else { "N" },
            shown.db,
            if shown.in_transaction { 0 } else { -1 },
            String::from_utf8_lossy(&shown.command).to_lowercase(),
            if shown.resp3 { 3 } else { 2 },
        )
    }
}

/// A place among the clients; given up when dropped.
pub(crate) struct Client {
    pub(crate) entry: Arc<Entry>,
    clients: Arc<Clients>,
    held_bytes: usize,
}

impl Client {
    /// Tells how many bytes the connection holds. False if that is too much.
    pub(crate) fn holds(&mut self, bytes: usize) -> bool {
        let counted = bytes.saturating_sub(HELD_FREE_BYTES);
        let held = &self.clients.held_bytes;
        let before = held.fetch_add(counted, Ordering::Relaxed);
        held.fetch_sub(self.held_bytes, Ordering::Relaxed);
        let total = (before + counted).saturating_sub(self.held_bytes);
        self.held_bytes = counted;
        counted == 0 || total <= HELD_MAX_BYTES
    }

    /// Shows the others what it does.
    pub(crate) fn show(&self, session: &Session, command: Option<&Bytes>, count: u64) {
        self.clients.commands.fetch_add(count, Ordering::Relaxed);
        let mut shown = self.entry.state.lock();
        shown.db = session.db;
        shown.resp3 = session.resp3;
        shown.in_transaction = session.in_transaction();
        if shown.name != session.name {
            shown.name = session.name.clone();
        }
        if let Some(command) = command {
            // A copy, as the original would keep the whole request alive.
            shown.command = Bytes::copy_from_slice(&command[..command.len().min(32)]);
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.clients.held_bytes.fetch_sub(self.held_bytes, Ordering::Relaxed);
        self.clients.entries.lock().remove(&self.entry.id);
    }
}

impl Clients {
    pub(crate) fn new(port: u16) -> Self {
        Clients {
            port,
            started: Instant::now(),
            next: AtomicU64::new(1),
            commands: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            held_bytes: AtomicUsize::new(0),
            entries: Mutex::default(),
            settings: Mutex::default(),
        }
    }

    /// A place for one more, if there is room.
    pub(crate) fn enter(self: &Arc<Self>, address: SocketAddr) -> Option<Client> {
        let mut entries = self.entries.lock();
        if entries.len() >= CLIENTS_MAX {
            return None;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(Entry {
            id,
            address,
            since: Instant::now(),
            state: Mutex::default(),
            kill: Notify::new(),
        });
        entries.insert(id, entry.clone());
        Some(Client { entry, clients: self.clone(), held_bytes: 0 })
    }

    /// Counts changes of keys.
    pub(crate) fn changed(&self, count: u64) {
        self.changes.fetch_add(count, Ordering::Relaxed);
    }

    /// `CLIENT LIST`, `INFO` and `KILL`; `CONFIG`; `INFO`.
    pub(crate) fn command(&self, own: &Entry, args: &[Bytes]) -> Reply {
        let what = args.get(1).map(|word| upper(word)).unwrap_or_default();
        if is(&args[0], "config") {
            return self.settings.lock().command(args);
        }
        if is(&args[0], "info") {
            return Reply::Verbatim(self.info());
        }
        match what.as_str() {
            "LIST" => self.list(args),
            "INFO" => Reply::Verbatim(own.line() + "\n"),
            "KILL" => self.kill(own, args),
            _ => unknown_subcommand(what.as_bytes(), "CLIENT"),
        }
    }

    fn list(&self, args: &[Bytes]) -> Reply {
        let entries = self.entries.lock();
        let mut wanted: Vec<&Arc<Entry>> = entries.values().collect();
        match args {
            [_, _] => {}
            [_, _, filter, _] if is(filter, "type") => {}
            [_, _, filter, ids @ ..] if is(filter, "id") && !ids.is_empty() => {
                let ids: Option<Vec<i64>> = ids.iter().map(|id| parse_i64(id)).collect();
                let Some(ids) = ids else { return Reply::error("Invalid client ID") };
                wanted.retain(|entry| ids.contains(&(entry.id as i64)));
            }
            _ => return Reply::error("syntax error"),
        }
        Reply::Verbatim(wanted.iter().map(|entry| entry.line() + "\n").collect())
    }

    fn kill(&self, own: &Entry, args: &[Bytes]) -> Reply {
        let entries = self.entries.lock();
        if let [_, _, address] = args {
            let found = entries.values().find(|entry| is(address, &entry.address.to_string()));
            return match found {
                Some(entry) => {
                    entry.kill.notify_one();
                    Reply::OK
                }
                None => Reply::error("No such client"),
            };
        }
        let (filters, rest) = args[2..].as_chunks::<2>();
        if filters.is_empty() || !rest.is_empty() {
            return wrong_number("client|kill");
        }
        let mut skip_own = true;
        let mut wanted: Vec<&Arc<Entry>> = entries.values().collect();
        for [filter, value] in filters {
            match upper(filter).as_str() {
                "ID" => match parse_i64(value) {
                    Some(id) if id > 0 => wanted.retain(|entry| entry.id as i64 == id),
                    _ => return Reply::error("client-id should be greater than 0"),
                },
                "ADDR" => wanted.retain(|entry| is(value, &entry.address.to_string())),
                "LADDR" | "USER" | "TYPE" => {}
                "SKIPME" => skip_own = !is(value, "no"),
                _ => return Reply::error("syntax error"),
            }
        }
        wanted.retain(|entry| !skip_own || entry.id != own.id);
        wanted.iter().for_each(|entry| entry.kill.notify_one());
        Reply::Integer(wanted.len() as i64)
    }

    fn info(&self) -> String {
        let clients = self.entries.lock().len();
        let uptime = self.started.elapsed().as_secs();
        let commands = self.commands.load(Ordering::Relaxed);
        let held = self.held_bytes.load(Ordering::Relaxed);
        let fields = [
            "# Server".to_owned(),
            format!("redis_version:{REDIS_VERSION}"),
            "redis_mode:standalone".to_owned(),
            format!("kvdb_version:{}", env!("CARGO_PKG_VERSION")),
            format!("process_id:{}", std::process::id()),
            format!("tcp_port:{}", self.port),
            format!("uptime_in_seconds:{uptime}"),
            String::new(),
            "# Clients".to_owned(),
            format!("connected_clients:{clients}"),
            format!("maxclients:{CLIENTS_MAX}"),
            "blocked_clients:0".to_owned(),
            String::new(),
            "# Memory".to_owned(),
            format!("client_input_bytes:{held}"),
            format!("client_input_bytes_max:{HELD_MAX_BYTES}"),
            String::new(),
            "# Persistence".to_owned(),
            "loading:0".to_owned(),
            format!("rdb_changes_since_last_save:{}", self.changes.load(Ordering::Relaxed)),
            "aof_enabled:1".to_owned(),
            String::new(),
            "# Stats".to_owned(),
            format!("total_commands_processed:{commands}"),
            String::new(),
            "# Replication".to_owned(),
            "role:master".to_owned(),
            "connected_slaves:0".to_owned(),
            String::new(),
            "# Cluster".to_owned(),
            "cluster_enabled:0".to_owned(),
        ];
        fields.join("\r\n") + "\r\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn those_who_hold_much_are_told_when_all_hold_too_much() {
        let clients = Arc::new(Clients::new(0));
        let mut large = clients.enter(address(1)).unwrap();
        let mut other = clients.enter(address(2)).unwrap();
        assert!(large.holds(HELD_MAX_BYTES));
        assert!(other.holds(HELD_FREE_BYTES), "what is free is always free");
        assert!(!other.holds(1 << 20));
        assert!(other.holds(0));
        drop(large);
        assert!(other.holds(1 << 20));
    }

    #[test]
    fn a_killed_client_is_the_one_that_was_named() {
        let clients = Arc::new(Clients::new(0));
        let own = clients.enter(address(1)).unwrap();
        let other = clients.enter(address(2)).unwrap();
        let say = |line: &str| {
            let args: Vec<Bytes> =
                line.split(' ').map(|word| Bytes::from(word.to_owned())).collect();
            clients.command(&own.entry, &args)
        };
        assert_eq!(say(&format!("client kill id {}", other.entry.id)), Reply::Integer(1));
        assert_eq!(say("client kill id 99"), Reply::Integer(0));
        assert_eq!(say("client kill 127.0.0.1:2"), Reply::OK);
        assert!(say("client kill 127.0.0.1:3").is_error());
        let Reply::Verbatim(list) = say("client list") else { panic!() };
        assert_eq!(list.lines().count(), 2);
    }

    #[test]
    fn there_is_room_for_so_many_and_no_more() {
        let clients = Arc::new(Clients::new(0));
        let mut all: Vec<Client> =
            (0..CLIENTS_MAX).filter_map(|_| clients.enter(address(1))).collect();
        assert_eq!(all.len(), CLIENTS_MAX);
        assert!(clients.enter(address(1)).is_none());
        all.pop();
        assert!(clients.enter(address(1)).is_some());
    }
}
