//! Commands on fields of hashes that expire by themselves, as Redis 7.4 and 8.0 have them.

use crate::args::{
    BASE_MS, MILLIS, Planned, SECONDS, TimeUnit, UNIX_MILLIS, UNIX_SECONDS, integer, is, unit_of,
    upper, wrong_number,
};
use crate::plan::Plan;
use crate::reply::Reply;
use crate::strings::integer_of;
use bytes::Bytes;
use kvdb_model::WriteResult;
use kvdb_store::hash::{
    ExpireFields, FieldCondition, FieldDeadlines, Get, GetAndExpire, Length, PersistFields,
    SetUntil, Take,
};
use kvdb_store::keys::{Expiry, ExpiryRule};

type Typed = kvdb_model::Reply;

/// Latest deadline, in milliseconds since 1970: as in Redis, the year 4199.
const LATEST_MS: i64 = (1 << 46) - 1;

/// What is wrong with the arguments, after what is wrong with the key.
fn unless_wrong_type(key: &Bytes, error: Reply) -> Planned {
    Ok(Plan::write(key.clone(), &Length, |_| error))
}

/// A number for each field.
fn numbers(result: &WriteResult, of: impl Fn(i64) -> i64) -> Reply {
    let Typed::List(told) = &result.reply else { return Reply::Array(vec![]) };
    let number = |told: &Typed| Reply::Integer(of(told.integer().unwrap_or_default()));
    Reply::Array(told.iter().map(number).collect())
}

/// A value for each field.
fn values(result: &WriteResult) -> Reply {
    let Typed::List(found) = &result.reply else { return Reply::Array(vec![]) };
    Reply::Array(found.iter().map(|value| Reply::bulk_or_nil(value.bytes().cloned())).collect())
}

/// A deadline that may have passed already.
fn deadline(command: &str, text: &[u8], unit: TimeUnit) -> Result<Expiry, Reply> {
    let given = integer(text)?;
    if given < 0 {
        return Err(Reply::error("invalid expire time, must be >= 0"));
    }
    let base = if unit.absolute { 0 } else { BASE_MS };
    let millis = given.checked_mul(unit.millis).filter(|millis| *millis <= LATEST_MS - base);
    let millis = millis
        .and_then(|millis| u64::try_from(millis).ok())
        .ok_or_else(|| Reply::error(format!("invalid expire time in '{command}' command")))?;
    Ok(if unit.absolute { Expiry::At(millis) } else { Expiry::In(millis) })
}

/// The fields after `FIELDS` and their number, to the end.
fn fields(args: &[Bytes], at: usize, bad_count: &str) -> Result<Vec<Bytes>, Reply> {
    if !args.get(at).is_some_and(|word| is(word, "fields")) {
        let missing = "Mandatory argument FIELDS is missing or not at the right position";
        return Err(Reply::error(missing));
    }
    let count = args.get(at + 1).and_then(|count| integer(count).ok());
    let count = count.filter(|count| *count > 0).ok_or_else(|| Reply::error(bad_count))?;
    let fields = args.get(at + 2..).unwrap_or_default();
    if usize::try_from(count) != Ok(fields.len()) {
        let differs = "The `numfields` parameter must match the number of arguments";
        return Err(Reply::error(differs));
    }
    Ok(fields.to_vec())
}

const NOT_POSITIVE: &str = "Number of fields must be a positive integer";

fn expire_with(args: &[Bytes], command: &'static str, unit: TimeUnit) -> Planned {
    let read = || -> Result<ExpireFields, Reply> {
        let expiry = deadline(command, &args[2], unit)?;
        let rule = match upper(&args[3]).as_str() {
            "NX" => Some(ExpiryRule::NX),
            "XX" => Some(ExpiryRule::XX),
            "GT" => Some(ExpiryRule::GT),
            "LT" => Some(ExpiryRule::LT),
            _ => None,
        };
        let at = if rule.is_some() { 4 } else { 3 };
        let fields = fields(args, at, "Parameter `numFields` should be greater than 0")?;
        Ok(ExpireFields { expiry, rule: rule.unwrap_or(ExpiryRule::ALWAYS), fields })
    };
    match read() {
        Ok(command) => {
            Ok(Plan::write(args[1].clone(), &command, |result| numbers(result, |told| told)))
        }
        Err(error) => unless_wrong_type(&args[1], error),
    }
}

pub(crate) fn hexpire(args: &[Bytes]) -> Planned {
    expire_with(args, "hexpire", SECONDS)
}

pub(crate) fn hpexpire(args: &[Bytes]) -> Planned {
    expire_with(args, "hpexpire", MILLIS)
}

pub(crate) fn hexpireat(args: &[Bytes]) -> Planned {
    expire_with(args, "hexpireat", UNIX_SECONDS)
}

pub(crate) fn hpexpireat(args: &[Bytes]) -> Planned {
    expire_with(args, "hpexpireat", UNIX_MILLIS)
}

/// When fields expire; `of` makes what is told of a deadline and of the clock.
fn ask_deadlines(args: &[Bytes], of: impl Fn(i64, i64) -> i64 + Send + 'static) -> Planned {
    let fields = match fields(args, 2, NOT_POSITIVE) {
        Ok(fields) => fields,
        Err(error) => return unless_wrong_type(&args[1], error),
    };
    let step = crate::plan::change(args[1].clone(), &FieldDeadlines { fields });
    Ok(Plan::one(step, move |result, now| {
        numbers(result, |at| if at < 0 { at } else { of(at, now as i64) })
    }))
}

fn in_seconds(millis: i64) -> i64 {
    millis.saturating_add(999) / 1000
}

pub(crate) fn httl(args: &[Bytes]) -> Planned {
    ask_deadlines(args, |at, now| in_seconds(at.saturating_sub(now).max(0)))
}

pub(crate) fn hpttl(args: &[Bytes]) -> Planned {
    ask_deadlines(args, |at, now| at.saturating_sub(now).max(0))
}

pub(crate) fn hexpiretime(args: &[Bytes]) -> Planned {
    ask_deadlines(args, |at, _| in_seconds(at))
}

pub(crate) fn hpexpiretime(args: &[Bytes]) -> Planned {
    ask_deadlines(args, |at, _| at)
}

pub(crate) fn hpersist(args: &[Bytes]) -> Planned {
    match fields(args, 2, NOT_POSITIVE) {
        Ok(fields) => {
            let persist = PersistFields { fields };
            Ok(Plan::write(args[1].clone(), &persist, |result| numbers(result, |told| told)))
        }
        Err(error) => unless_wrong_type(&args[1], error),
    }
}

pub(crate) fn hgetdel(args: &[Bytes]) -> Planned {
    match fields(args, 2, NOT_POSITIVE) {
        Ok(fields) => Ok(Plan::write(args[1].clone(), &Take { fields }, |result| values(result))),
        Err(error) => unless_wrong_type(&args[1], error),
    }
}

/// The options of `HGETEX` and `HSETEX`, and where the fields after their number begin.
struct Parsed {
    expiry: Option<Expiry>,
    condition: FieldCondition,
    first: usize,
}

/// `other` is the word that stands in for a deadline, and what it means; `each` how many words a field
/// has.
fn parse(
    args: &[Bytes],
    command: &str,
    other: (&str, Expiry),
    each: usize,
) -> Result<Parsed, Reply> {
    let mut parsed = Parsed { expiry: None, condition: FieldCondition::Always, first: 0 };
    let mut at = 2;
    while let Some(word) = args.get(at) {
        let name = upper(word);
        at += 1;
        let condition = match name.as_str() {
            "FNX" => Some(FieldCondition::AllAbsent),
            "FXX" => Some(FieldCondition::AllPresent),
            _ => None,
        };
        let may_have_condition = each > 1;
        if name == "FIELDS" {
            let count = args.get(at).ok_or_else(|| wrong_number(command))?;
            let count = integer(count).ok().filter(|count| (1..=i32::MAX.into()).contains(count));
            let count = count.ok_or_else(|| Reply::error("invalid number of fields"))? as usize;
            parsed.first = at + 1;
            if Some(args.len() - parsed.first) != count.checked_mul(each) {
                return Err(wrong_number(command));
            }
            return Ok(parsed);
        } else if let Some(condition) = condition.filter(|_| may_have_condition) {
            if parsed.condition != FieldCondition::Always {
                return Err(Reply::error("Only one of FXX or FNX arguments can be specified"));
            }
            parsed.condition = condition;
        } else if name == other.0 || unit_of(&name).is_some() {
            if parsed.expiry.is_some() {
                return Err(Reply::error(format!(
                    "Only one of EX, PX, EXAT, PXAT or {} arguments can be specified",
                    other.0
                )));
            }
            parsed.expiry = Some(match unit_of(&name) {
                None => other.1,
                Some(unit) => {
                    let text = args.get(at).ok_or_else(|| Reply::error("missing expire time"))?;
                    at += 1;
                    deadline(command, text, unit)?
                }
            });
        } else {
            let shown = String::from_utf8_lossy(&word[..word.len().min(128)]);
            return Err(Reply::error(format!("unknown argument: {shown}")));
        }
    }
    Err(Reply::error("missing FIELDS argument"))
}

pub(crate) fn hgetex(args: &[Bytes]) -> Planned {
    let Parsed { expiry, first, .. } = parse(args, "hgetex", ("PERSIST", Expiry::Never), 1)?;
    let (key, fields) = (args[1].clone(), args[first..].to_vec());
    Ok(match expiry {
        None => Plan::write(key, &Get { fields }, |result| values(result)),
        Some(expiry) => Plan::write(key, &GetAndExpire { expiry, fields }, |result| values(result)),
    })
}

pub(crate) fn hsetex(args: &[Bytes]) -> Planned {
    let parsed = parse(args, "hsetex", ("KEEPTTL", Expiry::Keep), 2)?;
    let (pairs, _) = args[parsed.first..].as_chunks::<2>();
    let fields = pairs.iter().map(|[field, value]| (field.clone(), value.clone())).collect();
    let expiry = parsed.expiry.unwrap_or(Expiry::Never);
    let set = SetUntil { expiry, condition: parsed.condition, fields };
    Ok(Plan::write(args[1].clone(), &set, integer_of))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(plan: fn(&[Bytes]) -> Planned, line: &str) -> String {
        let args: Vec<Bytes> = line.split(' ').map(|word| Bytes::from(word.to_owned())).collect();
        match plan(&args) {
            Err(Reply::Error(text)) => text,
            Err(other) => panic!("{line}: {other:?}"),
            // It is told once the type of the key is known.
            Ok(plan) => match plan.finish(vec![Ok(WriteResult::default())], 0) {
                Reply::Error(text) => text,
                other => panic!("{line}: {other:?}"),
            },
        }
    }

    #[test]
    fn wrong_arguments_are_told_in_redis_words() {
        let late = format!("hexpire h {} fields 1 f", LATEST_MS / 1000 + 1);
        for (plan, line, wanted) in [
            (
                hexpire as fn(&[Bytes]) -> Planned,
                "hexpire h x fields 1 f",
                "ERR value is not an integer or out of range",
            ),
            (hexpire, "hexpire h -1 fields 1 f", "ERR invalid expire time, must be >= 0"),
            (hexpire, &late, "ERR invalid expire time in 'hexpire' command"),
            (
                hpexpireat,
                "hpexpireat h 9223372036854775807 fields 1 f",
                "ERR invalid expire time in 'hpexpireat' command",
            ),
            (
                hexpire,
                "hexpire h 1 nx gt 1 f",
                "ERR Mandatory argument FIELDS is missing or not at the right position",
            ),
            (
                hexpire,
                "hexpire h 1 fields 0 f",
                "ERR Parameter `numFields` should be greater than 0",
            ),
            (
                hexpire,
                "hexpire h 1 lt fields 2 f",
                "ERR The `numfields` parameter must match the number of arguments",
            ),
            (httl, "httl h fields 0 f", "ERR Number of fields must be a positive integer"),
            (
                httl,
                "httl h fields 1 f g",
                "ERR The `numfields` parameter must match the number of arguments",
            ),
            (
                hpersist,
                "hpersist h f 1 fields",
                "ERR Mandatory argument FIELDS is missing or not at the right position",
            ),
            (hgetdel, "hgetdel h fields x f", "ERR Number of fields must be a positive integer"),
            (
                hgetex,
                "hgetex h ex 1 persist fields 1 f",
                "ERR Only one of EX, PX, EXAT, PXAT or PERSIST arguments can be specified",
            ),
            (hgetex, "hgetex h fnx fields 1 f", "ERR unknown argument: fnx"),
            (hgetex, "hgetex h fields 2 f", "ERR wrong number of arguments for 'hgetex' command"),
            (hgetex, "hgetex h ex -1 fields 1 f", "ERR invalid expire time, must be >= 0"),
            (hsetex, "hsetex h fields 1 f", "ERR wrong number of arguments for 'hsetex' command"),
            (
                hsetex,
                "hsetex h fnx fxx fields 1 f v",
                "ERR Only one of FXX or FNX arguments can be specified",
            ),
            (
                hsetex,
                "hsetex h keepttl px 1 fields 1 f v",
                "ERR Only one of EX, PX, EXAT, PXAT or KEEPTTL arguments can be specified",
            ),
            (hsetex, "hsetex h fields 0 f v", "ERR invalid number of fields"),
            (hsetex, "hsetex h fields 9223372036854775807 f v", "ERR invalid number of fields"),
            (hsetex, "hsetex h fnx ex", "ERR missing expire time"),
            (hsetex, "hsetex h fnx ex 10", "ERR missing FIELDS argument"),
        ] {
            assert_eq!(refused(plan, line), wanted, "{line}");
        }
    }
}
