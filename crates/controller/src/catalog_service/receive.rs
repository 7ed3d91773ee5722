//! What an apply brings: its parts are put together, and checked as files are, whatever the client has checked.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use octavius_catalog::manifest::{Entry as ManifestEntry, Inherited};
use octavius_core::check::{self, Patterns, Severity};
use octavius_core::limit::{CATALOG_BYTES, CATALOG_JOBS, JOB_FILE_BYTES};
use octavius_core::{Digest, JobDefinition};
use octavius_proto::v1::{self, apply_request::Part};
use octavius_proto::{Fault, InvalidField, reason};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status, Streaming};

use super::{CatalogRpcs, MAX_APPLY_BYTES, own_catalog};
use crate::audit::{Act, Subject as _};
use crate::catalogs::Wanted;
use crate::fault;

/// For how long the next part of an apply is waited for.
const PART_WITHIN: Duration = Duration::from_secs(60);

/// For how long the whole of an apply is waited for: who sends it slowly holds memory, and one of few places.
const WHOLE_WITHIN: Duration = Duration::from_secs(120);

/// Applies that are received and carried out at once: each may hold all of a catalogue in memory.
const AT_ONCE: usize = 8;

/// For how long an apply waits for its turn, where its caller does not say.
const TURN_WITHIN: Duration = Duration::from_secs(60);

/// Longest text of provenance that is kept, in characters.
const PROVENANCE_CHARS: usize = 1000;

/// Longest id of a plan, in characters.
const PLAN_ID_CHARS: usize = 64;

/// Longest path of a file, and longest pointer to a field, in bytes.
const PATH_BYTES: usize = 4096;

/// Most parts of a definition that come from elsewhere than its own file.
const INHERITED: usize = 200;

/// Most bytes of text that say where the parts of one job's definition come from.
const INHERITED_BYTES: usize = 16 * 1024;

/// The turns of applies: few hold memory, the others wait before anything of them is read.
#[derive(Debug)]
pub(crate) struct Turns(Semaphore);

impl Default for Turns {
    fn default() -> Self {
        Self(Semaphore::new(AT_ONCE))
    }
}

impl Turns {
    /// Waits for a turn, which ends when the answer is dropped: for as long as the caller's own deadline lets it be told that there was none.
    pub(super) async fn turn(&self, call: &MetadataMap, shutdown: &CancellationToken) -> Result<SemaphorePermit<'_>, Fault> {
        let own = call.get("grpc-timeout").and_then(|value| grpc_timeout(value.to_str().ok()?));
        let within = own.map_or(TURN_WITHIN, |own| TURN_WITHIN.min(own * 9 / 10));
        let turn = tokio::select! {
            turn = tokio::time::timeout(within, self.0.acquire()) => turn,
            () = shutdown.cancelled() => return Err(fault::stopping()),
        };
        let Ok(Ok(turn)) = turn else {
            let message =
                format!("{AT_ONCE} applies are under way, and none ended in {within:?}; nothing was changed, try again");
            return Err(limit(message));
        };
        Ok(turn)
    }
}

/// The time that a caller gives its call, as gRPC writes it: up to eight digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let amount: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// The parts of an apply as they come. A client that falls silent, or is slow on the whole, gives up its turn.
struct Parts<S> {
    parts: S,
    until: Instant,
    shutdown: CancellationToken,
}

impl<S: Stream<Item = Result<v1::ApplyRequest, Status>> + Unpin> Parts<S> {
    async fn next(&mut self) -> Result<Option<v1::ApplyRequest>, Fault> {
        let next = tokio::select! {
            next = timeout_at(self.until.min(Instant::now() + PART_WITHIN), self.parts.next()) => next,
            () = self.shutdown.cancelled() => return Err(fault::stopping()),
        };
        let Ok(next) = next else {
            let why = if Instant::now() < self.until { "fell silent" } else { "took too long to send" };
            return Err(fault::invalid(format!("the apply {why}; nothing was changed")));
        };
        next.transpose().map_err(|status| fault::broken("apply", &status, MAX_APPLY_BYTES))
    }
}

impl CatalogRpcs {
    /// Receives an apply. Definitions are checked as they come, so that little is left to do when the last is there; what is wrong with any
    /// of them is told when all were seen.
    pub(super) async fn receive(&self, parts: Streaming<v1::ApplyRequest>, act: Act) -> Result<Wanted, Fault> {
        let mut parts = Parts { parts, until: Instant::now() + WHOLE_WITHIN, shutdown: self.shutdown.clone() };
        let first = parts.next().await?.and_then(|message| message.part);
        let Some(Part::Header(header)) = first else {
            return Err(fault::invalid("an apply begins with its header"));
        };
        act.is(header.what());
        let name = own_catalog(act.principal()?, &header.catalog)?;
        if !header.controller_id.is_empty() && header.controller_id != self.controller_id {
            let message = format!("the plan is for controller {}, this is {}", header.controller_id, self.controller_id);
            return Err(Fault::new(Code::FailedPrecondition, reason::OTHER_CONTROLLER, message));
        }
        let v1::ApplyHeader { catalog: _, parent, put, remove, provenance, controller_id: _, plan_id, rollback_to, freeze } =
            header;
        if plan_id.len() > PLAN_ID_CHARS || !plan_id.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            let problem = format!("at most {PLAN_ID_CHARS} printable ASCII characters are taken");
            return Err(InvalidField::new("plan_id", problem).into());
        }
        if put.len() > CATALOG_JOBS {
            return Err(limit(format!("more than {CATALOG_JOBS} jobs")));
        }
        let put = put.into_iter().map(entry).collect::<Result<Vec<_>, _>>()?;
        let remove = remove.iter().map(|name| octavius_proto::job_name("remove", name)).collect::<Result<Vec<_>, _>>()?;
        let mut seen = BTreeSet::new();
        for name in put.iter().map(|entry| &entry.name).chain(&remove) {
            if !seen.insert(name.folded()) {
                return Err(fault::invalid(format!("job {name} stands in the apply twice")));
            }
        }
        let mut checked = Checked::of(&put);
        while let Some(message) = parts.next().await? {
            let Some(Part::Definitions(more)) = message.part else {
                return Err(fault::invalid("after the header only definitions follow"));
            };
            // They would cost no limit anything, however many came.
            if more.definitions.is_empty() {
                return Err(fault::invalid("a message of definitions holds none"));
            }
            for definition in more.definitions {
                tokio::task::coop::consume_budget().await; // a large catalogue takes a while; others take their turns in between
                checked.take(&definition)?;
            }
        }
        let definitions = checked.definitions()?;
        Ok(Wanted {
            catalog: name,
            parent,
            put,
            remove,
            definitions,
            provenance: self::provenance(provenance.unwrap_or_default()),
            act,
            plan_id,
            rollback_to,
            freeze,
        })
    }
}

/// Definitions of an apply, checked by the rules of files.
struct Checked<'a> {
    /// Where they belong.
    entries: HashMap<Digest, &'a ManifestEntry>,
    /// Canonical JSON of those that belong somewhere.
    definitions: HashMap<Digest, Bytes>,
    /// Patterns that were compiled already.
    patterns: Patterns,
    /// What is wrong.
    findings: Fault,
    bytes: usize,
    count: usize,
}

impl<'a> Checked<'a> {
    fn of(put: &'a [ManifestEntry]) -> Self {
        let what = "the catalogue has findings; nothing was changed";
        let mut findings = Fault::new(Code::InvalidArgument, reason::INVALID_CATALOG, what);
        let mut entries: HashMap<Digest, &ManifestEntry> = HashMap::new();
        for entry in put {
            if let Some(other) = entries.insert(entry.digest, entry) {
                let message = format!("its definition is that of job {} too", other.name);
                findings = at(findings, entry, "", &format!("error[definition]: {message}"));
            }
        }
        Self { entries, definitions: HashMap::new(), patterns: Patterns::default(), findings, bytes: 0, count: 0 }
    }

    /// Takes one in, with everything that is wrong about it.
    fn take(&mut self, wire: &v1::Definition) -> Result<(), Fault> {
        self.bytes += wire.json.len();
        self.count += 1;
        if wire.json.len() > JOB_FILE_BYTES {
            return Err(limit(format!("a definition has {} bytes, at most {JOB_FILE_BYTES} are taken", wire.json.len())));
        }
        if self.bytes > CATALOG_BYTES || self.count > CATALOG_JOBS {
            return Err(limit(format!("a catalogue has at most {CATALOG_JOBS} jobs and {CATALOG_BYTES} bytes")));
        }
        let job = match octavius_proto::definition("definition", Some(wire)) {
            Ok(job) => job,
            Err(InvalidField { problem, .. }) => {
                let text = format!("error[definition]: cannot be read: {problem}");
                self.find(self.entries.get(&Digest::of(&wire.json)).copied(), "", &text);
                return Ok(());
            }
        };
        let canonical = Bytes::from(job.to_canonical_json());
        let digest = Digest::of(&canonical);
        let Some(&entry) = self.entries.get(&digest) else { return Ok(()) };
        self.check(entry, &job);
        self.definitions.insert(digest, canonical);
        Ok(())
    }

    fn check(&mut self, entry: &ManifestEntry, job: &JobDefinition) {
        if job.name != entry.name {
            let text = format!("error[definition]: the definition is that of {}, not of {}", job.name, entry.name);
            self.find(Some(entry), "/name", &text);
        }
        for finding in check::check_with(job, &mut self.patterns) {
            if finding.severity == Severity::Error {
                let hint = if finding.hint.is_empty() { String::new() } else { format!("; hint: {}", finding.hint) };
                let text = format!("error[{}]: {}{hint}", finding.code, finding.message);
                self.find(Some(entry), &finding.pointer, &text);
            }
        }
    }

    fn find(&mut self, entry: Option<&ManifestEntry>, pointer: &str, text: &str) {
        let findings = std::mem::replace(&mut self.findings, Fault::new(Code::InvalidArgument, reason::INVALID_CATALOG, ""));
        self.findings = match entry {
            Some(entry) => at(findings, entry, pointer, text),
            None => findings.violating("", format!("definition {} of the apply: {text}", self.count)),
        };
    }

    /// The definitions, where nothing is wrong about any.
    fn definitions(self) -> Result<HashMap<Digest, Bytes>, Fault> {
        if self.findings.violations.is_empty() { Ok(self.definitions) } else { Err(self.findings) }
    }
}

/// Adds a finding. As a field it has the job and the place in its definition; the text is the line that the loader of files would print,
/// with the line of the job's name, as the definition's own lines are not known here.
fn at(findings: Fault, entry: &ManifestEntry, pointer: &str, text: &str) -> Fault {
    let place = match (entry.file.as_str(), entry.line) {
        ("", _) => format!("job {}", entry.name),
        (file, 0) => file.to_owned(),
        (file, line) => format!("{file}:{line}"),
    };
    findings.violating(format!("{}{pointer}", entry.name), format!("{place}: {text}"))
}

fn limit(message: String) -> Fault {
    Fault::new(Code::ResourceExhausted, reason::LIMIT, message)
}

/// What is wrong about the path of a file, which others may print or write one day; none where nothing is.
fn path_problem(path: &str) -> Option<&'static str> {
    if path.len() > PATH_BYTES {
        return Some("a path of more than 4096 bytes");
    }
    if path.chars().any(char::is_control) {
        return Some("a path with control characters");
    }
    if path.starts_with('/') {
        return Some("a path that is not relative");
    }
    path.split(['/', '\\']).any(|part| part == "..").then_some("a path with `..`")
}

fn entry(wire: v1::ManifestEntry) -> Result<ManifestEntry, InvalidField> {
    let name = octavius_proto::job_name("name", &wire.name)?;
    let of_job = |problem: &str| format!("{problem}, of job {name}");
    let checked = |field, path: &str| path_problem(path).map_or(Ok(()), |problem| Err(InvalidField::new(field, of_job(problem))));
    checked("file", &wire.file)?;
    if wire.inherited.len() > INHERITED {
        return Err(InvalidField::new("inherited", of_job(&format!("more than {INHERITED} parts"))));
    }
    if wire.inherited.iter().map(|part| part.field.len() + part.file.len()).sum::<usize>() > INHERITED_BYTES {
        return Err(InvalidField::new("inherited", of_job(&format!("more than {INHERITED_BYTES} bytes of text"))));
    }
    for part in &wire.inherited {
        checked("inherited", &part.file)?;
        if part.field.len() > PATH_BYTES || part.field.chars().any(char::is_control) {
            return Err(InvalidField::new("inherited", of_job("a field that is too long, or has control characters")));
        }
    }
    Ok(ManifestEntry {
        digest: octavius_proto::digest("definition", &wire.definition)?,
        name,
        file: wire.file,
        line: wire.line,
        changed_in: 0,
        inherited: wire
            .inherited
            .into_iter()
            .map(|v1::InheritedField { field, file, line }| Inherited { field, file, line })
            .collect(),
    })
}

fn provenance(mut provenance: v1::Provenance) -> v1::Provenance {
    for text in [&mut provenance.commit, &mut provenance.repository, &mut provenance.author] {
        *text = text.chars().filter(|c| !c.is_control()).take(PROVENANCE_CHARS).collect();
    }
    provenance
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_time_is_read_as_grpc_writes_it() {
        let read = ["2H", "3M", "45S", "100m", "7u", "9n", "99999999H"].map(|text| grpc_timeout(text).unwrap());
        assert_eq!(
            read[..4],
            [7200, 180, 45].map(Duration::from_secs).into_iter().chain([Duration::from_millis(100)]).collect::<Vec<_>>()
        );
        assert_eq!(read[4..6], [Duration::from_micros(7), Duration::from_nanos(9)]);
        for wrong in ["", "S", "1", "1s", "-1S", "123456789S", "1\u{e4}"] {
            assert_eq!(grpc_timeout(wrong), None, "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn who_gets_no_turn_is_told_within_its_own_time() {
        let (turns, call, shutdown) = (Turns::default(), MetadataMap::new(), CancellationToken::new());
        let mut held = Vec::new();
        for _ in 0..AT_ONCE {
            held.push(turns.turn(&call, &shutdown).await.unwrap());
        }
        let mut hurried = MetadataMap::new();
        hurried.insert("grpc-timeout", "50m".parse().unwrap());
        let fault = turns.turn(&hurried, &shutdown).await.unwrap_err();
        assert_eq!((fault.code, fault.reason.as_str()), (Code::ResourceExhausted, reason::LIMIT));
        assert!(fault.message.contains("none ended in 45ms"), "{fault:?}");
        // One that ends lets the next in.
        let (_, next) = tokio::join!(async { drop(held.pop()) }, turns.turn(&call, &shutdown));
        held.push(next.unwrap());
        shutdown.cancel();
        assert_eq!(turns.turn(&call, &shutdown).await.unwrap_err().reason, reason::STOPPING);
    }

    #[tokio::test]
    async fn an_upload_that_never_ends_is_given_up() {
        // A part now and then, for ever: each comes in time, the whole does not.
        let part = || v1::ApplyRequest { part: Some(Part::Definitions(v1::ApplyDefinitions::default())) };
        let drip = futures::stream::unfold((), |()| async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Some((Ok(part()), ()))
        });
        let until = Instant::now() + Duration::from_millis(50);
        let mut parts = Parts { parts: Box::pin(drip), until, shutdown: CancellationToken::new() };
        let fault = loop {
            match parts.next().await {
                Ok(part) => assert!(part.is_some()),
                Err(fault) => break fault,
            }
        };
        assert!(fault.message.contains("took too long"), "{fault:?}");
    }
}
