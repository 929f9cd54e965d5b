//! Commands on places: sorted sets whose scores stand for positions on the earth.
//!
//! A position is a score ([`Position`]), so members are added, moved and removed as those of any sorted set
//! are. What is here finds those within a distance or a box: it looks through the cells around the centre, a
//! range of scores each, and keeps what is close enough.

mod position;
#[cfg(test)]
mod tests;

pub use position::{LATITUDE_MOST, LONGITUDE_MOST, Position};

use crate::changes::Direction;
use crate::command::{CHANGED_MOST, Command, Done, Effect, Fault, ReplySize, flag, wrong};
use crate::order::Order;
use crate::record::Type;
use crate::tx::Tx;
use crate::zset::{Score, score_in, store_members};
use bytes::Bytes;
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::wrong_value::{NO_SUCH_MEMBER, TOO_MANY_ELEMENTS, TOO_WIDE};
use kvdb_model::{CommandId, Reply};
use position::{Cell, STEPS, box_around};

/// Most members that one command looks at. A part of the state machine: fixed.
const LOOKED_AT_MOST: u64 = 1_000_000;
/// Distance and place of a member, in a reply.
const POINT_BYTES: usize = 24;
/// About half of the way around the earth, in metres: that far one cell is all.
const HALF_WAY_AROUND: f64 = 20_037_726.37;

/// What distances are told in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Metres.
    Metres,
    /// Kilometres.
    Kilometres,
    /// Feet.
    Feet,
    /// Miles.
    Miles,
}

impl Unit {
    /// Metres in one.
    pub fn metres(self) -> f64 {
        match self {
            Unit::Metres => 1.0,
            Unit::Kilometres => 1000.0,
            Unit::Feet => 0.3048,
            Unit::Miles => 1609.34,
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        match input.u8()? {
            0 => Ok(Unit::Metres),
            1 => Ok(Unit::Kilometres),
            2 => Ok(Unit::Feet),
            3 => Ok(Unit::Miles),
            other => Err(DecodeError::unknown_tag("unit of distances", other)),
        }
    }
}

/// What is searched around.
#[derive(Clone, Debug, PartialEq)]
pub enum Centre {
    /// Where a member is.
    Member(Bytes),
    /// A position.
    Position(Position),
}

/// How far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A circle of this radius.
    Circle(Score),
    /// A box of this width and height.
    Box(Score, Score),
}

/// The order of what is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// As it was met.
    None,
    /// The closest first.
    Ascending,
    /// The furthest first.
    Descending,
}

/// Which members are searched for.
#[derive(Clone, Debug, PartialEq)]
pub struct Area {
    /// Around what.
    pub centre: Centre,
    /// How far, in `unit`.
    pub shape: Shape,
    /// What distances are given and told in.
    pub unit: Unit,
    /// In which order.
    pub sort: Sort,
    /// No more than so many; 0 for all.
    pub count: u64,
    /// Stop as soon as there are so many, whichever they are.
    pub any: bool,
}

struct Point {
    member: Bytes,
    score: f64,
    /// In metres.
    distance: f64,
}

impl Area {
    fn encode(&self, out: &mut Writer) {
        match &self.centre {
            Centre::Member(member) => {
                out.u8(0);
                out.bytes(member);
            }
            Centre::Position(position) => {
                out.u8(1);
                out.u64(position.longitude.to_bits());
                out.u64(position.latitude.to_bits());
            }
        }
        match self.shape {
            Shape::Circle(radius) => {
                out.u8(0);
                radius.encode(out);
            }
            Shape::Box(width, height) => {
                out.u8(1);
                width.encode(out);
                height.encode(out);
            }
        }
        out.u8(self.unit as u8);
        out.u8(self.sort as u8);
        out.varint(self.count);
        out.u8(u8::from(self.any));
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let centre = match input.u8()? {
            0 => Centre::Member(input.bytes()?),
            1 => {
                let mut degrees = || Ok(f64::from_bits(input.u64()?));
                let position = Position::new(degrees()?, degrees()?);
                Centre::Position(position.ok_or(DecodeError::NumberOutOfRange)?)
            }
            other => return Err(DecodeError::unknown_tag("centre of an area", other)),
        };
        let shape = match input.u8()? {
            0 => Shape::Circle(Score::decode(input)?),
            1 => Shape::Box(Score::decode(input)?, Score::decode(input)?),
            other => return Err(DecodeError::unknown_tag("shape of an area", other)),
        };
        let unit = Unit::decode(input)?;
        let sort = match input.u8()? {
            0 => Sort::None,
            1 => Sort::Ascending,
            2 => Sort::Descending,
            other => return Err(DecodeError::unknown_tag("order of places", other)),
        };
        Ok(Area { centre, shape, unit, sort, count: input.varint()?, any: flag(input)? })
    }

    /// What is found in the set of a key; `None` if there is no such key.
    fn search(&self, tx: &mut Tx<'_>, place: usize) -> Result<Option<Vec<Point>>, Fault> {
        let Some(mut set) = tx.collection(place, Type::SortedSet)? else { return Ok(None) };
        let centre = match &self.centre {
            Centre::Position(position) => *position,
            Centre::Member(member) => {
                let score = score_in(tx, place, &mut set, member)?;
                Position::of_score(score.ok_or(wrong(NO_SUCH_MEMBER))?.number())
            }
        };
        let most = if self.any { self.count } else { 0 };
        let mut found = Found { most, ..Found::default() };
        let mut rows = tx.order(place, &mut set);
        let mut seen: Vec<Cell> = Vec::new();
        for cell in self.cells(centre) {
            // Around the poles, and where cells are large, some are the same.
            if !seen.contains(&cell) && !found.is_full() {
                self.look_into(cell, centre, &mut rows, &mut found)?;
                seen.push(cell);
            }
        }
        let mut points = found.points;
        let is_sorted = self.count > 0 && self.sort == Sort::None && !self.any;
        match self.sort {
            Sort::None if !is_sorted => {}
            Sort::Descending => points.sort_by(|a, b| b.distance.total_cmp(&a.distance)),
            Sort::None | Sort::Ascending => {
                points.sort_by(|a, b| a.distance.total_cmp(&b.distance));
            }
        }
        if self.count > 0 {
            points.truncate(usize::try_from(self.count).unwrap_or(usize::MAX));
        }
        Ok(Some(points))
    }

    /// Width and height of half of the box around it, and its radius, in metres.
    fn reach(&self) -> (f64, f64, f64) {
        let metres = self.unit.metres();
        match self.shape {
            Shape::Circle(radius) => {
                let radius = radius.number() * metres;
                (radius, radius, radius)
            }
            Shape::Box(width, height) => {
                let (width, height) = (width.number() / 2.0, height.number() / 2.0);
                let corner = (width * width + height * height).sqrt();
                (width * metres, height * metres, corner * metres)
            }
        }
    }

    /// The cells that it lies in: that of the centre, and those around it.
    fn cells(&self, centre: Position) -> Vec<Cell> {
        let (width, height, radius) = self.reach();
        let around = box_around(centre, height, width);
        let mut steps = steps_for(radius, centre.latitude);
        let is_too_narrow = |steps: u32| {
            let cell = Cell::around(centre, steps);
            cell.moved(1, 0).bounds().north < around.north
                || cell.moved(-1, 0).bounds().south > around.south
                || cell.moved(0, 1).bounds().east < around.east
                || cell.moved(0, -1).bounds().west > around.west
        };
        if steps > 1 && is_too_narrow(steps) {
            steps -= 1;
        }
        let cell = Cell::around(centre, steps);
        let bounds = cell.bounds();
        // Where the box ends inside the cell, what is beyond the cell isn't looked at.
        let is_needed = |north: i32, east: i32| {
            steps < 2
                || !((north < 0 && bounds.south < around.south)
                    || (north > 0 && bounds.north > around.north)
                    || (east < 0 && bounds.west < around.west)
                    || (east > 0 && bounds.east > around.east))
        };
        let ways = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)];
        let needed = ways.into_iter().filter(|(north, east)| is_needed(*north, *east));
        needed.map(|(north, east)| cell.moved(north, east)).collect()
    }

    fn look_into(
        &self,
        cell: Cell,
        centre: Position,
        rows: &mut Order<'_, '_>,
        found: &mut Found,
    ) -> Result<(), Fault> {
        let (from, to) = cell.scores();
        let mut problem = None;
        rows.scan(Some(&from.to_bytes()), Direction::Ascending, |row, _| {
            let (score, member) = crate::zset::parse_row(&row);
            if score >= to {
                return Ok(false);
            }
            problem = found.look().err();
            if let Some(distance) = self.distance_within(centre, score.number()) {
                found.points.push(Point { member, score: score.number(), distance });
            }
            Ok(problem.is_none() && !found.is_full())
        })?;
        problem.map_or(Ok(()), Err)
    }

    /// How far a member is, in metres, if it is inside.
    fn distance_within(&self, centre: Position, score: f64) -> Option<f64> {
        let there = Position::of_score(score);
        let metres = self.unit.metres();
        match self.shape {
            Shape::Circle(radius) => {
                let distance = centre.distance(there);
                (distance <= radius.number() * metres).then_some(distance)
            }
            Shape::Box(width, height) => {
                let beside = Position { longitude: centre.longitude, ..there };
                let is_inside = centre.distance_north(there) <= height.number() * metres / 2.0
                    && there.distance(beside) <= width.number() * metres / 2.0;
                is_inside.then(|| centre.distance(there))
            }
        }
    }
}

/// Bits of the coordinates of cells so large that those around the centre hold all within a radius.
fn steps_for(radius: f64, latitude: f64) -> u32 {
    if radius == 0.0 {
        return STEPS;
    }
    let (mut reach, mut steps) = (radius, 1i32);
    // A radius that is next to nothing ends the loop too.
    while reach < HALF_WAY_AROUND && steps < 64 {
        reach *= 2.0;
        steps += 1;
    }
    steps -= 2;
    if latitude.abs() > 66.0 {
        steps -= 1;
    }
    if latitude.abs() > 80.0 {
        steps -= 1;
    }
    steps.clamp(1, STEPS as i32) as u32
}

/// What was found so far.
#[derive(Default)]
struct Found {
    points: Vec<Point>,
    most: u64,
    looked_at: u64,
}

impl Found {
    fn is_full(&self) -> bool {
        self.most > 0 && self.points.len() as u64 >= self.most
    }

    fn look(&mut self) -> Result<(), Fault> {
        self.looked_at += 1;
        if self.looked_at > LOOKED_AT_MOST { Err(wrong(TOO_WIDE)) } else { Ok(()) }
    }
}

/// Searches an area. Replies with a list of lists: a member, its distance in the unit, and its score.
#[derive(Clone, Debug, PartialEq)]
pub struct Search {
    /// Where.
    pub area: Area,
}

impl Command for Search {
    const ID: CommandId = CommandId(0x0620);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, out: &mut Writer) {
        self.area.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Search { area: Area::decode(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let found = self.area.search(tx, 0)?;
        let applied = found.is_some();
        let points = found.unwrap_or_default();
        let mut size = ReplySize::default();
        for point in &points {
            size.add(point.member.len() + POINT_BYTES);
            size.check()?;
        }
        let metres = self.area.unit.metres();
        let shown = |point: Point| {
            let distance = Reply::double(point.distance / metres);
            Reply::List(vec![Reply::Bytes(point.member), distance, Reply::double(point.score)])
        };
        Ok(Done { applied, reply: Reply::List(points.into_iter().map(shown).collect()) })
    }
}

/// Searches an area of the other key's set and stores what is found under the own key, whatever that held.
/// Replies with the number of members; without any the own key is removed.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchInto {
    /// Where.
    pub area: Area,
    /// With their distances, in the unit, as scores.
    pub distances: bool,
}

impl Command for SearchInto {
    const ID: CommandId = CommandId(0x0621);
    const EFFECT: Effect = Effect::Grow;
    const OTHERS: (usize, usize) = (1, 1);

    fn encode(&self, out: &mut Writer) {
        out.u8(u8::from(self.distances));
        self.area.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(SearchInto { distances: flag(input)?, area: Area::decode(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let points = self.area.search(tx, 1)?.unwrap_or_default();
        if points.len() as u64 > CHANGED_MOST {
            return Err(wrong(TOO_MANY_ELEMENTS));
        }
        let metres = self.area.unit.metres();
        let scored = points.into_iter().map(|point| {
            let score = if self.distances { point.distance / metres } else { point.score };
            (Score::or_zero(score), point.member)
        });
        store_members(tx, scored)
    }
}
