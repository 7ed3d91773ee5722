//! Signing in and out: what the browser keeps, where it is sent, and what is forgotten.

use http::StatusCode;

use crate::browser::{Browser, CODE, HERE};
use crate::fake::Fake;
use crate::world::world;

/// A cookie that lasts for the hour that its session has left, without that.
fn lasting(cookie: &str) -> String {
    let (before, rest) = cookie.split_once("; Max-Age=").unwrap();
    let (seconds, after) = rest.split_once(';').map_or((rest, String::new()), |(seconds, after)| (seconds, format!(";{after}")));
    assert!((3500..=3600).contains(&seconds.parse::<u32>().unwrap()), "{cookie}");
    format!("{before}{after}")
}

#[tokio::test]
async fn a_pasted_token_becomes_a_session_that_scripts_and_other_sites_cannot_have() {
    let fake = world("x");
    let mut browser = Browser::new(&fake);
    let answer = browser.post("/sign-in", &[("token", " octu_user "), ("next", "/jobs/refund-order")]).await;
    assert_eq!((answer.status, answer.location()), (StatusCode::SEE_OTHER, "/jobs/refund-order"));
    assert_eq!(lasting(answer.header("set-cookie")), "octavius-3000=octs_user; Path=/; HttpOnly; SameSite=Lax");
    assert_eq!(browser.get("/").await.status, StatusCode::OK);
    assert_eq!(fake.count("CreateSession"), 1);
}

#[tokio::test]
async fn by_tls_the_cookie_is_for_tls_and_this_host_alone() {
    let mut browser = Browser::over_tls(&world("x"), true);
    let answer = browser.post("/sign-in", &[("token", "octu_user")]).await;
    let cookie = lasting(answer.header("set-cookie"));
    assert_eq!(cookie, "__Host-octavius-3000=octs_user; Path=/; HttpOnly; SameSite=Lax; Secure");
    assert_eq!(browser.get("/").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_token_that_is_not_known_is_said_so_beside_the_field_and_not_shown_again() {
    let mut browser = Browser::new(&world("x"));
    for (token, status) in
        [("octu_nobody", StatusCode::UNAUTHORIZED), ("", StatusCode::BAD_REQUEST), ("a b", StatusCode::BAD_REQUEST)]
    {
        let answer = browser.post("/sign-in", &[("token", token), ("next", "/audit")]).await;
        assert_eq!(answer.status, status, "{token}");
        assert!(answer.tag("token").contains("aria-invalid=\"true\"") && answer.text.contains("id=\"token-problem\""));
        assert!(token.is_empty() || !answer.text.contains(&format!("\"{token}\"")), "{}", answer.text);
        assert_eq!(answer.hidden("next"), "/audit");
    }
    let executor = browser.post("/sign-in", &[("token", "octu_executor")]).await;
    assert_eq!(executor.status, StatusCode::FORBIDDEN);
    assert!(executor.text.contains("your role, executor, may not do this"), "{}", executor.text);
    assert_eq!(browser.cookie(), None);
}

#[tokio::test]
async fn who_is_not_signed_in_is_sent_to_sign_in_and_back() {
    let fake = world("x");
    let mut browser = Browser::new(&fake);
    let answer = browser.get("/executions?all=1&job=a%26b").await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
    assert_eq!(answer.location(), "/sign-in?next=%2Fexecutions%3Fall%3D1%26job%3Da%2526b");
    let form = browser.get(answer.location()).await;
    assert_eq!(form.hidden("next"), "/executions?all=1&#38;job=a%26b");
    let back = browser.post("/sign-in", &[("token", "octu_viewer"), ("next", "/executions?all=1&job=a%26b")]).await;
    assert_eq!(back.location(), "/executions?all=1&job=a%26b");
    assert_eq!(browser.get("/sign-in?next=/executors").await.location(), "/executors", "whoever is signed in goes on");
    assert!(fake.world().calls.iter().all(|(rpc, _)| *rpc != "ListExecutions"), "nothing is asked for nobody");
}

#[tokio::test]
async fn nobody_is_sent_to_another_host() {
    let mut browser = Browser::new(&world("x"));
    for next in ["https://evil.example/", "//evil.example", "/\\evil.example", "/\t/evil.example", "javascript:alert(1)", "evil"]
    {
        let answer = browser.post("/sign-in", &[("token", "octu_user"), ("next", next)]).await;
        assert_eq!((answer.status, answer.location()), (StatusCode::SEE_OTHER, "/"), "{next:?}");
        let query = url::form_urlencoded::Serializer::new(String::new()).append_pair("next", next).finish();
        assert_eq!(Browser::new(&world("x")).get(&format!("/sign-in?{query}")).await.hidden("next"), "/");
    }
}

#[tokio::test]
async fn signing_out_ends_the_session_wherever_its_cookie_went() {
    let fake = world("x");
    let mut browser = Browser::of(&fake, "user");
    let mut stolen = Browser::of(&fake, "user");
    let form = browser.get("/").await;
    let answer = browser.post("/sign-out", &[("form_token", &form.hidden("form_token"))]).await;
    assert_eq!(answer.location(), "/sign-in");
    assert_eq!(answer.header("set-cookie"), "octavius-3000=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0");
    let ended = stolen.get("/executors").await;
    assert_eq!(ended.location(), "/sign-in?next=%2Fexecutors");
    assert!(stolen.get(ended.location()).await.text.contains("Your session has ended"));
}

#[tokio::test]
async fn a_script_whose_session_has_ended_is_told_and_not_sent_a_page_to_sign_in() {
    let mut browser = Browser::new(&Fake::default());
    let request = http::Request::get("/executions/x/events").header("sec-fetch-dest", "empty");
    let answer = browser.send(request.body(axum::body::Body::empty()).unwrap()).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn the_code_of_this_process_signs_in_and_no_other_does() {
    let fake = world("x");
    let mut browser = Browser::new(&fake);
    for wrong in ["/open", "/open?code=", "/open?code=a-code-of-a-proces", "/open?code=a-code-of-a-processes"] {
        let answer = browser.get(wrong).await;
        assert_eq!((answer.status, browser.cookie()), (StatusCode::FORBIDDEN, None), "{wrong}");
    }
    let answer = browser.get(&format!("/open?code={}", CODE.0)).await;
    assert_eq!((answer.status, answer.location()), (StatusCode::SEE_OTHER, "/"));
    assert!(!answer.header("set-cookie").contains(CODE.1), "the token itself stays here");
    assert_eq!(browser.get("/audit").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_form_of_another_site_does_nothing() {
    let fake = world("x");
    let mut browser = Browser::of(&fake, "admin");
    let token = browser.get("/").await.hidden("form_token");
    let (origin, host) = (format!("http://{HERE}"), HERE);
    let posts = [
        ("/jobs/refund-order", vec![("id", "1"), ("arg.order", "A-1")]),
        ("/executions/0k3v7q2m8d5x1n4r6t9w0b9f2q", vec![("do", "cancel")]),
        ("/executions/0k3v7q2m8d5x1n4r6t9w0b9f2q", vec![("do", "rerun"), ("new_id", "1")]),
        ("/executions/0k3v7q2m8d5x1n4r6t9w0b9f2s", vec![("do", "approve")]),
        ("/executions/0k3v7q2m8d5x1n4r6t9w0b9f2s", vec![("do", "reject")]),
        ("/sign-out", vec![]),
    ];
    for (address, fields) in posts {
        let with = |token: &str| {
            [fields.clone(), vec![("form_token", token)]].concat().into_iter().map(|(n, v)| (n, v.to_owned())).collect::<Vec<_>>()
        };
        for (token, headers) in [
            (token.as_str(), vec![]),
            (&token, vec![("origin", "http://evil.example")]),
            (&token, vec![("origin", "null")]),
            (&token, vec![("origin", origin.as_str()), ("sec-fetch-site", "cross-site")]),
            (&token, vec![("sec-fetch-site", "same-site")]),
            ("", vec![("origin", origin.as_str())]),
            ("AAAA", vec![("origin", origin.as_str())]),
        ] {
            let fields = with(token);
            let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let answer = browser.post_from(address, &fields, &headers).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{address} {headers:?} of {host}");
            assert!(answer.text.contains("load the page again"), "{}", answer.text);
        }
    }
    let changed = ["Execute", "CancelExecution", "RerunExecution", "ApproveExecution", "RejectExecution", "EndSession"];
    assert!(fake.world().calls.iter().all(|(rpc, _)| !changed.contains(rpc)), "{:?}", fake.world().calls);
    let foreign = browser.post_from("/sign-in", &[("token", "octu_user")], &[("origin", "http://evil.example")]).await;
    assert_eq!((foreign.status, fake.count("CreateSession")), (StatusCode::FORBIDDEN, 0));
}
