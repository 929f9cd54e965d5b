//! Ending in order: a token that all parts of a process watch.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Tells when to stop. Clones watch the same event.
#[derive(Clone, Debug)]
pub struct Shutdown {
    sender: watch::Sender<bool>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Shutdown { sender: watch::Sender::new(false) }
    }
}

impl Shutdown {
    /// A token that SIGTERM and SIGINT trigger. A second signal ends the process at once.
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
                    std::process::exit(130);
                }
                tracing::info!("stopping");
                token.trigger();
            }
        });
        Ok(shutdown)
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
