//! `/metrics`, `/healthz` and `/readyz`.

use crate::files::HttpListener;
use crate::process;
use crate::shutdown::Shutdown;
use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, StatusCode};
use axum::routing::get;
use parking_lot::RwLock;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::net::TcpListener;

/// What scrapers know the text format by.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a process still waits for before it can serve.
#[derive(Clone, Default)]
pub struct Readiness {
    waiting: Arc<RwLock<BTreeMap<&'static str, String>>>,
}

impl Readiness {
    /// `part` isn't ready because of `why`.
    pub fn wait_for(&self, part: &'static str, why: impl Into<String>) {
        self.waiting.write().insert(part, why.into());
    }

    /// `part` is ready.
    pub fn ready(&self, part: &'static str) {
        self.waiting.write().remove(part);
    }

    /// Whether everything is.
    pub fn is_ready(&self) -> bool {
        self.waiting.read().is_empty()
    }

    fn describe(&self) -> String {
        let waiting = self.waiting.read();
        waiting.iter().map(|(part, why)| format!("{part}: {why}\n")).collect()
    }
}

#[derive(Clone)]
struct Shared {
    readiness: Readiness,
    registry: Arc<Registry>,
}

/// Serves until it is time to stop.
///
/// # Errors
/// If the listener fails.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    registry: Registry,
    shutdown: Shutdown,
) -> std::io::Result<()> {
    let mut registry = registry;
    process::register(&mut registry);
    let shared = Shared { readiness, registry: Arc::new(registry) };
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(shared);
    let listener = HttpListener(listener);
    axum::serve(listener, router).with_graceful_shutdown(async move { shutdown.wait().await }).await
}

async fn readyz(State(shared): State<Shared>) -> (StatusCode, String) {
    if shared.readiness.is_ready() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, shared.readiness.describe())
    }
}

async fn metrics(
    State(shared): State<Shared>,
) -> Result<([(HeaderName, &'static str); 1], String), StatusCode> {
    let mut out = String::new();
    prometheus_client::encoding::text::encode(&mut out, &shared.registry)
        .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(([(CONTENT_TYPE, OPEN_METRICS)], out))
}
