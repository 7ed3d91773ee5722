//! The jobs that are run under faults, and what they print: real small jobs that also write into a ledger that they began and ended, so
//! that nobody needs to believe the system about what it started.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use octavius_core::JobDefinition;
use octavius_proto::v1;

use crate::history::Permits;

/// The catalogue's name.
pub const CATALOG: &str = "faults";

/// How long an execution may have to wait for an executor that is free and there, while faults go on.
const QUEUE: Duration = Duration::from_secs(90);

/// A job of the workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Is run once.
    Once,
    /// Is run again after a failure, once, and after a loss.
    Again,
}

impl Job {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Once => "once",
            Self::Again => "again",
        }
    }
}

/// One run of a job.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Which job.
    pub job: Job,
    /// How many lines of 80 bytes it prints.
    pub lines: u32,
    /// How long it sleeps before its last line.
    pub pause: Duration,
    /// With which code it ends.
    pub code: u8,
    /// Its timeout.
    pub timeout: Duration,
}

impl Run {
    /// Its arguments, by name.
    #[must_use]
    pub fn arguments(&self) -> BTreeMap<String, String> {
        let pause = self.pause.as_secs_f64().to_string();
        [("lines", self.lines.to_string()), ("pause", pause), ("code", self.code.to_string())]
            .map(|(name, value)| (name.to_owned(), value))
            .into()
    }

    /// What its job permits.
    #[must_use]
    pub fn permits(&self) -> Permits {
        let again = self.job == Job::Again;
        // A lost attempt is followed by others as long as executors vanish; each may take its whole timeout.
        let attempts = if again { 4 } else { 1 };
        Permits { deadline: QUEUE + self.timeout * attempts, retries: usize::from(again), on_lost_retry: again }
    }

    /// What an attempt prints that runs to its end.
    #[must_use]
    pub fn prints(&self, id: &str, attempt: u32) -> Vec<u8> {
        let mut text = String::new();
        for line in 0..self.lines {
            text.push_str(&format!("{id} {attempt} line {line} {FILL}\n"));
        }
        text.push_str(&format!("{id} {attempt} done\n"));
        text.into_bytes()
    }
}

const FILL: &str = "abcdefghijklmnopqrstuvwxyz012345678";

/// The catalogue of these jobs, as it is in each of its revisions: every job's description names the revision, so that a reader who is shown
/// two revisions at once is found out.
#[derive(Debug, Clone)]
pub struct Workload {
    ledger: PathBuf,
    idle: usize,
}

impl Workload {
    /// Jobs that write into this ledger, beside `idle` others that nobody runs.
    #[must_use]
    pub fn new(ledger: &Path, idle: usize) -> Self {
        Self { ledger: ledger.to_owned(), idle }
    }

    /// The ledger.
    #[must_use]
    pub fn ledger(&self) -> &Path {
        &self.ledger
    }

    /// The catalogue's jobs in the state `tag`.
    ///
    /// # Errors
    /// Where a definition is none: a fault of the harness.
    pub fn jobs(&self, tag: &str) -> Result<Vec<JobDefinition>> {
        let ledger = self.ledger.display();
        let me = "$OCTAVIUS_EXECUTION_ID $OCTAVIUS_ATTEMPT";
        let script = format!(
            "echo \"start {me} $(date +%s.%N)\" >> '{ledger}'; i=0; \
             while [ $i -lt $lines ]; do echo \"{me} line $i {FILL}\"; i=$((i+1)); done; \
             sleep $pause; echo \"{me} done\"; echo \"end {me} $(date +%s.%N)\" >> '{ledger}'; exit $code"
        );
        let arguments: Vec<_> = ["lines", "pause", "code"].map(|name| serde_json::json!({"name": name, "required": true})).into();
        let run = |job: Job, retries: u32, on_lost: &str| {
            serde_json::json!({
                "name": job.name(), "description": tag, "command": ["sh", "-c", script], "env_vars": {"args": arguments},
                "retries": retries, "on_lost": on_lost,
            })
        };
        let idle = (0..self.idle)
            .map(|number| serde_json::json!({"name": format!("idle-{number}"), "description": tag, "command": ["true"]}));
        let all = [run(Job::Once, 0, "fail"), run(Job::Again, 1, "retry")].into_iter().chain(idle);
        all.map(|job| Ok(serde_json::from_value(job)?)).collect()
    }

    /// The messages of an apply that makes the catalogue hold `jobs` and nothing else, against revision `parent`, which held `before`.
    #[must_use]
    pub fn apply(jobs: &[JobDefinition], parent: u64, before: &[String]) -> Vec<v1::ApplyRequest> {
        use v1::apply_request::Part;
        let put = jobs.iter().map(|job| v1::ManifestEntry {
            name: job.name.to_string(),
            definition: job.digest().as_bytes().to_vec().into(),
            file: format!("{}.yaml", job.name),
            line: 1,
            changed_in: 0,
            inherited: Vec::new(),
        });
        let stays = |name: &str| jobs.iter().any(|job| job.name.as_str() == name);
        let header = v1::ApplyHeader {
            catalog: CATALOG.to_owned(),
            parent,
            put: put.collect(),
            remove: before.iter().filter(|name| !stays(name)).cloned().collect(),
            ..v1::ApplyHeader::default()
        };
        let definitions = jobs.iter().map(|job| v1::Definition { json: job.to_canonical_json().into() }).collect();
        [Part::Header(header), Part::Definitions(v1::ApplyDefinitions { definitions })]
            .map(|part| v1::ApplyRequest { part: Some(part) })
            .into()
    }
}
