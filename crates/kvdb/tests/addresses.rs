//! Processes come back elsewhere, exchange their addresses, or say ones that nobody can use. Who
//! they are decides.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::{Cluster, KVDB, Part, free_ports};

const KEYS: usize = 40;

fn words(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

/// Gives a part another value for a flag that it has.
fn set(part: &mut Part, flag: &str, value: &str) {
    let place = part.args.iter().position(|arg| arg == flag).unwrap();
    value.clone_into(&mut part.args[place + 1]);
}

fn value(part: &Part, flag: &str) -> String {
    let place = part.args.iter().position(|arg| arg == flag).unwrap();
    part.args[place + 1].clone()
}

fn log(part: &Part) -> String {
    std::fs::read_to_string(&part.log).unwrap_or_default()
}

fn write(cluster: &Cluster, what: &str) {
    for key in 0..KEYS {
        let put = cluster.kvdb(&["put", &format!("key{key}"), what]);
        assert!(put.status.success(), "{}", words(&put));
    }
}

fn holds(cluster: &Cluster, what: &str) -> bool {
    (0..KEYS).all(|key| cluster.get(&format!("key{key}")) == what)
}

/// Address and status of each node, by number.
fn nodes(cluster: &Cluster) -> Vec<(u64, String, String)> {
    let document = cluster.json(&["admin", "nodes", "--json"]).unwrap_or_default();
    let nodes = document["nodes"].as_array().cloned().unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    nodes
        .iter()
        .map(|node| {
            (node["node_id"].as_u64().unwrap(), text(&node["address"]), text(&node["status"]))
        })
        .collect()
}

/// Moves all coordinators to other ports of a host, and says so to those that are given.
fn move_coordinators(cluster: &mut Cluster, host: &str) -> String {
    let ports = free_ports(3);
    let addresses: Vec<String> = ports.iter().map(|port| format!("{host}:{port}")).collect();
    let peers: Vec<String> =
        addresses.iter().enumerate().map(|(place, at)| format!("{}={at}", place + 1)).collect();
    for (place, coordinator) in cluster.coordinators.iter_mut().enumerate() {
        set(coordinator, "--listen", &addresses[place]);
        set(coordinator, "--peers", &peers.join(","));
    }
    addresses.join(",")
}

#[test]
fn everything_that_comes_back_elsewhere_at_once_is_up_within_ten_seconds() {
    let mut cluster = Cluster::start();
    // Coordinators by name, nodes by another IP; and the other way round.
    for (round, (host, node_host)) in
        [("localhost", "127.0.0.2"), ("127.0.0.3", "localhost")].into_iter().enumerate()
    {
        let said = format!("round {round}");
        write(&cluster, &said);
        cluster.parts().for_each(Part::kill);
        let coordinators = move_coordinators(&mut cluster, host);
        for (node, port) in cluster.nodes.iter_mut().zip(free_ports(3)) {
            set(node, "--listen", &format!("{node_host}:{port}"));
            set(node, "--coordinators", &coordinators);
        }
        let gateway = format!("{host}:{}", free_ports(1)[0]);
        set(&mut cluster.gateway, "--listen", &gateway);
        set(&mut cluster.gateway, "--coordinators", &coordinators);
        cluster.endpoint = gateway;
        let started = Instant::now();
        cluster.parts().for_each(Part::start);
        cluster.until("every key is there", |cluster| holds(cluster, &said));
        let put = cluster.kvdb(&["put", "after", "x"]);
        assert!(put.status.success(), "{}", words(&put));
        let took = started.elapsed();
        assert!(took < Duration::from_secs(10), "it took {took:?}");
        // The log knows, and says it to others.
        cluster.until("the new addresses are known", |cluster| {
            let shown = words(&cluster.kvdb(&["admin", "coordinators"]));
            coordinators.split(',').all(|address| shown.contains(address))
                && nodes(cluster)
                    .iter()
                    .all(|(_, address, status)| address.starts_with(node_host) && status == "ALIVE")
        });
    }
    // Nobody had to be told anything, or has ended.
    for part in cluster.parts() {
        assert!(part.child.as_mut().unwrap().try_wait().unwrap().is_none(), "{}", log(part));
    }
}

#[test]
fn coordinators_that_have_moved_find_the_nodes_and_gateways_that_run_on() {
    let mut cluster = Cluster::start();
    write(&cluster, "before");
    cluster.coordinators.iter_mut().for_each(Part::kill);
    let addresses = move_coordinators(&mut cluster, "127.0.0.1");
    cluster.coordinators.iter_mut().for_each(Part::start);
    // Through a gateway that has only ever been told of the old ones.
    cluster.until("they are found by all", |cluster| {
        let status = words(&cluster.kvdb(&["admin", "status"]));
        addresses.split(',').all(|address| status.contains(address))
            && nodes(cluster).iter().filter(|(_, _, status)| status == "ALIVE").count() == 3
    });
    assert!(holds(&cluster, "before"));
    let made = cluster.kvdb(&["admin", "create-keyspace", "after"]);
    assert!(made.status.success(), "{}", words(&made));
    // What a node was told it knows at its next start, whatever its command line says.
    cluster.until("it is written down", |cluster| {
        (1..=3).all(|node| {
            let told = cluster.data_of(&format!("n{node}")).join("coordinators.txt");
            std::fs::read_to_string(told).is_ok_and(|told| {
                addresses.split(',').all(|address| told.lines().any(|line| line == address))
            })
        })
    });
    let port = free_ports(1)[0];
    cluster.nodes[0].kill();
    set(&mut cluster.nodes[0], "--listen", &format!("127.0.0.1:{port}"));
    cluster.nodes[0].start();
    cluster.until("it is found at its new address", |cluster| {
        nodes(cluster)
            .iter()
            .any(|(_, address, status)| address.ends_with(&port.to_string()) && status == "ALIVE")
    });
}

#[test]
fn one_coordinator_moves_at_a_time_and_its_address_can_be_set() {
    let mut cluster = Cluster::start();
    for place in 0..3 {
        let (id, port) = (place + 1, free_ports(1)[0]);
        let address = format!("127.0.0.1:{port}");
        let coordinator = &mut cluster.coordinators[place];
        coordinator.kill();
        // The others are told nothing.
        let peers = value(coordinator, "--peers");
        let moved = peers.split(',').map(|peer| match peer.starts_with(&format!("{id}=")) {
            true => format!("{id}={address}"),
            false => peer.to_owned(),
        });
        let moved: Vec<String> = moved.collect();
        set(coordinator, "--listen", &address);
        set(coordinator, "--peers", &moved.join(","));
        coordinator.start();
        cluster.until("the others have found it", |cluster| {
            let shown = words(&cluster.kvdb(&["admin", "coordinators"]));
            shown.contains(&address) && shown.contains("leader")
        });
        // Said by hand it is no news; and what isn't so is refused.
        let set_address = |cluster: &Cluster, id: &str, address: &str| {
            cluster.kvdb(&["admin", "coordinators", "set-address", id, address])
        };
        cluster.until("it can be said by hand", |cluster| {
            set_address(cluster, &id.to_string(), &address).status.success()
        });
        let other = (id % 3 + 1).to_string();
        let refused = set_address(&cluster, &other, &address);
        let said = words(&refused);
        assert!(!refused.status.success(), "{said}");
        assert!(said.contains(&format!("{address} is coordinator {id}, not {other}")), "{said}");
        let node = value(&cluster.nodes[0], "--listen");
        let refused = set_address(&cluster, &other, &node);
        assert!(words(&refused).contains("doesn't answer as a coordinator"), "{}", words(&refused));
    }
    let made = cluster.kvdb(&["admin", "create-keyspace", "after"]);
    assert!(made.status.success(), "{}", words(&made));
}

#[test]
fn nodes_whose_addresses_were_exchanged_go_on() {
    let mut cluster = Cluster::start();
    write(&cluster, "before");
    let before = nodes(&cluster);
    cluster.nodes.iter_mut().for_each(Part::kill);
    let listens: Vec<String> = cluster.nodes.iter().map(|node| value(node, "--listen")).collect();
    for (place, node) in cluster.nodes.iter_mut().enumerate() {
        set(node, "--listen", &listens[(place + 1) % 3]);
    }
    cluster.nodes.iter_mut().for_each(Part::start);
    cluster.until("each is known where it is", |cluster| {
        let now = nodes(cluster);
        let moved = |(id, was, _): &(u64, String, String)| {
            let place = listens.iter().position(|listen| listen == was).unwrap();
            let is = (*id, listens[(place + 1) % 3].clone(), "ALIVE".to_owned());
            now.contains(&is)
        };
        before.iter().all(moved)
    });
    assert!(holds(&cluster, "before"));
    write(&cluster, "after");
    for node in &mut cluster.nodes {
        assert!(node.child.as_mut().unwrap().try_wait().unwrap().is_none(), "{}", log(node));
    }
}

/// Starts one more node, with another address than it listens on. Returns where it listens.
fn add_node_at(cluster: &mut Cluster, name: &str, advertise: &str) -> String {
    let ports = free_ports(2);
    let (listen, http) = (format!("127.0.0.1:{}", ports[0]), format!("127.0.0.1:{}", ports[1]));
    let data = cluster.data_of(name).display().to_string();
    let words = ["node", "--listen", &listen, "--http", &http, "--advertise", advertise];
    let more = ["--coordinators", &cluster.addresses, "--data", &data];
    let args = words.iter().chain(&more).map(|word| (*word).to_owned()).collect();
    let log = cluster.folder.path().join(format!("{name}.log"));
    let mut node = Part { args, log, child: None };
    node.start();
    cluster.nodes.push(node);
    listen
}

#[test]
fn a_node_that_nobody_can_reach_gets_nothing_and_is_named() {
    let mut cluster = Cluster::start();
    let nowhere = format!("127.0.0.1:{}", free_ports(1)[0]);
    let listen = add_node_at(&mut cluster, "n4", &nowhere);
    let is = |cluster: &Cluster, status: &str| {
        nodes(cluster).iter().any(|(_, address, is)| *address == nowhere && is == status)
    };
    cluster.until("it is there", |cluster| nodes(cluster).len() == 4);
    // From the first moment on.
    assert!(is(&cluster, "UNREACHABLE"), "{:?}", nodes(&cluster));
    let made = cluster.kvdb(&["admin", "create-keyspace", "wide", "--replicas", "4"]);
    assert!(words(&made).contains("with 3 of 4 replicas"), "{}", words(&made));
    let document = cluster.json(&["admin", "nodes", "--json"]).unwrap();
    let four = &document["nodes"].as_array().unwrap()[3];
    assert_eq!((&four["replicas"], &four["leaders"]), (&0.into(), &0.into()));
    assert!(log(&cluster.nodes[3]).contains("can't reach this node"), "{}", log(&cluster.nodes[3]));

    // It is told its right address, and is as good as the others.
    cluster.nodes[3].kill();
    set(&mut cluster.nodes[3], "--advertise", &listen);
    cluster.nodes[3].start();
    cluster.until("it is alive", |cluster| {
        nodes(cluster).iter().any(|(_, address, is)| *address == listen && is == "ALIVE")
    });
    // A known one that goes where nobody finds it is judged with patience, and judged.
    cluster.nodes[3].kill();
    set(&mut cluster.nodes[3], "--advertise", &nowhere);
    cluster.nodes[3].start();
    cluster.until("it is cut off", |cluster| is(cluster, "UNREACHABLE"));
}

#[test]
fn a_node_that_names_the_address_of_another_process_is_told_whose_it_is() {
    let mut cluster = Cluster::start();
    let taken = [
        (value(&cluster.coordinators[0], "--listen"), "coordinator 1"),
        (value(&cluster.nodes[0], "--listen"), "node "),
        (cluster.endpoint.clone(), "a gateway"),
    ];
    for (place, (address, whose)) in taken.into_iter().enumerate() {
        add_node_at(&mut cluster, &format!("other{place}"), &address);
        cluster.until("it is told", |cluster| {
            let said = log(cluster.nodes.last().unwrap());
            said.contains(&format!("{address} is not where this node is reached, but {whose}"))
        });
        cluster.nodes.last_mut().unwrap().kill();
    }
    // Nobody else has noticed anything.
    let statuses = nodes(&cluster);
    let known: Vec<_> = statuses.iter().filter(|(id, ..)| *id <= 3).collect();
    assert!(known.iter().all(|(_, address, _)| !address.is_empty()), "{statuses:?}");
    assert!(cluster.kvdb(&["put", "k", "v"]).status.success());
}

#[test]
fn an_address_that_nobody_can_use_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |listen: &str, advertise: Option<&str>, problem: &str| {
        let http = format!("127.0.0.1:{}", free_ports(1)[0]);
        let mut command = Command::new(KVDB);
        command.args(["node", "--listen", listen, "--http", &http, "--data"]);
        command.arg(folder.path().join("n")).args(["--coordinators", "127.0.0.1:1"]);
        if let Some(advertise) = advertise {
            command.args(["--advertise", advertise]);
        }
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said = words(&output);
        assert!(!output.status.success() && said.contains(problem), "{said}");
    };
    let port = free_ports(1)[0];
    let everywhere = format!("0.0.0.0:{port}");
    refused(&everywhere, None, "every address of this machine");
    refused(&format!("[::]:{port}"), None, "every address of this machine");
    refused(&everywhere, Some(&everywhere), "--advertise");
    refused(&everywhere, Some("no-such-host.invalid:7201"), "can't be resolved");
    refused(&everywhere, Some("somewhere"), "host:port");
    let peers = format!("1={everywhere}");
    let output = Command::new(KVDB)
        .args(["coordinator", "--id", "1", "--listen", &everywhere, "--peers", &peers, "--data"])
        .arg(folder.path().join("c"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = words(&output);
    assert!(!output.status.success() && said.contains("every address of this machine"), "{said}");
}
