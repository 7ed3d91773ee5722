//! An issuer's public keys (RFC 7517), and what they verify.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::{Map, Value};

use super::jose::{Algorithm, Unverified, parse_object};

/// Most keys of one issuer: the largest have a dozen.
const KEYS: usize = 100;

/// Most keys that are tried for a token which names none.
const TRIED: usize = 8;

/// Sizes of RSA's modulus that are taken, in bytes: 2048 to 8192 bits.
const MODULUS: std::ops::RangeInclusive<usize> = 256..=1024;

/// What a key is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// A public key that verifies tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    kid: Option<String>,
    material: Material,
}

impl Key {
    fn algorithm(&self) -> Algorithm {
        match self.material {
            Material::Rsa { .. } => Algorithm::Rs256,
            Material::P256(_) => Algorithm::Es256,
            Material::Ed25519(_) => Algorithm::EdDsa,
        }
    }

    /// Whether a token may be signed with it, by what its header says: a key has one algorithm, and the token does not choose another.
    fn fits(&self, token: &Unverified<'_>) -> bool {
        self.algorithm() == token.algorithm && (token.kid.is_none() || token.kid == self.kid)
    }

    fn verifies(&self, signed: &[u8], signature: &[u8]) -> bool {
        let verified = match &self.material {
            Material::Rsa { n, e } => RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, signed, signature),
            Material::P256(point) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed, signature),
            Material::Ed25519(point) => UnparsedPublicKey::new(&ED25519, point).verify(signed, signature),
        };
        verified.is_ok()
    }

    /// A key of a set; none where it is one that verifies no token: of another kind, for encryption, too small.
    fn parse(members: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| members.get(name).and_then(Value::as_str);
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
        let point = |name: &str| bytes(name).filter(|bytes| bytes.len() == 32);
        if members.get("use").is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        if let Some(operations) = members.get("key_ops")
            && !operations.as_array()?.iter().any(|operation| operation == "verify")
        {
            return None;
        }
        let material = match (text("kty")?, text("crv")) {
            ("RSA", _) => {
                // Some issuers write leading zeros, which ring does not take.
                let number =
                    |name: &str| bytes(name).map(|bytes| bytes.into_iter().skip_while(|byte| *byte == 0).collect::<Vec<u8>>());
                let (n, e) = (number("n")?, number("e")?);
                (MODULUS.contains(&n.len()) && (1..=8).contains(&e.len())).then_some(Material::Rsa { n, e })?
            }
            ("EC", Some("P-256")) => {
                // An uncompressed point.
                Material::P256([vec![4], point("x")?, point("y")?].concat())
            }
            ("OKP", Some("Ed25519")) => Material::Ed25519(point("x")?),
            _ => return None,
        };
        let kid = match members.get("kid") {
            None => None,
            Some(kid) => Some(kid.as_str()?.to_owned()),
        };
        let key = Self { kid, material };
        match members.get("alg") {
            Some(algorithm) if Algorithm::parse(algorithm.as_str()?) != Some(key.algorithm()) => None,
            _ => Some(key),
        }
    }
}

/// The keys of one issuer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct KeySet(Vec<Key>);

impl KeySet {
    /// Reads a set. Keys that verify no token of ours are left out: sets hold keys for other purposes, too.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let set = parse_object(bytes).ok_or("it is no JSON object of single members")?;
        let Some(Value::Array(keys)) = set.get("keys") else { return Err("it has no list `keys`") };
        if keys.len() > KEYS {
            return Err("it has more than 100 keys");
        }
        let members = |key: &'_ Value| key.as_object().and_then(Key::parse);
        let known: Vec<Key> = keys.iter().filter_map(members).collect();
        if known.is_empty() && !keys.is_empty() {
            return Err("none of its keys verifies RS256, ES256 or EdDSA");
        }
        Ok(Self(known))
    }

    /// How many they are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is a key which the token may be signed with.
    pub(super) fn has(&self, token: &Unverified<'_>) -> bool {
        self.0.iter().any(|key| key.fits(token))
    }

    /// Whether one of the keys that fit the token verifies it.
    pub(super) fn verify(&self, token: &Unverified<'_>) -> bool {
        let fitting = self.0.iter().filter(|key| key.fits(token)).take(TRIED);
        fitting.into_iter().any(|key| key.verifies(token.signed.as_bytes(), &token.signature))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Signer, claims};
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn set(keys: &[Value]) -> Result<KeySet, &'static str> {
        KeySet::parse(json!({ "keys": keys }).to_string().as_bytes())
    }

    fn verifies(set: &KeySet, token: &str) -> bool {
        Unverified::parse(token).is_ok_and(|token| set.verify(&token))
    }

    #[test]
    fn each_algorithm_verifies_with_its_own_key_and_no_other() {
        let signers = [Signer::rsa("a"), Signer::p256("a"), Signer::ed25519("a")];
        let one_of_each = set(&signers.each_ref().map(Signer::jwk)).unwrap();
        for signer in &signers {
            let token = signer.sign(&claims());
            assert!(verifies(&one_of_each, &token), "{}", signer.alg());
            assert!(verifies(&set(&[signer.jwk()]).unwrap(), &token), "{}", signer.alg());
            let others: Vec<Value> = signers.iter().filter(|other| other.alg() != signer.alg()).map(Signer::jwk).collect();
            assert!(!verifies(&set(&others).unwrap(), &token), "{}", signer.alg());
            for other in &signers {
                let confused = signer.sign_as(&json!({"alg": other.alg(), "kid": "a"}), &claims());
                assert_eq!(
                    verifies(&one_of_each, &confused),
                    other.alg() == signer.alg(),
                    "{} for {}",
                    signer.alg(),
                    other.alg()
                );
            }
        }
    }

    #[test]
    fn a_token_is_verified_by_the_key_that_it_names_or_by_any_that_fits() {
        let (old, new, foreign) = (Signer::ed25519("old"), Signer::ed25519("new"), Signer::ed25519("new"));
        let both = set(&[old.jwk(), new.jwk()]).unwrap();
        assert!(verifies(&both, &old.sign(&claims())) && verifies(&both, &new.sign(&claims())));
        assert!(!verifies(&both, &foreign.sign(&claims())));
        let header = |kid: Option<&str>| match kid {
            Some(kid) => json!({"alg": "EdDSA", "kid": kid}),
            None => json!({"alg": "EdDSA"}),
        };
        assert!(verifies(&both, &old.sign_as(&header(None), &claims())));
        assert!(!verifies(&both, &foreign.sign_as(&header(None), &claims())));
        assert!(!verifies(&both, &old.sign_as(&header(Some("new")), &claims())));
        assert!(!verifies(&both, &old.sign_as(&header(Some("")), &claims())));
    }

    #[test]
    fn what_a_token_brings_with_it_is_no_key() {
        let (own, known) = (Signer::p256("own"), Signer::p256("known"));
        let keys = set(&[known.jwk()]).unwrap();
        for kid in ["own", "known"] {
            let header = json!({
                "alg": "ES256", "kid": kid, "jwk": own.jwk(), "jku": "https://127.0.0.1:1/keys", "x5u": "https://127.0.0.1:1/chain",
                "x5c": ["AAAA"],
            });
            assert!(!verifies(&keys, &own.sign_as(&header, &claims())), "{kid}");
        }
    }

    #[test]
    fn keys_that_verify_nothing_of_ours_are_left_out() {
        let good = Signer::p256("good").jwk();
        let but = |name: &str, value: Value| {
            let mut key = good.clone();
            key[name] = value;
            key
        };
        let rsa = Signer::rsa("r").jwk();
        for key in [
            json!({"kty": "oct", "k": "c2VjcmV0", "kid": "s"}),
            json!({"kty": "OKP", "crv": "X25519", "x": "AAAA"}),
            json!({"kty": "RSA", "n": URL_SAFE_NO_PAD.encode([255; 128]), "e": "AQAB"}), // 1024 bits
            json!({"kty": "RSA", "n": URL_SAFE_NO_PAD.encode(vec![255; 1025]), "e": "AQAB"}),
            json!({"kty": "RSA", "e": "AQAB"}),
            json!("key"),
            but("use", json!("enc")),
            but("use", json!(null)),
            but("key_ops", json!(["sign"])),
            but("key_ops", json!("verify")),
            but("alg", json!("ES384")),
            but("alg", json!("RS256")),
            but("alg", json!(7)),
            but("crv", json!("P-384")),
            but("kid", json!(7)),
            but("x", json!("AAAA")),
            but("y", json!("*")),
        ] {
            assert_eq!(set(&[good.clone(), key.clone()]).unwrap().len(), 1, "{key}");
            assert!(set(&[key]).unwrap_err().contains("none of its keys"));
        }
        assert_eq!(set(&[rsa, but("key_ops", json!(["verify"])), but("use", json!("sig"))]).unwrap().len(), 3);
        assert_eq!(set(&[]).unwrap().len(), 0, "an issuer that has no key any more says so");
    }

    #[test]
    fn what_is_no_set_is_told() {
        for (text, expected) in [
            ("", "no JSON object"),
            ("[]", "no JSON object"),
            ("<html>", "no JSON object"),
            (r#"{"keys":[],"keys":[]}"#, "of single members"),
            ("{}", "no list `keys`"),
            (r#"{"keys":{}}"#, "no list `keys`"),
        ] {
            assert!(KeySet::parse(text.as_bytes()).unwrap_err().contains(expected), "{text}");
        }
        assert!(set(&vec![json!({}); 101]).unwrap_err().contains("more than 100"));
    }

    /// A public key as the secret of an HMAC: the oldest of tricks.
    #[test]
    fn a_public_key_is_no_shared_secret() {
        let signer = Signer::rsa("k");
        let keys = set(&[signer.jwk()]).unwrap();
        for secret in [signer.jwk().to_string(), signer.jwk()["n"].as_str().unwrap().to_owned()] {
            let token = super::super::testing::hmac(secret.as_bytes(), "k", &claims());
            assert!(!verifies(&keys, &token));
        }
        let (header, claims) =
            (URL_SAFE_NO_PAD.encode(r#"{"alg":"none","kid":"k"}"#), URL_SAFE_NO_PAD.encode(claims().to_string()));
        for signature in ["", "AA"] {
            assert!(!verifies(&keys, &format!("{header}.{claims}.{signature}")));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Every bit of every token counts, wherever it stands.
        #[test]
        fn a_token_with_another_character_or_a_piece_missing_is_not_verified(at in 0..4096usize, to in "[A-Za-z0-9_.-]", which in 0..3usize) {
            let signer = [Signer::rsa, Signer::p256, Signer::ed25519][which]("k");
            let keys = set(&[signer.jwk()]).unwrap();
            let token = signer.sign(&claims());
            prop_assert!(verifies(&keys, &token));
            let at = at % token.len();
            let mut changed = token.clone();
            changed.replace_range(at..=at, &to);
            prop_assert!(changed == token || !verifies(&keys, &changed), "{at}");
            prop_assert!(!verifies(&keys, &token[..at]));
            let longer = token + &to;
            prop_assert!(!verifies(&keys, &longer));
        }
    }
}
