//! The browser of the tests itself, on a small page with everything planted that it must not overlook: a test of the page of Octavius means
//! something only where these do.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::RawQuery;
use axum::http::header;
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::get;
use octavius_tests::browser::{Browser, Role, Scheme, Screen, keys};
use tokio::runtime::Runtime;

/// A page with nothing wrong.
const SOUND: &str = r#"<!doctype html><html lang="en"><head><title>Sound</title><meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,"><style>
  :root { color-scheme: light dark } p { max-width: 40rem } a, button, input, select { font: inherit; padding: .5rem }
  :focus-visible { outline: 3px solid Highlight }
  #dark { display: none } @media (prefers-color-scheme: dark) { #dark { display: block } }
</style></head><body><main><h1>Orders</h1>
<noscript>script is off</noscript><p id="dark">it is dark</p><p id="script"></p>
<form action="/sent"><label for="order">Order</label>
<input id="order" name="order" value="B-1" aria-invalid="true" aria-describedby="wrong help">
<span id="wrong">not like A-1</span> <span id="help">like A-1042</span>
<label for="reason">Reason</label><select id="reason" name="reason"><option>fraud<option>goodwill</select>
<button>Run</button> <button disabled>Run all</button></form>
<a href="/sent">Executions</a>
</main><script>
  document.getElementById('script').textContent = 'script is on';
  setTimeout(() => { const late = document.createElement('p'); late.id = 'late'; late.textContent = 'late'; document.querySelector('main').append(late) }, 200);
</script></body></html>"#;

/// A page on which nearly everything is wrong.
const UNSOUND: &str = r#"<!doctype html><html><head></head><body style="color: #999; background: #aaa">
<div style="width: 2000px">wide and grey</div><input><button style="outline: none">Unseen</button>
<img src="http://example.invalid/picture.png"><script>throw new Error('planted')</script></body></html>"#;

/// A server on loopback that ends with this value.
struct Site {
    address: SocketAddr,
    /// The queries of forms that were sent.
    sent: Arc<Mutex<Vec<String>>>,
    _runtime: Runtime,
}

impl Site {
    fn start() -> Self {
        let sent = Arc::<Mutex<Vec<String>>>::default();
        let kept = Arc::clone(&sent);
        let site = Router::new()
            .route("/", get(async || Html(SOUND)))
            .route("/unsound", get(async || Html(UNSOUND)))
            .route("/strict", get(strict))
            .route(
                "/sent",
                get(async move |RawQuery(query): RawQuery| {
                    kept.lock().unwrap().push(query.unwrap_or_default());
                    Html("<!doctype html><title>Sent</title><link rel=icon href='data:,'>was sent")
                }),
            );
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move { axum::serve(listener, site).await });
        Self { address, sent, _runtime: runtime }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// A page that breaches its own policy.
async fn strict() -> Response {
    let policy = [(header::CONTENT_SECURITY_POLICY, "default-src 'none'; img-src data:")];
    (
        policy,
        Html("<!doctype html><title>Strict</title><link rel=icon href='data:,'><p>strict<script>document.title = 'ran'</script>"),
    )
        .into_response()
}

#[test]
fn what_is_named_can_be_read_filled_in_and_pressed() {
    let site = Site::start();
    let browser = Browser::start().unwrap();
    browser.go(&site.url("/")).unwrap();
    browser.see("script is on").unwrap();
    assert_eq!(browser.names(Role::Field).unwrap(), ["Order", "Reason"]);
    let order = browser.field("Order").unwrap();
    assert_eq!((&*order.value, order.is_invalid), ("B-1", true));
    assert_eq!(order.description, "not like A-1 like A-1042");
    browser.fill("Order", "A-7").unwrap();
    browser.choose("Reason", "goodwill").unwrap();
    // Another button's name has it in it: the whole one is meant.
    browser.press("Run").unwrap();
    browser.see("was sent").unwrap();
    assert_eq!(*site.sent.lock().unwrap(), ["order=A-7&reason=goodwill"]);
    assert_eq!(browser.title().unwrap(), "Sent");
    assert_eq!(browser.complaints().unwrap(), [""; 0]);
}

#[test]
fn the_keyboard_alone_reaches_what_has_a_focus_that_shows() {
    let site = Site::start();
    let browser = Browser::start().unwrap();
    browser.go(&site.url("/")).unwrap();
    browser.tab_to(Role::Field, "Reason").unwrap();
    browser.type_keys(&keys::DOWN.to_string()).unwrap();
    browser.tab_back().unwrap();
    browser.type_keys("A-8").unwrap();
    browser.tab_to(Role::Button, "Run").unwrap();
    browser.type_keys(&keys::ENTER.to_string()).unwrap();
    browser.see("was sent").unwrap();
    assert_eq!(*site.sent.lock().unwrap(), ["order=A-8&reason=goodwill"]);

    browser.go(&site.url("/unsound")).unwrap();
    let unseen = browser.tab_to(Role::Button, "Unseen").unwrap_err().to_string();
    assert!(unseen.contains("nothing shows that “Unseen” has the focus"), "{unseen}");
    browser.go(&site.url("/")).unwrap();
    let none = browser.tab_to(Role::Button, "Fly").unwrap_err().to_string();
    assert!(none.contains("does not reach the Button “Fly”") && none.contains("Executions"), "{none}");
}

#[test]
fn what_is_planted_on_a_page_is_found() {
    let site = Site::start();
    let browser = Browser::start().unwrap();
    browser.go(&site.url("/")).unwrap();
    assert_eq!(browser.findings().unwrap(), []);
    assert_eq!(browser.complaints().unwrap(), [""; 0]);

    browser.go(&site.url("/unsound")).unwrap();
    let rules: Vec<String> = browser.findings().unwrap().into_iter().map(|finding| finding.rule).collect();
    for rule in ["color-contrast", "html-has-lang", "image-alt", "label"] {
        assert!(rules.iter().any(|found| found == rule), "no {rule} in {rules:?}");
    }
    // Also that nothing is loaded from elsewhere.
    let complaints = browser.complaints().unwrap();
    for complaint in ["planted", "example.invalid"] {
        assert!(complaints.iter().any(|found| found.contains(complaint)), "no {complaint} in {complaints:?}");
    }
    browser.go(&site.url("/strict")).unwrap();
    browser.see("strict").unwrap();
    assert_eq!(browser.title().unwrap(), "Strict");
    let complaints = browser.complaints().unwrap();
    assert!(complaints.iter().any(|found| found.contains("Content Security Policy")), "{complaints:?}");
    // axe-core and what looks for text are not the page's, and go where its policy lets no script.
    browser.findings().unwrap();
}

#[test]
fn the_page_is_seen_dark_on_a_phone_and_without_script() {
    let site = Site::start();
    let browser = Browser::start().unwrap();
    browser.go(&site.url("/")).unwrap();
    assert!(!browser.text().unwrap().contains("it is dark"));
    browser.scheme(Scheme::Dark).unwrap();
    browser.see("it is dark").unwrap();
    browser.reload().unwrap();
    browser.see("it is dark").unwrap();

    browser.screen(Screen::Phone).unwrap();
    browser.reload().unwrap();
    assert_eq!(browser.overhang().unwrap(), 0);
    browser.go(&site.url("/unsound")).unwrap();
    assert!(browser.overhang().unwrap() > 0);
    browser.screen(Screen::Desktop).unwrap();
    browser.go(&site.url("/unsound")).unwrap();
    assert!(browser.overhang().unwrap() > 700);

    let browser = Browser::without_script().unwrap();
    browser.go(&site.url("/")).unwrap();
    browser.see("script is off").unwrap();
    browser.fill("Order", "A-9").unwrap();
    browser.press("Run").unwrap();
    browser.see("was sent").unwrap();
    assert_eq!(*site.sent.lock().unwrap(), ["order=A-9&reason=fraud"]);
}

#[test]
fn a_page_is_timed_to_what_is_on_the_screen_and_a_picture_kept() {
    let site = Site::start();
    let browser = Browser::start().unwrap();
    let late = browser.time_until(&site.url("/"), "p", "late").unwrap();
    assert!(late >= Duration::from_millis(200), "{late:?}");
    let painted = browser.first_paint().unwrap();
    assert!(painted > Duration::ZERO && painted < late, "{painted:?} and {late:?}");
    let picture = std::fs::read(browser.screenshot("browser-itself").unwrap()).unwrap();
    // A PNG's width and height stand at the beginning of its first part.
    assert_eq!(&picture[1..4], b"PNG");
    assert_eq!(picture[16..24], [1280_u32.to_be_bytes(), 800_u32.to_be_bytes()].concat());
}
