//! The coordinators of a running cluster are replaced, and one without its past is kept out.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use support::{Cluster, KVDB};

fn words(output: &Output) -> String {
    format!(
        "{:?}: {}{}",
        output.status.code(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn done(output: Output) {
    assert!(output.status.success(), "{}", words(&output));
}

/// Whether it was done, now or by an earlier try whose answer was lost with the leader.
fn is_so(output: &Output, done_before: &str) -> bool {
    output.status.success() || words(output).contains(done_before)
}

/// Their ids, in order, and whether each votes.
fn members(cluster: &Cluster) -> Vec<(u64, bool)> {
    let document = cluster.json(&["admin", "coordinators", "--json"]).unwrap_or_default();
    let members = document["members"].as_array().cloned().unwrap_or_default();
    members
        .iter()
        .map(|member| (member["id"].as_u64().unwrap(), member["role"] == "VOTER"))
        .collect()
}

fn leader(cluster: &Cluster) -> Option<u64> {
    cluster.json(&["admin", "status", "--json"])?["leader_id"].as_u64()
}

/// Waits until a process ends by itself, and returns its code and the end of its log.
fn end_of(cluster: &mut Cluster, place: usize) -> (Option<i32>, String) {
    let part = &mut cluster.coordinators[place];
    let status = part.child.as_mut().unwrap().wait().unwrap();
    (status.code(), std::fs::read_to_string(&part.log).unwrap())
}

/// Says that it is over when it is dropped.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn coordinators_are_replaced_one_by_one_while_clients_write() {
    let mut cluster = Cluster::start();
    let over = AtomicBool::new(false);
    let endpoint = cluster.endpoint.clone();
    std::thread::scope(|scope| {
        let (over, endpoint) = (&over, &endpoint);
        // Also where something fails below.
        let ending = Ending(over);
        let writer = scope.spawn(move || {
            let mut count = 0;
            while !over.load(Ordering::Relaxed) {
                let key = format!("k{count}");
                let put = Command::new(KVDB)
                    .args(["--endpoint", endpoint, "put", &key, "v"])
                    .output()
                    .unwrap();
                assert!(put.status.success(), "{}", words(&put));
                count += 1;
            }
            count
        });
        // All three go, the one that leads among them; one of them is dead already.
        for (new, old) in [(4, 1), (5, 2), (6, 3)] {
            let address = cluster.add_coordinator(new);
            if old == 2 {
                cluster.coordinators[1].kill();
            }
            let id = new.to_string();
            let add = ["admin", "coordinators", "add", &id, &address, "--wait"];
            cluster.until("the newcomer is added", |cluster| {
                is_so(&cluster.kvdb(&add), "is there already")
            });
            cluster.until("it votes", |cluster| members(cluster).contains(&(new, true)));
            let id = old.to_string();
            cluster.until("the old one is removed", |cluster| {
                let remove = ["admin", "coordinators", "remove", &id, "--wait", "--yes"];
                is_so(&cluster.kvdb(&remove), "was removed already")
            });
            cluster.until("it is gone", |cluster| {
                members(cluster).iter().all(|(id, votes)| *id != old && *votes)
            });
            if old != 2 {
                let (code, log) = end_of(&mut cluster, old as usize - 1);
                assert_eq!(code, Some(4), "{log}");
                assert!(log.contains("was removed from its group"), "{log}");
            }
        }
        drop(ending);
        assert!(writer.join().unwrap() > 0);
    });
    assert_eq!(members(&cluster), [(4, true), (5, true), (6, true)]);

    // Whoever was removed doesn't come back, and its number isn't given again.
    cluster.coordinators[0].start();
    let (code, log) = end_of(&mut cluster, 0);
    assert_eq!(code, Some(4));
    assert!(log.matches("was removed from its group").count() >= 2, "{log}");
    let again = cluster.kvdb(&["admin", "coordinators", "add", "2", "127.0.0.1:1"]);
    assert!(words(&again).contains("its number stays taken"), "{}", words(&again));

    // The new ones are a group of their own: one of them may die, and what they decide holds.
    let leads = leader(&cluster).unwrap();
    cluster.coordinators[leads as usize - 1].kill();
    cluster.until("another one leads", |cluster| {
        let made = || cluster.kvdb(&["admin", "create-keyspace", "after"]);
        leader(cluster).is_some_and(|now| now != leads) && is_so(&made(), "exists already")
    });
    done(cluster.kvdb(&["put", "k", "v", "--keyspace", "after"]));
    // They know each other without being told on the command line.
    let args = &mut cluster.coordinators[leads as usize - 1].args;
    args[6] = args[6].rsplit_once(',').unwrap().1.to_owned();
    cluster.coordinators[leads as usize - 1].start();
    let other = (4..=6).find(|id| *id != leads).unwrap();
    cluster.coordinators[other as usize - 1].kill();
    cluster.until("the one that has returned is needed and there", |cluster| {
        is_so(&cluster.kvdb(&["admin", "drop-keyspace", "after", "--yes"]), "does not exist")
    });
}

#[test]
fn a_coordinator_with_an_emptied_directory_is_kept_out() {
    let mut cluster = Cluster::start();
    // Each knows all founders, in whatever order they began.
    let founders = |name: &str| std::fs::read(cluster.data_of(name).join("FOUNDERS")).unwrap();
    assert!(founders("c1") == founders("c2") && founders("c2") == founders("c3"));
    cluster.coordinators[2].kill();
    std::fs::remove_dir_all(cluster.data_of("c3")).unwrap();
    cluster.coordinators[2].start();
    let (code, log) = end_of(&mut cluster, 2);
    assert_eq!(code, Some(4), "{log}");
    assert!(log.contains("has had another data directory"), "{log}");
    // With one of the others gone, it is no help: it would be the majority that has forgotten.
    cluster.coordinators[0].kill();
    std::fs::remove_dir_all(cluster.data_of("c3")).unwrap();
    cluster.coordinators[2].start();
    let (code, log) = end_of(&mut cluster, 2);
    assert_eq!(code, Some(4), "{log}");
    // The way out is the documented one.
    cluster.coordinators[0].start();
    cluster.until("coordinators decide again", |cluster| {
        cluster.kvdb(&["admin", "coordinators", "remove", "3", "--wait", "--yes"]).status.success()
    });
    let address = cluster.add_coordinator(4);
    cluster.until("a new one joins", |cluster| {
        let added = cluster.kvdb(&["admin", "coordinators", "add", "4", &address, "--wait"]);
        added.status.success()
    });
    assert_eq!(members(&cluster), [(1, true), (2, true), (4, true)]);
}
