//! Ending in order: a token that all parts of a process watch.

use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Times that a directory which others still write into is tried to be removed.
const MOST_ROUNDS: u32 = 100;

/// Tells when to stop. Clones watch the same event.
#[derive(Clone, Debug)]
pub struct Shutdown {
    sender: watch::Sender<bool>,
    /// What a second signal removes, since nothing else will.
    temporary: Arc<Mutex<Option<PathBuf>>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Shutdown { sender: watch::Sender::new(false), temporary: Arc::default() }
    }
}

impl Shutdown {
    /// A token that SIGTERM and SIGINT trigger. A second signal ends the process at once, but for
    /// the removal of a temporary directory.
    ///
    /// # Errors
    /// If the handlers can't be installed.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Shutdown::default();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let token = shutdown.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if token.is_triggered() {
                    token.remove_temporary();
                    std::process::exit(130);
                }
                tracing::info!("stopping");
                token.trigger();
            }
        });
        Ok(shutdown)
    }

    /// A directory to remove if the process is ended by a second signal.
    pub fn remove_when_forced(&self, folder: &Path) {
        *self.temporary.lock() = Some(folder.to_owned());
    }

    /// Removes the temporary directory. Others still write into it: what they add meanwhile takes
    /// another round.
    fn remove_temporary(&self) {
        let Some(folder) = self.temporary.lock().take() else { return };
        for _ in 0..MOST_ROUNDS {
            match std::fs::remove_dir_all(&folder) {
                Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
                _ => return,
            }
        }
    }

    /// Stop now.
    pub fn trigger(&self) {
        self.sender.send_replace(true);
    }

    /// Whether it is time to stop.
    pub fn is_triggered(&self) -> bool {
        *self.sender.borrow()
    }

    /// Waits until it is time to stop.
    pub async fn wait(&self) {
        let mut receiver = self.sender.subscribe();
        // The sender lives in `self`: the wait ends by the event only.
        let _ = receiver.wait_for(|stop| *stop).await;
    }
}
