use super::hash::{REGISTERS, position};
use super::*;
use crate::command::tests::survives;
use crate::keys::Expiry;
use crate::overlay::tests::{Trial, record};
use crate::string::Set;
use kvdb_model::OperationOutcome;
use kvdb_model::wrong_value::{DAMAGED_HYPERLOGLOG, NOT_A_HYPERLOGLOG, WRONG_TYPE};
use proptest::prelude::*;

const NEW: &[u8] = b"HYLL\x01\0\0\0\0\0\0\0\0\0\0\x80\x7f\xff";
const DENSE_BYTES: usize = 12_304;
/// Where the estimate stands that Redis has counted last.
const ESTIMATE: std::ops::Range<usize> = 8..16;

fn numbers(range: std::ops::Range<u32>) -> Add {
    Add { elements: range.map(|number| number.to_string().into()).collect() }
}

fn integer(outcome: OperationOutcome) -> i64 {
    outcome.unwrap().reply.integer().unwrap()
}

fn refused(outcome: OperationOutcome) -> &'static str {
    match outcome {
        Err(Refusal::WrongValue(why)) => why,
        other => panic!("{other:?}"),
    }
}

fn value(trial: &mut Trial, key: &str) -> Vec<u8> {
    trial.value(key).unwrap().0
}

fn holding(value: &[u8]) -> Trial {
    Trial::new(&[("k", record(value, 0))])
}

/// What a sparse or dense value of the format holds, read as simply as it can be.
fn registers(value: &[u8]) -> Vec<u8> {
    let body = &value[16..];
    if value[4] == 0 {
        let bit = |at: usize| body[at / 8] >> (at % 8) & 1;
        let register = |index: usize| (0..6).map(|place| bit(index * 6 + place) << place).sum();
        return (0..REGISTERS).map(register).collect();
    }
    let mut registers = Vec::new();
    let mut bytes = body.iter().map(|byte| usize::from(*byte));
    while let Some(byte) = bytes.next() {
        let (value, count) = match byte {
            0..0x40 => (0, byte + 1),
            0x40..0x80 => (0, (byte - 0x40) * 256 + bytes.next().unwrap() + 1),
            _ => ((byte - 0x80) / 4 + 1, byte % 4 + 1),
        };
        registers.extend(vec![value as u8; count]);
    }
    registers
}

/// What elements make of registers, by the definition.
fn expected<'a>(elements: impl IntoIterator<Item = &'a Bytes>) -> Vec<u8> {
    let mut registers = vec![0; REGISTERS];
    for element in elements {
        let (index, value) = position(element);
        registers[index] = value.max(registers[index]);
    }
    registers
}

fn dense(registers: &[u8]) -> Vec<u8> {
    let mut value = NEW[..16].to_vec();
    value[4] = 0;
    value.resize(DENSE_BYTES, 0);
    for (at, bit) in (0..REGISTERS * 6).map(|at| (at, registers[at / 6] >> (at % 6) & 1)) {
        value[16 + at / 8] |= bit << (at % 8);
    }
    value
}

/// Each register for itself.
fn sparse(registers: &[u8]) -> Vec<u8> {
    let run = |value: &u8| if *value == 0 { 0 } else { 0x80 | (value - 1) << 2 };
    NEW[..16].iter().copied().chain(registers.iter().map(run)).collect()
}

#[test]
fn values_and_counts_are_those_of_redis_7_0() {
    // Made by redis-server 7.0.15: so many elements "0", "1" and so on; bytes of the value, their CRC-32C, count.
    let made_by_redis = [
        (0, 18, 0x9c01_dff1, 0),
        (1, 21, 0x2d97_a01c, 1),
        (2, 24, 0xfe4d_43ce, 2),
        (10, 48, 0x1f91_7386, 10),
        (100, 287, 0x8cdb_fc45, 100),
        (500, 1061, 0xf38d_545e, 503),
        (1000, 1923, 0xcb69_360c, 1001),
        (1200, 2259, 0xaca4_8db1, 1203),
        (1300, 2434, 0x888c_d3ac, 1307),
        (1500, 2766, 0xd3da_8121, 1512),
        (2000, 12_304, 0x9532_92c8, 2007),
        (5000, 12_304, 0x5dc5_b22e, 4985),
        (20_000, 12_304, 0xa274_6027, 19_891),
        (100_000, 12_304, 0x154d_d251, 99_565),
        (1_000_000, 12_304, 0x75ad_d64f, 1_009_972),
    ];
    let (mut trial, mut from) = (Trial::new(&[]), 0);
    for (to, bytes, crc, count) in made_by_redis {
        trial.run(&numbers(from..to), &["k"]).unwrap();
        from = to;
        let value = value(&mut trial, "k");
        assert_eq!((value.len(), crc32c::crc32c(&value)), (bytes, crc), "{to}");
        assert_eq!(integer(trial.run(&Count, &["k"])), count, "{to}");
        assert_eq!(integer(trial.run(&Count, &["k", "other"])), count, "{to}");
    }
}

#[test]
fn single_elements_stand_where_redis_7_0_puts_them() {
    let made_by_redis: [(&[u8], [u8; 5]); 6] = [
        (b"", [0x57, 0x31, 0x84, 0x68, 0xcc]),
        (b"a", [0x71, 0xa6, 0x84, 0x4e, 0x57]),
        (b"12345678", [0x69, 0x52, 0x88, 0x56, 0xab]),
        (b"123456789", [0x64, 0x4c, 0x84, 0x5b, 0xb1]),
        (&[0xff; 15], [0x70, 0x66, 0x8c, 0x4f, 0x97]),
        (&[0; 17], [0x69, 0x76, 0x88, 0x56, 0x87]),
    ];
    for (element, body) in made_by_redis {
        let mut trial = Trial::new(&[]);
        trial.run(&Add { elements: vec![Bytes::from_static(element)] }, &["k"]).unwrap();
        assert_eq!(value(&mut trial, "k"), [&NEW[..16], &body].concat(), "{element:?}");
    }
}

#[test]
fn merged_values_are_those_of_redis_7_0() {
    let made_by_redis = [
        ([0..3, 2..5], 33, 1_292_611_823, 5),
        ([0..300, 200..900], 1750, 3_074_932_395, 902),
        ([0..900, 900..1800], 12_304, 1_697_817_369, 1805),
        ([0..20_000, 5..10], 12_304, 2_725_535_783, 19_891),
        ([0..10, 0..20_000], 12_304, 2_725_535_783, 19_891),
        ([0..20_000, 10_000..30_000], 12_304, 3_704_324_114, 29_850),
    ];
    for ([one, other], bytes, crc, count) in made_by_redis {
        let mut trial = Trial::new(&[]);
        trial.run(&numbers(one), &["one"]).unwrap();
        trial.run(&numbers(other), &["other"]).unwrap();
        assert_eq!(integer(trial.run(&Count, &["one", "other"])), count);
        trial.run(&Merge, &["new", "one", "other"]).unwrap();
        trial.run(&Merge, &["one", "other"]).unwrap();
        for key in ["new", "one"] {
            let value = value(&mut trial, key);
            assert_eq!((value.len(), crc32c::crc32c(&value)), (bytes, crc));
            assert_eq!(integer(trial.run(&Count, &[key])), count);
        }
    }
}

#[test]
fn adding_says_whether_it_may_have_changed_the_count() {
    let mut trial = Trial::new(&[]);
    assert_eq!(integer(trial.run(&numbers(0..0), &["k"])), 1, "a new key");
    assert_eq!(value(&mut trial, "k"), NEW);
    let outcome = trial.run(&numbers(0..0), &["k"]).unwrap();
    assert!(!outcome.applied);
    assert_eq!(integer(trial.run(&numbers(0..3), &["k"])), 1);
    let outcome = trial.run(&numbers(0..3), &["k"]).unwrap();
    assert!(!outcome.applied);
    assert_eq!(outcome.reply, Reply::Integer(0));
    assert_eq!(integer(trial.run(&Count, &["missing"])), 0);
    assert_eq!(integer(trial.run(&Count, &["missing", "missing"])), 0);
}

#[test]
fn a_change_keeps_the_expiry() {
    let mut trial = Trial::new(&[("k", record(NEW, 9_000))]);
    trial.run(&numbers(0..3), &["k"]).unwrap();
    assert_eq!(trial.value("k").unwrap().1, 9_000);
    trial.run(&numbers(3..5), &["other"]).unwrap();
    trial.run(&Merge, &["k", "other"]).unwrap();
    assert_eq!(trial.value("k").unwrap().1, 9_000);
    assert_eq!(integer(trial.run(&Count, &["k"])), 5);
}

#[test]
fn what_redis_has_counted_is_believed_until_something_changes() {
    let mut counted = NEW.to_vec();
    counted[ESTIMATE].copy_from_slice(&77u64.to_le_bytes());
    let mut trial = holding(&counted);
    assert_eq!(integer(trial.run(&Count, &["k"])), 77);
    assert_eq!(integer(trial.run(&Count, &["k", "missing"])), 0, "of several all are counted");
    trial.run(&numbers(0..2), &["k"]).unwrap();
    assert_eq!(integer(trial.run(&Count, &["k"])), 2);
    // The number stays, as in Redis; it is stale.
    assert_eq!(value(&mut trial, "k")[ESTIMATE], (77u64 | 1 << 63).to_le_bytes());
}

#[test]
fn counting_writes_nothing() {
    let mut trial = Trial::new(&[]);
    trial.run(&numbers(0..9), &["k"]).unwrap();
    let before = value(&mut trial, "k");
    assert_eq!(integer(trial.run(&Count, &["k"])), 9);
    assert_eq!(value(&mut trial, "k"), before);
    assert_eq!(Count::EFFECT, Effect::Read);
}

#[test]
fn a_register_above_32_makes_a_value_dense() {
    let mut high = vec![0; REGISTERS];
    high[7] = 33;
    let mut trial = Trial::new(&[("k", record(&dense(&high), 0))]);
    trial.run(&numbers(0..3), &["small"]).unwrap();
    let mut union = Union::default();
    union.add(&dense(&high)).unwrap();
    let mut sketch = Sketch::default();
    assert!(sketch.raise(7, 32));
    assert!(sketch.raise(7, 33));
    assert!(!sketch.raise(7, 33));
    assert_eq!(sketch.changed(), dense(&high));
    trial.run(&Merge, &["small", "k"]).unwrap();
    assert_eq!(value(&mut trial, "small").len(), DENSE_BYTES);
}

#[test]
fn strings_that_are_none_are_told_from_damaged_ones() {
    let with = |at: usize, byte: u8| {
        let mut value = NEW.to_vec();
        value[at] = byte;
        value
    };
    let body = |body: &[u8]| [&NEW[..16], body].concat();
    let mut long = dense(&[0; REGISTERS]);
    long.push(0);
    let many_zeros = [0x7f, 0xff].repeat(132_072);
    let cases = [
        (b"".to_vec(), NOT_A_HYPERLOGLOG),
        (b"12345".to_vec(), NOT_A_HYPERLOGLOG),
        (NEW[..15].to_vec(), NOT_A_HYPERLOGLOG),
        (with(0, b'X'), NOT_A_HYPERLOGLOG),
        (with(4, 2), NOT_A_HYPERLOGLOG),
        (with(4, 0), NOT_A_HYPERLOGLOG),
        (long.clone(), NOT_A_HYPERLOGLOG),
        (long[..DENSE_BYTES - 1].to_vec(), NOT_A_HYPERLOGLOG),
        (body(b""), DAMAGED_HYPERLOGLOG),
        (body(b"\x7f\xfe"), DAMAGED_HYPERLOGLOG),
        (body(b"\x7f"), DAMAGED_HYPERLOGLOG),
        (body(b"\x7f\xff\x00"), DAMAGED_HYPERLOGLOG),
        (body(b"\x7f\xfe\x81"), DAMAGED_HYPERLOGLOG),
        (body(b"\x7f\xffhello"), DAMAGED_HYPERLOGLOG),
        (body(&[&many_zeros[..], b"\xff"].concat()), DAMAGED_HYPERLOGLOG),
    ];
    for (bad, why) in cases {
        let mut trial = holding(&bad);
        let shown = &bad[..bad.len().min(24)];
        assert_eq!(refused(trial.run(&Count, &["k"])), why, "{shown:?}");
        assert_eq!(refused(trial.run(&Count, &["k", "k"])), why, "{shown:?}");
        assert_eq!(refused(trial.run(&numbers(0..3), &["k"])), why, "{shown:?}");
        assert_eq!(refused(trial.run(&Merge, &["new", "k"])), why, "{shown:?}");
        assert_eq!(refused(trial.run(&Merge, &["k", "new"])), why, "{shown:?}");
        assert_eq!(value(&mut trial, "k"), bad);
        assert!(trial.value("new").is_none());
    }
    let impossible = holding(&dense(&[63; REGISTERS])).run(&Count, &["k"]);
    assert_eq!(refused(impossible), DAMAGED_HYPERLOGLOG);
}

#[test]
fn other_types_are_refused() {
    let mut trial = Trial::new(&[]);
    trial.run(&crate::set::Add { members: vec!["m".into()] }, &["s"]).unwrap();
    assert_eq!(refused(trial.run(&numbers(0..3), &["s"])), WRONG_TYPE);
    assert_eq!(refused(trial.run(&Count, &["s"])), WRONG_TYPE);
    assert_eq!(refused(trial.run(&Count, &["k", "s"])), WRONG_TYPE);
    assert_eq!(refused(trial.run(&Merge, &["k", "s"])), WRONG_TYPE);
    assert_eq!(refused(trial.run(&Merge, &["s", "k"])), WRONG_TYPE);
}

#[test]
fn more_than_10_000_keys_are_refused_by_number() {
    let mut trial = holding(NEW);
    assert_eq!(integer(trial.run(&Count, &["k"; 10_000])), 0);
    assert!(trial.run(&Merge, &["k"; 10_000]).is_ok());
    let refused = trial.run(&Count, &["k"; 10_001]).unwrap_err().to_string();
    assert!(refused.contains("keys are 10001; hyperloglog_count takes 1 to 10000"), "{refused}");
    assert!(trial.run(&Merge, &["k"; 10_001]).is_err());
}

#[test]
fn estimates_are_within_three_standard_errors() {
    for count in [10, 1_000, 10_000, 80_000] {
        let mut trial = Trial::new(&[]);
        trial.run(&numbers(0..count), &["k"]).unwrap();
        let estimate = integer(trial.run(&Count, &["k"])) as f64;
        let error = (estimate / f64::from(count) - 1.0).abs();
        assert!(error < 3.0 * 1.04 / (REGISTERS as f64).sqrt(), "{count} {estimate}");
    }
}

fn any_elements(most: usize) -> impl Strategy<Value = Vec<Bytes>> {
    prop::collection::vec(any::<u32>().prop_map(|n| n.to_string().into()), 0..most)
}

/// Registers of which few are set, mostly to little, often beside each other.
fn any_registers() -> impl Strategy<Value = Vec<u8>> {
    let run = (0..REGISTERS, 1..9usize, 1..33u8);
    prop::collection::vec(run, 0..60).prop_map(|runs| {
        let mut registers = vec![0; REGISTERS];
        for (first, count, value) in runs {
            let end = (first + count).min(REGISTERS);
            registers[first..end].fill(value);
        }
        registers
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn commands_on_hyperloglogs_survive_encoding(elements in any_elements(9)) {
        survives(&Add { elements });
        survives(&Count);
        survives(&Merge);
    }

    #[test]
    fn each_register_is_the_highest_of_its_elements(parts in prop::collection::vec(any_elements(700), 1..5)) {
        let mut trial = Trial::new(&[]);
        for elements in &parts {
            let before = trial.value("k").map(|(value, _)| registers(&value));
            let changed = integer(trial.run(&Add { elements: elements.clone() }, &["k"])) == 1;
            let after = registers(&value(&mut trial, "k"));
            prop_assert_eq!(changed, before != Some(after));
        }
        prop_assert_eq!(registers(&value(&mut trial, "k")), expected(parts.iter().flatten()));
    }

    #[test]
    fn sparse_and_dense_values_mean_the_same(before in any_registers(), elements in any_elements(50)) {
        let there = [("sparse", record(&sparse(&before), 0)), ("dense", record(&dense(&before), 0))];
        let mut trial = Trial::new(&there);
        prop_assert_eq!(trial.run(&Count, &["sparse"]), trial.run(&Count, &["dense"]));
        let add = Add { elements: elements.clone() };
        prop_assert_eq!(integer(trial.run(&add, &["sparse"])), integer(trial.run(&add, &["dense"])));
        let wanted: Vec<u8> = before.iter().zip(expected(&elements)).map(|(one, other)| other.max(*one)).collect();
        for key in ["sparse", "dense"] {
            prop_assert_eq!(registers(&value(&mut trial, key)), wanted.clone());
        }
        prop_assert_eq!(trial.run(&Count, &["sparse"]), trial.run(&Count, &["dense"]));
        prop_assert_eq!(value(&mut trial, "dense"), dense(&wanted));
    }

    #[test]
    fn a_merge_is_the_maximum_and_as_if_each_register_were_raised_alone(all in prop::collection::vec(any_registers(), 1..4), one_is_dense in any::<bool>()) {
        let keys = ["a", "b", "c"];
        let mut trial = Trial::new(&[]);
        for (place, (key, registers)) in keys.iter().zip(&all).enumerate() {
            let value = if one_is_dense && place == 0 { dense(registers) } else { sparse(registers) };
            trial.run(&Set { value: value.into(), expiry: Expiry::Never }, &[key]).unwrap();
        }
        let sources = &keys[..all.len()];
        trial.run(&Merge, &[&["new"], sources].concat()).unwrap();
        let merged = value(&mut trial, "new");
        let highest = |index: usize| all.iter().map(|registers| registers[index]).max().unwrap();
        let wanted: Vec<u8> = (0..REGISTERS).map(highest).collect();
        prop_assert_eq!(registers(&merged), wanted.clone());
        prop_assert_eq!(trial.run(&Count, &["new"]).unwrap().reply, trial.run(&Count, sources).unwrap().reply);
        if !one_is_dense {
            let mut sketch = Sketch::default();
            for (index, value) in wanted.iter().enumerate() {
                sketch.raise(index, *value);
            }
            prop_assert_eq!(merged, sketch.changed().to_vec());
        }
    }

    #[test]
    fn junk_never_panics(
        encoding in 0..3u8,
        junk in prop::collection::vec(any::<u8>(), 0..300),
        fill in prop::option::of(any::<u8>()),
        elements in any_elements(50),
    ) {
        let mut value = NEW[..16].to_vec();
        value[4] = encoding;
        value.extend(junk);
        if let Some(byte) = fill {
            value.resize(DENSE_BYTES, byte);
        }
        let mut trial = holding(&value);
        let _ = trial.run(&Count, &["k"]);
        let _ = trial.run(&Merge, &["new", "k"]);
        let _ = trial.run(&Add { elements }, &["k"]);
        let _ = trial.run(&Count, &["k", "new"]);
    }
}
