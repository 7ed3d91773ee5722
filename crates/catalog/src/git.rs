//! What git knows about a catalogue: which commit it stands at, whether that is all, and what it held at another one. The only room
//! for libgit2, whose check of a repository's owner stays on.

use std::path::{Path, PathBuf};

use git2::{ObjectType, Repository, StatusOptions, TreeWalkMode, TreeWalkResult};

use crate::diagnostic::Diagnostic;
use crate::source::{Files, Limits, symlink};

/// Where a catalogue comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// The commit that the working tree stands at: 40 hexadecimal characters.
    pub commit: String,
    /// Its first seven characters.
    pub short: String,
    /// Whether files of the catalogue differ from that commit, or are not in it.
    pub dirty: bool,
    /// The URL of the remote `origin`, without user and password; empty where there is none.
    pub repository: String,
    /// Who wrote the commit: `Name <address>`.
    pub author: String,
    /// The catalogue's path from the repository's root, parts separated by `/`; empty where it is the root.
    pub prefix: String,
}

/// Why git could not answer.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// The repository belongs to another user.
    #[error("the repository at {} belongs to another user; \
             `git config --global --add safe.directory {}` accepts it", .0.display(), .0.display())]
    Owner(PathBuf),
    /// The revision is not known.
    #[error("no revision `{revision}` in the repository at {}", path.display())]
    Revision {
        /// What was asked for.
        revision: String,
        /// The repository.
        path: PathBuf,
    },
    /// The folder is in no repository.
    #[error("{} is in no git repository", .0.display())]
    NoRepository(PathBuf),
    /// Anything else.
    #[error("git failed at {}", path.display())]
    Other {
        /// The folder.
        path: PathBuf,
        /// What libgit2 said.
        source: git2::Error,
    },
}

impl GitError {
    fn of(path: &Path, source: git2::Error) -> Self {
        if source.code() == git2::ErrorCode::Owner {
            Self::Owner(path.to_owned())
        } else {
            Self::Other { path: path.to_owned(), source }
        }
    }
}

/// The repository around `dir`; `None` where there is none.
fn open(dir: &Path) -> Result<Option<Repository>, GitError> {
    match Repository::discover(dir) {
        Ok(repository) => Ok(Some(repository)),
        Err(error) if error.code() == git2::ErrorCode::NotFound => Ok(None),
        Err(error) => Err(GitError::of(dir, error)),
    }
}

/// The path of `dir` from the root of the repository's working tree.
fn prefix_of(repository: &Repository, dir: &Path) -> Result<String, GitError> {
    let other = |message: &str| GitError::Other { path: dir.to_owned(), source: git2::Error::from_str(message) };
    let root = repository.workdir().ok_or_else(|| other("the repository has no working tree"))?;
    let canonical = |path: &Path| path.canonicalize().map_err(|error| other(&error.to_string()));
    let (root, dir) = (canonical(root)?, canonical(dir)?);
    let relative = dir.strip_prefix(&root).map_err(|_| other("the folder is outside of the working tree"))?;
    let parts: Vec<_> = relative.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    Ok(parts.join("/"))
}

/// Where the catalogue in folder `dir` comes from; `None` outside a repository, and in one without a commit.
///
/// # Errors
/// Where the repository belongs to another user, or cannot be read.
pub fn provenance(dir: &Path) -> Result<Option<Provenance>, GitError> {
    let fail = |error| GitError::of(dir, error);
    let Some(repository) = open(dir)? else { return Ok(None) };
    let head = match repository.head() {
        Ok(head) => head.peel_to_commit().map_err(fail)?,
        Err(error) if matches!(error.code(), git2::ErrorCode::UnbornBranch | git2::ErrorCode::NotFound) => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    let prefix = prefix_of(&repository, dir)?;
    let mut options = StatusOptions::new();
    options.include_untracked(true).recurse_untracked_dirs(true).exclude_submodules(true);
    if !prefix.is_empty() {
        options.disable_pathspec_match(true).pathspec(&prefix);
    }
    let dirty = !repository.statuses(Some(&mut options)).map_err(fail)?.is_empty();
    let repository_url = match repository.find_remote("origin") {
        Ok(remote) => without_credentials(&String::from_utf8_lossy(remote.url_bytes())),
        Err(_) => String::new(),
    };
    let author = head.author();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let commit = head.id().to_string();
    Ok(Some(Provenance {
        short: commit[..7].to_owned(),
        commit,
        dirty,
        repository: repository_url,
        author: format!("{} <{}>", text(author.name_bytes()), text(author.email_bytes())),
        prefix,
    }))
}

/// A URL without what stands before `@` in its authority, without query and without fragment: each of them may hold a token.
fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        // `git@host:path`: the name says how to sign in, not who, and is part of the address.
        return url.split(['?', '#']).next().unwrap_or_default().to_owned();
    };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = rest.split_once('/').map_or((rest, None), |(authority, path)| (authority, Some(path)));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    path.map_or_else(|| format!("{scheme}://{host}"), |path| format!("{scheme}://{host}/{path}"))
}

/// Whether `older` is an ancestor of `newer`, or the same; `None` where one of them is not known here, as in a shallow clone.
///
/// # Errors
/// Where the repository belongs to another user, or cannot be read.
pub fn is_ancestor(dir: &Path, older: &str, newer: &str) -> Result<Option<bool>, GitError> {
    let Some(repository) = open(dir)? else { return Ok(None) };
    let known = |commit: &str| {
        let id = git2::Oid::from_str(commit).ok()?;
        repository.find_commit(id).ok().map(|commit| commit.id())
    };
    let (Some(older), Some(newer)) = (known(older), known(newer)) else { return Ok(None) };
    if older == newer {
        return Ok(Some(true));
    }
    match repository.graph_descendant_of(newer, older) {
        // A shallow clone ends before the answer is known.
        Ok(false) if repository.is_shallow() => Ok(None),
        Ok(is_descendant) => Ok(Some(is_descendant)),
        Err(error) if error.code() == git2::ErrorCode::NotFound => Ok(None),
        Err(error) => Err(GitError::of(dir, error)),
    }
}

/// The files of folder `dir` as they were at a revision: a branch, a tag, a commit, `HEAD~2`. Symlinks and submodules are findings.
/// A folder that was not there then has no files.
///
/// # Errors
/// Where `dir` is in no repository or one of another user, or the revision is not known.
pub fn files_at(dir: &Path, revision: &str, limits: &Limits) -> Result<Files, GitError> {
    let fail = |error| GitError::of(dir, error);
    let repository = open(dir)?.ok_or_else(|| GitError::NoRepository(dir.to_owned()))?;
    let unknown = |_| GitError::Revision { revision: revision.to_owned(), path: dir.to_owned() };
    let commit = repository.revparse_single(revision).and_then(|object| object.peel_to_commit()).map_err(unknown)?;
    let prefix = prefix_of(&repository, dir)?;
    let mut tree = commit.tree().map_err(fail)?;
    if !prefix.is_empty() {
        let entry = match tree.get_path(Path::new(&prefix)) {
            Ok(entry) => entry,
            Err(error) if error.code() == git2::ErrorCode::NotFound => return Ok(Files::default().at(&prefix)),
            Err(error) => return Err(fail(error)),
        };
        tree = entry.to_object(&repository).and_then(|object| object.peel_to_tree()).map_err(fail)?;
    }
    let mut files = Files::default();
    let mut found = Vec::new();
    tree.walk(TreeWalkMode::PreOrder, |folder, entry| {
        let name = String::from_utf8_lossy(entry.name_bytes());
        let path = format!("{folder}{name}");
        let is_skipped = name.starts_with(['.', '_']);
        match (entry.filemode(), entry.kind()) {
            (GIT_LINK, _) if !is_skipped => files.findings.push(symlink(&path)),
            (_, Some(ObjectType::Commit)) if !is_skipped => {
                let hint = "a catalogue is one repository: copy the files";
                files.findings.push(Diagnostic::of_file(&path, "submodule", "submodules are not followed", hint));
            }
            (GIT_LINK, _) | (_, Some(ObjectType::Commit)) => {}
            (_, Some(ObjectType::Tree)) if is_skipped => return TreeWalkResult::Skip,
            (_, Some(ObjectType::Blob)) if files.wants(&path) => found.push((path, entry.id())),
            _ => {}
        }
        TreeWalkResult::Ok
    })
    .map_err(fail)?;
    let mut read = Vec::with_capacity(found.len());
    for (path, id) in found {
        let blob = repository.find_blob(id).map_err(fail)?;
        let content = blob.content();
        // One byte over the limit is enough for the finding.
        read.push((path, content[..content.len().min(limits.file_bytes.saturating_add(1))].to_vec()));
    }
    let mut kept = Files::new(read, limits);
    kept.findings.append(&mut files.findings);
    Ok(kept.at(&prefix))
}

/// The file mode that git gives to symbolic links.
const GIT_LINK: i32 = 0o120_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn repository() -> (tempfile::TempDir, Repository) {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::init(dir.path()).unwrap();
        (dir, repository)
    }

    fn commit(repository: &Repository, files: &[(&str, &str)]) -> String {
        let root = repository.workdir().unwrap();
        let mut index = repository.index().unwrap();
        for (path, text) in files {
            std::fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            std::fs::write(root.join(path), text).unwrap();
            index.add_path(Path::new(path)).unwrap();
        }
        index.write().unwrap();
        let tree = repository.find_tree(index.write_tree().unwrap()).unwrap();
        let author = git2::Signature::now("Ann", "ann@example.org").unwrap();
        let parent = repository.head().ok().map(|head| head.peel_to_commit().unwrap());
        let parents: Vec<_> = parent.iter().collect();
        repository.commit(Some("HEAD"), &author, &author, "message", &tree, &parents).unwrap().to_string()
    }

    #[test]
    fn a_commit_has_an_author_a_place_and_a_state() {
        let (dir, repository) = repository();
        assert_eq!(provenance(dir.path()).unwrap(), None);
        let first = commit(&repository, &[("catalog/octavius.yaml", "catalog: x\n"), ("README.md", "x\n")]);
        repository.remote("origin", "https://ann:secret@git.example.org/team/jobs.git?token=x").unwrap();
        let catalog = dir.path().join("catalog");
        let found = provenance(&catalog).unwrap().unwrap();
        assert_eq!((found.commit.as_str(), found.dirty, found.prefix.as_str()), (first.as_str(), false, "catalog"));
        assert_eq!(found.repository, "https://git.example.org/team/jobs.git");
        assert_eq!(found.author, "Ann <ann@example.org>");
        std::fs::write(dir.path().join("README.md"), "elsewhere").unwrap();
        assert!(!provenance(&catalog).unwrap().unwrap().dirty);
        std::fs::write(catalog.join("new.yaml"), "name: x\n").unwrap();
        assert!(provenance(&catalog).unwrap().unwrap().dirty);
        assert_eq!(provenance(dir.path()).unwrap().unwrap().prefix, "");
    }

    #[test]
    fn ancestors_are_known_and_strangers_are_not() {
        let (dir, repository) = repository();
        let first = commit(&repository, &[("a", "1")]);
        let second = commit(&repository, &[("a", "2")]);
        assert_eq!(is_ancestor(dir.path(), &first, &second).unwrap(), Some(true));
        assert_eq!(is_ancestor(dir.path(), &second, &first).unwrap(), Some(false));
        assert_eq!(is_ancestor(dir.path(), &first, &first).unwrap(), Some(true));
        assert_eq!(is_ancestor(dir.path(), &"0".repeat(40), &first).unwrap(), None);
        assert_eq!(is_ancestor(dir.path(), "main", &first).unwrap(), None);
    }

    #[cfg(unix)]
    #[test]
    fn files_of_a_revision_are_read_and_links_are_refused() {
        let (dir, repository) = repository();
        commit(&repository, &[("catalog/octavius.yaml", "catalog: x\n"), ("catalog/a/b.yaml", "name: b\n"), ("other.yaml", "")]);
        let catalog = dir.path().join("catalog");
        std::os::unix::fs::symlink("b.yaml", catalog.join("a/link.yaml")).unwrap();
        let mut index = repository.index().unwrap();
        index.add_path(Path::new("catalog/a/link.yaml")).unwrap();
        index.write().unwrap();
        commit(&repository, &[("catalog/a/b.yaml", "name: c\n")]);
        let files = files_at(&catalog, "HEAD~1", &Limits::default()).unwrap();
        let paths: Vec<_> = files.files.iter().map(|file| (file.path.as_str(), &*file.bytes)).collect();
        assert_eq!(paths, [("a/b.yaml", b"name: b\n".as_slice()), ("octavius.yaml", b"catalog: x\n")]);
        assert_eq!((files.findings.len(), files.file_prefix.as_str()), (0, "catalog"));
        let files = files_at(&catalog, "HEAD", &Limits::default()).unwrap();
        assert_eq!((files.findings[0].code, files.findings[0].path.as_str()), ("symlink", "catalog/a/link.yaml"));
        assert!(matches!(files_at(&catalog, "nowhere", &Limits::default()), Err(GitError::Revision { .. })));
        let outside = tempfile::tempdir().unwrap();
        assert!(matches!(files_at(outside.path(), "HEAD", &Limits::default()), Err(GitError::NoRepository(_))));
    }

    #[test]
    fn urls_lose_their_credentials() {
        for (url, expected) in [
            ("https://user:token@host/x.git", "https://host/x.git"),
            ("https://token@host", "https://host"),
            ("https://a@b@host/x", "https://host/x"),
            ("git@host:team/x.git", "git@host:team/x.git"),
            ("ssh://git@host:22/x?key=1#y", "ssh://host:22/x"),
            ("/srv/x.git", "/srv/x.git"),
        ] {
            assert_eq!(without_credentials(url), expected);
        }
    }
}
