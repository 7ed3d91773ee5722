//! A browser, as far as these tests need one: it keeps cookies, says where its forms come from, and follows nothing by itself.

use axum::Router;
use axum::body::{Body, to_bytes};
use http::header::{CONTENT_TYPE, COOKIE, HOST, LOCATION, ORIGIN, SET_COOKIE};
use http::{HeaderMap, Method, Request, StatusCode};
use octavius_page::{OpenCode, PageOptions, router};
use tower::ServiceExt as _;
use url::form_urlencoded;

use crate::fake::Fake;

/// The address that the page is reached at.
pub(crate) const HERE: &str = "octavius.example:3000";

/// The code that `/open` takes, and the token of whom it signs in.
pub(crate) const CODE: (&str, &str) = ("a-code-of-a-process", "octu_admin");

pub(crate) struct Browser {
    page: Router,
    scheme: &'static str,
    cookie: Option<String>,
}

/// What a page answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    /// Where it sends the browser.
    pub(crate) fn location(&self) -> &str {
        self.header(LOCATION.as_str())
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    /// The value of the first hidden field of this name.
    pub(crate) fn hidden(&self, name: &str) -> String {
        let begin = format!("name=\"{name}\" value=\"");
        let (_, rest) = self.text.split_once(&begin).unwrap_or_else(|| panic!("no field {name} in {}", self.text));
        rest.split('"').next().unwrap().to_owned()
    }

    /// The element of this id, from its tag to the end of the line.
    pub(crate) fn tag(&self, id: &str) -> &str {
        let at = self.text.find(&format!("id=\"{id}\"")).unwrap_or_else(|| panic!("no element {id} in {}", self.text));
        let begin = self.text[..at].rfind('<').unwrap();
        let end = self.text[at..].find('>').unwrap();
        &self.text[begin..=at + end]
    }

    /// The sentence at the top of the page, as somebody hears it: without its markup.
    pub(crate) fn sentence(&self) -> String {
        let (_, rest) = self.text.split_once("<p class=\"sentence\"").unwrap_or_else(|| panic!("no sentence in {}", self.text));
        let (markup, _) = rest.split_once("</p>").unwrap();
        markup.split('<').map(|piece| piece.split_once('>').unwrap().1).collect()
    }
}

impl Browser {
    pub(crate) fn new(fake: &Fake) -> Self {
        Self::over_tls(fake, false)
    }

    pub(crate) fn over_tls(fake: &Fake, secure: bool) -> Self {
        let options = PageOptions {
            secure,
            origin: None,
            open: Some(OpenCode::new(CODE.0, || Some(CODE.1.to_owned()))),
            providers: Vec::new(),
        };
        let scheme = if secure { "https" } else { "http" };
        Self { page: router(fake.rpcs(), options), scheme, cookie: None }
    }

    /// Signed in as somebody of this role.
    pub(crate) fn of(fake: &Fake, role: &str) -> Self {
        Self { cookie: Some(format!("octavius-3000=octs_{role}")), ..Self::new(fake) }
    }

    pub(crate) async fn send(&mut self, mut request: Request<Body>) -> Answer {
        request.headers_mut().insert(HOST, HERE.parse().unwrap());
        if let Some(cookie) = &self.cookie {
            request.headers_mut().insert(COOKIE, cookie.parse().unwrap());
        }
        let (parts, body) = self.page.clone().oneshot(request).await.unwrap().into_parts();
        if let Some(cookie) = parts.headers.get(SET_COOKIE) {
            let cookie = cookie.to_str().unwrap();
            let gone = cookie.contains("Max-Age=0");
            self.cookie = (!gone).then(|| cookie.split(';').next().unwrap().to_owned());
        }
        let text = String::from_utf8(to_bytes(body, usize::MAX).await.unwrap().to_vec()).unwrap();
        Answer { status: parts.status, headers: parts.headers, text }
    }

    pub(crate) async fn get(&mut self, address: &str) -> Answer {
        self.send(Request::get(address).body(Body::empty()).unwrap()).await
    }

    /// Sends a form as a page of the controller would.
    pub(crate) async fn post(&mut self, address: &str, fields: &[(&str, &str)]) -> Answer {
        self.post_from(address, fields, &[(ORIGIN.as_str(), &format!("{}://{HERE}", self.scheme))]).await
    }

    /// Sends a form with these headers.
    pub(crate) async fn post_from(&mut self, address: &str, fields: &[(&str, &str)], headers: &[(&str, &str)]) -> Answer {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let mut request = Request::builder().method(Method::POST).uri(address);
        request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Body::from(body)).unwrap()).await
    }

    /// The cookie that it keeps, `NAME=VALUE`.
    pub(crate) fn cookie(&self) -> Option<&str> {
        self.cookie.as_deref()
    }
}
