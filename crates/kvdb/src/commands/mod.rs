//! The commands that talk to a running cluster, one a module.

pub(crate) mod admin;
pub(crate) mod batch_get;
pub(crate) mod bench;
pub(crate) mod del;
pub(crate) mod expire;
pub(crate) mod export;
pub(crate) mod get;
pub(crate) mod import;
pub(crate) mod incr;
pub(crate) mod local;
mod parts;
mod ping;
pub(crate) mod put;
pub(crate) mod redis;
pub(crate) mod scan;
pub(crate) mod torture;
pub(crate) mod watch;

use crate::cli::{ClientArgs, ClientCommand};
use crate::exit::Failure;
use crate::threads;
use kvdb_client::{Client, Options, Record};
use serde_json::{Map, Value};

/// Runs one command to its end.
pub(crate) fn run(command: ClientCommand, args: &ClientArgs) -> Result<(), Failure> {
    threads::use_huge_pages();
    let threads = match &command {
        ClientCommand::Bench(command) if command.is_server() => threads::of_a_server(),
        _ => threads::of_a_client(),
    };
    let runtime = threads::runtime(threads)
        .map_err(|error| Failure::Unavailable(format!("cannot start threads: {error}")))?;
    let result = runtime.block_on(async {
        match command {
            ClientCommand::Put(command) => put::run(command, args).await,
            ClientCommand::Get(command) => get::run(command, args).await,
            ClientCommand::Del(command) => del::run(command, args).await,
            ClientCommand::BatchGet(command) => batch_get::run(command, args).await,
            ClientCommand::Scan(command) => scan::run(command, args).await,
            ClientCommand::Incr(command) => incr::run(command, args).await,
            ClientCommand::Expire(command) => expire::run(command, args).await,
            ClientCommand::Redis(command) => redis::run(command, args).await,
            ClientCommand::Watch(command) => watch::run(command, args).await,
            ClientCommand::Import(command) => import::run(command, args).await,
            ClientCommand::Export(command) => export::run(command, args).await,
            ClientCommand::Ping => ping::run(args).await,
            ClientCommand::Status => admin::run(admin::Command::Status, args).await,
            ClientCommand::Bench(command) => bench::run(command, args).await,
            ClientCommand::Torture(command) => torture::run(command, args).await,
            ClientCommand::Admin(command) => admin::run(command, args).await,
        }
    });
    // A read of standard input may still block a thread; nobody waits for it.
    runtime.shutdown_background();
    result
}

/// The client that the options of the command line ask for.
fn client(args: &ClientArgs) -> Result<Client, Failure> {
    client_with(args, args.options())
}

fn client_with(args: &ClientArgs, options: Options) -> Result<Client, Failure> {
    Ok(Client::new(options)?.keyspace(args.keyspace.clone()))
}

/// What JSON output says about a record, beside its key and value.
fn insert_record(object: &mut Map<String, Value>, record: &Record) {
    object.insert("version".into(), record.version.0.into());
    if let Some(expires_at_ms) = record.expires_at_ms {
        object.insert("expires_at_ms".into(), expires_at_ms.into());
    }
    object.insert("served_by".into(), record.served_by.0.into());
    object.insert("as_of_version".into(), record.as_of.0.into());
}
