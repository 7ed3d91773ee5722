//! What an executor offers to jobs of the secrets that it can read: from `executor_config.json`, the environment and flags.

use clap::Args;
use octavius_executor::{FoundOffer, SecretOffers};

use crate::daemon::Settings;
use crate::env;
use crate::error::{Failure, Outcome};
use crate::table;

/// The key of the configuration file, with the variable that stands over it.
pub const KEY: (&str, &[&str]) = ("secrets", &[env::SECRETS]);

/// Flags of what is offered.
#[derive(Debug, Args)]
pub struct OfferArgs {
    /// Let jobs have a secret of this executor, besides what its configuration offers: environment:NAME, file:PATH (with a slash at its end
    /// a folder), kubernetes:SECRET; may be repeated
    #[arg(long, value_name = "KIND:NAME", value_delimiter = ',', env = env::OFFER)]
    offer: Vec<String>,
}

impl OfferArgs {
    /// Adds to `offers` what the flags offer.
    ///
    /// # Errors
    /// Names the offer that is none.
    pub fn over(&self, mut offers: SecretOffers) -> Outcome<SecretOffers> {
        for offer in &self.offer {
            offers
                .add(offer)
                .map_err(|error| Failure::usage(format!("--offer {}", crate::sanitize::line(&error.to_string()))))?;
        }
        Ok(offers)
    }

    /// What the settings and the flags offer.
    ///
    /// # Errors
    /// Names what cannot be.
    pub fn offers(&self, settings: &Settings) -> Outcome<SecretOffers> {
        let offers = match settings.object(KEY.0)? {
            None => SecretOffers::default(),
            Some(object) => {
                serde_json::from_value(object).map_err(|error| settings.wrong(KEY.0, &format!("is wrong: {error}")))?
            }
        };
        offers.check().map_err(|error| settings.wrong(KEY.0, &format!("is wrong: {error}")))?;
        self.over(offers)
    }
}

/// What is offered and what was found of it, for people.
#[must_use]
pub fn render(found: &[FoundOffer], width: Option<u16>) -> String {
    if found.is_empty() {
        return "offers no secrets to jobs: `secrets` of its configuration, or --offer, names what jobs may have\n".to_owned();
    }
    let rows = found.iter().map(|FoundOffer { kind, offer, found, detail }| {
        let there = found.map_or("not known", |found| if found { "yes" } else { "no" });
        vec![(*kind).to_owned(), offer.clone(), there.to_owned(), detail.clone()]
    });
    table::render(&["OFFERED", "NAME", "FOUND", "DETAIL"], rows, width)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers(json: &str, flags: &[&str]) -> Result<SecretOffers, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("executor_config.json");
        std::fs::write(&path, json).unwrap();
        let settings = Settings::read(Some(&path), "none", &[KEY.0]).unwrap();
        let args = OfferArgs { offer: flags.iter().map(|&flag| flag.to_owned()).collect() };
        args.offers(&settings).map_err(|failure| failure.error.unwrap().to_string())
    }

    #[test]
    fn the_file_and_the_flags_offer_together_and_nothing_is_offered_by_itself() {
        assert_eq!(offers("{}", &[]).unwrap(), SecretOffers::default());
        let both = offers(
            r#"{"secrets": {"environment": ["PAY_*"], "files": ["/run/secrets/"]}}"#,
            &["kubernetes:a/b", "environment:X"],
        );
        let expected = SecretOffers {
            environment: vec!["PAY_*".into(), "X".into()],
            files: vec!["/run/secrets/".into()],
            kubernetes: vec!["a/b".into()],
        };
        assert_eq!(both.unwrap(), expected);
    }

    #[test]
    fn what_cannot_be_offered_is_named() {
        for (json, flags, expected) in [
            (r#"{"secrets": ["PAY"]}"#, vec![], "`secrets` is not a JSON object"),
            (r#"{"secrets": {"env": ["PAY"]}}"#, vec![], "`secrets` is wrong: unknown field `env`"),
            (r#"{"secrets": {"files": ["token"]}}"#, vec![], "`secrets` is wrong: \"token\" is not an absolute path"),
            ("{}", vec!["PAY"], "--offer \"PAY\" is not an offer"),
        ] {
            let told = offers(json, &flags).unwrap_err();
            assert!(told.contains(expected), "{told}");
        }
    }
}
