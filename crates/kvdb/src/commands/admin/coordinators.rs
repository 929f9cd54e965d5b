//! `kvdb admin coordinators`.

use super::CoordinatorChange;
use super::change::say;
use super::show::role_name;
use crate::exit::Failure;
use crate::output::{is_watched, table};
use indicatif::ProgressBar;
use kvdb_client::{AdminClient, Member};
use kvdb_model::{NodeId, Role};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Between two looks at a change that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A change of the group that gets no further for so long isn't waited for any more.
const STANDS_STILL: Duration = Duration::from_secs(60);

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
        CoordinatorChange::SetAddress { id, address } => {
            let version = admin.set_coordinator_address(NodeId(id), &address).await?;
            let words = format!("coordinator {id} is at {address}");
            say(json, &json!({ "id": id, "map_version": version.0 }), words)
        }
        CoordinatorChange::Remove { id, wait, confirmation } => {
            let id = NodeId(id);
            if !confirmation.yes {
                let status = admin.status().await?;
                confirmation.ask(&what_a_removal_does(&status.members, id))?;
            }
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

/// What becomes of a coordinator that is removed, and of its group.
fn what_a_removal_does(members: &[Member], id: NodeId) -> String {
    let others = members.iter().filter(|member| member.id != id).count();
    let who = match members.iter().find(|member| member.id == id) {
        Some(member) => format!("coordinator {id} ({}, {})", member.address, role_of(member)),
        None => format!("coordinator {id}"),
    };
    format!(
        "Remove {who} for good: its process ends, and its number is never used again. {others} stay; {} of them \
         must run for the cluster to change.",
        others / 2 + 1
    )
}

/// Waits until the group is so, and not between two groups any more.
async fn settled(admin: &AdminClient, is_so: impl Fn(&[Member]) -> bool) -> Result<(), Failure> {
    let progress = if is_watched() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    let (mut told, mut since) = (Vec::new(), Instant::now());
    loop {
        let members = admin.status().await?.members;
        let between = |member: &Member| matches!(member.role, Role::Incoming | Role::Outgoing);
        if is_so(&members) && !members.iter().any(between) {
            progress.finish_and_clear();
            return Ok(());
        }
        let now: Vec<_> = members.iter().map(|member| (member.id, role_of(member))).collect();
        if told != now {
            (told, since) = (now, Instant::now());
        } else if since.elapsed() > STANDS_STILL {
            progress.finish_and_clear();
            return Err(Failure::Unavailable(format!(
                "nothing has changed for {} s: {}; the coordinators go on with it, see `kvdb admin coordinators`",
                STANDS_STILL.as_secs(),
                words(&told)
            )));
        }
        progress.set_message(words(&told));
        progress.tick();
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn words(members: &[(NodeId, &str)]) -> String {
    let each: Vec<_> =
        members.iter().map(|(id, role)| format!("coordinator {id} {role}")).collect();
    each.join(", ")
}

/// What a coordinator is for its group, in a word or two.
fn role_of(member: &Member) -> &'static str {
    match (member.is_leader, member.role) {
        (true, _) => "leader",
        (false, Role::Voter) => "follower",
        (false, Role::Learner) => "learner",
        (false, Role::Incoming) => "gets its vote",
        (false, Role::Outgoing) => "loses its vote",
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
        vec![member.id.to_string(), member.address.clone(), role_of(member).to_owned()]
    };
    let rows: Vec<Vec<String>> = members.iter().map(row).collect();
    table(&["COORDINATOR", "ADDRESS", "ROLE"], &rows)
}
