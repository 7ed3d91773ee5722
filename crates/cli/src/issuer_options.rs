//! Whose JSON Web Tokens a controller takes, as `controller_config.json` says under `issuers`.

use octavius_controller::IssuerConfig;
use serde_json::Value;

use crate::daemon::Settings;
use crate::error::Outcome;

/// What stands in the file's help.
pub const HELP: &str = "\
  issuers               whose JSON Web Tokens are taken: a person's identity provider, or a CI job's, which needs no stored secret then. A
                        list of objects:
      name          what it is called here; its users are called NAME:…
      issuer        what its tokens say under `iss`, to the letter
      audiences     for whom a token must be (`aud`): one of these
      jwks_file, jwks_url  where its keys are; without either, where ISSUER/.well-known/openid-configuration says; https, or http on 127.0.0.1
      ca_file       certificates that are trusted for that, beside the system's
      user          a user's name, with claims in it, like {email} [default: {sub}]
      prefix        what users' names begin with [default: NAME:]; \"\" makes of a claim whom a token of `tokens create` may name, too
      groups_claim  the claim that holds groups
      rules         who gets in, the first that fits: when (claims and what each must be, a value or a list of them, * for anything), role
                    (viewer, user, applier, admin), groups, catalogs (of an applier). A claim within another is named with a point between them. Who fits no rule is
                    refused, and the audit trail says why
      sign_in       how visitors of the web page sign in with it: client_id, client_secret_file (which others cannot read; none for a public
                    client), scopes [default: openid, email, profile]";

/// The issuers that the file names.
///
/// # Errors
/// Names the key that is wrong, with the numbers of its issuer and rule from 0; or the file of keys or certificates that cannot be used.
pub fn issuers(settings: &Settings) -> Outcome<Vec<IssuerConfig>> {
    let parse = |value: &Value| IssuerConfig::parse_all(value, |path| settings.beside(path));
    settings.objects("issuers", parse, IssuerConfig::check_files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    fn read(text: &str) -> Result<usize, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("controller_config.json");
        std::fs::write(&path, text).unwrap();
        std::fs::write(folder.path().join("keys.json"), r#"{"keys": []}"#).unwrap();
        std::fs::write(folder.path().join("broken.json"), "{").unwrap();
        let settings = Settings::read(Some(&path), "none", &crate::store_options::KEYS).unwrap();
        issuers(&settings).map(|issuers| issuers.len()).map_err(|failure| {
            assert_eq!(failure.exit, Exit::Usage);
            failure.error.unwrap().to_string().replace(&folder.path().display().to_string(), "/conf")
        })
    }

    #[test]
    fn issuers_are_read_and_what_is_wrong_is_told_with_its_file_and_key() {
        let one = |more: &str| {
            let text = format!(
                r#"{{"issuers": [{{"name": "ci", "issuer": "https://ci", "audiences": ["o"], "rules": [{{"role": "user"}}] {more}}}]}}"#
            );
            read(&text)
        };
        assert_eq!((read("{}"), read(r#"{"issuers": null}"#), read(r#"{"issuers": []}"#)), (Ok(0), Ok(0), Ok(0)));
        assert_eq!((one(""), one(r#", "jwks_file": "keys.json""#)), (Ok(1), Ok(1)));
        for (told, expected) in [
            (read(r#"{"issuers": "github"}"#), "/conf/controller_config.json: `issuers` is not a list"),
            (
                one(r#", "audience": "o""#),
                "/conf/controller_config.json: `issuers[0].audience` is no key that is known; did you mean",
            ),
            (one(r#", "user": "ci""#), "/conf/controller_config.json: `issuers[0].user` names no claim"),
            (
                one(r#", "jwks_file": "none.json""#),
                "/conf/controller_config.json: `issuers[0]` cannot be used: /conf/none.json: No such",
            ),
            (
                one(r#", "jwks_file": "broken.json""#),
                "/conf/controller_config.json: `issuers[0]` cannot be used: /conf/broken.json: not a",
            ),
            (
                one(r#", "ca_file": "keys.json""#),
                "/conf/controller_config.json: `issuers[0]` cannot be used: /conf/keys.json: it holds no",
            ),
        ] {
            let told = told.unwrap_err();
            assert!(told.starts_with(expected), "{told}, and not {expected}");
        }
    }
}
