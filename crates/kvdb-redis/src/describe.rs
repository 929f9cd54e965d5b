//! How commands are described to clients: `COMMAND INFO`, `DOCS`, `LIST` and `GETKEYS`.

use crate::args::{is, syntax, upper};
use crate::glob;
use crate::reply::Reply;
use crate::subcommands::{self, Subcommand};
use crate::table::{self, COMMANDS, Spec};
use bytes::Bytes;

/// Keys of a command: what it does with them, the first, the last counted from it (negative: from
/// the end), the step (0 for keys that a number before them counts), and a note. With a step of -1: a key
/// behind a word, which the note names, from a place on.
type Access = (&'static str, i32, i32, i32, &'static str);

const STORE_5: Access = ("OW update", 5, 0, -1, "STORE");
const STOREDIST_5: Access = ("OW update", 5, 0, -1, "STOREDIST");
const STORE_6: Access = ("OW update", 6, 0, -1, "STORE");
const STOREDIST_6: Access = ("OW update", 6, 0, -1, "STOREDIST");

/// What is done with the keys of commands of more than one kind of them.
const ACCESS: &[(&str, &[Access])] = &[
    (
        "bitfield",
        &[(
            "RW access update variable_flags",
            1,
            0,
            1,
            "This command allows both access and modification of the key",
        )],
    ),
    ("bitop", &[("OW update", 2, 0, 1, ""), ("RO access", 3, -1, 1, "")]),
    ("copy", &[("RO access", 1, 0, 1, ""), ("OW update", 2, 0, 1, "")]),
    ("lmove", &[("RW access delete", 1, 0, 1, ""), ("RW insert", 2, 0, 1, "")]),
    ("rpoplpush", &[("RW access delete", 1, 0, 1, ""), ("RW insert", 2, 0, 1, "")]),
    ("georadius", &[("RO access", 1, 0, 1, ""), STORE_6, STOREDIST_6]),
    ("georadiusbymember", &[("RO access", 1, 0, 1, ""), STORE_5, STOREDIST_5]),
    ("geosearchstore", &[("OW update", 1, 0, 1, ""), ("RO access", 2, 0, 1, "")]),
    ("getex", &[("RW access update", 1, 0, 1, "RW and UPDATE because it changes the TTL")]),
    ("hgetex", &[("RW access update", 1, 0, 1, "RW and UPDATE because it changes the TTL")]),
    (
        "pfcount",
        &[(
            "RW access",
            1,
            -1,
            1,
            "RW because it may change the internal representation of the key, and propagate to replicas",
        )],
    ),
    ("pfmerge", &[("RW access insert", 1, 0, 1, ""), ("RO access", 2, -1, 1, "")]),
    ("rename", &[("RW access delete", 1, 0, 1, ""), ("OW update", 2, 0, 1, "")]),
    ("renamenx", &[("RW access delete", 1, 0, 1, ""), ("OW insert", 2, 0, 1, "")]),
    ("sdiffstore", &[("OW update", 1, 0, 1, ""), ("RO access", 2, -1, 1, "")]),
    (
        "set",
        &[(
            "RW access update variable_flags",
            1,
            0,
            1,
            "RW and ACCESS due to the optional `GET` argument",
        )],
    ),
    ("sinterstore", &[("RW update", 1, 0, 1, ""), ("RO access", 2, -1, 1, "")]),
    ("smove", &[("RW access delete", 1, 0, 1, ""), ("RW insert", 2, 0, 1, "")]),
    ("sunionstore", &[("OW update", 1, 0, 1, ""), ("RO access", 2, -1, 1, "")]),
    ("zrangestore", &[("OW update", 1, 0, 1, ""), ("RO access", 2, 0, 1, "")]),
];

/// What a command does with its keys, where they are all of one kind.
fn usual_access(name: &str) -> &'static str {
    match name {
        "append" | "hsetnx" | "linsert" | "lpush" | "lpushx" | "pfadd" | "rpush" | "rpushx"
        | "sadd" => "RW insert",
        "decr" | "decrby" | "getset" | "hincrby" | "hincrbyfloat" | "incr" | "incrby"
        | "incrbyfloat" | "move" | "setbit" | "zincrby" => "RW access update",
        "hdel" | "lrem" | "ltrim" | "srem" | "zrem" | "zremrangebylex" | "zremrangebyrank"
        | "zremrangebyscore" => "RW delete",
        "del" | "unlink" => "RM delete",
        "memory" | "exists" | "hexists" | "hlen" | "hstrlen" | "llen" | "object" | "scard"
        | "sismember" | "strlen" | "touch" | "type" | "watch" | "zcard" => "RO",
        "expire" | "expireat" | "hexpire" | "hexpireat" | "hmset" | "hpersist" | "hpexpire"
        | "hpexpireat" | "hset" | "hsetex" | "lset" | "persist" | "pexpire" | "pexpireat"
        | "geoadd" | "setrange" | "zadd" => "RW update",
        "getdel" | "hgetdel" | "lmpop" | "lpop" | "rpop" | "spop" | "zmpop" | "zpopmax"
        | "zpopmin" => "RW access delete",
        "mset" | "psetex" | "restore" | "setex" | "zdiffstore" | "zinterstore" | "zunionstore" => {
            "OW update"
        }
        "msetnx" | "setnx" => "OW insert",
        _ => "RO access",
    }
}

/// Hints on routing and on answers, with spaces between.
fn tips(name: &str) -> &'static str {
    match name {
        "client|info" | "client|list" | "dump" | "hrandfield" | "hscan" | "object|freq"
        | "object|encoding" | "object|idletime" | "object|refcount" | "pttl" | "spop"
        | "srandmember" | "sscan" | "time" | "ttl" | "zrandmember" | "zscan" => {
            "nondeterministic_output"
        }
        "command" | "command|docs" | "command|info" | "command|list" | "function|list"
        | "hgetall" | "hkeys" | "hvals" | "sdiff" | "sinter" | "smembers" | "sunion" => {
            "nondeterministic_output_order"
        }
        "config|set" | "latency|reset" | "slowlog|reset" => {
            "request_policy:all_nodes response_policy:all_succeeded"
        }
        "dbsize" => "request_policy:all_shards response_policy:agg_sum",
        "del" | "exists" | "touch" | "unlink" => {
            "request_policy:multi_shard response_policy:agg_sum"
        }
        "flushall" | "flushdb" | "function|flush" | "ping" => {
            "request_policy:all_shards response_policy:all_succeeded"
        }
        "info" => "nondeterministic_output request_policy:all_shards response_policy:special",
        "keys" => "request_policy:all_shards nondeterministic_output_order",
        "latency|history" | "latency|latest" => {
            "nondeterministic_output request_policy:all_nodes response_policy:special"
        }
        "mget" => "request_policy:multi_shard",
        "mset" => "request_policy:multi_shard response_policy:all_succeeded",
        "msetnx" => "request_policy:multi_shard response_policy:agg_min",
        "randomkey" => "request_policy:all_shards nondeterministic_output",
        "scan" => "nondeterministic_output request_policy:special",
        "slowlog|get" => "request_policy:all_nodes nondeterministic_output",
        "slowlog|len" => "request_policy:all_nodes response_policy:agg_sum nondeterministic_output",
        "wait" => "request_policy:all_shards response_policy:agg_min",
        _ => "",
    }
}

/// All categories of Redis's access rules, in its order.
const CATEGORIES: [&str; 21] = [
    "keyspace",
    "read",
    "write",
    "set",
    "sortedset",
    "list",
    "hash",
    "string",
    "bitmap",
    "hyperloglog",
    "geo",
    "stream",
    "pubsub",
    "admin",
    "fast",
    "slow",
    "blocking",
    "dangerous",
    "connection",
    "transaction",
    "scripting",
];

/// The categories of a command, or of a subcommand (`client|kill`).
fn categories(name: &str, group: &str, flags: &str) -> Vec<&'static str> {
    let has = |flag: &str| flags.split(' ').any(|known| known == flag);
    let is_container = !name.contains('|') && subcommands::of(name).is_some() && name != "command";
    let belongs = |category: &str| match category {
        "read" => has("readonly"),
        "write" => has("write"),
        "admin" => has("admin"),
        "fast" => has("fast"),
        "slow" => !has("fast"),
        _ if is_container => false,
        // It is of every type that it sorts.
        "set" | "sortedset" | "list" | "dangerous" if matches!(name, "sort" | "sort_ro") => true,
        "keyspace" if matches!(name, "sort" | "sort_ro") => false,
        "dangerous" => {
            let named = ["flushall", "flushdb", "info", "keys", "restore", "swapdb"];
            has("admin") || named.contains(&name)
        }
        "keyspace" => {
            let named = ["dbsize", "flushall", "flushdb", "swapdb"];
            (group == "generic" && name != "wait") || named.contains(&name)
        }
        "connection" => group == "connection" || name == "wait" || name.starts_with("command"),
        "transaction" => group == "transactions",
        "sortedset" => group == "sorted-set",
        "string" | "bitmap" | "hash" | "list" | "set" | "hyperloglog" | "geo" | "scripting" => {
            group == category
        }
        _ => false,
    };
    CATEGORIES.into_iter().filter(|category| belongs(category)).collect()
}

fn access_of(spec: &Spec) -> Vec<Access> {
    if let Some((_, known)) = ACCESS.iter().find(|(name, _)| *name == spec.name) {
        return known.to_vec();
    }
    let (first, last, step) = spec.keys;
    let mut access = vec![];
    if first != 0 {
        let last = if last < 0 { last } else { last - first };
        access.push((usual_access(spec.name), first, last, step, ""));
    }
    if let Some(at) = spec.counts_keys_at() {
        let flags = if first == 0 { usual_access(spec.name) } else { "RO access" };
        access.push((flags, at as i32, 0, 0, ""));
    }
    access
}

fn words(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.split(' ').filter(|word| !word.is_empty())
}

fn key_spec((flags, first, last, step, note): Access) -> Reply {
    let pair = |key: &str, value| (Reply::text(key), value);
    let number = |number: i32| Reply::Integer(number.into());
    let mut pairs = vec![];
    let is_behind_word = step < 0;
    if !note.is_empty() && !is_behind_word {
        pairs.push(pair("notes", Reply::text(note)));
    }
    let (begins, place) = match is_behind_word {
        false => ("index", vec![pair("index", number(first))]),
        true => {
            ("keyword", vec![pair("keyword", Reply::text(note)), pair("startfrom", number(first))])
        }
    };
    let begin = vec![pair("type", Reply::text(begins)), pair("spec", Reply::Map(place))];
    let range = vec![
        pair("lastkey", number(last)),
        pair("keystep", number(step.abs())),
        pair("limit", number(0)),
    ];
    let counted =
        vec![pair("keynumidx", number(0)), pair("firstkey", number(1)), pair("keystep", number(1))];
    let (kind, find) = if step == 0 { ("keynum", counted) } else { ("range", range) };
    let find = vec![pair("type", Reply::text(kind)), pair("spec", Reply::Map(find))];
    pairs.push(pair("flags", Reply::Set(words(flags).map(Reply::Simple).collect())));
    pairs.push(pair("begin_search", Reply::Map(begin)));
    pairs.push(pair("find_keys", Reply::Map(find)));
    Reply::Map(pairs)
}

fn shown(
    name: &str,
    arity: i32,
    flags: &'static str,
    keys: (i32, i32, i32),
    group: &str,
    access: Vec<Access>,
    inside: Vec<Reply>,
) -> Reply {
    let categories = categories(name, group, flags).into_iter();
    Reply::Array(vec![
        Reply::text(name),
        Reply::Integer(arity.into()),
        Reply::Set(words(flags).map(Reply::Simple).collect()),
        Reply::Integer(keys.0.into()),
        Reply::Integer(keys.1.into()),
        Reply::Integer(keys.2.into()),
        Reply::Set(categories.map(|name| Reply::Status(format!("@{name}"))).collect()),
        Reply::Set(words(tips(name)).map(Reply::text).collect()),
        Reply::Set(access.into_iter().map(key_spec).collect()),
        Reply::Set(inside),
    ])
}

fn describe(spec: &Spec) -> Reply {
    let Some(container) = subcommands::of(spec.name) else {
        return shown(
            spec.name,
            spec.arity,
            spec.flags,
            spec.keys,
            spec.group,
            access_of(spec),
            vec![],
        );
    };
    let inside = container.subcommands.iter().map(|known| describe_inside(spec, known)).collect();
    shown(spec.name, spec.arity, spec.flags, (0, 0, 0), spec.group, vec![], inside)
}

fn describe_inside(spec: &Spec, known: &Subcommand) -> Reply {
    let name = format!("{}|{}", spec.name, known.name);
    let has_key = matches!(spec.name, "memory" | "object") && known.name != "help";
    let (keys, access) = match has_key {
        true => (spec.keys, access_of(spec)),
        false => ((0, 0, 0), vec![]),
    };
    shown(&name, known.arity, known.flags, keys, spec.group, access, vec![])
}

/// A command or, as `client|kill`, a subcommand.
fn named(name: &[u8]) -> Option<Reply> {
    let mut parts = name.splitn(2, |byte| *byte == b'|');
    let spec = table::find(parts.next()?)?;
    match parts.next() {
        None => Some(describe(spec)),
        Some(inside) => {
            let known = subcommands::of(spec.name)?.find(inside)?;
            Some(describe_inside(spec, known))
        }
    }
}

fn docs_of(spec: &Spec) -> Reply {
    Reply::Map(vec![
        (Reply::text("summary"), Reply::text(spec.summary)),
        (Reply::text("group"), Reply::text(spec.group)),
    ])
}

/// Answers `COMMAND`.
pub(crate) fn command(args: &[Bytes]) -> Reply {
    let Some(what) = args.get(1) else {
        return Reply::Array(COMMANDS.iter().map(describe).collect());
    };
    match upper(what).as_str() {
        "COUNT" => Reply::Integer(COMMANDS.len() as i64),
        "LIST" => list(&args[2..]),
        "INFO" if args.len() == 2 => Reply::Array(COMMANDS.iter().map(describe).collect()),
        "INFO" => {
            Reply::Array(args[2..].iter().map(|name| named(name).unwrap_or(Reply::Nil)).collect())
        }
        "DOCS" => docs(&args[2..]),
        "GETKEYS" => get_keys(&args[2..], false),
        _ => get_keys(&args[2..], true),
    }
}

/// The names of commands; of those inside others too where a filter is given.
fn list(filter: &[Bytes]) -> Reply {
    let [by, kind, wanted] = filter else {
        return match filter {
            [] => Reply::Array(COMMANDS.iter().map(|spec| Reply::text(spec.name)).collect()),
            _ => syntax(),
        };
    };
    if !is(by, "filterby") {
        return syntax();
    }
    let category = upper(wanted).to_lowercase();
    let fits = |name: &str, group: &str, flags: &str| match upper(kind).as_str() {
        "PATTERN" => Some(glob::matches_any_case(wanted, name.as_bytes())),
        "ACLCAT" => Some(categories(name, group, flags).contains(&category.as_str())),
        "MODULE" => Some(false),
        _ => None,
    };
    let mut names = Vec::new();
    for spec in COMMANDS {
        let inside = subcommands::of(spec.name).map_or(&[][..], |known| known.subcommands);
        let inside =
            inside.iter().map(|known| (format!("{}|{}", spec.name, known.name), known.flags));
        for (name, flags) in [(spec.name.to_owned(), spec.flags)].into_iter().chain(inside) {
            match fits(&name, spec.group, flags) {
                Some(true) => names.push(Reply::text(name)),
                Some(false) => {}
                None => return syntax(),
            }
        }
    }
    Reply::Array(names)
}

fn docs(names: &[Bytes]) -> Reply {
    let wanted = COMMANDS
        .iter()
        .filter(|spec| names.is_empty() || names.iter().any(|name| is(name, spec.name)));
    Reply::Map(wanted.map(|spec| (Reply::text(spec.name), docs_of(spec))).collect())
}

fn get_keys(args: &[Bytes], with_flags: bool) -> Reply {
    let Some(spec) = args.first().and_then(|name| table::find(name)) else {
        return Reply::error("Invalid command specified");
    };
    let is_inside = subcommands::of(spec.name)
        .is_some_and(|container| args.get(1).is_some_and(|name| container.find(name).is_none()));
    if is_inside {
        return Reply::error("Invalid command specified");
    }
    let keys = spec.keys_of(args);
    if spec.keys.0 == 0 && spec.counts_keys_at().is_none() {
        return Reply::error("The command has no key arguments");
    }
    if !spec.accepts(args.len()) || subcommands::check(spec, args).is_err() {
        return Reply::error("Invalid number of arguments specified for command");
    }
    if keys.is_empty() {
        return Reply::error("Invalid arguments specified for command");
    }
    let access = access_of(spec);
    let told = keys.into_iter().enumerate().map(|(place, key)| {
        if !with_flags {
            return Reply::Bulk(key);
        }
        // The kinds of keys come in their order; the last kind is that of all others.
        let (flags, ..) = access.get(place).or(access.last()).copied().unwrap_or_default();
        let flags = access_in(spec, args, flags);
        Reply::Array(vec![Reply::Bulk(key), Reply::Set(words(flags).map(Reply::Simple).collect())])
    });
    Reply::Array(told.collect())
}

/// What these very arguments do with the key, where that depends on them.
fn access_in(spec: &Spec, args: &[Bytes], flags: &'static str) -> &'static str {
    match spec.name {
        "set" if args.iter().skip(3).any(|word| is(word, "get")) => "RW access update",
        "set" => "OW update",
        "bitfield" => {
            let writes = |word: &Bytes| is(word, "set") || is(word, "incrby");
            if args.iter().skip(2).any(writes) { "RW access update" } else { "RO access" }
        }
        _ => flags,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(line: &str) -> Reply {
        let args: Vec<Bytes> = line.split(' ').map(|word| Bytes::from(word.to_owned())).collect();
        command(&args)
    }

    fn texts(names: &[&str]) -> Reply {
        Reply::Array(names.iter().map(|name| Reply::text(*name)).collect())
    }

    #[test]
    fn lists_are_filtered_and_what_is_no_filter_is_refused() {
        assert_eq!(say("command list filterby pattern SLOWLOG|l*"), texts(&["slowlog|len"]));
        assert_eq!(say("command list filterby aclcat nothing"), texts(&[]));
        let Reply::Array(bits) = say("command list filterby aclcat bitmap") else { panic!() };
        assert_eq!(bits.len(), 7);
        for bad in ["filterby", "filterby module", "filterby nonsense x", "by pattern x"] {
            assert!(say(&format!("command list {bad}")).is_error(), "{bad}");
        }
    }

    #[test]
    fn keys_are_told_with_what_is_done_with_them() {
        assert_eq!(say("command getkeys mset a 1 b 2"), texts(&["a", "b"]));
        assert_eq!(say("command getkeys object encoding k"), texts(&["k"]));
        let Reply::Array(keys) = say("command getkeysandflags set k v get") else { panic!() };
        let flags = ["RW", "access", "update"].map(Reply::Simple).to_vec();
        assert_eq!(keys[..], [Reply::Array(vec![Reply::text("k"), Reply::Set(flags)])]);
        let Reply::Array(keys) = say("command getkeysandflags sintercard 1 k limit 2") else {
            panic!()
        };
        let flags = ["RO", "access"].map(Reply::Simple).to_vec();
        assert_eq!(keys[..], [Reply::Array(vec![Reply::text("k"), Reply::Set(flags)])]);
        for bad in ["ping x", "get a b", "nonsense k", "object nonsense k", "sintercard 3 a b"] {
            assert!(say(&format!("command getkeys {bad}")).is_error(), "{bad}");
        }
    }

    #[test]
    fn a_subcommand_is_described_alone_too() {
        let Reply::Array(found) = say("command info client|kill nonsense") else { panic!() };
        let Reply::Array(kill) = &found[0] else { panic!() };
        assert_eq!(kill[0], Reply::text("client|kill"));
        assert_eq!(found[1], Reply::Nil);
    }
}
