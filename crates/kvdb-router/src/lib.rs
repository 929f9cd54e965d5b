//! The client side of routing: from a key to the node that should be asked, and what to do when
//! that was wrong.
//!
//! [`Routes`] is an immutable view of the shard map, rebuilt when the map changes and shared by
//! all requests. [`RequestMachine`] is one request's way through refusals: it is told what
//! happened and says what to do next. Neither knows a clock or a socket.

mod request;
mod routes;

pub use request::{Failure, Next, RequestMachine};
pub use routes::{MapCache, Route, Routes};
