//! Finding again, at an executor's start, what an executor before it had left running, ended or only prepared.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::process::{Folders, ProcessRun, Situation, look, runs_as};
use super::{Recovered, Stage, folder};
use crate::journal::{JOURNAL, Journal, LET_BE};

/// Looks through the run folders. What cannot be understood is put aside; that is never a reason not to begin.
pub(super) fn scan(folders: &Arc<Folders>) -> io::Result<Vec<Recovered>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(&folders.runs)? {
        let path = entry?.path();
        if let Ok(why) = fs::read_to_string(path.join(LET_BE)) {
            match look(&path) {
                Situation::Watched(_) => {
                    tracing::warn!(path = %path.display(), why, "a job that the store does not know runs on and is let be");
                }
                _ => quarantine(&folders.quarantine, &path, &why),
            }
            continue;
        }
        match read(folders, &path) {
            Ok(Some(recovered)) => found.push(recovered),
            // Nothing was told of it yet, or everything: the executor went away while it made or removed it.
            Ok(None) => {
                if let Err(error) = folder::remove(&path) {
                    tracing::warn!(path = %path.display(), %error, "cannot remove a run folder");
                }
            }
            Err(why) => quarantine(&folders.quarantine, &path, &why),
        }
    }
    Ok(found)
}

fn read(folders: &Arc<Folders>, path: &Path) -> Result<Option<Recovered>, String> {
    let bytes = match fs::read(path.join(JOURNAL)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{JOURNAL}: {error}")),
    };
    let Journal { spec, .. } = Journal::read(&bytes).map_err(|error| format!("{JOURNAL}: {error}"))?;
    let run = ProcessRun::new(Arc::clone(folders), &spec);
    let trace = super::environment::trace_in(|name| spec.env.get(name).map(String::as_str));
    let held = run.held();
    if path.file_name().is_none_or(|name| *name != *held.to_string()) {
        return Err(format!("the folder's name is not {held}, which is what is in it"));
    }
    let stage = match look(path) {
        Situation::Watched(pid) => Stage::Started(pid.map(runs_as)),
        Situation::Ended(_) | Situation::Lost(_) => Stage::Started(None),
        Situation::NotStarted if spec.boot == folders.boot => Stage::Prepared,
        Situation::NotStarted => {
            Stage::Lost("the machine was restarted while the job was about to start, and whether it ran is not known".to_owned())
        }
    };
    Ok(Some(Recovered { held, stage, run: Arc::new(run), trace }))
}

/// Moves a run folder out of the way.
pub(super) fn quarantine(into: &Path, path: &Path, why: &str) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let names = std::iter::once(name.clone()).chain((2..1000).map(|number| format!("{name}.{number}")));
    let free = names.map(|name| into.join(name)).find(|target| fs::symlink_metadata(target).is_err());
    let Some(target) = free else {
        tracing::error!(path = %path.display(), why, "the quarantine is full: remove what is in it");
        return;
    };
    // What people need to understand it is not what the job needed: no secret is to lie there for months.
    if let Err(error) = folder::strip_environment(path) {
        tracing::warn!(path = %path.display(), %error, "cannot take the environment out of a journal that goes into quarantine");
    }
    match fs::rename(path, &target) {
        Ok(()) => tracing::warn!(path = %path.display(), moved_to = %target.display(), why, "put a run folder into quarantine"),
        Err(error) => tracing::error!(path = %path.display(), why, %error, "cannot put a run folder into quarantine"),
    }
}
