//! Who may: TLS, users, prefixes.

use std::path::Path;

use etcd_client::{Client, Permission, PermissionType};
use octavius_store::{EtcdOptions, Refusal, StoreError, Txn, open_etcd, read_foreign};
use octavius_tests::{Etcd, EtcdOptions as Start};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use crate::{eventually, key, names, next, open, options, put};

/// Why the store does not open, and what has to be put right; nothing where it is away.
async fn refusal(options: EtcdOptions) -> (Option<Refusal>, String) {
    match open_etcd(options).await {
        Err(StoreError::Unavailable(why)) => (None, why),
        Err(StoreError::Refused { refusal, why }) => (Some(refusal), why),
        other => panic!("{other:?}"),
    }
}

/// An authority in `dir`, and a certificate of it for both ends: `NAME-ca.pem`, `NAME.pem`, `NAME.key`.
fn certify(dir: &Path, name: &str) {
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let end_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let end = params.signed_by(&end_key, &issuer).unwrap();
    std::fs::write(dir.join(format!("{name}-ca.pem")), ca.pem()).unwrap();
    std::fs::write(dir.join(format!("{name}.pem")), end.pem()).unwrap();
    std::fs::write(dir.join(format!("{name}.key")), end_key.serialize_pem()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_shown_and_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    certify(dir.path(), "ours");
    certify(dir.path(), "theirs");
    let flag = |name: &str, path: &str| format!("--{name}={}", file(path).display());
    let start = Start::new(1)
        .flag(flag("cert-file", "ours.pem"))
        .flag(flag("key-file", "ours.key"))
        .flag(flag("trusted-ca-file", "ours-ca.pem"))
        .flag("--client-cert-auth");
    let etcd = Etcd::start(&start).unwrap();
    let right = EtcdOptions {
        ca_file: Some(file("ours-ca.pem")),
        client_cert: Some((file("ours.pem"), file("ours.key"))),
        ..options(&etcd, "/o/")
    };
    let store = open_etcd(right.clone()).await.unwrap();
    let start = put(&*store, "k", "x").await;
    let mut watch = store.watch(&key(""), start).await.unwrap();
    put(&*store, "k", "y").await;
    assert_eq!(next(&mut watch).await.events.len(), 1);

    let named = &etcd.endpoints()[0];
    let (_, wrong_ca) = refusal(EtcdOptions { ca_file: Some(file("theirs-ca.pem")), ..right.clone() }).await;
    assert!(wrong_ca.starts_with(named.as_str()) && wrong_ca.contains("invalid peer certificate"), "{wrong_ca}");
    let theirs = Some((file("theirs.pem"), file("theirs.key")));
    for client_cert in [None, theirs] {
        let (_, why) = refusal(EtcdOptions { client_cert, ..right.clone() }).await;
        assert!(why.starts_with(named.as_str()) && why.to_lowercase().contains("certificate"), "{why}");
    }
    let (refused, why) = refusal(EtcdOptions { ca_file: Some(file("none.pem")), ..right.clone() }).await;
    assert!(refused == Some(Refusal::Options) && why.contains("none.pem: No such file"), "{refused:?}: {why}");
    let (refused, why) = refusal(EtcdOptions { endpoints: vec![format!("http://{named}")], ..right.clone() }).await;
    assert!(refused == Some(Refusal::Options) && why.contains("its URL is http"), "{refused:?}: {why}");
    let secure = EtcdOptions { endpoints: vec![format!("https://{named}")], ..right };
    assert!(open_etcd(secure).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn users_sign_in_and_again_when_their_token_is_gone() {
    let mut etcd = Etcd::single().unwrap();
    let mut admin = Client::connect(etcd.endpoints(), None).await.unwrap();
    admin.user_add("root", "secret", None).await.unwrap();
    admin.role_add("root").await.unwrap();
    admin.user_grant_role("root", "root").await.unwrap();
    admin.user_add("octavius", "word", None).await.unwrap();
    admin.role_add("octavius").await.unwrap();
    let permission = Permission::new(PermissionType::Readwrite, "/o/").with_prefix();
    admin.role_grant_permission("octavius", permission).await.unwrap();
    admin.user_grant_role("octavius", "octavius").await.unwrap();
    admin.auth_enable().await.unwrap();

    let right = EtcdOptions { user: Some(("octavius".to_owned(), "word".to_owned())), ..options(&etcd, "/o/") };
    for (user, expected) in
        [(None, "user name is empty"), (Some(("octavius".to_owned(), "wrong".to_owned())), "authentication failed")]
    {
        let (refused, why) = refusal(EtcdOptions { user, ..right.clone() }).await;
        assert!(why.contains(expected) && why.starts_with(&etcd.endpoints()[0]), "{why}");
        assert_eq!(refused, Some(Refusal::Credentials), "{why}");
    }
    let (refused, why) = refusal(EtcdOptions { prefix: "/other/".to_owned(), ..right.clone() }).await;
    assert!(refused == Some(Refusal::Permission) && why.contains("permission denied"), "{refused:?}: {why}");

    let store = open_etcd(right).await.unwrap();
    let start = put(&*store, "k", "x").await;
    let mut watch = store.watch(&key(""), start).await.unwrap();
    let presence = store.announce(key("p"), "x".into(), std::time::Duration::from_secs(60)).await.unwrap();
    assert_eq!(next(&mut watch).await.events.len(), 1);
    // Etcd forgets its tokens when it starts anew.
    etcd.kill(0).unwrap();
    etcd.restart(0).unwrap();
    eventually("signed in again", async || store.get(&key("k")).await).await.unwrap();
    put(&*store, "k", "y").await;
    assert_eq!(next(&mut watch).await.events[0].key(), &key("k"));
    eventually("the presence goes on", async || presence.renew().await).await;
    presence.withdraw().await.unwrap();
    assert_eq!(next(&mut watch).await.events[0].key(), &key("p"));
}

#[tokio::test(flavor = "multi_thread")]
async fn prefixes_keep_to_themselves() {
    let etcd = Etcd::single().unwrap();
    let (one, two, all) = (open(&etcd, "/one/").await, open(&etcd, "/one0").await, open(&etcd, "").await);
    let start = put(&*one, "k", "1").await;
    let (mut seen_by_one, mut seen_by_all) =
        (one.watch(&key(""), start).await.unwrap(), all.watch(&key(""), start).await.unwrap());
    put(&*two, "k", "2").await;
    let end = put(&*one, "l", "3").await;
    assert_eq!(next(&mut seen_by_one).await.revision, end);
    assert_eq!(next(&mut seen_by_all).await.events[0].key().as_str(), "/one0k");
    assert_eq!(next(&mut seen_by_all).await.events[0].key().as_str(), "/one/l");
    assert_eq!((names(&*one, "").await, names(&*two, "").await), (vec!["k".to_owned(), "l".to_owned()], vec!["k".to_owned()]));
    assert_eq!(names(&*all, "").await, ["/one/k", "/one/l", "/one0k"]);
    assert_eq!(one.get(&key("k")).await.unwrap().unwrap().value, "1");

    // What is not ours is read as it is, whatever its keys are.
    let mut foreign = Client::connect(etcd.endpoints(), None).await.unwrap();
    for index in 0..100_u8 {
        foreign.put([b"their/", &[index][..]].concat(), vec![index; 20_000], None).await.unwrap();
    }
    let read = read_foreign(options(&etcd, "/one/"), "their/").await.unwrap();
    assert_eq!(read.len(), 100);
    for (index, (key, value)) in read.iter().enumerate() {
        assert!(key[..] == [b"their/", &[index as u8][..]].concat() && value[..] == vec![index as u8; 20_000]);
    }
    assert!(read_foreign(options(&etcd, "/one/"), "none/").await.unwrap().is_empty());
}

#[tokio::test]
async fn an_etcd_that_is_not_there_is_named() {
    let ports = octavius_tests::free_ports(2).unwrap();
    let endpoints: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let (refused, why) = refusal(EtcdOptions::new(endpoints.clone())).await;
    assert_eq!(refused, None, "{why}");
    assert!(endpoints.iter().all(|endpoint| why.contains(endpoint.as_str())) && why.contains("refused"), "{why}");
    let (_, why) = refusal(EtcdOptions::new(Vec::new())).await;
    assert!(why.contains("no endpoint"), "{why}");
    let (refused, why) = refusal(EtcdOptions::new(vec!["not a host".to_owned()])).await;
    assert!(refused == Some(Refusal::Options) && why.contains("not a host"), "{refused:?}: {why}");
    let etcd = Etcd::single().unwrap();
    let user = Some(("octavius".to_owned(), "word".to_owned()));
    let (refused, why) = refusal(EtcdOptions { user, ..options(&etcd, "/o/") }).await;
    assert_eq!(refused, Some(Refusal::NoUsers), "{why}");

    // One that goes away is not available, and nothing was made.
    let mut etcd = Etcd::single().unwrap();
    let store = open(&etcd, "/o/").await;
    put(&*store, "k", "x").await;
    etcd.kill(0).unwrap();
    eventually("unavailable", async || match store.commit(Txn::new().put(key("k"), "y")).await {
        Err(StoreError::Unavailable(why)) => Ok(why),
        other => Err(other),
    })
    .await;
    assert!(matches!(store.get(&key("k")).await, Err(StoreError::Unavailable(_))));
    etcd.restart(0).unwrap();
    eventually("back", async || store.get(&key("k")).await).await;
}
