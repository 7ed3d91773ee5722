//! Logs through faults: jobs print random bytes whose size and checksum are known, while controllers, executors, the etcd and networks fail
//! as FAULTS says. Afterwards each reader, whether it came before, during or after, from any controller or at a command line, has exactly
//! these bytes, and the log is sealed and whole.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use etcd_client::Client as Etcd;
use octavius_core::ExecutionId;
use octavius_core::execution::State;
use octavius_failpoint::{FIRED, VARIABLE};
use octavius_proto::client::{Address, Connection};
use octavius_proto::{Fault, v1};
use octavius_tests::caller::{Caller, LogSum, Tags};
use octavius_tests::cluster::{Cluster, Link, Part, Shape, runtime};
use octavius_tests::history::Bytes;
use octavius_tests::printer::{self, Kind, Print};
use octavius_tests::{Client, Direction, EtcdOptions, Mode, PATIENCE, Random, World, eventually};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tonic::Code;

/// The program that the jobs run.
const PRINTER: &str = env!("CARGO_BIN_EXE_printer");

/// What most of the jobs here print: enough for many appends, for as long as faults take to strike several times.
fn some(seed: u64) -> Print {
    Print { kind: Kind::Random, seed, bytes: 4_000_000, over: Duration::from_secs(4) }
}

/// Lets clients run the job that prints.
fn apply(world: &World, admin: &Client<'_>, gate: Option<&Path>) -> Result<()> {
    world.write("prints/octavius.yaml", "catalog: prints\n")?;
    world.write("prints/prints.yaml", &printer::job(Path::new(PRINTER), gate))?;
    admin.run(&["apply", "prints"])?.expect(0)?;
    Ok(())
}

/// A cluster with an archive that runs the job that prints.
fn start(shape: Shape) -> Result<Cluster> {
    let cluster = Cluster::start(Shape { archive: true, ..shape }, "first")?;
    apply(&cluster.world, &cluster.world.admin(cluster.port(0))?, None)?;
    Ok(cluster)
}

/// Lets the jobs end only when there is a file at the path that is returned: a log that is over is cut where there is no room for long, one
/// whose job runs on is not.
fn hold_at_a_gate(cluster: &Cluster) -> Result<PathBuf> {
    let gate = cluster.world.path("gate");
    apply(&cluster.world, &cluster.world.admin(cluster.port(0))?, Some(&gate))?;
    Ok(gate)
}

fn caller(cluster: &Cluster, first: usize) -> Result<Arc<Caller>> {
    Ok(Arc::new(cluster.caller(first, &Arc::default(), &Tags::default())?))
}

/// Somebody at a command line, who knows all controllers.
fn people(cluster: &Cluster) -> Result<Client<'_>> {
    let hosts = (0..cluster.shape().controllers).map(|index| cluster.link(Link::Clients(index)).address().to_string());
    let token = std::fs::read_to_string(cluster.world.path("admin.token"))?;
    cluster.world.client_of("people", &hosts.collect::<Vec<_>>().join(","), token.trim())
}

/// An execution that prints, and those who read along.
struct Printing {
    runtime: Runtime,
    caller: Arc<Caller>,
    print: Print,
    id: String,
    /// How much the first of them has.
    came: Arc<AtomicU64>,
    readers: Vec<JoinHandle<Result<LogSum>>>,
    /// What follows at a command line.
    commands: Vec<std::thread::JoinHandle<Result<Bytes>>>,
}

impl Printing {
    /// Submits it, and follows its log from before there is any.
    #[expect(clippy::print_stdout, reason = "what is printed is shown where a test fails: the seed is in it")]
    fn start(caller: &Arc<Caller>, print: Print) -> Result<Self> {
        println!("printer {print}");
        let runtime = runtime()?;
        let id = ExecutionId::generate().to_string();
        let request = v1::ExecuteRequest {
            id: id.clone(),
            job: "prints".to_owned(),
            arguments: [("what".to_owned(), print.to_string())].into(),
            ..v1::ExecuteRequest::default()
        };
        runtime.block_on(caller.call(PATIENCE, |connection| {
            let request = request.clone();
            async move { connection.executions().execute(request).await }
        }))?;
        let (came, caller) = (Arc::default(), Arc::clone(caller));
        let mut printing = Self { runtime, caller, print, id, came, readers: Vec::new(), commands: Vec::new() };
        printing.follow(&Arc::clone(&printing.caller));
        Ok(printing)
    }

    /// Lets somebody follow through the controllers of this caller, from the log's beginning.
    fn follow(&mut self, caller: &Arc<Caller>) {
        let came = if self.readers.is_empty() { Arc::clone(&self.came) } else { Arc::default() };
        let (id, caller) = (self.id.clone(), Arc::clone(caller));
        self.readers.push(self.runtime.spawn(async move { caller.sum_log(&id, true, &came, 2 * PATIENCE).await }));
    }

    /// Lets somebody follow at a command line.
    fn follow_by_command(&mut self, client: &Client<'_>) {
        let command = client.command(&["getlogs", &self.id, "-f"]);
        self.commands.push(std::thread::spawn(|| printed_by(command)));
    }

    /// Waits until so many hundredths of the log have been read by the first follower.
    fn until(&self, percent: u64) -> Result<()> {
        eventually("the log grows", || {
            let came = self.came.load(Ordering::Relaxed);
            ensure!(came * 100 >= percent * self.print.bytes, "{came} bytes of {} came", self.print.bytes);
            Ok(())
        })
    }

    /// Waits for the end, and sees that everybody has the same bytes: followers, those who only come now, to each of `all`, and a command
    /// line.
    fn check(self, all: &[Arc<Caller>], client: &Client<'_>) -> Result<()> {
        let Self { runtime, caller, print, id, readers, commands, .. } = self;
        let seen = runtime.block_on(caller.watch(&id, 2 * PATIENCE))?.context("it has not ended")?;
        ensure!(seen.state == State::Succeeded && seen.attempts.len() == 1, "{seen:?}");
        let whole = print.whole();
        let is_whole = |who: &str, sum: &LogSum| {
            let LogSum { read, end } = sum;
            ensure!(*read == whole, "{who} has {read:?} where {whole:?} was printed");
            ensure!(end.sealed && !end.damaged && end.size == whole.size && end.attempt == 1, "{who}: {end:?}");
            Ok(())
        };
        for (number, reader) in readers.into_iter().enumerate() {
            is_whole(&format!("follower {number}"), &runtime.block_on(reader)??)?;
        }
        for command in commands {
            let got = command.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            ensure!(got == whole, "getlogs -f printed {got:?} where {whole:?} was printed");
        }
        for (number, caller) in all.iter().enumerate() {
            for follow in [false, true] {
                let sum = runtime.block_on(caller.sum_log(&id, follow, &AtomicU64::new(0), PATIENCE))?;
                is_whole(&format!("a late reader (follows: {follow}) through controller {number}"), &sum)?;
            }
        }
        let request = v1::GetExecutionRequest { id: id.clone() };
        let execution = runtime.block_on(caller.call(PATIENCE, |connection| {
            let request = request.clone();
            async move { Ok(connection.executions().get_execution(request).await?.into_inner().execution.unwrap_or_default()) }
        }))?;
        let sealed = execution.attempts.first().and_then(|attempt| attempt.log_size);
        ensure!(sealed == Some(whole.size), "sealed with {sealed:?}");
        let got = printed_by(client.command(&["getlogs", &id]))?;
        ensure!(got == whole, "getlogs printed {got:?} where {whole:?} was printed");
        Ok(())
    }
}

/// What a command prints into a pipe.
fn printed_by(mut command: Command) -> Result<Bytes> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut out = child.stdout.take().context("no pipe")?;
    let (mut bytes, mut buffer) = (Bytes { size: 0, crc32c: 0 }, vec![0; 1 << 16]);
    loop {
        let count = out.read(&mut buffer)?;
        if count == 0 {
            let status = child.wait()?;
            ensure!(status.success(), "{command:?}: {status} after {bytes:?}");
            return Ok(bytes);
        }
        bytes = Bytes { size: bytes.size + count as u64, crc32c: crc32c::crc32c_append(bytes.crc32c, &buffer[..count]) };
    }
}

/// Lets `strike` do its worst at each of these hundredths of a log, with a new follower through each controller after the first time, and
/// checks what came of it.
fn through(
    mut cluster: Cluster,
    print: Print,
    at: &[u64],
    mut strike: impl FnMut(&mut Cluster, usize) -> Result<()>,
) -> Result<()> {
    let all = (0..cluster.shape().controllers).map(|first| caller(&cluster, first)).collect::<Result<Vec<_>>>()?;
    let mut printing = Printing::start(&all[0], print)?;
    printing.follow_by_command(&people(&cluster)?);
    for (round, percent) in at.iter().enumerate() {
        printing.until(*percent)?;
        strike(&mut cluster, round).with_context(|| format!("at {percent} %"))?;
        if round == 0 {
            all.iter().for_each(|caller| printing.follow(caller));
        }
    }
    let client = cluster.world.admin(cluster.port(0))?;
    printing.check(&all, &client).with_context(|| cluster.said())
}

#[test]
fn a_controller_that_is_killed_again_and_again_keeps_the_log() -> Result<()> {
    let world = World::new()?.faster(20).archiving();
    let (controller, port) = world.controller("store", 0)?;
    let admin = world.admin(port)?;
    apply(&world, &admin, None)?;
    let _executor = world.executor("e1", port, &admin.registration()?, 4)?;
    let token = std::fs::read_to_string(world.path("admin.token"))?;
    let address = format!("127.0.0.1:{port}");
    let caller = Arc::new(Caller::new(&[address], 0, token.trim(), &Arc::default(), &Tags::default())?);
    let mut printing = Printing::start(&caller, some(1))?;
    printing.follow_by_command(&admin);
    let mut controller = Some(controller);
    for percent in [5, 20, 40, 60, 80] {
        printing.until(percent)?;
        controller.take().map_or(Ok(()), octavius_tests::Daemon::kill)?;
        controller = Some(world.controller("store", port)?.0);
        printing.follow(&caller);
    }
    printing.check(&[Arc::clone(&caller)], &admin)
}

#[test]
fn of_two_controllers_each_in_turn_is_killed_and_the_executor_goes_to_the_other() -> Result<()> {
    let cluster = start(Shape::small(2, 1))?;
    through(cluster, some(2), &[5, 25, 45, 65, 85], |cluster, round| {
        let (dead, alive) = (Part::Controller(round % 2), Part::Controller((round + 1) % 2));
        if cluster.daemon(alive).is_err() {
            cluster.start_controller((round + 1) % 2, &[], false)?;
        }
        cluster.kill(dead)?;
        // The last one stays away until there is more of the log, without it.
        if round == 4 { cluster.start_controller(round % 2, &[], false) } else { Ok(()) }
    })
}

#[test]
fn an_executor_that_is_killed_again_and_again_goes_on_where_it_was() -> Result<()> {
    through(start(Shape::small(2, 1))?, some(3), &[5, 20, 40, 60, 80], |cluster, _| {
        cluster.kill(Part::Executor(0))?;
        cluster.start_executor(0, &[], false)
    })
}

#[test]
fn an_executor_that_stops_and_goes_on_has_missed_nothing() -> Result<()> {
    through(start(Shape::small(2, 1))?, some(4), &[10, 60], |cluster, _| {
        cluster.pause(Part::Executor(0))?;
        std::thread::sleep(Duration::from_secs(3)); // the fault itself; after 9 s it would be given up
        cluster.wake(Part::Executor(0))
    })
}

#[test]
fn an_etcd_that_stops_for_longer_than_a_lease_has_the_whole_log_afterwards() -> Result<()> {
    through(start(Shape::small(2, 1))?, some(5), &[25], |cluster, _| {
        cluster.pause(Part::Member(0))?;
        std::thread::sleep(Duration::from_secs(11)); // the fault itself
        cluster.wake(Part::Member(0))
    })
}

#[test]
fn a_leader_of_the_etcd_that_dies_takes_nothing_with_it() -> Result<()> {
    through(start(Shape::small(2, 1).members(3))?, some(6), &[20, 60], |cluster, _| {
        let leader = Part::Member(cluster.etcd.leader()?);
        cluster.kill(leader)?;
        cluster.etcd.leader()?; // another one
        cluster.revive(leader)
    })
}

#[test]
fn a_network_that_is_silent_or_resets_or_loses_answers_changes_no_byte() -> Result<()> {
    let rounds: Vec<u64> = (0..9).map(|round| 5 + 10 * round).collect();
    let print = Print { over: Duration::from_secs(6), ..some(7) };
    let mut random = Random::new(print.seed);
    through(start(Shape::small(2, 1))?, print, &rounds, |cluster, round| {
        let links = cluster.links();
        let all = |cluster: &Cluster, mode| links.iter().for_each(|link| cluster.link(*link).set(mode));
        match round % 3 {
            0 => {
                // Nothing is heard, or only no answers, and what hung is cut off then: what was answered had been done.
                let direction = [Direction::Both, Direction::ToServer, Direction::ToClient][round / 3];
                all(cluster, Mode::Blackhole(direction));
                std::thread::sleep(Duration::from_secs(1)); // the fault itself
                links.iter().for_each(|link| cluster.link(*link).reset());
            }
            1 => {
                // Cut off in the middle of an append, of an answer to one, or of a transaction.
                all(cluster, Mode::CutAfter(random.number() % 100_000));
                std::thread::sleep(random.between(Duration::from_millis(200), Duration::from_millis(600))); // the fault itself
            }
            _ => {
                for _ in 0..5 {
                    links.iter().for_each(|link| cluster.link(*link).reset());
                    std::thread::sleep(Duration::from_millis(50)); // the fault itself
                }
            }
        }
        all(cluster, Mode::Pass);
        Ok(())
    })
}

/// The bytes were taken, and the executor does not hear of it: because the answer is dropped, or because the controller dies before it.
#[test]
fn bytes_whose_answer_is_lost_are_sent_again_and_stand_there_once() -> Result<()> {
    let mut cluster = start(Shape::small(2, 1))?;
    for (seed, plan) in [(8, "reply.append-log=drop@3"), (9, "reply.append-log=kill@4")] {
        cluster.kill(Part::Executor(0))?;
        cluster.kill(Part::Controller(0))?;
        cluster.start_controller(0, &[(VARIABLE, plan)], false)?;
        // After the controller, so that its session and its appends are with that one.
        cluster.start_executor(0, &[], false)?;
        let all = [caller(&cluster, 1)?];
        let printing = Printing::start(&all[0], Print { over: Duration::from_secs(2), ..some(seed) })?;
        eventually("the point is reached", || {
            let said = cluster.daemon(Part::Controller(0))?.said();
            ensure!(said.contains(FIRED), "{plan} was not reached: {said}");
            Ok(())
        })?;
        let client = cluster.world.admin(cluster.port(1))?;
        printing.check(&all, &client).with_context(|| plan.to_owned())?;
    }
    Ok(())
}

/// An executor of this test's own, which speaks to both controllers.
struct ByHand {
    connections: Vec<Connection>,
    assignment: v1::Assignment,
    // It is there as long as its session.
    _heard: tonic::Streaming<v1::SessionResponse>,
}

impl ByHand {
    /// Registers it with every controller at these addresses, and waits for its first assignment.
    async fn start(addresses: &[String], registration: &str) -> Result<Self> {
        let open = async |address: &String, token: &str| -> Result<Connection> {
            Ok(Connection::open(&[Address::parse(address)?], Some(token), PATIENCE).await?)
        };
        let request = v1::RegisterExecutorRequest { id: "by-hand".to_owned(), ..Default::default() };
        let first = open(&addresses[0], registration).await?;
        let token = first.executors().register_executor(request).await?.into_inner().token;
        let mut connections = Vec::new();
        for address in addresses {
            connections.push(open(address, &token).await?);
        }
        let (say, requests) = tokio::sync::mpsc::channel(4);
        let hello = v1::Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capacity: 1,
            runner: "process".to_owned(),
            instance: 1,
            ..Default::default()
        };
        say.send(v1::SessionRequest { say: Some(v1::session_request::Say::Hello(hello)) }).await?;
        tokio::spawn(async move {
            let mut pings = tokio::time::interval(Duration::from_millis(100)); // 2 s, at a twentieth
            loop {
                pings.tick().await;
                let ping = v1::session_request::Say::Ping(v1::Ping { free: 1 });
                if say.send(v1::SessionRequest { say: Some(ping) }).await.is_err() {
                    break;
                }
            }
        });
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut heard = connections[0].executors().session(requests).await?.into_inner();
        let assignment = async {
            loop {
                let response = heard.message().await?.context("the session ended")?;
                if let Some(v1::session_response::Say::Assignment(assignment)) = response.say {
                    return anyhow::Ok(assignment);
                }
            }
        };
        let assignment = tokio::time::timeout(PATIENCE, assignment).await.context("nothing was assigned")??;
        Ok(Self { connections, assignment, _heard: heard })
    }

    async fn report(&self, step: v1::report_execution_request::Step) -> Result<()> {
        let v1::Assignment { id, attempt, nonce, .. } = self.assignment.clone();
        let request = v1::ReportExecutionRequest { id, attempt, nonce, step: Some(step) };
        let verdict = self.connections[0].executors().report_execution(request).await?.into_inner().verdict();
        ensure!(verdict == v1::Verdict::Accepted, "{verdict:?}");
        Ok(())
    }

    /// Appends through the controller of this index, and returns where the log goes on; with a gap, what the refusal says of that.
    async fn append(&self, controller: usize, bytes: &[u8], offset: usize, size: usize) -> Result<usize> {
        let v1::Assignment { id, attempt, nonce, .. } = self.assignment.clone();
        let data = bytes[offset..bytes.len().min(offset + size)].to_vec().into();
        let request = v1::AppendLogRequest { id, attempt, nonce, offset: offset as u64, data, times: None };
        match self.connections[controller].logs().append_log(request).await {
            Ok(answer) => Ok(usize::try_from(answer.into_inner().next_offset)?),
            Err(status) if status.code() == Code::OutOfRange => {
                let fault = Fault::from_status(&status);
                let next: usize = fault.fact("next_offset").context("no next offset")?.parse()?;
                ensure!(next < offset, "refused at {offset}, and it goes on at {next}");
                Ok(next)
            }
            Err(status) => Err(status.into()),
        }
    }
}

/// Pieces come twice, late, too early, cut otherwise and at once through both controllers, as after many a reconnect.
#[test]
fn appends_that_are_doubled_and_shuffled_through_two_controllers_make_one_log() -> Result<()> {
    let cluster = start(Shape::small(2, 0))?;
    let all = [caller(&cluster, 0)?, caller(&cluster, 1)?];
    let print = Print { bytes: 3_000_000, ..some(12) };
    let mut printing = Printing::start(&all[0], print)?;
    printing.follow(&all[1]);
    let registration = cluster.world.admin(cluster.port(0))?.registration()?;
    let addresses = [0, 1].map(|controller| cluster.link(Link::Clients(controller)).address().to_string());
    let mut bytes = Vec::new();
    Print { over: Duration::ZERO, ..print }.write(&mut bytes)?;
    printing.runtime.block_on(async {
        use v1::report_execution_request::Step;
        let executor = ByHand::start(&addresses, &registration).await?;
        executor.report(Step::Starting(v1::Starting {})).await?;
        executor.report(Step::Running(v1::Running { runs_as: "by hand".to_owned(), ..Default::default() })).await?;
        let (mut random, bytes) = (Random::new(print.seed), &bytes[..]);
        let (mut next, mut refused) = (0, 0);
        while next < bytes.len() {
            // What follows, something from before, and something from too far ahead, in any order, through any of them.
            let mut calls = vec![next, next.saturating_sub(random.below(200_000)), random.below(next + 1)];
            let ahead = next + 1 + random.below(400_000);
            calls.extend((ahead < bytes.len()).then_some(ahead));
            let calls = calls.into_iter().map(|offset| {
                let (controller, size) = (random.below(2), 1 + random.below(300_000));
                let executor = &executor;
                async move { executor.append(controller, bytes, offset, size).await.map(|next| (offset, next)) }
            });
            let answers = futures::future::try_join_all(calls).await?;
            refused += answers.iter().filter(|(offset, next)| next < offset).count();
            let furthest = answers.iter().map(|(_, next)| *next).max().unwrap_or_default();
            ensure!(furthest > next, "at {next}: {answers:?}");
            next = furthest;
        }
        ensure!(refused > 0, "nothing came too early");
        let ending = v1::Ending { outcome: v1::ExecutionState::Succeeded.into(), exit_code: Some(0), ..Default::default() };
        let Bytes { size, crc32c } = print.whole();
        let finished = v1::Finished { ending: Some(ending), log_size: size, log_crc32c: crc32c, log_cut: false };
        executor.report(Step::Finished(finished)).await?;
        anyhow::Ok(())
    })?;
    let client = cluster.world.admin(cluster.port(0))?;
    printing.check(&all, &client)
}

/// The etcd takes nothing any more while a job prints, and has room again before the job has ended.
#[test]
fn an_etcd_without_room_holds_a_log_back_and_loses_none_of_it() -> Result<()> {
    const QUOTA: &str = "16777216";
    let shape = Shape {
        etcd: EtcdOptions::new(1).flag(format!("--quota-backend-bytes={QUOTA}")),
        variables: vec![("OCTAVIUS_ETCD_QUOTA_BYTES", QUOTA)],
        // Room is made in the third turn of whoever looks after the store, and a turn takes 300 s.
        faster: 40,
        ..Shape::small(2, 1)
    };
    let mut cluster = start(shape)?;
    let gate = hold_at_a_gate(&cluster)?;
    let all = [caller(&cluster, 0)?, caller(&cluster, 1)?];
    let mut printing = Printing::start(&all[0], Print { bytes: 1_000_000, ..some(10) })?;
    printing.until(20)?;
    let endpoint = cluster.etcd.endpoints();
    printing.runtime.block_on(async {
        let mut client = Etcd::connect(&endpoint, None).await?;
        for number in 0..32 {
            // Someone else's keys, until etcd takes no more.
            if client.put(format!("foreign/{number}"), vec![b'x'; 1 << 20], None).await.is_err() {
                return Ok(());
            }
        }
        bail!("the etcd has room without end")
    })?;
    eventually("the log waits for room", || {
        let said = cluster.daemon(Part::Executor(0))?.said();
        ensure!(said.contains("a log waits for room"), "{said}");
        Ok(())
    })?;
    all.iter().for_each(|caller| printing.follow(caller));
    printing.runtime.block_on(async {
        let mut client = Etcd::connect(&endpoint, None).await?;
        client.delete("foreign/", Some(etcd_client::DeleteOptions::new().with_prefix())).await?;
        anyhow::Ok(())
    })?;
    printing.until(100).with_context(|| cluster.said())?;
    std::fs::write(&gate, "")?;
    let client = cluster.world.admin(cluster.port(0))?;
    printing.check(&all, &client)
}

/// There is more than the store takes in the archive's place.
#[test]
fn an_archive_that_is_away_holds_a_log_back_and_loses_none_of_it() -> Result<()> {
    let mut cluster = start(Shape::small(2, 1))?;
    let gate = hold_at_a_gate(&cluster)?;
    let all = [caller(&cluster, 0)?, caller(&cluster, 1)?];
    let mut printing = Printing::start(&all[0], Print { bytes: 24_000_000, over: Duration::from_secs(3), ..some(13) })?;
    printing.follow_by_command(&people(&cluster)?);
    printing.until(10)?;
    let (archive, away) = (cluster.world.archive(), cluster.world.path("archive.away"));
    std::fs::rename(&archive, &away)?;
    std::fs::write(&archive, "no folder")?;
    eventually("the archive is missed", || {
        let parts = [Part::Controller(0), Part::Controller(1), Part::Executor(0)];
        let missed = parts.map(|part| Ok(cluster.daemon(part)?.said().contains("does not answer")));
        ensure!(missed.into_iter().collect::<Result<Vec<_>>>()?.contains(&true), "{}", cluster.said());
        Ok(())
    })?;
    all.iter().for_each(|caller| printing.follow(caller));
    std::thread::sleep(Duration::from_secs(4)); // the fault itself: longer than there is room elsewhere
    let came = printing.came.load(Ordering::Relaxed);
    ensure!(came < printing.print.bytes, "all of it came without the archive");
    std::fs::remove_file(&archive)?;
    std::fs::rename(&away, &archive)?;
    printing.until(100).with_context(|| cluster.said())?;
    std::fs::write(&gate, "")?;
    let client = cluster.world.admin(cluster.port(0))?;
    printing.check(&all, &client)
}

/// One line that does not end, of 200 MB, while controllers and the executor are killed.
#[test]
fn two_hundred_megabytes_without_a_line_end_come_through_kills() -> Result<()> {
    let print = Print { kind: Kind::Unbroken, seed: 11, bytes: 200_000_000, over: Duration::ZERO };
    through(start(Shape::small(2, 1))?, print, &[10, 40, 70], |cluster, round| match round {
        1 => {
            cluster.kill(Part::Executor(0))?;
            cluster.start_executor(0, &[], false)
        }
        _ => {
            cluster.kill(Part::Controller(0))?;
            cluster.start_controller(0, &[], false)
        }
    })
}

/// What the first Octavius lost lines of.
fn five_thousand_lines(world: &World) -> Result<()> {
    const LINES: u64 = 5_918;
    let print = Print { kind: Kind::Numbered, seed: 0, bytes: LINES * 100, over: Duration::ZERO };
    let (_daemons, client) = world.whole(None)?;
    apply(world, &client, None)?;
    let what = format!("what={print}");
    let followed = client.run(&["execute", "prints", "--arg", &what, "--follow"])?.expect(0)?;
    let id = client.execute("prints", &["--arg", &what, "--wait"])?;
    let read = client.run(&["getlogs", &id])?.expect(0)?;
    for (who, text) in [("execute --follow", followed.stdout), ("getlogs", read.stdout)] {
        for (number, line) in (1..).zip(text.lines()) {
            ensure!(line == format!("{number:>99}"), "{who}: line {number} is {line:?}");
        }
        ensure!(Bytes::of(text.as_bytes()) == print.whole(), "{who}: {} lines", text.lines().count());
    }
    Ok(())
}

#[test]
fn five_thousand_lines_at_once_are_all_there_on_the_embedded_store() -> Result<()> {
    five_thousand_lines(&World::new()?.archiving())
}

#[test]
fn five_thousand_lines_at_once_are_all_there_on_etcd() -> Result<()> {
    five_thousand_lines(&World::on_etcd()?.archiving())
}
