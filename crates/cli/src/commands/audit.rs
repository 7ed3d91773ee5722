//! `octavius audit`: the audit trail, who did or was refused what, also while it grows.

use std::collections::VecDeque;

use clap::Args;
use octavius_core::Timestamp;
use octavius_proto::{audit_json, to_timestamp, v1};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::executions::parse_since;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::{Format, Shell};
use crate::session::{Patience, Session};
use crate::table::{Growing, wire_time};
use crate::wait::{self, Waited, again};
use crate::{Context, env};

/// Flags of `octavius audit`.
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Go on with what comes, until it is interrupted
    #[arg(short, long, env = env::FOLLOW, value_parser = clap::builder::BoolishValueParser::new())]
    follow: bool,
    /// Only what was done since: a duration like 2h, or a time
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_since, env = env::SINCE)]
    since: Timestamp,
    /// Only the newest so many; with --follow, before what comes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), env = env::LIMIT)]
    limit: Option<u32>,
    /// Form of the output; with --follow, json is one record a line
    #[arg(short, long, value_parser = Format::among(&["table", "wide", "json", "yaml"]), default_value = "table", env = env::OUTPUT)]
    output: Format,
}

/// The columns of the table, and of the wide one.
const HEADER: [&str; 6] = ["AT", "USER", "ACTION", "OBJECT", "RESULT", "FROM"];
const WIDE_HEADER: [&str; 9] = ["AT", "USER", "ACTION", "OBJECT", "RESULT", "FROM", "ROLE", "TOKEN ID", "DETAILS"];

fn row(record: &v1::AuditRecord, wide: bool) -> Vec<String> {
    let or_none = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let result = match record.result() {
        v1::AuditResult::Refused => format!("refused: {}", record.reason),
        v1::AuditResult::Done => "done".to_owned(),
        v1::AuditResult::Unspecified => "-".to_owned(),
    };
    let at = wire_time(record.at.as_ref());
    let mut cells =
        vec![at, or_none(&record.user), record.action.clone(), or_none(&record.object), result, or_none(&record.from)];
    if wide {
        let mut details: Vec<_> = record.details.iter().map(|(name, value)| format!("{name}={value}")).collect();
        details.sort_unstable();
        cells.extend([or_none(&record.role), or_none(&record.token_id), or_none(&details.join(" "))]);
    }
    cells
}

/// Where the records go, in the form that was asked for.
struct Printer<'a> {
    shell: &'a Shell,
    output: Format,
    follow: bool,
    table: Growing<'a>,
    /// What is held until all that there is has come: with a limit, or for one document of all.
    held: Option<VecDeque<v1::AuditRecord>>,
    limit: usize,
}

impl<'a> Printer<'a> {
    fn new(shell: &'a Shell, args: &AuditArgs) -> Self {
        let header: &[&str] = if args.output == Format::Wide { &WIDE_HEADER } else { &HEADER };
        let is_table = matches!(args.output, Format::Table | Format::Wide);
        let holds = args.limit.is_some() || (!args.follow && !is_table);
        Self {
            shell,
            output: args.output,
            follow: args.follow,
            table: Growing::new(header, shell.width),
            held: holds.then(VecDeque::new),
            limit: args.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)),
        }
    }

    fn take(&mut self, records: Vec<v1::AuditRecord>) -> Outcome<()> {
        let Some(held) = &mut self.held else { return self.print(&records) };
        for record in records {
            if held.len() == self.limit {
                held.pop_front();
            }
            held.push_back(record);
        }
        Ok(())
    }

    /// Everything that there was has come.
    fn caught_up(&mut self) -> Outcome<()> {
        match self.held.take() {
            Some(held) => self.print(&Vec::from(held)),
            None => self.print(&[]), // a table has its header, also where nothing is in it
        }
    }

    fn print(&mut self, records: &[v1::AuditRecord]) -> Outcome<()> {
        match self.output {
            Format::Json | Format::Yaml if !self.follow => {
                let value = document(records);
                self.output.structured(self.shell, || value)?;
            }
            Format::Json => {
                let lines: String = records.iter().map(|record| format!("{}\n", audit_json(record))).collect();
                self.shell.print(&lines)?;
            }
            Format::Yaml => {
                for record in records {
                    self.shell.line("---")?;
                    self.shell.yaml(&audit_json(record))?;
                }
            }
            _ => {
                let wide = self.output == Format::Wide;
                let text = self.table.rows(records.iter().map(|record| row(record, wide)));
                self.shell.print(&text)?;
            }
        }
        // Nobody reads any more: there is nothing else that it goes on for.
        if self.shell.is_closed() { Err(Failure::quiet(Exit::Done)) } else { Ok(()) }
    }
}

/// All records in one document, which says its version once.
fn document(records: &[v1::AuditRecord]) -> Value {
    let mut values: Vec<_> = records.iter().map(audit_json).collect();
    for value in &mut values {
        value.as_object_mut().and_then(|record| record.remove("format_version"));
    }
    json!({ "records": values })
}

/// Reads the trail into `printer`. A connection that breaks is made again, and reading goes on after the last record that came.
async fn read(session: &Session, args: &AuditArgs, printer: &mut Printer<'_>) -> Outcome<()> {
    let (mut patience, mut brief) = (Patience::new(session.timeout()), Patience::of(session.timeout()));
    let mut request = v1::ReadAuditRequest { since: Some(to_timestamp(args.since)), follow: args.follow, after: None };
    let mut caught_up = false;
    loop {
        let broken = match read_once(session, &mut request, printer, &mut caught_up, &mut patience).await {
            Ok(()) if caught_up && !args.follow => return Ok(()),
            Ok(()) => Failure::new(Exit::Unreachable, anyhow::Error::msg("the controller ended the stream")),
            Err(failure) => failure,
        };
        let patient = args.follow || request.after.is_some();
        again(session, if patient { &mut patience } else { &mut brief }, broken).await?;
    }
}

async fn read_once(
    session: &Session,
    request: &mut v1::ReadAuditRequest,
    printer: &mut Printer<'_>,
    caught_up: &mut bool,
    patience: &mut Patience,
) -> Outcome<()> {
    let mut stream = session.call_once(async |to| to.admin().read_audit(request.clone()).await).await?;
    let opened = Instant::now();
    loop {
        // What follows may be long in coming; what is there already may not.
        let next = if *caught_up {
            patience.next(&mut stream, opened).await?
        } else {
            session.message(&mut stream).await?.inspect(|_| patience.renew())
        };
        let Some(response) = next else { return Ok(()) };
        if let Some(last) = response.records.last() {
            request.after.clone_from(&last.position);
        }
        if !response.records.is_empty() {
            printer.take(response.records)?;
        }
        if response.caught_up && !std::mem::replace(caught_up, true) {
            printer.caught_up()?;
        }
    }
}

/// Runs the command.
///
/// # Errors
/// Where the controller cannot be reached or refuses.
pub async fn run(context: &Context, args: &AuditArgs) -> Outcome {
    let session = Session::open(context).await?;
    let mut printer = Printer::new(&context.shell, args);
    Ok(match wait::bounded(None, read(&session, args, &mut printer)).await? {
        Waited::Done(()) => Exit::Done,
        Waited::TimedOut | Waited::Interrupted => Exit::Interrupted,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(user: &str, action: &str, object: &str, reason: &str, details: &[(&str, &str)]) -> v1::AuditRecord {
        let result = if reason.is_empty() { v1::AuditResult::Done } else { v1::AuditResult::Refused };
        v1::AuditRecord {
            position: Some(v1::AuditPosition { revision: 41, id: "0k3v7q2m8d5x1n4r6t9w0b9f2q".into() }),
            at: Some(prost_types::Timestamp { seconds: 1_772_366_400, nanos: 5_000_000 }),
            user: user.into(),
            role: if user.is_empty() { String::new() } else { "user".into() },
            token_id: if user.is_empty() { String::new() } else { "0k3v7q2m8d5x1n4r6t9w0b9aaa".into() },
            from: "10.0.4.7".into(),
            action: action.into(),
            object: object.into(),
            result: result.into(),
            reason: reason.into(),
            details: details.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        }
    }

    fn some() -> Vec<v1::AuditRecord> {
        let submitted = [("job", "refund"), ("arguments.order", "A-1042"), ("arguments.pin", "********")];
        vec![
            record("ann", "execution.submit", "execution/0k3v7q2m8d5x1n4r6t9w0b9f2q", "", &submitted),
            record("vic", "job.pause", "job/refund", "NOT_PERMITTED", &[]),
            record("", "execution.submit", "", "UNAUTHENTICATED", &[("token", "unknown, or revoked")]),
            record("", "call.refused", "", "REPEATED", &[("count", "990"), ("users", "vic 990")]),
        ]
    }

    #[test]
    fn the_table_says_who_did_what() {
        let rows = |header, wide| Growing::new(header, None).rows(some().iter().map(|record| row(record, wide)));
        insta::assert_snapshot!("table", rows(&HEADER, false));
        insta::assert_snapshot!("wide", rows(&WIDE_HEADER, true));
    }

    #[test]
    fn the_document_says_all_of_it() {
        insta::assert_snapshot!("document", serde_json::to_string_pretty(&document(&some()[..2])).unwrap());
        insta::assert_snapshot!("line", audit_json(&some()[1]).to_string());
    }
}
