//! The network between the processes: a proxy before each listener, which lets bytes pass, holds
//! them, or takes its time, by who sends them to whom.
//!
//! It needs no rights and no tools, so it works everywhere. What it can't do is lose a packet: bytes
//! that are held arrive when the fault is over, as they do after TCP has sent them again, but at
//! once. New connections are taken and then hear nothing, where a real network would leave the
//! dialler without an answer.

use crate::dialer;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

/// Whom a rule is about: the number of a part of the cluster, or [`STRANGER`].
pub(crate) type Part = usize;
/// Somebody who isn't part of the cluster, such as the clients.
pub(crate) const STRANGER: Part = usize::MAX;

/// Connections through one proxy at a time; more wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 1024;
/// Bytes that pass at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// What happens to bytes on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passage {
    /// They wait until the rule is gone.
    Held,
    /// Each chunk takes so much longer.
    Late(Duration),
}

#[derive(Clone, Default)]
struct Rules {
    /// By sender and receiver; what isn't listed passes.
    ways: HashMap<(Part, Part), Passage>,
    /// How often all connections of a part were broken.
    resets: HashMap<Part, u64>,
}

/// The rules, and who is who. Clones share both.
#[derive(Clone)]
pub(crate) struct Network {
    rules: Arc<watch::Sender<Rules>>,
    /// Parts by process number.
    processes: Arc<Mutex<HashMap<u32, Part>>>,
}

impl Network {
    pub(crate) fn new() -> Self {
        Network { rules: Arc::new(watch::Sender::new(Rules::default())), processes: Arc::default() }
    }

    /// A part runs as this process now.
    pub(crate) fn runs_as(&self, part: Part, process: u32) {
        let mut processes = self.processes.lock();
        processes.retain(|_, known| *known != part);
        processes.insert(process, part);
    }

    /// Sets a rule for what `from` sends to `to`.
    pub(crate) fn set(&self, from: Part, to: Part, passage: Passage) {
        self.rules.send_modify(|rules| {
            rules.ways.insert((from, to), passage);
        });
    }

    /// Everything passes again.
    pub(crate) fn heal(&self) {
        self.rules.send_modify(|rules| rules.ways.clear());
    }

    /// Breaks all connections from and to a part.
    pub(crate) fn reset(&self, part: Part) {
        self.rules.send_modify(|rules| *rules.resets.entry(part).or_default() += 1);
    }

    /// Serves connections to `to`, which listens at `target`, until the task is dropped.
    pub(crate) async fn serve(self, to: Part, listener: TcpListener, target: String) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (network, target) = (self.clone(), target.clone());
                    tokio::spawn(async move {
                        // A connection that breaks has broken on both sides: nobody else to tell.
                        let _ = network.carry(to, stream, &target).await;
                        drop(place);
                    });
                }
                // Out of files for the moment: the next try waits its turn.
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    async fn carry(&self, to: Part, near: TcpStream, target: &str) -> io::Result<()> {
        let (local, remote) = (near.peer_addr()?.port(), near.local_addr()?.port());
        let processes = self.processes.lock().clone();
        let found =
            tokio::task::spawn_blocking(move || dialer::find(local, remote, &processes)).await;
        let from = found.ok().flatten().unwrap_or(STRANGER);
        let mut rules = self.rules.subscribe();
        let resets = resets_of(&rules.borrow(), from, to);
        let broken = async {
            // The sender lives as long as the network.
            let _ = rules.wait_for(|rules| resets_of(rules, from, to) != resets).await;
        };
        let passing = async {
            pass(&mut self.rules.subscribe(), (from, to)).await;
            let far = TcpStream::connect(target).await?;
            near.set_nodelay(true)?;
            far.set_nodelay(true)?;
            let (near_in, near_out) = near.into_split();
            let (far_in, far_out) = far.into_split();
            let there = pump(near_in, far_out, self.rules.subscribe(), (from, to));
            let back = pump(far_in, near_out, self.rules.subscribe(), (to, from));
            tokio::try_join!(there, back).map(|_| ())
        };
        tokio::select! {
            result = passing => result,
            () = broken => Ok(()),
        }
    }
}

fn resets_of(rules: &Rules, from: Part, to: Part) -> (u64, u64) {
    let of = |part| rules.resets.get(&part).copied().unwrap_or_default();
    (of(from), of(to))
}

/// Waits until bytes may go that way.
async fn pass(rules: &mut watch::Receiver<Rules>, way: (Part, Part)) {
    let is_open = |rules: &Rules| rules.ways.get(&way) != Some(&Passage::Held);
    // The sender lives as long as the network.
    let _ = rules.wait_for(is_open).await;
    let late = match rules.borrow().ways.get(&way) {
        Some(Passage::Late(time)) => Some(*time),
        _ => None,
    };
    if let Some(time) = late {
        tokio::time::sleep(time).await;
    }
}

async fn pump(
    mut input: OwnedReadHalf,
    mut output: OwnedWriteHalf,
    mut rules: watch::Receiver<Rules>,
    way: (Part, Part),
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let length = input.read(&mut chunk).await?;
        // The end of a stream is held like everything else.
        pass(&mut rules, way).await;
        if length == 0 {
            return output.shutdown().await;
        }
        output.write_all(&chunk[..length]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// An echo server as part 0 behind a proxy, and this process as part 1.
    async fn echo() -> (Network, TcpStream) {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = server.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = server.accept().await {
                tokio::spawn(async move {
                    let (mut input, mut output) = stream.split();
                    tokio::io::copy(&mut input, &mut output).await
                });
            }
        });
        let network = Network::new();
        network.runs_as(1, std::process::id());
        let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = proxy.local_addr().unwrap();
        tokio::spawn(network.clone().serve(0, proxy, target));
        (network, TcpStream::connect(address).await.unwrap())
    }

    async fn ask(stream: &mut TcpStream, patience: Duration) -> Option<u8> {
        stream.write_all(b"x").await.ok()?;
        hear(stream, patience).await
    }

    async fn hear(stream: &mut TcpStream, patience: Duration) -> Option<u8> {
        tokio::time::timeout(patience, stream.read_u8()).await.ok()?.ok()
    }

    const LONG: Duration = Duration::from_secs(10);
    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn bytes_pass_are_held_each_way_and_arrive_when_it_is_over() {
        let (network, mut stream) = echo().await;
        assert_eq!(ask(&mut stream, LONG).await, Some(b'x'));
        for way in [(1, 0), (0, 1)] {
            network.set(way.0, way.1, Passage::Held);
            assert_eq!(ask(&mut stream, SHORT).await, None, "{way:?}");
            network.heal();
            assert_eq!(hear(&mut stream, LONG).await, Some(b'x'), "{way:?}");
        }
    }

    #[tokio::test]
    async fn a_rule_about_others_holds_nothing() {
        let (network, mut stream) = echo().await;
        network.set(2, 0, Passage::Held);
        network.set(0, STRANGER, Passage::Held);
        assert_eq!(ask(&mut stream, LONG).await, Some(b'x'));
    }

    #[tokio::test]
    async fn what_is_late_takes_so_much_longer_each_way() {
        let (network, mut stream) = echo().await;
        assert_eq!(ask(&mut stream, LONG).await, Some(b'x'));
        network.set(1, 0, Passage::Late(SHORT));
        network.set(0, 1, Passage::Late(SHORT));
        let asked = Instant::now();
        assert_eq!(ask(&mut stream, LONG).await, Some(b'x'));
        assert!(asked.elapsed() >= 2 * SHORT, "{:?}", asked.elapsed());
    }

    #[tokio::test]
    async fn a_reset_breaks_the_connections_of_that_part() {
        let (network, mut stream) = echo().await;
        assert_eq!(ask(&mut stream, LONG).await, Some(b'x'));
        network.reset(7);
        assert_eq!(ask(&mut stream, LONG).await, Some(b'x'));
        network.reset(1);
        let heard = tokio::time::timeout(LONG, stream.read_u8()).await;
        assert!(heard.expect("it breaks").is_err());
    }
}
