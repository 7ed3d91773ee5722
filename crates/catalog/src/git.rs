//! What git knows about a catalogue: which commit it stands at, whether that is all, and what it held at another one. The only room
//! for libgit2, whose check of a repository's owner stays on.

use std::path::{Path, PathBuf};

use git2::{Commit, Delta, DiffOptions, ErrorCode, IndexEntryExtendedFlag, IndexEntryFlag, ObjectType, Oid, Repository};

use crate::diagnostic::Diagnostic;
use crate::source::{Files, Limits, PATH_BYTES, is_job, joined, sort_and_cut, submodule, symlink};

/// Where a catalogue comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// The commit that the working tree stands at: 40 hexadecimal characters.
    pub commit: String,
    /// Its first seven characters.
    pub short: String,
    /// Whether files of the catalogue differ from that commit, are not in it, or are there and not here. Files that git ignores
    /// count where the loader reads them.
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
    /// The repository belongs to another user; the path is that of its root, which git wants to be told.
    #[error("the repository at {} belongs to another user; \
             `git config --global --add safe.directory {}` accepts it", .0.display(), .0.display())]
    Owner(PathBuf),
    /// The revision is not known.
    #[error("no revision `{revision}` in the repository at {}{}", path.display(), fetch(*is_shallow))]
    Revision {
        /// What was asked for.
        revision: String,
        /// The repository.
        path: PathBuf,
        /// Whether the repository holds a part of the history only.
        is_shallow: bool,
    },
    /// A shortened hash fits several commits.
    #[error("`{revision}` fits several objects in the repository at {}; write more of the hash", path.display())]
    Ambiguous {
        /// What was asked for.
        revision: String,
        /// The repository.
        path: PathBuf,
    },
    /// The revision is known and its files are not there, as in a partial clone.
    #[error("the repository at {} does not hold the files of `{revision}`; \
             `git fetch --refetch --no-filter` gets them", path.display())]
    Missing {
        /// What was asked for.
        revision: String,
        /// The repository.
        path: PathBuf,
    },
    /// The revision holds more than can be a catalogue.
    #[error("`{revision}` holds too many files or findings in {} for a catalogue: more than {ENTRIES} files and folders, or more \
             than {FINDINGS} that cannot be read", path.display())]
    TooLarge {
        /// What was asked for.
        revision: String,
        /// The folder.
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

/// What to do about a revision that a shallow clone does not have.
const fn fetch(is_shallow: bool) -> &'static str {
    if is_shallow {
        ", which is a shallow clone; fetch more of its history: `git fetch --depth=1000 origin REVISION` or `git fetch --unshallow`, in CI \
         `fetch-depth: 0` (GitHub) or `GIT_DEPTH: 0` (GitLab)"
    } else {
        ""
    }
}

impl GitError {
    fn of(path: &Path, source: git2::Error) -> Self {
        if source.code() == ErrorCode::Owner {
            Self::Owner(root_of(path).unwrap_or_else(|| path.to_owned()))
        } else {
            Self::Other { path: path.to_owned(), source }
        }
    }
}

/// The root of the working tree around `dir`, of a repository that may not be opened.
fn root_of(dir: &Path) -> Option<PathBuf> {
    let dir = dir.canonicalize().ok()?;
    dir.ancestors().find(|folder| folder.join(".git").exists()).map(Path::to_owned)
}

/// The repository around `dir`; `None` where there is none.
fn open(dir: &Path) -> Result<Option<Repository>, GitError> {
    match Repository::discover(dir) {
        Ok(repository) => Ok(Some(repository)),
        Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
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
        Err(error) if matches!(error.code(), ErrorCode::UnbornBranch | ErrorCode::NotFound) => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    let prefix = prefix_of(&repository, dir)?;
    let dirty = is_dirty(&repository, &head, &prefix).map_err(fail)?;
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

/// Whether the working tree's folder `prefix` holds anything but what the commit holds.
fn is_dirty(repository: &Repository, commit: &Commit<'_>, prefix: &str) -> Result<bool, git2::Error> {
    let is_wanted = |path: &[u8]| {
        let within = match std::str::from_utf8(path) {
            Ok(path) if prefix.is_empty() => Some(path),
            Ok(path) => path.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('/')),
            Err(_) => None,
        };
        within.is_some_and(|path| Files::default().wants(path))
    };
    let mut index = repository.index()?;
    // Entries that git was told not to look at. The flags go in this copy of the index alone, which is not written.
    let trusted: Vec<_> = index
        .iter()
        .filter(|entry| {
            let flags = (IndexEntryFlag::from_bits_truncate(entry.flags), entry.flags_extended);
            flags.0.is_valid() || IndexEntryExtendedFlag::from_bits_truncate(flags.1).is_skip_worktree()
        })
        .filter(|entry| is_wanted(&entry.path))
        .collect();
    for mut entry in trusted {
        entry.flags &= !IndexEntryFlag::VALID.bits();
        entry.flags_extended &= !IndexEntryExtendedFlag::SKIP_WORKTREE.bits();
        if index.add(&entry).is_err() {
            // In a partial clone, a file that is not checked out is not there to be compared either.
            return Ok(true);
        }
    }
    let mut options = DiffOptions::new();
    options.ignore_submodules(true).include_typechange(true);
    options.include_untracked(true).recurse_untracked_dirs(true).include_ignored(true).recurse_ignored_dirs(true);
    if !prefix.is_empty() {
        options.disable_pathspec_match(true).pathspec(prefix);
    }
    if repository.diff_tree_to_index(Some(&commit.tree()?), Some(&index), Some(&mut options))?.deltas().len() > 0 {
        return Ok(true);
    }
    let changed = repository.diff_index_to_workdir(Some(&index), Some(&mut options))?;
    let mut deltas = changed.deltas();
    Ok(deltas.any(|delta| delta.status() != Delta::Ignored || delta.new_file().path_bytes().is_some_and(is_wanted)))
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
        Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
        Err(error) => Err(GitError::of(dir, error)),
    }
}

/// The commit that a revision means.
fn commit_of<'r>(repository: &'r Repository, dir: &Path, revision: &str) -> Result<Commit<'r>, GitError> {
    let (revision_text, path) = (revision.to_owned(), repository.workdir().unwrap_or(dir).to_owned());
    let found = repository.revparse_single(revision).and_then(|object| object.peel_to_commit());
    found.map_err(|error| match error.code() {
        ErrorCode::Ambiguous => GitError::Ambiguous { revision: revision_text, path },
        _ => GitError::Revision { revision: revision_text, path, is_shallow: repository.is_shallow() },
    })
}

/// The commit that a revision means: 40 hexadecimal characters.
///
/// # Errors
/// Where `dir` is in no repository or one of another user, or the revision is not known.
pub fn commit_at(dir: &Path, revision: &str) -> Result<String, GitError> {
    let repository = open(dir)?.ok_or_else(|| GitError::NoRepository(dir.to_owned()))?;
    Ok(commit_of(&repository, dir, revision)?.id().to_string())
}

/// The files of folder `dir` as they were at a revision: a branch, a tag, a commit, `HEAD~2`. Symlinks and submodules are findings.
/// A folder that was not there then has no files. No more is read than `limits` need for their findings.
///
/// # Errors
/// Where `dir` is in no repository or one of another user, the revision is not known, its files are not in this clone, or the
/// folder held more than a million files and folders then.
pub fn files_at(dir: &Path, revision: &str, limits: &Limits) -> Result<Files, GitError> {
    let repository = open(dir)?.ok_or_else(|| GitError::NoRepository(dir.to_owned()))?;
    let commit = commit_of(&repository, dir, revision)?;
    let prefix = prefix_of(&repository, dir)?;
    let fail = |error: git2::Error| match error.code() {
        ErrorCode::NotFound => {
            GitError::Missing { revision: revision.to_owned(), path: repository.workdir().unwrap_or(dir).to_owned() }
        }
        _ => GitError::of(dir, error),
    };
    let root = commit.tree().map_err(fail)?;
    let top = if prefix.is_empty() {
        root.id()
    } else {
        match root.get_path(Path::new(&prefix)) {
            Ok(entry) if entry.kind() == Some(ObjectType::Tree) => entry.id(),
            Ok(_) => return Ok(Files::default().at(&prefix)),
            // Nothing of this name in a tree that is there, or the tree is not there.
            Err(error) if error.code() == ErrorCode::NotFound && error.class() == git2::ErrorClass::Tree => {
                return Ok(Files::default().at(&prefix));
            }
            Err(error) => return Err(fail(error)),
        }
    };
    let mut walk =
        TreeWalk { repository: &repository, files: Files::default(), found: Vec::new(), visited: 0, jobs: 0, most: limits.jobs };
    if !walk.folder("", top).map_err(fail)? {
        return Err(GitError::TooLarge { revision: revision.to_owned(), path: dir.to_owned() });
    }
    let TreeWalk { mut files, mut found, .. } = walk;
    sort_and_cut(&mut found, |(path, _)| path, limits);
    let store = repository.odb().map_err(fail)?;
    let (mut read, mut total) = (Vec::with_capacity(found.len()), 0);
    for (path, id) in found {
        // One byte over the limit is enough for the finding.
        if total > limits.total_bytes {
            break;
        }
        let (size, _) = store.read_header(id).map_err(fail)?;
        let bytes = if size > limits.file_bytes {
            vec![b' '; limits.file_bytes.saturating_add(1)]
        } else {
            store.read(id).map_err(fail)?.data().to_vec()
        };
        total += bytes.len();
        read.push((path, bytes));
    }
    let mut kept = Files::new(read, limits);
    kept.findings.append(&mut files.findings);
    kept.findings.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(kept.at(&prefix))
}

/// Most entries of trees that are visited: a few objects of git can stand for more paths than anybody can count.
const ENTRIES: usize = 1_000_000;

/// Most findings of a walk.
const FINDINGS: usize = 10_000;

/// Looks for the files in a tree that the loader reads, in the order of their paths.
struct TreeWalk<'r> {
    repository: &'r Repository,
    /// Takes the findings.
    files: Files,
    /// Paths with the names of their contents.
    found: Vec<(String, Oid)>,
    visited: usize,
    jobs: usize,
    /// Jobs of which one more is enough; what they inherit from is looked for to the end.
    most: usize,
}

impl TreeWalk<'_> {
    /// Walks a folder and those below it; false where there is too much.
    fn folder(&mut self, folder: &str, id: Oid) -> Result<bool, git2::Error> {
        for entry in &self.repository.find_tree(id)? {
            self.visited += 1;
            if self.visited > ENTRIES || self.files.findings.len() > FINDINGS {
                return Ok(false);
            }
            let Ok(name) = std::str::from_utf8(entry.name_bytes()) else {
                let path = joined(folder, &String::from_utf8_lossy(entry.name_bytes()));
                self.files.findings.push(Diagnostic::of_file(path, "file-name", "the name is not valid UTF-8", "rename it"));
                continue;
            };
            let path = joined(folder, name);
            let is_skipped = name.starts_with(['.', '_']);
            match (entry.filemode(), entry.kind()) {
                (GIT_LINK, _) if !is_skipped || name.starts_with("_defaults.") => self.files.findings.push(symlink(&path)),
                (_, Some(ObjectType::Commit)) if !is_skipped => self.files.findings.push(submodule(&path)),
                (GIT_LINK, _) | (_, Some(ObjectType::Commit)) => {}
                // No file below a folder of such a path is read; to go on would be as deep as the tree.
                (_, Some(ObjectType::Tree)) if !is_skipped && path.len() > PATH_BYTES => {
                    let finding =
                        Diagnostic::of_file(path, "file-name", "the path is too long", "use shorter names, fewer folders");
                    self.files.findings.push(finding);
                }
                (_, Some(ObjectType::Tree)) if !is_skipped => {
                    let fits = self.folder(&path, entry.id())?;
                    if !fits {
                        return Ok(false);
                    }
                }
                (_, Some(ObjectType::Blob)) if self.files.wants(&path) => self.blob(path, entry.id()),
                _ => {}
            }
        }
        Ok(true)
    }

    fn blob(&mut self, path: String, id: Oid) {
        self.jobs += usize::from(is_job(&path));
        if !is_job(&path) || self.jobs <= self.most.saturating_add(1) {
            self.found.push((path, id));
        }
    }
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
        // A submodule, as it stands in the index: a path and a commit of another repository.
        let mut module = index.get_path(Path::new("catalog/a/link.yaml"), 0).unwrap();
        module.path = b"catalog/module".to_vec();
        module.mode = 0o160_000;
        module.id = repository.head().unwrap().peel_to_commit().unwrap().id();
        index.add(&module).unwrap();
        index.write().unwrap();
        commit(&repository, &[("catalog/a/b.yaml", "name: c\n")]);
        let files = files_at(&catalog, "HEAD~1", &Limits::default()).unwrap();
        let paths: Vec<_> = files.files.iter().map(|file| (file.path.as_str(), &*file.bytes)).collect();
        assert_eq!(paths, [("a/b.yaml", b"name: b\n".as_slice()), ("octavius.yaml", b"catalog: x\n")]);
        assert_eq!((files.findings.len(), files.file_prefix.as_str()), (0, "catalog"));
        let files = files_at(&catalog, "HEAD", &Limits::default()).unwrap();
        let told: Vec<_> = files.findings.iter().map(|found| (found.code, found.path.as_str())).collect();
        assert_eq!(told, [("symlink", "catalog/a/link.yaml"), ("submodule", "catalog/module")]);
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
