//! The newest generation of coordinators that a process has met ([`Generation`]).
//!
//! `GENERATION`, in the data directory of a node: crc32c (u32 LE) over the rest, then number (u64) and nonce
//! (u128), big endian; none in the first generation. Replaced as a whole and synced before anything of a new
//! generation is taken. `shard-map-before.bin` is the map as the node had seen it by then, until the
//! coordinators have it: the lost ones may have told nodes what the recovered one never heard.

use crate::clock;
use crate::identity::{IdentityError, replace};
use kvdb_model::{Generation, GenerationOrder, MapVersion, ShardMap};
use kvdb_wire::{proto, shard_map_from, shard_map_to};
use parking_lot::Mutex;
use prost::Message as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FILE: &str = "GENERATION";
const MAP_BEFORE: &str = "shard-map-before.bin";

/// What a process has met. Clones share it.
#[derive(Clone, Default)]
pub struct Generations {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// `None` for a process without a data directory.
    folder: Option<PathBuf>,
    state: Mutex<State>,
    /// Held while a generation is taken up.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    newest: Generation,
    before: Option<ShardMap>,
    /// The map that was kept at an earlier start.
    remembered: Option<ShardMap>,
    /// When a leader of that generation has answered last, by the boot clock; 0 if none has.
    heard_us: u64,
}

impl Generations {
    /// What is known from an earlier start.
    ///
    /// # Errors
    /// [`IdentityError`]: without the file, coordinators that were left behind would be listened to.
    pub fn open(folder: &Path) -> Result<Self, IdentityError> {
        let path = folder.join(FILE);
        let newest = match fs::read(&path) {
            Ok(content) => decode(&content).ok_or_else(|| IdentityError::Damaged(path.clone()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Generation::default(),
            Err(source) => return Err(IdentityError::Io { path, source }),
        };
        let before = fs::read(folder.join(MAP_BEFORE)).ok();
        let before = before.and_then(|content| proto::ShardMap::decode(&content[..]).ok());
        let before = before.and_then(|map| shard_map_from(map).ok());
        let state = State { newest, before, ..State::default() };
        let shared = Shared {
            folder: Some(folder.to_owned()),
            state: Mutex::new(state),
            turn: tokio::sync::Mutex::default(),
        };
        Ok(Generations { shared: Arc::new(shared) })
    }

    /// The newest that was met.
    pub fn newest(&self) -> Generation {
        self.shared.state.lock().newest
    }

    /// Coordinators of some generation have answered. A newer one is kept, durably, with the map as it is known
    /// by then.
    ///
    /// # Errors
    /// Why they must not be listened to.
    pub async fn meet(
        &self,
        theirs: Generation,
        map: impl FnOnce() -> ShardMap,
    ) -> Result<(), String> {
        match check(self.newest(), theirs)? {
            GenerationOrder::Newer => {}
            _ => return Ok(()),
        }
        let _turn = self.shared.turn.lock().await;
        let own = self.newest();
        match check(own, theirs)? {
            GenerationOrder::Newer => {}
            _ => return Ok(()),
        }
        // A process that knows no map yet has nothing to tell.
        let tells = |map: &ShardMap| map.generation == own && map.version > MapVersion(0);
        let remembered = self.shared.state.lock().remembered.take();
        let before = Some(map()).filter(tells).or(remembered.filter(tells));
        if let Some(folder) = self.shared.folder.clone() {
            let encoded = before.as_ref().map(|map| shard_map_to(map).encode_to_vec());
            // The disk may hang.
            let writing = tokio::task::spawn_blocking(move || write(&folder, encoded, theirs));
            let written = writing.await.map_err(|error| error.to_string())?;
            written.map_err(|error| format!("the generation can't be kept: {error}"))?;
        }
        let mut state = self.shared.state.lock();
        (state.newest, state.heard_us) = (theirs, 0);
        state.before = before;
        tracing::warn!(
            generation = %theirs,
            "the coordinators were recovered from one of them alone: earlier ones aren't listened to any more"
        );
        Ok(())
    }

    /// The map that was kept at an earlier start: what is known until there is a newer one.
    pub fn remember(&self, map: ShardMap) {
        self.shared.state.lock().remembered = Some(map);
    }

    /// A leader of the newest generation has answered.
    pub fn is_heard(&self) {
        self.shared.state.lock().heard_us = clock::boot_us();
    }

    /// How long ago that was, in milliseconds.
    pub fn silent_ms(&self) -> Option<u64> {
        let heard_us = self.shared.state.lock().heard_us;
        (heard_us > 0).then(|| clock::boot_us().saturating_sub(heard_us) / 1000)
    }

    /// The map of the generation before, if it hasn't been told yet.
    pub fn map_before(&self) -> Option<ShardMap> {
        self.shared.state.lock().before.clone()
    }

    /// The coordinators have what this process had to tell.
    pub fn has_told(&self) {
        if self.shared.state.lock().before.take().is_some()
            && let Some(folder) = &self.shared.folder
        {
            // One that stays is told once more.
            let _ = fs::remove_file(folder.join(MAP_BEFORE));
        }
    }
}

/// Why coordinators of a generation aren't listened to, in whole sentences.
///
/// # Errors
/// That.
pub fn check(own: Generation, theirs: Generation) -> Result<GenerationOrder, String> {
    match own.compare(&theirs) {
        GenerationOrder::Foreign if own.number == theirs.number => Err(format!(
            "these coordinators are of generation {theirs}, and others of generation {own} were met before: two \
             coordinators were recovered alone, each by itself. Stop one of the two for good; if the other isn't \
             listened to, run it once more with --recover-alone"
        )),
        GenerationOrder::Foreign => Err(format!(
            "these coordinators are of generation {theirs}, and the group goes on in generation {own}: they were left \
             behind when it was recovered from one of them alone, or run on an older copy of their directories. Stop \
             them for good"
        )),
        order => Ok(order),
    }
}

fn write(folder: &Path, before: Option<Vec<u8>>, generation: Generation) -> io::Result<()> {
    // First what would be lost with the map that is taken next.
    if let Some(map) = before {
        replace(&folder.join(MAP_BEFORE), &map)?;
    }
    replace(&folder.join(FILE), &encode(generation))
}

fn encode(generation: Generation) -> Vec<u8> {
    let mut content = generation.number.to_be_bytes().to_vec();
    content.extend(generation.nonce.to_be_bytes());
    [&crc32c::crc32c(&content).to_le_bytes()[..], &content].concat()
}

fn decode(content: &[u8]) -> Option<Generation> {
    let (crc, rest) = content.split_first_chunk::<4>()?;
    let (number, nonce) = rest.split_first_chunk::<8>()?;
    let nonce = nonce.try_into().ok()?;
    (u32::from_le_bytes(*crc) == crc32c::crc32c(rest)).then_some(Generation {
        number: u64::from_be_bytes(*number),
        nonce: u128::from_be_bytes(nonce),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::ClusterId;

    fn generation(number: u64, nonce: u128) -> Generation {
        Generation { number, nonce }
    }

    fn map(version: u64, generation: Generation) -> ShardMap {
        let version = MapVersion(version);
        ShardMap { cluster_id: ClusterId(7), generation, version, ..ShardMap::default() }
    }

    #[tokio::test]
    async fn a_generation_that_was_met_is_remembered_and_earlier_ones_are_turned_away() {
        let folder = tempfile::tempdir().unwrap();
        let first = Generation::default();
        let met = Generations::open(folder.path()).unwrap();
        met.meet(first, || panic!("nothing has changed")).await.unwrap();
        met.meet(generation(1, 9), || map(5, first)).await.unwrap();
        for met in [met, Generations::open(folder.path()).unwrap()] {
            assert_eq!(met.newest(), generation(1, 9));
            let earlier = met.meet(first, || panic!("it is refused")).await.unwrap_err();
            assert!(
                earlier.contains("generation 0") && earlier.contains("left behind"),
                "{earlier}"
            );
            let other = met.meet(generation(1, 8), || panic!("it is refused")).await.unwrap_err();
            assert!(other.contains("each by itself"), "{other}");
        }
    }

    #[tokio::test]
    async fn the_map_from_before_is_kept_until_it_was_told() {
        let folder = tempfile::tempdir().unwrap();
        let first = Generation::default();
        let met = Generations::open(folder.path()).unwrap();
        met.meet(generation(1, 9), || map(5, first)).await.unwrap();
        let again = Generations::open(folder.path()).unwrap();
        assert_eq!(again.map_before(), Some(map(5, first)));
        again.has_told();
        assert_eq!(again.map_before(), None);
        assert_eq!(Generations::open(folder.path()).unwrap().map_before(), None);
        // A map of another generation, or none, says nothing of the lost coordinators.
        again.meet(generation(2, 1), || map(9, first)).await.unwrap();
        assert_eq!(again.map_before(), None);
        // Before it has heard anything, a process that was started again tells what it had kept.
        again.remember(map(12, generation(2, 1)));
        again.meet(generation(3, 1), || map(0, first)).await.unwrap();
        assert_eq!(again.map_before(), Some(map(12, generation(2, 1))));
    }

    #[test]
    fn a_damaged_generation_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let content = encode(generation(3, 12345));
        for bit in 0..content.len() * 8 {
            let mut flipped = content.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(folder.path().join(FILE), flipped).unwrap();
            assert!(Generations::open(folder.path()).is_err(), "bit {bit}");
        }
        fs::write(folder.path().join(FILE), &content).unwrap();
        assert_eq!(Generations::open(folder.path()).unwrap().newest(), generation(3, 12345));
    }
}
