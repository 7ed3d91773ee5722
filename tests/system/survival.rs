//! What must survive: kill -9 of a controller or an executor in the middle of 200 executions, and a restart.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use octavius_tests::{Client, World, eventually, on_every_store};

on_every_store! {
    killing_the_controller_loses_nothing,
    killing_the_executor_loses_nothing_and_runs_nothing_twice,
}

const EXECUTIONS: usize = 200;

/// Notes its id in a shared file, once for each time it runs, and prints lines that can be checked.
fn job(world: &World) -> Result<String> {
    let ledger = world.write("ledger", "")?.display().to_string();
    let script = format!(
        "echo $OCTAVIUS_EXECUTION_ID >> '{ledger}'; i=0; while [ $i -lt 20 ]; do echo \"$number line $i\"; i=$((i+1)); done; sleep 0.2; echo \"$number done\""
    );
    let yaml = format!(
        "name: note\ncommand: [sh, -c, {}]\nenv_vars:\n  args:\n  - {{name: number, type: integer, required: true}}\n",
        serde_json::to_string(&script)?
    );
    world.write("catalog/octavius.yaml", "catalog: team\n")?;
    world.write("catalog/note.yaml", &yaml)?;
    Ok(ledger)
}

fn states(client: &Client<'_>) -> Result<BTreeMap<String, String>> {
    let all = client.run(&["executions", "--limit", "1000", "-o", "json"])?.expect(0)?.json()?;
    let all = all["executions"].as_array().context("no list")?.clone();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok(all.iter().map(|execution| (text(&execution["id"]), text(&execution["state"]))).collect())
}

fn done(client: &Client<'_>) -> Result<usize> {
    Ok(states(client)?.values().filter(|state| *state == "succeeded").count())
}

/// Waits until so many fifths of all executions are done, and sees to it that others are not.
fn in_the_middle(client: &Client<'_>, fifths: usize) -> Result<()> {
    let done = eventually("some are done", || {
        let done = done(client)?;
        ensure!(done >= fifths * EXECUTIONS / 5, "{done} done");
        Ok(done)
    })?;
    ensure!(done < EXECUTIONS, "all are done already: nothing is left to be in the middle of");
    Ok(())
}

/// Checks that each acknowledged execution ended well, ran once, and left its whole log.
fn check(client: &Client<'_>, ledger: &str, ids: &[String]) -> Result<()> {
    let last = eventually("every acknowledged execution ends", || {
        let states = states(client)?;
        let open: Vec<_> = ids.iter().filter(|id| states.get(*id).is_none_or(|state| state != "succeeded")).collect();
        let shown: Vec<_> = open.iter().take(5).map(|id| format!("{id} {:?}", states.get(*id))).collect();
        ensure!(open.is_empty(), "{} have not succeeded: {shown:?}", open.len());
        Ok(states)
    })?;
    assert_eq!(last.len(), ids.len());
    let mut runs: BTreeMap<String, usize> = BTreeMap::new();
    for line in std::fs::read_to_string(ledger)?.lines() {
        *runs.entry(line.to_owned()).or_default() += 1;
    }
    for (number, id) in ids.iter().enumerate() {
        ensure!(runs.get(id) == Some(&1), "{id} ran {:?} times", runs.get(id));
        let lines = (0..20).map(|line| format!("{number} line {line}\n")).collect::<String>();
        let log = client.run(&["getlogs", id])?.expect(0)?.stdout;
        ensure!(log == format!("{lines}{number} done\n"), "the log of {id} is not whole: {log:?}");
    }
    Ok(())
}

/// Submits all executions from several clients at once; each retries by itself while the controller is away.
fn submit(client: &Client<'_>) -> Result<Vec<String>> {
    const AT_ONCE: usize = 8;
    let one = |number: usize| -> Result<String> {
        // The same idempotency key makes it safe to ask again whatever became of the first call.
        let (argument, key) = (format!("number={number}"), format!("number-{number}"));
        eventually("the execution is accepted", || client.execute("note", &["--arg", &argument, "--idempotency-key", &key]))
    };
    let mut ids = vec![String::new(); EXECUTIONS];
    std::thread::scope(|scope| -> Result<()> {
        let lanes: Vec<_> = ids.chunks_mut(EXECUTIONS.div_ceil(AT_ONCE)).enumerate().collect();
        let lanes: Vec<_> = lanes
            .into_iter()
            .map(|(lane, ids)| {
                scope.spawn(move || -> Result<()> {
                    for (index, id) in ids.iter_mut().enumerate() {
                        *id = one(lane * EXECUTIONS.div_ceil(AT_ONCE) + index)?;
                    }
                    Ok(())
                })
            })
            .collect();
        lanes.into_iter().try_for_each(|lane| lane.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
    })?;
    Ok(ids)
}

fn killing_the_controller_loses_nothing(world: &World) -> Result<()> {
    let ledger = job(world)?;
    let (controller, port) = world.controller("store", 0)?;
    let admin = world.admin(port)?;
    admin.run(&["apply", "catalog"])?.expect(0)?;
    let _executor = world.executor("e1", port, &admin.registration()?, 8)?;
    let ids = std::thread::scope(|scope| -> Result<Vec<String>> {
        let submitting = scope.spawn(|| submit(&admin));
        let mut controller = controller;
        for share in 1..=3 {
            in_the_middle(&admin, share)?;
            controller.kill()?;
            (controller, _) = world.controller("store", port)?;
        }
        let ids = submitting.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        check(&admin, &ledger, &ids)?;
        drop(controller);
        Ok(ids)
    })?;
    assert_eq!(ids.len(), EXECUTIONS);
    Ok(())
}

fn killing_the_executor_loses_nothing_and_runs_nothing_twice(world: &World) -> Result<()> {
    let ledger = job(world)?;
    let (_controller, port) = world.controller("store", 0)?;
    let admin = world.admin(port)?;
    admin.run(&["apply", "catalog"])?.expect(0)?;
    let token = admin.registration()?;
    // Everything waits before the first executor comes, so that each kill meets one in the middle of its work.
    let ids = submit(&admin)?;
    let mut executor = world.executor("e1", port, &token, 8)?;
    for share in 1..=3 {
        in_the_middle(&admin, share)?;
        executor.kill()?;
        let states = states(&admin)?;
        let held = states.values().filter(|state| ["claimed", "starting", "running"].contains(&state.as_str())).count();
        ensure!(held > 0, "the kill met nothing that was held: {states:?}");
        executor = world.executor("e1", port, &token, 8)?;
    }
    check(&admin, &ledger, &ids)?;
    drop(executor);
    Ok(())
}
