//! The one stream that all watches go over: opened when there is something to watch, and opened anew, at another member, whenever it
//! breaks. Every watch then goes on at the revision after the last one that was delivered to it, so that nothing is lost and nothing comes
//! twice.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use etcd_client::proto::{PbEvent, PbWatchResponse};
use etcd_client::{WatchOptions, WatchRequestSender, WatchResponseStream};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::connection::Cluster;
use super::failure::Failure;
use super::keys::{Prefix, number, revision};
use super::watch::{Command, Watcher, closed};
use crate::api::{Event, Revision, StoreError, WatchBatch};

/// How often etcd is asked for a sign of life. A stream that is silent for two rounds is given up.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// Pause before a broken stream is opened again: the first, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The number that etcd answers with where it refuses a watch before it has one.
const NO_WATCH: i64 = -1;

/// A watch in etcd's stream.
struct Active {
    watcher: Arc<Watcher>,
    /// The first revision that has not been delivered.
    next: Revision,
    /// The begun batch of a revision that comes in several messages.
    begun: Option<WatchBatch>,
    /// Its number in the present stream; `None` while it is not asked for there.
    number: Option<i64>,
    /// Whether etcd refused it when it was last asked for.
    refused: bool,
}

/// What is still to be sent.
enum Request {
    Create(i64),
    Cancel(i64),
}

/// A request as it is sent.
enum Sending {
    Create(Vec<u8>, WatchOptions),
    Cancel(i64),
}

pub(super) struct Stream {
    cluster: Arc<Cluster>,
    prefix: Prefix,
    commands: mpsc::UnboundedReceiver<Command>,
    watches: HashMap<u64, Active>,
    /// The watches that etcd knows, by its numbers, none of which is used twice.
    numbers: HashMap<i64, u64>,
    last_number: i64,
    requests: VecDeque<Request>,
    /// Numbers whose creation etcd has not answered yet, in the order in which it does.
    unanswered: VecDeque<i64>,
    /// The user was signed in again, which a stream that is open already knows nothing of.
    outdated: bool,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Begin(watcher, _) = command {
                watcher.end(closed());
            }
        }
        self.watches.values().for_each(|active| active.watcher.end(closed()));
    }
}

impl Stream {
    pub(super) fn new(cluster: Arc<Cluster>, prefix: Prefix, commands: mpsc::UnboundedReceiver<Command>) -> Self {
        Self {
            cluster,
            prefix,
            commands,
            watches: HashMap::new(),
            numbers: HashMap::new(),
            last_number: 0,
            requests: VecDeque::new(),
            unanswered: VecDeque::new(),
            outdated: false,
        }
    }

    /// Serves watches until the store and all watches are gone.
    pub(super) async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            // With an empty stream before it: every watch that wants something is to be asked for.
            self.begin_anew();
            while self.requests.is_empty() {
                let Some(command) = self.commands.recv().await else { return };
                self.obey(command);
                // A new stream knows of nothing that could be cancelled, and need not hear of what was.
                let numbers = &self.numbers;
                self.requests.retain(|request| matches!(request, Request::Create(number) if numbers.contains_key(number)));
            }
            let (turn, _) = self.cluster.current();
            let (heard, failure) = match self.open().await {
                Ok((sender, stream)) => match self.stay(sender, stream).await {
                    None => return,
                    Some(end) => end,
                },
                Err(failure) => (false, failure),
            };
            if std::mem::take(&mut self.outdated) {
                continue; // at the same member: that is where the user was signed in
            }
            tracing::debug!(?failure, watches = self.watches.len(), "the stream of watches broke, opening it anew");
            if let Failure::Refused(error) = &failure {
                self.refuse_all(error);
            }
            self.cluster.leave(turn);
            if heard {
                pause = FIRST_PAUSE;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn begin_anew(&mut self) {
        self.numbers.clear();
        self.requests.clear();
        self.unanswered.clear();
        let ids: Vec<u64> = self
            .watches
            .iter_mut()
            .filter_map(|(id, active)| {
                active.begun = None;
                active.number.take().map(|_| *id)
            })
            .collect();
        for id in ids {
            self.ask_for(id);
        }
    }

    /// Opens a stream with the first request that waits.
    async fn open(&mut self) -> Result<(WatchRequestSender, WatchResponseStream), Failure> {
        let Some(Sending::Create(key, options)) = self.next_to_send() else {
            return Err(Failure::Lost("nothing is to be watched any more".to_owned()));
        };
        let (_, member) = self.cluster.current();
        let opened = self
            .cluster
            .ask(member, self.cluster.timeout, |member| {
                let mut client = member.watch();
                async move { client.watch(key, Some(options)).await }
            })
            .await?;
        // It went along with the opening.
        self.sent();
        Ok(opened.split())
    }

    /// Serves over one stream. `None` where nobody is left to serve, otherwise whether it ever gave anything, and why it ended.
    async fn stay(&mut self, mut sender: WatchRequestSender, mut stream: WatchResponseStream) -> Option<(bool, Failure)> {
        let mut round = interval(SIGN_OF_LIFE);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut heard, mut silent) = (false, 0);
        loop {
            let next = self.next_to_send();
            let is_next = next.is_some();
            tokio::select! {
                message = stream.message() => match message {
                    Ok(Some(message)) => {
                        (heard, silent) = (true, 0);
                        self.take(message.0).await;
                        if self.outdated {
                            return Some((heard, Failure::Lost("the user was signed in again".to_owned())));
                        }
                    }
                    Ok(None) => return Some((heard, Failure::Lost("the stream of watches ended".to_owned()))),
                    Err(error) => return Some((heard, error.into())),
                },
                command = self.commands.recv() => self.obey(command?),
                sent = send(&mut sender, next), if is_next => {
                    if let Err(error) = sent {
                        return Some((heard, error.into()));
                    }
                    self.sent();
                }
                _ = round.tick() => {
                    if silent == 2 {
                        return Some((heard, Failure::Lost("the stream of watches is silent".to_owned())));
                    }
                    silent += 1;
                    // Where it cannot be sent, the stream is silent; a full queue of requests is no reason to wait here.
                    let _ = tokio::time::timeout(FIRST_PAUSE, sender.request_progress()).await;
                }
            }
        }
    }

    /// The request whose turn it is.
    fn next_to_send(&mut self) -> Option<Sending> {
        loop {
            match self.requests.front()? {
                Request::Cancel(number) => return Some(Sending::Cancel(*number)),
                Request::Create(number) => match self.creation(*number) {
                    Some((key, options)) => return Some(Sending::Create(key, options)),
                    // Cancelled before it was sent.
                    None => drop(self.requests.pop_front()),
                },
            }
        }
    }

    /// The request whose turn it was is on its way.
    fn sent(&mut self) {
        if let Some(Request::Create(number)) = self.requests.pop_front() {
            self.unanswered.push_back(number);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Begin(watcher, after) => {
                let id = watcher.id;
                let active = Active { watcher, next: after.saturating_add(1), begun: None, number: None, refused: false };
                self.watches.insert(id, active);
                self.ask_for(id);
            }
            Command::Resume(id) => self.ask_for(id),
            Command::End(id) => {
                self.cancel(id);
                self.watches.remove(&id);
            }
        }
    }

    /// Has etcd asked for a watch from its next revision, unless it is asked for already.
    fn ask_for(&mut self, id: u64) {
        let Some(active) = self.watches.get_mut(&id).filter(|active| active.number.is_none()) else { return };
        self.last_number += 1;
        active.number = Some(self.last_number);
        self.numbers.insert(self.last_number, id);
        self.requests.push_back(Request::Create(self.last_number));
    }

    /// Has etcd told that a watch is not wanted any more, for now or for ever.
    fn cancel(&mut self, id: u64) {
        let Some(active) = self.watches.get_mut(&id) else { return };
        active.begun = None;
        if let Some(number) = active.number.take() {
            self.numbers.remove(&number);
            self.requests.push_back(Request::Cancel(number));
        }
    }

    /// The request for a watch by its number; `None` where it was cancelled before it was sent.
    fn creation(&self, number_of_watch: i64) -> Option<(Vec<u8>, WatchOptions)> {
        let active = self.watches.get(self.numbers.get(&number_of_watch)?)?;
        let (from, to) = active.watcher.keys.clone();
        // In fragments: etcd puts up to a thousand revisions into one message otherwise, however large they are.
        let options = WatchOptions::new()
            .with_range(to)
            .with_start_revision(number(active.next))
            .with_watch_id(number_of_watch)
            .with_fragment();
        Some((from, options))
    }

    async fn take(&mut self, message: PbWatchResponse) {
        let mut number = message.watch_id;
        if message.created {
            // Etcd answers creations in their order, and newer ones answer a refusal without the number.
            if number == NO_WATCH {
                number = self.unanswered.front().copied().unwrap_or(NO_WATCH);
            }
            self.unanswered.retain(|unanswered| *unanswered != number);
        }
        // Signs of life belong to no watch, and what was cancelled may have been on its way.
        let Some(id) = self.numbers.get(&number).copied() else { return };
        if message.canceled {
            return self.canceled(id, message.compact_revision, message.cancel_reason).await;
        }
        let Some(active) = self.watches.get_mut(&id) else { return };
        if message.created {
            active.refused = false;
        }
        if !active.take(&self.prefix, message.events, message.fragment) {
            self.cancel(id);
        }
    }

    /// Etcd has ended a watch by itself.
    async fn canceled(&mut self, id: u64, compact_revision: i64, reason: String) {
        let Some(active) = self.watches.get_mut(&id) else { return };
        if let Some(number) = active.number.take() {
            self.numbers.remove(&number);
        }
        active.begun = None;
        if compact_revision > 0 {
            active
                .watcher
                .end(StoreError::Compacted { asked: active.next.saturating_sub(1), oldest: revision(compact_revision) });
        } else if active.refused {
            active.watcher.end(StoreError::Unavailable(format!("the watch is refused: {reason}")));
        } else {
            // It may be that the token was too old. A second refusal is the last.
            active.refused = true;
            let (_, member) = self.cluster.current();
            member.sign_in_again().await;
            self.outdated = true;
            self.ask_for(id);
            return;
        }
        self.watches.remove(&id);
    }

    fn refuse_all(&mut self, error: &StoreError) {
        for (_, active) in self.watches.drain() {
            active.watcher.end(error.clone());
        }
    }
}

async fn send(sender: &mut WatchRequestSender, request: Option<Sending>) -> Result<(), etcd_client::Error> {
    match request {
        Some(Sending::Create(key, options)) => sender.watch(key, Some(options)).await,
        Some(Sending::Cancel(number)) => sender.cancel(number).await,
        None => Ok(()),
    }
}

impl Active {
    /// Takes changes over and delivers what is whole; false where nothing more is wanted for now, or ever.
    fn take(&mut self, prefix: &Prefix, events: Vec<PbEvent>, is_fragment: bool) -> bool {
        for event in events {
            let (at, event) = match of_etcd(prefix, event) {
                Ok(event) => event,
                Err(error) => {
                    self.watcher.end(error);
                    return false;
                }
            };
            if at < self.next {
                continue;
            }
            if self.begun.as_ref().is_some_and(|begun| begun.revision != at) && !self.deliver() {
                return false;
            }
            self.begun.get_or_insert(WatchBatch { revision: at, events: Vec::new() }).events.push(event);
        }
        // The last revision of a fragment may go on in the next one.
        is_fragment || self.deliver()
    }

    fn deliver(&mut self) -> bool {
        let Some(batch) = self.begun.take() else { return true };
        self.next = batch.revision + 1;
        self.watcher.deliver(batch)
    }
}

fn of_etcd(prefix: &Prefix, event: PbEvent) -> Result<(Revision, Event), StoreError> {
    let is_delete = event.r#type == etcd_client::EventType::Delete as i32;
    let pair = event.kv.ok_or_else(|| StoreError::Unreadable("a change without a key".to_owned()))?;
    let at = revision(pair.mod_revision);
    Ok((at, if is_delete { Event::Delete(prefix.strip(&pair.key)?) } else { Event::Put(prefix.entry(pair)?) }))
}
