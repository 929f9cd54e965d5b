//! A store that is right by construction, driven at random: each operation takes effect at one
//! moment between its call and its return. And ways to make it wrong.

#![allow(dead_code, reason = "each test uses what it needs")]

use kvdb_checker::{
    Answer, Call, ClientId, Condition, Data, History, OpId, Previous, Recorder, Time, Version,
    Written,
};
use std::collections::BTreeMap;

/// A small generator of numbers (splitmix64): the tests depend on the seed alone.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    pub fn percent(&mut self, chance: u64) -> bool {
        self.roll(100) < chance
    }
}

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    pub seed: u64,
    pub operations: usize,
    pub clients: u64,
    pub keys: u64,
    /// Values are drawn from this many; 0 makes each value new.
    pub values: u64,
    pub unknown_percent: u64,
    pub mix: Mix,
    /// Whether answers carry versions.
    pub versions: bool,
    /// The chance, in a hundred thousand, that a read answers with what was there before the last
    /// write of its key.
    pub stale_reads: u64,
}

/// Which operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    GetPut,
    GetPutDelete,
    Everything,
    Counter,
}

impl Default for Workload {
    fn default() -> Self {
        Workload {
            seed: 1,
            operations: 1000,
            clients: 8,
            keys: 4,
            values: 0,
            unknown_percent: 3,
            mix: Mix::Everything,
            versions: false,
            stale_reads: 0,
        }
    }
}

#[derive(Clone, Default)]
struct Cell {
    value: Option<Data>,
    version: u64,
    before: Option<Data>,
}

/// An operation between its call and its return.
struct Flight {
    op: OpId,
    call: Call,
    /// Its answer, once it has taken effect.
    answer: Option<Answer>,
    lost: bool,
}

struct Store {
    cells: BTreeMap<Data, Cell>,
    version: u64,
    versions: bool,
}

impl Store {
    fn apply(&mut self, call: &Call, stale: bool) -> Answer {
        self.version += 1;
        let version = self.version;
        let told = self.versions;
        let key = call.register_key().expect("only plain keys").clone();
        let cell = self.cells.entry(key).or_default();
        let held = cell.value.clone();
        let (condition, new) = match call {
            Call::Get { .. } => {
                let value = if stale { cell.before.clone() } else { held };
                let version = told.then_some(Version(cell.version));
                return Answer::Got { value, version };
            }
            Call::Put { value, condition, .. } => (condition, Some(value.clone())),
            Call::Delete { condition, .. } => (condition, None),
            Call::Increment { delta, condition, .. } => {
                let number = held.as_ref().map_or(Some(0), Data::as_number);
                match number.and_then(|number| number.checked_add(*delta)) {
                    Some(sum) => (condition, Some(Data::from(sum.to_string()))),
                    None => return Answer::WrongValue,
                }
            }
            _ => unreachable!("only plain keys"),
        };
        let holds = match condition {
            None => true,
            Some(Condition::IfAbsent) => held.is_none(),
            Some(Condition::IfPresent) => held.is_some(),
            Some(Condition::IfValue(value)) => held.as_ref() == Some(value),
        };
        let applied = holds && (new.is_some() || held.is_some());
        let mut written = Written { applied: Some(applied), ..Written::default() };
        if version.is_multiple_of(5) {
            written.previous = Some(held.clone().map_or(Previous::Absent, Previous::Value));
        }
        if applied {
            if matches!(call, Call::Increment { .. }) {
                written.counter = new.as_ref().and_then(Data::as_number);
            }
            written.version = told.then_some(Version(version));
            *cell = Cell { value: new, version, before: held };
        }
        Answer::Written(written)
    }
}

/// Runs a workload.
pub fn run(workload: &Workload) -> History {
    let mut dice = Dice(workload.seed);
    let mut recorder = Recorder::new();
    let mut store = Store { cells: BTreeMap::new(), version: 0, versions: workload.versions };
    let mut flights: Vec<Option<Flight>> = (0..workload.clients).map(|_| None).collect();
    let mut adrift: Vec<Call> = Vec::new();
    let (mut time, mut begun) = (0, 0);
    loop {
        time += 1;
        if !adrift.is_empty() && dice.percent(2) {
            let late = adrift.swap_remove(dice.roll(adrift.len() as u64) as usize);
            store.apply(&late, false);
        }
        if begun == workload.operations && flights.iter().all(Option::is_none) {
            return recorder.finish();
        }
        let client = dice.roll(workload.clients) as usize;
        match &mut flights[client] {
            None if begun < workload.operations => {
                let call = draw(workload, &mut dice, begun);
                let op = recorder.call(ClientId(client as u64), call.clone(), Time(time));
                let lost = dice.percent(workload.unknown_percent);
                flights[client] = Some(Flight { op, call, answer: None, lost });
                begun += 1;
            }
            None => {}
            Some(flight) if flight.lost => {
                recorder.unknown(flight.op);
                match dice.roll(3) {
                    0 => adrift.push(flight.call.clone()),
                    1 => drop(store.apply(&flight.call, false)),
                    _ => {}
                }
                flights[client] = None;
            }
            Some(flight) => match flight.answer.take() {
                None => {
                    let stale = dice.roll(100_000) < workload.stale_reads;
                    flight.answer = Some(store.apply(&flight.call, stale));
                }
                Some(answer) => {
                    recorder.ok(flight.op, answer, Time(time));
                    flights[client] = None;
                }
            },
        }
    }
}

fn draw(workload: &Workload, dice: &mut Dice, serial: usize) -> Call {
    let key = Data::from(format!("k{}", dice.roll(workload.keys)));
    let value = |dice: &mut Dice| match workload.values {
        0 => Data::from(format!("v{serial}")),
        values => Data::from(dice.roll(values).to_string()),
    };
    let kind = match workload.mix {
        Mix::GetPut => dice.roll(2),
        Mix::GetPutDelete => dice.roll(3),
        Mix::Counter => dice.roll(2) * 3,
        Mix::Everything => dice.roll(6),
    };
    match kind {
        0 => Call::get(key),
        1 => Call::put(key, value(dice)),
        2 => Call::delete(key),
        3 => Call::increment(key, 1 + dice.roll(2) as i64),
        4 => {
            let expected = value(dice);
            Call::put_if(key, value(dice), Condition::IfValue(expected))
        }
        _ if dice.percent(50) => Call::put_if(key, value(dice), Condition::IfAbsent),
        _ => Call::put_if(key, value(dice), Condition::IfPresent),
    }
}

/// The history with the answer of one operation changed, if any can be.
pub fn spoil(history: &History, dice: &mut Dice) -> History {
    let mut events = history.events();
    let start = dice.roll(events.len().max(1) as u64) as usize;
    let count = events.len();
    for place in (start..count).chain(0..start) {
        if let kvdb_checker::Event::Ok { answer, .. } = &mut events[place]
            && change(answer, dice)
        {
            break;
        }
    }
    let mut spoilt = History::new();
    for event in events {
        spoilt.push(event).expect("the order of events is as before");
    }
    spoilt
}

fn change(answer: &mut Answer, dice: &mut Dice) -> bool {
    match answer {
        Answer::Got { value, .. } => {
            *value = match dice.roll(4) {
                0 => None,
                draw => Some(Data::from((draw - 1).to_string())),
            };
            true
        }
        Answer::Written(Written { counter: Some(counter), .. }) => {
            *counter += 1;
            true
        }
        Answer::Written(Written { applied: Some(applied), previous, .. }) => {
            *applied = !*applied;
            *previous = None;
            true
        }
        _ => false,
    }
}
