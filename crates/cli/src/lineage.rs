//! What an apply asks of git: whether the files are those of a commit, and whether that commit is older than the one that was applied last. A
//! pipeline that is run again must not undo a later merge.

use std::path::Path;

use octavius_catalog::git::{self, Provenance};

use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Shell;
use crate::remote_catalog::{Remote, short};

/// How a working tree stands to the commit that was applied last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// It is at the same commit, at one that does not come before it, or one of the two is in no commit.
    Fit,
    /// Its commit is an ancestor of the one that was applied.
    Older,
    /// The commit that was applied is not in this clone, or the history between the two is not.
    Unknown,
}

/// Compares a working tree's commit with the one that was applied last.
///
/// # Errors
/// Where the repository cannot be read.
pub fn age(path: &Path, ours: Option<&Provenance>, remote: &Remote) -> Outcome<Age> {
    let (Some(ours), Some(theirs)) = (ours, remote.commit()) else { return Ok(Age::Fit) };
    if ours.commit == theirs {
        return Ok(Age::Fit);
    }
    let is_older = git::is_ancestor(path, &ours.commit, theirs).map_err(|error| Failure::new(Exit::Usage, error))?;
    Ok(match is_older {
        Some(true) => Age::Older,
        Some(false) => Age::Fit,
        None => Age::Unknown,
    })
}

/// Refuses a commit that is older than the one that was applied last. Where that cannot be known, warns and goes on: a first apply from a
/// shallow clone would be refused otherwise.
///
/// # Errors
/// Where it is older, or the repository cannot be read.
pub fn refuse_older(shell: &Shell, path: &Path, ours: Option<&Provenance>, remote: &Remote) -> Outcome<()> {
    let (at, theirs) = (ours.map_or("", |ours| &ours.short), short(remote.commit().unwrap_or_default()));
    match age(path, ours, remote)? {
        Age::Fit => Ok(()),
        Age::Older => {
            let message = format!(
                "commit {at} is older than {theirs}, from which revision {} was applied: what came after it would be undone",
                remote.number()
            );
            Err(Failure::refused(message).hint("check out the newest commit; or pass --allow-older where going back is meant"))
        }
        Age::Unknown => {
            shell.warn(&format!(
                "whether commit {at} is older than {theirs}, which was applied last, cannot be told: this clone does not have the history \
                 between them (`git fetch --unshallow`, or a deeper checkout)"
            ));
            Ok(())
        }
    }
}

/// Warns of files that are in no commit: nobody can look up later what was applied.
pub fn warn_dirty(shell: &Shell, ours: Option<&Provenance>) {
    if let Some(ours) = ours.filter(|ours| ours.dirty) {
        shell.warn(&format!("the files differ from commit {}: what is applied is in no commit", ours.short));
    }
}

/// Refuses files that are in no commit.
///
/// # Errors
/// Where they differ from their commit, or there is none.
pub fn require_clean(path: &Path, commit: Option<(&str, bool)>) -> Outcome<()> {
    let message = match commit {
        Some((_, false)) => return Ok(()),
        Some((commit, true)) => format!("the files in {} differ from commit {}", path.display(), short(commit)),
        None => format!("the files in {} are in no commit", path.display()),
    };
    Err(Failure::refused(message).hint("commit them, or leave out --require-clean"))
}
