//! The client's side: which configuration is in force, and what it says.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use octavius_core::token::{Token, TokenKind};

use super::finding::{Area, Finding};
use crate::config::{self, Found, Located, Resolved};
use crate::{Context, env};

const AREA: Area = Area::Client;

/// What the configuration is, and what it comes to; the latter is missing where it comes to nothing.
pub(super) fn check(context: &Context) -> (Vec<Finding>, Option<Resolved>) {
    let mut findings = Vec::new();
    let located = match config::locate(&context.connect) {
        Ok(located) => located,
        Err(failure) => {
            return (
                vec![Finding::failed(AREA, "configuration", &failure, "put the file right, or name another one with --config")],
                None,
            );
        }
    };
    if let Some(located) = &located {
        findings.push(file(located));
    }
    match config::resolve(&context.connect) {
        Ok(resolved) => {
            if located.is_none() {
                findings.push(Finding::ok(AREA, "configuration", "no file; flags and environment name the controller"));
            }
            findings.extend(said(context, &resolved));
            (findings, Some(resolved))
        }
        Err(failure) => {
            let remedy = "octavius config --cp-host HOST:PORT --token-file FILE";
            findings.push(Finding::failed(AREA, if located.is_some() { "context" } else { "configuration" }, &failure, remedy));
            (findings, None)
        }
    }
}

/// Which file is in force, and why that one.
fn file(Located { path, found, file: _ }: &Located) -> Finding {
    let mode =
        std::fs::metadata(path).map(|found| format!(", mode {:03o}", found.permissions().mode() & 0o777)).unwrap_or_default();
    let why = match found {
        Found::Named => ", which is named",
        Found::Here => ", in the working directory",
        Found::Home => "",
    };
    let finding = Finding::ok(AREA, "configuration", format!("{}{mode}{why}", path.display()));
    // whoever works in a folder that has one may not know of it
    let hidden = config::home_path().filter(|home| *found == Found::Here && home.exists());
    match hidden {
        Some(home) => Finding::warning(
            AREA,
            "configuration",
            format!("{}, and {} is not read", finding.message, home.display()),
            format!("where the other is meant: --config {}", home.display()),
        ),
        None => finding,
    }
}

/// What the configuration comes to.
fn said(context: &Context, resolved: &Resolved) -> Vec<Finding> {
    let addresses: Vec<String> = resolved.addresses.iter().map(ToString::to_string).collect();
    let addresses = addresses.join(", ");
    // without a context it is called by its addresses
    let is_named = resolved.name.split(',').map(str::trim).ne(addresses.split(", "));
    let name = if is_named { format!("{}: ", resolved.name) } else { String::new() };
    let by = [
        (context.connect.cp_host.is_some(), "--cp-host"),
        (env::is_set(env::CP_HOST), env::CP_HOST),
        (env::is_set(env::SEED_CP_HOST), env::SEED_CP_HOST),
    ];
    let by = by.iter().find(|(given, _)| *given).map(|(_, by)| format!(", by {by}")).unwrap_or_default();
    let mut findings = vec![Finding::ok(AREA, "context", format!("{name}{addresses}{by}"))];
    for warning in &resolved.warnings {
        findings.push(Finding::warning(
            AREA,
            "token",
            warning.clone(),
            "octavius config --token-file FILE keeps it in the configuration",
        ));
    }
    findings.push(token(resolved.token.as_deref(), resolved.token_source.as_deref().unwrap_or("the configuration")));
    findings
}

/// What can be said of a token by itself.
fn token(token: Option<&str>, source: &str) -> Finding {
    const REMEDY: &str = "`octavius config --token-file FILE` sets one; an admin makes one with `octavius tokens create`";
    let Some(text) = token else { return Finding::problem(AREA, "token", "none is set", REMEDY) };
    // what an identity provider gives has three parts, of which the first is an object in base64
    if text.starts_with("eyJ") && text.split('.').count() == 3 {
        return Finding::ok(AREA, "token", format!("a JSON Web Token, from {source}"));
    }
    match text.parse::<Token>().map(|token| token.kind()) {
        Ok(TokenKind::User) => Finding::ok(AREA, "token", format!("a user's, from {source}")),
        Ok(TokenKind::Session) => Finding::warning(
            AREA,
            "token",
            format!("the one from {source} is a browser's session, which ends within hours"),
            REMEDY,
        ),
        Ok(TokenKind::Executor) => {
            Finding::problem(AREA, "token", format!("the one from {source} is an executor's, and no person's"), REMEDY)
        }
        Ok(TokenKind::Registration) => {
            Finding::problem(AREA, "token", format!("the one from {source} is for the registration of an executor"), REMEDY)
        }
        Err(_) => Finding::problem(AREA, "token", format!("the one from {source} is none of Octavius', or mistyped"), REMEDY),
    }
}

/// Whether only its owner can read a file that holds a secret; none where there is no such file.
pub(super) fn secret_file(area: Area, check: &'static str, path: &Path) -> Option<Finding> {
    let mode = match std::fs::metadata(path) {
        Ok(found) => found.permissions().mode(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            return Some(Finding::problem(area, check, format!("{}: {error}", path.display()), "make it readable to this user"));
        }
    };
    let shown = format!("{}, mode {:03o}", path.display(), mode & 0o777);
    Some(match mode & 0o077 {
        0 => Finding::ok(area, check, shown),
        _ => Finding::problem(area, check, format!("{shown}: others can read it"), format!("chmod 600 {}", path.display())),
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn a_token_is_known_by_its_looks_and_never_shown() {
        let made = |kind| Token::from_random(kind, &[7; 32]).reveal().to_owned();
        for (text, verdict, told) in [
            (Some(made(TokenKind::User)), Verdict::Ok, "a user's"),
            (Some(made(TokenKind::Executor)), Verdict::Problem, "an executor's"),
            (Some(made(TokenKind::Registration)), Verdict::Problem, "registration"),
            (Some("octu_hunter2".to_owned()), Verdict::Problem, "mistyped"),
            (Some("eyJhbGciOiJFUzI1NiJ9.e30.hunter2".to_owned()), Verdict::Ok, "JSON Web Token"),
            (None, Verdict::Problem, "none is set"),
        ] {
            let finding = token(text.as_deref(), "a file");
            assert!(finding.verdict == verdict && finding.message.contains(told), "{finding:?}");
            assert!(text.is_none_or(|text| !format!("{finding:?}").contains(&text[5..])), "{finding:?}");
        }
    }

    #[test]
    fn a_secret_that_others_can_read_is_a_problem_with_its_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.token");
        assert_eq!(secret_file(AREA, "token", &path), None);
        std::fs::write(&path, "secret").unwrap();
        for (mode, verdict) in [(0o600, Verdict::Ok), (0o400, Verdict::Ok), (0o640, Verdict::Problem)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(secret_file(AREA, "token", &path).unwrap().verdict, verdict, "{mode:o}");
        }
    }
}
