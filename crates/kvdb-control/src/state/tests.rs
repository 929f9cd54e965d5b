//! Shards are made once, reports fold by epoch, and records lead back to the state.

use super::*;
use crate::command::LedShard;
use crate::keyspaces::DEFAULT_KEYSPACE;
use kvdb_model::{
    ClusterId, HistoryLimits, HistoryPolicy, KeyRange, NewKeyspace, Partitioning, Term,
};
use proptest::prelude::*;

fn register(state: &mut ControlState, token: u128) -> NodeId {
    let command = ControlCommand::RegisterNode {
        token,
        address: format!("127.0.0.1:{}", 7000 + token),
        zone: String::new(),
    };
    match state.apply(&command).result {
        Ok(ControlResponse::Registered(node, _)) => node,
        other => panic!("{other:?}"),
    }
}

fn initialised(nodes: u128, shards: u32) -> ControlState {
    let mut state = ControlState::default();
    for token in 1..=nodes {
        register(&mut state, token);
    }
    let command = ControlCommand::InitShards { shards, replication_factor: 0 };
    state.apply(&command).result.unwrap();
    state
}

#[test]
fn shards_cover_the_keyspace_without_gap_or_overlap() {
    for count in [1, 2, 3, 7, 8, 100, 16384] {
        let state = initialised(3, count);
        let whole = KeyRange::of_keyspace(DEFAULT_KEYSPACE);
        let shards = state.map().shards_in(&whole);
        assert_eq!(shards.len(), count as usize);
        assert_eq!(shards[0].descriptor.range.start, whole.start);
        assert_eq!(shards[shards.len() - 1].descriptor.range.end, whole.end);
        for pair in shards.windows(2) {
            assert_eq!(pair[0].descriptor.range.end, pair[1].descriptor.range.start);
        }
    }
}

#[test]
fn a_token_is_one_node_and_an_address_too() {
    let mut state = ControlState::default();
    let first = register(&mut state, 1);
    let version = state.map().version;
    assert_eq!(register(&mut state, 1), first);
    assert_eq!(state.map().version, version);
    let command = ControlCommand::RegisterNode {
        token: 2,
        address: "127.0.0.1:7001".into(),
        zone: String::new(),
    };
    let applied = state.apply(&command);
    assert_eq!(applied.result, Err(ControlError::AddressTaken("127.0.0.1:7001".into(), first)));
    assert_eq!(state.map().version, version);
}

#[test]
fn nodes_whose_addresses_were_exchanged_are_where_they_say() {
    let mut state = ControlState::default();
    let nodes: Vec<_> = (1..=3).map(|number| register(&mut state, number)).collect();
    let home = |number: u64| format!("127.0.0.1:{}", 7000 + number);
    let mut enter = |token: u128, address: String, is_reached| {
        let zone = String::new();
        let command = ControlCommand::EnterNode { token, address, zone, is_reached, start: None };
        let entered = state.apply(&command).result.unwrap();
        let address = |node| state.map().nodes[node].address.clone();
        (entered, nodes.iter().map(address).collect::<Vec<_>>())
    };
    // Who was there before is nowhere until it says where it is.
    let (entered, addresses) = enter(1, home(2), true);
    assert!(matches!(entered, ControlResponse::Registered(node, _) if node == nodes[0]));
    assert_eq!(addresses, [home(2), String::new(), home(3)]);
    assert_eq!(enter(2, home(3), true).1, [home(2), home(3), String::new()]);
    assert_eq!(enter(3, home(1), true).1, [home(2), home(3), home(1)]);
    // What nobody has seen takes nothing from anybody.
    assert_eq!(enter(3, home(2), false).1, [home(2), home(3), home(2)]);
}

#[test]
fn a_new_node_that_is_not_reached_gets_no_replicas() {
    let mut state = initialised(3, 1);
    let (address, zone) = ("127.0.0.1:7009".to_owned(), String::new());
    let command =
        ControlCommand::EnterNode { token: 9, address, zone, is_reached: false, start: None };
    let Ok(ControlResponse::Registered(node, _)) = state.apply(&command).result else { panic!() };
    assert_eq!(state.map().nodes[&node].status, NodeStatus::Unreachable);
    let name = "four".to_owned();
    let command = ControlCommand::CreateKeyspace(NewKeyspace {
        name,
        partitioning: Partitioning::Hash,
        shards: 1,
        replicas: 4,
        history: None,
        colocated: false,
        redis_db: 0,
    });
    state.apply(&command).result.unwrap();
    let holds = |record: &&kvdb_model::ShardRecord| record.descriptor.replica_on(node).is_some();
    assert_eq!(state.map().shards.values().filter(holds).count(), 0);
}

#[test]
fn initialising_twice_is_fine_and_with_more_shards_is_not() {
    let mut state = initialised(3, 8);
    let version = state.map().version;
    let mut again =
        |shards| state.apply(&ControlCommand::InitShards { shards, replication_factor: 0 }).result;
    assert_eq!(again(8), Ok(ControlResponse::ShardsInitialised(false, version)));
    assert_eq!(again(9), Err(ControlError::AlreadyInitialised(8)));
}

#[test]
fn a_stale_report_changes_nothing_and_a_newer_one_does() {
    let mut state = initialised(3, 1);
    let descriptor = state.map().shards[&ShardId(1)].descriptor.clone();
    let report = |state: &mut ControlState, node, term| {
        let led = vec![LedShard { descriptor: descriptor.clone(), term: Term(term) }];
        state.apply(&ControlCommand::ReportShards { node: NodeId(node), led })
    };
    report(&mut state, 2, 7).result.unwrap();
    let record = &state.map().shards[&ShardId(1)];
    assert_eq!((record.leader, record.creating), (Some(NodeId(2)), false));
    assert!(report(&mut state, 3, 6).delta.is_none());
    assert_eq!(state.map().shards[&ShardId(1)].leader, Some(NodeId(2)));
    assert!(report(&mut state, 3, 8).delta.is_some());
}

#[test]
fn a_number_of_a_database_belongs_to_one_keyspace_until_that_is_dropped() {
    let mut state = initialised(3, 1);
    let mut make = |name: &str, redis_db| {
        let new = NewKeyspace { redis_db, ..NewKeyspace::named(name) };
        state.apply(&ControlCommand::CreateKeyspace(new)).result
    };
    assert!(make("app", 1).is_ok());
    let taken = |db, name: &str| Err(ControlError::DatabaseTaken { db, name: name.into() });
    assert_eq!(make("other", 1), taken(1, "app"));
    assert_eq!(make("db1", 0), taken(1, "app"));
    let misnamed = Err(ControlError::NameOfDatabase { name: "db7".into(), db: 7 });
    assert_eq!(make("db7", 8), misnamed);
    assert!(matches!(make("x", 16), Err(ControlError::OutOfRange { .. })));
    // A name that looks like one and is none.
    for name in ["db0", "db16", "db01", "db"] {
        assert!(make(name, 0).is_ok(), "{name}");
    }
    assert!(make("db7", 0).is_ok());
    assert_eq!(make("seven", 7), taken(7, "db7"));
    let of = |state: &ControlState, db| {
        state.map().keyspace_of_redis_db(db).map(|keyspace| keyspace.name.clone())
    };
    assert_eq!(
        [0, 1, 2, 7].map(|db| of(&state, db).unwrap_or_default()),
        ["default", "app", "", "db7"]
    );
    state.apply(&ControlCommand::DropKeyspace { name: "app".into() }).result.unwrap();
    assert_eq!(of(&state, 1), None);
    let new = NewKeyspace { redis_db: 1, ..NewKeyspace::named("next") };
    state.apply(&ControlCommand::CreateKeyspace(new)).result.unwrap();
    assert_eq!(of(&state, 1).as_deref(), Some("next"));
}

#[test]
fn a_dropped_keyspace_takes_its_shards_along_and_frees_its_name_not_its_id() {
    let mut state = initialised(3, 2);
    let create = ControlCommand::CreateKeyspace(NewKeyspace {
        name: "k".into(),
        partitioning: Partitioning::Hash,
        shards: 3,
        replicas: 0,
        history: None,
        colocated: false,
        redis_db: 0,
    });
    let drop = |name: &str| ControlCommand::DropKeyspace { name: name.into() };
    let Ok(ControlResponse::KeyspaceCreated(id, _)) = state.apply(&create).result else {
        panic!("it is new");
    };
    assert_eq!(state.map().shards.len(), 5);
    let descriptor = state
        .map()
        .shards
        .values()
        .find(|shard| shard.descriptor.keyspace_id == id)
        .map(|shard| shard.descriptor.clone())
        .unwrap();
    state.apply(&drop("k")).result.unwrap();
    assert_eq!(state.map().shards.len(), 2);
    assert!(state.map().keyspaces[&id].is_dropped());
    assert_eq!(state.apply(&drop("k")).result, Err(ControlError::UnknownKeyspace("k".into())));
    for kept in ["", "default"] {
        assert_eq!(state.apply(&drop(kept)).result, Err(ControlError::DefaultStays));
    }
    // A leader that hasn't heard of it yet can't bring a shard back.
    let led = vec![LedShard { descriptor, term: Term(9) }];
    state.apply(&ControlCommand::ReportShards { node: NodeId(1), led }).result.unwrap();
    assert_eq!(state.map().shards.len(), 2);
    let Ok(ControlResponse::KeyspaceCreated(next, _)) = state.apply(&create).result else {
        panic!("the name is free");
    };
    assert!(next > id);
}

#[test]
fn the_history_of_a_keyspace_is_set_within_bounds_and_each_decision_has_a_number() {
    let mut state = initialised(3, 1);
    let limits = HistoryLimits { max_age_ms: 5000, max_bytes: 2 << 20 };
    let create = ControlCommand::CreateKeyspace(NewKeyspace {
        name: "k".into(),
        partitioning: Partitioning::Hash,
        shards: 2,
        replicas: 0,
        history: Some(limits),
        colocated: false,
        redis_db: 0,
    });
    assert!(matches!(state.apply(&create).result, Ok(ControlResponse::KeyspaceCreated(..))));
    let policy = |state: &ControlState, name: &str| {
        state.map().keyspace_named(name).map(|known| known.history).unwrap()
    };
    assert_eq!(policy(&state, "k"), HistoryPolicy { revision: 1, limits: Some(limits) });
    let mut set = |name: &str, history| {
        let name = name.to_owned();
        state.apply(&ControlCommand::SetHistory { name, history }).result
    };
    let short = HistoryLimits { max_age_ms: 999, ..limits };
    let large = HistoryLimits { max_bytes: (256 << 20) + 1, ..limits };
    for bad in [short, large] {
        assert!(matches!(set("k", Some(bad)), Err(ControlError::OutOfRange { .. })), "{bad:?}");
    }
    assert_eq!(set("x", None), Err(ControlError::UnknownKeyspace("x".into())));
    for (name, history) in [("k", Some(limits)), ("k", None), ("", Some(limits))] {
        set(name, history).unwrap();
    }
    assert_eq!(policy(&state, "k"), HistoryPolicy { revision: 2, limits: None });
    assert_eq!(policy(&state, "default").limits, Some(limits));
}

#[test]
fn a_wanted_leader_must_hold_a_vote_and_is_forgotten_once_it_leads() {
    let mut state = initialised(3, 1);
    register(&mut state, 9);
    let want = |node| ControlCommand::SetShardLeader { shard: ShardId(1), node: NodeId(node) };
    assert!(matches!(state.apply(&want(4)).result, Err(ControlError::NotAReplica { .. })));
    assert!(matches!(state.apply(&want(77)).result, Err(ControlError::UnknownNode(_))));
    state.apply(&want(2)).result.unwrap();
    assert_eq!(state.wanted_leaders()[&ShardId(1)], NodeId(2));
    let descriptor = state.map().shards[&ShardId(1)].descriptor.clone();
    let led = vec![LedShard { descriptor, term: Term(9) }];
    state.apply(&ControlCommand::ReportShards { node: NodeId(2), led }).result.unwrap();
    assert!(state.wanted_leaders().is_empty());
}

fn any_coordinator() -> impl Strategy<Value = CoordinatorRecord> {
    (7000u16..7010).prop_map(|port| CoordinatorRecord {
        address: format!("127.0.0.1:{port}"),
        token: port.into(),
        is_removed: false,
    })
}

fn any_command() -> impl Strategy<Value = ControlCommand> {
    prop_oneof![
        any::<u128>().prop_map(|id| ControlCommand::Bootstrap { cluster_id: ClusterId(id) }),
        (0u128..6, "(127.0.0.1:70[0-9]{2}|bad|:1|host:0)", "[ab]?").prop_map(
            |(token, address, zone)| ControlCommand::RegisterNode { token, address, zone }
        ),
        (0u32..20, 0u32..5).prop_map(|(shards, replication_factor)| {
            ControlCommand::InitShards { shards, replication_factor }
        }),
        ("[a-c]{0,2}", any::<bool>(), 0u32..5).prop_map(|(name, range, shards)| {
            let partitioning = if range { Partitioning::Range } else { Partitioning::Hash };
            let (replication_factor, history) = (0, None);
            ControlCommand::CreateKeyspace(NewKeyspace {
                name,
                partitioning,
                shards,
                replicas: replication_factor,
                history,
                colocated: false,
                redis_db: 0,
            })
        }),
        ("[a-c]{0,2}", prop::option::of(900u64..2000)).prop_map(|(name, age)| {
            let history = age.map(|max_age_ms| HistoryLimits { max_age_ms, max_bytes: 1 << 20 });
            ControlCommand::SetHistory { name, history }
        }),
        "[a-c]{0,2}".prop_map(|name| ControlCommand::DropKeyspace { name }),
        (0u64..6, 0u8..5).prop_map(|(node, status)| ControlCommand::SetNodeStatus {
            node: NodeId(node),
            status: [
                NodeStatus::Alive,
                NodeStatus::Suspect,
                NodeStatus::Dead,
                NodeStatus::Draining,
                NodeStatus::Removed
            ][usize::from(status)],
        }),
        (0u64..6, 0u64..6).prop_map(|(shard, node)| ControlCommand::SetShardLeader {
            shard: ShardId(shard),
            node: NodeId(node),
        }),
        prop::collection::btree_map((1u64..4).prop_map(NodeId), any_coordinator(), 1..4)
            .prop_map(|founders| ControlCommand::FoundCoordinators { founders }),
        (0u64..6, any_coordinator()).prop_map(|(id, record)| ControlCommand::AddCoordinator {
            id: NodeId(id),
            address: record.address,
            token: record.token,
        }),
        (0u64..6).prop_map(|id| ControlCommand::RemoveCoordinator { id: NodeId(id) }),
    ]
}

proptest! {
    #[test]
    fn records_and_deltas_both_lead_to_the_state(commands in prop::collection::vec(any_command(), 0..40)) {
        let mut state = ControlState::default();
        let mut records: BTreeMap<Bytes, Bytes> = BTreeMap::new();
        let mut follower = ShardMap::default();
        for command in commands {
            let command = ControlCommand::decode(&command.to_bytes()).unwrap();
            let before = state.clone();
            let valid = state.validate(&command);
            let applied = state.apply(&command);
            prop_assert_eq!(valid.is_ok(), applied.result.is_ok());
            if applied.result.is_err() {
                prop_assert_eq!(&state, &before);
            }
            for (key, value) in applied.records {
                match value {
                    Some(value) => { records.insert(key, value); }
                    None => { records.remove(&key); }
                }
            }
            if let Some(delta) = applied.delta {
                follower.apply(&delta).unwrap();
            }
            prop_assert_eq!(&follower, state.map());
        }
        let mut loaded = ControlState::default();
        for (key, value) in &records {
            loaded.load(key, value).unwrap();
        }
        prop_assert_eq!(loaded, state);
    }

    #[test]
    fn junk_commands_never_panic(junk in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = ControlCommand::decode(&junk);
        let _ = crate::decode_result(&junk);
    }
}
