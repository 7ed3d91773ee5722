//! What an encrypted argument withstands.

use octavius_core::execution::Submission;
use octavius_core::{CatalogName, Timestamp, Timing};
use proptest::prelude::*;

use super::*;

fn key() -> EncryptionKey {
    EncryptionKey::parse(&EncryptionKey::generate()).unwrap()
}

fn sealer(keys: &[&EncryptionKey]) -> Sealer {
    Sealer::new(Encryption::Keys(keys.iter().map(|&key| key.clone()).collect()))
}

fn job() -> JobDefinition {
    let args = r#"[{"name":"who"},{"name":"pin","sensitive":true},{"name":"code","sensitive":true,"default":"0000"}]"#;
    serde_json::from_str(&format!(r#"{{"name":"refund","env_vars":{{"args":{args}}}}}"#)).unwrap()
}

fn given(pairs: &[(&str, &str)]) -> Arguments {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn execution(id: u128, arguments: &Arguments) -> Execution {
    let (id, at) = (ExecutionId::from_bits(id), Timestamp::UNIX_EPOCH);
    let submission = Submission { id, arguments: arguments.clone(), user: "ann".into(), at, timeout: None, slot: None };
    Execution::submit(&job(), CatalogName::new("c").unwrap(), 1, submission, &Timing::default())
}

fn sealed(sealer: &Sealer, id: u128, arguments: &Arguments) -> Execution {
    let mut execution = execution(id, arguments);
    sealer.seal(&mut execution, &job()).unwrap();
    execution
}

fn opened(sealer: &Sealer, execution: &Execution) -> Result<Arguments, SealError> {
    sealer.open(execution, execution.arguments.clone())
}

#[test]
fn what_is_sensitive_is_kept_so_that_only_the_key_opens_it() {
    let (key, other) = (key(), key());
    let arguments = given(&[("who", "bob"), ("pin", "hunter2"), ("code", "")]);
    let kept = sealed(&sealer(&[&key]), 7, &arguments);
    assert_eq!((kept.arguments["who"].as_str(), kept.sealed_with), ("bob", Some(key.id())));
    assert!(!serde_json::to_string(&kept).unwrap().contains("hunter2"));
    assert_eq!(opened(&sealer(&[&key]), &kept).unwrap(), arguments);
    assert_eq!(opened(&sealer(&[&other, &key]), &kept).unwrap(), arguments, "any of the keys reads");
    assert_eq!(opened(&sealer(&[&other]), &kept), Err(SealError::KeyMissing(key.id())));
    let shown = masked(kept.arguments.clone());
    assert_eq!(shown, given(&[("who", "bob"), ("pin", argument::MASK), ("code", argument::MASK)]));
    let again = sealed(&sealer(&[&key]), 7, &arguments);
    assert_ne!(again.arguments["pin"], kept.arguments["pin"], "equal values do not look equal");
    assert_eq!(kept.arguments["pin"].len(), kept.arguments["code"].len(), "nor tell a short one's length");
}

#[test]
fn values_cannot_be_swapped_between_arguments_or_executions() {
    let key = key();
    let sealer = sealer(&[&key]);
    let arguments = given(&[("pin", "hunter2"), ("code", "swordfish")]);
    let (mut one, two) = (sealed(&sealer, 1, &arguments), sealed(&sealer, 2, &arguments));
    let damaged = |name: &str| Err(SealError::Damaged { name: name.to_owned(), key: key.id() });
    one.arguments.insert("pin".to_owned(), two.arguments["pin"].clone());
    assert_eq!(opened(&sealer, &one), damaged("pin"));
    let mut swapped = two.clone();
    swapped.arguments = given(&[("pin", &two.arguments["code"]), ("code", &two.arguments["pin"])]);
    assert_eq!(opened(&sealer, &swapped), damaged("code"));
}

#[test]
fn a_value_under_another_key_of_the_same_name_is_told_as_damaged() {
    let (key, other) = (key(), key());
    let mut kept = sealed(&sealer(&[&key]), 1, &given(&[("pin", "hunter2")]));
    kept.sealed_with = Some(other.id());
    assert_eq!(opened(&sealer(&[&other]), &kept), Err(SealError::Damaged { name: "pin".to_owned(), key: other.id() }));
}

#[test]
fn without_a_key_nobody_decides_by_accident_that_values_are_kept_in_the_clear() {
    let arguments = given(&[("who", "bob"), ("pin", "hunter2"), ("code", "0000")]);
    let unset = Sealer::new(Encryption::Unset);
    let error = unset.seal(&mut execution(1, &arguments), &job()).unwrap_err();
    assert_eq!(error, SealError::NoKey { job: "refund".to_owned(), names: "pin".to_owned() });
    let told = error.told(ExecutionId::from_bits(1));
    assert!(told.code == Code::FailedPrecondition && told.message.contains("new-key") && !told.message.contains("hunter2"));
    // What the job says itself is no secret of who runs it: schedules go on.
    let mut scheduled = execution(1, &given(&[("code", "0000")]));
    unset.seal(&mut scheduled, &job()).unwrap();
    assert_eq!(scheduled.sealed_with, None);
    let mut clear = execution(1, &arguments);
    Sealer::new(Encryption::Off).seal(&mut clear, &job()).unwrap();
    assert_eq!((clear.arguments, clear.sealed_with), (arguments, None));
}

#[test]
fn a_key_is_changed_without_the_value_being_changed() {
    let (old, new) = (key(), key());
    let arguments = given(&[("who", "bob"), ("pin", "hunter2")]);
    let mut kept = sealed(&sealer(&[&old]), 1, &arguments);
    let both = sealer(&[&new, &old]);
    let (with, resealed) = both.reseal(&kept, kept.arguments.clone()).unwrap().unwrap();
    assert_eq!((with, resealed["who"].as_str()), (new.id(), "bob"));
    (kept.sealed_with, kept.arguments) = (Some(with), resealed);
    assert_eq!(opened(&sealer(&[&new]), &kept).unwrap(), arguments);
    assert_eq!(both.reseal(&kept, kept.arguments.clone()).unwrap(), None, "once is enough");
    assert_eq!(sealer(&[&old]).reseal(&kept, kept.arguments.clone()), Err(SealError::KeyMissing(new.id())));
}

#[test]
fn a_request_is_known_again_under_the_key_of_then_and_cannot_be_guessed_without_it() {
    let (old, new) = (key(), key());
    let (digest, with) = sealer(&[&old]).digest(b"pin 1234");
    assert_ne!(digest, Digest::of(b"pin 1234"));
    assert_eq!(sealer(&[&new, &old]).digest_with(with, b"pin 1234"), Ok(digest));
    assert_ne!(sealer(&[&new, &old]).digest_with(with, b"pin 1235"), Ok(digest));
    assert_eq!(sealer(&[&new]).digest_with(with, b"pin 1234"), Err(old.id()));
    assert_eq!(sealer(&[]).digest(b"x"), (Digest::of(b"x"), None));
}

#[test]
fn a_key_is_read_as_it_was_written_and_nothing_else_is_a_key() {
    let text = EncryptionKey::generate();
    let key = EncryptionKey::parse(&format!(" {text}\n")).unwrap();
    assert_eq!(key.id(), EncryptionKey::parse(&text).unwrap().id());
    assert_eq!(format!("{key:?}"), format!("EncryptionKey({})", key.id()));
    for wrong in ["", "hunter2", &text[4..], &format!("{text}{text}")] {
        assert_eq!(EncryptionKey::parse(wrong).unwrap_err(), NotAKey, "{wrong}");
    }
    // What stands in a store must be readable for ever. Computed with other programs: Python's hmac, and OpenSSL's AES-256-GCM.
    let known = EncryptionKey::parse("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap();
    assert_eq!(known.id().to_string(), "49bad5a9");
    let kept = "ZGVmZ2hpamtsbW5vWklnCPBqaUdCgystSXQV_bapoZeMfN16zcRkMKCiBE1a1d4iAtWVBsGuXAawYNEu";
    assert_eq!(known.open(ExecutionId::from_bits(7), "pin", kept).as_deref(), Some("hunter2"));
}

proptest! {
    #[test]
    fn a_changed_value_is_never_opened(value in "[^\0]{0,80}", position: prop::sample::Index, bit in 0..8u8) {
        let key = key();
        let id = ExecutionId::from_bits(1);
        let sealed = key.seal(id, "pin", &value);
        let text = sealed.strip_prefix(MARK).unwrap();
        prop_assert_eq!(key.open(id, "pin", text), Some(value));
        let mut bytes = URL_SAFE_NO_PAD.decode(text).unwrap();
        let at = position.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(key.open(id, "pin", &URL_SAFE_NO_PAD.encode(&bytes)), None);
        prop_assert_eq!(key.open(id, "pin", &URL_SAFE_NO_PAD.encode(&bytes[..at])), None);
    }
}
