//! `kvdb ping`

use super::client;
use crate::cli::ClientArgs;
use crate::exit::Failure;
use crate::output::Output;
use serde_json::json;

pub(super) async fn run(args: &ClientArgs) -> Result<(), Failure> {
    let took_us = client(args)?.ping().await?.as_micros() as u64;
    let mut output = Output::new();
    if args.json {
        output.json(&json!({ "endpoint": args.endpoint, "serving": true, "took_us": took_us }))?;
    } else {
        let took_ms = took_us as f64 / 1000.0;
        output.line(format!("{} is serving ({took_ms:.1} ms)", args.endpoint))?;
    }
    output.finish()
}
