//! `SORT` and `SORT_RO`.

use crate::args::{Options, Planned, integer, is, syntax};
use crate::plan::{Plan, change};
use crate::reply::Reply;
use crate::strings::integer_of;
use bytes::Bytes;
use kvdb_store::keys::{By, Sort, SortInto, SortOrder};

/// What the words after the key ask for.
struct Wanted {
    order: SortOrder,
    store: Option<Bytes>,
}

fn wanted(args: &[Bytes], may_store: bool) -> Result<Wanted, Reply> {
    let (mut descending, mut by, mut nothing) = (false, By::Number, false);
    let (mut offset, mut count, mut gets, mut store) = (0, -1, 0u8, None);
    let mut options = Options::after(args, 2);
    while let Some(word) = options.word() {
        match word.as_str() {
            "ASC" => descending = false,
            "DESC" => descending = true,
            "ALPHA" => by = By::Bytes,
            "LIMIT" => {
                let words = (options.value()?, options.value()?);
                (offset, count) = (integer(words.0)?, integer(words.1)?);
            }
            "STORE" if may_store => store = Some(options.value()?.clone()),
            "BY" => match options.value()?.contains(&b'*') {
                true => return Err(elsewhere("BY")),
                false => nothing = true,
            },
            "GET" => match options.value()? == "#" {
                true => gets = gets.checked_add(1).ok_or_else(syntax)?,
                false => return Err(elsewhere("GET")),
            },
            _ => return Err(syntax()),
        }
    }
    let by = if nothing { By::Nothing } else { by };
    Ok(Wanted { order: SortOrder { by, descending, offset, count, times: gets.max(1) }, store })
}

fn elsewhere(option: &str) -> Reply {
    Reply::error(format!(
        "{option} with a pattern is not supported by SORT: it would read keys of other shards"
    ))
}

fn planned(args: &[Bytes], may_store: bool) -> Planned {
    let Wanted { order, store } = wanted(args, may_store)?;
    if let Some(store) = store {
        let step = change(args[1].clone(), &SortInto { order }).and(vec![store]);
        return Ok(Plan::one(step, |result, _| integer_of(result)));
    }
    Ok(Plan::write(args[1].clone(), &Sort { order }, |result| match &result.reply {
        kvdb_model::Reply::List(items) => {
            let items = items.iter().map(|item| Reply::bulk_or_nil(item.bytes().cloned()));
            Reply::Array(items.collect())
        }
        _ => Reply::Array(vec![]),
    }))
}

/// The key that the result goes to: after the last word that says so.
pub(crate) fn stored_key(args: &[Bytes]) -> Option<&Bytes> {
    let at = args.iter().rposition(|word| is(word, "store")).filter(|at| *at > 1)?;
    args.get(at + 1)
}

pub(crate) fn sort(args: &[Bytes]) -> Planned {
    planned(args, true)
}

pub(crate) fn sort_ro(args: &[Bytes]) -> Planned {
    planned(args, false)
}
