//! Dumps of Redis 7.0 are constants here, made by one, and those of earlier forms were restored by one. The
//! form of a set in a listpack is that of Redis 7.2.

use super::*;
use proptest::prelude::*;

/// What Redis 7.0 gives: `SET k 10`, `DUMP k`.
const TEN: &[u8] = b"\x00\xc0\n\n\x00n\x9fWE\x0e\xaec\xbb";
const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ.,";

fn of_string(value: &[u8]) -> Vec<u8> {
    of(&Content::String(Bytes::copy_from_slice(value))).to_vec()
}

fn string(value: &[u8]) -> Result<Content, &'static str> {
    Ok(Content::String(Bytes::copy_from_slice(value)))
}

fn names(items: &[&str]) -> Vec<Bytes> {
    items.iter().map(|item| Bytes::copy_from_slice(item.as_bytes())).collect()
}

fn list(items: &[&str]) -> Result<Content, &'static str> {
    Ok(Content::List(names(items)))
}

fn set(items: &[&str]) -> Result<Content, &'static str> {
    Ok(Content::Set(names(items)))
}

fn hash(items: &[&str]) -> Result<Content, &'static str> {
    let (pairs, _) = items.as_chunks::<2>();
    let pair = |[field, value]: &[&str; 2]| (field.to_string().into(), value.to_string().into());
    Ok(Content::Hash(pairs.iter().map(pair).collect()))
}

fn sorted_set(items: &[(f64, &str)]) -> Result<Content, &'static str> {
    let member =
        |(score, name): &(f64, &str)| (Score::new(*score).unwrap(), name.to_string().into());
    Ok(Content::SortedSet(items.iter().map(member).collect()))
}

/// A dump of these bytes after the type, which is the first.
fn dump(content: &[u8]) -> Bytes {
    sealed(content.to_vec())
}

fn read_of(content: &[u8]) -> Result<Content, &'static str> {
    read(&dump(content))
}

/// A type, and a string of less than 64 bytes, in which its elements are packed.
fn packed(kind: u8, packed: &[u8]) -> Result<Content, &'static str> {
    assert!(packed.len() < 64);
    read_of(&[&[kind, packed.len() as u8], packed].concat())
}

#[test]
fn the_checksum_is_that_of_redis() {
    assert_eq!(crc64(b"123456789"), 0xe9c6_d914_c4b8_d9ca);
}

#[test]
fn strings_of_all_lengths_come_back() {
    for length in [0, 1, 63, 64, 16383, 16384, 70000] {
        let value: Vec<u8> = (0..length).map(|place| place as u8).collect();
        assert_eq!(read(&of_string(&value)), string(&value));
    }
}

#[test]
fn dumps_of_strings_are_those_of_redis() {
    assert_eq!(read(TEN), string(b"10"));
    assert_eq!(of_string(b"10"), TEN);
    assert_eq!(
        of_string(&[b'a'; 100]),
        b"\x00\xc3\t@d\x01aa\xe0W\x00\x01aa\n\x00\xe8\xa3\xb5\x07\xb0m\xf2q"
    );
    assert_eq!(
        of_string(b"123456789012"),
        b"\x00\x0c123456789012\n\x00\x91\x10\x01\xb1\xd1\x16\xe7\xac"
    );
    for (number, form) in [
        ("-128", &b"\xc0\x80"[..]),
        ("128", b"\xc1\x80\x00"),
        ("-32769", b"\xc2\xff\x7f\xff\xff"),
        ("2147483648", b"\x0a2147483648"),
        ("010", b"\x03010"),
    ] {
        assert_eq!(of_string(number.as_bytes())[1..][..form.len()], *form, "{number}");
    }
}

#[test]
fn a_dump_without_a_checksum_is_refused() {
    let mut dump = of_string(b"value");
    let length = dump.len();
    dump[length - 8..].fill(0);
    assert_eq!(read(&dump), Err(BAD_SUM));
}

const LIST_MIXED: &[u8] = b"\x12\x01\x02@PP\x00\x00\x00\x10\x00\x81a\x02\xdf\xff\x02\x7f\x01\xc0\x80\x02\xd0\x00\x02\xcf\xff\x02\xf1\xff\x7f\x03\xf1\x00\x80\x03\xf2\xff\xff\x7f\x04\xf2\x00\x00\x80\x04\xf3\xff\xff\xff\x7f\x05\xf3\x00\x00\x00\x80\x05\xf4\xff\xff\xff\xff\xff\xff\xff\x7f\x09\xf4\x00\x00\x00\x00\x00\x00\x00\x80\x09\x8201\x03\x80\x01\xff\x0a\x00K:\x02\x8f\xe6\x1am\xde";
const LIST_64: &[u8] = b"\x12\x01\x02@JJ\x00\x00\x00\x01\x00\xe0@abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ.,B\xff\x0a\x004\xe0M;\xd5\xac\xa9\\";
const LIST_NODES: &[u8] = b"\x12\x03\x02\x0d\x0d\x00\x00\x00\x02\x00\x81a\x02\x81b\x02\xff\x02\x0c\x0c\x00\x00\x00\x02\x00\x81c\x02\x01\x01\xff\x02\x09\x09\x00\x00\x00\x01\x00\x02\x01\xff\x0a\x00\xde\x90\x00\xa3u\xbd\xb3H";
const LIST_PLAIN_NODE: &[u8] = b"\x12\x03\x02\x0a\x0a\x00\x00\x00\x01\x00\x81a\x02\xff\x01@@abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ.,\x02\x0a\x0a\x00\x00\x00\x01\x00\x81b\x02\xff\x0a\x00\x82j>\xa7\x09\x9e\xa4^";
const LIST_LARGE: &[u8] = b"\x12\x03\x02\x0a\x0a\x00\x00\x00\x01\x00\x81a\x02\xff\x02\xc3@zc6\x076#\x00\x00\x01\x00\xf0( \x06\x00x\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\xff\x00\xe0\x0e\x00\x02F\xad\xff\x02\x0a\x0a\x00\x00\x00\x01\x00\x81b\x02\xff\x0a\x00S\xc9\x06t\xab+\xe6\x19";
const LIST_LZF: &[u8] = b"\x12\x01\x02\xc3\x13@\xbb\x0b\xbb\x00\x00\x00\x1e\x00\x84same\x05\xe0\xa4\x05\x01\x05\xff\x0a\x00h\x1a6\x90\xa1J\x1aa";
const LIST_ZIPLIST_OLD: &[u8] = b"\x0a00\x00\x00\x00-\x00\x00\x00\x09\x00\x00\xf1\x02\xfd\x02\xfe\xff\x03\xc0,\x01\x04\xf0\x90\xee\xfe\x05\xd0\x00\x945w\x06\xe0\x00\xe6\x8e\xe7\xfd\xff\xff\xff\x0a\x01a\x03\x00\xff\x09\x00\x9cP\xcd\x98r\x8bP\x81";
const LIST_PLAIN_OLD: &[u8] = b"\x01\x03\x01a\x01b\xc0\x05\x09\x00\x89\x02\x8e\xc5\xf5a\x02\xe1";

#[test]
fn lists_of_redis_are_read_in_every_form() {
    let mixed = list(&[
        "a",
        "-1",
        "127",
        "128",
        "-4096",
        "4095",
        "32767",
        "-32768",
        "8388607",
        "-8388608",
        "2147483647",
        "-2147483648",
        "9223372036854775807",
        "-9223372036854775808",
        "01",
        "",
    ]);
    assert_eq!(read(LIST_MIXED), mixed);
    assert_eq!(read(LIST_64), list(&[LETTERS]));
    assert_eq!(read(LIST_NODES), list(&["a", "b", "c", "1", "2"]));
    assert_eq!(read(LIST_PLAIN_NODE), list(&["a", LETTERS, "b"]));
    assert_eq!(read(LIST_LARGE), list(&["a", &"x".repeat(9000), "b"]));
    assert_eq!(read(LIST_LZF), list(&["same"; 30]));
    let numbers = list(&["0", "12", "-1", "300", "-70000", "2000000000", "-9000000000", "a", ""]);
    assert_eq!(read(LIST_ZIPLIST_OLD), numbers);
    assert_eq!(read(LIST_PLAIN_OLD), list(&["a", "b", "5"]));
    // Of two ziplists, in the first of which a length takes five bytes.
    let long = [b'x'; 300];
    let mut old = b"\x0e\x02AA\x41\x01\x00\x009\x01\x00\x00\x02\x00\x00A,".to_vec();
    old.extend_from_slice(&long);
    old.extend_from_slice(b"\xfe/\x01\x00\x00\x01y\xff\x0d\x0d\x00\x00\x00\x0a\x00\x00\x00\x01\x00\x00\xf2\xff\x09\x00\xba\x8e\x1d~\x07\x82\x93-");
    assert_eq!(read(&old), list(&[&"x".repeat(300), "y", "1"]));
}

const SET_INT16: &[u8] =
    b"\x0b\x0e\x02\x00\x00\x00\x03\x00\x00\x00\xfe\xff\x01\x00,\x01\x0a\x00[\x0a\xa8b\xf7\x94`\x0a";
const SET_INT32: &[u8] = b"\x0b\x14\x04\x00\x00\x00\x03\x00\x00\x00\xfe\xff\xff\xff\x01\x00\x00\x00p\x11\x01\x00\x0a\x000R}\xf8\xcc1\x1f;";
const SET_INT64: &[u8] = b"\x0b \x08\x00\x00\x00\x03\x00\x00\x00\xfe\xff\xff\xff\xff\xff\xff\xff\x01\x00\x00\x00\x00\x00\x00\x00\x00\x86;\xa1\x01\x00\x00\x00\x0a\x00\xe0\x8b\xb8&\x09\"\xb9\xf8";
const SET_TABLE: &[u8] = b"\x02\x03\xc0\xf9\x01a\x01b\x0a\x00\x18\x12\xdfAnXXJ";
const SET_PACKED: &[u8] =
    b"\x14\x0c\x0c\x00\x00\x00\x02\x00\x81a\x02\x07\x01\xff\x09\x00\x1d\xa3\xda\xd5\xc7_(\xce";

#[test]
fn sets_of_redis_are_read_in_every_form() {
    assert_eq!(read(SET_INT16), set(&["-2", "1", "300"]));
    assert_eq!(read(SET_INT32), set(&["-2", "1", "70000"]));
    assert_eq!(read(SET_INT64), set(&["-2", "1", "7000000000"]));
    assert_eq!(read(SET_TABLE), set(&["-7", "a", "b"]));
    assert_eq!(read(SET_PACKED), set(&["a", "7"]));
}

const HASH_PACKED: &[u8] = b"\x10\x16\x16\x00\x00\x00\x06\x00\x81f\x02\x81v\x02\x81n\x02*\x01\x80\x01\x80\x01\xff\x0a\x00!j@d\x93\xe4\xc1\x87";
const HASH_TABLE: &[u8] =
    b"\x04\x02\x01n\xc0*\x01f\xc3\x09@F\x01vv\xe09\x00\x01vv\x0a\x00\x09\x18\xd94\xdcs\xbd\xc8";
const HASH_ZIPLIST_OLD: &[u8] = b"\x0d\x17\x17\x00\x00\x00\x13\x00\x00\x00\x04\x00\x00\x01f\x03\x01v\x03\x01n\x03\xfe*\xff\x09\x00+r\x8a\xc9ecU#";

#[test]
fn hashes_of_redis_are_read_in_every_form() {
    assert_eq!(read(HASH_PACKED), hash(&["f", "v", "n", "42", "", ""]));
    assert_eq!(read(HASH_TABLE), hash(&["n", "42", "f", &"v".repeat(70)]));
    assert_eq!(read(HASH_ZIPLIST_OLD), hash(&["f", "v", "n", "42"]));
}

const SORTED_SET_PACKED: &[u8] = b"\x11\xc3<@I\x18I\x00\x00\x00\x0c\x00\x83low\x04\x84-inf\x05\x81d\x02\x930.10\xe0\x05\x00\x0b1\x14\x81a\x02\x831.5\x04\x81b\xa0\x07\x09c\x02\x03\x01\x83top\x04\x83 6\x01\x04\xff\x0a\x00\xa2O.\xf5\xa9\x98JW";
const SORTED_SET_TABLE: &[u8] = b"\x05\x03\x01c\x00\x00\x00\x00\x00\x00\xf0\x7f\xc3\x09@F\x01aa\xe09\x00\x01aa\x00\x00\x00\x00\x00\x00\xf8?\x01b\x00\x00\x00\x00\x00\x00\x00\xc0\x0a\x00\x8dm\x03\xdf7;\xc9\x93";
const SORTED_SET_ZIPLIST_OLD: &[u8] = b"\x0c\x19\x19\x00\x00\x00\x16\x00\x00\x00\x04\x00\x00\x01a\x03\x04-1.5\x06\x01b\x03\xf4\xff\x09\x00\xc3\xfdJ\xeaZ>A\xde";
const SORTED_SET_TEXT_OLD: &[u8] =
    b"\x03\x04\x01a\x031.5\x01b\xff\x01c\xfe\x01d\x02-2\x09\x00\x05\xecT\xb9\xe8p\xbe\x14";

#[test]
fn sorted_sets_of_redis_are_read_in_every_form() {
    let (low, high) = (f64::NEG_INFINITY, f64::INFINITY);
    assert_eq!(
        read(SORTED_SET_PACKED),
        sorted_set(&[(low, "low"), (0.1, "d"), (1.5, "a"), (1.5, "b"), (3.0, "c"), (high, "top")])
    );
    let long = "a".repeat(70);
    assert_eq!(read(SORTED_SET_TABLE), sorted_set(&[(-2.0, "b"), (1.5, &long), (high, "c")]));
    assert_eq!(read(SORTED_SET_ZIPLIST_OLD), sorted_set(&[(-1.5, "a"), (3.0, "b")]));
    let text = sorted_set(&[(low, "b"), (-2.0, "d"), (1.5, "a"), (high, "c")]);
    assert_eq!(read(SORTED_SET_TEXT_OLD), text);
}

#[test]
fn what_redis_keeps_in_a_table_is_dumped_byte_for_byte() {
    for dump in [HASH_TABLE, SET_TABLE, SORTED_SET_TABLE] {
        assert_eq!(of(&read(dump).unwrap()), dump);
    }
}

const ALL: [&[u8]; 22] = [
    TEN,
    LIST_MIXED,
    LIST_64,
    LIST_NODES,
    LIST_PLAIN_NODE,
    LIST_LARGE,
    LIST_LZF,
    LIST_ZIPLIST_OLD,
    LIST_PLAIN_OLD,
    SET_INT16,
    SET_INT32,
    SET_INT64,
    SET_TABLE,
    SET_PACKED,
    HASH_PACKED,
    HASH_TABLE,
    HASH_ZIPLIST_OLD,
    SORTED_SET_PACKED,
    SORTED_SET_TABLE,
    SORTED_SET_ZIPLIST_OLD,
    SORTED_SET_TEXT_OLD,
    b"\x00\xc3\t@d\x01aa\xe0W\x00\x01aa\n\x00\xe8\xa3\xb5\x07\xb0m\xf2q",
];

#[test]
fn damaged_dumps_are_refused() {
    for good in ALL {
        assert!(read(good).is_ok(), "{good:?}");
        for place in 0..good.len() * 8 {
            let mut bad = good.to_vec();
            bad[place / 8] ^= 1 << (place % 8);
            assert!(read(&bad).is_err(), "bit {place}");
        }
        for length in 0..good.len() {
            assert!(read(&good[..length]).is_err());
        }
    }
}

#[test]
fn damage_under_a_right_checksum_never_panics_and_what_is_read_comes_back() {
    for good in ALL {
        let content = &good[..good.len() - 10];
        for place in 0..content.len() * 8 {
            let mut bad = content.to_vec();
            bad[place / 8] ^= 1 << (place % 8);
            if let Ok(content) = read_of(&bad) {
                assert_eq!(read(&of(&content)), Ok(content), "bit {place}");
            }
        }
        for length in 0..content.len() {
            assert!(read_of(&content[..length]).is_err(), "{length} bytes of {good:?}");
        }
        assert_eq!(read_of(&[content, b"\x00"].concat()), Err(BAD), "{good:?}");
    }
}

#[test]
fn collections_that_make_no_sense_are_refused() {
    let bad = |content: &[u8], why: &str| assert_eq!(read_of(content), Err(BAD), "{why}");
    for kind in [LIST, SET, HASH, SORTED_SET, SORTED_SET_TEXT, LIST_OF_ZIPLISTS, LIST_OF_LISTPACKS]
    {
        bad(&[kind, 0], "no elements");
        bad(&[kind, 5], "fewer than it says");
        bad(&[kind, 0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "far fewer");
        bad(&[kind, 0xc0, 1, 0xc0, 1, 0xc0, 1], "a count that is none");
    }
    bad(b"\x02\x02\x01a\x01a", "the same member twice");
    bad(b"\x02\x02\x017\xc0\x07", "the same member twice, once as a number");
    bad(b"\x04\x02\x01a\x01b\x01a\x01c", "the same field twice");
    bad(b"\x03\x02\x01a\x011\x01a\x012", "the same member twice, with another score");
    bad(b"\x03\x01\x01a\xfd", "no number");
    bad(b"\x03\x01\x01a\x03nan", "no number as text");
    bad(b"\x03\x01\x01a\x021x", "not a number");
    bad(b"\x05\x01\x01a\x00\x00\x00\x00\x00\x00\xf8\x7f", "no number in bits");
    bad(b"\x12\x01\x03\x01a", "a node of no kind");
    bad(b"\x63\x01\x01a", "no type");
}

#[test]
fn packed_collections_that_make_no_sense_are_refused() {
    let bad = |content: Result<Content, _>, why: &str| assert_eq!(content, Err(BAD), "{why}");
    // Two members, "a" and 7.
    let good = b"\x0c\x00\x00\x00\x02\x00\x81a\x02\x07\x01\xff";
    assert_eq!(packed(SET_LISTPACK, good), set(&["a", "7"]));
    let with = |place: usize, byte: u8| {
        let mut changed = good.to_vec();
        changed[place] = byte;
        changed
    };
    bad(packed(SET_LISTPACK, &with(0, 13)), "another length");
    bad(packed(SET_LISTPACK, &with(4, 3)), "another count");
    bad(packed(SET_LISTPACK, &with(8, 3)), "another length of the one before");
    bad(packed(SET_LISTPACK, &with(11, 0)), "no end");
    bad(packed(SET_LISTPACK, &with(6, 0xbf)), "longer than there is");
    bad(packed(SET_LISTPACK, &with(9, 0xf5)), "an element of no kind");
    bad(packed(SET_LISTPACK, b"\x07\x00\x00\x00\x00\x00\xff"), "empty");
    bad(packed(SET_LISTPACK, b"\xff"), "too short");
    let unknown = b"\x0c\x00\x00\x00\xff\xff\x81a\x02\x07\x01\xff";
    assert_eq!(packed(SET_LISTPACK, unknown), set(&["a", "7"]), "of a count that isn't known");
    let twice = b"\x0d\x00\x00\x00\x02\x00\x81a\x02\x81a\x02\xff";
    bad(packed(SET_LISTPACK, twice), "the same member twice");
    assert_eq!(packed(HASH_LISTPACK, twice), hash(&["a", "a"]));
    bad(packed(HASH_LISTPACK, b"\x0a\x00\x00\x00\x01\x00\x81a\x02\xff"), "a field without a value");
    // Members 1 and 2, with scores.
    let scored = |one: u8, other: u8| {
        let pack = [14, 0, 0, 0, 4, 0, 1, 1, one, 1, 2, 1, other, 1];
        packed(SORTED_SET_LISTPACK, &[&[15], &pack[1..], &[0xff]].concat())
    };
    assert_eq!(scored(3, 4), sorted_set(&[(3.0, "1"), (4.0, "2")]));
    bad(scored(4, 3), "in another order");
    let word = b"\x0d\x00\x00\x00\x02\x00\x81a\x02\x81b\x02\xff";
    bad(packed(SORTED_SET_LISTPACK, word), "a score that is no number");

    // "a" and 7, as a ziplist.
    let good = b"\x10\x00\x00\x00\x0d\x00\x00\x00\x02\x00\x00\x01a\x03\xf8\xff";
    assert_eq!(packed(LIST_ZIPLIST, good), list(&["a", "7"]));
    for (place, byte, why) in [
        (0, 17, "another length"),
        (4, 10, "another place of the last one"),
        (8, 1, "another count"),
        (11, 0x3f, "longer than there is"),
        (13, 2, "another length of the one before"),
        (13, 0xff, "an end before the end"),
        (14, 0xff, "an element of no kind"),
        (15, 0, "no end"),
    ] {
        let mut changed = good.to_vec();
        changed[place] = byte;
        bad(packed(LIST_ZIPLIST, &changed), why);
    }

    let numbers = |numbers: &[i16], width: u8, count: u8| {
        let members = numbers.iter().flat_map(|number| number.to_le_bytes());
        let pack: Vec<u8> = [width, 0, 0, 0, count, 0, 0, 0].into_iter().chain(members).collect();
        packed(SET_INTSET, &pack)
    };
    assert_eq!(numbers(&[-3, 5], 2, 2), set(&["-3", "5"]));
    bad(numbers(&[5, -3], 2, 2), "not ascending");
    bad(numbers(&[5, 5], 2, 2), "the same number twice");
    bad(numbers(&[5], 2, 2), "fewer than it says");
    bad(numbers(&[5, 6], 2, 1), "more than it says");
    bad(numbers(&[5, 6], 3, 1), "of no width");
    bad(numbers(&[], 2, 0), "empty");
}

#[test]
fn types_that_are_not_there_are_named() {
    for (kinds, word) in [
        (&[HASH_ZIPMAP][..], "zipmaps"),
        (&HASHES_THAT_EXPIRE, "fields that expire"),
        (&STREAMS, "streams"),
        (&MODULES, "modules"),
    ] {
        for kind in kinds {
            let refused = read_of(&[*kind, 1, 1, b'a']).unwrap_err();
            assert!(refused.contains(word), "{refused}");
        }
    }
}

/// A string of so many times the same byte, as LZF packs it.
fn bomb(length: usize) -> Vec<u8> {
    let mut out = Output::default();
    out.string(&vec![b'x'; length]);
    out.bytes
}

#[test]
fn what_unpacks_to_too_much_is_refused_before_it_is_unpacked() {
    let million = bomb(1 << 20);
    let list_of =
        |count: u8| read_of(&[&[LIST, count], &million.repeat(count.into())[..]].concat());
    assert!(list_of(8).is_ok());
    assert_eq!(list_of(9), Err(TOO_LARGE));
    // Packed in empty-handed nodes: nothing comes out of them, but they must be unpacked.
    let nodes = [&[LIST_OF_LISTPACKS, 20][..], &[&[NODE_PACKED as u8], &million[..]].concat()];
    assert_eq!(read_of(&nodes.concat()), Err(BAD), "not a listpack");
    // It says that it becomes 2 GiB, and is two bytes.
    assert_eq!(read_of(b"\x00\xc3\x02\x80\x7f\xff\xff\xff\x00a"), Err(TOO_LARGE));
    assert_eq!(read_of(b"\x00\xc3\x02\x01\x01ab"), Err(BAD), "longer than it says");
    assert_eq!(read_of(b"\x00\xc3\x03\x05\x20\x00\x00"), Err(BAD), "a copy of nothing");
    let limit = |count: u32| {
        let mut content = vec![LIST, 0x80];
        content.extend_from_slice(&count.to_be_bytes());
        content.extend(std::iter::repeat_n([1, b'a'], count as usize).flatten());
        read_of(&content).map(|_| ())
    };
    assert_eq!(limit(100_000), Ok(()));
    assert_eq!(limit(100_001), Err(TOO_LARGE));
    assert_eq!(limit(200_001), Err(TOO_LARGE));
}

fn any_bytes() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..12).prop_map(Bytes::from),
        any::<i64>().prop_map(|number| number.to_string().into()),
        any::<i16>().prop_map(|number| number.to_string().into()),
        (0u8..4, 20usize..300).prop_map(|(byte, count)| vec![byte; count].into()),
        prop::collection::vec(0u8..3, 20..100).prop_map(Bytes::from),
    ]
}

fn any_content() -> impl Strategy<Value = Content> {
    let names = || prop::collection::btree_set(any_bytes(), 1..40);
    let score = || any::<f64>().prop_map(|number| Score::new(number).unwrap());
    prop_oneof![
        any_bytes().prop_map(Content::String),
        prop::collection::vec(any_bytes(), 1..40).prop_map(Content::List),
        names().prop_map(|names| Content::Set(names.into_iter().collect())),
        prop::collection::btree_map(any_bytes(), any_bytes(), 1..40)
            .prop_map(|pairs| Content::Hash(pairs.into_iter().collect())),
        prop::collection::btree_map(any_bytes(), score(), 1..40).prop_map(|scores| {
            let mut members: Vec<_> =
                scores.into_iter().map(|(name, score)| (score, name)).collect();
            members.sort();
            Content::SortedSet(members)
        }),
    ]
}

proptest! {
    #[test]
    fn whatever_is_dumped_comes_back(content in any_content()) {
        prop_assert_eq!(read(&of(&content)), Ok(content));
    }

    #[test]
    fn whatever_is_packed_comes_back(value in prop::collection::vec(0u8..4, 0..600), times in 1usize..4) {
        let value = value.repeat(times);
        prop_assert_eq!(read(&of_string(&value)), string(&value));
    }

    #[test]
    fn a_string_is_packed_the_same_whatever_came_before(values in prop::collection::vec(prop::collection::vec(0u8..3, 0..200), 1..5)) {
        let mut packer = lzf::Packer::default();
        for value in values {
            prop_assert_eq!(packer.pack(&value), lzf::Packer::default().pack(&value));
        }
    }

    #[test]
    fn junk_is_refused(junk in prop::collection::vec(any::<u8>(), 0..80)) {
        prop_assert!(read(&junk).is_err());
    }

    #[test]
    fn junk_under_a_right_checksum_never_panics(kind in 0u8..26, junk in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = read_of(&[&[kind], &junk[..]].concat());
        let _ = packed(kind, &junk[..junk.len().min(63)]);
    }
}
