//! Tokens as an attacker, a slip, or an honest issuer makes them.

use octavius_core::Role;
use octavius_tests::jwt::{Issuer, seconds_from_now};
use serde_json::{Value, json};

use super::testing::{Signer, config, hmac, issuer};
use super::*;

/// Issuers of which one is on loopback, and what keeps their keys fresh.
struct House {
    issuers: std::sync::Arc<Issuers>,
    stop: CancellationToken,
    url: String,
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn open(loopback: &Issuer, extra: Value) -> House {
    let issuers = std::sync::Arc::new(Issuers::new(vec![config(loopback, extra)]));
    let stop = CancellationToken::new();
    tokio::spawn({
        let (issuers, stop) = (std::sync::Arc::clone(&issuers), stop.clone());
        async move { issuers.run(stop).await }
    });
    House { issuers, stop, url: loopback.url() }
}

impl House {
    /// Claims that are good, with these over them; null takes one away.
    fn claims(&self, over: Value) -> Value {
        let mut claims = json!({"iss": self.url, "aud": "octavius", "sub": "ann", "exp": seconds_from_now(300)});
        let Value::Object(over) = over else { panic!("{over} is no object") };
        for (name, value) in over {
            claims[name] = value;
        }
        claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        claims
    }

    async fn why(&self, token: &str) -> String {
        match self.issuers.bearer(token).await {
            Ok(known) => known.principal.user,
            Err(denial) => denial.why.into_owned(),
        }
    }
}

#[tokio::test]
async fn a_good_token_says_who_its_bearer_is_and_until_when() {
    let signers = [Signer::rsa("r"), Signer::p256("p"), Signer::ed25519("e")];
    let loopback = issuer(&signers.each_ref()).await;
    let house = open(&loopback, json!({"groups_claim": "groups"}));
    for signer in &signers {
        let exp = seconds_from_now(100);
        let claims = house.claims(json!({"exp": exp, "jti": "7", "aud": ["other", "octavius"], "groups": ["a", "b"]}));
        let known = house.issuers.bearer(&signer.sign(&claims)).await.unwrap();
        assert_eq!((known.issuer, known.expires_at.as_second()), (house.url.clone(), exp));
        let Principal { token_id, user, role, groups, .. } = known.principal;
        assert_eq!((token_id.as_str(), user.as_str(), role), ("jwt:i:7", "i:ann", Role::User));
        assert_eq!(groups, ["a", "b"]);
    }
    assert_eq!(loopback.fetches(), 1);
}

#[tokio::test]
async fn each_wrong_token_is_refused_for_its_own_reason() {
    let (signer, ec) = (Signer::rsa("r"), Signer::p256("p"));
    let loopback = issuer(&[&signer, &ec]).await;
    let house = open(&loopback, json!({"user": "{sub}", "rules": [{"when": {"sub": "ann"}, "role": "user"}]}));
    let claims = |over: Value| house.claims(over);
    let signed = |over: Value| signer.sign(&claims(over));
    let good = claims(json!({}));
    assert_eq!(house.why(&signer.sign(&good)).await, "i:ann");
    let doubled = format!(r#"{{"sub":"eve",{}"#, &good.to_string()[1..]);
    let header = json!({"alg": "RS256", "kid": "r"});
    for (token, expected) in [
        (signed(json!({"exp": seconds_from_now(-61)})), "expired"),
        (signed(json!({"exp": null})), "it has no expiry"),
        (signed(json!({"nbf": seconds_from_now(120)})), "not good yet"),
        (signed(json!({"iat": seconds_from_now(120)})), "issued in the future"),
        (signed(json!({"aud": "other"})), "for another audience"),
        (signed(json!({"aud": null})), "for another audience"),
        (signed(json!({"iss": format!("{}/", house.url)})), "its issuer is not trusted"),
        (signed(json!({"iss": [house.url]})), "it names no issuer"),
        (signed(json!({"iss": null})), "it names no issuer"),
        (signed(json!({"sub": "eve"})), "no rule of its issuer fits its claims"),
        (Signer::p256("p").sign(&good), "its signature is not its issuer's"),
        (Signer::p256("q").sign(&good), "its issuer has no such key"),
        (ec.sign_as(&json!({"alg": "RS256", "kid": "p"}), &good), "its issuer has no such key"),
        (signer.sign_as(&json!({"alg": "ES256", "kid": "p"}), &good), "its signature is not its issuer's"),
        (hmac(signer.jwk().to_string().as_bytes(), "r", &good), "its algorithm is none of RS256, ES256 and EdDSA"),
        (signer.0.sign_text(&header.to_string(), &doubled).unwrap(), "its claims are no JSON object of single members"),
        (signer.sign_as(&json!({"alg": "none"}), &good), "its algorithm is none of RS256, ES256 and EdDSA"),
        ("a.b.c".to_owned(), "its header is no JSON object of single members"),
        (format!("{}.x", signer.sign(&good)), "not of three parts, or one of them is empty"),
        (signed(json!({"a": "x".repeat(16 * 1024)})), "larger than 16 KiB"),
    ] {
        assert_eq!(house.why(&token).await, expected);
    }
}

#[tokio::test]
async fn only_what_is_verified_is_told_of_a_refused_token() {
    let signer = Signer::ed25519("k");
    let loopback = issuer(&[&signer]).await;
    let house = open(&loopback, json!({"rules": [{"when": {"sub": "bob"}, "role": "user"}]}));
    let denied = async |token: String| house.issuers.bearer(&token).await.unwrap_err();
    let told = |denial: &Denial| (denial.issuer.clone(), denial.subject.clone());
    let ann = denied(signer.sign(&house.claims(json!({})))).await;
    assert_eq!(told(&ann), (Some("i".to_owned()), Some("ann".to_owned())));
    let forged = denied(Signer::ed25519("k").sign(&house.claims(json!({})))).await;
    assert_eq!(told(&forged), (Some("i".to_owned()), None));
    let foreign = denied(signer.sign(&house.claims(json!({"iss": "https://other"})))).await;
    assert_eq!(told(&foreign), (None, None));
    let nobody = Issuers::new(Vec::new()).bearer("a.b.c").await.unwrap_err();
    assert_eq!((nobody.why.as_ref(), told(&nobody)), ("malformed", (None, None)));
}

#[tokio::test]
async fn each_issuer_speaks_for_its_own_users_alone() {
    let (one, two) = (Signer::ed25519("k"), Signer::ed25519("k"));
    let (first, second) = (issuer(&[&one]).await, issuer(&[&two]).await);
    let issuers = Issuers::new(vec![config(&first, json!({"name": "one"})), config(&second, json!({"name": "two"}))]);
    let stop = CancellationToken::new();
    let claims = |issuer: &Issuer| json!({"iss": issuer.url(), "aud": "octavius", "sub": "ann", "exp": seconds_from_now(300)});
    let asked = async {
        for (signer, issuer, expected) in
            [(&one, &first, Ok("one:ann")), (&two, &second, Ok("two:ann")), (&one, &second, Err(())), (&two, &first, Err(()))]
        {
            let answer = issuers.bearer(&signer.sign(&claims(issuer))).await;
            assert_eq!(answer.map(|known| known.principal.user).map_err(|_| ()), expected.map(str::to_owned));
        }
        stop.cancel();
    };
    futures::future::join(asked, issuers.run(stop.clone())).await;
}
