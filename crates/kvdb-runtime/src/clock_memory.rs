//! Cluster time over a restart of the process.
//!
//! The boot clock goes on while a process is down. So what it said beside cluster time, written down every
//! two seconds, tells a process that starts again what time it is, before it has heard anybody. Without
//! that, whoever starts where everything was down must wait until most clocks agree, and for some seconds if
//! they don't.
//!
//! It holds for one boot of the machine (which the kernel numbers), and for some minutes: for longer the
//! rate of the boot clock isn't relied on. Nothing is synced: what a boot of the machine doesn't survive
//! needn't, either.

use crate::clock;
use crate::cluster_time::ClusterTime;
use crate::shutdown::Shutdown;
use std::path::{Path, PathBuf};
use std::time::Duration;

const FILE: &str = "clock";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const NOTE_EVERY: Duration = Duration::from_secs(2);
/// A note is of use for so long.
const LASTS_US: u64 = 5 * 60 * 1_000_000;

/// What is written down: cluster time and the boot clock at one moment.
fn note(boot_id: &str, cluster_ms: u64, boot_us: u64) -> String {
    format!("{boot_id} {cluster_ms} {boot_us}\n")
}

/// Cluster time now, from what was written down.
fn recall(note: &str, boot_id: &str, boot_us: u64) -> Option<u64> {
    let mut words = note.split_whitespace();
    let is_this_boot = !boot_id.is_empty() && words.next()? == boot_id;
    let cluster_ms: u64 = words.next()?.parse().ok()?;
    let noted_us: u64 = words.next()?.parse().ok()?;
    let passed_us = boot_us.checked_sub(noted_us).filter(|passed_us| *passed_us < LASTS_US)?;
    is_this_boot.then(|| cluster_ms.saturating_add(passed_us / 1000))
}

fn boot_id() -> String {
    std::fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned()
}

/// Begins cluster time as it is known from before, if it is. Returns it.
pub fn begin(time: &ClusterTime, data: &Path) -> Option<u64> {
    let note = std::fs::read_to_string(data.join(FILE)).ok()?;
    let boot_us = clock::boot_us();
    let now_ms = recall(&note, &boot_id(), boot_us)?;
    time.with(|clock| clock.begin(now_ms, boot_us));
    tracing::info!("cluster time is known from before the restart");
    Some(now_ms)
}

/// Writes cluster time down again and again.
pub async fn keep(time: ClusterTime, data: PathBuf, shutdown: Shutdown) {
    let boot_id = boot_id();
    let mut interval = tokio::time::interval(NOTE_EVERY);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = shutdown.wait() => return,
        }
        let Some(cluster_ms) = time.now_ms() else { continue };
        let note = note(&boot_id, cluster_ms, clock::boot_us());
        let data = data.clone();
        // A disk that hangs holds up nothing but this.
        let written = tokio::task::spawn_blocking(move || {
            let new = data.join("clock.new");
            std::fs::write(&new, note).and_then(|()| std::fs::rename(&new, data.join(FILE)))
        });
        if let Ok(Err(error)) = written.await {
            tracing::debug!(%error, "cluster time can't be written down");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE_US: u64 = 60_000_000;

    #[test]
    fn time_goes_on_over_a_restart_within_one_boot_of_the_machine() {
        let text = note("b-1", 1_000_000, 5 * MINUTE_US);
        assert_eq!(recall(&text, "b-1", 6 * MINUTE_US), Some(1_060_000));
        assert_eq!(recall(&text, "b-2", 6 * MINUTE_US), None, "another boot");
        assert_eq!(recall(&text, "", 6 * MINUTE_US), None, "nobody knows which boot it is");
        assert_eq!(recall(&text, "b-1", 10 * MINUTE_US), None, "too long ago");
        assert_eq!(recall(&text, "b-1", 4 * MINUTE_US), None, "the boot clock went back");
    }

    #[test]
    fn junk_tells_no_time() {
        for junk in ["", "b-1", "b-1 x 7", "b-1 7", "b-1 7 -1", "b-1 99999999999999999999 1"] {
            assert_eq!(recall(junk, "b-1", MINUTE_US), None, "{junk}");
        }
        assert_eq!(recall("b-1 18446744073709551615 0", "b-1", MINUTE_US), Some(u64::MAX));
    }

    #[test]
    fn what_was_written_down_is_known_to_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let before = ClusterTime::default();
        before.with(|clock| clock.begin(1_800_000_000_000, clock::boot_us()));
        let file = folder.path().join(FILE);
        runtime.block_on(async {
            let keeping = keep(before, folder.path().to_owned(), Shutdown::default());
            let written = async {
                while !file.exists() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                () = keeping => {}
                () = written => {}
            }
        });
        let after = ClusterTime::default();
        assert!(begin(&after, folder.path()).is_some());
        assert!(after.now_ms().unwrap() >= 1_800_000_000_000);
        assert_eq!(begin(&ClusterTime::default(), &folder.path().join("other")), None);
    }
}
