//! What a job file may look like, as a tree built once from the JSON Schema, and the walk that holds a file to it: every finding at
//! its place, and a value with the faulty parts left out, so that one slip does not hide the findings behind it.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use octavius_core::nearest::nearest;
use octavius_core::size::SizeError;
use octavius_core::{ByteSize, CatalogName, HumanDuration, JobName, SizeLimit};
use serde_json::{Map, Value as Json};

use crate::MANUAL;
use crate::diagnostic::{Diagnostic, FINDINGS_PER_FILE};
use crate::document::{Entry, Node, Span, Value};
use crate::schema;

/// What a value may be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Shape {
    Text,
    JobName,
    CatalogName,
    Duration,
    /// A number of bytes, with its unit or without one.
    Size,
    /// The same, or `none`.
    SizeLimit,
    /// Text, number or boolean, kept as its text.
    Scalar,
    Bool,
    Integer {
        min: i64,
        max: i64,
    },
    /// One of these words.
    Word(Vec<String>),
    List(Box<Shape>),
    /// Any keys, values of one shape.
    Free(Box<Shape>),
    /// These keys, some of them required.
    Record {
        fields: BTreeMap<String, Shape>,
        required: Vec<String>,
    },
    /// Exactly one of these keys.
    OneOf(BTreeMap<String, Shape>),
}

/// The shape of a job file.
pub(crate) static JOB: LazyLock<Shape> = LazyLock::new(|| root(&schema::job_schema()));

/// The shape of `octavius.yaml`.
pub(crate) static CATALOG: LazyLock<Shape> = LazyLock::new(|| root(&schema::catalog_schema()));

/// The shape of `_defaults.yaml`: that of a job without its name.
pub(crate) static DEFAULTS: LazyLock<Shape> = LazyLock::new(|| match &*CATALOG {
    Shape::Record { fields, .. } => fields.get("defaults").cloned().unwrap_or(Shape::Text),
    _ => Shape::Text,
});

fn root(schema: &Json) -> Shape {
    let empty = Map::new();
    shape_of(schema.as_object().unwrap_or(&empty), &schema["definitions"])
}

fn shape_of(schema: &Map<String, Json>, definitions: &Json) -> Shape {
    let (name, schema) = schema::resolve(schema, definitions);
    match name {
        Some("JobName") => return Shape::JobName,
        Some("CatalogName") => return Shape::CatalogName,
        Some("Duration") => return Shape::Duration,
        Some("ByteSize") => return Shape::Size,
        Some("SizeLimit") => return Shape::SizeLimit,
        Some("Scalar") => return Shape::Scalar,
        _ => {}
    }
    let at = |key: &str| schema.get(key);
    let sub = |schema: &Json| schema.as_object().map_or(Shape::Text, |schema| shape_of(schema, definitions));
    let words = |list: &[Json]| list.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect::<Vec<_>>();
    if let Some(variants) = at("oneOf").and_then(Json::as_array) {
        let constants: Vec<Json> = variants.iter().filter_map(|variant| variant.get("const").cloned()).collect();
        if constants.len() == variants.len() {
            return Shape::Word(words(&constants));
        }
        let properties = variants.iter().filter_map(|variant| variant.get("properties")?.as_object());
        return Shape::OneOf(properties.flatten().map(|(key, schema)| (key.clone(), sub(schema))).collect());
    }
    if let Some(list) = at("enum").and_then(Json::as_array) {
        return Shape::Word(words(list));
    }
    match at("type").and_then(Json::as_str) {
        Some("boolean") => Shape::Bool,
        Some("integer") => {
            let bound = |key: &str, default: i64| at(key).and_then(Json::as_i64).unwrap_or(default);
            Shape::Integer { min: bound("minimum", 0), max: bound("maximum", i64::from(u32::MAX)) }
        }
        Some("array") => Shape::List(Box::new(at("items").map_or(Shape::Text, sub))),
        Some("object") => match at("properties").and_then(Json::as_object) {
            Some(properties) => Shape::Record {
                fields: properties.iter().map(|(key, schema)| (key.clone(), sub(schema))).collect(),
                required: at("required").and_then(Json::as_array).map(|list| words(list)).unwrap_or_default(),
            },
            None => Shape::Free(Box::new(at("additionalProperties").map_or(Shape::Text, sub))),
        },
        _ => Shape::Text,
    }
}

impl Shape {
    fn expected(&self) -> &'static str {
        match self {
            Self::Text | Self::JobName | Self::CatalogName => "a string",
            Self::Duration => "a duration",
            Self::Size => "a size",
            Self::SizeLimit => "a size or none",
            Self::Scalar => "a plain value",
            Self::Bool => "true or false",
            Self::Integer { .. } => "a whole number",
            Self::Word(_) => "one of the words it may be",
            Self::List(_) => "a list",
            Self::Free(_) | Self::Record { .. } | Self::OneOf(_) => "a map",
        }
    }
}

/// Characters of a word from a file that a message repeats; nothing longer is a slip for a word that is known.
const SHOWN: usize = 60;

fn clip(text: &str) -> String {
    if text.len() <= SHOWN { text.to_owned() } else { text.chars().take(SHOWN).chain(['…']).collect() }
}

fn near<'a>(text: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if text.len() <= SHOWN { nearest(text, known) } else { None }
}

/// Holds one file to a shape.
pub(crate) struct Walk<'a> {
    pub(crate) path: &'a str,
    pub(crate) text: &'a str,
    pub(crate) findings: &'a mut Vec<Diagnostic>,
    /// From this many findings on, they are dropped: nobody is told of them, and placing them takes time.
    pub(crate) most: usize,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(path: &'a str, text: &'a str, findings: &'a mut Vec<Diagnostic>) -> Self {
        let most = findings.len() + FINDINGS_PER_FILE;
        Self { path, text, findings, most }
    }

    fn finding(&mut self, code: &'static str, span: Span, message: String, hint: impl Into<String>) {
        let finding = Diagnostic::of_file(self.path, code, message, hint);
        if self.findings.len() <= self.most {
            self.findings.push(finding.at(self.text, span.line, span.column, span.start as usize, span.end as usize));
        }
    }

    /// The value as JSON with `inherited` under it: keys that it does not have come from there. Without the parts that have findings;
    /// `None` where nothing is left. `key` is where to point for values that take no room, and `what` what to call it.
    pub(crate) fn lower(&mut self, node: &Node, shape: &Shape, inherited: Option<&Json>, key: Span, what: &str) -> Option<Json> {
        match (shape, &node.value) {
            (_, Value::Refused) => None,
            (Shape::Text, Value::Text(text)) => Some(Json::String(text.clone())),
            (Shape::JobName, Value::Text(text)) => {
                let checked = JobName::new(text.as_str()).map(|_| ()).map_err(|error| error.to_string());
                self.text(node, text, "job-name", checked, "like refund-order")
            }
            (Shape::CatalogName, Value::Text(text)) => {
                let checked = match CatalogName::new(text.as_str()) {
                    Ok(name) if name.as_str() == MANUAL => Err(format!("`{MANUAL}` is the catalogue of `octavius create`")),
                    checked => checked.map(|_| ()).map_err(|error| error.to_string()),
                };
                self.text(node, text, "catalog-name", checked, "like payments")
            }
            (Shape::Duration, Value::Text(text)) => {
                let checked = text.parse::<HumanDuration>().map(|_| ()).map_err(|error| error.to_string());
                self.text(node, text, "duration", checked, "")
            }
            (Shape::Duration, Value::Number(text)) => {
                let message = format!("{text} is not a duration: it has no unit");
                self.finding("duration", node.span, message, format!("{text}s is {text} seconds, {text}m is {text} minutes"));
                None
            }
            (Shape::Size, Value::Text(text) | Value::Number(text)) => {
                self.size(node, text.parse::<ByteSize>().map(|size| size.to_string()))
            }
            (Shape::SizeLimit, Value::Text(text) | Value::Number(text)) => {
                self.size(node, text.parse::<SizeLimit>().map(|size| size.to_string()))
            }
            (Shape::Scalar, Value::Text(text) | Value::Number(text)) => Some(Json::String(text.clone())),
            (Shape::Scalar, Value::Bool(value)) => Some(Json::String(value.to_string())),
            (Shape::Bool, Value::Bool(value)) => Some(Json::Bool(*value)),
            (Shape::Integer { min, max }, Value::Number(text)) => self.integer(node, text, *min, *max, key, what),
            (Shape::Word(words), Value::Text(text)) => {
                if words.contains(text) {
                    return Some(Json::String(text.clone()));
                }
                let hint = match near(text, words.iter().map(String::as_str)) {
                    Some(word) => format!("did you mean `{word}`?"),
                    None => String::new(),
                };
                let message = format!("\"{}\" is not one of {}", clip(text).escape_debug(), words.join(", "));
                self.finding("value", node.span, message, hint);
                None
            }
            (Shape::List(item), Value::List(nodes)) => {
                let what = format!("an item of `{what}`");
                // All items are looked at, but a list that lost one is no list any more: the places of the others would be wrong.
                let items: Vec<_> = nodes.iter().map(|node| self.lower(node, item, None, node.span, &what)).collect();
                items.into_iter().collect::<Option<Vec<_>>>().map(Json::Array)
            }
            (Shape::Free(value), Value::Map(entries)) => {
                let mut map = inherited.and_then(Json::as_object).cloned().unwrap_or_default();
                for entry in entries {
                    if let Some(value) = self.lower(&entry.node, value, None, entry.key_span, &entry.key) {
                        map.insert(entry.key.clone(), value);
                    }
                }
                Some(Json::Object(map))
            }
            (Shape::Record { fields, required }, Value::Map(entries)) => {
                self.record(entries, fields, required, inherited, key, what)
            }
            (Shape::OneOf(variants), Value::Map(entries)) => self.one_of(entries, variants, key, what),
            _ => {
                self.mismatch(node, shape, key, what);
                None
            }
        }
    }

    fn text(&mut self, node: &Node, text: &str, code: &'static str, checked: Result<(), String>, hint: &str) -> Option<Json> {
        match checked {
            Ok(()) => Some(Json::String(text.to_owned())),
            Err(message) => {
                self.finding(code, node.span, message, hint);
                None
            }
        }
    }

    fn size(&mut self, node: &Node, checked: Result<String, SizeError>) -> Option<Json> {
        checked.map(Json::String).map_err(|error| self.finding("size", node.span, error.to_string(), error.hint())).ok()
    }

    fn integer(&mut self, node: &Node, text: &str, min: i64, max: i64, key: Span, what: &str) -> Option<Json> {
        match text.parse::<i64>() {
            Ok(value) if (min..=max).contains(&value) => Some(Json::from(value)),
            Ok(_) => {
                self.finding("range", node.span, format!("{text} is out of range for `{what}`"), format!("{min} to {max}"));
                None
            }
            Err(_) if text.strip_prefix(['-', '+']).unwrap_or(text).bytes().all(|byte| byte.is_ascii_digit()) => {
                self.finding("range", node.span, format!("{text} is out of range for `{what}`"), format!("{min} to {max}"));
                None
            }
            Err(_) => {
                self.mismatch(node, &Shape::Integer { min, max }, key, what);
                None
            }
        }
    }

    fn mismatch(&mut self, node: &Node, shape: &Shape, key: Span, what: &str) {
        let quoted = if what.contains('`') { what.to_owned() } else { format!("`{what}`") };
        let found = node.value.what();
        let message = match shape {
            Shape::Word(words) => format!("{quoted} must be one of {}, found {found}", words.join(", ")),
            _ => format!("{quoted} must be {}, found {found}", shape.expected()),
        };
        let hint = match (shape, &node.value) {
            (_, Value::Null) => "write a value, or remove the line".to_owned(),
            (Shape::Text | Shape::JobName | Shape::CatalogName, Value::Number(text)) => format!("quote it: \"{text}\""),
            (Shape::Text | Shape::JobName | Shape::CatalogName, Value::Bool(value)) => format!("quote it: \"{value}\""),
            (Shape::Bool, Value::Text(text)) if matches!(&*text.to_lowercase(), "yes" | "on" | "y" | "true") => {
                "write true".to_owned()
            }
            (Shape::Bool, Value::Text(text)) if matches!(&*text.to_lowercase(), "no" | "off" | "n" | "false") => {
                "write false".to_owned()
            }
            (Shape::Integer { .. }, Value::Text(text)) if text.parse::<i64>().is_ok() => "remove the quotes".to_owned(),
            (Shape::Duration, _) => "like 90s, 10m or 1h30m".to_owned(),
            (Shape::Size | Shape::SizeLimit, _) => "like 64MiB, 1GiB or 500KB".to_owned(),
            (Shape::List(_), Value::Text(_)) if what == "command" => {
                "write program and arguments as a list, or a line of shell as [sh, -c, …]".to_owned()
            }
            (Shape::List(_), Value::Text(text)) if !text.contains(['\n', '"', '[']) => format!("make it a list: [\"{text}\"]"),
            (Shape::Free(_) | Shape::Record { .. } | Shape::OneOf(_), Value::List(_)) => "write `key: value` pairs".to_owned(),
            _ => String::new(),
        };
        let place = match node.value {
            Value::Null | Value::List(_) | Value::Map(_) => key,
            _ => node.span,
        };
        self.finding("type", place, message, hint);
    }

    fn unknown_key<'k>(&mut self, entry: &Entry, known: impl Iterator<Item = &'k String> + Clone, what: &str) {
        if self.findings.len() > self.most {
            return;
        }
        let hint = match near(&entry.key, known.clone().map(String::as_str)) {
            _ if entry.node.value == Value::Null && entry.key.contains(' ') => {
                "between braces a comma ends a value: quote the text that holds it".to_owned()
            }
            Some(key) => format!("did you mean `{key}`?"),
            None => format!("known keys are {}", known.map(String::as_str).collect::<Vec<_>>().join(", ")),
        };
        let place = if what.is_empty() { String::new() } else { format!(" of {what}") };
        self.finding("unknown-key", entry.key_span, format!("`{}` is not a key{place}", clip(&entry.key).escape_debug()), hint);
    }

    fn record(
        &mut self,
        entries: &[Entry],
        fields: &BTreeMap<String, Shape>,
        required: &[String],
        inherited: Option<&Json>,
        key: Span,
        what: &str,
    ) -> Option<Json> {
        let inherited = inherited.and_then(Json::as_object);
        let mut map = inherited.cloned().unwrap_or_default();
        let mut whole = true;
        for entry in entries {
            let Some(shape) = fields.get(&entry.key) else {
                let owner = if what.is_empty() || what.contains('`') { what.to_owned() } else { format!("`{what}`") };
                self.unknown_key(entry, fields.keys(), &owner);
                continue;
            };
            let under = inherited.and_then(|map| map.get(&entry.key));
            match self.lower(&entry.node, shape, under, entry.key_span, &entry.key) {
                Some(value) => {
                    map.insert(entry.key.clone(), value);
                }
                None => {
                    map.remove(&entry.key);
                    whole &= !required.contains(&entry.key);
                }
            }
        }
        for name in required {
            if !map.contains_key(name) && !entries.iter().any(|entry| entry.key == *name) {
                let place = if what.is_empty() { "the file".to_owned() } else { what.to_owned() };
                let place = if place.contains('`') || what.is_empty() { place } else { format!("`{place}`") };
                self.finding("missing-key", key, format!("{place} has no `{name}`"), format!("add `{name}: …`"));
                whole = false;
            }
        }
        whole.then_some(Json::Object(map))
    }

    fn one_of(&mut self, entries: &[Entry], variants: &BTreeMap<String, Shape>, key: Span, what: &str) -> Option<Json> {
        let mut found = None;
        let mut known = 0;
        for entry in entries {
            match variants.get(&entry.key) {
                None => self.unknown_key(entry, variants.keys(), &format!("`{what}`")),
                Some(shape) => {
                    known += 1;
                    if known > 1 {
                        let hint = "a value comes from one place: keep one of them";
                        self.finding("type", entry.key_span, format!("`{what}` says more than one thing"), hint);
                        continue;
                    }
                    let value = self.lower(&entry.node, shape, None, entry.key_span, &entry.key);
                    found = value.map(|value| Json::Object(Map::from_iter([(entry.key.clone(), value)])));
                }
            }
        }
        if entries.is_empty() {
            let variants: Vec<_> = variants.keys().map(String::as_str).collect();
            self.finding("missing-key", key, format!("`{what}` says nothing"), format!("one of {}", variants.join(", ")));
        }
        found.filter(|_| known == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(shape: &Shape) -> &BTreeMap<String, Shape> {
        match shape {
            Shape::Record { fields, .. } => fields,
            other => panic!("not a record: {other:?}"),
        }
    }

    /// Every kind of shape that the schema has is understood: what is not would silently become text.
    #[test]
    fn the_schema_is_read_in_full() {
        let job = fields(&JOB);
        assert_eq!(job["name"], Shape::JobName);
        assert_eq!(job["timeout"], Shape::Duration);
        assert_eq!(fields(&job["logs"])["limit"], Shape::SizeLimit);
        assert_eq!(fields(&job["logs"])["keep_bytes"], Shape::Size);
        assert_eq!(job["retries"], Shape::Integer { min: 0, max: 100 });
        assert_eq!(job["protect"], Shape::Bool);
        assert_eq!(job["labels"], Shape::Free(Box::new(Shape::Text)));
        assert_eq!(job["on_lost"], Shape::Word(vec!["fail".into(), "retry".into()]));
        assert!(matches!(&job["command"], Shape::List(item) if **item == Shape::Text));
        assert!(matches!(&job["schedule"], Shape::Record { required, .. } if required == &["cron"]));
        let Shape::List(argument) = &fields(&job["env_vars"])["args"] else { panic!() };
        assert_eq!(fields(argument)["default"], Shape::Scalar);
        assert_eq!(fields(argument)["pattern"], Shape::Text);
        let Shape::List(secret) = &fields(&job["env_vars"])["secrets"] else { panic!() };
        assert!(matches!(&fields(secret)["from"], Shape::OneOf(variants) if variants.len() == 3));
        assert!(!fields(&DEFAULTS).contains_key("name"));
        assert_eq!(fields(&DEFAULTS).len() + 1, job.len());
    }
}
