//! Keys that expire, and the judge of what clients saw of them.
//!
//! Wall clocks are wrong here by any amount, and boot clocks drift a little: a record lives for its time
//! to live, give or take what is promised (`apart_us`, and one percent of its life). Within that it must
//! neither be gone too early nor be served too late; and whatever the clocks do, what was once gone
//! never comes back. Only for a while after everything was off may a record be served too long: until
//! there is somebody who can say what time it is.

use kvdb_model::Version;
use std::collections::BTreeMap;
use std::ops::Range;

/// What a client asked of such a key.
#[derive(Clone, Debug)]
pub(crate) enum Asked {
    /// Each value is put once.
    Put {
        value: String,
        ttl_ms: Option<u64>,
    },
    Get,
}

#[derive(Clone, Debug)]
pub(crate) enum Told {
    /// Nobody knows, or not yet.
    Nothing,
    /// It certainly wasn't done.
    Refused,
    Put(Version),
    Got(Option<(String, Version)>),
}

#[derive(Debug)]
struct Operation {
    key: u64,
    asked: Asked,
    called_us: u64,
    returned_us: u64,
    told: Told,
}

/// All that was asked of keys that expire.
#[derive(Default)]
pub(crate) struct Fleeting {
    operations: Vec<Operation>,
}

/// A put, and what is known of it.
struct Put {
    called_us: u64,
    ttl_us: Option<u64>,
    /// When it was acknowledged.
    acknowledged_us: Option<u64>,
    version: Option<Version>,
    /// When somebody knew first that it had been done.
    known_us: u64,
    was_refused: bool,
}

impl Fleeting {
    pub(crate) fn call(&mut self, key: u64, asked: Asked, now_us: u64) -> usize {
        let (called_us, returned_us) = (now_us, u64::MAX);
        self.operations.push(Operation { key, asked, called_us, returned_us, told: Told::Nothing });
        self.operations.len() - 1
    }

    pub(crate) fn end(&mut self, operation: usize, told: Told, now_us: u64) {
        if !matches!(told, Told::Nothing) {
            self.operations[operation].returned_us = now_us;
        }
        self.operations[operation].told = told;
    }

    /// How many reads of such keys saw a record, and how many saw none.
    pub(crate) fn reads(&self) -> (usize, usize) {
        let seen = |some: bool| {
            let is_such = |one: &&Operation| match &one.told {
                Told::Got(found) => found.is_some() == some,
                _ => false,
            };
            self.operations.iter().filter(is_such).count()
        };
        (seen(true), seen(false))
    }

    /// # Errors
    /// What can't be right. `nights` are the times at which nobody knew yet how long they had been off.
    pub(crate) fn judge(&self, apart_us: u64, nights: &[Range<u64>]) -> Result<(), String> {
        let mut by_key: BTreeMap<u64, Vec<&Operation>> = BTreeMap::new();
        for operation in &self.operations {
            by_key.entry(operation.key).or_default().push(operation);
        }
        by_key.into_iter().try_for_each(|(key, operations)| {
            judge_key(&operations, apart_us, nights).map_err(|why| format!("fleeting-{key}: {why}"))
        })
    }
}

fn judge_key(
    operations: &[&Operation],
    apart_us: u64,
    nights: &[Range<u64>],
) -> Result<(), String> {
    let puts = puts_of(operations)?;
    for get in operations {
        match &get.told {
            Told::Got(Some((value, _))) => {
                let put = &puts[value.as_str()];
                let ends_us =
                    put.acknowledged_us.zip(put.ttl_us).map(|(at, ttl)| at + ttl + ttl / 100);
                let may_be_late = nights.iter().any(|night| night.contains(&get.called_us));
                if !may_be_late && ends_us.is_some_and(|ends| get.called_us > ends + apart_us) {
                    return Err(format!("{value} is served after it has expired: {get:?}"));
                }
            }
            Told::Got(None) => may_be_gone(get, &puts, apart_us)?,
            _ => {}
        }
    }
    for (before, after) in in_order(operations) {
        let Told::Got(Some((value, version))) = &after.told else { continue };
        let knew = match &before.told {
            Told::Put(version) | Told::Got(Some((_, version))) => *version,
            Told::Got(None) if puts[value.as_str()].known_us < before.called_us => {
                return Err(format!("{value} was gone and is back: {before:?}, then {after:?}"));
            }
            _ => continue,
        };
        if knew > *version {
            return Err(format!("what is read went back: {before:?}, then {after:?}"));
        }
    }
    Ok(())
}

/// Pairs of which the first had returned when the second was called.
fn in_order<'a>(
    operations: &'a [&Operation],
) -> impl Iterator<Item = (&'a Operation, &'a Operation)> {
    operations.iter().flat_map(move |after| {
        let before = operations.iter().filter(|before| before.returned_us < after.called_us);
        before.map(move |before| (*before, *after))
    })
}

/// All puts by their values, with what reads tell of them.
fn puts_of<'a>(operations: &[&'a Operation]) -> Result<BTreeMap<&'a str, Put>, String> {
    let mut puts = BTreeMap::new();
    for operation in operations {
        let Asked::Put { value, ttl_ms } = &operation.asked else { continue };
        let (version, acknowledged_us) = match operation.told {
            Told::Put(version) => (Some(version), Some(operation.returned_us)),
            _ => (None, None),
        };
        let put = Put {
            called_us: operation.called_us,
            ttl_us: ttl_ms.map(|ttl_ms| ttl_ms * 1000),
            acknowledged_us,
            version,
            known_us: acknowledged_us.unwrap_or(u64::MAX),
            was_refused: matches!(operation.told, Told::Refused),
        };
        puts.insert(value.as_str(), put);
    }
    for get in operations {
        let Told::Got(Some((value, version))) = &get.told else { continue };
        let put = puts.get_mut(value.as_str()).filter(|put| {
            !put.was_refused
                && put.called_us < get.returned_us
                && put.version.is_none_or(|known| known == *version)
        });
        let Some(put) = put else { return Err(format!("nobody can have put that: {get:?}")) };
        put.version = Some(*version);
        put.known_us = put.known_us.min(get.returned_us);
    }
    Ok(puts)
}

/// Whether a read may have seen nothing.
fn may_be_gone(get: &Operation, puts: &BTreeMap<&str, Put>, apart_us: u64) -> Result<(), String> {
    let is_there = |put: &&Put| put.known_us < get.called_us;
    let Some(last) = puts.values().filter(is_there).max_by_key(|put| put.version) else {
        return Ok(());
    };
    // One that came after it, or may have, can have gone already.
    let is_later = |put: &Put| {
        let may_be_done = !put.was_refused && put.called_us < get.returned_us;
        may_be_done && put.version.is_none_or(|version| Some(version) > last.version)
    };
    if puts.values().any(is_later) {
        return Ok(());
    }
    let ends_us = last.ttl_us.map(|ttl_us| last.called_us + ttl_us - ttl_us / 100);
    if ends_us.is_none_or(|ends_us| get.returned_us + apart_us < ends_us) {
        return Err(format!("version {:?} is gone too early: {get:?}", last.version));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    /// Operations in order, each done within the second after it was called.
    fn judged(operations: Vec<(Asked, Told)>) -> Result<(), String> {
        let mut fleeting = Fleeting::default();
        for (second, (asked, told)) in (0..).zip(operations) {
            let operation = fleeting.call(1, asked, second * SECOND);
            fleeting.end(operation, told, second * SECOND + SECOND / 2);
        }
        fleeting.judge(SECOND, &[])
    }

    fn put(value: &str, ttl_ms: u64, version: u64) -> (Asked, Told) {
        let asked = Asked::Put { value: value.to_owned(), ttl_ms: Some(ttl_ms) };
        (asked, Told::Put(Version(version)))
    }

    fn got(value: &str, version: u64) -> (Asked, Told) {
        (Asked::Get, Told::Got(Some((value.to_owned(), Version(version)))))
    }

    fn gone() -> (Asked, Told) {
        (Asked::Get, Told::Got(None))
    }

    fn open(value: &str) -> (Asked, Told) {
        (Asked::Put { value: value.to_owned(), ttl_ms: Some(1) }, Told::Nothing)
    }

    #[test]
    fn a_record_lives_for_its_time_and_never_again() {
        assert_eq!(judged(vec![put("a", 2000, 1), got("a", 1), gone(), gone()]), Ok(()));
        assert_eq!(judged(vec![put("a", 3000, 1), put("b", 1, 2), gone()]), Ok(()));
        let why = |operations| judged(operations).unwrap_err();
        let back = why(vec![put("a", 2000, 1), gone(), got("a", 1)]);
        assert!(back.contains("gone and is back"), "{back}");
        let early = why(vec![put("a", 9000, 1), got("a", 1), gone()]);
        assert!(early.contains("too early"), "{early}");
        let late = why(vec![put("a", 1, 1), gone(), gone(), got("a", 1)]);
        assert!(late.contains("after it has expired"), "{late}");
    }

    #[test]
    fn what_is_read_is_what_somebody_put_and_never_goes_back() {
        let why = |operations| judged(operations).unwrap_err();
        assert!(why(vec![got("x", 1)]).contains("nobody"));
        assert!(why(vec![put("a", 9000, 1), got("a", 2)]).contains("nobody"));
        let refused = (Asked::Put { value: "a".to_owned(), ttl_ms: None }, Told::Refused);
        assert!(why(vec![refused, got("a", 1)]).contains("nobody"));
        let back = why(vec![put("a", 9000, 1), put("b", 9000, 2), got("a", 1)]);
        assert!(back.contains("went back"), "{back}");
    }

    #[test]
    fn what_may_have_been_put_may_be_seen_and_may_have_gone() {
        assert_eq!(judged(vec![put("a", 9000, 1), open("b"), gone()]), Ok(()));
        assert_eq!(judged(vec![open("b"), got("b", 2), gone()]), Ok(()));
        let lost = judged(vec![
            (Asked::Put { value: "a".to_owned(), ttl_ms: None }, Told::Put(Version(1))),
            gone(),
        ]);
        assert!(lost.unwrap_err().contains("too early"));
    }
}
