//! What the recipes of deploy/ci say themselves: when they run, for whom, with which rights, and which steps they call.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_yaml::Value;

use super::recipe;

/// A recipe without its commands: what starts it, and what it may do.
fn gates(system: &str) -> Result<Value> {
    let mut recipe: Value = serde_yaml::from_str(&recipe(system)?)?;
    let jobs = if system == "github" { &mut recipe["jobs"] } else { &mut recipe };
    for (_, job) in jobs.as_mapping_mut().context("no jobs")? {
        let job = job.as_mapping_mut().context("no job")?;
        for commands in ["env", "before_script", "script", "after_script"] {
            job.remove(commands);
        }
        for step in job.get_mut("steps").and_then(Value::as_sequence_mut).into_iter().flatten() {
            let step = step.as_mapping_mut().context("no step")?;
            step.remove("env");
            // the name of the script
            if let Some(line) = step.get("run").and_then(Value::as_str) {
                let script = line.split(' ').nth(1).unwrap_or_default().trim_start_matches(".octavius/ci/").to_owned();
                step.insert("run".into(), script.into());
            }
        }
    }
    if system == "github" {
        recipe.as_mapping_mut().context("no recipe")?.remove("env");
    }
    Ok(recipe)
}

/// What stands here is what keeps secrets from forks and from other branches: a change of it is a change of who may do what.
#[test]
fn the_recipes_run_for_whom_they_should_and_may_no_more_than_they_need() -> Result<()> {
    let github = r#"
name: octavius
on:
  pull_request:
    paths: ["catalog/**", ".octavius/**", ".github/workflows/octavius.yml"]
  push:
    paths: ["catalog/**", ".octavius/**", ".github/workflows/octavius.yml"]
  workflow_dispatch:
permissions: {contents: read}
jobs:
  diff:
    if: github.event_name == 'pull_request'
    runs-on: ubuntu-latest
    permissions: {contents: read, pull-requests: write}
    concurrency: {group: "octavius-diff-${{ github.ref }}", cancel-in-progress: true}
    steps:
    - uses: actions/checkout@v4
    - run: install.sh
    - run: prepare.sh
    - run: validate.sh
    - run: diff.sh
    - if: ${{ !cancelled() && github.event.pull_request.head.repo.full_name == github.repository }}
      run: comment-github.sh
  apply:
    if: github.event_name != 'pull_request' && github.ref == format('refs/heads/{0}', github.event.repository.default_branch)
    runs-on: ubuntu-latest
    environment: production
    concurrency: {group: "octavius-apply-${{ github.ref }}", cancel-in-progress: false}
    steps:
    - uses: actions/checkout@v4
      with: {ref: "refs/heads/${{ github.event.repository.default_branch }}"}
    - run: install.sh
    - run: prepare.sh
    - run: apply.sh
"#;
    assert_eq!(gates("github")?, serde_yaml::from_str::<Value>(github)?);
    let gitlab = r#"
.octavius:
  image: debian:13-slim
  variables: {CATALOG: catalog}
octavius-diff:
  extends: .octavius
  stage: test
  interruptible: true
  rules:
  - if: $CI_PIPELINE_SOURCE == "merge_request_event"
    changes: ["catalog/**/*", ".octavius/**/*", ".gitlab/octavius.yml"]
octavius-apply:
  extends: .octavius
  stage: deploy
  environment: production
  resource_group: octavius-apply
  rules:
  - if: $CI_PIPELINE_SOURCE == "web" && $CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH
  - if: $CI_PIPELINE_SOURCE == "push" && $CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH
"#;
    assert_eq!(gates("gitlab")?, serde_yaml::from_str::<Value>(gitlab)?);
    // which secret goes to which job
    let github: Value = serde_yaml::from_str(&recipe("github")?)?;
    let secret = |job: &str| github["jobs"][job]["env"]["OCTAVIUS_TOKEN"].as_str();
    assert_eq!(secret("diff"), Some("${{ secrets.OCTAVIUS_DIFF_TOKEN }}"));
    assert_eq!(secret("apply"), Some("${{ secrets.OCTAVIUS_TOKEN }}"));
    assert_eq!(recipe("github")?.matches("${{ secrets.").count(), 2);
    Ok(())
}

#[test]
fn every_step_is_in_a_recipe_and_every_command_of_a_recipe_is_a_step() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/ci/steps");
    let steps: BTreeSet<String> =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<Result<_>>()?;
    let mut called = BTreeSet::new();
    for system in ["github", "gitlab"] {
        let recipe: Value = serde_yaml::from_str(&recipe(system)?)?;
        let mut jobs: Vec<&Value> = recipe["jobs"].as_mapping().into_iter().flat_map(|jobs| jobs.values()).collect();
        jobs.extend([&recipe["octavius-diff"], &recipe["octavius-apply"]].into_iter().filter(|job| !job.is_null()));
        assert_eq!(jobs.len(), 2, "{system}");
        for job in jobs {
            let steps = job["steps"].as_sequence().into_iter().flatten().filter_map(|step| step["run"].as_str());
            let scripts =
                ["script", "after_script"].into_iter().flat_map(|script| job[script].as_sequence().into_iter().flatten());
            for line in steps.chain(scripts.filter_map(Value::as_str)) {
                let step = line.strip_prefix("sh .octavius/ci/").and_then(|rest| rest.split(' ').next());
                called.insert(step.with_context(|| format!("{line} is no step"))?.to_owned());
            }
        }
    }
    assert_eq!(called, steps);
    Ok(())
}
