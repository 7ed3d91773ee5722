//! Files that hold a secret.

use std::fs::{File, Metadata, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

/// The mode of a file that others can read than those for whom it is; none where nobody else can. A group may where the file is not this
/// user's: so Kubernetes shows a Secret to a pod that is not root.
#[must_use]
pub fn exposed(file: &Metadata) -> Option<u32> {
    let foreign = file.uid() != rustix::process::geteuid().as_raw();
    let others = if foreign { 0o037 } else { 0o077 };
    (file.mode() & others != 0).then(|| file.mode() & 0o777)
}

/// What a file says that others cannot read.
///
/// # Errors
/// Where it cannot be read, is no text, or others can read it, too.
pub fn read(path: &Path) -> Result<String, String> {
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    if let Some(mode) = exposed(&file.metadata().map_err(|error| error.to_string())?) {
        return Err(format!("others can read it (mode {mode:03o}): `chmod 600` it"));
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|error| error.to_string())?;
    Ok(text)
}

/// Writes a file of this mode that is not there yet: whole, or not at all. It is on the disk when this returns.
///
/// # Errors
/// Where it is there, or cannot be written.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = tempfile::Builder::new().permissions(Permissions::from_mode(mode)).tempfile_in(folder)?;
    temporary.write_all(bytes)?;
    temporary.as_file().sync_all()?;
    temporary.persist_noclobber(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_is_whole_and_takes_no_others_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        write_new(&path, b"one", 0o600).unwrap();
        assert_eq!(write_new(&path, b"two", 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!((metadata.mode() & 0o777, exposed(&metadata)), (0o600, None));
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["key"], "nothing is left beside it");
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert_eq!(exposed(&std::fs::metadata(&path).unwrap()), Some(0o640));
    }
}
