//! A watch of the API server's, for tests: what happens to objects, in the order in which it happened.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::Kubernetes;

/// What a watch has seen.
#[derive(Debug, Clone)]
pub struct Change {
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub kind: String,
    /// The object as it was then.
    pub object: Value,
    /// When it was heard of.
    pub at: Instant,
}

impl Change {
    /// The object's name; empty where it has none.
    #[must_use]
    pub fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// Whether the object has this condition, and it is true.
    #[must_use]
    pub fn has(&self, condition: &str) -> bool {
        let mut conditions = self.object["status"]["conditions"].as_array().into_iter().flatten();
        conditions.any(|seen| seen["type"] == condition && seen["status"] == "True")
    }
}

/// A watch that is open. It ends with this value.
#[derive(Debug)]
pub struct Watch {
    child: Child,
    lines: Receiver<(String, Instant)>,
}

impl Kubernetes {
    /// Watches a collection from now on: what is there already is not told.
    ///
    /// # Errors
    /// Where the API server does not answer.
    pub fn watch(&self, collection: &str) -> Result<Watch> {
        let list = self.get(&format!("{collection}?limit=1"))?;
        let version = list["metadata"]["resourceVersion"].as_str().context("no version")?;
        let url = format!("{}{collection}?watch=true&timeoutSeconds=3600&resourceVersion={version}", self.url()?);
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--no-buffer", "--config"]).arg(self.folder.join("curl.conf")).arg(url);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("no stdout")?;
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Whoever watched may have gone.
                if tell.send((line, Instant::now())).is_err() {
                    break;
                }
            }
        });
        Ok(Watch { child, lines })
    }
}

impl Watch {
    /// The next change, waited for at most so long.
    ///
    /// # Errors
    /// Where none came in time, or the watch has ended.
    pub fn next(&self, patience: Duration) -> Result<Change> {
        match self.lines.recv_timeout(patience) {
            Ok((line, at)) => read(&line, at),
            Err(RecvTimeoutError::Timeout) => bail!("no change within {patience:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the watch has ended"),
        }
    }

    /// Everything that was heard of and not taken yet.
    ///
    /// # Errors
    /// Where something is no change.
    pub fn so_far(&self) -> Result<Vec<Change>> {
        self.lines.try_iter().map(|(line, at)| read(&line, at)).collect()
    }
}

fn read(line: &str, at: Instant) -> Result<Change> {
    let mut event: Value = serde_json::from_str(line).with_context(|| format!("no change: {line}"))?;
    let kind = event["type"].as_str().context("no type")?.to_owned();
    if kind == "ERROR" {
        bail!("the watch failed: {line}");
    }
    Ok(Change { kind, object: event["object"].take(), at })
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
