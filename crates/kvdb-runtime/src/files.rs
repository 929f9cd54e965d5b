//! Open files: how many this process may have, and who gets them.
//!
//! Every connection is one. Without a bound a crowd of clients takes the files that the log, the
//! engine and the connections inside the cluster need, and the process stops. So the soft limit is
//! raised as far as it goes when a process starts; of what there is then, a *reserve* stays for the
//! process itself, and clients share the rest. A connection beyond that is taken, told why it is
//! refused in its own protocol, and closed.
//!
//! The limit is the process's, so what is counted here is counted once for all its listeners.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep, timeout};
use tokio_stream::Stream;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// What a gateway needs beside its clients: connections to nodes and coordinators, metrics.
pub const RESERVE_OF_GATEWAY: usize = 256;
/// What a node or coordinator needs beside connections from others: the engine's tables (512), log,
/// connections to others, metrics.
pub const RESERVE_OF_STORE: usize = 768;
/// Fewer clients than this are no service.
const LEAST_CLIENTS: usize = 256;
/// More than this has no use.
const MOST_FILES: u64 = 1 << 20;
/// Connections to the HTTP port, for metrics and health, which come out of the reserve.
const HTTP_CONNECTIONS: usize = 64;
/// Connections that are being told why they are refused. They come out of the reserve, too.
const REFUSED_AT_ONCE: usize = 32;
/// How long somebody who is refused may take to hear it.
const HEARD_WITHIN: Duration = Duration::from_secs(1);
/// After an error others may close files meanwhile.
const PAUSE: Duration = Duration::from_millis(50);

static CLIENTS: Places = Places::new(usize::MAX);
static HTTP: Places = Places::new(HTTP_CONNECTIONS);
static REFUSED: Places = Places::new(REFUSED_AT_ONCE);

/// Raises the soft limit of open files to the hard one, and keeps `reserve` of them from clients.
///
/// # Errors
/// If the hard limit is too low, with the number that is needed.
pub fn raise(reserve: usize) -> Result<(), String> {
    let given = getrlimit(Resource::Nofile);
    let most = given.maximum.unwrap_or(MOST_FILES).min(MOST_FILES);
    let needed = reserve + LEAST_CLIENTS;
    if most < needed as u64 {
        return Err(format!(
            "the limit of open files is {most}, and at least {needed} are needed; raise it (`ulimit -Hn \
             {needed}` as root, LimitNOFILE={needed} in a systemd unit, --ulimit nofile={needed} with \
             containers)"
        ));
    }
    let mut limit = given.current.unwrap_or(MOST_FILES).min(MOST_FILES);
    if limit < most {
        let raised = Rlimit { current: Some(most), maximum: given.maximum };
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => limit = most,
            Err(error) => {
                tracing::warn!(limit, %error, "the limit of open files can't be raised");
            }
        }
    }
    let clients = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(reserve);
    CLIENTS.most.store(clients.max(1), Ordering::Relaxed);
    tracing::debug!(limit, clients, "open files");
    Ok(())
}

/// How many connections of clients there may be.
pub fn most_clients() -> usize {
    CLIENTS.most.load(Ordering::Relaxed)
}

/// How many connections of clients there are.
pub fn clients() -> usize {
    CLIENTS.taken.load(Ordering::Relaxed)
}

/// A place for one more client, if there is one.
pub fn client() -> Option<Place> {
    CLIENTS.take()
}

/// A number of places.
struct Places {
    most: AtomicUsize,
    taken: AtomicUsize,
}

/// One of them; given up when dropped.
pub struct Place(&'static Places);

impl Places {
    const fn new(most: usize) -> Self {
        Places { most: AtomicUsize::new(most), taken: AtomicUsize::new(0) }
    }

    fn take(&'static self) -> Option<Place> {
        let place = Place(self);
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        (before < self.most.load(Ordering::Relaxed)).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that has a place.
pub struct Placed {
    stream: TcpStream,
    _place: Place,
}

/// The connections that come to a gRPC listener, as far as there are places.
pub struct Incoming {
    listener: TcpListener,
    pause: Option<Pin<Box<Sleep>>>,
}

/// The connections that come to a listener, for [`kvdb_wire::transport::server`]. Small answers
/// leave at once: without that the second of two waits until the client's system acknowledges the
/// first, up to 40 ms.
pub fn incoming(listener: TcpListener) -> Incoming {
    Incoming { listener, pause: None }
}

impl Stream for Incoming {
    type Item = io::Result<Placed>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            let stream = match ready!(self.listener.poll_accept(context)) {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection can't be accepted");
                    self.pause = Some(Box::pin(sleep(PAUSE)));
                    continue;
                }
            };
            let _ = stream.set_nodelay(true);
            match client() {
                Some(place) => return Poll::Ready(Some(Ok(Placed { stream, _place: place }))),
                None => refuse(stream, go_away()),
            }
        }
    }
}

/// A listener for metrics and health.
pub(crate) struct HttpListener(pub(crate) TcpListener);

impl axum::serve::Listener for HttpListener {
    type Io = Placed;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Placed, SocketAddr) {
        loop {
            match self.0.accept().await {
                Ok((stream, address)) => match HTTP.take() {
                    Some(place) => return (Placed { stream, _place: place }, address),
                    None => {
                        let body = "too many connections; try again later\n";
                        let length = body.len();
                        let head = "HTTP/1.1 503 Service Unavailable\r\nconnection: close";
                        let answer = format!("{head}\r\ncontent-length: {length}\r\n\r\n{body}");
                        refuse(stream, answer.into_bytes());
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "a connection can't be accepted");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Tells somebody why there is no place, and closes. Closed with what was sent unread, a connection
/// is reset, and the answer may be lost: so that is read first.
pub fn refuse(mut stream: TcpStream, answer: Vec<u8>) {
    let Some(place) = REFUSED.take() else { return };
    tokio::spawn(async move {
        let told = async {
            stream.write_all(&answer).await?;
            stream.shutdown().await?;
            let mut sent = [0; 1024];
            while stream.read(&mut sent).await? > 0 {}
            io::Result::Ok(())
        };
        let _ = timeout(HEARD_WITHIN, told).await;
        drop(place);
    });
}

/// HTTP/2 for "not now": empty settings, and the end of the connection with the reason in words. No
/// request was looked at, so clients may send theirs elsewhere.
fn go_away() -> Vec<u8> {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const ENHANCE_YOUR_CALM: u32 = 0xb;
    let words = format!("too many connections: {} are open; try again later", most_clients());
    let mut out = SETTINGS.to_vec();
    let length = 8 + words.len() as u32;
    out.extend(&length.to_be_bytes()[1..]);
    out.extend([7, 0, 0, 0, 0, 0]);
    out.extend(0_u32.to_be_bytes());
    out.extend(ENHANCE_YOUR_CALM.to_be_bytes());
    out.extend(words.as_bytes());
    out
}

impl Connected for Placed {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Placed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Placed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt as _;

    #[test]
    fn there_are_no_more_places_than_there_are() {
        static PLACES: Places = Places::new(2);
        let first = PLACES.take();
        let second = PLACES.take();
        assert!(first.is_some() && second.is_some() && PLACES.take().is_none());
        drop(first);
        assert!(PLACES.take().is_some(), "one that was given up is free");
    }

    #[test]
    fn too_low_a_limit_is_refused_with_the_number_that_is_needed() {
        let most = getrlimit(Resource::Nofile).maximum.unwrap_or(MOST_FILES).min(MOST_FILES);
        let refused = raise(most as usize).unwrap_err();
        let needed = (most as usize + LEAST_CLIENTS).to_string();
        assert!(refused.contains(&most.to_string()) && refused.contains(&needed), "{refused}");
    }

    #[tokio::test]
    async fn small_answers_leave_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut connections = incoming(listener);
        let (accepted, client) = tokio::join!(connections.next(), TcpStream::connect(address));
        assert!(accepted.unwrap().unwrap().stream.nodelay().unwrap());
        drop(client);
    }
}
