//! A webhook's message: what it says, and its signature, which are those of Standard Webhooks 1.0 (standardwebhooks.com), so that whoever
//! takes it has a library for that.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use octavius_core::{Execution, ExecutionId, Timestamp, WebhookEvent};
use reqwest::RequestBuilder;
use ring::hmac;
use serde_json::{Value, json};
use url::Url;

use crate::random;

/// What a secret begins with as a text.
const PREFIX: &str = "whsec_";

/// Fewest and most bytes of a secret, as the standard has it.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Most secrets at once: the new one and those that are on their way out.
const SECRETS: usize = 4;

/// What messages are signed with, by each of them: so that a secret can be replaced on both sides, one after the other.
pub struct Secrets(Vec<hmac::Key>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({} of them)", self.0.len())
    }
}

impl Secrets {
    /// A new secret as a text, to be kept in a file that nobody else reads.
    #[must_use]
    pub fn generate() -> String {
        format!("{PREFIX}{}", STANDARD.encode(random::bytes()))
    }

    /// Reads secrets, one a line. The error does not repeat what it read.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let key = |line: &str| {
            let bytes = STANDARD.decode(line.trim().strip_prefix(PREFIX)?).ok()?;
            SECRET_BYTES.contains(&bytes.len()).then(|| hmac::Key::new(hmac::HMAC_SHA256, &bytes))
        };
        let keys = text.lines().filter(|line| !line.trim().is_empty()).map(key).collect::<Option<Vec<_>>>();
        keys.filter(|keys| (1..=SECRETS).contains(&keys.len())).map(Self).ok_or_else(|| {
            let (least, most) = (SECRET_BYTES.start(), SECRET_BYTES.end());
            format!(
                "not 1 to {SECRETS} secrets, one a line, each {PREFIX} and then {least} to {most} bytes in base64; `octavius webhooks new-secret` makes one"
            )
        })
    }

    /// Signs a message, by all of them.
    fn sign(&self, id: &str, seconds: i64, body: &[u8]) -> String {
        let mut signed = format!("{id}.{seconds}.").into_bytes();
        signed.extend_from_slice(body);
        let signatures = self.0.iter().map(|key| format!("v1,{}", STANDARD.encode(hmac::sign(key, &signed))));
        signatures.collect::<Vec<_>>().join(" ")
    }
}

/// A message.
#[derive(Debug)]
pub(super) struct Message {
    /// The same each time it is sent: whoever takes it knows by it what they have already.
    id: String,
    body: Vec<u8>,
}

impl Message {
    /// What is told of an execution; `page` is where browsers reach the web page.
    pub(super) fn of(execution: &Execution, event: WebhookEvent, page: Option<&Url>) -> Self {
        let at = if event == WebhookEvent::WaitingForApproval { Some(execution.created_at) } else { execution.finished_at };
        Self::new(
            format!("{}-{event}", execution.id),
            &format!("execution.{event}"),
            at.unwrap_or(execution.state_since),
            &told(execution, page),
        )
    }

    /// A message by which somebody sees whether messages come through.
    pub(super) fn test(at: Timestamp, by: &str) -> Self {
        Self::new(format!("{}-test", ExecutionId::generate()), "octavius.test", at, &json!({ "user": by }))
    }

    fn new(id: String, kind: &str, at: Timestamp, data: &Value) -> Self {
        Self { id, body: json!({"type": kind, "timestamp": at.to_string(), "data": data}).to_string().into_bytes() }
    }

    /// Puts it into a request, signed now.
    pub(super) fn put(self, request: RequestBuilder, secrets: &Secrets, now: Timestamp) -> RequestBuilder {
        let seconds = now.as_second();
        let signature = secrets.sign(&self.id, seconds, &self.body);
        request
            .header("content-type", "application/json")
            .header("webhook-id", self.id)
            .header("webhook-timestamp", seconds)
            .header("webhook-signature", signature)
            .body(self.body)
    }
}

/// An execution in the words of `octavius status -o json`. Its arguments are not told: some are sensitive, and whoever is told may ask.
fn told(execution: &Execution, page: Option<&Url>) -> Value {
    let mut told = octavius_proto::json::execution(&octavius_proto::execution(execution));
    told["catalog"] = execution.catalog.to_string().into();
    told["starts"] = execution.starts().into();
    told["url"] = page.and_then(|page| page.join(&format!("/executions/{}", execution.id)).ok()).map(String::from).into();
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the standard's own document, section “Signature scheme”.
    #[test]
    fn a_signature_is_the_standards() {
        let secrets = Secrets::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        let body = br#"{"test": 2432232314}"#;
        let signature = secrets.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn each_secret_signs_and_what_is_none_is_not_repeated() {
        let (one, other) = (Secrets::generate(), Secrets::generate());
        let both = Secrets::parse(&format!("{one}\n\n{other}\n")).unwrap();
        let each = [&one, &other].map(|text| Secrets::parse(text).unwrap().sign("m", 1, b"x"));
        assert_eq!(both.sign("m", 1, b"x"), each.join(" "));
        for bad in ["", "\n", "hunter2", "whsec_aHVudGVyMg==", &format!("{one}\nhunter2"), &[one.as_str(); 5].join("\n")] {
            let told = Secrets::parse(bad).unwrap_err();
            assert!(!told.contains("hunter2"), "{told}");
        }
        assert!(!format!("{both:?}").contains("whsec"));
    }
}
