//! Logs that are followed while they are printed. Each line says when it was printed, so that whoever receives it knows how long it took.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use octavius_proto::client::Connection;
use octavius_proto::v1;
use octavius_proto::v1::read_log_response::Part;
use octavius_tests::cpu_time;
use octavius_tests::printer::now_ns;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::{House, Row, Sizes, ms};

/// Lines a second of each of many executions.
const EACH: u32 = 100;

/// Lines a second of one that many follow.
const ONE: u32 = 1_000;

/// What a follower saw.
struct Followed {
    /// How long each line took to it, in the order of their coming.
    took: Vec<Duration>,
    /// When the first and the last were printed, in nanoseconds since 1970.
    first: u64,
    last: u64,
}

/// Follows a log to its end, and says `come` with the first line.
async fn follow(connection: Connection, id: String, come: mpsc::UnboundedSender<()>) -> Result<Followed> {
    let request = v1::ReadLogRequest { id, follow: true, ..Default::default() };
    let mut stream = connection.logs().read_log(request).await?.into_inner();
    let (mut followed, mut rest) = (Followed { took: Vec::new(), first: 0, last: 0 }, Vec::new());
    while let Some(message) = stream.message().await? {
        match message.part {
            Some(Part::Chunk(chunk)) => {
                let now = now_ns();
                rest.extend_from_slice(&chunk.data);
                let Some(whole) = rest.iter().rposition(|byte| *byte == b'\n') else { continue };
                for line in rest[..whole].split(|byte| *byte == b'\n') {
                    let printed: u64 = std::str::from_utf8(line)?.split(' ').next().context("an empty line")?.parse()?;
                    if followed.took.is_empty() {
                        followed.first = printed;
                        let _ = come.send(()); // nobody may wait for it
                    }
                    followed.last = printed;
                    followed.took.push(Duration::from_nanos(now.saturating_sub(printed)));
                }
                rest.drain(..=whole);
            }
            Some(Part::Gap(gap)) => anyhow::bail!("{gap:?}"),
            Some(Part::End(end)) => ensure!(end.sealed && !end.damaged, "{end:?}"),
            None => {}
        }
    }
    Ok(followed)
}

fn lines(rate: u32, time: Duration) -> usize {
    (f64::from(rate) * time.as_secs_f64()) as usize
}

fn ticks(rate: u32, time: Duration) -> String {
    format!("ticks {rate} {}", time.as_millis())
}

/// Waits for all followers; all times of all lines, sorted.
async fn all_times(followers: &mut JoinSet<Result<Followed>>, each: usize) -> Result<(Vec<Duration>, Vec<Followed>)> {
    let (mut times, mut all) = (Vec::new(), Vec::new());
    while let Some(followed) = followers.join_next().await {
        let followed = followed??;
        ensure!(followed.took.len() == each, "{} lines of {each} came", followed.took.len());
        times.extend_from_slice(&followed.took);
        all.push(followed);
    }
    times.sort_unstable();
    Ok((times, all))
}

fn spread(times: &[Duration]) -> String {
    let [half, nearly, most] = [times.len() / 2, times.len() * 99 / 100, times.len() - 1].map(|index| ms(times[index]));
    format!("median {half:.0} ms, p99 {nearly:.0} ms, most {most:.0} ms")
}

/// Many executions at once, each with one follower.
pub(crate) async fn many(house: &House, sizes: &Sizes) -> Result<Vec<Row>> {
    let (come, mut came) = mpsc::unbounded_channel();
    let mut followers = JoinSet::new();
    for number in 0..sizes.executions {
        let id = house.print(ticks(EACH, sizes.live)).await?;
        followers.spawn(follow(house.connections[number % house.connections.len()].clone(), id, come.clone()));
    }
    drop(come);
    // What is written while all of them print and none begins or ends: a part of the time in the middle.
    for _ in 0..sizes.executions {
        came.recv().await.context("a follower saw nothing")?;
    }
    let written = || house.etcd.as_ref().map(|etcd| anyhow::Ok([etcd.proposals(0)?, etcd.puts(0)?])).transpose();
    let used = || anyhow::Ok([cpu_time(house.controller.pid())?, cpu_time(house.executor.pid())?]);
    let (wrote, spent, begun) = (written()?, used()?, Instant::now());
    tokio::time::sleep(sizes.live / 3).await; // what is measured
    let (writes, uses, seconds) = (written()?, used()?, begun.elapsed().as_secs_f64());
    let (times, _) = all_times(&mut followers, lines(EACH, sizes.live)).await?;
    let name = format!(
        "{} executions at once, each printing {EACH} lines a second for {} s",
        sizes.executions,
        sizes.live.as_secs_f64()
    );
    let mut rows = vec![Row {
        what: format!("{name}: from a line's printing until its follower has it"),
        measured: format!("{} ({} lines)", spread(&times), times.len()),
        aim: "p99 ≤ 250 ms",
    }];
    let shares = [0, 1].map(|who| uses[who].saturating_sub(spent[who]).as_secs_f64() / seconds * 100.0);
    rows.push(Row {
        what: "of these, the processor time of controller and executor".to_owned(),
        measured: format!("{:.0} % and {:.0} % of a core", shares[0], shares[1]),
        aim: "",
    });
    if let (Some(before), Some(after)) = (wrote, writes) {
        let [proposals, puts] = [0, 1].map(|which| (after[which] - before[which]) as f64 / seconds / sizes.executions as f64);
        rows.push(Row {
            what: "of these, writes to etcd per execution that prints: transactions through consensus, and keys put by them"
                .to_owned(),
            measured: format!("{proposals:.1}/s, {puts:.1} keys/s"),
            aim: "≤ 5/s",
        });
    }
    Ok(rows)
}

/// One execution with one follower, and one with many.
pub(crate) async fn readers(house: &House, sizes: &Sizes) -> Result<Vec<Row>> {
    let (mut rows, mut alone) = (Vec::new(), None);
    for count in [1, sizes.readers] {
        let id = house.print(ticks(ONE, sizes.read)).await?;
        let (come, _came) = mpsc::unbounded_channel();
        let mut followers = JoinSet::new();
        for number in 0..count {
            let connection = house.connections[number % house.connections.len()].clone();
            followers.spawn(follow(connection, id.clone(), come.clone()));
        }
        let each = lines(ONE, sizes.read);
        let (finished, seen) = tokio::join!(house.finished(&id), all_times(&mut followers, each));
        let (times, all) = seen?;
        let finished = finished?.finished_at.context("no end")?;
        let finished = u64::try_from(finished.seconds)? * 1_000_000_000 + u64::try_from(finished.nanos)?;
        let Followed { first, last, .. } = all.first().context("nobody followed")?;
        let after = Duration::from_nanos(finished.saturating_sub(*last));
        let rate = each as f64 / Duration::from_nanos(finished.saturating_sub(*first)).as_secs_f64();
        let ratio = rate / *alone.get_or_insert(rate);
        let readers = if count == 1 { "1 follower".to_owned() } else { format!("{count} followers") };
        rows.push(Row {
            what: format!("one execution printing {ONE} lines a second for {} s, {readers}", sizes.read.as_secs_f64()),
            measured: format!(
                "{rate:.0} lines/s until sealed ({ratio:.2} of that with 1), finished {:.0} ms after the last line; followers: {}",
                ms(after),
                spread(&times)
            ),
            aim: "0.90 to 1.10",
        });
    }
    Ok(rows)
}
