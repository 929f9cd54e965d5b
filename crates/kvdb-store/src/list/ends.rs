//! Elements at the ends of lists.

use super::position;

use crate::changes::Direction;
use crate::command::{CHANGED_MOST, Command, Done, Effect, Fault, ReplySize, flag, wrong};
use crate::order::{End, Order};
use crate::record::Type;
use crate::tx::{Collection, Tx};
use bytes::Bytes;
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::wrong_value::TOO_MANY_ELEMENTS;
use kvdb_model::{CommandId, Limits, Refusal, Reply};

fn encode_end(end: End, out: &mut Writer) {
    out.u8(u8::from(end == End::Last));
}

fn decode_end(input: &mut Reader) -> Result<End, DecodeError> {
    Ok(if flag(input)? { End::Last } else { End::First })
}

/// Adds values at an end, one after the other.
pub(crate) fn push(
    order: &mut Order<'_, '_>,
    end: End,
    values: impl IntoIterator<Item = Bytes>,
) -> Result<(), Fault> {
    let mut neighbour = order.end(end)?.map(|(row, _)| position::decode(&row));
    for value in values {
        let position = match end {
            End::First => position::before(neighbour),
            End::Last => position::behind(neighbour),
        };
        order.insert(&position::encode(position), value)?;
        neighbour = Some(position);
    }
    Ok(())
}

/// Takes so many elements off an end.
fn pop(order: &mut Order<'_, '_>, end: End, count: u64) -> Result<Vec<Reply>, Fault> {
    let direction = match end {
        End::First => Direction::Ascending,
        End::Last => Direction::Descending,
    };
    let (mut taken, mut rows, mut size) = (Vec::new(), Vec::new(), ReplySize::default());
    if count > 0 {
        order.scan(None, direction, |row, value| {
            let more = size.add(value.len());
            rows.push(row);
            taken.push(Reply::Bytes(value));
            Ok(more && (rows.len() as u64) < count)
        })?;
    }
    size.check()?;
    if rows.len() as u64 > CHANGED_MOST {
        return Err(wrong(TOO_MANY_ELEMENTS));
    }
    for row in rows {
        order.remove(&row, Some(end))?;
    }
    Ok(taken)
}

/// Adds values at an end, one after the other. Replies with how many elements there are then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    /// Where.
    pub end: End,
    /// Only to a list that is there.
    pub only_present: bool,
    /// What.
    pub values: Vec<Bytes>,
}

impl Command for Push {
    const ID: CommandId = CommandId(0x0701);
    const EFFECT: Effect = Effect::Grow;

    fn encode(&self, out: &mut Writer) {
        encode_end(self.end, out);
        out.u8(u8::from(self.only_present));
        out.varint(self.values.len() as u64);
        self.values.iter().for_each(|value| out.bytes(value));
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let (end, only_present) = (decode_end(input)?, flag(input)?);
        let count = input.count(1)?;
        let values = (0..count).map(|_| input.bytes()).collect::<Result<_, DecodeError>>()?;
        Ok(Push { end, only_present, values })
    }

    fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        self.values.iter().try_for_each(|value| limits.check_value(value))
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let mut list = match tx.collection(0, Type::List)? {
            Some(list) => list,
            None if self.only_present => return Ok(Done::NOT_APPLIED.with(Reply::Integer(0))),
            None => Collection::new(Type::List),
        };
        let mut order = tx.order(0, &mut list);
        push(&mut order, self.end, self.values)?;
        order.close()?;
        let count = list.count();
        if count > 0 {
            tx.store(0, list)?;
        }
        Ok(Done::APPLIED.with(Reply::Integer(count as i64)))
    }
}

/// Takes elements off an end of the first of its keys that has any. Replies with the place of that key
/// among them, and a list of what was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pop {
    /// Where.
    pub end: End,
    /// How many at most.
    pub count: u64,
}

impl Command for Pop {
    const ID: CommandId = CommandId(0x0702);
    const EFFECT: Effect = Effect::Free;
    const OTHERS: (usize, usize) = (0, usize::MAX - 1);

    fn encode(&self, out: &mut Writer) {
        encode_end(self.end, out);
        out.varint(self.count);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Pop { end: decode_end(input)?, count: input.varint()? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        for place in 0..tx.key_count() {
            let Some(mut list) = tx.collection(place, Type::List)? else { continue };
            let mut order = tx.order(place, &mut list);
            let taken = pop(&mut order, self.end, self.count)?;
            order.close()?;
            if !taken.is_empty() {
                tx.store(place, list)?;
            }
            let reply = vec![Reply::Integer(place as i64), Reply::List(taken)];
            return Ok(Done::APPLIED.with(Reply::List(reply)));
        }
        Ok(Done::NOT_APPLIED.with(Reply::Nil))
    }
}

/// Takes an element off an end and puts it at an end of another list, or of the same one. Replies with
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Where to take it.
    pub from: End,
    /// Where to put it.
    pub to: End,
}

impl Command for Move {
    const ID: CommandId = CommandId(0x070b);
    const EFFECT: Effect = Effect::Grow;
    const OTHERS: (usize, usize) = (1, 1);

    fn encode(&self, out: &mut Writer) {
        encode_end(self.from, out);
        encode_end(self.to, out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Move { from: decode_end(input)?, to: decode_end(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some(mut list) = tx.collection(0, Type::List)? else {
            return Ok(Done::NOT_APPLIED.with(Reply::Nil));
        };
        let is_same = tx.is_same_key(0, 1);
        // Where it would go is looked at before anything is taken.
        let target = if is_same { None } else { Some(tx.collection_or_new(1, Type::List)?) };
        let mut order = tx.order(0, &mut list);
        let taken = pop(&mut order, self.from, 1)?;
        let Some(Reply::Bytes(value)) = taken.into_iter().next() else {
            return Ok(Done::NOT_APPLIED.with(Reply::Nil));
        };
        let Some(mut target) = target else {
            push(&mut order, self.to, [value.clone()])?;
            order.close()?;
            tx.store(0, list)?;
            return Ok(Done::APPLIED.with(Reply::Bytes(value)));
        };
        order.close()?;
        tx.store(0, list)?;
        let mut order = tx.order(1, &mut target);
        push(&mut order, self.to, [value.clone()])?;
        order.close()?;
        tx.store(1, target)?;
        Ok(Done::APPLIED.with(Reply::Bytes(value)))
    }
}
