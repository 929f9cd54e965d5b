//! Positions on the earth, how they become scores, and how far they are from each other.
//!
//! A score is 52 bits: 26 of the latitude and 26 of the longitude in turn, the longitude's in front, each as
//! a share of its range. So positions that are close to each other mostly have scores that are. Whatever is
//! computed here is stored or decides what is: sine and its like come from `libm`, which is the same on every
//! machine, not from the system's library.

use crate::zset::Score;

/// Furthest from the equator that a position may be, in degrees.
pub const LATITUDE_MOST: f64 = 85.051_128_78;
/// Furthest from Greenwich that a position may be, in degrees.
pub const LONGITUDE_MOST: f64 = 180.0;
/// Bits of each coordinate in a score.
pub(super) const STEPS: u32 = 26;
/// In metres.
const EARTH_RADIUS: f64 = 6_372_797.560_856;
const RADIANS: f64 = std::f64::consts::PI / 180.0;

/// A position, in degrees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Position {
    /// East of Greenwich.
    pub longitude: f64,
    /// North of the equator.
    pub latitude: f64,
}

/// A part of the earth: all positions whose scores begin with these bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    latitude: u32,
    longitude: u32,
    /// Bits of each coordinate.
    pub(super) steps: u32,
}

/// The ends of a part of the earth, in degrees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bounds {
    pub(super) west: f64,
    pub(super) south: f64,
    pub(super) east: f64,
    pub(super) north: f64,
}

impl Position {
    /// A position, unless it is out of range.
    pub fn new(longitude: f64, latitude: f64) -> Option<Self> {
        let is_valid = longitude.abs() <= LONGITUDE_MOST && latitude.abs() <= LATITUDE_MOST;
        is_valid.then_some(Position { longitude, latitude })
    }

    /// The score of a member that stands here.
    pub fn score(self) -> Score {
        Score::or_zero(Cell::of(self, STEPS).bits() as f64)
    }

    /// The position that a score stands for: the middle of all that have the same.
    pub fn of_score(score: f64) -> Self {
        let cell = Cell::of_bits(score as u64, STEPS);
        let bounds = cell.bounds();
        let middle = |low: f64, high: f64, most: f64| f64::midpoint(low, high).clamp(-most, most);
        Position {
            longitude: middle(bounds.west, bounds.east, LONGITUDE_MOST),
            latitude: middle(bounds.south, bounds.north, LATITUDE_MOST),
        }
    }

    /// The distance to another one along the surface, in metres.
    pub fn distance(self, other: Position) -> f64 {
        let half_longitude =
            libm::sin((other.longitude * RADIANS - self.longitude * RADIANS) / 2.0);
        if half_longitude == 0.0 {
            return self.distance_north(other);
        }
        let (one, two) = (self.latitude * RADIANS, other.latitude * RADIANS);
        let half_latitude = libm::sin((two - one) / 2.0);
        let haversine = half_latitude * half_latitude
            + libm::cos(one) * libm::cos(two) * half_longitude * half_longitude;
        2.0 * EARTH_RADIUS * libm::asin(haversine.sqrt())
    }

    /// The distance along a meridian, in metres.
    pub(super) fn distance_north(self, other: Position) -> f64 {
        EARTH_RADIUS * (other.latitude * RADIANS - self.latitude * RADIANS).abs()
    }

    /// The 11 letters by which others know the position (a geohash, <https://en.wikipedia.org/wiki/Geohash>).
    pub fn geohash(self) -> String {
        const LETTERS: &[u8; 32] = b"0123456789bcdefghjkmnpqrstuvwxyz";
        // Others' latitudes go to the poles.
        let latitude = share(self.latitude, 90.0, STEPS);
        let bits = interleave(latitude, share(self.longitude, LONGITUDE_MOST, STEPS));
        let letter = |place: u32| match place {
            // Of the last one there are only two bits.
            10 => '0',
            place => {
                let five = bits >> (2 * STEPS - (place + 1) * 5) & 31;
                char::from(LETTERS[five as usize])
            }
        };
        (0..11).map(letter).collect()
    }
}

/// A coordinate as a share of its range, from the lowest up, in so many bits.
fn share(degrees: f64, most: f64, steps: u32) -> u32 {
    ((degrees + most) / (2.0 * most) * f64::from(1u32 << steps)) as u32
}

/// The bits of the second behind those of the first, in turn.
fn interleave(even: u32, odd: u32) -> u64 {
    spread(even) | spread(odd) << 1
}

fn spread(bits: u32) -> u64 {
    let mut spread = u64::from(bits);
    for (shift, mask) in [
        (16, 0x0000_ffff_0000_ffff),
        (8, 0x00ff_00ff_00ff_00ff),
        (4, 0x0f0f_0f0f_0f0f_0f0f),
        (2, 0x3333_3333_3333_3333),
        (1, 0x5555_5555_5555_5555),
    ] {
        spread = (spread | spread << shift) & mask;
    }
    spread
}

fn gather(bits: u64) -> u32 {
    let mut gathered = bits & 0x5555_5555_5555_5555;
    for (shift, mask) in [
        (1, 0x3333_3333_3333_3333),
        (2, 0x0f0f_0f0f_0f0f_0f0f),
        (4, 0x00ff_00ff_00ff_00ff),
        (8, 0x0000_ffff_0000_ffff),
        (16, 0x0000_0000_ffff_ffff),
    ] {
        gathered = (gathered | gathered >> shift) & mask;
    }
    gathered as u32
}

impl Cell {
    /// As Redis computes it: at the end of a range it is beyond the last one.
    fn of(position: Position, steps: u32) -> Self {
        Cell {
            latitude: share(position.latitude, LATITUDE_MOST, steps),
            longitude: share(position.longitude, LONGITUDE_MOST, steps),
            steps,
        }
    }

    /// The cell that a position lies in; the end of the range belongs to the last one.
    pub(super) fn around(position: Position, steps: u32) -> Self {
        let Cell { latitude, longitude, .. } = Cell::of(position, steps);
        let last = (1u32 << steps) - 1;
        Cell { latitude: latitude.min(last), longitude: longitude.min(last), steps }
    }

    fn of_bits(bits: u64, steps: u32) -> Self {
        Cell { latitude: gather(bits), longitude: gather(bits >> 1), steps }
    }

    fn bits(self) -> u64 {
        interleave(self.latitude, self.longitude)
    }

    pub(super) fn bounds(self) -> Bounds {
        let degrees =
            |at: u64, most: f64| at as f64 / f64::from(1u32 << self.steps) * (most - -most) + -most;
        let (latitude, longitude) = (u64::from(self.latitude), u64::from(self.longitude));
        Bounds {
            west: degrees(longitude, LONGITUDE_MOST),
            south: degrees(latitude, LATITUDE_MOST),
            east: degrees(longitude + 1, LONGITUDE_MOST),
            north: degrees(latitude + 1, LATITUDE_MOST),
        }
    }

    /// The one so many cells to the north and east, around the earth.
    pub(super) fn moved(self, north: i32, east: i32) -> Self {
        let mask = (1u32 << self.steps) - 1;
        let go = |at: u32, by: i32| if by == 0 { at } else { at.wrapping_add_signed(by) & mask };
        Cell { latitude: go(self.latitude, north), longitude: go(self.longitude, east), ..self }
    }

    /// The scores in it: from one to below another.
    pub(super) fn scores(self) -> (Score, Score) {
        let shift = 2 * (STEPS - self.steps);
        let (first, next) = (self.bits() << shift, (self.bits() + 1) << shift);
        (Score::or_zero(first as f64), Score::or_zero(next as f64))
    }
}

/// What lies within so many metres to the north and east of a position, and back.
pub(super) fn box_around(centre: Position, height: f64, width: f64) -> Bounds {
    let Position { longitude, latitude } = centre;
    let north = height / EARTH_RADIUS / RADIANS;
    // Meridians are closer to each other towards the poles.
    let towards_pole = if latitude < 0.0 { latitude - north } else { latitude + north };
    let east = width / EARTH_RADIUS / libm::cos(towards_pole * RADIANS) / RADIANS;
    Bounds {
        west: longitude - east,
        south: latitude - north,
        east: longitude + east,
        north: latitude + north,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn position(longitude: f64, latitude: f64) -> Position {
        Position::new(longitude, latitude).unwrap()
    }

    #[test]
    fn scores_distances_and_geohashes_are_those_of_redis() {
        let palermo = position(13.361389, 38.115556);
        let catania = position(15.087269, 37.502669);
        assert_eq!(palermo.score().number(), 3479099956230698.0);
        assert_eq!(catania.score().number(), 3479447370796909.0);
        let (one, two) = (3479099956230698.0, 3479447370796909.0);
        let distance = Position::of_score(one).distance(Position::of_score(two));
        assert_eq!(format!("{distance:.4}"), "166274.1516");
        assert_eq!(Position::of_score(one).geohash(), "sqc8b49rny0");
        assert_eq!(Position::of_score(two).geohash(), "sqdtr74hyu0");
        assert_eq!(Position::of_score(one).longitude, 13.361_389_338_970_184);
        assert_eq!(Position::of_score(one).latitude, 38.115_556_395_496_3);
    }

    #[test]
    fn positions_out_of_range_are_refused() {
        for (longitude, latitude) in
            [(180.1, 0.0), (0.0, 85.1), (f64::NAN, 0.0), (0.0, f64::INFINITY)]
        {
            assert_eq!(Position::new(longitude, latitude), None);
        }
        assert!(Position::new(-180.0, -LATITUDE_MOST).is_some());
    }

    proptest! {
        #[test]
        fn bits_survive_interleaving(latitude in any::<u32>(), longitude in any::<u32>()) {
            let cell = Cell { latitude, longitude, steps: STEPS };
            prop_assert_eq!(Cell::of_bits(cell.bits(), STEPS), cell);
        }

        #[test]
        fn a_position_is_where_its_score_says(longitude in -180.0..180.0, latitude in -85.0..85.0) {
            let there = position(longitude, latitude);
            let back = Position::of_score(there.score().number());
            prop_assert!(there.distance(back) < 1.0);
            let cell = Cell::of(there, 12);
            let (low, high) = cell.scores();
            prop_assert!(low <= there.score() && there.score() < high);
            let bounds = cell.bounds();
            prop_assert!(bounds.west <= longitude && longitude <= bounds.east);
            prop_assert!(bounds.south <= latitude && latitude <= bounds.north);
        }

        #[test]
        fn any_score_is_somewhere(score in any::<f64>()) {
            let somewhere = Position::of_score(score);
            prop_assert!(Position::new(somewhere.longitude, somewhere.latitude).is_some());
        }
    }
}
