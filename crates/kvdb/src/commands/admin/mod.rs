//! `kvdb admin`: what the cluster is, and changes of it.

mod change;
mod coordinators;
mod history;
mod operate;
mod recover;
mod show;

use crate::cli::ClientArgs;
use crate::confirm::Confirmation;
use crate::exit::Failure;
use kvdb_client::{AdminClient, Options};
use kvdb_model::{NodeId, NodeStatus, Partitioning};

/// Show and change the cluster.
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
    /// Show a summary of coordinators, nodes and shards
    #[command(after_help = "\
Examples:
  kvdb admin status
  kvdb admin status --json")]
    Status,
    /// Show all nodes: address, status, load, disk
    ///
    /// OPS/S counts the reads and writes of the shards that the node leads. KEYS and SIZE are of all replicas on the node. HEARD
    /// tells how long ago its last heartbeat came. KEYS is as exact as in `kvdb admin shards`.
    #[command(after_help = "\
Examples:
  kvdb admin nodes
  kvdb admin nodes --json")]
    Nodes,
    /// Show all shards: range, leader, replicas, load, size
    ///
    /// KEYS counts the keys that haven't expired; a collection is one key. Leaders count in the background: a shard that nobody
    /// writes to has an exact count, one that changes has a count from seconds ago (a large shard: from minutes ago). `-` means
    /// that the leader hasn't counted yet. SIZE is in bytes of keys and values, or about as many.
    #[command(after_help = "\
Examples:
  kvdb admin shards
  kvdb admin shards --json")]
    Shards,
    /// Show all keyspaces
    #[command(after_help = "\
Examples:
  kvdb admin keyspaces
  kvdb admin keyspaces --json")]
    Keyspaces,
    /// Create the keyspace `default`, unless it exists
    InitShards(InitShards),
    /// Create a keyspace
    CreateKeyspace(CreateKeyspace),
    /// Set how many past changes a keyspace keeps for watches
    SetHistory(SetHistory),
    /// Drop a keyspace and its data
    DropKeyspace(DropKeyspace),
    /// Register a node ahead of its first start
    RegisterNode(RegisterNode),
    /// Set the status of a node by hand
    SetNodeStatus(SetNodeStatus),
    /// Make another replica of a shard its leader
    SetLeader(SetLeader),
    /// Place the replicas of a shard on exactly these nodes
    SetReplicas(SetReplicas),
    /// Move one replica of a shard to another node
    Move(Move),
    /// Split a shard
    Split(Split),
    /// Move all replicas off a node, and give it no new ones
    Drain(Drain),
    /// Rebuild the replicas of a lost node elsewhere, then remove it
    Replace(Replace),
    /// Spread replicas and leaders evenly
    #[command(after_help = "\
Examples:
  kvdb admin plan
  kvdb admin rebalance --wait")]
    Rebalance(Waiting),
    /// Show what rebalancing would do, and why
    #[command(after_help = "\
Examples:
  kvdb admin plan
  kvdb admin plan --json")]
    Plan,
    /// Show operations: past and running changes of the cluster
    #[command(alias = "operators")]
    Operations(Operations),
    /// Cancel an operation
    Cancel(Cancel),
    /// List, add, move and remove coordinators
    Coordinators(Coordinators),
    /// Recover a shard that has lost its majority for good from one replica
    ForceRecover(ForceRecover),
    /// Accept an older copy of a node's data directory, to recover shards from
    AcceptCopy(AcceptCopy),
}

/// Accept an older copy of a node's data directory, to recover shards from.
///
/// A node is refused on an older copy of its directory: its replicas have forgotten what they promised since. If the
/// disks of most nodes were put back to snapshots, shards have lost their majority that way. The next start of the
/// node is accepted then, but nothing in the directory takes part in anything. `force-recover` makes new shards of it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb admin accept-copy 1                    says what it means, and asks
  kvdb admin accept-copy 1 --yes              then start node 1, and the others in the same way
  kvdb admin shards                           which shards have lost their majority
  kvdb admin force-recover 3 --from 1         shows where the log of each copy ends, and asks

Accept the copies of all nodes first, and recover each shard from the one whose log ends last. A shard that has a \
majority needs none of this: `kvdb admin replace` the node instead.")]
pub(crate) struct AcceptCopy {
    /// Node id; its process has ended
    #[arg(value_name = "NODE")]
    node_id: u64,
    #[command(flatten)]
    confirmation: Confirmation,
}

/// Recover a shard that has lost its majority for good from one replica.
///
/// A shard needs more than half of its replicas. If the nodes of the others are gone for good, with
/// their disks, this makes the replica on one node the whole shard (unsafe recovery). Writes that the
/// others acknowledged and that never reached this replica are lost. The command first shows what is
/// known of each replica and what may be lost, and asks. Start the other nodes again instead wherever
/// that is possible.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb admin shards                           which shards have lost their majority
  kvdb admin force-recover 3 --from 2         shows what would be done, and asks
  kvdb admin force-recover 3 --from 2 --yes --wait

It is refused while a majority of the shard's nodes is there or may be (a node counts as lost once it is DEAD), \
while an operation changes the shard, and from a replica whose files are lost. Afterwards the shard gets as many \
replicas as it had, as far as there are nodes. Start new nodes, and `kvdb admin replace` the lost ones.")]
pub(crate) struct ForceRecover {
    /// Shard id
    #[arg(value_name = "SHARD")]
    shard_id: u64,
    /// Node of the replica to recover from: the one whose log is longest
    #[arg(long, value_name = "NODE")]
    from: u64,
    #[command(flatten)]
    confirmation: Confirmation,
    #[command(flatten)]
    waiting: Waiting,
}

/// List, add, move and remove coordinators.
///
/// They are replaced one by one while the cluster serves: add the new one, then remove the old one.
/// A number is never used twice. A coordinator whose data directory was lost can't come back under
/// its old number.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb admin coordinators                              list them, and the leader
  kvdb coordinator --id 4 --listen 10.0.0.4:7104 --data DIR \\
    --peers 1=10.0.0.1:7101,2=10.0.0.2:7102,3=10.0.0.3:7103,4=10.0.0.4:7104
  kvdb admin coordinators add 4 10.0.0.4:7104 --wait   it joins, and votes when it has caught up
  kvdb admin coordinators remove 2 --wait              may be dead, or lead: it hands over first
  kvdb admin coordinators set-address 3 10.0.0.9:7103  record where it is now

Running nodes and gateways learn of new coordinators by themselves. At their next start they use --coordinators:
name the new ones there.")]
pub(crate) struct Coordinators {
    #[command(subcommand)]
    change: Option<CoordinatorChange>,
}

#[derive(clap::Subcommand)]
pub(crate) enum CoordinatorChange {
    /// List coordinators, and which of them leads
    #[command(after_help = "\
Examples:
  kvdb admin coordinators list
  kvdb admin coordinators list --json")]
    List,
    /// Add a coordinator that runs already, with an empty data directory
    #[command(after_help = "\
Examples:
  kvdb admin coordinators add 4 10.0.0.4:7104 --wait")]
    Add {
        /// Number of the coordinator; one that was never used
        #[arg(value_name = "ID")]
        id: u64,
        /// Address by which the others reach it
        #[arg(value_name = "HOST:PORT")]
        address: String,
        /// Wait until it is a voter
        #[arg(long)]
        wait: bool,
    },
    /// Record the present address of a coordinator; it must answer there
    #[command(after_help = "\
Examples:
  kvdb admin coordinators set-address 2 10.0.0.9:7102")]
    SetAddress {
        /// Number of the coordinator
        #[arg(value_name = "ID")]
        id: u64,
        /// Address by which the others reach it
        #[arg(value_name = "HOST:PORT")]
        address: String,
    },
    /// Remove a coordinator for good; it may be dead, or lead
    #[command(after_help = "\
Examples:
  kvdb admin coordinators remove 2
  kvdb admin coordinators remove 2 --yes --wait")]
    Remove {
        /// Number of the coordinator
        #[arg(value_name = "ID")]
        id: u64,
        /// Wait until it is gone
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        confirmation: Confirmation,
    },
}

#[derive(clap::Args)]
pub(crate) struct Waiting {
    /// Wait for the end, with a progress bar; fail if the operation fails
    #[arg(long)]
    wait: bool,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb admin set-replicas 3 1 2 4
  kvdb admin set-replicas 3 1 2 4 --wait")]
pub(crate) struct SetReplicas {
    /// Shard id
    #[arg(value_name = "SHARD")]
    shard_id: u64,
    /// Nodes, each different
    #[arg(value_name = "NODE", required = true, num_args = 1..=7)]
    node_ids: Vec<u64>,
    #[command(flatten)]
    waiting: Waiting,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb admin move 3 1 4 --wait        the replica of shard 3 on node 1 goes to node 4")]
pub(crate) struct Move {
    /// Shard id
    #[arg(value_name = "SHARD")]
    shard_id: u64,
    /// Node that has a replica
    #[arg(value_name = "FROM")]
    from_node_id: u64,
    /// Node that gets it
    #[arg(value_name = "TO")]
    to_node_id: u64,
    #[command(flatten)]
    waiting: Waiting,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb admin split 3 --wait
  kvdb admin split 9 --at user:5000")]
pub(crate) struct Split {
    /// Shard id
    #[arg(value_name = "SHARD")]
    shard_id: u64,
    /// First key of the upper part; in a hash keyspace the split is at its slot
    /// [default: the middle slot]
    #[arg(long, value_name = "KEY")]
    at: Option<std::ffi::OsString>,
    #[command(flatten)]
    waiting: Waiting,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb admin drain 2 --wait
  kvdb admin operations --running      how far it is
  kvdb admin cancel ID                 takes it back")]
pub(crate) struct Drain {
    /// Node id
    #[arg(value_name = "NODE")]
    node_id: u64,
    #[command(flatten)]
    waiting: Waiting,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb admin replace 2                 says what will happen, and asks
  kvdb admin replace 2 --yes --wait")]
pub(crate) struct Replace {
    /// Node id
    #[arg(value_name = "NODE")]
    node_id: u64,
    #[command(flatten)]
    confirmation: Confirmation,
    #[command(flatten)]
    waiting: Waiting,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb admin operations
  kvdb admin operations --running --json")]
pub(crate) struct Operations {
    /// Show only running operations
    #[arg(long)]
    running: bool,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb admin operations --running      shows the ids
  kvdb admin cancel 7")]
pub(crate) struct Cancel {
    /// Operation id
    #[arg(value_name = "ID")]
    operation_id: u64,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb admin init-shards --shards 8")]
pub(crate) struct InitShards {
    /// Number of shards
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=16384))]
    shards: u32,
    /// Replicas of each shard, 1 to 7; 0 = 3. Fewer while fewer nodes are alive
    #[arg(long, default_value_t = 0)]
    replicas: u32,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb admin create-keyspace orders
  kvdb admin create-keyspace log --partitioning range
  kvdb admin create-keyspace events --history 24h --history-bytes 64MiB
  kvdb admin create-keyspace app --colocated --redis-db 1

A colocated keyspace has one shard, which is never split: commands on several keys, and transactions, may name \
any of its keys. It can't hold or carry more than one shard does.")]
pub(crate) struct CreateKeyspace {
    /// Keyspace name
    name: String,
    /// Layout of the keys
    #[arg(long, value_enum, default_value_t = Layout::Hash)]
    partitioning: Layout,
    /// Number of shards; 0 = 8, and always 1 for a range keyspace
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=16384))]
    shards: u32,
    /// Replicas of each shard, 1 to 7; 0 = 3. Fewer while fewer nodes are alive
    #[arg(long, default_value_t = 0)]
    replicas: u32,
    /// Keep all keys on one shard, so that any of them can be named together
    #[arg(long)]
    colocated: bool,
    /// The number by which clients of Redis's protocol select it; the names db1 to db15 imply theirs
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=15))]
    redis_db: Option<u8>,
    /// Keep changes for this long, so that watches can begin in the past: 1s to 30d
    #[arg(long, value_name = "TIME", value_parser = history::parse_time)]
    history: Option<u64>,
    /// Keep at most this many bytes of changes for each shard: 1MiB to 256MiB
    #[arg(long, value_name = "BYTES", value_parser = history::parse_size)]
    history_bytes: Option<u64>,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb admin set-history default --for 24h
  kvdb admin set-history orders --for 7d --bytes 64MiB
  kvdb admin set-history orders --off

Each shard keeps its changes until one of the bounds is reached; every replica holds them on disk. \
What was written before history was on is not in it: a watch that begins before gets a gap.")]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true).args(["time", "bytes", "off"]))]
pub(crate) struct SetHistory {
    /// Keyspace name
    name: String,
    /// Keep changes for this long: 1s to 30d [default: 24h]
    #[arg(long = "for", value_name = "TIME", value_parser = history::parse_time)]
    time: Option<u64>,
    /// Keep at most this many bytes of changes for each shard: 1MiB to 256MiB [default: 32MiB]
    #[arg(long, value_name = "BYTES", value_parser = history::parse_size)]
    bytes: Option<u64>,
    /// Keep no changes any more
    #[arg(long, conflicts_with_all = ["time", "bytes"])]
    off: bool,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb admin drop-keyspace orders      says what will be lost, and asks
  kvdb admin drop-keyspace orders --yes")]
pub(crate) struct DropKeyspace {
    /// Keyspace name
    name: String,
    #[command(flatten)]
    confirmation: Confirmation,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb admin register-node --address 10.0.0.9:7201 --zone b")]
pub(crate) struct RegisterNode {
    /// Address on which the node will listen
    #[arg(long, value_name = "HOST:PORT")]
    address: String,
    /// Failure domain
    #[arg(long, default_value = "", hide_default_value = true)]
    zone: String,
    /// Token of the node: 32 hexadecimal digits [default: random]
    #[arg(long, value_parser = parse_token, value_name = "HEX")]
    token: Option<u128>,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb admin drain 2 --wait                      empties a node that works; stop it afterwards
  kvdb admin set-node-status 2 removed           then removes it: says what will happen, and asks
  kvdb admin replace 2 --wait                    rebuilds what a lost node held, and removes it
  kvdb admin set-node-status 2 removed --force   removes it although it is alive or holds replicas
  kvdb admin set-node-status 2 draining          the same as `kvdb admin drain 2`

A removed node never comes back under its number. Even with --force this is refused if a shard would have no \
majority without the node.")]
pub(crate) struct SetNodeStatus {
    /// Node id
    #[arg(value_name = "NODE")]
    node_id: u64,
    /// Status
    #[arg(value_enum)]
    status: Status,
    /// Remove the node although it is alive or holds replicas; they are rebuilt elsewhere at once
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    confirmation: Confirmation,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb admin set-leader 3 2            makes node 2 the leader of shard 3")]
pub(crate) struct SetLeader {
    /// Shard id
    #[arg(value_name = "SHARD")]
    shard_id: u64,
    /// New leader; it must have a voting replica
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
        Command::Drain(command) => {
            operate::drain(&admin, NodeId(command.node_id), command.waiting, args.json).await
        }
        Command::Replace(command) => operate::replace(&admin, command, args.json).await,
        Command::Rebalance(waiting) => operate::rebalance(&admin, waiting, args.json).await,
        Command::Plan => operate::plan(&admin, args.json).await,
        Command::Operations(command) => operate::operations(&admin, command, args.json).await,
        Command::Cancel(command) => operate::cancel(&admin, command.operation_id, args.json).await,
        Command::Coordinators(command) => {
            coordinators::run(&admin, command.change, args.json).await
        }
        Command::ForceRecover(command) => recover::run(&admin, command, args.json).await,
        Command::AcceptCopy(command) => recover::accept_copy(&admin, command, args.json).await,
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
