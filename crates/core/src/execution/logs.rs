//! What holds for the logs of one execution.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::definition::Logs;
use crate::size::{ByteSize, SizeLimit};

/// What the job said about its logs when the execution was made. Where it said nothing, the controllers' own rules hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogRules {
    /// Most bytes that are kept of one attempt's log; [`u64::MAX`] where all are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// How long the log is kept after the execution's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_for: Option<Duration>,
    /// Most bytes that logs of the job take together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_bytes: Option<u64>,
}

impl LogRules {
    /// Whether nothing was said.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl From<&Logs> for LogRules {
    fn from(logs: &Logs) -> Self {
        let Logs { limit, keep_for, keep_bytes } = logs;
        Self { limit: limit.map(SizeLimit::most), keep_for: keep_for.map(Into::into), keep_bytes: keep_bytes.map(ByteSize::get) }
    }
}
