//! The trail in files of its own: JSON, one record a line, a file for each day. Whose turn it is to look after the store exports what has come
//! since; how far that is, the store says, so that nothing of the trail is removed from it that is in no file yet.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use octavius_core::Timestamp;
use octavius_store::record::ExportRecord;
use octavius_store::{Commit, Entry, Revision, Store, StoreError, Txn, codec, key};

use super::CLOCKS_DIFFER_HOURS;
use super::read::{Audited, Backlog, Position, first_hour};

/// Whether the audit trail is exported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AuditExport {
    /// Not by this controller. Where another has exported, what it has not yet is kept for it.
    #[default]
    Unset,
    /// Not any more, and nothing is kept for it.
    Off,
    /// Into this folder, when it is this controller's turn to look after the store: a file `audit-YYYY-MM-DD.jsonl` for each day, which only its
    /// owner can read. A record may stand there twice after a crash; its `id` tells.
    Folder(PathBuf),
}

impl AuditExport {
    /// Makes the folder, and sees that it can be written to.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        let Self::Folder(folder) = self else { return Ok(()) };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let probe = folder.join(format!(".{}", octavius_core::ExecutionId::generate()));
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&probe)?;
        std::fs::remove_file(probe)
    }
}

/// Why nothing was exported.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExportError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot write the audit trail to {path}")]
    File { path: PathBuf, source: io::Error },
}

/// How far the trail was exported, as the store says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Export {
    /// What was written then or before is in a file.
    pub(crate) revision: Revision,
    hour: u64,
}

impl Export {
    fn of(entry: &Entry) -> Result<Self, StoreError> {
        let ExportRecord { revision, hour } = codec::decode(entry)?;
        // It is written after what it speaks of. Where it is not, the store was restored from a backup, and counts anew.
        let revision = if revision < entry.modified { revision } else { 0 };
        Ok(Self { revision, hour })
    }

    /// When that was, to the hour before; none where it has not been yet.
    pub(crate) fn at(self) -> Option<Timestamp> {
        let hour = (self.hour > 0).then(|| self.hour + CLOCKS_DIFFER_HOURS)?;
        Timestamp::from_second(i64::try_from(hour).ok()?.checked_mul(3600)?).ok()
    }
}

/// How far the trail was exported; none where it is not exported.
pub(crate) async fn exported(store: &dyn Store) -> Result<Option<Export>, StoreError> {
    store.get(&key::audit_exported()).await?.as_ref().map(Export::of).transpose()
}

/// Exports the trail, turn by turn.
#[derive(Debug)]
pub(crate) struct Exporter {
    export: AuditExport,
    /// How far the files are where the store could not be told: the revision of what it says, and what is in the files. A full store is not
    /// told anything; the files do not get the same again each time.
    ahead: Option<(Revision, Revision)>,
}

impl Exporter {
    pub(crate) fn new(export: AuditExport) -> Self {
        Self { export, ahead: None }
    }

    /// Exports what has come since the last time; how many records that were.
    pub(crate) async fn run(&mut self, store: &dyn Store) -> Result<u64, ExportError> {
        match &self.export {
            AuditExport::Unset => Ok(0),
            AuditExport::Off => {
                if let Some(entry) = store.get(&key::audit_exported()).await? {
                    store.commit(Txn::new().unchanged(&entry).delete(entry.key)).await?;
                    tracing::info!("the audit trail is not exported any more, and nothing of it is kept for that");
                }
                Ok(0)
            }
            AuditExport::Folder(folder) => export(store, folder, &mut self.ahead).await,
        }
    }
}

async fn export(store: &dyn Store, folder: &Path, ahead: &mut Option<(Revision, Revision)>) -> Result<u64, ExportError> {
    let at = key::audit_exported();
    let mut entry = store.get(&at).await?;
    if entry.is_none() {
        // Whatever comes of the first export, nothing is removed before it.
        let nothing = codec::encode(&ExportRecord { revision: 0, hour: 0 });
        store.commit(Txn::new().absent(at.clone()).put(at.clone(), nothing)).await?;
        entry = store.get(&at).await?;
    }
    let before = entry.as_ref().map(Export::of).transpose()?;
    // Before anything is looked at: what is written from now on is in this hour, or in one about it.
    let hour = first_hour(Timestamp::now());
    let modified = entry.as_ref().map_or(0, |entry| entry.modified);
    let written = ahead.filter(|(said, _)| *said == modified).map(|(_, until)| until);
    let after = before.map(|before| Position::after(before.revision.max(written.unwrap_or_default())));
    let mut backlog = Backlog::new(before.map_or(0, |before| before.hour), after, None);
    let mut files = Files::new(folder);
    let mut count = 0;
    while let Some(some) = backlog.next(store).await? {
        count += some.len() as u64;
        files = on_files(files, move |files| files.append(&some)).await?;
    }
    let moved = before.is_none_or(|before| before.hour != hour);
    if count == 0 && !moved && written.is_none() {
        return Ok(0);
    }
    on_files(files, Files::sync).await?;
    *ahead = Some((modified, backlog.until()));
    let record = ExportRecord { revision: backlog.until(), hour };
    let txn = Txn::new().when(at.clone(), modified).put(at, codec::encode(&record));
    if matches!(store.commit(txn).await?, Commit::Conflict(_)) {
        tracing::warn!("another controller exports the audit trail at the same time: some records are in the files of both");
    }
    Ok(count)
}

/// Does something with the files where it holds nobody up.
async fn on_files(
    mut files: Files,
    work: impl FnOnce(&mut Files) -> Result<(), ExportError> + Send + 'static,
) -> Result<Files, ExportError> {
    let folder = files.folder.clone();
    let done = tokio::task::spawn_blocking(move || work(&mut files).map(|()| files)).await;
    done.unwrap_or_else(|error| Err(ExportError::File { path: folder, source: io::Error::other(error) }))
}

/// The files of an export.
#[derive(Debug)]
struct Files {
    folder: PathBuf,
    /// Those that were written to. They are a few: what is exported is of one day mostly, or of those that were missed.
    written: Vec<(String, File)>,
}

impl Files {
    /// Days whose files are held open.
    const OPEN: usize = 8;

    fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), written: Vec::new() }
    }

    fn append(&mut self, some: &[Audited]) -> Result<(), ExportError> {
        let mut lines = String::new();
        let mut day = String::new();
        for audited in some {
            let its_day = audited.record.at.strftime("%Y-%m-%d").to_string();
            if its_day != day {
                self.write(&day, &std::mem::take(&mut lines))?;
                day = its_day;
            }
            lines.push_str(&octavius_proto::audit_json(&audited.to_wire()).to_string());
            lines.push('\n');
        }
        self.write(&day, &lines)
    }

    fn write(&mut self, day: &str, lines: &str) -> Result<(), ExportError> {
        if lines.is_empty() {
            return Ok(());
        }
        let path = self.folder.join(format!("audit-{day}.jsonl"));
        self.file(day, &path)
            .and_then(|mut file| file.write_all(lines.as_bytes()))
            .map_err(|source| ExportError::File { path, source })
    }

    fn file(&mut self, day: &str, path: &Path) -> io::Result<&File> {
        if let Some(place) = self.written.iter().position(|(known, _)| known == day) {
            return Ok(&self.written[place].1);
        }
        if self.written.len() == Self::OPEN {
            self.written.remove(0).1.sync_all()?;
        }
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        // A crash may have left half a line: it stays one of its own.
        if file.metadata()?.len() > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        self.written.push((day.to_owned(), file));
        Ok(&self.written[self.written.len() - 1].1)
    }

    /// Sees that what was written survives a crash, and that the files do.
    fn sync(&mut self) -> Result<(), ExportError> {
        let failed = |source| ExportError::File { path: self.folder.clone(), source };
        self.written.iter().try_for_each(|(_, file)| file.sync_all()).map_err(failed)?;
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Act, What};
    use octavius_store::{EmbeddedOptions, Range, open_embedded};
    use std::os::unix::fs::PermissionsExt as _;

    async fn pause(store: &dyn Store, job: &str) {
        let act = Act::new(None, None, What::new("job.pause", "job", job));
        store.commit(act.done(Txn::new())).await.unwrap();
    }

    fn objects(folder: &Path) -> Vec<String> {
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        let lines =
            files.iter().flat_map(|file| std::fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect::<Vec<_>>());
        let read = lines.map(|line| serde_json::from_str::<serde_json::Value>(&line).map(|record| record["object"].clone()));
        read.map(|object| object.map_or("?".to_owned(), |object| object.as_str().unwrap().to_owned())).collect()
    }

    #[tokio::test]
    async fn each_turn_appends_what_has_come_and_only_its_owner_reads_it() {
        let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folder = out.path().join("trail");
        let store = open_embedded(dir.path(), EmbeddedOptions::default()).unwrap();
        let export = AuditExport::Folder(folder.clone());
        export.prepare().unwrap();
        let mut exporter = Exporter::new(export);
        assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        pause(&*store, "a").await;
        pause(&*store, "b").await;
        assert_eq!(exported(&*store).await.unwrap(), None);
        assert_eq!(exporter.run(&*store).await.unwrap(), 2);
        assert_eq!(exporter.run(&*store).await.unwrap(), 0);
        pause(&*store, "c").await;
        assert_eq!(exporter.run(&*store).await.unwrap(), 1);
        assert_eq!(objects(&folder), ["job/a", "job/b", "job/c"]);
        for file in std::fs::read_dir(&folder).unwrap() {
            assert_eq!(file.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        // Half a line from a crash stays one of its own.
        let file = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
        OpenOptions::new().append(true).open(&file).unwrap().write_all(b"{\"form").unwrap();
        pause(&*store, "d").await;
        exporter.run(&*store).await.unwrap();
        assert_eq!(objects(&folder), ["job/a", "job/b", "job/c", "?", "job/d"]);

        assert_eq!(Exporter::new(AuditExport::Unset).run(&*store).await.unwrap(), 0);
        assert!(exported(&*store).await.unwrap().is_some());
        Exporter::new(AuditExport::Off).run(&*store).await.unwrap();
        assert_eq!(exported(&*store).await.unwrap(), None);
    }

    /// A restored store counts its revisions anew: what it says of old ones means nothing there.
    #[tokio::test]
    async fn after_a_restore_nothing_is_taken_for_exported_that_is_not() {
        let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = open_embedded(dir.path(), EmbeddedOptions::default()).unwrap();
        let record = ExportRecord { revision: 5000, hour: first_hour(Timestamp::now()) };
        store.commit(Txn::new().put(key::audit_exported(), codec::encode(&record))).await.unwrap();
        pause(&*store, "new").await;
        assert_eq!(exported(&*store).await.unwrap().unwrap().revision, 0);
        let mut exporter = Exporter::new(AuditExport::Folder(out.path().to_owned()));
        exporter.run(&*store).await.unwrap();
        assert_eq!(objects(out.path()), ["job/new"]);
        assert!(exported(&*store).await.unwrap().unwrap().revision > 0);
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_not_taken_for_exported() {
        let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = open_embedded(dir.path(), EmbeddedOptions::default()).unwrap();
        pause(&*store, "a").await;
        let mut gone = Exporter::new(AuditExport::Folder(out.path().join("gone")));
        assert!(matches!(gone.run(&*store).await, Err(ExportError::File { .. })));
        assert_eq!(exported(&*store).await.unwrap(), Some(Export { revision: 0, hour: 0 }));
    }

    /// As where the store is full, or its answer was lost.
    #[tokio::test]
    async fn what_the_store_could_not_be_told_is_not_written_again() {
        let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = open_embedded(dir.path(), EmbeddedOptions::default()).unwrap();
        let mut exporter = Exporter::new(AuditExport::Folder(out.path().to_owned()));
        exporter.run(&*store).await.unwrap();
        let said = store.get(&key::audit_exported()).await.unwrap().unwrap();
        pause(&*store, "a").await;
        pause(&*store, "b").await;
        let full = Backlog::new(0, None, None).next(&*store).await.unwrap().unwrap();
        on_files(Files::new(out.path()), move |files| files.append(&full)).await.unwrap();
        exporter.ahead = Some((said.modified, store.range(&Range::of(key::audit(), 1)).await.unwrap().revision));
        pause(&*store, "c").await;
        assert_eq!(exporter.run(&*store).await.unwrap(), 1);
        assert_eq!(objects(out.path()), ["job/a", "job/b", "job/c"]);
        assert!(exported(&*store).await.unwrap().unwrap().revision > said.modified);
    }
}
