//! The audit trail: who did, or was refused, what, on which object, from where.
//!
//! Every call has an [`Act`], made where the call is checked: it knows who calls and from where, learns from the message what is asked for,
//! and adds its record to the very transaction that makes the change. So there is no change without its record and no record without its
//! change, whatever happens in between, and a call that is repeated and changes nothing leaves nothing. What is refused changes nothing; it
//! is noted by [`refusals`], in transactions of their own, few of them however many calls there are.
//!
//! Not in the trail is what nobody asked for at that moment: what executors report and what follows from it, claims, losses, log bytes, ticks
//! of schedules, upkeep. The executions themselves tell it. Nor is what was only looked at, but for a backup: that is everything at once.

mod export;
mod read;
mod refusals;
mod subjects;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use octavius_core::argument::{self, Arguments};
use octavius_core::{Execution, ExecutionId, JobDefinition, Principal, Timestamp, token};
use octavius_proto::Fault;
use octavius_store::record::AuditRecord;
use octavius_store::{Commit, Store, StoreError, Txn, codec, key};
use tonic::Request;

use crate::auth;

pub use export::AuditExport;
pub(crate) use export::{Exporter, exported};
pub(crate) use read::begin as read;
pub(crate) use refusals::{Refusals, Refused, peer};
pub(crate) use subjects::{Subject, of, of_apply};

/// Hours by which the clocks of two controllers, and so the hours of records that were written at the same time, may differ.
const CLOCKS_DIFFER_HOURS: u64 = 2;

/// Longest object and longest detail, in bytes: callers choose them.
const TEXT_BYTES: usize = 200;

/// Most bytes of arguments in a record; the execution has all of them.
const ARGUMENTS_BYTES: usize = 1024;

/// Reads in a message what it asks for; none where it cannot be read.
pub(crate) type Reader = fn(&[u8]) -> Option<What>;

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct What {
    /// A word that does not change.
    pub(crate) action: &'static str,
    pub(crate) object: String,
    pub(crate) details: BTreeMap<String, String>,
}

impl What {
    pub(crate) fn new(action: &'static str, kind: &str, name: &str) -> Self {
        Self { action, object: object(kind, name), details: BTreeMap::new() }
    }

    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.note(name, value);
        self
    }

    #[expect(clippy::needless_pass_by_value, reason = "numbers, flags and texts alike are given as they are")]
    fn note(&mut self, name: &str, value: impl ToString) {
        let value = value.to_string();
        if !value.is_empty() {
            self.details.insert(name.to_owned(), safe(&value));
        }
    }
}

fn object(kind: &str, name: &str) -> String {
    safe(&format!("{kind}/{name}"))
}

/// A caller's text as it may stand in the trail: not too long, without control characters, and never a token, which somebody may have given
/// where its id was asked for.
fn safe(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    if token::is_in(text) {
        return argument::MASK.to_owned();
    }
    if text.len() <= TEXT_BYTES {
        return text.chars().map(clean).collect();
    }
    let room = TEXT_BYTES - '…'.len_utf8();
    let kept = text.char_indices().take_while(|(at, c)| at + c.len_utf8() <= room);
    kept.map(|(_, c)| clean(c)).chain(['…']).collect()
}

/// Something that somebody does. Clones are of the same.
#[derive(Debug, Clone)]
pub(crate) struct Act(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// None where it is not known who calls, and where the controller does something by itself.
    principal: Option<Principal>,
    from: Option<IpAddr>,
    /// The record's: the same however often its transaction is tried, so that there is one.
    id: ExecutionId,
    at: Timestamp,
    what: Mutex<What>,
}

impl Act {
    pub(crate) fn new(principal: Option<Principal>, from: Option<IpAddr>, what: What) -> Self {
        let at = Timestamp::now();
        // Milliseconds tell enough, and are shorter.
        let at = Timestamp::from_millisecond(at.as_millisecond()).unwrap_or(at);
        Self(Arc::new(Inner { principal, from, id: ExecutionId::generate(), at, what: Mutex::new(what) }))
    }

    fn what(&self) -> MutexGuard<'_, What> {
        self.0.what.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who does it.
    pub(crate) fn principal(&self) -> Result<&Principal, Fault> {
        self.0.principal.as_ref().ok_or_else(auth::unauthenticated)
    }

    /// The name of who does it, as other records bear it.
    pub(crate) fn user(&self) -> &str {
        self.0.principal.as_ref().map_or("", |principal| &principal.user)
    }

    /// Says what it is, as the message does. Details that are known already stay.
    pub(crate) fn is(&self, What { action, object, details }: What) {
        let mut what = self.what();
        (what.action, what.object) = (action, object);
        what.details.extend(details);
    }

    /// Says on what it is, once that is known better than by the message.
    #[expect(clippy::needless_pass_by_value, reason = "ids and names alike are given as they are")]
    pub(crate) fn on(&self, kind: &str, name: impl ToString) {
        self.what().object = object(kind, &name.to_string());
    }

    /// Adds a detail.
    pub(crate) fn note(&self, name: &str, value: impl ToString) {
        self.what().note(name, value);
    }

    /// Says which execution it makes, of which job, with which arguments.
    pub(crate) fn note_run(&self, execution: &Execution, job: &JobDefinition, given: &Arguments) {
        self.on("execution", execution.id);
        self.note("job", &job.name);
        if let Some(source) = execution.rerun_of {
            self.note("rerun_of", source);
        }
        self.note_arguments(job, given);
    }

    /// Adds the arguments of a run, those that are sensitive masked; so are those that the job does not know, of which nobody can say.
    fn note_arguments(&self, job: &JobDefinition, given: &Arguments) {
        let mut what = self.what();
        let (mut bytes, mut left_out) = (0, 0);
        for (name, value) in argument::masked(job, given) {
            let value = if job.argument(&name).is_some() { value } else { argument::MASK.to_owned() };
            let value = if value == argument::MASK { value } else { safe(&value) };
            bytes += name.len() + value.len();
            if bytes > ARGUMENTS_BYTES {
                left_out += 1;
                continue;
            }
            what.details.insert(format!("arguments.{name}"), value);
        }
        if left_out > 0 {
            what.details.insert("arguments".to_owned(), format!("and {left_out} more"));
        }
    }

    fn record(&self, refused: &str) -> AuditRecord {
        let What { action, object, details } = self.what().clone();
        let principal = self.0.principal.as_ref();
        AuditRecord {
            at: self.0.at,
            user: self.user().to_owned(),
            role: principal.map(|principal| principal.role),
            token: principal.map(|principal| principal.token_id.clone()).unwrap_or_default(),
            from: self.0.from.map(|from| from.to_string()).unwrap_or_default(),
            action: action.to_owned(),
            object,
            refused: refused.to_owned(),
            details,
        }
    }

    fn put(&self, txn: Txn, record: &AuditRecord) -> Txn {
        txn.put(key::audited(key::hour_of(record.at), self.0.id), codec::encode(record))
    }

    /// Adds to `txn` the record that this was done.
    pub(crate) fn done(&self, txn: Txn) -> Txn {
        self.put(txn, &self.record(""))
    }

    /// Commits a transaction that only removes, with the record that this was done. A full store takes removals only: what takes a right
    /// away is not held up by that, and then the log alone has its record.
    pub(crate) async fn commit_removal(&self, store: &dyn Store, txn: Txn) -> Result<Commit, StoreError> {
        match store.commit(self.done(txn.clone())).await {
            Err(StoreError::Full(_)) => {
                let done = store.commit(txn).await?;
                let record = self.record("");
                tracing::error!(?record, "the store is full: this is not in the audit trail");
                Ok(done)
            }
            done => done,
        }
    }
}

/// The act that a call is, as what its message says, and the message.
pub(crate) fn begin<T: Subject>(request: Request<T>) -> Result<(Act, T), Fault> {
    let act = auth::act(&request)?;
    let message = request.into_inner();
    act.is(message.what());
    Ok((act, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use octavius_core::Role;

    fn act() -> Act {
        let principal = Principal::new("t", "ann", Role::User);
        Act::new(Some(principal), Some(IpAddr::from([127, 0, 0, 1])), What::new("execution.submit", "job", "pay"))
    }

    #[test]
    fn arguments_are_masked_where_they_are_sensitive_or_unknown_and_cut_where_they_are_long() {
        let job: JobDefinition =
            serde_json::from_str(r#"{"name":"pay","env_vars":{"args":[{"name":"order"},{"name":"pin","sensitive":true}]}}"#)
                .unwrap();
        let act = act();
        let given = [("order", "A-1\u{1b}[2J"), ("pin", "hunter2"), ("old", "hunter3")];
        act.note_arguments(&job, &given.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        let record = act.record("");
        assert!(!format!("{record:?}").contains("hunter"), "{record:?}");
        let details: Vec<_> = record.details.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(details, [("arguments.old", "********"), ("arguments.order", "A-1 [2J"), ("arguments.pin", "********")]);

        let names: Vec<_> = (0..200).map(|number| format!("a{number}")).collect();
        let args: Vec<_> = names.iter().map(|name| format!(r#"{{"name":"{name}"}}"#)).collect();
        let job: JobDefinition =
            serde_json::from_str(&format!(r#"{{"name":"pay","env_vars":{{"args":[{}]}}}}"#, args.join(","))).unwrap();
        let act = self::act();
        act.note_arguments(&job, &names.into_iter().map(|name| (name, "x".repeat(30_000))).collect());
        let value = codec::encode(&act.record(""));
        assert!(value.len() < 2 * ARGUMENTS_BYTES, "{} bytes", value.len());
        assert!(act.record("").details["arguments"].starts_with("and 19"), "{:?}", act.record("").details);
    }

    #[test]
    fn a_token_in_the_place_of_a_name_is_not_kept() {
        let token = token::Token::from_random(token::TokenKind::User, &[7; 32]);
        let what = What::new("token.revoke", "token", token.reveal()).with("why", format!("is {}", token.reveal()));
        assert_eq!((what.object.as_str(), what.details["why"].as_str()), ("********", "********"));
        assert_eq!(What::new("token.revoke", "token", "a\nb").object, "token/a b");
        assert_eq!(What::new("token.revoke", "token", &"ä".repeat(300)).object.len(), TEXT_BYTES - 1);
    }

    #[test]
    fn a_record_is_the_same_however_often_its_transaction_is_tried() {
        let act = act();
        let (first, second) = (act.done(Txn::new()), act.clone().done(Txn::new()));
        assert_eq!(first, second);
        assert_eq!(first.changes.len(), 1);
    }
}
