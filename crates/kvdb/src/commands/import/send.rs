//! One sender: batch after batch.

use super::Batch;
use super::tally::Tally;
use crate::commands::parts;
use crate::exit::Failure;
use crate::rows::{Content, Row};
use indicatif::{HumanCount, ProgressBar};
use kvdb_client::Client;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Sends batches until there are no more. After a stop it only notes what it didn't send.
pub(super) async fn send_all(
    client: Client,
    mut batches: mpsc::Receiver<Batch>,
    tally: Arc<Tally>,
    progress: ProgressBar,
) {
    while let Some(batch) = batches.recv().await {
        if tally.is_stopped() {
            batch.lines.iter().for_each(|line| tally.leave_open(*line));
            continue;
        }
        send(&client, &batch, &tally).await;
        progress.set_position(tally.read_bytes());
        progress.set_message(HumanCount(tally.acknowledged()).to_string());
    }
}

async fn send(client: &Client, batch: &Batch, tally: &Tally) {
    if let Some(Row { key, content: Content::Part(part), ttl_ms }) = &batch.part {
        let line = batch.lines.first().copied().unwrap_or_default();
        match parts::write(client, key, part, *ttl_ms).await {
            Ok(()) => tally.acknowledge(),
            Err(failure) => {
                tally.leave_open(line);
                tally.stop(in_line(line, failure));
            }
        }
        return;
    }
    let results = match client.batch_write(&batch.operations, false).await {
        Ok(results) => results,
        Err(error) => {
            batch.lines.iter().for_each(|line| tally.leave_open(*line));
            let first = batch.lines.first().copied().unwrap_or_default();
            tally.stop(in_line(first, error.into()));
            return;
        }
    };
    for (line, result) in batch.lines.iter().zip(results) {
        match result {
            Ok(_) => tally.acknowledge(),
            Err(error) => {
                tally.leave_open(*line);
                tally.stop(in_line(*line, error.into()));
            }
        }
    }
}

fn in_line(line: u64, failure: Failure) -> Failure {
    failure.map_words(&|words| format!("line {line}: {words}"))
}
