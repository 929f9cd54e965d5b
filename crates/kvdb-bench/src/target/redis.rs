//! The Redis protocol (RESP2) over plain TCP: each client has a connection of its own, writes all
//! commands of a wave at once and reads their answers in order.

use super::{Answer, ConnectError, Done, Failed, attempts};
use crate::load::{Action, Operation};
use crate::options::Options;
use bytes::{Buf as _, BufMut as _, BytesMut};
use futures_util::future::try_join_all;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// How long a client that found nobody waits, so that it doesn't ask in a frenzy.
const PAUSE_AFTER_REFUSAL: Duration = Duration::from_millis(20);
/// The largest answer that is read.
const MOST_BYTES: usize = 64 * 1024 * 1024;
/// Arrays within arrays that are read.
const DEEPEST: u32 = 8;

/// One client.
pub(crate) struct Session {
    address: String,
    timeout: Duration,
    /// `None` after something went wrong: what comes next on it would be anybody's answer.
    connection: Option<Connection>,
}

struct Connection {
    stream: TcpStream,
    input: BytesMut,
    output: BytesMut,
}

/// An answer, as far as the benchmark looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reply {
    /// A status, a number or a value that is there.
    Some,
    /// Nothing is there, or a transaction didn't take place.
    None,
    /// `-`, with its words.
    Error(String),
    /// The first error in it counts for all of it.
    Array(Vec<Reply>),
}

pub(super) async fn connect(options: &Options) -> Result<Vec<super::Session>, ConnectError> {
    let clients = options.clients as usize;
    let addresses = options.addresses.iter().cycle().take(clients);
    let sessions = addresses.map(|address| async move {
        let mut session =
            Session { address: address.clone(), timeout: options.timeout, connection: None };
        session.ask(1, |output| command(output, &[b"PING"])).await?;
        Ok::<_, Failed>(super::Session::Redis(session))
    });
    Ok(try_join_all(sessions).await?)
}

impl Session {
    pub(super) async fn wave(&mut self, operations: &[Operation]) -> Vec<Done> {
        let (simple, others): (Vec<_>, Vec<_>) =
            operations.iter().partition(|operation| operation.action != Action::Modify);
        let mut simple = self.pipelined(&simple).await.into_iter();
        let mut done = Vec::with_capacity(operations.len());
        let mut others = others.into_iter();
        for operation in operations {
            done.push(match operation.action {
                Action::Modify => {
                    let operation = others.next().expect("it was put among the others");
                    Done::now(self.modify(operation).await)
                }
                _ => simple.next().expect("each operation has one answer"),
            });
        }
        done
    }

    async fn pipelined(&mut self, operations: &[&Operation]) -> Vec<Done> {
        let mut done = Vec::with_capacity(operations.len());
        if operations.is_empty() {
            return done;
        }
        let limit = self.timeout;
        let result = timeout(limit, self.pipeline(operations, &mut done)).await;
        let failed = match result {
            Ok(Ok(())) => return done,
            Ok(Err(failed)) => failed,
            Err(_) => Failed::Late(limit),
        };
        self.connection = None;
        // What broke the connection is told for the first that waited; the others went with it.
        let mut failed = Some(failed);
        while done.len() < operations.len() {
            let lost = || Failed::Io(io::ErrorKind::ConnectionAborted.into());
            done.push(Done::now(Err(failed.take().unwrap_or_else(lost))));
        }
        done
    }

    /// Fills `done` as far as answers come.
    async fn pipeline(
        &mut self,
        operations: &[&Operation],
        done: &mut Vec<Done>,
    ) -> Result<(), Failed> {
        let connection = self.connected().await?;
        for operation in operations {
            match operation.action {
                Action::Read => command(&mut connection.output, &[b"GET", &operation.key]),
                _ => {
                    let words: [&[u8]; 3] = [b"SET", &operation.key, &operation.value];
                    command(&mut connection.output, &words);
                }
            }
        }
        connection.flush().await?;
        for operation in operations {
            let result = match connection.reply().await? {
                Reply::Error(words) => Err(Failed::Redis(words)),
                Reply::Some => Ok(Answer::default()),
                Reply::None if operation.action == Action::Read => Ok(Answer::read(false)),
                other => Err(Failed::Unlike(format!("{other:?}"))),
            };
            done.push(Done::now(result));
        }
        Ok(())
    }

    /// Watches, reads, and writes in a transaction that fails if the key has changed.
    async fn modify(&mut self, operation: &Operation) -> Result<Answer, Failed> {
        let Operation { key, value, .. } = operation;
        for conflicts in attempts(self.timeout) {
            let read = self.ask(2, |output| {
                command(output, &[b"WATCH", key]);
                command(output, &[b"GET", key]);
            });
            let missing = read.await? == Reply::None;
            let write = self.ask(3, |output| {
                command(output, &[b"MULTI"]);
                command(output, &[b"SET", key, value]);
                command(output, &[b"EXEC"]);
            });
            if write.await? != Reply::None {
                return Ok(Answer { missing, scanned: 0, conflicts });
            }
        }
        Err(Failed::Overtaken(self.timeout))
    }

    /// Sends commands, and returns the last of their answers. An error among them is one of all.
    async fn ask(
        &mut self,
        count: u32,
        write: impl FnOnce(&mut BytesMut),
    ) -> Result<Reply, Failed> {
        let limit = self.timeout;
        let exchange = async {
            let connection = self.connected().await?;
            write(&mut connection.output);
            connection.flush().await?;
            let mut last = Reply::None;
            for _ in 0..count {
                last = connection.reply().await?;
                if let Some(words) = last.error() {
                    return Err(Failed::Redis(words.to_owned()));
                }
            }
            Ok(last)
        };
        let result = timeout(limit, exchange).await.unwrap_or(Err(Failed::Late(limit)));
        if result.is_err() {
            self.connection = None;
        }
        result
    }

    async fn connected(&mut self) -> Result<&mut Connection, Failed> {
        if self.connection.is_none() {
            let stream = match TcpStream::connect(&self.address).await {
                Ok(stream) => stream,
                Err(error) => {
                    sleep(PAUSE_AFTER_REFUSAL).await;
                    let words = format!("{}: {error}", self.address);
                    return Err(io::Error::new(error.kind(), words).into());
                }
            };
            stream.set_nodelay(true)?;
            let (input, output) = (BytesMut::new(), BytesMut::new());
            self.connection = Some(Connection { stream, input, output });
        }
        Ok(self.connection.as_mut().expect("it was just made"))
    }
}

impl Connection {
    async fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.output).await?;
        self.output.clear();
        Ok(())
    }

    async fn reply(&mut self) -> Result<Reply, Failed> {
        loop {
            if let Some((reply, length)) = parse(&self.input, DEEPEST)? {
                self.input.advance(length);
                return Ok(reply);
            }
            if self.input.len() > MOST_BYTES {
                return Err(Failed::Unlike(format!("more than {MOST_BYTES} bytes")));
            }
            self.input.reserve(16 * 1024);
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }
}

impl Reply {
    fn error(&self) -> Option<&str> {
        match self {
            Reply::Error(words) => Some(words),
            Reply::Array(items) => items.iter().find_map(Reply::error),
            Reply::Some | Reply::None => None,
        }
    }
}

fn command(output: &mut BytesMut, words: &[&[u8]]) {
    let head = |output: &mut BytesMut, mark: u8, number: usize| {
        output.put_u8(mark);
        output.put_slice(number.to_string().as_bytes());
        output.put_slice(b"\r\n");
    };
    head(output, b'*', words.len());
    for word in words {
        head(output, b'$', word.len());
        output.put_slice(word);
        output.put_slice(b"\r\n");
    }
}

/// The first answer and its length in bytes; `None` if it isn't all there yet.
fn parse(input: &[u8], depth: u32) -> Result<Option<(Reply, usize)>, Failed> {
    let Some(end) = input.windows(2).position(|pair| pair == b"\r\n") else {
        return Ok(None);
    };
    let unlike = || Failed::Unlike(String::from_utf8_lossy(&input[..end]).into_owned());
    let [mark, rest @ ..] = &input[..end] else { return Err(unlike()) };
    let text = || std::str::from_utf8(rest).map_err(|_| unlike());
    let number = || text()?.parse::<i64>().map_err(|_| unlike());
    let start = end + 2;
    match mark {
        b'+' | b':' => Ok(Some((Reply::Some, start))),
        b'-' => Ok(Some((Reply::Error(text()?.to_owned()), start))),
        b'$' | b'*' if number()? == -1 => Ok(Some((Reply::None, start))),
        b'$' => {
            let length = usize::try_from(number()?).map_err(|_| unlike())?;
            if length > MOST_BYTES {
                return Err(unlike());
            }
            let length = start + length + 2;
            Ok((input.len() >= length).then_some((Reply::Some, length)))
        }
        b'*' if depth > 0 => {
            let count = usize::try_from(number()?).map_err(|_| unlike())?;
            let (mut items, mut at) = (Vec::new(), start);
            for _ in 0..count {
                let Some((item, length)) = parse(&input[at..], depth - 1)? else {
                    return Ok(None);
                };
                items.push(item);
                at += length;
            }
            Ok(Some((Reply::Array(items), at)))
        }
        _ => Err(unlike()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_arrays_of_strings() {
        let mut output = BytesMut::new();
        command(&mut output, &[b"SET", b"k", b""]);
        assert_eq!(&output[..], b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n");
    }

    #[test]
    fn answers_are_read_however_they_are_cut() {
        let answers: [(&[u8], Reply); 7] = [
            (b"+OK\r\n", Reply::Some),
            (b":-5\r\n", Reply::Some),
            (b"$5\r\na\r\nbc\r\n", Reply::Some),
            (b"$-1\r\n", Reply::None),
            (b"*-1\r\n", Reply::None),
            (b"-ERR no\r\n", Reply::Error("ERR no".to_owned())),
            (b"*2\r\n+OK\r\n*1\r\n$-1\r\n", {
                Reply::Array(vec![Reply::Some, Reply::Array(vec![Reply::None])])
            }),
        ];
        for (bytes, reply) in answers {
            for length in 0..bytes.len() {
                assert_eq!(parse(&bytes[..length], DEEPEST).unwrap(), None, "{bytes:?}");
            }
            let more = [bytes, b"+more\r\n"].concat();
            assert_eq!(parse(&more, DEEPEST).unwrap(), Some((reply, bytes.len())));
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let deep = b"*1\r\n".repeat(20);
        let bad: [&[u8]; 6] =
            [b"HTTP/1.1\r\n", b"\r\n", b"$x\r\n", b"$-2\r\n", b"$99999999999\r\n", &deep];
        for bytes in bad {
            assert!(parse(bytes, DEEPEST).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn an_error_in_a_transaction_is_an_error() {
        let reply = Reply::Array(vec![Reply::Some, Reply::Error("ERR full".to_owned())]);
        assert_eq!(reply.error(), Some("ERR full"));
    }
}
