//! Texts that want to be markup: wherever they come from, they are shown as the text that they are.

use http::StatusCode;
use proptest::prelude::*;

use crate::browser::Browser;
use crate::world::{PAGES, world};

/// Tags, attribute names and their values, as a browser would find them.
fn markup(page: &str) -> Vec<(String, Vec<String>)> {
    let mut tags = Vec::new();
    let mut rest = page;
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        if !rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '!') {
            continue;
        }
        let name: String = rest.chars().take_while(|c| !c.is_whitespace() && *c != '>').collect();
        rest = &rest[name.len()..];
        let mut attributes = Vec::new();
        loop {
            rest = rest.trim_start();
            let Some(first) = rest.chars().next() else { break };
            if first == '>' {
                break;
            }
            let attribute: String = rest.chars().take_while(|c| !c.is_whitespace() && !matches!(c, '=' | '>')).collect();
            rest = &rest[attribute.len()..];
            if let Some(value) = rest.strip_prefix('=') {
                let value = value.strip_prefix('"').unwrap_or_else(|| panic!("{attribute} of {name} is not quoted"));
                rest = value.split_once('"').unwrap().1;
            }
            attributes.push(attribute);
        }
        tags.push((name, attributes));
    }
    tags
}

/// Texts with all that ends a text, an attribute, an element or a comment.
fn hostile() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "<zzz>",
        "</td>",
        "</textarea>",
        "</select>",
        "</script>",
        "<script>zzz()</script>",
        "\" zzz=\"",
        "' zzz='",
        "<!--",
        "-->",
        "&#60;zzz&#62;",
        "&lt;zzz&gt;",
        "javascript:zzz",
        "\r\n",
        "\u{202e}",
        "\u{0}",
        "<img src=x onerror=zzz>",
        "x",
        "/",
        "?#%",
        "{{ zzz }}",
        "]]>",
    ]);
    prop::collection::vec(pieces, 1..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn no_text_becomes_markup(text in hostile()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let fake = world(&text);
            let mut browser = Browser::of(&fake, "admin");
            let query = url::form_urlencoded::Serializer::new(String::new())
                .extend_pairs(["q", "label", "job", "user", "since", "state", "action", "object", "next"].map(|name| (name, &text)))
                .finish();
            let asked = ["/", "/executions", "/approvals", "/revisions", "/audit", "/sign-in"].map(|page| format!("{page}?{query}"));
            let path: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
            let named = ["jobs", "executions", "executors"].map(|page| format!("/{page}/{path}"));
            let more = ["/audit", "/revisions/support/1", "/revisions/support/2"].map(str::to_owned);
            let fixed = PAGES.map(str::to_owned);
            for page in fixed.iter().chain(&asked).chain(&named).chain(&more) {
                let answer = browser.get(page).await;
                let shown = !fixed.contains(page) || answer.status == StatusCode::OK || page == "/sign-in";
                assert!(shown, "{page} shows nothing: {}", answer.text);
                check(page, &answer.text);
            }
            let mut stranger = Browser::new(&fake);
            check("sign-in", &stranger.get(&asked[5]).await.text);
            check("sign-in", &stranger.post("/sign-in", &[("token", &text), ("next", &text)]).await.text);
            let token = browser.get("/").await.hidden("form_token");
            let fields = ["arg.order", "arg.count", "arg.reason", "arg.note", "arg.wait", "id", "timeout"].map(|name| (name, text.as_str()));
            let fields: Vec<_> = fields.into_iter().chain([("form_token", token.as_str())]).collect();
            check("form", &browser.post("/jobs/refund-order", &fields).await.text);
        });
    }
}

fn check(page: &str, text: &str) {
    for (tag, attributes) in markup(text) {
        let foreign = tag.contains("zzz") || tag.starts_with("!--") || (tag == "img" && !attributes.contains(&"alt".to_owned()));
        assert!(!foreign, "{page} has <{tag}>: {text}");
        for attribute in attributes {
            assert!(!attribute.contains("zzz") && !attribute.starts_with("on"), "{page} has {attribute} in <{tag}>: {text}");
        }
        assert!(tag != "script" || !text.contains("<script>"), "{page} has a script in it");
    }
    assert!(!text.contains("href=\"javascript:"), "{page}: {text}");
}
