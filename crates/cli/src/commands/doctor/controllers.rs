//! The controllers, each asked by itself: one of a list that is down is not seen as long as the first one answers, until that dies too.
//! All are asked at once, and none for longer than the connection timeout in all.

use std::time::Duration;

use futures::future::OptionFuture;
use octavius_core::version::{self, Side};
use octavius_core::{ByteSize, Permission, Role, Timestamp};
use octavius_proto::client::Address;
use octavius_proto::words::{self, between, short};
use octavius_proto::{reason, v1};
use tokio::time::{Instant, timeout_at};
use tonic::Code;

use super::finding::{Area, Finding};
use super::webhooks;
use crate::commands::whoami::role_name;
use crate::config::Resolved;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Shell;
use crate::session::{self, Session};

const AREA: Area = Area::Controllers;

/// Clocks that differ by less are as good as equal: that is what machines without NTP drift in days.
const CLOCKS_DIFFER: Duration = Duration::from_secs(5);

/// A token or a certificate that ends this soon is to be replaced now.
pub(super) const ENDS_SOON: Duration = Duration::from_secs(7 * 24 * 3600);

/// From so many percent on, a store will soon refuse log bytes, at 70.
const FILLS_UP: u32 = 60;

/// A store that takes this long to read one value makes everything slow.
const SLOW: Duration = Duration::from_millis(100);

/// The audit trail is exported every few minutes, and its record says so to the hour.
const EXPORT_BEHIND: Duration = Duration::from_secs(3 * 3600);

/// What a controller answered.
pub(super) struct Answer {
    address: Address,
    me: v1::WhoAmIResponse,
    round_trip: Duration,
    /// How far the controller's clock is ahead of this machine's, in seconds, as well as can be known.
    ahead: Option<f64>,
    /// None where the role may not ask: a call that is refused would be a record in the audit trail.
    controller: Option<Outcome<v1::GetControllerResponse>>,
    executors: Option<Outcome<v1::ListExecutorsResponse>>,
    /// None where the role may not ask, and where the controller is older than these.
    webhooks: Option<Outcome<v1::ListWebhooksResponse>>,
}

/// What came of an address.
enum Asked {
    /// It has no address of the network.
    Unresolved(String),
    /// Nothing answered, or no controller.
    Failed(Failure),
    /// A controller answered, and does not know the token.
    Stranger(Failure),
    /// A controller answered.
    Answered(Box<Answer>),
}

/// Asks all controllers; what was found, and what those answered that did.
pub(super) async fn check(shell: &Shell, resolved: &Resolved) -> (Vec<Finding>, Vec<Answer>) {
    let deadline = Instant::now() + resolved.timeout;
    let asked = resolved.addresses.iter().map(|address| ask(shell, resolved, address, deadline));
    let asked: Vec<(Address, Asked)> = futures::future::join_all(asked).await;
    let any = asked.iter().any(|(_, asked)| matches!(asked, Asked::Answered(_) | Asked::Stranger(_)));
    let mut findings: Vec<Finding> = resolved.addresses.iter().map(protocol).collect();
    findings.extend(asked.iter().map(|(address, asked)| reached(address, asked, any)));
    let mut stranger = None;
    let mut answers = Vec::new();
    for (_, asked) in asked {
        match asked {
            Asked::Answered(answer) => answers.push(*answer),
            Asked::Stranger(failure) => stranger = Some(failure),
            Asked::Unresolved(_) | Asked::Failed(_) => {}
        }
    }
    if let Some(failure) = stranger {
        let source = resolved.token_source.as_ref().map(|source| format!(" (the token of {source})")).unwrap_or_default();
        let finding = Finding::failed(AREA, "token", &failure, "an admin makes one with `octavius tokens create`");
        findings.push(Finding { message: format!("{}{source}", finding.message), ..finding });
    }
    findings.extend(one_store(&answers));
    if let Some(answer) = answers.first() {
        findings.extend(identity(&answer.me));
    }
    for answer in &answers {
        findings.push(version(answer));
        findings.push(clock(answer));
    }
    findings.extend(store(&answers));
    findings.extend(
        answers
            .iter()
            .filter_map(|answer| Some((answer, answer.webhooks.as_ref()?.as_ref().ok()?)))
            .flat_map(|(answer, listed)| webhooks::check(&answer.address, &answer.me, listed)),
    );
    (findings, answers)
}

/// Whether what is said on the way can be read by others.
fn protocol(address: &Address) -> Finding {
    if address.is_secure() {
        return Finding::ok(AREA, "tls", "with TLS").of(address.to_string());
    }
    if session::is_loopback(address) {
        return Finding::ok(AREA, "tls", "in plain text, on this machine alone").of(address.to_string());
    }
    let told = "in plain text: whoever is on the way can read the token";
    Finding::warning(
        AREA,
        "tls",
        told,
        "give the controller a certificate (--tls-cert), and this client the authority: octavius config --ca-file F",
    )
    .of(address.to_string())
}

/// Asks one controller all there is to ask.
async fn ask(shell: &Shell, resolved: &Resolved, address: &Address, deadline: Instant) -> (Address, Asked) {
    let asked = async {
        let host = address.to_string();
        match timeout_at(deadline, tokio::net::lookup_host(&host)).await.map(|found| found.map(Iterator::count)) {
            Ok(Ok(1..)) => {}
            Ok(Ok(0)) => return Asked::Unresolved("the name has no address".to_owned()),
            Ok(Err(error)) => return Asked::Unresolved(error.to_string()),
            Err(_) => return Asked::Unresolved("the name could not be looked up in time".to_owned()),
        }
        let left = || deadline.saturating_duration_since(Instant::now());
        let alone = Resolved { addresses: vec![address.clone()], timeout: left(), ..resolved.clone() };
        let session = match Session::connect(shell, alone).await {
            Ok(session) => session,
            Err(failure) => return Asked::Failed(failure),
        };
        let (began, at) = (Instant::now(), Timestamp::now());
        let me = match session.call_once(async |to| to.admin().who_am_i(v1::WhoAmIRequest {}).await).await {
            Ok(me) => me,
            Err(failure) if failure.exit == Exit::NotSignedIn => return Asked::Stranger(failure),
            Err(failure) => return Asked::Failed(failure),
        };
        let round_trip = began.elapsed();
        // It looked at its clock somewhere on the way: in the middle, as far as one can know.
        let ahead =
            words::time(me.now.as_ref()).map(|theirs| theirs.duration_since(at).as_secs_f64() - round_trip.as_secs_f64() / 2.0);
        let (controller, executors, webhooks) = tokio::join!(
            OptionFuture::from(may(&me, Permission::Administer).then(|| {
                in_time(deadline, session.call_once(async |to| to.admin().get_controller(v1::GetControllerRequest {}).await))
            })),
            OptionFuture::from(may(&me, Permission::ReadExecutors).then(|| {
                in_time(deadline, session.call_once(async |to| to.executors().list_executors(v1::ListExecutorsRequest {}).await))
            })),
            OptionFuture::from(may(&me, Permission::Administer).then(|| {
                in_time(deadline, session.call_once(async |to| to.admin().list_webhooks(v1::ListWebhooksRequest {}).await))
            })),
        );
        Asked::Answered(Box::new(Answer { address: address.clone(), me, round_trip, ahead, controller, executors, webhooks }))
    };
    // Each step ends within it by itself, and together they may not take longer either.
    let asked = timeout_at(deadline + Duration::from_millis(200), asked).await.unwrap_or_else(|_| {
        let told = format!("the controller at {address} did not answer within {}", short(resolved.timeout));
        Asked::Failed(Failure::new(Exit::Unreachable, anyhow::Error::msg(told)))
    });
    (address.clone(), asked)
}

/// Whether one's role may do this. What a role may that this version does not know, is found out by doing it.
fn may(me: &v1::WhoAmIResponse, permission: Permission) -> bool {
    let role = v1::Role::try_from(me.role).ok().and_then(|role| Role::try_from(role).ok());
    role.is_none_or(|role| role.may(permission))
}

async fn in_time<T>(deadline: Instant, call: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let late = || Failure::new(Exit::Unreachable, anyhow::Error::msg("no answer in time"));
    timeout_at(deadline, call).await.unwrap_or_else(|_| Err(late()))
}

/// What came of an address; `any` says whether there is another one that answers.
fn reached(address: &Address, asked: &Asked, any: bool) -> Finding {
    let subject = address.to_string();
    let finding = match asked {
        Asked::Answered(answer) => {
            let version = &answer.me.version;
            Finding::ok(AREA, "address", format!("a controller of version {version} answered in {}", short(answer.round_trip)))
        }
        Asked::Stranger(_) => Finding::ok(AREA, "address", "a controller answered, and does not know the token"),
        Asked::Unresolved(told) => Finding::problem(
            AREA,
            "address",
            told.clone(),
            "write an address that this machine can look up: octavius config --cp-host HOST:PORT",
        ),
        Asked::Failed(failure) => {
            let finding =
                Finding::failed(AREA, "address", failure, "is a controller running there, and does a firewall let one through?");
            // the address stands before it
            let told = finding.message.strip_prefix(&format!("no controller answered: {address}: ")).map(str::to_owned);
            Finding { message: told.unwrap_or_else(|| finding.message.clone()), ..finding }
        }
    };
    // Beside one that answers, one that does not is no trouble yet.
    let finding = match (asked, any) {
        (Asked::Unresolved(_) | Asked::Failed(_), true) => {
            let Finding { message, remedies, .. } = finding;
            let first = remedies.first().cloned().unwrap_or_default();
            Finding::warning(AREA, "address", format!("{message}; another one answers"), first)
                .remedy("start it again, or take it out of CP_HOST")
        }
        _ => finding,
    };
    finding.of(subject)
}

/// Addresses of one context lead to one store: what is accepted at one would be unknown at another.
fn one_store(answers: &[Answer]) -> Option<Finding> {
    let first = answers.first()?;
    let other = answers.iter().find(|answer| answer.me.controller_id != first.me.controller_id)?;
    let told = format!(
        "two addresses lead to two stores: {} to {}, {} to {}",
        first.address, first.me.controller_id, other.address, other.me.controller_id
    );
    let remedy = "name only controllers of one store together; another store is another context: octavius config --context NAME";
    Some(Finding::problem(AREA, "store_id", told, remedy))
}

/// Who one is, and for how long.
fn identity(me: &v1::WhoAmIResponse) -> Vec<Finding> {
    let groups = if me.groups.is_empty() { "no groups".to_owned() } else { format!("groups {}", me.groups.join(", ")) };
    let role = role_name(me.role);
    let mut findings = vec![Finding::ok(AREA, "identity", format!("{}, role {role}, {groups}", me.user))];
    let now = words::time(me.now.as_ref()).unwrap_or_else(Timestamp::now);
    findings.push(match words::time(me.expires_at.as_ref()) {
        None => Finding::ok(AREA, "expiry", "the token does not end"),
        Some(end) => {
            let told = format!("the token ends in {}", between(now, end));
            if Duration::try_from(end.duration_since(now)).unwrap_or_default() < ENDS_SOON {
                let remedy = format!("an admin makes another one: octavius tokens create --user {} --role {role}", me.user);
                Finding::warning(AREA, "expiry", told, remedy)
            } else {
                Finding::ok(AREA, "expiry", told)
            }
        }
    });
    findings
}

fn version(answer: &Answer) -> Finding {
    let (ours, theirs) = (env!("CARGO_PKG_VERSION"), answer.me.version.as_str());
    let (client, controller) = (Side { what: "this client", version: ours }, Side { what: "the controller", version: theirs });
    let finding = match version::compare(client, controller) {
        Ok(()) => Finding::ok(AREA, "version", format!("client {ours} and controller {theirs} go together")),
        Err(skew) => {
            Finding::warning(AREA, "version", skew.to_string(), "what the older one does not know fails between them: upgrade it")
        }
    };
    finding.of(answer.address.to_string())
}

fn clock(answer: &Answer) -> Finding {
    let finding = match answer.ahead {
        None => Finding::skipped(AREA, "clock", "the controller does not tell its time: it is older than this client"),
        // half of the way is not known
        Some(ahead) if ahead.abs() <= CLOCKS_DIFFER.as_secs_f64() + answer.round_trip.as_secs_f64() / 2.0 => {
            Finding::ok(AREA, "clock", "as this machine's")
        }
        Some(ahead) => {
            let by = short(Duration::try_from_secs_f64(ahead.abs()).unwrap_or(Duration::MAX));
            let how = if ahead > 0.0 { "ahead of" } else { "behind" };
            let told = format!(
                "the controller's is {by} {how} this machine's: times that are shown and the end of tokens are by its clock"
            );
            Finding::warning(AREA, "clock", told, "let NTP set both clocks (timedatectl status)")
        }
    };
    finding.of(answer.address.to_string())
}

/// What the controllers lean on, as they tell an admin: the store once, which is theirs together, the archive from each.
fn store(answers: &[Answer]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut told = false;
    for answer in answers {
        let subject = answer.address.to_string();
        let controller = match &answer.controller {
            Some(Ok(controller)) => controller,
            Some(Err(failure)) => {
                findings.push(not_told(failure).of(subject));
                continue;
            }
            None => {
                let Answer { me, .. } = answer;
                let told = format!("told to an admin alone; {} has role {}", me.user, role_name(me.role));
                // who may not ask one may not ask another
                if findings.iter().all(|known: &Finding| known.message != told) {
                    findings.push(Finding::skipped(AREA, "store", told).of(subject));
                }
                continue;
            }
        };
        if !told {
            told = true;
            findings.push(condition(controller.store.as_ref()));
            findings.push(audit_export(controller));
        }
        findings.push(archive(controller.archive.as_ref()).of(subject));
    }
    findings
}

/// Why a controller did not say how it is.
fn not_told(failure: &Failure) -> Finding {
    let code = failure.fault.as_ref().map(|fault| fault.code);
    match code {
        Some(Code::Unimplemented) => Finding::skipped(AREA, "store", "the controller is older than this client, and cannot tell"),
        _ if failure.is(reason::STORE_UNAVAILABLE) => {
            Finding::failed(AREA, "store", failure, "is the etcd well, and can the controller's machine reach it?")
                .remedy("on that machine: octavius doctor --controller-config FILE")
        }
        _ => Finding::failed(AREA, "store", failure, "what the controller logs says more"),
    }
}

fn condition(store: Option<&v1::StoreCondition>) -> Finding {
    const ROOM: &str = "keep less (retention_age, retention_executions in controller_config.json), or raise the store's quota";
    let Some(store) = store else { return Finding::skipped(AREA, "store", "the controller does not say how it is") };
    let within = store.answered_within.and_then(|within| Duration::try_from(within).ok()).unwrap_or_default();
    let size = |bytes: u64| ByteSize::new(bytes).to_string();
    let usage = match (store.allocated_bytes, store.quota_bytes) {
        (0, _) => "its size is not known yet".to_owned(),
        (bytes, 0) => format!("{} used, bound by the disk alone", size(bytes)),
        (_, quota) => format!("{} % of {} used", store.percent, size(quota)),
    };
    let told = format!("answers in {}, {usage}", millis(within));
    if store.refuses_work {
        Finding::problem(AREA, "store", format!("{told}: new work is refused"), ROOM)
    } else if store.refuses_logs {
        Finding::problem(AREA, "store", format!("{told}: log bytes are refused, executors keep them"), ROOM)
    } else if store.percent >= FILLS_UP {
        Finding::warning(AREA, "store", format!("{told}: log bytes are refused from 70 % on"), ROOM)
    } else if within > SLOW {
        Finding::warning(
            AREA,
            "store",
            told,
            "an etcd wants a disk of its own that syncs quickly, and members near the controllers",
        )
    } else {
        Finding::ok(AREA, "store", told)
    }
}

/// A short time: `0.4 ms`.
fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

fn archive(archive: Option<&v1::ArchiveCondition>) -> Finding {
    match archive {
        None => Finding::ok(AREA, "archive", "none: of each log, its beginning and its end are kept, in the store"),
        Some(v1::ArchiveCondition { url, problem }) if problem.is_empty() => {
            Finding::ok(AREA, "archive", format!("{url} answers"))
        }
        Some(v1::ArchiveCondition { url, problem }) => {
            let told = format!("{url} does not answer: {problem}; jobs run on, and logs wait with the executors");
            Finding::problem(
                AREA,
                "archive",
                told,
                "see to the folder's disk, or to the S3 and its credentials (AWS_ variables of the controller)",
            )
        }
    }
}

fn audit_export(controller: &v1::GetControllerResponse) -> Finding {
    let Some(export) = &controller.audit_export else {
        return Finding::skipped(AREA, "audit_export", "the audit trail is not exported");
    };
    let now = words::time(controller.now.as_ref()).unwrap_or_else(Timestamp::now);
    let Some(at) = words::time(export.exported_at.as_ref()) else {
        return Finding::ok(AREA, "audit_export", "the audit trail is exported from now on");
    };
    let age = Duration::try_from(now.duration_since(at)).unwrap_or_default();
    if age < EXPORT_BEHIND {
        return Finding::ok(AREA, "audit_export", "the audit trail is exported");
    }
    let told =
        format!("the audit trail was last exported {} ago; nothing of it is removed from the store until it is", short(age));
    Finding::problem(AREA, "audit_export", told, "the controllers' logs say why; can they write to the folder of audit_export?")
        .remedy("where it is meant to end: \"audit_export\": \"none\" in controller_config.json")
}

/// The executors, as the first controller that answered sees them.
pub(super) fn executors(answers: &[Answer]) -> Vec<Finding> {
    const AREA: Area = Area::Executors;
    let Some(answer) = answers.first() else { return Vec::new() };
    let executors = match &answer.executors {
        Some(Ok(listed)) => &listed.executors,
        None => return vec![Finding::skipped(AREA, "present", format!("not told to role {}", role_name(answer.me.role)))],
        Some(Err(failure)) => return vec![Finding::failed(AREA, "present", failure, "`octavius executors` shows them")],
    };
    if executors.is_empty() {
        let remedy =
            "octavius tokens create --role executor --user ID > registration.token, and there `octavius executor register`";
        return vec![Finding::warning(AREA, "present", "none is registered: executions wait until there is one", remedy)];
    }
    let is_there = |executor: &&v1::Executor| matches!(executor.state(), v1::ExecutorState::Active | v1::ExecutorState::Draining);
    let (there, away): (Vec<&v1::Executor>, Vec<&v1::Executor>) = executors.iter().partition(is_there);
    let takes = there.iter().filter(|executor| executor.draining.is_none()).count();
    let told = format!("{} of {} there", there.len(), executors.len());
    let mut findings = vec![match (there.len(), takes) {
        (0, _) => Finding::problem(AREA, "present", format!("{told}: executions wait"), "start them: octavius executor start"),
        (_, 0) => {
            Finding::problem(AREA, "present", format!("{told}, and all drain: executions wait"), "octavius executors resume ID")
        }
        _ => Finding::ok(AREA, "present", format!("{told}, {takes} take work")),
    }];
    // A machine that was taken away for good stays in the list until somebody says so.
    for executor in away {
        let since = words::time(executor.last_seen_at.as_ref()).map(|at| format!("was seen last {at:.0}"));
        let told = since.unwrap_or_else(|| "has never been there since it was registered".to_owned());
        let finding =
            Finding::warning(AREA, "away", told, "start it; or where it is gone for good: octavius executors revoke ID");
        findings.push(finding.of(executor.id.clone()));
    }
    for executor in there {
        let what = format!("executor {}", executor.id);
        let (theirs, controller) =
            (Side { what: &what, version: &executor.version }, Side { what: "the controller", version: &answer.me.version });
        if let Err(skew) = version::compare(theirs, controller) {
            let remedy = "upgrade one after the other, controllers first";
            findings.push(Finding::warning(AREA, "version", skew.to_string(), remedy).of(executor.id.clone()));
        }
        if executor.orphan_count > 0 {
            let told = format!("holds {} that no execution is for", executor.orphan_count);
            let remedy = format!("look at them: octavius executors describe {}", executor.id);
            findings.push(Finding::warning(AREA, "orphans", told, remedy).of(executor.id.clone()));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn at(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 0 })
    }

    fn answer(me: v1::WhoAmIResponse) -> Answer {
        Answer {
            address: Address::parse("ctl-1:3000").unwrap(),
            me: v1::WhoAmIResponse { version: env!("CARGO_PKG_VERSION").to_owned(), user: "ann".into(), role: 4, ..me },
            round_trip: Duration::from_millis(2),
            ahead: Some(0.1),
            controller: Some(Ok(v1::GetControllerResponse::default())),
            executors: Some(Ok(v1::ListExecutorsResponse::default())),
            webhooks: Some(Ok(v1::ListWebhooksResponse::default())),
        }
    }

    #[test]
    fn a_clock_is_told_that_is_off_by_more_than_the_way_can_explain() {
        for (ahead, way_ms, verdict, told) in [
            (Some(0.4), 2, Verdict::Ok, "as this"),
            (Some(-4.9), 2, Verdict::Ok, "as this"),
            (Some(7.0), 6000, Verdict::Ok, "as this"),
            (Some(90.0), 2, Verdict::Warning, "1m30s ahead"),
            (Some(-3600.0), 2, Verdict::Warning, "1h behind"),
            (None, 2, Verdict::Skipped, "older"),
        ] {
            let of = Answer { ahead, round_trip: Duration::from_millis(way_ms), ..answer(v1::WhoAmIResponse::default()) };
            let finding = clock(&of);
            assert!(finding.verdict == verdict && finding.message.contains(told), "{ahead:?}: {finding:?}");
        }
    }

    #[test]
    fn a_token_that_ends_soon_is_told_by_the_controllers_clock() {
        let day = 24 * 3600;
        let expiry = |end| identity(&v1::WhoAmIResponse { now: at(100 * day), expires_at: end, ..Default::default() })[1].clone();
        assert_eq!(expiry(None).verdict, Verdict::Ok);
        assert_eq!(expiry(at(108 * day)).verdict, Verdict::Ok);
        let soon = expiry(at(106 * day));
        assert!(soon.verdict == Verdict::Warning && soon.message.contains("ends in 6d"), "{soon:?}");
    }

    #[test]
    fn a_store_is_judged_by_what_it_refuses() {
        let mib = 1 << 20;
        let store = |percent, refuses_logs, refuses_work, millis: i32| {
            let within = prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 };
            condition(Some(&v1::StoreCondition {
                answered_within: Some(within),
                allocated_bytes: 10 * mib,
                used_bytes: mib,
                quota_bytes: 100 * mib,
                percent,
                refuses_logs,
                refuses_work,
            }))
        };
        let well = store(12, false, false, 1);
        assert_eq!((well.verdict, well.message.as_str()), (Verdict::Ok, "answers in 1.0 ms, 12 % of 100MiB used"));
        assert_eq!(store(64, false, false, 1).verdict, Verdict::Warning);
        assert_eq!(store(12, false, false, 300).verdict, Verdict::Warning);
        assert!(store(72, true, false, 1).message.contains("log bytes are refused"));
        assert!(store(90, true, true, 1).message.contains("new work is refused"));
        let unbound = condition(Some(&v1::StoreCondition { allocated_bytes: mib, ..Default::default() }));
        assert!(unbound.message.contains("1MiB used, bound by the disk alone"), "{unbound:?}");
    }

    #[test]
    fn an_export_that_has_stopped_is_a_problem() {
        let export = |now, exported| {
            let audit_export = Some(v1::AuditExportCondition { exported_at: exported });
            audit_export_of(&v1::GetControllerResponse { now, audit_export, ..Default::default() })
        };
        fn audit_export_of(controller: &v1::GetControllerResponse) -> Verdict {
            audit_export(controller).verdict
        }
        assert_eq!(export(at(100 * 3600), at(99 * 3600)), Verdict::Ok);
        assert_eq!(export(at(100 * 3600), at(96 * 3600)), Verdict::Problem);
        assert_eq!(export(at(100 * 3600), None), Verdict::Ok);
        assert_eq!(audit_export_of(&v1::GetControllerResponse::default()), Verdict::Skipped);
    }

    #[test]
    fn addresses_of_two_stores_are_a_problem() {
        let of = |id: &str| answer(v1::WhoAmIResponse { controller_id: id.to_owned(), ..Default::default() });
        assert_eq!(one_store(&[of("a"), of("a")]), None);
        assert_eq!(one_store(&[]), None);
        let finding = one_store(&[of("a"), of("a"), of("b")]).unwrap();
        assert!(finding.message.contains("to a") && finding.message.contains("to b"), "{finding:?}");
    }

    #[test]
    fn executors_that_are_away_drain_or_are_too_old_are_told() {
        let executor = |id: &str, state: v1::ExecutorState, version: &str| v1::Executor {
            id: id.to_owned(),
            state: state.into(),
            version: version.to_owned(),
            ..Default::default()
        };
        let found = |list: Vec<v1::Executor>| {
            let of = Answer {
                executors: Some(Ok(v1::ListExecutorsResponse { executors: list })),
                ..answer(v1::WhoAmIResponse::default())
            };
            executors(&[of]).into_iter().map(|finding| (finding.check, finding.verdict)).collect::<Vec<_>>()
        };
        use v1::ExecutorState as S;
        let ours = env!("CARGO_PKG_VERSION");
        assert_eq!(found(vec![]), [("present", Verdict::Warning)]);
        assert_eq!(found(vec![executor("a", S::Active, ours)]), [("present", Verdict::Ok)]);
        assert_eq!(found(vec![executor("a", S::Expired, ours)]), [("present", Verdict::Problem), ("away", Verdict::Warning)]);
        let drains = v1::Executor { draining: Some(v1::Drain::default()), ..executor("a", S::Draining, ours) };
        assert_eq!(found(vec![drains]), [("present", Verdict::Problem)]);
        let orphaned = v1::Executor { orphan_count: 2, ..executor("b", S::Active, "99.0.0") };
        let expected = [("present", Verdict::Ok), ("version", Verdict::Warning), ("orphans", Verdict::Warning)];
        assert_eq!(found(vec![orphaned]), expected);
    }
}
