//! One large log: all the way in, what that costs, its last lines, and all the way out.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use octavius_proto::v1;
use octavius_proto::v1::read_log_response::Part;
use octavius_tests::cpu_time;
use octavius_tests::history::Bytes;
use octavius_tests::printer::{Kind, Print};

use crate::{House, Row, Sizes, mib, ms};

/// How often the last lines are read.
const TAILS: usize = 20;

/// How many last lines.
const LAST: usize = 100;

/// How long what is left in the store when a job has ended may take into the archive.
const SETTLES: Duration = Duration::from_secs(60);

pub(crate) async fn measure(house: &House, sizes: &Sizes) -> Result<Vec<Row>> {
    let print = Print { kind: Kind::Lines, seed: 1, bytes: sizes.bulk, over: Duration::ZERO };
    let daemons = [&house.controller, &house.executor];
    let mut before = Vec::new();
    for daemon in daemons {
        before.push((daemon.resident_bytes()?, cpu_time(daemon.pid())?));
        daemon.reset_peak()?;
    }
    let begun = Instant::now();
    let id = house.print(print.to_string()).await?;
    house.finished(&id).await?;
    let finished = begun.elapsed();
    let archive = house.world.archive().join("log").join(&id);
    let archived = loop {
        let there = archived(&archive)?;
        if there.printed >= print.bytes {
            break Some((begun.elapsed(), there.stored));
        }
        if begun.elapsed() > finished + SETTLES {
            println!("{} of {} bytes are in the archive", there.printed, print.bytes);
            break None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await; // how exactly the time is told
    };
    let name = format!("a log of {:.0} MiB", mib(print.bytes));
    let (took, what) = match archived {
        Some((took, stored)) => (took, format!("{:.1} s; {:.1} MiB in the archive", took.as_secs_f64(), mib(stored))),
        None => (finished, "finished, NOT ARCHIVED".to_owned()),
    };
    let mut rows = vec![Row {
        what: format!("{name}, from its submission until its job has finished and every byte is archived"),
        measured: format!("{:.0} MB/s ({what})", print.bytes as f64 / 1e6 / took.as_secs_f64()),
        aim: "≥ 60 MB/s",
    }];
    for ((daemon, (idle, used)), who) in daemons.into_iter().zip(before).zip(["controller", "executor"]) {
        let peak = daemon.peak_bytes()?;
        rows.push(Row {
            what: format!("of this, the {who}'s memory above what it has when idle, at most"),
            measured: format!("{:.1} MiB above {:.1} MiB", mib(peak.saturating_sub(idle)), mib(idle)),
            aim: "≤ 64 MiB",
        });
        let cpu = cpu_time(daemon.pid())?.saturating_sub(used).as_secs_f64();
        rows.push(Row {
            what: format!("of this, the {who}'s processor time"),
            measured: format!("{:.1} s per GB", cpu / (print.bytes as f64 / 1e9)),
            aim: "",
        });
    }
    rows.push(tail_by_call(house, &id).await?);
    rows.push(tail_by_command(house, &id)?);
    rows.push(back(house, &id, &print).await?);
    Ok(rows)
}

/// What is in the archive of a log.
#[derive(Debug, Default)]
struct Archived {
    /// Bytes that were printed.
    printed: u64,
    /// Bytes that they take.
    stored: u64,
}

/// Looks at the names of a log's objects, which say how many bytes are in each, and at their sizes.
fn archived(folder: &Path) -> Result<Archived> {
    let mut found = Archived::default();
    let Ok(attempts) = std::fs::read_dir(folder) else { return Ok(found) };
    for attempt in attempts {
        for object in std::fs::read_dir(attempt?.path())? {
            let object = object?;
            let name = object.file_name().to_string_lossy().into_owned();
            let size = name.ends_with(".zst").then(|| name.split('-').nth(1).and_then(|size| u64::from_str_radix(size, 16).ok()));
            found.printed += size.flatten().unwrap_or_default();
            found.stored += object.metadata()?.len();
        }
    }
    Ok(found)
}

/// A row of times of the last lines.
fn tails(how: &str, times: &mut [Duration]) -> Row {
    times.sort_unstable();
    let most = times.last().copied().unwrap_or_default();
    Row {
        what: format!("its last {LAST} lines, {how}, {} times", times.len()),
        measured: format!("median {:.1} ms, most {:.1} ms", ms(times[times.len() / 2]), ms(most)),
        aim: "≤ 100 ms",
    }
}

async fn tail_by_call(house: &House, id: &str) -> Result<Row> {
    let mut times = Vec::new();
    for _ in 0..TAILS {
        let begun = Instant::now();
        let request = v1::ReadLogRequest { id: id.to_owned(), tail_lines: LAST as u64, ..Default::default() };
        let mut stream = house.connections[0].logs().read_log(request).await?.into_inner();
        let mut lines = 0;
        while let Some(message) = stream.message().await? {
            if let Some(Part::Chunk(chunk)) = message.part {
                lines += chunk.data.iter().filter(|byte| **byte == b'\n').count();
            }
        }
        times.push(begun.elapsed());
        // What is cut off at its size ends without a line end.
        ensure!((LAST - 1..=LAST).contains(&lines), "{lines} lines");
    }
    Ok(tails("by gRPC", &mut times))
}

fn tail_by_command(house: &House, id: &str) -> Result<Row> {
    let client = house.client()?;
    let mut times = Vec::new();
    let last = LAST.to_string();
    for _ in 0..TAILS {
        let mut command = client.command(&["getlogs", id, "--tail", &last]);
        let begun = Instant::now();
        let output = command.stdin(Stdio::null()).output()?;
        times.push(begun.elapsed());
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        ensure!(output.stdout.split(|byte| *byte == b'\n').count() >= LAST, "{} bytes", output.stdout.len());
    }
    Ok(tails("`octavius getlogs --tail`, whole process", &mut times))
}

/// Reads all of it, and compares it with what was printed.
async fn back(house: &House, id: &str, print: &Print) -> Result<Row> {
    let begun = Instant::now();
    let request = v1::ReadLogRequest { id: id.to_owned(), ..Default::default() };
    let mut stream = house.connections[0].logs().read_log(request).await?.into_inner();
    let mut read = Bytes { size: 0, crc32c: 0 };
    let mut end = None;
    while let Some(message) = stream.message().await? {
        match message.part.context("an empty message")? {
            Part::Chunk(chunk) => {
                ensure!(chunk.offset == read.size, "bytes at {} where {} follows", chunk.offset, read.size);
                let crc32c = crc32c::crc32c_append(read.crc32c, &chunk.data);
                read = Bytes { size: read.size + chunk.data.len() as u64, crc32c };
            }
            Part::Gap(gap) => anyhow::bail!("{gap:?}"),
            Part::End(told) => end = Some(told),
        }
    }
    let elapsed = begun.elapsed();
    let whole = print.whole();
    ensure!(read == whole, "{read:?} was read where {whole:?} was printed");
    ensure!(end.is_some_and(|end| end.sealed && !end.damaged), "the log is not whole");
    Ok(Row {
        what: "all of it read back by gRPC, compared with what was printed".to_owned(),
        measured: format!("{:.0} MB/s, the same {} bytes", read.size as f64 / 1e6 / elapsed.as_secs_f64(), read.size),
        aim: "",
    })
}
