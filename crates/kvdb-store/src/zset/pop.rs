//! Taking members away from an end.

use super::{
    CHANGED_MOST, Collection, Command, Done, Effect, End, Fault, Members, TOO_MANY_ELEMENTS, Tx,
    Type, flag, pair, remove_all, wrong,
};
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::{CommandId, Reply};

/// Removes members from an end. Replies with a map of them and their scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pop {
    /// Those with the highest scores, not with the lowest.
    pub highest: bool,
    /// So many, or all if there aren't more.
    pub count: u64,
}

impl Pop {
    fn encode(self, out: &mut Writer) {
        out.u8(u8::from(self.highest));
        out.varint(self.count);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Pop { highest: flag(input)?, count: input.varint()? })
    }

    fn take(self, tx: &mut Tx<'_>, place: usize, mut set: Collection) -> Result<Reply, Fault> {
        let wanted = self.count.min(set.count());
        // A set that goes as a whole takes one step.
        if wanted > CHANGED_MOST && wanted < set.count() {
            return Err(wrong(TOO_MANY_ELEMENTS));
        }
        let end = if self.highest { End::Last } else { End::First };
        let found = Members::of(tx, place, &mut set).at_end(end, wanted)?;
        remove_all(tx, place, set, &found, Some(end))?;
        Ok(Reply::Map(found.iter().map(pair).collect()))
    }
}

impl Command for Pop {
    const ID: CommandId = CommandId(0x060b);
    const EFFECT: Effect = Effect::Free;

    fn encode(&self, out: &mut Writer) {
        Pop::encode(*self, out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Pop::decode(input)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        match tx.collection(0, Type::SortedSet)? {
            Some(set) if self.count > 0 => Ok(Done::APPLIED.with(self.take(tx, 0, set)?)),
            _ => Ok(Done::NOT_APPLIED.with(Reply::Map(vec![]))),
        }
    }
}

/// Removes members from an end of the first of its keys that holds any. Replies with a list of the key's
/// place among them and a map of members and scores, or nil.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PopAny {
    /// From which end, and how many.
    pub pop: Pop,
}

impl Command for PopAny {
    const ID: CommandId = CommandId(0x060c);
    const EFFECT: Effect = Effect::Free;
    const OTHERS: (usize, usize) = (0, usize::MAX - 1);

    fn encode(&self, out: &mut Writer) {
        self.pop.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(PopAny { pop: Pop::decode(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        for place in 0..tx.key_count() {
            if let Some(set) = tx.collection(place, Type::SortedSet)?
                && self.pop.count > 0
            {
                let taken = self.pop.take(tx, place, set)?;
                let found = vec![Reply::Integer(place as i64), taken];
                return Ok(Done::APPLIED.with(Reply::List(found)));
            }
        }
        Ok(Done::NOT_APPLIED.with(Reply::Nil))
    }
}
