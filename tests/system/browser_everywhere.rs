//! What must hold on every page: it can be used with the keyboard alone, on a phone, without script, in light and dark, and by people who
//! hear it instead of seeing it.

use anyhow::ensure;
use octavius_tests::browser::{Browser, Role, Scheme, Screen, keys};
use octavius_tests::{World, eventually};

use crate::browser_page::{Site, expect_quiet};

/// A site on which something of everything has happened: all pages of it, and the execution that still runs.
fn every_page(site: &Site<'_>) -> (Vec<String>, String) {
    let done = site.client.execute("greet", &["--arg", "who=Ada", "--wait"]).unwrap();
    let running = site.client.execute("sleep", &[]).unwrap();
    site.client.execute("pay", &["--arg", "amount=1200"]).unwrap();
    let mut pages =
        ["/", "/?q=greet", "/jobs/greet", "/jobs/pay", "/executions", "/executions?job=greet", "/approvals", "/executors"]
            .map(ToOwned::to_owned)
            .to_vec();
    pages.extend(["/executors/dev", "/revisions", "/revisions/team/1", "/audit", "/no-such-page"].map(ToOwned::to_owned));
    pages.extend([format!("/executions/{done}"), format!("/executions/{running}")]);
    (pages, running)
}

#[test]
fn every_page_is_for_everyone_in_light_and_dark_and_on_a_phone() {
    let world = World::new().unwrap();
    let site = Site::start(&world).unwrap();
    let (pages, running) = every_page(&site);
    let browser = Browser::start().unwrap();
    let mut wrong = Vec::new();
    let mut look = |page: &str| {
        for (screen, scheme) in [(Screen::Desktop, Scheme::Light), (Screen::Phone, Scheme::Dark)] {
            browser.screen(screen).unwrap();
            browser.scheme(scheme).unwrap();
            browser.go(&site.url(page)).unwrap();
            browser.see("Octavius").unwrap();
            let findings = browser.findings().unwrap();
            wrong.extend(findings.into_iter().map(|found| format!("{page} {screen:?} {scheme:?}: {found:#?}")));
            let overhang = browser.overhang().unwrap();
            if overhang > 0 {
                wrong.push(format!("{page} is {overhang} pixels wider than the screen of a {screen:?}"));
            }
        }
        let complaints = browser.complaints().unwrap();
        // That a page is not there, the browser takes for a complaint.
        wrong.extend(complaints.into_iter().filter(|said| !said.contains("no-such-page")).map(|said| format!("{page}: {said}")));
    };
    look("/sign-in");
    site.enter(&browser).unwrap();
    pages.iter().for_each(|page| look(page));
    // A job outlives its executor, and so the test.
    site.client.run(&["cancel", &running]).unwrap().expect(0).unwrap();
    eventually("what ran has ended", || {
        ensure!(site.client.status(&running)?["state"] == "cancelled", "it still runs");
        Ok(())
    })
    .unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn everything_can_be_done_with_the_keyboard_alone() {
    let world = World::new().unwrap();
    let site = Site::start(&world).unwrap();
    let browser = Browser::start().unwrap();
    let (enter, space) = (keys::ENTER.to_string(), keys::SPACE.to_string());
    browser.go(&site.url("/sign-in")).unwrap();
    browser.tab_to(Role::Field, "Token").unwrap();
    browser.type_keys(&format!("{}{enter}", site.token("ada", "user", &["finance"]).unwrap())).unwrap();
    browser.see("greet").unwrap();
    // The way past what stands at the top of each page.
    browser.tab_to(Role::Link, "Skip").unwrap();
    browser.type_keys(&enter).unwrap();
    browser.tab_to(Role::Field, "Search").unwrap();
    browser.type_keys(&format!("hello{enter}")).unwrap();
    browser.see_no("sleep").unwrap();
    browser.tab_to(Role::Link, "greet").unwrap();
    browser.type_keys(&enter).unwrap();
    browser.see("Say hello to somebody").unwrap();
    browser.tab_to(Role::Field, "who").unwrap();
    browser.type_keys("Ada").unwrap();
    browser.tab_to(Role::Field, "mood").unwrap();
    browser.type_keys(&keys::DOWN.to_string()).unwrap();
    browser.tab_to(Role::Button, "Run").unwrap();
    browser.type_keys(&space).unwrap();
    browser.see("hello Ada, formal after 1s").unwrap();
    browser.see("succeeded").unwrap();

    browser.go(&site.url("/jobs/sleep")).unwrap();
    browser.tab_to(Role::Button, "Run").unwrap();
    browser.type_keys(&enter).unwrap();
    browser.see("asleep").unwrap();
    browser.tab_to(Role::Button, "Cancel").unwrap();
    browser.type_keys(&enter).unwrap();
    browser.see("cancelled").unwrap();

    let waiting = site.client.execute("pay", &["--arg", "amount=5"]).unwrap();
    browser.go(&site.url("/approvals")).unwrap();
    browser.tab_to(Role::Field, "Reason").unwrap();
    browser.type_keys("fine").unwrap();
    browser.tab_to(Role::Button, "Approve").unwrap();
    browser.type_keys(&enter).unwrap();
    browser.see("Nothing waits for you").unwrap();
    browser.go(&site.url(&format!("/executions/{waiting}"))).unwrap();
    browser.see("paid 5").unwrap();
    browser.tab_to(Role::Button, "ada").unwrap();
    browser.type_keys(&enter).unwrap();
    browser.tab_to(Role::Button, "Sign out").unwrap();
    browser.type_keys(&enter).unwrap();
    browser.see("Token").unwrap();
    expect_quiet(&browser);
}

#[test]
fn a_job_is_run_and_read_on_a_phone() {
    let world = World::new().unwrap();
    let site = Site::start(&world).unwrap();
    let browser = Browser::start().unwrap();
    browser.screen(Screen::Phone).unwrap();
    site.enter(&browser).unwrap();
    browser.follow("greet").unwrap();
    browser.fill("who", "Ada").unwrap();
    browser.press("Run greet").unwrap();
    browser.see("hello Ada, warm after 1s").unwrap();
    browser.see("succeeded").unwrap();
    assert_eq!(browser.overhang().unwrap(), 0);
    browser.screenshot("execution-phone").unwrap();
    expect_quiet(&browser);
}

#[test]
fn without_script_all_but_live_updates_works() {
    let world = World::new().unwrap();
    let site = Site::start(&world).unwrap();
    let browser = Browser::without_script().unwrap();
    site.sign_in(&browser, &site.token("ada", "user", &["finance"]).unwrap()).unwrap();
    browser.fill("Search", "hello").unwrap();
    browser.press("Show").unwrap();
    browser.see_no("sleep").unwrap();
    browser.follow("greet").unwrap();
    browser.fill("who", "Ada").unwrap();
    browser.choose("mood", "formal").unwrap();
    browser.press("Run greet").unwrap();
    let id = site.shown(&browser).unwrap();
    site.client.run(&["status", &id, "--wait"]).unwrap().expect(0).unwrap();
    browser.reload().unwrap();
    browser.see("succeeded").unwrap();
    browser.see("hello Ada, formal after 1s").unwrap();

    site.run(&browser, "sleep", &[]).unwrap();
    browser.press("Cancel it").unwrap();
    eventually("it is cancelled", || {
        browser.reload()?;
        ensure!(browser.text()?.contains("cancelled"), "{}", browser.text()?);
        Ok(())
    })
    .unwrap();

    let waiting = site.client.execute("pay", &["--arg", "amount=5"]).unwrap();
    browser.go(&site.url("/approvals")).unwrap();
    browser.press("Approve").unwrap();
    site.client.run(&["status", &waiting, "--wait"]).unwrap().expect(0).unwrap();
    expect_quiet(&browser);
}

/// What somebody else is to look at before it runs.
const REFUND: &str = r#"name: refund-order
description: Refund one order and tell the customer
command: [sh, -c, 'echo "refunded $order: $reason"']
env_vars:
  args:
  - {name: order, description: like A-1042, required: true}
  - {name: reason, description: why, enum: [fraud, goodwill], default: goodwill}
approvals: {groups: [finance]}
"#;

#[test]
fn pictures_are_taken_of_what_people_see_first() {
    let world = World::new().unwrap();
    let site = Site::over(&world, concat!(env!("CARGO_MANIFEST_DIR"), "/../catalog")).unwrap();
    let refund = world.write("refund-order.yaml", REFUND).unwrap();
    site.client.run(&["create", "--job-path", &refund.display().to_string()]).unwrap().expect(0).unwrap();
    for job in ["disk-report", "cache-flush"] {
        site.client.execute(job, &["--wait"]).unwrap();
    }
    let backup = site.client.execute("database-backup", &["--wait"]).unwrap();
    let ada = site.browser_of("ada", "user", &[]).unwrap();
    site.run(&ada, "refund-order", &[("order", "A-1042")]).unwrap();
    let bo = site.browser_of("bo", "admin", &["finance"]).unwrap();
    for (scheme, suffix) in [(Scheme::Light, "light"), (Scheme::Dark, "dark")] {
        bo.scheme(scheme).unwrap();
        for (name, page, shows) in [
            ("catalogue", "/", "database-backup"),
            ("job", "/jobs/database-backup", "Pack a folder of database files"),
            ("execution", &format!("/executions/{backup}"), "verified: the archive holds what is at the source"),
            ("executions", "/executions?all=1", "disk-report"),
            ("approvals", "/approvals", "A-1042"),
        ] {
            bo.go(&site.url(page)).unwrap();
            bo.see(shows).unwrap();
            let picture = bo.screenshot(&format!("{name}-{suffix}")).unwrap();
            assert!(picture.metadata().unwrap().len() > 10_000, "{} shows nothing", picture.display());
        }
    }
    expect_quiet(&bo);
}
