//! Removing run folders, whatever jobs have made of them, and taking secrets out of those that are kept.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use crate::journal::JOURNAL;

/// What the environment's part of a journal's first line begins with.
const ENVIRONMENT: &[u8] = b"\"env\"";

/// Removes a run folder, also where a job has taken away its own right to write, as package managers do in caches.
pub(super) fn remove(folder: &Path) -> io::Result<()> {
    // The journal first: a folder without one is nothing.
    let remove = || match fs::remove_file(folder.join(JOURNAL)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::remove_dir_all(folder),
    };
    remove().or_else(|_| {
        open_up(folder);
        remove()
    })
}

/// Gives the owner every right to a folder and the folders in it. What fails is told by the removal that follows.
fn open_up(folder: &Path) {
    // The folder's own kind is asked, not that of what a link leads to: nothing outside is touched.
    let Ok(found) = fs::symlink_metadata(folder) else { return };
    if !found.is_dir() {
        return;
    }
    let mode = found.permissions().mode();
    if mode & 0o700 != 0o700 {
        let _ = fs::set_permissions(folder, fs::Permissions::from_mode(mode | 0o700));
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        open_up(&entry.path());
    }
}

/// Takes the environment out of the folder's journal, if it has one.
pub(super) fn strip_environment(folder: &Path) -> io::Result<()> {
    let journal = folder.join(JOURNAL);
    let bytes = match fs::read(&journal) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
        Err(error) => return Err(error),
    };
    let stripped = stripped(&bytes);
    if stripped == bytes {
        return Ok(());
    }
    let new = folder.join("journal.stripped");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&stripped)?;
    fs::rename(&new, &journal)
}

fn stripped(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    let (first, rest) = bytes.split_at(end);
    match serde_json::from_slice(first) {
        Ok(serde_json::Value::Object(mut spec)) => {
            if spec.remove("env").is_none() {
                return bytes.to_vec();
            }
            spec.insert("env".to_owned(), serde_json::json!({}));
            [serde_json::Value::Object(spec).to_string().as_bytes(), rest].concat()
        }
        // Whatever it is, nothing from where an environment may begin is kept.
        _ => match first.windows(ENVIRONMENT.len()).position(|part| part == ENVIRONMENT) {
            Some(begin) => [&first[..begin], rest].concat(),
            None => bytes.to_vec(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_environment_is_left_and_the_rest_is() {
        for (journal, expected) in [
            ("{\"env\":{\"KEY\":\"hunter2\"},\"version\":1}\n42\n{}\n", "{\"env\":{},\"version\":1}\n42\n{}\n"),
            ("{\"version\":1,\"env\":{\"KEY\":\"hun", "{\"version\":1,"),
            ("{\"version\": 99}\n", "{\"version\": 99}\n"),
            ("{", "{"),
        ] {
            assert_eq!(String::from_utf8(stripped(journal.as_bytes())).unwrap(), expected);
        }
        let folder = tempfile::tempdir().unwrap();
        strip_environment(folder.path()).unwrap();
        fs::write(folder.path().join(JOURNAL), "{\"env\":{\"KEY\":\"hunter2\"}}\n").unwrap();
        strip_environment(folder.path()).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join(JOURNAL)).unwrap(), "{\"env\":{}}\n");
    }

    #[test]
    fn folders_without_rights_are_opened_up_and_what_links_lead_to_is_not() {
        let place = tempfile::tempdir().unwrap();
        let (outside, run) = (place.path().join("outside"), place.path().join("run"));
        let inner = run.join("work/cache");
        fs::create_dir_all(&inner).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(inner.join("file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, run.join("link")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        for path in [&outside, &inner, &run.join("work")] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o500)).unwrap();
        }
        open_up(&run);
        assert_eq!((mode(&run.join("work")), mode(&inner), mode(&outside)), (0o700, 0o700, 0o500));
        remove(&run).unwrap();
        assert!(!run.exists() && outside.exists());
    }
}
