//! Catalogues as real repositories hold them: at other revisions, in clones that lack a part, and in what belongs to somebody else.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use git2::{IndexEntry, IndexTime, Oid, Repository, ResetType, Signature};
use octavius_catalog::git::{GitError, commit_at, files_at, is_ancestor, provenance};
use octavius_catalog::{Files, Limits, load, plan};
use octavius_core::CatalogName;

struct Repo {
    folder: tempfile::TempDir,
    repository: Repository,
}

impl Repo {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repository = Repository::init(folder.path()).unwrap();
        Self { folder, repository }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().canonicalize().unwrap()
    }

    /// Commits exactly these files: (path, mode, content). They are in the repository alone, the working tree stays empty.
    fn commit_raw(&self, files: &[(&[u8], u32, &[u8])]) -> Oid {
        let mut index = self.repository.index().unwrap();
        index.clear().unwrap();
        for (path, mode, content) in files {
            let id = match mode {
                0o160_000 => Oid::from_str("1234567890123456789012345678901234567890").unwrap(),
                _ => self.repository.blob(content).unwrap(),
            };
            let time = IndexTime::new(0, 0);
            let (path, mode) = (path.to_vec(), *mode);
            let entry = IndexEntry {
                ctime: time,
                mtime: time,
                dev: 0,
                ino: 0,
                mode,
                uid: 0,
                gid: 0,
                file_size: 0,
                id,
                flags: 0,
                flags_extended: 0,
                path,
            };
            index.add(&entry).unwrap();
        }
        let tree = self.repository.find_tree(index.write_tree().unwrap()).unwrap();
        let author = Signature::now("Ann", "ann@example.org").unwrap();
        let parent = self.repository.head().ok().map(|head| head.peel_to_commit().unwrap());
        let parents: Vec<_> = parent.iter().collect();
        self.repository.commit(Some("HEAD"), &author, &author, "message", &tree, &parents).unwrap()
    }

    fn commit(&self, files: &[(&str, &str)]) -> Oid {
        let files: Vec<_> = files.iter().map(|(path, text)| (path.as_bytes(), 0o100_644, text.as_bytes())).collect();
        self.commit_raw(&files)
    }

    /// Takes an object away, as if it had never been fetched.
    fn lose(&self, id: Oid) {
        let id = id.to_string();
        fs::remove_file(self.repository.path().join("objects").join(&id[..2]).join(&id[2..])).unwrap();
    }

    /// The folder `catalog` of the working tree.
    fn catalog(&self) -> PathBuf {
        let catalog = self.path().join("catalog");
        fs::create_dir_all(&catalog).unwrap();
        catalog
    }
}

fn job(name: &str) -> String {
    format!("name: {name}\ncommand: [x]\n")
}

fn at(dir: &Path, revision: &str) -> Files {
    files_at(dir, revision, &Limits::default()).unwrap()
}

fn paths(files: &Files) -> Vec<&str> {
    files.files.iter().map(|file| file.path.as_str()).collect()
}

fn findings(files: &Files) -> Vec<(&str, &str)> {
    files.findings.iter().map(|finding| (finding.code, finding.path.as_str())).collect()
}

fn refused(dir: &Path, revision: &str) -> GitError {
    files_at(dir, revision, &Limits::default()).unwrap_err()
}

#[test]
fn revisions_go_by_all_their_names() {
    let repo = Repo::new();
    let root = ("catalog/octavius.yaml", "catalog: support\n");
    let first = repo.commit(&[root, ("catalog/a-first.yaml", &job("first"))]);
    let second = repo.commit(&[root, ("catalog/b-second.yaml", &job("second"))]);
    let third = repo.commit(&[root, ("catalog/c-third.yaml", &job("third"))]);
    let object = repo.repository.find_object(second, None).unwrap();
    repo.repository.tag_lightweight("light", &object, false).unwrap();
    let tagger = Signature::now("Ann", "ann@example.org").unwrap();
    repo.repository.tag("v1.0", &object, &tagger, "annotated", false).unwrap();
    repo.repository.reference("refs/remotes/origin/main", first, true, "fetched").unwrap();
    repo.repository.branch("topic/x", &repo.repository.find_commit(first).unwrap(), false).unwrap();
    let (long, short) = (second.to_string(), second.to_string()[..8].to_owned());
    let catalog = repo.catalog();
    for (revision, expected, commit) in [
        ("origin/main", "a-first.yaml", first),
        ("refs/remotes/origin/main", "a-first.yaml", first),
        ("topic/x", "a-first.yaml", first),
        ("HEAD~2", "a-first.yaml", first),
        ("HEAD^^", "a-first.yaml", first),
        ("HEAD~1", "b-second.yaml", second),
        ("light", "b-second.yaml", second),
        ("v1.0", "b-second.yaml", second),
        (&long, "b-second.yaml", second),
        (&short, "b-second.yaml", second),
        ("HEAD", "c-third.yaml", third),
        ("@", "c-third.yaml", third),
    ] {
        let files = at(&catalog, revision);
        assert_eq!((paths(&files), findings(&files)), (vec![expected, "octavius.yaml"], vec![]), "{revision}");
        assert_eq!(files.file_prefix, "catalog");
        assert_eq!(commit_at(&catalog, revision).unwrap(), commit.to_string());
    }
    for revision in ["nowhere", "origin/nowhere", "HEAD~3", "HEAD:catalog", &"0".repeat(40), "", "a b", "@{", "-x", "\u{1b}"] {
        let error = refused(&catalog, revision);
        assert!(matches!(error, GitError::Revision { is_shallow: false, .. }), "{revision}: {error:?}");
        assert!(commit_at(&catalog, revision).is_err());
    }
    let text = refused(&catalog, "nowhere").to_string();
    assert!(text.starts_with("no revision `nowhere` in the repository at ") && !text.contains("shallow"), "{text}");
}

#[test]
fn a_shallow_clone_says_what_to_fetch() {
    let repo = Repo::new();
    let commits = ["a", "b", "c"].map(|name| repo.commit(&[("octavius.yaml", "catalog: x\n"), ("job.yaml", &job(name))]));
    let [first, second, third] = commits.map(|commit| commit.to_string());
    fs::write(repo.repository.path().join("shallow"), format!("{second}\n")).unwrap();
    repo.lose(commits[0]);
    let dir = repo.path();
    assert_eq!(paths(&at(&dir, "HEAD~1")), ["job.yaml", "octavius.yaml"]);
    for revision in ["HEAD~2", first.as_str(), "origin/main"] {
        let error = refused(&dir, revision);
        assert!(matches!(error, GitError::Revision { is_shallow: true, .. }), "{revision}: {error:?}");
        let text = error.to_string();
        for hint in [revision, "shallow clone", "git fetch --depth=", "git fetch --unshallow", "fetch-depth: 0"] {
            assert!(text.contains(hint), "{text}");
        }
    }
    let ancestor = |older: &str, newer: &str| is_ancestor(&dir, older, newer).unwrap();
    assert_eq!(ancestor(&second, &third), Some(true));
    assert_eq!((ancestor(&first, &third), ancestor(&third, &second)), (None, None), "where history ends, nothing is known");
}

#[test]
fn a_folder_that_was_not_there_had_no_jobs() {
    let repo = Repo::new();
    repo.commit(&[("README.md", "x\n"), ("catalog", "a file\n"), ("a/b", "x\n")]);
    repo.commit(&[
        ("catalog/octavius.yaml", "catalog: support\n"),
        ("catalog/a.yaml", &job("a")),
        ("a/b/octavius.yaml", "catalog: x\n"),
    ]);
    fs::create_dir_all(repo.path().join("a/b/c")).unwrap();
    for folder in [repo.catalog(), repo.path().join("a/b"), repo.path().join("a/b/c"), repo.path().join("a")] {
        let files = at(&folder, "HEAD~1");
        assert_eq!((paths(&files), findings(&files)), (vec![], vec![]), "{}", folder.display());
    }
    let (before, after) = (load(&at(&repo.catalog(), "HEAD~1")), load(&at(&repo.catalog(), "HEAD")));
    assert!(before.jobs.is_empty() && !after.has_errors());
    let plan = plan(&CatalogName::new("support").unwrap(), 0, &after.jobs, &[], &Default::default()).unwrap();
    assert_eq!((plan.summary.added, plan.changes[0].file.as_str()), (1, "catalog/a.yaml"));
}

#[test]
fn a_catalogue_may_be_the_root_of_its_repository() {
    let repo = Repo::new();
    repo.commit(&[("octavius.yaml", "catalog: x\n"), ("team/a.yaml", &job("a")), (".github/workflows/ci.yaml", "on: push\n")]);
    let files = at(&repo.path(), "HEAD");
    assert_eq!((paths(&files), files.file_prefix.as_str()), (vec!["octavius.yaml", "team/a.yaml"], ""));
    assert_eq!(load(&files).jobs[0].file, "team/a.yaml");
}

#[test]
fn what_is_no_plain_file_is_told() {
    let repo = Repo::new();
    let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12345\n", "4d".repeat(32));
    let file = 0o100_644;
    repo.commit_raw(&[
        (b"octavius.yaml", file, b"catalog: x\n"),
        (b"a.yaml", 0o100_755, job("a").as_bytes()),
        (b"big.yaml", file, &[b'#'; 400_000]),
        (b"large.yaml", file, pointer.as_bytes()),
        (b"link.yaml", 0o120_000, b"a.yaml"),
        (b"team/_defaults.yaml", 0o120_000, b"../x.yaml"),
        (b"_drafts/link.yaml", 0o120_000, b"a.yaml"),
        (b"module", 0o160_000, b""),
        (b".module", 0o160_000, b""),
        (b"caf\xe9/b.yaml", file, b"name: b\n"),
    ]);
    let loaded = load(&at(&repo.path(), "HEAD"));
    let told: Vec<_> = loaded.diagnostics.iter().map(|finding| (finding.code, finding.path.as_str())).collect();
    assert_eq!(
        told,
        [
            ("file-size", "big.yaml"),
            ("file-name", "caf\u{fffd}"),
            ("lfs-pointer", "large.yaml"),
            ("symlink", "link.yaml"),
            ("submodule", "module"),
            ("symlink", "team/_defaults.yaml"),
        ]
    );
    let limits = Limits { jobs: 0, ..Limits::default() };
    let files = files_at(&repo.path(), "HEAD", &limits).unwrap();
    assert!(files.findings.iter().any(|finding| finding.code == "too-many-jobs"), "{:?}", files.findings);
    let limits = Limits { total_bytes: 20, ..Limits::default() };
    let files = files_at(&repo.path(), "HEAD", &limits).unwrap();
    assert!(files.findings.iter().any(|finding| finding.code == "catalog-size"), "{:?}", files.findings);
}

#[test]
fn a_clone_without_the_files_says_so() {
    let repo = Repo::new();
    let text = job("a");
    repo.commit(&[("octavius.yaml", "catalog: x\n"), ("team/a.yaml", &text)]);
    let tree = repo.repository.head().unwrap().peel_to_tree().unwrap();
    repo.lose(repo.repository.blob(text.as_bytes()).unwrap());
    assert!(matches!(refused(&repo.path(), "HEAD"), GitError::Missing { .. }));
    repo.lose(tree.get_name("team").unwrap().id());
    let error = refused(&repo.path(), "HEAD");
    assert!(matches!(error, GitError::Missing { .. }), "{error:?}");
    assert!(error.to_string().contains("git fetch --refetch"));
}

#[test]
fn ten_thousand_files_are_read() {
    let repo = Repo::new();
    // Kept in memory and written as one pack, as a clone has them.
    let store = repo.repository.odb().unwrap();
    let memory = store.add_new_mempack_backend(1000).unwrap();
    let path = |number| format!("catalog/{:03}/job-{number}.yaml", number % 200);
    let files: Vec<_> = (0..10_000).map(|number| (path(number), job(&format!("job-{number}")))).collect();
    let mut listed: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    listed.push(("catalog/octavius.yaml", "catalog: x\n"));
    listed.sort_unstable();
    repo.commit(&listed);
    let mut pack = git2::Buf::new();
    memory.dump(&repo.repository, &mut pack).unwrap();
    let mut writer = store.packwriter().unwrap();
    writer.write_all(&pack).unwrap();
    writer.commit().unwrap();
    let catalog = repo.catalog();
    let files = at(&catalog, "HEAD");
    assert_eq!((files.files.len(), findings(&files)), (10_001, vec![]));
    assert_eq!(load(&files).jobs.len(), 10_000);
}

/// A repository whose working tree holds what was committed.
fn checked_out(files: &[(&str, &str)]) -> Repo {
    let repo = Repo::new();
    let commit = repo.commit(files);
    repo.repository.reset(&repo.repository.find_object(commit, None).unwrap(), ResetType::Hard, None).unwrap();
    repo
}

fn write(repo: &Repo, path: &str, text: &str) {
    let path = repo.path().join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn is_dirty(repo: &Repo, folder: &str) -> bool {
    // A fresh look, as each command takes it.
    provenance(&repo.path().join(folder)).unwrap().unwrap().dirty
}

const COMMITTED: [(&str, &str); 4] = [
    (".gitignore", "*local*\n/out/\n"),
    ("README.md", "x\n"),
    ("catalog/octavius.yaml", "catalog: x\n"),
    ("catalog/team/a.yaml", "name: a\ncommand: [x]\n"),
];

#[test]
fn a_file_that_git_ignores_and_the_loader_reads_makes_a_catalogue_dirty() {
    let repo = checked_out(&COMMITTED);
    for path in ["catalog/local.txt", "catalog/_drafts/local.yaml", "catalog/.local/x.yaml", "local/x.yaml"] {
        write(&repo, path, "x");
        assert!(!is_dirty(&repo, "catalog"), "{path} is ignored, and not read");
    }
    for path in ["catalog/local.yaml", "catalog/team/local/deep/b.json", "catalog/local/_defaults.yaml"] {
        write(&repo, path, "x");
        assert!(is_dirty(&repo, "catalog"), "{path} is ignored, and read");
        fs::remove_file(repo.path().join(path)).unwrap();
        assert!(!is_dirty(&repo, "catalog"));
    }
    // A catalogue of which git knows nothing, and one in a folder of which git knows nothing.
    for folder in ["out", "out/deep"] {
        write(&repo, &format!("{folder}/octavius.yaml"), "catalog: y\n");
        assert!(is_dirty(&repo, folder), "{folder}");
    }
    assert!(is_dirty(&repo, ""), "the root reads all of them");
}

#[test]
fn a_file_that_git_was_told_not_to_look_at_is_looked_at() {
    const ASSUME_UNCHANGED: u16 = 1 << 15;
    const EXTENDED: u16 = 1 << 14;
    const SKIP_WORKTREE: u16 = 1 << 14;
    for (flags, extended) in [(ASSUME_UNCHANGED, 0), (EXTENDED, SKIP_WORKTREE)] {
        let repo = checked_out(&COMMITTED);
        let mut index = Repository::open(repo.path()).unwrap().index().unwrap();
        for path in ["catalog/team/a.yaml", "README.md"] {
            let mut entry = index.get_path(Path::new(path), 0).unwrap();
            (entry.flags, entry.flags_extended) = (entry.flags | flags, entry.flags_extended | extended);
            index.add(&entry).unwrap();
        }
        index.write().unwrap();
        write(&repo, "README.md", "more\n");
        assert!(!is_dirty(&repo, "catalog") && !is_dirty(&repo, ""), "nothing that is read has changed: {flags:x}");
        write(&repo, "catalog/team/a.yaml", "name: a\ncommand: [y]\n");
        assert!(is_dirty(&repo, "catalog"), "{flags:x}");
        fs::remove_file(repo.path().join("catalog/team/a.yaml")).unwrap();
        assert!(is_dirty(&repo, "catalog"), "a job that is not checked out is not loaded: {flags:x}");
        let now = Repository::open(repo.path()).unwrap().index().unwrap();
        let entry = now.get_path(Path::new("catalog/team/a.yaml"), 0).unwrap();
        assert_eq!((entry.flags & flags, entry.flags_extended & extended), (flags, extended), "what git was told stays");
    }
}

#[test]
fn line_ends_that_git_converts_are_not_changes() {
    let repo = checked_out(&COMMITTED);
    repo.repository.config().unwrap().set_bool("core.autocrlf", true).unwrap();
    let head = repo.repository.head().unwrap().peel_to_commit().unwrap().into_object();
    fs::remove_dir_all(repo.path().join("catalog")).unwrap();
    repo.repository.reset(&head, ResetType::Hard, None).unwrap();
    assert_eq!(fs::read(repo.path().join("catalog/octavius.yaml")).unwrap(), b"catalog: x\r\n");
    assert!(!is_dirty(&repo, "catalog"));
    write(&repo, "catalog/octavius.yaml", "catalog: y\r\n");
    assert!(is_dirty(&repo, "catalog"));
}

#[test]
fn what_jobs_inherit_is_kept_where_there_are_too_many_of_them() {
    let repo = Repo::new();
    let job = "command: [x]\n";
    let jobs = ["a", "b", "c", "d", "z/a", "z/b"]
        .map(|name| (format!("{name}.yaml"), format!("name: {}\n{job}", name.replace('/', "-"))));
    let mut listed: Vec<_> = jobs.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    listed.extend([("octavius.yaml", "catalog: x\n"), ("z/_defaults.yaml", "retries: 1\n")]);
    repo.commit(&listed);
    let files = files_at(&repo.path(), "HEAD", &Limits { jobs: 2, ..Limits::default() }).unwrap();
    assert_eq!(findings(&files), [("too-many-jobs", "c.yaml")]);
    assert_eq!(paths(&files), ["a.yaml", "b.yaml", "octavius.yaml", "z/_defaults.yaml"]);
    assert_eq!(load(&files).diagnostics.len(), 1);
}

/// A tree of eight trees, each of ten times the one below: a hundred million paths of nine objects.
#[test]
fn a_tree_of_more_paths_than_can_be_walked_is_refused() {
    let repo = Repo::new();
    let blob = repo.repository.blob(job("a").as_bytes()).unwrap();
    let tree = |entries: &[(String, Oid, i32)]| {
        let mut builder = repo.repository.treebuilder(None).unwrap();
        for (name, id, mode) in entries {
            builder.insert(name, *id, *mode).unwrap();
        }
        builder.write().unwrap()
    };
    let of_ten =
        |id: Oid, mode: i32, extension: &str| tree(&(0..10).map(|n| (format!("{n}{extension}"), id, mode)).collect::<Vec<_>>());
    let commit = |tree: Oid| {
        let author = Signature::now("Ann", "ann@example.org").unwrap();
        let tree = repo.repository.find_tree(tree).unwrap();
        repo.repository.commit(None, &author, &author, "message", &tree, &[]).unwrap().to_string()
    };
    let wide = (0..7).fold(of_ten(blob, 0o100_644, ".yaml"), |below, _| of_ten(below, 0o040_000, ""));
    let error = refused(&repo.path(), &commit(wide));
    assert!(matches!(error, GitError::TooLarge { .. }), "{error:?}");
    assert!(error.to_string().contains("more than 1000000 files and folders"), "{error}");
    // As deep as nobody's paths are: told once, where it becomes too much.
    let name = "n".repeat(200);
    let deep = (0..2_000).fold(tree(&[("a.yaml".into(), blob, 0o100_644)]), |below, _| tree(&[(name.clone(), below, 0o040_000)]));
    let files = at(&repo.path(), &commit(deep));
    assert_eq!((files.files.len(), files.findings.len(), files.findings[0].code), (0, 1, "file-name"));
}

/// The home folder that this test runs in, once it has started itself again with one of its own: what the person who runs it has
/// configured must not decide.
const HOME: &str = "OCTAVIUS_TEST_HOME";

#[cfg(unix)]
#[test]
fn a_repository_of_another_user_is_refused_by_its_root() {
    let Some(home) = std::env::var_os(HOME) else {
        let home = tempfile::tempdir().unwrap();
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "git::a_repository_of_another_user_is_refused_by_its_root", "--nocapture"])
            .env("HOME", home.path())
            .env(HOME, home.path())
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("SUDO_UID")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
        return;
    };
    let repo = Repo::new();
    repo.commit(&[("catalog/octavius.yaml", "catalog: x\n")]);
    let (root, catalog) = (repo.path(), repo.catalog());
    for path in [&root, &root.join(".git")] {
        std::os::unix::fs::chown(path, Some(12_345), None).expect("this test gives a folder away, which only root can");
    }
    let error = refused(&catalog, "HEAD");
    assert!(matches!(&error, GitError::Owner(path) if *path == root), "{error:?}");
    let accept = format!("git config --global --add safe.directory {}", root.display());
    assert!(error.to_string().contains(&accept), "{error}");
    assert!(matches!(provenance(&catalog), Err(GitError::Owner(path)) if path == root));
    assert!(matches!(is_ancestor(&catalog, "a", "b"), Err(GitError::Owner(_))));
    // What the message says does help.
    fs::write(Path::new(&home).join(".gitconfig"), format!("[safe]\n\tdirectory = {}\n", root.display())).unwrap();
    assert_eq!(paths(&at(&catalog, "HEAD")), ["octavius.yaml"]);
}
