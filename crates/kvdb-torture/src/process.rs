//! One process of the cluster: started, signalled, killed, and never left behind.

use kvdb_runtime::clock::SHIFT_FILE;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// How often a process that was asked to end is looked at.
const ASK_AGAIN: Duration = Duration::from_millis(5);

/// A process that can be started again and again with the same arguments.
pub(crate) struct Process {
    /// Its name in reports, such as `node-1`.
    pub(crate) name: String,
    program: PathBuf,
    args: Vec<String>,
    /// Its standard error, appended to.
    log: PathBuf,
    /// By how much its wall clock is wrong: see [`Process::set_clock`].
    clock: PathBuf,
    child: Option<Child>,
    /// Whether it should run: one that doesn't though it should has stopped by itself.
    wanted: bool,
}

impl Process {
    pub(crate) fn new(name: String, program: PathBuf, args: Vec<String>, log: PathBuf) -> Self {
        let clock = log.with_extension("clock");
        Process { name, program, args, log, clock, child: None, wanted: false }
    }

    /// Starts it, by itself or by another program (such as `env`) that becomes it.
    pub(crate) fn start_under(&mut self, wrapper: &[String]) -> io::Result<()> {
        self.kill();
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = match wrapper {
            [] => Command::new(&self.program),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(&self.program);
                command
            }
        };
        // A group of its own: Ctrl-C is for us alone, so that we can end in order.
        command.args(&self.args).process_group(0).env(SHIFT_FILE, &self.clock);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn()?);
        self.wanted = true;
        Ok(())
    }

    /// Its process number, while it runs.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// `kill -9`, and waits for its end.
    pub(crate) fn kill(&mut self) {
        self.wanted = false;
        if let Some(mut child) = self.child.take() {
            // It fails only for one that has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks it to end, and waits until it has.
    pub(crate) async fn terminate(&mut self) {
        self.wanted = false;
        self.signal(Signal::TERM);
        while let Some(child) = &mut self.child {
            match child.try_wait() {
                Ok(None) => tokio::time::sleep(ASK_AGAIN).await,
                _ => self.child = None,
            }
        }
    }

    /// Makes its wall clock wrong by so many milliseconds, or right. It notices within moments.
    pub(crate) fn set_clock(&self, shift: &str) -> io::Result<()> {
        std::fs::write(&self.clock, shift)
    }

    /// Stops it, or lets it go on.
    pub(crate) fn pause(&self, paused: bool) {
        self.signal(if paused { Signal::STOP } else { Signal::CONT });
    }

    fn signal(&self, signal: Signal) {
        let id = self.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(id) = id {
            // One that has died meanwhile is found by `ended`.
            let _ = kill_process(id, signal);
        }
    }

    /// How it ended, if it ended by itself. Said once.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        self.child = None;
        self.wanted.then_some(status)
    }

    /// The last lines of its log.
    pub(crate) fn last_words(&self, lines: usize) -> Vec<String> {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut last: Vec<String> = text.lines().rev().take(lines).map(str::to_owned).collect();
        last.reverse();
        last
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, folder: &tempfile::TempDir) -> Process {
        let args = vec!["-c".to_owned(), script.to_owned()];
        Process::new("sh".into(), "/bin/sh".into(), args, folder.path().join("log"))
    }

    #[test]
    fn one_that_stops_by_itself_is_told_from_one_that_was_killed() {
        let folder = tempfile::tempdir().unwrap();
        let mut process = shell("echo bad disk >&2; exit 3", &folder);
        process.start_under(&[]).unwrap();
        let status = loop {
            if let Some(status) = process.ended() {
                break status;
            }
            std::thread::yield_now();
        };
        assert_eq!(status.code(), Some(3));
        assert_eq!(process.last_words(5), ["bad disk"]);
        assert!(process.ended().is_none(), "it is said once");

        let mut process = shell("read line", &folder);
        process.start_under(&[]).unwrap();
        assert!(process.id().is_some());
        process.kill();
        assert!(process.ended().is_none() && process.id().is_none());
    }
}
