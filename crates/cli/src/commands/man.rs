//! `octavius man`: the manual pages, made of the same texts as the help. For releases and packages; the help does not show it.

use std::path::{Path, PathBuf};

use clap::Args;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};
use octavius_core::Timestamp;

use crate::cli::GROUPS;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::{Context, env};

/// Flags of `octavius man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Folder for the pages, one for each command; made where it is missing
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Section of the manual: commands.
const SECTION: &str = "1";

/// What the pages say beside the commands' own texts.
const EXITS: [(Exit, &str); 12] = [
    (Exit::Done, "Done."),
    (Exit::No, "The answer is no: there are differences or findings, or the execution waited for has failed."),
    (Exit::Usage, "Wrong usage, configuration or files. Nothing was changed."),
    (Exit::Refused, "The controller refused: not found, not allowed, a stale plan, a conflict; or the person declined."),
    (Exit::Unreachable, "No controller could be reached in time."),
    (Exit::Cancelled, "The execution waited for was cancelled."),
    (Exit::TimedOut, "The execution waited for ran, or waited, longer than it may."),
    (Exit::Lost, "The execution waited for was lost with its executor."),
    (Exit::NotSignedIn, "Not signed in: the token is missing, expired or unknown."),
    (Exit::Fault, "A fault of Octavius."),
    (Exit::WaitTimedOut, "The waiting took longer than --wait-timeout; the execution goes on."),
    (Exit::Interrupted, "Interrupted from the keyboard."),
];

const FILES: [(&str, &str); 4] = [
    ("./octavius_client.yaml, ~/.octavius/octavius_client.yaml", "How to reach a controller; see octavius-config(1)."),
    ("octavius.yaml", "The root of a catalogue; see octavius-init(1)."),
    ("controller_config.json", "A controller's configuration; see octavius-controller-start(1)."),
    ("executor_config.json", "An executor's configuration; see octavius-executor-start(1)."),
];

/// Runs the command.
///
/// # Errors
/// Where a page cannot be written.
pub fn run(_: &Context, args: &ManArgs) -> Outcome {
    std::fs::create_dir_all(&args.dir).map_err(|error| Failure::file("make", &args.dir, error))?;
    for (name, text) in pages(&date()?) {
        write(&args.dir.join(name), &text)?;
    }
    Ok(Exit::Done)
}

fn write(path: &Path, text: &[u8]) -> Outcome<()> {
    std::fs::write(path, text).map_err(|error| Failure::file("write", path, error))
}

/// The pages' date: the one that reproducible builds name, or today's.
fn date() -> Outcome<String> {
    let at = match env::get(env::SOURCE_DATE_EPOCH) {
        None => Timestamp::now(),
        Some(text) => text.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok()).ok_or_else(|| {
            Failure::usage(format!("{} is \"{}\", not a number of seconds", env::SOURCE_DATE_EPOCH, text.escape_debug()))
        })?,
    };
    Ok(at.strftime("%Y-%m-%d").to_string())
}

/// All pages, each with the name of its file.
fn pages(date: &str) -> Vec<(String, Vec<u8>)> {
    let mut command = shown(crate::cli::command());
    command.build();
    let mut pages = Vec::new();
    gather(&command, None, date, &mut pages);
    pages
}

/// The commands as a page shows them: flags that the short help leaves out stand in it with their texts.
fn shown(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| {
        let arg = arg.hide_short_help(false);
        // the help has one heading of this name, whether or not a flag says so
        if arg.get_help_heading() == Some("Options") { arg.help_heading(clap::builder::Resettable::Reset) } else { arg }
    });
    command.mut_subcommands(shown)
}

fn name(command: &clap::Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

fn gather(command: &clap::Command, parent: Option<&str>, date: &str, pages: &mut Vec<(String, Vec<u8>)>) {
    pages.push((format!("{}.{SECTION}", name(command)), page(command, parent, date)));
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        gather(sub, Some(name(command)), date, pages);
    }
}

fn page(command: &clap::Command, parent: Option<&str>, date: &str) -> Vec<u8> {
    let man = Man::new(command.clone())
        .section(SECTION)
        .date(date)
        .source(concat!("octavius ", env!("CARGO_PKG_VERSION")))
        .manual("Octavius Manual");
    let mut text = Vec::new();
    let mut rest = Roff::new();
    let subs: Vec<&clap::Command> = command.get_subcommands().filter(|sub| !sub.is_hide_set()).collect();
    commands(&mut rest, &subs, parent.is_none());
    if let Some(after) = command.get_after_long_help().or_else(|| command.get_after_help()) {
        // It is set in columns, which filling would run together.
        rest.control("SH", ["NOTES"]);
        rest.control("nf", []);
        for line in after.to_string().lines() {
            rest.text([roman(line)]);
        }
        rest.control("fi", []);
    }
    if parent.is_none() {
        rest.control("SH", ["EXIT STATUS"]);
        for (exit, meaning) in EXITS {
            term(&mut rest, &exit.code().to_string(), meaning);
        }
        rest.control("SH", ["ENVIRONMENT"]);
        rest.text([roman(
            "Every flag has a variable, named with it, but for those that consent to harm. A flag goes before its variable, and that before \
             the file. A variable that is empty counts as unset.",
        )]);
        rest.control("SH", ["FILES"]);
        for (file, meaning) in FILES {
            term(&mut rest, file, meaning);
        }
    }
    let others: Vec<String> = parent.map(str::to_owned).into_iter().chain(subs.iter().map(|sub| name(sub).to_owned())).collect();
    see_also(&mut rest, &others);
    // Paths and names of flags are not broken at the end of a line.
    let mut setting = Roff::new();
    setting.control("nh", []);
    setting.control("ad", ["l"]);
    let sections = [Man::render_name_section, Man::render_synopsis_section, Man::render_description_section];
    // Into memory, where nothing fails.
    let written = man
        .render_title(&mut text)
        .and_then(|()| setting.to_writer(&mut text))
        .and_then(|()| sections.into_iter().try_for_each(|section| section(&man, &mut text)))
        .and_then(|()| {
            if command.get_arguments().any(|arg| !arg.is_hide_set()) { man.render_options_section(&mut text) } else { Ok(()) }
        })
        .and_then(|()| rest.to_writer(&mut text));
    debug_assert!(written.is_ok());
    // Possible values stand below their flag after two breaks about an empty line, of which some readers of the manual complain.
    String::from_utf8_lossy(&text).replace(".br\n\n.br\n", ".sp\n").into_bytes()
}

/// The commands below this one; those of the top in the groups of its help.
fn commands(roff: &mut Roff, subs: &[&clap::Command], grouped: bool) {
    if subs.is_empty() {
        return;
    }
    roff.control("SH", ["COMMANDS"]);
    let one = |roff: &mut Roff, sub: &clap::Command| {
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        term(roff, &format!("{}({SECTION})", name(sub)), &about);
    };
    if grouped {
        for (title, names) in GROUPS {
            roff.control("SS", [title]);
            names.iter().filter_map(|name| subs.iter().find(|sub| sub.get_name() == *name)).for_each(|sub| one(roff, sub));
        }
    } else {
        subs.iter().for_each(|sub| one(roff, sub));
    }
}

fn term(roff: &mut Roff, term: &str, meaning: &str) {
    roff.control("TP", []);
    roff.text([bold(term)]);
    roff.text([roman(meaning)]);
}

fn see_also(roff: &mut Roff, names: &[String]) {
    if names.is_empty() {
        return;
    }
    roff.control("SH", ["SEE ALSO"]);
    let mut line: Vec<Inline> = Vec::new();
    for (at, name) in names.iter().enumerate() {
        line.extend([bold(name), roman(format!("({SECTION}){}", if at + 1 < names.len() { ", " } else { "" }))]);
    }
    roff.text(line);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    fn texts() -> Vec<(String, String)> {
        pages("2026-11-29").into_iter().map(|(name, text)| (name, String::from_utf8(text).unwrap())).collect()
    }

    #[test]
    fn every_command_has_its_page() {
        fn walk(command: &clap::Command, path: &str, all: &mut BTreeSet<String>) {
            all.insert(format!("{path}.1"));
            for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                walk(sub, &format!("{path}-{}", sub.get_name()), all);
            }
        }
        let mut all = BTreeSet::new();
        walk(&crate::cli::command(), "octavius", &mut all);
        assert!(all.contains("octavius-executors-drain.1") && !all.contains("octavius-man.1"), "{all:?}");
        assert_eq!(texts().into_iter().map(|(name, _)| name).collect::<BTreeSet<_>>(), all);
    }

    /// What a page says of a flag is what the help says of it.
    #[test]
    fn pages_have_the_texts_of_the_help() {
        fn plain(roff: &str) -> String {
            let mut text = roff.replace("\\fB", "").replace("\\fI", "").replace("\\fR", "").replace("\\-", "-");
            text = text.replace("\\&", "").replace("\\*(Aq", "'").replace("\\(aq", "'").replace("\\\\", "\\");
            text.split_whitespace().collect::<Vec<_>>().join(" ")
        }
        fn walk(command: &clap::Command, path: &str, pages: &[(String, String)], problems: &mut Vec<String>) {
            let file = format!("{path}.1");
            let page = pages.iter().find(|(name, _)| *name == file).map(|(_, text)| plain(text)).unwrap_or_default();
            let mut told = vec![command.get_about()];
            // clap's own flag says of the help what is not so in a page
            let arguments = command.get_arguments().filter(|arg| !arg.is_hide_set() && arg.get_id() != "help");
            told.extend(arguments.map(clap::Arg::get_help));
            for help in told.into_iter().flatten() {
                let help = help.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
                if !page.contains(&help) {
                    problems.push(format!("{path}: {help}"));
                }
            }
            for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                walk(sub, &format!("{path}-{}", sub.get_name()), pages, problems);
            }
        }
        let mut command = crate::cli::command();
        command.build();
        let mut problems = Vec::new();
        walk(&command, "octavius", &texts(), &mut problems);
        assert_eq!(problems, Vec::<String>::new());
    }

    #[test]
    fn the_first_page_has_every_exit_code() {
        let codes: BTreeSet<u8> = EXITS.iter().map(|(exit, _)| exit.code()).collect();
        assert_eq!(codes, BTreeSet::from([0, 1, 2, 3, 4, 5, 6, 7, 8, 70, 124, 130]));
    }

    /// As whoever reads the manual has it, without a warning.
    #[test]
    fn pages_are_sound() {
        for (name, text) in texts() {
            let mut mandoc = Command::new("mandoc")
                .args(["-T", "lint", "-W", "warning"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("mandoc is there: tests/lib.sh installs it");
            mandoc.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            let said = mandoc.wait_with_output().unwrap();
            assert!(said.status.success(), "{name}:\n{}", String::from_utf8_lossy(&said.stdout));
        }
    }
}
