//! The `kvdb` binary: the command line.
//!
//! `cli.rs` holds what can be typed. Each command is a module of `commands`, with its arguments
//! and what it does in one place. `exit.rs` turns what went wrong into words and an exit code,
//! `input.rs` and `output.rs` get bytes in and out without harm to them, and `rows` is what
//! `import` reads and `export` writes.

mod cli;
mod commands;
mod exit;
mod input;
mod output;
mod roles;
mod rows;
mod threads;

use clap::Parser as _;
use std::process::ExitCode;

/// Small pieces of memory come and go with every operation, on several threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Bad usage ends here, with exit code 2.
    let cli = cli::Cli::parse();
    let result = match cli.command {
        cli::Command::Role(role) => return roles::run(role),
        cli::Command::Client(command) => commands::run(command, &cli.client),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
