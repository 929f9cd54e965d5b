//! The threads that serve the network, and how a server's threads are scheduled.

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
