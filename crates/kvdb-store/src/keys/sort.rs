//! `SORT`: the elements of a list, a set or a sorted set in another order.

use crate::changes::Direction;
use crate::command::{
    CHANGED_MOST, Command, Done, Effect, Fault, ReplySize, STORED_MAX_BYTES, flag, wrong,
};
use crate::order::End;
use crate::record::Type;
use crate::tx::{Collection, Tx};
use crate::unordered::name_at;
use crate::{list, zset};
use bytes::Bytes;
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::wrong_value::{NOT_A_WEIGHT, RESULT_TOO_LARGE, TOO_MANY_ELEMENTS, WRONG_TYPE};
use kvdb_model::{CommandId, Reply};

/// What elements are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The numbers that they are.
    Number,
    /// Their bytes.
    Bytes,
    /// Nothing: they stay in the order that they have.
    Nothing,
}

/// How elements are sorted, and which of them are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// By what.
    pub by: By,
    /// The last one first.
    pub descending: bool,
    /// How many to leave out; below 0 for none.
    pub offset: i64,
    /// How many to tell at most; below 0 for all.
    pub count: i64,
    /// How often each is told.
    pub times: u8,
}

impl Order {
    fn encode(self, out: &mut Writer) {
        out.u8(match self.by {
            By::Number => 0,
            By::Bytes => 1,
            By::Nothing => 2,
        });
        out.u8(u8::from(self.descending));
        out.signed(self.offset);
        out.signed(self.count);
        out.u8(self.times);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let by = match input.u8()? {
            0 => By::Number,
            1 => By::Bytes,
            2 => By::Nothing,
            other => return Err(DecodeError::unknown_tag("order", other)),
        };
        let descending = flag(input)?;
        let (offset, count) = (input.signed()?, input.signed()?);
        Ok(Order { by, descending, offset, count, times: input.u8()? })
    }

    /// The elements that are told, in their order, each once.
    fn sorted(
        self,
        kind: Type,
        mut elements: Vec<Bytes>,
        is_stored: bool,
    ) -> Result<Vec<Bytes>, Fault> {
        // What a set is stored as must not depend on how it is kept.
        let by = match self.by {
            By::Nothing if kind == Type::Set && is_stored => By::Bytes,
            by => by,
        };
        match by {
            By::Nothing => {
                if self.descending && kind != Type::Set {
                    elements.reverse();
                }
            }
            By::Bytes => elements.sort_unstable(),
            By::Number => {
                let weight = |element: Bytes| match number(&element) {
                    Some(weight) => Ok((weight, element)),
                    None => Err(wrong(NOT_A_WEIGHT)),
                };
                let mut weighed =
                    elements.into_iter().map(weight).collect::<Result<Vec<_>, _>>()?;
                weighed.sort_unstable_by(|(one, a), (other, b)| {
                    // No weight is NaN; 0 and -0 are the same.
                    one.partial_cmp(other).unwrap_or(std::cmp::Ordering::Equal).then(a.cmp(b))
                });
                elements = weighed.into_iter().map(|(_, element)| element).collect();
            }
        }
        if self.descending && by != By::Nothing {
            elements.reverse();
        }
        let from = usize::try_from(self.offset).unwrap_or(0).min(elements.len());
        let left = elements.len() - from;
        let count = usize::try_from(self.count).map_or(left, |count| count.min(left));
        Ok(elements.into_iter().skip(from).take(count).collect())
    }
}

/// A decimal number, as Redis reads one.
fn number(text: &[u8]) -> Option<f64> {
    // It ends at a zero byte, and an empty one counts as 0.
    let text = text.split(|byte| *byte == 0).next()?;
    let text = std::str::from_utf8(text).ok()?;
    if text.is_empty() {
        return Some(0.0);
    }
    let number: f64 = text.parse().ok()?;
    let is_too_large = number.is_infinite() && !text.contains(['i', 'I']);
    (!number.is_nan() && !is_too_large).then_some(number)
}

/// The elements of a list, a set or a sorted set, and which of them it is.
fn elements(tx: &mut Tx<'_>) -> Result<Option<(Type, Vec<Bytes>)>, Fault> {
    let Some(record) = tx.get(0)? else { return Ok(None) };
    let kind = record.kind;
    if !matches!(kind, Type::List | Type::Set | Type::SortedSet) {
        return Err(wrong(WRONG_TYPE));
    }
    let Some(mut collection) = tx.collection(0, kind)? else { return Ok(None) };
    if collection.count() > CHANGED_MOST {
        return Err(wrong(TOO_MANY_ELEMENTS));
    }
    let mut found = Vec::new();
    match kind {
        Type::Set => tx.scan(0, &collection, &[], |place, _| {
            found.push(name_at(&place));
            true
        })?,
        _ => tx.order(0, &mut collection).scan(None, Direction::Ascending, |row, value| {
            found.push(if kind == Type::List { value } else { zset::parse_row(&row).1 });
            Ok(true)
        })?,
    }
    Ok(Some((kind, found)))
}

/// Tells the elements in another order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sort {
    /// Which.
    pub order: Order,
}

impl Command for Sort {
    const ID: CommandId = CommandId(0x0309);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, out: &mut Writer) {
        self.order.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Sort { order: Order::decode(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let Some((kind, elements)) = elements(tx)? else {
            return Ok(Done::NOT_APPLIED.with(Reply::List(vec![])));
        };
        let (mut told, mut size) = (Vec::new(), ReplySize::default());
        for element in self.order.sorted(kind, elements, false)? {
            for _ in 0..self.order.times {
                size.add(element.len());
                size.check()?;
                told.push(Reply::Bytes(element.clone()));
            }
        }
        Ok(Done::APPLIED.with(Reply::List(told)))
    }
}

/// Stores the elements in another order as a list, in the place of whatever another key holds. Replies with
/// how many; without any that key is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SortInto {
    /// Which.
    pub order: Order,
}

impl Command for SortInto {
    const ID: CommandId = CommandId(0x030a);
    const EFFECT: Effect = Effect::Grow;
    const OTHERS: (usize, usize) = (1, 1);

    fn encode(&self, out: &mut Writer) {
        self.order.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(SortInto { order: Order::decode(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let told = match elements(tx)? {
            Some((kind, elements)) => self.order.sorted(kind, elements, true)?,
            None => vec![],
        };
        let times = usize::from(self.order.times);
        let count = (told.len() * times) as u64;
        let size_bytes = told.iter().map(Bytes::len).sum::<usize>() * times;
        if count > CHANGED_MOST || size_bytes > STORED_MAX_BYTES {
            return Err(wrong(RESULT_TOO_LARGE));
        }
        if told.is_empty() {
            let was_there = tx.get(1)?.is_some();
            if was_there {
                tx.remove(1)?;
            }
            return Ok(Done { applied: was_there, reply: Reply::Integer(0) });
        }
        let mut target = Collection::new(Type::List);
        let mut rows = tx.order(1, &mut target);
        let told = told.into_iter().flat_map(|element| std::iter::repeat_n(element, times));
        list::push(&mut rows, End::Last, told)?;
        rows.close()?;
        tx.store(1, target)?;
        Ok(Done::APPLIED.with(Reply::Integer(count as i64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::tests::survives;
    use crate::overlay::tests::{Trial, record};
    use crate::set;
    use kvdb_model::Refusal;
    use kvdb_model::wrong_value::REPLY_TOO_LARGE;

    const NUMBERS: Order =
        Order { by: By::Number, descending: false, offset: 0, count: -1, times: 1 };

    fn list_of(values: &[&'static str]) -> list::Push {
        let values = values.iter().map(|value| Bytes::from(*value)).collect();
        list::Push { end: End::Last, only_present: false, values }
    }

    fn told(trial: &mut Trial, order: Order, key: &'static str) -> String {
        let Reply::List(items) = trial.run(&Sort { order }, &[key]).unwrap().reply else {
            panic!("it is a list")
        };
        let text = |item: &Reply| String::from_utf8(item.bytes().unwrap().to_vec()).unwrap();
        items.iter().map(text).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn elements_are_sorted_by_number_by_bytes_or_not_at_all() {
        let mut trial = Trial::new(&[]);
        trial.run(&list_of(&["10", "9", "-1.5", "1e1", ""]), &["l"]).unwrap();
        assert_eq!(told(&mut trial, NUMBERS, "l"), "-1.5  9 10 1e1");
        let descending = Order { descending: true, ..NUMBERS };
        assert_eq!(told(&mut trial, descending, "l"), "1e1 10 9  -1.5");
        let bytes = Order { by: By::Bytes, ..NUMBERS };
        assert_eq!(told(&mut trial, bytes, "l"), " -1.5 10 1e1 9");
        let nothing = Order { by: By::Nothing, offset: 1, count: 2, ..NUMBERS };
        assert_eq!(told(&mut trial, nothing, "l"), "9 -1.5");
        assert_eq!(
            told(&mut trial, Order { offset: -3, count: 1, times: 2, ..NUMBERS }, "l"),
            "-1.5 -1.5"
        );
        assert_eq!(told(&mut trial, Order { offset: 9, ..NUMBERS }, "l"), "");
        let backwards = Order { by: By::Nothing, descending: true, count: 2, ..NUMBERS };
        assert_eq!(told(&mut trial, backwards, "l"), " 1e1");
        assert_eq!(told(&mut trial, NUMBERS, "none"), "");
    }

    #[test]
    fn what_is_sorted_may_be_stored_over_anything_and_nothing_removes_it() {
        let mut trial = Trial::new(&[("s", record(b"text", 0))]);
        let members = ["3", "1", "2"].map(Bytes::from).to_vec();
        trial.run(&set::Add { members }, &["m"]).unwrap();
        let stored = trial.run(&SortInto { order: NUMBERS }, &["m", "s"]).unwrap().reply;
        assert_eq!(stored, Reply::Integer(3));
        let range = list::Range { start: 0, stop: -1 };
        let found = trial.run(&range, &["s"]).unwrap().reply;
        assert_eq!(found, Reply::List(["1", "2", "3"].map(|n| Reply::Bytes(n.into())).to_vec()));
        let into_itself = trial.run(&SortInto { order: NUMBERS }, &["m", "m"]).unwrap();
        assert_eq!(into_itself.reply, Reply::Integer(3));
        trial.run(&SortInto { order: NUMBERS }, &["none", "s"]).unwrap();
        assert_eq!(trial.value("s"), None);
    }

    #[test]
    fn what_is_no_number_and_what_has_no_elements_is_refused() {
        let mut trial = Trial::new(&[("s", record(b"text", 0))]);
        trial.run(&list_of(&["1", "one"]), &["l"]).unwrap();
        let refused = |trial: &mut Trial, key| trial.run(&Sort { order: NUMBERS }, &[key]);
        assert_eq!(refused(&mut trial, "l"), Err(Refusal::WrongValue(NOT_A_WEIGHT)));
        assert_eq!(refused(&mut trial, "s"), Err(Refusal::WrongValue(WRONG_TYPE)));
        for (text, expected) in
            [("\0x", Some(0.0)), ("7\0x", Some(7.0)), ("-inf", Some(f64::NEG_INFINITY))]
        {
            assert_eq!(number(text.as_bytes()), expected, "{text:?}");
        }
        for text in ["1e999", "nan", "x", "1 "] {
            assert_eq!(number(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn what_is_told_many_times_is_bounded_before_it_is_put_together() {
        let mut trial = Trial::new(&[]);
        let long = Bytes::from(vec![b'x'; 1 << 20]);
        let values = vec![long; 3];
        trial.run(&list::Push { end: End::Last, only_present: false, values }, &["l"]).unwrap();
        let order = Order { by: By::Bytes, times: 255, ..NUMBERS };
        let refused = trial.run(&Sort { order }, &["l"]);
        assert_eq!(refused, Err(Refusal::WrongValue(REPLY_TOO_LARGE)));
        let refused = trial.run(&SortInto { order }, &["l", "m"]);
        assert_eq!(refused, Err(Refusal::WrongValue(RESULT_TOO_LARGE)));
        let twice = Order { times: 2, ..order };
        let stored = trial.run(&SortInto { order: twice }, &["l", "m"]).unwrap().reply;
        assert_eq!(stored, Reply::Integer(6));
    }

    #[test]
    fn arguments_survive_encoding() {
        for by in [By::Number, By::Bytes, By::Nothing] {
            let order = Order { by, descending: true, offset: -1, count: 7, times: 3 };
            survives(&Sort { order });
            survives(&SortInto { order });
        }
    }
}
