//! Catalogues change wholly or not at all, and nobody loses what another has applied.

use std::collections::BTreeSet;

use futures::future::join_all;
use octavius_proto::client::Connection;
use octavius_proto::v1::{self, Role};
use octavius_proto::{Fault, reason};
use tonic::Code;

use crate::harness::{House, apply, definition, digest, head, header, parts, told};

fn a_job(name: &str) -> String {
    format!(r#"{{"name":"{name}","command":["true"]}}"#)
}

async fn names(connection: &Connection) -> Vec<String> {
    let (mut names, mut after) = (Vec::new(), String::new());
    loop {
        let request = v1::ListJobsRequest { after, limit: 700, ..Default::default() };
        let page = connection.catalog().list_jobs(request).await.unwrap().into_inner();
        names.extend(page.jobs.into_iter().map(|job| job.name));
        after = names.last().cloned().unwrap_or_default();
        if !page.more {
            return names;
        }
    }
}

async fn buckets(connection: &Connection, revision: u64) -> Vec<v1::ManifestEntry> {
    let request = v1::GetBucketsRequest { catalog: "c".into(), revision, buckets: vec![] };
    let mut stream = connection.catalog().get_buckets(request).await.unwrap().into_inner();
    let mut entries = Vec::new();
    while let Some(bucket) = stream.message().await.unwrap() {
        entries.extend(bucket.entries);
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    entries
}

#[tokio::test]
async fn what_was_applied_is_what_is_read_back() {
    let house = House::open().await;
    let admin = house.admin().await;
    let (a, b) = (a_job("a"), a_job("b"));
    let before = admin.catalog().get_head(v1::GetHeadRequest { catalog: "c".into() }).await.unwrap().into_inner();
    assert_eq!((before.revision, before.bucket_digests.len(), before.controller_id.as_str()), (None, 0, house.id()));

    let first = house.apply(&[&a, &b]).await;
    let summary = first.summary.unwrap();
    assert_eq!(
        (first.number, first.parent, summary.added, summary.changed, summary.removed, summary.unchanged),
        (1, 0, 2, 0, 0, 0)
    );
    let changed = r#"{"name":"b","command":["false"]}"#;
    let mut second = header("c", 1, &[changed]);
    second.remove = vec!["a".into(), "never-was".into()];
    second.provenance =
        Some(v1::Provenance { commit: "c0ffee\u{7}".into(), dirty: true, repository: "r".into(), author: "Ann".into() });
    let second = apply(&admin, second, &[changed]).await.unwrap();
    let summary = second.summary.unwrap();
    assert_eq!((second.number, summary.added, summary.changed, summary.removed, summary.unchanged), (2, 0, 1, 1, 0));
    assert_eq!(second.provenance.unwrap().commit, "c0ffee", "control characters have no business in a terminal");

    // b again as it is: nothing changes, and nothing has to be sent.
    let third = apply(&admin, header("c", 2, &[changed, &a]), &[&a]).await.unwrap();
    assert_eq!(third.summary.unwrap().unchanged, 1);
    let entries = buckets(&admin, 3).await;
    let seen: Vec<_> = entries.iter().map(|entry| (entry.name.as_str(), entry.changed_in)).collect();
    assert_eq!(seen, [("a", 3), ("b", 2)]);
    assert_eq!(buckets(&admin, 1).await.len(), 2, "older revisions stay readable");
    assert_eq!(entries[1].definition, *digest(changed).as_bytes().as_slice());

    let digests = entries.iter().map(|entry| entry.definition.clone()).collect();
    let mut stream = admin.catalog().get_definitions(v1::GetDefinitionsRequest { digests }).await.unwrap().into_inner();
    let definitions = stream.message().await.unwrap().unwrap().definitions;
    assert_eq!(definitions, [definition(&a), definition(changed)]);
    let job = admin.catalog().get_job(v1::GetJobRequest { name: "B".into() }).await.unwrap().into_inner();
    assert_eq!((job.definition.unwrap(), job.changed_in.unwrap().number, job.head), (definition(changed), 2, 3));

    let page = |before| v1::ListRevisionsRequest { catalog: "c".into(), limit: 2, before, job: String::new() };
    let newest = admin.catalog().list_revisions(page(0)).await.unwrap().into_inner().revisions;
    assert_eq!(newest.iter().map(|revision| revision.number).collect::<Vec<_>>(), [3, 2]);
    let older = admin.catalog().list_revisions(page(2)).await.unwrap().into_inner().revisions;
    assert_eq!(older.iter().map(|revision| revision.number).collect::<Vec<_>>(), [1]);

    let unknown = v1::GetDefinitionsRequest { digests: vec![vec![1; 32].into()] };
    let status = admin.catalog().get_definitions(unknown).await.unwrap().into_inner().message().await.unwrap_err();
    assert_eq!(told(&status).reason, reason::NOT_FOUND);
}

#[tokio::test]
async fn an_apply_that_breaks_off_changes_nothing() {
    use futures::StreamExt as _;
    let house = House::open().await;
    let admin = house.admin().await;
    let (a, b) = (a_job("a"), a_job("b"));
    // The client dies after part of its stream.
    for sent in 0..=2 {
        let parts = parts(header("c", 0, &[&a, &b]), &[&a, &b]);
        let (broken, breaks) = tokio::sync::oneshot::channel::<()>();
        let cut = futures::stream::iter(parts.into_iter().take(sent)).chain(futures::stream::once(async move {
            drop(broken);
            futures::future::pending().await
        }));
        let mut client = admin.catalog();
        let call = tokio::spawn(async move { client.apply(cut).await });
        breaks.await.unwrap_err();
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
    }
    // It ends too early: a definition is missing.
    for definitions in [&[][..], &[a.as_str()][..]] {
        let fault = apply(&admin, header("c", 0, &[&a, &b]), definitions).await.unwrap_err();
        assert_eq!((fault.code, fault.reason.as_str()), (Code::InvalidArgument, reason::INVALID_REQUEST));
        assert!(fault.message.contains("was not sent"), "{fault:?}");
    }
    let empty = v1::ApplyRequest { part: Some(v1::apply_request::Part::Definitions(v1::ApplyDefinitions::default())) };
    for (parts, wrong) in [
        (vec![], "begins with its header"),
        (vec![v1::ApplyRequest { part: None }], "begins with its header"),
        ([parts(header("c", 0, &[&a]), &[&a]), parts(header("c", 0, &[&b]), &[&b])].concat(), "only definitions follow"),
        ([parts(header("c", 0, &[&a]), &[&a]), vec![empty]].concat(), "holds none"),
    ] {
        let fault = told(&admin.catalog().apply(futures::stream::iter(parts)).await.unwrap_err());
        assert!(fault.code == Code::InvalidArgument && fault.message.contains(wrong), "{fault:?}");
    }
    assert_eq!((head(&admin, "c").await, names(&admin).await), (0, vec![]));
}

#[tokio::test]
async fn everything_that_is_wrong_with_definitions_is_told_at_once() {
    let house = House::open().await;
    let admin = house.admin().await;
    let bad = r#"{"name":"bad","env_vars":{"args":[{"name":"1x"},{"name":"OCTAVIUS_ID"}]}}"#;
    let worse = r#"{"name":"worse","command":["x"],"timeout":"0s"}"#;
    let fault = apply(&admin, header("c", 0, &[bad, worse]), &[bad, worse]).await.unwrap_err();
    assert_eq!((fault.code, fault.reason.as_str()), (Code::InvalidArgument, reason::INVALID_CATALOG));
    let places: Vec<_> = fault.violations.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(places, ["bad/env_vars/args/0/name", "bad/env_vars/args/1/name", "bad/name", "worse/timeout"]);
    assert!(fault.violations[3].description.starts_with("worse.yaml:1: error["), "{fault:?}");

    // Very much wrong: what fits is told, with how much more there is.
    let many: Vec<String> = (0..1000).map(|n| format!(r#"{{"name":"j{n}"}}"#)).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let fault = apply(&admin, header("c", 0, &many), &many).await.unwrap_err();
    assert_eq!(fault.reason, reason::INVALID_CATALOG, "{fault:?}");
    assert!(fault.violations.last().unwrap().description.starts_with("and "), "{:?}", fault.violations.last());

    let good = a_job("good");
    let mut swapped = header("c", 0, &[&good]);
    swapped.put[0].name = "other".into();
    let fault = apply(&admin, swapped, &[&good]).await.unwrap_err();
    assert!(fault.violations[0].description.contains("that of good, not of other"), "{fault:?}");
    let mut twice = header("c", 0, &[&good]);
    twice.remove = vec!["GOOD".into()];
    assert!(apply(&admin, twice, &[&good]).await.unwrap_err().message.contains("twice"));
    let mut elsewhere = header("c", 0, &[&good]);
    elsewhere.controller_id = "another".into();
    let fault = apply(&admin, elsewhere, &[&good]).await.unwrap_err();
    assert_eq!((fault.code, fault.reason.as_str()), (Code::FailedPrecondition, reason::OTHER_CONTROLLER));
    assert_eq!((head(&admin, "c").await, names(&admin).await), (0, vec![]));
}

#[tokio::test]
async fn a_definition_that_nobody_names_is_not_kept() {
    let house = House::open().await;
    let admin = house.admin().await;
    let (named, stray) = (a_job("named"), a_job("stray"));
    apply(&admin, header("c", 0, &[&named]), &[&named, &stray]).await.unwrap();
    let kept = |job: &str| octavius_store::key::blob(&digest(job));
    assert!(house.store().get(&kept(&named)).await.unwrap().is_some());
    assert_eq!(house.store().get(&kept(&stray)).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_fifty_appliers_at_once_one_wins_each_round_and_every_other_is_told() {
    let house = House::open().await;
    let admin = house.admin().await;
    let one = |n: usize| {
        let admin = admin.clone();
        async move {
            let job = a_job(&format!("job-{n}"));
            let (mut lost, mut parent) = (0, 0);
            loop {
                match apply(&admin, header("c", parent, &[&job]), &[&job]).await {
                    Ok(revision) => return (revision.number, lost),
                    Err(fault) => {
                        assert_eq!((fault.code, fault.reason.as_str()), (Code::Aborted, reason::HEAD_MOVED), "{fault:?}");
                        parent = fault.fact("head").unwrap().parse().unwrap();
                        lost += 1;
                    }
                }
            }
        }
    };
    let won = join_all((0..50).map(one)).await;
    let numbers: BTreeSet<u64> = won.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=50).collect(), "each apply is a revision of its own");
    assert!(won.iter().any(|(_, lost)| *lost > 0), "nobody raced");
    assert_eq!(names(&admin).await.len(), 50, "nobody's job was overwritten");
    let list = v1::ListRevisionsRequest { catalog: "c".into(), limit: 0, before: 0, job: String::new() };
    let chain = admin.catalog().list_revisions(list).await.unwrap().into_inner().revisions;
    assert!(chain.iter().all(|revision| revision.parent + 1 == revision.number), "one chain");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_catalogues_cannot_own_one_name_however_it_is_written() {
    let house = House::open().await;
    let admin = house.admin().await;
    let (lower, upper) = (a_job("refund"), a_job("Refund"));
    apply(&admin, header("payments", 0, &[&lower]), &[&lower]).await.unwrap();
    let taken = |fault: Fault, owner: &str| {
        assert_eq!((fault.code, fault.reason.as_str()), (Code::FailedPrecondition, reason::NAME_TAKEN), "{fault:?}");
        assert_eq!(fault.fact("catalog"), Some(owner));
    };
    taken(apply(&admin, header("web", 0, &[&upper]), &[&upper]).await.unwrap_err(), "payments");

    // At the same time: each name goes to one, and the others learn to whom. Different names get in nobody's way.
    for round in 0..8 {
        let contested = a_job(&format!("contested-{round}"));
        let racer = |n: usize| {
            let (admin, own, contested) = (admin.clone(), a_job(&format!("own-{round}-{n}")), contested.clone());
            async move {
                let catalog = format!("racer-{round}-{n}");
                let own = apply(&admin, header(&catalog, 0, &[&own]), &[&own]).await;
                assert!(own.is_ok(), "a name of one's own: {own:?}");
                (catalog.clone(), apply(&admin, header(&catalog, 1, &[&contested]), &[&contested]).await)
            }
        };
        let (won, lost): (Vec<_>, Vec<_>) = join_all((0..4).map(racer)).await.into_iter().partition(|(_, result)| result.is_ok());
        assert_eq!(won.len(), 1, "{won:?}");
        lost.into_iter().for_each(|(_, result)| taken(result.unwrap_err(), &won[0].0));
    }
    // A change of case within a catalogue is that catalogue's own affair.
    let renamed = apply(&admin, header("payments", 1, &[&upper]), &[&upper]).await.unwrap();
    assert_eq!(renamed.summary.unwrap().changed, 1);
    // What is given up can be taken.
    apply(&admin, v1::ApplyHeader { remove: vec!["refund".into()], ..header("payments", 2, &[]) }, &[]).await.unwrap();
    apply(&admin, header("web", 0, &[&upper]), &[&upper]).await.unwrap();
}

#[tokio::test]
async fn three_thousand_jobs_are_one_revision_and_are_listed_in_pages() {
    let house = House::open().await;
    let applier = house.person(Role::Applier, "ci", &[]).await;
    let long = "d".repeat(2000);
    let jobs: Vec<String> =
        (0..3000).map(|n| format!(r#"{{"name":"Job-{n:04}","description":"{long}","command":["true"]}}"#)).collect();
    let jobs: Vec<&str> = jobs.iter().map(String::as_str).collect();
    let revision = apply(&applier, header("c", 0, &jobs), &jobs).await.unwrap();
    assert_eq!((revision.summary.unwrap().added, revision.applied_by.as_str()), (3000, "ci"));
    let names = names(&applier).await;
    assert_eq!(names.len(), 3000);
    assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "each job once, in order");
    // Even the largest page there is stays within what a client takes.
    let all = v1::ListJobsRequest { limit: u32::MAX, ..Default::default() };
    let page = applier.catalog().list_jobs(all).await.unwrap().into_inner();
    assert!(page.more && page.jobs.len() > 100, "{}", page.jobs.len());

    let search = v1::ListJobsRequest { search: "JOB-004".into(), ..Default::default() };
    assert_eq!(applier.catalog().list_jobs(search).await.unwrap().into_inner().jobs.len(), 10);
}

#[tokio::test]
async fn an_apply_that_changes_nothing_makes_no_revision_and_one_that_moves_a_job_does() {
    let house = House::open().await;
    let admin = house.admin().await;
    let (a, b) = (a_job("a"), a_job("b"));
    let none = apply(&admin, header("c", 0, &[]), &[]).await.unwrap();
    assert_eq!(none.number, 1, "that there is a catalogue is something new");
    let with = v1::ApplyHeader { plan_id: "p-1".into(), ..header("c", 1, &[&a, &b]) };
    let second = apply(&admin, with, &[&a, &b]).await.unwrap();
    let gone = v1::ApplyHeader { remove: vec!["never-was".into()], plan_id: "p-2".into(), ..header("c", 2, &[&a, &b]) };
    for same in [header("c", 2, &[]), header("c", 2, &[&a]), gone] {
        assert_eq!(apply(&admin, same, &[&b]).await.unwrap(), second, "it is head's revision as it was");
    }
    // It is refused for all that where it was made against another revision.
    let fault = apply(&admin, header("c", 1, &[]), &[]).await.unwrap_err();
    assert_eq!(fault.reason, reason::HEAD_MOVED);
    assert_eq!(head(&admin, "c").await, 2);

    // Where a job stands is for whoever looks for it: its definition is the same, its place is not.
    let inherited = v1::InheritedField { field: "/author".into(), file: "octavius.yaml".into(), line: 3 };
    let moves: [&dyn Fn(&mut v1::ManifestEntry); 3] =
        [&|entry| entry.line = 9, &|entry| (entry.line, entry.file) = (9, "team/a.yaml".into()), &|entry| {
            (entry.line, entry.file, entry.inherited) = (9, "team/a.yaml".into(), vec![inherited.clone()]);
        }];
    for (parent, change) in (2..).zip(moves) {
        let mut moved = header("c", parent, &[&a]);
        change(&mut moved.put[0]);
        let revision = apply(&admin, moved.clone(), &[]).await.unwrap();
        let summary = revision.summary.unwrap();
        assert_eq!((revision.number, summary.changed, summary.unchanged), (parent + 1, 0, 2));
        let again = v1::ApplyHeader { parent: parent + 1, ..moved };
        assert_eq!(apply(&admin, again, &[]).await.unwrap(), revision);
    }
    assert!(buckets(&admin, 5).await.iter().all(|entry| entry.changed_in == 2), "what moves a job does not change it");
    let job = v1::ListRevisionsRequest { catalog: "c".into(), job: "a".into(), ..Default::default() };
    let history = admin.catalog().list_revisions(job).await.unwrap().into_inner().revisions;
    assert_eq!(history, [second]);

    // Frozen with it is a change.
    let frozen = v1::ApplyHeader { freeze: true, ..header("c", 5, &[]) };
    assert_eq!(apply(&admin, frozen, &[]).await.unwrap().number, 6);
}
