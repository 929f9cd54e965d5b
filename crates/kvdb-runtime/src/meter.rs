//! Counts the calls of a gRPC server: by method and result, with the time until the answer began.
//!
//! For services that aren't on the data path: each call costs a lookup or two. A stream's time is
//! that until its first message can be sent.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Call {
    method: String,
    result: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Method {
    method: String,
}

/// Figures of a server, and the layer that gathers them.
#[derive(Clone)]
pub struct Meter {
    requests: Family<Call, Counter>,
    seconds: Family<Method, Histogram>,
}

impl Meter {
    /// Makes the figures known as `kvdb_requests` and `kvdb_request_seconds`.
    pub fn new(registry: &mut Registry) -> Self {
        let seconds = Family::new_with_constructor(
            (|| Histogram::new(exponential_buckets(0.000_1, 2.0, 18))) as fn() -> Histogram,
        );
        let meter = Meter { requests: Family::default(), seconds };
        registry.register("kvdb_requests", "Requests by method and result", meter.requests.clone());
        registry.register(
            "kvdb_request_seconds",
            "Time from a request to the beginning of its answer",
            meter.seconds.clone(),
        );
        meter
    }

    fn count<B>(&self, method: String, response: &Response<B>, started: Instant) {
        let header = |name: &str| {
            let value = response.headers().get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        let status = header("grpc-status").filter(|status| status != "0");
        let result = match (status, header("x-error-code")) {
            (None, _) => "OK".to_owned(),
            (Some(_), Some(code)) => code,
            (Some(status), None) => format!("GRPC_{status}"),
        };
        let elapsed = started.elapsed().as_secs_f64();
        self.seconds.get_or_create(&Method { method: method.clone() }).observe(elapsed);
        self.requests.get_or_create(&Call { method, result }).inc();
    }
}

/// The method of a path, if it can be one of ours: what callers make up must not fill the memory.
fn method_of(path: &str) -> Option<String> {
    let method = path.strip_prefix("/kvdb.v1.")?.split_once('/')?.1;
    let is_name =
        (1..=40).contains(&method.len()) && method.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_name.then(|| method.to_owned())
}

/// Whether the server knows the method: it says so with this status otherwise.
fn is_known<B>(response: &Response<B>) -> bool {
    response.headers().get("grpc-status").is_none_or(|status| status != "12")
}

impl<S> Layer<S> for Meter {
    type Service = Metered<S>;

    fn layer(&self, inner: S) -> Metered<S> {
        Metered { meter: self.clone(), inner }
    }
}

/// A service whose calls are counted.
#[derive(Clone)]
pub struct Metered<S> {
    meter: Meter,
    inner: S,
}

impl<S, A, B> Service<Request<A>> for Metered<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let started = Instant::now();
        let method = method_of(request.uri().path());
        let answer = self.inner.call(request);
        let meter = self.meter.clone();
        Box::pin(async move {
            let response = answer.await?;
            if let Some(method) = method.filter(|_| is_known(&response)) {
                meter.count(method, &response, started);
            }
            Ok(response)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;

    async fn call(meter: &Meter, path: &str, answer: Result<(), Status>) {
        let service = tower::service_fn(move |_: Request<()>| {
            let answer = answer.clone();
            async move {
                Ok::<_, std::convert::Infallible>(match answer {
                    Ok(()) => Response::new(()),
                    Err(status) => status.into_http(),
                })
            }
        });
        let request = Request::builder().uri(path).body(()).unwrap();
        meter.layer(service).call(request).await.unwrap();
    }

    #[tokio::test]
    async fn calls_are_counted_by_method_and_result() {
        let mut registry = Registry::default();
        let meter = Meter::new(&mut registry);
        let mut refused = Status::failed_precondition("elsewhere");
        refused.metadata_mut().insert("x-error-code", "NOT_LEADER".parse().unwrap());
        call(&meter, "/kvdb.v1.Coordinator/Heartbeat", Ok(())).await;
        call(&meter, "/kvdb.v1.Coordinator/Heartbeat", Err(refused)).await;
        call(&meter, "/kvdb.v1.Coordinator/Heartbeat", Err(Status::internal("oh"))).await;
        call(&meter, "/kvdb.v1.Coordinator/MadeUp", Err(Status::unimplemented(""))).await;
        call(&meter, "/elsewhere/Heartbeat", Ok(())).await;
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"kvdb_requests_total{method="Heartbeat",result="OK"} 1"#,
            r#"kvdb_requests_total{method="Heartbeat",result="NOT_LEADER"} 1"#,
            r#"kvdb_requests_total{method="Heartbeat",result="GRPC_13"} 1"#,
            r#"kvdb_request_seconds_count{method="Heartbeat"} 3"#,
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(!text.contains("MadeUp") && !text.contains("elsewhere"), "{text}");
    }
}
