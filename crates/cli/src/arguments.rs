//! Arguments of an execution as they are given: `--arg k=v`, the first Octavius' `--args a=1,b=2`, a file. Nothing here knows the job; the
//! controller checks what was given, all of it at once.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use octavius_core::argument::Arguments;
use octavius_core::limit::ARGUMENTS_BYTES;

use crate::env;
use crate::error::{Failure, Outcome};

/// The flags that give arguments.
#[derive(Debug, Clone, Default, Args)]
pub struct ArgumentArgs {
    /// An argument; may be repeated, the value may hold anything
    #[arg(long = "arg", value_name = "NAME=VALUE", env = env::ARG, hide_env_values = true)]
    pub arg: Vec<String>,
    /// Arguments in one text, as the first Octavius has them; values without comma
    #[arg(long, value_name = "A=1,B=2", env = env::ARGS, hide_env_values = true)]
    pub args: Option<String>,
    /// A file with a map of arguments, YAML or JSON; - for standard input
    #[arg(long, value_name = "FILE", env = env::ARGS_FILE)]
    pub args_file: Option<PathBuf>,
}

/// What was given, and what looks like a slip.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// The arguments.
    pub arguments: Arguments,
    /// Things that the person should know.
    pub warnings: Vec<String>,
}

/// Puts together what the flags give: `--arg` over `--args` over the file.
///
/// # Errors
/// Everything that is wrong, at once.
pub fn gather(args: &ArgumentArgs) -> Outcome<Given> {
    let mut given = Given::default();
    let mut problems = Vec::new();
    if let Some(path) = &args.args_file {
        match read_file(path)? {
            Ok(arguments) => given.arguments = arguments,
            Err(found) => problems.extend(found.into_iter().map(|problem| format!("{}: {problem}", path.display()))),
        }
    }
    let mut seen = Arguments::new();
    if let Some(text) = args.args.as_deref().filter(|text| !text.trim().is_empty()) {
        for part in text.split(',') {
            match split(part.trim_start()) {
                Some((name, value)) => put(&mut seen, name, value, &mut problems),
                None => problems
                    .push(format!("`--args`: {} is not NAME=VALUE; a value with a comma needs `--arg NAME=VALUE`", quoted(part))),
            }
        }
    }
    for text in &args.arg {
        match split(text) {
            Some((name, value)) => {
                put(&mut seen, name, value, &mut problems);
                if let Some(other) = swallowed(value) {
                    given.warnings.push(format!(
                        "the value of `{name}` holds \",{other}=\": `--arg` takes one argument, so `{other}` is not set by it; \
                         repeat `--arg`, or use `--args`"
                    ));
                }
            }
            None => problems.push(format!("`--arg` {} is not NAME=VALUE", quoted(text))),
        }
    }
    given.arguments.extend(seen);
    match problems.split_first() {
        None => Ok(given),
        Some((first, rest)) => {
            let mut failure = Failure::usage(first.clone());
            failure.details = rest.to_vec();
            Err(failure)
        }
    }
}

fn put(seen: &mut Arguments, name: &str, value: &str, problems: &mut Vec<String>) {
    if seen.insert(name.to_owned(), value.to_owned()).is_some_and(|before| before != value) {
        problems.push(format!("argument `{name}` is given twice, with different values"));
    }
}

fn split(text: &str) -> Option<(&str, &str)> {
    text.split_once('=').map(|(name, value)| (name.trim(), value)).filter(|(name, _)| !name.is_empty())
}

/// The text up to its `=`, quoted: what follows may be a secret.
fn quoted(text: &str) -> String {
    let shown: String = text.chars().take_while(|c| *c != '=').take(40).collect();
    format!("\"{}\"", shown.escape_debug())
}

/// The name in a `,NAME=` within a value: what someone writes who thinks of `--args`.
fn swallowed(value: &str) -> Option<&str> {
    value.match_indices(',').find_map(|(comma, _)| {
        let name = value[comma + 1..].split_once('=')?.0.trim();
        let first_fits = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        (first_fits && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')).then_some(name)
    })
}

/// Reads a file of arguments: one map from names to plain values.
fn read_file(path: &Path) -> Outcome<Result<Arguments, Vec<String>>> {
    // names and values are bounded by the controller too; quotes and escapes may double a file
    let limit = u64::try_from(ARGUMENTS_BYTES).unwrap_or(u64::MAX) * 4;
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text))
    };
    read.map_err(|error| Failure::file("read arguments from", path, error))?;
    Ok(parse_map(&text))
}

fn parse_map(text: &str) -> Result<Arguments, Vec<String>> {
    use serde_yaml::Value;
    let map = match serde_yaml::from_str(text) {
        Ok(Value::Mapping(map)) => map,
        Ok(Value::Null) => return Ok(Arguments::new()),
        Ok(_) => return Err(vec!["a map from names to values is expected".into()]),
        // the parser's own message may quote a value
        Err(error) => {
            let place = error.location().map(|at| format!(" at line {}, column {}", at.line(), at.column())).unwrap_or_default();
            return Err(vec![format!("neither YAML nor JSON{place}, or a name twice")]);
        }
    };
    let mut arguments = Arguments::new();
    let mut problems = Vec::new();
    for (name, value) in map {
        let Some(name) = name.as_str() else {
            problems.push("a name is not a text".to_owned());
            continue;
        };
        let text = match value {
            Value::String(text) => text,
            Value::Bool(value) => value.to_string(),
            Value::Number(number) => number.to_string(),
            Value::Null | Value::Sequence(_) | Value::Mapping(_) | Value::Tagged(_) => {
                problems.push(format!("argument `{name}` is neither a text nor a number nor true or false"));
                continue;
            }
        };
        arguments.insert(name.to_owned(), text);
    }
    if problems.is_empty() { Ok(arguments) } else { Err(problems) }
}

/// A word as a shell takes it.
#[must_use]
pub fn shell_quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ':' | '=' | '@' | '%' | '+' | ',');
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(arg: &[&str], args: Option<&str>) -> Result<Given, Failure> {
        gather(&ArgumentArgs {
            arg: arg.iter().map(|text| (*text).to_owned()).collect(),
            args: args.map(str::to_owned),
            args_file: None,
        })
    }

    fn map(pairs: &[(&str, &str)]) -> Arguments {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_first_octavius_way_still_works() {
        assert_eq!(gathered(&[], Some("a=1,b=2")).unwrap().arguments, map(&[("a", "1"), ("b", "2")]));
        assert_eq!(gathered(&[], Some("a=x=y, b=")).unwrap().arguments, map(&[("a", "x=y"), ("b", "")]));
        assert_eq!(gathered(&[], Some("")).unwrap().arguments, map(&[]));
    }

    #[test]
    fn a_value_may_hold_anything_and_a_swallowed_argument_is_told() {
        let given = gathered(&["a=1,b=2", "c=x, y", "d=k=v", "e=1,2=3"], None).unwrap();
        assert_eq!(given.arguments, map(&[("a", "1,b=2"), ("c", "x, y"), ("d", "k=v"), ("e", "1,2=3")]));
        assert_eq!(given.warnings.len(), 1, "{:?}", given.warnings);
        assert!(given.warnings[0].contains("`b` is not set"), "{}", given.warnings[0]);
    }

    #[test]
    fn a_single_argument_goes_over_the_text() {
        let failure = gathered(&["a=2"], Some("a=1")).unwrap_err();
        assert!(failure.error.unwrap().to_string().contains("given twice"));
        assert_eq!(gathered(&["a=1"], Some("a=1")).unwrap().arguments, map(&[("a", "1")]));
    }

    #[test]
    fn everything_wrong_is_told_at_once_without_values() {
        let failure = gathered(&["nothing", "=secret"], Some("a=1,b")).unwrap_err();
        assert_eq!(failure.details.len(), 2);
        assert!(!format!("{failure:?}").contains("secret"));
    }

    #[test]
    fn files_are_yaml_or_json() {
        assert_eq!(parse_map("a: 1\nb: true\nc: x y\n").unwrap(), map(&[("a", "1"), ("b", "true"), ("c", "x y")]));
        assert_eq!(parse_map(r#"{"a": "1", "b": 2.5}"#).unwrap(), map(&[("a", "1"), ("b", "2.5")]));
        assert_eq!(parse_map("").unwrap(), map(&[]));
        assert_eq!(parse_map("a: [1]\nb: {}\n").unwrap_err().len(), 2);
        assert!(parse_map("- a").is_err());
        assert!(parse_map("a: 1\na: 2").is_err());
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(shell_quoted("a=1"), "a=1");
        assert_eq!(shell_quoted("it's"), r"'it'\''s'");
        assert_eq!(shell_quoted(""), "''");
    }
}
