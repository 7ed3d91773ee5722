//! What is to be made of what is seen: pure, so that every way to end has its line in a test.

use std::time::Duration;

use octavius_core::HumanDuration;
use octavius_core::execution::{Ending, Reason, State};

use super::seen::{Contained, JobSeen, PodSeen, Why};
use super::sight::{Presence, Seen};
use crate::journal::StopCause;

/// A Job that was resumed has its pod within this time, or something refuses to let it have one.
const POD_WITHIN: Duration = Duration::from_secs(3);

/// What is known of an attempt beside what is seen.
#[derive(Debug, Clone)]
pub(super) struct Facts<'a> {
    /// The Job's UID, as it was created.
    pub(super) uid: &'a str,
    /// Whether this executor has resumed it, whatever is seen.
    pub(super) resumed: bool,
    /// How long it has been watched over.
    pub(super) waited: Duration,
    pub(super) stop: Option<StopCause>,
    /// How it ends, where that is decided already.
    pub(super) decided: Option<&'a Ending>,
    pub(super) timeout: Duration,
    pub(super) start_limit: Duration,
    /// What the cluster said, when asked, of why there is no pod.
    pub(super) no_pod: Option<&'a Why>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Look {
    /// Wait for the next change, or for so long.
    Wait(Option<Duration>),
    /// It never began.
    NotStarted,
    /// Ask the cluster why there is no pod.
    AskWhy,
    /// Delete it: it is to stop.
    Delete,
    /// It cannot begin, for this reason: delete it.
    GiveUp(Ending),
    /// It is over, so.
    Over(Ending),
}

/// What is to be made of what is seen.
pub(super) fn judge(seen: &Seen, facts: &Facts<'_>) -> Look {
    let job = match &seen.job {
        Presence::Unknown => return Look::Wait(None),
        Presence::There(job) if job.uid == facts.uid => Some(job),
        Presence::There(_) | Presence::Gone => None,
    };
    let pod = seen.pod();
    if let Some(over) = over(job, pod, seen, facts) {
        return over;
    }
    // What is left is a Job that is there and not over.
    let Some(job) = job else { return Look::Wait(None) };
    if job.deleting {
        return Look::Wait(None);
    }
    if facts.stop.is_some() || facts.decided.is_some() {
        return Look::Delete;
    }
    if job.suspended && !facts.resumed {
        return Look::NotStarted;
    }
    match pod {
        Some(pod) => pending(pod, facts),
        None => no_pod(facts),
    }
}

/// How it ended, or that its end is near and not known yet.
fn over(job: Option<&JobSeen>, pod: Option<&PodSeen>, seen: &Seen, facts: &Facts<'_>) -> Option<Look> {
    let stopped = || facts.stop.map(|_| Ending::because(State::Cancelled, Reason::CANCELLED, "stopped as requested"));
    if !seen.pods.iter().all(PodSeen::is_over) {
        return None;
    }
    let ended = |ending: Ending| Some(Look::Over(facts.decided.cloned().unwrap_or(ending)));
    match (job, pod) {
        (Some(job), _) if job.failed.as_ref().is_some_and(|why| why.reason == "DeadlineExceeded") => {
            ended(timed_out(facts.timeout))
        }
        (_, Some(pod)) if pod.why.reason == "DeadlineExceeded" => ended(timed_out(facts.timeout)),
        // A pod that nobody took away ended by itself.
        (_, Some(pod)) if pod.phase == "Succeeded" && !pod.cut_short => ended(Ending::succeeded()),
        (_, Some(pod)) if pod.phase == "Failed" && !pod.cut_short && pod.disrupted.is_none() => ended(failed(pod)),
        (_, Some(pod)) if evicted(pod).is_some() => ended(evicted(pod)?),
        (None, _) => ended(stopped().unwrap_or_else(deleted)),
        (Some(_), Some(_)) if facts.stop.is_some() => ended(stopped()?),
        (Some(job), _) if job.complete => ended(Ending::succeeded()),
        (Some(job), _) if job.deleting => ended(stopped().unwrap_or_else(deleted)).filter(|_| pod.is_some()),
        (Some(job), pod) => job.failed.as_ref().map(|why| ended(taken_away(pod, why)))?,
    }
}

fn timed_out(timeout: Duration) -> Ending {
    Ending::because(State::TimedOut, Reason::DEADLINE, format!("ran longer than {}", HumanDuration::new(timeout)))
}

fn deleted() -> Ending {
    let message = "the Kubernetes Job was deleted, and not by Octavius: to stop a job, use `octavius cancel`";
    Ending::because(State::Failed, Reason::DELETED_EXTERNALLY, message)
}

fn infrastructure(message: String) -> Ending {
    Ending::because(State::Failed, Reason::INFRASTRUCTURE, message)
}

/// The ending of a job whose pod went away though nobody asked for it.
fn taken_away(pod: Option<&PodSeen>, why: &Why) -> Ending {
    match pod {
        Some(pod) if pod.node.is_empty() => infrastructure(format!("pod {} was deleted before it had a node ({why})", pod.name)),
        Some(pod) => infrastructure(format!("pod {} was deleted on node {} ({why})", pod.name, pod.node)),
        None => infrastructure(format!("the job's pod is gone and left nothing ({why})")),
    }
}

/// The ending of a pod that Kubernetes took away.
fn evicted(pod: &PodSeen) -> Option<Ending> {
    let (name, node) = (&pod.name, &pod.node);
    if pod.why.reason == "Evicted" {
        let message = format!(
            "node {node} evicted pod {name}: {}; ask for the memory and disk that the job needs in its `resources`",
            pod.why.message
        );
        return Some(Ending::because(State::Failed, Reason::EVICTED, message));
    }
    let why = pod.disrupted.as_ref()?;
    Some(infrastructure(format!("pod {name} was taken off node {node}: {why}")))
}

/// The ending of a pod that failed by itself.
fn failed(pod: &PodSeen) -> Ending {
    if let Some(ending) = evicted(pod) {
        return ending;
    }
    match &pod.container {
        Contained::Terminated { exit_code: 0, .. } => Ending::succeeded(),
        Contained::Terminated { exit_code, why } => terminated(*exit_code, why),
        // The kubelet refused it, or its node vanished.
        Contained::Nothing | Contained::Waiting(_) | Contained::Running => {
            infrastructure(format!("pod {} failed on node {}: {}", pod.name, pod.node, pod.why))
        }
    }
}

fn terminated(code: i32, why: &Why) -> Ending {
    let because =
        |reason: &str, message: String| Ending { exit_code: Some(code), ..Ending::because(State::Failed, reason, message) };
    match why.reason.as_str() {
        "OOMKilled" => because(
            Reason::OOM_KILLED,
            "killed because it used more memory than it may: raise `resources.limits.memory` of the job".to_owned(),
        ),
        "StartError" | "ContainerCannotRun" => Ending::because(
            State::Failed,
            Reason::START_FAILED,
            format!("the container could not be started: {}: check the job's `command` and image", why.message),
        ),
        "ContainerStatusUnknown" => infrastructure(format!("how the container ended is not known: {}", why.message)),
        _ if (129..=192).contains(&code) => {
            let signal = code - 128;
            because(Reason::SIGNAL, format!("killed by {} ({signal})", crate::shim::signal_name(signal)))
        }
        _ => because(Reason::EXIT_CODE, format!("exit code {code}")),
    }
}

/// What holds up a pod that is there and has not ended.
fn pending(pod: &PodSeen, facts: &Facts<'_>) -> Look {
    let late = |reason: &str, message: String| {
        let left = facts.start_limit.saturating_sub(facts.waited);
        if left.is_zero() {
            let limit = HumanDuration::new(facts.start_limit);
            Look::GiveUp(Ending::because(State::Failed, reason, format!("not started within {limit}: {message}")))
        } else {
            Look::Wait(Some(left))
        }
    };
    let at_once = |reason: &str, message: String| Look::GiveUp(Ending::because(State::Failed, reason, message));
    let Contained::Waiting(why) = &pod.container else {
        return match &pod.unscheduled {
            Some(why) => late(
                Reason::UNSCHEDULABLE,
                format!("no node takes the pod: {}: check the job's `resources` and the executor's node selectors", why.message),
            ),
            None => Look::Wait(None),
        };
    };
    let image = |what: &str| {
        format!("the image cannot be pulled: {what}: check `image_name`, and the pull secret in the executor's pod template")
    };
    match why.reason.as_str() {
        "InvalidImageName" | "ErrImageNeverPull" => at_once(Reason::IMAGE_PULL, image(&why.to_string())),
        "ErrImagePull" | "ImagePullBackOff" | "ImageInspectError" | "RegistryUnavailable" if is_final(&why.message) => {
            at_once(Reason::IMAGE_PULL, image(&why.message))
        }
        "ErrImagePull" | "ImagePullBackOff" | "ImageInspectError" | "RegistryUnavailable" => {
            late(Reason::IMAGE_PULL, image(&why.message))
        }
        "CreateContainerConfigError" if is_secret(&why.message) => at_once(
            Reason::SECRET_MISSING,
            format!("{}: create it in the job's namespace, or change the job's `from`", why.message),
        ),
        "CreateContainerConfigError" if why.message.contains("runAsNonRoot") => at_once(
            Reason::FORBIDDEN,
            format!("{}: use an image that does not run as root, or an executor that allows it", why.message),
        ),
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            late(Reason::START_FAILED, format!("the container cannot be made: {}", why.message))
        }
        _ => Look::Wait(None),
    }
}

/// Whether trying again would not help: the registry has answered, and said no.
fn is_final(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    [
        "not found",
        "manifest unknown",
        "unauthorized",
        "denied",
        "forbidden",
        "does not exist",
        "no such image",
        "invalid reference",
    ]
    .iter()
    .any(|sign| message.contains(sign))
}

fn is_secret(message: &str) -> bool {
    message.contains("secret \"") || message.contains("in Secret ") || message.contains("Secret \"")
}

/// What holds up a Job that has no pod.
fn no_pod(facts: &Facts<'_>) -> Look {
    let early = POD_WITHIN.saturating_sub(facts.waited);
    if !early.is_zero() {
        return Look::Wait(Some(early));
    }
    let Some(why) = facts.no_pod else { return Look::AskWhy };
    let quota = is_quota(&why.message);
    if why.message.contains("forbidden") && !quota {
        return Look::GiveUp(forbidden(&why.message));
    }
    let left = facts.start_limit.saturating_sub(facts.waited);
    if !left.is_zero() {
        return Look::Wait(Some(left));
    }
    let limit = HumanDuration::new(facts.start_limit);
    if quota {
        return Look::GiveUp(over_quota(&format!("not started within {limit}: {}", why.message)));
    }
    let what = if why.message.is_empty() { "the cluster made no pod for the Job and does not say why" } else { &why.message };
    Look::GiveUp(Ending::because(State::Failed, Reason::START_FAILED, format!("not started within {limit}: {what}")))
}

/// Whether the cluster refuses something because a quota is used up.
pub(super) fn is_quota(message: &str) -> bool {
    message.contains("exceeded quota") || message.contains("failed quota")
}

/// The ending of what a quota leaves no room for.
pub(super) fn over_quota(message: &str) -> Ending {
    let message = format!("{message}: wait for other jobs to end, ask for less in `resources`, or raise the namespace's quota");
    Ending::because(State::Failed, Reason::QUOTA, message)
}

/// The ending of what the cluster does not allow.
pub(super) fn forbidden(message: &str) -> Ending {
    let message = format!("{message}: `octavius executor check` says what the executor lacks");
    Ending::because(State::Failed, Reason::FORBIDDEN, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> JobSeen {
        JobSeen { uid: "u".to_owned(), suspended: false, complete: false, failed: None, deleting: false, is_let_be: false }
    }

    fn pod(phase: &str, container: Contained) -> PodSeen {
        PodSeen {
            name: "p".to_owned(),
            uid: "pu".to_owned(),
            created: None,
            phase: phase.to_owned(),
            why: Why::default(),
            node: "n".to_owned(),
            cut_short: false,
            gone: false,
            disrupted: None,
            unscheduled: None,
            container,
            image: String::new(),
        }
    }

    fn why(reason: &str, message: &str) -> Why {
        Why { reason: reason.to_owned(), message: message.to_owned() }
    }

    fn waiting(reason: &str, message: &str) -> PodSeen {
        pod("Pending", Contained::Waiting(why(reason, message)))
    }

    fn terminated(exit_code: i32, reason: &str) -> PodSeen {
        let phase = if exit_code == 0 { "Succeeded" } else { "Failed" };
        pod(phase, Contained::Terminated { exit_code, why: why(reason, "") })
    }

    fn facts() -> Facts<'static> {
        Facts {
            uid: "u",
            resumed: true,
            waited: Duration::ZERO,
            stop: None,
            decided: None,
            timeout: Duration::from_secs(60),
            start_limit: Duration::from_secs(300),
            no_pod: None,
        }
    }

    fn shown(look: Look) -> String {
        let ending = |what: &str, ending: Ending| {
            let reason = ending.reason.map_or("-".to_owned(), |reason| reason.0);
            format!("{what} {} {reason} {:?} {}", ending.outcome, ending.exit_code, ending.message)
        };
        match look {
            Look::Over(over) => ending("over", over),
            Look::GiveUp(up) => ending("give up", up),
            Look::Wait(Some(pause)) => format!("wait {pause:?}"),
            other => format!("{other:?}"),
        }
    }

    fn look(job: Option<JobSeen>, pods: Vec<PodSeen>, facts: &Facts<'_>) -> String {
        shown(judge(&Seen { job: job.map_or(Presence::Gone, Presence::There), pods }, facts))
    }

    #[test]
    fn every_way_to_end_has_its_outcome_and_reason() {
        let deleted = |pod: PodSeen| PodSeen { cut_short: true, ..pod };
        let failed = |reason: &str| JobSeen { failed: Some(why(reason, "m")), ..job() };
        let deadline = PodSeen { why: why("DeadlineExceeded", ""), ..pod("Failed", Contained::Nothing) };
        let evicted = PodSeen { why: why("Evicted", "low on memory"), ..pod("Failed", Contained::Nothing) };
        let drained = PodSeen { disrupted: Some(why("EvictionByEvictionAPI", "m")), ..deleted(terminated(143, "Error")) };
        let complete = JobSeen { complete: true, ..job() };
        for (job, pods, expected) in [
            (Some(job()), vec![terminated(0, "Completed")], "over succeeded - Some(0)"),
            (Some(complete), vec![], "over succeeded - Some(0)"),
            (Some(job()), vec![terminated(3, "Error")], "over failed EXIT_CODE Some(3)"),
            (Some(job()), vec![terminated(137, "Error")], "over failed SIGNAL Some(137)"),
            (Some(job()), vec![terminated(137, "OOMKilled")], "over failed OOM_KILLED Some(137)"),
            (Some(job()), vec![terminated(128, "StartError")], "over failed START_FAILED None"),
            (Some(job()), vec![deadline], "over timed_out DEADLINE None"),
            (Some(failed("DeadlineExceeded")), vec![], "over timed_out DEADLINE None"),
            (Some(failed("BackoffLimitExceeded")), vec![], "over failed INFRASTRUCTURE None the job's pod is gone"),
            (
                Some(failed("BackoffLimitExceeded")),
                vec![deleted(terminated(143, "Error"))],
                "over failed INFRASTRUCTURE None pod p was deleted",
            ),
            (Some(job()), vec![evicted], "over failed EVICTED None node n evicted pod p: low on memory"),
            (Some(job()), vec![drained], "over failed INFRASTRUCTURE None pod p was taken off node n"),
            (None, vec![], "over failed DELETED_EXTERNALLY None"),
            (None, vec![deleted(terminated(0, "Completed"))], "over failed DELETED_EXTERNALLY None"),
            (None, vec![terminated(0, "Completed")], "over succeeded - Some(0)"),
            (Some(JobSeen { uid: "another".to_owned(), ..job() }), vec![], "over failed DELETED_EXTERNALLY None"),
            (Some(job()), vec![deleted(terminated(143, "Error"))], "Wait(None)"),
            (None, vec![pod("Running", Contained::Running)], "Wait(None)"),
            (Some(job()), vec![pod("Running", Contained::Running)], "Wait(None)"),
        ] {
            let told = look(job, pods, &facts());
            assert!(told.starts_with(expected), "{told}, not {expected}");
        }
    }

    #[test]
    fn a_stop_is_carried_out_and_what_had_ended_before_it_is_told_as_it_was() {
        let stopped = Facts { stop: Some(StopCause::Cancelled), ..facts() };
        let running = pod("Running", Contained::Running);
        assert_eq!(look(Some(job()), vec![running.clone()], &stopped), "Delete");
        let deleting = JobSeen { deleting: true, ..job() };
        assert_eq!(look(Some(deleting.clone()), vec![running], &stopped), "Wait(None)");
        let ended = PodSeen { cut_short: true, ..terminated(0, "Completed") };
        assert!(look(Some(deleting), vec![ended], &stopped).starts_with("over cancelled CANCELLED None"));
        assert!(look(None, vec![], &stopped).starts_with("over cancelled CANCELLED None"));
        assert!(look(Some(job()), vec![terminated(3, "Error")], &stopped).starts_with("over failed EXIT_CODE"));
        let decided = Ending::because(State::Failed, Reason::IMAGE_PULL, "no image");
        let given_up = Facts { decided: Some(&decided), ..facts() };
        assert_eq!(look(Some(job()), vec![waiting("ErrImagePull", "")], &given_up), "Delete");
        assert_eq!(look(None, vec![], &given_up), "over failed IMAGE_PULL None no image");
    }

    #[test]
    fn what_cannot_begin_is_given_up_at_once_or_at_the_limit() {
        let late = Facts { waited: Duration::from_secs(300), ..facts() };
        let unscheduled = PodSeen { unscheduled: Some(why("Unschedulable", "0/1 nodes")), ..pod("Pending", Contained::Nothing) };
        for (pod, early, at_limit) in [
            (waiting("InvalidImageName", "x"), "give up failed IMAGE_PULL", "give up failed IMAGE_PULL"),
            (waiting("ErrImagePull", "manifest unknown"), "give up failed IMAGE_PULL", "give up failed IMAGE_PULL"),
            (waiting("ImagePullBackOff", "dial tcp: i/o timeout"), "wait 300s", "give up failed IMAGE_PULL"),
            (
                waiting("CreateContainerConfigError", "secret \"s\" not found"),
                "give up failed SECRET_MISSING",
                "give up failed SECRET_MISSING",
            ),
            (
                waiting("CreateContainerConfigError", "couldn't find key k in Secret ns/s"),
                "give up failed SECRET_MISSING",
                "give up",
            ),
            (
                waiting("CreateContainerConfigError", "container has runAsNonRoot"),
                "give up failed FORBIDDEN",
                "give up failed FORBIDDEN",
            ),
            (waiting("CreateContainerError", "x"), "wait 300s", "give up failed START_FAILED"),
            (waiting("ContainerCreating", ""), "Wait(None)", "Wait(None)"),
            (unscheduled, "wait 300s", "give up failed UNSCHEDULABLE"),
        ] {
            for (facts, expected) in [(facts(), early), (late.clone(), at_limit)] {
                let told = look(Some(job()), vec![pod.clone()], &facts);
                assert!(told.starts_with(expected), "{:?}: {told}", pod.container);
            }
        }
        let suspended = JobSeen { suspended: true, ..job() };
        assert_eq!(look(Some(suspended.clone()), vec![], &Facts { resumed: false, ..facts() }), "NotStarted");
        assert_eq!(look(Some(suspended), vec![], &facts()), "wait 3s");
        let after = Facts { waited: Duration::from_secs(3), ..facts() };
        assert_eq!(look(Some(job()), vec![], &after), "AskWhy");
        for (said, early, at_limit) in [
            ("pods \"x\" is forbidden: exceeded quota: q", "wait 297s", "give up failed QUOTA"),
            ("pods \"x\" is forbidden: violates PodSecurity", "give up failed FORBIDDEN", "give up failed FORBIDDEN"),
            ("", "wait 297s", "give up failed START_FAILED None not started within 5m: the cluster made no pod"),
        ] {
            let said = why("FailedCreate", said);
            for (facts, expected) in [(&after, early), (&late, at_limit)] {
                let told = look(Some(job()), vec![], &Facts { no_pod: Some(&said), ..facts.clone() });
                assert!(told.starts_with(expected), "{said}: {told}");
            }
        }
    }
}
