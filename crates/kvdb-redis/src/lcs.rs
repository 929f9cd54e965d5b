//! `LCS`: the longest common subsequence of two strings.

use crate::args::{Options, Planned, syntax};
use crate::plan::{Plan, read, value_of};
use crate::reply::Reply;
use bytes::Bytes;

/// Most cells of the table (four bytes each) that the algorithm fills: bounds memory and time.
const CELLS_MAX: usize = 16 << 20;

#[derive(Clone, Copy, Default)]
struct Wanted {
    length: bool,
    places: bool,
    with_lengths: bool,
    least_length: i64,
}

pub(crate) fn lcs(args: &[Bytes]) -> Planned {
    // The keys are looked at first: one of another type is told of rather than a wrong option.
    let wanted = wanted(args);
    let steps = vec![read(args[1].clone()), read(args[2].clone())];
    Ok(Plan::new(steps, move |results, _| {
        let mut values = results.iter().map(|result| value_of(result).unwrap_or_default());
        let (left, right) = (values.next().unwrap_or_default(), values.next().unwrap_or_default());
        match wanted {
            Ok(wanted) => answer(&left, &right, wanted),
            Err(error) => error,
        }
    }))
}

fn wanted(args: &[Bytes]) -> Result<Wanted, Reply> {
    let mut wanted = Wanted::default();
    let mut options = Options::after(args, 3);
    while let Some(word) = options.word() {
        match word.as_str() {
            "LEN" => wanted.length = true,
            "IDX" => wanted.places = true,
            "WITHMATCHLEN" => wanted.with_lengths = true,
            "MINMATCHLEN" => wanted.least_length = options.integer()?.max(0),
            _ => return Err(syntax()),
        }
    }
    if wanted.length && wanted.places {
        return Err(Reply::error("If you want both the length and indexes, please just use IDX."));
    }
    Ok(wanted)
}

/// A stretch that both have: where it begins in each, and how long it is.
type Match = (usize, usize, usize);

fn answer(left: &[u8], right: &[u8], wanted: Wanted) -> Reply {
    let cells = (left.len() + 1).checked_mul(right.len() + 1);
    if cells.is_none_or(|cells| cells > CELLS_MAX) {
        return Reply::error(
            "Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len",
        );
    }
    let table = table(left, right);
    let length = table[table.len() - 1];
    if wanted.length {
        return Reply::Integer(i64::from(length));
    }
    let (text, matches) = walk(left, right, &table);
    if !wanted.places {
        return Reply::Bulk(text.into());
    }
    let matches =
        matches.into_iter().filter(|(_, _, length)| *length as i64 >= wanted.least_length);
    let matches = matches.map(|found| place(found, wanted.with_lengths)).collect();
    Reply::Map(vec![
        (Reply::text("matches"), Reply::Array(matches)),
        (Reply::text("len"), Reply::Integer(i64::from(length))),
    ])
}

fn place((left, right, length): Match, with_length: bool) -> Reply {
    let range = |from: usize| {
        Reply::Array(vec![Reply::Integer(from as i64), Reply::Integer((from + length) as i64 - 1)])
    };
    let mut items = vec![range(left), range(right)];
    if with_length {
        items.push(Reply::Integer(length as i64));
    }
    Reply::Array(items)
}

/// Lengths of the longest common subsequences of all prefixes, row by row.
fn table(left: &[u8], right: &[u8]) -> Vec<u32> {
    let width = right.len() + 1;
    let mut table = vec![0u32; (left.len() + 1) * width];
    for (row, a) in left.iter().enumerate() {
        for (column, b) in right.iter().enumerate() {
            let at = (row + 1) * width + column + 1;
            table[at] = if a == b {
                table[at - width - 1] + 1
            } else {
                table[at - width].max(table[at - 1])
            };
        }
    }
    table
}

/// The subsequence itself, and its stretches from the last to the first.
fn walk(left: &[u8], right: &[u8], table: &[u32]) -> (Vec<u8>, Vec<Match>) {
    let width = right.len() + 1;
    let (mut row, mut column) = (left.len(), right.len());
    let mut text = Vec::new();
    let mut matches: Vec<Match> = Vec::new();
    while row > 0 && column > 0 {
        if left[row - 1] == right[column - 1] {
            row -= 1;
            column -= 1;
            text.push(left[row]);
            match matches.last_mut() {
                Some((a, b, length)) if *a == row + 1 && *b == column + 1 => {
                    (*a, *b, *length) = (row, column, *length + 1);
                }
                _ => matches.push((row, column, 1)),
            }
        } else if table[(row - 1) * width + column] > table[row * width + column - 1] {
            row -= 1;
        } else {
            column -= 1;
        }
    }
    text.reverse();
    (text, matches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_text_and_its_places_are_found() {
        let (left, right) = (b"ohmytext", b"mynewtext");
        assert_eq!(answer(left, right, Wanted::default()), Reply::text("mytext"));
        let wanted = Wanted { length: true, ..Wanted::default() };
        assert_eq!(answer(left, right, wanted), Reply::Integer(6));
        let table = table(left, right);
        assert_eq!(walk(left, right, &table).1, [(4, 5, 4), (2, 0, 2)]);
        assert_eq!(answer(b"", b"x", Wanted::default()), Reply::text(""));
    }

    #[test]
    fn a_table_that_is_too_large_is_refused() {
        let long = vec![b'a'; 100_000];
        assert!(answer(&long, &long, Wanted::default()).is_error());
    }
}
