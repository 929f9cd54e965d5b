//! The threads that serve the network, how a server's threads are scheduled, and the size of its pages
//! of memory.

use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

/// As many network threads as there are cores: what a server needs at most.
pub(crate) fn of_a_server() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Half the cores: a command shares the machine with the servers that it talks to, as often as not.
pub(crate) fn of_a_client() -> usize {
    (of_a_server() / 2).max(1)
}

/// A runtime on this many threads.
pub(crate) fn runtime(threads: usize) -> std::io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(threads).enable_all().build()
}

/// Memory beyond which huge pages are worth what they take.
const LARGE_BYTES: u64 = 256 << 20;
/// Between two looks at the memory of a small process.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Has the system give memory in small pages at first: huge ones, of which a few bytes are used, make
/// three quarters of the memory of a server that has little to do. One that holds much gets them.
/// Without the system's leave it stays as it is.
///
/// It runs before `main`, and before the allocator takes its first memory (its own constructor has no
/// priority). It allocates nothing.
extern "C" fn use_small_pages() {
    let _ = set_huge_pages(false);
}

#[used]
// SAFETY: the section holds pointers to functions of this kind, called once, in the order of names.
#[unsafe(link_section = ".init_array.00101")]
static BEFORE_MAIN: extern "C" fn() = use_small_pages;

/// For a process that doesn't stay: huge pages cost less time.
pub(crate) fn use_huge_pages() {
    if let Err(error) = set_huge_pages(true) {
        tracing::debug!(%error, "pages of memory keep their size");
    }
}

/// Waits until the process holds much, and lets it have huge pages from then on.
pub(crate) async fn use_huge_pages_when_large() {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    while resident_bytes().is_some_and(|bytes| bytes < LARGE_BYTES) {
        looks.tick().await;
    }
    use_huge_pages();
}

fn resident_bytes() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(pages.split(' ').nth(1)?.parse::<u64>().ok()? * 4096)
}

fn set_huge_pages(allowed: bool) -> std::io::Result<()> {
    let (disabled, unused): (libc::c_ulong, libc::c_ulong) = (u64::from(!allowed), 0);
    // SAFETY: the call takes numbers alone, and changes nothing but how this process gets memory.
    let result = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, disabled, unused, unused, unused) };
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Has this thread, and those that it starts, run in larger pieces (SCHED_BATCH): one that is woken
/// doesn't push another aside. A server's threads wake each other for every batch of work; on few
/// cores each wake-up would otherwise cut the batch before it short. Without the system's leave it
/// stays as it is.
pub(crate) fn run_in_batches() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call reads one struct, which outlives it, and changes nothing but the calling
    // thread's own scheduling.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &parameters) };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, "threads keep their usual scheduling");
    }
}
