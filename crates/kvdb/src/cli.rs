//! What can be typed.

use crate::commands;
use crate::roles::Role;
use clap::{Args, Parser, Subcommand};
use kvdb_client::Options;
use std::time::Duration;

/// KvDB: a distributed key-value database.
#[derive(Parser)]
#[command(
    version,
    about,
    propagate_version = true,
    after_help = "\
Examples:
  kvdb put greeting hello
  kvdb get greeting
  kvdb scan --prefix user: --limit 10
  kvdb import rows.tsv && kvdb export copy.tsv
  kvdb admin status

Exit codes: 0 done, 1 not found, 2 usage, 3 refused, 4 unavailable, 5 outcome unknown."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// All commands.
#[derive(Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Role(Role),
    #[command(flatten)]
    Client(ClientCommand),
}

/// Commands that talk to a running cluster.
#[derive(Subcommand)]
pub(crate) enum ClientCommand {
    /// Set a key
    Put(commands::put::Args),
    /// Print the value of a key
    Get(commands::get::Args),
    /// Remove keys
    Del(commands::del::Args),
    /// Print the values of many keys
    BatchGet(commands::batch_get::Args),
    /// Print a range of keys with their values
    Scan(commands::scan::Args),
    /// Add to a counter
    Incr(commands::incr::Args),
    /// Change when a key expires
    Expire(commands::expire::Args),
    /// Print changes as they happen
    Watch(commands::watch::Args),
    /// Write the rows of a file
    Import(commands::import::Args),
    /// Write all rows to a file, as `import` reads them
    Export(commands::export::Args),
    /// Ask the gateway whether it is there
    Ping,
    /// Measure puts, gets or a workload; of KvDB, Redis or etcd
    Bench(commands::bench::Args),
    /// Kill, pause and starve a disposable cluster under load, and judge what its clients saw
    Torture(commands::torture::Args),
    /// Look at the cluster and change it
    #[command(subcommand)]
    Admin(commands::admin::Command),
}

/// Where to send requests and how to print answers; the same for all commands.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Connection and output")]
pub(crate) struct ClientArgs {
    /// The gateway, or several separated by commas
    #[arg(
        long,
        global = true,
        env = "KVDB_ENDPOINT",
        default_value = "127.0.0.1:7400",
        value_name = "HOST:PORT"
    )]
    pub(crate) endpoint: String,
    /// The keyspace; the one called `default` if not given
    #[arg(long, global = true, default_value = "", hide_default_value = true, value_name = "NAME")]
    pub(crate) keyspace: String,
    /// Longest wait for an answer, in milliseconds, retries included
    #[arg(
        long,
        global = true,
        env = "KVDB_TIMEOUT_MS",
        default_value_t = 10_000,
        value_parser = clap::value_parser!(u64).range(1..=86_400_000),
        value_name = "MS"
    )]
    pub(crate) timeout_ms: u64,
    /// Print JSON: a line for each key, one document for `admin`
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

impl ClientArgs {
    /// Options of a client that lives as long as one command. It gets no request ids: a session in
    /// the cluster for each command typed would be a waste, and what it can't settle it says.
    pub(crate) fn options(&self) -> Options {
        Options {
            connections: 1,
            deadline: Duration::from_millis(self.timeout_ms),
            exactly_once: false,
            ..Options::to(&self.endpoint)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples_or_explains_itself() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
        }
    }

    #[test]
    fn global_options_may_follow_the_command() {
        let cli = Cli::try_parse_from(["kvdb", "get", "k", "--json", "--endpoint", "a:1"]).unwrap();
        assert!(cli.client.json);
        assert_eq!(cli.client.options().addresses, ["a:1"]);
    }

    #[test]
    fn several_conditions_are_refused() {
        let line = ["kvdb", "put", "k", "v", "--if-absent", "--if-present"];
        assert!(Cli::try_parse_from(line).is_err());
    }
}
