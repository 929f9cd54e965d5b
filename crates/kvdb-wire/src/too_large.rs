//! Messages that are larger than a server reads, refused as the contract says.
//!
//! tonic ends such a call before any service sees it, with a status that tells programs nothing.
//! This layer, around all services of a server, puts the refusal in its place.

use crate::refusal::status_of;
use http::{HeaderMap, Request, Response, header};
use kvdb_model::Refusal;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tower::{Layer, Service};

/// What tonic says, and where the limit stands in it.
const SAID: &str = "Error, decoded message length too large";
const LIMIT: &str = "the limit is: ";
/// gRPC's `OUT_OF_RANGE`, which tonic says it with.
const OUT_OF_RANGE: &str = "11";

/// Wraps services so that too large a message is refused as such.
#[derive(Clone, Copy, Debug, Default)]
pub struct NameTooLarge;

/// A wrapped service.
#[derive(Clone, Debug)]
pub struct Named<S>(S);

impl<S> Layer<S> for NameTooLarge {
    type Service = Named<S>;

    fn layer(&self, inner: S) -> Named<S> {
        Named(inner)
    }
}

impl<S, A, B> Service<Request<A>> for Named<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move {
            let mut response = answer.await?;
            if let Some(limit_bytes) = limit_that_was_passed(response.headers()) {
                let refusal = Refusal::RequestTooLarge { limit_bytes };
                let (parts, ()) = status_of(&refusal).into_http::<()>().into_parts();
                let kept = response.headers().get(header::CONTENT_TYPE).cloned();
                *response.headers_mut() = parts.headers;
                if let Some(kept) = kept {
                    response.headers_mut().insert(header::CONTENT_TYPE, kept);
                }
            }
            Ok(response)
        })
    }
}

/// The limit, if that is what a call was ended for.
fn limit_that_was_passed(headers: &HeaderMap) -> Option<u64> {
    headers.get("grpc-status").filter(|status| *status == OUT_OF_RANGE)?;
    // Spaces are percent-encoded there.
    let message = headers.get("grpc-message")?.to_str().ok()?.replace("%20", " ");
    let limit = message.strip_prefix(SAID)?.split_once(LIMIT)?.1;
    limit.split(' ').next()?.parse().ok()
}
