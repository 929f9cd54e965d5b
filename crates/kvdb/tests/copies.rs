//! Older copies of a node's data directory, and copies that run beside the original: refused by
//! name. Nobody else notices anything.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::path::Path;
use std::process::Command;
use support::{Cluster, KVDB, Part, free_ports};

const KEYS: usize = 20;

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let status = Command::new("cp").arg("-r").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

fn log(part: &Part) -> String {
    std::fs::read_to_string(&part.log).unwrap_or_default()
}

fn write(cluster: &Cluster, what: &str) {
    for key in 0..KEYS {
        let put = cluster.kvdb(&["put", &format!("key{key}"), what]);
        assert!(put.status.success(), "{put:?}");
    }
}

fn holds(cluster: &Cluster, what: &str) -> bool {
    (0..KEYS).all(|key| cluster.get(&format!("key{key}")) == what)
}

fn alive(cluster: &Cluster) -> usize {
    let status = cluster.json(&["admin", "status", "--json"]).unwrap_or_default();
    status["nodes_alive"].as_u64().unwrap_or_default() as usize
}

/// The number of the node in this place, from its log.
fn number(part: &Part) -> u64 {
    let said = log(part);
    let (_, after) = said.rsplit_once("node runs node=").unwrap();
    after.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn an_older_copy_of_a_directory_is_refused_by_name_whoever_else_restarts() {
    let mut cluster = Cluster::start();
    write(&cluster, "0");
    let (data, older) = (cluster.data_of("n3"), cluster.data_of("n3-older"));
    cluster.nodes[2].kill();
    copy(&data, &older);
    cluster.nodes[2].start();
    cluster.until("it is back", |cluster| log(&cluster.nodes[2]).matches("node runs").count() == 2);
    cluster.until("all are alive", |cluster| alive(cluster) == 3);
    write(&cluster, "1");
    let number = number(&cluster.nodes[2]);
    cluster.nodes[2].kill();
    copy(&older, &data);
    for round in 1..=2 {
        cluster.nodes[2].start();
        ends_with(&mut cluster.nodes[2], 4);
        let said = log(&cluster.nodes[2]);
        // The coordinators say it, or a peer that hears of it before they do.
        let refused = [
            format!("node {number} has run on since this copy of its data directory"),
            format!("the log of number {number} ends at frame"),
        ];
        let count: usize = refused.iter().map(|refused| said.matches(refused).count()).sum();
        assert_eq!(count, round, "{said}");
        assert!(said.contains(&format!("kvdb admin replace {number}")), "{said}");
        // The others forget nothing with their processes.
        for place in 0..2 {
            cluster.nodes[place].kill();
            cluster.nodes[place].start();
            cluster.until("the others go on", |cluster| holds(cluster, "1"));
        }
    }
    // Without coordinators nobody vouches for it either.
    cluster.coordinators.iter_mut().for_each(Part::kill);
    cluster.nodes[2].start();
    cluster.until("it is mute, and says why", |cluster| {
        log(&cluster.nodes[2]).contains("its data directory is an older copy")
    });
    assert_eq!(log(&cluster.nodes[2]).matches("node runs").count(), 2);
    assert!(cluster.nodes[2].child.as_mut().unwrap().try_wait().unwrap().is_none());
}

/// A second process on a copy of the directory of the third node.
fn second(cluster: &Cluster, name: &str) -> Part {
    let ports = free_ports(2);
    let address = |place: usize| format!("127.0.0.1:{}", ports[place]);
    let data = cluster.data_of(name).display().to_string();
    let words = ["node", "--listen", &address(0), "--http", &address(1)];
    let more = ["--coordinators", &cluster.addresses, "--data", &data];
    let args = words.iter().chain(&more).map(|word| (*word).to_owned()).collect();
    Part { args, log: cluster.folder.path().join(format!("{name}.log")), child: None }
}

fn is_running(part: &mut Part) -> bool {
    part.child.as_mut().unwrap().try_wait().unwrap().is_none()
}

fn ends_with(part: &mut Part, code: i32) {
    let status = part.child.as_mut().unwrap().wait().unwrap();
    assert_eq!(status.code(), Some(code), "{}", log(part));
}

#[test]
fn an_older_copy_beside_its_original_is_refused_with_the_address_of_that_one() {
    let mut cluster = Cluster::start();
    write(&cluster, "0");
    cluster.nodes[2].kill();
    copy(&cluster.data_of("n3"), &cluster.data_of("n3-beside"));
    cluster.nodes[2].start();
    cluster.until("it is back", |cluster| log(&cluster.nodes[2]).matches("node runs").count() == 2);
    cluster.until("all are alive", |cluster| alive(cluster) == 3);
    let mut second = second(&cluster, "n3-beside");
    second.start();
    ends_with(&mut second, 4);
    let original = cluster.nodes[2].args[2].clone();
    let said = log(&second);
    let refused = format!("The process that counts runs at {original} and was heard ");
    assert!(said.contains(&refused), "{said}");
    assert!(!said.contains("node runs"), "{said}");
    write(&cluster, "1");
    assert!(holds(&cluster, "1"));
    assert!(is_running(&mut cluster.nodes[2]));
}

#[test]
fn a_copy_beside_its_original_takes_no_part_while_that_one_runs() {
    let mut cluster = Cluster::start();
    write(&cluster, "0");
    let (data, beside) = (cluster.data_of("n3"), cluster.data_of("n3-beside"));
    let mut second = second(&cluster, "n3-beside");
    let number = number(&cluster.nodes[2]);
    let original = cluster.nodes[2].args[2].clone();
    let refused = format!("another process of node {number} runs at {original} and was heard");
    // Of a running node that writes nothing meanwhile, so that it shows all that the original shows: on
    // a busy machine it takes more than one try. The engine's files may go and come while they are
    // copied; the log and whose it is don't.
    for _ in 0..30 {
        let _ = std::fs::remove_dir_all(&beside);
        std::fs::create_dir_all(&beside).unwrap();
        for name in ["IDENTITY", "START", "MET", "wal", "engine", "shard-map.bin"] {
            let _ =
                Command::new("cp").arg("-r").arg(data.join(name)).arg(&beside).status().unwrap();
        }
        second.start();
        let child = &mut second.child;
        let said = second.log.clone();
        cluster.until("it is refused", |_| {
            std::fs::read_to_string(&said).unwrap_or_default().contains(&refused)
                || child.as_mut().unwrap().try_wait().unwrap().is_some()
        });
        if log(&second).contains(&refused) {
            break;
        }
    }
    assert!(log(&second).contains(&refused), "{}", log(&second));
    write(&cluster, "1");
    assert!(!log(&second).contains("node runs"), "{}", log(&second));
    assert!(is_running(&mut cluster.nodes[2]));
    assert!(holds(&cluster, "1"));
    second.kill();
}

#[test]
fn a_process_that_was_stopped_while_a_copy_took_its_place_ends_by_name() {
    let mut cluster = Cluster::start();
    write(&cluster, "0");
    let original = cluster.nodes[2].child.as_ref().unwrap().id();
    let signal = |which: &str| {
        let sent = Command::new("kill").args([which, &original.to_string()]).status().unwrap();
        assert!(sent.success());
    };
    signal("-STOP");
    copy(&cluster.data_of("n3"), &cluster.data_of("n3-beside"));
    let mut second = second(&cluster, "n3-beside");
    second.start();
    cluster.until("it goes on in its place", |_| log(&second).contains("node runs"));
    write(&cluster, "1");
    signal("-CONT");
    ends_with(&mut cluster.nodes[2], 4);
    let said = log(&cluster.nodes[2]);
    assert!(
        said.contains("has been started again since, at") || said.contains("another process of"),
        "{said}"
    );
    write(&cluster, "2");
    assert!(holds(&cluster, "2"));
    // And now the original is the older copy, as its peers know before the coordinators are asked.
    cluster.nodes[2].start();
    ends_with(&mut cluster.nodes[2], 4);
    let said = log(&cluster.nodes[2]);
    assert_eq!(said.matches("this node must not go on: ").count(), 2, "{said}");
    second.kill();
}

#[test]
fn a_directory_that_is_swapped_under_its_process_ends_it_by_name() {
    let mut cluster = Cluster::start();
    write(&cluster, "0");
    let (data, aside) = (cluster.data_of("n3"), cluster.data_of("n3-aside"));
    copy(&data, &cluster.data_of("n3-older"));
    write(&cluster, "1");
    std::fs::rename(&data, &aside).unwrap();
    std::fs::rename(cluster.data_of("n3-older"), &data).unwrap();
    ends_with(&mut cluster.nodes[2], 4);
    let said = log(&cluster.nodes[2]);
    assert!(said.contains("was taken away or replaced while this process ran on it"), "{said}");
    // What was put there is an older copy, and stays one.
    cluster.nodes[2].start();
    ends_with(&mut cluster.nodes[2], 4);
    assert!(log(&cluster.nodes[2]).contains("has run on since this copy"));
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&aside, &data).unwrap();
    cluster.nodes[2].start();
    cluster.until("it is back", |cluster| alive(cluster) == 3);
    assert!(holds(&cluster, "1"));
}

#[test]
fn a_directory_that_was_moved_after_its_process_had_ended_is_taken_up_at_once() {
    let mut cluster = Cluster::of(1);
    write(&cluster, "0");
    let (data, elsewhere) = (cluster.data_of("n1"), cluster.data_of("n1-elsewhere"));
    let term = |cluster: &mut Cluster| {
        let mut child = cluster.nodes[0].child.take().unwrap();
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        assert!(child.wait().unwrap().success());
    };
    let move_there = || {
        copy(&data, &elsewhere);
        std::fs::remove_dir_all(&data).unwrap();
        std::fs::rename(&elsewhere, &data).unwrap();
    };
    term(&mut cluster);
    move_there();
    cluster.nodes[0].start();
    cluster.until("all is there", |cluster| holds(cluster, "0"));
    // One that didn't end in order may be alive elsewhere: its only replicas wait for a word.
    cluster.nodes[0].kill();
    move_there();
    cluster.nodes[0].start();
    cluster.until("it waits", |cluster| log(&cluster.nodes[0]).contains("`kvdb claim "));
    assert!(!cluster.kvdb(&["put", "--timeout", "500ms", "key0", "1"]).status.success());
    let claim = || Command::new(KVDB).arg("claim").arg(&data).arg("--yes").output().unwrap();
    let claimed = claim();
    assert_eq!(claimed.status.code(), Some(3), "a process uses it: {claimed:?}");
    cluster.nodes[0].kill();
    move_there();
    let claimed = claim();
    assert!(claimed.status.success(), "{claimed:?}");
    cluster.nodes[0].start();
    cluster.until("all is there", |cluster| holds(cluster, "0"));
}

#[test]
fn all_nodes_start_again_without_any_coordinator() {
    let mut cluster = Cluster::start();
    write(&cluster, "0");
    cluster.coordinators.iter_mut().for_each(Part::kill);
    cluster.nodes.iter_mut().for_each(Part::kill);
    cluster.nodes.iter_mut().for_each(Part::start);
    cluster.until("they vouch for each other", |cluster| {
        cluster.nodes.iter().all(|node| log(node).matches("node runs").count() == 2)
    });
    cluster.until("every key is there", |cluster| holds(cluster, "0"));
    write(&cluster, "1");
    // The coordinators accept what has been started without them.
    cluster.coordinators.iter_mut().for_each(Part::start);
    cluster.until("all are alive", |cluster| alive(cluster) == 3);
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    cluster.until("it is back", |cluster| log(&cluster.nodes[0]).matches("node runs").count() == 3);
    assert!(holds(&cluster, "1"));
}

#[test]
fn an_older_copy_of_a_coordinators_directory_is_refused_and_does_not_vote() {
    let mut cluster = Cluster::start();
    let (data, older) = (cluster.data_of("c3"), cluster.data_of("c3-older"));
    cluster.coordinators[2].kill();
    copy(&data, &older);
    cluster.coordinators[2].start();
    let runs = |part: &Part| log(part).matches("takes part in the group of coordinators").count();
    cluster.until("it is back", |cluster| runs(&cluster.coordinators[2]) == 1);
    cluster.until("something is decided", |cluster| {
        cluster.kvdb(&["admin", "create-keyspace", "late"]).status.success()
    });
    // Followers hear of each other what the leader needn't tell them: with either of them it is found.
    for absent in [0, 1] {
        cluster.coordinators[2].kill();
        copy(&older, &data);
        cluster.coordinators[absent].kill();
        cluster.coordinators[2].start();
        ends_with(&mut cluster.coordinators[2], 4);
        let said = log(&cluster.coordinators[2]);
        assert!(said.contains("this coordinator must not go on: "), "{said}");
        assert_eq!(runs(&cluster.coordinators[2]), 1, "{said}");
        cluster.coordinators[absent].start();
        cluster.until("coordinators decide again", |cluster| {
            let made = cluster.kvdb(&["admin", "create-keyspace", &format!("after{absent}")]);
            // An answer may have been lost.
            made.status.success() || String::from_utf8_lossy(&made.stderr).contains("exists")
        });
    }
}

#[test]
fn all_coordinators_start_again_and_take_part() {
    let mut cluster = Cluster::start();
    cluster.coordinators.iter_mut().for_each(Part::kill);
    cluster.coordinators.iter_mut().for_each(Part::start);
    cluster.until("they decide", |cluster| {
        cluster.kvdb(&["admin", "create-keyspace", "late"]).status.success()
    });
    // With one of them gone as well.
    cluster.coordinators.iter_mut().for_each(Part::kill);
    cluster.coordinators[1..].iter_mut().for_each(Part::start);
    cluster.until("two of them decide", |cluster| {
        cluster.kvdb(&["admin", "create-keyspace", "later"]).status.success()
    });
}

#[test]
fn what_a_node_did_without_coordinators_its_peers_remember() {
    let mut cluster = Cluster::start();
    write(&cluster, "0");
    cluster.nodes[2].kill();
    let (data, older) = (cluster.data_of("n3"), cluster.data_of("n3-older"));
    copy(&data, &older);
    cluster.coordinators.iter_mut().for_each(Part::kill);
    cluster.nodes[2].start();
    cluster
        .until("it is heard", |cluster| log(&cluster.nodes[2]).matches("node runs").count() == 2);
    write(&cluster, "1");
    cluster.nodes[2].kill();
    // In its place, with the same lock file: as a disk that is put back to a snapshot.
    for entry in std::fs::read_dir(&data).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => std::fs::remove_dir_all(path).unwrap(),
            false if path.ends_with("LOCK") => {}
            false => std::fs::remove_file(path).unwrap(),
        }
    }
    std::fs::remove_file(older.join("LOCK")).unwrap();
    let from = format!("{}/.", older.display());
    assert!(Command::new("cp").args(["-r", &from]).arg(&data).status().unwrap().success());
    cluster.coordinators.iter_mut().for_each(Part::start);
    cluster.until("coordinators decide again", |cluster| {
        let made = cluster.kvdb(&["admin", "create-keyspace", "late"]);
        made.status.success() || String::from_utf8_lossy(&made.stderr).contains("exists")
    });
    cluster.nodes[2].start();
    ends_with(&mut cluster.nodes[2], 4);
    let said = log(&cluster.nodes[2]);
    assert!(said.contains("this node must not go on: "), "{said}");
    assert!(holds(&cluster, "1"));
}
