use super::*;
use crate::changes::Changes;
use crate::command::Command;
use crate::keys;
use crate::overlay::Nothing;
use crate::record::Type;
use kvdb_model::Version;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Step {
    Insert(u16),
    Append(u16),
    Prepend(u16),
    Remove(u16),
    RemoveAt(u16),
    Pop(End, u16),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<u16>().prop_map(Step::Insert),
        2 => (1u16..60).prop_map(Step::Append),
        2 => (1u16..60).prop_map(Step::Prepend),
        2 => any::<u16>().prop_map(Step::Remove),
        3 => any::<u16>().prop_map(Step::RemoveAt),
        1 => (1u16..80).prop_map(|count| Step::Pop(End::First, count)),
        1 => (1u16..80).prop_map(|count| Step::Pop(End::Last, count)),
    ]
}

type Model = BTreeMap<Bytes, Bytes>;

fn row(number: u16) -> Bytes {
    // Far enough from both ends that rows can be put before and after it.
    Bytes::copy_from_slice(&(u32::from(number) + 0x8000_0000).to_be_bytes())
}

fn shifted(row: &[u8], by: i32) -> Bytes {
    let number = u32::from_be_bytes(row[..4].try_into().unwrap());
    Bytes::copy_from_slice(&number.wrapping_add_signed(by).to_be_bytes())
}

fn carry_out(order: &mut Order<'_, '_>, model: &mut Model, step: &Step) {
    let value = |row: &Bytes| Bytes::copy_from_slice(&row[2..]);
    let put = |order: &mut Order<'_, '_>, model: &mut Model, row: Bytes| {
        let is_new = order.insert(&row, value(&row)).unwrap();
        assert_eq!(is_new, model.insert(row.clone(), value(&row)).is_none());
    };
    match *step {
        Step::Insert(number) => put(order, model, row(number)),
        Step::Append(count) => {
            for _ in 0..count {
                let last = model.last_key_value().map_or(row(7), |(last, _)| shifted(last, 1));
                put(order, model, last);
            }
        }
        Step::Prepend(count) => {
            for _ in 0..count {
                let first = model.first_key_value().map_or(row(7), |(row, _)| shifted(row, -1));
                put(order, model, first);
            }
        }
        Step::Remove(number) => {
            let found = order.remove(&row(number), None).unwrap();
            assert_eq!(found, model.remove(&row(number)));
        }
        Step::RemoveAt(number) if !model.is_empty() => {
            let place = usize::from(number) % model.len();
            let row = model.keys().nth(place).unwrap().clone();
            assert_eq!(order.remove(&row, None).unwrap(), model.remove(&row));
        }
        Step::RemoveAt(_) => {}
        Step::Pop(end, count) => {
            for _ in 0..count {
                let expected = match end {
                    End::First => model.pop_first(),
                    End::Last => model.pop_last(),
                };
                let found = order.end(end).unwrap();
                assert_eq!(found, expected);
                let Some((row, payload)) = found else { break };
                assert_eq!(order.remove(&row, Some(end)).unwrap(), Some(payload));
            }
        }
    }
    assert_eq!(order.count(), model.len() as u64);
}

fn all(order: &mut Order<'_, '_>, from: Option<&[u8]>, way: Direction) -> Vec<(Bytes, Bytes)> {
    let mut found = Vec::new();
    order
        .scan(from, way, |row, payload| {
            found.push((row, payload));
            Ok(true)
        })
        .unwrap();
    found
}

/// That the directory says what is there.
fn check_directory(order: &mut Order<'_, '_>) {
    order.flush().unwrap();
    let (mut chunks, mut spans) = (BTreeMap::new(), BTreeMap::new());
    let keep = |into: &mut BTreeMap<Bytes, Bytes>, order: &Order<'_, '_>, kind| {
        let mut found = BTreeMap::new();
        let more = |bound, stored| {
            found.insert(bound, stored);
            Ok(true)
        };
        order.directory(kind, b"", None, more).unwrap();
        *into = found;
    };
    keep(&mut chunks, order, CHUNK);
    keep(&mut spans, order, SPAN);
    let ends = chunks.keys().skip(1).map(|bound| Some(bound.clone())).chain([None]);
    for ((bound, stored), end) in chunks.iter().zip(ends) {
        let chunk = Chunk::decode(stored.clone()).unwrap();
        let mut rows = Vec::new();
        let more = |row, _| {
            rows.push(row);
            Ok(true)
        };
        order.rows(bound, end.as_deref(), Direction::Ascending, more).unwrap();
        assert_eq!(chunk.rows, rows.len() as u64, "{chunk:?}");
        assert!(chunk.rows <= MOST && (chunk.rows > 0 || bound.is_empty()));
        assert!(rows.iter().all(|row| *row >= chunk.low && *row < chunk.high), "{chunk:?}");
    }
    let ends = spans.keys().skip(1).map(|bound| Some(bound.clone())).chain([None]);
    for ((bound, stored), end) in spans.iter().zip(ends) {
        let span = Span::decode(stored.clone()).unwrap();
        assert!(chunks.contains_key(bound), "a span begins with a chunk");
        let end = end.map_or(Bound::Unbounded, Bound::Excluded);
        let inside = chunks.range((Bound::Included(bound.clone()), end));
        let rows = inside.map(|(_, stored)| Chunk::decode(stored.clone()).unwrap().rows);
        let rows: Vec<_> = rows.collect();
        assert_eq!((span.chunks, span.rows), (rows.len() as u64, rows.iter().sum()));
        assert!(span.chunks <= MOST);
    }
}

fn check_reads(order: &mut Order<'_, '_>, model: &Model) {
    let expected: Vec<_> = model.clone().into_iter().collect();
    assert_eq!(all(order, None, Direction::Ascending), expected);
    let backwards: Vec<_> = expected.iter().rev().cloned().collect();
    assert_eq!(all(order, None, Direction::Descending), backwards);
    for (rank, (row, payload)) in expected.iter().enumerate() {
        assert_eq!(order.rank(row).unwrap(), rank as u64);
        assert_eq!(order.rank(&after(row)).unwrap(), rank as u64 + 1);
        assert_eq!(order.at(rank as u64).unwrap(), Some((row.clone(), payload.clone())));
        assert_eq!(order.get(row).unwrap().as_ref(), Some(payload));
        if rank % 7 == 0 {
            assert_eq!(all(order, Some(&after(row)), Direction::Ascending), expected[rank + 1..]);
            let below = &backwards[backwards.len() - rank..];
            assert_eq!(all(order, Some(row), Direction::Descending), below);
        }
    }
    assert_eq!(order.at(model.len() as u64).unwrap(), None);
    let ends = [End::First, End::Last].map(|end| order.end(end).unwrap());
    assert_eq!(ends, [expected.first().cloned(), expected.last().cloned()]);
}

proptest! {
    #[test]
    fn ranks_are_those_of_a_sorted_map_whatever_comes_and_goes(
        steps in prop::collection::vec(any_step(), 1..60),
        is_promoted in any::<bool>(),
    ) {
        let mut changes = Changes::default();
        let operation = keys::Delete.on("k".into());
        let mut tx = Tx::new(&Nothing, &mut changes, &operation, Version(1));
        let mut collection = Collection::new(Type::List);
        if is_promoted {
            collection = tx.promote(0, collection).unwrap();
        }
        let mut model = Model::new();
        for steps in steps.chunks(5) {
            let mut order = tx.order(0, &mut collection);
            steps.iter().for_each(|step| carry_out(&mut order, &mut model, step));
            if is_promoted && !model.is_empty() {
                check_directory(&mut order);
            }
            order.close().unwrap();
        }
        let mut order = tx.order(0, &mut collection);
        check_reads(&mut order, &model);
    }
}

#[test]
fn a_queue_is_not_walked_through_from_where_it_once_began() {
    let mut changes = Changes::default();
    let operation = keys::Delete.on("k".into());
    let mut tx = Tx::new(&Nothing, &mut changes, &operation, Version(1));
    let collection = Collection::new(Type::List);
    let mut collection = tx.promote(0, collection).unwrap();
    let mut order = tx.order(0, &mut collection);
    for number in 0..1000 {
        order.insert(&row(number), Bytes::new()).unwrap();
        if number >= 3 {
            let (first, _) = order.end(End::First).unwrap().unwrap();
            // As by a command that knows no rank: it is noticed that this was the first one.
            order.remove(&first, None).unwrap();
        }
    }
    assert_eq!(order.start_at(b"").unwrap().unwrap(), after(&row(996)));
    check_directory(&mut order);
}
