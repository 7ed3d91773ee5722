//! TLS on the port: who is let in, what is told those who are not, and certificates that change while it is listened on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use octavius_controller::{Controller, ControllerError, TlsFiles};
use octavius_core::ExecutionId;
use octavius_proto::client::{Address, ConnectError, Connection};
use octavius_proto::pem::PemError;
use octavius_proto::tls::{Authorities, Tls, TlsSettings, TlsTrouble};
use octavius_proto::v1::{self, ExecutionState as S};
use octavius_tests::{Authority, Days, PairFiles};
use tonic::Code;

use crate::fake::{Fake, hello};
use crate::harness::{House, PATIENCE, eventually, soon};
use crate::waiting::http;

const JOB: &str = r#"{"name":"j","command":["true"]}"#;

/// A controller with TLS, whose certificate is for this machine's own addresses, and the authority that has signed it.
pub(crate) struct Secure {
    pub(crate) house: House,
    pub(crate) authority: Authority,
}

impl Secure {
    pub(crate) async fn open(client_ca: Option<&Authority>) -> Self {
        let mut house = House::open().await;
        house.apply(&[JOB]).await;
        house.stop().await;
        let authority = Authority::new("ours").unwrap();
        let PairFiles { certificate, key } = server(&authority, house.dir());
        let client_ca = client_ca.map(|clients| clients.write(&house.dir().join("clients.pem")).unwrap());
        house.tls = Some(TlsFiles { certificate, key, client_ca });
        house.start_again().await;
        Self { house, authority }
    }

    fn settings(&self) -> TlsSettings {
        trusting(&self.authority)
    }

    async fn connect(&self, settings: TlsSettings) -> Result<Connection, ConnectError> {
        connect(&self.house, settings).await
    }

    /// What a client with these settings is told, at the latest by its first call.
    async fn trouble(&self, settings: TlsSettings) -> TlsTrouble {
        match self.connect(settings).await {
            Err(ConnectError::Untrusted { trouble, .. }) => trouble,
            Err(error) => panic!("{error}"),
            Ok(connection) => {
                let status = who(&connection).await.unwrap_err();
                connection.trouble().unwrap_or_else(|| panic!("{status:?}"))
            }
        }
    }
}

fn server(authority: &Authority, dir: &Path) -> PairFiles {
    authority.server(dir, "server", &["localhost", "127.0.0.1"], Days::Now).unwrap()
}

fn trusting(authority: &Authority) -> TlsSettings {
    TlsSettings { authorities: Authorities::Text(authority.pem().to_owned()), ..TlsSettings::default() }
}

fn address(house: &House, settings: TlsSettings) -> Address {
    Address::parse(&house.address.to_string()).unwrap().secured(&Arc::new(Tls::new(settings).unwrap())).unwrap()
}

async fn connect(house: &House, settings: TlsSettings) -> Result<Connection, ConnectError> {
    Connection::open(&[address(house, settings)], Some(&house.token), PATIENCE).await
}

fn identity(files: PairFiles) -> Option<(PathBuf, PathBuf)> {
    Some((files.certificate, files.key))
}

async fn who(connection: &Connection) -> Result<String, tonic::Status> {
    Ok(connection.admin().who_am_i(v1::WhoAmIRequest {}).await?.into_inner().user)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_trusts_the_certificate_is_served_and_noted_with_their_address() {
    let secure = Secure::open(None).await;
    let by_ip = secure.connect(secure.settings()).await.unwrap();
    assert_eq!(who(&by_ip).await.unwrap(), "admin");
    let named = TlsSettings { server_name: Some("localhost".to_owned()), ..secure.settings() };
    assert_eq!(who(&secure.connect(named).await.unwrap()).await.unwrap(), "admin");
    // In a file it is the same, and https in the address too.
    let ca = secure.authority.write(&secure.house.dir().join("ca.pem")).unwrap();
    let tls = Tls::new(TlsSettings { authorities: Authorities::File(ca), ..TlsSettings::default() }).unwrap();
    let address = Address::parse(&format!("https://localhost:{}", secure.house.address.port())).unwrap();
    let address = address.secured(&Arc::new(tls)).unwrap();
    assert_eq!(who(&Connection::open(&[address], Some(&secure.house.token), PATIENCE).await.unwrap()).await.unwrap(), "admin");

    by_ip.admin().pause_jobs(v1::PauseJobsRequest { job: "j".to_owned(), ..Default::default() }).await.unwrap();
    let mut trail = by_ip.admin().read_audit(v1::ReadAuditRequest::default()).await.unwrap().into_inner();
    let mut from = None;
    while let Some(page) = trail.message().await.unwrap() {
        from = page.records.iter().find(|record| record.action == "job.pause").map(|record| record.from.clone()).or(from);
        if from.is_some() {
            break;
        }
    }
    assert_eq!(from.as_deref(), Some("127.0.0.1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_trust_it_is_told_why() {
    let secure = Secure::open(None).await;
    let stranger = Authority::new("theirs").unwrap();
    assert_eq!(secure.trouble(trusting(&stranger)).await, TlsTrouble::UnknownAuthority);
    let system = TlsSettings::default();
    assert_eq!(secure.trouble(system).await, TlsTrouble::UnknownAuthority);
    let other = TlsSettings { server_name: Some("ctl.example".to_owned()), ..secure.settings() };
    let expected = TlsTrouble::OtherName { expected: "ctl.example".to_owned(), presented: "for localhost, 127.0.0.1".to_owned() };
    assert_eq!(secure.trouble(other).await, expected);

    for days in [Days::Past, Days::Future] {
        let mut house = House::open().await;
        house.stop().await;
        let PairFiles { certificate, key } = secure.authority.server(house.dir(), "server", &["127.0.0.1"], days).unwrap();
        house.tls = Some(TlsFiles { certificate, key, client_ca: None });
        house.start_again().await;
        let Err(ConnectError::Untrusted { trouble, tried }) = connect(&house, secure.settings()).await else {
            panic!("a certificate of {days:?} was trusted");
        };
        let fits = matches!((days, &trouble), (Days::Past, TlsTrouble::Expired(_)) | (Days::Future, TlsTrouble::NotYetValid(_)));
        assert!(fits && tried[0].contains("(20"), "{days:?}: {tried:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_side_without_tls_is_told_so_and_sends_no_token() {
    let secure = Secure::open(None).await;
    // TLS at the port, none at the client.
    let clear = Address::parse(&secure.house.address.to_string()).unwrap();
    let connection = Connection::open(&[clear], Some(&secure.house.token), PATIENCE).await.unwrap();
    let status = who(&connection).await.unwrap_err();
    assert_eq!(connection.trouble(), Some(TlsTrouble::TlsOnly), "{status:?}");
    // None at the port, TLS at the client: it never goes on without.
    let house = House::open().await;
    let Err(error) = connect(&house, secure.settings()).await else { panic!("connected") };
    assert!(matches!(&error, ConnectError::Untrusted { trouble: TlsTrouble::Clear, .. }), "{error:?}");
    // An https address needs no setting for that.
    let https = Address::parse(&format!("https://{}", house.address)).unwrap();
    let Err(error) = Connection::open(&[https], Some(&house.token), PATIENCE).await else { panic!("connected") };
    assert!(matches!(&error, ConnectError::Untrusted { trouble: TlsTrouble::Clear, .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_an_authority_for_clients_nobody_is_let_in_without_its_certificate_nor_without_a_token() {
    let (clients, strangers) = (Authority::new("clients").unwrap(), Authority::new("strangers").unwrap());
    let secure = Secure::open(Some(&clients)).await;
    let dir = secure.house.dir();
    let shows = |files: PairFiles| TlsSettings { identity: identity(files), ..secure.settings() };
    let good = shows(clients.client(dir, "ann", Days::Now).unwrap());
    assert_eq!(who(&secure.connect(good.clone()).await.unwrap()).await.unwrap(), "admin");
    let without_token = Connection::open(&[address(&secure.house, good)], None, PATIENCE).await.unwrap();
    assert_eq!(who(&without_token).await.unwrap_err().code(), Code::Unauthenticated);

    assert_eq!(secure.trouble(secure.settings()).await, TlsTrouble::CertificateWanted);
    let bad = [
        strangers.client(dir, "eve", Days::Now).unwrap(),
        clients.client(dir, "old", Days::Past).unwrap(),
        clients.server(dir, "server2", &["localhost"], Days::Now).unwrap(),
    ];
    for files in bad {
        let trouble = secure.trouble(shows(files.clone())).await;
        assert!(matches!(trouble, TlsTrouble::CertificateRefused(_)), "{files:?}: {trouble:?}");
    }
}

/// A renewed certificate costs nobody a connection.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_under_running_streams() {
    let secure = Secure::open(None).await;
    let house = &secure.house;
    let dir = house.dir();
    let admin = secure.connect(secure.settings()).await.unwrap();
    let registration = v1::CreateTokenRequest { role: v1::Role::Registration.into(), user: "e".to_owned(), ..Default::default() };
    let registration = admin.admin().create_token(registration).await.unwrap().into_inner().token;
    let at = [address(house, secure.settings())];
    let registering = Connection::open(&at, Some(&registration), PATIENCE).await.unwrap();
    let request = v1::RegisterExecutorRequest { id: "e".to_owned(), ..Default::default() };
    let token = registering.executors().register_executor(request).await.unwrap().into_inner().token;
    let fake = Fake { connection: Connection::open(&at, Some(&token), PATIENCE).await.unwrap() };
    let mut session = fake.session(hello(1)).await.unwrap();
    let request = v1::ExecuteRequest { id: ExecutionId::generate().to_string(), job: "j".to_owned(), ..Default::default() };
    let id = admin.executions().execute(request).await.unwrap().into_inner().id;
    let claim = session.assignment().await;
    fake.begins(&claim).await;
    let watch = v1::WatchExecutionRequest { id: id.clone() };
    let mut watch = admin.executions().watch_execution(watch).await.unwrap().into_inner();
    soon("what it is now", watch.message()).await.unwrap().unwrap();

    // A certificate of another authority, first with the key of the old one.
    let next = Authority::new("next").unwrap();
    let away = dir.join("away");
    std::fs::create_dir(&away).unwrap();
    let renewed = server(&next, &away);
    let there = house.tls.clone().unwrap();
    let swap = |from: &Path, to: &Path| std::fs::rename(from, to).unwrap();
    swap(&renewed.certificate, &there.certificate);
    who(&secure.connect(secure.settings()).await.unwrap()).await.unwrap();
    swap(&renewed.key, &there.key);
    let anew = eventually("the new certificate to be shown", async || {
        connect(house, trusting(&next)).await.map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(who(&anew).await.unwrap(), "admin");
    assert_eq!(secure.trouble(secure.settings()).await, TlsTrouble::UnknownAuthority);

    // What stood stands, and goes on to its end.
    fake.completes(&claim, b"said\n").await;
    loop {
        let seen = soon("the end", watch.message()).await.unwrap().unwrap();
        if seen.execution.is_some_and(|execution| execution.state() == S::Succeeded) {
            break;
        }
    }
    who(&admin).await.unwrap();
    drop(session);
}

/// Whoever watches is told in time, and a renewal ends the alert.
#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_says_when_the_certificate_that_is_shown_ends() {
    let mut house = House::open().await;
    house.stop().await;
    let authority = Authority::new("ours").unwrap();
    let begun = jiff::Timestamp::now().as_second();
    let PairFiles { certificate, key } = authority.server(house.dir(), "server", &["127.0.0.1"], Days::Past).unwrap();
    house.tls = Some(TlsFiles { certificate, key, client_ca: None });
    house.start_again().await;
    const DAY: i64 = 24 * 3600;
    let is_within_a_minute_of = async |expected: i64| {
        let (_, body) = http(house.metrics_address(), "GET", "/metrics").await;
        let ends = body.lines().find_map(|line| line.strip_prefix("octavius_tls_certificate_expiry_timestamp_seconds "));
        let ends: i64 = ends.ok_or("no such metric")?.parse().map_err(|error| format!("{error}"))?;
        if (ends - expected).abs() <= 60 { Ok(()) } else { Err(format!("{ends}, not about {expected}")) }
    };
    is_within_a_minute_of(begun - DAY).await.unwrap();
    server(&authority, house.dir());
    eventually("the renewed certificate's end to be told", async || is_within_a_minute_of(begun + DAY).await).await;

    let in_the_clear = House::open().await;
    let (_, body) = http(in_the_clear.metrics_address(), "GET", "/metrics").await;
    assert!(!body.contains("octavius_tls_"), "{body}");
}

/// As Kubernetes does it: the files are links through a link to a folder, and that one is replaced.
#[tokio::test(flavor = "multi_thread")]
async fn a_swapped_folder_renews_the_certificate_and_the_authority_of_clients() {
    let mut house = House::open().await;
    house.stop().await;
    let mount = house.dir().join("mount");
    let ours = Authority::new("ours").unwrap();
    let fill = |version: &str, clients: &Authority| {
        let folder = mount.join(version);
        std::fs::create_dir_all(&folder).unwrap();
        server(&ours, &folder);
        clients.write(&folder.join("ca.pem")).unwrap();
        std::os::unix::fs::symlink(version, mount.join("..new")).unwrap();
        std::fs::rename(mount.join("..new"), mount.join("..data")).unwrap();
    };
    let (first, second) = (Authority::new("first").unwrap(), Authority::new("second").unwrap());
    fill("..1", &first);
    let [certificate, key, ca] = ["server.pem", "server.key", "ca.pem"].map(|name| {
        std::os::unix::fs::symlink(format!("..data/{name}"), mount.join(name)).unwrap();
        mount.join(name)
    });
    house.tls = Some(TlsFiles { certificate, key, client_ca: Some(ca) });
    house.start_again().await;
    // The client's own certificate changes too, under the same connection settings.
    let dir = house.dir();
    let shown = first.client(dir, "ann", Days::Now).unwrap();
    let at = [address(&house, TlsSettings { identity: identity(shown), ..trusting(&ours) })];
    let open = async || {
        let connection = Connection::open(&at, Some(&house.token), PATIENCE).await.map_err(|error| error.to_string())?;
        who(&connection).await.map_err(|status| status.to_string())
    };
    assert_eq!(open().await.unwrap(), "admin");
    fill("..2", &second);
    eventually("the old authority of clients to be forgotten", async || match open().await {
        Ok(_) => Err("still let in".to_owned()),
        Err(_) => Ok(()),
    })
    .await;
    second.client(dir, "ann", Days::Now).unwrap();
    assert_eq!(open().await.unwrap(), "admin");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_does_not_begin_with_certificates_that_cannot_be_used() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut house = House::open().await;
    house.stop().await;
    let dir = house.dir().to_owned();
    let authority = Authority::new("ours").unwrap();
    let (one, other) = (server(&authority, &dir), authority.client(&dir, "other", Days::Now).unwrap());
    let files = |certificate: &Path, key: &Path| TlsFiles { certificate: certificate.into(), key: key.into(), client_ca: None };
    let begin = async |tls: TlsFiles| {
        let options = octavius_controller::ControllerOptions { tls: Some(tls), ..house.options(house.token_file()) };
        match Controller::start(options).await {
            Err(ControllerError::Certificates(error)) => Err(error),
            Err(error) => panic!("{error}"),
            Ok(controller) => {
                controller.stop().await;
                Ok(())
            }
        }
    };
    let refused = begin(files(&one.certificate, &other.key)).await.unwrap_err();
    assert!(matches!(refused, PemError::Mismatch { .. }), "{refused}");
    let refused = begin(files(&one.key, &one.key)).await.unwrap_err();
    assert!(matches!(refused, PemError::Content { .. }) && refused.to_string().contains("no certificate"), "{refused}");
    std::fs::set_permissions(&one.certificate, std::fs::Permissions::from_mode(0o600)).unwrap();
    let refused = begin(files(&one.certificate, &one.certificate)).await.unwrap_err();
    assert!(matches!(refused, PemError::Content { .. }) && refused.to_string().contains("no private key"), "{refused}");
    let refused = begin(files(&dir.join("none.pem"), &one.key)).await.unwrap_err();
    assert!(matches!(refused, PemError::Read { .. }) && refused.to_string().contains("none.pem"), "{refused}");
    let refused = begin(TlsFiles { client_ca: Some(one.key.clone()), ..files(&one.certificate, &one.key) }).await.unwrap_err();
    assert!(refused.to_string().contains("no certificate"), "{refused}");
    for (mode, good) in [(0o600, true), (0o640, true), (0o440, true), (0o644, false), (0o604, false), (0o601, false)] {
        std::fs::set_permissions(&one.key, std::fs::Permissions::from_mode(mode)).unwrap();
        let begun = begin(files(&one.certificate, &one.key)).await;
        assert!(begun.is_ok() == good && (good || matches!(begun, Err(PemError::Shared { .. }))), "{mode:o}: {begun:?}");
    }
}
