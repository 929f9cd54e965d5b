//! The table of commands in the documentation, made of the one that is run.

use crate::table::COMMANDS;

/// Commands of Redis 7.0 that don't exist here, by what they need.
pub const MISSING: [(&str, &str); 6] = [
    ("blocking commands on lists", "blmove blmpop blpop brpop brpoplpush"),
    ("blocking commands on sorted sets", "bzmpop bzpopmax bzpopmin"),
    (
        "streams",
        "xack xadd xautoclaim xclaim xdel xgroup xinfo xlen xpending xrange xread xreadgroup xrevrange xsetid xtrim",
    ),
    ("scripts and functions", "eval eval_ro evalsha evalsha_ro fcall fcall_ro script"),
    (
        "publish and subscribe, monitoring",
        "monitor psubscribe publish pubsub punsubscribe spublish ssubscribe subscribe sunsubscribe unsubscribe",
    ),
    (
        "Redis's own storage, replication, cluster and access rules",
        "acl asking bgrewriteaof bgsave cluster debug failover lastsave lolwut migrate module pfdebug pfselftest psync readonly readwrite replconf replicaof role slaveof sync",
    ),
];

/// What a command of Redis that doesn't exist here is for.
pub fn missing(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let has = |(_, names): &&(&str, &str)| names.split(' ').any(|known| known == name);
    MISSING.iter().find(has).map(|(what, _)| *what)
}

/// The table, in Markdown.
pub fn markdown() -> String {
    let mut out = String::new();
    let mut groups: Vec<&str> = COMMANDS.iter().map(|spec| spec.group).collect();
    groups.sort_unstable();
    groups.dedup();
    for group in groups {
        out.push_str(&format!(
            "\n### {group}\n\n| command | does | differences, atomicity |\n|---|---|---|\n"
        ));
        for spec in COMMANDS.iter().filter(|spec| spec.group == group) {
            let notes = match spec.notes {
                "" if spec.keys == (1, 1, 1) => "atomic",
                notes => notes,
            };
            let name = spec.name.to_uppercase();
            out.push_str(&format!("| `{name}` | {} | {notes} |\n", spec.summary));
        }
    }
    out.push_str("\n### not supported\n\n| for | commands |\n|---|---|\n");
    for (what, names) in MISSING {
        out.push_str(&format!("| {what} | {} |\n", names.to_uppercase()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_command_is_both_there_and_missing() {
        for name in MISSING.iter().flat_map(|(_, names)| names.split(' ')) {
            assert!(crate::table::find(name.as_bytes()).is_none(), "{name}");
        }
    }
}
