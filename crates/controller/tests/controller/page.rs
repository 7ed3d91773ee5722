//! The web page's port: what browsers meet there, in the clear and with TLS. What the pages are is tested where they are made.

use std::collections::HashMap;
use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use octavius_controller::{IssuerConfig, OpenCode, PageListen};
use octavius_proto::v1::{self, Role};
use octavius_tests::jwt::{Answer, Issuer, Signer, seconds_from_now};
use reqwest::header::{LOCATION, ORIGIN, SET_COOKIE};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, StatusCode};
use serde_json::json;
use url::Url;

use crate::harness::{House, eventually};
use crate::tls::Secure;
use crate::waiting::http;

const JOB: &str = r#"{"name":"hello","command":["true"],"description":"Says hello"}"#;

fn listen() -> PageListen {
    PageListen { address: SocketAddr::from(([127, 0, 0, 1], 0)), open: None, url: None, behind_tls: false }
}

/// Starts the controller again, with the page.
async fn with_page(house: &mut House, page: PageListen) -> SocketAddr {
    house.stop().await;
    house.page = Some(page);
    house.start_again().await;
    house.page_address()
}

fn browser() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().redirect(Policy::none()).no_proxy().build().unwrap()
}

/// Signs in as people do, and gives what the browser keeps.
async fn sign_in(browser: &Client, page: &str, token: &str) -> String {
    let form = format!("token={token}&next=%2F");
    let request = browser.post(format!("{page}/sign-in")).header(ORIGIN, page).body(form);
    let answer = request.header("content-type", "application/x-www-form-urlencoded").send().await.unwrap();
    assert_eq!((answer.status(), answer.headers()[LOCATION].to_str().unwrap()), (StatusCode::SEE_OTHER, "/"));
    answer.headers()[SET_COOKIE].to_str().unwrap().to_owned()
}

fn kept(cookie: &str) -> &str {
    cookie.split(';').next().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_sign_in_with_a_token_and_the_page_ends_with_it() {
    let mut house = House::open().await;
    house.apply(&[JOB]).await;
    let page = format!("http://{}", with_page(&mut house, listen()).await);
    let browser = browser();
    let answer = browser.get(&page).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
    assert!(answer.headers()[LOCATION].to_str().unwrap().starts_with("/sign-in"));

    let ann = house.token(Role::User, "ann", &[]).await;
    let cookie = sign_in(&browser, &page, &ann.token).await;
    assert!(cookie.contains("HttpOnly") && !cookie.contains("Secure") && !cookie.contains(&ann.token), "{cookie}");
    let shows = async || browser.get(&page).header("cookie", kept(&cookie)).send().await.unwrap();
    let shown = shows().await;
    assert_eq!(shown.status(), StatusCode::OK);
    let text = shown.text().await.unwrap();
    assert!(text.contains("Says hello") && text.contains("ann"), "{text}");

    // From where: the trail has the browser's address, as it has that of a gRPC client.
    let admin = house.admin().await;
    let mut trail = admin.admin().read_audit(v1::ReadAuditRequest::default()).await.unwrap().into_inner();
    let mut from = Vec::new();
    while let Some(some) = trail.message().await.unwrap() {
        from.extend(some.records.into_iter().filter(|record| record.action == "session.create").map(|record| record.from));
    }
    assert_eq!(from, ["127.0.0.1"]);

    admin.admin().revoke_token(v1::RevokeTokenRequest { id: ann.id }).await.unwrap();
    eventually("the page to send them away", async || match shows().await.status() {
        StatusCode::SEE_OTHER => Ok(()),
        status => Err(format!("{status}")),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_tls_browsers_choose_their_http_and_cookies_are_for_tls_alone() {
    let mut secure = Secure::open(None).await;
    let address = with_page(&mut secure.house, listen()).await;
    let page = format!("https://127.0.0.1:{}", address.port());
    let _ = rustls::crypto::ring::default_provider().install_default();
    let authority = Certificate::from_pem(secure.authority.pem().as_bytes()).unwrap();
    let trusting = || Client::builder().redirect(Policy::none()).no_proxy().tls_certs_only([authority.clone()]);
    for browser in [trusting().http1_only().build().unwrap(), trusting().build().unwrap()] {
        let cookie = sign_in(&browser, &page, &secure.house.token).await;
        assert!(cookie.starts_with("__Host-octavius") && cookie.contains("; Secure"), "{cookie}");
        let shown = browser.get(&page).header("cookie", kept(&cookie)).send().await.unwrap();
        assert_eq!(shown.status(), StatusCode::OK);
    }
    let (head, told) = http(address, "GET", "/").await;
    assert!(head.starts_with("HTTP/1.1 400 ") && told.contains("https://"), "{head}: {told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_with_the_code_signs_in_and_another_does_not() {
    let mut house = House::open().await;
    let token = house.token.clone();
    let open = Some(OpenCode::new("0123456789abcdef", move || Some(token.clone())));
    let page = format!("http://{}", with_page(&mut house, PageListen { open, ..listen() }).await);
    let browser = browser();
    let wrong = browser.get(format!("{page}/open?code=0123456789abcdee")).send().await.unwrap();
    assert!(wrong.status().is_client_error() && !wrong.headers().contains_key(SET_COOKIE), "{wrong:?}");
    let right = browser.get(format!("{page}/open?code=0123456789abcdef")).send().await.unwrap();
    let cookie = right.headers()[SET_COOKIE].to_str().unwrap().to_owned();
    let shown = browser.get(&page).header("cookie", kept(&cookie)).send().await.unwrap();
    assert_eq!(shown.status(), StatusCode::OK);
}

/// An identity provider, and a controller whose page visitors sign in to with it.
struct WithProvider {
    provider: Issuer,
    signer: Signer,
    page: String,
    browser: Client,
    _house: House,
}

/// What a visitor takes to the provider and brings back.
struct OnTheWay {
    asked: HashMap<String, String>,
    cookie: String,
}

impl WithProvider {
    async fn open() -> Self {
        let signer = Signer::p256("k").unwrap();
        let provider = Issuer::start(&[&signer]).await.unwrap();
        let url = provider.url();
        let about = json!({
            "issuer": url, "jwks_uri": format!("{url}/keys"),
            "authorization_endpoint": format!("{url}/authorize"), "token_endpoint": format!("{url}/token"),
        });
        let about = Answer { status: 200, header: None, body: about.to_string() };
        provider.answer("/.well-known/openid-configuration", about);
        let mut house = House::open().await;
        let secret = house.dir().join("secret");
        octavius_controller::private::write_new(&secret, b"s p\n", 0o600).unwrap();
        let issuers = json!([{
            "name": "acme", "issuer": url, "audiences": ["octavius"], "user": "{email}",
            "rules": [{"when": {"email": "*@acme.example"}, "role": "user", "groups": ["support"]}],
            "sign_in": {"client_id": "octavius", "client_secret_file": secret.to_str().unwrap()},
        }]);
        house.issuers = IssuerConfig::parse_all(&issuers, std::path::Path::to_owned).unwrap();
        let listen = PageListen { url: Some("https://octavius.example".parse().unwrap()), ..listen() };
        let page = format!("http://{}", with_page(&mut house, listen).await);
        Self { provider, signer, page, browser: browser(), _house: house }
    }

    async fn leave(&self) -> OnTheWay {
        let answer = self.browser.get(format!("{}/sign-in/with/acme?next=%2Fexecutions", self.page)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::SEE_OTHER);
        let to = Url::parse(answer.headers()[LOCATION].to_str().unwrap()).unwrap();
        assert!(to.as_str().starts_with(&format!("{}/authorize?", self.provider.url())), "{to}");
        let cookie = answer.headers()[SET_COOKIE].to_str().unwrap().to_owned();
        OnTheWay { asked: to.query_pairs().into_owned().collect(), cookie }
    }

    fn answer_token(&self, email: &str, nonce: &str) {
        let claims = json!({
            "iss": self.provider.url(), "aud": "octavius", "sub": "1", "email": email, "nonce": nonce,
            "iat": seconds_from_now(0), "exp": seconds_from_now(300),
        });
        let body = json!({"access_token": "a", "token_type": "Bearer", "id_token": self.signer.sign(&claims).unwrap()});
        self.provider.answer("/token", Answer { status: 200, header: None, body: body.to_string() });
    }

    async fn come_back(&self, way: &OnTheWay, state: &str) -> reqwest::Response {
        let callback = format!("{}/sign-in/callback?code=the-code&state={state}", self.page);
        self.browser.get(callback).header("cookie", kept(&way.cookie)).send().await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_signs_in_with_their_identity_provider() {
    let world = WithProvider::open().await;
    let shown = world.browser.get(format!("{}/sign-in", world.page)).send().await.unwrap().text().await.unwrap();
    assert!(shown.contains("Sign in with acme"), "{shown}");
    let way = world.leave().await;
    let asked = |name: &str| way.asked.get(name).map(String::as_str).unwrap_or_default();
    assert_eq!(
        (asked("response_type"), asked("client_id"), asked("code_challenge_method"), asked("redirect_uri")),
        ("code", "octavius", "S256", "https://octavius.example/sign-in/callback")
    );
    assert!(asked("scope").contains("openid"), "{}", asked("scope"));

    world.answer_token("ann@acme.example", asked("nonce"));
    let entered = world.come_back(&way, asked("state")).await;
    assert_eq!((entered.status(), entered.headers()[LOCATION].to_str().unwrap()), (StatusCode::SEE_OTHER, "/executions"));
    // The code is changed by whoever asked for it, and by nobody else.
    assert_eq!(world.provider.last().unwrap().1, format!("Basic {}", STANDARD.encode("octavius:s+p")));
    let body = world.provider.last_body();
    let form: HashMap<_, _> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    assert_eq!((form["grant_type"].as_str(), form["code"].as_str()), ("authorization_code", "the-code"));
    let verifier = ring::digest::digest(&ring::digest::SHA256, form["code_verifier"].as_bytes());
    assert_eq!(URL_SAFE_NO_PAD.encode(verifier), asked("code_challenge"));

    let session = entered.headers().get_all(SET_COOKIE).iter().map(|cookie| cookie.to_str().unwrap());
    let session = session.filter(|cookie| cookie.contains("octs_")).map(kept).next().unwrap().to_owned();
    let shown = world.browser.get(&world.page).header("cookie", session).send().await.unwrap().text().await.unwrap();
    assert!(shown.contains("acme:ann@acme.example") && shown.contains("support"), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_in_with_what_was_made_for_somebody_else() {
    let world = WithProvider::open().await;
    let (way, other) = (world.leave().await, world.leave().await);
    world.answer_token("ann@acme.example", &way.asked["nonce"]);
    let told = async |answer: reqwest::Response| {
        let cookies = answer.headers().get_all(SET_COOKIE).iter().any(|cookie| cookie.to_str().unwrap().contains("octs_"));
        assert!(!cookies, "a session was opened");
        (answer.status(), answer.text().await.unwrap())
    };
    // A code that an attacker slips in, with a state of their own.
    let (status, text) = told(world.come_back(&way, &other.asked["state"]).await).await;
    assert!(status.is_client_error() && text.contains("begun elsewhere"), "{status}: {text}");
    let stranger = OnTheWay { cookie: "octavius=x".to_owned(), asked: HashMap::new() };
    let (status, _) = told(world.come_back(&stranger, &way.asked["state"]).await).await;
    assert!(status.is_client_error(), "{status}");
    assert_eq!(world.provider.asked("/token"), 0, "the code is not changed for them");
    // A token that was made for another visitor.
    let (status, text) = told(world.come_back(&other, &other.asked["state"]).await).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{text}");
    // Somebody whom no rule lets in.
    world.answer_token("eve@evil.example", &way.asked["nonce"]);
    let (status, text) = told(world.come_back(&way, &way.asked["state"]).await).await;
    assert!(status.is_client_error() && text.contains("no rule"), "{status}: {text}");
    // The provider is away.
    world.provider.answer("/token", Answer { status: 500, header: None, body: String::new() });
    let (status, _) = told(world.come_back(&way, &way.asked["state"]).await).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
}
