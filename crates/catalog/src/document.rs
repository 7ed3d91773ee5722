//! One file as a tree of values, each with its place. YAML and JSON go through one parser (granit); values and places come from the
//! same pass, so that no two parsers can disagree about what a reviewed file says. YAML that means more than it shows is refused:
//! duplicate keys, anchors, aliases, tags, merge keys, keys that are not plain text, several documents.
//!
//! Plain scalars mean what they mean to serde_yaml (a test holds the two together): `true`, `false`, `null`, `~` and nothing are
//! themselves in the three spellings of YAML 1.2; `yes`, `no`, `on`, `off` are text; `007` and `1_000` are text; numbers keep the
//! text they were written with, so that `1e3` and `1.50` reach a job as they stand.

use std::collections::HashSet;

use granit_parser::{Event, Marker, Parser, ScalarStyle, Span as RawSpan};
use octavius_core::limit::FILE_DEPTH;

use crate::diagnostic::{Diagnostic, FINDINGS_PER_FILE};

/// Where something stands in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// The line, counted from 1.
    pub line: u32,
    /// The column, counted in characters from 1.
    pub column: u32,
    /// The first byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) span: Span,
}

/// What a file may hold.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    /// A number, as it was written.
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
    /// Something that a finding was made of; nothing more is said about it.
    Refused,
}

/// A key with its place, and its value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Span,
    pub(crate) node: Node,
}

impl Value {
    /// What it is, with an article.
    pub(crate) const fn what(&self) -> &'static str {
        match self {
            Self::Null | Self::Refused => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

/// A file's languages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Yaml,
    Json,
}

impl Format {
    pub(crate) fn of(path: &str) -> Self {
        if path.ends_with(".json") { Self::Json } else { Self::Yaml }
    }
}

/// A parsed file: its values by JSON pointer, with their places.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    pub(crate) root: Node,
}

impl Document {
    /// Parses a file for its places only; `None` where it has findings. `path` decides between YAML and JSON.
    #[must_use]
    pub fn index(path: &str, bytes: &[u8]) -> Option<Self> {
        let mut findings = Vec::new();
        let document = parse(path, bytes, &mut findings);
        document.filter(|_| findings.is_empty()).map(|(document, _)| document)
    }

    /// The place of the value at a JSON pointer.
    #[must_use]
    pub fn value(&self, pointer: &str) -> Option<Span> {
        self.find(pointer).map(|(_, node)| node.span)
    }

    /// The place of the key at a JSON pointer; an item of a list has none.
    #[must_use]
    pub fn key(&self, pointer: &str) -> Option<Span> {
        self.find(pointer)?.0
    }

    pub(crate) fn find(&self, pointer: &str) -> Option<(Option<Span>, &Node)> {
        let mut found = (None, &self.root);
        for part in pointer.split('/').skip(1) {
            found = match &found.1.value {
                Value::List(items) => (None, items.get(part.parse::<usize>().ok()?)?),
                Value::Map(entries) => {
                    let part = part.replace("~1", "/").replace("~0", "~");
                    let entry = entries.iter().find(|entry| entry.key == part)?;
                    (Some(entry.key_span), &entry.node)
                }
                _ => return None,
            };
        }
        Some(found)
    }
}

/// A key as a part of a JSON pointer.
pub(crate) fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// The start of what stands in git for a file that Git LFS keeps.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Parses one file. Findings go to `findings`; without a document there is at least one. The text comes back with the document.
pub(crate) fn parse<'a>(path: &str, bytes: &'a [u8], findings: &mut Vec<Diagnostic>) -> Option<(Document, &'a str)> {
    if bytes.starts_with(LFS_POINTER) {
        let hint = "a job file is small: take it out of LFS, or fetch it with `git lfs pull`";
        findings.push(Diagnostic::of_file(path, "lfs-pointer", "Git LFS keeps this file elsewhere", hint));
        return None;
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            findings.push(invalid_utf8(path, bytes, error.valid_up_to()));
            return None;
        }
    };
    let format = Format::of(path);
    let detabbed;
    let mut parsed_text = text;
    if format == Format::Json {
        let body = text.strip_prefix('\u{feff}').unwrap_or(text);
        if body.trim().is_empty() {
            findings.push(Diagnostic::of_file(path, "empty-file", "the file is empty", "write a job, or remove the file"));
            return None;
        }
        if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(body) {
            findings.push(json_syntax(path, text, body, &error));
            return None;
        }
        // Valid JSON has tabs between tokens only, and there a space is as good: YAML is stricter about tabs than JSON.
        if body.contains('\t') {
            detabbed = text.replace('\t', " ");
            parsed_text = &detabbed;
        }
    }
    let most = findings.len() + FINDINGS_PER_FILE;
    let mut builder = Builder { path, text, findings, stack: Vec::new(), root: None, documents: 0, most };
    builder.run(parsed_text)?;
    let mut root = builder.root.take();
    if let Some(root) = root.as_mut().filter(|_| format == Format::Json) {
        drop_nulls(root);
    }
    match root {
        Some(root) if root.value != Value::Null => Some((Document { root }, text)),
        _ => {
            findings.push(Diagnostic::of_file(path, "empty-file", "the file is empty", "write a job, or remove the file"));
            None
        }
    }
}

/// Takes away members that are null: programs that write JSON, and the first Octavius was one, write it for what is absent. In YAML nothing
/// behind a key is a slip, and stays a finding.
fn drop_nulls(node: &mut Node) {
    match &mut node.value {
        Value::Map(entries) => {
            entries.retain(|entry| entry.node.value != Value::Null);
            entries.iter_mut().for_each(|entry| drop_nulls(&mut entry.node));
        }
        Value::List(nodes) => nodes.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn invalid_utf8(path: &str, bytes: &[u8], valid: usize) -> Diagnostic {
    let text = std::str::from_utf8(&bytes[..valid]).unwrap_or_default();
    let line = text.matches('\n').count() + 1;
    let line_start = text.rfind('\n').map_or(0, |index| index + 1);
    let column = text[line_start..].chars().count() + 1;
    let rest = &bytes[valid..];
    let rest = &rest[..rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len())];
    let shown = format!("{text}{}", String::from_utf8_lossy(rest));
    Diagnostic::of_file(path, "utf-8", "the file is not valid UTF-8 from here on", "save it as UTF-8").at(
        &shown,
        number(line),
        number(column),
        valid,
        valid + 3,
    )
}

fn json_syntax(path: &str, text: &str, body: &str, error: &serde_json::Error) -> Diagnostic {
    let bom = text.len() - body.len();
    let line_start = body.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum::<usize>();
    let mut start = (line_start + error.column().saturating_sub(1)).min(body.len());
    while !body.is_char_boundary(start) {
        start -= 1;
    }
    let column = body[line_start.min(start)..start].chars().count() + 1;
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default().to_lowercase();
    Diagnostic::of_file(path, "syntax", format!("not JSON: {message}"), "").at(
        text,
        number(error.line()),
        number(column),
        start + bom,
        start + bom + 1,
    )
}

fn number(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// A collection that is not closed yet.
enum Open {
    List { span: Span, items: Vec<Node> },
    Map { span: Span, entries: Vec<Entry>, key: Option<(String, Span)>, seen: HashSet<String>, dropped: bool },
}

struct Builder<'a> {
    path: &'a str,
    text: &'a str,
    findings: &'a mut Vec<Diagnostic>,
    stack: Vec<Open>,
    root: Option<Node>,
    documents: usize,
    /// So many findings are enough: more are not told, and finding their places takes long.
    most: usize,
}

impl Builder<'_> {
    /// Feeds all events of `text`; `None` where nothing after a finding can be trusted.
    fn run(&mut self, text: &str) -> Option<()> {
        let options = granit_parser::options! {
            emit_comments: false,
            emit_unresolved_aliases: true,
            block_scalar_eof_without_line_feed: true,
        };
        for next in Parser::new_from_str_with_options(text, options) {
            match next {
                Ok((event, span)) => self.event(event, span)?,
                Err(error) => {
                    self.syntax(&error);
                    return None;
                }
            }
        }
        Some(())
    }

    fn syntax(&mut self, error: &granit_parser::ScanError) {
        let span = self.span_of(*error.marker(), *error.marker());
        let line_start = self.text[..span.start as usize].rfind('\n').map_or(0, |index| index + 1);
        let line = self.text[line_start..].lines().next().unwrap_or_default();
        let indentation = &line[..line.len() - line.trim_start().len()];
        let hint = if indentation.contains('\t') { "indent with spaces: YAML does not take tabs there" } else { "" };
        let message = error.info();
        let message = message.lines().next().unwrap_or("not YAML").to_owned();
        self.finding("syntax", span, message, hint);
    }

    fn finding(&mut self, code: &'static str, span: Span, message: impl Into<String>, hint: &str) {
        let finding = Diagnostic::of_file(self.path, code, message, hint);
        self.findings.push(finding.at(self.text, span.line, span.column, span.start as usize, span.end as usize));
    }

    fn span_of(&self, start: Marker, end: Marker) -> Span {
        let bytes = |marker: Marker| number(marker.byte_offset().unwrap_or(0).min(self.text.len()));
        Span {
            line: number(start.line()),
            column: number(start.col() + 1),
            start: bytes(start),
            end: bytes(end).max(bytes(start)),
        }
    }

    fn event(&mut self, event: Event<'_>, raw: RawSpan) -> Option<()> {
        if self.findings.len() > self.most {
            return None;
        }
        let span = self.span_of(raw.start, raw.end);
        let is_tagged = event.tag().is_some();
        if is_tagged {
            let at = raw.tag_span().map_or(span, |tag| self.span_of(tag.start, tag.end));
            self.finding("tag", at, "YAML tags are not taken", "remove the tag; quote the value to make it a string");
        }
        if event.anchor_id().is_some_and(|anchor| anchor > 0) {
            let hint = "write the value where it is needed, or put it into _defaults.yaml";
            self.finding("anchor", span, "YAML anchors are not taken", hint);
        }
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    self.finding("many-documents", span, "the file holds more than one document", "one file is one job");
                    return None;
                }
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                self.finding("alias", span, "YAML aliases are not taken", "write the value out, or put it into _defaults.yaml");
                self.put(Node { value: Value::Refused, span });
            }
            Event::Scalar(text, style, ..) => self.scalar(&text, style, span, is_tagged),
            Event::SequenceStart(..) | Event::MappingStart(..) => {
                if self.stack.len() >= FILE_DEPTH {
                    let message = format!("values are nested more than {FILE_DEPTH} deep");
                    self.finding("depth", span, message, "");
                    return None;
                }
                if matches!(self.stack.last(), Some(Open::Map { key: None, .. })) {
                    self.finding("complex-key", span, "a key must be plain text", "");
                    return None;
                }
                self.stack.push(if matches!(event, Event::SequenceStart(..)) {
                    Open::List { span, items: Vec::new() }
                } else {
                    Open::Map { span, entries: Vec::new(), key: None, seen: HashSet::new(), dropped: false }
                });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let end = span.end;
                match self.stack.pop() {
                    Some(Open::List { span, items }) => {
                        let end = items.last().map_or(end, |item| item.span.end).max(end).max(span.end);
                        self.put(Node { value: Value::List(items), span: Span { end, ..span } });
                    }
                    Some(Open::Map { span, entries, .. }) => {
                        self.put(Node { value: Value::Map(entries), span: Span { end: end.max(span.end), ..span } });
                    }
                    None => {}
                }
            }
            _ => {}
        }
        Some(())
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, span: Span, is_refused: bool) {
        let plain = matches!(style, ScalarStyle::Plain);
        if let Some(Open::Map { entries, key: key @ None, seen, dropped, .. }) = self.stack.last_mut() {
            let text = text.to_owned();
            // Few keys are compared one by one; a set is for the file that has thousands.
            let known = if entries.len() < 16 {
                entries.iter().find(|entry| entry.key == text).map(|entry| entry.key_span.line)
            } else {
                if seen.is_empty() {
                    seen.extend(entries.iter().map(|entry| entry.key.clone()));
                }
                (!seen.insert(text.clone()))
                    .then(|| entries.iter().find(|entry| entry.key == text).map(|entry| entry.key_span.line))
                    .flatten()
            };
            let merge = plain && text == "<<";
            *dropped = known.is_some() || merge;
            *key = Some((text.clone(), span));
            if let Some(line) = known {
                let finding = Diagnostic::of_file(
                    self.path,
                    "duplicate-key",
                    format!("the key `{}` is there twice", text.escape_debug()),
                    "keep one",
                );
                let mut finding = finding.at(self.text, span.line, span.column, span.start as usize, span.end as usize);
                finding.label = format!("first in line {line}");
                self.findings.push(finding);
            }
            if merge {
                self.finding("merge-key", span, "YAML merge keys are not taken", "use _defaults.yaml to share values");
            }
            return;
        }
        let value = match if plain { resolve(text) } else { Resolved::Text } {
            Resolved::Null => Value::Null,
            Resolved::Bool(value) => Value::Bool(value),
            Resolved::Number => Value::Number(text.to_owned()),
            Resolved::Text => Value::Text(text.to_owned()),
            Resolved::NotFinite => {
                let hint = "write a finite number, or quote it to make it a string";
                self.finding("not-finite", span, format!("{text} is not a number that a job can be given"), hint);
                Value::Refused
            }
        };
        let value = if is_refused { Value::Refused } else { value };
        self.put(Node { value, span });
    }

    fn put(&mut self, node: Node) {
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some(Open::List { items, .. }) => items.push(node),
            Some(Open::Map { entries, key, dropped, .. }) => match key.take() {
                Some((key, key_span)) if !*dropped => entries.push(Entry { key, key_span, node }),
                Some(_) => {}
                // An alias in the place of a key: reported already.
                None => *key = Some((String::new(), node.span)),
            },
        }
    }
}

#[derive(Debug, PartialEq)]
enum Resolved {
    Null,
    Bool(bool),
    Number,
    NotFinite,
    Text,
}

/// What a plain scalar is.
fn resolve(text: &str) -> Resolved {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Resolved::Null,
        "true" | "True" | "TRUE" => return Resolved::Bool(true),
        "false" | "False" | "FALSE" => return Resolved::Bool(false),
        _ => {}
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Resolved::NotFinite;
    }
    let digits_of = |prefix: &str, radix: u32| {
        unsigned.strip_prefix(prefix).is_some_and(|digits| !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix)))
    };
    if digits_of("0x", 16) || digits_of("0o", 8) || digits_of("0b", 2) {
        return Resolved::Number;
    }
    let bytes = unsigned.as_bytes();
    let leading_zero = bytes.len() > 1 && bytes[0] == b'0' && bytes.iter().all(u8::is_ascii_digit);
    if leading_zero || !is_decimal(unsigned) { Resolved::Text } else { Resolved::Number }
}

/// `digits[.digits][e[sign]digits]` with a digit before the exponent.
fn is_decimal(text: &str) -> bool {
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(index) => (&text[..index], Some(&text[index + 1..])),
        None => (text, None),
    };
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent_fits = exponent.is_none_or(|exponent| {
        let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !digits.is_empty() && all_digits(digits)
    });
    !(whole.is_empty() && fraction.is_empty()) && all_digits(whole) && all_digits(fraction) && exponent_fits
}
