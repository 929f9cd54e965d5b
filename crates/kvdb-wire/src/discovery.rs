//! What a server tells of itself: reflection (`v1` and `v1alpha`, which older tools ask for) and
//! health, of the services that it serves and of no others.

use crate::proto;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_reflection::server::{Builder, v1, v1alpha};

const HEALTH: &str = "grpc.health.v1.Health";
const REFLECTION: &str = "grpc.reflection.v1.ServerReflection";
const REFLECTION_ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";

/// The services that describe those of these names, and themselves.
///
/// # Errors
/// If the compiled `.proto` files can't be read.
pub async fn describing(
    services: &[&str],
) -> Result<
    (
        HealthServer<impl Health>,
        v1::ServerReflectionServer<impl v1::ServerReflection>,
        v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection>,
    ),
    String,
> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let mut builders = [Builder::configure(), Builder::configure()];
    for name in services.iter().chain(&[HEALTH, REFLECTION, REFLECTION_ALPHA]) {
        health.set_service_status(name, ServingStatus::Serving).await;
        builders = builders.map(|builder| builder.with_service_name(*name));
    }
    let [new, old] = builders.map(|builder| {
        builder
            .include_reflection_service(false)
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(
                tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
            )
    });
    let new = new.build_v1().map_err(|error| error.to_string())?;
    let old = old.build_v1alpha().map_err(|error| error.to_string())?;
    Ok((health_service, new, old))
}
