//! What the scripts beside the binary do without it.

use std::path::Path;
use std::process::Command;

#[test]
fn a_binary_of_another_name_is_refused_rather_than_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("kvdb-renamed");
    std::fs::copy("/bin/true", &binary).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/cluster.sh");
    let mut command = Command::new("bash");
    command.arg(script).arg("start").env("KVDB_BIN", &binary);
    command.env("KVDB_CLUSTER_DATA", folder.path().join("data"));
    let output = command.env("KVDB_CLUSTER_LOGS", folder.path().join("logs")).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && words.contains("must be named kvdb"), "{words}");
}

#[test]
fn a_binary_that_is_too_large_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/size_check.sh");
    for (mib, is_fine) in [(30, true), (31, false)] {
        let binary = folder.path().join("kvdb");
        std::fs::File::create(&binary).unwrap().set_len(mib << 20).unwrap();
        let output = Command::new("bash").arg(&script).env("KVDB_BIN", &binary).output().unwrap();
        assert_eq!(output.status.success(), is_fine, "{output:?}");
    }
}

#[test]
fn package_sources_are_those_that_the_machine_has_packages_from() {
    let folder = tempfile::tempdir().unwrap();
    let parts = folder.path().join("sources.list.d");
    std::fs::create_dir(&parts).unwrap();
    std::fs::write(
        folder.path().join("sources.list"),
        "# deb http://a/ old main\ndeb http://mirror.example/debian bookworm main\n",
    )
    .unwrap();
    std::fs::write(parts.join("more.list"), "deb [arch=amd64] http://b.example x y\n").unwrap();
    let stanza = "Types: deb\nURIs: http://c.example/debian\nSuites: s\nComponents: main\n";
    std::fs::write(parts.join("new.sources"), stanza).unwrap();
    std::fs::write(parts.join("off.list.disabled"), "deb http://d.example x y\n").unwrap();

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/redis_suite.sh");
    let mut command = Command::new("bash");
    command.arg(script).arg("list-sources").env("APT_ETC", folder.path());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let expected = "deb-src http://mirror.example/debian bookworm main\n\
                    deb-src [arch=amd64] http://b.example x y\n\
                    Types: deb-src\nURIs: http://c.example/debian\nSuites: s\nComponents: main\n";
    assert_eq!(text, expected);
}
