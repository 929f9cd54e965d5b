//! Commands on sorted sets.

use crate::args::{
    Options, Planned, integer, is, parse_cursor, random_count, scan_options, seed, syntax, upper,
    wrong_number,
};
use crate::glob;
use crate::number::{double_text, parse_bound, parse_double};
use crate::plan::{Plan, Step, change};
use crate::reply::Reply;
use crate::strings::integer_of;
use bytes::Bytes;
use kvdb_model::WriteResult;
use kvdb_store::Command;
use kvdb_store::set::Combination;
use kvdb_store::zset::{
    Add, AddRule, Aggregate, Combine, CombineInto, Count, CountCommon, Increment, Length, LexBound,
    Pop, PopAny, Random, Range, Rank, Remove, RemoveRange, Scan, Score, ScoreBound, Scores, Select,
    SelectInto, Selection,
};

type Typed = kvdb_model::Reply;

/// A score that is given, or added.
pub(crate) fn score(text: &[u8]) -> Result<Score, Reply> {
    score_or(text, "value is not a valid float")
}

fn score_or(text: &[u8], problem: &str) -> Result<Score, Reply> {
    parse_double(text).and_then(Score::new).ok_or_else(|| Reply::error(problem))
}

/// A number as a reply holds it, or nothing.
pub(crate) fn double_or_nil(typed: &Typed) -> Reply {
    typed.as_double().map_or(Reply::Nil, Reply::Double)
}

pub(crate) fn bulk_of(typed: &Typed) -> Reply {
    Reply::bulk_or_nil(typed.bytes().cloned())
}

/// Members and scores of a reply.
fn pairs_of(typed: &Typed) -> Vec<(Reply, Reply)> {
    let Typed::Map(pairs) = typed else { return vec![] };
    pairs.iter().map(|(member, score)| (bulk_of(member), double_or_nil(score))).collect()
}

/// One after the other, in both versions of the protocol.
fn flat(pairs: Vec<(Reply, Reply)>) -> Reply {
    Reply::Array(pairs.into_iter().flat_map(|(member, score)| [member, score]).collect())
}

/// Members, with their scores or without.
fn told(typed: &Typed, with_scores: bool) -> Reply {
    match (typed, with_scores) {
        (_, true) => Reply::Pairs(pairs_of(typed)),
        (Typed::List(names), false) => Reply::Array(names.iter().map(bulk_of).collect()),
        (typed, false) => {
            Reply::Array(pairs_of(typed).into_iter().map(|(member, _)| member).collect())
        }
    }
}

pub(crate) fn zadd(args: &[Bytes]) -> Planned {
    let mut rule = AddRule::default();
    let (mut count_changed, mut increments) = (false, false);
    let mut options = Options::after(args, 2);
    let mut rest = &args[2..];
    while let Some(word) = options.word() {
        match word.as_str() {
            "NX" => rule.only_new = true,
            "XX" => rule.only_present = true,
            "GT" => rule.only_greater = true,
            "LT" => rule.only_less = true,
            "CH" => count_changed = true,
            "INCR" => increments = true,
            _ => break,
        }
        rest = &rest[1..];
    }
    let (elements, odd) = rest.as_chunks::<2>();
    if elements.is_empty() || !odd.is_empty() {
        return Err(syntax());
    }
    check_rule(rule)?;
    if increments && elements.len() > 1 {
        return Err(Reply::error("INCR option supports a single increment-element pair"));
    }
    let mut members = Vec::with_capacity(elements.len());
    for [text, member] in elements {
        members.push((score(text)?, member.clone()));
    }
    match members.pop() {
        Some((delta, member)) if increments => {
            increment(args[1].clone(), &Increment { rule, delta, member })
        }
        last => {
            members.extend(last);
            let add = Add { rule, count_changed, members };
            Ok(Plan::write(args[1].clone(), &add, integer_of))
        }
    }
}

fn check_rule(rule: AddRule) -> Result<(), Reply> {
    let AddRule { only_new, only_present, only_greater, only_less } = rule;
    if only_new && only_present {
        return Err(Reply::error("XX and NX options at the same time are not compatible"));
    }
    if (only_new && (only_greater || only_less)) || (only_greater && only_less) {
        return Err(Reply::error("GT, LT, and/or NX options at the same time are not compatible"));
    }
    Ok(())
}

fn increment(key: Bytes, increment: &Increment) -> Planned {
    Ok(Plan::write(key, increment, |result| double_or_nil(&result.reply)))
}

pub(crate) fn zincrby(args: &[Bytes]) -> Planned {
    let (delta, member) = (score(&args[2])?, args[3].clone());
    increment(args[1].clone(), &Increment { rule: AddRule::default(), delta, member })
}

pub(crate) fn zrem(args: &[Bytes]) -> Planned {
    Ok(Plan::write(args[1].clone(), &Remove { members: args[2..].to_vec() }, integer_of))
}

pub(crate) fn zcard(args: &[Bytes]) -> Planned {
    Ok(Plan::write(args[1].clone(), &Length, integer_of))
}

/// The scores that were asked for.
pub(crate) fn scores_of(result: &WriteResult) -> Vec<Option<f64>> {
    match &result.reply {
        Typed::List(scores) => scores.iter().map(Typed::as_double).collect(),
        _ => vec![],
    }
}

pub(crate) fn zscore(args: &[Bytes]) -> Planned {
    let scores = Scores { members: vec![args[2].clone()] };
    Ok(Plan::write(args[1].clone(), &scores, |result| {
        scores_of(result).pop().flatten().map_or(Reply::Nil, Reply::Double)
    }))
}

pub(crate) fn zmscore(args: &[Bytes]) -> Planned {
    let scores = Scores { members: args[2..].to_vec() };
    Ok(Plan::write(args[1].clone(), &scores, |result| {
        let scores = scores_of(result).into_iter();
        Reply::Array(scores.map(|score| score.map_or(Reply::Nil, Reply::Double)).collect())
    }))
}

fn rank(args: &[Bytes], command: &str, reverse: bool) -> Planned {
    let with_score = match args.get(3) {
        None => false,
        Some(_) if args.len() > 4 => return Err(wrong_number(command)),
        Some(word) if is(word, "withscore") => true,
        Some(_) => return Err(syntax()),
    };
    let rank = Rank { member: args[2].clone(), reverse };
    Ok(Plan::write(args[1].clone(), &rank, move |result| match &result.reply {
        Typed::List(found) => match (&found[..], with_score) {
            ([rank, score], true) => Reply::Array(vec![number_of(rank), double_or_nil(score)]),
            ([rank, ..], _) => number_of(rank),
            _ => Reply::Nil,
        },
        _ if with_score => Reply::NilArray,
        _ => Reply::Nil,
    }))
}

fn number_of(typed: &Typed) -> Reply {
    Reply::Integer(typed.integer().unwrap_or_default())
}

pub(crate) fn zrank(args: &[Bytes]) -> Planned {
    rank(args, "zrank", false)
}

pub(crate) fn zrevrank(args: &[Bytes]) -> Planned {
    rank(args, "zrevrank", true)
}

/// What the ends of a range are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Rank,
    Score,
    Name,
}

fn score_bound(text: &[u8]) -> Option<ScoreBound> {
    let (is_exclusive, number) = match text {
        [b'(', rest @ ..] => (true, rest),
        text => (false, text),
    };
    Some(ScoreBound { is_exclusive, score: parse_bound(number).and_then(Score::new)? })
}

fn lex_bound(text: &Bytes) -> Option<LexBound> {
    Some(match &text[..] {
        b"-" => LexBound::Lowest,
        b"+" => LexBound::Highest,
        [b'[', ..] => LexBound::Inclusive(text.slice(1..)),
        [b'(', ..] => LexBound::Exclusive(text.slice(1..)),
        _ => return None,
    })
}

fn range(by: By, min: &Bytes, max: &Bytes) -> Result<Range, Reply> {
    Ok(match by {
        By::Rank => Range::Ranks(integer(min)?, integer(max)?),
        By::Score => {
            let bounds = score_bound(min).zip(score_bound(max));
            let (min, max) = bounds.ok_or_else(|| Reply::error("min or max is not a float"))?;
            Range::Scores(min, max)
        }
        By::Name => {
            let bounds = lex_bound(min).zip(lex_bound(max));
            let problem = "min or max not valid string range item";
            let (min, max) = bounds.ok_or_else(|| Reply::error(problem))?;
            Range::Names(min, max)
        }
    })
}

/// What is selected: the source key stands at `at`, the ends of the range and options behind it. What a
/// command's name says already isn't an option of it.
fn selection(
    args: &[Bytes],
    at: usize,
    mut by: Option<By>,
    mut reverse: Option<bool>,
) -> Result<(Selection, bool), Reply> {
    let is_stored = at > 1;
    let (mut with_scores, mut limit) = (false, (0, -1));
    let mut options = Options::after(args, at + 3);
    while let Some(word) = options.word() {
        match word.as_str() {
            "WITHSCORES" if !is_stored => with_scores = true,
            "LIMIT" if options.left() >= 2 => limit = (options.integer()?, options.integer()?),
            "REV" if reverse.is_none() => reverse = Some(true),
            "BYSCORE" if by.is_none() => by = Some(By::Score),
            "BYLEX" if by.is_none() => by = Some(By::Name),
            _ => return Err(syntax()),
        }
    }
    let (by, reverse) = (by.unwrap_or(By::Rank), reverse.unwrap_or(false));
    let (skip, most) = limit;
    if most != -1 && by == By::Rank {
        return Err(Reply::error(
            "syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX",
        ));
    }
    if with_scores && by == By::Name {
        return Err(Reply::error(
            "syntax error, WITHSCORES not supported in combination with BYLEX",
        ));
    }
    let (min, max) = match reverse && by != By::Rank {
        false => (&args[at + 1], &args[at + 2]),
        true => (&args[at + 2], &args[at + 1]),
    };
    let range = range(by, min, max)?;
    let (skip, most) = match (u64::try_from(skip), u64::try_from(most)) {
        _ if by == By::Rank => (0, None),
        (Ok(skip), most) => (skip, most.ok()),
        // Before the first: in Redis nothing is left either.
        (Err(_), _) => (0, Some(0)),
    };
    Ok((Selection { range, reverse, skip, most }, with_scores))
}

fn select(args: &[Bytes], by: Option<By>, reverse: Option<bool>) -> Planned {
    let (selection, with_scores) = selection(args, 1, by, reverse)?;
    let select = Select { selection, with_scores };
    Ok(Plan::write(args[1].clone(), &select, move |result| told(&result.reply, with_scores)))
}

pub(crate) fn zrange(args: &[Bytes]) -> Planned {
    select(args, None, None)
}

pub(crate) fn zrevrange(args: &[Bytes]) -> Planned {
    select(args, Some(By::Rank), Some(true))
}

pub(crate) fn zrangebyscore(args: &[Bytes]) -> Planned {
    select(args, Some(By::Score), Some(false))
}

pub(crate) fn zrevrangebyscore(args: &[Bytes]) -> Planned {
    select(args, Some(By::Score), Some(true))
}

pub(crate) fn zrangebylex(args: &[Bytes]) -> Planned {
    select(args, Some(By::Name), Some(false))
}

pub(crate) fn zrevrangebylex(args: &[Bytes]) -> Planned {
    select(args, Some(By::Name), Some(true))
}

pub(crate) fn zrangestore(args: &[Bytes]) -> Planned {
    let (selection, _) = selection(args, 2, None, None)?;
    on_keys([&args[1], &args[2]], &SelectInto { selection }, integer_of)
}

/// A command on several keys, the first of which is the own one.
fn on_keys<'a>(
    keys: impl IntoIterator<Item = &'a Bytes>,
    command: &impl Command,
    finish: impl FnOnce(&mut WriteResult) -> Reply + Send + 'static,
) -> Planned {
    Ok(Plan::one(step_on(keys, command)?, |result, _| finish(result)))
}

fn step_on<'a>(
    keys: impl IntoIterator<Item = &'a Bytes>,
    command: &impl Command,
) -> Result<Step, Reply> {
    let mut keys = keys.into_iter().cloned();
    let own = keys.next().ok_or_else(syntax)?;
    Ok(change(own, command).and(keys.collect()))
}

fn count(args: &[Bytes], by: By) -> Planned {
    let count = Count { range: range(by, &args[2], &args[3])? };
    Ok(Plan::write(args[1].clone(), &count, integer_of))
}

pub(crate) fn zcount(args: &[Bytes]) -> Planned {
    count(args, By::Score)
}

pub(crate) fn zlexcount(args: &[Bytes]) -> Planned {
    count(args, By::Name)
}

fn remove_range(args: &[Bytes], by: By) -> Planned {
    let remove = RemoveRange { range: range(by, &args[2], &args[3])? };
    Ok(Plan::write(args[1].clone(), &remove, integer_of))
}

pub(crate) fn zremrangebyrank(args: &[Bytes]) -> Planned {
    remove_range(args, By::Rank)
}

pub(crate) fn zremrangebyscore(args: &[Bytes]) -> Planned {
    remove_range(args, By::Score)
}

pub(crate) fn zremrangebylex(args: &[Bytes]) -> Planned {
    remove_range(args, By::Name)
}

fn pop(args: &[Bytes], highest: bool) -> Planned {
    if args.len() > 3 {
        return Err(syntax());
    }
    let Some(count) = args.get(2) else {
        let pop = Pop { highest, count: 1 };
        return Ok(Plan::write(args[1].clone(), &pop, |result| flat(pairs_of(&result.reply))));
    };
    let count = integer(count).ok().and_then(|count| u64::try_from(count).ok());
    let count = count.ok_or_else(|| Reply::error("value is out of range, must be positive"))?;
    let pop = Pop { highest, count };
    Ok(Plan::write(args[1].clone(), &pop, |result| Reply::Pairs(pairs_of(&result.reply))))
}

pub(crate) fn zpopmin(args: &[Bytes]) -> Planned {
    pop(args, false)
}

pub(crate) fn zpopmax(args: &[Bytes]) -> Planned {
    pop(args, true)
}

/// A number of at least 1.
fn at_least_one(text: &[u8], problem: &str) -> Result<u64, Reply> {
    let number = integer(text).ok().and_then(|number| u64::try_from(number).ok());
    number.filter(|number| *number > 0).ok_or_else(|| Reply::error(problem))
}

pub(crate) fn zmpop(args: &[Bytes]) -> Planned {
    let count = at_least_one(&args[1], "numkeys should be greater than 0")?;
    let count = usize::try_from(count).map_err(|_| syntax())?;
    let keys = args[2..].get(..count).ok_or_else(syntax)?;
    let mut options = Options::after(args, 2 + count);
    let highest = match options.word().as_deref() {
        Some("MIN") => false,
        Some("MAX") => true,
        _ => return Err(syntax()),
    };
    let mut most = None;
    while let Some(word) = options.word() {
        if word != "COUNT" || most.is_some() || !options.has_more() {
            return Err(syntax());
        }
        most = Some(at_least_one(options.value()?, "count should be greater than 0")?);
    }
    let pop = PopAny { pop: Pop { highest, count: most.unwrap_or(1) } };
    let names = keys.to_vec();
    on_keys(keys, &pop, move |result| match &result.reply {
        Typed::List(found) => popped(&names, found),
        _ => Reply::NilArray,
    })
}

fn popped(keys: &[Bytes], found: &[Typed]) -> Reply {
    let [place, members] = found else { return Reply::NilArray };
    let place = place.integer().and_then(|place| usize::try_from(place).ok());
    let key = place.and_then(|place| keys.get(place)).cloned();
    let pair = |(member, score)| Reply::Array(vec![member, score]);
    let members = pairs_of(members).into_iter().map(pair).collect();
    Reply::Array(vec![Reply::bulk_or_nil(key), Reply::Array(members)])
}

pub(crate) fn zrandmember(args: &[Bytes]) -> Planned {
    let Some(count) = args.get(2) else {
        let random = Random { count: None, seed: seed() };
        return Ok(Plan::write(args[1].clone(), &random, |result| bulk_of(&result.reply)));
    };
    let count = random_count(count)?;
    let with_scores = match args.get(3) {
        None => false,
        Some(word) if args.len() == 4 && is(word, "withscores") => true,
        Some(_) => return Err(syntax()),
    };
    if with_scores && count.unsigned_abs() > i64::MAX as u64 / 2 {
        return Err(Reply::error("value is out of range"));
    }
    let random = Random { count: Some(count), seed: seed() };
    Ok(Plan::write(args[1].clone(), &random, move |result| told(&result.reply, with_scores)))
}

fn scanned(cursor: i64, members: impl Iterator<Item = (Bytes, f64)>) -> Reply {
    let flat = members.flat_map(|(member, score)| {
        // As text, also in version 3.
        [Reply::Bulk(member), Reply::text(scanned_score(score))]
    });
    Reply::Array(vec![Reply::text(cursor.to_string()), Reply::Array(flat.collect())])
}

/// A score as a small set of Redis keeps it: a whole number as such.
fn scanned_score(score: f64) -> String {
    let is_whole = score.fract() == 0.0 && score.abs() <= (i64::MAX / 2) as f64;
    if is_whole { (score as i64).to_string() } else { double_text(score) }
}

pub(crate) fn zscan(args: &[Bytes]) -> Planned {
    let cursor = parse_cursor(&args[2])?;
    let (most, pattern) = match scan_options(args) {
        Ok(options) => options,
        // A key that isn't there, or holds another type, comes first.
        Err(error) => {
            return Ok(Plan::write(args[1].clone(), &Length, move |result| match result.applied {
                true => error,
                false => scanned(0, std::iter::empty()),
            }));
        }
    };
    Ok(Plan::write(args[1].clone(), &Scan { cursor, most }, move |result| {
        let Typed::List(part) = &result.reply else { return scanned(0, std::iter::empty()) };
        let [cursor, Typed::Map(found)] = &part[..] else {
            return scanned(0, std::iter::empty());
        };
        let members = found.iter().filter_map(|(member, score)| {
            let member = member.bytes()?.clone();
            let is_wanted = pattern.as_ref().is_none_or(|pattern| glob::matches(pattern, &member));
            is_wanted.then_some((member, score.as_double()?))
        });
        scanned(cursor.integer().unwrap_or(0), members)
    }))
}

/// The sources of a combination, whose number stands at `at`, and what comes behind them.
struct Sources<'a> {
    keys: &'a [Bytes],
    rest: &'a [Bytes],
}

fn sources<'a>(args: &'a [Bytes], at: usize, command: &str) -> Result<Sources<'a>, Reply> {
    let count = integer(&args[at])?;
    if count < 1 {
        let problem = format!("at least 1 input key is needed for '{command}' command");
        return Err(Reply::error(problem));
    }
    let behind = &args[at + 1..];
    let count = usize::try_from(count).ok().filter(|count| *count <= behind.len());
    let (keys, rest) = behind.split_at(count.ok_or_else(syntax)?);
    Ok(Sources { keys, rest })
}

/// How sources are combined, and whether scores are told.
fn combine_options(
    sources: &Sources<'_>,
    combination: Combination,
    is_stored: bool,
) -> Result<(Combine, bool), Reply> {
    let mut combine = Combine { combination, aggregate: Aggregate::Sum, weights: vec![] };
    let (mut rest, mut with_scores) = (sources.rest, false);
    let has_scores = combination != Combination::Difference;
    while let [word, after @ ..] = rest {
        let count = sources.keys.len();
        rest = match upper(word).as_str() {
            "WEIGHTS" if has_scores && after.len() >= count => {
                let (weights, after) = after.split_at(count);
                let weight = |text: &Bytes| score_or(text, "weight value is not a float");
                combine.weights = weights.iter().map(weight).collect::<Result<_, _>>()?;
                after
            }
            "AGGREGATE" if has_scores && !after.is_empty() => {
                combine.aggregate = match upper(&after[0]).as_str() {
                    "SUM" => Aggregate::Sum,
                    "MIN" => Aggregate::Min,
                    "MAX" => Aggregate::Max,
                    _ => return Err(syntax()),
                };
                &after[1..]
            }
            "WITHSCORES" if !is_stored => {
                with_scores = true;
                after
            }
            _ => return Err(syntax()),
        };
    }
    Ok((combine, with_scores))
}

/// An error, unless one of the keys holds another type: that is told first.
fn failing(keys: &[Bytes], error: Reply) -> Planned {
    on_keys(keys, &CountCommon { limit: 1 }, |_| error)
}

fn combine(args: &[Bytes], command: &str, combination: Combination) -> Planned {
    let sources = sources(args, 1, command)?;
    let (combine, with_scores) = match combine_options(&sources, combination, false) {
        Ok(options) => options,
        Err(error) => return failing(sources.keys, error),
    };
    on_keys(sources.keys, &combine, move |result| told(&result.reply, with_scores))
}

fn combine_into(args: &[Bytes], command: &str, combination: Combination) -> Planned {
    let sources = sources(args, 2, command)?;
    let combine = match combine_options(&sources, combination, true) {
        Ok((combine, _)) => combine,
        Err(error) => return failing(sources.keys, error),
    };
    let keys = std::iter::once(&args[1]).chain(sources.keys);
    on_keys(keys, &CombineInto { combine }, integer_of)
}

pub(crate) fn zunion(args: &[Bytes]) -> Planned {
    combine(args, "zunion", Combination::Union)
}

pub(crate) fn zinter(args: &[Bytes]) -> Planned {
    combine(args, "zinter", Combination::Intersection)
}

pub(crate) fn zdiff(args: &[Bytes]) -> Planned {
    combine(args, "zdiff", Combination::Difference)
}

pub(crate) fn zunionstore(args: &[Bytes]) -> Planned {
    combine_into(args, "zunionstore", Combination::Union)
}

pub(crate) fn zinterstore(args: &[Bytes]) -> Planned {
    combine_into(args, "zinterstore", Combination::Intersection)
}

pub(crate) fn zdiffstore(args: &[Bytes]) -> Planned {
    combine_into(args, "zdiffstore", Combination::Difference)
}

fn limit_of(rest: &[Bytes]) -> Result<u64, Reply> {
    let (mut limit, mut rest) = (0, rest);
    while let [word, value, after @ ..] = rest {
        if !is(word, "limit") {
            return Err(syntax());
        }
        let given = integer(value).ok().and_then(|limit| u64::try_from(limit).ok());
        limit = given.ok_or_else(|| Reply::error("LIMIT can't be negative"))?;
        rest = after;
    }
    if rest.is_empty() { Ok(limit) } else { Err(syntax()) }
}

pub(crate) fn zintercard(args: &[Bytes]) -> Planned {
    let sources = sources(args, 1, "zintercard")?;
    match limit_of(sources.rest) {
        Ok(limit) => on_keys(sources.keys, &CountCommon { limit }, integer_of),
        Err(error) => failing(sources.keys, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> String {
        let args: Vec<Bytes> = line.split(' ').map(|word| Bytes::from(word.to_owned())).collect();
        let spec = crate::table::find(&args[0]).unwrap();
        let crate::table::Handler::Keys(plan) = spec.handler else { panic!("{line}") };
        match plan(&args) {
            Err(Reply::Error(problem)) => problem,
            Err(other) => panic!("{line}: {other:?}"),
            Ok(_) => "accepted".to_owned(),
        }
    }

    #[test]
    fn what_is_wrong_is_told_in_the_words_and_the_order_of_redis() {
        for (line, problem) in [
            ("zadd z nx", "ERR syntax error"),
            ("zadd z nx xx 1 a", "ERR XX and NX options at the same time are not compatible"),
            (
                "zadd z gt nx x a",
                "ERR GT, LT, and/or NX options at the same time are not compatible",
            ),
            ("zadd z incr 1 a 2 b", "ERR INCR option supports a single increment-element pair"),
            ("zadd z 1 a nan b", "ERR value is not a valid float"),
            ("zadd z ch gt xx incr 1 a", "accepted"),
            ("zrank z a withscore", "accepted"),
            ("zrank z a withscores", "ERR syntax error"),
            ("zrank z a withscore x", "ERR wrong number of arguments for 'zrank' command"),
            ("zrange z 0 x", "ERR value is not an integer or out of range"),
            (
                "zrange z 0 1 limit 0 1",
                "ERR syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX",
            ),
            ("zrange z 0 1 limit 5 -1", "accepted"),
            (
                "zrange z - + bylex withscores",
                "ERR syntax error, WITHSCORES not supported in combination with BYLEX",
            ),
            ("zrange z a + bylex", "ERR min or max not valid string range item"),
            ("zrange z (1 x byscore", "ERR min or max is not a float"),
            ("zrangebyscore z 1 2 rev", "ERR syntax error"),
            ("zrangebyscore z 1 2 limit 0", "ERR syntax error"),
            ("zrangestore d z 0 1 withscores", "ERR syntax error"),
            ("zpopmin z -1", "ERR value is out of range, must be positive"),
            ("zpopmin z 1 2", "ERR syntax error"),
            ("zmpop 0 z min", "ERR numkeys should be greater than 0"),
            ("zmpop 2 z min", "ERR syntax error"),
            ("zmpop 1 z min count 0", "ERR count should be greater than 0"),
            ("zunion 0 z", "ERR at least 1 input key is needed for 'zunion' command"),
            ("zunionstore d 2 z", "ERR syntax error"),
            ("zrandmember z 1 x", "ERR syntax error"),
            ("zrandmember z 9223372036854775807 withscores", "ERR value is out of range"),
        ] {
            assert_eq!(refused(line), problem, "{line}");
        }
    }

    #[test]
    fn a_limit_before_the_first_member_leaves_none() {
        let args = ["zrange", "z", "0", "1", "byscore", "limit", "-1", "5"];
        let args = args.map(|word| Bytes::from(word.to_owned()));
        let (selection, _) = selection(&args, 1, None, None).unwrap();
        assert_eq!((selection.skip, selection.most), (0, Some(0)));
    }

    #[test]
    fn whole_scores_of_a_walk_are_told_as_such() {
        for (score, text) in
            [(1e17, "100000000000000000"), (0.5, "0.5"), (1e300, "1.0000000000000001e+300")]
        {
            assert_eq!(scanned_score(score), text);
        }
        assert_eq!(scanned_score(f64::INFINITY), "inf");
    }
}
