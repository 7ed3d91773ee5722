//! What the tests of this folder share.

use octavius_tests::jwt;
use serde_json::{Value, json};

use super::IssuerConfig;

/// A key that signs tokens; see [`jwt::Signer`].
pub(super) struct Signer(pub(super) jwt::Signer);

impl Signer {
    pub(super) fn rsa(kid: &str) -> Self {
        Self(jwt::Signer::rsa(kid).unwrap())
    }

    pub(super) fn p256(kid: &str) -> Self {
        Self(jwt::Signer::p256(kid).unwrap())
    }

    pub(super) fn ed25519(kid: &str) -> Self {
        Self(jwt::Signer::ed25519(kid).unwrap())
    }

    pub(super) fn alg(&self) -> &'static str {
        self.0.alg()
    }

    pub(super) fn jwk(&self) -> Value {
        self.0.jwk()
    }

    pub(super) fn sign(&self, claims: &Value) -> String {
        self.0.sign(claims).unwrap()
    }

    pub(super) fn sign_as(&self, header: &Value, claims: &Value) -> String {
        self.0.sign_as(header, claims).unwrap()
    }
}

/// What some token claims.
pub(super) fn claims() -> Value {
    json!({"iss": "https://issuer.example", "aud": "octavius", "sub": "ann", "exp": jwt::seconds_from_now(300)})
}

pub(super) use jwt::hmac_token as hmac;

/// An issuer on loopback that publishes these keys.
pub(super) async fn issuer(signers: &[&Signer]) -> jwt::Issuer {
    let signers: Vec<_> = signers.iter().map(|signer| &signer.0).collect();
    jwt::Issuer::start(&signers).await.unwrap()
}

/// The configuration of an issuer whose users are all of role user, and what is said beside that.
pub(super) fn config(issuer: &jwt::Issuer, extra: Value) -> IssuerConfig {
    let mut whole = json!({"name": "i", "issuer": issuer.url(), "audiences": ["octavius"], "rules": [{"role": "user"}]});
    let Value::Object(extra) = extra else { panic!("{extra} is no object") };
    for (name, value) in extra {
        whole[name] = value;
    }
    IssuerConfig::parse_all(&json!([whole]), std::path::Path::to_owned).unwrap().remove(0)
}
