//! A controller of a test's own, and what every test asks of it. Its store is embedded, or an etcd of its own where the environment says
//! `OCTAVIUS_TEST_STORE=etcd`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use octavius_controller::{
    Archive, AuditExport, Clock, Controller, ControllerOptions, Encryption, EncryptionKey, IssuerConfig, PageListen, Retention,
    TlsFiles, WebhookConfig,
};
use octavius_core::{Digest, ExecutionId, JobDefinition, Timing};
use octavius_proto::Fault;
use octavius_proto::client::{Address, Connection};
use octavius_proto::v1::{self, ExecutionState, Role};
use octavius_store::{EmbeddedOptions, EtcdOptions, Store, open_embedded, open_etcd};
use octavius_tests::Etcd;
use tempfile::TempDir;
use tonic::Status;

/// The longest that anything here is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Everything at a twentieth, but for deadlines that a busy machine would miss, and pauses between attempts, which have tests of their own.
pub(crate) fn timing() -> Timing {
    let back_off_max = Duration::from_millis(2);
    Timing { ping_deadline: Duration::from_secs(10), back_off_max, ..Timing::faster(20) }
}

/// A new key for sensitive arguments.
pub(crate) fn encryption_key() -> EncryptionKey {
    EncryptionKey::parse(&EncryptionKey::generate()).unwrap()
}

/// A controller in a folder of its own.
pub(crate) struct House {
    controller: Option<Controller>,
    store: Option<Arc<dyn Store>>,
    pub(crate) address: SocketAddr,
    pub(crate) token: String,
    pub(crate) timing: Timing,
    pub(crate) retention: Retention,
    pub(crate) audit_export: AuditExport,
    clock: Clock,
    /// How it keeps sensitive arguments: under a key of its own, where a test does not say otherwise.
    pub(crate) encryption: Encryption,
    /// The folder of its archive, if it has one.
    pub(crate) archive: Option<PathBuf>,
    pub(crate) log_limit: u64,
    /// The certificates of TLS, where it speaks that.
    pub(crate) tls: Option<TlsFiles>,
    /// Whose JSON Web Tokens it takes.
    pub(crate) issuers: Vec<IssuerConfig>,
    /// Who is told what comes of executions.
    pub(crate) webhooks: Vec<WebhookConfig>,
    /// Where it serves the web page, where it does.
    pub(crate) page: Option<PageListen>,
    dir: TempDir,
    /// The etcd that holds the store, if one does.
    etcd: Option<Etcd>,
}

/// An etcd, if the environment asks for one.
async fn etcd() -> Option<Etcd> {
    match std::env::var("OCTAVIUS_TEST_STORE").as_deref() {
        Ok("etcd") => Some(tokio::task::spawn_blocking(Etcd::single).await.unwrap().unwrap()),
        Ok("embedded") | Err(_) => None,
        Ok(other) => panic!("OCTAVIUS_TEST_STORE={other}: etcd or embedded is expected"),
    }
}

/// Opens the store in this folder, or in this etcd.
async fn open_store(dir: &TempDir, etcd: Option<&Etcd>) -> Arc<dyn Store> {
    match etcd {
        // Other tests keep the machine and its disk busy: an etcd that does not answer for a while is not what is tested here.
        Some(etcd) => {
            let timeout = std::time::Duration::from_secs(15);
            open_etcd(EtcdOptions { timeout, ..EtcdOptions::new(etcd.endpoints()) }).await.unwrap()
        }
        None => open_embedded(&dir.path().join("store"), EmbeddedOptions::default()).unwrap(),
    }
}

impl House {
    pub(crate) async fn open() -> Self {
        Self::with(timing()).await
    }

    pub(crate) async fn with(timing: Timing) -> Self {
        Self::over(timing, |store| store).await
    }

    /// A controller without an archive: a little of each log is in the store.
    pub(crate) async fn without_archive() -> Self {
        let mut house = Self::open().await;
        house.stop().await;
        house.archive = None;
        house.log_limit = octavius_core::limit::LOG_BYTES_IN_STORE;
        house.store().commit(octavius_store::Txn::new().delete(octavius_store::key::archive())).await.unwrap();
        house.start_again().await;
        house
    }

    /// Where it keeps its files.
    pub(crate) fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// What another controller would start with, but for its archive.
    pub(crate) fn options_with(&self, archive: Option<Archive>) -> ControllerOptions {
        ControllerOptions { archive, ..self.options(self.dir.path().join("none")) }
    }

    /// A controller that keeps what is over for so long.
    pub(crate) async fn keeping(timing: Timing, retention: Retention) -> Self {
        Self::build(timing, retention, Clock::default(), Vec::new(), |store| store).await
    }

    /// A controller that goes by this clock, and its neighbours with it.
    pub(crate) async fn by(clock: Clock) -> Self {
        Self::by_and_with(clock, timing()).await
    }

    pub(crate) async fn by_and_with(clock: Clock, timing: Timing) -> Self {
        Self::build(timing, Retention::default(), clock, Vec::new(), |store| store).await
    }

    /// A controller over what `wrap` makes of the store.
    pub(crate) async fn over(timing: Timing, wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>) -> Self {
        Self::build(timing, Retention::default(), Clock::default(), Vec::new(), wrap).await
    }

    /// A controller with webhooks, over what `wrap` makes of the store.
    pub(crate) async fn telling(
        timing: Timing,
        webhooks: Vec<WebhookConfig>,
        wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>,
    ) -> Self {
        Self::build(timing, Retention::default(), Clock::default(), webhooks, wrap).await
    }

    async fn build(
        timing: Timing,
        retention: Retention,
        clock: Clock,
        webhooks: Vec<WebhookConfig>,
        wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let etcd = etcd().await;
        let store = open_store(&dir, etcd.as_ref()).await;
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut house = Self {
            controller: None,
            store: Some(wrap(store)),
            address,
            token: String::new(),
            timing,
            retention,
            audit_export: AuditExport::default(),
            clock,
            encryption: Encryption::Keys(vec![encryption_key()]),
            archive: Some(dir.path().join("archive")),
            log_limit: octavius_core::limit::LOG_BYTES,
            tls: None,
            issuers: Vec::new(),
            webhooks,
            page: None,
            dir,
            etcd,
        };
        house.start().await;
        house
    }

    pub(crate) fn options(&self, bootstrap_token_file: PathBuf) -> ControllerOptions {
        ControllerOptions {
            store: Arc::clone(self.store()),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: self.tls.clone(),
            bootstrap_token_file,
            timing: self.timing,
            retention: self.retention,
            archive: self.archive.as_ref().map(|folder| Archive::open(folder.to_str().unwrap()).unwrap()),
            log_limit: self.log_limit,
            audit_export: self.audit_export.clone(),
            compact: true,
            strategy: octavius_core::dispatch::Strategy::default(),
            limits: octavius_controller::RequestLimits::default(),
            encryption: self.encryption.clone(),
            issuers: self.issuers.clone(),
            webhooks: self.webhooks.clone(),
            metrics_listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            page: self.page.clone(),
            clock: self.clock.clone(),
        }
    }

    async fn start(&mut self) {
        let controller = Controller::start(self.options(self.token_file())).await.unwrap();
        self.address = controller.address();
        self.controller = Some(controller);
        self.token = std::fs::read_to_string(self.token_file()).unwrap().trim().to_owned();
    }

    pub(crate) fn token_file(&self) -> PathBuf {
        self.dir.path().join("admin.token")
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        self.store.as_ref().unwrap()
    }

    /// Where the controller serves its metrics.
    pub(crate) fn metrics_address(&self) -> SocketAddr {
        self.controller.as_ref().unwrap().metrics_address().unwrap()
    }

    /// Where it serves the web page.
    pub(crate) fn page_address(&self) -> SocketAddr {
        self.controller.as_ref().unwrap().page_address().unwrap()
    }

    pub(crate) fn id(&self) -> &str {
        self.controller.as_ref().unwrap().id()
    }

    /// Stops the controller; how long it took.
    pub(crate) async fn stop(&mut self) -> Duration {
        let began = Instant::now();
        self.controller.take().unwrap().stop().await;
        began.elapsed()
    }

    /// Starts another controller on the same store, closed and opened again as a new process would.
    pub(crate) async fn start_again(&mut self) {
        eventually("nobody to hold the store of a stopped controller", async || {
            let holders = Arc::strong_count(self.store());
            if holders == 1 { Ok(()) } else { Err(format!("{holders} holders")) }
        })
        .await;
        drop(self.store.take());
        self.store = Some(open_store(&self.dir, self.etcd.as_ref()).await);
        self.start().await;
    }

    /// A second controller on the same store, as behind a load balancer.
    pub(crate) async fn neighbour(&self) -> Controller {
        Controller::start(self.options(self.dir.path().join("none"))).await.unwrap()
    }

    pub(crate) async fn connect(&self, token: Option<&str>) -> Connection {
        connect(self.address, token).await
    }

    pub(crate) async fn admin(&self) -> Connection {
        self.connect(Some(&self.token)).await
    }

    pub(crate) async fn token(&self, role: Role, user: &str, groups: &[&str]) -> v1::CreateTokenResponse {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        let uses = if role == Role::Registration { 10 } else { 0 };
        let request = v1::CreateTokenRequest { role: role.into(), user: user.to_owned(), groups, uses, ..Default::default() };
        self.admin().await.admin().create_token(request).await.unwrap().into_inner()
    }

    /// A connection of someone of this role.
    pub(crate) async fn person(&self, role: Role, user: &str, groups: &[&str]) -> Connection {
        let token = self.token(role, user, groups).await.token;
        self.connect(Some(&token)).await
    }

    /// Registers an executor; its token.
    pub(crate) async fn register(&self, id: &str) -> String {
        let registration = self.person(Role::Registration, "operator", &[]).await;
        let request = v1::RegisterExecutorRequest { id: id.to_owned(), ..Default::default() };
        registration.executors().register_executor(request).await.unwrap().into_inner().token
    }

    /// Makes catalogue `c` hold these jobs beside those that it has.
    pub(crate) async fn apply(&self, jobs: &[&str]) -> v1::Revision {
        let admin = self.admin().await;
        let head = head(&admin, "c").await;
        apply(&admin, header("c", head, jobs), jobs).await.unwrap()
    }

    /// Asks for a run as the admin; the execution's id.
    pub(crate) async fn execute(&self, job: &str) -> String {
        execute(&self.admin().await, job, &[]).await.unwrap()
    }
}

pub(crate) async fn connect(address: SocketAddr, token: Option<&str>) -> Connection {
    let address = Address::parse(&address.to_string()).unwrap();
    Connection::open(&[address], token, PATIENCE).await.unwrap()
}

/// What went wrong, as clients read it.
pub(crate) fn told(status: &Status) -> Fault {
    Fault::from_status(status)
}

/// Asks until the answer is there, for as long as patience lasts; then says what was seen last.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<T, String>) -> T {
    let began = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(seen) if began.elapsed() > PATIENCE => panic!("waited for {what}; last seen: {seen}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// What a future comes to, which must not take longer than patience lasts.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

pub(crate) fn job(json: &str) -> JobDefinition {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
}

pub(crate) fn definition(json: &str) -> v1::Definition {
    v1::Definition { json: job(json).to_canonical_json().into() }
}

pub(crate) fn entry(json: &str) -> v1::ManifestEntry {
    let job = job(json);
    let file = format!("{}.yaml", job.name);
    v1::ManifestEntry {
        name: job.name.to_string(),
        definition: job.digest().as_bytes().to_vec().into(),
        file,
        line: 1,
        changed_in: 0,
        inherited: Vec::new(),
    }
}

pub(crate) fn header(catalog: &str, parent: u64, jobs: &[&str]) -> v1::ApplyHeader {
    v1::ApplyHeader {
        catalog: catalog.to_owned(),
        parent,
        put: jobs.iter().map(|job| entry(job)).collect(),
        ..Default::default()
    }
}

/// The parts of an apply, definitions one to a message.
pub(crate) fn parts(header: v1::ApplyHeader, definitions: &[&str]) -> Vec<v1::ApplyRequest> {
    use v1::apply_request::Part;
    let part = |part| v1::ApplyRequest { part: Some(part) };
    let definitions =
        definitions.iter().map(|job| part(Part::Definitions(v1::ApplyDefinitions { definitions: vec![definition(job)] })));
    std::iter::once(part(Part::Header(header))).chain(definitions).collect()
}

pub(crate) async fn apply(connection: &Connection, header: v1::ApplyHeader, definitions: &[&str]) -> Result<v1::Revision, Fault> {
    let request = futures::stream::iter(parts(header, definitions));
    match connection.catalog().apply(request).await {
        Ok(response) => Ok(response.into_inner().revision.unwrap()),
        Err(status) => Err(told(&status)),
    }
}

/// A catalogue's newest revision, 0 for none.
pub(crate) async fn head(connection: &Connection, catalog: &str) -> u64 {
    let request = v1::GetHeadRequest { catalog: catalog.to_owned() };
    connection.catalog().get_head(request).await.unwrap().into_inner().revision.map_or(0, |revision| revision.number)
}

pub(crate) fn request(job: &str, arguments: &[(&str, &str)]) -> v1::ExecuteRequest {
    let arguments: HashMap<String, String> = arguments.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    v1::ExecuteRequest { id: ExecutionId::generate().to_string(), job: job.to_owned(), arguments, ..Default::default() }
}

pub(crate) async fn send(connection: &Connection, request: v1::ExecuteRequest) -> Result<String, Fault> {
    match connection.executions().execute(request).await {
        Ok(response) => Ok(response.into_inner().id),
        Err(status) => Err(told(&status)),
    }
}

pub(crate) async fn execute(connection: &Connection, job: &str, arguments: &[(&str, &str)]) -> Result<String, Fault> {
    send(connection, request(job, arguments)).await
}

pub(crate) async fn get(connection: &Connection, id: &str) -> v1::Execution {
    let request = v1::GetExecutionRequest { id: id.to_owned() };
    connection.executions().get_execution(request).await.unwrap().into_inner().execution.unwrap()
}

pub(crate) async fn cancel(connection: &Connection, id: &str) -> v1::Execution {
    let request = v1::CancelExecutionRequest { id: id.to_owned() };
    connection.executions().cancel_execution(request).await.unwrap().into_inner().execution.unwrap()
}

pub(crate) fn rerun_request(source: &str) -> v1::RerunExecutionRequest {
    v1::RerunExecutionRequest { id: ExecutionId::generate().to_string(), source: source.to_owned(), ..Default::default() }
}

pub(crate) async fn send_rerun(connection: &Connection, request: v1::RerunExecutionRequest) -> Result<String, Fault> {
    match connection.executions().rerun_execution(request).await {
        Ok(response) => Ok(response.into_inner().id),
        Err(status) => Err(told(&status)),
    }
}

/// The execution once it is in `state`.
pub(crate) async fn reaches(connection: &Connection, id: &str, state: ExecutionState) -> v1::Execution {
    eventually(&format!("{id} to be {state:?}"), async || {
        let execution = get(connection, id).await;
        if execution.state() == state { Ok(execution) } else { Err(format!("{execution:?}")) }
    })
    .await
}

pub(crate) fn digest(job: &str) -> Digest {
    self::job(job).digest()
}

/// Numbers that look random and come again with the same seed, which is printed.
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn thrown() -> Self {
        let seed = std::env::var("OCTAVIUS_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| getrandom::u64().unwrap());
        eprintln!("to repeat: OCTAVIUS_SEED={seed}");
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_le_bytes()[3]).collect()
    }
}

#[tokio::test]
async fn only_the_owner_reads_the_first_admins_token() {
    let house = House::open().await;
    let mode = std::fs::metadata(house.token_file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let who = house.admin().await.admin().who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner();
    assert_eq!((who.user.as_str(), who.role(), who.controller_id.as_str()), ("admin", Role::Admin, house.id()));
}
