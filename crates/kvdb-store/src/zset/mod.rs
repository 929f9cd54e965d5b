//! Commands on sorted sets: members with a score each, in the order of their scores.
//!
//! A row's place is the score and the member ([`crate::Order`]), so rows stand in the order in which they
//! are asked for. A promoted set keeps each member's score beside the rows; a small one looks through them.

use crate::order::{MEMBER, placed};
use crate::tx::{Collection, Tx};
use bytes::Bytes;

/// Bytes of a score at the beginning of a row.
const SCORE_BYTES: usize = 8;

/// Writes the members of rows beside them, with their scores.
pub(crate) fn note_members<'a>(
    tx: &mut Tx<'_>,
    place: usize,
    collection: &Collection,
    rows: impl Iterator<Item = &'a Bytes>,
) {
    for row in rows {
        let (score, member) = row[1..].split_at(SCORE_BYTES);
        let score = Bytes::copy_from_slice(score);
        tx.set_row(place, collection, &placed(MEMBER, member), Some(score));
    }
}
