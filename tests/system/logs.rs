//! Logs that outlive their executor and never stay in the store: archived in an S3 that stops, dies and is damaged.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use octavius_core::Timestamp;
use octavius_tests::{Client, Daemon, Etcd, Random, S3, Special, World, eventually};
use rustix::process::Signal;

/// The catalogue of one job, which runs a shell script of its argument.
const CATALOG: &str = "catalog: logs\n";
const SHELL: &str = "name: shell\ncommand: [sh, -c, 'eval \"$script\"']\nenv_vars: {args: [{name: script, required: true}]}\n";

/// A world on an etcd, whose keys can be looked at, and an S3.
struct Place {
    etcd: Etcd,
    s3: S3,
    world: World,
}

impl Place {
    fn new() -> Result<Self> {
        let (etcd, s3) = (Etcd::single()?, S3::start()?);
        let mut world = World::over_etcd(&etcd.endpoints())?;
        world = world.variable("OCTAVIUS_ARCHIVE", &s3.url("octavius"));
        for (name, value) in s3.environment() {
            world = world.variable(name, &value);
        }
        Ok(Self { etcd, s3, world })
    }

    /// The keys of the store whose name contains this.
    fn keys(&self, part: &str) -> Result<Vec<String>> {
        octavius_tests::cluster::runtime()?.block_on(async {
            let mut client = etcd_client::Client::connect(self.etcd.endpoints(), None).await?;
            let options = etcd_client::GetOptions::new().with_prefix().with_keys_only();
            let found = client.get("/octavius/v1/", Some(options)).await?;
            let keys = found.kvs().iter().map(|pair| Ok(pair.key_str()?.to_owned())).collect::<Result<Vec<_>>>()?;
            Ok(keys.into_iter().filter(|key| key.contains(part)).collect())
        })
    }

    /// Waits until no byte of this execution's log is in the store.
    fn until_archived(&self, id: &str) -> Result<()> {
        eventually("the log is archived", || {
            let left = self.keys("/at/")?;
            let left: Vec<_> = left.iter().filter(|key| key.contains(id)).collect();
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
    }
}

/// A controller with the catalogue applied, and an executor.
fn begin<'w>(world: &'w World) -> Result<(Daemon, Client<'w>, Daemon)> {
    world.write("catalog/octavius.yaml", CATALOG)?;
    world.write("catalog/shell.yaml", SHELL)?;
    let (controller, port) = world.controller("store", 0)?;
    let admin = world.admin(port)?;
    admin.run(&["apply", "catalog"])?.expect(0)?;
    let executor = world.executor("e1", port, &admin.registration()?, 8)?;
    Ok((controller, admin, executor))
}

fn run(client: &Client<'_>, script: &str) -> Result<String> {
    client.execute("shell", &["--arg", &format!("script={script}")])
}

/// A file of random bytes of all kinds: NULs, line breaks, and what is no UTF-8; it ends with a line break.
fn noise(world: &World, name: &str, random: &mut Random, size: usize) -> Result<Vec<u8>> {
    let mut bytes: Vec<u8> = (0..size).map(|_| random.below(256) as u8).collect();
    bytes.push(b'\n');
    std::fs::write(world.path(name), &bytes)?;
    Ok(bytes)
}

/// What a command prints, as it is.
fn bytes(client: &Client<'_>, arguments: &[&str]) -> Result<Vec<u8>> {
    let output = client.command(arguments).output()?;
    ensure!(output.status.code() == Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// Waits until a log has come so far.
fn until_printed(client: &Client<'_>, id: &str, expected: &[u8]) -> Result<()> {
    eventually("it prints", || {
        let log = bytes(client, &["getlogs", id])?;
        ensure!(log == expected, "{} bytes of {}", log.len(), expected.len());
        Ok(())
    })
}

/// The last lines of a log, as `tail -n` has them.
fn last_lines(log: &[u8], lines: usize) -> &[u8] {
    let breaks: Vec<_> =
        log[..log.len() - 1].iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
    &log[breaks[breaks.len() - lines]..]
}

/// Same bytes: not told in full where they are not.
fn same(got: &[u8], expected: &[u8], what: &str) -> Result<()> {
    let at = got.iter().zip(expected).position(|(got, expected)| got != expected);
    ensure!(got == expected, "{what}: {} bytes, expected {}, other at {at:?}", got.len(), expected.len());
    Ok(())
}

#[test]
fn a_log_is_read_from_the_archive_when_its_executor_and_its_folder_are_gone() -> Result<()> {
    let place = Place::new()?;
    let world = &place.world;
    let mut random = Random::new(11);
    let (early, late) = (noise(world, "early", &mut random, 300_000)?, noise(world, "late", &mut random, 90_000)?);
    let (controller, admin, executor) = begin(world)?;
    let folder = world.path("").display().to_string();
    let id = run(&admin, &format!("cd '{folder}'; cat early; until [ -e gate ]; do sleep 0.1; done; cat late"))?;
    until_printed(&admin, &id, &early)?;
    world.write("gate", "")?;
    let whole = [early.clone(), late.clone()].concat();
    same(&bytes(&admin, &["getlogs", &id, "-f"])?, &whole, "followed to its end")?;
    executor.kill()?;
    std::fs::remove_dir_all(world.path("e1"))?;
    place.until_archived(&id)?;
    ensure!(place.s3.objects()?.iter().any(|(key, _)| key.contains(&id)), "{:?}", place.s3.objects()?);

    same(&bytes(&admin, &["getlogs", &id])?, &whole, "from the archive")?;
    for lines in [1, 7, 500] {
        let tail = bytes(&admin, &["getlogs", &id, "--tail", &lines.to_string()])?;
        same(&tail, last_lines(&whole, lines), &format!("the last {lines} lines"))?;
    }
    let file = world.path("out").display().to_string();
    bytes(&admin, &["getlogs", &id, "--output-file", &file])?;
    same(&std::fs::read(&file)?, &whole, "in a file")?;
    ensure!(!controller.said().contains(place.s3.secret()), "a secret is in the log");
    Ok(())
}

#[test]
fn jobs_run_on_and_are_read_while_the_archive_is_paused_and_dead() -> Result<()> {
    let mut place = Place::new()?;
    place.world = place.world.faster(5);
    let mut random = Random::new(12);
    let log = noise(&place.world, "log", &mut random, 400_000)?;
    let script = format!("cat '{}'", place.world.path("log").display());
    let ids = {
        let (_controller, admin, _executor) = begin(&place.world)?;
        let mut ids = Vec::new();
        place.s3.signal(Signal::STOP)?;
        ids.extend([run(&admin, &script)?, run(&admin, &script)?]);
        for id in &ids {
            same(&bytes(&admin, &["getlogs", id, "-f"])?, &log, "with an archive that is paused")?;
        }
        ids
    };
    place.s3.kill()?;
    // a controller begins only where its archive answers: one that is there already goes on without
    place.s3.restart()?;
    let (_controller, port) = place.world.controller("store", 0)?;
    let admin = place.world.admin(port)?;
    let _executor = place.world.executor("e1", port, "", 8)?;
    place.s3.kill()?;
    let id = run(&admin, &script)?;
    same(&bytes(&admin, &["getlogs", &id, "-f"])?, &log, "with an archive that is dead")?;
    let ids = [ids, vec![id]].concat();
    place.s3.restart()?;
    for id in &ids {
        place.until_archived(id)?;
        same(&bytes(&admin, &["getlogs", id])?, &log, "after all")?;
    }
    Ok(())
}

#[test]
fn a_damaged_object_is_told_and_no_wrong_byte_is_printed() -> Result<()> {
    let place = Place::new()?;
    let log = noise(&place.world, "log", &mut Random::new(13), 500_000)?;
    let (_controller, admin, _executor) = begin(&place.world)?;
    let id = run(&admin, &format!("cat '{}'", place.world.path("log").display()))?;
    admin.run(&["status", &id, "--wait"])?.expect(0)?;
    place.until_archived(&id)?;
    same(&bytes(&admin, &["getlogs", &id])?, &log, "before the damage")?;
    let objects: Vec<_> = place.s3.objects()?.into_iter().filter(|(key, _)| key.contains(&id)).collect();
    let (key, path) = objects.last().context("no object")?;
    flip(path)?;
    for arguments in [&["getlogs", &id][..], &["getlogs", &id, "-f"]] {
        let output = admin.command(arguments).output()?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code().is_some_and(|code| code != 0), "{told}");
        ensure!(told.contains("damaged") && told.contains(key.rsplit('/').next().context("no name")?), "{key}: {told}");
        ensure!(log.starts_with(&output.stdout) && output.stdout.len() < log.len(), "{} bytes: {told}", output.stdout.len());
    }
    Ok(())
}

/// Flips one bit in the middle of a file.
fn flip(path: &Path) -> Result<()> {
    let file = std::fs::File::options().read(true).write(true).open(path)?;
    let (mut byte, at) = ([0], file.metadata()?.len() / 2);
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 0x10], at)?;
    Ok(())
}

#[test]
fn a_controller_refuses_an_archive_that_is_not_its_stores() -> Result<()> {
    let place = Place::new()?;
    let (controller, port) = place.world.controller("store", 0)?;
    controller.kill()?;
    let refused = |what: &str, world: &World, archive: &str, expected: &str| -> Result<()> {
        let special = Special { variables: &[("OCTAVIUS_ARCHIVE", archive)], ..Special::default() };
        let told = match world.controller_with("store", port, &special) {
            Ok(_) => anyhow::bail!("{what}: it began"),
            Err(error) => format!("{error:#}"),
        };
        // before that stands how it was called, in its environment
        let (_, told) = told.split_once(" ended with ").with_context(|| told.clone())?;
        ensure!(told.contains("exit status: 3") && told.contains(expected), "{what}: {told}");
        ensure!(told.contains("hint: all controllers of a store name the same archive"), "{what}: {told}");
        ensure!(!told.contains(place.s3.secret()), "{what}: {told}");
        Ok(())
    };
    let ours = place.s3.url("octavius");
    refused("an empty archive", &place.world, &place.s3.url("other"), &ours)?;
    refused("no archive", &place.world, "none", &ours)?;
    let folder = place.world.path("archive").display().to_string();
    refused("a folder", &place.world, &folder, &ours)?;
    let mut other = World::new()?;
    for (name, value) in place.s3.environment() {
        other = other.variable(name, &value);
    }
    refused("another store", &other, &ours, &format!("the archive {ours} is not this store's"))?;
    place.world.controller("store", port)?;
    Ok(())
}

#[test]
fn followers_have_the_same_bytes_whenever_they_began_and_whichever_controller_dies() -> Result<()> {
    let place = Place::new()?;
    let world = &place.world;
    let (first, admin, _executor_of_first) = begin(world)?;
    let (second, port) = world.controller("second", 0)?;
    let token = std::fs::read_to_string(world.path("admin.token"))?;
    let first_host = std::fs::read_to_string(admin.config())?;
    let first_host = first_host.lines().find_map(|line| line.strip_prefix("CP_HOST: ")).context("no host")?.to_owned();
    let hosts = format!("{first_host},127.0.0.1:{port}");
    let both = world.client_of("both", &hosts, token.trim())?;
    let executor = world.executor_of("e2", &hosts, &admin.registration()?, 8, &Special::default())?;
    drop(_executor_of_first);
    let log = noise(world, "log", &mut Random::new(14), 200_000)?;
    let folder = world.path("").display().to_string();
    let wait = |gate: &str| format!("until [ -e {gate} ]; do sleep 0.05; done");
    let id = run(&both, &format!("cd '{folder}'; {}; cat log; {}; cat log; {}; cat log", wait("g1"), wait("g2"), wait("g3")))?;
    let whole = log.repeat(3);
    let follow = || -> Result<_> {
        let command = &mut both.command(&["getlogs", &id, "-f"]);
        Ok(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    };
    let mut followers = vec![];
    let mut gates = ["g1", "g2", "g3"].into_iter();
    let mut open = |followers: &mut Vec<_>| -> Result<()> {
        followers.push(std::thread::spawn({
            let follower = follow()?;
            move || follower.wait_with_output()
        }));
        world.write(gates.next().context("no gate")?, "")?;
        Ok(())
    };
    open(&mut followers)?;
    until_printed(&both, &id, &log)?;
    first.kill()?;
    open(&mut followers)?;
    until_printed(&both, &id, &log.repeat(2))?;
    let port: u16 = first_host.rsplit(':').next().context("no port")?.parse()?;
    let (_first, _) = world.controller("store", port)?;
    second.kill()?;
    open(&mut followers)?;
    eventually("it ends", || {
        let state = both.status(&id)?["state"].clone();
        ensure!(state == "succeeded", "{state}");
        Ok(())
    })?;
    executor.kill()?;
    for (number, follower) in followers.into_iter().enumerate() {
        let output = follower.join().map_err(|_| anyhow::anyhow!("a follower panicked"))??;
        let told = String::from_utf8_lossy(&output.stderr);
        same(&output.stdout, &whole, &format!("follower {number}: {told}"))?;
        ensure!(output.status.code() == Some(0) && told.contains("succeeded after "), "follower {number}: {told}");
    }
    same(&bytes(&both, &["getlogs", &id, "-f"])?, &whole, "after the end")?;
    place.until_archived(&id)?;
    same(&bytes(&both, &["getlogs", &id])?, &whole, "in the archive")
}

/// Each line has the time when the executor read it, live and from the archive; what was printed since is found by it.
#[test]
fn lines_have_the_time_when_they_were_printed_and_are_found_by_it() -> Result<()> {
    let place = Place::new()?;
    let world = &place.world;
    let mut random = Random::new(15);
    let (early, late) = (noise(world, "early", &mut random, 300_000)?, noise(world, "late", &mut random, 90_000)?);
    let (_controller, admin, _executor) = begin(world)?;
    let folder = world.path("").display().to_string();
    let begun = Timestamp::now();
    let id = run(&admin, &format!("cd '{folder}'; cat early; until [ -e gate ]; do sleep 0.1; done; cat late"))?;
    until_printed(&admin, &id, &early)?;
    let between = Timestamp::now();
    world.write("gate", "")?;
    let whole = [early.clone(), late.clone()].concat();
    let breaks = |log: &[u8]| log.iter().filter(|byte| **byte == b'\n').count();
    let check = |arguments: &[&str], expected: &[u8]| -> Result<()> {
        let stamped = bytes(&admin, &[&["getlogs", &id, "--timestamps"], arguments].concat())?;
        let lines: Vec<&[u8]> = stamped.split_inclusive(|byte| *byte == b'\n').collect();
        let early_lines = breaks(expected).saturating_sub(breaks(&late));
        for (number, line) in lines.iter().enumerate() {
            let stamp = std::str::from_utf8(line.get(..25).context("no stamp")?)?;
            let time: Timestamp = stamp.trim_end().parse().with_context(|| format!("{arguments:?}: {stamp:?}"))?;
            // a stamp is cut to the millisecond
            let fits = if number < early_lines { time < between } else { time.as_millisecond() >= between.as_millisecond() };
            ensure!(
                fits && time.as_millisecond() >= begun.as_millisecond(),
                "{arguments:?}: line {number} at {stamp}, {between}"
            );
        }
        same(&lines.iter().flat_map(|line| line[25..].to_vec()).collect::<Vec<_>>(), expected, "without its stamps")
    };
    check(&["-f"], &whole)?;
    for archived in [false, true] {
        if archived {
            place.until_archived(&id)?;
        }
        check(&[], &whole)?;
        check(&["--tail", "700"], last_lines(&whole, 700))?;
        check(&["--since", &between.to_string()], &late)?;
        same(&bytes(&admin, &["getlogs", &id, "--since", &between.to_string()])?, &late, "since between")?;
        same(&bytes(&admin, &["getlogs", &id, "--since", &begun.to_string()])?, &whole, "since its beginning")?;
        same(&bytes(&admin, &["getlogs", &id, "--since", "1h"])?, &whole, "since an hour ago")?;
        let now = admin.run(&["getlogs", &id, "--since", &Timestamp::now().to_string()])?.expect(0)?;
        ensure!(now.stdout.is_empty() && now.stderr == "nothing was printed since then\n", "{now:?}");
    }
    Ok(())
}
