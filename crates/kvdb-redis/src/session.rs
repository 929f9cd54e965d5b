//! One connection: what it has chosen, and its transaction.
//!
//! A request goes in and a [`Step`] comes out: an answer that needs nobody, a [`Plan`] on keys, or
//! a [`Job`] for whoever runs the connection.

use crate::args::{integer, is, wrong_number};
use crate::plan::Plan;
use crate::reply::Reply;
use crate::resp::Request;
use crate::server::unknown_command;
use crate::subcommands;
use crate::table::{self, Handler, Spec};
use bytes::Bytes;

/// Databases that can be selected.
pub const DATABASES: u8 = 16;
/// Most commands that wait in a transaction.
const QUEUED_MAX: usize = 10_000;
/// Most bytes of them.
const QUEUED_MAX_BYTES: usize = 16 << 20;
/// Most keys that are watched.
const WATCHED_MAX: usize = 10_000;

/// What is to be done about a request.
pub enum Step {
    /// Nothing more.
    Reply(Reply),
    /// Work on keys.
    Plan(Plan),
    /// Something else that the cluster or the server must be asked for.
    Job(Job),
    /// Answer, then close the connection.
    Close(Reply),
    /// Close the connection: what speaks isn't a Redis client.
    HangUp,
}

/// Work that isn't a plan on keys.
pub enum Job {
    /// Removes every key of the database, or of all.
    Flush {
        /// Of all databases.
        all: bool,
    },
    /// Counts the keys.
    DbSize,
    /// All keys that match.
    Keys(Bytes),
    /// Some keys, and where to go on.
    Scan(Scan),
    /// Any key.
    RandomKey,
    /// Chooses another database.
    Select(u8),
    /// Notes which versions these keys have; then [`Session::watch`].
    Watch(Vec<Bytes>),
    /// Carries a transaction out.
    Exec(Transaction),
    /// Sets the connection back: [`Session::reset`].
    Reset,
    /// `CLIENT` about other connections, `CONFIG` and `INFO`: see [`crate::server`].
    Server(Vec<Bytes>),
}

/// A step through all keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Where to go on; 0 for the start.
    pub cursor: u64,
    /// Only keys that match.
    pub pattern: Option<Bytes>,
    /// About how many keys to look at.
    pub count: usize,
    /// Only keys of this type.
    pub kind: Option<String>,
}

/// A part of a transaction.
pub enum Part {
    /// Needs nobody.
    Reply(Reply),
    /// Work on keys.
    Plan(Plan),
    /// About the server: [`Job::Server`].
    Server(Vec<Bytes>),
}

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The database it is in.
    pub db: u8,
    /// The key.
    pub key: Bytes,
    /// Its version; 0 if it wasn't there.
    pub version: u64,
}

/// All commands of a transaction.
pub struct Transaction {
    /// In order.
    pub parts: Vec<Part>,
    /// What must not have changed.
    pub watched: Vec<Watched>,
    /// What the connection calls itself once it is done.
    pub name: Bytes,
}

#[derive(Default)]
struct Multi {
    queued: Vec<Request>,
    size_bytes: usize,
    /// A command couldn't be queued: the transaction is lost.
    failed: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Muted {
    #[default]
    No,
    /// The next answer is left out.
    Next,
    Always,
}

/// The state of a connection.
#[derive(Default)]
pub struct Session {
    /// Its number, as `CLIENT ID` tells it.
    pub id: u64,
    /// As the client has called itself.
    pub name: Bytes,
    /// The database.
    pub db: u8,
    /// Version 3 of the protocol.
    pub resp3: bool,
    /// The clock of the request under way, in milliseconds since 1970.
    pub now_ms: u64,
    muted: Muted,
    multi: Option<Multi>,
    watched: Vec<Watched>,
}

impl Session {
    /// A new connection.
    pub fn new(id: u64) -> Self {
        Session { id, ..Session::default() }
    }

    /// Takes a request in (it has at least one word). The flag says whether the answer is to be
    /// left out.
    pub fn take(&mut self, args: Request, now_ms: u64) -> (Step, bool) {
        self.now_ms = now_ms;
        let muted = self.muted;
        if muted == Muted::Next {
            self.muted = Muted::No;
        }
        let step = self.dispatch(args);
        // `CLIENT REPLY ON` is answered, `OFF` and `SKIP` aren't.
        let silent = self.muted != Muted::No || muted == Muted::Next;
        (step, silent)
    }

    /// Notes what is watched from now on.
    pub fn watch(&mut self, watched: impl IntoIterator<Item = Watched>) {
        self.watched.extend(watched);
    }

    /// Back to how it was at the start (`RESET`).
    pub fn reset(&mut self) {
        *self = Session { id: self.id, now_ms: self.now_ms, ..Session::default() };
    }

    pub(crate) fn mute(&mut self, mode: &str) -> bool {
        self.muted = match mode {
            "ON" => Muted::No,
            "OFF" => Muted::Always,
            "SKIP" => Muted::Next,
            _ => return false,
        };
        true
    }

    /// How many commands wait in its transaction, if one is open.
    pub fn queued(&self) -> Option<usize> {
        self.multi.as_ref().map(|multi| multi.queued.len())
    }

    /// Bytes that wait in its transaction, and what it watches.
    pub fn held_bytes(&self) -> usize {
        self.multi.as_ref().map_or(0, |multi| multi.size_bytes)
            + self.watched.iter().map(|watched| watched.key.len() + 32).sum::<usize>()
    }

    fn dispatch(&mut self, args: Request) -> Step {
        // A browser, or whatever speaks HTTP: what it sends further may look like commands that
        // somebody else has made up.
        if args.first().is_some_and(|name| is(name, "post") || is(name, "host:")) {
            return Step::HangUp;
        }
        let spec = match checked(&args) {
            Ok(spec) => spec,
            Err(refused) if args.first().is_some_and(|name| is(name, "exec")) => {
                return Step::Reply(self.abort(&refused));
            }
            Err(refused) => return self.reject(refused),
        };
        if self.multi.is_some() && !spec.in_transaction_at_once() {
            return Step::Reply(self.queue(spec, args));
        }
        self.run(spec, &args)
    }

    fn run(&mut self, spec: &Spec, args: &[Bytes]) -> Step {
        match spec.handler {
            Handler::Keys(plan) => match plan(args) {
                Ok(plan) => Step::Plan(plan),
                Err(reply) => Step::Reply(reply),
            },
            Handler::Here(plan) => match plan(self, args) {
                Ok(plan) => Step::Plan(plan),
                Err(reply) => Step::Reply(reply),
            },
            Handler::Local(answer) => Step::Reply(answer(self, args)),
            Handler::Step(step) => step(self, args),
        }
    }

    /// A command that can't be carried out spoils the transaction it belongs to.
    fn reject(&mut self, reply: Reply) -> Step {
        if let Some(multi) = &mut self.multi {
            multi.failed = true;
        }
        Step::Reply(reply)
    }

    fn queue(&mut self, spec: &Spec, args: Request) -> Reply {
        let stays = spec.name == "select" && self.stays(&args);
        let Some(multi) = &mut self.multi else { return Reply::error("no transaction is open") };
        let size_bytes: usize = args.iter().map(|arg| arg.len() + 32).sum();
        let problem = if spec.has_flag("no_multi") {
            Some("Command not allowed inside a transaction".to_owned())
        } else if stays {
            None
        } else if spec.name == "select" {
            Some("SELECT of another database is not supported inside a transaction: it is on other shards".to_owned())
        } else if matches!(spec.handler, Handler::Step(_)) && !spec.is_about_server() {
            Some(format!(
                "'{}' is not supported inside a transaction: it looks at all shards",
                spec.name
            ))
        } else if spec.name == "msetnx" {
            Some("MSETNX is not supported inside a transaction".to_owned())
        } else if multi.queued.len() >= QUEUED_MAX
            || multi.size_bytes + size_bytes > QUEUED_MAX_BYTES
        {
            Some(format!(
                "the transaction is too large; the limits are {QUEUED_MAX} commands and {QUEUED_MAX_BYTES} bytes"
            ))
        } else {
            None
        };
        if let Some(problem) = problem {
            multi.failed = true;
            return Reply::error(problem);
        }
        multi.size_bytes += size_bytes;
        multi.queued.push(args);
        Reply::Simple("QUEUED")
    }

    /// Whether a `SELECT` chooses the database that is selected already, or none at all.
    fn stays(&self, args: &[Bytes]) -> bool {
        args.get(1)
            .and_then(|db| integer(db).ok())
            .is_none_or(|db| db == i64::from(self.db) || !(0..i64::from(DATABASES)).contains(&db))
    }

    /// Ends a transaction because its `EXEC` is none.
    fn abort(&mut self, refused: &Reply) -> Reply {
        self.multi = None;
        self.watched.clear();
        let why = match refused {
            Reply::Error(text) => text.strip_prefix("ERR ").unwrap_or(text),
            _ => "",
        };
        Reply::Error(format!("EXECABORT Transaction discarded because of: {why}"))
    }

    pub(crate) fn begin(&mut self) -> Reply {
        if self.multi.is_some() {
            return Reply::error("MULTI calls can not be nested");
        }
        self.multi = Some(Multi::default());
        Reply::OK
    }

    pub(crate) fn discard(&mut self) -> Reply {
        if self.multi.take().is_none() {
            return Reply::error("DISCARD without MULTI");
        }
        self.watched.clear();
        Reply::OK
    }

    pub(crate) fn unwatch(&mut self) -> Reply {
        if self.multi.is_none() {
            self.watched.clear();
        }
        Reply::OK
    }

    pub(crate) fn start_watching(&mut self, keys: &[Bytes]) -> Step {
        if self.multi.is_some() {
            return Step::Reply(Reply::error("WATCH inside MULTI is not allowed"));
        }
        if self.watched.len() + keys.len() > WATCHED_MAX {
            return Step::Reply(Reply::error(format!(
                "too many watched keys; the limit is {WATCHED_MAX}"
            )));
        }
        let known = |key: &&Bytes| {
            !self.watched.iter().any(|watched| watched.db == self.db && watched.key == **key)
        };
        Step::Job(Job::Watch(keys.iter().filter(known).cloned().collect()))
    }

    pub(crate) fn exec(&mut self) -> Step {
        let Some(multi) = self.multi.take() else {
            return Step::Reply(Reply::error("EXEC without MULTI"));
        };
        let watched = std::mem::take(&mut self.watched);
        if multi.failed {
            let problem = "EXECABORT Transaction discarded because of previous errors.";
            return Step::Reply(Reply::Error(problem.to_owned()));
        }
        let name = self.name.clone();
        let parts = multi.queued.iter().map(|args| self.part(args)).collect();
        // What was set counts once it is known that no watched key has changed.
        let name = std::mem::replace(&mut self.name, name);
        Step::Job(Job::Exec(Transaction { parts, watched, name }))
    }

    fn part(&mut self, args: &[Bytes]) -> Part {
        match checked(args).map(|spec| self.run(spec, args)) {
            Ok(Step::Plan(plan)) => Part::Plan(plan),
            Ok(Step::Reply(reply)) | Err(reply) => Part::Reply(reply),
            Ok(Step::Job(Job::Server(args))) => Part::Server(args),
            Ok(Step::Job(Job::Select(_))) => Part::Reply(Reply::OK),
            Ok(Step::Job(_) | Step::Close(_) | Step::HangUp) => {
                Part::Reply(Reply::error("the command is not supported inside a transaction"))
            }
        }
    }
}

/// The command that is asked for, if it exists and has as many arguments as it needs.
fn checked(args: &[Bytes]) -> Result<&'static Spec, Reply> {
    let spec =
        args.first().and_then(|name| table::find(name)).ok_or_else(|| unknown_command(args))?;
    subcommands::check(spec, args)?;
    if spec.accepts(args.len()) { Ok(spec) } else { Err(wrong_number(spec.name)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(session: &mut Session, line: &str) -> Step {
        session.take(line.split(' ').map(|word| Bytes::from(word.to_owned())).collect(), 0).0
    }

    fn answer(session: &mut Session, line: &str) -> Reply {
        match say(session, line) {
            Step::Reply(reply) | Step::Close(reply) => reply,
            _ => panic!("{line} needs the cluster"),
        }
    }

    #[test]
    fn a_name_that_is_set_in_a_transaction_counts_once_that_is_done() {
        let mut session = Session::new(1);
        session.name = "before".into();
        for line in ["multi", "client setname after", "client getname"] {
            say(&mut session, line);
        }
        let Step::Job(Job::Exec(transaction)) = say(&mut session, "exec") else { panic!() };
        let Part::Reply(Reply::Bulk(told)) = &transaction.parts[1] else { panic!() };
        assert_eq!((&told[..], &transaction.name[..]), (&b"after"[..], &b"after"[..]));
        assert_eq!(session.name, "before");
    }

    #[test]
    fn a_transaction_collects_commands_until_exec() {
        let mut session = Session::new(1);
        assert_eq!(answer(&mut session, "multi"), Reply::OK);
        assert_eq!(answer(&mut session, "set k v"), Reply::Simple("QUEUED"));
        assert_eq!(answer(&mut session, "ping"), Reply::Simple("QUEUED"));
        let Step::Job(Job::Exec(transaction)) = say(&mut session, "exec") else { panic!() };
        assert!(matches!(
            transaction.parts[..],
            [Part::Plan(_), Part::Reply(Reply::Simple("PONG"))]
        ));
        assert!(answer(&mut session, "exec").is_error());
    }

    #[test]
    fn a_command_that_cannot_be_queued_spoils_the_transaction() {
        let bad = [
            "nonsense",
            "get",
            "flushall",
            "msetnx a b",
            "save",
            "client kill",
            "client nonsense",
            "object encoding",
            "config set a",
            "slowlog len x",
            "select 3",
            "scan 0",
            "keys *",
            "dbsize",
            "randomkey",
            "discard x",
            "multi x",
        ];
        for bad in bad {
            let mut session = Session::new(1);
            answer(&mut session, "multi");
            assert!(answer(&mut session, bad).is_error(), "{bad}");
            assert!(
                matches!(answer(&mut session, "exec"), Reply::Error(text) if text.starts_with("EXECABORT"))
            );
        }
    }

    #[test]
    fn an_exec_with_arguments_ends_the_transaction() {
        let mut session = Session::new(1);
        answer(&mut session, "multi");
        let told = "EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' command";
        assert_eq!(answer(&mut session, "exec x"), Reply::Error(told.to_owned()));
        assert_eq!(answer(&mut session, "exec"), Reply::error("EXEC without MULTI"));
    }

    #[test]
    fn the_selected_database_may_be_selected_inside_a_transaction() {
        let mut session = Session::new(1);
        answer(&mut session, "multi");
        for line in ["select 0", "select 99", "select x"] {
            assert_eq!(answer(&mut session, line), Reply::Simple("QUEUED"));
        }
        let Step::Job(Job::Exec(transaction)) = say(&mut session, "exec") else { panic!() };
        let Part::Reply(reply) = &transaction.parts[0] else { panic!() };
        assert_eq!(*reply, Reply::OK);
        let Part::Reply(reply) = &transaction.parts[1] else { panic!() };
        assert!(reply.is_error());
    }

    #[test]
    fn who_speaks_http_is_cut_off() {
        for line in ["POST / HTTP/1.1", "Host: example", "host: x"] {
            assert!(matches!(say(&mut Session::new(1), line), Step::HangUp), "{line}");
            let mut session = Session::new(1);
            answer(&mut session, "multi");
            assert!(matches!(say(&mut session, line), Step::HangUp), "{line}");
        }
    }

    #[test]
    fn answers_are_left_out_where_the_client_asks_for_it() {
        let mut session = Session::new(1);
        let mut silent = |line: &str| {
            session.take(line.split(' ').map(|word| Bytes::from(word.to_owned())).collect(), 0).1
        };
        assert!(!silent("ping"));
        assert!(silent("client reply skip"));
        assert!(silent("ping"));
        assert!(!silent("ping"));
        assert!(silent("client reply off"));
        assert!(silent("ping"));
        assert!(!silent("client reply on"));
    }

    #[test]
    fn junk_commands_never_panic() {
        let words = ["", "0", "-1", "x", "NX", "GET", "EX", "9999999999999999999", "u8", "#1"];
        for spec in table::COMMANDS {
            for count in 1..7 {
                for word in words {
                    let mut args = vec![Bytes::from(spec.name)];
                    args.resize(count, Bytes::from(word));
                    let _ = Session::new(1).take(args, 0);
                }
            }
        }
    }
}
