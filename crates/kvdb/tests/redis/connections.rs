//! Junk, greed, slowness and long pipelines: whoever brings them harms nobody else.

use crate::dev::{Client, Dev};
use std::io::{Read, Write};

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
