//! A small cluster, and a client that speaks Redis's protocol to it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Dev {
    pub(crate) child: Child,
    pub(crate) redis: u16,
    pub(crate) grpc: u16,
    pub(crate) http: u16,
    /// Its temporary directory is in here: killed, it removes nothing itself.
    _folder: tempfile::TempDir,
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Dev {
    pub(crate) fn start() -> Self {
        let offset = kvdb_torture::free_offset().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_kvdb"))
            .env("TMPDIR", folder.path())
            .args(["dev", "--temporary", "--nodes", "1", "--shards", "2", "--port-offset"])
            .arg(offset.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (redis, grpc, http) = (7379 + offset, 7400 + offset, 7480 + offset);
        let dev = Dev { child, redis, grpc, http, _folder: folder };
        let until = Instant::now() + PATIENCE;
        loop {
            let ready = TcpStream::connect(("127.0.0.1", dev.redis)).is_ok()
                && dev.client().ask("get nothing").starts_with("$-1");
            if ready {
                return dev;
            }
            assert!(Instant::now() < until, "it doesn't get ready");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn admin(&self, words: &[&str]) -> String {
        let out = Command::new(env!("CARGO_BIN_EXE_kvdb"))
            .args(["--endpoint", &format!("127.0.0.1:{}", self.grpc), "admin"])
            .args(words)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    pub(crate) fn client(&self) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", self.redis)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client(stream)
    }
}

pub(crate) struct Client(pub(crate) TcpStream);

impl Client {
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// The answer to a line, as far as it comes at once.
    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.send(format!("{line}\r\n").as_bytes());
        let mut answer = [0; 4096];
        let count = self.0.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..count]).into_owned()
    }

    /// The next line of an answer, whole.
    pub(crate) fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while line.last() != Some(&b'\n') {
            self.0.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        String::from_utf8_lossy(&line).into_owned()
    }

    /// All that comes until the server closes the connection. (It may be reset where it was still
    /// sending.)
    pub(crate) fn rest(mut self) -> String {
        let mut all = Vec::new();
        let _ = self.0.read_to_end(&mut all);
        String::from_utf8_lossy(&all).into_owned()
    }
}

/// What the command line says to the cluster.
pub(crate) fn kvdb(dev: &Dev, words: &[&str], input: &str) -> std::process::Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kvdb"))
        .args(["--endpoint", &format!("127.0.0.1:{}", dev.grpc)])
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Asks until this is the answer.
pub(crate) fn wait_for(client: &mut Client, line: &str, wanted: &str) {
    let until = Instant::now() + PATIENCE;
    loop {
        let answer = client.ask(line);
        if answer == wanted {
            return;
        }
        assert!(Instant::now() < until, "{line} still says {answer}");
    }
}
