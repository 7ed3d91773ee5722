//! What a message asks for, in the words of the trail. It is told as the caller says it: the handler knows better once it has looked.

use bytes::Buf as _;
use octavius_proto::v1;
use prost::Message;

use super::What;

/// A message that asks for a change.
pub(crate) trait Subject {
    /// What it asks for.
    fn what(&self) -> What;
}

/// What an encoded message asks for; none where it cannot be read.
pub(crate) fn of<T: Subject + Message + Default>(message: &[u8]) -> Option<What> {
    Some(T::decode(message).ok()?.what())
}

/// What an encoded first message of an apply asks for, of which only the beginning need be there.
pub(crate) fn of_apply(mut message: &[u8]) -> Option<What> {
    const HEADER: u64 = 1 << 3 | 2; // the field `header`, which is a message
    if prost::decode_length_delimiter(&mut message).ok()? as u64 != HEADER {
        return None;
    }
    prost::decode_length_delimiter(&mut message).ok()?;
    let mut header = v1::ApplyHeader::default();
    let _ = header.merge(message.chunk()); // what was read before it broke off is there
    Some(header.what())
}

impl Subject for v1::ExecuteRequest {
    fn what(&self) -> What {
        What::new("execution.submit", "job", &self.job)
    }
}

impl Subject for v1::RerunExecutionRequest {
    fn what(&self) -> What {
        What::new("execution.rerun", "execution", &self.source)
    }
}

impl Subject for v1::CancelExecutionRequest {
    fn what(&self) -> What {
        What::new("execution.cancel", "execution", &self.id)
    }
}

impl Subject for v1::ApproveExecutionRequest {
    fn what(&self) -> What {
        What::new("execution.approve", "execution", &self.id).with("reason", &self.reason)
    }
}

impl Subject for v1::RejectExecutionRequest {
    fn what(&self) -> What {
        What::new("execution.reject", "execution", &self.id).with("reason", &self.reason)
    }
}

impl Subject for v1::ApplyHeader {
    fn what(&self) -> What {
        let action = if self.rollback_to > 0 { "catalog.rollback" } else { "catalog.apply" };
        What::new(action, "catalog", &self.catalog)
    }
}

impl Subject for v1::SetFrozenRequest {
    fn what(&self) -> What {
        What::new(if self.frozen { "catalog.freeze" } else { "catalog.unfreeze" }, "catalog", &self.catalog)
    }
}

impl Subject for v1::RegisterExecutorRequest {
    fn what(&self) -> What {
        What::new("executor.register", "executor", &self.id)
    }
}

impl Subject for v1::RotateTokenRequest {
    fn what(&self) -> What {
        What::new("executor.rotate", "executor", "")
    }
}

impl Subject for v1::DrainExecutorRequest {
    fn what(&self) -> What {
        What::new("executor.drain", "executor", &self.id)
    }
}

impl Subject for v1::ResumeExecutorRequest {
    fn what(&self) -> What {
        What::new("executor.resume", "executor", &self.id)
    }
}

impl Subject for v1::RevokeExecutorRequest {
    fn what(&self) -> What {
        let what = What::new("executor.revoke", "executor", &self.id);
        if self.force { what.with("force", true) } else { what }
    }
}

impl Subject for v1::CreateTokenRequest {
    fn what(&self) -> What {
        let role = octavius_core::Role::try_from(self.role()).map(octavius_core::Role::as_str).unwrap_or_default();
        What::new("token.create", "user", &self.user).with("role", role)
    }
}

impl Subject for v1::CreateSessionRequest {
    fn what(&self) -> What {
        What::new("session.create", "token", "")
    }
}

impl Subject for v1::EndSessionRequest {
    fn what(&self) -> What {
        What::new("session.end", "token", "")
    }
}

impl Subject for v1::RevokeTokenRequest {
    fn what(&self) -> What {
        What::new("token.revoke", "token", &self.id)
    }
}

/// A job, or all of them: no job's name is a star.
fn paused(job: &str, all: bool) -> &str {
    if all { "*" } else { job }
}

impl Subject for v1::PauseJobsRequest {
    fn what(&self) -> What {
        What::new("job.pause", "job", paused(&self.job, self.all)).with("reason", &self.reason)
    }
}

impl Subject for v1::UnpauseJobsRequest {
    fn what(&self) -> What {
        What::new("job.unpause", "job", paused(&self.job, self.all))
    }
}

/// A webhook, or all of them: none's name is a star.
fn webhook(name: &str) -> &str {
    if name.is_empty() { "*" } else { name }
}

impl Subject for v1::RetryDeliveriesRequest {
    fn what(&self) -> What {
        What::new("webhook.retry", "webhook", webhook(&self.webhook)).with("execution", &self.execution)
    }
}

impl Subject for v1::TestWebhookRequest {
    fn what(&self) -> What {
        What::new("webhook.test", "webhook", &self.webhook)
    }
}

impl Subject for v1::BackupRequest {
    fn what(&self) -> What {
        What { action: "backup.read", object: "store".to_owned(), ..What::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::apply_request::Part;

    #[test]
    fn what_is_asked_for_is_read_from_the_message() {
        let message = v1::PauseJobsRequest { job: String::new(), all: true, reason: "moving".into() };
        let what = of::<v1::PauseJobsRequest>(&message.encode_to_vec()).unwrap();
        assert_eq!(what, What::new("job.pause", "job", "*").with("reason", "moving"));
        assert_eq!(of::<v1::PauseJobsRequest>(b"\xff\xff"), None);
    }

    #[test]
    fn the_beginning_of_an_apply_says_enough() {
        let put = (0..100).map(|number| v1::ManifestEntry { name: format!("job-{number}"), ..Default::default() }).collect();
        let header = v1::ApplyHeader { catalog: "prod".into(), parent: 3, put, ..Default::default() };
        let message = v1::ApplyRequest { part: Some(Part::Header(header)) }.encode_to_vec();
        for length in [message.len(), message.len() / 2, 20] {
            assert_eq!(of_apply(&message[..length]), Some(What::new("catalog.apply", "catalog", "prod")), "{length}");
        }
        assert_eq!(of_apply(b""), None);
        let definitions = v1::ApplyRequest { part: Some(Part::Definitions(v1::ApplyDefinitions::default())) };
        assert_eq!(of_apply(&definitions.encode_to_vec()), None);
    }
}
