//! An engine in a temporary folder.

use kvdb_engine::conformance::Subject;
use kvdb_engine_lsm::{LsmConfig, LsmEngine};
use std::path::PathBuf;

pub struct OnDisk {
    // Dropped before the folder that it lives in.
    engine: Option<LsmEngine>,
    folder: tempfile::TempDir,
    config: LsmConfig,
}

impl OnDisk {
    pub fn new(config: LsmConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let engine = Some(LsmEngine::open(folder.path(), config.clone()).unwrap());
        OnDisk { engine, folder, config }
    }

    #[allow(dead_code, reason = "not every test looks at files")]
    pub fn path(&self, inside: &str) -> PathBuf {
        self.folder.path().join(inside)
    }
}

impl Subject for OnDisk {
    type Engine = LsmEngine;

    fn engine(&self) -> &LsmEngine {
        self.engine.as_ref().unwrap()
    }

    fn crash(&mut self) {
        // Memtables are all that isn't on disk, and dropping forgets them.
        self.engine = None;
        self.engine = Some(LsmEngine::open(self.folder.path(), self.config.clone()).unwrap());
    }
}
