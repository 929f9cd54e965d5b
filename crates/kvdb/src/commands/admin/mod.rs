//! `kvdb admin`: what the cluster is, and changes of it.

mod change;
mod show;

use crate::cli::ClientArgs;
use crate::exit::Failure;
use kvdb_client::{AdminClient, Options};
use kvdb_model::{NodeStatus, Partitioning};

/// Look at the cluster and change it.
#[derive(clap::Subcommand)]
#[command(after_help = "\
Examples:
  kvdb admin init-shards --shards 8
  kvdb admin shards
  kvdb admin set-leader 3 2
  kvdb admin status --json

Works against a gateway, or straight against coordinators:
  kvdb admin status --endpoint 127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103")]
pub(crate) enum Command {
    /// The coordinators, and how the cluster is
    Status,
    /// All nodes
    Nodes,
    /// All shards: ranges, leaders, replicas
    Shards,
    /// All keyspaces
    Keyspaces,
    /// Make the keyspace `default`; does nothing if it is there
    InitShards(InitShards),
    /// Make a keyspace
    CreateKeyspace(CreateKeyspace),
    /// Take a keyspace away, with all that is in it
    DropKeyspace(DropKeyspace),
    /// Register a node ahead of its first start
    RegisterNode(RegisterNode),
    /// Set the status of a node by hand
    SetNodeStatus(SetNodeStatus),
    /// Have the leader of a shard hand over to another of its nodes
    SetLeader(SetLeader),
}

#[derive(clap::Args)]
pub(crate) struct InitShards {
    /// How many shards
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=16384))]
    shards: u32,
    /// Replicas of each; 0 = 3, or as many as there are nodes if fewer
    #[arg(long, default_value_t = 0)]
    replicas: u32,
}

#[derive(clap::Args)]
pub(crate) struct CreateKeyspace {
    /// Its name
    name: String,
    /// How its keys are laid out
    #[arg(long, value_enum, default_value_t = Layout::Hash)]
    partitioning: Layout,
    /// How many shards; 0 = 8, and always 1 for a range keyspace
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=16384))]
    shards: u32,
    /// Replicas of each; 0 = 3, or as many as there are nodes if fewer
    #[arg(long, default_value_t = 0)]
    replicas: u32,
}

#[derive(clap::Args)]
pub(crate) struct DropKeyspace {
    /// Its name
    name: String,
}

#[derive(clap::Args)]
pub(crate) struct RegisterNode {
    /// Where the node will listen, host:port
    #[arg(long, value_name = "HOST:PORT")]
    address: String,
    /// Its failure domain
    #[arg(long, default_value = "", hide_default_value = true)]
    zone: String,
    /// What the node will call itself by: 32 hexadecimal digits; random if not given
    #[arg(long, value_parser = parse_token, value_name = "HEX")]
    token: Option<u128>,
}

#[derive(clap::Args)]
pub(crate) struct SetNodeStatus {
    /// The node's id
    #[arg(value_name = "NODE")]
    node_id: u64,
    /// The status
    #[arg(value_enum)]
    status: Status,
}

#[derive(clap::Args)]
pub(crate) struct SetLeader {
    /// The shard's id
    #[arg(value_name = "SHARD")]
    shard_id: u64,
    /// The node that shall lead; it must have a voting replica
    #[arg(value_name = "NODE")]
    node_id: u64,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Layout {
    /// By hash slot: even load, unordered scans
    Hash,
    /// By the key itself: ordered scans
    Range,
}

impl From<Layout> for Partitioning {
    fn from(layout: Layout) -> Self {
        match layout {
            Layout::Hash => Partitioning::Hash,
            Layout::Range => Partitioning::Range,
        }
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Status {
    Alive,
    Suspect,
    Dead,
    Draining,
    Removed,
}

impl From<Status> for NodeStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Alive => NodeStatus::Alive,
            Status::Suspect => NodeStatus::Suspect,
            Status::Dead => NodeStatus::Dead,
            Status::Draining => NodeStatus::Draining,
            Status::Removed => NodeStatus::Removed,
        }
    }
}

fn parse_token(text: &str) -> Result<u128, String> {
    let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match u128::from_str_radix(text, 16) {
        Ok(token) if is_hex && token != 0 => Ok(token),
        _ => Err("a token is 32 hexadecimal digits, not all of them 0".to_owned()),
    }
}

pub(super) async fn run(command: Command, args: &ClientArgs) -> Result<(), Failure> {
    let admin = AdminClient::new(Options { connections: 1, ..args.options() })?;
    match command {
        Command::Status => show::status(&admin, args.json).await,
        Command::Nodes => show::nodes(&admin, args.json).await,
        Command::Shards => show::shards(&admin, args.json).await,
        Command::Keyspaces => show::keyspaces(&admin, args.json).await,
        Command::InitShards(command) => change::init_shards(&admin, command, args.json).await,
        Command::CreateKeyspace(command) => {
            change::create_keyspace(&admin, command, args.json).await
        }
        Command::DropKeyspace(command) => change::drop_keyspace(&admin, command, args.json).await,
        Command::RegisterNode(command) => change::register_node(&admin, command, args.json).await,
        Command::SetNodeStatus(command) => {
            change::set_node_status(&admin, command, args.json).await
        }
        Command::SetLeader(command) => change::set_leader(&admin, command, args.json).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_32_digits() {
        assert_eq!(parse_token(&format!("{:032x}", 7)), Ok(7));
        let signed = format!("+{}", "1".repeat(31));
        for bad in ["7", "", &"0".repeat(32), &"x".repeat(32), &signed] {
            assert!(parse_token(bad).is_err(), "{bad}");
        }
    }
}
