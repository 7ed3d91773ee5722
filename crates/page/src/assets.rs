//! Styles and scripts. They are in the binary, and their names hold a digest of what is in them: browsers keep them for good.

use std::sync::LazyLock;

use axum::Router;
use axum::extract::Path;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use octavius_core::Digest;

use crate::app::App;
use crate::log;
use crate::trouble::Trouble;

/// A file that pages load.
#[derive(Clone, Copy)]
pub(crate) struct Asset {
    /// Its name in templates: `page.css`.
    pub(crate) name: &'static str,
    /// Its media type.
    pub(crate) kind: &'static str,
    /// What is in it.
    pub(crate) text: &'static str,
}

impl Asset {
    /// A style sheet.
    pub(crate) const fn css(name: &'static str, text: &'static str) -> Self {
        Self { name, kind: "text/css; charset=utf-8", text }
    }

    /// A script.
    pub(crate) const fn js(name: &'static str, text: &'static str) -> Self {
        Self { name, kind: "text/javascript; charset=utf-8", text }
    }
}

const PAGE: &[Asset] = &[
    Asset::css("page.css", include_str!("../assets/page.css")),
    Asset::js("page.js", include_str!("../assets/page.js")),
    Asset { name: "icon.svg", kind: "image/svg+xml", text: include_str!("../assets/icon.svg") },
];

/// Every asset, with the name that it is served by.
static SERVED: LazyLock<Vec<(String, Asset)>> = LazyLock::new(|| {
    let served = |asset: &Asset| {
        let digest = Digest::of(asset.text.as_bytes()).to_string();
        let digest = digest.get(..16).unwrap_or(&digest);
        let (stem, extension) = asset.name.split_once('.').unwrap_or((asset.name, ""));
        (format!("{stem}-{digest}.{extension}"), *asset)
    };
    PAGE.iter().chain(log::ASSETS).map(served).collect()
});

/// The address of the asset of this name, for templates.
pub(crate) fn href(name: &str) -> String {
    let served = SERVED.iter().find(|(_, asset)| asset.name == name);
    debug_assert!(served.is_some(), "no asset {name}");
    format!("/assets/{}", served.map_or(name, |(served, _)| served))
}

pub(crate) fn routes() -> Router<App> {
    Router::new().route("/assets/{name}", get(serve))
}

async fn serve(Path(name): Path<String>) -> Result<Response, Trouble> {
    let (_, asset) =
        SERVED.iter().find(|(served, _)| *served == name).ok_or_else(|| Trouble::not_found(&format!("file {name}")))?;
    let headers = [(CONTENT_TYPE, asset.kind), (CACHE_CONTROL, "public, max-age=31536000, immutable")];
    Ok((headers, asset.text).into_response())
}
