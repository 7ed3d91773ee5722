//! A real browser for tests of the page: Debian's Chromium without a window, used as people use it. What is pressed, followed and filled in is
//! found by the name that a screen reader says, so that a page which a test can use is one that everyone can.

mod driver;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use fantoccini::elements::Element;
use serde_json::{Value, json};

use crate::eventually;
use driver::Driver;

/// Keys that are no characters, by WebDriver's code points: to be given to [`Browser::type_keys`].
pub mod keys {
    /// To the next thing that takes the focus.
    pub const TAB: char = '\u{E004}';
    /// Presses what has the focus, or sends the form.
    pub const ENTER: char = '\u{E007}';
    /// Presses a button, ticks a box.
    pub const SPACE: char = ' ';
    /// Away with what is open.
    pub const ESCAPE: char = '\u{E00C}';
    /// To the next choice.
    pub const DOWN: char = '\u{E015}';
    /// To the end of the page or line.
    pub const END: char = '\u{E010}';
    pub(super) const SHIFT: char = '\u{E008}';
}

/// How many things one may have to tab over to reach another: more is no way to go for a person.
const STOPS: usize = 100;

/// How much of a page an error shows, in bytes.
const SHOWN: usize = 4000;

/// What a thing is to who uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Something that does something when it is pressed.
    Button,
    /// Something that leads elsewhere.
    Link,
    /// Something to fill in, choose from or tick.
    Field,
    /// The beginning of a part of the page.
    Heading,
}

impl Role {
    /// A CSS selector of all that may have it.
    const fn css(self) -> &'static str {
        match self {
            Self::Button => "button, summary, input[type=submit], input[type=button], [role=button]",
            Self::Link => "a[href], [role=link]",
            Self::Field => "input:not([type=hidden], [type=submit], [type=button]), select, textarea",
            Self::Heading => "h1, h2, h3, h4, h5, h6, [role=heading]",
        }
    }
}

/// How big the window is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Screen {
    /// 1280 × 800.
    Desktop,
    /// 390 × 844, touched by fingers.
    Phone,
}

/// Which colours the user's system asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Dark on light.
    Light,
    /// Light on dark.
    Dark,
}

/// What axe-core found: something that keeps somebody from using the page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The rule's name, like `color-contrast`.
    pub rule: String,
    /// `serious` or `critical`.
    pub impact: String,
    /// What the rule asks for, where it was not kept, and how to mend it.
    pub said: String,
}

/// A field as a screen reader tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// What is in it.
    pub value: String,
    /// Whether it is said to be wrong.
    pub is_invalid: bool,
    /// What is said of it beside its name: its help, and what is wrong.
    pub description: String,
}

/// One browser with one window, which ends with this value.
#[derive(Debug)]
pub struct Browser {
    driver: Driver,
}

/// A text as people read it: with single spaces.
fn plain(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The end of a text that may be long.
fn end_of(text: &str) -> &str {
    let from = text.char_indices().map(|(at, _)| at).find(|at| text.len() - at <= SHOWN);
    &text[from.unwrap_or_default()..]
}

impl Browser {
    /// A browser of a desktop in light colours, with nothing open.
    ///
    /// # Errors
    /// Where none can be started; one that is missing is an error, never a reason to pass.
    pub fn start() -> Result<Self> {
        let browser = Self { driver: Driver::start(true)? };
        browser.screen(Screen::Desktop)?;
        Ok(browser)
    }

    /// The same for a user who has script switched off.
    ///
    /// # Errors
    /// Where none can be started.
    pub fn without_script() -> Result<Self> {
        let browser = Self { driver: Driver::start(false)? };
        browser.screen(Screen::Desktop)?;
        Ok(browser)
    }

    /// Makes the window so big, from now on.
    ///
    /// # Errors
    /// Where the browser does not.
    pub fn screen(&self, screen: Screen) -> Result<()> {
        let (width, height, scale, mobile) = match screen {
            Screen::Desktop => (1280, 800, 1, false),
            Screen::Phone => (390, 844, 3, true),
        };
        let metrics = json!({
            "width": width, "height": height, "screenWidth": width, "screenHeight": height,
            "deviceScaleFactor": scale, "mobile": mobile,
        });
        self.driver.chrome("Emulation.setDeviceMetricsOverride", &metrics)?;
        self.driver.chrome("Emulation.setTouchEmulationEnabled", &json!({"enabled": mobile})).map(drop)
    }

    /// Lets the system ask for these colours, from now on.
    ///
    /// # Errors
    /// Where the browser does not.
    pub fn scheme(&self, scheme: Scheme) -> Result<()> {
        let value = if scheme == Scheme::Dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": value}]});
        self.driver.chrome("Emulation.setEmulatedMedia", &media).map(drop)
    }

    /// Opens an address, and waits until it is loaded.
    ///
    /// # Errors
    /// Where nothing answers there.
    pub fn go(&self, address: &str) -> Result<()> {
        self.driver.wait(self.driver.client()?.goto(address)).with_context(|| format!("open {address}"))
    }

    /// Opens what is open again, as its button does.
    ///
    /// # Errors
    /// Where nothing answers.
    pub fn reload(&self) -> Result<()> {
        self.driver.wait(self.driver.client()?.refresh())
    }

    /// The address of what is open.
    ///
    /// # Errors
    /// Where the browser does not say.
    pub fn address(&self) -> Result<String> {
        Ok(self.driver.wait(self.driver.client()?.current_url())?.into())
    }

    /// The page's title.
    ///
    /// # Errors
    /// Where the browser does not say.
    pub fn title(&self) -> Result<String> {
        self.driver.wait(self.driver.client()?.title())
    }

    /// All text that can be seen, with single spaces.
    ///
    /// # Errors
    /// Where the browser does not say.
    pub fn text(&self) -> Result<String> {
        let text = self.driver.script("return document.body ? document.body.innerText : ''", vec![])?;
        Ok(plain(text.as_str().unwrap_or_default()))
    }

    /// Waits until a text can be seen.
    ///
    /// # Errors
    /// Where it does not appear in time, with what can be seen instead.
    pub fn see(&self, text: &str) -> Result<()> {
        eventually(&format!("“{text}” can be seen"), || {
            let seen = self.text()?;
            ensure!(seen.contains(&plain(text)), "{} shows: {}", self.address()?, end_of(&seen));
            Ok(())
        })
    }

    /// Waits until a text can no longer be seen. Makes sense only after something else was seen: an empty page shows nothing.
    ///
    /// # Errors
    /// Where it stays.
    pub fn see_no(&self, text: &str) -> Result<()> {
        eventually(&format!("“{text}” cannot be seen"), || {
            let seen = self.text()?;
            ensure!(!seen.is_empty() && !seen.contains(&plain(text)), "{} shows: {}", self.address()?, end_of(&seen));
            Ok(())
        })
    }

    /// The names of all that has a role and can be seen, in the page's order.
    ///
    /// # Errors
    /// Where the browser does not say.
    pub fn names(&self, role: Role) -> Result<Vec<String>> {
        Ok(self.all(role)?.into_iter().map(|(name, _)| name).collect())
    }

    fn all(&self, role: Role) -> Result<Vec<(String, Element)>> {
        let mut all = Vec::new();
        for element in self.driver.elements(role.css())? {
            let name = self.driver.name(&element)?;
            if !name.is_empty() {
                all.push((name, element));
            }
        }
        Ok(all)
    }

    /// The one with this whole name, otherwise the only one whose name has it in it.
    fn find(&self, role: Role, name: &str) -> Result<Element> {
        let all = self.all(role)?;
        let whole: Vec<_> = all.iter().filter(|(known, _)| known == name).collect();
        let found = if whole.is_empty() { all.iter().filter(|(known, _)| known.contains(name)).collect() } else { whole };
        match found[..] {
            [(_, element)] => Ok(element.clone()),
            _ => {
                let names: Vec<_> = all.iter().map(|(name, _)| name).collect();
                bail!("{} of role {role:?} are called “{name}” on {}, of {names:?}", found.len(), self.address()?)
            }
        }
    }

    /// Whether a link of the page leads to a path of its site.
    ///
    /// # Errors
    /// Where the browser does not say.
    pub fn leads_to(&self, path: &str) -> Result<bool> {
        Ok(!self.driver.elements(&format!("a[href={}]", json!(path)))?.is_empty())
    }

    /// Presses a button once it is there and can be pressed.
    ///
    /// # Errors
    /// Where it does not come to that.
    pub fn press(&self, name: &str) -> Result<()> {
        eventually(&format!("the button “{name}” can be pressed"), || {
            let button = self.find(Role::Button, name)?;
            ensure!(self.driver.wait(button.is_enabled())?, "it is disabled");
            self.driver.wait(button.click())
        })
    }

    /// Follows a link once it is there.
    ///
    /// # Errors
    /// Where it does not come to that.
    pub fn follow(&self, name: &str) -> Result<()> {
        eventually(&format!("the link “{name}” can be followed"), || {
            let link = self.find(Role::Link, name)?;
            self.driver.wait(link.click())
        })
    }

    /// Puts a text into the field with this label, in place of what is in it.
    ///
    /// # Errors
    /// Where there is none, or it cannot be written into.
    pub fn fill(&self, label: &str, text: &str) -> Result<()> {
        eventually(&format!("the field “{label}” can be filled in"), || {
            let field = self.find(Role::Field, label)?;
            self.driver.wait(field.clear())?;
            self.driver.wait(field.send_keys(text))
        })
    }

    /// Chooses an option by what it says, from the list with this label.
    ///
    /// # Errors
    /// Where there is no such list, or no such option in it.
    pub fn choose(&self, label: &str, option: &str) -> Result<()> {
        // As a keyboard does: typing the beginning of an option chooses it.
        eventually(&format!("“{option}” can be chosen in “{label}”"), || {
            let field = self.find(Role::Field, label)?;
            self.driver.wait(field.send_keys(option))?;
            let chosen = self.driver.script("return arguments[0].selectedOptions[0].label", vec![json!(field)])?;
            ensure!(chosen == option, "{chosen} is chosen");
            Ok(())
        })
    }

    /// What a screen reader tells of the field with this label.
    ///
    /// # Errors
    /// Where there is none.
    pub fn field(&self, label: &str) -> Result<Field> {
        let element = eventually("the field is there", || self.find(Role::Field, label))?;
        let told = self.driver.script(
            "const field = arguments[0];
             const ids = (field.getAttribute('aria-describedby') || '').split(/\\s+/);
             const said = ids.map(id => document.getElementById(id)).filter(Boolean).map(said => said.innerText);
             return {value: field.value, invalid: field.getAttribute('aria-invalid') === 'true', said: said.join(' ')};",
            vec![json!(element)],
        )?;
        Ok(Field {
            value: told["value"].as_str().unwrap_or_default().to_owned(),
            is_invalid: told["invalid"] == true,
            description: plain(told["said"].as_str().unwrap_or_default()),
        })
    }

    /// Presses keys for whatever has the focus: characters, and those of [`keys`].
    ///
    /// # Errors
    /// Where the browser does not.
    pub fn type_keys(&self, keys: &str) -> Result<()> {
        self.driver.keys(keys, None)
    }

    /// Goes on with the keyboard alone until something has the focus, forwards through the page and around its end.
    ///
    /// # Errors
    /// Where it is not reached, with all that was passed, or where nothing shows what has the focus on the way.
    pub fn tab_to(&self, role: Role, name: &str) -> Result<()> {
        let mut passed = Vec::new();
        for _ in 0..STOPS {
            self.driver.keys(&keys::TAB.to_string(), None)?;
            let focused = self.driver.wait(self.driver.client()?.active_element())?;
            let here = self.driver.script(
                "const [element, css] = arguments;
                 const style = getComputedStyle(element);
                 const outlined = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0;
                 return {fits: element.matches(css), shown: outlined || style.boxShadow !== 'none',
                         is: element === document.body || element === document.documentElement};",
                vec![json!(focused), json!(role.css())],
            )?;
            if here["is"] == true {
                continue; // past the page's end, in the browser's own
            }
            let called = self.driver.name(&focused)?;
            ensure!(here["shown"] == true, "nothing shows that “{called}” has the focus, on {}", self.address()?);
            if here["fits"] == true && called.contains(name) {
                return Ok(());
            }
            passed.push(called);
        }
        bail!("the keyboard does not reach the {role:?} “{name}” on {}; it passed {passed:?}", self.address()?)
    }

    /// Goes one back with the keyboard.
    ///
    /// # Errors
    /// Where the browser does not.
    pub fn tab_back(&self) -> Result<()> {
        self.driver.keys(&keys::TAB.to_string(), Some(keys::SHIFT))
    }

    /// By how many pixels the page is wider than the window; 0 where nobody has to scroll sideways.
    ///
    /// # Errors
    /// Where the browser does not say.
    pub fn overhang(&self) -> Result<u64> {
        // A phone shows a page without a `viewport` at 980 pixels, and makes it small.
        let script = "return Math.max(0, Math.max(document.documentElement.scrollWidth, innerWidth) - screen.width)";
        Ok(self.driver.script(script, vec![])?.as_f64().context("not a number")?.ceil() as u64)
    }

    /// What the browser complained about since the last call: errors of scripts, things that could not be loaded, breaches of the page's
    /// content security policy.
    ///
    /// # Errors
    /// Where the browser does not say.
    pub fn complaints(&self) -> Result<Vec<String>> {
        let entries = self.driver.log()?;
        let severe = entries.as_array().context("not a list")?.iter().filter(|entry| entry["level"] == "SEVERE");
        Ok(severe.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect())
    }

    /// What axe-core finds on the page that is serious or critical.
    ///
    /// # Errors
    /// Where it cannot be run: it is a script, and needs a browser that has them.
    pub fn findings(&self) -> Result<Vec<Finding>> {
        let axe = std::fs::read_to_string(driver::named("OCTAVIUS_TEST_AXE")?).context("read axe-core")?;
        self.driver.script(&format!("{axe}\n"), vec![])?;
        // A page that is just fading in has another contrast than the one that stays; what pulses for ever is not waited for.
        let script = "const ends = animation => Number.isFinite(animation.effect.getComputedTiming().endTime);
                      await Promise.allSettled(document.getAnimations().filter(ends).map(animation => animation.finished));
                      return (await axe.run(document, {resultTypes: ['violations']})).violations";
        let script = format!("return (async () => {{ {script} }})()");
        let found = self.driver.script(&script, vec![])?;
        let serious = |found: &&Value| matches!(found["impact"].as_str(), Some("serious" | "critical"));
        Ok(found.as_array().context("not a list")?.iter().filter(serious).map(finding).collect())
    }

    /// Takes a picture of the window, and returns where it is: `NAME.png` in `$OCTAVIUS_TEST_SCREENSHOTS`, otherwise in the folder
    /// `tmp/screenshots` where cargo builds.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn screenshot(&self, name: &str) -> Result<PathBuf> {
        let folder = match std::env::var_os("OCTAVIUS_TEST_SCREENSHOTS") {
            Some(folder) => PathBuf::from(folder),
            // The program is in TARGET/PROFILE/deps.
            None => std::env::current_exe()?.ancestors().nth(3).unwrap_or(Path::new("")).join("tmp/screenshots"),
        };
        std::fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{name}.png"));
        let picture = self.driver.wait(self.driver.client()?.screenshot())?;
        std::fs::write(&path, picture)?;
        Ok(path)
    }

    /// How long after the page was asked for it first showed text or a picture.
    ///
    /// # Errors
    /// Where nothing is shown.
    pub fn first_paint(&self) -> Result<Duration> {
        eventually("something is painted", || {
            let script = "return performance.getEntriesByName('first-contentful-paint').map(entry => entry.startTime)[0]";
            let at = self.driver.script(script, vec![])?;
            Ok(Duration::from_secs_f64(at.as_f64().context("nothing yet")? / 1000.0))
        })
    }

    /// Opens an address, and returns how long after it was asked for an element was on the screen that this CSS selector chooses and that
    /// has this text in it. Measured in the page, to the end of the frame that shows it.
    ///
    /// # Errors
    /// Where it does not appear in time.
    pub fn time_until(&self, address: &str, css: &str, text: &str) -> Result<Duration> {
        let watch = format!(
            "(() => {{
                 const look = () => {{
                     if (![...document.querySelectorAll({css})].some(element => element.textContent.includes({text}))) return;
                     observer.disconnect();
                     requestAnimationFrame(() => setTimeout(() => {{ window.octaviusSeen = performance.now(); }}));
                 }};
                 const observer = new MutationObserver(look);
                 observer.observe(document, {{subtree: true, childList: true, characterData: true, attributes: true}});
             }})()",
            css = json!(css),
            text = json!(text),
        );
        let added = self.driver.chrome("Page.addScriptToEvaluateOnNewDocument", &json!({"source": watch}))?;
        let opened = self.go(address);
        self.driver.chrome("Page.removeScriptToEvaluateOnNewDocument", &json!({"identifier": added["identifier"]}))?;
        opened?;
        eventually(&format!("“{text}” is in {css}"), || {
            let at = self.driver.script("return window.octaviusSeen", vec![])?;
            let at = at.as_f64().with_context(|| format!("not on {address}"))?;
            Ok(Duration::from_secs_f64(at / 1000.0))
        })
    }
}

fn finding(found: &Value) -> Finding {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let nodes = found["nodes"].as_array().into_iter().flatten();
    let said: Vec<String> = nodes.map(|node| format!("{}: {}", text(&node["html"]), text(&node["failureSummary"]))).collect();
    Finding {
        rule: text(&found["id"]),
        impact: text(&found["impact"]),
        said: format!("{}\n{}", text(&found["help"]), said.join("\n")),
    }
}
