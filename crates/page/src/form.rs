//! What forms and addresses bring. A form is read only where it comes from this page: browsers say from where with `Sec-Fetch-Site` and
//! `Origin`, and a field holds what only a page for this very session can know.

use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts as _, Request};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::header::{CONTENT_TYPE, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, Uri};
use ring::hmac;
use url::form_urlencoded;

use crate::app::{App, PageOptions};
use crate::session::{Session, Visitor, authority};
use crate::trouble::Trouble;

/// Most bytes of a form with arguments: 256 KiB of them are allowed, and each byte may take three characters.
pub(crate) const LARGE_BYTES: usize = 1024 * 1024;

/// Most bytes of a form that anybody may send.
pub(crate) const SMALL_BYTES: usize = 16 * 1024;

/// How long a form may take to arrive.
const ARRIVAL: std::time::Duration = std::time::Duration::from_secs(30);

/// The field that holds the form token.
pub(crate) const TOKEN_FIELD: &str = "form_token";

/// What a form or an address says, in its order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fields(Vec<(String, String)>);

impl Fields {
    fn parse(bytes: &[u8]) -> Self {
        Self(form_urlencoded::parse(bytes).into_owned().collect())
    }

    /// Those of an address.
    pub(crate) fn of_query(query: Option<&str>) -> Self {
        Self::parse(query.unwrap_or_default().as_bytes())
    }

    /// The field's value without blanks around it; empty where it is not there.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.all(name).next().unwrap_or_default().trim()
    }

    /// The field's values, as they were sent.
    pub(crate) fn all<'f>(&'f self, name: &str) -> impl Iterator<Item = &'f str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl axum::extract::FromRequestParts<App> for Fields {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Self::Rejection> {
        Ok(Self::of_query(parts.uri.query()))
    }
}

fn key(session: &str) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, session.as_bytes())
}

/// What the tag of a form token is made of, so that it is good for nothing else.
const LABEL: &[u8] = b"octavius page form 1";

/// The form token of the session with this token.
pub(crate) fn token(session: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(hmac::sign(&key(session), LABEL))
}

fn is_token_of(session: &str, given: &str) -> bool {
    BASE64_URL_SAFE_NO_PAD.decode(given).is_ok_and(|tag| hmac::verify(&key(session), LABEL, &tag).is_ok())
}

/// Whether the browser says that the form was sent by a page of this one, as far as it says anything; one that says nothing is refused.
fn comes_from_here(headers: &HeaderMap, uri: &Uri, options: &PageOptions) -> bool {
    let text = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    let site = text("sec-fetch-site").map(|site| site == "same-origin");
    let origin = headers.get(ORIGIN).map(|_| {
        let from = text(ORIGIN.as_str()).unwrap_or_default();
        let scheme = if options.secure { "https://" } else { "http://" };
        let is_here = |host: &str| authority(headers, uri).is_some_and(|here| here.eq_ignore_ascii_case(host));
        options.origin.as_deref() == Some(from) || from.strip_prefix(scheme).is_some_and(is_here)
    });
    site.or(origin).is_some() && site != Some(false) && origin != Some(false)
}

/// Reads a form of at most so many bytes, where it comes from this page.
pub(crate) async fn read(request: Request, most_bytes: usize, options: &PageOptions) -> Result<(Parts, Fields), Trouble> {
    let (parts, body) = request.into_parts();
    if parts.method != Method::POST || !comes_from_here(&parts.headers, &parts.uri, options) {
        let told = Trouble::refused("this form was not sent by a page of this controller");
        return Err(told.hint("load the page again; behind a proxy, `page_url` and `page_behind_tls` say how browsers reach it"));
    }
    let kind = parts.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.starts_with("application/x-www-form-urlencoded") {
        return Err(Trouble::of(StatusCode::UNSUPPORTED_MEDIA_TYPE, "a form is application/x-www-form-urlencoded"));
    }
    let bytes = tokio::time::timeout(ARRIVAL, to_bytes(body, most_bytes)).await;
    let bytes = bytes.map_err(|_| Trouble::of(StatusCode::REQUEST_TIMEOUT, "the form took too long to arrive"))?;
    let too_large = |_| Trouble::of(StatusCode::PAYLOAD_TOO_LARGE, format!("a form here has at most {} KiB", most_bytes / 1024));
    Ok((parts, Fields::parse(&bytes.map_err(too_large)?)))
}

/// A form that somebody who is signed in has sent from a page of theirs.
pub(crate) struct Posted {
    /// Who.
    pub(crate) visitor: Visitor,
    /// What it says.
    pub(crate) fields: Fields,
    /// The request.
    pub(crate) parts: Parts,
}

impl FromRequest<App> for Posted {
    type Rejection = Trouble;

    async fn from_request(request: Request, app: &App) -> Result<Self, Trouble> {
        let (mut parts, body) = request.into_parts();
        let session = Session::from_request_parts(&mut parts, app).await?;
        let visitor = Visitor::from_request_parts(&mut parts, app).await?;
        let (parts, fields) = read(Request::from_parts(parts, body), LARGE_BYTES, &app.options).await?;
        if !is_token_of(session.token(), fields.get(TOKEN_FIELD)) {
            return Err(Trouble::refused("this form is of another session, or was not sent by a page of this controller"));
        }
        Ok(Self { visitor, fields, parts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comes(headers: &[(&'static str, &str)]) -> bool {
        comes_by(headers, true, None)
    }

    fn comes_by(headers: &[(&'static str, &str)], secure: bool, origin: Option<&str>) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let options = PageOptions { secure, origin: origin.map(str::to_owned), ..PageOptions::default() };
        comes_from_here(&map, &Uri::from_static("/jobs/a"), &options)
    }

    #[test]
    fn a_form_of_another_site_is_told_by_what_the_browser_says() {
        let host = ("host", "octavius.example:3000");
        assert!(comes(&[host, ("origin", "https://octavius.example:3000")]));
        assert!(comes(&[host, ("sec-fetch-site", "same-origin")]));
        for foreign in [
            &[host][..],
            &[host, ("origin", "null")],
            &[host, ("origin", "https://evil.example")],
            &[host, ("origin", "https://octavius.example")],
            &[host, ("origin", "http://octavius.example:3000")],
            &[host, ("origin", "https://octavius.example:3000"), ("sec-fetch-site", "cross-site")],
            &[host, ("origin", "https://evil.example"), ("sec-fetch-site", "same-origin")],
            &[host, ("sec-fetch-site", "same-site")],
            &[("origin", "https://octavius.example:3000")],
        ] {
            assert!(!comes(foreign), "{foreign:?}");
        }
        assert!(comes_by(&[host, ("origin", "http://octavius.example:3000")], false, None));
        // Something before it asks by another name than browsers do.
        let inside = [("host", "10.0.0.7:3001"), ("origin", "https://octavius.example")];
        assert!(comes_by(&inside, true, Some("https://octavius.example")) && !comes_by(&inside, true, None));
    }

    #[test]
    fn a_form_token_is_good_for_its_session_alone() {
        let of_a = token("octs_a");
        assert!(is_token_of("octs_a", &of_a));
        for wrong in ["", &token("octs_b"), &of_a[1..], "not base64!"] {
            assert!(!is_token_of("octs_a", wrong), "{wrong}");
        }
    }
}
