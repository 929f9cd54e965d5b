//! Doing a fault to a cluster, and undoing it.

use crate::Error;
use crate::cluster::{COORDINATORS, Cluster, NODES, PARTS, gateway, node};
use crate::disk::flip_a_bit;
use crate::fault::Fault;
use crate::network::{Part, Passage, STRANGER};
use crate::schedule::Planned;
use crate::tools::MEMORY_GROUPS;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What each chunk of bytes waits on a slow network.
const LATE: Duration = Duration::from_millis(20);
/// How much of a file is its beginning.
const BEGINNING_BYTES: u64 = 4096;
/// Memory that a node may use beyond what it has.
const MORE_MEMORY_BYTES: u64 = 64 * 1024 * 1024;

/// A fault under way.
pub(crate) struct Injected {
    /// Whom it hit, in words.
    pub(crate) target: String,
    /// What else there is to say.
    pub(crate) note: String,
    parts: Vec<Part>,
    /// A program that does it for as long as it runs.
    helper: Option<Child>,
    group: Option<PathBuf>,
}

/// Begins a fault.
pub(crate) async fn begin(cluster: &mut Cluster, planned: &Planned) -> Result<Injected, Error> {
    let parts = targets(cluster, planned).await;
    let names: Vec<_> = parts.iter().map(|part| cluster.parts[*part].name.as_str()).collect();
    let target = if parts.len() == PARTS { "everything".to_owned() } else { names.join(", ") };
    let mut injected = Injected { target, note: String::new(), parts, helper: None, group: None };
    injected.start(cluster, planned)?;
    Ok(injected)
}

/// Whom a fault hits.
async fn targets(cluster: &Cluster, planned: &Planned) -> Vec<Part> {
    let choice = (planned.choice % 0xFFFF) as usize;
    match planned.fault {
        Fault::KillAll => (0..PARTS).collect(),
        Fault::KillCoordinators => (0..COORDINATORS).collect(),
        Fault::KillCoordinator | Fault::PauseCoordinator => vec![choice % COORDINATORS],
        Fault::KillGateway => vec![gateway(choice)],
        Fault::ClockJump => vec![choice % PARTS],
        Fault::Bridge => vec![node(choice), node(choice + 1)],
        Fault::KillLeader | Fault::PauseLeader | Fault::PartitionLeader => {
            vec![leader(cluster, choice).await.unwrap_or_else(|| node(choice))]
        }
        _ => vec![node(choice)],
    }
}

/// The node that leads some shard.
async fn leader(cluster: &Cluster, choice: usize) -> Option<Part> {
    let leaders: Vec<Part> = cluster.leaders().await.into_values().flatten().collect();
    leaders.get(choice % leaders.len().max(1)).copied()
}

impl Injected {
    fn first(&self) -> Part {
        self.parts[0]
    }

    fn start(&mut self, cluster: &mut Cluster, planned: &Planned) -> Result<(), Error> {
        let first = self.first();
        match planned.fault {
            Fault::KillNode
            | Fault::KillLeader
            | Fault::KillCoordinator
            | Fault::KillGateway
            | Fault::KillCoordinators
            | Fault::KillAll => self.parts.iter().for_each(|part| cluster.parts[*part].kill()),
            Fault::PauseNode | Fault::PauseLeader | Fault::PauseCoordinator => {
                cluster.parts[first].pause(true);
            }
            Fault::Partition | Fault::PartitionLeader => {
                cut(cluster, first, Passage::Held, true, true);
            }
            Fault::Mute => cut(cluster, first, Passage::Held, true, false),
            Fault::Deaf => cut(cluster, first, Passage::Held, false, true),
            Fault::SlowNetwork => cut(cluster, first, Passage::Late(LATE), true, true),
            Fault::Bridge => {
                cluster.network.set(first, self.parts[1], Passage::Held);
                cluster.network.set(self.parts[1], first, Passage::Held);
            }
            Fault::Reset => cluster.network.reset(first),
            Fault::PowerCut => {
                cluster.disks[first - COORDINATORS].cut_power()?;
                cluster.parts[first].kill();
            }
            Fault::DiskFull => cluster.disks[first - COORDINATORS].fill()?,
            Fault::FrozenDisk => cluster.disks[first - COORDINATORS].freeze(true)?,
            Fault::SlowSync => self.trace(cluster, "delay_enter=200000")?,
            Fault::FailedSync => self.trace(cluster, "error=EIO:when=1")?,
            Fault::ClockJump => self.jump(cluster, planned.choice)?,
            Fault::MemoryLimit => self.limit_memory(cluster)?,
            Fault::EngineDamage => self.damage(cluster, planned.choice, "engine")?,
            Fault::LogDamage => self.damage(cluster, planned.choice, "wal")?,
        }
        Ok(())
    }

    /// Undoes it. Parts that are down are started again, but for one whose log was damaged: that
    /// one is started, too, and must refuse.
    pub(crate) fn end(&mut self, cluster: &mut Cluster, fault: Fault) -> Result<(), Error> {
        let first = self.first();
        match fault {
            Fault::PauseNode | Fault::PauseLeader | Fault::PauseCoordinator => {
                cluster.parts[first].pause(false);
            }
            Fault::PowerCut => cluster.disks[first - COORDINATORS].plug_in()?,
            Fault::DiskFull => cluster.disks[first - COORDINATORS].make_room()?,
            Fault::FrozenDisk => cluster.disks[first - COORDINATORS].freeze(false)?,
            Fault::ClockJump => cluster.parts[first].set_clock("")?,
            _ => cluster.network.heal(),
        }
        self.end_helper();
        if let Some(group) = self.group.take() {
            leave_group(&group, cluster.parts[first].id())?;
        }
        for part in cluster.down() {
            cluster.start_part(part)?;
        }
        Ok(())
    }

    fn end_helper(&mut self) {
        let Some(mut helper) = self.helper.take() else { return };
        // strace lets go of its process when it is asked to end, and not when it is killed.
        let id = rustix::process::Pid::from_raw(helper.id().cast_signed());
        if let Some(id) = id {
            let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        }
        let _ = helper.wait();
    }

    fn trace(&mut self, cluster: &Cluster, what: &str) -> Result<(), Error> {
        let Some(id) = cluster.parts[self.first()].id() else { return Ok(()) };
        let calls = "fdatasync,fsync";
        let helper = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-p", &id.to_string()])
            .args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:{what}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        self.helper = Some(helper);
        Ok(())
    }

    /// The wall clock of one process goes wrong while it runs: by seconds, hours or years, ahead or
    /// behind, or it stands.
    fn jump(&mut self, cluster: &mut Cluster, choice: u64) -> Result<(), Error> {
        const HOUR_MS: u64 = 3_600_000;
        let (shift_ms, words) = match choice / 2 % 8 {
            0 => {
                self.note = "clock stands".to_owned();
                return Ok(cluster.parts[self.first()].set_clock("stand")?);
            }
            1 | 2 => (1000 * (1 + choice % 30), format!("{} s", 1 + choice % 30)),
            3..=5 => ((1 + choice % 9) * HOUR_MS, format!("{} h", 1 + choice % 9)),
            6 => (50 * 365 * 24 * HOUR_MS, "50 years".to_owned()),
            _ => (15 * 60 * 1000, "15 min".to_owned()),
        };
        let sign = if choice & 1 == 0 { "" } else { "-" };
        self.note = format!("clock {}{words}", if sign.is_empty() { "+" } else { "-" });
        Ok(cluster.parts[self.first()].set_clock(&format!("{sign}{shift_ms}"))?)
    }

    fn limit_memory(&mut self, cluster: &Cluster) -> Result<(), Error> {
        let Some(id) = cluster.parts[self.first()].id() else { return Ok(()) };
        let group = Path::new(MEMORY_GROUPS).join(format!("kvdb-torture-{id}"));
        std::fs::create_dir_all(&group)?;
        self.group = Some(group.clone());
        std::fs::write(group.join("memory.limit_in_bytes"), MORE_MEMORY_BYTES.to_string())?;
        std::fs::write(group.join("cgroup.procs"), id.to_string())?;
        Ok(())
    }

    fn damage(&mut self, cluster: &mut Cluster, choice: u64, folder: &str) -> Result<(), Error> {
        let first = self.first();
        cluster.parts[first].kill();
        let mut files = Vec::new();
        list_files(&cluster.data_of(first).join(folder), &mut files)?;
        files.sort();
        let start = choice as usize % files.len().max(1);
        files.rotate_left(start);
        for file in files {
            if let Some(place) = flip_a_bit(&file, choice, u64::MAX)? {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                self.note = format!("a bit of {folder}/…/{name} at byte {place}");
                return Ok(());
            }
        }
        self.note = format!("there was nothing to damage in {folder}");
        Ok(())
    }
}

impl Drop for Injected {
    fn drop(&mut self) {
        self.end_helper();
    }
}

/// Rules between a part and everybody else, for what it sends and what it is sent.
fn cut(cluster: &Cluster, part: Part, passage: Passage, sent: bool, received: bool) {
    for other in (0..PARTS).chain([STRANGER]).filter(|other| *other != part) {
        if sent {
            cluster.network.set(part, other, passage);
        }
        if received {
            cluster.network.set(other, part, passage);
        }
    }
}

/// Flips a bit where the oldest file of a folder begins: what stands there is needed.
pub(crate) fn damage_beginning(folder: &Path) -> Result<String, Error> {
    let mut files = Vec::new();
    list_files(folder, &mut files)?;
    // Files are numbered: the shortest name is the oldest before the alphabet is asked.
    files.sort_by_key(|file| (file.as_os_str().len(), file.clone()));
    for file in files {
        if let Some(place) = flip_a_bit(&file, BEGINNING_BYTES / 2, BEGINNING_BYTES)? {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            return Ok(format!("a bit of {name} at byte {place}"));
        }
    }
    Err(Error::Options(format!("there is nothing to damage in {}", folder.display())))
}

fn leave_group(group: &Path, id: Option<u32>) -> Result<(), Error> {
    if let Some(id) = id {
        std::fs::write(Path::new(MEMORY_GROUPS).join("cgroup.procs"), id.to_string())?;
    }
    // It goes when its last process has gone.
    let _ = std::fs::remove_dir(group);
    Ok(())
}

fn list_files(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            list_files(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

// A cluster has at least as many nodes as a bridge has ends.
const _: () = assert!(NODES >= 2);
