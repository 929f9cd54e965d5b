//! Writes `docs/settings.md` from the definitions of the flags, and fails while the page says something else.

use super::*;
use crate::cli::Cli;
use clap::{CommandFactory as _, Parser as _};
use figment::error::Kind;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

const HEAD: &str = "\
# Settings

Written by `scripts/settings_docs.sh` from the definitions of the flags; a test fails while it is out of date.

A flag goes before its environment variable. The variable goes before the key of the TOML file that `--config` names.
One file may serve several roles: each takes the keys that it knows. A key that no role knows is refused by name.

Times and sizes have units: `90s`, `5m`, `64MiB`. Lists are separated by commas: `coordinators = \"10.0.0.1:7101,10.0.0.2:7102\"`.
Switches are `true` or `false`. Every listener can be `off`, except `--listen` of coordinators and nodes.

    # /etc/kvdb/node.toml, used with: kvdb node --config /etc/kvdb/node.toml
    listen = \"10.0.0.1:7201\"
    http = \"10.0.0.1:7281\"
    coordinators = \"10.0.0.1:7101,10.0.0.2:7102,10.0.0.3:7103\"
    data = \"/var/lib/kvdb/node\"
    zone = \"a\"
";

/// Keys that a file may have.
fn keys() -> BTreeSet<&'static str> {
    let error = Figment::from(Toml::string("no_such_key = 1")).extract::<File>().err().unwrap();
    match error.kind {
        Kind::UnknownField(_, known) => known.iter().copied().collect(),
        other => panic!("{other}"),
    }
}

/// What a flag does, and its default.
fn words(argument: &clap::Arg) -> (String, String) {
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let help = help.replace('\n', " ").replace('|', "\\|");
    let default = argument.get_default_values().first();
    match (default, help.rsplit_once(" [default: ")) {
        (_, Some((help, default))) => {
            (help.to_owned(), default.trim_end_matches(']').replace("the cores", "number of cores"))
        }
        (Some(default), None) if !default.is_empty() => {
            (help.clone(), default.to_string_lossy().into_owned())
        }
        _ => (help, String::new()),
    }
}

fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}

/// Said once, by hand: nothing that should be the same at the next start.
const NO_SETTINGS: [&str; 2] = ["recover-alone", "yes"];

/// What a role doesn't start without.
const REQUIRED: [(&str, &str); 6] = [
    ("coordinator", "id"),
    ("coordinator", "peers"),
    ("coordinator", "data"),
    ("node", "coordinators"),
    ("node", "data"),
    ("gateway", "coordinators"),
];

/// A table of flags, and the keys that they have in a file.
fn table<'a>(
    role: &str,
    flags: impl Iterator<Item = &'a clap::Arg>,
    is_key: impl Fn(&str) -> bool,
    used: &mut BTreeSet<String>,
) -> String {
    let mut page = "| flag | variable | key | default | |\n|---|---|---|---|---|\n".to_owned();
    for flag in flags.filter(|flag| !flag.is_hide_set()) {
        let Some(long) = flag.get_long().filter(|long| !["help", "version"].contains(long)) else {
            continue;
        };
        let key = long.replace('-', "_");
        let key = if is_key(&key) { key } else { String::new() };
        used.insert(key.clone());
        let variable = flag.get_env().map(|name| name.to_string_lossy().into_owned());
        let (help, default) = words(flag);
        let default = match REQUIRED.contains(&(role, long)) {
            true => "required".to_owned(),
            false => code(&default),
        };
        let line = writeln!(
            page,
            "| `--{long}` | {} | {} | {} | {help} |",
            code(&variable.unwrap_or_default()),
            code(&key),
            default,
        );
        line.unwrap();
    }
    page
}

fn page() -> String {
    let (keys, mut used) = (keys(), BTreeSet::new());
    let cli = Cli::command();
    let mut page = HEAD.to_owned();
    for role in ["coordinator", "node", "gateway", "dev"] {
        let command = cli.find_subcommand(role).unwrap();
        let common: BTreeSet<&str> = ["log", "log_format", "network_threads"].into_iter().collect();
        let is_key = |key: &str| keys.contains(key) && (role != "dev" || common.contains(key));
        let about = command.get_about().unwrap();
        write!(page, "\n## `kvdb {role}`\n\n{about}.\n\n").unwrap();
        page += &table(role, command.get_arguments(), is_key, &mut used);
    }
    page += "\n## Commands that talk to a cluster\n\n\
             For all of them; `kvdb COMMAND --help` shows what else each takes.\n\n";
    page += &table("", cli.get_arguments(), |_| false, &mut used);
    let unused: Vec<_> = keys.iter().filter(|key| !used.contains(**key)).collect();
    assert!(unused.is_empty(), "keys without a flag: {unused:?}");
    page
}

#[test]
fn the_page_of_settings_is_what_the_flags_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/settings.md");
    if std::env::var_os("KVDB_WRITE_DOCS").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page(), "docs/settings.md is out of date: run scripts/settings_docs.sh");
}

#[test]
fn every_setting_of_a_server_has_a_variable_and_a_key() {
    let keys = keys();
    for role in ["coordinator", "node", "gateway"] {
        let cli = Cli::command();
        for flag in cli.find_subcommand(role).unwrap().get_arguments() {
            let long = flag.get_long().unwrap();
            if NO_SETTINGS.contains(&long) {
                assert_eq!(flag.get_env(), None, "{long}");
                continue;
            }
            let key = long.replace('-', "_");
            assert_eq!(flag.get_env().unwrap(), format!("KVDB_{}", key.to_uppercase()).as_str());
            assert!(long == "config" || keys.contains(key.as_str()), "{role} {long}");
        }
    }
}

#[test]
fn a_setting_is_required_where_the_page_says_so() {
    let given = [("id", "1"), ("peers", "1=a:1"), ("data", "d"), ("coordinators", "a:1")];
    let start = |role: &str, left_out: &str| {
        let cli = Cli::command();
        let knows = |flag: &str| {
            let mut flags = cli.find_subcommand(role).unwrap().get_arguments();
            flags.any(|known| known.get_long() == Some(flag))
        };
        let mut line = vec!["kvdb".to_owned(), role.to_owned()];
        for (flag, value) in given.iter().filter(|(flag, _)| *flag != left_out && knows(flag)) {
            line.push(format!("--{flag}={value}"));
        }
        match Cli::try_parse_from(line).unwrap().command {
            crate::cli::Command::Role(Role::Coordinator(args)) => {
                coordinator(args, File::default()).map(|_| ())
            }
            crate::cli::Command::Role(Role::Node(args)) => node(args, File::default()).map(|_| ()),
            crate::cli::Command::Role(Role::Gateway(args)) => {
                gateway(args, File::default()).map(|_| ())
            }
            _ => panic!("a role"),
        }
    };
    for role in ["coordinator", "node", "gateway"] {
        assert_eq!(start(role, ""), Ok(()), "{role} needs nothing else");
    }
    for (role, flag) in REQUIRED {
        let refused = start(role, flag).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("--{flag} is missing")), "{role}: {refused}");
    }
}

#[test]
fn defaults_are_what_the_help_says() {
    let default = |role: &str, flag: &str| {
        let cli = Cli::command();
        let flags = cli.find_subcommand(role).unwrap();
        words(flags.get_arguments().find(|one| one.get_long() == Some(flag)).unwrap()).1
    };
    let parse = |words: &[&str]| {
        let cli = Cli::try_parse_from([&["kvdb"], words].concat()).unwrap();
        match cli.command {
            crate::cli::Command::Role(role) => role,
            _ => panic!("a role"),
        }
    };
    let Role::Coordinator(args) =
        parse(&["coordinator", "--id", "3", "--peers", "3=a:1", "--data", "d"])
    else {
        panic!("a coordinator")
    };
    let config = coordinator(args, File::default()).unwrap();
    let of = |flag| default("coordinator", flag);
    assert_eq!(of("listen"), "127.0.0.1:7100 + id");
    assert_eq!(of("http"), "127.0.0.1:7180 + id");
    assert_eq!(
        (config.listen.as_str(), config.http.as_deref()),
        ("127.0.0.1:7103", Some("127.0.0.1:7183"))
    );
    let planner = config.planner;
    assert_eq!(units::parse_seconds(&of("repair-after")).unwrap() * 1000, planner.repair_after_ms);
    assert_eq!(units::parse_size(&of("split-size-bytes")).unwrap(), planner.split_size_bytes);
    assert_eq!(of("rebalance"), planner.rebalance.to_string());
    assert_eq!(of("moves-per-node"), planner.moves_per_node.to_string());

    let Role::Node(args) = parse(&["node", "--coordinators", "a:1", "--data", "d"]) else {
        panic!("a node")
    };
    let config = node(args, File::default()).unwrap();
    let of = |flag| default("node", flag);
    assert_eq!((of("listen"), Some(of("http"))), (config.listen, config.http));
    let bytes = units::parse_size(&of("snapshot-bytes-per-second")).unwrap();
    assert_eq!(bytes, config.snapshot_bytes_per_second);

    let Role::Gateway(args) = parse(&["gateway", "--coordinators", "a:1"]) else {
        panic!("a gateway")
    };
    let config = gateway(args, File::default()).unwrap();
    let of = |flag| default("gateway", flag);
    assert_eq!((Some(of("listen")), Some(of("redis"))), (config.listen, config.redis));
    assert_eq!(Some(of("http")), config.http);
    assert_eq!(of("max-requests"), config.most_requests.to_string());
}
