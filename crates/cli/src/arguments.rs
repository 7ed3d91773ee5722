//! Arguments of an execution as they are given: `--arg k=v`, the first Octavius' `--args a=1,b=2`, a file. Nothing here knows the job; the
//! controller checks what was given, all of it at once.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use octavius_catalog::Document;
use octavius_core::argument::Arguments;
use octavius_core::limit::ARGUMENTS_BYTES;
use serde::de::{EnumAccess, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

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

/// What a file may hold, as far as it matters here. Not serde_yaml's own value: that takes no number of more than 64 bits.
enum Plain {
    Null,
    Text(String),
    /// A number; its text is looked up in the file.
    Number,
    Map(Vec<(Plain, Plain)>),
    Other,
}

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Plain;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<Plain, E> {
                Ok(Plain::Null)
            }
            fn visit_none<E>(self) -> Result<Plain, E> {
                Ok(Plain::Null)
            }
            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Plain, D::Error> {
                deserializer.deserialize_any(self)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Plain, E> {
                Ok(Plain::Text(value.to_string()))
            }
            fn visit_str<E>(self, text: &str) -> Result<Plain, E> {
                Ok(Plain::Text(text.to_owned()))
            }
            fn visit_i64<E>(self, _: i64) -> Result<Plain, E> {
                Ok(Plain::Number)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Plain, E> {
                Ok(Plain::Number)
            }
            fn visit_i128<E>(self, _: i128) -> Result<Plain, E> {
                Ok(Plain::Number)
            }
            fn visit_u128<E>(self, _: u128) -> Result<Plain, E> {
                Ok(Plain::Number)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Plain, E> {
                Ok(Plain::Number)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Plain, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Plain::Other)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Plain, A::Error> {
                let mut map = Vec::new();
                while let Some(entry) = entries.next_entry()? {
                    map.push(entry);
                }
                Ok(Plain::Map(map))
            }
            fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Plain, A::Error> {
                use serde::de::VariantAccess as _;
                let (IgnoredAny, content) = tagged.variant()?;
                content.newtype_variant::<IgnoredAny>()?;
                Ok(Plain::Other)
            }
        }
        deserializer.deserialize_any(Visit)
    }
}

fn parse_map(text: &str) -> Result<Arguments, Vec<String>> {
    let map = match serde_yaml::from_str(text) {
        Ok(Plain::Map(map)) => map,
        Ok(Plain::Null) => return Ok(Arguments::new()),
        Ok(_) => return Err(vec!["a map from names to values is expected".into()]),
        // the parser's own message may quote a value
        Err(error) => {
            let place = error.location().map(|at| format!(" at line {}, column {}", at.line(), at.column())).unwrap_or_default();
            return Err(vec![format!("neither YAML nor JSON{place}")]);
        }
    };
    // a number arrives as it was written, `0x1F` and `1.50` alike: its text is taken from the file
    let kind = if text.trim_start_matches('\u{feff}').trim_start().starts_with('{') { "args.json" } else { "args.yaml" };
    let places = Document::index(kind, text.as_bytes());
    let written = |name: &str| {
        let pointer = format!("/{}", name.replace('~', "~0").replace('/', "~1"));
        let span = places.as_ref()?.value(&pointer)?;
        let (start, end) = (usize::try_from(span.start).ok()?, usize::try_from(span.end).ok()?);
        let text = text.get(start..end)?.trim();
        matches!(serde_yaml::from_str(text), Ok(Plain::Number)).then(|| text.to_owned())
    };
    let mut arguments = Arguments::new();
    let mut problems = Vec::new();
    for (name, value) in map {
        let Plain::Text(name) = name else {
            problems.push("a name is not a text".to_owned());
            continue;
        };
        let value = match value {
            Plain::Text(text) => text,
            Plain::Number => match written(&name) {
                Some(text) => text,
                None => {
                    problems.push(format!("argument `{name}` is a number that cannot be taken as it is written: quote it"));
                    continue;
                }
            },
            Plain::Null | Plain::Map(_) | Plain::Other => {
                problems.push(format!("argument `{name}` is neither a text nor a number nor true or false"));
                continue;
            }
        };
        if arguments.contains_key(&name) {
            problems.push(format!("argument `{name}` is given twice"));
        }
        arguments.insert(name, value);
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
    fn numbers_arrive_as_they_were_written() {
        let yaml = "a: 0x1F\nb: 1.50\nc: 1e3\nd: 123456789012345678901234567890\ne/f: 007\n";
        let expected = [("a", "0x1F"), ("b", "1.50"), ("c", "1e3"), ("d", "123456789012345678901234567890"), ("e/f", "007")];
        assert_eq!(parse_map(yaml).unwrap(), map(&expected));
        let json = "{\n\t\"c\": 1e3,\n\t\"d\": 123456789012345678901234567890, \"é\": 1.50}";
        assert_eq!(parse_map(json).unwrap(), map(&[("c", "1e3"), ("d", "123456789012345678901234567890"), ("é", "1.50")]));
        assert!(parse_map("a: &x 1.50\n").unwrap_err()[0].contains("quote it"));
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(shell_quoted("a=1"), "a=1");
        assert_eq!(shell_quoted("it's"), r"'it'\''s'");
        assert_eq!(shell_quoted(""), "''");
    }
}
