//! Commands inside commands, such as `CLIENT KILL`: which there are, and what `HELP` says.

use crate::args::is;
use crate::reply::Reply;
use crate::table::Spec;
use bytes::Bytes;

/// A command inside a command.
pub struct Subcommand {
    /// In small letters.
    pub name: &'static str,
    /// Words, both names included; negative: at least so many.
    pub arity: i32,
    /// As in [`Spec::flags`].
    pub flags: &'static str,
}

/// A command that has others inside.
pub(crate) struct Container {
    pub(crate) name: &'static str,
    pub(crate) subcommands: &'static [Subcommand],
    /// What Redis 7.0 has there and KvDB doesn't.
    missing: &'static [&'static str],
    help: &'static [&'static str],
}

impl Subcommand {
    /// Whether so many words are enough and not too many.
    pub fn accepts(&self, words: usize) -> bool {
        let least = self.arity.unsigned_abs() as usize;
        if self.arity < 0 { words >= least } else { words == least }
    }
}

const fn sub(name: &'static str, arity: i32, flags: &'static str) -> Subcommand {
    Subcommand { name, arity, flags }
}

const PLAIN: &str = "loading stale";
const OWN: &str = "noscript loading stale";
const ADMIN: &str = "admin noscript loading stale";
const READ: &str = "readonly";

const CONTAINERS: &[Container] = &[
    Container {
        name: "client",
        subcommands: &[
            sub("getname", 2, OWN),
            sub("getredir", 2, OWN),
            sub("help", 2, PLAIN),
            sub("id", 2, OWN),
            sub("info", 2, OWN),
            sub("kill", -3, ADMIN),
            sub("list", -2, ADMIN),
            sub("no-evict", 3, ADMIN),
            sub("no-touch", 3, OWN),
            sub("reply", 3, OWN),
            sub("setinfo", 4, OWN),
            sub("setname", 3, OWN),
            sub("trackinginfo", 2, OWN),
            sub("unblock", -3, ADMIN),
        ],
        missing: &["caching", "pause", "tracking", "unpause"],
        help: &[
            "CLIENT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
            "GETNAME",
            "    The name of this connection.",
            "GETREDIR",
            "    Where notes on changed keys go: always -1, as there are none.",
            "ID",
            "    The number of this connection.",
            "INFO",
            "    Facts about this connection.",
            "KILL <ip:port>",
            "    Closes the connection from this address.",
            "KILL <option> <value> [<option> <value> ...]",
            "    Closes the connections for which all of these hold. Options are:",
            "    * ADDR <ip:port> | LADDR <ip:port> | ID <id> | USER <name>",
            "    * TYPE (NORMAL|MASTER|REPLICA|PUBSUB)",
            "    * SKIPME (YES|NO): whether this connection stays open (yes unless told otherwise)",
            "LIST [TYPE (NORMAL|MASTER|REPLICA|PUBSUB) | ID <id> [<id> ...]]",
            "    Facts about the connections to this gateway.",
            "NO-EVICT (ON|OFF)",
            "    Accepted; connections aren't evicted.",
            "NO-TOUCH (ON|OFF)",
            "    Accepted; it isn't noted when keys are used.",
            "REPLY (ON|OFF|SKIP)",
            "    Whether commands are answered.",
            "SETINFO (LIB-NAME|LIB-VER) <value>",
            "    Accepted.",
            "SETNAME <name>",
            "    Names this connection.",
            "TRACKINGINFO",
            "    Tracking of changed keys: always off.",
            "UNBLOCK <id> [TIMEOUT|ERROR]",
            "    Wakes a connection in a blocking command: always 0, as there are none.",
            "HELP",
            "    Prints this help.",
        ],
    },
    Container {
        name: "command",
        subcommands: &[
            sub("count", 2, PLAIN),
            sub("docs", -2, PLAIN),
            sub("getkeys", -4, PLAIN),
            sub("getkeysandflags", -4, PLAIN),
            sub("help", 2, PLAIN),
            sub("info", -2, PLAIN),
            sub("list", -2, PLAIN),
        ],
        missing: &[],
        help: &[
            "COMMAND <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
            "(no subcommand)",
            "    Describes all commands.",
            "COUNT",
            "    How many commands there are.",
            "DOCS [<command-name> ...]",
            "    What they do; all if none is named.",
            "GETKEYS <full-command>",
            "    The keys of a command.",
            "GETKEYSANDFLAGS <full-command>",
            "    The keys of a command, and what it does with them.",
            "INFO [<command-name> ...]",
            "    Describes commands; all if none is named.",
            "LIST [FILTERBY (MODULE <name> | ACLCAT <category> | PATTERN <pattern>)]",
            "    The names of commands.",
            "HELP",
            "    Prints this help.",
        ],
    },
    Container {
        name: "config",
        subcommands: &[
            sub("get", -3, ADMIN),
            sub("help", 2, PLAIN),
            sub("resetstat", 2, ADMIN),
            sub("rewrite", 2, ADMIN),
            sub("set", -4, ADMIN),
        ],
        missing: &[],
        help: &[
            "CONFIG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
            "GET <pattern> [<pattern> ...]",
            "    Settings whose names match.",
            "RESETSTAT",
            "    Sets the counts of INFO back to 0.",
            "REWRITE",
            "    Always refused: there is no file of settings.",
            "SET <setting> <value> [<setting> <value> ...]",
            "    Changes settings of this gateway until it stops. What KvDB always does can't be changed.",
            "HELP",
            "    Prints this help.",
        ],
    },
    Container {
        name: "function",
        subcommands: &[
            sub("flush", -2, "write noscript"),
            sub("help", 2, PLAIN),
            sub("list", -2, "noscript"),
        ],
        missing: &["delete", "dump", "kill", "load", "restore", "stats"],
        help: &[
            "FUNCTION <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
            "FLUSH [ASYNC|SYNC]",
            "    Removes all functions; there are none.",
            "LIST [LIBRARYNAME <pattern>] [WITHCODE]",
            "    Lists functions; there are none.",
            "HELP",
            "    Prints this help.",
        ],
    },
    Container {
        name: "latency",
        subcommands: &[
            sub("help", 2, PLAIN),
            sub("history", 3, ADMIN),
            sub("latest", 2, ADMIN),
            sub("reset", -2, ADMIN),
        ],
        missing: &["doctor", "graph", "histogram"],
        help: &[
            "LATENCY <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
            "HISTORY <event>",
            "    Always empty: times are in the metrics.",
            "LATEST",
            "    Always empty.",
            "RESET [<event> ...]",
            "    Always 0.",
            "HELP",
            "    Prints this help.",
        ],
    },
    Container {
        name: "memory",
        subcommands: &[sub("help", 2, PLAIN), sub("usage", -3, READ)],
        missing: &["doctor", "malloc-stats", "purge", "stats"],
        help: &[
            "MEMORY <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
            "USAGE <key> [SAMPLES <count>]",
            "    About how many bytes a key takes up in the store. Of a large collection so many elements are",
            "    looked at (default: 5, 0 for all).",
            "HELP",
            "    Prints this help.",
        ],
    },
    Container {
        name: "object",
        subcommands: &[
            sub("encoding", 3, READ),
            sub("freq", 3, READ),
            sub("help", 2, PLAIN),
            sub("idletime", 3, READ),
            sub("refcount", 3, READ),
        ],
        missing: &[],
        help: &[
            "OBJECT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
            "ENCODING <key>",
            "    How Redis would keep the value.",
            "FREQ <key>",
            "    Refused: how often keys are used isn't counted.",
            "IDLETIME <key>",
            "    Always 0.",
            "REFCOUNT <key>",
            "    Always 1.",
            "HELP",
            "    Prints this help.",
        ],
    },
    Container {
        name: "slowlog",
        subcommands: &[
            sub("get", -2, "admin loading stale"),
            sub("help", 2, PLAIN),
            sub("len", 2, "admin loading stale"),
            sub("reset", 2, "admin loading stale"),
        ],
        missing: &[],
        help: &[
            "SLOWLOG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
            "GET [<count>]",
            "    Always empty: slow requests are in the logs and metrics.",
            "LEN",
            "    Always 0.",
            "RESET",
            "    Does nothing.",
            "HELP",
            "    Prints this help.",
        ],
    },
];

/// More words than a subcommand takes that may have some.
pub(crate) fn too_many(name: &str, parent: &str) -> Reply {
    Reply::error(format!(
        "unknown subcommand or wrong number of arguments for '{name}'. Try {parent} HELP."
    ))
}

/// What a command has inside.
pub(crate) fn of(command: &str) -> Option<&'static Container> {
    CONTAINERS.iter().find(|container| container.name == command)
}

/// Checks a command's words against what it has inside, as far as it has.
pub(crate) fn check(spec: &Spec, args: &[Bytes]) -> Result<(), Reply> {
    let (Some(container), Some(given)) = (of(spec.name), args.get(1)) else { return Ok(()) };
    match container.find(given) {
        Some(found) if found.accepts(args.len()) => Ok(()),
        Some(found) => {
            Err(crate::args::wrong_number(&format!("{}|{}", container.name, found.name)))
        }
        None => Err(container.unknown(given)),
    }
}

/// The answer to `HELP`, if that is what is asked for.
pub(crate) fn help(args: &[Bytes]) -> Option<Reply> {
    let [command, word] = args else { return None };
    let container = CONTAINERS.iter().find(|container| is(command, container.name))?;
    is(word, "help")
        .then(|| Reply::Array(container.help.iter().map(|line| Reply::Simple(line)).collect()))
}

impl Container {
    pub(crate) fn find(&self, name: &[u8]) -> Option<&'static Subcommand> {
        self.subcommands.iter().find(|known| is(name, known.name))
    }

    fn unknown(&self, given: &[u8]) -> Reply {
        let shown = String::from_utf8_lossy(&given[..given.len().min(128)]).into_owned();
        let parent = self.name.to_uppercase();
        if self.missing.iter().any(|name| is(given, name)) {
            return Reply::error(format!(
                "unknown subcommand '{shown}': KvDB doesn't have it. Try {parent} HELP."
            ));
        }
        Reply::error(format!("unknown subcommand '{shown}'. Try {parent} HELP."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subcommand_has_its_help_and_its_container_is_a_command() {
        for container in CONTAINERS {
            assert!(crate::table::find(container.name.as_bytes()).is_some());
            assert!(container.subcommands.is_sorted_by(|a, b| a.name < b.name));
            for known in container.subcommands {
                let name = known.name.to_uppercase();
                let told = container
                    .help
                    .iter()
                    .any(|line| line.split(' ').next().is_some_and(|word| word == name));
                assert!(told, "{} {name}", container.name);
                assert!(!container.missing.contains(&known.name));
            }
        }
    }
}
