//! A job's definition: what a file in the catalogue says, after inherited values are filled in. The types here are the one source of
//! the JSON Schema in `schemas/`; what a schema cannot say is in [`crate::check`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;
use crate::duration::HumanDuration;
use crate::id::JobName;
use crate::label::Labels;
use crate::size::{ByteSize, SizeLimit};

/// One job that people can run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobDefinition {
    /// The job's name: 1 to 63 characters `A-Z a-z 0-9 . _ -`, a letter or digit at both ends, unique without regard to case.
    pub name: JobName,
    /// What the job does, for the people who run it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// The container image that the Kubernetes runner runs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image_name: String,
    /// The program and its arguments. The Kubernetes runner falls back to the image's own; the process runner needs it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// What reaches the job as environment variables.
    #[serde(default, skip_serializing_if = "EnvVars::is_empty")]
    pub env_vars: EnvVars,
    /// Who may see and run the job; empty means everyone with the role.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorized_groups: Vec<String>,
    /// Who wrote the job.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// Who else worked on it, as one text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub contributors: String,
    /// The organisation that the job belongs to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub organization: String,
    /// Labels that an executor must have to run the job.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub executor: Labels,
    /// Longest run of one attempt; 24h where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// How many more attempts follow a failed one.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(range(max = 100))]
    pub retries: u32,
    /// What happens when the executor vanishes while the job runs.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_lost: OnLost,
    /// How many executions of the job may run at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// Higher goes first among what waits for the same executors: 0 to 9.
    #[serde(default = "default_priority", skip_serializing_if = "is_default_priority")]
    #[schemars(range(max = 9))]
    pub priority: u8,
    /// When the job runs by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// How much of its logs is kept, and for how long.
    #[serde(default, skip_serializing_if = "is_default")]
    pub logs: Logs,
    /// What the job's container asks for and is held to.
    #[serde(default, skip_serializing_if = "Resources::is_empty")]
    pub resources: Resources,
    /// The Kubernetes service account that the job runs as.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service_account: String,
    /// The Kubernetes namespace that the job runs in, of those that the executor allows.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Annotations for the Kubernetes Job and its pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The job's own labels, to find it by: `octavius list --label team=payments`.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Removing the job takes two applies: the first takes this line away, the second the job.
    #[serde(default, skip_serializing_if = "is_default")]
    pub protect: bool,
    /// A person at a terminal is asked for the job's name before it runs.
    #[serde(default, skip_serializing_if = "is_default")]
    pub confirm: bool,
    /// Who must approve an execution before it may start; without it, nobody need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approvals: Option<Approvals>,
}

/// The environment variables of a job.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnvVars {
    /// Values that the executor resolves where it runs; they never pass through the controller.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Secret>,
    /// Values that the person who runs the job gives.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Argument>,
}

impl EnvVars {
    fn is_empty(&self) -> bool {
        self.secrets.is_empty() && self.args.is_empty()
    }
}

/// An argument: reaches the job as the environment variable of its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Argument {
    /// The variable's name: `[A-Za-z_][A-Za-z0-9_]*`, at most 128 characters, not starting with `OCTAVIUS_`.
    #[schemars(regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"), length(min = 1, max = 128))]
    pub name: String,
    /// What it means, for the people who give it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Whether the job cannot run without it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub required: bool,
    /// What values look like.
    #[serde(default, rename = "type", skip_serializing_if = "is_default")]
    pub kind: ArgumentType,
    /// The value where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Scalar>,
    /// The only values that are taken.
    #[serde(default, rename = "enum", skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<Scalar>,
    /// A regular expression that the whole value must match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Whether the value is masked wherever it would be shown.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sensitive: bool,
}

/// What an argument's values look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ArgumentType {
    /// Any text.
    #[default]
    String,
    /// A whole number of 64 bits with sign.
    Integer,
    /// A number, with or without fraction and exponent.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A length of time, like 90s, 10m or 1h30m.
    Duration,
}

impl ArgumentType {
    /// The type as job files write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::Duration => "duration",
        }
    }
}

/// A plain value in a job file, held as its text, since it reaches the job as text: `100` and `"100"` are one value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Scalar(pub String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a string, a number, or true or false")]
        enum Plain {
            Boolean(bool),
            Number(serde_json::Number),
            String(String),
        }
        Ok(Self(match Plain::deserialize(deserializer)? {
            Plain::Boolean(value) => value.to_string(),
            Plain::Number(value) => value.to_string(),
            Plain::String(value) => value,
        }))
    }
}

impl JsonSchema for Scalar {
    fn schema_name() -> Cow<'static, str> {
        "Scalar".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["string", "number", "boolean"] })
    }
}

/// A secret: reaches the job as the environment variable of its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Secret {
    /// The variable's name, by the same rule as an argument's.
    #[schemars(regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"), length(min = 1, max = 128))]
    pub name: String,
    /// What it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Where the executor finds the value. Without it, the executor's own configuration must say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<SecretSource>,
}

/// Where an executor finds a secret's value: of what its owner offers to jobs, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SecretSource {
    /// A key of a Kubernetes Secret in the job's namespace.
    Kubernetes(KubernetesSecret),
    /// A variable of the executor's environment.
    Environment(String),
    /// A file on the executor's host.
    File(String),
}

/// A key of a Kubernetes Secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KubernetesSecret {
    /// The Secret's name.
    pub secret: String,
    /// The key in it.
    pub key: String,
}

/// What happens when the executor vanishes while the job runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnLost {
    /// The execution ends as lost: the job may not run twice.
    #[default]
    Fail,
    /// The job runs again: it may safely run twice.
    Retry,
}

/// How many executions of a job may run at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Concurrency {
    /// The number, 1 or more.
    #[schemars(range(min = 1, max = 10_000))]
    pub limit: u32,
    /// What happens to one more.
    #[serde(default, skip_serializing_if = "is_default")]
    pub when_full: WhenFull,
}

/// What happens to an execution for which there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WhenFull {
    /// It waits.
    #[default]
    Queue,
    /// It is refused.
    Reject,
}

/// When a job runs by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Five fields as cron has them: minute, hour, day of month, month, day of week; or @hourly, @daily, @weekly, @monthly, @yearly.
    pub cron: String,
    /// The time zone that the fields are meant in, like Asia/Jakarta; UTC where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// What happens to ticks that passed while no controller ran.
    #[serde(default, skip_serializing_if = "is_default")]
    pub catch_up: CatchUp,
    /// What happens to a tick while the execution of the one before still runs.
    #[serde(default, skip_serializing_if = "is_default")]
    pub overlap: Overlap,
}

/// What happens to missed ticks of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CatchUp {
    /// They are skipped.
    #[default]
    None,
    /// The newest of them runs.
    Latest,
}

/// What happens to a tick while the one before still runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Overlap {
    /// It is skipped.
    #[default]
    Skip,
    /// Both run.
    Allow,
}

/// How much of a job's logs is kept, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Logs {
    /// Most bytes that are kept of one attempt's log, its beginning and its end, 64KiB or more; or none: all of it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<SizeLimit>,
    /// How long the log is kept after the execution's end, 1h or more; as long as the execution where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_for: Option<HumanDuration>,
    /// Most bytes that the logs of all its executions take together, 64KiB or more: the oldest go first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_bytes: Option<ByteSize>,
}

/// What a container asks for and is held to, as Kubernetes writes quantities: `cpu: 500m`, `memory: 256Mi`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// What is set aside for it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, String>,
    /// What it may not exceed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, String>,
}

impl Resources {
    fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.limits.is_empty()
    }
}

/// Who must approve an execution before it may start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Approvals {
    /// The groups whose members may approve or reject, at most 10, whether or not they may run the job; empty means everyone who may run it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// How many people must approve: 1 to 10.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 1, max = 10))]
    pub count: u32,
    /// Whether who asked for the execution may not approve it: `true` where nothing is said.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub not_self: bool,
    /// How long after it was asked for an execution may still start, 1m to 30d; 24h where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_for: Option<HumanDuration>,
}

impl Approvals {
    /// How long an execution may wait for its approvals and its start, where its job does not say.
    pub const VALID_FOR: Duration = Duration::from_secs(24 * 3600);

    /// [`Self::valid_for`], or what holds where nothing is said.
    #[must_use]
    pub fn valid_for(&self) -> Duration {
        self.valid_for.map_or(Self::VALID_FOR, HumanDuration::get)
    }
}

impl fmt::Display for Approvals {
    /// The rule in words: `2 of ops or leads, not the requester, within 1h`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { groups, count, not_self, valid_for: _ } = self;
        let who = if groups.is_empty() { "those who may run it".to_owned() } else { groups.join(" or ") };
        let requester = if *not_self { "not the requester" } else { "the requester too" };
        write!(f, "{count} of {who}, {requester}, within {}", HumanDuration::new(self.valid_for()))
    }
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
fn is_one(count: &u32) -> bool {
    *count == 1
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
fn is_yes(yes: &bool) -> bool {
    *yes
}

/// The priority where a job does not say: the middle.
pub const DEFAULT_PRIORITY: u8 = 5;

/// The highest priority.
pub const MAX_PRIORITY: u8 = 9;

fn default_priority() -> u8 {
    DEFAULT_PRIORITY
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
fn is_default_priority(priority: &u8) -> bool {
    *priority == DEFAULT_PRIORITY
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A definition that could not be read back from its stored bytes.
#[derive(Debug, thiserror::Error)]
#[error("not a job definition")]
pub struct DefinitionError(#[from] serde_json::Error);

impl JobDefinition {
    /// The definition's canonical bytes: JSON with fields in one order and defaults left out. Equal definitions have equal bytes,
    /// whatever their files look like.
    #[must_use]
    pub fn to_canonical_json(&self) -> Vec<u8> {
        #[expect(clippy::expect_used, reason = "strings, numbers and maps with string keys always have a JSON form")]
        serde_json::to_vec(self).expect("a definition has a JSON form")
    }

    /// Reads canonical bytes back.
    ///
    /// # Errors
    /// Where the bytes are not JSON of a definition.
    pub fn from_canonical_json(bytes: &[u8]) -> Result<Self, DefinitionError> {
        Ok(serde_json::from_slice(bytes)?)
    }

    /// The digest of the canonical bytes, under which the definition is stored.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.to_canonical_json())
    }

    /// The argument of this name.
    #[must_use]
    pub fn argument(&self, name: &str) -> Option<&Argument> {
        self.env_vars.args.iter().find(|argument| argument.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> JobDefinition {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn equal_definitions_have_equal_bytes_whatever_order_they_were_written_in() {
        let one = read(r#"{"name":"a","retries":0,"priority":5,"labels":{"x":"1","a":"2"},"env_vars":{"args":[]}}"#);
        let other = read(r#"{"labels":{"a":"2","x":"1"},"name":"a"}"#);
        assert_eq!(one.to_canonical_json(), other.to_canonical_json());
        assert_eq!(JobDefinition::from_canonical_json(&one.to_canonical_json()).unwrap(), one);
        assert_eq!(String::from_utf8(one.to_canonical_json()).unwrap(), r#"{"name":"a","labels":{"a":"2","x":"1"}}"#);
    }

    #[test]
    fn the_first_octavius_metadata_is_a_definition_as_it_is() {
        let job = read(
            r#"{"name":"hello","description":"d","image_name":"img:1","env_vars":{"secrets":[{"name":"S","description":"s"}],
            "args":[{"name":"data","description":"who","required":true}]},"authorized_groups":["g"],"author":"a","contributors":"b, c",
            "organization":"o"}"#,
        );
        assert!(job.env_vars.args[0].required);
        assert_eq!(job.contributors, "b, c");
    }

    /// Otherwise a job that asks for a second pair of eyes in as many words as it takes would be let through by its requester.
    #[test]
    fn approvals_without_more_said_are_one_of_another_than_the_requester() {
        let job = read(r#"{"name":"a","approvals":{}}"#);
        let rule = job.approvals.as_ref().unwrap();
        assert_eq!((rule.count, rule.not_self, rule.valid_for()), (1, true, Duration::from_secs(24 * 3600)));
        let said = read(r#"{"name":"a","approvals":{"groups":[],"count":1,"not_self":true}}"#);
        assert_eq!(job.to_canonical_json(), said.to_canonical_json());
        assert_ne!(job.digest(), read(r#"{"name":"a"}"#).digest());
    }

    #[test]
    fn plain_values_are_held_as_their_text() {
        let job = read(r#"{"name":"a","env_vars":{"args":[{"name":"n","default":100,"enum":[1,true,"x",1.5]}]}}"#);
        let argument = &job.env_vars.args[0];
        assert_eq!(argument.default, Some(Scalar("100".into())));
        assert_eq!(argument.choices.iter().map(|s| s.0.as_str()).collect::<Vec<_>>(), ["1", "true", "x", "1.5"]);
    }
}
