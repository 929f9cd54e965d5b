//! What can be typed.

use crate::commands;
use crate::exit::Failure;
use crate::roles::Role;
use crate::units;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use kvdb_client::Options;
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

/// How long a command waits for an answer if nothing else is said.
const USUAL_TIMEOUT_MS: u64 = 10_000;
/// The longest that it may be told to wait.
const LONGEST_TIMEOUT_MS: u64 = 24 * 3_600_000;

/// KvDB: a distributed key-value database.
#[derive(Parser)]
#[command(
    version,
    about,
    propagate_version = true,
    after_help = "\
Examples:
  kvdb dev --temporary
  kvdb set greeting hello
  kvdb get greeting
  kvdb ls --prefix user: --limit 10
  kvdb import rows.tsv && kvdb export copy.tsv
  kvdb status

Exit codes: 0 done, 1 not found, 2 usage, 3 refused, 4 unavailable, 5 outcome unknown, 130 interrupted."
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
    #[command(flatten)]
    Local(commands::local::Command),
}

/// Commands that talk to a running cluster.
#[derive(Subcommand)]
pub(crate) enum ClientCommand {
    /// Set a key
    #[command(visible_alias = "set")]
    Put(commands::put::Args),
    /// Print the value of a key
    Get(commands::get::Args),
    /// Delete keys
    #[command(visible_alias = "delete")]
    Del(commands::del::Args),
    /// Print the values of many keys
    BatchGet(commands::batch_get::Args),
    /// List keys with their values
    #[command(visible_alias = "ls")]
    Scan(commands::scan::Args),
    /// Add to a counter
    Incr(commands::incr::Args),
    /// Change when a key expires
    Expire(commands::expire::Args),
    /// Run a Redis command on keys
    Redis(commands::redis::Args),
    /// Print changes as they happen
    Watch(commands::watch::Args),
    /// Import rows from a file
    Import(commands::import::Args),
    /// Export all rows to a file, as `import` reads them
    Export(commands::export::Args),
    /// Check that a gateway serves
    #[command(after_help = "Examples:\n  kvdb ping\n  kvdb ping --endpoint 10.0.0.7:7400 --json")]
    Ping,
    /// Show the state of the cluster
    #[command(
        after_help = "Examples:\n  kvdb status\n  kvdb status --json\n\nThe same as `kvdb admin status`."
    )]
    Status,
    /// Measure KvDB, Redis or etcd with puts, gets or a workload
    Bench(commands::bench::Args),
    /// Test a disposable cluster: kill, pause and starve it under load, and judge what clients saw
    Torture(commands::torture::Args),
    /// Show and change the cluster
    #[command(subcommand)]
    Admin(commands::admin::Command),
}

/// Where to send requests and how to print answers; the same for all commands.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Connection and output")]
pub(crate) struct ClientArgs {
    /// Gateway address, or several separated by commas
    #[arg(
        long,
        global = true,
        env = "KVDB_ENDPOINT",
        default_value = "127.0.0.1:7400",
        value_name = "HOST:PORT",
        value_parser = parse_endpoint
    )]
    pub(crate) endpoint: String,
    /// Keyspace name [default: default]
    #[arg(long, global = true, default_value = "", hide_default_value = true, value_name = "NAME")]
    pub(crate) keyspace: String,
    /// Longest wait for an answer, retries included, such as 500ms or 30s [default: 10s]
    #[arg(
        long,
        global = true,
        env = "KVDB_TIMEOUT",
        value_parser = parse_timeout,
        conflicts_with = "timeout_ms",
        value_name = "TIME"
    )]
    timeout: Option<u64>,
    /// The same in milliseconds
    #[arg(
        long,
        global = true,
        env = "KVDB_TIMEOUT_MS",
        value_parser = clap::value_parser!(u64).range(1..=LONGEST_TIMEOUT_MS),
        hide = true,
        value_name = "MS"
    )]
    timeout_ms: Option<u64>,
    /// Print JSON: one object a line for keys, one document for `admin`; errors on standard error
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

impl ClientArgs {
    /// How long a command waits for an answer.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout.or(self.timeout_ms).unwrap_or(USUAL_TIMEOUT_MS))
    }

    /// Options of a client that lives as long as one command. It gets no request ids: a session in
    /// the cluster for each command typed would be a waste, and what it can't settle it says.
    pub(crate) fn options(&self) -> Options {
        Options {
            connections: 1,
            deadline: self.timeout(),
            exactly_once: false,
            ..Options::to(&self.endpoint)
        }
    }
}

fn parse_timeout(text: &str) -> Result<u64, String> {
    match units::parse_positive_time(text)? {
        time_ms @ 1..=LONGEST_TIMEOUT_MS => Ok(time_ms),
        _ => Err(format!("expected at most {}", units::show_time(LONGEST_TIMEOUT_MS))),
    }
}

/// Addresses separated by commas, each with or without `http://`.
fn parse_endpoint(text: &str) -> Result<String, String> {
    let addresses: Result<Vec<String>, String> = text.split(',').map(plain_address).collect();
    Ok(addresses?.join(","))
}

/// An address without its scheme. Whether it is one is for others to say.
pub(crate) fn plain_address(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://")) {
        return Err(format!("{text}: there is no encryption yet; use http:// or host:port alone"));
    }
    let with_scheme = text.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"));
    let plain = if with_scheme { text[7..].trim_end_matches('/') } else { text };
    Ok(plain.to_owned())
}

/// Commands that don't connect to a cluster, or are part of one.
const WITHOUT_CLIENT: [&str; 8] =
    ["dev", "coordinator", "node", "gateway", "version", "completions", "man", "claim"];

impl Cli {
    /// All commands, with the options that each of them uses in its help. Those of clients are accepted everywhere, so that
    /// scripts may put them in front.
    pub(crate) fn definition() -> clap::Command {
        let mut whole = Cli::command();
        let unused =
            |one: &&clap::Arg| ["endpoint", "keyspace", "timeout"].contains(&one.get_id().as_str());
        let hidden: Vec<clap::Arg> =
            whole.get_arguments().filter(unused).map(|one| one.clone().hide(true)).collect();
        for name in WITHOUT_CLIENT {
            whole = whole.mut_subcommand(name, |command| command.args(hidden.iter().cloned()));
        }
        whole
    }

    /// Reads a command line. Help and versions are printed, and bad usage is reported with exit
    /// code 2: then the process ends with the code that is returned.
    pub(crate) fn read(words: Vec<OsString>) -> Result<Self, ExitCode> {
        let parse = |command: clap::Command| {
            let mut command = command;
            let matches = command.try_get_matches_from_mut(words.iter().cloned())?;
            Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
        };
        let error = match parse(Cli::definition()) {
            Ok(cli) => return Ok(cli),
            Err(error) => error,
        };
        if !error.use_stderr() {
            // There is nobody left to tell if this fails.
            let _ = error.print();
            return Err(ExitCode::SUCCESS);
        }
        if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            let _ = error.print();
            return Err(ExitCode::from(2));
        }
        // A usage line names the options that were given, and takes the environment's for such.
        let error = match parse(without_environment(Cli::definition())) {
            Err(same) if same.kind() == error.kind() => same,
            _ => error,
        };
        if words.iter().take_while(|word| *word != "--").any(|word| word == "--json") {
            let words = error.render().to_string();
            let words = words.trim_end().trim_start_matches("error: ");
            return Err(Failure::Usage(words.to_owned()).report(true));
        }
        let _ = error.print();
        Err(ExitCode::from(2))
    }
}

/// The same commands, deaf to the environment.
fn without_environment(command: clap::Command) -> clap::Command {
    let deaf = |argument: clap::Arg| argument.env(clap::builder::Resettable::Reset);
    command.mut_args(deaf).mut_subcommands(without_environment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::definition().debug_assert();
    }

    /// Commands that can be called, with what is typed for them.
    fn commands(command: &clap::Command, path: &str, into: &mut Vec<(String, clap::Command)>) {
        for one in command.get_subcommands().filter(|one| one.get_name() != "help") {
            let path = format!("{path} {}", one.get_name());
            into.push((path.clone(), one.clone()));
            commands(one, &path, into);
        }
    }

    #[test]
    fn every_command_says_what_it_does_and_shows_an_example() {
        let mut all = Vec::new();
        commands(&Cli::definition(), "kvdb", &mut all);
        assert!(all.len() > 40, "{}", all.len());
        for (path, command) in all {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(!about.is_empty(), "{path} has no help");
            let words = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(words.contains("Example"), "{path} has no example");
            assert!(words.contains(&path), "{path} isn't in its example: {words}");
        }
    }

    /// Words of a line as a shell parts them: quotes hold words together, and a comment ends it. Nothing is expanded.
    fn words(line: &str) -> Vec<String> {
        let mut words = Vec::new();
        let (mut word, mut quote, mut is_word) = (String::new(), None, false);
        for letter in line.chars() {
            match (letter, quote) {
                ('\'' | '"', None) => (quote, is_word) = (Some(letter), true),
                (_, Some(open)) if open == letter => quote = None,
                (' ', None) => {
                    if std::mem::take(&mut is_word) {
                        words.push(std::mem::take(&mut word));
                    }
                }
                ('#', None) if !is_word => break,
                _ => {
                    word.push(letter);
                    is_word = true;
                }
            }
        }
        words.extend(is_word.then_some(word));
        words
    }

    /// What stands in the place of a command is a name, and comments stand far to the right in help.
    fn typed(line: &str) -> Option<Vec<String>> {
        let line = line.trim_start().split("  ").next()?;
        let one = line.split([';', '|', '>', '<']).next()?.split("&&").next()?;
        let words = words(one.trim_end_matches([' ', '&']));
        let is_command = words.first().is_some_and(|first| first == "kvdb") && words.len() > 1;
        let is_pattern =
            words.iter().any(|word| word.contains(['…', '[']) || word.ends_with("..."));
        (is_command && !is_pattern).then_some(words)
    }

    fn check(line: &str, place: &str) -> usize {
        let Some(words) = typed(line) else { return 0 };
        // What has to be filled in is a number, where one is needed.
        let names = ["SHARD", "NODE", "ID", "FROM", "TO"];
        let fill = |word: String| if names.contains(&word.as_str()) { "1".into() } else { word };
        let parsed = Cli::definition().try_get_matches_from(words.into_iter().map(fill));
        if let Err(error) = parsed {
            assert!(!error.use_stderr(), "{place} says `{}`: {error}", line.trim());
        }
        1
    }

    #[test]
    fn every_command_in_the_pages_and_the_help_can_be_typed() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let pages = std::fs::read_dir(root.join("docs")).unwrap().map(|page| page.unwrap().path());
        let mut count = 0;
        for page in pages.chain([root.join("README.md")]).filter(|page| page.is_file()) {
            let place = page.display().to_string();
            let text = std::fs::read_to_string(&page).unwrap().replace("\\\n    ", " ");
            for line in text.lines().filter(|line| line.starts_with("    ")) {
                count += check(line, &place);
            }
        }
        assert!(count > 50, "{count}");
        let mut all = Vec::new();
        commands(&Cli::definition(), "kvdb", &mut all);
        for (path, command) in all {
            let words = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let lines = words.replace("\\\n    ", " ");
            let found: usize = lines
                .lines()
                .filter(|line| line.starts_with("  "))
                .map(|line| check(line, &path))
                .sum();
            assert!(found > 0, "{path}: {words}");
        }
    }

    #[test]
    fn commands_that_connect_to_nothing_show_no_options_for_it() {
        let mut whole = Cli::definition();
        whole.build();
        let mut all = Vec::new();
        commands(&whole, "kvdb", &mut all);
        for (path, mut command) in all {
            let name = path.split(' ').nth(1).unwrap_or_default();
            let help = command.render_long_help().to_string();
            assert!(!WITHOUT_CLIENT.contains(&name) || !help.contains("--endpoint"), "{help}");
        }
        // A script may give them to every command.
        let line = ["kvdb", "--endpoint", "a:1", "version", "--timeout", "1s", "--json"];
        let cli = Cli::try_parse_from(line).unwrap();
        assert_eq!(
            (cli.client.options().addresses, cli.client.json),
            (vec!["a:1".to_owned()], true)
        );
    }

    #[test]
    fn global_options_may_follow_the_command() {
        let cli = Cli::try_parse_from(["kvdb", "get", "k", "--json", "--endpoint", "a:1"]).unwrap();
        assert!(cli.client.json);
        assert_eq!(cli.client.options().addresses, ["a:1"]);
    }

    #[test]
    fn endpoints_may_have_a_scheme() {
        let endpoint = |text: &str| {
            let parsed = Cli::try_parse_from(["kvdb", "ping", "--endpoint", text]);
            parsed.map(|cli| cli.client.options().addresses)
        };
        assert_eq!(endpoint("http://a:1/, HTTP://b:2").unwrap(), ["a:1", "b:2"]);
        assert_eq!(endpoint("a:1").unwrap(), ["a:1"]);
        let refused = endpoint("https://a:1").unwrap_err().to_string();
        assert!(refused.contains("no encryption yet"), "{refused}");
    }

    #[test]
    fn a_timeout_is_a_time_or_milliseconds() {
        let timeout = |words: &[&str]| {
            let words = ["kvdb", "ping"].iter().chain(words);
            Cli::try_parse_from(words).map(|cli| cli.client.timeout().as_millis())
        };
        assert_eq!(timeout(&["--timeout", "1m 30s"]).unwrap(), 90_000);
        assert_eq!(timeout(&["--timeout-ms", "250"]).unwrap(), 250);
        assert!(["0s", "2d", "5"].iter().all(|bad| timeout(&["--timeout", bad]).is_err()));
    }

    #[test]
    fn several_conditions_are_refused() {
        let line = ["kvdb", "put", "k", "v", "--if-absent", "--if-present"];
        assert!(Cli::try_parse_from(line).is_err());
    }

    #[test]
    fn commands_have_the_names_that_people_try() {
        for line in [
            &["kvdb", "set", "k", "v"][..],
            &["kvdb", "ls"],
            &["kvdb", "delete", "k"],
            &["kvdb", "status"],
            &["kvdb", "version"],
            &["kvdb", "admin", "operations"],
            &["kvdb", "admin", "operators"],
            &["kvdb", "completions", "bash"],
        ] {
            assert!(Cli::try_parse_from(line).is_ok(), "{line:?}");
        }
    }
}
