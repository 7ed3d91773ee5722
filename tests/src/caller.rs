//! A client that does not give up: each call goes to one controller after the other until one answers, and what was asked and told is
//! taken down in the history.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use octavius_core::{Digest, ExecutionId};
use octavius_proto::client::{Address, Connection};
use octavius_proto::v1::read_log_response::Part;
use octavius_proto::{to_duration, v1};
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::history::{Bytes, History, Reader, Seen, What};
use crate::workload::{CATALOG, Run, Workload};

/// How long one try of a call may take.
const TRY: Duration = Duration::from_secs(5);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// What tells the states of the catalogue apart: which tag a definition bears. Shared by all callers of a run.
pub type Tags = Arc<Mutex<BTreeMap<Digest, String>>>;

/// A log as it was read to its end.
#[derive(Debug, Clone, PartialEq)]
pub struct LogSum {
    /// All bytes.
    pub read: Bytes,
    /// What was said of its end.
    pub end: v1::LogEnd,
}

/// A client of several controllers.
#[derive(Debug)]
pub struct Caller {
    addresses: Vec<Address>,
    token: String,
    history: Arc<History>,
    tags: Tags,
    connections: Mutex<Vec<Option<Connection>>>,
    next: Mutex<usize>,
}

/// What the end of a call's patience leaves: nobody knows whether the call was done.
fn is_lost(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal | Code::ResourceExhausted
    )
}

impl Caller {
    /// A client of the controllers at `addresses`, each `HOST:PORT`, which begins with the one of index `first`.
    ///
    /// # Errors
    /// Where an address is none.
    pub fn new(addresses: &[String], first: usize, token: &str, history: &Arc<History>, tags: &Tags) -> Result<Self> {
        let addresses = addresses.iter().map(|address| Address::parse(address)).collect::<Result<Vec<_>, _>>()?;
        let connections = Mutex::new(vec![None; addresses.len()]);
        let (token, history, tags) = (token.to_owned(), Arc::clone(history), Arc::clone(tags));
        Ok(Self { addresses, token, history, tags, connections, next: Mutex::new(first) })
    }

    /// The history that it writes.
    #[must_use]
    pub fn history(&self) -> &Arc<History> {
        &self.history
    }

    /// The connection that the next call takes, and its index.
    async fn connection(&self) -> Result<(usize, Connection), Status> {
        let index = *self.next.lock().unwrap_or_else(PoisonError::into_inner) % self.addresses.len();
        let kept = self.connections.lock().unwrap_or_else(PoisonError::into_inner)[index].clone();
        if let Some(connection) = kept {
            return Ok((index, connection));
        }
        let opened = Connection::open(&self.addresses[index..=index], Some(&self.token), TRY).await;
        match opened {
            Ok(connection) => {
                self.connections.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(connection.clone());
                Ok((index, connection))
            }
            Err(error) => {
                self.leave(index);
                Err(Status::unavailable(error.to_string()))
            }
        }
    }

    /// Goes on to the next controller.
    fn leave(&self, index: usize) {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)[index] = None;
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = index + 1;
    }

    /// Calls until a controller answers, for at most `patience`.
    ///
    /// # Errors
    /// The answer where it is an error of the caller's own; otherwise the last one of those that say that it may be tried again.
    pub async fn call<T, F>(&self, patience: Duration, work: impl Fn(Connection) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let begun = Instant::now();
        loop {
            let error = match self.connection().await {
                Ok((index, connection)) => match timeout(TRY, work(connection)).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(status)) if !is_lost(&status) => return Err(status),
                    Ok(Err(status)) => {
                        self.leave(index);
                        status
                    }
                    Err(_) => {
                        self.leave(index);
                        Status::deadline_exceeded("no answer to a try")
                    }
                },
                Err(status) => status,
            };
            if begun.elapsed() > patience {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Submits a run; `None` where nobody accepted it in time, which does not mean that it is not there.
    ///
    /// # Errors
    /// Where it was refused.
    pub async fn submit(&self, run: &Run, patience: Duration) -> Result<(String, bool)> {
        let id = ExecutionId::generate().to_string();
        self.history.record(What::Submitted { id: id.clone(), permits: run.permits() });
        let request = v1::ExecuteRequest {
            id: id.clone(),
            job: run.job.name().to_owned(),
            arguments: run.arguments().into_iter().collect(),
            timeout: Some(to_duration(run.timeout)),
            idempotency_key: String::new(),
        };
        let answer = self.call(patience, |connection| {
            let request = request.clone();
            async move { connection.executions().execute(request).await.map(tonic::Response::into_inner) }
        });
        match answer.await {
            Ok(answer) if answer.id == id => {
                self.history.record(What::Acknowledged { id: id.clone() });
                Ok((id, true))
            }
            Ok(answer) => bail!("{id} was proposed, and the answer names {}", answer.id),
            Err(status) if is_lost(&status) => Ok((id, false)),
            Err(status) => Err(status).with_context(|| format!("{id} was refused")),
        }
    }

    /// Asks an execution to stop; false where nobody answered in time.
    ///
    /// # Errors
    /// Where it was refused.
    pub async fn cancel(&self, id: &str, patience: Duration) -> Result<bool> {
        self.history.record(What::CancelAsked { id: id.to_owned() });
        let request = v1::CancelExecutionRequest { id: id.to_owned() };
        let answer = self.call(patience, |connection| {
            let request = request.clone();
            async move { connection.executions().cancel_execution(request).await }
        });
        match answer.await {
            Ok(_) => Ok(true),
            Err(status) if is_lost(&status) || status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(status).with_context(|| format!("{id} was not cancelled")),
        }
    }

    /// Looks at an execution; `None` where there is none.
    ///
    /// # Errors
    /// Where nobody answered in time.
    pub async fn look(&self, id: &str, patience: Duration) -> Result<Option<Seen>> {
        let request = v1::GetExecutionRequest { id: id.to_owned() };
        let answer = self.call(patience, |connection| {
            let (asked, request) = (self.history.now(), request.clone());
            async move {
                let answer = connection.executions().get_execution(request).await?;
                Ok((asked, answer.into_inner().execution.unwrap_or_default()))
            }
        });
        match answer.await {
            Ok((asked, execution)) => Ok(Some(self.history.seen(Reader::Call(asked), &execution)?)),
            Err(status) if status.code() == Code::NotFound => {
                self.history.record(What::Missing { id: id.to_owned(), asked: self.history.now() });
                Ok(None)
            }
            Err(status) => Err(status).with_context(|| format!("cannot look at {id}")),
        }
    }

    /// Watches an execution until it has ended, over streams that break, for at most `patience`; `None` where it has not ended then.
    ///
    /// # Errors
    /// Where a message is no execution.
    pub async fn watch(&self, id: &str, patience: Duration) -> Result<Option<Seen>> {
        let begun = Instant::now();
        while let Some(left) = patience.checked_sub(begun.elapsed()) {
            let request = v1::WatchExecutionRequest { id: id.to_owned() };
            let opened = self.call(left, |connection| {
                let request = request.clone();
                async move { connection.executions().watch_execution(request).await }
            });
            let Ok(opened) = opened.await else { continue };
            let (mut stream, by) = (opened.into_inner(), self.history.stream());
            while let Some(left) = patience.checked_sub(begun.elapsed()) {
                // A stream behind a black hole says nothing: another one is opened, to another controller.
                let Ok(Ok(Some(message))) = timeout(left.min(TRY * 2), stream.message()).await else { break };
                let seen = self.history.seen(by, &message.execution.unwrap_or_default())?;
                if seen.state.is_terminal() {
                    return Ok(Some(seen));
                }
            }
            *self.next.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            tokio::time::sleep(PAUSE).await;
        }
        Ok(None)
    }

    /// Reads the log of an attempt to its present end, or with `follow` to its end, over streams that break. False where that did not come
    /// about in time.
    ///
    /// # Errors
    /// Where pieces do not fit together.
    pub async fn read_log(&self, id: &str, attempt: u32, run: &Run, follow: bool, patience: Duration) -> Result<bool> {
        let begun = Instant::now();
        let (mut bytes, mut marked) = (Vec::new(), false);
        while let Some(left) = patience.checked_sub(begun.elapsed()) {
            let offset = bytes.len() as u64;
            let request = v1::ReadLogRequest { id: id.to_owned(), attempt, offset, follow, ..Default::default() };
            let opened = self.call(left, |connection| {
                let request = request.clone();
                async move { connection.logs().read_log(request).await }
            });
            let Ok(opened) = opened.await else { continue };
            let mut stream = opened.into_inner();
            while let Ok(Ok(Some(message))) = timeout(TRY * 2, stream.message()).await {
                match message.part {
                    Some(Part::Chunk(chunk)) => {
                        let next = bytes.len() as u64;
                        if chunk.offset != next || chunk.attempt != attempt {
                            bail!(
                                "{id}: bytes at {} of attempt {} where {next} of {attempt} follows",
                                chunk.offset,
                                chunk.attempt
                            );
                        }
                        bytes.extend_from_slice(&chunk.data);
                    }
                    Some(Part::Gap(gap)) => {
                        marked = true;
                        bytes.resize(usize::try_from(gap.offset + gap.size)?, b'?');
                    }
                    Some(Part::End(end)) => {
                        let whole = run.prints(id, attempt);
                        self.history.record(What::Log {
                            id: id.to_owned(),
                            attempt,
                            read: Bytes::of(&bytes),
                            whole: Bytes::of(&whole),
                            prefix: whole.starts_with(&bytes),
                            marked: marked || end.damaged,
                        });
                        return Ok(true);
                    }
                    None => {}
                }
            }
            *self.next.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            tokio::time::sleep(PAUSE).await;
        }
        Ok(false)
    }

    /// Reads the log of an execution's only attempt from its beginning to its present end, or with `follow` to its end, over streams that
    /// break, and tells `came` how far it is. Nothing is kept of it but size and checksum.
    ///
    /// # Errors
    /// Where a byte is missing, or comes twice; where a call is refused; where that did not come about in time.
    pub async fn sum_log(&self, id: &str, follow: bool, came: &AtomicU64, patience: Duration) -> Result<LogSum> {
        let begun = Instant::now();
        let mut read = Bytes { size: 0, crc32c: 0 };
        while let Some(left) = patience.checked_sub(begun.elapsed()) {
            let request = v1::ReadLogRequest { id: id.to_owned(), offset: read.size, follow, ..Default::default() };
            let opened = self.call(left, |connection| {
                let request = request.clone();
                async move { connection.logs().read_log(request).await }
            });
            let mut stream = opened.await.with_context(|| format!("the log of {id} at {}", read.size))?.into_inner();
            loop {
                // A stream behind a black hole says nothing: another one is opened, to another controller.
                let Ok(message) = timeout(TRY * 2, stream.message()).await else { break };
                match message {
                    Ok(Some(message)) => match message.part {
                        Some(Part::Chunk(chunk)) => {
                            if chunk.offset != read.size || chunk.attempt != 1 {
                                bail!("{id}: bytes at {} of attempt {} follow {}", chunk.offset, chunk.attempt, read.size);
                            }
                            read.size += chunk.data.len() as u64;
                            read.crc32c = crc32c::crc32c_append(read.crc32c, &chunk.data);
                            came.store(read.size, Ordering::Relaxed);
                        }
                        Some(Part::Gap(gap)) => bail!("{id}: a gap of {} bytes at {}: {}", gap.size, gap.offset, gap.reason),
                        Some(Part::End(end)) => return Ok(LogSum { read, end }),
                        None => {}
                    },
                    Err(status) if !is_lost(&status) => return Err(status).with_context(|| format!("the log of {id}")),
                    Ok(None) | Err(_) => break,
                }
            }
            *self.next.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            tokio::time::sleep(PAUSE).await;
        }
        bail!("the log of {id} did not end in {patience:?}; {} bytes came", read.size)
    }

    /// Makes the catalogue hold this state of the workload. Once, through one controller: what became of it shows in what is read.
    ///
    /// # Errors
    /// Where the answer is none that an apply may have while faults go on.
    pub async fn apply(&self, workload: &Workload, tag: &str) -> Result<bool> {
        let jobs = workload.jobs(tag)?;
        let Some((parent, before)) = self.manifest().await else { return Ok(false) };
        self.history.record(What::Applying { tag: tag.to_owned(), jobs: jobs.len() });
        let bear = jobs.iter().map(|job| (job.digest(), tag.to_owned()));
        self.tags.lock().unwrap_or_else(PoisonError::into_inner).extend(bear);
        let names: Vec<String> = before.into_keys().collect();
        let messages = Workload::apply(&jobs, parent, &names);
        let Ok((index, connection)) = self.connection().await else { return Ok(false) };
        let stream = tokio_stream::iter(messages);
        match timeout(TRY * 4, connection.catalog().apply(stream)).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(status)) if status.code() == Code::Aborted => Ok(false),
            Ok(Err(status)) if !is_lost(&status) => Err(status).context("the apply was refused"),
            Ok(Err(_)) | Err(_) => {
                self.leave(index);
                Ok(false)
            }
        }
    }

    /// The catalogue's newest revision, and the digests of its jobs by their names; `None` where nobody answered.
    async fn manifest(&self) -> Option<(u64, BTreeMap<String, Digest>)> {
        let manifest = self.call(TRY, |connection| async move {
            let mut catalog = connection.catalog();
            let head = catalog.get_head(v1::GetHeadRequest { catalog: CATALOG.to_owned() }).await?.into_inner();
            let Some(revision) = head.revision else { return Ok((0, BTreeMap::new())) };
            let request = v1::GetBucketsRequest { catalog: CATALOG.to_owned(), revision: revision.number, buckets: Vec::new() };
            let mut stream = catalog.get_buckets(request).await?.into_inner();
            let mut jobs = BTreeMap::new();
            while let Some(bucket) = stream.message().await? {
                for entry in bucket.entries {
                    let digest = <[u8; 32]>::try_from(&entry.definition[..]);
                    let digest = digest.map_err(|_| Status::data_loss("a digest that is none"))?;
                    jobs.insert(entry.name, Digest::from_bytes(digest));
                }
            }
            Ok((revision.number, jobs))
        });
        manifest.await.ok()
    }

    /// Reads the whole catalogue, and takes down which of its states that is; false where nobody answered.
    pub async fn read_catalog(&self) -> bool {
        let Some((_, jobs)) = self.manifest().await else { return false };
        self.saw_catalog(jobs.into_values());
        true
    }

    /// Reads the list of jobs, which is one page, and takes down which state of the catalogue that is; false where nobody answered.
    pub async fn list_jobs(&self) -> bool {
        let listed =
            self.call(TRY, |connection| async move { connection.catalog().list_jobs(v1::ListJobsRequest::default()).await });
        let Ok(listed) = listed.await else { return false };
        let digests = listed.into_inner().jobs;
        self.saw_catalog(digests.iter().filter_map(|job| <[u8; 32]>::try_from(&job.definition[..]).ok()).map(Digest::from_bytes));
        true
    }

    fn saw_catalog(&self, digests: impl Iterator<Item = Digest>) {
        let mut read = BTreeMap::new();
        let tags = self.tags.lock().unwrap_or_else(PoisonError::into_inner);
        for digest in digests {
            let tag = tags.get(&digest).cloned().unwrap_or_else(|| format!("unknown {}", digest.short()));
            *read.entry(tag).or_default() += 1;
        }
        drop(tags);
        self.history.record(What::CatalogRead { tags: read });
    }
}
