//! Which issuers are trusted, and with what: as `controller_config.json` says it under `issuers`.

use std::path::{Path, PathBuf};

use octavius_core::{CatalogName, Role};
use serde_json::Value;
use url::Url;

use super::jwk::KeySet;
use super::rules::{Rule, Template};
use super::sign_in::SignInConfig;
use crate::admin::{MAX_GROUPS, is_name};
use crate::config::{Object, Result, Telling, list, wrong};
use crate::outbound;
use crate::pattern::Pattern;
use crate::private;

/// Most issuers, and most rules of one.
const ISSUERS: usize = 32;
const RULES: usize = 256;

/// Longest beginning of its users' names.
const PREFIX_CHARS: usize = 33;

/// What users of an issuer must not seem to be: the controller's own.
const RESERVED: &str = "octavius";

/// Issuers whose tokens everybody in the world can have. Each rule of theirs asks for something.
const PUBLIC: [&str; 3] = ["https://token.actions.githubusercontent.com", "https://gitlab.com", "https://accounts.google.com"];

/// Where the public keys of an issuer are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KeysFrom {
    /// A file that is read again when it changes.
    File(PathBuf),
    /// A URL, asked now and then.
    Url(Url),
    /// Where the issuer itself says: a URL of its own tells it.
    Discovery(Url),
}

/// An issuer of JSON Web Tokens that is trusted, where its keys are, and what its users are here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerConfig {
    /// What it is called here.
    pub(super) name: String,
    /// What its tokens call it.
    pub(super) issuer: String,
    /// For whom a token must be.
    pub(super) audiences: Vec<String>,
    pub(super) keys: KeysFrom,
    /// Certificates that are trusted beside the system's where its keys are fetched.
    pub(super) ca_file: Option<PathBuf>,
    pub(super) user: Template,
    /// What its users' names begin with.
    pub(super) prefix: String,
    pub(super) groups_claim: Option<String>,
    pub(super) rules: Vec<Rule>,
    /// How visitors of the web page sign in with it, where they may.
    pub(super) sign_in: Option<SignInConfig>,
}

impl IssuerConfig {
    /// Reads the value of the key `issuers`: a list of objects. `beside` says where a relative path begins.
    ///
    /// # Errors
    /// Names the key that is wrong, with the numbers of its issuer and rule from 0.
    pub fn parse_all(value: &Value, beside: impl Fn(&Path) -> PathBuf) -> Result<Vec<Self>> {
        // Of two that have the same tokens, nobody could say whose a token is.
        let telling: [Telling<Self>; 2] = [("name", |issuer| &issuer.name), ("issuer", |issuer| &issuer.issuer)];
        list("issuers", value, ISSUERS, &telling, |at, value| Self::parse(at, value, &beside))
    }

    fn parse(at: &str, value: &Value, beside: impl Fn(&Path) -> PathBuf) -> Result<Self> {
        const KEYS: [&str; 11] = [
            "name",
            "issuer",
            "audiences",
            "jwks_file",
            "jwks_url",
            "ca_file",
            "user",
            "prefix",
            "groups_claim",
            "rules",
            "sign_in",
        ];
        let object = Object::of(at, value, &KEYS)?;
        let name = object.name()?;
        if name == RESERVED {
            return Err(wrong(
                &object.place("name"),
                format!("is \"{RESERVED}\": its users would seem to be the controller's own"),
            ));
        }
        let issuer = object.required("issuer")?;
        let audiences = object.texts("audiences")?;
        if audiences.is_empty() {
            return Err(wrong(&object.place("audiences"), "names nobody: tokens for others would be taken"));
        }
        let sign_in =
            object.get("sign_in").map(|value| parse_sign_in(&object.place("sign_in"), value, &audiences, &beside)).transpose()?;
        if sign_in.is_some() {
            fetched(&object.place("issuer"), &discovery(issuer))?;
        }
        let keys = match (object.text("jwks_file")?, object.text("jwks_url")?) {
            (Some(_), Some(_)) => return Err(wrong(&object.place("jwks_url"), "stands beside jwks_file: one of them is enough")),
            (Some(file), None) => KeysFrom::File(beside(Path::new(file))),
            (None, Some(url)) => KeysFrom::Url(fetched(&object.place("jwks_url"), url)?),
            (None, None) => KeysFrom::Discovery(fetched(&object.place("issuer"), &discovery(issuer))?),
        };
        let ca_file = object.text("ca_file")?.map(|file| beside(Path::new(file)));
        if ca_file.is_some() && matches!(keys, KeysFrom::File(_)) {
            return Err(wrong(&object.place("ca_file"), "has no use beside jwks_file"));
        }
        let user = object.text("user")?.unwrap_or("{sub}");
        let user = Template::parse(user).map_err(|problem| wrong(&object.place("user"), problem))?;
        let prefix = object.text("prefix")?.map_or_else(|| format!("{name}:"), str::to_owned);
        if prefix.chars().any(char::is_control) || prefix.chars().count() > PREFIX_CHARS {
            return Err(wrong(&object.place("prefix"), "is too long, or has control characters"));
        }
        let place = object.place("rules");
        let rules = object.get("rules").and_then(Value::as_array).filter(|rules| !rules.is_empty() && rules.len() <= RULES);
        let rules = rules.ok_or_else(|| wrong(&place, format!("is not a list of 1 to {RULES} rules: nobody would get in")))?;
        let rules = rules.iter().enumerate().map(|(index, rule)| {
            let at = format!("{place}[{index}]");
            let rule = parse_rule(&at, rule)?;
            if PUBLIC.contains(&issuer.trim_end_matches('/')) && !rule.asks() {
                return Err(wrong(&at, "fits everybody in the world who has an account there: ask for something in `when`"));
            }
            Ok(rule)
        });
        Ok(Self {
            name: name.to_owned(),
            issuer: issuer.to_owned(),
            audiences,
            keys,
            ca_file,
            user,
            prefix,
            groups_claim: object.text("groups_claim")?.filter(|claim| !claim.is_empty()).map(str::to_owned),
            rules: rules.collect::<Result<_>>()?,
            sign_in,
        })
    }

    /// Where the issuer tells of itself; none where it is named by no URL.
    pub(super) fn about(&self) -> Option<Url> {
        Url::parse(&discovery(&self.issuer)).ok()
    }

    /// Whether visitors of the web page sign in with it.
    #[must_use]
    pub fn is_to_sign_in_with(&self) -> bool {
        self.sign_in.is_some()
    }

    /// Looks whether the files that it names can be used, so that a slip is told when a controller starts.
    ///
    /// # Errors
    /// Where one of them cannot be read, or is not what it should be.
    pub fn check_files(&self) -> std::result::Result<(), String> {
        let told = |path: &Path, problem: &dyn std::fmt::Display| format!("{}: {problem}", path.display());
        if let KeysFrom::File(path) = &self.keys {
            let bytes = std::fs::read(path).map_err(|error| told(path, &error))?;
            KeySet::parse(&bytes).map_err(|problem| told(path, &format!("not a set of keys: {problem}")))?;
        }
        if let Some(path) = self.sign_in.as_ref().and_then(|sign_in| sign_in.client_secret_file.as_ref()) {
            private::read(path).map_err(|problem| told(path, &problem))?;
        }
        if let Some(path) = &self.ca_file {
            outbound::certificates(path).map_err(|problem| told(path, &problem))?;
        }
        Ok(())
    }
}

/// Where an issuer tells of itself.
fn discovery(issuer: &str) -> String {
    format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'))
}

fn parse_sign_in(at: &str, value: &Value, audiences: &[String], beside: impl Fn(&Path) -> PathBuf) -> Result<SignInConfig> {
    let object = Object::of(at, value, &["client_id", "client_secret_file", "scopes"])?;
    let client_id = object.required("client_id")?;
    if !audiences.iter().any(|audience| audience == client_id) {
        return Err(wrong(&object.place("client_id"), "is not among `audiences`: nobody who signs in would be let in"));
    }
    let scopes = object.texts("scopes")?;
    if !scopes.is_empty() && !scopes.iter().any(|scope| scope == "openid") {
        return Err(wrong(&object.place("scopes"), "has no \"openid\" in it: the issuer would not say who somebody is"));
    }
    let client_secret_file = object.text("client_secret_file")?.map(|file| beside(Path::new(file)));
    Ok(SignInConfig { client_id: client_id.to_owned(), client_secret_file, scopes })
}

fn parse_rule(at: &str, value: &Value) -> Result<Rule> {
    const ROLES: [Role; 4] = [Role::Viewer, Role::User, Role::Applier, Role::Admin];
    let object = Object::of(at, value, &["when", "role", "groups", "catalogs"])?;
    let mut when = Vec::new();
    if let Some(value) = object.get("when") {
        let place = object.place("when");
        let conditions = value.as_object().ok_or_else(|| wrong(&place, "is not a map of claims to values"))?;
        for (claim, value) in conditions {
            let pattern = |value: &Value| match value {
                Value::String(text) => Some(Pattern::new(text)),
                Value::Number(number) => Some(Pattern::new(&number.to_string())),
                Value::Bool(value) => Some(Pattern::new(&value.to_string())),
                Value::Null | Value::Array(_) | Value::Object(_) => None,
            };
            let patterns = match value {
                Value::Array(list) => list.iter().map(pattern).collect::<Option<Vec<_>>>(),
                value => pattern(value).map(|pattern| vec![pattern]),
            };
            let patterns = patterns.filter(|patterns| !patterns.is_empty() && !claim.is_empty());
            let patterns =
                patterns.ok_or_else(|| wrong(&format!("{place}.{claim}"), "is neither a value nor a list of values"))?;
            when.push((claim.clone(), patterns));
        }
    }
    let role = object.required("role")?;
    let role = ROLES.into_iter().find(|known| known.as_str() == role);
    let role = role.ok_or_else(|| wrong(&object.place("role"), "is not viewer, user, applier or admin"))?;
    let groups = object.texts("groups")?;
    if groups.len() > MAX_GROUPS || !groups.iter().all(|group| is_name(group)) {
        return Err(wrong(
            &object.place("groups"),
            "has too many of them, or one whose name is too long or has control characters",
        ));
    }
    let place = object.place("catalogs");
    let catalogs = object.texts("catalogs")?.into_iter().map(|name| {
        CatalogName::new(&name).map_err(|error| wrong(&place, format!("has \"{}\" in it: {error}", name.escape_debug())))
    });
    let catalogs = catalogs.collect::<Result<Vec<_>>>()?;
    if !catalogs.is_empty() && role != Role::Applier {
        // A limit that nobody keeps would be taken for one.
        return Err(wrong(&place, "is for appliers alone"));
    }
    // A list that is there and empty says that there are none, and no catalogues mean all of them.
    if catalogs.is_empty() && object.get("catalogs").is_some() {
        return Err(wrong(&place, "is empty: leave it out where an applier may apply everywhere"));
    }
    Ok(Rule { when, role, groups, catalogs })
}

/// A URL that keys may be fetched from: whoever can change what it answers can be anybody.
fn fetched(at: &str, text: &str) -> Result<Url> {
    let url = Url::parse(text).map_err(|error| wrong(at, format!("is no URL: {error}")))?;
    if !outbound::is_safe(&url) {
        return Err(wrong(at, "is no https:// URL, nor one of http:// on loopback, without user and fragment"));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(issuers: &Value) -> Result<Vec<IssuerConfig>> {
        IssuerConfig::parse_all(issuers, |path| Path::new("/conf").join(path))
    }

    fn github() -> Value {
        json!({
            "name": "github", "issuer": "https://token.actions.githubusercontent.com", "audiences": ["octavius"], "user": "{repository}",
            "rules": [{"when": {"repository": "acme/jobs", "ref": "refs/heads/main"}, "role": "applier", "groups": ["ci"]}],
        })
    }

    #[test]
    fn keys_come_from_a_file_a_url_or_where_the_issuer_says() {
        let with = |name: &str, value: &str| {
            let mut config = github();
            config[name] = value.into();
            parse(&json!([config])).map(|mut issuers| issuers.remove(0).keys)
        };
        let url = |text: &str| Url::parse(text).unwrap();
        assert_eq!(with("jwks_file", "keys.json"), Ok(KeysFrom::File("/conf/keys.json".into())));
        assert_eq!(with("jwks_url", "https://a/keys"), Ok(KeysFrom::Url(url("https://a/keys"))));
        assert_eq!(with("jwks_url", "http://127.0.0.1:1/k"), Ok(KeysFrom::Url(url("http://127.0.0.1:1/k"))));
        assert_eq!(with("jwks_url", "http://[::1]:1/k"), Ok(KeysFrom::Url(url("http://[::1]:1/k"))));
        let discovery = "https://acme.okta.com/oauth2/.well-known/openid-configuration";
        for issuer in ["https://acme.okta.com/oauth2", "https://acme.okta.com/oauth2/"] {
            assert_eq!(with("issuer", issuer), Ok(KeysFrom::Discovery(url(discovery))));
        }
        for bad in
            ["http://a/keys", "http://localhost/keys", "file:///keys", "ftp://a/k", "https://ann:pw@a/k", "https://a/k#b", "a"]
        {
            let told = with("jwks_url", bad).unwrap_err();
            assert!(told.at == "issuers[0].jwks_url" && !told.problem.contains("pw"), "{bad}: {told}");
        }
        assert_eq!(with("issuer", "acme").unwrap_err().at, "issuers[0].issuer");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_key_and_its_number() {
        let but = |change: &dyn Fn(&mut Value)| {
            let mut config = github();
            change(&mut config);
            let ok = json!({"name": "ok", "issuer": "https://ok", "audiences": "o", "rules": [{"role": "user"}]});
            parse(&json!([ok, config])).unwrap_err().to_string()
        };
        let set = |name: &'static str, value: Value| but(&move |config: &mut Value| config[name] = value.clone());
        let rule = |rule: Value| set("rules", json!([{"role": "user", "when": {"a": "b"}}, rule]));
        for (told, expected) in [
            (parse(&json!({})).unwrap_err().to_string(), "`issuers` is not a list"),
            (parse(&json!(["a"])).unwrap_err().to_string(), "`issuers[0]` is not a JSON object"),
            (set("nam", json!("a")), "`issuers[1].nam` is no key that is known; did you mean `name`?"),
            (set("name", json!(null)), "`issuers[1].name` is missing"),
            (set("name", json!("Git Hub")), "`issuers[1].name` is not of 1 to 32"),
            (set("name", json!("octavius")), "`issuers[1].name` is \"octavius\": its users"),
            (set("name", json!("ok")), "`issuers[1].name` is there twice"),
            (set("issuer", json!("https://ok")), "`issuers[1].issuer` is there twice"),
            (set("audiences", json!([])), "`issuers[1].audiences` names nobody"),
            (set("audiences", json!([""])), "`issuers[1].audiences` has an empty text"),
            (set("audiences", json!([7])), "`issuers[1].audiences` is not a list of texts"),
            (set("user", json!("ci")), "`issuers[1].user` names no claim"),
            (set("prefix", json!("a\n")), "`issuers[1].prefix` is too long"),
            (set("rules", json!([])), "`issuers[1].rules` is not a list of 1 to 256 rules"),
            (set("groups_claim", json!(["a"])), "`issuers[1].groups_claim` is not a text"),
            (
                but(&|config| (config["jwks_file"], config["jwks_url"]) = (json!("a"), json!("https://a"))),
                "`issuers[1].jwks_url` stands beside jwks_file",
            ),
            (
                but(&|config| (config["jwks_file"], config["ca_file"]) = (json!("a"), json!("b"))),
                "`issuers[1].ca_file` has no use",
            ),
            (rule(json!({"when": {"a": "b"}})), "`issuers[1].rules[1].role` is missing"),
            (rule(json!({"when": {"a": "b"}, "role": "executor"})), "`issuers[1].rules[1].role` is not viewer, user"),
            (
                rule(json!({"when": {"a": "b"}, "roles": "user"})),
                "`issuers[1].rules[1].roles` is no key that is known; did you mean",
            ),
            (rule(json!({"when": "a", "role": "user"})), "`issuers[1].rules[1].when` is not a map"),
            (rule(json!({"when": {"a": []}, "role": "user"})), "`issuers[1].rules[1].when.a` is neither a value nor"),
            (rule(json!({"when": {"a": {}}, "role": "user"})), "`issuers[1].rules[1].when.a` is neither a value nor"),
            (rule(json!({"when": {"a": "b"}, "role": "user", "groups": ["\n"]})), "`issuers[1].rules[1].groups` has too many"),
            (rule(json!({"role": "user"})), "`issuers[1].rules[1]` fits everybody in the world"),
            (rule(json!({"when": {"repository": "*"}, "role": "user"})), "`issuers[1].rules[1]` fits everybody in the world"),
            (rule(json!({"when": {"a": ["b", "**"]}, "role": "user"})), "`issuers[1].rules[1]` fits everybody in the world"),
            (
                rule(json!({"when": {"a": "b"}, "role": "applier", "catalogs": ["a b"]})),
                "`issuers[1].rules[1].catalogs` has \"a b\" in it",
            ),
            (rule(json!({"when": {"a": "b"}, "role": "applier", "catalogs": []})), "`issuers[1].rules[1].catalogs` is empty"),
            (
                rule(json!({"when": {"a": "b"}, "role": "user", "catalogs": ["a"]})),
                "`issuers[1].rules[1].catalogs` is for appliers alone",
            ),
        ] {
            assert!(told.starts_with(expected), "{told}, and not {expected}");
        }
    }

    #[test]
    fn files_are_looked_at_beforehand() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let mut config = github();
        config["jwks_file"] = path.to_str().unwrap().into();
        let check = || parse(&json!([config])).unwrap()[0].check_files();
        assert!(check().unwrap_err().contains("keys.json: "));
        std::fs::write(&path, "{}").unwrap();
        assert!(check().unwrap_err().contains("it has no list `keys`"));
        std::fs::write(&path, r#"{"keys":[]}"#).unwrap();
        assert_eq!(check(), Ok(()));
    }
}
