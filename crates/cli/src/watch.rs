//! Watching a catalogue's folder: something is done each time that its files have settled after a change, as `dev` and `apply --watch` do.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify_debouncer_full::notify::{self, RecommendedWatcher, RecursiveMode};
use notify_debouncer_full::{DebounceEventResult, Debouncer, RecommendedCache, new_debouncer};
use octavius_proto::reason;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Shell;

/// How long files have to be quiet before a change counts.
const SETTLE: Duration = Duration::from_millis(150);

/// Pause before something is tried again that failed and may pass without a change: the controller was away, or someone else applied.
const AGAIN: Duration = Duration::from_secs(2);

/// A watch on a folder: a message for each time that it has settled after a change. The folder above is watched too, so that one that is
/// replaced is found again.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    settled: mpsc::Receiver<()>,
    debouncer: Debouncer<RecommendedWatcher, RecommendedCache>,
    /// Whether the folder was there when it was last looked for.
    there: bool,
    /// The failure that was printed last: while a controller is away, it is said once.
    told: Option<String>,
}

/// Watches the catalogue in a folder.
///
/// # Errors
/// Where the system refuses to watch it.
pub fn watch(path: &Path) -> Outcome<Watch> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    // one place: what happens while an apply is under way counts once
    let (sender, settled) = mpsc::channel(1);
    let ours = path.clone();
    let heard = move |events: DebounceEventResult| {
        let matters = match &events {
            // what happens beside the catalogue is nothing to it
            Ok(events) => {
                events.iter().any(|event| !event.kind.is_access() && event.paths.iter().any(|path| path.starts_with(&ours)))
            }
            Err(_) => true,
        };
        if matters {
            let _ = sender.try_send(()); // full: a message is waiting already
        }
    };
    let broken = |error: notify::Error| {
        Failure::new(Exit::Usage, anyhow::Error::new(error).context(format!("cannot watch {}", path.display())))
    };
    let mut debouncer = new_debouncer(SETTLE, None, heard).map_err(broken)?;
    // where the folder above cannot be watched, the catalogue itself can be all the same
    if let (Some(parent), Some(_)) = (path.parent(), path.file_name())
        && let Err(error) = debouncer.watch(parent, RecursiveMode::NonRecursive)
    {
        tracing::warn!(%error, "cannot watch {}: a catalogue that is replaced is not found again", parent.display());
    }
    debouncer.watch(&path, RecursiveMode::Recursive).map_err(broken)?;
    Ok(Watch { path, settled, debouncer, there: true, told: None })
}

impl Watch {
    /// After a change: watches the folder that is there now. Says whether there is one. A folder that was replaced does not show it, not even
    /// by its inode, which a new one may get again: so it is watched anew each time. What changes meanwhile is read after this.
    fn rearm(&mut self, shell: &Shell) -> bool {
        let before = std::mem::replace(&mut self.there, self.path.is_dir());
        let _ = self.debouncer.unwatch(&self.path); // a watch that ended with its folder
        if !self.there {
            if before {
                shell.warn(&format!("{} is gone; applied again when it is back", self.path.display()));
            }
        } else if let Err(error) = self.debouncer.watch(&self.path, RecursiveMode::Recursive) {
            shell.warn(&format!("cannot watch {} any more: {error}", self.path.display()));
        } else if !before {
            shell.note(&format!("{} is back", self.path.display()));
        }
        self.there
    }

    /// Takes note of what came of the work, and prints a failure that has not just been printed. Says how long to wait before it is done
    /// again without a change; none where only a change can help.
    fn note(&mut self, shell: &Shell, done: Outcome<()>) -> Option<Duration> {
        let Err(failure) = done else {
            self.told = None;
            return None;
        };
        let told = failure.error.as_ref().map(|error| format!("{error:#}"));
        if told.is_none() || told != self.told {
            shell.failure(&failure);
            self.told = told;
        }
        (failure.may_pass() || failure.is(reason::HEAD_MOVED)).then_some(AGAIN)
    }

    /// Does `work` at once, then `ready`, then `work` again each time that the files have settled after a change, until `stop`. What
    /// fails is printed, and the next change is waited for.
    ///
    /// # Errors
    /// Where the first try shows that no change of a file can help: the token is refused, or may not apply.
    pub async fn each(
        &mut self,
        shell: &Shell,
        stop: &CancellationToken,
        work: impl AsyncFn() -> Outcome<()>,
        ready: impl FnOnce(),
    ) -> Outcome<()> {
        let mut ready = Some(ready);
        loop {
            let done = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                done = work() => done,
            };
            let is_first = ready.is_some();
            let again = match done {
                Err(failure) if is_first && (failure.exit == Exit::NotSignedIn || failure.is(reason::NOT_PERMITTED)) => {
                    return Err(failure);
                }
                done => self.note(shell, done),
            };
            if let Some(ready) = ready.take() {
                ready();
            }
            loop {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
                    heard = self.settled.recv() => if heard.is_none() { return Ok(()) },
                }
                if self.rearm(shell) {
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn settled(watch: &mut Watch) {
        tokio::time::timeout(Duration::from_secs(10), watch.settled.recv()).await.expect("a change was not heard").unwrap();
    }

    async fn quiet(watch: &mut Watch) {
        while tokio::time::timeout(2 * SETTLE, watch.settled.recv()).await.is_ok() {}
    }

    /// On a disk, where the new folder gets the inode of the old one.
    #[tokio::test]
    async fn a_folder_that_is_made_anew_at_once_is_watched_on() {
        let program = std::env::current_exe().unwrap();
        let above = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let path = above.path().join("catalog");
        let make = || {
            std::fs::create_dir(&path).unwrap();
            std::fs::create_dir(path.join("team")).unwrap();
            std::fs::write(path.join("team/a.yaml"), "a").unwrap();
        };
        make();
        let shell = Shell::new(true);
        let mut watch = watch(&path).unwrap();
        for round in 0..3 {
            std::fs::remove_dir_all(&path).unwrap();
            make();
            settled(&mut watch).await;
            assert!(watch.rearm(&shell), "{round}");
            quiet(&mut watch).await;
            for file in ["b.yaml", "team/a.yaml"] {
                std::fs::write(path.join(file), round.to_string()).unwrap();
                settled(&mut watch).await;
                assert!(watch.rearm(&shell), "{round}");
                quiet(&mut watch).await;
            }
        }
    }

    #[tokio::test]
    async fn a_folder_that_is_replaced_is_watched_on() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("catalog");
        std::fs::create_dir(&path).unwrap();
        let shell = Shell::new(true);
        let mut watch = watch(&path).unwrap();
        std::fs::rename(&path, above.path().join("old")).unwrap();
        settled(&mut watch).await;
        assert!(!watch.rearm(&shell));
        std::fs::create_dir(&path).unwrap();
        settled(&mut watch).await;
        assert!(watch.rearm(&shell));
        quiet(&mut watch).await;
        std::fs::write(path.join("a.yaml"), "a").unwrap();
        settled(&mut watch).await;
        // what lies beside it is not heard
        quiet(&mut watch).await;
        std::fs::write(above.path().join("beside"), "a").unwrap();
        assert!(tokio::time::timeout(3 * SETTLE, watch.settled.recv()).await.is_err());
    }
}
