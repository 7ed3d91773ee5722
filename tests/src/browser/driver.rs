//! The browser's process, and the calls of WebDriver that the tests need: fantoccini's, each waited for, so that tests read from top to bottom.

use std::fs::File;
use std::future::Future;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use fantoccini::actions::{InputSource as _, KeyAction, KeyActions};
use fantoccini::elements::Element;
use fantoccini::error::CmdError;
use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder, Locator};
use http::Method;
use hyper_util::client::legacy::connect::HttpConnector;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use url::{ParseError, Url};

/// The longest wait for one answer of chromedriver, which loads a whole page for some.
const ANSWER: Duration = Duration::from_secs(60);

/// The longest wait for a browser to close its files before it is killed.
const FAREWELL: Duration = Duration::from_secs(5);

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

/// What chromedriver answers and the protocol does not have, or fantoccini not yet.
#[derive(Debug)]
struct Own {
    path: String,
    /// What is sent; nothing where something is asked for.
    body: Option<Value>,
}

impl WebDriverCompatibleCommand for Own {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        let method = if self.body.is_some() { Method::POST } else { Method::GET };
        (method, self.body.as_ref().map(Value::to_string))
    }
}

/// A chromedriver with one session, which is one browser with one window.
#[derive(Debug)]
pub(super) struct Driver {
    child: Child,
    runtime: Runtime,
    /// The session, once it is open.
    client: Option<Client>,
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
        let mut driver = Self {
            child,
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
            client: None,
            browser: None,
            folder,
        };
        let address = crate::eventually("chromedriver says its port", || driver.port())?;
        driver.open(&address, script).with_context(|| {
            let said = std::fs::read_to_string(driver.folder.path().join("chromedriver.log")).unwrap_or_default();
            format!("open a browser; chromedriver said:\n{said}")
        })?;
        Ok(driver)
    }

    fn port(&self) -> Result<String> {
        let said = std::fs::read_to_string(self.folder.path().join("chromedriver.log"))?;
        let after = said.split_once("started successfully on port ").map(|(_, after)| after);
        let port = after.and_then(|after| after.split_once('.')).with_context(|| format!("no port in: {said}"))?;
        Ok(format!("http://127.0.0.1:{}", port.0))
    }

    fn open(&mut self, address: &str, script: bool) -> Result<()> {
        let mut arguments: Vec<String> = FLAGS.map(ToOwned::to_owned).into();
        arguments.push(format!("--user-data-dir={}", self.folder.path().join("user").display()));
        let mut options = json!({"binary": named("OCTAVIUS_TEST_CHROMIUM")?, "args": arguments});
        if !script {
            options["prefs"] = json!({"profile.managed_default_content_settings.javascript": 2});
        }
        let capabilities = [
            ("goog:chromeOptions", options),
            ("goog:loggingPrefs", json!({"browser": "ALL"})),
            ("timeouts", json!({"implicit": 0, "pageLoad": ANSWER.as_millis(), "script": ANSWER.as_millis()})),
        ];
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(capabilities.map(|(name, value)| (name.to_owned(), value)).into_iter().collect());
        let client = self.runtime.block_on(async { timeout(ANSWER, builder.connect(address)).await })??;
        let pid = client.capabilities().and_then(|told| told.get("goog:processID")).and_then(Value::as_i64);
        self.browser = pid.and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        self.client = Some(client);
        Ok(())
    }

    /// The session.
    pub(super) fn client(&self) -> Result<&Client> {
        self.client.as_ref().context("no browser is open")
    }

    /// Waits for an answer. Of a refusal it tells the first line: chromedriver's own stack follows.
    pub(super) fn wait<T>(&self, answer: impl Future<Output = Result<T, CmdError>>) -> Result<T> {
        let answered = self.runtime.block_on(async { timeout(ANSWER, answer).await }).context("chromedriver does not answer")?;
        answered.map_err(|error| match error {
            CmdError::Standard(refused) => {
                anyhow!("{}: {}", refused.error, refused.message.lines().next().unwrap_or_default())
            }
            error => error.into(),
        })
    }

    fn own(&self, path: String, body: Option<Value>) -> Result<Value> {
        self.wait(self.client()?.issue_cmd(Own { path, body }))
    }

    /// A command of Chrome's own protocol.
    pub(super) fn chrome(&self, command: &str, parameters: &Value) -> Result<Value> {
        self.own("goog/cdp/execute".to_owned(), Some(json!({"cmd": command, "params": parameters})))
    }

    /// What the browser has written to its log since the last call.
    pub(super) fn log(&self) -> Result<Value> {
        self.own("se/log".to_owned(), Some(json!({"type": "browser"})))
    }

    /// What a script returns, or what its promise comes to. It is not the page's own: it runs where those may not.
    pub(super) fn script(&self, script: &str, arguments: Vec<Value>) -> Result<Value> {
        self.wait(self.client()?.execute(script, arguments))
    }

    /// The elements that a CSS selector chooses, in the order of the document. One that is gone by the time it is used fails as "stale
    /// element reference".
    pub(super) fn elements(&self, css: &str) -> Result<Vec<Element>> {
        self.wait(self.client()?.find_all(Locator::Css(css)))
    }

    /// The name by which a screen reader calls an element; empty where it has none or is hidden.
    pub(super) fn name(&self, element: &Element) -> Result<String> {
        let name = self.own(format!("element/{}/computedlabel", element.element_id()), None)?;
        Ok(super::plain(name.as_str().unwrap_or_default()))
    }

    /// Presses and releases keys one after the other, for whatever has the focus; `held` is down meanwhile.
    pub(super) fn keys(&self, keys: &str, held: Option<char>) -> Result<()> {
        let down = |value: char| KeyAction::Down { value };
        let up = |value: char| KeyAction::Up { value };
        let pressed = keys.chars().flat_map(|key| [down(key), up(key)]);
        let actions = held.into_iter().map(down).chain(pressed).chain(held.into_iter().map(up));
        let actions = actions.fold(KeyActions::new("keyboard".to_owned()), KeyActions::then);
        self.wait(self.client()?.perform_actions(actions))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // What fails here is over already. A browser that is asked first closes its files, so that its folder can be removed.
        if let Some(client) = self.client.take() {
            let _ = self.runtime.block_on(async { timeout(FAREWELL, client.close()).await });
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(browser) = self.browser {
            let _ = kill_process(browser, Signal::KILL);
        }
    }
}
