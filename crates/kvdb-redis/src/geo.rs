//! Commands on places.

use crate::args::{Options, Planned, is, syntax, upper};
use crate::number::{double_text, parse_double};
use crate::plan::{Plan, change};
use crate::reply::Reply;
use crate::strings::integer_of;
use crate::zsets::{bulk_of, scores_of};
use bytes::Bytes;
use kvdb_store::geo::{Area, Centre, Position, Search, SearchInto, Shape, Sort, Unit};
use kvdb_store::zset::{Add, AddRule, Length, Score, Scores};

type Typed = kvdb_model::Reply;

/// What a missing centre is told as.
const NO_MEMBER: &str = "could not decode requested zset member";

fn number(text: &[u8], problem: &str) -> Result<f64, Reply> {
    parse_double(text).ok_or_else(|| Reply::error(problem))
}

/// Longitude and latitude.
fn position(longitude: &[u8], latitude: &[u8]) -> Result<Position, Reply> {
    let problem = "value is not a valid float";
    let (longitude, latitude) = (number(longitude, problem)?, number(latitude, problem)?);
    Position::new(longitude, latitude).ok_or_else(|| {
        // As C prints them.
        let shown = |degrees: f64| match degrees.is_finite() {
            true => format!("{degrees:.6}"),
            false => double_text(degrees),
        };
        let (longitude, latitude) = (shown(longitude), shown(latitude));
        Reply::error(format!("invalid longitude,latitude pair {longitude},{latitude}"))
    })
}

fn unit(text: &[u8]) -> Result<Unit, Reply> {
    Ok(match upper(text).as_str() {
        "M" => Unit::Metres,
        "KM" => Unit::Kilometres,
        "FT" => Unit::Feet,
        "MI" => Unit::Miles,
        _ => {
            let problem = "unsupported unit provided. please use M, KM, FT, MI";
            return Err(Reply::error(problem));
        }
    })
}

/// A length; below 0 it is refused.
fn length(text: &[u8], problem: &str, negative: &str) -> Result<Score, Reply> {
    let length = number(text, problem)?;
    Score::new(length).filter(|_| length >= 0.0).ok_or_else(|| Reply::error(negative))
}

fn circle(radius: &[u8], unit_text: &[u8]) -> Result<(Shape, Unit), Reply> {
    let radius = length(radius, "need numeric radius", "radius cannot be negative")?;
    Ok((Shape::Circle(radius), unit(unit_text)?))
}

fn rectangle(width: &[u8], height: &[u8], unit_text: &[u8]) -> Result<(Shape, Unit), Reply> {
    let negative = "height or width cannot be negative";
    let (width, height) =
        (number(width, "need numeric width")?, number(height, "need numeric height")?);
    let side = |side: f64| Score::new(side).filter(|_| side >= 0.0);
    let (width, height) = side(width).zip(side(height)).ok_or_else(|| Reply::error(negative))?;
    Ok((Shape::Box(width, height), unit(unit_text)?))
}

pub(crate) fn geoadd(args: &[Bytes]) -> Planned {
    let mut rule = AddRule::default();
    let mut count_changed = false;
    let mut rest = &args[2..];
    while let [word, after @ ..] = rest {
        match upper(word).as_str() {
            "NX" => rule.only_new = true,
            "XX" => rule.only_present = true,
            "CH" => count_changed = true,
            _ => break,
        }
        rest = after;
    }
    let (places, odd) = rest.as_chunks::<3>();
    if places.is_empty() || !odd.is_empty() || (rule.only_new && rule.only_present) {
        return Err(syntax());
    }
    let mut members = Vec::with_capacity(places.len());
    for [longitude, latitude, member] in places {
        members.push((position(longitude, latitude)?.score(), member.clone()));
    }
    Ok(Plan::write(args[1].clone(), &Add { rule, count_changed, members }, integer_of))
}

/// A number as Redis shows coordinates: with up to 17 decimals.
fn coordinate(degrees: f64) -> Reply {
    let text = format!("{degrees:.17}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    Reply::Decimal(if text == "-0" { "0" } else { text }.to_owned())
}

fn coordinates(position: Position) -> Reply {
    Reply::Array(vec![coordinate(position.longitude), coordinate(position.latitude)])
}

/// What is told of each member, by its score.
fn of_each(args: &[Bytes], told: fn(Position) -> Reply, missing: fn() -> Reply) -> Planned {
    let scores = Scores { members: args[2..].to_vec() };
    Ok(Plan::write(args[1].clone(), &scores, move |result| {
        let of = |score: Option<f64>| score.map_or_else(missing, |s| told(Position::of_score(s)));
        Reply::Array(scores_of(result).into_iter().map(of).collect())
    }))
}

pub(crate) fn geopos(args: &[Bytes]) -> Planned {
    of_each(args, coordinates, || Reply::NilArray)
}

pub(crate) fn geohash(args: &[Bytes]) -> Planned {
    of_each(args, |position| Reply::text(position.geohash()), || Reply::Nil)
}

/// A distance as Redis shows it: with four decimals.
fn distance_text(distance: f64) -> Reply {
    let scaled = (distance * 10_000.0).round_ties_even() as i64;
    Reply::text(format!("{}.{:04}", scaled / 10_000, scaled % 10_000))
}

pub(crate) fn geodist(args: &[Bytes]) -> Planned {
    let unit = match args.get(4) {
        None => Unit::Metres,
        Some(_) if args.len() > 5 => return Err(syntax()),
        Some(text) => unit(text)?,
    };
    let scores = Scores { members: vec![args[2].clone(), args[3].clone()] };
    Ok(Plan::write(args[1].clone(), &scores, move |result| match scores_of(result)[..] {
        [Some(one), Some(other)] => {
            let distance = Position::of_score(one).distance(Position::of_score(other));
            distance_text(distance / unit.metres())
        }
        _ => Reply::Nil,
    }))
}

/// What is told of each member that is found, beside its name.
#[derive(Clone, Copy, Default)]
struct With {
    distance: bool,
    hash: bool,
    coordinates: bool,
}

impl With {
    fn any(self) -> bool {
        self.distance || self.hash || self.coordinates
    }

    fn told(self, point: &Typed) -> Reply {
        let Typed::List(parts) = point else { return Reply::Nil };
        let [member, distance, score] = &parts[..] else { return Reply::Nil };
        let (member, score) = (bulk_of(member), score.as_double().unwrap_or(0.0));
        if !self.any() {
            return member;
        }
        let mut told = vec![member];
        if self.distance {
            told.push(distance_text(distance.as_double().unwrap_or(0.0)));
        }
        if self.hash {
            told.push(Reply::Integer(score as i64));
        }
        if self.coordinates {
            told.push(coordinates(Position::of_score(score)));
        }
        Reply::Array(told)
    }
}

/// Which of the commands it is that search.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `GEORADIUS` and `GEORADIUSBYMEMBER`: whether they may store.
    Radius { stores: bool },
    /// `GEOSEARCH`.
    Search,
    /// `GEOSEARCHSTORE`.
    SearchStore,
}

/// A search, as far as it was read.
struct Asked {
    centre: Option<Centre>,
    shape: Option<(Shape, Unit)>,
    sort: Sort,
    count: Option<u64>,
    any: bool,
    with: With,
    target: Option<Bytes>,
    distances: bool,
}

impl Asked {
    fn new() -> Self {
        Asked {
            centre: None,
            shape: None,
            sort: Sort::None,
            count: None,
            any: false,
            with: With::default(),
            target: None,
            distances: false,
        }
    }

    fn option(
        &mut self,
        form: Form,
        word: &str,
        options: &mut Options<'_>,
        left: usize,
    ) -> Result<(), Reply> {
        let is_search = !matches!(form, Form::Radius { .. });
        let may_store = form == Form::Radius { stores: true };
        let by_member = matches!(self.centre, Some(Centre::Member(_)));
        let by_position = matches!(self.centre, Some(Centre::Position(_)));
        let is_circle = matches!(self.shape, Some((Shape::Circle(_), _)));
        let is_box = matches!(self.shape, Some((Shape::Box(..), _)));
        match word {
            "WITHDIST" => self.with.distance = true,
            "WITHHASH" => self.with.hash = true,
            "WITHCOORD" => self.with.coordinates = true,
            "ANY" => self.any = true,
            "ASC" => self.sort = Sort::Ascending,
            "DESC" => self.sort = Sort::Descending,
            "COUNT" if left >= 1 => {
                let count = u64::try_from(options.integer()?).ok().filter(|count| *count > 0);
                self.count = Some(count.ok_or_else(|| Reply::error("COUNT must be > 0"))?);
            }
            "STORE" | "STOREDIST" if left >= 1 && may_store => {
                self.target = Some(options.value()?.clone());
                self.distances = word == "STOREDIST";
            }
            "STOREDIST" if form == Form::SearchStore => self.distances = true,
            "FROMMEMBER" if left >= 1 && is_search && !by_position => {
                self.centre = Some(Centre::Member(options.value()?.clone()));
            }
            "FROMLONLAT" if left >= 2 && is_search && !by_member => {
                let there = position(options.value()?, options.value()?)?;
                self.centre = Some(Centre::Position(there));
            }
            "BYRADIUS" if left >= 2 && is_search && !is_box => {
                self.shape = Some(circle(options.value()?, options.value()?)?);
            }
            "BYBOX" if left >= 3 && is_search && !is_circle => {
                self.shape = Some(rectangle(options.value()?, options.value()?, options.value()?)?);
            }
            _ => return Err(syntax()),
        }
        Ok(())
    }

    fn options(&mut self, form: Form, args: &[Bytes], from: usize) -> Result<(), Reply> {
        let mut options = Options::after(args, from);
        while let Some(word) = options.word() {
            let left = options.left();
            self.option(form, &word, &mut options, left)?;
        }
        if self.target.is_some() && self.with.any() {
            let who = match form {
                Form::SearchStore => "GEOSEARCHSTORE",
                _ => "STORE option in GEORADIUS",
            };
            return Err(Reply::error(format!(
                "{who} is not compatible with WITHDIST, WITHHASH and WITHCOORD options"
            )));
        }
        let called = String::from_utf8_lossy(&args[0]);
        if self.centre.is_none() {
            return Err(Reply::error(format!(
                "exactly one of FROMMEMBER or FROMLONLAT can be specified for {called}"
            )));
        }
        // That of GEORADIUSBYMEMBER is looked at later.
        if self.shape.is_none() && !matches!(form, Form::Radius { .. }) {
            return Err(Reply::error(format!(
                "exactly one of BYRADIUS and BYBOX can be specified for {called}"
            )));
        }
        if self.any && self.count.is_none() {
            return Err(Reply::error("the ANY argument requires COUNT argument"));
        }
        Ok(())
    }

    fn plan(self, key: &Bytes) -> Planned {
        let (Some(centre), Some((shape, unit))) = (self.centre, self.shape) else {
            return Err(syntax());
        };
        let count = self.count.unwrap_or(0);
        let area = Area { centre, shape, unit, sort: self.sort, count, any: self.any };
        let Some(target) = self.target else {
            let with = self.with;
            return Ok(Plan::write(key.clone(), &Search { area }, move |result| {
                let Typed::List(points) = &result.reply else { return Reply::Array(vec![]) };
                Reply::Array(points.iter().map(|point| with.told(point)).collect())
            }));
        };
        let step = change(target, &SearchInto { area, distances: self.distances });
        Ok(Plan::one(step.and(vec![key.clone()]), |result, _| integer_of(result)))
    }
}

/// An error, unless what the key holds, or doesn't, comes first: another type, or no such member.
fn failing(key: &Bytes, centre: Option<Centre>, error: Reply) -> Planned {
    let Some(Centre::Member(member)) = centre else {
        return Ok(Plan::write(key.clone(), &Length, |_| error));
    };
    Ok(Plan::write(key.clone(), &Scores { members: vec![member] }, |result| {
        let is_missing = result.applied && scores_of(result).contains(&None);
        if is_missing { Reply::error(NO_MEMBER) } else { error }
    }))
}

fn search(args: &[Bytes], form: Form) -> Planned {
    let stores = form == Form::SearchStore;
    let (at, mut asked) = (if stores { 2 } else { 1 }, Asked::new());
    asked.target = stores.then(|| args[1].clone());
    match asked.options(form, args, at + 1) {
        Ok(()) => asked.plan(&args[at]),
        Err(error) => failing(&args[at], asked.centre, error),
    }
}

pub(crate) fn geosearch(args: &[Bytes]) -> Planned {
    search(args, Form::Search)
}

pub(crate) fn geosearchstore(args: &[Bytes]) -> Planned {
    search(args, Form::SearchStore)
}

fn around_position(args: &[Bytes], stores: bool) -> Planned {
    let mut asked = Asked::new();
    let mut read = || {
        asked.centre = Some(Centre::Position(position(&args[2], &args[3])?));
        asked.shape = Some(circle(&args[4], &args[5])?);
        asked.options(Form::Radius { stores }, args, 6)
    };
    match read() {
        Ok(()) => asked.plan(&args[1]),
        Err(error) => failing(&args[1], None, error),
    }
}

pub(crate) fn georadius(args: &[Bytes]) -> Planned {
    around_position(args, true)
}

pub(crate) fn georadius_ro(args: &[Bytes]) -> Planned {
    around_position(args, false)
}

fn around_member(args: &[Bytes], stores: bool) -> Planned {
    let mut asked = Asked::new();
    let centre = Some(Centre::Member(args[2].clone()));
    asked.centre.clone_from(&centre);
    match circle(&args[3], &args[4]) {
        Ok(shape) => asked.shape = Some(shape),
        // Where there is no such key nobody looks at the radius.
        Err(error) => {
            let without = asked.options(Form::Radius { stores }, args, 5);
            let missing = without.err().unwrap_or_else(|| match asked.target {
                Some(_) => Reply::Integer(0),
                None => Reply::Array(vec![]),
            });
            let scores = Scores { members: vec![args[2].clone()] };
            return Ok(Plan::write(
                args[1].clone(),
                &scores,
                |result| match scores_of(result)[..] {
                    _ if !result.applied => missing,
                    [None] => Reply::error(NO_MEMBER),
                    _ => error,
                },
            ));
        }
    }
    match asked.options(Form::Radius { stores }, args, 5) {
        Ok(()) => asked.plan(&args[1]),
        Err(error) => failing(&args[1], centre, error),
    }
}

pub(crate) fn georadiusbymember(args: &[Bytes]) -> Planned {
    around_member(args, true)
}

pub(crate) fn georadiusbymember_ro(args: &[Bytes]) -> Planned {
    around_member(args, false)
}

/// The key that `STORE` or `STOREDIST` names, where one does.
pub(crate) fn stored_key(args: &[Bytes], from: usize) -> Option<&Bytes> {
    let (mut found, mut at) = (None, from);
    while let Some(word) = args.get(at) {
        if (is(word, "store") || is(word, "storedist")) && at + 1 < args.len() {
            found = args.get(at + 1);
            at += 1;
        }
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> Option<Reply> {
        let args: Vec<Bytes> = line.split(' ').map(|word| Bytes::from(word.to_owned())).collect();
        let spec = crate::table::find(&args[0]).unwrap();
        let crate::table::Handler::Keys(plan) = spec.handler else { panic!("{line}") };
        match plan(&args) {
            Err(reply) => Some(reply),
            Ok(plan) => {
                let nothing = kvdb_model::WriteResult::default();
                let list = Typed::List(vec![]);
                let result = kvdb_model::WriteResult { reply: list, ..nothing };
                Some(plan.finish(vec![Ok(result)], 0)).filter(Reply::is_error)
            }
        }
    }

    #[test]
    fn what_is_wrong_is_told_in_the_words_of_redis() {
        for (line, problem) in [
            ("geoadd g 181 0 a", "invalid longitude,latitude pair 181.000000,0.000000"),
            ("geoadd g nx xx 1 1 a", "syntax error"),
            ("geoadd g 1 x a", "value is not a valid float"),
            ("geodist g a b cm", "unsupported unit provided. please use M, KM, FT, MI"),
            ("georadius g 1 1 x m", "need numeric radius"),
            ("georadius g 1 1 -1 m", "radius cannot be negative"),
            ("georadius g 1 1 1 m count 0", "COUNT must be > 0"),
            ("georadius g 1 1 1 m any", "the ANY argument requires COUNT argument"),
            (
                "georadius g 1 1 1 m withdist store d",
                "STORE option in GEORADIUS is not compatible with WITHDIST, WITHHASH and WITHCOORD options",
            ),
            ("georadius_ro g 1 1 1 m store d", "syntax error"),
            ("geosearch g fromlonlat 1 1 frommember a byradius 1 m", "syntax error"),
            ("geosearch g fromlonlat 1 1 bybox -1 1 m", "height or width cannot be negative"),
            (
                "geosearch g byradius 1 m asc count 1",
                "exactly one of FROMMEMBER or FROMLONLAT can be specified for geosearch",
            ),
            (
                "GEOSEARCH g fromlonlat 1 1 asc count 1",
                "exactly one of BYRADIUS and BYBOX can be specified for GEOSEARCH",
            ),
        ] {
            assert_eq!(refused(line), Some(Reply::error(problem)), "{line}");
        }
        assert_eq!(refused("geosearch g fromlonlat 1 1 byradius 1 m count 1 any desc"), None);
        assert_eq!(refused("georadiusbymember none a x m"), None, "there is no such key");
    }

    #[test]
    fn distances_and_coordinates_are_shown_as_redis_does() {
        for (distance, text) in
            [(0.0, "0.0000"), (166274.15156960033, "166274.1516"), (0.00006, "0.0001")]
        {
            assert_eq!(distance_text(distance), Reply::text(text));
        }
        for (degrees, text) in [
            (13.361_389_338_970_184, "13.36138933897018433"),
            (-0.5, "-0.5"),
            (180.0, "180"),
            (0.0, "0"),
        ] {
            assert_eq!(coordinate(degrees), Reply::Decimal(text.to_owned()));
        }
    }

    #[test]
    fn the_key_that_is_stored_to_is_found() {
        let keys = |line: &str| {
            let args: Vec<Bytes> =
                line.split(' ').map(|word| Bytes::from(word.to_owned())).collect();
            crate::table::find(&args[0]).unwrap().keys_of(&args).join(&b' ')
        };
        assert_eq!(keys("georadius g 1 1 1 m store a storedist b"), b"g b");
        assert_eq!(keys("georadiusbymember g store 1 m"), b"g");
        assert_eq!(keys("georadiusbymember g a 1 m count 1 store"), b"g");
    }
}
