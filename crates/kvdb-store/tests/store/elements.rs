//! What a change of a collection tells of its elements, at once and later from the shard's history.

use crate::support::*;
use bytes::Bytes;
use kvdb_model::{EntryCommand, HistoryLimits, HistoryPolicy, KeyRange, Operation, Version};
use kvdb_store::keys::{Expiry, ExpiryRule, Rename, SetExpiry};
use kvdb_store::zset::{AddRule, Score};
use kvdb_store::{ChangeEvent, End, View, WatchQuery, hash, list, set, zset};

/// One shard, with all that it has told.
struct Told {
    single: Single,
    all: Vec<ChangeEvent>,
}

/// Number of elements, names, and whether there is more; of a key that is gone nothing.
type Elements = Option<(u64, Vec<String>, bool)>;

impl Told {
    fn new() -> Self {
        let mut single = Single::new();
        let limits = HistoryLimits { max_age_ms: 3_600_000, max_bytes: 64 << 20 };
        let policy = HistoryPolicy { revision: 1, limits: Some(limits) };
        let (entry, _) = single.log.push(&[EntryCommand::History(policy)]);
        single.apply(&[entry]);
        Told { single, all: vec![] }
    }

    fn apply(&mut self, command: EntryCommand) -> Vec<(String, Elements)> {
        let (entry, _) = self.single.log.push(&[command]);
        let events = self.single.apply(&[entry]).events;
        self.all.extend(events.iter().cloned());
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let change = |event: &ChangeEvent| {
            let elements = &event.elements;
            let names = elements.names.iter().map(text).collect();
            let told = event.record.as_ref().map(|_| (elements.count, names, elements.has_more));
            (text(&event.routing_key), told)
        };
        events.iter().map(change).collect()
    }

    #[track_caller]
    fn check(&mut self, operation: Operation, expected: &[(&str, Elements)]) {
        let told = self.apply(EntryCommand::Write(write(vec![operation])));
        let expected = expected.iter().map(|(key, told)| ((*key).to_owned(), told.clone()));
        assert_eq!(told, expected.collect::<Vec<_>>());
    }

    /// What the history keeps is what was told.
    fn check_history(&self) {
        let snapshot = snapshot(&self.single.engine);
        let view = View::new(&*snapshot, REPLICA).expect("the replica is there");
        let query = WatchQuery {
            epoch: EPOCH,
            after: Version::ZERO.plus(1),
            range: &KeyRange::ALL,
            user_prefix: b"",
            prefix_len: 0,
            max_bytes: usize::MAX,
        };
        let page = view.history(&query).expect("it can be read").expect("the shard keeps one");
        let bare = |event: &ChangeEvent| {
            (event.version, event.routing_key.clone(), event.elements.clone())
        };
        let kept: Vec<_> = page.events.iter().map(bare).collect();
        assert_eq!(kept, self.all.iter().map(bare).collect::<Vec<_>>());
    }
}

fn some(count: u64, names: &[&str], has_more: bool) -> Elements {
    Some((count, names.iter().map(|name| (*name).to_owned()).collect(), has_more))
}

fn names(names: &[&str]) -> Vec<Bytes> {
    names.iter().map(|name| Bytes::copy_from_slice(name.as_bytes())).collect()
}

fn hset(key: &str, fields: &[&str]) -> Operation {
    let fields = names(fields).into_iter().map(|field| (field, "value".into())).collect();
    on(key, hash::Set { fields, only_new: false })
}

fn with(operation: Operation, others: &[&str]) -> Operation {
    Operation { others: names(others), ..operation }
}

#[test]
fn a_change_of_a_collection_names_the_elements_that_were_set_or_removed() {
    let mut told = Told::new();
    told.check(hset("h", &["a", "b"]), &[("h", some(2, &["a", "b"], false))]);
    told.check(hset("h", &["c", "a", "c"]), &[("h", some(3, &["c", "a"], false))]);
    let delete = hash::Delete { fields: names(&["a", "missing"]) };
    told.check(on("h", delete), &[("h", some(2, &["a"], false))]);
    told.check(on("h", hash::Delete { fields: names(&["missing"]) }), &[]);

    let add = |members: &[&str]| set::Add { members: names(members) };
    told.check(on("s", add(&["x", "y", "z"])), &[("s", some(3, &["x", "y", "z"], false))]);
    told.check(on("s", add(&["z"])), &[]);
    let moving = with(on("s", set::Move { member: "y".into() }), &["t"]);
    told.check(moving, &[("s", some(2, &["y"], false)), ("t", some(1, &["y"], false))]);
    let remove = |members: &[&str]| set::Remove { members: names(members) };
    told.check(on("t", remove(&["y"])), &[("t", None)]);

    let score = |score: f64, member: &str| {
        let members = vec![(Score::new(score).unwrap(), Bytes::copy_from_slice(member.as_bytes()))];
        zset::Add { rule: AddRule::default(), count_changed: false, members }
    };
    told.check(on("b", score(1.0, "m")), &[("b", some(1, &["m"], false))]);
    told.check(on("b", score(2.0, "n")), &[("b", some(2, &["n"], false))]);
    told.check(on("b", score(3.0, "m")), &[("b", some(2, &["m"], false))]);
    let remove = zset::Remove { members: names(&["n"]) };
    told.check(on("b", remove), &[("b", some(1, &["n"], false))]);
    told.check_history();
}

#[test]
fn what_is_not_known_by_name_is_told_as_more() {
    let mut told = Told::new();
    let push = list::Push { end: End::Last, only_present: false, values: names(&["v", "w"]) };
    told.check(on("l", push), &[("l", some(2, &[], true))]);
    told.check(hset("h", &["a"]), &[("h", some(1, &["a"], false))]);
    // Nothing but when it ends.
    let expire = SetExpiry { expiry: Expiry::In(60_000), rule: ExpiryRule::ALWAYS };
    told.check(on("h", expire), &[("h", some(1, &[], false))]);
    // What was there before may have had other elements.
    let rename = with(on("h", Rename { only_absent: false }), &["l"]);
    let mut renamed = told.apply(EntryCommand::Write(write(vec![rename])));
    renamed.sort();
    assert_eq!(renamed, [("h".to_owned(), None), ("l".to_owned(), some(1, &[], true))]);
    let members = names(&["x"]);
    told.check(on("s", set::Add { members }), &[("s", some(1, &["x"], false))]);
    let combination = set::Combination::Union;
    let store = with(on("u", set::CombineInto { combination }), &["s"]);
    told.check(store, &[("u", some(1, &["x"], true))]);
    // Long names, and many.
    let (one, other) = ("1".repeat(600), "2".repeat(600));
    told.check(hset("long", &[&one, &other]), &[("long", some(2, &[&one], true))]);
    let many: Vec<String> = (0..17).map(|number| format!("f{number:02}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    told.check(hset("m16", &many[..16]), &[("m16", some(16, &many[..16], false))]);
    told.check(hset("m17", &many), &[("m17", some(17, &many[..16], true))]);
    told.check_history();
}

#[test]
fn elements_that_get_records_of_their_own_have_not_changed() {
    let mut told = Told::new();
    let many: Vec<String> = (0..128).map(|number| format!("f{number:03}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    told.check(hset("h", &many), &[("h", some(128, &many[..16], true))]);
    told.check(hset("h", &["new"]), &[("h", some(129, &["new"], false))]);
    told.check(hset("h", &["f007"]), &[("h", some(129, &["f007"], false))]);
    let one = |name: &&str| (Score::new(1.0).unwrap(), Bytes::copy_from_slice(name.as_bytes()));
    let scores: Vec<_> = many.iter().map(one).collect();
    let add = |members| zset::Add { rule: AddRule::default(), count_changed: false, members };
    told.check(on("b", add(scores)), &[("b", some(128, &many[..16], true))]);
    let one = |member: &'static str| vec![(Score::new(5.0).unwrap(), Bytes::from(member))];
    told.check(on("b", add(one("new"))), &[("b", some(129, &["new"], false))]);
    told.check(on("b", add(one("f007"))), &[("b", some(129, &["f007"], false))]);
    let remove = zset::Remove { members: names(&["f008"]) };
    told.check(on("b", remove), &[("b", some(128, &["f008"], false))]);
    told.check_history();
}

#[test]
fn elements_that_are_over_are_named_when_they_are_freed() {
    for count in [3, 300] {
        let mut told = Told::new();
        let fields: Vec<String> = (0..count).map(|number| format!("f{number}")).collect();
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        told.apply(EntryCommand::Write(write(vec![hset("h", &fields)])));
        let (expiry, rule) = (Expiry::In(100), ExpiryRule::ALWAYS);
        let expire = hash::ExpireFields { expiry, rule, fields: names(&["f1", "f2"]) };
        told.check(on("h", expire), &[("h", some(count, &["f1", "f2"], false))]);
        told.single.log.now_ms += 100;
        let mut freed = told.apply(EntryCommand::Reclaim(vec!["h".into()]));
        freed.iter_mut().for_each(|(_, told)| told.as_mut().unwrap().1.sort());
        assert_eq!(freed, [("h".to_owned(), some(count - 2, &["f1", "f2"], false))]);
        told.check_history();
    }
}
