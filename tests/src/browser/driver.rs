//! The browser's process and the few calls of WebDriver, W3C's protocol for driving one, that the tests need.
//!
//! No library of others speaks it here: fantoccini stands on a crate under a licence that `.config/deny.toml` does not have, and thirtyfour
//! switches on serde_json's `preserve_order`, so that the tests would build and test another binary than the one that is shipped.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// The longest wait for one answer of chromedriver, which loads a whole page for some.
const ANSWER: Duration = Duration::from_secs(60);

/// The longest wait for a browser to close its files before it is killed.
const FAREWELL: Duration = Duration::from_secs(5);

/// The key under which the protocol hands out elements.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// What the browser is started with.
const FLAGS: [&str; 12] = [
    "--headless=new",
    "--no-sandbox", // for tests that run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    // Over a pipe, the browser ends with chromedriver, however that ends.
    "--remote-debugging-pipe",
    // Nothing is loaded from elsewhere; what tries to is seen in the console.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--force-color-profile=srgb",
];

/// An element of the page that is shown; one that is gone by now fails as "stale element reference".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element(String);

impl Element {
    fn of(value: &Value) -> Result<Self> {
        let id = value[ELEMENT].as_str().with_context(|| format!("no element: {value}"))?;
        Ok(Self(id.to_owned()))
    }

    /// As an argument of a script.
    pub(super) fn argument(&self) -> Value {
        json!({ ELEMENT: self.0 })
    }
}

/// A chromedriver with one session, which is one browser with one window.
#[derive(Debug)]
pub(super) struct Driver {
    child: Child,
    runtime: Runtime,
    http: reqwest::Client,
    address: String,
    session: String,
    browser: Option<Pid>,
    folder: TempDir,
}

/// The file that a variable of tests/run names.
pub(super) fn named(variable: &str) -> Result<PathBuf> {
    let path = std::env::var_os(variable)
        .with_context(|| format!("{variable} is not set: tests/run installs a browser, and sets it"))?;
    Ok(path.into())
}

impl Driver {
    /// Starts a browser, with or without script in pages.
    pub(super) fn start(script: bool) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("octavius-browser-").tempdir()?;
        let log = File::create(folder.path().join("chromedriver.log"))?;
        let child = Command::new(named("OCTAVIUS_TEST_CHROMEDRIVER")?)
            .arg("--port=0")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", folder.path())
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start chromedriver")?;
        // An error: there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut driver = Self {
            child,
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
            http: reqwest::Client::builder().no_proxy().timeout(ANSWER).build()?,
            address: String::new(),
            session: String::new(),
            browser: None,
            folder,
        };
        driver.address = crate::eventually("chromedriver says its port", || driver.port())?;
        driver.open(script)?;
        Ok(driver)
    }

    fn port(&mut self) -> Result<String> {
        let said = std::fs::read_to_string(self.folder.path().join("chromedriver.log"))?;
        let after = said.split_once("started successfully on port ").map(|(_, after)| after);
        let port = after.and_then(|after| after.split_once('.')).with_context(|| format!("no port in: {said}"))?;
        Ok(format!("http://127.0.0.1:{}", port.0))
    }

    fn open(&mut self, script: bool) -> Result<()> {
        let mut arguments: Vec<String> = FLAGS.map(ToOwned::to_owned).into();
        arguments.push(format!("--user-data-dir={}", self.folder.path().join("user").display()));
        let mut options = json!({"binary": named("OCTAVIUS_TEST_CHROMIUM")?, "args": arguments});
        if !script {
            options["prefs"] = json!({"profile.managed_default_content_settings.javascript": 2});
        }
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
            "timeouts": {"implicit": 0, "pageLoad": ANSWER.as_millis(), "script": ANSWER.as_millis()},
        }}});
        let opened = self.call("POST", "/session", Some(&capabilities)).with_context(|| {
            let said = std::fs::read_to_string(self.folder.path().join("chromedriver.log")).unwrap_or_default();
            format!("open a browser; chromedriver said:\n{said}")
        })?;
        opened["sessionId"].as_str().context("no session")?.clone_into(&mut self.session);
        let pid = opened["capabilities"]["goog:processID"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        self.browser = pid.and_then(Pid::from_raw);
        Ok(())
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut request = self.http.request(method.parse()?, format!("{}{path}", self.address));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let (status, bytes) = self.runtime.block_on(async {
            let response = request.send().await?;
            Ok::<_, reqwest::Error>((response.status(), response.bytes().await?))
        })?;
        let mut answer: Value = serde_json::from_slice(&bytes).with_context(|| format!("{method} {path} answered {status}"))?;
        let value = answer["value"].take();
        if !status.is_success() {
            let message = value["message"].as_str().unwrap_or_default();
            bail!("{}: {}", value["error"].as_str().unwrap_or_default(), message.lines().next().unwrap_or_default());
        }
        Ok(value)
    }

    /// Asks for something of the session.
    pub(super) fn get(&self, path: &str) -> Result<Value> {
        self.call("GET", &format!("/session/{}{path}", self.session), None)
    }

    /// Has the session do something.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.call("POST", &format!("/session/{}{path}", self.session), Some(body))
    }

    /// A command of Chrome's own protocol.
    pub(super) fn chrome(&self, command: &str, parameters: &Value) -> Result<Value> {
        self.post("/goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }

    /// What a script returns, or what its promise comes to. It is not the page's own: it runs where those may not.
    pub(super) fn script(&self, script: &str, arguments: &[Value]) -> Result<Value> {
        self.post("/execute/sync", &json!({"script": script, "args": arguments}))
    }

    /// The elements that a CSS selector chooses, in the order of the document.
    pub(super) fn elements(&self, css: &str) -> Result<Vec<Element>> {
        let found = self.post("/elements", &json!({"using": "css selector", "value": css}))?;
        found.as_array().context("not a list")?.iter().map(Element::of).collect()
    }

    /// The element that has the focus; the body where none has.
    pub(super) fn active(&self) -> Result<Element> {
        Element::of(&self.get("/element/active")?)
    }

    /// Asks for something of an element.
    pub(super) fn of(&self, element: &Element, what: &str) -> Result<Value> {
        self.get(&format!("/element/{}/{what}", element.0))
    }

    /// The name by which a screen reader calls an element; empty where it has none or is hidden.
    pub(super) fn name(&self, element: &Element) -> Result<String> {
        let name = self.of(element, "computedlabel")?;
        Ok(super::plain(name.as_str().unwrap_or_default()))
    }

    /// Clicks on the middle of an element, which fails where something else lies over it.
    pub(super) fn click(&self, element: &Element) -> Result<()> {
        self.post(&format!("/element/{}/click", element.0), &json!({})).map(drop)
    }

    /// Empties a field.
    pub(super) fn clear(&self, element: &Element) -> Result<()> {
        self.post(&format!("/element/{}/clear", element.0), &json!({})).map(drop)
    }

    /// Types into an element.
    pub(super) fn write(&self, element: &Element, text: &str) -> Result<()> {
        self.post(&format!("/element/{}/value", element.0), &json!({"text": text})).map(drop)
    }

    /// Presses and releases keys one after the other, for whatever has the focus; `held` is down meanwhile.
    pub(super) fn keys(&self, keys: &str, held: Option<char>) -> Result<()> {
        let key = |down: bool, key: char| json!({"type": if down { "keyDown" } else { "keyUp" }, "value": key});
        let mut actions: Vec<Value> = held.iter().map(|held| key(true, *held)).collect();
        actions.extend(keys.chars().flat_map(|pressed| [key(true, pressed), key(false, pressed)]));
        actions.extend(held.iter().map(|held| key(false, *held)));
        self.post("/actions", &json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})).map(drop)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // What fails here is over already. A browser that is asked first closes its files, so that its folder can be removed.
        if !self.session.is_empty() {
            let farewell = self.http.delete(format!("{}/session/{}", self.address, self.session)).timeout(FAREWELL);
            let _ = self.runtime.block_on(async { farewell.send().await });
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(browser) = self.browser {
            let _ = kill_process(browser, Signal::KILL);
        }
    }
}
