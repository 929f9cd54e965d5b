//! Who is connected, and what they hold.

use super::count::Counts;
use super::info::{self, Around, Counters};
use bytes::Bytes;
use kvdb_redis::args::{integer, is, syntax, upper};
use kvdb_redis::number::parse_i64;
use kvdb_redis::server::{Settings, wait};
use kvdb_redis::{Reply, Session};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Most connections.
pub(super) const CLIENTS_MAX: usize = 10_000;
/// Most bytes of requests under way, all connections together; beyond it those that hold much are
/// closed.
pub(super) const HELD_MAX_BYTES: usize = 192 << 20;
/// What a connection may always hold.
const HELD_FREE_BYTES: usize = 64 << 10;

/// Everyone who is connected.
pub(crate) struct Clients {
    address: SocketAddr,
    started: Instant,
    next: AtomicU64,
    counters: Counters,
    held_bytes: AtomicUsize,
    entries: Mutex<BTreeMap<u64, Arc<Entry>>>,
    pub(super) counts: Counts,
    settings: Mutex<Settings>,
    /// [`Settings::timeout_seconds`], to be looked at often.
    timeout_seconds: AtomicU64,
}

/// One who is connected, for the others to see.
pub(crate) struct Entry {
    pub(crate) id: u64,
    address: SocketAddr,
    /// Its own end of the connection, here.
    local: SocketAddr,
    since: Instant,
    state: Mutex<Shown>,
    /// Bytes of a request under way.
    held_bytes: AtomicUsize,
    kill: Notify,
    /// It has asked for its own end, which comes after the answer.
    is_over: AtomicBool,
}

#[derive(Default)]
struct Shown {
    name: Bytes,
    db: u8,
    resp3: bool,
    queued: Option<usize>,
    command: String,
    last: Option<Instant>,
}

impl Entry {
    /// Until somebody asks for its end.
    pub(crate) async fn killed(&self) {
        self.kill.notified().await;
    }

    /// Whether it has asked for its own end.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn line(&self) -> String {
        let shown = self.state.lock();
        let queued = shown.queued.map_or(-1, |count| count as i64);
        let held = self.held_bytes.load(Ordering::Relaxed);
        format!(
            "id={} addr={} laddr={} fd=-1 name={} age={} idle={} flags={} db={} sub=0 psub=0 ssub=0 multi={queued} qbuf={held} qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem=0 tot-mem={held} events=r cmd={} user=default redir=-1 resp={}",
            self.id,
            self.address,
            self.local,
            String::from_utf8_lossy(&shown.name),
            self.since.elapsed().as_secs(),
            shown.last.unwrap_or(self.since).elapsed().as_secs(),
            if queued >= 0 { "x" } else { "N" },
            shown.db,
            shown.command,
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
        self.entry.held_bytes.store(bytes, Ordering::Relaxed);
        counted == 0 || total <= HELD_MAX_BYTES
    }

    /// Shows the others what it does.
    pub(crate) fn show(&self, session: &Session, command: Option<[Bytes; 2]>, count: u64) {
        self.clients.counters.commands.fetch_add(count, Ordering::Relaxed);
        let mut shown = self.entry.state.lock();
        shown.db = session.db;
        shown.resp3 = session.resp3;
        shown.queued = session.queued();
        shown.last = Some(Instant::now());
        if shown.name != session.name {
            shown.name = session.name.clone();
        }
        if let Some([name, inside]) = command {
            shown.command = kvdb_redis::table::full_name(&name, &inside);
        }
    }

    /// How long it may say nothing.
    pub(crate) fn patience(&self) -> Option<Duration> {
        match self.clients.timeout_seconds.load(Ordering::Relaxed) {
            0 => None,
            seconds => Some(Duration::from_secs(seconds)),
        }
    }

    /// Counts bytes that came, and bytes that went.
    pub(crate) fn moved(&self, came: usize, went: usize) {
        self.clients.counters.input_bytes.fetch_add(came as u64, Ordering::Relaxed);
        self.clients.counters.output_bytes.fetch_add(went as u64, Ordering::Relaxed);
    }

    /// Counts answers that are errors.
    pub(crate) fn failed(&self) {
        self.clients.counters.errors.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.clients.held_bytes.fetch_sub(self.held_bytes, Ordering::Relaxed);
        self.clients.entries.lock().remove(&self.entry.id);
    }
}

impl Clients {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Clients {
            address,
            started: Instant::now(),
            next: AtomicU64::new(1),
            counters: Counters::default(),
            held_bytes: AtomicUsize::new(0),
            entries: Mutex::default(),
            counts: Counts::default(),
            settings: Mutex::default(),
            timeout_seconds: AtomicU64::new(0),
        }
    }

    /// A place for one more, if there is room.
    pub(crate) fn enter(
        self: &Arc<Self>,
        address: SocketAddr,
        local: SocketAddr,
    ) -> Option<Client> {
        let mut entries = self.entries.lock();
        if entries.len() >= CLIENTS_MAX {
            self.counters.rejected.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.counters.connections.fetch_add(1, Ordering::Relaxed);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(Entry {
            id,
            address,
            local,
            since: Instant::now(),
            state: Mutex::default(),
            held_bytes: AtomicUsize::new(0),
            kill: Notify::new(),
            is_over: AtomicBool::new(false),
        });
        entries.insert(id, entry.clone());
        Some(Client { entry, clients: self.clone(), held_bytes: 0 })
    }

    /// Counts changes of keys.
    pub(crate) fn changed(&self, count: u64) {
        self.counters.changes.fetch_add(count, Ordering::Relaxed);
    }

    /// `CLIENT LIST`, `INFO` and `KILL`; `CONFIG`; `INFO`; `WAIT`.
    pub(crate) fn command(&self, own: &Entry, args: &[Bytes], around: &Around) -> Reply {
        let what = args.get(1).map(|word| upper(word)).unwrap_or_default();
        match upper(&args[0]).as_str() {
            "CONFIG" if what == "RESETSTAT" => {
                self.counters.reset();
                Reply::OK
            }
            "CONFIG" => {
                let mut settings = self.settings.lock();
                let reply = settings.command(args);
                self.timeout_seconds.store(settings.timeout_seconds(), Ordering::Relaxed);
                reply
            }
            "INFO" => {
                Reply::Verbatim(info::text(&args[1..], &self.facts(), &self.counters, around))
            }
            "WAIT" => wait(args, around.replicas),
            _ => match what.as_str() {
                "LIST" => self.list(args),
                "INFO" => Reply::Verbatim(own.line() + "\n"),
                _ => self.kill(own, args),
            },
        }
    }

    fn facts(&self) -> info::Facts {
        info::Facts {
            port: self.address.port(),
            uptime: self.started.elapsed(),
            clients: self.entries.lock().len(),
            held_bytes: self.held_bytes.load(Ordering::Relaxed),
        }
    }

    fn list(&self, args: &[Bytes]) -> Reply {
        let entries = self.entries.lock();
        let wanted: Vec<&Arc<Entry>> = match args {
            [_, _] => entries.values().collect(),
            [_, _, filter, kind] if is(filter, "type") => match is_ordinary(kind) {
                Ok(true) => entries.values().collect(),
                Ok(false) => vec![],
                Err(reply) => return reply,
            },
            [_, _, filter, ids @ ..] if is(filter, "id") && !ids.is_empty() => {
                let ids: Option<Vec<i64>> = ids.iter().map(|id| parse_i64(id)).collect();
                let Some(ids) = ids else { return Reply::error("Invalid client ID") };
                let known = |id: i64| entries.get(&u64::try_from(id).ok()?);
                ids.into_iter().filter_map(known).collect()
            }
            _ => return syntax(),
        };
        Reply::Verbatim(wanted.iter().map(|entry| entry.line() + "\n").collect())
    }

    fn kill(&self, own: &Entry, args: &[Bytes]) -> Reply {
        let by_address = args.len() == 3;
        let filter = match args {
            // The old form, which may be about one's own connection.
            [_, _, address] => {
                Filter { skip_own: false, address: Some(address), ..Filter::default() }
            }
            _ => match Filter::parse(args.get(2..).unwrap_or_default()) {
                Ok(filter) => filter,
                Err(reply) => return reply,
            },
        };
        let mut entries = self.entries.lock();
        let takes = |entry: &&Arc<Entry>| filter.takes(entry, own);
        let wanted: Vec<Arc<Entry>> = entries.values().filter(takes).cloned().collect();
        let count = wanted.len() as i64;
        for entry in wanted {
            if entry.id == own.id {
                entry.is_over.store(true, Ordering::Relaxed);
            } else {
                entry.kill.notify_one();
                // It is shown to nobody any more, also before it has noticed.
                entries.remove(&entry.id);
            }
        }
        match (by_address, count) {
            (true, 0) => Reply::error("No such client"),
            (true, _) => Reply::OK,
            (false, count) => Reply::Integer(count),
        }
    }
}

/// Which connections `CLIENT KILL` is about: those for which all of it holds.
struct Filter<'a> {
    id: Option<u64>,
    address: Option<&'a [u8]>,
    local: Option<&'a [u8]>,
    /// Only connections of a type that there is none of.
    nobody: bool,
    skip_own: bool,
}

impl Default for Filter<'_> {
    fn default() -> Self {
        Filter { id: None, address: None, local: None, nobody: false, skip_own: true }
    }
}

impl<'a> Filter<'a> {
    /// What isn't understood is refused: taken for nothing, it would close all connections.
    fn parse(options: &'a [Bytes]) -> Result<Self, Reply> {
        let mut filter = Filter::default();
        let (pairs, rest) = options.as_chunks::<2>();
        for [option, value] in pairs {
            match upper(option).as_str() {
                "ID" => match integer(value) {
                    Ok(id @ 1..) => filter.id = Some(id as u64),
                    _ => return Err(Reply::error("client-id should be greater than 0")),
                },
                "ADDR" => filter.address = Some(value),
                "LADDR" => filter.local = Some(value),
                "TYPE" => filter.nobody = !is_ordinary(value)?,
                "USER" if value == "default" => {}
                "USER" => return Err(Reply::error(format!("No such user '{}'", shown(value)))),
                "SKIPME" if is(value, "yes") => filter.skip_own = true,
                "SKIPME" if is(value, "no") => filter.skip_own = false,
                _ => return Err(syntax()),
            }
        }
        if rest.is_empty() { Ok(filter) } else { Err(syntax()) }
    }

    fn takes(&self, entry: &Entry, own: &Entry) -> bool {
        let is_at = |wanted: Option<&[u8]>, address: SocketAddr| {
            wanted.is_none_or(|wanted| wanted == address.to_string().as_bytes())
        };
        !self.nobody
            && self.id.is_none_or(|id| id == entry.id)
            && is_at(self.address, entry.address)
            && is_at(self.local, entry.local)
            && !(self.skip_own && entry.id == own.id)
    }
}

/// Whether a type of connection is that of all here; an error if there is no such type.
fn is_ordinary(kind: &[u8]) -> Result<bool, Reply> {
    match upper(kind).as_str() {
        "NORMAL" => Ok(true),
        "MASTER" | "REPLICA" | "SLAVE" | "PUBSUB" => Ok(false),
        _ => Err(Reply::error(format!("Unknown client type '{}'", shown(kind)))),
    }
}

fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(128)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn those_who_hold_much_are_told_when_all_hold_too_much() {
        let clients = Arc::new(Clients::new(address(0)));
        let mut large = clients.enter(address(1), address(0)).unwrap();
        let mut other = clients.enter(address(2), address(0)).unwrap();
        assert!(large.holds(HELD_MAX_BYTES));
        assert!(other.holds(HELD_FREE_BYTES), "what is free is always free");
        assert!(!other.holds(1 << 20));
        assert!(other.holds(0));
        drop(large);
        assert!(other.holds(1 << 20));
    }

    #[test]
    fn a_killed_client_is_the_one_that_was_named() {
        let clients = Arc::new(Clients::new(address(0)));
        let own = clients.enter(address(1), address(0)).unwrap();
        let other = clients.enter(address(2), address(0)).unwrap();
        let say = |line: &str| {
            let args: Vec<Bytes> =
                line.split(' ').map(|word| Bytes::from(word.to_owned())).collect();
            clients.command(&own.entry, &args, &Around::default())
        };
        assert_eq!(say(&format!("client kill id {}", other.entry.id)), Reply::Integer(1));
        assert_eq!(say("client kill id 99"), Reply::Integer(0));
        assert!(say("client kill 127.0.0.1:2").is_error(), "it is gone");
        let third = clients.enter(address(3), address(0)).unwrap();
        assert_eq!(say("client kill 127.0.0.1:3"), Reply::OK);
        let Reply::Verbatim(list) = say("client list") else { panic!() };
        assert_eq!(list.lines().count(), 1, "who is killed isn't listed");
        assert!(third.entry.killed().now_or_never().is_some());
    }

    #[test]
    fn a_filter_that_is_not_understood_closes_nobody() {
        let clients = Arc::new(Clients::new(address(0)));
        let own = clients.enter(address(1), address(0)).unwrap();
        let other = clients.enter(address(2), address(0)).unwrap();
        let say = |line: &str| {
            let args: Vec<Bytes> =
                line.split(' ').map(|word| Bytes::from(word.to_owned())).collect();
            clients.command(&own.entry, &args, &Around::default())
        };
        for bad in [
            "type nonsense",
            "user nobody",
            "skipme maybe",
            "nonsense x",
            "id 0",
            "id x",
            "id 1 addr",
        ] {
            assert!(say(&format!("client kill {bad}")).is_error(), "{bad}");
        }
        for none in ["type pubsub", "laddr 1.2.3.4:5", "addr 127.0.0.1:9 skipme no"] {
            assert_eq!(say(&format!("client kill {none}")), Reply::Integer(0), "{none}");
        }
        let quiet = || other.entry.killed().now_or_never().is_none();
        assert!(quiet() && !own.entry.is_over());
        assert_eq!(say("client list type pubsub"), Reply::Verbatim(String::new()));
        assert!(say("client list type nonsense").is_error() && say("client list x").is_error());
        assert_eq!(say("client kill laddr 127.0.0.1:0 skipme no type normal"), Reply::Integer(2));
        assert!(!quiet() && own.entry.is_over(), "who ends itself is answered first");
    }

    #[test]
    fn there_is_room_for_so_many_and_no_more() {
        let clients = Arc::new(Clients::new(address(0)));
        let mut all: Vec<Client> =
            (0..CLIENTS_MAX).filter_map(|_| clients.enter(address(1), address(0))).collect();
        assert_eq!(all.len(), CLIENTS_MAX);
        assert!(clients.enter(address(1), address(0)).is_none());
        all.pop();
        assert!(clients.enter(address(1), address(0)).is_some());
    }
}
