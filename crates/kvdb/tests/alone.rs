//! Two of three coordinators are lost for good, and the group goes on from the third.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use support::{Cluster, KVDB, Part};

fn words(output: &Output) -> String {
    format!(
        "{:?}: {}{}",
        output.status.code(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn log(part: &Part) -> String {
    std::fs::read_to_string(&part.log).unwrap_or_default()
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-r").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

/// Runs the first coordinator with `--recover-alone`, which must end by itself.
fn refused(cluster: &Cluster, data: &str, more: &[&str]) -> (Option<i32>, String) {
    let part = &cluster.coordinators[0];
    let mut args = part.args.clone();
    let place = args.iter().position(|word| word == "--data").unwrap() + 1;
    args[place] = data.to_owned();
    let output = Command::new(KVDB)
        .args(&args)
        .arg("--recover-alone")
        .args(more)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (output.status.code(), words(&output))
}

/// Says that it is over when it is dropped.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn status(cluster: &Cluster) -> serde_json::Value {
    cluster.json(&["admin", "status", "--json"]).unwrap_or_default()
}

fn done(cluster: &Cluster, args: &[&str]) -> bool {
    let output = cluster.kvdb(args);
    // An answer may have been lost on the way.
    output.status.success() || words(&output).contains("already")
}

fn ends_by_name(cluster: &mut Cluster, place: usize, name: &str) {
    let part = &mut cluster.coordinators[place];
    let status = part.child.as_mut().unwrap().wait().unwrap();
    let said = log(part);
    assert_eq!(status.code(), Some(4), "{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(last.contains(name) && last.contains("was left behind"), "{said}");
}

#[test]
fn one_coordinator_goes_on_alone_and_the_lost_ones_are_refused_for_good() {
    let mut cluster = Cluster::start();
    let data = |name: &str| cluster.data_of(name).display().to_string();
    let (c1, n1, nothing) = (data("c1"), data("n1"), data("nothing"));

    // Where nothing is lost, nothing is recovered.
    let (_, said) = refused(&cluster, &c1, &["--yes"]);
    assert!(said.contains("is used by another kvdb process"), "{said}");
    cluster.coordinators[0].kill();
    let (code, said) = refused(&cluster, &c1, &["--yes"]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("a majority of the 3 coordinators is alive"), "{said}");
    let (_, said) = refused(&cluster, &n1, &["--yes"]);
    assert!(said.contains("is used by another") || said.contains("belongs to node"), "{said}");
    let (code, said) = refused(&cluster, &nothing, &["--yes"]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("holds no data of a coordinator"), "{said}");
    assert!(!Path::new(&nothing).exists());

    // What these two decide the first one never hears.
    cluster.until("a keyspace is made", |cluster| {
        done(cluster, &["admin", "create-keyspace", "late", "--shards", "2"])
    });
    cluster.until("it takes writes", |cluster| {
        done(cluster, &["put", "k", "late", "--keyspace", "late"])
    });
    cluster.add_node("n4");
    cluster.until("the new node is there", |cluster| status(cluster)["nodes_alive"] == 4);

    let over = AtomicBool::new(false);
    let endpoint = cluster.endpoint.clone();
    std::thread::scope(|scope| {
        let ending = Ending(&over);
        let writer = scope.spawn(|| {
            let mut count = 0;
            while !over.load(Ordering::Relaxed) {
                let key = format!("k{count}");
                let args = ["--endpoint", &endpoint, "put", &key, &key];
                let put = Command::new(KVDB).args(args).output().unwrap();
                assert!(put.status.success(), "{}", words(&put));
                count += 1;
            }
            count
        });
        story(&mut cluster, &c1);
        drop(ending);
        let count: usize = writer.join().unwrap();
        assert!(count > 0);
        for key in (0..count).step_by(count.div_ceil(50)) {
            assert_eq!(cluster.get(&format!("k{key}")), format!("k{key}"));
        }
    });
}

fn story(cluster: &mut Cluster, c1: &str) {
    copy(&cluster.data_of("c1"), &cluster.data_of("c1-older"));
    for (place, name) in [(1, "c2"), (2, "c3")] {
        cluster.coordinators[place].kill();
        let lost = cluster.data_of(&format!("{name}-lost"));
        std::fs::rename(cluster.data_of(name), &lost).unwrap();
    }
    // The nodes know that there was a leader a moment ago.
    let (code, said) = refused(cluster, c1, &["--yes"]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("has heard a leader of the coordinators"), "{said}");
    cluster.until("it says what would be lost, and asks", |cluster| {
        let (code, said) = refused(cluster, c1, &[]);
        assert_eq!(code, Some(3), "{said}");
        said.contains("confirm it with --yes")
            && said.contains("Coordinators 2, 3 are left behind for good")
            && said.contains("isn't the one that has heard most")
    });

    let usual = cluster.coordinators[0].args.clone();
    cluster.coordinators[0].args.extend(["--recover-alone".to_owned(), "--yes".to_owned()]);
    cluster.coordinators[0].start();
    cluster.coordinators[0].args = usual;
    cluster.until("it goes on, and all nodes have reported", |cluster| {
        let status = status(cluster);
        status["generation"]["number"] == 1
            && status["awaited_nodes"].as_array().is_some_and(Vec::is_empty)
            && status["nodes_alive"] == 4
    });
    // Nodes have told it what it had missed.
    let late = cluster.kvdb(&["get", "k", "--keyspace", "late"]);
    assert_eq!(String::from_utf8_lossy(&late.stdout).trim_end(), "late", "{}", words(&late));
    cluster.until("the map changes", |cluster| done(cluster, &["admin", "create-keyspace", "new"]));
    cluster.until("the new keyspace takes writes", |cluster| {
        done(cluster, &["put", "k", "new", "--keyspace", "new"])
    });
    let split = cluster.kvdb(&["admin", "split", "1", "--wait"]);
    assert!(split.status.success(), "{}", words(&split));
    // Once is enough.
    cluster.coordinators[0].kill();
    let (code, said) = refused(cluster, c1, &["--yes"]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("is the only one of its group"), "{said}");
    cluster.coordinators[0].start();

    // The lost ones come back, and it is there to tell them.
    cluster.until("it leads again", |cluster| status(cluster)["leader_id"] == 1);
    for (place, name) in [(1, "c2"), (2, "c3")] {
        let lost = cluster.data_of(&format!("{name}-lost"));
        copy(&lost, &cluster.data_of(name));
        cluster.coordinators[place].start();
        ends_by_name(cluster, place, &format!("coordinator {}", place + 1));
    }
    // It isn't, and they are a majority of what they know: nobody listens.
    for id in [4, 5] {
        let address = cluster.add_coordinator(id);
        let id = id.to_string();
        cluster.until("a new coordinator joins", |cluster| {
            done(cluster, &["admin", "coordinators", "add", &id, &address, "--wait"])
        });
    }
    cluster.until("all three vote", |cluster| {
        let members = cluster.json(&["admin", "coordinators", "--json"]).unwrap_or_default();
        let members = members["members"].as_array().cloned().unwrap_or_default();
        let ids = members.iter().filter(|member| member["role"] == "VOTER");
        ids.filter_map(|member| member["id"].as_u64()).collect::<Vec<_>>() == [1, 4, 5]
    });
    for place in [0, 3, 4] {
        cluster.coordinators[place].kill();
    }
    for (place, name) in [(1, "c2"), (2, "c3")] {
        std::fs::remove_dir_all(cluster.data_of(name)).unwrap();
        std::fs::rename(cluster.data_of(&format!("{name}-lost")), cluster.data_of(name)).unwrap();
        cluster.coordinators[place].start();
    }
    ends_by_name(cluster, 1, "follows coordinators of generation 1");
    ends_by_name(cluster, 2, "follows coordinators of generation 1");
    // Nor does anybody listen to a copy of the survivor from before.
    let (data, aside) = (cluster.data_of("c1"), cluster.data_of("c1-aside"));
    std::fs::rename(&data, &aside).unwrap();
    std::fs::rename(cluster.data_of("c1-older"), &data).unwrap();
    cluster.coordinators[0].start();
    ends_by_name(cluster, 0, "follows coordinators of generation 1");
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&aside, &data).unwrap();
    // The new group may lose any of them.
    cluster.coordinators[3].start();
    cluster.coordinators[4].start();
    cluster.until("two of the three decide", |cluster| {
        done(cluster, &["admin", "create-keyspace", "newer"])
    });
    cluster.coordinators[0].start();
    cluster.coordinators[3].kill();
    cluster.until("the survivor is one of them", |cluster| {
        done(cluster, &["admin", "create-keyspace", "newest"])
    });
    assert_eq!(status(cluster)["generation"]["number"], 1);
}

/// Starts a coordinator with `--recover-alone`, as soon as nobody has heard of a leader any more.
fn recover_alone(cluster: &mut Cluster, place: usize) {
    let usual = cluster.coordinators[place].args.clone();
    cluster.coordinators[place].args.extend(["--recover-alone".to_owned(), "--yes".to_owned()]);
    cluster.coordinators[place].start();
    cluster.coordinators[place].args = usual;
    let part = &mut cluster.coordinators[place];
    let begun = std::time::Instant::now();
    while !log(part).contains("recovered: this coordinator goes on alone") {
        assert!(begun.elapsed() < support::PATIENCE, "{}", log(part));
        assert!(part.child.as_mut().unwrap().try_wait().unwrap().is_none(), "{}", log(part));
        std::thread::yield_now();
    }
}

#[test]
fn of_two_that_were_recovered_each_by_itself_nodes_follow_the_first_until_the_other_is_recovered_again()
 {
    let mut cluster = Cluster::start();
    assert!(done(&cluster, &["put", "k", "1"]));
    cluster.coordinators.iter_mut().for_each(Part::kill);
    cluster.nodes.iter_mut().for_each(Part::kill);
    // While no node can tell what it has met.
    recover_alone(&mut cluster, 0);
    cluster.nodes.iter_mut().for_each(Part::start);
    cluster.until("the nodes follow it", |cluster| {
        let status = status(cluster);
        status["nodes_alive"] == 3 && status["awaited_nodes"].as_array().is_some_and(Vec::is_empty)
    });
    cluster.coordinators[0].kill();
    cluster.nodes.iter_mut().for_each(Part::kill);
    recover_alone(&mut cluster, 1);
    cluster.nodes.iter_mut().for_each(Part::start);
    cluster.until("they don't listen to the other", |cluster| {
        cluster.nodes.iter().all(|node| log(node).contains("each by itself"))
    });
    // They vouch for each other meanwhile, and serve.
    cluster.until("the key is there", |cluster| cluster.get("k") == "1");
    cluster.coordinators[1].kill();
    recover_alone(&mut cluster, 1);
    cluster.until("the nodes follow the other", |cluster| {
        let status = status(cluster);
        status["generation"]["number"] == 2
            && status["nodes_alive"] == 3
            && status["awaited_nodes"].as_array().is_some_and(Vec::is_empty)
    });
    assert!(done(&cluster, &["admin", "create-keyspace", "after"]));
    // And the first is left behind.
    cluster.coordinators[0].start();
    ends_by_name(&mut cluster, 0, "coordinator 1");
    assert_eq!(cluster.get("k"), "1");
}
