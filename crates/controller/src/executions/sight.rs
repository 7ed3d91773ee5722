//! Who sees which executions, and finds them by what they write: an id, the end of one, or `@latest`.

use std::collections::BTreeSet;

use octavius_core::{Execution, ExecutionId, Permission, Principal, Role, State};
use octavius_proto::{Fault, reason};
use octavius_store::{Range, codec, key};
use tonic::Code;

use super::Executions;
use crate::engine::EngineError;
use crate::fault;

/// How far back the end of an id is looked for.
const RECENT: usize = 1000;

/// Shortest end of an id that is looked for.
const SHORTEST_END: usize = 4;

impl Executions {
    /// The execution that `text` names, if the caller may see it.
    pub(crate) async fn find(&self, principal: &Principal, text: &str) -> Result<Execution, Fault> {
        let execution = self.named(principal, text).await?;
        if self.may_see(principal, &execution).await? { Ok(execution) } else { Err(unknown(text)) }
    }

    /// The execution that `text` names, if it is or was for the caller to judge, or they may see it: who comes too late to approve is told that.
    pub(super) async fn find_to_decide(&self, principal: &Principal, text: &str) -> Result<Execution, Fault> {
        let execution = self.named(principal, text).await?;
        let is_found = is_of_their_groups(principal, &execution) || self.may_see(principal, &execution).await?;
        if is_found { Ok(execution) } else { Err(unknown(text)) }
    }

    async fn named(&self, principal: &Principal, text: &str) -> Result<Execution, Fault> {
        let id = match text.parse::<ExecutionId>() {
            Ok(id) => id,
            Err(_) => self.look_up(principal, text).await?.ok_or_else(|| unknown(text))?,
        };
        let entry = self.store.get(&key::execution(id)).await.map_err(fault::from_store)?.ok_or_else(|| unknown(text))?;
        codec::decode(&entry).map_err(fault::from_store)
    }

    /// The id that `@latest`, or an id's end, stands for.
    async fn look_up(&self, principal: &Principal, text: &str) -> Result<Option<ExecutionId>, Fault> {
        if text == "@latest" {
            let page = self.store.range(&Range::of(key::by_user_all(&principal.user), 1)).await.map_err(fault::from_store)?;
            return Ok(page.entries.first().and_then(|entry| key::execution_of(&entry.key)));
        }
        if text.len() < SHORTEST_END || !text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
            return Ok(None);
        }
        // One's own first; then everyone's, of which the caller may see some. What waits for approval may have been asked for long ago.
        for prefixes in [vec![key::by_user_all(&principal.user)], vec![key::executions(), key::awaiting_approval()]] {
            let mut ids = BTreeSet::new();
            for prefix in prefixes {
                let page = self.store.range(&Range::of(prefix, RECENT)).await.map_err(fault::from_store)?;
                ids.extend(page.entries.iter().filter_map(|entry| key::execution_of(&entry.key)));
            }
            let mut found = Vec::new();
            for id in ids.into_iter().filter(|id| id.to_string().ends_with(text)) {
                let execution = match self.engine.get(id).await {
                    Err(EngineError::NotFound(_)) => continue, // removed since it was listed
                    execution => execution.map_err(fault::from_engine)?,
                };
                if self.may_see(principal, &execution).await? {
                    found.push(id);
                }
            }
            match found.as_slice() {
                [] => {}
                [id] => return Ok(Some(*id)),
                several => {
                    let message = format!("{} executions end in {text}; write more of the id", several.len());
                    return Err(Fault::new(Code::FailedPrecondition, reason::AMBIGUOUS_ID, message));
                }
            }
        }
        Ok(None)
    }

    /// Those that are theirs, and those that are for them to judge.
    pub(super) async fn may_see(&self, principal: &Principal, execution: &Execution) -> Result<bool, Fault> {
        Ok(is_to_judge(principal, execution) || self.is_theirs(principal, execution).await?)
    }

    /// One's own, and those of jobs that are for one; all of them are an admin's.
    pub(super) async fn is_theirs(&self, principal: &Principal, execution: &Execution) -> Result<bool, Fault> {
        if principal.role == Role::Admin || principal.user == execution.user {
            return Ok(true);
        }
        let job = self.definitions.get(execution.definition).await.map_err(fault::from_store)?;
        Ok(principal.may_use(&job.authorized_groups))
    }

    /// Refuses what is for those whose execution it is, and not for those who only judge it: `what`, as in "cancel it".
    pub(crate) async fn must_be_theirs(&self, principal: &Principal, execution: &Execution, what: &str) -> Result<(), Fault> {
        if self.is_theirs(principal, execution).await? {
            return Ok(());
        }
        let (id, job) = (execution.id, &execution.job);
        let message = format!(
            "execution {id} is yours to approve or reject, not to {what}: that is for {} and for the groups of job {job}",
            execution.user
        );
        Err(fault::not_permitted(message))
    }
}

/// Whether it is theirs to judge, or was and they did: they must see what they say yes or no to. What others have judged is nothing to them.
fn is_to_judge(principal: &Principal, execution: &Execution) -> bool {
    let has_decided = || execution.approvals.as_deref().is_some_and(|approvals| approvals.has_decision_of(&principal.user));
    is_of_their_groups(principal, execution) && (execution.state == State::WaitingForApproval || has_decided())
}

/// Whether the execution's rule names a group of theirs, and they are one who may decide at all.
fn is_of_their_groups(principal: &Principal, execution: &Execution) -> bool {
    let groups = execution.approvals.as_deref().map(|approvals| approvals.groups.as_slice()).unwrap_or_default();
    principal.role.may(Permission::Execute) && groups.iter().any(|group| principal.groups.contains(group))
}

fn unknown(text: &str) -> Fault {
    Fault::new(Code::NotFound, reason::EXECUTION_NOT_FOUND, format!("no execution {}", text.escape_debug()))
}
