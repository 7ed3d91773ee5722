//! How a controller is, for the administrator who asks: what it leans on is asked at that moment, and not for longer than they would wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use octavius_proto::{Fault, to_duration, to_timestamp, v1};
use octavius_store::{Store, key};

use crate::archive::{Archive, ArchiveError};
use crate::audit;
use crate::clock::Clock;
use crate::fault;
use crate::room::Room;

/// How long an archive may take to say that it is there. Whoever asks waits for the answer.
const ARCHIVE_ANSWERS: Duration = Duration::from_secs(3);

/// What a controller leans on.
#[derive(Debug)]
pub(crate) struct Condition {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) room: Arc<Room>,
    pub(crate) archive: Option<Archive>,
    pub(crate) clock: Clock,
}

impl Condition {
    /// How it is now.
    pub(crate) async fn told(&self) -> Result<v1::GetControllerResponse, Fault> {
        let (read, archive) = tokio::join!(self.read(), self.archive());
        let (answered_within, audit_export) = read?;
        let mut store = v1::StoreCondition { answered_within: Some(to_duration(answered_within)), ..Default::default() };
        if let Some((usage, percent)) = self.room.seen() {
            store.allocated_bytes = usage.allocated_bytes;
            store.used_bytes = usage.used_bytes;
            store.quota_bytes = usage.quota_bytes.unwrap_or_default();
            store.percent = u32::try_from(percent.min(100)).unwrap_or(100);
        }
        store.refuses_logs = self.room.for_logs().is_err();
        store.refuses_work = self.room.for_work().is_err();
        Ok(v1::GetControllerResponse {
            version: crate::VERSION.to_owned(),
            now: Some(to_timestamp(self.clock.now())),
            store: Some(store),
            archive,
            audit_export,
        })
    }

    /// How long the store takes to answer, and how far it says that the audit trail is exported.
    async fn read(&self) -> Result<(Duration, Option<v1::AuditExportCondition>), Fault> {
        let began = Instant::now();
        // The store itself, and not what is known of it here.
        self.store.get(&key::archive()).await.map_err(fault::from_store)?;
        let answered_within = began.elapsed();
        let exported = audit::exported(&*self.store).await.map_err(fault::from_store)?;
        let exported = exported.map(|export| v1::AuditExportCondition { exported_at: export.at().map(to_timestamp) });
        Ok((answered_within, exported))
    }

    async fn archive(&self) -> Option<v1::ArchiveCondition> {
        let archive = self.archive.as_ref()?;
        let problem = match tokio::time::timeout(ARCHIVE_ANSWERS, archive.look()).await {
            Ok(Ok(())) => String::new(),
            Ok(Err(ArchiveError::Unavailable { problem, .. })) => problem,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", ARCHIVE_ANSWERS.as_secs()),
        };
        Some(v1::ArchiveCondition { url: archive.url().to_owned(), problem })
    }
}
