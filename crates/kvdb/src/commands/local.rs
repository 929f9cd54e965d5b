//! Commands that need no cluster: the version, shell completions, man pages, a directory that was moved.

use crate::cli::Cli;
use crate::confirm::Confirmation;
use crate::exit::Failure;
use crate::output::Output;
use clap_complete::Shell;
use kvdb_runtime::start::Start;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Commands that need no cluster.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Print the version
    #[command(after_help = "Examples:\n  kvdb version\n  kvdb version --json")]
    Version,
    /// Print completions for a shell
    #[command(after_help = "\
Examples:
  kvdb completions bash > ~/.local/share/bash-completion/completions/kvdb
  kvdb completions zsh > ~/.zfunc/_kvdb
  kvdb completions fish > ~/.config/fish/completions/kvdb.fish")]
    Completions {
        /// Shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Write man pages into a directory, one for each command
    #[command(after_help = "\
Examples:
  kvdb man ~/.local/share/man/man1
  man kvdb-admin-drain")]
    Man {
        /// Directory, created if it doesn't exist
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Declare that the process that used a node's data directory before is gone for good
    #[command(after_help = "\
Examples:
  kvdb claim /var/lib/kvdb
  kvdb claim /var/lib/kvdb --yes

Needed after a directory was copied or moved from a process that wasn't shut down cleanly, and only for shards with a \
single replica.")]
    Claim {
        /// Data directory of a node that isn't running
        #[arg(value_name = "DIR")]
        data: PathBuf,
        #[command(flatten)]
        confirmation: Confirmation,
    },
}

pub(crate) fn run(command: Command, json: bool) -> Result<(), Failure> {
    match command {
        Command::Version => version(json),
        Command::Completions { shell } => completions(shell),
        Command::Man { folder } => man(&folder, json),
        Command::Claim { data, confirmation } => claim(&data, confirmation, json),
    }
}

fn version(json: bool) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    let mut output = Output::new();
    match json {
        true => output.json(&json!({ "version": version }))?,
        false => output.line(format!("kvdb {version}"))?,
    }
    output.finish()
}

fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::definition(), "kvdb", &mut script);
    let mut output = Output::new();
    output.raw(&script)?;
    output.finish()
}

fn claim(data: &Path, confirmation: Confirmation, json: bool) -> Result<(), Failure> {
    let place = data.display().to_string();
    confirmation.ask(&format!(
        "The next start on {place} takes the place of the process that used this directory before, wherever that was. \
         If that one is still running, writes that it acknowledges are lost."
    ))?;
    Start::claim(data).map_err(|error| Failure::Refused(error.to_string()))?;
    let mut output = Output::new();
    match json {
        true => output.json(&json!({ "directory": place }))?,
        false => output.line(format!("claimed {place}: start the node"))?,
    }
    output.finish()
}

fn man(folder: &Path, json: bool) -> Result<(), Failure> {
    let place = folder.display().to_string();
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Cli::definition(), folder))
        .map_err(|error| Failure::writing(&place, &error))?;
    let mut output = Output::new();
    match json {
        true => output.json(&json!({ "directory": place }))?,
        false => output.line(format!("wrote man pages to {place}"))?,
    }
    output.finish()
}
