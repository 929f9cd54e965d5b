//! The threads that serve the network.

use tokio::runtime::{Builder, Runtime};

/// A machine's cores are shared by the network, the other threads of the process, and what else
/// runs there. More threads than needed only make the batches smaller, and everything slower.
pub(crate) fn usual() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

/// A runtime on this many threads.
pub(crate) fn runtime(threads: usize) -> std::io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(threads).enable_all().build()
}
