//! `octavius demo`: the whole tour in a temporary folder. Nothing is staged: it runs this program as a person would, against `octavius dev`.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use octavius_catalog::{Limits, load, read_dir};
use octavius_core::JobDefinition;
use octavius_core::definition::ArgumentType;

use crate::Context;
use crate::arguments::shell_quoted;
use crate::daemon::this_program;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;

mod built_in {
    //! The repository's catalogue, as it was when this program was built.
    include!(concat!(env!("OUT_DIR"), "/catalog.rs"));
}

/// Flags of `octavius demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {}

/// The job that the tour runs.
const JOB: &str = "hello-friend";

/// Longest wait for `dev` to stop before it is ended.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// A `dev` that ends with the tour, however the tour ends.
struct Dev {
    child: Child,
    config: PathBuf,
    address: String,
}

impl Drop for Dev {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id())
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let deadline = Instant::now() + STOP_WITHIN;
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the command.
///
/// # Errors
/// Where a step of the tour fails.
pub fn run(context: &Context, _args: &DemoArgs) -> Outcome {
    let folder = tempfile::Builder::new().prefix("octavius-demo-").tempdir();
    let folder = folder.map_err(|error| Failure::file("make a folder in", &std::env::temp_dir(), error))?;
    let work = folder.path().join("work");
    let job = prepare(&work.join("catalog"))?;
    let dev = start_dev(folder.path(), &work)?;
    let shell = &context.shell;
    shell.note(&format!("a controller and an executor run on {}, in a temporary folder", dev.address));
    let mut execute = vec!["execute".to_owned(), JOB.to_owned()];
    if let Some(argument) = example_argument(&job) {
        execute.extend(["--arg".to_owned(), argument]);
    }
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let steps = [
        (words("validate catalog/"), Exit::Done),
        (words("diff catalog/"), Exit::No),
        (words("apply catalog/"), Exit::Done),
        (words("list"), Exit::Done),
        (execute, Exit::Done),
        (words("getlogs @latest -f"), Exit::Done),
        (words("status @latest"), Exit::Done),
    ];
    for (arguments, expected) in steps {
        let shown: Vec<String> = arguments.iter().map(|word| shell_quoted(word)).collect();
        shell.line(&format!("\n$ octavius {}", shown.join(" ")))?;
        let status = step(&work, folder.path(), Some(&dev.config))?.args(&arguments).status();
        let status =
            status.map_err(|error| Failure::new(Exit::Fault, anyhow::Error::new(error).context("cannot run this program")))?;
        if status.code() != Some(i32::from(expected.code())) {
            return Err(Failure::fault(format!("`octavius {}` ended with {status}", shown.join(" "))));
        }
    }
    shell.line("\nthat is all of it; to go on: octavius dev --catalog catalog/")?;
    Ok(Exit::Done)
}

/// A command of the tour: this program, with an environment of its own.
fn step(work: &Path, home: &Path, config: Option<&Path>) -> Outcome<Command> {
    let mut command = Command::new(this_program()?);
    for name in
        crate::env::ALL.iter().filter(|name| !matches!(**name, crate::env::NO_COLOR | crate::env::TERM | crate::env::FASTER))
    {
        command.env_remove(name);
    }
    // nobody is asked on a tour
    command.current_dir(work).env(crate::env::HOME, home).env(crate::env::NO_INPUT, "1");
    if let Some(config) = config {
        command.env(crate::env::CONFIG, config);
    }
    Ok(command)
}

fn start_dev(folder: &Path, work: &Path) -> Outcome<Dev> {
    let data_dir = folder.join("dev");
    let mut command = step(work, folder, None)?;
    command.args(["dev", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&data_dir);
    // what it has to say matters only where it does not start
    let log_path = folder.join("dev.log");
    let log = fs::File::create(&log_path).map_err(|error| Failure::file("write", &log_path, error))?;
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn();
    let mut child =
        spawned.map_err(|error| Failure::new(Exit::Fault, anyhow::Error::new(error).context("cannot run this program")))?;
    let stdout = child.stdout.take();
    // from here on it is stopped, whatever happens
    let mut dev = Dev { child, config: data_dir.join(crate::config::FILE_NAME), address: String::new() };
    let mut ready = String::new();
    if let Some(stdout) = stdout {
        BufReader::new(stdout)
            .read_line(&mut ready)
            .map_err(|error| Failure::new(Exit::Fault, anyhow::Error::new(error).context("cannot read from `octavius dev`")))?;
    }
    let address = ready.strip_prefix("ready: octavius dev on ").and_then(|rest| rest.split(',').next());
    let said = || fs::read_to_string(&log_path).unwrap_or_default();
    let failed = || Failure {
        details: said().lines().map(crate::sanitize::line).collect(),
        ..Failure::fault("`octavius dev` did not start")
    };
    dev.address = address.ok_or_else(failed)?.to_owned();
    Ok(dev)
}

/// Puts a catalogue into the folder: that of the working directory where it has the tour's job, else the one in this program. Returns the
/// job.
fn prepare(target: &Path) -> Outcome<JobDefinition> {
    let here = Path::new("catalog");
    if job_in(here).is_some() {
        copy(here, target).map_err(|error| Failure::file("copy", here, error))?;
    } else {
        for (name, bytes) in built_in::FILES {
            let path = target.join(name);
            let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, bytes));
            written.map_err(|error| Failure::file("write", &path, error))?;
        }
    }
    job_in(target).ok_or_else(|| Failure::fault(format!("the catalogue in this program has no job `{JOB}`")))
}

fn job_in(catalog: &Path) -> Option<JobDefinition> {
    let loaded = load(&read_dir(catalog, &Limits::default()).ok()?);
    let sound = !loaded.has_errors() && loaded.catalog.is_some();
    let job = loaded.jobs.iter().filter(|_| sound).find(|job| job.name().as_str() == JOB)?;
    Some(job.definition.as_ref().clone())
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        } else if kind.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// A value for the job's first required argument, or its first.
fn example_argument(job: &JobDefinition) -> Option<String> {
    let arguments = &job.env_vars.args;
    let argument = arguments.iter().find(|argument| argument.required).or_else(|| arguments.first())?;
    let value = match (argument.choices.first(), argument.kind) {
        (Some(choice), _) => choice.0.as_str(),
        (None, ArgumentType::String) => "Ada",
        (None, ArgumentType::Integer | ArgumentType::Number) => "3",
        (None, ArgumentType::Boolean) => "true",
        (None, ArgumentType::Duration) => "1s",
    };
    Some(format!("{}={value}", argument.name))
}
