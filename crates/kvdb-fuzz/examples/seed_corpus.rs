//! Writes what fuzzing begins with to `fuzz/corpus`: `cargo run -p kvdb-fuzz --example seed_corpus`.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for target in kvdb_fuzz::TARGETS {
        let folder = corpus.join(target.name);
        std::fs::create_dir_all(&folder)?;
        for (place, seed) in (target.seeds)().into_iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{place:02}")), seed)?;
        }
    }
    Ok(())
}
