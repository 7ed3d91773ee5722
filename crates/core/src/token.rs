//! Opaque tokens: `octu_` for people and CI, `octs_` for browsers, `octr_` for the registration of executors, `octe_` for executors. After
//! the prefix stand 256 random bits and a checksum of 32 bits, so that a slip of the hand is recognised before any store is asked, and secret scanners know
//! one when they see one. Only the SHA-256 of a token is ever stored.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;

/// Whom a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenKind {
    /// People and CI.
    User,
    /// A browser in which somebody has signed in, for as long as they are.
    Session,
    /// The registration of executors.
    Registration,
    /// One executor.
    Executor,
}

impl TokenKind {
    const ALL: [Self; 4] = [Self::User, Self::Session, Self::Registration, Self::Executor];

    /// What tokens of the kind start with.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::User => "octu_",
            Self::Session => "octs_",
            Self::Registration => "octr_",
            Self::Executor => "octe_",
        }
    }
}

/// A token. Its text is shown only by [`Token::reveal`]; `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    kind: TokenKind,
    text: String,
}

/// A text that is no token: wrong prefix, wrong length or wrong checksum. It does not repeat the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a token of Octavius, or mistyped")]
pub struct TokenError;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// 256 bits in base 32.
const SECRET_CHARS: usize = 52;
/// 32 bits in base 32.
const CHECKSUM_CHARS: usize = 7;

fn base32(bytes: &[u8], chars: usize) -> String {
    (0..chars)
        .map(|index| {
            let value = (0..5).fold(0usize, |value, offset| {
                let bit = index * 5 + offset;
                let set = bytes.get(bit / 8).is_some_and(|byte| byte >> (7 - bit % 8) & 1 == 1);
                value << 1 | usize::from(set)
            });
            char::from(ALPHABET[value])
        })
        .collect()
}

fn checksum(prefix: &str, secret: &str) -> String {
    let digest = Sha256::new().chain_update(prefix).chain_update(secret).finalize();
    base32(&digest[..4], CHECKSUM_CHARS)
}

impl Token {
    /// The token of these random bytes.
    #[must_use]
    pub fn from_random(kind: TokenKind, random: &[u8; 32]) -> Self {
        let secret = base32(random, SECRET_CHARS);
        let check = checksum(kind.prefix(), &secret);
        Self { kind, text: format!("{}{secret}{check}", kind.prefix()) }
    }

    /// Whom it is for.
    #[must_use]
    pub const fn kind(&self) -> TokenKind {
        self.kind
    }

    /// The token itself, to be shown once or sent.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// What is stored of it.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self.text.as_bytes())
    }
}

/// How much of what follows a token's prefix makes a text suspect.
const SUSPECT_CHARS: usize = 20;

/// Whether a text seems to hold a token, ours or a JSON Web Token, whole, cut or mistyped: such a text is not to be kept or shown.
#[must_use]
pub fn is_in(text: &str) -> bool {
    let suspect = |after: &str| after.bytes().take_while(u8::is_ascii_alphanumeric).count() >= SUSPECT_CHARS;
    TokenKind::ALL.into_iter().any(|kind| text.match_indices(kind.prefix()).any(|(at, _)| suspect(&text[at + 5..])))
        || text.match_indices(JWT_PART).any(|(at, _)| is_jwt(&text[at..]))
}

/// What both readable parts of a JSON Web Token begin with: `{"`, encoded.
const JWT_PART: &str = "eyJ";

/// Whether a text begins as a JSON Web Token does: with a header, and what may be claims behind it.
fn is_jwt(text: &str) -> bool {
    let header = text.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')).count();
    text[header..].strip_prefix('.').is_some_and(|claims| claims.starts_with(JWT_PART))
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", self.kind.prefix())
    }
}

impl FromStr for Token {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let kind = TokenKind::ALL.into_iter().find(|kind| text.starts_with(kind.prefix())).ok_or(TokenError)?;
        let rest = &text[kind.prefix().len()..];
        if rest.len() != SECRET_CHARS + CHECKSUM_CHARS || !rest.bytes().all(|byte| ALPHABET.contains(&byte)) {
            return Err(TokenError);
        }
        let (secret, check) = rest.split_at(SECRET_CHARS);
        if checksum(kind.prefix(), secret) != check {
            return Err(TokenError);
        }
        Ok(Self { kind, text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_token_is_found_within_a_text() {
        let token = Token::from_random(TokenKind::Registration, &[3; 32]);
        for text in
            [token.reveal(), &token.reveal()[..30], &format!("token={}", token.reveal()), &format!("octu_ {}!", token.reveal())]
        {
            assert!(is_in(text), "{text}");
        }
        for text in ["eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJpIn0.c2ln", "token=eyJhbGciOiJFUzI1NiJ9.eyJpc", "eyJ eyJh.eyJ"] {
            assert!(is_in(text), "{text}");
        }
        for text in ["eyJhIjoxfQ", "eyJhIjoxfQ.", "eyJhIjoxfQ.c2ln", "a.eyJhIjoxfQ", "eyJ eyJ.ey", "eyJé.eyJ"] {
            assert!(!is_in(text), "{text}");
        }
        for text in ["", "octu_", "octavius octu_short octr_", "0k3v7q2m8d5x1n4r6t9w0b9f2q"] {
            assert!(!is_in(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_token_reads_back_and_a_changed_one_does_not(random: [u8; 32], position in 0..64usize, replacement in 0..32usize) {
            let token = Token::from_random(TokenKind::Executor, &random);
            prop_assert_eq!(token.reveal().parse(), Ok(token.clone()));
            let mut bytes = token.reveal().as_bytes().to_vec();
            let position = position % bytes.len();
            if bytes[position] != ALPHABET[replacement] {
                bytes[position] = ALPHABET[replacement];
                prop_assert_eq!(String::from_utf8(bytes).unwrap().parse::<Token>(), Err(TokenError));
            }
        }

        #[test]
        fn no_text_panics(text in "(oct[user]_)?.{0,80}") {
            let _ = text.parse::<Token>();
        }
    }

    #[test]
    fn debug_output_holds_no_secret() {
        assert_eq!(format!("{:?}", Token::from_random(TokenKind::User, &[7; 32])), "octu_…");
    }
}
