//! The recipes of deploy/ci as a CI system runs them: `octavius init` writes them into a repository, and their own commands run here, read out
//! of their YAML, in shallow clones that belong to someone else, with a server that stands for the comments of GitHub and of GitLab.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use octavius_tests::{Client, Daemon, World};
use serde_yaml::Value;

use crate::comments::{Comments, TOKEN};
use crate::gitops::git;

mod gates;

const MARKER: &str = "<!-- octavius:ci:catalog -->";

/// The default branch, which need not be called main.
const BRANCH: &str = "trunk";

/// The newest commit of the request that CI runs for.
const HEAD: &str = "2f0b4e8f0a4a3f5d9c1b7e6d5c4b3a2918070605";

/// Environment variables by their names.
type Variables = BTreeMap<String, String>;

const GREET: &str = "name: greet\ncommand: [sh, -c, 'echo hello']\n";

/// What the recipe has of `system`, as it stands in deploy/ci.
fn recipe(system: &str) -> Result<String> {
    Ok(std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../deploy/ci/{system}.yml")))?)
}

/// A repository in `work` with its bare origin beside it, in which `octavius init` wrote a catalogue into `folder` and the recipe, pushed to
/// [`BRANCH`].
fn repository(world: &World, system: &str, folder: &str) -> Result<()> {
    std::fs::create_dir_all(world.path("work"))?;
    git(world, ".", &["init", "--quiet", "--bare", "origin.git"])?;
    git(world, "work", &["init", "--quiet"])?;
    git(world, "work", &["remote", "add", "origin", &format!("file://{}", world.path("origin.git").display())])?;
    let made =
        world.command(["init", folder, "--ci", system, "--catalog-name", "jobs"]).current_dir(world.path("work")).output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    push(world, BRANCH, "first")?;
    Ok(())
}

/// Commits everything in `work` on the branch that is checked out, and pushes it under `name`; returns the commit.
fn push(world: &World, name: &str, message: &str) -> Result<String> {
    git(world, "work", &["add", "--all"])?;
    git(world, "work", &["commit", "--quiet", "--allow-empty", "--message", message])?;
    let to = if name.starts_with("refs/") { name.to_owned() } else { format!("refs/heads/{name}") };
    git(world, "work", &["push", "--quiet", "--force", "origin", &format!("HEAD:{to}")])?;
    git(world, "work", &["rev-parse", "HEAD"])
}

/// A checkout as CI makes it.
struct Checkout<'w> {
    world: &'w World,
    folder: PathBuf,
    variables: Variables,
}

impl<'w> Checkout<'w> {
    /// A clone of `reference` alone, one commit deep, whose files belong to another user where this one may give them away.
    fn shallow(world: &'w World, name: &str, reference: &str) -> Result<Self> {
        let folder = world.path(name);
        std::fs::create_dir_all(&folder)?;
        git(world, name, &["init", "--quiet"])?;
        git(world, name, &["remote", "add", "origin", &format!("file://{}", world.path("origin.git").display())])?;
        git(world, name, &["fetch", "--quiet", "--depth=1", "--no-tags", "origin", reference])?;
        git(world, name, &["checkout", "--quiet", "--detach", "FETCH_HEAD"])?;
        ensure!(git(world, name, &["rev-list", "--count", "HEAD"])? == "1", "it is not shallow");
        if rustix::process::geteuid().is_root() {
            let owner = Command::new("chown").args(["-R", "12345:12345"]).arg(&folder).status()?;
            ensure!(owner.success(), "chown failed");
        }
        let variables = BTreeMap::from([("HOME".to_owned(), world.path(&format!("{name}.home")).display().to_string())]);
        std::fs::create_dir_all(&variables["HOME"])?;
        Ok(Self { world, folder, variables })
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Runs a line of a recipe as CI does.
    fn run(&self, line: &str) -> Result<Done> {
        let mut command = Command::new("sh");
        command.args(["-e", "-c", line]).current_dir(&self.folder).env_clear();
        // the program comes from install.sh, wherever else one may be
        let path = std::env::var_os("PATH").context("no PATH")?;
        let path = std::env::join_paths(std::env::split_paths(&path).filter(|folder| !folder.join("octavius").exists()))?;
        command.env("PATH", path).env("GIT_CONFIG_NOSYSTEM", "1").env("TMPDIR", self.world.path("")).env("CI", "true");
        let output = command.envs(&self.variables).output()?;
        Ok(Done {
            code: output.status.code().unwrap_or(-1),
            said: format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        })
    }

    /// Runs the lines of a job until one fails, and those that run always.
    fn job(&self, lines: &[Line]) -> Result<Done> {
        let failed = if self.variables.contains_key("GITHUB_ACTIONS") { "failure" } else { "failed" };
        let mut job = Done { code: 0, said: String::new() };
        for Line { always, text } in lines {
            if job.code == 0 || *always {
                let line = text.replace(STATUS, if job.code == 0 { "success" } else { failed });
                let done = self.run(&line)?;
                job.said.push_str(&format!("$ {line}\n{}", done.said));
                job.code = if job.code == 0 { done.code } else { job.code };
            }
        }
        Ok(job)
    }
}

/// A command of a recipe.
struct Line {
    /// Whether it runs after a failure too.
    always: bool,
    text: String,
}

/// Stands in a [`Line`] for how the job goes when it comes to it.
const STATUS: &str = "{status of the job}";

#[derive(Debug)]
struct Done {
    code: i32,
    said: String,
}

impl Done {
    fn expect(self, code: i32) -> Result<String> {
        ensure!(self.code == code, "exit code {} where {code} was expected\n{}", self.code, self.said);
        Ok(self.said)
    }
}

/// The SHA-256 of what the server offers.
fn checksum(comments: &Comments) -> Result<String> {
    let sum = Command::new("sh").args(["-c", &format!("curl --silent {}/download | sha256sum", comments.url)]).output()?;
    Ok(String::from_utf8(sum.stdout)?.split(' ').next().context("no checksum")?.to_owned())
}

/// A controller, and a binary for install.sh to download.
fn controller<'w>(world: &'w World, comments: &Comments) -> Result<(Daemon, Client<'w>, Variables)> {
    let (dev, client) = world.dev(&[])?;
    let config: Value = serde_yaml::from_str(&std::fs::read_to_string(client.config())?)?;
    let text = |key: &str| config[key].as_str().map(str::to_owned).with_context(|| format!("no {key} in {config:?}"));
    let real = world.command([""; 0]);
    comments.offer(format!("#!/bin/sh\nexec '{}' \"$@\"\n", Path::new(real.get_program()).display()).as_bytes());
    let variables = Variables::from([
        ("OCTAVIUS_DOWNLOAD".to_owned(), format!("{}/download", comments.url)),
        ("OCTAVIUS_SHA256".to_owned(), checksum(comments)?),
        ("OCTAVIUS_CP_HOST".to_owned(), text("CP_HOST")?),
        ("OCTAVIUS_TOKEN".to_owned(), text("ACCESS_TOKEN")?),
    ]);
    Ok((dev, client, variables))
}

fn head(client: &Client<'_>) -> Result<(serde_json::Value, serde_json::Value)> {
    let history = client.run(&["history", "--catalog-name", "jobs", "-o", "json"])?.expect(0)?.json()?;
    let newest = &history["revisions"][0];
    Ok((newest["revision"].clone(), newest["commit"].clone()))
}

/// A text with what GitHub puts for its expressions; one that is not known here is a mistake in the recipe, or a reason to look at this test.
fn github_value(text: &str, context: &BTreeMap<&str, String>) -> Result<String> {
    let mut parts = text.split("${{");
    let mut value = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once("}}").with_context(|| format!("{text} does not end"))?;
        value.push_str(context.get(name.trim()).with_context(|| format!("{text} is not known"))?);
        value.push_str(rest);
    }
    Ok(value)
}

/// A job of the GitHub recipe: the reference that it checks out, where it names one, and its commands with the variables that they get.
fn github_job(world: &World, job: &str, context: &BTreeMap<&str, String>) -> Result<(Option<String>, Vec<Line>)> {
    let recipe: Value = serde_yaml::from_str(&std::fs::read_to_string(world.path("work/.github/workflows/octavius.yml"))?)?;
    let (mut reference, mut lines) = (None, Vec::new());
    let exports = |of: &Value| -> Result<String> {
        let mut text = String::new();
        for (name, value) in of.as_mapping().into_iter().flatten() {
            let value = github_value(value.as_str().context("no text")?, context)?;
            text.push_str(&format!("export {}='{value}'; ", name.as_str().context("no name")?));
        }
        Ok(text)
    };
    let above = exports(&recipe["env"])? + &exports(&recipe["jobs"][job]["env"])?;
    for step in recipe["jobs"][job]["steps"].as_sequence().context("no steps")? {
        if step["uses"].as_str() == Some("actions/checkout@v4") {
            // the checkout of this test stands for it
            reference = step["with"]["ref"].as_str().map(|text| github_value(text, context)).transpose()?;
            continue;
        }
        let (wanted, always) = match step["if"].as_str() {
            None => (true, false),
            Some("${{ !cancelled() && github.event.pull_request.head.repo.full_name == github.repository }}") => {
                (context["fork"] == "no", true)
            }
            Some(other) => bail!("the condition {other} is not known"),
        };
        if wanted {
            let text = format!("{above}{}{}", exports(&step["env"])?, step["run"].as_str().context("no run")?);
            lines.push(Line { always, text });
        }
    }
    Ok((reference, lines))
}

/// What GitHub knows about a run, with this token for pull requests.
fn github_context(variables: &Variables, fork: bool, diff_token: &str) -> BTreeMap<&'static str, String> {
    let of = |name: &str| variables[name].clone();
    BTreeMap::from([
        ("vars.OCTAVIUS_DOWNLOAD", of("OCTAVIUS_DOWNLOAD")),
        ("vars.OCTAVIUS_SHA256", of("OCTAVIUS_SHA256")),
        ("vars.OCTAVIUS_CP_HOST", of("OCTAVIUS_CP_HOST")),
        ("secrets.OCTAVIUS_TOKEN", of("OCTAVIUS_TOKEN")),
        ("secrets.OCTAVIUS_DIFF_TOKEN", diff_token.to_owned()),
        ("github.base_ref", BRANCH.to_owned()),
        ("github.event.repository.default_branch", BRANCH.to_owned()),
        ("github.token", TOKEN.to_owned()),
        ("github.event.number", "7".to_owned()),
        ("github.event.pull_request.head.sha", HEAD.to_owned()),
        ("job.status", STATUS.to_owned()),
        ("fork", if fork { "yes" } else { "no" }.to_owned()),
    ])
}

fn github_checkout<'w>(world: &'w World, comments: &Comments, name: &str, reference: &str) -> Result<Checkout<'w>> {
    Ok(Checkout::shallow(world, name, reference)?
        .with("GITHUB_ACTIONS", "true")
        .with("GITHUB_API_URL", &comments.url)
        .with("GITHUB_SERVER_URL", "https://github.example")
        .with("GITHUB_REPOSITORY", "team/jobs")
        .with("GITHUB_RUN_ID", "42")
        .with("GITHUB_STEP_SUMMARY", &world.path(&format!("{name}.summary")).display().to_string()))
}

/// Checks that a comment says where to look for what is wrong, and nothing of an earlier run.
fn has_findings(comments: &Comments, run: &str) {
    let ours = comments.ours();
    let expected =
        format!("{MARKER}\n### Catalogue in `catalog`\n\n**has findings, see [the run]({run})**\n\nFor commit {HEAD}.\n");
    assert!(ours.len() == 1 && ours[0].body == expected, "{ours:?}");
}

#[test]
fn on_github_a_pull_request_is_commented_and_a_merge_applied() -> Result<()> {
    let world = World::new()?;
    repository(&world, "github", "catalog")?;
    assert_eq!(std::fs::read_to_string(world.path("work/.github/workflows/octavius.yml"))?, recipe("github")?);
    let first = git(&world, "work", &["rev-parse", "HEAD"])?;
    let comments = Comments::start(MARKER)?;
    let (_dev, client, variables) = controller(&world, &comments)?;
    let apply = |name: &str| {
        let (reference, lines) = github_job(&world, "apply", &github_context(&variables, false, ""))?;
        github_checkout(&world, &comments, name, &reference.context("the commit of the run, not the newest one")?)?.job(&lines)
    };
    let diff = |name: &str, fork: bool, token: &str| {
        let (reference, lines) = github_job(&world, "diff", &github_context(&variables, fork, token))?;
        ensure!(reference.is_none(), "not the merge that GitHub made");
        github_checkout(&world, &comments, name, "refs/pull/7/merge")?.job(&lines)
    };
    let token = &*variables["OCTAVIUS_TOKEN"];
    apply("main-1")?.expect(0)?;
    assert_eq!(head(&client)?, (1.into(), first.clone().into()));

    // A pull request: GitHub offers it merged, under a reference of its own.
    git(&world, "work", &["checkout", "--quiet", "-b", "change"])?;
    world.write("work/catalog/greet.yaml", GREET)?;
    push(&world, "refs/pull/7/merge", "a job")?;
    diff("pull-1", false, token)?.expect(0)?;
    let ours = comments.ours();
    assert!(ours.len() == 1 && ours[0].body.starts_with(MARKER) && ours[0].body.contains("greet"), "{ours:?}");
    assert!(ours[0].body.contains("1 added") && ours[0].body.ends_with(&format!("\n\nFor commit {HEAD}.\n")), "{}", ours[0].body);
    // It goes on: the same comment says the new thing, also where there is no token for the controller.
    std::fs::remove_file(world.path("work/catalog/hello.yaml"))?;
    push(&world, "refs/pull/7/merge", "and one less")?;
    diff("pull-2", false, "")?.expect(0)?;
    let again = comments.ours();
    assert!(again.len() == 1 && again[0].id == ours[0].id && again[0].body.contains("1 removed"), "{again:?}");
    let id = again[0].id;
    assert_eq!(
        comments.writes(),
        ["POST /repos/team/jobs/issues/7/comments".to_owned(), format!("PATCH /repos/team/jobs/issues/comments/{id}")]
    );

    // From a fork: no secret, no comment; the run's page has the difference to the branch.
    diff("fork", true, "")?.expect(0)?;
    let summary = std::fs::read_to_string(world.path("fork.summary"))?;
    assert!(summary.starts_with("<!-- octavius:diff:jobs -->") && summary.contains("greet"), "{summary}");
    assert_eq!(comments.writes().len(), 2);

    // Findings stop it, and stand at their lines; the comment no longer shows what was before them.
    world.write("work/catalog/bad.yaml", "name: bad\ncomand: [x]\n")?;
    push(&world, "refs/pull/7/merge", "bad")?;
    let bad = diff("bad", false, token)?.expect(1)?;
    assert!(bad.contains("::error file=catalog/bad.yaml,line=2"), "{bad}");
    has_findings(&comments, "https://github.example/team/jobs/actions/runs/42");
    std::fs::remove_file(world.path("work/catalog/bad.yaml"))?;

    // Two merges, and the run of the second was cancelled: that of the first applies both.
    push(&world, BRANCH, "merged")?;
    world.write("work/catalog/greet.yaml", &GREET.replace("hello", "good day"))?;
    let newest = push(&world, BRANCH, "merged too")?;
    apply("main-2")?.expect(0)?;
    assert_eq!(head(&client)?, (2.into(), newest.clone().into()));
    // The branch has gone on, and someone applied it, since this run checked out: the older commit is refused.
    let late = github_checkout(&world, &comments, "main-1-late", &first)?;
    let older = late.job(&github_job(&world, "apply", &github_context(&variables, false, ""))?.1)?.expect(3)?;
    assert!(older.contains("older") || older.contains("ancestor"), "{older}");
    assert_eq!(head(&client)?, (2.into(), newest.into()));
    assert_eq!(client.run(&["list", "-o", "name"])?.expect(0)?.stdout, "greet\n");
    Ok(())
}

#[test]
fn the_file_of_a_difference_does_not_make_a_catalogue_at_the_root_differ_from_its_commit() -> Result<()> {
    let world = World::new()?;
    repository(&world, "github", ".")?;
    let comments = Comments::start("<!-- octavius:ci:. -->")?;
    let (_dev, _client, variables) = controller(&world, &comments)?;
    world.write("work/greet.yaml", GREET)?;
    push(&world, "refs/pull/7/merge", "a job")?;
    for token in ["", &variables["OCTAVIUS_TOKEN"]] {
        let checkout = github_checkout(&world, &comments, &format!("pull-{}", token.len()), "refs/pull/7/merge")?;
        checkout.job(&github_job(&world, "diff", &github_context(&variables, false, token))?.1)?.expect(0)?;
        let ours = comments.ours();
        assert!(ours.len() == 1 && ours[0].body.contains("greet"), "{ours:?}");
        let commit = git(&world, "work", &["rev-parse", "--short=7", "HEAD"])?;
        assert!(ours[0].body.contains(&format!("({commit})")), "{}", ours[0].body);
    }
    Ok(())
}

#[test]
fn only_the_program_that_is_named_is_taken() -> Result<()> {
    let world = World::new()?;
    repository(&world, "github", "catalog")?;
    let comments = Comments::start(MARKER)?;
    let program = b"#!/bin/sh\necho the one that is named\n";
    comments.offer(program);
    let named = checksum(&comments)?;
    let checkout = Checkout::shallow(&world, "install", BRANCH)?
        .with("OCTAVIUS_DOWNLOAD", &format!("{}/download", comments.url))
        .with("OCTAVIUS_SHA256", &named);
    let install = |checkout: &Checkout<'_>| checkout.run("sh .octavius/ci/install.sh");
    let there = Path::new(&checkout.variables["HOME"]).join(".octavius/bin/octavius");
    let other = |path: &Path| -> Result<()> {
        std::fs::create_dir_all(path.parent().context("no folder")?)?;
        std::fs::write(path, "#!/bin/sh\necho another one\n")?;
        ensure!(Command::new("chmod").arg("755").arg(path).status()?.success(), "chmod failed");
        Ok(())
    };
    // An earlier run left something; it does not run.
    other(&there)?;
    assert_eq!(install(&checkout)?.expect(0)?, "the one that is named\n");
    assert_eq!(std::fs::read(&there)?, program);
    // What is there as it should be is not fetched again.
    comments.offer(b"gone");
    assert_eq!(install(&checkout)?.expect(0)?, "the one that is named\n");
    // The path has the folder already, which makes it no better.
    other(&there)?;
    let path = std::env::var("PATH")?;
    let before = format!("{}:{path}", there.parent().context("no folder")?.display());
    let said = install(&checkout.with("PATH", &before))?.expect(1)?;
    assert!(said.contains("another SHA-256") && !said.contains("another one"), "{said}");
    // A download that is not what was named is not taken, and one without a checksum not fetched.
    let mut checkout = Checkout::shallow(&world, "again", BRANCH)?
        .with("OCTAVIUS_DOWNLOAD", &format!("{}/download", comments.url))
        .with("OCTAVIUS_SHA256", &named);
    install(&checkout)?.expect(1)?;
    let there = Path::new(&checkout.variables["HOME"]).join(".octavius/bin/octavius");
    assert!(!there.exists());
    checkout.variables.remove("OCTAVIUS_SHA256");
    other(&there)?;
    let said = install(&checkout)?.expect(1)?;
    assert!(said.contains("no octavius on the path") && !said.contains("another one"), "{said}");
    // One on the path is the machine's own, and comes first.
    let own = world.path("own/octavius");
    other(&own)?;
    let path = format!("{}:{path}", world.path("own").display());
    assert_eq!(install(&checkout.with("PATH", &path))?.expect(0)?, "another one\n");
    Ok(())
}

#[test]
fn on_gitlab_a_merge_request_is_commented_and_a_merge_applied() -> Result<()> {
    let world = World::new()?;
    repository(&world, "gitlab", "catalog")?;
    let comments = Comments::start(MARKER)?;
    let (_dev, client, variables) = controller(&world, &comments)?;
    let text = std::fs::read_to_string(world.path("work/.gitlab/octavius.yml"))?;
    assert_eq!(text, recipe("gitlab")?, "init writes the recipe as it is");
    let included: Value = serde_yaml::from_str(&std::fs::read_to_string(world.path("work/.gitlab-ci.yml"))?)?;
    assert_eq!(included["include"][0]["local"], ".gitlab/octavius.yml");
    let recipe: Value = serde_yaml::from_str(&text)?;
    let lines = |job: &str| -> Result<Vec<Line>> {
        // what comes before installs packages, which this machine has
        let before = recipe[".octavius"]["before_script"].as_sequence().context("no before_script")?;
        ensure!(before.iter().all(|line| line.as_str().is_some_and(|line| line.starts_with("apt-get "))), "{before:?}");
        ensure!(recipe[job]["script"].is_sequence(), "no script");
        let of = |always: bool, script: &str| -> Result<Vec<Line>> {
            let line = |line: &str| Line { always, text: format!("export CI_JOB_STATUS='{STATUS}'; {line}") };
            let lines = recipe[job][script].as_sequence().into_iter().flatten();
            lines.map(|text| Ok(line(text.as_str().context("no line")?))).collect()
        };
        Ok(of(false, "script")?.into_iter().chain(of(true, "after_script")?).collect())
    };
    let catalog = recipe[".octavius"]["variables"]["CATALOG"].as_str().context("no CATALOG")?;
    let checkout = |name: &str, reference: &str| -> Result<Checkout<'_>> {
        let checkout = Checkout::shallow(&world, name, reference)?
            .with("CATALOG", catalog)
            .with("CI_API_V4_URL", &format!("{}/api/v4", comments.url))
            .with("CI_PROJECT_ID", "5")
            .with("CI_COMMIT_BRANCH", BRANCH)
            .with("CI_COMMIT_SHA", HEAD)
            .with("CI_JOB_URL", "https://gitlab.example/team/jobs/-/jobs/42");
        Ok(variables.iter().fold(checkout, |checkout, (name, value)| checkout.with(name, value)))
    };
    let merge_request = |name: &str| -> Result<Checkout<'_>> {
        Ok(checkout(name, "refs/merge-requests/7/head")?
            .with("CI_MERGE_REQUEST_IID", "7")
            .with("CI_MERGE_REQUEST_PROJECT_ID", "5")
            .with("CI_MERGE_REQUEST_SOURCE_PROJECT_ID", "5")
            .with("CI_MERGE_REQUEST_TARGET_BRANCH_NAME", BRANCH)
            .with("OCTAVIUS_COMMENT_TOKEN", TOKEN))
    };
    checkout("main-1", BRANCH)?.job(&lines("octavius-apply")?)?.expect(0)?;

    // GitLab checks the branch out as it is; the default branch has gone on meanwhile, which is not what the request takes back.
    git(&world, "work", &["checkout", "--quiet", "-b", "change"])?;
    world.write("work/catalog/greet.yaml", GREET)?;
    push(&world, "refs/merge-requests/7/head", "a job")?;
    git(&world, "work", &["checkout", "--quiet", "main"])?;
    world.write("work/catalog/more.yaml", &GREET.replace("greet", "more"))?;
    let second = push(&world, BRANCH, "meanwhile")?;
    checkout("main-2", BRANCH)?.job(&lines("octavius-apply")?)?.expect(0)?;
    assert_eq!(head(&client)?, (2.into(), second.into()));
    merge_request("request-1")?.job(&lines("octavius-diff")?)?.expect(0)?;
    let ours = comments.ours();
    assert!(ours.len() == 1 && ours[0].body.starts_with(MARKER), "{ours:?}");
    assert!(ours[0].body.contains("greet") && ours[0].body.contains("1 added") && !ours[0].body.contains("removed"), "{ours:?}");
    merge_request("request-2")?.job(&lines("octavius-diff")?)?.expect(0)?;
    assert_eq!(
        comments.writes(),
        [
            "POST /api/v4/projects/5/merge_requests/7/notes".to_owned(),
            format!("PUT /api/v4/projects/5/merge_requests/7/notes/{}", ours[0].id)
        ]
    );

    // A pipeline for merged results runs for a commit of its own; a newer pipeline cancels.
    let merged = merge_request("request-3")?.with("CI_COMMIT_SHA", "5").with("CI_MERGE_REQUEST_SOURCE_BRANCH_SHA", HEAD);
    merged.job(&lines("octavius-diff")?)?.expect(0)?;
    assert!(comments.ours()[0].body.ends_with(&format!("\n\nFor commit {HEAD}.\n")), "{ours:?}");
    let after = lines("octavius-diff")?.pop().context("no lines")?.text.replace(STATUS, "canceled");
    merge_request("request-4")?.run(&after)?.expect(0)?;
    assert_eq!(comments.writes().len(), 3);

    // A fork's own pipeline has neither token nor the branch: it is fetched from where the request goes.
    git(&world, ".", &["clone", "--quiet", "--bare", "--branch", BRANCH, "origin.git", "target.git"])?;
    let mut fork = merge_request("fork")?
        .with("CI_PROJECT_ID", "6")
        .with("CI_MERGE_REQUEST_SOURCE_PROJECT_ID", "6")
        .with("CI_MERGE_REQUEST_PROJECT_URL", &format!("file://{}", world.path("target").display()));
    git(&world, "origin.git", &["update-ref", "refs/heads/change", "refs/merge-requests/7/head"])?;
    let tip = git(&world, "origin.git", &["rev-parse", BRANCH])?;
    git(&world, "origin.git", &["update-ref", "-d", &format!("refs/heads/{BRANCH}")])?;
    for secret in ["OCTAVIUS_TOKEN", "OCTAVIUS_COMMENT_TOKEN"] {
        fork.variables.remove(secret);
    }
    let said = fork.job(&lines("octavius-diff")?)?.expect(0)?;
    assert!(said.contains(MARKER) && said.contains("1 added"), "{said}");
    assert_eq!(comments.writes().len(), 3);
    git(&world, "origin.git", &["update-ref", &format!("refs/heads/{BRANCH}"), &tip])?;

    // The same in the project where it goes, which has the branch: nothing else is asked for it.
    let inside = merge_request("inside")?.with("CI_MERGE_REQUEST_SOURCE_PROJECT_ID", "6");
    let inside = inside.with("CI_MERGE_REQUEST_PROJECT_URL", &format!("file://{}", world.path("nowhere").display()));
    inside.job(&lines("octavius-diff")?)?.expect(0)?;
    assert_eq!(comments.writes().len(), 4);

    // It does not merge: the note does not go on showing what an earlier commit changed.
    git(&world, "work", &["checkout", "--quiet", "change"])?;
    world.write("work/catalog/more.yaml", "name: more\ncommand: [sh, -c, 'echo other']\n")?;
    push(&world, "refs/merge-requests/7/head", "the same file")?;
    let said = merge_request("conflict")?.job(&lines("octavius-diff")?)?.expect(1)?;
    assert!(said.contains(&format!("does not merge into {BRANCH}")), "{said}");
    has_findings(&comments, "https://gitlab.example/team/jobs/-/jobs/42");
    Ok(())
}

#[test]
fn the_hook_checks_what_is_staged_and_nothing_else() -> Result<()> {
    let world = World::new()?;
    repository(&world, "none", "catalog")?;
    let bin = world.path("bin");
    std::fs::create_dir_all(&bin)?;
    std::os::unix::fs::symlink(world.command([""; 0]).get_program(), bin.join("octavius"))?;
    std::os::unix::fs::symlink("../../.octavius/pre-commit", world.path("work/.git/hooks/pre-commit"))?;
    let path = format!("{}:{}", bin.display(), std::env::var("PATH")?);
    let commit = |file: &str| -> Result<std::process::Output> {
        git(&world, "work", &["add", file])?;
        let mut command = Command::new("git");
        command.args(["-c", "user.name=Ann", "-c", "user.email=a@example.com", "commit", "--quiet", "--message", "x"]);
        command.current_dir(world.path("work")).env_clear().env("PATH", &path).env("HOME", world.path("home"));
        Ok(command.env("GIT_CONFIG_NOSYSTEM", "1").output()?)
    };
    let refused = |output: &std::process::Output| {
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success() && said.contains("catalog/greet.yaml:2:1: error["), "{said}");
    };
    world.write("work/catalog/greet.yaml", "name: greet\ncomand: [x]\n")?;
    refused(&commit("catalog/greet.yaml")?);
    // mended, but not staged
    world.write("work/catalog/greet.yaml", GREET)?;
    world.write("work/notes.md", "x\n")?;
    refused(&commit("notes.md")?);
    // staged as it is mended, and broken since
    git(&world, "work", &["add", "catalog"])?;
    world.write("work/catalog/greet.yaml", "name: [\n")?;
    let taken = commit("notes.md")?;
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    // a commit without the catalogue does not look at it
    world.write("work/notes.md", "y\n")?;
    assert!(commit("notes.md")?.status.success());
    Ok(())
}
