//! Arguments of an execution: whether what was given fits what the job declares, all errors at once.

use std::collections::BTreeMap;

use regex::{Regex, RegexBuilder};

use crate::definition::{Argument, ArgumentType, JobDefinition};
use crate::duration::HumanDuration;
use crate::limit::{ARGUMENT_VALUE_BYTES, ARGUMENTS_BYTES};
use crate::nearest::nearest;

/// Names and values as they reach the job.
pub type Arguments = BTreeMap<String, String>;

/// What stands where a sensitive value would be shown.
pub const MASK: &str = "********";

/// One thing that is wrong with given arguments.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// The job declares no argument of this name.
    #[error("argument `{name}` is not known to job `{job}`{}", suggest(.nearest.as_deref(), .known))]
    Unknown {
        /// The name given.
        name: String,
        /// The job.
        job: String,
        /// A declared name that may have been meant.
        nearest: Option<String>,
        /// All declared names.
        known: Vec<String>,
    },
    /// A required argument is missing.
    #[error("argument `{name}` is required{}", describe(.description))]
    Missing {
        /// Its name.
        name: String,
        /// What the job says of it.
        description: String,
    },
    /// The value does not fit.
    #[error("argument `{name}`: {problem}")]
    Value {
        /// The argument's name.
        name: String,
        /// What is wrong; names the value unless the argument is sensitive.
        problem: String,
    },
    /// All arguments together are too large.
    #[error("the arguments have {bytes} bytes in all, at most {ARGUMENTS_BYTES} are allowed")]
    TooLarge {
        /// Their size.
        bytes: usize,
    },
}

impl ArgumentError {
    /// The name of the argument that is meant, where it is one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Unknown { name, .. } | Self::Missing { name, .. } | Self::Value { name, .. } => Some(name),
            Self::TooLarge { .. } => None,
        }
    }
}

fn suggest(nearest: Option<&str>, known: &[String]) -> String {
    match nearest {
        Some(name) => format!("; did you mean `{name}`?"),
        None if known.is_empty() => "; it takes none".to_owned(),
        None => format!("; it takes {}", known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
    }
}

fn describe(description: &str) -> String {
    if description.is_empty() { String::new() } else { format!(": {description}") }
}

/// Checks what was given against what the job declares and fills in defaults.
///
/// # Errors
/// Everything that is wrong, in the order of the declaration, unknown names last.
pub fn resolve(job: &JobDefinition, given: &Arguments) -> Result<Arguments, Vec<ArgumentError>> {
    let mut errors = Vec::new();
    let mut resolved = Arguments::new();
    for argument in &job.env_vars.args {
        match (given.get(&argument.name), &argument.default) {
            (Some(value), _) => match check_value(argument, value) {
                Ok(()) => {
                    resolved.insert(argument.name.clone(), value.clone());
                }
                Err(problem) => errors.push(ArgumentError::Value { name: argument.name.clone(), problem }),
            },
            (None, Some(default)) => {
                resolved.insert(argument.name.clone(), default.0.clone());
            }
            (None, None) if argument.required => {
                errors.push(ArgumentError::Missing { name: argument.name.clone(), description: argument.description.clone() });
            }
            (None, None) => {}
        }
    }
    let known: Vec<String> = job.env_vars.args.iter().map(|argument| argument.name.clone()).collect();
    for name in given.keys().filter(|name| job.argument(name).is_none()) {
        let nearest = nearest(name, known.iter().map(String::as_str)).map(str::to_owned);
        errors.push(ArgumentError::Unknown { name: name.clone(), job: job.name.to_string(), nearest, known: known.clone() });
    }
    let bytes = resolved.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > ARGUMENTS_BYTES {
        errors.push(ArgumentError::TooLarge { bytes });
    }
    if errors.is_empty() { Ok(resolved) } else { Err(errors) }
}

/// Checks one value against its declaration.
///
/// # Errors
/// What is wrong, as a lower-case fragment; names the value and the choices unless the argument is sensitive.
pub fn check_value(argument: &Argument, value: &str) -> Result<(), String> {
    check_all_but_pattern(argument, value)?;
    let Some(pattern) = &argument.pattern else { return Ok(()) };
    let regex = compile_pattern(pattern).map_err(|_| format!("its pattern {pattern} does not compile"))?;
    check_pattern(argument, value, &regex)
}

/// Checks one value against its declaration, but for the pattern.
///
/// # Errors
/// As [`check_value`].
pub(crate) fn check_all_but_pattern(argument: &Argument, value: &str) -> Result<(), String> {
    if value.len() > ARGUMENT_VALUE_BYTES {
        return Err(format!("the value has {} bytes, at most {ARGUMENT_VALUE_BYTES} are allowed", value.len()));
    }
    if value.contains('\0') {
        return Err("the value holds a NUL character, which no environment variable can".to_owned());
    }
    check_type(argument.kind, value).map_err(|expected| format!("{} is not {expected}", shown(argument, value)))?;
    if argument.choices.is_empty() || argument.choices.iter().any(|choice| choice.0 == value) {
        return Ok(());
    }
    // The choices of a sensitive argument are what may be its value, and the nearest one is the likeliest.
    if argument.sensitive {
        return Err("the value is not one of the values allowed".to_owned());
    }
    let choices = argument.choices.iter().map(|choice| choice.0.as_str());
    let hint = nearest(value, choices.clone()).map(|near| format!("; did you mean {near}?")).unwrap_or_default();
    Err(format!("{} is not one of {}{hint}", shown(argument, value), choices.collect::<Vec<_>>().join(", ")))
}

/// Checks one value against its argument's pattern, as [`compile_pattern`] made it.
///
/// # Errors
/// As [`check_value`].
pub(crate) fn check_pattern(argument: &Argument, value: &str, regex: &Regex) -> Result<(), String> {
    match &argument.pattern {
        Some(pattern) if !regex.is_match(value) => Err(format!("{} does not match {pattern}", shown(argument, value))),
        _ => Ok(()),
    }
}

fn shown(argument: &Argument, value: &str) -> String {
    if argument.sensitive { "the value".to_owned() } else { format!("\"{}\"", clip(value).escape_debug()) }
}

/// Whether `value` is of the type.
///
/// # Errors
/// What was expected, with its article: "an integer".
pub fn check_type(kind: ArgumentType, value: &str) -> Result<(), &'static str> {
    let (fits, expected) = match kind {
        ArgumentType::String => (true, "a string"),
        ArgumentType::Integer => (value.parse::<i64>().is_ok(), "an integer"),
        ArgumentType::Number => (value.parse::<f64>().is_ok_and(f64::is_finite), "a number"),
        ArgumentType::Boolean => (matches!(value, "true" | "false"), "a boolean: write true or false"),
        ArgumentType::Duration => {
            (value.parse::<HumanDuration>().is_ok(), "a duration: write a number with its unit, like 90s or 10m")
        }
    };
    if fits { Ok(()) } else { Err(expected) }
}

/// Most bytes that a compiled pattern may take: 1 MiB. A short pattern of nested repetitions takes any amount.
const PATTERN_BYTES: usize = 1 << 20;

/// Compiles an argument's pattern so that it must match the whole value, bounded in the memory it may take.
///
/// # Errors
/// Where the pattern is not a regular expression, or one that takes more than 1 MiB.
pub fn compile_pattern(pattern: &str) -> Result<Regex, regex::Error> {
    let compile = |pattern: &str| RegexBuilder::new(pattern).size_limit(PATTERN_BYTES).build();
    compile(pattern)?; // on its own first: `a)(b` must not become valid by what is put around it
    compile(&format!("^(?:{pattern})$"))
}

fn clip(value: &str) -> String {
    const SHOWN: usize = 60;
    if value.chars().count() <= SHOWN { value.to_owned() } else { value.chars().take(SHOWN).chain("…".chars()).collect() }
}

/// The arguments with the values of sensitive ones masked, for everything that people see.
#[must_use]
pub fn masked(job: &JobDefinition, arguments: &Arguments) -> Arguments {
    let sensitive = |name: &str| job.argument(name).is_some_and(|argument| argument.sensitive);
    arguments.iter().map(|(name, value)| (name.clone(), if sensitive(name) { MASK.to_owned() } else { value.clone() })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(args: &str) -> JobDefinition {
        serde_json::from_str(&format!(r#"{{"name":"refund","env_vars":{{"args":{args}}}}}"#)).unwrap()
    }

    fn given(pairs: &[(&str, &str)]) -> Arguments {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn messages(job: &JobDefinition, pairs: &[(&str, &str)]) -> Vec<String> {
        resolve(job, &given(pairs)).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_error_is_told_at_once_and_a_slip_is_recognised() {
        let job = job(r#"[{"name":"order","required":true,"description":"like A-1042"},{"name":"count","type":"integer"},
                {"name":"reason","enum":["fraud","goodwill"]}]"#);
        assert_eq!(
            messages(&job, &[("ordr", "A-1"), ("count", "many"), ("reason", "fruad")]),
            [
                "argument `order` is required: like A-1042",
                "argument `count`: \"many\" is not an integer",
                "argument `reason`: \"fruad\" is not one of fraud, goodwill; did you mean fraud?",
                "argument `ordr` is not known to job `refund`; did you mean `order`?",
            ]
        );
    }

    #[test]
    fn defaults_fill_in_and_values_may_hold_anything() {
        let job = job(r#"[{"name":"a","default":5,"type":"integer"},{"name":"b"},{"name":"c"}]"#);
        let value = "x=1,y=2\n\"ü\"";
        assert_eq!(resolve(&job, &given(&[("b", value)])).unwrap(), given(&[("a", "5"), ("b", value)]));
    }

    #[test]
    fn types_are_held_to() {
        for (kind, good, bad) in
            [("integer", "-42", "1.5"), ("number", "1.5e3", "NaN"), ("boolean", "true", "yes"), ("duration", "1h30m", "90")]
        {
            let job = job(&format!(r#"[{{"name":"v","type":"{kind}"}}]"#));
            assert!(resolve(&job, &given(&[("v", good)])).is_ok(), "{kind} {good}");
            assert!(resolve(&job, &given(&[("v", bad)])).is_err(), "{kind} {bad}");
        }
    }

    #[test]
    fn a_pattern_matches_the_whole_value() {
        let job = job(r#"[{"name":"order","pattern":"A-[0-9]+|B"}]"#);
        assert!(resolve(&job, &given(&[("order", "A-1042")])).is_ok());
        for bad in ["xA-1", "A-1x", "A-", "A-1\nB"] {
            assert!(resolve(&job, &given(&[("order", bad)])).is_err(), "{bad}");
        }
        assert!(compile_pattern("a)(b").is_err());
        // Between 1 MiB and what the regex crate takes of itself.
        let large = r"\w{80}";
        assert!(Regex::new(large).is_ok());
        assert!(compile_pattern(large).unwrap_err().to_string().contains("1048576"));
    }

    #[test]
    fn sensitive_values_are_in_no_message_and_no_listing() {
        let job = job(r#"[{"name":"pin","sensitive":true,"pattern":"[0-9]{4}"},{"name":"who"}]"#);
        let arguments = given(&[("pin", "hunter2"), ("who", "ann")]);
        assert!(!messages(&job, &[("pin", "hunter2")])[0].contains("hunter2"));
        assert_eq!(masked(&job, &arguments), given(&[("pin", MASK), ("who", "ann")]));
        let job = self::job(r#"[{"name":"pin","sensitive":true,"enum":["hunter2","swordfish"]}]"#);
        for near in ["hunter1", "swordfis", "x"] {
            assert_eq!(messages(&job, &[("pin", near)]), ["argument `pin`: the value is not one of the values allowed"]);
        }
    }

    #[test]
    fn values_that_no_environment_can_hold_are_refused() {
        let job = job(r#"[{"name":"a"}]"#);
        assert!(messages(&job, &[("a", "x\0y")])[0].contains("NUL"));
        assert!(messages(&job, &[("a", &"x".repeat(ARGUMENT_VALUE_BYTES + 1))])[0].contains("bytes"));
    }
}
