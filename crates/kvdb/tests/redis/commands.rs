//! Commands by their names, and keys of every type on the command line.

use crate::dev::{Client, Dev, kvdb};
use std::io::{Read, Write};
use std::net::TcpStream;

#[test]
fn an_export_to_tsv_names_a_hash_and_leaves_it_out_only_if_it_is_told_to() {
    let dev = Dev::start();
    let mut client = dev.client();
    client.ask("hset h f v");
    client.ask("set s x");
    let refused = kvdb(&dev, &["export", "-"], "");
    assert_eq!(refused.status.code(), Some(3));
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("key h holds a hash: --format jsonl can hold it"), "{told}");
    let done = kvdb(&dev, &["export", "-", "--strings-only"], "");
    assert!(done.status.success());
    assert_eq!(String::from_utf8_lossy(&done.stdout), "s\tx\n");
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(told.contains("left out, of other types: 1"), "{told}");
}

#[test]
fn keys_of_every_type_come_out_of_an_export_and_in_again_as_they_were() {
    let dev = Dev::start();
    let mut client = dev.client();
    let fields: String = (0..2500).map(|n| format!(" f{n} v{n}")).collect();
    let values: String = (0..2500).map(|n| format!(" e{}", n % 700)).collect();
    let members: String = (0..2500).map(|n| format!(" m{n}")).collect();
    client.ask(&format!("hset large-hash{fields}"));
    client.ask(&format!("rpush large-list{values}"));
    client.ask(&format!("sadd large-set{members}"));
    client.ask("hset g a 1");
    let scored: String = (0..2500).map(|n| format!(" {}.25 m{n}", n % 100)).collect();
    client.ask(&format!("zadd large-zset{scored}"));
    client.ask("zadd z inf a -0.1 b 1e300 c");
    client.ask("hset h a 1");
    client.ask("rpush l x y x");
    client.ask("set s text");
    client.ask("pexpire l 3600000");
    client.ask("hset h b 2");
    client.ask("hpexpire h 3600000 fields 1 b");
    client.ask("hpexpire large-hash 3600000 fields 1 f7");
    let exported = kvdb(&dev, &["export", "-", "--format", "jsonl"], "");
    assert!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    let rows = String::from_utf8(exported.stdout).unwrap();
    assert!(rows.contains(r#"{"items":["a","1"],"key":"g","type":"hash"}"#), "{rows:.200}");
    assert!(
        rows.lines().any(|row| row.contains(r#""key":"large-list""#) && row.contains(r#""at":"#))
    );
    let sorted = |mut rows: Vec<String>| {
        rows.sort();
        rows
    };
    let names = ["large-hash", "large-list", "large-set", "large-zset", "g", "h", "l", "s", "z"];
    let before: Vec<String> = names.iter().map(|name| whole(&dev, name)).collect();
    assert_eq!(client.ask("flushall"), "+OK\r\n");
    // Twice: again does no harm.
    for _ in 0..2 {
        let imported = kvdb(&dev, &["import", "-", "--format", "jsonl"], &rows);
        assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
        let after: Vec<String> = names.iter().map(|name| whole(&dev, name)).collect();
        assert_eq!(sorted(before.clone()), sorted(after));
    }
    let left: i64 = client.ask("pttl l")[1..].trim().parse().unwrap();
    assert!((3_500_000..=3_600_000).contains(&left), "{left}");
    // Fields that expire by themselves do so still, and no others.
    for (key, fields) in [("h", "b a"), ("large-hash", "f7 f8")] {
        let told = client.ask(&format!("hpttl {key} fields 2 {fields}"));
        let told: Vec<i64> =
            told.lines().skip(1).map(|line| line[1..].trim().parse().unwrap()).collect();
        assert!((3_400_000..=3_600_000).contains(&told[0]) && told[1] == -1, "{told:?}");
    }
}

/// All that a key holds, by the command line, in an order of its own where it has none.
fn whole(dev: &Dev, key: &str) -> String {
    let kind = kvdb(dev, &["redis", "type", key], "");
    let kind = String::from_utf8(kind.stdout).unwrap();
    let words = match kind.trim() {
        "hash" => vec!["--json", "redis", "HGETALL", key],
        "list" => vec!["--json", "redis", "LRANGE", key, "0", "-1"],
        "set" => vec!["--json", "redis", "SMEMBERS", key],
        "zset" => vec!["--json", "redis", "ZRANGE", key, "0", "-1", "WITHSCORES"],
        "string" => vec!["--json", "redis", "GET", key],
        other => panic!("{key} is a {other}"),
    };
    let found = kvdb(dev, &words, "");
    let answer: serde_json::Value = serde_json::from_slice(&found.stdout).unwrap();
    let mut items = answer["reply"].as_array().cloned().unwrap_or_default();
    if !["list", "zset"].contains(&kind.trim()) {
        items.sort_by_key(ToString::to_string);
    }
    format!("{key} {kind} {} {items:?}", answer["reply"].as_str().unwrap_or_default())
}

#[test]
fn commands_are_counted_by_name_and_result() {
    let dev = Dev::start();
    let mut client = dev.client();
    for words in ["set a x", "strlen a", "STRLEN a", "lpush a x", "nonsense"] {
        client.ask(words);
    }
    let mut socket = TcpStream::connect(("127.0.0.1", dev.http)).unwrap();
    socket.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut page = String::new();
    socket.read_to_string(&mut page).unwrap();
    for line in [
        "kvdb_redis_commands_total{command=\"strlen\",result=\"OK\"} 2",
        "kvdb_redis_commands_total{command=\"strlen\",result=\"ERROR\"} 0",
        "kvdb_redis_commands_total{command=\"lpush\",result=\"ERROR\"} 1",
        "kvdb_redis_commands_total{command=\"unknown\",result=\"ERROR\"} 1",
    ] {
        assert!(page.contains(line), "{line} is missing: {page}");
    }
    assert!(!page.contains("command=\"zadd\""), "what never came isn't there");
}

#[test]
fn the_server_tells_figures_of_its_own_and_claims_nothing_that_it_has_not() {
    let dev = Dev::start();
    let mut client = dev.client();
    let figure = |client: &mut Client, name: &str| -> u64 {
        let info = client.ask("info");
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("{name} is missing: {info}")).parse().unwrap()
    };
    client.ask("set k v");
    assert_eq!(figure(&mut client, "arch_bits"), 64);
    assert_eq!(figure(&mut client, "uptime_in_days"), 0);
    assert!(figure(&mut client, "used_memory") > 1_000_000);
    let before = figure(&mut client, "total_connections_received");
    let mut other = dev.client();
    assert!(other.ask("ping").starts_with("+PONG"));
    assert_eq!(figure(&mut client, "total_connections_received"), before + 1);
    assert!(client.ask("config resetstat").starts_with("+OK"));
    assert_eq!(figure(&mut client, "total_connections_received"), 0);
    assert!(client.ask("info keyspace").contains("db0:keys=1,"));
    assert!(!client.ask("info memory").contains("redis_version"));

    let named = client.ask("client info");
    for field in ["id=", " addr=127.0.0.1:", " laddr=127.0.0.1:", " db=0 ", " cmd=client|info"] {
        assert!(named.contains(field), "{field}: {named}");
    }
    for (command, part) in [
        ("config set appendonly no", "it is always 'yes'"),
        ("xadd s * f v", "KvDB doesn't have it (streams)"),
        ("eval x 0", "KvDB doesn't have it (scripts"),
        ("client kill user nobody", "No such user"),
        ("copy k l db 99", "out of range"),
    ] {
        let answer = client.ask(command);
        assert!(answer.starts_with('-') && answer.contains(part), "{command}: {answer}");
    }
    // Nobody has set a password.
    assert!(client.ask("auth default x").starts_with("+OK"));
    // What is only selected isn't made.
    assert!(client.ask("select 7").starts_with("+OK"));
    assert!(client.ask("get k").starts_with("$-1"));
    assert!(!dev.admin(&["keyspaces"]).contains("db7"), "a read made a keyspace");
}

#[test]
fn a_command_by_name_answers_typed_and_says_what_is_wrong() {
    let dev = Dev::start();
    let run = |words: &[&str]| {
        let output = kvdb(&dev, words, "");
        let text = |bytes| String::from_utf8(bytes).unwrap().trim_end().to_owned();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    assert_eq!(run(&["redis", "rpush", "l", "a", "b"]).1, "(integer) 2");
    assert_eq!(run(&["redis", "lrange", "l", "0", "-1"]).1, "1) \"a\"\n2) \"b\"");
    assert_eq!(run(&["--json", "redis", "lpop", "l"]).1, r#"{"reply":"a"}"#);
    assert_eq!(run(&["redis", "get", "none"]), (0, "(nil)".into(), String::new()));
    let (code, _, problem) = run(&["redis", "get", "l"]);
    assert_eq!(code, 3);
    assert!(problem.contains("WRONGTYPE"), "{problem}");
    let (code, _, problem) = run(&["redis", "lpush", "l"]);
    assert_eq!((code, problem.contains("wrong number of arguments")), (3, true), "{problem}");
    let (code, _, problem) = run(&["redis", "ping"]);
    assert_eq!((code, problem.contains("PING is not about keys")), (3, true), "{problem}");
    let (code, _, problem) = run(&["redis", "lmove", "a", "b", "left", "right"]);
    assert_eq!(code, 3);
    assert!(problem.contains("one shard") || problem.contains("several shards"), "{problem}");
}
