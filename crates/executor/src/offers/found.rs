//! Whether what an executor offers is there: asked by a person, before a job finds out.

use std::io;
use std::path::Path;

use serde::Serialize;

use super::{NoFile, Offered, SecretOffers};
use octavius_core::ExecutorId;

/// Variables and keys that are named of one offer, at most.
const NAMED: usize = 8;

/// Something that is offered, and what was found of it. Never holds a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FoundOffer {
    /// `environment`, `file` or `kubernetes`.
    pub kind: &'static str,
    /// The offer, as the configuration has it; the Secret by its namespace and name, in Kubernetes.
    pub offer: String,
    /// Whether something is there; none where that cannot be known here.
    pub found: Option<bool>,
    /// What is there, or what stands against it.
    pub detail: String,
}

/// Some names, and how many more there are.
pub(crate) fn named(mut names: Vec<String>) -> String {
    names.sort_unstable();
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    let names = names.join(", ");
    if more > 0 { format!("{names} and {more} more") } else { names }
}

/// Looks at what is offered of this process' environment and of this machine's files, as the process runner would for a job.
#[must_use]
pub fn check_offers(executor: &ExecutorId, offers: &SecretOffers, data_dir: &Path) -> Vec<FoundOffer> {
    let own: Vec<String> = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    let environment = offers.environment.iter().map(|offer| {
        let only = SecretOffers { environment: vec![offer.clone()], ..SecretOffers::default() };
        let names: Vec<String> = own.iter().filter(|name| only.has_variable(name)).cloned().collect();
        let found = !names.is_empty();
        let detail = if found { named(names) } else { "no such variable in the environment of this command".to_owned() };
        FoundOffer { kind: "environment", offer: offer.clone(), found: Some(found), detail }
    });
    let own_folder = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
    let offered = Offered { executor: executor.clone(), offers: offers.clone(), own_folder };
    let files = offers.files.iter().map(|offer| {
        let (found, detail) = match look_at(&offered, offer) {
            Ok(detail) => (true, detail),
            Err(error) => (false, error.to_string()),
        };
        FoundOffer { kind: "file", offer: offer.clone(), found: Some(found), detail }
    });
    environment.chain(files).collect()
}

fn look_at(offered: &Offered, offer: &str) -> io::Result<String> {
    if offer.ends_with('/') {
        let count = std::fs::read_dir(offer)?.count();
        return Ok(format!("a folder with {count} entries"));
    }
    match offered.open(Path::new(offer)) {
        Some(Ok(_)) => Ok("a file that can be read".to_owned()),
        Some(Err(NoFile::Io(error))) => Err(error),
        Some(Err(NoFile::Elsewhere)) | None => Err(io::Error::other("it is the executor's own: no job gets it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_offered_and_not_there_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("token"), "hunter2").unwrap();
        std::fs::create_dir(path("own")).unwrap();
        std::fs::write(path("own/credential.json"), "hunter2").unwrap();
        let offers = SecretOffers {
            environment: vec!["PATH".to_owned(), "NOT_S*T".to_owned()],
            files: vec![path("token"), path("none"), format!("{}/", folder.path().display()), path("own/credential.json")],
            kubernetes: Vec::new(),
        };
        let found = check_offers(&ExecutorId::new("e1").unwrap(), &offers, &folder.path().join("own"));
        let told: Vec<_> = found.iter().map(|found| (found.found, found.detail.as_str())).collect();
        assert_eq!(told[0], (Some(true), "PATH"));
        assert_eq!(told[1].0, Some(false));
        assert_eq!(told[2], (Some(true), "a file that can be read"));
        assert!(told[3].0 == Some(false) && told[3].1.contains("No such file"), "{told:?}");
        assert_eq!(told[4], (Some(true), "a folder with 2 entries"));
        assert_eq!(told[5], (Some(false), "it is the executor's own: no job gets it"));
        assert!(!format!("{found:?}").contains("hunter2"));
    }

    #[test]
    fn many_names_are_counted() {
        let names: Vec<String> = (0..10).map(|n| format!("N{n}")).collect();
        assert_eq!(named(names), "N0, N1, N2, N3, N4, N5, N6, N7 and 2 more");
    }
}
