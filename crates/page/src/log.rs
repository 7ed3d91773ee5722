//! The log of an execution, on its page and on one of its own.

use axum::Router;

use crate::app::App;
use crate::assets::Asset;

/// Styles and scripts of the log alone.
pub(crate) const ASSETS: &[Asset] = &[];

/// The addresses that are about logs.
pub(crate) fn routes() -> Router<App> {
    Router::new()
}
