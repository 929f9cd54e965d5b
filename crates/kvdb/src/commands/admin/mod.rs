//! `kvdb admin`: what the cluster is, and changes of it.

mod change;
mod coordinators;
mod history;
mod operate;
mod recover;
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
  kvdb admin create-keyspace orders --history 24h
  kvdb admin set-leader 3 2
  kvdb admin split 3 --wait
  kvdb admin drain 2 --wait
  kvdb admin plan
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
    /// Set how much of its past a keyspace keeps for watches
    SetHistory(SetHistory),
    /// Take a keyspace away, with all that is in it
    DropKeyspace(DropKeyspace),
    /// Register a node ahead of its first start
    RegisterNode(RegisterNode),
    /// Set the status of a node by hand
    SetNodeStatus(SetNodeStatus),
    /// Have the leader of a shard hand over to another of its nodes
    SetLeader(SetLeader),
    /// Have the replicas of a shard put on these nodes and nowhere else
    SetReplicas(SetReplicas),
    /// Move one replica of a shard to another node
    Move(Move),
    /// Cut a shard in two
    Split(Split),
    /// Empty a node: its replicas move elsewhere, and it gets no new ones
    Drain(Drain),
    /// Rebuild elsewhere what a node held, and remove it for good
    Replace(Replace),
    /// Spread replicas and leaders evenly
    Rebalance(Waiting),
    /// What rebalancing would do, and why; changes nothing
    Plan,
    /// Changes of the cluster, done and under way
    Operators(Operators),
    /// Call an operator off
    Cancel(Cancel),
    /// The coordinators: list them, add one, remove one
    Coordinators(Coordinators),
    /// Let a shard that has lost its majority for good live again from one replica
    ForceRecover(ForceRecover),
}

/// Let a shard that has lost its majority for good live again from one replica.
///
/// A shard needs more than half of its replicas. Where the nodes of the others are gone for good,
/// with their disks, this makes the replica on one node the shard, and everything that the others
/// had acknowledged and this one never got is lost. First it shows what is known of each replica and
/// what may be lost, and asks. Start the other nodes again instead wherever that can be done.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb admin shards                           which shards have lost their majority
  kvdb admin force-recover 3 --from 2         shows what would be done, and asks
  kvdb admin force-recover 3 --from 2 --yes --wait

Refused while a majority of the shard's nodes is there or may be (a node counts as gone when it is DEAD), while
an operator changes the shard, and from a replica whose files are lost. Afterwards the shard gets as many replicas
as it had, as far as there are nodes: start new ones, or `kvdb admin replace` the lost ones.")]
pub(crate) struct ForceRecover {
    /// The shard's id
    #[arg(value_name = "SHARD")]
    shard_id: u64,
    /// The node of the replica that it goes on from: the one whose log is longest
    #[arg(long, value_name = "NODE")]
    from: u64,
    /// Don't ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    waiting: Waiting,
}

/// The coordinators: list them, add one, remove one, say where one is.
///
/// They are replaced one by one while everything goes on: add the new one, then remove the old one.
/// A number is never used twice, and a coordinator whose data directory was lost can't come back
/// under its old one.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb admin coordinators                              who they are, and who leads
  kvdb coordinator --id 4 --listen 10.0.0.4:7104 --data DIR \\
    --peers 1=10.0.0.1:7101,2=10.0.0.2:7102,3=10.0.0.3:7103,4=10.0.0.4:7104
  kvdb admin coordinators add 4 10.0.0.4:7104 --wait   it joins, and votes when it has caught up
  kvdb admin coordinators remove 2 --wait              may be dead, or lead: it hands over first
  kvdb admin coordinators set-address 3 10.0.0.9:7103  it has moved, and the others haven't found it by themselves

Nodes and gateways are told of new ones as they run. At their next start they begin with what their --coordinators
names: name the new ones there.")]
pub(crate) struct Coordinators {
    #[command(subcommand)]
    change: Option<CoordinatorChange>,
}

#[derive(clap::Subcommand)]
pub(crate) enum CoordinatorChange {
    /// Who they are, and who leads
    List,
    /// Have one join that runs already, with an empty data directory
    Add {
        /// Its number, never used before
        #[arg(value_name = "ID")]
        id: u64,
        /// Where the others reach it
        #[arg(value_name = "HOST:PORT")]
        address: String,
        /// Until it votes
        #[arg(long)]
        wait: bool,
    },
    /// Say where one is now; it must answer there
    SetAddress {
        /// Its number
        #[arg(value_name = "ID")]
        id: u64,
        /// Where the others reach it
        #[arg(value_name = "HOST:PORT")]
        address: String,
    },
    /// Have one leave for good
    Remove {
        /// Its number
        #[arg(value_name = "ID")]
        id: u64,
        /// Until it is gone
        #[arg(long)]
        wait: bool,
    },
}

#[derive(clap::Args)]
pub(crate) struct Waiting {
    /// Follow it to its end, with a progress bar; fails if it does
    #[arg(long)]
    wait: bool,
}

#[derive(clap::Args)]
pub(crate) struct SetReplicas {
    /// The shard's id
    #[arg(value_name = "SHARD")]
    shard_id: u64,
    /// Distinct nodes
    #[arg(value_name = "NODE", required = true, num_args = 1..=7)]
    node_ids: Vec<u64>,
    #[command(flatten)]
    waiting: Waiting,
}

#[derive(clap::Args)]
pub(crate) struct Move {
    /// The shard's id
    #[arg(value_name = "SHARD")]
    shard_id: u64,
    /// The node that has a replica
    #[arg(value_name = "FROM")]
    from_node_id: u64,
    /// The node that gets it
    #[arg(value_name = "TO")]
    to_node_id: u64,
    #[command(flatten)]
    waiting: Waiting,
}

#[derive(clap::Args)]
pub(crate) struct Split {
    /// The shard's id
    #[arg(value_name = "SHARD")]
    shard_id: u64,
    /// The first key of the upper part; in a hash keyspace the split is at its slot
    /// [default: the middle slot]
    #[arg(long, value_name = "KEY")]
    at: Option<std::ffi::OsString>,
    #[command(flatten)]
    waiting: Waiting,
}

#[derive(clap::Args)]
pub(crate) struct Drain {
    /// The node's id
    #[arg(value_name = "NODE")]
    node_id: u64,
    #[command(flatten)]
    waiting: Waiting,
}

#[derive(clap::Args)]
pub(crate) struct Replace {
    /// The node's id
    #[arg(value_name = "NODE")]
    node_id: u64,
    #[command(flatten)]
    waiting: Waiting,
}

#[derive(clap::Args)]
pub(crate) struct Operators {
    /// Only those under way
    #[arg(long)]
    running: bool,
}

#[derive(clap::Args)]
pub(crate) struct Cancel {
    /// The operator's id
    #[arg(value_name = "ID")]
    operator_id: u64,
}

#[derive(clap::Args)]
pub(crate) struct InitShards {
    /// How many shards
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=16384))]
    shards: u32,
    /// Replicas wanted of each, 1 to 7; 0 = 3. While fewer nodes are alive there are fewer
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
    /// Replicas wanted of each, 1 to 7; 0 = 3. While fewer nodes are alive there are fewer
    #[arg(long, default_value_t = 0)]
    replicas: u32,
    /// Keep changes for so long, so that watches can begin in the past: 90s, 30m, 24h, 7d
    #[arg(long, value_name = "TIME", value_parser = history::parse_time)]
    history: Option<u64>,
    /// Keep so many bytes of changes a shard at most: 1MiB to 256MiB
    #[arg(long, value_name = "BYTES", value_parser = history::parse_size)]
    history_bytes: Option<u64>,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb admin set-history default --for 24h
  kvdb admin set-history orders --for 7d --bytes 64MiB
  kvdb admin set-history orders --off

Each shard keeps its changes until one of the bounds is reached; every replica holds them on disk.
What was written before history was on is not in it: a watch from before is told of a gap.")]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true).args(["time", "bytes", "off"]))]
pub(crate) struct SetHistory {
    /// The keyspace's name
    name: String,
    /// Keep changes for so long: 90s, 30m, 24h, 7d; a day if not given
    #[arg(long = "for", value_name = "TIME", value_parser = history::parse_time)]
    time: Option<u64>,
    /// Keep so many bytes of changes a shard at most: 1MiB to 256MiB; 32MiB if not given
    #[arg(long, value_name = "BYTES", value_parser = history::parse_size)]
    bytes: Option<u64>,
    /// Keep nothing any more
    #[arg(long, conflicts_with_all = ["time", "bytes"])]
    off: bool,
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
#[command(after_help = "\
Examples:
  kvdb admin drain 2 --wait                    empties a node that works; stop it afterwards
  kvdb admin set-node-status 2 removed         then it can be removed
  kvdb admin replace 2 --wait                  rebuilds what a lost node held, and removes it
  kvdb admin set-node-status 2 removed --force removes it though it is alive or holds replicas

A removed node never comes back under its number. It is refused, also with --force, where a shard would have no
majority without the node.")]
pub(crate) struct SetNodeStatus {
    /// The node's id
    #[arg(value_name = "NODE")]
    node_id: u64,
    /// The status
    #[arg(value_enum)]
    status: Status,
    /// Remove the node though it is alive or holds replicas; they are rebuilt elsewhere at once
    #[arg(long)]
    force: bool,
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
        Command::SetHistory(command) => history::set(&admin, command, args.json).await,
        Command::DropKeyspace(command) => change::drop_keyspace(&admin, command, args.json).await,
        Command::RegisterNode(command) => change::register_node(&admin, command, args.json).await,
        Command::SetNodeStatus(command) => {
            change::set_node_status(&admin, command, args.json).await
        }
        Command::SetLeader(command) => change::set_leader(&admin, command, args.json).await,
        Command::SetReplicas(command) => operate::set_replicas(&admin, command, args.json).await,
        Command::Move(command) => operate::move_replica(&admin, command, args.json).await,
        Command::Split(command) => operate::split(&admin, command, args.json).await,
        Command::Drain(command) => operate::drain(&admin, command, args.json).await,
        Command::Replace(command) => operate::replace(&admin, command, args.json).await,
        Command::Rebalance(waiting) => operate::rebalance(&admin, waiting, args.json).await,
        Command::Plan => operate::plan(&admin, args.json).await,
        Command::Operators(command) => operate::operators(&admin, command, args.json).await,
        Command::Cancel(command) => operate::cancel(&admin, command.operator_id, args.json).await,
        Command::Coordinators(command) => {
            coordinators::run(&admin, command.change, args.json).await
        }
        Command::ForceRecover(command) => recover::run(&admin, command, args.json).await,
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
