//! The Redis protocol: connections, and how their commands are carried out.
//!
//! `connection` reads what has come, takes as many commands as may run together, and writes their
//! answers in order; `wave` carries their steps out, a message a shard; `jobs` and `scan` do what
//! takes several; `clients` knows who is connected, `info` and
//! `count` what is told of the server and its keys.

mod clients;
mod connection;
mod count;
mod info;
mod jobs;
mod scan;
pub(crate) mod wave;

use crate::route::Gateway;
use clients::Clients;
use connection::Connection;
use kvdb_runtime::files;
use kvdb_runtime::shutdown::Shutdown;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// Takes connections until it is told to stop.
pub(crate) async fn serve(gateway: Gateway, listener: TcpListener, shutdown: Shutdown) {
    let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let clients = Arc::new(Clients::new(listener.local_addr().unwrap_or(nowhere)));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.wait() => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of files, mostly: others may close theirs meanwhile.
                tracing::warn!(%error, "a connection can't be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let local = stream.local_addr().unwrap_or(nowhere);
        let (Some(place), Some(client)) = (files::client(), clients.enter(address, local)) else {
            files::refuse(stream, b"-ERR max number of clients reached\r\n".to_vec());
            continue;
        };
        let (gateway, clients, shutdown) = (gateway.clone(), clients.clone(), shutdown.clone());
        tokio::spawn(async move {
            let _place = place;
            let entry = client.entry.clone();
            let talk = Connection::new(gateway, clients, client, stream).talk();
            tokio::select! {
                () = talk => {}
                () = entry.killed() => {}
                () = shutdown.wait() => {}
            }
        });
    }
}
