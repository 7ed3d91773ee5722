//! The web page's port: what browsers meet there, in the clear and with TLS. What the pages are is tested where they are made.

use std::net::SocketAddr;

use octavius_controller::{OpenCode, PageListen};
use octavius_proto::v1::{self, Role};
use reqwest::header::{LOCATION, ORIGIN, SET_COOKIE};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, StatusCode};

use crate::harness::{House, eventually};
use crate::tls::Secure;
use crate::waiting::http;

const JOB: &str = r#"{"name":"hello","command":["true"],"description":"Says hello"}"#;

fn listen() -> PageListen {
    PageListen { address: SocketAddr::from(([127, 0, 0, 1], 0)), open: None, behind_tls: false }
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
