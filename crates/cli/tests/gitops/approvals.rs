//! Approving and rejecting at the command line: what who asks is told, what who may is, and what scripts read.

use super::*;

/// A client of a user of their own.
fn person<'w>(world: &'w World, admin: &Client<'_>, port: u16, name: &str, groups: &[&str]) -> Client<'w> {
    let mut arguments = vec!["tokens", "create", "--role", "user", "--user", name, "-o", "json"];
    groups.iter().for_each(|group| arguments.extend(["--group", *group]));
    let made = admin.run(&arguments).unwrap().expect(0).unwrap().json().unwrap();
    world.client(name, port, made["token"].as_str().unwrap()).unwrap()
}

#[test]
fn an_execution_that_needs_approval_is_told_judged_and_explained() {
    let world = World::new().unwrap();
    world.write("catalog/octavius.yaml", "catalog: support\n").unwrap();
    job(&world, "refund", "command: [echo]\napprovals: {groups: [leads], count: 2, valid_for: 1h}");
    let (_controller, port) = world.controller("store", 0).unwrap();
    let admin = world.admin(port).unwrap();
    admin.run(&["apply", "catalog"]).unwrap().expect(0).unwrap();
    let [ann, bob, cyn] = [("ann", &["leads"][..]), ("bob", &["leads"]), ("cyn", &["leads"])]
        .map(|(name, groups)| person(&world, &admin, port, name, groups));
    let described = ann.run(&["describe", "refund"]).unwrap().expect(0).unwrap().stdout;
    assert!(described.contains("approvals 2 of leads, not the requester, within 1h\n"), "{described}");

    let asked = ann.run(&["execute", "refund"]).unwrap().expect(0).unwrap();
    let id = asked.stdout.trim().to_owned();
    assert_eq!(id.len(), 26, "the id alone");
    let told = "waiting for approval: needs 2 approvals, by leads, not by ann, until ";
    assert!(asked.stderr.contains(told), "{}", asked.stderr);
    assert!(asked.stderr.contains(&format!("; they say: octavius approve {id}\n")), "{}", asked.stderr);
    let waited = ann.run(&["execute", "refund", "--wait", "--wait-timeout", "100ms"]).unwrap().expect(124).unwrap();
    assert!(waited.stderr.contains(told) && waited.stderr.contains("not ended yet"), "{}", waited.stderr);
    let other = waited.stdout.trim().to_owned();

    let refused = ann.run(&["approve", &id]).unwrap().expect(3).unwrap();
    assert!(refused.stderr.contains("somebody else must") && refused.stderr.contains("octavius cancel"), "{}", refused.stderr);
    let refused = admin.run(&["reject", &id]).unwrap().expect(3).unwrap();
    assert!(refused.stderr.contains("only members of leads may approve or reject it"), "{}", refused.stderr);
    let own = ann.run(&["executions", "--state", "waiting_for_approval"]).unwrap().expect(0).unwrap();
    assert!(own.stdout.contains(&id) && !own.stderr.contains("yours to approve"), "{own:?}");
    let listed = bob.run(&["executions", "--all", "--state", "waiting_for_approval"]).unwrap().expect(0).unwrap();
    assert!(listed.stdout.contains("waiting_for_approval"), "{}", listed.stdout);
    assert!(listed.stderr.contains("2 of these are yours to approve: octavius approve ID"), "{}", listed.stderr);
    let status = bob.run(&["status", &id]).unwrap().expect(0).unwrap().stdout;
    assert!(
        status.contains("  refund  waiting for approval ") && status.contains("\nneeds 2 approvals, by leads, not by ann"),
        "{status}"
    );
    assert!(status.contains(&format!("\nyours to approve: octavius approve {id}, or octavius reject {id}\n")), "{status}");

    let first = bob.run(&["approve", &id[20..], "--reason", "seen with Ann"]).unwrap().expect(0).unwrap().stdout;
    assert!(
        first.starts_with(&format!("{id}  refund  waiting for approval ")) && first.contains("needs 1 more approval"),
        "{first}"
    );
    let listed = bob.run(&["executions", "--all", "--state", "waiting_for_approval"]).unwrap().expect(0).unwrap();
    assert!(listed.stderr.contains("1 of these is yours to approve"), "what he has approved waits for others: {}", listed.stderr);
    let status = bob.run(&["status", &id]).unwrap().expect(0).unwrap().stdout;
    let told = format!("\napproved by you, waits for others; if it is wrong after all: octavius reject {id}\n");
    assert!(status.contains(&told), "{status}");
    assert_eq!(bob.run(&["approve", &id, "-o", "name"]).unwrap().expect(0).unwrap().stdout, format!("{id}\n"), "once more");
    let second = cyn.run(&["approve", &id, "-o", "json"]).unwrap().expect(0).unwrap().json().unwrap();
    assert_eq!((second["state"].as_str(), second["approvals"]["count"].as_u64()), (Some("queued"), Some(2)));
    let approved: Vec<_> =
        second["approvals"]["approved"].as_array().unwrap().iter().map(|one| one["by"].as_str().unwrap()).collect();
    assert_eq!(approved, ["bob", "cyn"]);
    assert_eq!(second["approvals"]["approved"][0]["reason"], "seen with Ann");
    let status = ann.run(&["status", &id]).unwrap().expect(0).unwrap().stdout;
    assert!(status.contains("approved    by bob at ") && status.contains(": seen with Ann\n"), "{status}");
    assert!(status.contains("must start  before ") && !status.contains("octavius approve"), "{status}");
    let late = bob.run(&["reject", &id]).unwrap().expect(3).unwrap();
    assert!(late.stderr.contains("does not wait for approval: it is queued"), "{}", late.stderr);

    let rejected = bob.run(&["reject", &other, "--reason", "not today"]).unwrap().expect(0).unwrap().stdout;
    assert!(rejected.starts_with(&format!("{other}  refund  cancelled after ")), "{rejected}");
    assert!(rejected.ends_with(": rejected by bob: not today\n"), "{rejected}");
    ann.run(&["status", &other, "--wait"]).unwrap().expect(5).unwrap();
    let json = ann.status(&other).unwrap();
    assert_eq!((json["reason"].as_str(), json["approvals"]["rejected"]["by"].as_str()), (Some("REJECTED"), Some("bob")));
}

/// Whoever waits for the end goes on waiting through the approval.
#[test]
fn who_follows_is_told_and_sees_the_log_once_it_is_approved() {
    let world = World::new().unwrap();
    world.write("catalog/octavius.yaml", "catalog: support\n").unwrap();
    job(&world, "greet", "command: [echo, hello]\napprovals: {not_self: false}");
    let (_daemons, client) = world.whole(None).unwrap();
    client.run(&["apply", "catalog"]).unwrap().expect(0).unwrap();
    let mut following = client.command(&["execute", "greet", "--follow"]);
    let following = following.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let id = eventually("an execution that waits for approval", || {
        let listed = client.run(&["executions", "--state", "waiting_for_approval", "-o", "name"])?.expect(0)?.stdout;
        ensure!(!listed.is_empty(), "none");
        Ok(listed.trim().to_owned())
    })
    .unwrap();
    client.run(&["approve", &id]).unwrap().expect(0).unwrap();
    let output = following.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"hello\n"[..]), "{told}");
    assert!(told.contains("waiting for approval: needs 1 approval, by those who may run the job, until "), "{told}");
    assert!(told.contains("succeeded after "), "{told}");
}
