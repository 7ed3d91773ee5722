//! Who the bearer of a verified token is: its claims, mapped to a user, a role and groups by the rules of its issuer.

use octavius_core::schedule::RESERVED_USERS;
use octavius_core::{CatalogName, Digest, Principal, Role};
use serde_json::{Map, Value};

use super::config::IssuerConfig;
use crate::admin::{MAX_GROUPS, MAX_NAME, is_name};
use crate::pattern::Pattern;

/// Longest id of a token in the audit trail, in bytes; a longer one is told by its digest.
const ID_BYTES: usize = 160;

/// What a token claims.
pub(super) type Claims = Map<String, Value>;

/// What a user is called: a text with claims in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Claim(String),
}

impl Template {
    /// Reads a text like `{repository}@{ref}`.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(at);
            let inner = from.strip_prefix('{').ok_or("has a } without its {")?;
            let (claim, after) = inner.split_once('}').ok_or("has a { without its }")?;
            if claim.is_empty() || claim.contains('{') {
                return Err("has a {} that names no claim");
            }
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            pieces.push(Piece::Claim(claim.to_owned()));
            rest = after;
        }
        if pieces.is_empty() {
            return Err("names no claim, as {sub} does: everybody would be the same user");
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        Ok(Self(pieces))
    }

    /// The claims that it names.
    fn claims(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Claim(claim) => Some(claim.as_str()),
            Piece::Text(_) => None,
        })
    }

    fn fill(&self, claims: &Claims) -> Result<String, String> {
        let filled = self.0.iter().map(|piece| match piece {
            Piece::Text(text) => Ok(text.clone()),
            Piece::Claim(name) => match claim(claims, name).and_then(scalar) {
                Some(text) if !text.is_empty() => Ok(text),
                _ => Err(format!("its claim {name}, of which the user's name is made, is missing or no text")),
            },
        });
        filled.collect()
    }
}

/// Who gets what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    /// Claims, each with the values of which it must have one.
    pub(super) when: Vec<(String, Vec<Pattern>)>,
    pub(super) role: Role,
    pub(super) groups: Vec<String>,
    /// Where an applier may apply; everywhere, if there is none.
    pub(super) catalogs: Vec<CatalogName>,
}

impl Rule {
    /// Whether it asks for something that not every token has.
    pub(super) fn asks(&self) -> bool {
        self.when.iter().any(|(_, patterns)| !patterns.iter().any(Pattern::is_any))
    }

    fn fits(&self, claims: &Claims) -> bool {
        self.when.iter().all(|(name, patterns)| {
            let values = claim(claims, name).map(texts).unwrap_or_default();
            values.iter().any(|value| patterns.iter().any(|pattern| pattern.matches(value)))
        })
    }
}

/// The claim of this name. One within another is named by both, with a point between them; names that have points themselves, as URLs do,
/// come first.
fn claim<'c>(claims: &'c Claims, name: &str) -> Option<&'c Value> {
    if let Some(value) = claims.get(name) {
        return Some(value);
    }
    name.match_indices('.').find_map(|(at, _)| match claims.get(&name[..at]) {
        Some(Value::Object(inner)) => claim(inner, &name[at + 1..]),
        _ => None,
    })
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A claim's values: those of a list are its elements.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(list) => list.iter().filter_map(scalar).collect(),
        value => scalar(value).into_iter().collect(),
    }
}

/// Who the bearer of a token with these claims is; otherwise why he is nobody.
pub(super) fn principal(issuer: &IssuerConfig, claims: &Claims) -> Result<Principal, String> {
    // Where an address is who one is, it must be one's own.
    let named = issuer.user.claims().chain(issuer.rules.iter().flat_map(|rule| rule.when.iter().map(|(name, _)| name.as_str())));
    let verified = |value: &Value| matches!(value, Value::Bool(true)) || value == "true";
    if named.into_iter().any(|name| name == "email") && claims.get("email_verified").is_some_and(|value| !verified(value)) {
        return Err("its issuer has not verified its email".to_owned());
    }
    let rule = issuer.rules.iter().find(|rule| rule.fits(claims)).ok_or("no rule of its issuer fits its claims")?;
    let user = format!("{}{}", issuer.prefix, issuer.user.fill(claims)?);
    if !is_name(&user) {
        return Err(format!("its user's name is not of 1 to {MAX_NAME} characters, none of them control characters"));
    }
    if user.starts_with(RESERVED_USERS) {
        return Err(format!("its user's name begins with {RESERVED_USERS}, as only the controller's own do"));
    }
    let mut groups = rule.groups.clone();
    if let Some(name) = &issuer.groups_claim {
        for group in claim(claims, name).map(texts).unwrap_or_default() {
            if !is_name(&group) {
                return Err(format!(
                    "a group in its claim {name} is not of 1 to {MAX_NAME} characters, none of them control characters"
                ));
            }
            if !groups.contains(&group) {
                groups.push(group);
            }
            if groups.len() > MAX_GROUPS {
                return Err(format!("it has more than {MAX_GROUPS} groups"));
            }
        }
    }
    let catalogs = rule.catalogs.clone();
    Ok(Principal { token_id: token_id(issuer, claims), user, role: rule.role, groups, catalogs })
}

/// What stands for a token's id: its own, or whose it is.
fn token_id(issuer: &IssuerConfig, claims: &Claims) -> String {
    let told = ["jti", "sub"].into_iter().find_map(|name| claims.get(name).and_then(scalar)).unwrap_or_default();
    let fits = told.len() <= ID_BYTES && !told.chars().any(char::is_control);
    let told = if fits { told } else { Digest::of(told.as_bytes()).to_string() };
    format!("jwt:{}:{told}", issuer.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn issuer(config: Value) -> IssuerConfig {
        let mut whole = json!({"name": "ci", "issuer": "https://ci.example", "audiences": ["octavius"]});
        let Value::Object(config) = config else { panic!("{config} is no object") };
        for (name, value) in config {
            whole[name] = value;
        }
        IssuerConfig::parse_all(&json!([whole]), std::path::Path::to_owned).unwrap().remove(0)
    }

    fn map(issuer: &IssuerConfig, claims: &Value) -> Result<Principal, String> {
        principal(issuer, claims.as_object().unwrap())
    }

    fn role(issuer: &IssuerConfig, claims: &Value) -> Option<Role> {
        map(issuer, claims).ok().map(|principal| principal.role)
    }

    #[test]
    fn the_first_rule_that_fits_counts() {
        let issuer = issuer(json!({"user": "{repository}", "rules": [
            {"when": {"repository": "acme/jobs", "ref": ["refs/heads/main", "refs/tags/v*"]}, "role": "applier"},
            {"when": {"repository": "acme/*", "environment.name": "prod", "protected": true, "run": 7}, "role": "user"},
            {"when": {"repository": "acme/*"}, "role": "viewer"},
        ]}));
        for (claims, expected) in [
            (json!({"repository": "acme/jobs", "ref": "refs/heads/main"}), Some(Role::Applier)),
            (json!({"repository": "acme/jobs", "ref": "refs/tags/v1"}), Some(Role::Applier)),
            (json!({"repository": "acme/jobs", "ref": "refs/heads/evil"}), Some(Role::Viewer)),
            (json!({"repository": "acme/jobs"}), Some(Role::Viewer)),
            (json!({"repository": "acme/jobs", "ref": {"x": "refs/heads/main"}}), Some(Role::Viewer)),
            (json!({"repository": "acme/x", "environment": {"name": "prod"}, "protected": true, "run": 7}), Some(Role::User)),
            (json!({"repository": "acme/x", "environment.name": "prod", "protected": "true", "run": "7"}), Some(Role::User)),
            (json!({"repository": "acme/x", "environment": "prod", "protected": true, "run": 7}), Some(Role::Viewer)),
            (json!({"repository": "acme/x", "environment": {"name": "prod"}, "protected": false, "run": 7}), Some(Role::Viewer)),
            (json!({"repository": "evil/jobs", "ref": "refs/heads/main"}), None),
            (json!({"repository": null}), None),
            (json!({}), None),
        ] {
            assert_eq!(role(&issuer, &claims), expected, "{claims}");
        }
    }

    #[test]
    fn a_list_fits_if_one_of_it_does_and_becomes_groups() {
        let issuer = issuer(json!({"user": "{email}", "groups_claim": "https://acme.com/claims.groups", "rules": [
            {"when": {"https://acme.com/claims.groups": "platform"}, "role": "admin", "groups": ["ops", "web"]},
            {"role": "user"},
        ]}));
        let claims = |groups: Value| json!({"email": "ann@acme.com", "https://acme.com/claims": {"groups": groups}});
        let ann = map(&issuer, &claims(json!(["web", "platform"]))).unwrap();
        assert_eq!((ann.role, ann.user.as_str()), (Role::Admin, "ci:ann@acme.com"));
        assert_eq!(ann.groups, ["ops", "web", "platform"]);
        let ann = map(&issuer, &claims(json!("web"))).unwrap();
        assert_eq!((ann.role, ann.groups), (Role::User, vec!["web".to_owned()]));
        let ann = map(&issuer, &json!({"email": "ann@acme.com"})).unwrap();
        assert_eq!((ann.role, ann.groups), (Role::User, Vec::<String>::new()));
        for (groups, expected) in [
            (json!(["a\nb"]), "a group in its claim https://acme.com/claims.groups is not of 1 to 128"),
            (json!([" "]), "is not of 1 to 128"),
            (json!((0..65).map(|n| n.to_string()).collect::<Vec<_>>()), "more than 64 groups"),
        ] {
            let told = map(&issuer, &claims(groups)).unwrap_err();
            assert!(told.contains(expected), "{told}");
        }
    }

    #[test]
    fn a_user_is_called_by_his_issuer_and_what_it_says_of_him() {
        let rules = json!([{"role": "user"}]);
        let named = |config: Value, claims: Value| {
            let mut config = config;
            config["rules"] = rules.clone();
            map(&issuer(config), &claims).map(|principal| principal.user)
        };
        assert_eq!(named(json!({}), json!({"sub": "ann"})).unwrap(), "ci:ann");
        assert_eq!(named(json!({"prefix": ""}), json!({"sub": "ann"})).unwrap(), "ann");
        let user = json!({"user": "{project.path}@{ref}!"});
        assert_eq!(named(user.clone(), json!({"project": {"path": "a/b"}, "ref": 7})).unwrap(), "ci:a/b@7!");
        for (config, claims, expected) in [
            (user, json!({"project": "a", "ref": "r"}), "claim project.path, of which the user's name is made, is missing"),
            (json!({}), json!({}), "claim sub, of which"),
            (json!({}), json!({"sub": ""}), "claim sub, of which"),
            (json!({}), json!({"sub": ["ann"]}), "claim sub, of which"),
            (json!({}), json!({"sub": "a\u{1b}[2J"}), "none of them control characters"),
            (json!({}), json!({"sub": "a".repeat(126)}), "1 to 128 characters"),
            (json!({"prefix": ""}), json!({"sub": "octavius:schedule"}), "begins with octavius:"),
            (json!({"prefix": ""}), json!({"sub": "  "}), "1 to 128 characters"),
            (json!({"user": "{email}"}), json!({"email": "a@b", "email_verified": false}), "not verified its email"),
            (json!({"user": "{email}"}), json!({"email": "a@b", "email_verified": "false"}), "not verified its email"),
        ] {
            let told = named(config, claims).unwrap_err();
            assert!(told.contains(expected), "{told}");
        }
        assert_eq!(named(json!({"user": "{email}"}), json!({"email": "a@b", "email_verified": true})).unwrap(), "ci:a@b");
    }

    #[test]
    fn a_token_has_an_id_in_the_trail_that_fits_there() {
        let issuer = issuer(json!({"rules": [{"role": "user"}]}));
        let id = |claims: Value| map(&issuer, &claims).unwrap().token_id;
        assert_eq!(id(json!({"sub": "ann", "jti": "7-f"})), "jwt:ci:7-f");
        assert_eq!(id(json!({"sub": "ann"})), "jwt:ci:ann");
        for odd in ["\n".to_owned(), "x".repeat(ID_BYTES + 1)] {
            let told = id(json!({"sub": "ann", "jti": odd.clone()}));
            assert!(told.starts_with("jwt:ci:") && !told.contains(&odd) && told.len() < 90, "{told}");
        }
    }

    #[test]
    fn templates_name_claims() {
        for (text, expected) in [
            ("ci", "names no claim"),
            ("", "names no claim"),
            ("{}", "names no claim"),
            ("{a", "{ without its }"),
            ("a}", "} without its {"),
            ("{a{b}}", "names no claim"),
            ("{a}}", "} without its {"),
        ] {
            assert!(Template::parse(text).unwrap_err().contains(expected), "{text}");
        }
        let parsed = Template::parse("{a}-{b.c}").unwrap();
        assert_eq!(parsed.claims().collect::<Vec<_>>(), ["a", "b.c"]);
    }
}
