//! The `kvdb` binary: the command line.
//!
//! `cli.rs` holds what can be typed. Each command is a module of `commands`, with its arguments
//! and what it does in one place. `exit.rs` turns what went wrong into words and an exit code,
//! `input.rs` and `output.rs` get bytes in and out without harm to them, `units.rs` reads and shows
//! times and sizes, `confirm.rs` asks before what can't be taken back, and `rows` is what `import`
//! reads and `export` writes.

mod cli;
mod commands;
mod confirm;
#[cfg(test)]
mod errors_page;
mod exit;
mod input;
mod output;
mod roles;
mod rows;
mod threads;
mod units;

use std::process::ExitCode;

/// Small pieces of memory come and go with every operation, on several threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match cli::Cli::read(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let json = cli.client.json;
    let result = match cli.command {
        cli::Command::Role(role) => roles::run(role),
        cli::Command::Client(command) => commands::run(command, &cli.client),
        cli::Command::Local(command) => commands::local::run(command, json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(json),
    }
}
