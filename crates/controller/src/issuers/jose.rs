//! What a JSON Web Token says, before anybody believes it: its three parts, read strictly (RFC 7515, 7519 and 8725). What is read here is
//! anybody's text until [`super::jwk`] has verified its signature.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use octavius_core::Timestamp;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Longest token, in bytes: what a call's headers have room for.
pub(super) const TOKEN_BYTES: usize = 16 * 1024;

/// By how much the clocks of an issuer and a controller may differ.
pub(super) const SKEW: Duration = Duration::from_secs(SKEW_SECONDS as u64);
const SKEW_SECONDS: i64 = 60;

/// How a token is signed. Those without a signature, and those whose key would be a shared secret, are not among them, and never will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// RSA with PKCS #1 v1.5 padding and SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "RS256" => Some(Self::Rs256),
            "ES256" => Some(Self::Es256),
            "EdDSA" => Some(Self::EdDsa),
            _ => None,
        }
    }
}

/// A token that was taken apart. Nothing of it is verified yet.
#[derive(Debug)]
pub(super) struct Unverified<'t> {
    pub(super) algorithm: Algorithm,
    /// Which of its issuer's keys it says that it is signed with.
    pub(super) kid: Option<String>,
    /// What is signed.
    pub(super) signed: &'t str,
    pub(super) signature: Vec<u8>,
    pub(super) claims: Map<String, Value>,
}

/// Whether a bearer's text has the shape of such a token.
pub(crate) fn is_jwt(text: &str) -> bool {
    text.bytes().filter(|byte| *byte == b'.').count() == 2
}

impl<'t> Unverified<'t> {
    /// Takes a token apart.
    pub(super) fn parse(text: &'t str) -> Result<Self, &'static str> {
        if text.len() > TOKEN_BYTES {
            return Err("larger than 16 KiB");
        }
        let (signed, signature) = text.rsplit_once('.').ok_or("not of three parts")?;
        let (header, claims) = signed.split_once('.').ok_or("not of three parts")?;
        if signature.is_empty() || header.is_empty() || claims.is_empty() || claims.contains('.') {
            return Err("not of three parts, or one of them is empty");
        }
        let header = object(header).ok_or("its header is no JSON object of single members")?;
        let algorithm = match header.get("alg") {
            Some(Value::String(name)) => Algorithm::parse(name).ok_or("its algorithm is none of RS256, ES256 and EdDSA")?,
            _ => return Err("its header names no algorithm"),
        };
        // What must be understood is not, whatever it is.
        if header.contains_key("crit") {
            return Err("its header has critical extensions");
        }
        let kid = match header.get("kid") {
            None => None,
            Some(Value::String(kid)) => Some(kid.clone()),
            Some(_) => return Err("its header's kid is not a text"),
        };
        // A token of another purpose, like one that ends a session, may be signed with the same key.
        let fits = match header.get("typ") {
            None => true,
            Some(Value::String(kind)) => {
                let kind = kind.to_ascii_lowercase();
                matches!(kind.strip_prefix("application/").unwrap_or(&kind), "jwt" | "at+jwt")
            }
            Some(_) => false,
        };
        if !fits {
            return Err("its type is neither JWT nor at+jwt");
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| "its signature is not base64url")?;
        let claims = object(claims).ok_or("its claims are no JSON object of single members")?;
        Ok(Self { algorithm, kid, signed, signature, claims })
    }

    /// A claim that is a text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.claims.get(name).and_then(Value::as_str)
    }

    /// Whether the token is for one of these.
    pub(super) fn is_for(&self, audiences: &[String]) -> bool {
        let known = |audience: &str| audiences.iter().any(|known| known == audience);
        match self.claims.get("aud") {
            Some(Value::String(audience)) => known(audience),
            // A list with something else in it than texts is none.
            Some(Value::Array(list)) => list.iter().all(Value::is_string) && list.iter().filter_map(Value::as_str).any(known),
            _ => false,
        }
    }

    /// Whether the token is good at this moment, and until when, with the skew.
    pub(super) fn until(&self, now: Timestamp) -> Result<Timestamp, &'static str> {
        let now = now.as_second();
        let exp = self.date("exp")?.ok_or("it has no expiry")?;
        let until = Timestamp::from_second(exp).map_err(|_| "its exp is no time")?;
        if exp.saturating_add(SKEW_SECONDS) <= now {
            return Err("expired");
        }
        if self.date("nbf")?.is_some_and(|nbf| nbf.saturating_sub(SKEW_SECONDS) > now) {
            return Err("not good yet");
        }
        if self.date("iat")?.is_some_and(|iat| iat.saturating_sub(SKEW_SECONDS) > now) {
            return Err("issued in the future");
        }
        Ok(until)
    }

    /// A claim that is a time: seconds since 1970, whole ones or not.
    fn date(&self, name: &'static str) -> Result<Option<i64>, &'static str> {
        let seconds = match self.claims.get(name) {
            None => return Ok(None),
            Some(Value::Number(number)) => number.as_i64().or_else(|| number.as_f64().and_then(whole)),
            Some(_) => None,
        };
        let wrong = match name {
            "exp" => "its exp is no time",
            "nbf" => "its nbf is no time",
            _ => "its iat is no time",
        };
        seconds.map(Some).ok_or(wrong)
    }
}

/// The whole seconds of a number that has more.
fn whole(seconds: f64) -> Option<i64> {
    /// Far beyond any time, and exact in a number of this kind.
    const MOST: f64 = 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "it is within what is exact")]
    (seconds.abs() <= MOST).then(|| seconds.floor() as i64)
}

/// The JSON object that a part of a token is.
fn object(part: &str) -> Option<Map<String, Value>> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    parse_object(&bytes)
}

/// A JSON object none of whose members, however deep, is there twice: two readers could disagree about which one counts.
pub(super) fn parse_object(bytes: &[u8]) -> Option<Map<String, Value>> {
    match serde_json::from_slice::<Single>(bytes) {
        Ok(Single(Value::Object(members))) => Some(members),
        _ => None,
    }
}

/// A JSON value whose members are each there once.
struct Single(Value);

impl<'de> Deserialize<'de> for Single {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SingleVisitor).map(Self)
    }
}

struct SingleVisitor;

impl<'de> Visitor<'de> for SingleVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value whose members are each there once")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Single(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((name, Single(value))) = members.next_entry::<String, Single>()? {
            if map.insert(name, value).is_some() {
                return Err(de::Error::custom("a member is there twice"));
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(text: &str) -> String {
        URL_SAFE_NO_PAD.encode(text)
    }

    fn token(header: &str, claims: &str) -> String {
        format!("{}.{}.{}", encoded(header), encoded(claims), encoded("signature"))
    }

    fn parse(header: &str, claims: &str) -> Result<(), &'static str> {
        Unverified::parse(&token(header, claims)).map(|_| ())
    }

    #[test]
    fn a_header_says_how_and_with_which_key() {
        let text =
            token(r#"{"alg":"ES256","kid":"k","typ":"JWT","x5t":"ignored"}"#, r#"{"iss":"i","n":{"a":[1,2.5,null,true]}}"#);
        let parsed = Unverified::parse(&text).unwrap();
        assert_eq!((parsed.algorithm, parsed.kid.as_deref(), parsed.text("iss")), (Algorithm::Es256, Some("k"), Some("i")));
        assert_eq!(parsed.claims["n"], serde_json::json!({"a": [1, 2.5, null, true]}));
        assert_eq!(parsed.signed, &text[..text.rfind('.').unwrap()]);
        assert_eq!(parsed.signature, b"signature");
        for typ in ["jwt", "at+jwt", "application/at+JWT"] {
            assert_eq!(parse(&format!(r#"{{"alg":"RS256","typ":"{typ}"}}"#), "{}"), Ok(()), "{typ}");
        }
    }

    #[test]
    fn what_is_not_strictly_a_token_is_refused_with_its_reason() {
        for alg in ["none", "None", "NONE", "", "HS256", "HS384", "HS512", "RS384", "RS512", "PS256", "ES384", "ES256K", "rs256"]
        {
            let told = parse(&format!(r#"{{"alg":"{alg}"}}"#), "{}").unwrap_err();
            assert_eq!(told, "its algorithm is none of RS256, ES256 and EdDSA", "{alg}");
        }
        for (header, claims, expected) in [
            ("{}", "{}", "no algorithm"),
            (r#"{"alg":7}"#, "{}", "no algorithm"),
            (r#"{"alg":["RS256"]}"#, "{}", "no algorithm"),
            (r#"{"alg":"RS256","alg":"RS256"}"#, "{}", "header is no JSON object of single members"),
            (r#"{"alg":"RS256","crit":["exp"]}"#, "{}", "critical"),
            (r#"{"alg":"RS256","crit":[]}"#, "{}", "critical"),
            (r#"{"alg":"RS256","kid":7}"#, "{}", "kid is not a text"),
            (r#"{"alg":"RS256","typ":"logout+jwt"}"#, "{}", "neither JWT nor at+jwt"),
            (r#"{"alg":"RS256","typ":null}"#, "{}", "neither JWT nor at+jwt"),
            (r#"["RS256"]"#, "{}", "header is no JSON object"),
            (r#"{"alg":"RS256"} x"#, "{}", "header is no JSON object"),
            (r#"{"alg":"RS256"}"#, "[]", "claims are no JSON object"),
            (r#"{"alg":"RS256"}"#, r#"{"sub":"a","sub":"b"}"#, "claims are no JSON object of single members"),
            (r#"{"alg":"RS256"}"#, r#"{"sub":"a","s\u0075b":"b"}"#, "claims are no JSON object of single members"),
            (r#"{"alg":"RS256"}"#, r#"{"a":[{"b":1,"b":2}]}"#, "claims are no JSON object of single members"),
        ] {
            let told = parse(header, claims).unwrap_err();
            assert!(told.contains(expected), "{header} {claims}: {told}");
        }
        let (header, claims) = (encoded(r#"{"alg":"RS256"}"#), encoded("{}"));
        for text in [
            String::new(),
            "..".to_owned(),
            format!("{header}.{claims}"),
            format!("{header}.{claims}."),
            format!("{header}..c2ln"),
            format!(".{claims}.c2ln"),
            format!("{header}.{claims}.c2ln.c2ln"),
            format!("{header}=.{claims}.c2ln"),
            format!("{header}.{claims}.c2lnYQ=="),
            format!("{header}.{claims}.a+/b"),
            format!("{header}.{claims}. c2ln"),
            format!("{header}.{claims}.c2lnYR"), // bits that say nothing must be zero, or one token has many texts
        ] {
            assert!(Unverified::parse(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_huge_token_is_refused_before_it_is_looked_at() {
        let text = token(r#"{"alg":"RS256"}"#, &format!(r#"{{"a":"{}"}}"#, "x".repeat(TOKEN_BYTES)));
        assert_eq!(Unverified::parse(&text).unwrap_err(), "larger than 16 KiB");
        let deep = format!(r#"{{"a":{}}}"#, "[".repeat(9000));
        assert!(parse(r#"{"alg":"RS256"}"#, &deep).unwrap_err().contains("claims are no JSON object"));
    }

    fn until(claims: &str) -> Result<i64, &'static str> {
        let text = token(r#"{"alg":"RS256"}"#, claims);
        Unverified::parse(&text).unwrap().until(Timestamp::from_second(1_000_000).unwrap()).map(Timestamp::as_second)
    }

    #[test]
    fn times_count_with_a_minute_of_skew() {
        for (claims, expected) in [
            (r#"{"exp":1000100}"#, Ok(1_000_100)),
            (r#"{"exp":999941}"#, Ok(999_941)),
            (r#"{"exp":999940}"#, Err("expired")),
            (r#"{"exp":1000000.9}"#, Ok(1_000_000)),
            (r#"{"exp":-1}"#, Err("expired")),
            ("{}", Err("it has no expiry")),
            (r#"{"exp":null}"#, Err("its exp is no time")),
            (r#"{"exp":"1000100"}"#, Err("its exp is no time")),
            (r#"{"exp":1e300}"#, Err("its exp is no time")),
            (r#"{"exp":9223372036854775807}"#, Err("its exp is no time")),
            (r#"{"exp":1000100,"nbf":1000060,"iat":1000060}"#, Ok(1_000_100)),
            (r#"{"exp":1000100,"nbf":1000061}"#, Err("not good yet")),
            (r#"{"exp":1000100,"nbf":"0"}"#, Err("its nbf is no time")),
            (r#"{"exp":1000100,"iat":1000061}"#, Err("issued in the future")),
            (r#"{"exp":1000100,"iat":[]}"#, Err("its iat is no time")),
        ] {
            assert_eq!(until(claims), expected, "{claims}");
        }
    }

    #[test]
    fn an_audience_is_a_text_or_a_list_that_holds_it() {
        let audiences = ["octavius".to_owned(), "https://octavius.acme.com".to_owned()];
        for (aud, expected) in [
            (r#""octavius""#, true),
            (r#"["a","https://octavius.acme.com"]"#, true),
            (r#"["a"]"#, false),
            ("[]", false),
            (r#""octavius ""#, false),
            (r#""Octavius""#, false),
            (r#""a,octavius""#, false),
            (r#"["octavius",7]"#, false),
            (r#"{"octavius":true}"#, false),
            ("null", false),
        ] {
            let text = token(r#"{"alg":"RS256"}"#, &format!(r#"{{"aud":{aud}}}"#));
            assert_eq!(Unverified::parse(&text).unwrap().is_for(&audiences), expected, "{aud}");
        }
        let text = token(r#"{"alg":"RS256"}"#, "{}");
        assert!(!Unverified::parse(&text).unwrap().is_for(&audiences));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[A-Za-z0-9_.=-]{0,200}", header in ".{0,60}", claims in ".{0,120}") {
            let _ = Unverified::parse(&text);
            let _ = parse(&header, &claims);
        }
    }
}
