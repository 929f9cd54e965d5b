use super::*;
use crate::command::tests::survives;
use crate::overlay::tests::Trial;
use crate::zset::{Add, AddRule, Length, Range, Select, Selection};
use kvdb_model::{Refusal, wrong_value};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn score(number: f64) -> Score {
    Score::new(number).unwrap()
}

fn add(places: impl IntoIterator<Item = (String, Position)>) -> Add {
    let member = |(name, position): (String, Position)| (position.score(), Bytes::from(name));
    let members = places.into_iter().map(member).collect();
    Add { rule: AddRule::default(), count_changed: false, members }
}

fn sicily() -> Add {
    let place = |name: &str, longitude, latitude| {
        (name.to_owned(), Position::new(longitude, latitude).unwrap())
    };
    add([
        place("Palermo", 13.361389, 38.115556),
        place("Catania", 15.087269, 37.502669),
        place("edge1", 12.758489, 38.788135),
        place("edge2", 17.241510, 38.788135),
    ])
}

fn area(shape: Shape) -> Area {
    Area {
        centre: Centre::Position(Position::new(15.0, 37.0).unwrap()),
        shape,
        unit: Unit::Kilometres,
        sort: Sort::Ascending,
        count: 0,
        any: false,
    }
}

fn found(reply: &Reply) -> Vec<(String, f64)> {
    let Reply::List(points) = reply else { panic!("it is a list") };
    let point = |point: &Reply| {
        let Reply::List(parts) = point else { panic!("it is a list") };
        let name = String::from_utf8(parts[0].bytes().unwrap().to_vec()).unwrap();
        (name, (parts[1].as_double().unwrap() * 1e4).round() / 1e4)
    };
    points.iter().map(point).collect()
}

fn names(reply: &Reply) -> String {
    found(reply).into_iter().map(|(name, _)| name).collect::<Vec<_>>().join(" ")
}

#[test]
fn what_is_within_a_radius_or_a_box_is_found() {
    let mut trial = Trial::new(&[]);
    trial.run(&sicily(), &["g"]).unwrap();
    let circle = area(Shape::Circle(score(200.0)));
    let near = trial.run(&Search { area: circle.clone() }, &["g"]).unwrap().reply;
    let expected = [("Catania".to_owned(), 56.4413), ("Palermo".to_owned(), 190.4424)];
    assert_eq!(found(&near), expected);
    let square = area(Shape::Box(score(400.0), score(400.0)));
    let near = trial.run(&Search { area: square.clone() }, &["g"]).unwrap().reply;
    assert_eq!(names(&near), "Catania Palermo edge2 edge1");
    let furthest = Area { sort: Sort::Descending, count: 1, ..square };
    let near = trial.run(&Search { area: furthest }, &["g"]).unwrap().reply;
    assert_eq!(names(&near), "edge1");
    let closest = Area { sort: Sort::None, count: 1, ..circle.clone() };
    let near = trial.run(&Search { area: closest.clone() }, &["g"]).unwrap().reply;
    assert_eq!(names(&near), "Catania");
    let any = trial.run(&Search { area: Area { any: true, ..closest } }, &["g"]).unwrap().reply;
    assert_eq!(found(&any).len(), 1);
    let around = |name: &'static str| Area {
        centre: Centre::Member(name.into()),
        shape: Shape::Circle(score(0.0)),
        ..circle.clone()
    };
    let own = trial.run(&Search { area: around("edge1") }, &["g"]).unwrap().reply;
    assert_eq!(names(&own), "edge1");
    let nowhere = trial.run(&Search { area: around("nobody") }, &["g"]);
    assert!(matches!(nowhere, Err(Refusal::WrongValue(wrong_value::NO_SUCH_MEMBER))));
    let absent = trial.run(&Search { area: around("nobody") }, &["none"]).unwrap();
    assert_eq!((absent.applied, absent.reply), (false, Reply::List(vec![])));
}

#[test]
fn what_is_found_is_stored_by_position_or_by_distance() {
    let mut trial = Trial::new(&[]);
    trial.run(&sicily(), &["g"]).unwrap();
    let circle = area(Shape::Circle(score(200.0)));
    let all = Select {
        selection: Selection { range: Range::Ranks(0, -1), reverse: false, skip: 0, most: None },
        with_scores: true,
    };
    for (distances, first) in [(false, 3479099956230698.0), (true, 56.4412578701582)] {
        let into = SearchInto { area: circle.clone(), distances };
        assert_eq!(trial.run(&into, &["d", "g"]).unwrap().reply, Reply::Integer(2));
        let Reply::Map(pairs) = trial.run(&all, &["d"]).unwrap().reply else { panic!() };
        let stored = pairs[0].1.as_double().unwrap();
        assert!((stored - first).abs() < 1e-9, "{stored}");
    }
    let nothing = Area { shape: Shape::Circle(score(1.0)), ..circle };
    let into = SearchInto { area: nothing, distances: false };
    assert!(trial.run(&into, &["d", "g"]).unwrap().applied);
    assert_eq!(trial.run(&Length, &["d"]).unwrap().reply, Reply::Integer(0));
}

fn any_position() -> impl Strategy<Value = Position> {
    let near_edges = prop_oneof![Just(-180.0), Just(180.0), 179.0..180.0, -180.0..-179.0];
    let longitude = prop_oneof![3 => -180.0..180.0, 2 => -1.0..1.0, 1 => near_edges];
    let near_poles = prop_oneof![80.0..85.0, -85.0..-80.0];
    let latitude = prop_oneof![3 => -85.0..85.0, 2 => -1.0..1.0, 1 => near_poles];
    (longitude, latitude)
        .prop_map(|(longitude, latitude)| Position::new(longitude, latitude).unwrap())
}

fn any_shape() -> impl Strategy<Value = Shape> {
    let length = || prop_oneof![0.0..10.0, 0.0..1000.0, 0.0..8000.0].prop_map(score);
    prop_oneof![
        2 => length().prop_map(Shape::Circle),
        1 => (length(), length()).prop_map(|(width, height)| Shape::Box(width, height)),
    ]
}

proptest! {
    #[test]
    fn searches_survive_encoding(
        position in any_position(), shape in any_shape(), count in any::<u64>(), any in any::<bool>(),
        name in prop::collection::vec(any::<u8>(), 0..5),
    ) {
        let around = [Centre::Position(position), Centre::Member(name.into())];
        for centre in around {
            let area = Area { centre, shape, unit: Unit::Miles, sort: Sort::Descending, count, any };
            survives(&Search { area: area.clone() });
            survives(&SearchInto { area, distances: any });
        }
    }

    /// Away from the poles: what is across a pole isn't looked for, as in Redis. Nor is what stands at the
    /// very end of the longitudes, of which Redis makes a score beyond all cells.
    #[test]
    fn all_within_a_circle_are_found_and_none_else(
        centre in any_position(),
        places in prop::collection::vec(any_position(), 1..60),
        near in prop::collection::vec((-9.0..9.0, -9.0..9.0), 0..60),
        radius in prop_oneof![0.0..20.0, 0.0..500.0, 0.0..2000.0],
        filler in prop::sample::select(vec![0, 200]),
    ) {
        let centre = Position { latitude: centre.latitude.clamp(-60.0, 60.0), ..centre };
        let near = near.into_iter().filter_map(|(east, north)| {
            Position::new(centre.longitude + east, centre.latitude + north)
        });
        let filler = (0..filler).map(|number| Position::new(f64::from(number) / 2.0, 70.0).unwrap());
        let places = places.into_iter().chain(near).chain(filler);
        let places: Vec<_> = places.filter(|place| place.longitude < 180.0).collect();
        let named = places.iter().enumerate().map(|(at, place)| (format!("p{at}"), *place));
        let mut trial = Trial::new(&[]);
        trial.run(&add(named.clone()), &["g"]).unwrap();
        let area = Area { centre: Centre::Position(centre), ..area(Shape::Circle(score(radius))) };
        let reply = trial.run(&Search { area }, &["g"]).unwrap().reply;
        let seen: BTreeSet<_> = found(&reply).into_iter().map(|(name, _)| name).collect();
        let inside = named.filter(|(_, place)| {
            let there = Position::of_score(place.score().number());
            centre.distance(there) <= radius * 1000.0
        });
        let expected: BTreeSet<_> = inside.map(|(name, _)| name).collect();
        prop_assert_eq!(seen, expected);
    }
}
