//! Commands on keys, whatever they hold.

mod content;
mod expiry;
mod sort;

pub use content::{Content, ReadWhole, Restore};
pub use expiry::{Expiry, ExpiryRule};
pub use sort::{By, Order as SortOrder, Sort, SortInto};

use crate::changes::is_promoted;
use crate::command::{Command, Done, Effect, Fault, flag, wrong};
use crate::record::Type;
use crate::set;
use crate::string::parse_counter;
use crate::tx::Tx;
use bytes::Bytes;
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::planted::{Bug, has};
use kvdb_model::wrong_value::NO_SUCH_KEY;
use kvdb_model::{Body, CommandId, Reply};

/// Looks at a key: replies with its type as a number and when it expires (milliseconds since 1970, 0
/// for never). Applies if it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look;

impl Command for Look {
    const ID: CommandId = CommandId(0x0301);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, _out: &mut Writer) {}

    fn decode(_input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Look)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(record) = tx.get(0)? else { return Ok(Done::NOT_APPLIED) };
        let expires_at_ms = i64::try_from(record.expires_at_ms).unwrap_or(i64::MAX);
        let about = [Reply::Integer(record.kind as i64), Reply::Integer(expires_at_ms)];
        Ok(Done::APPLIED.with(Reply::List(about.to_vec())))
    }
}

/// Tells how a key's content is kept, in Redis's words. Applies if it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding;

impl Command for Encoding {
    const ID: CommandId = CommandId(0x0307);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, _out: &mut Writer) {}

    fn decode(_input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Encoding)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(record) = tx.get(0)? else { return Ok(Done::NOT_APPLIED.with(Reply::Nil)) };
        let name = match record.kind {
            Type::String if parse_counter(&record.value).is_some() => "int",
            Type::String if record.value.len() <= EMBEDDED_MAX_BYTES => "embstr",
            Type::String => "raw",
            Type::Set => match tx.collection(0, Type::Set)? {
                Some(set) => set::encoding(tx, &set)?,
                None => return Ok(Done::NOT_APPLIED.with(Reply::Nil)),
            },
            Type::List => "quicklist",
            Type::Hash if is_promoted(&record)? => "hashtable",
            Type::SortedSet if is_promoted(&record)? => "skiplist",
            Type::Hash | Type::SortedSet => "listpack",
        };
        Ok(Done::APPLIED.with(Reply::Bytes(Bytes::from_static(name.as_bytes()))))
    }
}

/// Tells about how many bytes a key takes up; nil if it isn't there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// So many elements are looked at, of a collection whose elements have records of their own.
    pub samples: u64,
}

/// Most elements that are looked at. A part of the state machine: fixed.
const SAMPLES_MOST: u64 = 1_000_000;
/// What a record costs beside its key and content, about.
const RECORD_BYTES: u64 = 32;

impl Command for Size {
    const ID: CommandId = CommandId(0x0308);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, out: &mut Writer) {
        out.varint(self.samples);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Size { samples: input.varint()? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(record) = tx.get(0)? else { return Ok(Done::NOT_APPLIED.with(Reply::Nil)) };
        let key = tx.key_bytes(0) as u64;
        let mut size = key + record.value.len() as u64 + RECORD_BYTES;
        if record.kind != Type::String
            && is_promoted(&record)?
            && let Some(collection) = tx.collection(0, record.kind)?
        {
            let most = self.samples.clamp(1, SAMPLES_MOST);
            let (mut seen, mut bytes) = (0, 0);
            tx.scan(0, &collection, &[], |place, payload| {
                seen += 1;
                bytes += key + RECORD_BYTES + place.len() as u64 + payload.len() as u64;
                seen < most
            })?;
            let all = u128::from(bytes) * u128::from(collection.count()) / u128::from(seen.max(1));
            size = size.saturating_add(u64::try_from(all).unwrap_or(u64::MAX));
        }
        Ok(Done::APPLIED.with(Reply::Integer(i64::try_from(size).unwrap_or(i64::MAX))))
    }
}

/// Longest string that Redis keeps beside its header.
const EMBEDDED_MAX_BYTES: usize = 44;

/// Does nothing: it stands in an atomic write for its condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check;

impl Check {
    /// Whether an operation is one, in whatever encoding.
    pub fn is(body: &Body) -> bool {
        body.id == Self::ID
    }
}

impl Command for Check {
    const ID: CommandId = CommandId(0x0302);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, _out: &mut Writer) {}

    fn decode(_input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Check)
    }

    fn apply(self, _tx: &mut Tx<'_>) -> Result<Done, Fault> {
        Ok(Done::APPLIED)
    }
}

/// Removes a key. Applies if it was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delete;

impl Delete {
    /// Whether an operation takes away what it answers with, so that a retry must be answered
    /// with all of it.
    pub(crate) fn is(body: &Body) -> bool {
        body.id == Self::ID
    }
}

impl Command for Delete {
    const ID: CommandId = CommandId(0x0303);
    const EFFECT: Effect = Effect::Free;

    fn encode(&self, _out: &mut Writer) {}

    fn decode(_input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Delete)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        if tx.get(0)?.is_none() {
            return Ok(Done::NOT_APPLIED);
        }
        if !has(Bug::DeleteLost) {
            tx.remove(0)?;
        }
        Ok(Done::APPLIED)
    }
}

/// Changes when a key expires, and its version; its value stays. Applies if the key is there and
/// the rule allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetExpiry {
    /// The new one.
    pub expiry: Expiry,
    /// On which keys.
    pub rule: ExpiryRule,
}

impl Command for SetExpiry {
    const ID: CommandId = CommandId(0x0304);
    const EFFECT: Effect = Effect::Change;

    fn encode(&self, out: &mut Writer) {
        self.expiry.encode(out);
        out.u8(self.rule.0);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(SetExpiry { expiry: Expiry::decode(input)?, rule: ExpiryRule::decode(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(record) = tx.get(0)? else { return Ok(Done::NOT_APPLIED) };
        let after = self.expiry.expires_at_ms(tx.version(), record.expires_at_ms);
        if !self.rule.allows(record.expires_at_ms, after) {
            return Ok(Done::NOT_APPLIED);
        }
        tx.set_expiry(0, record, after)?;
        Ok(Done::APPLIED)
    }
}

/// Moves what a key holds, and when it expires, to another key. Applies if the key is there and, with `only_absent`, the
/// other isn't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rename {
    /// Leave another key that exists alone.
    pub only_absent: bool,
}

impl Command for Rename {
    const ID: CommandId = CommandId(0x0305);
    const EFFECT: Effect = Effect::Change;
    const OTHERS: (usize, usize) = (1, 1);

    fn encode(&self, out: &mut Writer) {
        out.u8(u8::from(self.only_absent));
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Rename { only_absent: flag(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        hand_over(tx, self.only_absent, true)
    }
}

/// Copies what a key holds, and when it expires, to another key; as [`Rename`] otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Leave another key that exists alone.
    pub only_absent: bool,
}

impl Command for Copy {
    const ID: CommandId = CommandId(0x0306);
    const EFFECT: Effect = Effect::Change;
    const OTHERS: (usize, usize) = (1, 1);

    fn encode(&self, out: &mut Writer) {
        out.u8(u8::from(self.only_absent));
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Copy { only_absent: flag(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        hand_over(tx, self.only_absent, false)
    }
}

fn hand_over(tx: &mut Tx<'_>, only_absent: bool, moves: bool) -> Result<Done, Fault> {
    let Some(record) = tx.get(0)? else { return Err(wrong(NO_SUCH_KEY)) };
    if only_absent && tx.get(1)?.is_some() {
        return Ok(Done::NOT_APPLIED);
    }
    if tx.is_same_key(0, 1) {
        return Ok(Done::APPLIED);
    }
    tx.copy(0, record, 1)?;
    if moves {
        tx.remove(0)?;
    }
    Ok(Done::APPLIED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::tests::survives;
    use crate::overlay::tests::{NOW_MS, Trial, record};
    use kvdb_model::{Condition, Operation, Refusal, Version, wrong_value};

    #[test]
    fn commands_on_keys_survive_encoding() {
        survives(&Look);
        survives(&Encoding);
        survives(&Check);
        survives(&Size { samples: u64::MAX });
        survives(&Delete);
        survives(&Rename { only_absent: true });
        survives(&Copy { only_absent: false });
        for expiry in [Expiry::Never, Expiry::Keep, Expiry::In(u64::MAX), Expiry::At(1)] {
            survives(&SetExpiry { expiry, rule: ExpiryRule::XX.and(ExpiryRule::GT) });
        }
    }

    #[test]
    fn the_size_of_a_key_grows_with_what_it_holds() {
        let mut trial = Trial::new(&[("small", record(b"v", 0)), ("large", record(&[1; 1000], 0))]);
        for count in [3, 300, 3_000] {
            let members = (0..count).map(|n| Bytes::from(format!("{n:0>20}"))).collect();
            let key = if count == 3 {
                "few"
            } else if count == 300 {
                "many"
            } else {
                "more"
            };
            trial.run(&set::Add { members }, &[key]).unwrap();
        }
        let mut size = |key, samples| {
            let told = trial.run(&Size { samples }, &[key]).unwrap().reply;
            told.integer().expect("it is there")
        };
        let sizes = ["small", "few", "large", "many", "more"].map(|key| size(key, 5));
        assert!(sizes.is_sorted_by(|a, b| a < b) && sizes[2] > 1000, "{sizes:?}");
        assert!(sizes[4] > 9 * sizes[3] && sizes[3] > 300 * 20, "{sizes:?}");
        assert_eq!(size("more", u64::MAX), sizes[4], "members are all alike");
        assert_eq!(trial.run(&Size { samples: 0 }, &["nothing"]).unwrap().reply, Reply::Nil);
    }

    #[test]
    fn an_expiry_is_set_by_the_clock_of_the_log_and_one_that_has_passed_removes() {
        let set = |expiry, rule, there: u64| {
            let mut trial = Trial::new(&[("k", record(b"v", there))]);
            let applied = trial.run(&SetExpiry { expiry, rule }, &["k"]).unwrap().applied;
            (applied, trial.value("k").map(|(_, expires)| expires))
        };
        let always = ExpiryRule::ALWAYS;
        assert_eq!(set(Expiry::In(5), always, 0), (true, Some(NOW_MS + 5)));
        assert_eq!(set(Expiry::At(7_777), always, 0), (true, Some(7_777)));
        assert_eq!(set(Expiry::At(NOW_MS), always, 0), (true, None));
        assert_eq!(set(Expiry::Never, always, 7_777), (true, Some(0)));
        assert_eq!(set(Expiry::Never, ExpiryRule::XX, 0), (false, Some(0)), "it never expired");
        assert_eq!(set(Expiry::In(5), ExpiryRule::XX, 0), (false, Some(0)));
        let mut empty = Trial::new(&[]);
        let command = SetExpiry { expiry: Expiry::In(5), rule: always };
        assert!(!empty.run(&command, &["k"]).unwrap().applied);
    }

    #[test]
    fn a_rename_moves_value_and_expiry_to_the_other_key() {
        let there = || ("k", record(b"v", 9_000));
        let moved = Some((b"v".to_vec(), 9_000));
        let mut trial = Trial::new(&[there()]);
        assert!(trial.run(&Rename { only_absent: true }, &["k", "other"]).unwrap().applied);
        assert_eq!((trial.value("k"), trial.value("other")), (None, moved.clone()));
        let mut taken = Trial::new(&[there(), ("other", record(b"w", 0))]);
        assert!(!taken.run(&Rename { only_absent: true }, &["k", "other"]).unwrap().applied);
        assert_eq!((taken.value("k"), taken.changes()), (moved.clone(), 0));
        assert!(taken.run(&Copy { only_absent: false }, &["k", "other"]).unwrap().applied);
        assert_eq!((taken.value("k"), taken.value("other")), (moved.clone(), moved.clone()));
        let absent = taken.run(&Rename { only_absent: false }, &["nothing", "k"]);
        assert!(matches!(absent, Err(Refusal::WrongValue(wrong_value::NO_SUCH_KEY))));
        let mut same = Trial::new(&[there()]);
        assert!(same.run(&Rename { only_absent: false }, &["k", "k"]).unwrap().applied);
        assert_eq!((same.value("k"), same.changes()), (moved, 0));
    }

    #[test]
    fn a_check_and_a_look_change_nothing() {
        let mut trial = Trial::new(&[("k", record(b"v", 0))]);
        assert!(trial.run(&Look, &["k"]).unwrap().applied);
        assert!(!trial.run(&Look, &["nothing"]).unwrap().applied);
        let condition = Some(Condition::IfVersion(Version(1)));
        let check =
            |key: &'static str| Operation { condition: condition.clone(), ..Check.on(key.into()) };
        assert!(trial.carry_out(&check("k")).unwrap().applied);
        assert!(!trial.carry_out(&check("nothing")).unwrap().applied);
        assert_eq!(trial.changes(), 0);
    }
}
