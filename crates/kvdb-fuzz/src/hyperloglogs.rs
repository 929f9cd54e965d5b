//! Strings that are taken for HyperLogLogs: whoever may `SET` a key chooses every byte of them.

use kvdb_store::hyperloglog::{Sketch, Union, estimate};

const HEADER_BYTES: usize = 16;
const DENSE_BYTES: usize = HEADER_BYTES + 12 * 1024;
const ENCODING_AT: usize = 4;

/// The first byte chooses whether the rest is the value, or what comes after a good header: sparse or dense.
pub fn hyperloglogs(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    let value = match choice % 3 {
        0 => rest.to_vec(),
        1 => behind_header(1, rest),
        _ => {
            let mut value = behind_header(0, rest);
            value.resize(DENSE_BYTES, rest.last().copied().unwrap_or(0));
            value
        }
    };
    let _ = estimate(&value);
    let Ok(mut sketch) = Sketch::decode(&value) else {
        assert!(Union::default().add(&value).is_err(), "it is good for one, not for the other");
        return;
    };
    let elements: Vec<&[u8]> = rest.chunks(5).take(20).collect();
    for element in &elements {
        let _ = sketch.add(element);
    }
    let changed = sketch.changed();
    let mut again = Sketch::decode(&changed).unwrap_or_else(|_| panic!("it can't be read again"));
    for element in elements {
        assert!(!again.add(element), "an element was added, and is new again");
    }
    assert_eq!(count(&again.changed()), count(&changed));
    let mut union = Union::default();
    union.add(&value).unwrap_or_else(|_| panic!("it is good for one, not for the other"));
    union.add(&changed).unwrap_or_else(|_| panic!("it can't be read again"));
    let mut merged = Sketch::default();
    merged.merge(&union);
    assert_eq!(count(&merged.changed()), count(&changed), "a merge with its own past is another");
}

fn count(value: &[u8]) -> Option<u64> {
    estimate(value).ok()
}

fn behind_header(encoding: u8, body: &[u8]) -> Vec<u8> {
    let mut value = Sketch::default().changed()[..HEADER_BYTES].to_vec();
    value[ENCODING_AT] = encoding;
    value.extend_from_slice(body);
    value
}
