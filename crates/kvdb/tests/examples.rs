//! The examples of the Rust client, against a real cluster of three nodes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

#[path = "../../kvdb-client/examples/history.rs"]
mod history;
#[path = "../../kvdb-client/examples/tour.rs"]
mod tour;

#[test]
fn the_examples_do_what_they_say() {
    let cluster = support::Cluster::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tour::run(&cluster.endpoint).await.unwrap();
        // A second time: nothing of the first is in its way.
        tour::run(&cluster.endpoint).await.unwrap();
        history::run(&cluster.endpoint).await.unwrap();
    });
}
