//! The life of one attempt in this executor: prepare, report `starting`, start, follow, report the end, remove. One task each.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use octavius_core::execution::{Ending, LogSeal, Reason, State};
use octavius_core::{Timing, TraceContext};
use octavius_failpoint::{
    EXECUTOR_ASSIGNED, EXECUTOR_LOG_SENT, EXECUTOR_OVER, EXECUTOR_REPORTED, EXECUTOR_STARTED, EXECUTOR_STARTING,
    EXECUTOR_STARTING_TOLD, reach,
};
use octavius_proto::v1;
use octavius_proto::v1::report_execution_request::Step;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::book::{Book, Closed, Page};
use crate::ending;
use crate::journal::StopCause;
use crate::link::{Link, Refused};
use crate::pace::Appends;
use crate::runner::{Held, Launch, Over, Run, Runner, Stage, Unprepared};
use crate::sys;
use crate::traced::{Traced, step};
use crate::upload::Upload;

/// A job that has run for so long is reported as running. Shorter ones go from `starting` to their end, which saves a report each.
const RUNNING_AFTER: Duration = Duration::from_millis(100);
/// How often the start of a shim that ended before it began is tried.
const STARTS: usize = 3;
/// How long nothing is taken after something could not be made ready, in longest pauses between calls.
const CLOSED_FOR: u32 = 5;
/// How long, at a shutdown, a report is waited for that says whether a job may start.
const LAST_WORD: Duration = Duration::from_secs(1);

/// The log of what never ran.
const NO_LOG: LogSeal = LogSeal { size_bytes: 0, crc32c: 0, whole: true, missing_bytes: 0 };

/// What every attempt needs.
pub(crate) struct Context {
    pub(crate) runner: Box<dyn Runner>,
    pub(crate) link: Link,
    pub(crate) appends: Appends,
    pub(crate) timing: Timing,
    pub(crate) shutdown: CancellationToken,
}

/// Where an attempt begins.
pub(crate) enum Begin {
    /// It was just assigned.
    Assigned(Box<Launch>),
    /// It cannot run here, for this reason.
    Impossible(Ending),
    /// It was found from before.
    Found(Stage, Arc<dyn Run>, Option<TraceContext>),
}

/// Why an attempt is not followed to its end.
enum Leave {
    /// The executor ends; the next one goes on.
    Shutdown,
    /// The attempt is not this executor's any more.
    Fenced,
    /// The store knows nothing of it: it is let be.
    Forgotten(String),
    /// The controller does not take what is said of it.
    Unknown(String),
}

impl From<Refused> for Leave {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Forgotten(message) => Self::Forgotten(message),
            Refused::Unknown(message) => Self::Unknown(message),
            Refused::LogGap(_) | Refused::LogSealed | Refused::NoRoom(_) | Refused::HeldBack(_) => {
                Self::Unknown(refused.to_string())
            }
        }
    }
}

/// Leads an attempt through its life.
pub(crate) async fn drive(context: Arc<Context>, page: Page, mut begin: Begin) {
    let held = page.held;
    let came = match &mut begin {
        Begin::Assigned(launch) => launch.trace.take(),
        Begin::Found(_, _, trace) => trace.take(),
        Begin::Impossible(_) => None,
    };
    let mut traced = Traced::begin(held, came.as_ref());
    if let Begin::Assigned(launch) = &mut begin {
        traced.of_job(launch.job.name.as_str());
        launch.trace = traced.context().cloned();
    }
    let led = Box::pin(lead(&context, page, begin));
    match traced.lead(held, led).await {
        Led::Ended(ending) => traced.ended(&ending),
        Led::Left(why) => traced.left(why),
    }
}

/// What came of an attempt here.
enum Led {
    Ended(Ending),
    Left(&'static str),
}

async fn lead(context: &Context, page: Page, begin: Begin) -> Led {
    let held = page.held;
    if let Begin::Assigned(_) = &begin {
        reach(&EXECUTOR_ASSIGNED);
    }
    let (stage, run) = match begin {
        Begin::Found(stage, run, _) => (stage, run),
        Begin::Impossible(ending) => return unrunnable(context, &page, ending).await,
        Begin::Assigned(_) if context.shutdown.is_cancelled() => {
            hand_back(context, held, "the executor is stopping").await;
            return Led::Left("handed back");
        }
        Begin::Assigned(launch) => {
            let _step = step("prepare");
            match context.runner.prepare(*launch).await {
                Ok(run) => (Stage::Prepared, run),
                Err(Unprepared::Never(ending)) => return unrunnable(context, &page, ending).await,
                Err(Unprepared::NotNow(message)) => {
                    not_now(context, page, &message).await;
                    return Led::Left("handed back");
                }
            }
        }
    };
    let left = tokio::select! {
        left = through(context, &page, stage, &run) => left,
        leave = sent_away(&page) => Err(leave),
    };
    match left {
        Ok(ending) => {
            run.remove().await;
            Led::Ended(ending)
        }
        Err(Leave::Shutdown) => Led::Left("the executor stops"),
        Err(Leave::Fenced) => {
            tracing::info!("stopped: the attempt is not this executor's any more");
            if stop_wholly(context, &run).await {
                run.remove().await;
            }
            Led::Left("not this executor's any more")
        }
        Err(Leave::Forgotten(message)) => {
            let_be(context, page, &run, &message).await;
            Led::Left("let be")
        }
        Err(Leave::Unknown(message)) => {
            if stop_wholly(context, &run).await && last_word(context, &page, &message).await {
                run.quarantine(&message).await;
            }
            Led::Left("not known")
        }
    }
}

/// Reports that an attempt was not started and is given back; at a shutdown only as long as that waits.
pub(crate) async fn hand_back(context: &Context, held: Held, message: &str) {
    tracing::info!(execution = %held.id, attempt = held.fence.attempt, why = message, "handed back");
    let step = Step::HandedBack(v1::HandedBack { message: message.to_owned() });
    let _ = context.link.report(held, step).await;
}

/// Gives back what this machine cannot take at present, and takes nothing until it can: otherwise one machine with a full disk would
/// fetch, and fail, everything that others could run.
async fn not_now(context: &Context, page: Page, message: &str) {
    let book = page.book().clone();
    let newly = book.close(Closed::UNREADY);
    hand_back(context, page.held, message).await;
    drop(page);
    if newly {
        tracing::warn!(error = message, "cannot make anything ready: taking nothing until that is over");
        tokio::select! {
            () = open_when_ready(context, &book) => {}
            () = context.shutdown.cancelled() => {}
        }
    }
}

async fn open_when_ready(context: &Context, book: &Book) {
    loop {
        tokio::time::sleep(context.timing.retry_max * CLOSED_FOR).await;
        match context.runner.probe().await {
            Ok(()) => break,
            Err(error) => tracing::debug!(%error, "still cannot make anything ready"),
        }
    }
    tracing::info!("taking work again");
    book.open_again(Closed::UNREADY);
}

/// Reports the end of an attempt that never began.
async fn unrunnable(context: &Context, page: &Page, ending: Ending) -> Led {
    page.set_over();
    let held = page.held;
    tracing::info!(why = ending.message, "cannot be run here");
    let reported = context.link.report_finished(held, &ending, NO_LOG, false);
    tokio::select! {
        _ = reported => {}
        () = context.shutdown.cancelled() => {}
    }
    Led::Ended(ending)
}

/// Reports as lost what is about to be put aside, so that nobody waits for an end that would never come. What was refused may have been
/// one call only; what is refused here is let go. False if the executor's own end came first.
async fn last_word(context: &Context, page: &Page, message: &str) -> bool {
    page.set_over();
    let ending = ending::lost(&format!("the executor could not report on the attempt: {message}"));
    tokio::select! {
        _ = context.link.report_finished(page.held, &ending, NO_LOG, false) => true,
        () = context.shutdown.cancelled() => false,
    }
}

/// Waits until the attempt is said not to be this executor's to follow.
async fn sent_away(page: &Page) -> Leave {
    let mut stops = page.stops();
    let told = stops.wait_for(|stop| stop.is_some_and(|cause| cause >= StopCause::Fenced)).await.map(|stop| *stop);
    match told {
        Ok(Some(StopCause::Unknown)) => Leave::Forgotten("the controller's store does not know of it".to_owned()),
        Ok(_) => Leave::Fenced,
        Err(_) => std::future::pending().await,
    }
}

/// Leaves alone what the store does not know of, perhaps because it was restored from an older backup: the job may be doing work that
/// somebody counts on. It is neither stopped nor reported, its slot is free, and once it is over, it is put aside.
async fn let_be(context: &Context, page: Page, run: &Arc<dyn Run>, message: &str) {
    tracing::warn!(why = message, "let be: it goes into quarantine when it is over");
    run.let_be(message).await;
    run.output().forsake();
    drop(page);
    tokio::select! {
        _ = run.wait() => run.quarantine(message).await,
        () = context.shutdown.cancelled() => {}
    }
}

/// Stops whatever runs, and says nothing of it to anyone; false if the executor's own end came first.
async fn stop_wholly(context: &Context, run: &Arc<dyn Run>) -> bool {
    run.stop(StopCause::Fenced).await;
    tokio::select! {
        _ = run.wait() => true,
        () = context.shutdown.cancelled() => false,
    }
}

async fn through(context: &Context, page: &Page, stage: Stage, run: &Arc<dyn Run>) -> Result<Ending, Leave> {
    if run.stop_asked().await == Some(StopCause::Fenced) {
        return Err(Leave::Fenced);
    }
    let mut upload = Upload::new(page.held, Arc::clone(run), context.appends.clone(), context.timing);
    let ending = match stage {
        Stage::Lost(message) => ending::lost(&message),
        Stage::Started(runs_as) => match follow(context, page, run, &mut upload, runs_as).await {
            Ok(ending) => ending,
            Err(Follow::NotStarted(_)) => begin_and_follow(context, page, run, &mut upload).await?,
            Err(Follow::Leave(leave)) => return Err(leave),
        },
        Stage::Prepared => begin_and_follow(context, page, run, &mut upload).await?,
    };
    page.set_over();
    run.output().end();
    let _step = step("report");
    tokio::select! {
        finished = finish(context, page.held, &mut upload, &ending) => finished.map(|()| ending),
        () = context.shutdown.cancelled() => Err(Leave::Shutdown),
    }
}

fn cancelled() -> Ending {
    Ending::because(State::Cancelled, Reason::CANCELLED, "stopped before it began")
}

async fn begin_and_follow(context: &Context, page: &Page, run: &Arc<dyn Run>, upload: &mut Upload) -> Result<Ending, Leave> {
    let mut why = String::new();
    for _ in 0..STARTS {
        let starting = step("start");
        permission(context, page.held).await?;
        if page.stop().or(run.stop_asked().await).is_some() {
            return Ok(cancelled());
        }
        let runs_as = match run.start().await {
            Ok(runs_as) => runs_as,
            Err(ending) => return Ok(ending),
        };
        reach(&EXECUTOR_STARTED);
        drop(starting);
        tracing::debug!(runs_as, "started");
        match follow(context, page, run, upload, Some(runs_as)).await {
            Err(Follow::NotStarted(reason)) => why = reason,
            Err(Follow::Leave(leave)) => return Err(leave),
            Ok(ending) => return Ok(ending),
        }
    }
    let message = format!("the job could not be started in {STARTS} tries: {why}");
    Ok(Ending::because(State::Failed, Reason::START_FAILED, message))
}

/// Reports `starting` until a controller says yes, lately enough to act on it.
async fn permission(context: &Context, held: Held) -> Result<(), Leave> {
    loop {
        reach(&EXECUTOR_STARTING);
        // Counted from before the report: that is when the controller surely still counted on this executor.
        let asked_at = sys::awake();
        let report = context.link.report(held, Step::Starting(v1::Starting {}));
        let patience = async {
            context.shutdown.cancelled().await;
            tokio::time::sleep(LAST_WORD).await;
        };
        let verdict = tokio::select! {
            verdict = report => verdict?,
            () = patience => return Err(Leave::Shutdown),
        };
        match verdict {
            v1::Verdict::Accepted => {
                reach(&EXECUTOR_STARTING_TOLD);
                // The last look at the clock before the start: this process may have slept since, and have been given up.
                if sys::awake().saturating_sub(asked_at) < context.timing.start_within {
                    return Ok(());
                }
            }
            v1::Verdict::Stop | v1::Verdict::Unspecified => return Err(Leave::Fenced),
        }
    }
}

/// Why following ended without an ending.
enum Follow {
    NotStarted(String),
    Leave(Leave),
}

/// Watches over a job that was started, and sends its output meanwhile.
async fn follow(
    context: &Context,
    page: &Page,
    run: &Arc<dyn Run>,
    upload: &mut Upload,
    runs_as: Option<String>,
) -> Result<Ending, Follow> {
    let mut running_step = step("run");
    if running_step.is_recorded() {
        running_step.set("octavius.runs_as", runs_as.clone().unwrap_or_default());
    }
    let (over_sender, over) = watch::channel(false);
    // Pinned where they are made: what is moved before it is awaited takes its room once more for each move, in every attempt that waits.
    let watched = pin!(async {
        let mut stops = page.stops();
        let where_it_ran = runs_as.clone();
        let mut running = pin!(report_running(context, page.held, run, runs_as));
        let mut reported = false;
        let ended = loop {
            let stop = *stops.borrow_and_update();
            // What the store does not know is not stopped: it is let be by whoever drives this.
            if let Some(cause) = stop.filter(|cause| *cause != StopCause::Unknown) {
                run.stop(cause).await;
            }
            tokio::select! {
                over = run.wait() => break over,
                Ok(()) = stops.changed() => {}
                verdict = &mut running, if !reported => match verdict {
                    Ok(()) => reported = true,
                    Err(leave) => return Err(Follow::Leave(leave)),
                },
            }
        };
        match ended {
            Over::Ended(ending) => {
                reach(&EXECUTOR_OVER);
                page.set_over();
                if !reported {
                    report_image(context, page.held, run, where_it_ran).await.map_err(Follow::Leave)?;
                }
                let _ = over_sender.send(true);
                Ok(ending)
            }
            Over::NotStarted(_) if run.stop_asked().await.is_some() => {
                let _ = over_sender.send(true);
                Ok(cancelled())
            }
            Over::NotStarted(message) => Err(Follow::NotStarted(message)),
        }
    });
    let sent = pin!(async { upload.follow(&context.link, over).await.map_err(|refused| Follow::Leave(refused.into())) });
    tokio::select! {
        both = async { tokio::try_join!(watched, sent) } => both.map(|(ending, ())| ending),
        () = context.shutdown.cancelled() => Err(Follow::Leave(Leave::Shutdown)),
    }
}

async fn report_running(context: &Context, held: Held, run: &Arc<dyn Run>, runs_as: Option<String>) -> Result<(), Leave> {
    let Some(runs_as) = runs_as else { return Ok(()) };
    tokio::time::sleep(RUNNING_AFTER).await;
    say_running(context, held, v1::Running { runs_as: runs_as.clone(), image: String::new() }).await?;
    // A cluster may take minutes to pull it; until then there is where it runs.
    match run.image().await {
        image if image.is_empty() => Ok(()),
        image => say_running(context, held, v1::Running { runs_as, image }).await,
    }
}

/// Reports the image of what ended before that was done, as far as it is known.
async fn report_image(context: &Context, held: Held, run: &Arc<dyn Run>, runs_as: Option<String>) -> Result<(), Leave> {
    let image = tokio::select! {
        biased;
        image = run.image() => image,
        () = std::future::ready(()) => String::new(),
    };
    if image.is_empty() {
        return Ok(());
    }
    say_running(context, held, v1::Running { runs_as: runs_as.unwrap_or_default(), image }).await
}

async fn say_running(context: &Context, held: Held, running: v1::Running) -> Result<(), Leave> {
    match context.link.report(held, Step::Running(running)).await? {
        v1::Verdict::Stop => Err(Leave::Fenced),
        v1::Verdict::Accepted | v1::Verdict::Unspecified => Ok(()),
    }
}

/// Reports the end until a controller has it, log and all. A controller may have more of the log than the run folder has after a power
/// loss; it is told what there is here, and seals what it has.
async fn finish(context: &Context, held: Held, upload: &mut Upload, ending: &Ending) -> Result<(), Leave> {
    loop {
        let (_sender, over) = watch::channel(true);
        upload.follow(&context.link, over).await?;
        reach(&EXECUTOR_LOG_SENT);
        let mut ending = ending.clone();
        if let Some(why) = upload.trouble() {
            ending::append(&mut ending, why);
        }
        match context.link.report_finished(held, &ending, upload.seal(), upload.is_cut()).await {
            // Whatever the verdict, there is nothing left to do.
            Ok(_) => break,
            Err(Refused::LogGap(next)) if upload.go_back(next) => {}
            Err(refused) => return Err(refused.into()),
        }
    }
    reach(&EXECUTOR_REPORTED);
    tracing::info!(outcome = %ending.outcome, why = ending.message, "finished");
    Ok(())
}
