//! By what an executor is known to controllers: its tokens, which it makes for itself, and the file that holds them.
//!
//! A token is in the file before any controller hears of it, so that a crash at any point leaves one that is good: while it is replaced, there
//! are two, and whichever the controller takes is the executor's.

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use octavius_core::ExecutorId;
use octavius_core::token::{Token, TokenKind};
use serde::{Deserialize, Serialize};

/// The version of the file that this code writes.
const VERSION: u32 = 1;

/// An executor's tokens. `Debug` hides them.
#[derive(Clone)]
pub struct Credential {
    token: String,
    next: Option<String>,
    /// Where it is kept, and of which executor; none for a token that was given by hand, which is never replaced.
    kept: Option<(PathBuf, ExecutorId)>,
}

/// The file.
#[derive(Serialize, Deserialize)]
struct Kept {
    format_version: u32,
    id: ExecutorId,
    token: String,
    /// The token that takes its place, which a controller may know already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Why a credential cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file cannot be read or written.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others can read it.
    #[error("{} can be read by others (mode {mode:03o}): `chmod 600` it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It holds something else.
    #[error("{} is not an executor's credential: remove it and register again", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A newer version wrote it.
    #[error("{} has format version {version}, this version reads up to {VERSION}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// It is another executor's.
    #[error("{} belongs to executor `{owner}`, not to `{id}`: give each executor a folder of its own", path.display())]
    Others {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        owner: ExecutorId,
        /// Whose it is not.
        id: ExecutorId,
    },
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("kept", &self.kept).finish_non_exhaustive()
    }
}

/// A new token of an executor.
fn new_token() -> io::Result<String> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    Ok(Token::from_random(TokenKind::Executor, &random).reveal().to_owned())
}

/// What a controller is shown of a token.
fn digest(token: &str) -> Vec<u8> {
    octavius_core::Digest::of(token.as_bytes()).as_bytes().to_vec()
}

impl Credential {
    /// A token that was given by hand. It is not kept, and not replaced.
    #[must_use]
    pub fn given(token: &str) -> Self {
        Self { token: token.to_owned(), next: None, kept: None }
    }

    /// The file in an executor's data folder.
    #[must_use]
    pub fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("credential.json")
    }

    /// The same before a controller has said that the executor is registered.
    fn pending_path(data_dir: &Path) -> PathBuf {
        data_dir.join("credential.json.pending")
    }

    /// What the registration has left in the data folder, if it has.
    ///
    /// # Errors
    /// Where the file cannot be understood, is another executor's, or can be read by others.
    pub fn read(data_dir: &Path, id: &ExecutorId) -> Result<Option<Self>, CredentialError> {
        Self::read_at(Self::path(data_dir), id)
    }

    fn read_at(path: PathBuf, id: &ExecutorId) -> Result<Option<Self>, CredentialError> {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CredentialError::File { path, source }),
        };
        let mode = match fs::metadata(&path) {
            Ok(metadata) => metadata.permissions().mode() & 0o777,
            Err(source) => return Err(CredentialError::File { path, source }),
        };
        if mode & 0o077 != 0 {
            return Err(CredentialError::Exposed { path, mode });
        }
        let Ok(kept) = serde_json::from_str::<Kept>(&text) else { return Err(CredentialError::Foreign { path }) };
        if kept.format_version > VERSION {
            return Err(CredentialError::Newer { path, version: kept.format_version });
        }
        if kept.id != *id {
            return Err(CredentialError::Others { path, owner: kept.id, id: id.clone() });
        }
        Ok(Some(Self { token: kept.token, next: kept.next, kept: Some((path, kept.id)) }))
    }

    /// The credential of an executor that is about to register: the same after a registration whose answer was lost, or whose executor died.
    ///
    /// # Errors
    /// Where it cannot be kept.
    pub(crate) fn prepare(data_dir: &Path, id: &ExecutorId) -> Result<Self, CredentialError> {
        let path = Self::pending_path(data_dir);
        if let Ok(Some(pending)) = Self::read_at(path.clone(), id) {
            return Ok(pending);
        }
        let failed = |source| CredentialError::File { path: path.clone(), source };
        let token = new_token().map_err(failed)?;
        let made = Self { token, next: None, kept: Some((path.clone(), id.clone())) };
        made.save()?;
        Ok(made)
    }

    /// It is registered with this.
    ///
    /// # Errors
    /// Where it cannot be kept.
    pub(crate) fn registered(self, data_dir: &Path) -> Result<Self, CredentialError> {
        let path = Self::path(data_dir);
        let Some((pending, id)) = self.kept else { return Ok(self) };
        let registered = Self { kept: Some((path, id)), ..self };
        registered.save()?;
        let _ = fs::remove_file(pending); // where it stays, it is as good
        Ok(registered)
    }

    /// The token to call with.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// What a controller is shown of it.
    pub(crate) fn digest(&self) -> Vec<u8> {
        digest(&self.token)
    }

    /// Whether it can be replaced: a token that was given by hand cannot be, since nobody would find the new one.
    pub(crate) fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// Makes the token that is to take this one's place, and keeps both; what a controller is to be shown of it.
    ///
    /// # Errors
    /// Where they cannot be kept.
    pub(crate) fn begin_rotation(&mut self) -> Result<Vec<u8>, CredentialError> {
        if let Some(next) = &self.next {
            return Ok(digest(next)); // of a rotation that was broken off
        }
        let path = self.kept.as_ref().map(|(path, _)| path.clone()).unwrap_or_default();
        let next = new_token().map_err(|source| CredentialError::File { path, source })?;
        let both = Self { next: Some(next.clone()), ..self.clone() };
        both.save()?;
        *self = both;
        Ok(digest(&next))
    }

    /// Tries the other of two tokens after one was refused; both stay kept until one of them is settled. False where there is none.
    pub(crate) fn swap(&mut self) -> bool {
        match self.next.take() {
            Some(next) => {
                self.next = Some(std::mem::replace(&mut self.token, next));
                true
            }
            None => false,
        }
    }

    /// Goes on with the new token, if there is one: a controller knows it. False where there is none.
    ///
    /// # Errors
    /// Where that cannot be kept; what is kept is good then, too.
    pub(crate) fn finish_rotation(&mut self) -> Result<bool, CredentialError> {
        let Some(next) = self.next.take() else { return Ok(false) };
        self.token = next;
        self.save()?;
        Ok(true)
    }

    /// A controller has taken the token, after another was refused: that one is forgotten.
    ///
    /// # Errors
    /// Where that cannot be kept; what is kept is good then, too.
    pub(crate) fn settle(&mut self) -> Result<(), CredentialError> {
        self.next = None;
        self.save()
    }

    /// Writes the file: whole, or not at all; for its owner alone.
    fn save(&self) -> Result<(), CredentialError> {
        let Some((path, id)) = &self.kept else { return Ok(()) };
        let failed = |source| CredentialError::File { path: path.clone(), source };
        let kept = Kept { format_version: VERSION, id: id.clone(), token: self.token.clone(), next: self.next.clone() };
        let text = serde_json::to_vec_pretty(&kept).map_err(|error| failed(error.into()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let new = path.with_extension("new");
        let written = (|| {
            let _ = fs::remove_file(&new); // what is left of a crash may have other permissions
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, path)?;
            fs::File::open(folder)?.sync_all()
        })();
        written.map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_registration_that_is_repeated_is_made_with_the_same_token() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, id) = (folder.path().join("data"), ExecutorId::new("e").unwrap());
        assert!(Credential::read(&dir, &id).unwrap().is_none());
        let first = Credential::prepare(&dir, &id).unwrap();
        assert_eq!(Credential::prepare(&dir, &id).unwrap().token(), first.token());
        assert!(Credential::read(&dir, &id).unwrap().is_none(), "it is not registered yet");
        let token = first.token().to_owned();
        first.registered(&dir).unwrap();
        let kept = Credential::read(&dir, &id).unwrap().unwrap();
        assert_eq!((kept.token(), kept.is_kept(), mode(&Credential::path(&dir))), (token.as_str(), true, 0o600));
        assert!(!Credential::pending_path(&dir).exists());
        assert_ne!(Credential::prepare(&dir, &id).unwrap().token(), token, "another registration has another token");
        assert!(!format!("{kept:?}").contains("octe_"));
    }

    #[test]
    fn wherever_a_rotation_is_broken_off_both_tokens_are_kept_until_one_is_enough() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, id) = (folder.path(), ExecutorId::new("e").unwrap());
        let read = || Credential::read(dir, &id).unwrap().unwrap();
        let mut credential = Credential::prepare(dir, &id).unwrap().registered(dir).unwrap();
        let old = credential.token().to_owned();
        assert!(!credential.finish_rotation().unwrap());
        let shown = credential.begin_rotation().unwrap();
        let mut after_a_crash = read();
        assert_eq!(after_a_crash.token(), old);
        assert_eq!(after_a_crash.begin_rotation().unwrap(), shown, "the same one is shown again");
        assert!(after_a_crash.finish_rotation().unwrap());
        assert_eq!(read().digest(), shown);
        assert!(!read().finish_rotation().unwrap());
        assert_eq!(mode(&Credential::path(dir)), 0o600);
    }

    #[test]
    fn a_token_that_is_refused_is_kept_until_the_other_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, id) = (folder.path(), ExecutorId::new("e").unwrap());
        let read = || Credential::read(dir, &id).unwrap().unwrap();
        let mut credential = Credential::prepare(dir, &id).unwrap().registered(dir).unwrap();
        assert!(!credential.swap());
        let old = credential.token().to_owned();
        let new = credential.begin_rotation().unwrap();
        assert!(credential.swap());
        assert_eq!((credential.digest(), read().token()), (new.clone(), old.as_str()));
        assert!(credential.swap());
        assert_eq!(credential.token(), old, "the other was refused, too");
        assert!(credential.swap());
        credential.settle().unwrap();
        assert_eq!(read().digest(), new);
        assert!(!read().swap());
    }

    #[test]
    fn a_credential_that_others_can_read_or_have_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, id) = (folder.path(), ExecutorId::new("e").unwrap());
        Credential::prepare(dir, &id).unwrap().registered(dir).unwrap();
        let path = Credential::path(dir);
        let other = Credential::read(dir, &ExecutorId::new("f").unwrap()).unwrap_err().to_string();
        assert!(other.contains("belongs to executor `e`, not to `f`"), "{other}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let exposed = Credential::read(dir, &id).unwrap_err().to_string();
        assert!(exposed.contains("mode 640") && exposed.contains("chmod 600"), "{exposed}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, r#"{"format_version": 9, "id": "e", "token": "octe_x"}"#).unwrap();
        assert!(Credential::read(dir, &id).unwrap_err().to_string().contains("format version 9"));
        fs::write(&path, "octe_x").unwrap();
        let foreign = Credential::read(dir, &id).unwrap_err().to_string();
        assert!(foreign.contains("register again") && !foreign.contains("octe_"), "{foreign}");
    }
}
