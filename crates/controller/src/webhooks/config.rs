//! Which webhooks there are: as `controller_config.json` says it under `webhooks`.

use std::fmt;
use std::path::{Path, PathBuf};

use octavius_core::WebhookEvent;
use octavius_core::nearest::nearest;
use serde_json::Value;
use url::Url;

use super::message::Secrets;
use crate::config::{Object, Result, list, wrong};
use crate::pattern::Pattern;
use crate::{outbound, private};

/// Most webhooks: each may add a key to the transaction that ends an execution.
const WEBHOOKS: usize = 16;

/// Most patterns of jobs that one has.
const PATTERNS: usize = 256;

/// A URL that is told what comes of executions.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookConfig {
    /// What it is called here.
    pub(super) name: String,
    pub(super) url: Url,
    /// What its messages are signed with.
    pub(super) secret_file: PathBuf,
    pub(super) events: Vec<WebhookEvent>,
    /// The jobs that it is told of; empty for all of them.
    jobs: Vec<(String, Pattern)>,
    /// Certificates that are trusted beside the system's.
    pub(super) ca_file: Option<PathBuf>,
}

impl fmt::Debug for WebhookConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookConfig").field("name", &self.name).field("url", &self.place()).finish_non_exhaustive()
    }
}

impl WebhookConfig {
    /// Reads the value of the key `webhooks`: a list of objects. `beside` says where a relative path begins.
    ///
    /// # Errors
    /// Names the key that is wrong, with the number of its webhook from 0.
    pub fn parse_all(value: &Value, beside: impl Fn(&Path) -> PathBuf) -> Result<Vec<Self>> {
        list("webhooks", value, WEBHOOKS, &[("name", |webhook| &webhook.name)], |at, value| Self::parse(at, value, &beside))
    }

    fn parse(at: &str, value: &Value, beside: impl Fn(&Path) -> PathBuf) -> Result<Self> {
        let object = Object::of(at, value, &["name", "url", "url_file", "secret_file", "events", "jobs", "ca_file", "insecure"])?;
        let name = object.name()?.to_owned();
        let insecure = match object.get("insecure") {
            None => false,
            Some(value) => value.as_bool().ok_or_else(|| wrong(&object.place("insecure"), "is neither true nor false"))?,
        };
        let (place, url) = match (object.text("url_file")?, object.text("url")?) {
            (Some(_), Some(_)) => return Err(wrong(&object.place("url_file"), "stands beside url: one of them is enough")),
            (Some(file), None) => {
                let (place, path) = (object.place("url_file"), beside(Path::new(file)));
                let told = |problem| wrong(&place, format!("cannot be used: {}: {problem}", path.display()));
                let text = private::read(&path).map_err(told)?;
                (place, text.trim().to_owned())
            }
            (None, _) => (object.place("url"), object.required("url")?.to_owned()),
        };
        let url = Url::parse(&url).map_err(|error| wrong(&place, format!("is no URL: {error}")))?;
        if !outbound::is_plain(&url) || !matches!(url.scheme(), "https" | "http") {
            return Err(wrong(&place, "is no https:// URL without user and fragment"));
        }
        if !outbound::is_safe(&url) && !insecure {
            let problem = "is no https:// URL, nor one of http:// on loopback: others could read what is sent there; `insecure: true` permits it";
            return Err(wrong(&place, problem));
        }
        let place = object.place("events");
        let events = object.texts("events")?.iter().map(|text| event(&place, text)).collect::<Result<Vec<_>>>()?;
        if events.is_empty() {
            let known = WebhookEvent::ALL.map(WebhookEvent::as_str).join(", ");
            return Err(wrong(&place, format!("names nothing: some of {known} are expected")));
        }
        let jobs = object.texts("jobs")?;
        if jobs.len() > PATTERNS || (jobs.is_empty() && object.get("jobs").is_some()) {
            return Err(wrong(&object.place("jobs"), format!("is not a list of 1 to {PATTERNS}; leave it out for all jobs")));
        }
        // Names of jobs are the same however they are written.
        let jobs = jobs.into_iter().map(|job| {
            let pattern = Pattern::new(&job.to_lowercase());
            (job, pattern)
        });
        Ok(Self {
            name,
            url,
            secret_file: beside(Path::new(object.required("secret_file")?)),
            events,
            jobs: jobs.collect(),
            ca_file: object.text("ca_file")?.map(|file| beside(Path::new(file))),
        })
    }

    /// Looks whether the files that it names can be used, so that a slip is told when a controller starts.
    ///
    /// # Errors
    /// Where one of them cannot be read, or is not what it should be.
    pub fn check_files(&self) -> std::result::Result<(), String> {
        self.secrets()?;
        if let Some(path) = &self.ca_file {
            outbound::certificates(path).map_err(|problem| format!("{}: {problem}", path.display()))?;
        }
        Ok(())
    }

    /// What its messages are signed with now: the file may have been replaced since the start.
    pub(super) fn secrets(&self) -> std::result::Result<Secrets, String> {
        let path = &self.secret_file;
        let text = private::read(path).map_err(|problem| format!("{}: {problem}", path.display()))?;
        Secrets::parse(&text).map_err(|problem| format!("{}: {problem}", path.display()))
    }

    /// Whether it is told of a job; `folded` is its name in small letters.
    pub(super) fn is_for(&self, folded: &str) -> bool {
        self.jobs.is_empty() || self.jobs.iter().any(|(_, pattern)| pattern.matches(folded))
    }

    /// The jobs that it is told of, as the file has them; empty for all.
    pub(super) fn jobs(&self) -> impl Iterator<Item = &str> {
        self.jobs.iter().map(|(text, _)| text.as_str())
    }

    /// Where it is, as it may be shown: what follows the host is as good as a password with many.
    pub(super) fn place(&self) -> String {
        self.url.origin().ascii_serialization()
    }
}

fn event(at: &str, text: &str) -> Result<WebhookEvent> {
    WebhookEvent::parse(text).ok_or_else(|| {
        let near = nearest(text, WebhookEvent::ALL.iter().map(|event| event.as_str()));
        let near = near.map(|near| format!("; did you mean \"{near}\"?")).unwrap_or_default();
        let known = WebhookEvent::ALL.map(WebhookEvent::as_str).join(", ");
        wrong(at, format!("has \"{}\" in it, which is none of {known}{near}", text.escape_debug()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt as _;

    fn parse(webhooks: &Value) -> Result<Vec<WebhookConfig>> {
        WebhookConfig::parse_all(webhooks, |path| Path::new("/conf").join(path))
    }

    fn chat() -> Value {
        json!({"name": "chat", "url": "https://chat.example/in/T0/s3cr3t", "secret_file": "chat.secret", "events": ["failed"]})
    }

    fn with(name: &str, value: &Value) -> Result<WebhookConfig> {
        let mut webhook = chat();
        webhook[name] = value.clone();
        parse(&json!([webhook])).map(|mut webhooks| webhooks.remove(0))
    }

    #[test]
    fn a_webhook_is_read_and_shown_without_what_follows_its_host() {
        let webhook = parse(&json!([chat()])).unwrap().remove(0);
        assert_eq!((webhook.place().as_str(), webhook.secret_file.to_str()), ("https://chat.example", Some("/conf/chat.secret")));
        assert!(webhook.is_for("anything"));
        let some = with("jobs", &json!(["Refund-*", "backup"])).unwrap();
        let told = ["refund-order", "backup", "backup-all", "re"].map(|job| some.is_for(job));
        assert_eq!((told, some.jobs().collect::<Vec<_>>()), ([true, true, false, false], vec!["Refund-*", "backup"]));
        assert!(with("url", &json!("http://127.0.0.1:9/x")).is_ok());
        let mut within = chat();
        (within["url"], within["insecure"]) = (json!("http://bridge.default.svc:8080/x"), json!(true));
        assert_eq!(parse(&json!([within])).unwrap()[0].place(), "http://bridge.default.svc:8080");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_key_and_its_number() {
        let of = |name: &str, value: Value| with(name, &value).unwrap_err().to_string();
        for (told, expected) in [
            (parse(&json!({})).unwrap_err().to_string(), "`webhooks` is not a list"),
            (parse(&json!([chat(), chat()])).unwrap_err().to_string(), "`webhooks[1].name` is there twice"),
            (of("event", json!(["failed"])), "`webhooks[0].event` is no key that is known; did you mean `events`?"),
            (of("name", json!("Chat Room")), "`webhooks[0].name` is not of 1 to 32"),
            (of("url", json!("chat")), "`webhooks[0].url` is no URL"),
            (of("url", json!("ftp://a/b")), "`webhooks[0].url` is no https:// URL"),
            (of("url", json!("https://ann:pw@a/b")), "`webhooks[0].url` is no https:// URL"),
            (of("url", json!("http://chat.example/in")), "`webhooks[0].url` is no https:// URL, nor one of http:// on loopback"),
            (of("insecure", json!("yes")), "`webhooks[0].insecure` is neither"),
            (of("secret_file", json!(null)), "`webhooks[0].secret_file` is missing"),
            (of("events", json!([])), "`webhooks[0].events` names nothing"),
            (of("events", json!(["fail"])), "`webhooks[0].events` has \"fail\" in it"),
            (of("jobs", json!([])), "`webhooks[0].jobs` is not a list of 1 to 256"),
        ] {
            assert!(told.starts_with(expected), "{told}, and not {expected}");
            assert!(!told.contains("pw"), "{told}");
        }
    }

    #[test]
    fn a_url_that_is_a_secret_may_stand_in_a_file_and_is_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("url");
        let from_file = || {
            let mut webhook = chat();
            webhook.as_object_mut().unwrap().remove("url");
            webhook["url_file"] = path.to_str().unwrap().into();
            parse(&json!([webhook])).map(|mut webhooks| webhooks.remove(0))
        };
        assert!(from_file().unwrap_err().to_string().starts_with("`webhooks[0].url_file` cannot be used: /"));
        private::write_new(&path, b"https://chat.example/in/T0/s3cr3t\n", 0o600).unwrap();
        let webhook = from_file().unwrap();
        assert_eq!(webhook.url.as_str(), "https://chat.example/in/T0/s3cr3t");
        assert!(!format!("{webhook:?}").contains("s3cr3t"), "{webhook:?}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(from_file().unwrap_err().to_string().contains("others can read it"));
        assert!(with("url_file", &json!("x")).unwrap_err().to_string().contains("stands beside url"));
    }

    #[test]
    fn the_secret_is_looked_at_beforehand() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let check = || with("secret_file", &json!(path.to_str())).unwrap().check_files();
        assert!(check().unwrap_err().contains("/secret: "));
        private::write_new(&path, Secrets::generate().as_bytes(), 0o600).unwrap();
        assert_eq!(check(), Ok(()));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(check().unwrap_err().contains("others can read it"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "hunter2").unwrap();
        let told = check().unwrap_err();
        assert!(told.contains("whsec_") && !told.contains("hunter2"), "{told}");
    }
}
