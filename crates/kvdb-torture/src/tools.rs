//! What this machine lets us do: who we are, and which programs are installed.

use std::path::{Path, PathBuf};

/// What was found.
#[derive(Clone, Debug)]
pub struct Tools {
    root: bool,
    folders: Vec<PathBuf>,
}

/// The controller of memory groups, version 1.
pub(crate) const MEMORY_GROUPS: &str = "/sys/fs/cgroup/memory";

impl Tools {
    /// Looks around.
    pub fn find() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders =
            std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(Into::into)).collect();
        Tools { root: rustix::process::geteuid().is_root(), folders }
    }

    /// Whether a program is installed.
    pub(crate) fn has(&self, program: &str) -> bool {
        self.folders.iter().any(|folder| folder.join(program).is_file())
    }

    pub(crate) fn without(&self, program: &str) -> Option<String> {
        (!self.has(program)).then(|| format!("{program} is not installed"))
    }

    pub(crate) fn without_loop_mounts(&self) -> Option<String> {
        if !self.root {
            return Some("mounting a file system needs root".to_owned());
        }
        if !Path::new("/dev/loop-control").exists() {
            return Some("there are no loop devices".to_owned());
        }
        ["mkfs.ext4", "mount", "umount"].iter().find_map(|program| self.without(program))
    }

    /// Other users may trace their own children only where the system says so.
    pub(crate) fn without_tracing(&self) -> Option<String> {
        let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
        let restricted = scope.is_ok_and(|scope| scope.trim() != "0");
        (restricted && !self.root).then(|| "tracing a process needs root here".to_owned())
    }

    pub(crate) fn without_memory_groups(&self) -> Option<String> {
        if !self.root {
            return Some("a memory group needs root".to_owned());
        }
        let writable = Path::new(MEMORY_GROUPS).join("memory.limit_in_bytes").exists();
        (!writable).then(|| format!("there is no memory controller at {MEMORY_GROUPS}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let nobody = Tools { root: false, folders: vec!["/nonexistent".into()] };
        assert_eq!(nobody.without("strace").unwrap(), "strace is not installed");
        assert!(nobody.without_loop_mounts().unwrap().contains("root"));
        assert!(nobody.without_memory_groups().unwrap().contains("root"));
        assert_eq!(Tools { root: false, folders: vec!["/bin".into()] }.without("sh"), None);
    }
}
