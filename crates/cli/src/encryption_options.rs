//! With which keys a controller encrypts sensitive arguments, as flags, environment and `controller_config.json` say, and the files that hold
//! them.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use clap::Args;
use octavius_controller::private::{self, exposed};
use octavius_controller::{Encryption, EncryptionKey};

use crate::daemon::Settings;
use crate::env;
use crate::error::{Failure, Outcome};
use crate::store_options::StoreChoice;

/// The key of the configuration file.
pub const KEY: &str = "encryption_key_files";

/// The file beside an embedded store.
const FILE: &str = "encryption.key";

/// What stands for no file: sensitive arguments are kept in the clear.
const NONE: &str = "none";

/// Most bytes of a file that holds a key, which has 45.
const MOST: u64 = 1024;

/// The flag that says which keys are meant.
#[derive(Debug, Clone, Default, Args)]
pub struct EncryptionArgs {
    /// File of a key for sensitive arguments, as `octavius controller new-key` makes one; may be repeated: the first encrypts, all are read
    /// with. All controllers of a store have the same. none keeps sensitive arguments in the clear [default: encryption.key beside an
    /// embedded store, made where it is missing; with etcd, executions with sensitive arguments are refused]
    #[arg(long, value_name = "FILE", value_delimiter = ',', env = env::ENCRYPTION_KEY_FILE, help_heading = "Options")]
    encryption_key_file: Vec<String>,
}

/// The keys that are meant, and not read yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EncryptionChoice {
    /// Nothing is said.
    Unset,
    /// None, as was said.
    Off,
    /// Those in these files.
    Files(Vec<PathBuf>),
    /// The one in this file, which is made where it is missing.
    Own(PathBuf),
}

/// A key, and the file that it is in.
#[derive(Debug)]
pub struct KeyFile {
    /// The file.
    pub path: PathBuf,
    /// What is in it.
    pub key: EncryptionKey,
}

impl EncryptionArgs {
    /// What is meant, for this store.
    ///
    /// # Errors
    /// Where `none` stands beside files.
    pub fn choice(&self, settings: &Settings, store: &StoreChoice) -> Outcome<EncryptionChoice> {
        let (given, from_flags) = match self.encryption_key_file.as_slice() {
            [] => (settings.list(KEY)?, false),
            given => (given.to_vec(), true),
        };
        if given.is_empty() {
            return Ok(match store {
                StoreChoice::Embedded(dir) => EncryptionChoice::within(dir),
                StoreChoice::Etcd(_) => EncryptionChoice::Unset,
            });
        }
        if given == [NONE] {
            return Ok(EncryptionChoice::Off);
        }
        if given.iter().any(|file| file == NONE) {
            return Err(Failure::usage(format!("`{NONE}` beside files of encryption keys: name one or the other")));
        }
        let path = |file: &String| if from_flags { PathBuf::from(file) } else { settings.beside(Path::new(file)) };
        Ok(EncryptionChoice::Files(given.iter().map(path).collect()))
    }
}

impl EncryptionChoice {
    /// The key of what keeps everything in this folder.
    #[must_use]
    pub fn within(dir: &Path) -> Self {
        Self::Own(dir.join(FILE))
    }

    /// Reads the keys, and makes the own one where it is missing.
    ///
    /// # Errors
    /// Where a file is missing, holds no key, can be read by others, or two hold the same key.
    pub fn open(&self) -> Outcome<Encryption> {
        if let Self::Own(path) = self
            && !path.exists()
        {
            write_new(path, &EncryptionKey::generate())?;
            tracing::info!(path = %path.display(), "made a key for sensitive arguments: without it, nobody reads what it encrypts");
        }
        match self {
            Self::Unset => Ok(Encryption::Unset),
            Self::Off => Ok(Encryption::Off),
            Self::Files(_) | Self::Own(_) => Ok(Encryption::Keys(self.read()?.into_iter().map(|file| file.key).collect())),
        }
    }

    /// The keys that are there, each with its file.
    ///
    /// # Errors
    /// Where a file that is named is missing, holds no key, can be read by others, or two hold the same key.
    pub fn read(&self) -> Outcome<Vec<KeyFile>> {
        let paths = match self {
            Self::Unset | Self::Off => Vec::new(),
            Self::Files(paths) => paths.clone(),
            Self::Own(path) => Vec::from_iter(path.exists().then(|| path.clone())),
        };
        let mut files: Vec<KeyFile> = Vec::new();
        for path in paths {
            let key = read(&path)?;
            if let Some(same) = files.iter().find(|known| known.key.id() == key.id()) {
                return Err(Failure::usage(format!("{} holds the same key as {}", path.display(), same.path.display()))
                    .hint("name each key once: the first encrypts, the others are read with"));
            }
            files.push(KeyFile { path, key });
        }
        Ok(files)
    }
}

/// Reads a key's file, if nobody but its owner can.
fn read(path: &Path) -> Outcome<EncryptionKey> {
    let unreadable = |error| Failure::file("read the encryption key from", path, error);
    let file = File::open(path).map_err(|error| {
        let missing = error.kind() == io::ErrorKind::NotFound;
        let failure = unreadable(error);
        if missing { failure.hint(format!("octavius controller new-key {}", path.display())) } else { failure }
    })?;
    let metadata = file.metadata().map_err(unreadable)?;
    if let Some(mode) = exposed(&metadata) {
        return Err(Failure::usage(format!("{} can be read by others (mode {mode:03o})", path.display()))
            .hint(format!("chmod 600 {}", path.display())));
    }
    let mut text = String::new();
    file.take(MOST).read_to_string(&mut text).map_err(unreadable)?;
    EncryptionKey::parse(&text).map_err(|error| {
        Failure::usage(format!("{} is {error}", path.display())).hint("octavius controller new-key FILE makes one, in a new file")
    })
}

/// Writes a key into a file that is not there yet, for its owner alone: whole, or not at all.
///
/// # Errors
/// Where the file is there, or cannot be written.
pub fn write_new(path: &Path, key: &str) -> Outcome<()> {
    private::write_new(path, format!("{key}\n").as_bytes(), 0o600).map_err(|error| {
        let there = error.kind() == io::ErrorKind::AlreadyExists;
        let failure = Failure::file("write the encryption key to", path, error);
        if there {
            failure.hint("a key that is overwritten is gone, and all that it encrypts: name another file")
        } else {
            failure
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn told(failure: &Failure) -> String {
        format!("{:#}", failure.error.as_ref().unwrap())
    }

    fn choice(json: &str, flags: &[&str], store: &StoreChoice) -> Outcome<EncryptionChoice> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("controller_config.json");
        std::fs::write(&path, json.replace("HERE", folder.path().to_str().unwrap())).unwrap();
        let settings = Settings::read(Some(&path), "none", &[KEY]).unwrap();
        let args = EncryptionArgs { encryption_key_file: flags.iter().map(|&flag| flag.to_owned()).collect() };
        args.choice(&settings, store)
    }

    #[test]
    fn a_store_of_ones_own_has_a_key_of_its_own_and_an_etcd_none_by_itself() {
        let (own, etcd) =
            (StoreChoice::Embedded("/data".into()), StoreChoice::Etcd(octavius_store::EtcdOptions::new(vec!["a:1".to_owned()])));
        assert_eq!(choice("{}", &[], &own).unwrap(), EncryptionChoice::Own("/data/encryption.key".into()));
        assert_eq!(choice("{}", &[], &etcd).unwrap(), EncryptionChoice::Unset);
        assert_eq!(choice("{}", &["none"], &own).unwrap(), EncryptionChoice::Off);
        assert_eq!(choice(r#"{"encryption_key_files": "none"}"#, &[], &etcd).unwrap(), EncryptionChoice::Off);
        let files = |paths: &[&str]| EncryptionChoice::Files(paths.iter().map(PathBuf::from).collect());
        assert_eq!(choice(r#"{"encryption_key_files": ["/a", "/b"]}"#, &[], &etcd).unwrap(), files(&["/a", "/b"]));
        assert_eq!(choice(r#"{"encryption_key_files": ["/a"]}"#, &["c", "d"], &own).unwrap(), files(&["c", "d"]));
        assert!(told(&choice("{}", &["none", "a"], &own).unwrap_err()).contains("one or the other"));
    }

    #[test]
    fn the_own_key_is_made_once_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let choice = EncryptionChoice::within(folder.path());
        let id = |encryption: Encryption| match encryption {
            Encryption::Keys(keys) => keys[0].id(),
            other => panic!("{other:?}"),
        };
        assert!(choice.read().unwrap().is_empty());
        let first = id(choice.open().unwrap());
        assert_eq!(id(choice.open().unwrap()), first);
        let path = folder.path().join(FILE);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(told(&write_new(&path, "x").unwrap_err()).contains("exists"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(told(&choice.open().unwrap_err()).ends_with("can be read by others (mode 640)"));
    }

    #[test]
    fn a_file_that_holds_no_key_is_named_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        write_new(&path("wrong"), "hunter2").unwrap();
        let text = EncryptionKey::generate();
        write_new(&path("one"), &text).unwrap();
        write_new(&path("same"), &text).unwrap();
        for (files, expected) in
            [(vec!["none.key"], "none.key"), (vec!["wrong"], "is not a key"), (vec!["one", "same"], "the same key")]
        {
            let files = EncryptionChoice::Files(files.into_iter().map(path).collect());
            let told = told(&files.open().unwrap_err());
            assert!(told.contains(expected) && !told.contains("hunter2"), "{told}");
        }
    }
}
