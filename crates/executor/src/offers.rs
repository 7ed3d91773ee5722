//! What an executor's owner offers to jobs, of all that the executor can read where it runs: variables of its environment, files, Kubernetes
//! Secrets. A job's `from` reaches what is offered here and nothing else, so that whoever writes a catalogue cannot read what the executor's
//! owner did not mean for it. Nothing is looked at before it is known to be offered: a refusal does not even tell whether it is there.

mod found;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};

use octavius_core::ExecutorId;
use octavius_core::definition::{KubernetesSecret, Secret, SecretSource};
use octavius_core::execution::{Ending, Reason, State};
use serde::{Deserialize, Serialize};

pub(crate) use found::named;
pub use found::{FoundOffer, check_offers};

/// What no job gets, whatever is offered: variables of ours, and the first Octavius' variable for a token.
const OURS: &str = "OCTAVIUS_";
const SEED_TOKEN: &str = "ACCESS_TOKEN";

/// What an executor offers to jobs. Nothing by default; on Kubernetes, what [`crate::KubernetesOptions::secret`] names is offered besides.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SecretOffers {
    /// Variables of the executor's environment, by name; `*` stands for any characters.
    pub environment: Vec<String>,
    /// Files, by absolute path; with a slash at its end, a folder and all that is below it. Links are followed as far as they stay there.
    pub files: Vec<String>,
    /// Kubernetes Secrets: `NAME` for one in any namespace that the executor uses, or `NAMESPACE/NAME`; `*` stands for any characters of
    /// either.
    pub kubernetes: Vec<String>,
}

/// Why an offer cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{offer}\" {problem}")]
pub struct OfferError {
    /// The offer.
    pub offer: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl SecretOffers {
    /// Everything that the executor can read: for one whose jobs are its owner's own, on the owner's own machine.
    #[must_use]
    pub fn everything() -> Self {
        Self { environment: vec!["*".to_owned()], files: vec!["/".to_owned()], kubernetes: Vec::new() }
    }

    /// Adds an offer as a flag has it: `environment:NAME`, `file:PATH` or `kubernetes:NAME`.
    ///
    /// # Errors
    /// Where it is none.
    pub fn add(&mut self, offer: &str) -> Result<(), OfferError> {
        let wrong = || OfferError {
            offer: offer.to_owned(),
            problem: "is not an offer: write environment:NAME, file:PATH or kubernetes:NAME",
        };
        let (kind, what) = offer.split_once(':').ok_or_else(wrong)?;
        let list = match kind {
            "environment" => &mut self.environment,
            "file" => &mut self.files,
            "kubernetes" => &mut self.kubernetes,
            _ => return Err(wrong()),
        };
        list.push(what.to_owned());
        self.check()
    }

    /// Sees that every offer can be.
    ///
    /// # Errors
    /// The first that cannot.
    pub fn check(&self) -> Result<(), OfferError> {
        let is_variable = |name: &str| !name.is_empty() && !name.contains(['=', '\0']);
        let is_file = |path: &str| is_plain(Path::new(path));
        let is_kubernetes = |name: &str| {
            let parts: Vec<&str> = name.split('/').collect();
            let known = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.*".contains(&b));
            parts.len() <= 2 && parts.iter().all(|part| !part.is_empty() && known(part))
        };
        let wrong = |list: &[String], can_be: &dyn Fn(&str) -> bool, problem: &'static str| {
            let offer = list.iter().find(|offer| !can_be(offer))?;
            Some(OfferError { offer: offer.clone(), problem })
        };
        let wrong = wrong(&self.environment, &is_variable, "is not the name of a variable")
            .or_else(|| wrong(&self.files, &is_file, "is not an absolute path without `..`"))
            .or_else(|| wrong(&self.kubernetes, &is_kubernetes, "is not NAME or NAMESPACE/NAME of a Kubernetes Secret"));
        wrong.map_or(Ok(()), Err)
    }

    /// Whether a variable of the environment is offered.
    #[must_use]
    pub fn has_variable(&self, name: &str) -> bool {
        !name.starts_with(OURS) && name != SEED_TOKEN && self.environment.iter().any(|offer| matches(offer, name))
    }

    /// Whether a Kubernetes Secret is offered.
    #[must_use]
    pub fn has_kubernetes(&self, namespace: &str, name: &str) -> bool {
        self.kubernetes.iter().any(|offer| match offer.split_once('/') {
            Some((in_namespace, offer)) => matches(in_namespace, namespace) && matches(offer, name),
            None => matches(offer, name),
        })
    }

    /// The offers that a path is part of, by its text alone.
    fn of_file(&self, path: &Path) -> Vec<&str> {
        if !is_plain(path) {
            return Vec::new();
        }
        let holds = |offer: &&str| {
            let same = path == Path::new(offer);
            if offer.ends_with('/') { path.starts_with(offer) && !same } else { same }
        };
        self.files.iter().map(String::as_str).filter(holds).collect()
    }
}

/// Whether a path is absolute, and says where it leads without a look at the disk.
fn is_plain(path: &Path) -> bool {
    path.is_absolute() && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

/// Whether `text` is what `pattern` says, in which `*` stands for any characters, or none.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// What one executor offers, with what it says of itself where it refuses.
#[derive(Clone)]
pub(crate) struct Offered {
    pub(crate) executor: ExecutorId,
    pub(crate) offers: SecretOffers,
    /// The executor's own folder, absolute and without links: its credential and what its runs were given are nobody's.
    pub(crate) own_folder: PathBuf,
}

impl fmt::Debug for Offered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offered").field("executor", &self.executor).field("offers", &self.offers).finish_non_exhaustive()
    }
}

/// Why an offered file is not to be had.
#[derive(Debug)]
pub(crate) enum NoFile {
    /// It leads to something that is not offered.
    Elsewhere,
    /// It is not there, or is no file.
    Io(io::Error),
}

impl Offered {
    /// That a secret's source is not offered: the attempt's ending.
    pub(crate) fn refusal(&self, secret: &Secret, source: &SecretSource, namespace: &str) -> Ending {
        let (what, key) = match source {
            SecretSource::Environment(variable) if variable.starts_with(OURS) || variable == SEED_TOKEN => {
                let message = format!("secret `{}`: {variable} is Octavius' own and no job gets it", secret.name);
                return Ending::because(State::Failed, Reason::SECRET_NOT_OFFERED, message);
            }
            SecretSource::Environment(variable) => (format!("the environment variable {variable}"), "environment"),
            SecretSource::File(path) => (format!("the file {path}"), "files"),
            SecretSource::Kubernetes(KubernetesSecret { secret, .. }) => {
                (format!("the Kubernetes Secret `{secret}` in namespace {namespace}"), "kubernetes")
            }
        };
        let (name, executor) = (&secret.name, &self.executor);
        let message = format!(
            "secret `{name}`: executor `{executor}` does not offer {what}: its owner adds it to `secrets.{key}` of the executor's \
             configuration, or the job's `from` is changed"
        );
        Ending::because(State::Failed, Reason::SECRET_NOT_OFFERED, message)
    }

    /// Opens an offered file, if it is a plain one and still is within what was offered once all links are followed. None where its path is
    /// not offered.
    pub(crate) fn open(&self, path: &Path) -> Option<Result<File, NoFile>> {
        let offers = self.offers.of_file(path);
        (!offers.is_empty()).then(|| self.open_within(&offers, path))
    }

    fn open_within(&self, offers: &[&str], path: &Path) -> Result<File, NoFile> {
        // Only what it is, and where: opening what is not a plain file can do things, and hang.
        let handle = OpenOptions::new().read(true).custom_flags(path_only()).open(path).map_err(NoFile::Io)?;
        if !handle.metadata().map_err(NoFile::Io)?.is_file() {
            return Err(NoFile::Io(io::Error::other("it is not a file")));
        }
        // By the handle, so that nothing can be put in its place between the look and the reading.
        let itself = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
        let really = std::fs::read_link(&itself).map_err(NoFile::Io)?;
        // A file that was named is its owner's word, wherever it leads; a folder is what is in it.
        let within =
            |offer: &&str| !offer.ends_with('/') || std::fs::canonicalize(offer).is_ok_and(|folder| really.starts_with(folder));
        if !offers.iter().any(within) || really.starts_with(&self.own_folder) {
            return Err(NoFile::Elsewhere);
        }
        File::open(itself).map_err(NoFile::Io)
    }
}

/// `O_PATH`, in the type that the standard library wants.
fn path_only() -> i32 {
    i32::try_from(rustix::fs::OFlags::PATH.bits()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::symlink;

    use super::*;

    fn offers(json: serde_json::Value) -> SecretOffers {
        let offers: SecretOffers = serde_json::from_value(json).unwrap();
        offers.check().unwrap();
        offers
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, yes, no) in [
            ("PAY_*", vec!["PAY_", "PAY_TOKEN"], vec!["PAY", "XPAY_TOKEN"]),
            ("*_TOKEN", vec!["_TOKEN", "A_TOKEN"], vec!["TOKEN", "A_TOKENS"]),
            ("A*B*C", vec!["ABC", "AxBxBxC"], vec!["AC", "ABCx", "AB"]),
            ("A*A", vec!["AA", "AxA"], vec!["A"]),
            ("EXACT", vec!["EXACT"], vec!["EXACTLY", "exact", ""]),
            ("*", vec!["", "x"], vec![]),
        ] {
            assert!(yes.iter().all(|text| matches(pattern, text)), "{pattern}");
            assert!(!no.iter().any(|text| matches(pattern, text)), "{pattern}");
        }
    }

    #[test]
    fn what_is_octavius_own_is_never_offered() {
        let all = SecretOffers::everything();
        assert!(all.has_variable("TOKEN"));
        assert!(!all.has_variable("OCTAVIUS_TOKEN") && !all.has_variable("ACCESS_TOKEN"));
        assert!(!SecretOffers::default().has_variable("TOKEN"));
    }

    #[test]
    fn a_kubernetes_secret_is_offered_by_name_and_by_namespace() {
        let offers = offers(serde_json::json!({"kubernetes": ["gateway", "payments/*", "*/shared-*"]}));
        for (namespace, name) in [("jobs", "gateway"), ("payments", "any"), ("jobs", "shared-a")] {
            assert!(offers.has_kubernetes(namespace, name), "{namespace}/{name}");
        }
        for (namespace, name) in [("jobs", "any"), ("jobs", "gateway2"), ("payments2", "any")] {
            assert!(!offers.has_kubernetes(namespace, name), "{namespace}/{name}");
        }
    }

    #[test]
    fn an_offer_that_cannot_be_is_named() {
        let mut offers = SecretOffers::default();
        for wrong in [
            "TOKEN",
            "env:TOKEN",
            "environment:",
            "environment:A=B",
            "file:secret",
            "file:/a/../b",
            "kubernetes:a/b/c",
            "kubernetes:A",
        ] {
            let error = offers.clone().add(wrong).unwrap_err();
            assert!(error.to_string().contains(&error.offer) && wrong.ends_with(&error.offer), "{wrong}: {error}");
        }
        for good in ["environment:PAY_*", "file:/run/secrets/", "file:/etc/token", "kubernetes:jobs/*"] {
            offers.add(good).unwrap();
        }
        assert_eq!(offers.files, ["/run/secrets/", "/etc/token"]);
    }

    #[test]
    fn a_file_is_opened_where_it_is_offered_and_nothing_leads_out_of_there() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().canonicalize().unwrap();
        for folder in ["offered/deep", "other", "own", "shelf"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        for file in ["offered/token", "offered/deep/token", "other/token", "other/named", "own/credential.json"] {
            std::fs::write(root.join(file), file).unwrap();
        }
        // As Kubernetes mounts a Secret: links that stay within the folder.
        symlink("deep/token", root.join("offered/link")).unwrap();
        symlink("../other/token", root.join("offered/out")).unwrap();
        symlink(root.join("other"), root.join("offered/folder-out")).unwrap();
        symlink("named", root.join("other/to-named")).unwrap();
        symlink("../other/token", root.join("shelf/named")).unwrap();
        symlink("../other/token", root.join("shelf/out")).unwrap();
        symlink("offered", root.join("alias")).unwrap();
        symlink(root.join("own/credential.json"), root.join("other/own")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            root.join("offered/pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        let path = |name: &str| root.join(name).display().to_string();
        let files = [path("offered/"), path("alias/"), path("other/to-named"), path("other/own"), path("own/")];
        // A folder, and what leads out of it by name: the wider offer takes nothing from the other, whichever stands first.
        let files = [&files[..], &[path("shelf/"), path("shelf/named")]].concat();
        let offered = Offered {
            executor: ExecutorId::new("e1").unwrap(),
            offers: offers(serde_json::json!({ "files": files })),
            own_folder: root.join("own"),
        };
        let read = |name: &str| match offered.open(Path::new(&path(name))) {
            None => "not offered".to_owned(),
            Some(Err(NoFile::Elsewhere)) => "elsewhere".to_owned(),
            Some(Err(NoFile::Io(error))) => error.to_string(),
            Some(Ok(mut file)) => {
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                text
            }
        };
        for (name, expected) in [
            ("offered/token", "offered/token"),
            ("offered/deep/token", "offered/deep/token"),
            ("offered/link", "offered/deep/token"),
            ("alias/token", "offered/token"),
            ("other/to-named", "other/named"),
            ("offered/out", "elsewhere"),
            ("offered/folder-out/token", "elsewhere"),
            ("shelf/named", "other/token"),
            ("shelf/out", "elsewhere"),
            ("other/token", "not offered"),
            ("other/named", "not offered"),
            ("offered/../other/token", "not offered"),
            ("offered", "not offered"),
            ("offered-too", "not offered"),
            ("own/credential.json", "elsewhere"),
            ("other/own", "elsewhere"),
            ("offered/deep", "it is not a file"),
            ("offered/pipe", "it is not a file"),
        ] {
            assert_eq!(read(name), expected, "{name}");
        }
        assert!(read("offered/none").contains("No such file"));
        assert!(offered.open(Path::new("offered/token")).is_none(), "a relative path is nowhere");
    }
}
