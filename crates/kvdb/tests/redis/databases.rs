//! Databases, by the number that selects them.

use crate::dev::{Dev, kvdb};
use std::time::{Duration, Instant};

#[test]
fn a_database_is_made_when_it_is_written_to_and_refused_once_it_was_dropped() {
    let dev = Dev::start();
    let mut client = dev.client();
    for (line, answer) in [
        ("select 9", "+OK\r\n"),
        ("get a", "$-1\r\n"),
        ("del a", ":0\r\n"),
        ("dbsize", ":0\r\n"),
        ("rename a b", "-ERR no such key\r\n"),
        ("flushdb", "+OK\r\n"),
        ("hgetall a", "*0\r\n"),
        ("lrange a 0 -1", "*0\r\n"),
        ("sinter a b", "*0\r\n"),
        ("zrevrange a 0 -1", "*0\r\n"),
        ("zcard a", ":0\r\n"),
        ("geopos a b", "*1\r\n*-1\r\n"),
        ("pfcount a b", ":0\r\n"),
        ("lpop a", "$-1\r\n"),
        ("spop a", "$-1\r\n"),
        ("srem a b", ":0\r\n"),
        ("expire a 10", ":0\r\n"),
        ("dump a", "$-1\r\n"),
        ("sort a", "*0\r\n"),
        ("type a", "+none\r\n"),
        ("mget a b", "*2\r\n$-1\r\n$-1\r\n"),
        ("keys *", "*0\r\n"),
        ("scan 0", "*2\r\n$1\r\n0\r\n*0\r\n"),
        ("randomkey", "$-1\r\n"),
        ("watch a", "+OK\r\n"),
        ("multi", "+OK\r\n"),
        ("llen a", "+QUEUED\r\n"),
        ("exec", "*1\r\n:0\r\n"),
    ] {
        assert_eq!(client.ask(line), answer, "{line}");
    }
    for db in 1..16 {
        assert_eq!(client.ask(&format!("select {db}")), "+OK\r\n");
    }
    assert_eq!(client.ask("select 9"), "+OK\r\n");
    assert!(!dev.admin(&["keyspaces"]).contains("db"), "choosing a database and reading make none");
    assert_eq!(client.ask("set a 1"), "+OK\r\n");
    assert!(dev.admin(&["keyspaces"]).contains("db9"));

    dev.admin(&["drop-keyspace", "db9", "--yes"]);
    let dropped = Instant::now();
    for line in ["get a", "set a 2", "dbsize", "multi"] {
        let told = client.ask(line);
        let refused = told.starts_with("-ERR keyspace `db9` does not exist");
        assert!(refused || line == "multi", "{line}: {told}");
    }
    client.ask("set a 3");
    assert!(client.ask("exec").starts_with("-ERR keyspace `db9`"));
    assert!(dropped.elapsed() < Duration::from_secs(5), "it is refused at once");
    // What is chosen anew is another one.
    assert_eq!(client.ask("select 9"), "+OK\r\n");
    assert_eq!(client.ask("get a"), "$-1\r\n");
    assert_eq!(client.ask("set a 4"), "+OK\r\n");
    assert_eq!(client.ask("get a"), "$1\r\n4\r\n");
}

#[test]
fn a_colocated_database_takes_any_keys_together_and_is_selected_by_its_number() {
    let dev = Dev::start();
    let mut client = dev.client();
    let pairs = |count: u32| (0..count).map(|n| format!(" key-{n} {n}")).collect::<String>();
    let apart = client.ask(&format!("msetnx{}", pairs(20)));
    assert!(apart.starts_with("-CROSSSHARD"), "of all shards: {apart}");
    dev.admin(&["create-keyspace", "app", "--colocated", "--redis-db", "3"]);
    let listed = dev.admin(&["keyspaces"]);
    assert!(listed.contains("HASH, COLOCATED"), "{listed}");
    // One that is made when it is first written to is colocated, too.
    for db in [3, 4] {
        assert_eq!(client.ask(&format!("select {db}")), "+OK\r\n");
        assert_eq!(client.ask(&format!("msetnx{}", pairs(20))), ":1\r\n");
        assert_eq!(client.ask("rename key-0 key-20"), "+OK\r\n");
        assert_eq!(client.ask("multi"), "+OK\r\n");
        for line in ["incr key-1", "incr key-2", "lpush key-30 a", "del key-3 key-4"] {
            assert_eq!(client.ask(line), "+QUEUED\r\n", "{line}");
        }
        let done = client.ask("exec");
        assert!(done.starts_with("*4\r\n:2\r\n:3\r\n:1\r\n:2\r\n"), "{done}");
    }
    let listed = dev.admin(&["keyspaces", "--json"]);
    let document: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let told: Vec<_> = document["keyspaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            (one["name"].as_str().unwrap(), one["redis_db"].as_u64(), one["shards"].as_u64())
        })
        .collect();
    let expected =
        [("default", Some(0), Some(2)), ("app", Some(3), Some(1)), ("db4", Some(4), Some(1))];
    assert_eq!(told, expected);
    // The keyspace is the same whichever way it is reached; it stays in one piece.
    let kvdb = |args: &[&str]| {
        let done = kvdb(&dev, args, "");
        let text = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
        (done.status.success(), text.into_owned())
    };
    assert_eq!(kvdb(&["get", "key-1", "--keyspace", "app"]), (true, "2\n".to_owned()));
    let (is_split, told) = kvdb(&["admin", "split", "3"]);
    assert!(!is_split && told.contains("never split"), "{told}");
    let (is_made, told) = kvdb(&["admin", "create-keyspace", "other", "--redis-db", "3"]);
    assert!(!is_made && told.contains("keyspace `app` already"), "{told}");
}

#[test]
fn what_can_not_be_done_at_one_moment_across_databases_is_refused_in_clear_words() {
    let dev = Dev::start();
    let mut client = dev.client();
    assert_eq!(client.ask("set k v"), "+OK\r\n");
    for command in ["move k 1", "copy k other db 1", "swapdb 0 1"] {
        let told = client.ask(command);
        assert!(told.starts_with("-ERR") && told.contains("different shards"), "{told}");
    }
    for (line, answer) in [
        ("move k 0", "-ERR source and destination objects are the same\r\n"),
        ("move k 16", "-ERR DB index is out of range\r\n"),
        ("move k -1", "-ERR DB index is out of range\r\n"),
        ("move k x", "-ERR value is not an integer or out of range\r\n"),
    ] {
        assert_eq!(client.ask(line), answer, "{line}");
    }
    assert_eq!(client.ask("get k"), "$1\r\nv\r\n");
    assert_eq!(client.ask("copy {k}a {k}b"), ":0\r\n");
}
