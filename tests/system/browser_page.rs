//! The page in a real browser, as people meet it who do not live in a terminal: they sign in, find a job, run it, read its log, cancel,
//! approve. What must hold on every page of it, such as that it can be read by everyone, is in `browser_everywhere`.

use anyhow::Result;
use octavius_tests::browser::{Browser, Role};
use octavius_tests::{Client, Daemon, World, eventually};

/// What hostile people write into descriptions and logs.
const HOSTILE: &str = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&amp;";

const GREET: &str = r#"name: greet
description: Say hello to somebody
command: [sh, -c, 'echo "hello $who, $mood after $pause"']
env_vars:
  args:
  - {name: who, description: whom to greet, required: true}
  - {name: mood, description: how to say it, enum: [warm, formal], default: warm}
  - {name: pause, description: how long to think first, type: duration, default: 1s}
"#;

/// It goes on when a file is there, whose path is its argument.
const LIVE: &str = r#"name: live
description: Print a line, wait, and print another
command: [sh, -c, 'echo first line; until [ -e "$file" ]; do sleep 0.05; done; echo second line']
env_vars:
  args:
  - {name: file, description: what it waits for, required: true}
"#;

const SLEEP: &str = "name: sleep\ndescription: Sleep until it is cancelled\ncommand: [sh, -c, 'echo asleep; sleep 600']\n";

const PAY: &str = r#"name: pay
description: Pay somebody, which takes a second pair of eyes
command: [sh, -c, 'echo "paid $amount"']
env_vars:
  args:
  - {name: amount, description: in cents, type: integer, required: true}
approvals: {groups: [finance], count: 1, not_self: true}
"#;

/// `octavius dev` with a catalogue, and the command line of its admin.
pub(crate) struct Site<'w> {
    world: &'w World,
    pub(crate) client: Client<'w>,
    /// Where the page is, without a slash at the end.
    root: String,
    /// The address that signs its admin in.
    open: String,
    _dev: Daemon,
}

impl<'w> Site<'w> {
    /// With a catalogue of jobs that tests have a use for.
    pub(crate) fn start(world: &'w World) -> Result<Self> {
        world.write("catalog/octavius.yaml", "catalog: team\n")?;
        let hostile = serde_json::json!({
            "name": "hostile", "description": HOSTILE,
            "command": ["sh", "-c", format!("cat <<'END'\n{HOSTILE}\n\u{1b}[31mred\u{1b}[0m\nEND")],
            "env_vars": {"args": [{"name": "text", "description": HOSTILE, "default": HOSTILE}]},
        });
        let hostile = hostile.to_string();
        for (name, text) in [("greet", GREET), ("live", LIVE), ("sleep", SLEEP), ("pay", PAY), ("hostile", &hostile)] {
            world.write(&format!("catalog/{name}.yaml"), text)?;
        }
        Self::over(world, "catalog")
    }

    /// With the catalogue in that folder.
    pub(crate) fn over(world: &'w World, catalog: &str) -> Result<Self> {
        let (dev, client) = world.dev(&["--catalog", catalog, "--capacity", "4"])?;
        let open = dev.page()?;
        let root = open.split("/open?").next().unwrap_or_default().to_owned();
        Ok(Self { world, client, root, open, _dev: dev })
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.root)
    }

    /// Signs its admin in by the address that it printed.
    pub(crate) fn enter(&self, browser: &Browser) -> Result<()> {
        browser.go(&self.open)?;
        browser.see("Executions")
    }

    /// A new token of somebody with this role, in these groups.
    pub(crate) fn token(&self, user: &str, role: &str, groups: &[&str]) -> Result<String> {
        let mut command = vec!["tokens", "create", "--role", role, "--user", user, "-o", "json"];
        groups.iter().for_each(|group| command.extend(["--group", group]));
        let made = self.client.run(&command)?.expect(0)?.json()?;
        Ok(made["token"].as_str().unwrap_or_default().to_owned())
    }

    /// A browser in which somebody has signed in by a token.
    pub(crate) fn browser_of(&self, user: &str, role: &str, groups: &[&str]) -> Result<Browser> {
        let browser = Browser::start()?;
        self.sign_in(&browser, &self.token(user, role, groups)?)?;
        Ok(browser)
    }

    pub(crate) fn sign_in(&self, browser: &Browser, token: &str) -> Result<()> {
        browser.go(&self.url("/sign-in"))?;
        browser.fill("Token", token)?;
        browser.press("Sign in")?;
        browser.see("Executions")
    }

    /// The id of the execution that a browser shows.
    pub(crate) fn shown(&self, browser: &Browser) -> Result<String> {
        eventually("an execution is shown", || {
            let address = browser.address()?;
            let id = address.strip_prefix(&self.url("/executions/")).unwrap_or_default();
            anyhow::ensure!(id.len() == 26, "{address}");
            Ok(id.to_owned())
        })
    }

    /// Runs a job by its form, and returns the id of the execution, which is shown then.
    pub(crate) fn run(&self, browser: &Browser, job: &str, arguments: &[(&str, &str)]) -> Result<String> {
        browser.go(&self.url(&format!("/jobs/{job}")))?;
        for (name, value) in arguments {
            browser.fill(name, value)?;
        }
        browser.press(&format!("Run {job}"))?;
        self.shown(browser)
    }

    /// A path in the folder of the test.
    pub(crate) fn path(&self, relative: &str) -> String {
        self.world.path(relative).display().to_string()
    }
}

/// Nothing went wrong in the browser that a user was not told.
pub(crate) fn expect_quiet(browser: &Browser) {
    assert_eq!(browser.complaints().unwrap(), [""; 0]);
}

/// The browser complained about nothing but pages that the controller answered with this status: it does so though they are shown.
fn expect_only(browser: &Browser, status: u16) {
    let complaints = browser.complaints().unwrap();
    let others: Vec<_> = complaints.iter().filter(|said| !said.contains(&format!("with a status of {status}"))).collect();
    assert!(!complaints.is_empty() && others.is_empty(), "{status} alone: {complaints:?}");
}

#[test]
fn a_token_signs_in_and_what_was_asked_for_is_shown() {
    let world = World::new().unwrap();
    let site = Site::start(&world).unwrap();
    let browser = Browser::start().unwrap();
    browser.go(&site.url("/executions?job=greet")).unwrap();
    browser.see("Sign in").unwrap();
    browser.fill("Token", "octu_nobody").unwrap();
    browser.press("Sign in").unwrap();
    browser.see("this token is not known here").unwrap();
    let field = browser.field("Token").unwrap();
    assert!(field.is_invalid && field.description.contains("not known here"), "{field:?}");
    assert_eq!(field.value, "", "what was pasted is not sent back");

    // The wrong one has not made it forget where to go.
    browser.fill("Token", &site.token("ada", "user", &[]).unwrap()).unwrap();
    browser.press("Sign in").unwrap();
    browser.see("ada").unwrap();
    assert_eq!(browser.address().unwrap(), site.url("/executions?job=greet"));

    browser.press("ada").unwrap();
    browser.press("Sign out").unwrap();
    browser.see("Sign in").unwrap();
    browser.go(&site.url("/")).unwrap();
    browser.see("Sign in").unwrap();
    assert!(!browser.text().unwrap().contains("greet"), "who has signed out sees nothing");
}

#[test]
fn the_address_that_dev_prints_opens_signed_in() {
    let world = World::new().unwrap();
    let site = Site::start(&world).unwrap();
    let browser = Browser::start().unwrap();
    site.enter(&browser).unwrap();
    // The code is not left where shoulders and histories see it.
    assert_eq!(browser.address().unwrap(), site.url("/"));
    expect_quiet(&browser);

    let stranger = Browser::start().unwrap();
    stranger.go(&site.url("/open?code=guessed")).unwrap();
    stranger.see("sign in with a token").unwrap();
}

#[test]
fn a_job_is_found_run_read_and_run_again() {
    let world = World::new().unwrap();
    let site = Site::start(&world).unwrap();
    let browser = site.browser_of("ada", "user", &[]).unwrap();
    browser.fill("Search", "hello").unwrap();
    browser.press("Show").unwrap();
    browser.see_no("sleep").unwrap();
    browser.follow("greet").unwrap();
    browser.see("Say hello to somebody").unwrap();
    assert_eq!(browser.field("who").unwrap().description, "whom to greet");

    browser.fill("who", "Ada & <b>Bo</b>").unwrap();
    browser.choose("mood", "formal").unwrap();
    browser.fill("pause", "soon").unwrap();
    browser.press("Run greet").unwrap();
    browser.see("not a duration").unwrap();
    let wrong = browser.field("pause").unwrap();
    assert!(wrong.is_invalid && wrong.description.contains("\"soon\" is not a duration"), "{wrong:?}");
    assert_eq!(wrong.value, "soon");
    assert!(!browser.field("who").unwrap().is_invalid);
    assert_eq!(browser.field("who").unwrap().value, "Ada & <b>Bo</b>", "what was right is not to be typed again");
    assert_eq!(browser.field("mood").unwrap().value, "formal");
    assert_eq!(site.client.run(&["executions", "--all", "-o", "name"]).unwrap().expect(0).unwrap().stdout, "");
    expect_only(&browser, 400);

    browser.fill("pause", "2s").unwrap();
    browser.press("Run greet").unwrap();
    let first = site.shown(&browser).unwrap();
    browser.see("hello Ada & <b>Bo</b>, formal after 2s").unwrap();
    browser.see("succeeded").unwrap();
    assert_eq!(site.client.status(&first).unwrap()["state"], "succeeded");

    browser.press("Run it again").unwrap();
    let second = eventually("another execution is shown", || {
        let second = site.shown(&browser)?;
        anyhow::ensure!(second != first, "still the first");
        Ok(second)
    })
    .unwrap();
    browser.see("hello Ada & <b>Bo</b>, formal after 2s").unwrap();
    browser.see("succeeded").unwrap();
    browser.go(&site.url("/executions?job=greet")).unwrap();
    for id in [&first, &second] {
        let (address, short) = (format!("/executions/{id}"), &id[20..]);
        browser.see(short).unwrap();
        assert!(browser.leads_to(&address).unwrap(), "no link to {address}");
    }
    expect_quiet(&browser);
}

#[test]
fn a_log_is_watched_as_it_comes_and_another_execution_is_cancelled() {
    let world = World::new().unwrap();
    let site = Site::start(&world).unwrap();
    let browser = site.browser_of("ada", "user", &[]).unwrap();
    let file = site.path("go-on");
    site.run(&browser, "live", &[("file", &file)]).unwrap();
    browser.see("first line").unwrap();
    browser.see("running").unwrap();
    assert!(!browser.text().unwrap().contains("second line"));
    // Nobody loads the page again: it tells by itself.
    std::fs::write(&file, "").unwrap();
    browser.see("second line").unwrap();
    browser.see("succeeded").unwrap();
    browser.see_no("running").unwrap();

    let sleeping = site.run(&browser, "sleep", &[]).unwrap();
    browser.see("asleep").unwrap();
    browser.press("Cancel it").unwrap();
    browser.see("cancelled").unwrap();
    assert_eq!(site.client.status(&sleeping).unwrap()["state"], "cancelled");
    assert!(
        !browser.names(Role::Button).unwrap().iter().any(|name| name.starts_with("Cancel")),
        "what is over cannot be cancelled"
    );
    expect_quiet(&browser);
}

#[test]
fn a_viewer_reads_and_is_refused_the_rest() {
    let world = World::new().unwrap();
    let site = Site::start(&world).unwrap();
    let id = site.client.execute("greet", &["--arg", "who=Ada", "--wait"]).unwrap();
    let browser = site.browser_of("vi", "viewer", &[]).unwrap();
    browser.go(&site.url("/jobs/greet")).unwrap();
    browser.see("Your role, viewer, sees jobs and does not run them").unwrap();
    assert!(!browser.names(Role::Button).unwrap().iter().any(|name| name.starts_with("Run")), "a viewer is not offered to run");
    browser.go(&site.url(&format!("/executions/{id}"))).unwrap();
    browser.see("hello Ada").unwrap();
    let offered = browser.names(Role::Button).unwrap();
    assert!(!offered.iter().any(|name| name.starts_with("Run") || name.starts_with("Cancel")), "{offered:?}");
    expect_quiet(&browser);
    // An address that somebody sent them says why it stays closed.
    browser.go(&site.url("/audit")).unwrap();
    browser.see("vi has role viewer, which may not").unwrap();
    expect_only(&browser, 403);
}

#[test]
fn a_second_person_approves_and_a_third_rejects() {
    let world = World::new().unwrap();
    let site = Site::start(&world).unwrap();
    let ada = site.browser_of("ada", "user", &["finance"]).unwrap();
    let paid = site.run(&ada, "pay", &[("amount", "1200")]).unwrap();
    ada.see("waiting for approval").unwrap();
    ada.see("finance").unwrap();
    let offered = ada.names(Role::Button).unwrap();
    assert!(!offered.iter().any(|name| name.starts_with("Approve")), "nobody approves their own: {offered:?}");
    // Nor is it hers to approve in the list of what waits.
    ada.go(&site.url("/approvals")).unwrap();
    ada.see("Approvals").unwrap();
    assert!(!ada.names(Role::Button).unwrap().iter().any(|name| name.starts_with("Approve")));

    let bo = site.browser_of("bo", "user", &["finance"]).unwrap();
    bo.go(&site.url("/approvals")).unwrap();
    bo.see("pay").unwrap();
    bo.see("ada").unwrap();
    bo.see("1200").unwrap();
    ada.go(&site.url(&format!("/executions/{paid}"))).unwrap();
    ada.see("waiting for approval").unwrap();
    let reason = format!("Reason to approve or reject pay {}", &paid[20..]);
    assert_eq!(bo.names(Role::Field).unwrap(), [reason], "read out by itself, it says what it is about");
    bo.fill("Reason", "the invoice is right").unwrap();
    bo.press("Approve").unwrap();
    bo.see("Nothing waits for you").unwrap();
    // Who asked for it sees it go on without doing anything.
    ada.see("paid 1200").unwrap();
    ada.see("succeeded").unwrap();
    bo.go(&site.url(&format!("/executions/{paid}"))).unwrap();
    bo.see("approved by bo").unwrap();
    bo.see("the invoice is right").unwrap();

    let refused = site.run(&ada, "pay", &[("amount", "99")]).unwrap();
    let cy = site.browser_of("cy", "user", &["finance"]).unwrap();
    cy.go(&site.url(&format!("/executions/{refused}"))).unwrap();
    cy.fill("Reason", "too cheap").unwrap();
    cy.press("Reject").unwrap();
    cy.see("rejected by cy").unwrap();
    ada.see("too cheap").unwrap();
    assert_eq!(site.client.status(&refused).unwrap()["state"], "cancelled");
    for browser in [&ada, &bo, &cy] {
        expect_quiet(browser);
    }
}

#[test]
fn an_admin_pauses_a_job_and_drains_the_executor_and_both_go_on() {
    let world = World::new().unwrap();
    let site = Site::start(&world).unwrap();
    let browser = Browser::start().unwrap();
    site.enter(&browser).unwrap();
    browser.go(&site.url("/jobs/greet")).unwrap();
    browser.fill("Reason for the pause", "the database moves").unwrap();
    browser.press("Pause greet").unwrap();
    browser.see("Nothing of it starts: paused by").unwrap();
    browser.see("the database moves").unwrap();
    let id = site.run(&browser, "greet", &[("who", "Ada")]).unwrap();
    browser.see("Why it waits").unwrap();
    assert_eq!(site.client.status(&id).unwrap()["state"], "queued");
    browser.go(&site.url("/jobs/greet")).unwrap();
    browser.press("Unpause greet").unwrap();
    browser.see("Reason for the pause").unwrap();
    browser.go(&site.url(&format!("/executions/{id}"))).unwrap();
    browser.see("hello Ada").unwrap();

    browser.follow("Executors").unwrap();
    browser.follow("dev").unwrap();
    browser.press("Drain dev").unwrap();
    browser.see("draining").unwrap();
    site.run(&browser, "greet", &[("who", "Bo")]).unwrap();
    browser.see("Why it waits").unwrap();
    browser.go(&site.url("/executors/dev")).unwrap();
    browser.press("Resume dev").unwrap();
    browser.see("It is given nothing more").unwrap();
    browser.see_no("draining").unwrap();
    expect_quiet(&browser);
}

#[test]
fn hostile_descriptions_arguments_and_logs_are_shown_as_text() {
    let world = World::new().unwrap();
    let site = Site::start(&world).unwrap();
    let browser = Browser::start().unwrap();
    site.enter(&browser).unwrap();
    browser.see(HOSTILE).unwrap();
    browser.go(&site.url("/jobs/hostile")).unwrap();
    browser.see(HOSTILE).unwrap();
    let field = browser.field("text").unwrap();
    assert_eq!((&*field.value, &*field.description), (HOSTILE, HOSTILE));
    browser.press("Run hostile").unwrap();
    site.shown(&browser).unwrap();
    browser.see(HOSTILE).unwrap();
    browser.see("red").unwrap();
    browser.see_no("[31m").unwrap();
    for path in ["/", "/executions", "/jobs/hostile", "/audit", "/revisions"] {
        browser.go(&site.url(path)).unwrap();
        browser.see("Octavius").unwrap();
        // A script that had run would have changed this, opened a dialogue that fails the test, or been refused by the policy.
        assert!(!browser.title().unwrap().contains("owned"));
    }
    expect_quiet(&browser);
    for address in
        ["/?q=", "/executions?job=", "/executions?since=", "/audit?user=", "/revisions?job=", "/sign-in?next=", "/open?code="]
    {
        browser.go(&site.url(&format!("{address}{HOSTILE}"))).unwrap();
        browser.see("Octavius").unwrap();
        assert!(!browser.title().unwrap().contains("owned"));
        let complaints = browser.complaints().unwrap();
        assert!(complaints.iter().all(|said| said.contains("with a status of 4")), "{complaints:?}");
    }
}
