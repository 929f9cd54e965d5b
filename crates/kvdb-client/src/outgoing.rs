//! One attempt's way out, which knows whether its message has left.
//!
//! A write that ran out of time may have been carried out, unless it never left. A channel doesn't
//! tell: a request may wait in it for a connection that never comes to be. So the message itself is
//! watched. Before its first byte is taken it is either claimed by the connection or withdrawn by
//! the caller, and only one of the two succeeds: what was withdrawn will not leave later.

use http_body::{Body as HttpBody, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::transport::channel::ResponseFuture;
use tower::Service;

/// A channel for one message.
pub(crate) struct Outgoing {
    channel: Channel,
    fate: Fate,
}

/// Whether the message has left. Cloning shares it.
#[derive(Clone, Default)]
pub(crate) struct Fate(Arc<AtomicU8>);

const WAITING: u8 = 0;
const LEFT: u8 = 1;
const WITHDRAWN: u8 = 2;

impl Fate {
    /// Keeps the message from leaving. `false` if it has left already, at least in part.
    pub(crate) fn withdraw(&self) -> bool {
        self.becomes(WITHDRAWN)
    }

    fn leave(&self) -> bool {
        self.becomes(LEFT)
    }

    fn becomes(&self, wanted: u8) -> bool {
        match self.0.compare_exchange(WAITING, wanted, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(already) => already == wanted,
        }
    }
}

impl Outgoing {
    pub(crate) fn new(channel: Channel) -> Self {
        Outgoing { channel, fate: Fate::default() }
    }

    pub(crate) fn fate(&self) -> Fate {
        self.fate.clone()
    }
}

impl Service<http::Request<Body>> for Outgoing {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> ResponseFuture {
        let fate = self.fate();
        self.channel.call(request.map(|message| Body::new(Watched { message, fate })))
    }
}

/// The message on its way.
struct Watched {
    message: Body,
    fate: Fate,
}

impl HttpBody for Watched {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        if !self.fate.leave() {
            return Poll::Ready(Some(Err(Status::cancelled("the request was withdrawn"))));
        }
        Pin::new(&mut self.message).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.message.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.message.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    fn next(watched: &mut Watched) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        Pin::new(watched).poll_frame(&mut Context::from_waker(Waker::noop()))
    }

    fn message(fate: &Fate) -> Watched {
        Watched { message: Body::empty(), fate: fate.clone() }
    }

    #[test]
    fn what_was_withdrawn_does_not_leave() {
        let fate = Fate::default();
        assert!(fate.withdraw());
        assert!(matches!(next(&mut message(&fate)), Poll::Ready(Some(Err(_)))));
    }

    #[test]
    fn what_has_left_is_not_withdrawn() {
        let fate = Fate::default();
        let mut watched = message(&fate);
        assert!(matches!(next(&mut watched), Poll::Ready(None)));
        assert!(!fate.withdraw());
        assert!(matches!(next(&mut watched), Poll::Ready(None)), "it goes on");
    }
}
