//! Collections of every type, small and large.

use crate::dev::{Client, Dev, wait_for};

/// Fields and values in an answer, sorted: they come in no order.
fn fields_of(answer: &str) -> Vec<(String, String)> {
    let words: Vec<&str> =
        answer.lines().filter(|line| !line.starts_with(['*', '$', '%'])).collect();
    let mut pairs: Vec<_> =
        words.chunks_exact(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect();
    pairs.sort();
    pairs
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
