//! What surrounds every page: who visits, where they are, and how a template becomes an answer.

use askama::Template;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, LOCATION};
use octavius_core::{Permission, Role, Timestamp};
use octavius_proto::v1;

use crate::trouble::Trouble;

/// Who visits, as the controller says.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    pub(crate) user: String,
    pub(crate) role: Option<Role>,
    pub(crate) groups: Vec<String>,
    /// What the forms of this session carry.
    pub(crate) form_token: String,
    /// The time, by the controller's clock: pages tell relative times from it.
    pub(crate) now: Timestamp,
    /// The controller's version.
    pub(crate) version: String,
}

impl Who {
    pub(crate) fn new(told: v1::WhoAmIResponse, form_token: String) -> Self {
        let now = told.now.as_ref().and_then(|now| octavius_proto::timestamp("now", now).ok());
        Self {
            role: Role::try_from(told.role()).ok(),
            user: told.user,
            groups: told.groups,
            form_token,
            now: now.unwrap_or_else(Timestamp::now),
            version: told.version,
        }
    }

    /// Whether their role has the permission. What is not offered for want of it, the controller would refuse.
    pub(crate) fn may(&self, permission: Permission) -> bool {
        self.role.is_some_and(|role| role.may(permission))
    }

    /// Whether they may run jobs.
    pub(crate) fn runs(&self) -> bool {
        self.may(Permission::Execute)
    }

    /// Whether they do everything that people do.
    pub(crate) fn administers(&self) -> bool {
        self.may(Permission::Administer)
    }

    /// Their role as output writes it.
    pub(crate) fn role_name(&self) -> &'static str {
        self.role.map_or("unknown", Role::as_str)
    }
}

/// An answer of a template.
pub(crate) fn html(status: StatusCode, page: &impl Template) -> Result<Response, Trouble> {
    let text = page.render().map_err(|error| {
        tracing::error!(%error, "a page could not be written");
        Trouble::of(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be written")
    })?;
    Ok((status, [(CONTENT_TYPE, "text/html; charset=utf-8")], text).into_response())
}

/// Sends the visitor to another page of this one.
pub(crate) fn see(path: &str) -> Response {
    (StatusCode::SEE_OTHER, [(LOCATION, path)]).into_response()
}
