//! The clocks of the machine. Nothing else reads them.

use kvdb_replication::Now;
use rustix::time::{ClockId, clock_gettime};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// For tests: names a file that holds by how many milliseconds this process's wall clock is wrong, or
/// `stand` for one that stands still. It may change at any time; none, or an empty one, means no shift.
/// (Libraries that fake the time don't reach a process that asks the kernel's own page.)
pub const SHIFT_FILE: &str = "KVDB_TEST_WALL_CLOCK_FILE";
const LOOK_EVERY: Duration = Duration::from_millis(20);

static SHIFT: OnceLock<Option<Arc<Shift>>> = OnceLock::new();

/// Now, by both clocks.
pub fn now() -> Now {
    Now { boot_us: boot_us(), wall_ms: wall_ms() }
}

/// Microseconds on the boot-time clock, which never jumps and counts suspended time.
pub fn boot_us() -> u64 {
    let boot = clock_gettime(ClockId::Boottime);
    boot.tv_sec as u64 * 1_000_000 + boot.tv_nsec as u64 / 1000
}

/// Milliseconds since 1970 by the wall clock. It may be wrong by any amount: see
/// [`crate::cluster_time`] for what time it is.
pub fn wall_ms() -> u64 {
    let real_ms = real_wall_ms();
    match SHIFT.get_or_init(Shift::of_environment) {
        None => real_ms,
        Some(shift) => shift.apply(real_ms),
    }
}

fn real_wall_ms() -> u64 {
    let wall = clock_gettime(ClockId::Realtime);
    wall.tv_sec as u64 * 1000 + wall.tv_nsec as u64 / 1_000_000
}

/// A wall clock that is wrong on purpose.
#[derive(Default)]
struct Shift {
    shift_ms: AtomicI64,
    /// What a clock that stands says; 0 for one that goes.
    stands_at_ms: AtomicI64,
}

impl Shift {
    fn of_environment() -> Option<Arc<Shift>> {
        let file = PathBuf::from(std::env::var_os(SHIFT_FILE)?);
        let shift = Arc::new(Shift::default());
        shift.read(&file);
        let kept = shift.clone();
        let reading = move || {
            loop {
                std::thread::sleep(LOOK_EVERY);
                kept.read(&file);
            }
        };
        std::thread::Builder::new().name("kvdb-clock".to_owned()).spawn(reading).ok()?;
        Some(shift)
    }

    fn read(&self, file: &Path) {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        match text.trim() {
            "stand" => {
                let now_ms = self.apply(real_wall_ms()) as i64;
                let _ = self.stands_at_ms.compare_exchange(
                    0,
                    now_ms,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
            }
            number => {
                self.stands_at_ms.store(0, Ordering::Relaxed);
                self.shift_ms.store(number.parse().unwrap_or_default(), Ordering::Relaxed);
            }
        }
    }

    fn apply(&self, real_ms: u64) -> u64 {
        match self.stands_at_ms.load(Ordering::Relaxed) {
            0 => real_ms.saturating_add_signed(self.shift_ms.load(Ordering::Relaxed)),
            stands_at_ms => stands_at_ms.cast_unsigned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shifted_clock_says_what_its_file_says() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("clock");
        let shift = Shift::default();
        shift.read(&file);
        assert_eq!(shift.apply(5_000), 5_000);
        std::fs::write(&file, "-3000\n").unwrap();
        shift.read(&file);
        assert_eq!(shift.apply(5_000), 2_000);
        assert_eq!(shift.apply(1_000), 0);
        std::fs::write(&file, "stand").unwrap();
        shift.read(&file);
        let stands_at_ms = shift.apply(5_000);
        assert_eq!(shift.apply(9_000), stands_at_ms);
        std::fs::write(&file, "").unwrap();
        shift.read(&file);
        assert_eq!(shift.apply(9_000), 9_000);
    }
}
