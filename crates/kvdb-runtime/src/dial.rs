//! Who is at an address: asked before anybody counts on it, and answered by every process.
//!
//! An address is what its holder last said; who is really there decides. Whoever dials says where
//! the coordinators are, if it knows: a process that looks for them where they were finds them so.

use crate::identity;
use crate::start::Met;
use kvdb_model::{ClusterId, Generation, GenerationOrder, NodeId};
use kvdb_replication::starts::{MOST_SHOWN, NotVouched, Said};
use kvdb_wire::proto::identify_response::Role;
use kvdb_wire::proto::identity_client::IdentityClient;
use kvdb_wire::proto::identity_server::{Identity, IdentityServer};
use kvdb_wire::{
    cluster_id_from, cluster_id_to, generation_from, generation_to, proto, token_from, transport,
};
use parking_lot::RwLock;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::{Request, Response, Status};

/// Longest that who is there may take to say so.
const PATIENCE: Duration = Duration::from_secs(1);
/// Coordinators that are taken from one that dials.
const MOST_COORDINATORS: usize = 64;
/// For so long a name is looked up again: it may be younger than the process.
const NAME_PATIENCE: Duration = Duration::from_secs(5);
const LOOK_UP_AGAIN: Duration = Duration::from_millis(200);

/// Who was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its cluster; unknown while it doesn't know.
    pub cluster_id: ClusterId,
    /// Its number; 0 while it doesn't know.
    pub id: NodeId,
    /// `None` for one without a data directory.
    pub role: Option<identity::Role>,
    /// Made with its data directory.
    pub token: u128,
    /// Where the coordinators are, as far as it has heard.
    pub coordinators: Vec<String>,
    /// What it knows of the coordinators.
    pub about: About,
}

/// What a process knows of the coordinators, beside where they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// The newest generation that it has met, or its own.
    pub generation: Generation,
    /// Of a node: the version of the last map that it has seen.
    pub map_version: u64,
    /// Of a node: how long ago their leader has answered it, in milliseconds.
    pub leader_silent_ms: Option<u64>,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.role {
            Some(role) if self.id.0 == 0 => write!(f, "a new {role}"),
            Some(role) => write!(f, "{role} {}", self.id),
            None => f.write_str("a gateway"),
        }
    }
}

/// Asks who is at an address; says where the coordinators are, and of which generation.
///
/// # Errors
/// Why nobody was found.
pub async fn identify(
    address: &str,
    cluster_id: ClusterId,
    coordinators: &[String],
    generation: Generation,
) -> Result<Found, String> {
    let endpoint = transport::endpoint(address).map_err(|error| error.to_string())?;
    let request = proto::IdentifyRequest {
        cluster_id: cluster_id_to(cluster_id),
        coordinators: coordinators.to_vec(),
        generation: generation_to(generation),
    };
    let asking = async {
        resolve(address).await?;
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| format!("nobody listens at {address} ({})", reason(&error)))?;
        let mut client = IdentityClient::new(channel);
        client.identify(Request::new(request)).await.map_err(|status| {
            format!(
                "what listens at {address} isn't a part of KvDB, or is hung: {}",
                status.message()
            )
        })
    };
    let answer = tokio::time::timeout(PATIENCE, asking)
        .await
        .map_err(|_| format!("{address} doesn't answer within {} s", PATIENCE.as_secs()))??
        .into_inner();
    let bad =
        |error: kvdb_wire::FieldError| format!("{address} answers what can't be read: {error}");
    let role = match answer.role() {
        Role::Coordinator => Some(identity::Role::Coordinator),
        Role::Node => Some(identity::Role::Node),
        Role::Gateway | Role::Unknown => None,
    };
    let token = match role {
        Some(_) => token_from("token", &answer.token).map_err(bad)?,
        None => 0,
    };
    let cluster_id = cluster_id_from(&answer.cluster_id).map_err(bad)?;
    let coordinators = usable(answer.coordinators);
    let about = About {
        generation: generation_from(answer.generation).map_err(bad)?,
        map_version: answer.map_version,
        leader_silent_ms: answer.leader_silent_ms,
    };
    Ok(Found { cluster_id, id: NodeId(answer.id), role, token, coordinators, about })
}

/// Why nobody has vouched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unvouched {
    /// There was no answer.
    #[error("{0}")]
    Unreached(String),
    /// The answer.
    #[error("{0}: {1}")]
    Refused(String, NotVouched),
}

/// What is asked of others when a process starts: see [`ask_to_vouch`].
#[derive(Clone, Debug)]
pub struct Vouching {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// Coordinators and nodes number themselves apart.
    pub coordinator: bool,
    /// Whose start it is.
    pub node: NodeId,
    /// The start.
    pub said: Said,
    /// Those before it.
    pub shown: Vec<u128>,
    /// The process before it is known to be gone, or not to count any more.
    pub succeeds: bool,
    /// Others have vouched for it: it only introduces itself.
    pub is_heard: bool,
    /// Whether it would be vouched for: nobody is turned away for it yet.
    pub only_asks: bool,
}

/// Asks the process at an address to vouch for a start of another; or tells it of one that is heard
/// already. Returns who has answered.
///
/// # Errors
/// Why it doesn't.
pub async fn ask_to_vouch(address: &str, asked: &Vouching) -> Result<NodeId, Unvouched> {
    let bytes = |nonce: u128| bytes::Bytes::copy_from_slice(&nonce.to_be_bytes());
    let request = proto::VouchRequest {
        cluster_id: cluster_id_to(asked.cluster_id),
        node_id: asked.node.0,
        start_number: asked.said.number,
        nonce: bytes(asked.said.nonce),
        shown: asked.shown.iter().map(|nonce| bytes(*nonce)).collect(),
        is_heard: asked.is_heard,
        synced: asked.said.synced.unwrap_or_default(),
        address: asked.said.address.clone(),
        succeeds: asked.succeeds,
        only_asks: asked.only_asks,
        coordinator: asked.coordinator,
    };
    let unreached = |why: String| Unvouched::Unreached(format!("{address}: {why}"));
    let endpoint = transport::endpoint(address).map_err(|error| unreached(error.to_string()))?;
    let mut client = IdentityClient::new(endpoint.connect_lazy());
    let answer = tokio::time::timeout(PATIENCE, client.vouch(Request::new(request)))
        .await
        .map_err(|_| unreached("it doesn't answer".to_owned()))?
        .map_err(|status| unreached(status.message().to_owned()))?
        .into_inner();
    let why = answer.why_not;
    let refused = match proto::vouch_response::Refusal::try_from(answer.refusal) {
        _ if why.is_empty() => return Ok(NodeId(answer.node_id)),
        Ok(proto::vouch_response::Refusal::NeverMet) => NotVouched::NeverMet(why),
        Ok(proto::vouch_response::Refusal::Older) => NotVouched::Older(why),
        _ => NotVouched::Waits(why),
    };
    Err(Unvouched::Refused(address.to_owned(), refused))
}

fn usable(addresses: Vec<String>) -> Vec<String> {
    let bounded = addresses.into_iter().take(MOST_COORDINATORS);
    bounded.filter(|address| transport::endpoint(address).is_ok()).collect()
}

/// The innermost reason, which is the one that says something.
fn reason(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Answers [`identify`].
#[derive(Clone)]
pub struct Introduction {
    /// `None` for one without a data directory.
    pub role: Option<identity::Role>,
    /// Made with its data directory.
    pub token: u128,
    /// As far as it knows.
    pub known: Arc<RwLock<(ClusterId, NodeId)>>,
    /// One of its cluster has said where the coordinators are.
    pub told: Arc<dyn Fn(Vec<String>) + Send + Sync>,
    /// Where the coordinators are, as far as it has heard.
    pub coordinators: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
    /// Which starts of others count.
    pub met: Met,
    /// What it knows of the coordinators.
    pub about: Arc<dyn Fn() -> About + Send + Sync>,
    /// Of a coordinator: why another one must not take part any more, if that is known.
    pub left_behind: LeftBehind,
}

/// Why a coordinator must not take part any more, if that is known.
pub type LeftBehind = Arc<dyn Fn(NodeId) -> Option<String> + Send + Sync>;

impl Introduction {
    /// The service, to be added to a server.
    pub fn server(self) -> IdentityServer<Self> {
        IdentityServer::new(self)
    }
}

#[tonic::async_trait]
impl Identity for Introduction {
    async fn vouch(
        &self,
        request: Request<proto::VouchRequest>,
    ) -> Result<Response<proto::VouchResponse>, Status> {
        let request = request.into_inner();
        let bad = |error: kvdb_wire::FieldError| Status::invalid_argument(error.to_string());
        let (cluster_id, own) = *self.known.read();
        let theirs = cluster_id_from(&request.cluster_id).map_err(bad)?;
        let shown = request.shown.iter().take(MOST_SHOWN);
        let shown = shown.map(|nonce| token_from("shown", nonce)).collect::<Result<Vec<_>, _>>();
        let (shown, node) = (shown.map_err(bad)?, NodeId(request.node_id));
        let usable = transport::endpoint(&request.address).is_ok();
        let said = Said {
            number: request.start_number,
            nonce: token_from("nonce", &request.nonce).map_err(bad)?,
            synced: Some(request.synced),
            address: if usable { request.address } else { String::new() },
        };
        let met = self.met.clone();
        let role =
            if request.coordinator { identity::Role::Coordinator } else { identity::Role::Node };
        let vouched = if theirs != cluster_id {
            Err(NotVouched::Waits(format!("this is cluster {cluster_id}, not {theirs}")))
        } else if self.role != Some(role) {
            Err(NotVouched::Waits(format!("this is no {role}")))
        } else if let Some(why) = (self.left_behind)(node).filter(|_| request.coordinator) {
            Err(NotVouched::Older(why))
        } else {
            // The disk may hang.
            let vouching = tokio::task::spawn_blocking(move || match request.is_heard {
                true => {
                    let met_before = met.meet(node, &Said { synced: None, ..said.clone() });
                    met_before.map(|()| met.hears(node, &said)).map_err(NotVouched::Older)
                }
                false => met.vouch(node, &said, &shown, request.succeeds, request.only_asks),
            });
            vouching.await.map_err(|error| Status::internal(error.to_string()))?
        };
        let refusal = match &vouched {
            Ok(()) => proto::vouch_response::Refusal::None,
            Err(NotVouched::NeverMet(_)) => proto::vouch_response::Refusal::NeverMet,
            Err(NotVouched::Older(_)) => proto::vouch_response::Refusal::Older,
            Err(NotVouched::Waits(_)) => proto::vouch_response::Refusal::Waits,
        } as i32;
        let why_not = vouched.err().map(|why| why.to_string()).unwrap_or_default();
        Ok(Response::new(proto::VouchResponse { node_id: own.0, why_not, refusal }))
    }

    async fn identify(
        &self,
        request: Request<proto::IdentifyRequest>,
    ) -> Result<Response<proto::IdentifyResponse>, Status> {
        let request = request.into_inner();
        let (cluster_id, id) = *self.known.read();
        let theirs = cluster_id_from(&request.cluster_id)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let generation = generation_from(request.generation)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let about = (self.about)();
        let is_left_behind = about.generation.compare(&generation) == GenerationOrder::Foreign;
        let is_ours = cluster_id.is_known() && theirs == cluster_id && !is_left_behind;
        if is_ours && !request.coordinators.is_empty() {
            (self.told)(usable(request.coordinators));
        }
        let role = match self.role {
            Some(identity::Role::Coordinator) => Role::Coordinator,
            Some(identity::Role::Node) => Role::Node,
            None => Role::Gateway,
        };
        Ok(Response::new(proto::IdentifyResponse {
            cluster_id: cluster_id_to(cluster_id),
            id: id.0,
            role: role.into(),
            token: match self.role {
                Some(_) => self.token.to_be_bytes().to_vec().into(),
                None => bytes::Bytes::new(),
            },
            coordinators: (self.coordinators)(),
            generation: generation_to(about.generation),
            map_version: about.map_version,
            leader_silent_ms: about.leader_silent_ms,
        }))
    }
}

/// Whether others can use an address at all: every process that is told of itself checks it.
///
/// # Errors
/// What is wrong with it, and what to do.
pub async fn check_own(flag: &str, address: &str) -> Result<(), String> {
    transport::endpoint(address).map_err(|error| format!("{flag}: {error}"))?;
    let everywhere = |ip: IpAddr| {
        format!(
            "{flag} {address}: {ip} means every address of this machine, and nobody else can connect to it: say by \
             which address the others reach this process"
        )
    };
    if let Some(ip) = literal(address).filter(IpAddr::is_unspecified) {
        return Err(everywhere(ip));
    }
    let started = Instant::now();
    loop {
        match resolve(address).await {
            Ok(found) if found.iter().all(IpAddr::is_unspecified) => {
                return Err(everywhere(found[0]));
            }
            Ok(_) => return Ok(()),
            Err(why) if started.elapsed() >= NAME_PATIENCE => {
                return Err(format!(
                    "{flag} {address}: {why}: give a name or an IP that others know"
                ));
            }
            Err(_) => tokio::time::sleep(LOOK_UP_AGAIN).await,
        }
    }
}

/// The IP of an address that has one rather than a name.
fn literal(address: &str) -> Option<IpAddr> {
    let (host, _) = address.rsplit_once(':')?;
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// At least one.
async fn resolve(address: &str) -> Result<Vec<IpAddr>, String> {
    let unknown = |why: String| format!("the name in {address} can't be resolved ({why})");
    let found =
        tokio::net::lookup_host(address).await.map_err(|error| unknown(error.to_string()))?;
    let found: Vec<IpAddr> = found.map(|socket| socket.ip()).collect();
    if found.is_empty() { Err(unknown("it has no address".to_owned())) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn whoever_is_at_an_address_says_who_it_is_and_hears_of_its_coordinators() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let hears = heard.clone();
        let introduction = Introduction {
            role: Some(identity::Role::Node),
            token: 9,
            known: Arc::new(RwLock::new((ClusterId(7), NodeId(3)))),
            told: Arc::new(move |told| *hears.lock() = told),
            coordinators: Arc::new(|| vec!["c:1".to_owned(), "nowhere".to_owned()]),
            met: Met::default(),
            about: Arc::new(|| About { map_version: 5, ..About::default() }),
            left_behind: Arc::new(|_| None),
        };
        let server = transport::server().add_service(introduction.server());
        tokio::spawn(server.serve_with_incoming(transport::incoming(listener)));
        let coordinators = ["a:1".to_owned(), "not one".to_owned()];
        let first = Generation::default();
        // One of another cluster is answered, and not believed.
        let found = identify(&address, ClusterId(8), &coordinators, first).await.unwrap();
        let role = Some(identity::Role::Node);
        let (cluster_id, id) = (ClusterId(7), NodeId(3));
        let coordinators_known = vec!["c:1".to_owned()];
        let about = About { map_version: 5, ..About::default() };
        let expected =
            Found { cluster_id, id, role, token: 9, coordinators: coordinators_known, about };
        assert_eq!(found, expected);
        assert!(heard.lock().is_empty());
        identify(&address, ClusterId(7), &coordinators, first).await.unwrap();
        assert_eq!(*heard.lock(), ["a:1"]);
    }

    #[tokio::test]
    async fn nobody_and_somebody_else_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        // It hears, and says nothing.
        let silent =
            identify(&address, ClusterId(1), &[], Generation::default()).await.unwrap_err();
        assert!(silent.contains("doesn't answer"), "{silent}");
        drop(listener);
        let nobody =
            identify(&address, ClusterId(1), &[], Generation::default()).await.unwrap_err();
        assert!(nobody.contains("nobody listens") && nobody.contains(&address), "{nobody}");
    }

    #[tokio::test]
    async fn addresses_that_nobody_can_use_are_refused_with_the_reason() {
        for wildcard in ["0.0.0.0:7201", "[::]:7201"] {
            let refused = check_own("--listen", wildcard).await.unwrap_err();
            assert!(refused.contains("every address of this machine"), "{refused}");
        }
        let unknown = check_own("--advertise", "no-such-host.invalid:7201").await.unwrap_err();
        assert!(unknown.contains("can't be resolved"), "{unknown}");
        check_own("--advertise", "127.0.0.1:7201").await.unwrap();
        check_own("--advertise", "localhost:7201").await.unwrap();
        assert!(check_own("--advertise", "localhost").await.is_err());
    }
}
