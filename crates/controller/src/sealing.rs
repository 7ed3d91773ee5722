//! Sensitive arguments are kept encrypted: in the store, in its backups, in whatever else copies them, they stand as only the controllers'
//! keys open them. They are opened to hand an execution to its executor, to repeat it, and to tell whether a call is one repeated; for no
//! listing, where they are masked anyway.
//!
//! AES-256-GCM, each value under a key of its own, derived (HKDF-SHA-256) from a controllers' key, the execution's id and the argument's
//! name. So a random nonce of 96 bits serves a handful of messages and not all that there ever are: no bound on executions follows from it.
//! Both names are authenticated besides, so that no value can be put in another's place. Values are filled up to a multiple of 32 bytes: of a
//! short one not even the length is told.

mod used;

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use octavius_core::argument::{self, Arguments};
use octavius_core::{Digest, Execution, ExecutionId, JobDefinition, KeyId};
use octavius_proto::{Fault, reason};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::{hkdf, hmac};
use tonic::Code;

use crate::random;

pub use used::{UsedKey, used_keys};
pub(crate) use used::{reseal_some, tell_keys};

/// What a sealed value begins with; no argument can hold it.
const MARK: char = '\0';

/// Values are filled up to a multiple of so many bytes.
const BLOCK: usize = 32;

/// What derived keys are for: another use, or another form of one, has another word.
const FOR_ID: &[u8] = b"octavius key id 1";
const FOR_ARGUMENT: &[u8] = b"octavius argument 1";
const FOR_DIGEST: &[u8] = b"octavius idempotency 1";

/// A key that controllers encrypt with. All controllers of a store have the same ones. No `Debug` of what it is.
#[derive(Clone)]
pub struct EncryptionKey {
    id: KeyId,
    root: hkdf::Prk,
}

/// A text that is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a key: 32 bytes in base64 are expected, as `octavius controller new-key` writes them")]
pub struct NotAKey;

impl fmt::Debug for EncryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EncryptionKey({})", self.id)
    }
}

struct Bytes32;

impl hkdf::KeyType for Bytes32 {
    fn len(&self) -> usize {
        32
    }
}

impl EncryptionKey {
    /// A new key as a text, to be kept in a file that nobody else reads.
    #[must_use]
    pub fn generate() -> String {
        STANDARD.encode(random::bytes())
    }

    /// Reads what [`EncryptionKey::generate`] made; space around it does not matter.
    ///
    /// # Errors
    /// Where it is something else.
    pub fn parse(text: &str) -> Result<Self, NotAKey> {
        let bytes = STANDARD.decode(text.trim()).ok().filter(|bytes| bytes.len() == 32).ok_or(NotAKey)?;
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, b"octavius").extract(&bytes);
        let id = derive(&root, &[FOR_ID]);
        Ok(Self { id: KeyId::from_bits(u32::from_be_bytes([id[0], id[1], id[2], id[3]])), root })
    }

    /// Its name, which says nothing of it.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    fn of(&self, id: ExecutionId, name: &str) -> LessSafeKey {
        let derived = derive(&self.root, &[FOR_ARGUMENT, id.to_string().as_bytes(), name.as_bytes()]);
        #[expect(clippy::expect_used, reason = "the key has the length that the algorithm takes")]
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &derived).expect("32 bytes"))
    }

    fn seal(&self, id: ExecutionId, name: &str, value: &str) -> String {
        let mut bytes = value.as_bytes().to_vec();
        bytes.resize(value.len().max(1).next_multiple_of(BLOCK), 0);
        let random = random::bytes();
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&random[..NONCE_LEN]);
        #[expect(clippy::expect_used, reason = "fails for values of 64 GiB and more")]
        let tag = self
            .of(id, name)
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad(id, name), &mut bytes)
            .expect("an argument is short");
        format!("{MARK}{}", URL_SAFE_NO_PAD.encode([&nonce, &*bytes, tag.as_ref()].concat()))
    }

    fn open(&self, id: ExecutionId, name: &str, sealed: &str) -> Option<String> {
        let mut bytes = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (nonce, rest) = bytes.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let value = self.of(id, name).open_in_place(nonce, aad(id, name), rest).ok()?;
        let end = value.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        String::from_utf8(value[..end].to_vec()).ok()
    }
}

fn aad(id: ExecutionId, name: &str) -> Aad<Vec<u8>> {
    Aad::from(format!("{id} {name}").into_bytes())
}

/// 32 bytes for one use: each part is told from the next by its length.
fn derive(root: &hkdf::Prk, info: &[&[u8]]) -> [u8; 32] {
    let lengths: Vec<[u8; 8]> = info.iter().map(|part| (part.len() as u64).to_be_bytes()).collect();
    let parts: Vec<&[u8]> = info.iter().zip(&lengths).flat_map(|(part, length)| [&length[..], part]).collect();
    let mut derived = [0; 32];
    #[expect(clippy::expect_used, reason = "HKDF gives up to 8160 bytes")]
    root.expand(&parts, Bytes32).and_then(|okm| okm.fill(&mut derived)).expect("32 bytes");
    derived
}

/// How a controller keeps sensitive arguments.
#[derive(Debug, Clone, Default)]
pub enum Encryption {
    /// Nothing is said: executions with sensitive arguments are refused, rather than kept in the clear by nobody's decision.
    #[default]
    Unset,
    /// In the clear: somebody has decided so.
    Off,
    /// Encrypted with the first key; values under any of them are read. Empty is as [`Encryption::Unset`].
    Keys(Vec<EncryptionKey>),
}

/// Why sensitive arguments cannot be kept, or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SealError {
    /// There is no key at all.
    #[error(
        "job {job} has sensitive arguments ({names}) and this controller has no key to encrypt them with: its operator makes one with \
         `octavius controller new-key FILE` and starts all controllers with --encryption-key-file FILE; `none` keeps them in the clear"
    )]
    NoKey { job: String, names: String },
    /// The key is not among those of this controller.
    #[error(
        "its sensitive arguments are encrypted with key {0}, which this controller does not have: start it with that key's file as one \
         more --encryption-key-file"
    )]
    KeyMissing(KeyId),
    /// Something has changed what was encrypted.
    #[error(
        "its sensitive argument `{name}` is not as it was encrypted with key {key}: it was damaged, or put there by somebody else"
    )]
    Damaged { name: String, key: KeyId },
}

impl SealError {
    /// What a caller is told of it, who asked for something of execution `id`.
    pub(crate) fn told(&self, id: ExecutionId) -> Fault {
        let text = match self {
            Self::NoKey { .. } => self.to_string(),
            Self::KeyMissing(_) | Self::Damaged { .. } => format!("execution {id}: {self}"),
        };
        match self {
            Self::NoKey { .. } => Fault::new(Code::FailedPrecondition, reason::ENCRYPTION_KEY_MISSING, text),
            Self::KeyMissing(key) => {
                tracing::error!(execution = %id, %key, "an encryption key is missing");
                Fault::new(Code::FailedPrecondition, reason::ENCRYPTION_KEY_MISSING, text).with("key", key)
            }
            Self::Damaged { name, .. } => {
                tracing::error!(execution = %id, argument = name, "an encrypted argument is damaged");
                Fault::new(Code::DataLoss, reason::ARGUMENTS_DAMAGED, text)
            }
        }
    }
}

/// Encrypts and opens sensitive arguments. Clones share the keys.
#[derive(Debug, Clone)]
pub(crate) struct Sealer {
    keys: Arc<[EncryptionKey]>,
    /// Whether, without a key, they are kept in the clear.
    clear: bool,
}

impl Sealer {
    pub(crate) fn new(encryption: Encryption) -> Self {
        let (keys, clear) = match encryption {
            Encryption::Unset => (Vec::new(), false),
            Encryption::Off => (Vec::new(), true),
            Encryption::Keys(keys) => (keys, false),
        };
        Self { keys: keys.into(), clear }
    }

    /// The key that is written with.
    pub(crate) fn first(&self) -> Option<KeyId> {
        self.keys.first().map(|key| key.id)
    }

    pub(crate) fn key(&self, id: KeyId) -> Option<&EncryptionKey> {
        self.keys.iter().find(|key| key.id == id)
    }

    /// Encrypts those of a new execution's arguments that its job calls sensitive.
    pub(crate) fn seal(&self, execution: &mut Execution, job: &JobDefinition) -> Result<(), SealError> {
        let sensitive = job.env_vars.args.iter().filter(|argument| argument.sensitive);
        let Some(key) = self.keys.first() else {
            // A default stands in the catalogue for all to read.
            let chosen = sensitive.filter(|argument| {
                let value = execution.arguments.get(&argument.name);
                value.is_some_and(|value| argument.default.as_ref().is_none_or(|default| default.0 != *value))
            });
            let names: Vec<&str> = chosen.map(|argument| argument.name.as_str()).collect();
            if names.is_empty() || self.clear {
                return Ok(());
            }
            return Err(SealError::NoKey { job: job.name.to_string(), names: names.join(", ") });
        };
        let id = execution.id;
        for argument in sensitive {
            if let Some(value) = execution.arguments.get_mut(&argument.name) {
                *value = key.seal(id, &argument.name, value);
                execution.sealed_with = Some(key.id);
            }
        }
        Ok(())
    }

    /// The arguments of an execution as they were given, of `kept` as they are kept.
    pub(crate) fn open(&self, execution: &Execution, mut kept: Arguments) -> Result<Arguments, SealError> {
        let Some(with) = execution.sealed_with else { return Ok(kept) };
        let key = self.key(with).ok_or(SealError::KeyMissing(with))?;
        for (name, value) in &mut kept {
            if let Some(sealed) = value.strip_prefix(MARK) {
                let opened = key.open(execution.id, name, sealed);
                *value = opened.ok_or_else(|| SealError::Damaged { name: name.clone(), key: with })?;
            }
        }
        Ok(kept)
    }

    /// Opened and encrypted anew with the first key; none where that is the one already.
    pub(crate) fn reseal(&self, execution: &Execution, kept: Arguments) -> Result<Option<(KeyId, Arguments)>, SealError> {
        let Some(key) = self.keys.first().filter(|key| execution.sealed_with.is_some_and(|with| with != key.id)) else {
            return Ok(None);
        };
        let is_sealed = |value: &String| value.starts_with(MARK);
        let names: Vec<String> = kept.iter().filter(|(_, value)| is_sealed(value)).map(|(name, _)| name.clone()).collect();
        let mut opened = self.open(execution, kept)?;
        for name in names {
            if let Some(value) = opened.get_mut(&name) {
                *value = key.seal(execution.id, &name, value);
            }
        }
        Ok(Some((key.id, opened)))
    }

    /// What tells one request from another, under the first key where there is one: with low-entropy arguments, a plain digest gives away
    /// what it was made of.
    pub(crate) fn digest(&self, request: &[u8]) -> (Digest, Option<KeyId>) {
        match self.keys.first() {
            None => (Digest::of(request), None),
            Some(key) => (keyed_digest(key, request), Some(key.id)),
        }
    }

    /// The same under the key that a known digest was made with; none where that key is missing.
    pub(crate) fn digest_with(&self, key: Option<KeyId>, request: &[u8]) -> Result<Digest, KeyId> {
        match key {
            None => Ok(Digest::of(request)),
            Some(id) => self.key(id).map(|key| keyed_digest(key, request)).ok_or(id),
        }
    }
}

fn keyed_digest(key: &EncryptionKey, request: &[u8]) -> Digest {
    let derived = derive(&key.root, &[FOR_DIGEST]);
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &derived), request);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(tag.as_ref());
    Digest::from_bytes(bytes)
}

/// Arguments as they may be shown: what is encrypted is masked, without being opened.
pub(crate) fn masked(kept: Arguments) -> Arguments {
    let mask = |value: String| if value.starts_with(MARK) { argument::MASK.to_owned() } else { value };
    kept.into_iter().map(|(name, value)| (name, mask(value))).collect()
}

#[cfg(test)]
mod tests;
