//! Files written into a folder, all of them or none, and never over one that is there: what `import`, `export` and `init` do.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::error::{Failure, Outcome};

/// Files by their path in a folder, parts separated by `/`.
pub type NewFiles = BTreeMap<String, Vec<u8>>;

/// Whether something has this path.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// That no file would be replaced.
///
/// # Errors
/// Where one is there already, with all that are.
pub fn refuse_existing(dir: &Path, files: &NewFiles) -> Outcome<()> {
    refuse(dir, files.keys().filter(|name| is_there(&dir.join(name))), "is there already")
}

/// The files that are not there yet. Those that are there have to be the same.
///
/// # Errors
/// Where one is there with something else in it, with all that are.
pub fn missing(dir: &Path, files: NewFiles) -> Outcome<NewFiles> {
    let (there, missing): (NewFiles, NewFiles) = files.into_iter().partition(|(name, _)| is_there(&dir.join(name)));
    let is_same = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        path.symlink_metadata().is_ok_and(|found| found.is_file() && found.len() == bytes.len() as u64)
            && fs::read(&path).is_ok_and(|found| found == *bytes)
    };
    let others = there.iter().filter(|(name, bytes)| !is_same(name, bytes)).map(|(name, _)| name);
    refuse(dir, others, "is there already, with something else in it")?;
    Ok(missing)
}

fn refuse<'n>(dir: &Path, names: impl Iterator<Item = &'n String>, what: &str) -> Outcome<()> {
    let paths: Vec<String> = names.map(|name| dir.join(name).display().to_string()).collect();
    let Some((first, rest)) = paths.split_first() else { return Ok(()) };
    let failure = Failure::usage(format!("{first} {what}; nothing was written"));
    Err(Failure { details: rest.iter().map(|path| format!("{path} too")).collect(), ..failure }
        .hint("name another folder, or move these away"))
}

/// Writes files into a folder: all of them or none. They are made aside first, so that whoever interrupts it finds no half of one: in a
/// folder that is there under a name that no catalogue reads, otherwise beside it. Folders that were made for it go again where it fails.
///
/// # Errors
/// Where something else than a folder of its own is in the way, the folder cannot be written, or someone else has made one of the files
/// meanwhile.
pub fn write_all(dir: &Path, files: &NewFiles) -> Outcome<()> {
    if files.is_empty() {
        return Ok(());
    }
    let into = dir.is_dir();
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = if into { dir } else { parent };
    refuse_no_folders(dir, files)?;
    let mut folders = Vec::new();
    let written = (|| {
        make_folders(beside, &mut folders)?;
        let stage = tempfile::Builder::new().prefix(".octavius-new-").tempdir_in(beside)?;
        let made = stage.path().join("files");
        fs::create_dir(&made)?;
        for (name, bytes) in files {
            let path = made.join(name);
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            let mut file = File::create_new(path)?;
            file.write_all(bytes)?;
            file.sync_all()?;
        }
        if into { link_into(&made, dir, files, &mut folders) } else { fs::rename(&made, dir) }
    })();
    if written.is_err() {
        for folder in folders.iter().rev() {
            let _ = fs::remove_dir(folder); // one that someone else has used meanwhile stays
        }
    }
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => {
            Failure::usage(format!("someone else wrote into {} meanwhile; nothing was written", dir.display()))
                .hint("run the same command again")
        }
        _ => Failure::file("write the catalogue in", dir, error),
    })
}

/// That whatever is there already of the folders on the way to a file is one: a link would lead out of the folder that was named.
fn refuse_no_folders(dir: &Path, files: &NewFiles) -> Outcome<()> {
    let refused = |path: &Path, what: &str| {
        Err(Failure::usage(format!("{} is {what}; nothing was written", path.display()))
            .hint("name another folder, or move it away"))
    };
    let above = dir.ancestors().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(there) = above.into_iter().find(|folder| is_there(folder))
        && !there.is_dir()
    {
        return refused(there, "a file, and a folder is needed there");
    }
    for name in files.keys() {
        let below = Path::new(name).ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty());
        for folder in below {
            let path = dir.join(folder);
            match path.symlink_metadata() {
                Ok(found) if found.is_symlink() => return refused(&path, "a link, and a folder of its own is needed there"),
                Ok(found) if !found.is_dir() => return refused(&path, "a file, and a folder is needed there"),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Makes a folder and those above it, and adds the ones that were not there to `made`.
fn make_folders(path: &Path, made: &mut Vec<PathBuf>) -> io::Result<()> {
    let missing = path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !is_there(folder));
    let from = made.len();
    made.extend(missing.map(Path::to_owned));
    made[from..].reverse();
    fs::create_dir_all(path)
}

/// Gives each file its name in a folder that is there, which fails where someone has made one of that name meanwhile; then those before it
/// go again.
fn link_into(from: &Path, dir: &Path, files: &NewFiles, folders: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut linked = Vec::new();
    let mut link = |name: &str| {
        dir.join(name).parent().map_or(Ok(()), |folder| make_folders(folder, folders))?;
        fs::hard_link(from.join(name), dir.join(name))?;
        linked.push(name.to_owned());
        Ok(())
    };
    let result = files.keys().try_for_each(|name| link(name));
    if result.is_err() {
        for name in &linked {
            let _ = fs::remove_file(dir.join(name)); // one that stays is whole, and can be removed by hand
        }
    }
    result
}

/// Whether files can be written into a folder, or into what it would be made in. Leaves nothing behind.
///
/// # Errors
/// Where they cannot.
pub fn is_writable(folder: &Path) -> std::io::Result<()> {
    let there = folder.ancestors().find(|path| path.exists()).filter(|path| !path.as_os_str().is_empty());
    tempfile::tempfile_in(there.unwrap_or(Path::new("."))).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(pairs: &[(&str, &str)]) -> NewFiles {
        pairs.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_folder_appears_whole_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("a/b");
        write_all(&dir, &files(&[("octavius.yaml", "x"), ("sub/job.yaml", "y")])).unwrap();
        assert_eq!(fs::read(dir.join("sub/job.yaml")).unwrap(), b"y");
        assert_eq!(
            (names(&dir), names(&folder.path().join("a"))),
            (vec!["octavius.yaml".into(), "sub".into()], vec!["b".into()])
        );
    }

    #[test]
    fn what_is_there_is_left_and_must_be_the_same() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.yaml"), "same").unwrap();
        fs::write(folder.path().join("b.yaml"), "other").unwrap();
        let wanted = files(&[("a.yaml", "same"), ("b.yaml", "mine"), ("c/d.yaml", "new")]);
        let failure = missing(folder.path(), wanted.clone()).unwrap_err();
        assert!(format!("{:#}", failure.error.unwrap()).contains("b.yaml"), "a.yaml is the same");
        assert!(refuse_existing(folder.path(), &wanted).is_err());
        let left = missing(folder.path(), files(&[("a.yaml", "same"), ("c/d.yaml", "new")])).unwrap();
        assert_eq!(left, files(&[("c/d.yaml", "new")]));
        write_all(folder.path(), &left).unwrap();
        assert_eq!(names(folder.path()), ["a.yaml", "b.yaml", "c"]);
    }

    #[test]
    fn a_name_that_is_taken_meanwhile_takes_the_others_back() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("b.yaml"), "theirs").unwrap();
        let failure = write_all(folder.path(), &files(&[("a/b/c.yaml", "x"), ("a.yaml", "x"), ("b.yaml", "y")])).unwrap_err();
        assert!(format!("{:#}", failure.error.unwrap()).contains("meanwhile"));
        assert_eq!(
            (names(folder.path()), fs::read(folder.path().join("b.yaml")).unwrap()),
            (vec!["b.yaml".into()], b"theirs".to_vec())
        );
    }

    /// `c` is a folder that is there, and a file of it is taken: what was made for the others goes again, and what was there stays.
    #[test]
    fn folders_that_were_made_go_with_the_files() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("c")).unwrap();
        fs::write(folder.path().join("c/d.yaml"), "theirs").unwrap();
        write_all(folder.path(), &files(&[("a/b/x.yaml", "x"), ("c/a/x.yaml", "x"), ("c/d.yaml", "y")])).unwrap_err();
        assert_eq!((names(folder.path()), names(&folder.path().join("c"))), (vec!["c".into()], vec!["d.yaml".into()]));
        // a folder that cannot be written into: here a name that is too long
        let long = "x".repeat(300);
        write_all(&folder.path().join("new/deep/dir"), &files(&[(&long, "x")])).unwrap_err();
        assert_eq!(names(folder.path()), ["c"]);
    }

    #[test]
    fn links_and_files_in_the_way_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, other) = (folder.path().join("dir"), folder.path().join("other"));
        fs::create_dir(&dir).unwrap();
        fs::create_dir(&other).unwrap();
        std::os::unix::fs::symlink(&other, dir.join("link")).unwrap();
        fs::write(dir.join("file"), "x").unwrap();
        for (dir, name, expected) in [
            (dir.clone(), "link/a.yaml", "dir/link is a link, and a folder of its own is needed there"),
            (dir.clone(), "link/sub/a.yaml", "dir/link is a link, and a folder of its own is needed there"),
            (dir.clone(), "file/a.yaml", "dir/file is a file, and a folder is needed there"),
            (dir.join("file"), "a.yaml", "dir/file is a file, and a folder is needed there"),
            (dir.join("file/new"), "a.yaml", "dir/file is a file, and a folder is needed there"),
        ] {
            let failure = write_all(&dir, &files(&[("0.yaml", "x"), (name, "x")])).unwrap_err();
            let told = format!("{:#}", failure.error.unwrap());
            assert!(told.contains(expected), "{name}: {told}");
        }
        assert_eq!((names(&dir), names(&other)), (vec!["file".into(), "link".into()], vec![]));
        // the folder that is named may be a link: that was asked for
        write_all(&dir.join("link"), &files(&[("a.yaml", "x")])).unwrap();
        assert_eq!(names(&other), ["a.yaml"]);
    }
}
