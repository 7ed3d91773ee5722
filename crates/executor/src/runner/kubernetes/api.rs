//! The cluster's API: how it is reached, and what its errors mean.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use octavius_core::Timing;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::connections::Connections;
use super::options::{KubernetesConnection, KubernetesOptions};
use crate::link::Backoff;

/// Longest wait for the answer to a call that is not a stream.
pub(super) const CALL: Duration = Duration::from_secs(10);
/// Calls under way at once, watches and logs not counted. A burst of assignments waits its turn here, where a call that waits takes next to
/// nothing, and not as hundreds of requests; few API servers answer more of one client's at once.
static CALLS: Semaphore = Semaphore::const_new(16);
/// Longest pause between calls to an API server that does not answer.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Why a call did not succeed.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The cluster said no, and would again.
    Refused(Box<Status>),
    /// The cluster did not answer, or asked to come again later.
    Passing(String),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(status) => f.write_str(&status.message),
            Self::Passing(message) => f.write_str(message),
        }
    }
}

impl From<kube::Error> for Trouble {
    fn from(error: kube::Error) -> Self {
        match error {
            // Expired tokens are renewed, and an overloaded or restarting server, or a webhook of its, recovers.
            kube::Error::Api(status) if !matches!(status.code, 401 | 408 | 429 | 500..) => Self::Refused(status),
            kube::Error::Api(status) => Self::Passing(format!("{} ({})", status.message, status.code)),
            error => Self::Passing(chain(&error)),
        }
    }
}

/// An error with everything beneath it; what only repeats the one above is left out.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        below = error.source();
    }
    text
}

/// Finds the API server as the options say, and the namespace that is meant by default.
pub(super) async fn connect(options: &KubernetesOptions) -> Result<(Connections, String), String> {
    let mut config = match &options.connection {
        KubernetesConnection::InCluster => Config::incluster().map_err(|error| chain(&error))?,
        KubernetesConnection::Kubeconfig { path, context } => {
            let wanted = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
            let config = match path {
                Some(path) => {
                    let read = Kubeconfig::read_from(path).map_err(|error| format!("{}: {}", path.display(), chain(&error)))?;
                    Config::from_custom_kubeconfig(read, &wanted).await
                }
                None => Config::from_kubeconfig(&wanted).await,
            };
            config.map_err(|error| chain(&error))?
        }
    };
    // How often a call is made again is decided here and not beneath.
    config.default_retry = false;
    config.connect_timeout = Some(CALL);
    let namespace = match options.default_namespace.as_str() {
        "" => config.default_namespace.clone(),
        namespace => namespace.to_owned(),
    };
    Ok((Connections::new(config).map_err(|error| chain(&error))?, namespace))
}

/// Makes a call once. On the heap, as are all calls, since they are large and seldom there: what waits for a Job's end should be small.
pub(super) fn once<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Pin<Box<impl Future<Output = Result<T, Trouble>>>> {
    Box::pin(async move {
        match tokio::time::timeout(CALL, call).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Trouble::Passing(format!("the API server did not answer within {} s", CALL.as_secs()))),
        }
    })
}

/// Pauses between calls to a server that does not answer.
pub(super) fn backoff(timing: Timing) -> Backoff {
    Backoff::new(Timing { retry_max: LONGEST_PAUSE, ..timing })
}

/// Waits for one's turn to call, no longer than `patience`.
async fn turn(patience: Option<Duration>) -> Option<SemaphorePermit<'static>> {
    let turn = match patience {
        Some(patience) => tokio::time::timeout(patience, CALLS.acquire()).await.ok()?,
        None => CALLS.acquire().await,
    };
    turn.ok()
}

/// Makes a call until it is answered, or for as long as `patience` says where it says so.
pub(super) fn until_answered<T, F>(
    timing: Timing,
    what: &str,
    patience: Option<Duration>,
    call: impl Fn() -> F,
) -> Pin<Box<impl Future<Output = Result<T, Trouble>>>>
where
    F: Future<Output = Result<T, kube::Error>>,
{
    Box::pin(async move {
        let begun = tokio::time::Instant::now();
        let mut backoff = backoff(timing);
        let mut told = false;
        loop {
            let Some(turn) = turn(patience.map(|patience| patience.saturating_sub(begun.elapsed()))).await else {
                return Err(Trouble::Passing("the API server is slow, and too many calls wait for it".to_owned()));
            };
            let answer = once(call()).await;
            drop(turn);
            let message = match answer {
                Err(Trouble::Passing(message)) => message,
                answer => return answer,
            };
            let pause = backoff.pause();
            if patience.is_some_and(|patience| begun.elapsed() + pause > patience) {
                return Err(Trouble::Passing(message));
            }
            if told {
                tracing::debug!(error = message, "cannot {what}, trying again");
            } else {
                tracing::warn!(error = message, "cannot {what}, trying on");
                told = true;
            }
            tokio::time::sleep(pause).await;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_will_pass_is_told_from_what_will_not() {
        for (code, passing) in
            [(400, false), (403, false), (404, false), (409, false), (401, true), (429, true), (500, true), (503, true)]
        {
            let trouble = Trouble::from(kube::Error::Api(Status::failure("made up", "X").with_code(code).boxed()));
            assert_eq!(matches!(trouble, Trouble::Passing(_)), passing, "{code}");
        }
    }
}
