//! Catalogues over time: frozen and thawed, rolled back, their history by job, what is protected, what is too much, and where a job that runs
//! comes from.

use futures::future::join_all;
use octavius_core::limit::CATALOG_JOBS;
use octavius_proto::client::Connection;
use octavius_proto::v1::{self, Role};
use octavius_proto::{Fault, reason};
use tonic::Code;

use crate::fake::{Fake, hello};
use crate::harness::{Dice, House, apply, definition, entry, execute, head, header, parts, told};

fn a_job(name: &str) -> String {
    format!(r#"{{"name":"{name}","command":["true"]}}"#)
}

fn other(name: &str) -> String {
    format!(r#"{{"name":"{name}","command":["false"]}}"#)
}

fn protected(name: &str) -> String {
    format!(r#"{{"name":"{name}","command":["true"],"protect":true}}"#)
}

async fn get_head(connection: &Connection) -> v1::GetHeadResponse {
    connection.catalog().get_head(v1::GetHeadRequest { catalog: "c".into() }).await.unwrap().into_inner()
}

async fn set_frozen(connection: &Connection, frozen: bool) -> Result<Option<v1::Frozen>, Fault> {
    let request = v1::SetFrozenRequest { catalog: "c".into(), frozen };
    connection.catalog().set_frozen(request).await.map(|response| response.into_inner().frozen).map_err(|status| told(&status))
}

fn removing(parent: u64, names: &[&str]) -> v1::ApplyHeader {
    v1::ApplyHeader { remove: names.iter().map(|name| (*name).to_owned()).collect(), ..header("c", parent, &[]) }
}

fn refused(result: Result<v1::Revision, Fault>, code: Code, reason: &str) -> Fault {
    let fault = result.unwrap_err();
    assert_eq!((fault.code, fault.reason.as_str()), (code, reason), "{fault:?}");
    fault
}

/// Revisions below `before` that touched a job, in pages of `limit`, until there are no more.
async fn history(connection: &Connection, job: &str, limit: u32) -> Vec<u64> {
    let (mut numbers, mut before) = (Vec::new(), 0);
    loop {
        let request = v1::ListRevisionsRequest { catalog: "c".into(), limit, before, job: job.to_owned() };
        let page = connection.catalog().list_revisions(request).await.unwrap().into_inner().revisions;
        assert!(page.len() <= limit as usize);
        let Some(last) = page.last() else { return numbers };
        before = last.number;
        numbers.extend(page.iter().map(|revision| revision.number));
    }
}

#[tokio::test]
async fn while_a_catalogue_is_frozen_only_a_rollback_moves_it() {
    let house = House::open().await;
    let admin = house.admin().await;
    let applier = house.person(Role::Applier, "ann", &[]).await;
    let (a, b) = (a_job("a"), a_job("b"));
    assert_eq!(set_frozen(&admin, true).await.unwrap_err().reason, reason::NOT_FOUND, "there is nothing to freeze");
    apply(&admin, header("c", 0, &[&a]), &[&a]).await.unwrap();
    assert_eq!(get_head(&admin).await.frozen, None);

    let frozen = set_frozen(&applier, true).await.unwrap().unwrap();
    assert_eq!((frozen.by.as_str(), frozen.at.is_some()), ("ann", true));
    assert_eq!(set_frozen(&admin, true).await.unwrap(), Some(frozen.clone()), "it is frozen already, by another");
    assert_eq!(get_head(&admin).await.frozen, Some(frozen.clone()));
    for parent in [0, 1, 7] {
        let fault = refused(apply(&admin, header("c", parent, &[&b]), &[&b]).await, Code::FailedPrecondition, reason::FROZEN);
        assert_eq!(fault.fact("by"), Some("ann"));
    }
    // Jobs of a frozen catalogue run, whichever controller freezes it, and whether or not this one has seen that.
    let neighbour = house.neighbour().await;
    let there = crate::harness::connect(neighbour.address(), Some(&house.token)).await;
    execute(&admin, "a", &[]).await.unwrap();
    assert_eq!(set_frozen(&there, false).await.unwrap(), None);
    execute(&admin, "a", &[]).await.unwrap();
    assert_eq!(set_frozen(&there, false).await.unwrap(), None, "thawing twice does no harm");
    assert_eq!(get_head(&admin).await.frozen, None);
    apply(&there, header("c", 1, &[&b]), &[&b]).await.unwrap();
    set_frozen(&there, true).await.unwrap();
    execute(&admin, "b", &[]).await.unwrap();

    // A rollback moves it, and leaves it frozen by whoever froze it.
    let by = get_head(&admin).await.frozen;
    let back = v1::ApplyHeader { rollback_to: 1, ..removing(2, &["b"]) };
    let revision = apply(&applier, back, &[]).await.unwrap();
    assert_eq!((revision.number, revision.rollback_to), (3, 1));
    assert_eq!(get_head(&admin).await.frozen, by);
    neighbour.stop().await;
}

#[tokio::test]
async fn a_rollback_brings_back_exactly_what_was_there() {
    let house = House::open().await;
    let admin = house.admin().await;
    let (a, b, c) = (a_job("a"), a_job("b"), a_job("c"));
    let changed = other("a");
    apply(&admin, header("c", 0, &[&a, &b]), &[&a, &b]).await.unwrap();
    let second = v1::ApplyHeader { remove: vec!["b".into()], ..header("c", 1, &[&changed, &c]) };
    apply(&admin, second, &[&changed, &c]).await.unwrap();

    let back = |rollback_to, jobs: &[&str], remove: &[&str]| v1::ApplyHeader {
        put: header("c", 2, jobs).put,
        rollback_to,
        freeze: true,
        plan_id: "p-1".into(),
        ..removing(2, remove)
    };
    for wrong in [2, 3, u64::MAX] {
        let fault = apply(&admin, back(wrong, &[&a, &b], &["c"]), &[&a, &b]).await;
        refused(fault, Code::InvalidArgument, reason::INVALID_REQUEST);
    }
    for (jobs, remove) in [(&[a.as_str()][..], &["c"][..]), (&[&a, &b], &[]), (&[&b], &["c"]), (&[&changed, &b], &["c"])] {
        let fault = refused(apply(&admin, back(1, jobs, remove), jobs).await, Code::InvalidArgument, reason::INVALID_REQUEST);
        assert!(fault.message.contains("not what revision 1"), "{fault:?}");
    }
    // What another catalogue has taken meanwhile is that one's.
    let taken = v1::ApplyHeader { catalog: "d".into(), ..header("d", 0, &[&b]) };
    apply(&admin, taken, &[&b]).await.unwrap();
    let fault = refused(apply(&admin, back(1, &[&a, &b], &["c"]), &[&a, &b]).await, Code::FailedPrecondition, reason::NAME_TAKEN);
    assert_eq!((fault.fact("job"), fault.fact("catalog")), (Some("b"), Some("d")));
    assert_eq!((head(&admin, "c").await, get_head(&admin).await.frozen), (2, None), "refused, and so not frozen either");
    apply(&admin, v1::ApplyHeader { catalog: "d".into(), ..removing(1, &["b"]) }, &[]).await.unwrap();

    let before = connection_digests(&admin, 1).await;
    let revision = apply(&admin, back(1, &[&a, &b], &["c"]), &[&a, &b]).await.unwrap();
    assert_eq!((revision.number, revision.rollback_to, revision.plan_id.as_str()), (3, 1, "p-1"));
    let now = get_head(&admin).await;
    assert_eq!(now.frozen.map(|frozen| frozen.by), Some("admin".to_owned()), "frozen with it");
    assert_eq!(connection_digests(&admin, 3).await, before);
    assert_eq!(now.revision, Some(revision));
    // The plan is good once, and whoever tries it again learns what became of it.
    let again = apply(&admin, back(1, &[&a, &b], &["c"]), &[&a, &b]).await;
    let fault = refused(again, Code::Aborted, reason::HEAD_MOVED);
    assert_eq!((fault.fact("head"), fault.fact("applied_as")), (Some("3"), Some("3")));
}

/// Names and digests of a revision's jobs.
async fn connection_digests(connection: &Connection, revision: u64) -> Vec<(String, Vec<u8>)> {
    let request = v1::GetBucketsRequest { catalog: "c".into(), revision, buckets: vec![] };
    let mut stream = connection.catalog().get_buckets(request).await.unwrap().into_inner();
    let mut jobs = Vec::new();
    while let Some(bucket) = stream.message().await.unwrap() {
        jobs.extend(bucket.entries.into_iter().map(|entry| (entry.name, entry.definition.to_vec())));
    }
    jobs.sort();
    jobs
}

#[tokio::test]
async fn what_is_protected_goes_in_two_steps_or_not_at_all() {
    let house = House::open().await;
    let admin = house.admin().await;
    let (a, b) = (protected("a"), a_job("b"));
    apply(&admin, header("c", 0, &[&b]), &[&b]).await.unwrap();
    apply(&admin, header("c", 1, &[&a]), &[&a]).await.unwrap();
    for removal in [removing(2, &["b", "A"]), v1::ApplyHeader { rollback_to: 1, ..removing(2, &["a"]) }] {
        let fault = refused(apply(&admin, removal, &[]).await, Code::FailedPrecondition, reason::PROTECTED);
        assert_eq!(fault.fact("job"), Some("a"));
    }
    assert_eq!(head(&admin, "c").await, 2);
    let bare = a_job("a");
    apply(&admin, header("c", 2, &[&bare]), &[&bare]).await.unwrap();
    apply(&admin, removing(3, &["A"]), &[]).await.unwrap();
}

#[tokio::test]
async fn the_history_of_a_job_is_what_touched_it() {
    let house = House::open().await;
    let admin = house.admin().await;
    let mut dice = Dice::thrown();
    let names = ["a", "b", "Job-1"];
    let mut now: [Option<u64>; 3] = [None; 3];
    let mut touched: [Vec<u64>; 3] = Default::default();
    for number in 1..=40 {
        let (mut put, mut remove) = (vec![a_job(&format!("noise-{number}"))], Vec::new());
        if number > 3 && dice.below(2) == 0 {
            remove.push(format!("noise-{}", number - 2));
        }
        for (index, name) in names.iter().enumerate() {
            let next = match dice.below(6) {
                0 => None,
                1 => Some(number),
                _ => now[index],
            };
            if next == now[index] {
                continue;
            }
            touched[index].insert(0, number);
            now[index] = next;
            match next {
                Some(_) => put.push(format!(r#"{{"name":"{name}","command":["{number}"]}}"#)),
                None => remove.push((*name).to_owned()),
            }
        }
        let put: Vec<&str> = put.iter().map(String::as_str).collect();
        let change = v1::ApplyHeader { remove, ..header("c", number - 1, &put) };
        apply(&admin, change, &put).await.unwrap();
    }
    for (index, name) in names.iter().enumerate() {
        for limit in [1, 3, 1000] {
            assert_eq!(history(&admin, &name.to_uppercase(), limit).await, touched[index], "{name} in pages of {limit}");
        }
    }
    assert_eq!(history(&admin, "never-was", 10).await, [0u64; 0]);
    let request = v1::ListRevisionsRequest { catalog: "c".into(), job: "no name".into(), ..Default::default() };
    assert_eq!(told(&admin.catalog().list_revisions(request).await.unwrap_err()).reason, reason::INVALID_REQUEST);
}

#[tokio::test]
async fn no_catalogue_grows_over_its_limit_by_several_applies() {
    let house = House::open().await;
    let admin = house.admin().await;
    let jobs: Vec<String> = (0..CATALOG_JOBS).map(|n| a_job(&format!("job-{n}"))).collect();
    let jobs: Vec<&str> = jobs.iter().map(String::as_str).collect();
    let (most, last) = jobs.split_at(CATALOG_JOBS - 1);
    // In messages of many, as clients send them.
    let definitions: Vec<_> = most.iter().map(|job| definition(job)).collect();
    let many = definitions.chunks(1000).map(|chunk| v1::ApplyDefinitions { definitions: chunk.to_vec() });
    let many = many.map(|chunk| v1::ApplyRequest { part: Some(v1::apply_request::Part::Definitions(chunk)) });
    let first = parts(header("c", 0, most), &[]).into_iter().chain(many).collect::<Vec<_>>();
    admin.catalog().apply(futures::stream::iter(first)).await.unwrap();
    let (one, two) = (a_job("one"), a_job("two"));
    let fault =
        refused(apply(&admin, header("c", 1, &[&one, &two]), &[&one, &two]).await, Code::ResourceExhausted, reason::LIMIT);
    assert!(fault.message.contains("10001 jobs"), "{fault:?}");
    assert_eq!(head(&admin, "c").await, 1);
    apply(&admin, header("c", 1, last), last).await.unwrap();
    refused(apply(&admin, header("c", 2, &[&one]), &[&one]).await, Code::ResourceExhausted, reason::LIMIT);
    // In the place of another there is room.
    apply(&admin, v1::ApplyHeader { remove: vec!["job-7".into()], ..header("c", 2, &[&one]) }, &[&one]).await.unwrap();
}

#[tokio::test]
async fn what_an_entry_says_of_files_cannot_harm_whoever_reads_it() {
    let house = House::open().await;
    let admin = house.admin().await;
    let job = a_job("a");
    let inherited = |file: &str| v1::InheritedField { field: "/author".into(), file: file.into(), line: 1 };
    let with = |change: &dyn Fn(&mut v1::ManifestEntry)| {
        let mut wanted = header("c", 0, &[&job]);
        change(&mut wanted.put[0]);
        wanted
    };
    let long = "x".repeat(4097);
    for path in ["/etc/passwd", "../x.yaml", "a/../../x.yaml", "a\u{1b}[2J.yaml", "a\nb", long.as_str(), ".."] {
        for wanted in [
            with(&|entry| entry.file = path.into()),
            with(&|entry| entry.inherited = vec![inherited("octavius.yaml"), inherited(path)]),
        ] {
            refused(apply(&admin, wanted, &[&job]).await, Code::InvalidArgument, reason::INVALID_REQUEST);
        }
    }
    let many = with(&|entry| entry.inherited = vec![inherited("octavius.yaml"); 201]);
    refused(apply(&admin, many, &[&job]).await, Code::InvalidArgument, reason::INVALID_REQUEST);
    let strange = with(&|entry| entry.inherited = vec![v1::InheritedField { field: "/a\u{7}".into(), ..inherited("f") }]);
    refused(apply(&admin, strange, &[&job]).await, Code::InvalidArgument, reason::INVALID_REQUEST);
    let large = with(&|entry| entry.inherited = vec![inherited(&"d".repeat(2000)); 9]);
    let fault = refused(apply(&admin, large, &[&job]).await, Code::InvalidArgument, reason::INVALID_REQUEST);
    assert!(
        fault.message.contains("16384 bytes") || fault.violations.iter().any(|v| v.description.contains("16384 bytes")),
        "{fault:?}"
    );
    for plan_id in ["p".repeat(65), "a\nb".into(), "\u{202e}p".into()] {
        let wanted = v1::ApplyHeader { plan_id, ..header("c", 0, &[&job]) };
        refused(apply(&admin, wanted, &[&job]).await, Code::InvalidArgument, reason::INVALID_REQUEST);
    }
    assert_eq!(head(&admin, "c").await, 0);
    let most = with(&|entry| {
        entry.file = "teams/..a/b..yaml".into();
        entry.inherited = vec![inherited("_defaults.yaml"); 200];
    });
    apply(&admin, v1::ApplyHeader { plan_id: "p".repeat(64), ..most }, &[&job]).await.unwrap();
}

#[tokio::test]
async fn the_largest_bucket_there_can_be_comes_in_messages_that_a_client_takes() {
    let house = House::open().await;
    let admin = house.admin().await;
    // Names that fall into one bucket, each with as much text as is taken: 6 MiB where a message has 4.
    let in_one = |name: &String| octavius_core::Digest::of(name.as_bytes()).as_bytes()[0] == 7;
    let jobs: Vec<String> = (0..).map(|n| format!("job-{n}")).filter(in_one).take(400).map(|name| a_job(&name)).collect();
    let jobs: Vec<&str> = jobs.iter().map(String::as_str).collect();
    let inherited = v1::InheritedField { field: "/author".into(), file: "d".repeat(4000), line: 1 };
    for (parent, some) in (0..).zip(jobs.chunks(100)) {
        let mut wanted = header("c", parent, some);
        wanted.put.iter_mut().for_each(|entry| entry.inherited = vec![inherited.clone(); 4]);
        apply(&admin, wanted, some).await.unwrap();
    }
    let other = a_job("other");
    apply(&admin, header("c", 4, &[&other]), &[&other]).await.unwrap();
    let request = v1::GetBucketsRequest { catalog: "c".into(), revision: 5, buckets: vec![7] };
    let mut stream = admin.catalog().get_buckets(request).await.unwrap().into_inner();
    let (mut names, mut messages) = (Vec::new(), 0);
    while let Some(message) = stream.message().await.unwrap() {
        assert_eq!(message.bucket, 7);
        assert!(message.entries.iter().all(|entry| entry.inherited == vec![inherited.clone(); 4]));
        names.extend(message.entries.into_iter().map(|entry| entry.name));
        messages += 1;
    }
    let mut expected: Vec<String> = jobs.iter().map(|job| entry(job).name).collect();
    expected.sort();
    assert_eq!(names, expected, "each once, in order");
    assert!(messages > 4, "{messages}");
    assert_eq!(connection_digests(&admin, 5).await.len(), 401);
}

#[tokio::test]
async fn whoever_may_not_see_a_job_learns_nothing_of_its_history() {
    let house = House::open().await;
    let admin = house.admin().await;
    let secret = r#"{"name":"secret","command":["true"],"authorized_groups":["sec"]}"#;
    let (open, gone) = (a_job("open"), a_job("gone"));
    apply(&admin, header("c", 0, &[secret, &open, &gone]), &[secret, &open, &gone]).await.unwrap();
    apply(&admin, removing(1, &["gone"]), &[]).await.unwrap();
    // The same name as another catalogue had it is not theirs either.
    apply(&admin, header("d", 0, &[&gone]), &[&gone]).await.unwrap();
    let ask = |job: &str| v1::ListRevisionsRequest { catalog: "c".into(), job: job.to_owned(), ..Default::default() };
    let insider = house.person(Role::Viewer, "ann", &["sec"]).await;
    let outsider = house.person(Role::User, "bob", &["other"]).await;
    let applier = house.person(Role::Applier, "ci", &[]).await;
    for (person, seen) in [(&outsider, &["OPEN"][..]), (&insider, &["open", "Secret"]), (&applier, &["open", "secret", "gone"])] {
        for job in ["open", "secret", "gone"] {
            let answer = person.catalog().list_revisions(ask(job)).await;
            if seen.iter().any(|seen| seen.eq_ignore_ascii_case(job)) {
                let numbers: Vec<_> = answer.unwrap().into_inner().revisions.iter().map(|revision| revision.number).collect();
                assert_eq!(numbers, if job == "gone" { vec![2, 1] } else { vec![1] }, "{job}");
            } else {
                let fault = told(&answer.unwrap_err());
                assert_eq!((fault.code, fault.reason.as_str()), (Code::NotFound, reason::JOB_NOT_FOUND), "{job}");
                assert!(seen.contains(&"Secret") || fault.fact("nearest") != Some("secret"), "{fault:?}");
            }
        }
    }
    let never = told(&outsider.catalog().list_revisions(ask("never")).await.unwrap_err());
    assert_eq!((never.code, never.reason.as_str()), (Code::NotFound, reason::JOB_NOT_FOUND), "as one that is gone");
    assert_eq!(history(&applier, "never", 10).await, [0u64; 0]);
}

#[tokio::test]
async fn definitions_that_cannot_be_read_are_told_with_all_other_findings() {
    let house = House::open().await;
    let admin = house.admin().await;
    let good = a_job("good");
    let bad = r#"{"name":"bad","env_vars":{"args":[{"name":"1x"}]},"command":["x"]}"#;
    let broken = |json: &'static str| {
        let digest = octavius_core::Digest::of(json.as_bytes()).as_bytes().to_vec().into();
        let entry =
            v1::ManifestEntry { name: "z".into(), file: "team/z.yaml".into(), line: 7, definition: digest, ..entry(&good) };
        (entry, v1::Definition { json: json.into() })
    };
    let (mut unknown, unknown_json) = broken(r#"{"name":"z","colour":"red"}"#);
    unknown.name = "y".into();
    let (cut, cut_json) = broken(r#"{"name":"z""#);
    let mut wanted = header("c", 0, &[&good, bad]);
    wanted.put.extend([unknown, cut]);
    let definitions = vec![unknown_json, definition(bad), cut_json, definition(&good), v1::Definition { json: "[]".into() }];
    let mut parts = parts(wanted, &[]);
    let definitions = v1::ApplyDefinitions { definitions };
    parts.push(v1::ApplyRequest { part: Some(v1::apply_request::Part::Definitions(definitions)) });
    let fault = told(&admin.catalog().apply(futures::stream::iter(parts)).await.unwrap_err());
    assert_eq!((fault.code, fault.reason.as_str()), (Code::InvalidArgument, reason::INVALID_CATALOG));
    let lines: Vec<_> = fault.violations.iter().map(|found| (found.field.as_str(), found.description.as_str())).collect();
    let starts = [
        ("y", "team/z.yaml:7: error[definition]: cannot be read: unknown field `colour`"),
        (
            "bad/env_vars/args/0/name",
            "bad.yaml:1: error[variable-name]: \"1x\" cannot be the name of an environment variable; hint: use ",
        ),
        ("z", "team/z.yaml:7: error[definition]: cannot be read: "),
        ("", "definition 5 of the apply: error[definition]: cannot be read: "),
    ];
    assert_eq!(lines.len(), starts.len(), "{lines:#?}");
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.0 == start.0 && line.1.starts_with(start.1), "{line:?}, not {start:?}");
    }
    assert_eq!(head(&admin, "c").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appliers_and_freezers_at_once_leave_one_chain_and_everybody_is_told() {
    let house = House::open().await;
    let admin = house.admin().await;
    let first = a_job("first");
    apply(&admin, header("c", 0, &[&first]), &[&first]).await.unwrap();
    let one = |n: usize| {
        let admin = admin.clone();
        async move {
            let job = a_job(&format!("job-{n}"));
            let (mut parent, mut frozen) = (1, 0);
            // Every fifth has a freeze come between; whoever meets one thaws.
            if n.is_multiple_of(5) {
                set_frozen(&admin, true).await.unwrap();
            }
            loop {
                match apply(&admin, header("c", parent, &[&job]), &[&job]).await {
                    Ok(revision) => return (revision.number, frozen),
                    Err(fault) if fault.reason == reason::FROZEN => {
                        assert_eq!((fault.code, fault.fact("by")), (Code::FailedPrecondition, Some("admin")), "{fault:?}");
                        set_frozen(&admin, false).await.unwrap();
                        frozen += 1;
                    }
                    Err(fault) => {
                        assert_eq!((fault.code, fault.reason.as_str()), (Code::Aborted, reason::HEAD_MOVED), "{fault:?}");
                        parent = fault.fact("head").unwrap().parse().unwrap();
                    }
                }
            }
        }
    };
    let runs = async {
        for _ in 0..20 {
            // Neither what else is applied nor a freeze is a reason to refuse it; only to try again, when heads move all the time.
            while let Err(fault) = execute(&admin, "first", &[]).await {
                assert_eq!((fault.code, fault.reason.as_str()), (Code::Unavailable, reason::STORE_UNAVAILABLE), "{fault:?}");
            }
        }
    };
    let (won, ()) = tokio::join!(join_all((0..50).map(one)), runs);
    let mut numbers: Vec<u64> = won.iter().map(|(number, _)| *number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (2..=51).collect::<Vec<_>>(), "each apply is a revision of its own");
    assert!(won.iter().any(|(_, frozen)| *frozen > 0), "nobody met a freeze");
    let list = v1::ListRevisionsRequest { catalog: "c".into(), ..Default::default() };
    let chain = admin.catalog().list_revisions(list).await.unwrap().into_inner().revisions;
    assert!(chain.iter().all(|revision| revision.parent + 1 == revision.number), "one chain");
    assert_eq!(connection_digests(&admin, 51).await.len(), 51, "nobody's job was overwritten");
}

#[tokio::test]
async fn an_executor_is_told_where_a_job_comes_from() {
    let house = House::open().await;
    let admin = house.admin().await;
    let job = a_job("a");
    let mut first = header("c", 0, &[&job]);
    first.provenance = Some(v1::Provenance { commit: "c0ffee".into(), repository: "https://git/r".into(), ..Default::default() });
    (first.put[0].file, first.put[0].line) = ("catalog/a.yaml".into(), 3);
    apply(&admin, first, &[&job]).await.unwrap();
    let pinned = [execute(&admin, "a", &[]).await.unwrap(), execute(&admin, "a", &[]).await.unwrap()];
    // It moves on while they wait: the file is another, and from another commit.
    let changed = other("a");
    let mut second = header("c", 1, &[&changed]);
    second.put[0].file = "catalog/b.yaml".into();
    apply(&admin, second, &[&changed]).await.unwrap();
    let newest = execute(&admin, "a", &[]).await.unwrap();

    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(8)).await.unwrap();
    for _ in 0..3 {
        let assignment = session.assignment().await;
        let origin = assignment.origin.unwrap();
        let told = (origin.catalog.as_str(), origin.revision, origin.commit.as_str(), origin.repository.as_str());
        let place = (origin.file.as_str(), origin.line);
        if assignment.id == newest {
            assert_eq!((told, place), (("c", 2, "", ""), ("catalog/b.yaml", 1)));
        } else {
            assert!(pinned.contains(&assignment.id));
            assert_eq!((told, place), (("c", 1, "c0ffee", "https://git/r"), ("catalog/a.yaml", 3)));
        }
    }
}
