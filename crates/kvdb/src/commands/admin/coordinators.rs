//! `kvdb admin coordinators`.

use super::CoordinatorChange;
use super::change::say;
use super::show::role_name;
use crate::exit::Failure;
use crate::output::table;
use kvdb_client::{AdminClient, Member};
use kvdb_model::{NodeId, Role};
use serde_json::{Value, json};
use std::time::Duration;

/// Between two looks at a change that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(super) async fn run(
    admin: &AdminClient,
    change: Option<CoordinatorChange>,
    json: bool,
) -> Result<(), Failure> {
    match change.unwrap_or(CoordinatorChange::List) {
        CoordinatorChange::List => {
            let status = admin.status().await?;
            let members: Vec<Value> = status.members.iter().map(document).collect();
            say(json, &json!({ "members": members }), rows(&status.members))
        }
        CoordinatorChange::Add { id, address, wait } => {
            let id = NodeId(id);
            let version = admin.add_coordinator(id, &address).await?;
            if wait {
                let votes = |member: &Member| member.id == id && member.role == Role::Voter;
                settled(admin, |members| members.iter().any(votes)).await?;
            }
            let words = match wait {
                true => format!("coordinator {id} votes"),
                false => format!("coordinator {id} joins; it votes when it has caught up"),
            };
            say(json, &json!({ "id": id.0, "map_version": version.0 }), words)
        }
        CoordinatorChange::Remove { id, wait } => {
            let id = NodeId(id);
            let version = admin.remove_coordinator(id).await?;
            if wait {
                settled(admin, |members| members.iter().all(|member| member.id != id)).await?;
            }
            let words = match wait {
                true => format!(
                    "coordinator {id} is gone: its process ends, and its data can be deleted"
                ),
                false => format!("coordinator {id} leaves"),
            };
            say(json, &json!({ "id": id.0, "map_version": version.0 }), words)
        }
    }
}

/// Waits until the group is so, and not between two groups any more.
async fn settled(admin: &AdminClient, is_so: impl Fn(&[Member]) -> bool) -> Result<(), Failure> {
    loop {
        let members = admin.status().await?.members;
        let between = |member: &Member| matches!(member.role, Role::Incoming | Role::Outgoing);
        if is_so(&members) && !members.iter().any(between) {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A coordinator in JSON.
pub(super) fn document(member: &Member) -> Value {
    json!({
        "id": member.id.0,
        "address": member.address,
        "is_leader": member.is_leader,
        "role": role_name(member.role),
    })
}

/// A table of coordinators.
pub(super) fn rows(members: &[Member]) -> String {
    let row = |member: &Member| {
        let role = match (member.is_leader, member.role) {
            (true, _) => "leader",
            (false, Role::Voter) => "follower",
            (false, Role::Learner) => "learner",
            (false, Role::Incoming) => "gets its vote",
            (false, Role::Outgoing) => "loses its vote",
        };
        vec![member.id.to_string(), member.address.clone(), role.to_owned()]
    };
    let rows: Vec<Vec<String>> = members.iter().map(row).collect();
    table(&["COORDINATOR", "ADDRESS", "ROLE"], &rows)
}
