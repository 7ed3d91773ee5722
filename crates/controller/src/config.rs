//! The parts of `controller_config.json` that are lists of objects: what is wrong in them is told with its place.

use octavius_core::nearest::nearest;
use serde_json::{Map, Value};

/// Longest name of something that the file configures.
const NAME_CHARS: usize = 32;

/// What is wrong with a value of `controller_config.json`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{at}` {problem}")]
pub struct ConfigError {
    /// The key, like `issuers[0].rules[1].role`.
    pub at: String,
    /// What is wrong with its value.
    pub problem: String,
}

pub(crate) fn wrong(at: &str, problem: impl Into<String>) -> ConfigError {
    ConfigError { at: at.to_owned(), problem: problem.into() }
}

pub(crate) type Result<T> = std::result::Result<T, ConfigError>;

/// A member that tells two objects of a list apart: its key, and its value in one that was read.
pub(crate) type Telling<T> = (&'static str, fn(&T) -> &str);

/// Reads the list under `key`: at most `most` objects, no two of which are the same in what is `telling`.
pub(crate) fn list<T>(
    key: &str,
    value: &Value,
    most: usize,
    telling: &[Telling<T>],
    parse: impl Fn(&str, &Value) -> Result<T>,
) -> Result<Vec<T>> {
    let list = value.as_array().ok_or_else(|| wrong(key, "is not a list"))?;
    if list.len() > most {
        return Err(wrong(key, format!("has more than {most} of them")));
    }
    let mut all: Vec<T> = Vec::new();
    for (index, value) in list.iter().enumerate() {
        let at = format!("{key}[{index}]");
        let one = parse(&at, value)?;
        for (member, of) in telling {
            if all.iter().any(|other| of(other) == of(&one)) {
                return Err(wrong(&format!("{at}.{member}"), "is there twice"));
            }
        }
        all.push(one);
    }
    Ok(all)
}

/// An object at its place, of whose members some are known.
#[derive(Debug)]
pub(crate) struct Object<'v> {
    at: &'v str,
    members: &'v Map<String, Value>,
}

impl<'v> Object<'v> {
    pub(crate) fn of(at: &'v str, value: &'v Value, known: &[&str]) -> Result<Self> {
        let members = value.as_object().ok_or_else(|| wrong(at, "is not a JSON object"))?;
        if let Some(name) = members.keys().find(|name| !known.contains(&name.as_str())) {
            let near = nearest(name, known.iter().copied());
            let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            return Err(wrong(&format!("{at}.{name}"), format!("is no key that is known{near}")));
        }
        Ok(Self { at, members })
    }

    pub(crate) fn place(&self, name: &str) -> String {
        format!("{}.{name}", self.at)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&'v Value> {
        self.members.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<&'v str>> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| wrong(&self.place(name), "is not a text")),
        }
    }

    pub(crate) fn required(&self, name: &str) -> Result<&'v str> {
        match self.text(name)? {
            Some(text) if !text.is_empty() => Ok(text),
            _ => Err(wrong(&self.place(name), "is missing")),
        }
    }

    pub(crate) fn texts(&self, name: &str) -> Result<Vec<String>> {
        let texts = match self.get(name) {
            None => Some(Vec::new()),
            Some(Value::String(text)) => Some(vec![text.clone()]),
            Some(Value::Array(list)) => list.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
            Some(_) => None,
        };
        let texts = texts.ok_or_else(|| wrong(&self.place(name), "is not a list of texts"))?;
        if texts.iter().any(String::is_empty) {
            return Err(wrong(&self.place(name), "has an empty text in it"));
        }
        Ok(texts)
    }

    /// What the object is called, under `name`.
    pub(crate) fn name(&self) -> Result<&'v str> {
        let name = self.required("name")?;
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.chars().count() > NAME_CHARS || !name.chars().all(fits) {
            return Err(wrong(&self.place("name"), format!("is not of 1 to {NAME_CHARS} small letters, digits and hyphens")));
        }
        Ok(name)
    }
}
