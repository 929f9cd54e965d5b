//! The Redis protocol over real sockets: junk, greed and slowness harm nobody else.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

struct Dev {
    child: Child,
    redis: u16,
    grpc: u16,
    http: u16,
    /// Its temporary directory is in here: killed, it removes nothing itself.
    _folder: tempfile::TempDir,
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An offset at which the ports of a small cluster are free.
fn free_offset() -> u16 {
    for try_at in 0..200u16 {
        let offset = 20_000 + (std::process::id() as u16 % 97) * 200 % 19_000 + try_at * 17;
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port + offset)).is_ok();
        if [7101, 7181, 7201, 7281, 7400, 7379, 7480].into_iter().all(free) {
            return offset;
        }
    }
    panic!("no free ports");
}

impl Dev {
    fn start() -> Self {
        let offset = free_offset();
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_kvdb"))
            .env("TMPDIR", folder.path())
            .args(["dev", "--temporary", "--nodes", "1", "--shards", "2", "--port-offset"])
            .arg(offset.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (redis, grpc, http) = (7379 + offset, 7400 + offset, 7480 + offset);
        let dev = Dev { child, redis, grpc, http, _folder: folder };
        let until = Instant::now() + PATIENCE;
        loop {
            let ready = TcpStream::connect(("127.0.0.1", dev.redis)).is_ok()
                && dev.client().ask("get nothing").starts_with("$-1");
            if ready {
                return dev;
            }
            assert!(Instant::now() < until, "it doesn't get ready");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn admin(&self, words: &[&str]) -> String {
        let out = Command::new(env!("CARGO_BIN_EXE_kvdb"))
            .args(["--endpoint", &format!("127.0.0.1:{}", self.grpc), "admin"])
            .args(words)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn client(&self) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", self.redis)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client(stream)
    }
}

struct Client(TcpStream);

impl Client {
    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// The answer to a line, as far as it comes at once.
    fn ask(&mut self, line: &str) -> String {
        self.send(format!("{line}\r\n").as_bytes());
        let mut answer = [0; 4096];
        let count = self.0.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..count]).into_owned()
    }

    /// The next line of an answer, whole.
    fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while line.last() != Some(&b'\n') {
            self.0.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        String::from_utf8_lossy(&line).into_owned()
    }

    /// All that comes until the server closes the connection. (It may be reset where it was still
    /// sending.)
    fn rest(mut self) -> String {
        let mut all = Vec::new();
        let _ = self.0.read_to_end(&mut all);
        String::from_utf8_lossy(&all).into_owned()
    }
}

#[test]
fn bad_clients_are_told_and_closed_and_harm_nobody_else() {
    let dev = Dev::start();
    let mut good = dev.client();
    assert_eq!(good.ask("set k v"), "+OK\r\n");

    for (junk, words) in [
        (&b"*3000000000\r\n"[..], "-ERR Protocol error: invalid multibulk length"),
        (b"*1\r\n$-10\r\n", "-ERR Protocol error: invalid bulk length"),
        (b"*1\r\n$2000000000\r\n", "-ERR Protocol error: invalid bulk length"),
        (b"*1\r\n*1\r\n*1\r\n", "-ERR Protocol error: expected '$', got '*'"),
        (b"set \"k\r\n", "-ERR Protocol error: unbalanced quotes in request"),
    ] {
        let mut bad = dev.client();
        bad.send(junk);
        let told = bad.rest();
        assert!(told.starts_with(words), "{junk:?} gives {told:?}");
        assert_eq!(good.ask("get k"), "$1\r\nv\r\n");
    }

    // An inline request without end.
    let mut endless = dev.client();
    let _ = endless.0.write_all(&vec![b'x'; 256 << 10]);
    endless.rest();
    assert_eq!(good.ask("get k"), "$1\r\nv\r\n");

    // What came before the junk is answered first.
    let mut mixed = dev.client();
    mixed.send(b"ping\r\nget k\r\n*x\r\n");
    let told = mixed.rest();
    assert!(told.starts_with("+PONG\r\n$1\r\nv\r\n-ERR Protocol error"), "{told}");

    // Half requests that never end cost nothing but their own connection.
    let halves: Vec<Client> = (0..200)
        .map(|_| {
            let mut half = dev.client();
            half.send(b"*2\r\n$3\r\nGET\r\n$10");
            half
        })
        .collect();
    assert_eq!(good.ask("get k"), "$1\r\nv\r\n");
    drop(halves);
}

#[test]
fn a_command_that_fails_takes_nothing_beside_it_along() {
    let dev = Dev::start();
    let mut client = dev.client();
    assert_eq!(client.ask("set {t}k v"), "+OK\r\n");
    // The shortest steps, of a list that is written.
    client.send(b"bitfield {t}a set u8 8 1 get u4 1 get u4 1\r\nget {t}k\r\nquit\r\n");
    assert_eq!(client.rest(), "*3\r\n:0\r\n:0\r\n:0\r\n$1\r\nv\r\n+OK\r\n");
    // The empty key is beyond a limit.
    let mut client = dev.client();
    client.send(b"multi\r\nset {t}k w\r\nset '' x\r\nget {t}k\r\nexec\r\nquit\r\n");
    let told = client.rest();
    assert!(told.contains("*3\r\n+OK\r\n-ERR key is empty"), "{told}");
    assert!(told.ends_with("$1\r\nw\r\n+OK\r\n"), "{told}");
    // Who speaks HTTP gets no further.
    let mut http = dev.client();
    http.send(b"POST / HTTP/1.1\r\nset {t}k stolen\r\n");
    assert_eq!(http.rest(), "");
    // Who ends itself is answered first, and nobody else ends.
    let (mut own, mut other) = (dev.client(), dev.client());
    assert!(own.ask("client kill type nonsense").starts_with("-ERR Unknown client type"));
    assert_eq!(own.ask("client kill type pubsub skipme no"), ":0\r\n");
    let id = own.ask("client id");
    own.send(format!("client kill id {} skipme no\r\n", id[1..].trim()).as_bytes());
    assert_eq!(own.rest(), ":1\r\n");
    assert_eq!(other.ask("get {t}k"), "$1\r\nw\r\n");
}

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
    ] {
        assert_eq!(client.ask(line), answer, "{line}");
    }
    assert!(!dev.admin(&["keyspaces"]).contains("db9"), "choosing a database makes none");
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
        let endpoint = format!("127.0.0.1:{}", dev.grpc);
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvdb"));
        let done = command.args(["--endpoint", &endpoint]).args(args).output().unwrap();
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
fn who_does_not_read_is_not_served_further() {
    let dev = Dev::start();
    let mut good = dev.client();
    let mut setter = dev.client();
    let value = vec![b'v'; 1 << 20];
    setter.send(format!("*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n${}\r\n", value.len()).as_bytes());
    setter.send(&value);
    setter.send(b"\r\n");
    let mut done = [0; 5];
    setter.0.read_exact(&mut done).unwrap();
    assert_eq!(&done, b"+OK\r\n");

    // 2 GiB are asked for and not read.
    let mut slow = dev.client();
    slow.send("get big\r\n".repeat(2000).as_bytes());
    for turn in 0..50 {
        assert_eq!(good.ask(&format!("set other {turn}")), "+OK\r\n");
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", dev.child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 1 << 20, "the process took {peak_kib} KiB");

    // When it reads, it gets everything, in order.
    let mut answer = vec![0; 10 + value.len() + 2];
    for _ in 0..2 {
        slow.0.read_exact(&mut answer).unwrap();
        assert!(answer.starts_with(b"$1048576\r\nvvvv") && answer.ends_with(b"v\r\n"));
    }
}

#[test]
fn a_deep_pipeline_is_answered_in_order() {
    let dev = Dev::start();
    let mut client = dev.client();
    let mut asked = String::new();
    let mut expected = String::new();
    for turn in 1..=3000 {
        asked.push_str("incr n\r\nget n\r\nping\r\n");
        let text = turn.to_string();
        expected.push_str(&format!(":{turn}\r\n${}\r\n{text}\r\n+PONG\r\n", text.len()));
    }
    client.send(asked.as_bytes());
    let mut answers = vec![0; expected.len()];
    client.0.read_exact(&mut answers).unwrap();
    assert_eq!(String::from_utf8(answers).unwrap(), expected);
    assert_eq!(client.ask("quit"), "+OK\r\n");
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
    assert_eq!(client.ask("get k"), "$1\r\nv\r\n");
    assert_eq!(client.ask("copy {k}a {k}b"), ":0\r\n");
}

#[test]
fn a_transaction_over_shards_is_refused_and_one_on_a_shard_is_carried_out() {
    let dev = Dev::start();
    let mut client = dev.client();
    assert_eq!(client.ask("multi"), "+OK\r\n");
    // Of 2 shards by slot, each of these is on another.
    for key in ["a", "b", "c", "d", "e", "f"] {
        assert_eq!(client.ask(&format!("set {key} 1")), "+QUEUED\r\n");
    }
    assert!(client.ask("exec").starts_with("-CROSSSHARD"));
    assert_eq!(client.ask("exists a b c d e f"), ":0\r\n");

    assert_eq!(client.ask("watch {t}a"), "+OK\r\n");
    assert_eq!(client.ask("multi"), "+OK\r\n");
    assert_eq!(client.ask("incr {t}a"), "+QUEUED\r\n");
    assert_eq!(client.ask("get {t}a"), "+QUEUED\r\n");
    assert_eq!(client.ask("exec"), "*2\r\n:1\r\n$1\r\n1\r\n");

    assert_eq!(client.ask("watch {t}a"), "+OK\r\n");
    assert_eq!(dev.client().ask("incr {t}a"), ":2\r\n");
    assert_eq!(client.ask("multi"), "+OK\r\n");
    assert_eq!(client.ask("set {t}a 9"), "+QUEUED\r\n");
    assert_eq!(client.ask("exec"), "*-1\r\n");
    assert_eq!(client.ask("get {t}a"), "$1\r\n2\r\n");
}

/// Fields and values in an answer, sorted: they come in no order.
fn fields_of(answer: &str) -> Vec<(String, String)> {
    let words: Vec<&str> =
        answer.lines().filter(|line| !line.starts_with(['*', '$', '%'])).collect();
    let mut pairs: Vec<_> =
        words.chunks_exact(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect();
    pairs.sort();
    pairs
}

#[test]
fn a_hash_small_or_large_is_whole_and_leaves_nothing_to_the_next_one_of_its_name() {
    let dev = Dev::start();
    let mut client = dev.client();
    for count in [3, 500] {
        let fields: Vec<String> = (0..count).map(|n| format!("field{n:03} value{n:03}")).collect();
        assert_eq!(
            client.ask(&format!("hset {{h}}a {}", fields.join(" "))),
            format!(":{count}\r\n")
        );
        assert_eq!(client.ask("hlen {h}a"), format!(":{count}\r\n"));
        assert_eq!(client.ask("hget {h}a field002"), "$8\r\nvalue002\r\n");
        let all: Vec<(String, String)> =
            (0..count).map(|n| (format!("field{n:03}"), format!("value{n:03}"))).collect();
        client.send(b"hgetall {h}a\r\n");
        let mut seen = String::new();
        for _ in 0..=4 * count {
            seen.push_str(&client.line());
        }
        assert_eq!(fields_of(&seen), all);
        let mut walked = Vec::new();
        let mut cursor = "0".to_owned();
        loop {
            client.send(format!("hscan {{h}}a {cursor} count 20\r\n").as_bytes());
            assert_eq!(client.line(), "*2\r\n");
            client.line();
            cursor = client.line().trim().to_owned();
            let words: usize = client.line()[1..].trim().parse().unwrap();
            let part: String = (0..2 * words).map(|_| client.line()).collect();
            walked.extend(fields_of(&part));
            if cursor == "0" {
                break;
            }
        }
        walked.sort();
        assert_eq!(walked, all, "each field came once");
        assert_eq!(client.ask("rename {h}a {h}b"), "+OK\r\n");
        assert_eq!(client.ask("type {h}b"), "+hash\r\n");
        assert!(client.ask("get {h}b").starts_with("-WRONGTYPE"));
        assert_eq!(client.ask("del {h}b"), ":1\r\n");
        assert_eq!(client.ask("hset {h}b other x"), ":1\r\n");
        assert_eq!(client.ask("hlen {h}b"), ":1\r\n");
        assert_eq!(client.ask("del {h}b"), ":1\r\n");
    }
    let scanned = client.ask("hincrby {h}c n 7");
    assert_eq!(scanned, ":7\r\n");
    client.ask("set {h}s x");
    client.send(b"scan 0 type hash count 100000\r\n");
    let lines: Vec<String> = (0..6).map(|_| client.line()).collect();
    assert_eq!(&lines[3..], ["*1\r\n", "$4\r\n", "{h}c\r\n"], "{lines:?}");
}

/// Bulk strings in the next answer, sorted: they come in no order.
fn members(client: &mut Client, command: &str) -> Vec<String> {
    client.send(format!("{command}\r\n").as_bytes());
    let head = client.line();
    assert!(head.starts_with(['*', '~']), "{command}: {head}");
    let count: usize = head[1..].trim().parse().unwrap();
    let mut members: Vec<String> = Vec::new();
    for _ in 0..count {
        client.line();
        members.push(client.line().trim().to_owned());
    }
    members.sort();
    members
}

#[test]
fn a_set_small_or_large_holds_each_member_once_and_is_combined_on_one_shard() {
    let dev = Dev::start();
    let mut client = dev.client();
    for count in [3, 500] {
        let all: Vec<String> = (0..count).map(|n| format!("member{n:03}")).collect();
        let twice = format!("sadd {{s}}a {} {}", all.join(" "), all.join(" "));
        assert_eq!(client.ask(&twice), format!(":{count}\r\n"), "each counts once");
        assert_eq!(members(&mut client, "smembers {s}a"), all);
        assert_eq!(client.ask("type {s}a"), "+set\r\n");
        assert!(client.ask("get {s}a").starts_with("-WRONGTYPE"));
        assert_eq!(client.ask("sismember {s}a member002"), ":1\r\n");
        assert_eq!(client.ask("smove {s}a {s}b member002"), ":1\r\n");
        assert_eq!(members(&mut client, "sunion {s}a {s}b"), all);
        assert_eq!(client.ask("sinterstore {s}c {s}a {s}b"), ":0\r\n");
        // What was written before in the same pipeline is seen, of whichever key.
        client.send(b"sadd {s}b member001\r\nsinter {s}a {s}b\r\nsrem {s}b member001\r\n");
        let lines: Vec<String> = (0..5).map(|_| client.line()).collect();
        assert_eq!(lines, [":1\r\n", "*1\r\n", "$9\r\n", "member001\r\n", ":1\r\n"]);
        let mut taken = members(&mut client, "spop {s}a 2");
        assert_eq!(taken.len(), 2);
        taken.extend(members(&mut client, "spop {s}a 1000"));
        taken.extend(members(&mut client, "smembers {s}b"));
        taken.sort();
        assert_eq!(taken, all, "each was taken once");
        assert_eq!(client.ask("exists {s}a"), ":0\r\n");
        client.ask("del {s}b");
    }
    assert!(client.ask("hello 3").starts_with('%'));
    client.ask("sadd {s}a 1 2");
    client.send(b"smembers {s}a\r\n");
    assert_eq!(client.line(), "~2\r\n");
    (0..4).for_each(|_| drop(client.line()));
    let apart = (0..100)
        .map(|n| format!("key{n}"))
        .find(|key| client.ask(&format!("sinter {{s}}a {key}")).starts_with("-CROSSSHARD"));
    assert!(apart.is_some(), "there are two shards");
    client.send(b"scan 0 type set count 100000\r\n");
    let lines: Vec<String> = (0..6).map(|_| client.line()).collect();
    assert_eq!(&lines[3..], ["*1\r\n", "$4\r\n", "{s}a\r\n"], "{lines:?}");
}

#[test]
fn a_list_small_or_large_is_a_queue_and_a_stack_and_can_be_read_anywhere() {
    let dev = Dev::start();
    let mut client = dev.client();
    for count in [3, 700] {
        let values: Vec<String> = (0..count).map(|n| format!("v{n:04}")).collect();
        let length = format!(":{count}\r\n");
        assert_eq!(client.ask(&format!("rpush {{l}}a {}", values.join(" "))), length);
        assert_eq!(client.ask("llen {l}a"), length);
        assert_eq!(client.ask("type {l}a"), "+list\r\n");
        assert_eq!(client.ask("lindex {l}a -1"), format!("$5\r\n{}\r\n", values[count - 1]));
        assert_eq!(client.ask("linsert {l}a before v0001 between"), format!(":{}\r\n", count + 1));
        assert_eq!(client.ask("lindex {l}a 1"), "$7\r\nbetween\r\n");
        assert_eq!(client.ask("lrem {l}a 0 between"), ":1\r\n");
        assert_eq!(client.ask("rename {l}a {l}b"), "+OK\r\n");
        for value in &values {
            let moved = client.ask("lmove {l}b {l}c left right");
            assert_eq!(moved, format!("$5\r\n{value}\r\n"));
        }
        assert_eq!(client.ask("exists {l}b"), ":0\r\n");
        assert_eq!(client.ask("lpos {l}c v0002"), ":2\r\n");
        client.send(b"lmpop 2 {l}b {l}c right count 2\r\n");
        let lines: Vec<String> = (0..8).map(|_| client.line()).collect();
        assert_eq!(lines[2], "{l}c\r\n", "{lines:?}");
        assert_eq!(lines[5], format!("{}\r\n", values[count - 1]), "{lines:?}");
        assert_eq!(client.ask("ltrim {l}c 0 0"), "+OK\r\n");
        assert_eq!(client.ask("lpop {l}c"), "$5\r\nv0000\r\n");
        assert_eq!(client.ask("lpop {l}c"), "$-1\r\n");
    }
}

#[test]
fn a_sorted_set_small_or_large_is_in_order_and_leaves_nothing_to_the_next_one_of_its_name() {
    let dev = Dev::start();
    let mut client = dev.client();
    for (count, encoding) in [(5, "listpack"), (700, "skiplist")] {
        let scored: Vec<String> = (0..count).rev().map(|n| format!("{n}.5 m{n:04}")).collect();
        let twice = format!("zadd {{z}}a {} {}", scored.join(" "), scored.join(" "));
        assert_eq!(client.ask(&twice), format!(":{count}\r\n"), "each counts once");
        assert_eq!(client.ask("type {z}a"), "+zset\r\n");
        assert!(client.ask("object encoding {z}a").contains(encoding));
        assert!(client.ask("hget {z}a f").starts_with("-WRONGTYPE"));
        assert_eq!(client.ask("zrank {z}a m0003"), ":3\r\n");
        assert_eq!(client.ask("zrevrank {z}a m0003"), format!(":{}\r\n", count - 4));
        assert_eq!(client.ask("zcount {z}a (1.5 inf"), format!(":{}\r\n", count - 2));
        assert_eq!(client.ask("zincrby {z}a -100 m0004"), "$5\r\n-95.5\r\n");
        assert_eq!(client.ask("zrank {z}a m0004"), ":0\r\n");
        assert_eq!(client.ask("copy {z}a {z}copy"), ":1\r\n");
        assert_eq!(client.ask("rename {z}a {z}b"), "+OK\r\n");
        assert_eq!(client.ask("expire {z}b 1000"), ":1\r\n");
        assert_eq!(client.ask("zunionstore {z}sum 2 {z}b {z}copy"), format!(":{count}\r\n"));
        assert_eq!(client.ask("zscore {z}sum m0001"), "$1\r\n3\r\n");
        client
            .send(b"zpopmin {z}b\r\nzremrangebyrank {z}b 1 -1\r\nzrange {z}b 0 -1 withscores\r\n");
        let lines: Vec<String> = (0..11).map(|_| client.line()).collect();
        assert_eq!(lines[2], "m0004\r\n", "{lines:?}");
        assert_eq!(lines[5], format!(":{}\r\n", count - 2), "{lines:?}");
        assert_eq!((&lines[6][..], &lines[8][..]), ("*2\r\n", "m0000\r\n"), "{lines:?}");
        assert_eq!(client.ask("del {z}b {z}copy {z}sum"), ":3\r\n");
        assert_eq!(client.ask("zcard {z}b"), ":0\r\n");
    }
    client.ask("zadd {z}a 1 a");
    client.send(b"scan 0 type zset count 100000\r\n");
    let lines: Vec<String> = (0..6).map(|_| client.line()).collect();
    assert_eq!(&lines[3..], ["*1\r\n", "$4\r\n", "{z}a\r\n"], "{lines:?}");
    assert!(client.ask("hello 3").starts_with('%'));
    assert_eq!(client.ask("zscore {z}a a"), ",1\r\n");
}

/// What the command line says to the cluster.
fn kvdb(dev: &Dev, words: &[&str], input: &str) -> std::process::Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kvdb"))
        .args(["--endpoint", &format!("127.0.0.1:{}", dev.grpc)])
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Asks until this is the answer.
fn wait_for(client: &mut Client, line: &str, wanted: &str) {
    let until = Instant::now() + PATIENCE;
    loop {
        let answer = client.ask(line);
        if answer == wanted {
            return;
        }
        assert!(Instant::now() < until, "{line} still says {answer}");
    }
}

#[test]
fn a_field_that_expires_is_gone_for_everybody_and_the_last_one_takes_the_key_along() {
    let dev = Dev::start();
    let mut client = dev.client();
    for count in [3, 500] {
        let fields: Vec<String> = (0..count).map(|n| format!("f{n} v")).collect();
        client.ask(&format!("hset h {}", fields.join(" ")));
        assert_eq!(client.ask("hpexpire h 300 fields 2 f0 nothing"), "*2\r\n:1\r\n:-2\r\n");
        wait_for(&mut client, "hget h f0", "$-1\r\n");
        assert_eq!(client.ask("hlen h"), format!(":{}\r\n", count - 1));
        assert_eq!(client.ask("httl h fields 2 f0 f1"), "*2\r\n:-2\r\n:-1\r\n");
        assert_eq!(client.ask("hexists h f0"), ":0\r\n");
        assert_eq!(client.ask("hsetex h fnx px 300 fields 1 f0 new"), ":1\r\n");
        assert_eq!(client.ask("hgetex h persist fields 1 f0"), "*1\r\n$3\r\nnew\r\n");
        assert_eq!(client.ask("httl h fields 1 f0"), "*1\r\n:-1\r\n");
        let names: Vec<String> = (0..count).map(|n| format!("f{n}")).collect();
        client.send(format!("hpexpire h 300 fields {count} {}\r\n", names.join(" ")).as_bytes());
        (0..=count).for_each(|_| drop(client.line()));
        wait_for(&mut client, "exists h", ":0\r\n");
        assert_eq!(client.ask("type h"), "+none\r\n");
        assert_eq!(client.ask("setnx h x"), ":1\r\n");
        assert_eq!(client.ask("del h"), ":1\r\n");
    }
}

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

/// All of it is answered, in order, though one answer of the cluster holds a fifth of it.
#[test]
fn elements_beyond_a_message_of_answers_are_taken_and_told_one_after_the_other() {
    let dev = Dev::start();
    let mut client = dev.client();
    let element = |number: usize| vec![b'a' + number as u8; 2_000_000];
    for number in 0..20 {
        let mut push = b"*3\r\n$5\r\nRPUSH\r\n$1\r\nq\r\n$2000000\r\n".to_vec();
        push.extend(element(number));
        push.extend(b"\r\n");
        client.send(&push);
        assert_eq!(client.line(), format!(":{}\r\n", number + 1));
    }
    let pops: Vec<u8> =
        (0..20).flat_map(|n| format!("LPOP q\r\nINCR n{n}\r\n").into_bytes()).collect();
    client.send(&pops);
    client.send(b"LLEN q\r\nMULTI\r\nGET n0\r\nEXEC\r\n");
    for number in 0..20 {
        assert_eq!(client.line(), "$2000000\r\n", "element {number}");
        assert_eq!(client.line().trim_end().as_bytes(), element(number));
        assert_eq!(client.line(), ":1\r\n");
    }
    assert_eq!(client.line(), ":0\r\n");
    assert_eq!((client.line(), client.line()), ("+OK\r\n".into(), "+QUEUED\r\n".into()));
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
