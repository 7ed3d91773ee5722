//! A line of the log: what is said, and of what. The fields of the spans that a line is written in stand beside its own, so that each line
//! can be found by any id that is known where it was written. A field that several of them have is written once, as the innermost has it.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use anstyle::{AnsiColor, Effects, Style};
use jiff::Timestamp;
use serde::ser::{SerializeMap as _, Serializer as _};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::LogFormat;

/// The name of what a line says in a few words.
const MESSAGE: &str = "message";

/// A field's value.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Text(String),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Flag(bool),
}

/// Fields with their values.
#[derive(Debug, Default)]
struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| *known == name)
    }

    fn put(&mut self, field: &Field, value: Value) {
        match self.0.iter_mut().find(|(known, _)| *known == field.name()) {
            Some((_, known)) => *known = value,
            None => self.0.push((field.name(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::Text(value.to_owned()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::Unsigned(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::Signed(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, Value::Float(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::Flag(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, Value::Text(value.to_string()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Value::Text(format!("{value:?}")));
    }
}

/// Writes the lines.
pub(super) struct Lines {
    format: LogFormat,
    coloured: bool,
    to: Mutex<Box<dyn Write + Send>>,
}

impl Lines {
    pub(super) fn new(format: LogFormat, coloured: bool, to: Mutex<Box<dyn Write + Send>>) -> Self {
        Self { format, coloured, to }
    }

    fn write(&self, level: Level, at: Timestamp, fields: &Fields) {
        let line = match self.format {
            LogFormat::Text => text(level, at, fields, self.coloured),
            LogFormat::Json => json(level, at, fields).unwrap_or_default(),
        };
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = to.write_all(line.as_bytes()); // a log that cannot be written is no reason to stop
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(outer) = span.extensions().get::<Fields>() {
                let more: Vec<_> = outer.0.iter().filter(|(name, _)| !fields.has(name)).cloned().collect();
                fields.0.extend(more);
            }
        }
        self.write(*event.metadata().level(), Timestamp::now(), &fields);
    }
}

/// Fixed in width, so that lines can be sorted as texts.
fn time(at: Timestamp) -> String {
    format!("{at:.6}")
}

fn json(level: Level, at: Timestamp, fields: &Fields) -> Result<String, serde_json::Error> {
    let mut bytes = Vec::with_capacity(256);
    let mut serializer = serde_json::Serializer::new(&mut bytes);
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("timestamp", &time(at))?;
    map.serialize_entry("level", level.as_str())?;
    let (message, others): (Vec<_>, Vec<_>) = fields.0.iter().partition(|(name, _)| *name == MESSAGE);
    for (name, value) in message.into_iter().chain(others) {
        match value {
            Value::Text(text) => map.serialize_entry(name, text)?,
            Value::Unsigned(number) => map.serialize_entry(name, number)?,
            Value::Signed(number) => map.serialize_entry(name, number)?,
            Value::Float(number) => map.serialize_entry(name, number)?,
            Value::Flag(flag) => map.serialize_entry(name, flag)?,
        }
    }
    map.end()?;
    bytes.push(b'\n');
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn text(level: Level, at: Timestamp, fields: &Fields, coloured: bool) -> String {
    let plain = Style::new();
    let of = |style: Style| if coloured { style } else { plain };
    let colour = match level {
        Level::ERROR => AnsiColor::Red,
        Level::WARN => AnsiColor::Yellow,
        Level::INFO => AnsiColor::Green,
        _ => AnsiColor::Blue,
    };
    let (faint, marked) = (of(Style::new().effects(Effects::DIMMED)), of(colour.on_default()));
    let mut line = format!("{faint}{}{faint:#} {marked}{:>5}{marked:#}", time(at), level.as_str());
    let (message, others): (Vec<_>, Vec<_>) = fields.0.iter().partition(|(name, _)| *name == MESSAGE);
    for (_, value) in message {
        let _ = write!(line, " {}", shown(value, false));
    }
    for (name, value) in others {
        let _ = write!(line, " {faint}{name}={faint:#}{}", shown(value, true));
    }
    line.push('\n');
    line
}

/// A value on a terminal: one line, whatever is in it, and in quotes where it would not be told from what follows.
fn shown(value: &Value, is_field: bool) -> Cow<'_, str> {
    match value {
        Value::Text(text) if is_field && (text.is_empty() || text.contains([' ', '"', '=']) || has_controls(text)) => {
            format!("{text:?}").into()
        }
        Value::Text(text) if has_controls(text) => text.escape_debug().to_string().into(),
        Value::Text(text) => text.into(),
        Value::Unsigned(number) => number.to_string().into(),
        Value::Signed(number) => number.to_string().into(),
        Value::Float(number) => number.to_string().into(),
        Value::Flag(flag) => flag.to_string().into(),
    }
}

fn has_controls(text: &str) -> bool {
    text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing::field::{Empty, display};
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What is written in `work`, without the times, which are looked at.
    fn written(format: LogFormat, work: impl FnOnce()) -> Vec<String> {
        let written = Written::default();
        let lines = Lines::new(format, false, Mutex::new(Box::new(written.clone())));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), work);
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let without = |line: &str| {
            let start = line.find("20").unwrap();
            let at = &line[start..start + 27];
            assert!(at.parse::<Timestamp>().is_ok() && at.ends_with('Z'), "{line}");
            line.replace(at, "AT")
        };
        text.lines().map(without).collect()
    }

    fn say() {
        let outer = tracing::info_span!("executor", executor = "e1");
        let _outer = outer.enter();
        let inner = tracing::info_span!("attempt", execution = "x1", attempt = 2_u32, trace_id = Empty);
        let _inner = inner.enter();
        tracing::info!(took_ms = 1.5, whole = true, "begun");
        inner.record("trace_id", display("4bf9"));
        tracing::warn!(execution = "x2", attempt = 3_u32, error = "a \"b\"\n\u{1b}[2J", "gone {}", "on");
    }

    #[test]
    fn every_line_has_the_ids_of_what_it_was_written_in_once() {
        let lines = written(LogFormat::Json, say);
        assert_eq!(
            lines,
            [
                r#"{"timestamp":"AT","level":"INFO","message":"begun","took_ms":1.5,"whole":true,"execution":"x1","attempt":2,"executor":"e1"}"#,
                r#"{"timestamp":"AT","level":"WARN","message":"gone on","execution":"x2","attempt":3,"error":"a \"b\"\n\u001b[2J","trace_id":"4bf9","executor":"e1"}"#,
            ]
        );
        for line in &lines {
            assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn a_line_for_people_is_one_line_and_rules_no_terminal() {
        let lines = written(LogFormat::Text, say);
        assert_eq!(
            lines,
            [
                "AT  INFO begun took_ms=1.5 whole=true execution=x1 attempt=2 executor=e1",
                r#"AT  WARN gone on execution=x2 attempt=3 error="a \"b\"\n\u{1b}[2J" trace_id=4bf9 executor=e1"#,
            ]
        );
        let lines = written(LogFormat::Text, || tracing::error!("of \u{1b}[31m{}", "two\nlines"));
        assert_eq!(lines, [r"AT ERROR of \u{1b}[31mtwo\nlines"]);
    }
}
