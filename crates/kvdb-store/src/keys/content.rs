//! All that a key holds, read and stored as one: what `DUMP` and `RESTORE` are made of.

use super::Expiry;
use crate::changes::Direction;
use crate::command::{CHANGED_MOST, Command, Done, Effect, Fault, ReplySize, wrong};
use crate::order::End;
use crate::record::Type;
use crate::tx::{Collection, Tx};
use crate::unordered::{check_name, decode_list, encode_list, name_at, part, place_of};
use crate::zset::Score;
use crate::{list, zset};
use bytes::Bytes;
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::wrong_value::FIELDS_EXPIRE;
use kvdb_model::{CommandId, Limits, Refusal, Reply};
use std::collections::HashSet;

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A string.
    String(Bytes),
    /// Fields and values, in no order.
    Hash(Vec<(Bytes, Bytes)>),
    /// Members, in no order.
    Set(Vec<Bytes>),
    /// Members with their scores, in no order; a read gives them in theirs.
    SortedSet(Vec<(Score, Bytes)>),
    /// Elements, in their order.
    List(Vec<Bytes>),
}

impl Content {
    /// Its type.
    pub fn kind(&self) -> Type {
        match self {
            Content::String(_) => Type::String,
            Content::Hash(_) => Type::Hash,
            Content::Set(_) => Type::Set,
            Content::SortedSet(_) => Type::SortedSet,
            Content::List(_) => Type::List,
        }
    }

    /// What [`ReadWhole`] has replied with; `None` where the key isn't there.
    pub fn in_reply(reply: &Reply) -> Option<Self> {
        let Reply::List(parts) = reply else { return None };
        let [kind, content] = &parts[..] else { return None };
        let names = |reply: &Reply| match reply {
            Reply::List(items) => items.iter().map(|item| item.bytes().cloned()).collect(),
            _ => None,
        };
        let pairs = |reply: &Reply| match reply {
            Reply::Map(pairs) => Some(pairs.clone()),
            _ => None,
        };
        Some(match Type::from_code(u8::try_from(kind.integer()?).ok()?)? {
            Type::String => Content::String(content.bytes()?.clone()),
            Type::Set => Content::Set(names(content)?),
            Type::List => Content::List(names(content)?),
            Type::Hash => {
                let pair = |(field, value): &(Reply, Reply)| {
                    Some((field.bytes()?.clone(), value.bytes()?.clone()))
                };
                Content::Hash(pairs(content)?.iter().map(pair).collect::<Option<_>>()?)
            }
            Type::SortedSet => {
                let pair = |(member, score): &(Reply, Reply)| {
                    Some((Score::new(score.as_double()?)?, member.bytes()?.clone()))
                };
                Content::SortedSet(pairs(content)?.iter().map(pair).collect::<Option<_>>()?)
            }
        })
    }

    fn encode(&self, out: &mut Writer) {
        out.u8(self.kind() as u8);
        match self {
            Content::String(value) => out.bytes(value),
            Content::Set(items) | Content::List(items) => encode_list(items, out),
            Content::Hash(pairs) => {
                out.varint(pairs.len() as u64);
                for (field, value) in pairs {
                    out.bytes(field);
                    out.bytes(value);
                }
            }
            Content::SortedSet(members) => {
                out.varint(members.len() as u64);
                for (score, member) in members {
                    score.encode(out);
                    out.bytes(member);
                }
            }
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let kind = input.u8()?;
        let kind = Type::from_code(kind).ok_or_else(|| DecodeError::unknown_tag("type", kind))?;
        Ok(match kind {
            Type::String => Content::String(input.bytes()?),
            Type::Set => Content::Set(decode_list(input)?),
            Type::List => Content::List(decode_list(input)?),
            Type::Hash => {
                let count = input.count(2)?;
                let pair = |_| Ok((input.bytes()?, input.bytes()?));
                Content::Hash((0..count).map(pair).collect::<Result<_, DecodeError>>()?)
            }
            Type::SortedSet => {
                let count = input.count(9)?;
                let pair = |_| Ok((Score::decode(input)?, input.bytes()?));
                Content::SortedSet((0..count).map(pair).collect::<Result<_, DecodeError>>()?)
            }
        })
    }

    /// Its elements, if it is a collection: what each is called, if that must be there once only, and how long
    /// it is.
    fn elements(&self) -> Vec<(Option<&Bytes>, usize)> {
        let named = |name| (Some(name), Bytes::len(name));
        match self {
            Content::String(_) => vec![],
            Content::List(items) => items.iter().map(|item| (None, item.len())).collect(),
            Content::Set(members) => members.iter().map(named).collect(),
            Content::SortedSet(members) => members.iter().map(|(_, name)| named(name)).collect(),
            Content::Hash(pairs) => {
                let pair = |(field, value): &'_ (Bytes, Bytes)| field.len() + value.len();
                pairs.iter().map(|field| (Some(&field.0), pair(field))).collect()
            }
        }
    }

    fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        match self {
            Content::String(value) => return limits.check_value(value),
            Content::List(values) => values.iter().try_for_each(|v| limits.check_value(v))?,
            Content::Hash(pairs) => pairs.iter().try_for_each(|(_, v)| limits.check_value(v))?,
            Content::Set(_) | Content::SortedSet(_) => {}
        }
        let elements = self.elements();
        let count = elements.len() as u64;
        if count == 0 || count > CHANGED_MOST {
            let problem = format!("are {count}; a collection is stored with 1 to {CHANGED_MOST}");
            return Err(Refusal::invalid("elements", problem));
        }
        let (mut names, mut size) = (HashSet::new(), ReplySize::default());
        for (name, bytes) in elements {
            if let Some(name) = name {
                check_name("element", name, limits)?;
                if !names.insert(name) {
                    return Err(Refusal::invalid("elements", "are not all different"));
                }
            }
            if !size.add(bytes) {
                let problem = "are more than 8 MiB together, with 16 bytes for each";
                return Err(Refusal::invalid("elements", problem));
            }
        }
        Ok(())
    }
}

/// Reads all that a key holds, as of one moment. Replies with a list: the type as a number, and a string, a
/// list, or a map of fields and values or of members and scores. Applies if the key is there. What is more
/// than a reply holds is refused, and so is a hash with fields that expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadWhole;

impl Command for ReadWhole {
    const ID: CommandId = CommandId(0x030b);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, _out: &mut Writer) {}

    fn decode(_input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(ReadWhole)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(record) = tx.get(0)? else { return Ok(Done::NOT_APPLIED) };
        let kind = record.kind;
        if kind == Type::String {
            return Ok(Done::APPLIED.with(whole(kind, Reply::Bytes(record.value))));
        }
        let Some(collection) = tx.collection(0, kind)? else { return Ok(Done::NOT_APPLIED) };
        let content = match kind {
            Type::List | Type::SortedSet => rows(tx, collection)?,
            _ => names(tx, &collection)?,
        };
        Ok(Done::APPLIED.with(whole(kind, content)))
    }
}

fn whole(kind: Type, content: Reply) -> Reply {
    Reply::List(vec![Reply::Integer(kind as i64), content])
}

/// Of a hash or a set.
fn names(tx: &Tx<'_>, collection: &Collection) -> Result<Reply, Fault> {
    if tx.has_deadlines(0, collection)? {
        return Err(wrong(FIELDS_EXPIRE));
    }
    let found = part(tx, 0, collection, 0, 0)?.1.into_iter();
    let name = |place: &Bytes| Reply::Bytes(name_at(place));
    Ok(match collection.kind {
        Type::Set => Reply::List(found.map(|(place, _)| name(&place)).collect()),
        _ => Reply::Map(found.map(|(place, value)| (name(&place), Reply::Bytes(value))).collect()),
    })
}

/// Of a list or a sorted set.
fn rows(tx: &mut Tx<'_>, mut collection: Collection) -> Result<Reply, Fault> {
    let is_list = collection.kind == Type::List;
    let (mut values, mut members, mut size) = (Vec::new(), Vec::new(), ReplySize::default());
    tx.order(0, &mut collection).scan(None, Direction::Ascending, |row, value| {
        let bytes = if is_list { value.len() } else { row.len() };
        match is_list {
            true => values.push(Reply::Bytes(value)),
            false => members.push(zset::pair(&row)),
        }
        Ok(size.add(bytes))
    })?;
    size.check()?;
    Ok(if is_list { Reply::List(values) } else { Reply::Map(members) })
}

/// Stores all that a key is to hold, in the place of whatever it held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restore {
    /// What.
    pub content: Content,
    /// Until when.
    pub expiry: Expiry,
}

impl Command for Restore {
    const ID: CommandId = CommandId(0x030c);
    const EFFECT: Effect = Effect::Grow;

    fn encode(&self, out: &mut Writer) {
        self.expiry.encode(out);
        self.content.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Restore { expiry: Expiry::decode(input)?, content: Content::decode(input)? })
    }

    fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        self.content.check(limits)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let before = match self.expiry {
            Expiry::Keep => tx.get(0)?.map_or(0, |record| record.expires_at_ms),
            _ => 0,
        };
        let expires_at_ms = self.expiry.expires_at_ms(tx.version(), before);
        if tx.is_past(expires_at_ms) {
            // Nobody would ever see its elements.
            tx.remove(0)?;
            return Ok(Done::APPLIED);
        }
        let new = |kind| Collection { expires_at_ms, ..Collection::new(kind) };
        let stored = match self.content {
            Content::String(value) => {
                tx.set(0, value, expires_at_ms)?;
                return Ok(Done::APPLIED);
            }
            Content::Hash(pairs) => {
                let mut hash = new(Type::Hash);
                for (field, value) in pairs {
                    tx.set_element(0, &mut hash, place_of(&field), value)?;
                }
                hash
            }
            Content::Set(members) => {
                let mut set = new(Type::Set);
                for member in members {
                    tx.set_element(0, &mut set, place_of(&member), Bytes::new())?;
                }
                set
            }
            Content::SortedSet(members) => {
                let mut set = new(Type::SortedSet);
                zset::fill(tx, &mut set, members)?;
                set
            }
            Content::List(values) => {
                let mut list = new(Type::List);
                let mut rows = tx.order(0, &mut list);
                list::push(&mut rows, End::Last, values)?;
                rows.close()?;
                list
            }
        };
        tx.store(0, stored)?;
        Ok(Done::APPLIED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::tests::survives;
    use crate::hash;
    use crate::overlay::tests::{Trial, record};
    use kvdb_model::wrong_value::REPLY_TOO_LARGE;
    use proptest::prelude::*;

    fn name(number: usize) -> Bytes {
        format!("element {number}").into()
    }

    /// Of each type one with so many elements.
    fn contents(count: usize) -> Vec<Content> {
        let names = || (0..count).map(name);
        let score = |number: usize| Score::new(number as f64 / 3.0 - 5.0).unwrap();
        vec![
            Content::Hash(names().map(|name| (name.clone(), name)).collect()),
            Content::Set(names().collect()),
            Content::SortedSet(names().enumerate().map(|(at, name)| (score(at), name)).collect()),
            Content::List(names().chain(names()).take(count).collect()),
        ]
    }

    fn sorted(content: Content) -> Content {
        let mut content = content;
        match &mut content {
            Content::Hash(pairs) => pairs.sort(),
            Content::Set(members) => members.sort(),
            Content::SortedSet(members) => members.sort(),
            Content::String(_) | Content::List(_) => {}
        }
        content
    }

    fn read(trial: &mut Trial, key: &'static str) -> Option<Content> {
        Content::in_reply(&trial.run(&ReadWhole, &[key]).unwrap().reply).map(sorted)
    }

    fn restore(content: Content) -> Restore {
        Restore { content, expiry: Expiry::Never }
    }

    #[test]
    fn what_is_restored_is_read_again_whatever_its_type_and_size() {
        let mut trial = Trial::new(&[("k", record(b"text", 0))]);
        assert_eq!(read(&mut trial, "k"), Some(Content::String("text".into())));
        assert_eq!(read(&mut trial, "none"), None);
        for count in [1, 2, 60, 2000] {
            for content in contents(count) {
                assert!(trial.run(&restore(content.clone()), &["k"]).unwrap().applied);
                assert_eq!(read(&mut trial, "k"), Some(sorted(content)), "{count}");
            }
        }
        let string = Content::String("text".into());
        trial.run(&restore(string.clone()), &["k"]).unwrap();
        assert_eq!(read(&mut trial, "k"), Some(string));
    }

    #[test]
    fn what_is_restored_can_be_worked_on() {
        for count in [3, 2000] {
            let mut trial = Trial::new(&[]);
            let [_, _, set, list] = contents(count).try_into().unwrap();
            trial.run(&restore(set), &["z"]).unwrap();
            trial.run(&restore(list), &["l"]).unwrap();
            let members = vec![(Score::new(-100.0).unwrap(), name(2))];
            let add = zset::Add { rule: zset::AddRule::default(), count_changed: true, members };
            assert_eq!(trial.run(&add, &["z"]).unwrap().reply, Reply::Integer(1), "it is there");
            let Some(Content::SortedSet(members)) = read(&mut trial, "z") else { panic!() };
            assert_eq!((members.len(), members[0].1.clone()), (count, name(2)));
            let last = list::Index { index: -1 };
            assert_eq!(trial.run(&last, &["l"]).unwrap().reply, Reply::Bytes(name(count - 1)));
        }
    }

    #[test]
    fn a_lifetime_is_kept_and_one_that_is_over_leaves_nothing() {
        for content in contents(2000) {
            let mut trial = Trial::new(&[("k", record(b"text", 0))]);
            let past = Restore { content: content.clone(), expiry: Expiry::At(1) };
            assert!(trial.run(&past, &["k"]).unwrap().applied);
            assert_eq!((read(&mut trial, "k"), trial.elements()), (None, 0));
            let soon = Restore { content, expiry: Expiry::In(10) };
            trial.run(&soon, &["k"]).unwrap();
            assert!(read(&mut trial, "k").is_some());
            trial.advance(11);
            assert_eq!(read(&mut trial, "k"), None);
        }
    }

    #[test]
    fn fields_that_expire_are_not_lost_in_silence() {
        for count in [3, 2000] {
            let mut trial = Trial::new(&[]);
            let hash = contents(count).swap_remove(0);
            trial.run(&restore(hash), &["h"]).unwrap();
            let fields = vec![name(1)];
            let rule = super::super::ExpiryRule::ALWAYS;
            let expire = hash::ExpireFields { expiry: Expiry::In(10), rule, fields };
            trial.run(&expire, &["h"]).unwrap();
            let refused = trial.run(&ReadWhole, &["h"]);
            assert_eq!(refused, Err(Refusal::WrongValue(FIELDS_EXPIRE)), "{count}");
            trial.advance(11);
            let Some(Content::Hash(left)) = read(&mut trial, "h") else { panic!() };
            assert_eq!(left.len(), count - 1);
        }
    }

    #[test]
    fn more_than_a_reply_holds_is_not_read() {
        let mut trial = Trial::new(&[]);
        let values = vec![Bytes::from(vec![b'x'; 3 << 20]); 2];
        trial.run(&restore(Content::List(values.clone())), &["l"]).unwrap();
        assert!(read(&mut trial, "l").is_some());
        trial.run(&list::Push { end: End::Last, only_present: false, values }, &["l"]).unwrap();
        assert_eq!(trial.run(&ReadWhole, &["l"]), Err(Refusal::WrongValue(REPLY_TOO_LARGE)));
    }

    #[test]
    fn contents_beyond_the_limits_are_refused_by_name() {
        let problem = |content: Content| {
            let refused = crate::check(&restore(content).on("k".into()), &Limits::default());
            refused.err().map(|refusal| refusal.to_string())
        };
        let same = || vec![name(1), name(1)];
        let score = |name| (Score::ZERO, name);
        let pair = |name| (name, Bytes::new());
        for content in [
            Content::Set(same()),
            Content::Hash(same().into_iter().map(pair).collect()),
            Content::SortedSet(same().into_iter().map(score).collect()),
        ] {
            assert_eq!(problem(content).as_deref(), Some("elements are not all different"));
        }
        assert_eq!(problem(Content::List(same())), None);
        for content in contents(0).into_iter().chain(contents(100_001)) {
            let problem = problem(content).unwrap();
            assert!(problem.ends_with("a collection is stored with 1 to 100000"), "{problem}");
        }
        let long = || Bytes::from(vec![b'x'; 16385]);
        let told = "element is 16385 bytes; the limit is 16384";
        for content in [
            Content::Set(vec![long()]),
            Content::Hash(vec![pair(long())]),
            Content::SortedSet(vec![score(long())]),
        ] {
            assert_eq!(problem(content).as_deref(), Some(told));
        }
        let large = Bytes::from(vec![b'x'; (8 << 20) + 1]);
        let told = "value is 8388609 bytes; the limit is 8388608";
        for content in [
            Content::String(large.clone()),
            Content::List(vec![large.clone()]),
            Content::Hash(vec![("f".into(), large)]),
        ] {
            assert_eq!(problem(content).as_deref(), Some(told));
        }
        let half = Bytes::from(vec![b'x'; 4 << 20]);
        let told = "elements are more than 8 MiB together, with 16 bytes for each";
        assert_eq!(problem(Content::List(vec![half; 2])).as_deref(), Some(told));
    }

    proptest! {
        #[test]
        fn arguments_survive_encoding(
            names in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..5),
            score in any::<f64>(),
        ) {
            let names: Vec<Bytes> = names.into_iter().map(Bytes::from).collect();
            let score = Score::new(score).unwrap();
            for content in [
                Content::String(names.first().cloned().unwrap_or_default()),
                Content::Hash(names.iter().map(|name| (name.clone(), name.clone())).collect()),
                Content::Set(names.clone()),
                Content::SortedSet(names.iter().map(|name| (score, name.clone())).collect()),
                Content::List(names),
            ] {
                survives(&Restore { content, expiry: Expiry::At(7) });
            }
            survives(&ReadWhole);
        }
    }
}
