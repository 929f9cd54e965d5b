//! Fields that expire by themselves, and what reads or sets them together with their deadline.

use super::{Command, Done, Effect, Fault, check_name, decode_list, encode_list, place_of};
use crate::command::ReplySize;
use crate::keys::{Expiry, ExpiryRule};
use crate::record::Type;
use crate::tx::{Collection, Tx};
use bytes::Bytes;
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::{CommandId, Limits, Refusal, Reply};

/// In a list of replies: the field isn't there.
const NO_FIELD: i64 = -2;
/// The field never expires.
const NEVER: i64 = -1;
/// The rule doesn't allow it.
const NOT_ALLOWED: i64 = 0;
const DONE: i64 = 1;
/// The deadline has passed already: the field is gone.
const GONE: i64 = 2;

/// A number for each field, where there is no hash.
fn no_fields(fields: &[Bytes]) -> Done {
    Done::NOT_APPLIED.with(Reply::List(vec![Reply::Integer(NO_FIELD); fields.len()]))
}

/// Gives an element a deadline (0 for never), or removes it if that has passed. Returns whether it is still
/// there.
fn set_deadline(
    tx: &mut Tx<'_>,
    hash: &mut Collection,
    place: Bytes,
    payload: Bytes,
    deadline_ms: u64,
) -> Result<bool, Fault> {
    if tx.is_past(deadline_ms) {
        tx.remove_element(0, hash, &place)?;
        return Ok(false);
    }
    tx.set_element_until(0, hash, place, payload, deadline_ms)?;
    Ok(true)
}

/// Sets when fields expire. Replies with a list, a number a field: -2 if it isn't there, 0 if the rule
/// doesn't allow it, 1 if it is done, 2 if that time has passed already and the field is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpireFields {
    /// The new deadline.
    pub expiry: Expiry,
    /// On which fields.
    pub rule: ExpiryRule,
    /// Their names.
    pub fields: Vec<Bytes>,
}

impl Command for ExpireFields {
    const ID: CommandId = CommandId(0x0409);
    const EFFECT: Effect = Effect::Change;

    fn encode(&self, out: &mut Writer) {
        self.expiry.encode(out);
        out.u8(self.rule.0);
        encode_list(&self.fields, out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let (expiry, rule) = (Expiry::decode(input)?, ExpiryRule::decode(input)?);
        Ok(ExpireFields { expiry, rule, fields: decode_list(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(mut hash) = tx.collection(0, Type::Hash)? else {
            return Ok(no_fields(&self.fields));
        };
        let mut told = Vec::with_capacity(self.fields.len());
        for field in &self.fields {
            let place = place_of(field);
            let Some((payload, before_ms)) = tx.element_until(0, &hash, &place)? else {
                told.push(NO_FIELD);
                continue;
            };
            let after_ms = self.expiry.expires_at_ms(tx.version(), before_ms);
            told.push(match self.rule.allows(before_ms, after_ms) {
                false => NOT_ALLOWED,
                true if set_deadline(tx, &mut hash, place, payload, after_ms)? => DONE,
                true => GONE,
            });
        }
        stored(tx, hash, told, &[DONE, GONE])
    }
}

/// Stores a hash if any field came to one of these, and replies with what each came to.
fn stored(
    tx: &mut Tx<'_>,
    hash: Collection,
    told: Vec<i64>,
    changes: &[i64],
) -> Result<Done, Fault> {
    let applied = told.iter().any(|told| changes.contains(told));
    if applied {
        tx.store(0, hash)?;
    }
    let reply = Reply::List(told.into_iter().map(Reply::Integer).collect());
    Ok(Done { applied, reply })
}

/// Takes the deadline of fields away. Replies with a list, a number a field: -2 if it isn't there, -1 if it
/// has none, 1 if it is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PersistFields {
    /// Their names.
    pub fields: Vec<Bytes>,
}

impl Command for PersistFields {
    const ID: CommandId = CommandId(0x040a);
    const EFFECT: Effect = Effect::Change;

    fn encode(&self, out: &mut Writer) {
        encode_list(&self.fields, out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(PersistFields { fields: decode_list(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(mut hash) = tx.collection(0, Type::Hash)? else {
            return Ok(no_fields(&self.fields));
        };
        let mut told = Vec::with_capacity(self.fields.len());
        for field in &self.fields {
            let place = place_of(field);
            told.push(match tx.element_until(0, &hash, &place)? {
                None => NO_FIELD,
                Some((_, 0)) => NEVER,
                Some((payload, _)) => {
                    tx.set_element(0, &mut hash, place, payload)?;
                    DONE
                }
            });
        }
        stored(tx, hash, told, &[DONE])
    }
}

/// Reads when fields expire. Replies with a list, a number a field: -2 if it isn't there, -1 if it never
/// does, otherwise milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldDeadlines {
    /// Their names.
    pub fields: Vec<Bytes>,
}

impl Command for FieldDeadlines {
    const ID: CommandId = CommandId(0x040b);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, out: &mut Writer) {
        encode_list(&self.fields, out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(FieldDeadlines { fields: decode_list(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(hash) = tx.collection(0, Type::Hash)? else {
            return Ok(no_fields(&self.fields));
        };
        let mut told = Vec::with_capacity(self.fields.len());
        for field in &self.fields {
            told.push(Reply::Integer(match tx.element_until(0, &hash, &place_of(field))? {
                None => NO_FIELD,
                Some((_, 0)) => NEVER,
                Some((_, at_ms)) => i64::try_from(at_ms).unwrap_or(i64::MAX),
            }));
        }
        Ok(Done::APPLIED.with(Reply::List(told)))
    }
}

/// The values of fields, within what a reply holds.
pub(super) fn values(
    tx: &Tx<'_>,
    hash: &Collection,
    fields: &[Bytes],
) -> Result<Vec<Option<Bytes>>, Fault> {
    let mut size = ReplySize::default();
    let mut found = Vec::with_capacity(fields.len());
    for field in fields {
        let value = tx.element(0, hash, &place_of(field))?;
        if let Some(value) = &value {
            size.add(value.len());
            size.check()?;
        }
        found.push(value);
    }
    Ok(found)
}

pub(super) fn listed(values: Vec<Option<Bytes>>) -> Reply {
    Reply::List(values.into_iter().map(|value| value.map_or(Reply::Nil, Reply::Bytes)).collect())
}

/// Reads fields and removes them. Replies with a list: a value a field, nil where there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Take {
    /// Their names.
    pub fields: Vec<Bytes>,
}

impl Command for Take {
    const ID: CommandId = CommandId(0x040c);
    const EFFECT: Effect = Effect::Free;

    fn encode(&self, out: &mut Writer) {
        encode_list(&self.fields, out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Take { fields: decode_list(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(mut hash) = tx.collection(0, Type::Hash)? else {
            return Ok(Done::NOT_APPLIED.with(listed(vec![None; self.fields.len()])));
        };
        let mut found = values(tx, &hash, &self.fields)?;
        let mut applied = false;
        for (field, value) in self.fields.iter().zip(&mut found) {
            // What comes twice was taken the first time.
            if tx.remove_element(0, &mut hash, &place_of(field))? {
                applied = true;
            } else {
                *value = None;
            }
        }
        if applied {
            tx.store(0, hash)?;
        }
        Ok(Done { applied, reply: listed(found) })
    }
}

/// Reads fields and sets when they expire. Replies with a list: a value a field, nil where there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GetAndExpire {
    /// The new deadline.
    pub expiry: Expiry,
    /// Their names.
    pub fields: Vec<Bytes>,
}

impl Command for GetAndExpire {
    const ID: CommandId = CommandId(0x040d);
    const EFFECT: Effect = Effect::Change;

    fn encode(&self, out: &mut Writer) {
        self.expiry.encode(out);
        encode_list(&self.fields, out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(GetAndExpire { expiry: Expiry::decode(input)?, fields: decode_list(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(mut hash) = tx.collection(0, Type::Hash)? else {
            return Ok(Done::NOT_APPLIED.with(listed(vec![None; self.fields.len()])));
        };
        let found = values(tx, &hash, &self.fields)?;
        let mut applied = false;
        for field in &self.fields {
            let place = place_of(field);
            let Some((payload, before_ms)) = tx.element_until(0, &hash, &place)? else { continue };
            let after_ms = self.expiry.expires_at_ms(tx.version(), before_ms);
            if after_ms != before_ms {
                set_deadline(tx, &mut hash, place, payload, after_ms)?;
                applied = true;
            }
        }
        if applied {
            tx.store(0, hash)?;
        }
        Ok(Done { applied, reply: listed(found) })
    }
}

/// When [`SetUntil`] sets fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldCondition {
    /// In any case.
    Always,
    /// If none of them is there.
    AllAbsent,
    /// If all of them are there.
    AllPresent,
}

/// Sets fields and when they expire, all or none. Replies with 1, or with 0 if the condition fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetUntil {
    /// Their deadline.
    pub expiry: Expiry,
    /// Whether to do it.
    pub condition: FieldCondition,
    /// Names and values, in order: of the same name the last one counts.
    pub fields: Vec<(Bytes, Bytes)>,
}

impl Command for SetUntil {
    const ID: CommandId = CommandId(0x040e);
    const EFFECT: Effect = Effect::Grow;

    fn encode(&self, out: &mut Writer) {
        self.expiry.encode(out);
        out.u8(self.condition as u8);
        out.varint(self.fields.len() as u64);
        for (field, value) in &self.fields {
            out.bytes(field);
            out.bytes(value);
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let expiry = Expiry::decode(input)?;
        let condition = match input.u8()? {
            0 => FieldCondition::Always,
            1 => FieldCondition::AllAbsent,
            2 => FieldCondition::AllPresent,
            other => return Err(DecodeError::unknown_tag("condition on fields", other)),
        };
        let count = input.count(2)?;
        let field = |_| Ok((input.bytes()?, input.bytes()?));
        let fields = (0..count).map(field).collect::<Result<_, DecodeError>>()?;
        Ok(SetUntil { expiry, condition, fields })
    }

    fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        self.fields.iter().try_for_each(|(field, value)| {
            check_name("field", field, limits)?;
            limits.check_value(value)
        })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let mut hash = tx.collection_or_new(0, Type::Hash)?;
        let wanted = match self.condition {
            FieldCondition::Always => None,
            FieldCondition::AllAbsent => Some(false),
            FieldCondition::AllPresent => Some(true),
        };
        if let Some(wanted) = wanted {
            for (field, _) in &self.fields {
                if tx.element(0, &hash, &place_of(field))?.is_some() != wanted {
                    return Ok(Done::NOT_APPLIED.with(Reply::Integer(0)));
                }
            }
        }
        let was_there = hash.count() > 0;
        for (field, value) in self.fields {
            let place = place_of(&field);
            let before = match self.expiry {
                Expiry::Keep => tx.element_until(0, &hash, &place)?,
                _ => None,
            };
            let before_ms = before.map_or(0, |(_, before_ms)| before_ms);
            let after_ms = self.expiry.expires_at_ms(tx.version(), before_ms);
            set_deadline(tx, &mut hash, place, value, after_ms)?;
        }
        // With a deadline that has passed nothing is left of a new one.
        if was_there || hash.count() > 0 {
            tx.store(0, hash)?;
        }
        Ok(Done::APPLIED.with(Reply::Integer(1)))
    }
}
