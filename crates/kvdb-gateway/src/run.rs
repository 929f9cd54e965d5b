//! A gateway, from its configuration to its end.

use crate::admission::{Admission, MOST_BYTES};
use crate::ages::Ages;
use crate::control::Control;
use crate::figures::KeyspaceFigures;
use crate::lanes::Lanes;
use crate::link::Links;
use crate::metrics::Metrics;
use crate::route::Gateway;
use crate::watch::Watches;
use kvdb_model::Limits;
use kvdb_runtime::cluster_time::{self, ClusterTime};
use kvdb_runtime::coordinators::Coordinators;
use kvdb_runtime::dial::{About, Introduction};
use kvdb_runtime::files;
use kvdb_runtime::http::{self, Readiness};
use kvdb_runtime::listen::{self, ListenError};
use kvdb_runtime::map::ClusterMap;
use kvdb_runtime::shutdown::Shutdown;
use kvdb_runtime::start::Met;
use kvdb_wire::proto::coordinator_server::{self, CoordinatorServer};
use kvdb_wire::proto::identity_server;
use kvdb_wire::proto::kv_server::{self, KvServer};
use kvdb_wire::{discovery, transport};
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use thiserror::Error;

/// How long a stopping gateway usually lets requests finish.
pub const GRACE: Duration = Duration::from_secs(2);

/// What a gateway needs to know.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// gRPC address; none to serve no gRPC.
    pub listen: Option<String>,
    /// Address for the Redis protocol; none to not serve it.
    pub redis: Option<String>,
    /// HTTP address; none to serve no HTTP.
    pub http: Option<String>,
    /// The coordinators' gRPC addresses.
    pub coordinators: Vec<String>,
    /// Requests under way at a time; more are refused.
    pub most_requests: usize,
    /// How long requests may take to finish when it stops.
    pub grace: Duration,
}

/// Why a gateway can't start.
#[derive(Debug, Error)]
pub enum GatewayError {
    /// The configuration.
    #[error("{0}")]
    Config(String),
    /// A listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// Runs a gateway until it is told to stop.
///
/// # Errors
/// [`GatewayError`].
pub async fn run(config: GatewayConfig, shutdown: Shutdown) -> Result<(), GatewayError> {
    if config.coordinators.is_empty() {
        let problem = "--coordinators names none; the form is host:port,host:port";
        return Err(GatewayError::Config(problem.to_owned()));
    }
    if config.listen.is_none() && config.redis.is_none() {
        let problem = "--listen and --redis are both off: a gateway needs one of them";
        return Err(GatewayError::Config(problem.to_owned()));
    }
    let grpc_listener = listen::bind_unless_off("gRPC", config.listen.as_deref()).await?;
    let redis_listener = listen::bind_unless_off("Redis", config.redis.as_deref()).await?;
    let http_listener = listen::bind_unless_off("HTTP", config.http.as_deref()).await?;
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| GatewayError::Config(error.to_string()))?;
    let random = u128::from_be_bytes(random);

    let mut registry = Registry::default();
    let time = ClusterTime::new(&mut registry);
    let metrics = Metrics::new(&mut registry);
    let figures = KeyspaceFigures::new(&mut registry);
    let readiness = Readiness::default();
    readiness.wait_for("map", "the coordinators have not sent the shard map yet");
    let map = ClusterMap::default();
    let coordinators = Coordinators::new(config.coordinators.clone());
    let gateway = Gateway {
        map: map.clone(),
        links: Links::default(),
        lanes: Lanes::new(random as u64),
        ages: Ages::default(),
        time: time.clone(),
        limits: Limits::default(),
        admission: Admission::new(config.most_requests, MOST_BYTES),
        metrics: metrics.clone(),
        figures,
        coordinators: coordinators.clone(),
        watches: Watches::default(),
        seeds: Arc::new(AtomicU64::new((random >> 64) as u64)),
    };

    let redis = redis_listener.map(|listener| {
        tokio::spawn(crate::redis::serve(gateway.clone(), listener, shutdown.clone()))
    });
    let services =
        [kv_server::SERVICE_NAME, coordinator_server::SERVICE_NAME, identity_server::SERVICE_NAME];
    let (health, reflection, reflection_alpha) =
        discovery::describing(&services).await.map_err(GatewayError::Config)?;
    let kv = KvServer::new(gateway.clone())
        .max_decoding_message_size(transport::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(usize::MAX);
    // Whoever takes it for a node or a coordinator is told.
    let naming = coordinators.clone();
    let introduction = Introduction {
        role: None,
        token: 0,
        known: Arc::default(),
        told: Arc::new(|_| {}),
        coordinators: Arc::new(move || naming.told()),
        met: Met::default(),
        about: Arc::new(About::default),
        left_behind: Arc::new(|_| None),
    };
    let stopping = shutdown.clone();
    let router = transport::server()
        .add_service(kv)
        .add_service(CoordinatorServer::new(Control(gateway)))
        .add_service(introduction.server())
        .add_service(health)
        .add_service(reflection)
        .add_service(reflection_alpha);
    let server = grpc_listener.map(|listener| {
        let stopping = async move { stopping.wait().await };
        tokio::spawn(router.serve_with_incoming_shutdown(files::incoming(listener), stopping))
    });
    if let Some(listener) = http_listener {
        tokio::spawn(http::serve(listener, readiness.clone(), registry, shutdown.clone()));
    }
    let address = config.listen.clone().or_else(|| config.redis.clone()).unwrap_or_default();
    let process = move || kvdb_wire::proto::SyncClockRequest {
        process: "gateway".to_owned(),
        address: address.clone(),
        ..Default::default()
    };
    let following = cluster_time::follow(
        coordinators.clone(),
        process,
        time,
        || true,
        |_| {},
        shutdown.clone(),
    );
    tokio::spawn(following);
    tokio::spawn(map.clone().follow(coordinators, shutdown.clone()));
    tracing::info!("{}", listen::UNPROTECTED);
    tracing::info!(
        listen = config.listen.as_deref().unwrap_or(listen::OFF),
        redis = config.redis.as_deref().unwrap_or(listen::OFF),
        http = config.http.as_deref().unwrap_or(listen::OFF),
        "gateway runs"
    );

    let mut changes = map.changes();
    loop {
        let routes = map.routes.load_full();
        metrics.map_version.set(routes.version().0 as i64);
        if routes.version().0 > 0 {
            readiness.ready("map");
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = shutdown.wait() => break,
        }
    }
    if let Some(redis) = redis {
        redis.abort();
    }
    if let Some(mut server) = server
        && tokio::time::timeout(config.grace, &mut server).await.is_err()
    {
        server.abort();
    }
    tracing::info!("gateway has stopped");
    Ok(())
}
