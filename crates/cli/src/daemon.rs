//! What `controller start`, `executor start` and `dev` share: their configuration files, and how they stop.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use octavius_controller::ConfigError;
use octavius_core::nearest::nearest;
use octavius_core::size::SizeError;
use octavius_core::{ByteSize, HumanDuration, SizeLimit, Timing};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::env;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Shell;

/// Whether the kernel may give this process memory in pages of 2 MiB. The allocator asks for them; where few bytes are spread over many
/// pages, as in an executor that holds hundreds of attempts, most of each lies idle. Children inherit it.
pub fn take_huge_pages(may: bool) {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(!may) {
        tracing::debug!(%error, "huge pages stay as they are"); // it works as well, and takes more memory
    }
}

/// Lets this process open as many files as it may: service managers give a thousand, for the sake of programs that could not bear more, and
/// each connection is one. Not for what starts jobs: they would inherit it.
pub fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::debug!(%error, "no more files can be opened than before"); // it works as well, for fewer clients
    }
}

/// A daemon's configuration file: JSON as the first Octavius has it, or YAML, which holds JSON. Paths in it are relative to it. Variables of
/// the environment may stand over it.
#[derive(Debug, Default)]
pub struct Settings {
    path: PathBuf,
    values: BTreeMap<String, Value>,
    /// Keys whose value came from a variable, with its name.
    variables: BTreeMap<&'static str, &'static str>,
}

impl Settings {
    /// Reads the file that is named, or `default_name` in the working directory where it is there.
    ///
    /// # Errors
    /// Where it is missing, cannot be understood, has a key that is not in `known`, or holds a token and can be read by others.
    pub fn read(named: Option<&Path>, default_name: &str, known: &[&str]) -> Outcome<Self> {
        let path = named.unwrap_or(Path::new(default_name));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => return Ok(Self::default()),
            Err(error) => return Err(Failure::file("read", path, error)),
        };
        let values = Self::parse(&text).map_err(|problem| wrong(path, &problem))?;
        let settings = Self { path: path.to_owned(), values, variables: BTreeMap::new() };
        let unknown: Vec<String> = settings
            .values
            .keys()
            .filter(|key| !known.contains(&key.as_str()))
            .map(|key| {
                let near = nearest(key, known.iter().copied());
                format!("unknown key `{key}`{}", near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default())
            })
            .collect();
        if let Some((first, rest)) = unknown.split_first() {
            return Err(Failure { details: rest.to_vec(), ..wrong(path, first) });
        }
        if settings.values.get("access_token").and_then(Value::as_str).is_some_and(|token| !token.is_empty()) {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(path).map_err(|error| Failure::file("read", path, error))?.permissions().mode();
            if mode & 0o077 != 0 {
                return Err(wrong(path, &format!("it holds a token and can be read by others (mode {:03o})", mode & 0o777))
                    .hint(format!("chmod 600 {}", path.display())));
            }
        }
        Ok(settings)
    }

    fn parse(text: &str) -> Result<BTreeMap<String, Value>, String> {
        // the parser's own message may quote a token
        let value: Value = serde_yaml::from_str(text).map_err(|error| match error.location() {
            Some(at) => format!("not valid JSON at line {}, column {}", at.line(), at.column()),
            None => "not valid JSON".to_owned(),
        })?;
        match value {
            Value::Null => Ok(BTreeMap::new()),
            Value::Object(fields) => Ok(fields.into_iter().collect()),
            _ => Err("a map of keys is expected".to_owned()),
        }
    }

    /// Puts the variables of each key over the file, the first that is set.
    #[must_use]
    pub fn with_variables(mut self, keys: &[(&'static str, &[&'static str])]) -> Self {
        for (key, names) in keys {
            // Kubernetes sets NAME_PORT=tcp://… for every service NAME beside a pod: that is not for us
            let found =
                names.iter().find_map(|name| env::get(name).filter(|value| !value.starts_with("tcp://")).map(|v| (*name, v)));
            if let Some((name, value)) = found {
                self.values.insert((*key).to_owned(), Value::String(value));
                self.variables.insert(key, name);
            }
        }
        self
    }

    /// That a key's value cannot be: names the key and where it stands.
    #[must_use]
    pub fn wrong(&self, key: &str, problem: &str) -> Failure {
        match self.variables.get(key) {
            Some(variable) => Failure::usage(format!("{variable} {problem}")),
            None => wrong(&self.path, &format!("`{key}` {problem}")),
        }
    }

    /// A text; an empty one counts as none.
    ///
    /// # Errors
    /// Where the value is something else.
    pub fn text(&self, key: &str) -> Outcome<Option<String>> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty())),
            Some(_) => Err(self.wrong(key, "is not a text")),
        }
    }

    /// A path, relative to the file; to the working directory, where it came from a variable.
    ///
    /// # Errors
    /// Where the value is something else.
    pub fn path(&self, key: &str) -> Outcome<Option<PathBuf>> {
        let given = self.variables.contains_key(key);
        Ok(self.text(key)?.map(|path| if given { PathBuf::from(path) } else { self.beside(Path::new(&path)) }))
    }

    /// Yes or no.
    ///
    /// # Errors
    /// Where the value is something else.
    pub fn flag(&self, key: &str) -> Outcome<Option<bool>> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(Value::String(text)) => match text.trim().to_ascii_lowercase().as_str() {
                "" => Ok(None),
                "true" | "yes" | "on" | "1" => Ok(Some(true)),
                "false" | "no" | "off" | "0" => Ok(Some(false)),
                _ => Err(self.wrong(key, "is neither true nor false")),
            },
            Some(_) => Err(self.wrong(key, "is neither true nor false")),
        }
    }

    /// A duration with its unit.
    ///
    /// # Errors
    /// Where the value is something else.
    pub fn duration(&self, key: &str) -> Outcome<Option<Duration>> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let duration: HumanDuration = text.parse().map_err(|error| self.wrong(key, &format!("is wrong: {error}")))?;
        Ok(Some(duration.get()))
    }

    /// A number of bytes, with its unit or without one.
    ///
    /// # Errors
    /// Where the value is something else.
    pub fn size(&self, key: &str) -> Outcome<Option<ByteSize>> {
        self.sized(key)
    }

    /// A number of bytes, or `none`.
    ///
    /// # Errors
    /// Where the value is something else.
    pub fn size_limit(&self, key: &str) -> Outcome<Option<SizeLimit>> {
        self.sized(key)
    }

    fn sized<T: FromStr<Err = SizeError>>(&self, key: &str) -> Outcome<Option<T>> {
        let text = match self.values.get(key) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Number(number)) => number.to_string(),
            Some(Value::String(text)) if text.trim().is_empty() => return Ok(None),
            Some(Value::String(text)) => text.clone(),
            Some(_) => return Err(self.wrong(key, "is not a size like 64MiB")),
        };
        text.parse().map(Some).map_err(|error: SizeError| {
            let failure = self.wrong(key, &format!("is wrong: {error}"));
            if error.hint().is_empty() { failure } else { failure.hint(error.hint()) }
        })
    }

    /// A path as this file means it.
    #[must_use]
    pub fn beside(&self, path: &Path) -> PathBuf {
        self.path.parent().map_or_else(|| path.to_owned(), |folder| folder.join(path))
    }

    /// A whole number. The first Octavius' files have some as texts.
    ///
    /// # Errors
    /// Where the value is something else, or does not fit.
    pub fn number<T: TryFrom<u64>>(&self, key: &str) -> Outcome<Option<T>> {
        let number = match self.values.get(key) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Number(number)) => number.as_u64(),
            Some(Value::String(text)) if text.is_empty() => return Ok(None),
            Some(Value::String(text)) => text.trim().parse().ok(),
            Some(_) => None,
        };
        let fits = number.and_then(|number| T::try_from(number).ok());
        fits.map(Some).ok_or_else(|| self.wrong(key, "is not a whole number, or out of range"))
    }

    /// A whole number of 1 or more, or `none`.
    ///
    /// # Errors
    /// Where the value is something else, or does not fit.
    pub fn number_or_none(&self, key: &str) -> Outcome<Option<Option<NonZeroU32>>> {
        if self.values.get(key).and_then(Value::as_str).is_some_and(|text| text.trim() == "none") {
            return Ok(Some(None));
        }
        let number = self.number::<u32>(key).map_err(|_| self.wrong(key, "is neither a whole number nor none"))?;
        let Some(number) = number else { return Ok(None) };
        NonZeroU32::new(number).map(|number| Some(Some(number))).ok_or_else(|| self.wrong(key, "is 0: write none for no limit"))
    }

    /// A number of seconds, 1 or more.
    ///
    /// # Errors
    /// Where the value is something else.
    pub fn seconds(&self, key: &str) -> Outcome<Option<Duration>> {
        let number = self.number::<u32>(key).map_err(|_| self.wrong(key, "is not a whole number of seconds, like 2"));
        match number? {
            Some(0) => Err(self.wrong(key, "is 0: at least 1 second is needed")),
            seconds => Ok(seconds.map(|seconds| Duration::from_secs(seconds.into()))),
        }
    }

    /// A map of texts.
    ///
    /// # Errors
    /// Where the value is something else.
    pub fn map(&self, key: &str) -> Outcome<BTreeMap<String, String>> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(BTreeMap::new()),
            Some(value) => serde_json::from_value(value.clone()).map_err(|_| self.wrong(key, "is not a map of texts")),
        }
    }

    /// A list of texts; as one text, they are separated by commas.
    ///
    /// # Errors
    /// Where the value is something else.
    pub fn list(&self, key: &str) -> Outcome<Vec<String>> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::String(text)) => {
                Ok(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect())
            }
            Some(value) => serde_json::from_value(value.clone()).map_err(|_| self.wrong(key, "is not a list of texts")),
        }
    }

    /// A JSON object. The first Octavius' files have one in a text, and so has a variable.
    ///
    /// # Errors
    /// Where the value is something else.
    pub fn object(&self, key: &str) -> Outcome<Option<Value>> {
        let value = match self.values.get(key) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(text)) if text.trim().is_empty() => return Ok(None),
            Some(Value::String(text)) => serde_json::from_str(text).ok(),
            Some(value) => Some(value.clone()),
        };
        value.filter(Value::is_object).map(Some).ok_or_else(|| self.wrong(key, "is not a JSON object"))
    }

    /// A value as it stands in the file; none where it is null.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// The objects of a list, as `parse` reads them; none where the key is not there. Each is looked at by `check`: whether the files that it
    /// names can be used.
    ///
    /// # Errors
    /// Names the key that is wrong, with the numbers of the objects from 0, or the object whose files cannot be used.
    pub fn objects<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&Value) -> Result<Vec<T>, ConfigError>,
        check: impl Fn(&T) -> Result<(), String>,
    ) -> Outcome<Vec<T>> {
        let Some(value) = self.value(key) else { return Ok(Vec::new()) };
        let all = parse(value).map_err(|error| self.wrong(&error.at, &error.problem))?;
        for (index, one) in all.iter().enumerate() {
            let told = |problem: String| self.wrong(&format!("{key}[{index}]"), &format!("cannot be used: {problem}"));
            check(one).map_err(told)?;
        }
        Ok(all)
    }

    /// Whether the key is there.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|value| !value.is_null())
    }
}

fn wrong(path: &Path, problem: &str) -> Failure {
    Failure::usage(format!("{}: {problem}", path.display()))
}

/// The durations of a daemon; `OCTAVIUS_FASTER` makes them shorter, for tests.
///
/// # Errors
/// Where the variable is no number.
pub fn timing() -> Outcome<Timing> {
    match env::get(env::FASTER) {
        None => Ok(Timing::default()),
        Some(text) => match text.parse() {
            Ok(factor @ 1..=1000) => Ok(Timing::faster(factor)),
            _ => Err(Failure::usage(format!("{} is \"{text}\", not a number from 1 to 1000", env::FASTER))),
        },
    }
}

/// Runs `work` until it ends by itself, or a signal asks it to stop: it hears of that through its token and then has its time. A second
/// signal ends the process at once.
///
/// # Errors
/// Those of `work`, and where signals cannot be listened for.
pub async fn until_signal<F>(shell: &Shell, work: impl FnOnce(CancellationToken) -> F) -> Outcome
where
    F: Future<Output = Outcome>,
{
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| {
        signal(kind).map_err(|error| Failure::new(Exit::Fault, anyhow::Error::new(error).context("cannot listen for signals")))
    };
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let stop = CancellationToken::new();
    let work = work(stop.clone());
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if stop.is_cancelled() {
            shell.note("stopped at once");
            return Ok(Exit::Interrupted);
        }
        shell.note("stopping; once more ends it at once");
        stop.cancel();
    }
}

/// The program that is running: the executor calls it again for each job.
///
/// # Errors
/// Where the system does not say.
pub fn this_program() -> Outcome<PathBuf> {
    std::env::current_exe()
        .map_err(|error| Failure::new(Exit::Fault, anyhow::Error::new(error).context("cannot find this program's file")))
}

/// A folder for a daemon's data, under the user's own.
///
/// # Errors
/// Where the user has no home.
pub fn default_data_dir(name: &str) -> Outcome<PathBuf> {
    use etcetera::BaseStrategy as _;
    etcetera::choose_base_strategy()
        .map(|dirs| dirs.data_dir().join("octavius").join(name))
        .map_err(|_| Failure::usage("HOME is not set").hint("name the folder with --data-dir"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_name_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("controller_config.json");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Settings::read(Some(&path), "none", &["app_port", "log_level", "store"])
        };
        let message = |failure: Failure| failure.error.unwrap().to_string();
        assert!(message(read(r#"{"app_prt": 1}"#).unwrap_err()).ends_with("unknown key `app_prt`; did you mean `app_port`?"));
        let settings = read(r#"{"app_port": "many", "log_level": 3, "store": "data"}"#).unwrap();
        assert!(message(settings.number::<u16>("app_port").unwrap_err()).contains("`app_port` is not a whole number"));
        assert!(message(settings.text("log_level").unwrap_err()).contains("`log_level` is not a text"));
        assert_eq!(settings.path("store").unwrap().unwrap(), folder.path().join("data"));
        assert_eq!(read(r#"{"app_port": "3000"}"#).unwrap().number::<u16>("app_port").unwrap(), Some(3000));
        assert!(message(read("{").unwrap_err()).contains("not valid JSON"));
        let size = |text: &str| read(&format!("{{\"store\": {text}}}")).unwrap().size("store");
        for (text, expected) in [(r#""64MiB""#, 64 << 20), (r#""1000""#, 1000), ("1000", 1000)] {
            assert_eq!(size(text).unwrap(), Some(ByteSize::new(expected)), "{text}");
        }
        assert!(message(size(r#""64Mi""#).unwrap_err()).contains("`store` is wrong"));
        assert!(message(size("-1").unwrap_err()).contains("`store` is wrong"));
        let rate = |text: &str| read(&format!("{{\"store\": {text}}}")).unwrap().number_or_none("store");
        for (text, expected) in [("null", None), (r#""none""#, Some(None)), ("7", Some(NonZeroU32::new(7)))] {
            assert_eq!(rate(text).unwrap(), expected, "{text}");
        }
        assert!(message(rate("0").unwrap_err()).contains("write none"));
        assert!(message(rate(r#""fast""#).unwrap_err()).contains("neither a whole number nor none"));
    }
}
