//! The files of a catalogue: which there are, what each is for, and how much is too much. [`read_dir`] and [`read_file`] touch
//! the disk; everything else works on (path, bytes), so that a catalogue may come from a git revision or a request as well.

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use octavius_core::limit::{CATALOG_BYTES, CATALOG_JOBS, JOB_FILE_BYTES};

use crate::diagnostic::Diagnostic;

/// The file at a catalogue's root that makes it one.
pub const CATALOG_FILE: &str = "octavius.yaml";

/// The file whose values the jobs of its folder and the folders below inherit.
pub const DEFAULTS_FILE: &str = "_defaults.yaml";

/// Most defaults files of one catalogue, the catalogue file not counted: each keeps a copy of what it inherits.
pub(crate) const DEFAULTS_FILES: usize = 1_000;

/// Longest path from a catalogue's root, in bytes.
pub(crate) const PATH_BYTES: usize = 1024;

/// How large a catalogue may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest file, in bytes.
    pub file_bytes: usize,
    /// Most jobs.
    pub jobs: usize,
    /// Most bytes of all files together.
    pub total_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { file_bytes: JOB_FILE_BYTES, jobs: CATALOG_JOBS, total_bytes: CATALOG_BYTES }
    }
}

/// One file of a catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its path from the catalogue's root, parts separated by `/`.
    pub path: String,
    /// What is in it.
    pub bytes: Arc<[u8]>,
}

/// The files of a catalogue that the loader reads, sorted by path, and what there is to say about the others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Files {
    /// The catalogue file, the defaults files and the job files.
    pub files: Vec<File>,
    /// Findings that reading gave: symlinks, files that are too large, names that cannot be.
    pub findings: Vec<Diagnostic>,
    /// Put before paths in diagnostics, so that they are paths from where the person stands: `catalog`. Without a slash at its
    /// end.
    pub display_prefix: String,
    /// Put before the paths that jobs remember, which outlive this run: the catalogue's path from its repository's root.
    /// [`crate::git::Provenance::prefix`] has it. Without a slash at its end.
    pub file_prefix: String,
    /// What the files were held to, and what their jobs are held to with what they inherit.
    pub(crate) limits: Limits,
}

impl Files {
    /// Takes files by (path from the catalogue's root, bytes): keeps those that the loader reads, in order, and has findings
    /// about names that cannot be and about what exceeds `limits`.
    #[must_use]
    pub fn new(files: impl IntoIterator<Item = (String, Vec<u8>)>, limits: &Limits) -> Self {
        let mut kept = Self::default();
        for (path, bytes) in files {
            if kept.wants(&path) {
                kept.files.push(File { path, bytes: bytes.into() });
            }
        }
        kept.enforce(limits);
        kept
    }

    /// Names the place where the files were found, for diagnostics and for what jobs remember.
    #[must_use]
    pub fn at(mut self, prefix: &str) -> Self {
        for finding in &mut self.findings {
            finding.path = joined(prefix, &finding.path);
        }
        self.display_prefix = prefix.to_owned();
        self.file_prefix = prefix.to_owned();
        self
    }

    /// The path that the jobs of a file remember.
    pub(crate) fn remembered(&self, path: &str) -> String {
        joined(&self.file_prefix, path)
    }

    /// Whether the loader reads a file of this path; says so where only a slip keeps it from being read.
    pub(crate) fn wants(&mut self, path: &str) -> bool {
        let (folder, name) = path.rsplit_once('/').map_or(("", path), |(folder, name)| (folder, name));
        if folder.split('/').any(|part| part.starts_with(['.', '_']) && part != "." && part != "..") {
            return false;
        }
        let Some((stem, extension)) = name.rsplit_once('.') else { return false };
        if !matches!(extension, "yaml" | "yml" | "json") {
            return false;
        }
        if name.starts_with(['.', '_']) && stem != "_defaults" {
            return false;
        }
        let problem = match (stem, name) {
            _ if !is_sound(path) => Some("not a path within the catalogue".to_owned()),
            ("octavius", _) if !folder.is_empty() => Some(format!("{CATALOG_FILE} belongs at the root of the catalogue")),
            ("octavius", CATALOG_FILE) | ("_defaults", DEFAULTS_FILE) => None,
            ("octavius", _) => Some(format!("this file is read under the name {CATALOG_FILE} only")),
            ("_defaults", _) => Some(format!("this file is read under the name {DEFAULTS_FILE} only")),
            _ => None,
        };
        match problem {
            None => true,
            Some(message) => {
                let hint = if is_sound(path) {
                    "rename it, or move it"
                } else {
                    "use relative paths without `..` and control characters"
                };
                self.findings.push(Diagnostic::of_file(path, "file-name", message, hint));
                false
            }
        }
    }

    /// Drops what exceeds the limits, with a finding for it, and sorts the rest by path. The files that jobs inherit from stay
    /// before jobs: without them, other findings would not be true.
    fn enforce(&mut self, limits: &Limits) {
        self.limits = *limits;
        let findings = &mut self.findings;
        self.files.sort_by(|a, b| (is_job(&a.path), &a.path).cmp(&(is_job(&b.path), &b.path)));
        self.files.retain(|file| {
            let fits = file.bytes.len() <= limits.file_bytes;
            if !fits {
                findings.push(too_large(&file.path, limits));
            }
            fits
        });
        if let Some(file) = self.files.iter().filter(|file| is_defaults(&file.path)).nth(DEFAULTS_FILES) {
            let message =
                format!("the catalogue has more than {DEFAULTS_FILES} files {DEFAULTS_FILE}, this is the first over the limit");
            let hint = "let folders share one that lies above them";
            findings.push(Diagnostic::of_file(&file.path, "too-many-defaults", message, hint));
            let cut = file.path.clone();
            // Jobs are not looked at: without some of what they inherit, other findings would not be true.
            self.files.retain(|file| !is_job(&file.path) && (!is_defaults(&file.path) || file.path < cut));
        }
        if let Some(file) = self.files.iter().filter(|file| is_job(&file.path)).nth(limits.jobs) {
            let message = format!("the catalogue has more than {} jobs, this is the first over the limit", limits.jobs);
            findings.push(Diagnostic::of_file(&file.path, "too-many-jobs", message, "split the catalogue, or raise the limit"));
            let cut = file.path.clone();
            self.files.retain(|file| !is_job(&file.path) || file.path < cut);
        }
        let mut total = 0;
        if let Some(index) = self.files.iter().position(|file| {
            total += file.bytes.len();
            total > limits.total_bytes
        }) {
            let message = format!("with this file the catalogue exceeds {} in all", size(limits.total_bytes));
            let hint = "split the catalogue, or raise the limit";
            findings.push(Diagnostic::of_file(&self.files[index].path, "catalog-size", message, hint));
            self.files.truncate(index);
        }
        self.files.sort_by(|a, b| a.path.cmp(&b.path));
    }
}

/// What to do about a job that is too large.
pub(crate) const TOO_LARGE_HINT: &str = "a job file names a program, it does not hold it";

pub(crate) fn too_large(path: &str, limits: &Limits) -> Diagnostic {
    let message = format!("the file has more than {}", size(limits.file_bytes));
    Diagnostic::of_file(path, "file-size", message, TOO_LARGE_HINT)
}

/// A limit as people write it.
pub(crate) fn size(bytes: usize) -> String {
    match bytes {
        _ if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} bytes"),
    }
}

/// Whether a path stays within its root and can be printed.
fn is_sound(path: &str) -> bool {
    let part_is_sound = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.len() <= PATH_BYTES && !path.contains('\\') && !path.contains(char::is_control) && path.split('/').all(part_is_sound)
}

/// Whether the file at this path is a job: neither the catalogue file nor a defaults file.
pub(crate) fn is_job(path: &str) -> bool {
    path != CATALOG_FILE && !is_defaults(path)
}

/// Whether the file at this path is a defaults file.
pub(crate) fn is_defaults(path: &str) -> bool {
    path.rsplit('/').next() == Some(DEFAULTS_FILE)
}

/// Sorts paths and drops what is further over the limits on numbers than a finding needs: one file over each is enough. The files
/// that jobs inherit from come first.
pub(crate) fn sort_and_cut<T>(files: &mut Vec<T>, path: impl Fn(&T) -> &str, limits: &Limits) {
    files.sort_by(|a, b| (is_job(path(a)), path(a)).cmp(&(is_job(path(b)), path(b))));
    let (mut jobs, mut defaults) = (0, 0);
    files.retain(|file| {
        jobs += usize::from(is_job(path(file)));
        defaults += usize::from(is_defaults(path(file)));
        if is_job(path(file)) {
            jobs <= limits.jobs.saturating_add(1)
        } else {
            !is_defaults(path(file)) || defaults <= DEFAULTS_FILES + 1
        }
    });
}

/// `prefix/path`, or the path alone where there is no prefix.
pub(crate) fn joined(prefix: &str, path: &str) -> String {
    if prefix.is_empty() { path.to_owned() } else { format!("{prefix}/{path}") }
}

/// Why a catalogue could not be read at all.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is nothing at the path.
    #[error("no catalogue at {}", .0.display())]
    Missing(PathBuf),
    /// What is at the path is neither a folder nor a file.
    #[error("{} is neither a folder nor a file", .0.display())]
    NotReadable(PathBuf),
    /// The operating system refused.
    #[error("cannot read {}", path.display())]
    Io {
        /// What was read.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Reads a catalogue's files from a folder. Symlinks, submodules, files too large and names that are not UTF-8 become findings.
/// `root` itself may be a symlink, since whoever names it means where it leads; below it none is followed.
///
/// # Errors
/// Where the folder is missing, or a folder or file cannot be read.
pub fn read_dir(root: &Path, limits: &Limits) -> Result<Files, ReadError> {
    let io_error = |path: &Path| {
        let path = path.to_owned();
        move |source| ReadError::Io { path, source }
    };
    match fs::metadata(root) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(ReadError::NotReadable(root.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ReadError::Missing(root.to_owned())),
        Err(error) => return Err(io_error(root)(error)),
    }
    let mut files = Files::default();
    let mut paths = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let on_disk = root.join(&folder);
        // Git keeps nothing of a repository within a repository: what is reviewed would not be what is read.
        if !folder.is_empty() && fs::symlink_metadata(on_disk.join(".git")).is_ok() {
            files.findings.push(submodule(&folder));
            continue;
        }
        for entry in fs::read_dir(&on_disk).map_err(io_error(&on_disk))? {
            let entry = entry.map_err(io_error(&on_disk))?;
            let kind = entry.file_type().map_err(io_error(&entry.path()))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                let path = joined(&folder, &name.to_string_lossy());
                files.findings.push(Diagnostic::of_file(path, "file-name", "the name is not valid UTF-8", "rename it"));
                continue;
            };
            let path = joined(&folder, name);
            if kind.is_symlink() {
                if !name.starts_with(['.', '_']) || name.starts_with("_defaults.") {
                    files.findings.push(symlink(&path));
                }
            } else if kind.is_dir() {
                if !name.starts_with(['.', '_']) {
                    folders.push(path);
                }
            } else if kind.is_file() && files.wants(&path) {
                paths.push(path);
            }
        }
    }
    // What is over the limits is not read, so that a huge folder costs no memory.
    sort_and_cut(&mut paths, |path| path, limits);
    let total = AtomicUsize::new(0);
    // First what jobs inherit from: where jobs use up the bytes, it is not said to be missing.
    let (others, jobs) = paths.split_at(paths.partition_point(|path| !is_job(path)));
    for paths in [others, jobs] {
        for part in in_parallel(paths, |paths| read_within(root, paths, limits, &total)) {
            files.files.extend(part?);
        }
    }
    files.enforce(limits);
    let shown = root.to_string_lossy();
    let shown = shown.trim_end_matches('/').trim_start_matches("./");
    Ok(files.at(if shown == "." { "" } else { shown }))
}

/// Reads files until `total`, the bytes that all threads together have read, is over the limit.
fn read_within(root: &Path, paths: &[String], limits: &Limits, total: &AtomicUsize) -> Result<Vec<File>, ReadError> {
    let mut read = Vec::new();
    for path in paths {
        if total.load(Ordering::Relaxed) > limits.total_bytes {
            break;
        }
        let on_disk = root.join(path);
        let bytes =
            read_at_most(&on_disk, limits.file_bytes).map_err(|source| ReadError::Io { path: on_disk.clone(), source })?;
        total.fetch_add(bytes.len(), Ordering::Relaxed);
        read.push(File { path: path.clone(), bytes: bytes.into() });
    }
    Ok(read)
}

/// Reads one job file, for [`crate::load_file`]. `path` may be a symlink.
///
/// # Errors
/// Where the file is missing or cannot be read. A file over the limit is read to one byte over it, so that loading reports it.
pub fn read_file(path: &Path, limits: &Limits) -> Result<Vec<u8>, ReadError> {
    read_at_most(path, limits.file_bytes).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ReadError::Missing(path.to_owned()),
        _ => ReadError::Io { path: path.to_owned(), source },
    })
}

fn read_at_most(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    // Not a regular file by the time it is opened, or longer than the limit: never more than the limit and one byte is taken.
    let mut bytes = Vec::with_capacity(2048);
    fs::File::open(path)?.take(u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What is said about a symlink.
pub(crate) fn symlink(path: &str) -> Diagnostic {
    let hint = "copy what it points to: a link may lead out of what was reviewed";
    Diagnostic::of_file(path, "symlink", "symbolic links are not followed", hint)
}

/// What is said about a repository within the catalogue's own.
pub(crate) fn submodule(path: &str) -> Diagnostic {
    let hint = "a catalogue is one repository: copy the files";
    Diagnostic::of_file(path, "submodule", "submodules and other repositories are not followed", hint)
}

/// Runs `work` over consecutive parts of `items`, one part per processor, and gives the results in order.
pub(crate) fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&[T]) -> R + Sync) -> Vec<R> {
    /// Fewer items than this are not worth a thread.
    const WORTH_A_THREAD: usize = 64;
    let threads =
        std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(8).min(items.len().div_ceil(WORTH_A_THREAD));
    if threads <= 1 {
        return vec![work(items)];
    }
    let work = &work;
    std::thread::scope(|scope| {
        let parts: Vec<_> = items.chunks(items.len().div_ceil(threads)).map(|part| scope.spawn(move || work(part))).collect();
        parts.into_iter().map(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(files: &Files) -> Vec<(&str, &str)> {
        files.findings.iter().map(|finding| (finding.code, finding.path.as_str())).collect()
    }

    fn of(paths: &[&str]) -> Files {
        Files::new(paths.iter().map(|path| ((*path).to_owned(), b"x".to_vec())), &Limits::default())
    }

    #[test]
    fn jobs_at_any_depth_are_read_and_the_rest_is_skipped() {
        let files = of(&[
            "octavius.yaml",
            "b.json",
            "a/b/c.yml",
            "a/_defaults.yaml",
            "README.md",
            ".git/x.yaml",
            "_old/x.yaml",
            "_draft.yaml",
            ".hidden.yaml",
            "script.sh",
        ]);
        let paths: Vec<_> = files.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["a/_defaults.yaml", "a/b/c.yml", "b.json", "octavius.yaml"]);
        assert_eq!(codes(&files), []);
    }

    #[test]
    fn paths_that_lead_out_and_near_misses_are_findings() {
        let files = of(&["../x.yaml", "/x.yaml", "a//x.yaml", "a\n.yaml", "_defaults.yml", "octavius.yml", "a/octavius.yaml"]);
        assert_eq!(files.files, []);
        assert!(codes(&files).iter().all(|(code, _)| *code == "file-name"));
        assert_eq!(files.findings.len(), 7);
    }

    #[test]
    fn limits_name_the_file_and_the_limit() {
        let limits = Limits { file_bytes: 4, jobs: 2, total_bytes: 7 };
        let file = |path: &str, bytes: usize| (path.to_owned(), vec![b' '; bytes]);
        let big = Files::new([file("a.yaml", 5)], &limits);
        assert_eq!(codes(&big), [("file-size", "a.yaml")]);
        assert!(big.findings[0].message.contains("4 bytes"));
        let many = Files::new([file("a.yaml", 1), file("b.yaml", 1), file("c.yaml", 1), file("octavius.yaml", 1)], &limits);
        assert_eq!(codes(&many), [("too-many-jobs", "c.yaml")]);
        assert!(many.findings[0].message.contains("2 jobs"));
        let heavy = Files::new([file("a.yaml", 4), file("b.yaml", 4)], &limits);
        assert_eq!(codes(&heavy), [("catalog-size", "b.yaml")]);
    }

    #[test]
    fn defaults_files_are_counted_and_cut_before_jobs_are_looked_at() {
        let folders: Vec<_> = (0..=DEFAULTS_FILES).map(|number| format!("{number:04}/{DEFAULTS_FILE}")).collect();
        let mut paths: Vec<&str> = folders.iter().map(String::as_str).collect();
        paths.extend(["a.yaml", CATALOG_FILE]);
        let files = of(&paths);
        assert_eq!(codes(&files), [("too-many-defaults", "1000/_defaults.yaml")]);
        assert_eq!(files.files.len(), DEFAULTS_FILES + 1);
        assert!(files.files.iter().all(|file| !is_job(&file.path)));
        paths.remove(0);
        assert_eq!((codes(&of(&paths)), of(&paths).files.len()), (vec![], DEFAULTS_FILES + 2));
    }

    #[test]
    fn all_threads_together_read_no_more_than_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..20).map(|number| format!("{number:02}.yaml")).collect();
        for path in &paths {
            fs::write(dir.path().join(path), "x".repeat(10)).unwrap();
        }
        let limits = Limits { total_bytes: 50, ..Limits::default() };
        let total = AtomicUsize::new(0);
        let read = |paths: &[String]| read_within(dir.path(), paths, &limits, &total).unwrap().len();
        // One after the other, as two threads of which the first is the faster.
        assert_eq!((read(&paths[..10]), read(&paths[10..])), (6, 0), "one file over the limit is enough for the finding");
        assert_eq!(total.into_inner(), 60);
        let files = read_dir(dir.path(), &limits).unwrap();
        assert_eq!((files.files.len(), files.findings[0].code), (5, "catalog-size"));
    }

    /// A submodule that is checked out has a file `.git`, a repository that someone cloned there a folder; the root may have
    /// either.
    #[test]
    fn a_repository_within_the_catalogue_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for folder in [".git", "a/module/jobs", "b/clone/.git", "c"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for (path, text) in [
            ("octavius.yaml", "catalog: x"),
            ("a/module/.git", "gitdir: ../../.git/modules/module"),
            ("a/module/jobs/x.yaml", "name: x"),
            ("b/clone/y.yaml", "name: y"),
            ("c/z.yaml", "name: z"),
        ] {
            fs::write(dir.path().join(path), text).unwrap();
        }
        let files = read_dir(dir.path(), &Limits::default()).unwrap();
        assert_eq!(files.files.iter().map(|file| &*file.path).collect::<Vec<_>>(), ["c/z.yaml", "octavius.yaml"]);
        let root = dir.path().to_str().unwrap();
        let mut found = codes(&files);
        found.sort_unstable();
        assert_eq!(
            found,
            [("submodule", format!("{root}/a/module").as_str()), ("submodule", format!("{root}/b/clone").as_str())]
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_is_read_and_its_symlinks_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("team/.github")).unwrap();
        fs::write(dir.path().join("octavius.yaml"), "catalog: x").unwrap();
        fs::write(dir.path().join("team/a.yaml"), "name: a").unwrap();
        fs::write(dir.path().join("team/.github/b.yaml"), "name: b").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("team/link.yaml")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("linked")).unwrap();
        let files = read_dir(dir.path(), &Limits::default()).unwrap();
        let paths: Vec<_> = files.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["octavius.yaml", "team/a.yaml"]);
        let root = dir.path().to_str().unwrap();
        let mut found = codes(&files);
        found.sort_unstable();
        assert_eq!(
            found,
            [("symlink", format!("{root}/linked").as_str()), ("symlink", format!("{root}/team/link.yaml").as_str())]
        );
        // What the user names himself is followed.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("team", &link).unwrap();
        let files = read_dir(&link, &Limits::default()).unwrap();
        assert_eq!(files.files.iter().map(|file| &*file.path).collect::<Vec<_>>(), ["a.yaml"]);
        assert_eq!(files.display_prefix, link.to_str().unwrap());
        let link = dir.path().join("link.yaml");
        std::os::unix::fs::symlink("team/a.yaml", &link).unwrap();
        assert_eq!(read_file(&link, &Limits::default()).unwrap(), b"name: a");
        let nowhere = dir.path().join("nowhere.yaml");
        std::os::unix::fs::symlink("gone.yaml", &nowhere).unwrap();
        assert!(matches!(read_file(&nowhere, &Limits::default()), Err(ReadError::Missing(_))));
        assert!(matches!(read_dir(&nowhere, &Limits::default()), Err(ReadError::Missing(_))));
        assert!(matches!(read_dir(&dir.path().join("nowhere"), &Limits::default()), Err(ReadError::Missing(_))));
    }
}
