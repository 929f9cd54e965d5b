//! Protobuf and gRPC code made from `proto/kvdb/v1`, and the conversions to and from the model.
//!
//! Protobuf types stop here: the cores know only `kvdb-model`. Everything that comes from outside
//! is checked while it is converted, and answered with the field and the limit that it broke.

mod convert;
pub mod discovery;
pub mod execute;
mod pack;
mod refusal;
pub mod requests;
mod tasks;
mod too_large;
pub mod transport;

pub use convert::{
    FieldError, client_tag_from, cluster_id_from, cluster_id_to, condition_from, descriptor_from,
    descriptor_to, generation_from, generation_to, history_from, history_to, map_change_from,
    map_change_to, map_delta_from, map_delta_to, new_keyspace_from, new_keyspace_to,
    node_status_from, node_status_to, partitioning_from, partitioning_to, previous_to,
    request_tag_from, role_from, role_to, shard_map_from, shard_map_to, token_from, type_to,
};
pub use pack::pack;
pub use refusal::{
    HIGHEST_SYNCED, refusal_about, refusal_from_proto, refusal_from_status, refusal_to_proto,
    status_about, status_of,
};
pub use tasks::{shard_task_from, shard_task_to};

/// The generated code.
#[expect(missing_docs, reason = "generated; the .proto files hold the comments")]
#[allow(clippy::all, rustdoc::all)]
pub mod proto {
    tonic::include_proto!("kvdb.v1");

    /// The compiled `.proto` files, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kvdb.bin"));
}
