//! The table of commands in `docs/redis.md` is the one that is run. `scripts/redis_docs.sh` writes it.

use kvdb_redis::compatibility;
use std::path::Path;

const BEGIN: &str = "<!-- commands: written by scripts/redis_docs.sh -->\n";
const END: &str = "<!-- end of commands -->\n";

#[test]
fn the_documented_commands_are_those_that_there_are() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/redis.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the page marks where the table begins");
    let (_, after) = rest.split_once(END).expect("the page marks where the table ends");
    let wanted = format!("{before}{BEGIN}{}\n{END}{after}", compatibility::markdown());
    if std::env::var_os("KVDB_WRITE_DOCS").is_some() {
        std::fs::write(&path, wanted).unwrap();
    } else {
        assert!(page == wanted, "docs/redis.md is not up to date: run scripts/redis_docs.sh");
    }
}
