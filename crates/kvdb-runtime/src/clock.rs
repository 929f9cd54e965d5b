//! The clocks of the machine.

use kvdb_replication::Now;
use rustix::time::{ClockId, clock_gettime};

/// Both clocks, now.
pub fn now() -> Now {
    Now { boot_us: boot_us(), wall_ms: wall_ms() }
}

/// Microseconds since the machine was started, those included in which it was suspended.
pub fn boot_us() -> u64 {
    let boot = clock_gettime(ClockId::Boottime);
    boot.tv_sec as u64 * 1_000_000 + boot.tv_nsec as u64 / 1000
}

/// Milliseconds since 1970 by the wall clock.
pub fn wall_ms() -> u64 {
    let wall = clock_gettime(ClockId::Realtime);
    wall.tv_sec as u64 * 1000 + wall.tv_nsec as u64 / 1_000_000
}
