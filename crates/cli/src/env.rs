//! Every environment variable that `octavius` reads. A flag `--some-thing` has `OCTAVIUS_SOME_THING`, with the same meaning and less weight;
//! flags that consent to harm (`--yes`, `--prune`, `--allow-empty`, `--max-deletions`, `--force`),
//! and those by which `cancel`, `pause`, `unpause` and `webhooks retry` choose several, have none; a test holds these rules. One that is empty counts as unset.

use std::ffi::OsString;

macro_rules! variables {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $text;)*

        /// All of them.
        pub const ALL: &[&str] = &[$($text),*];
    };
}

variables! {
    /// No colour, when set to anything. See <https://no-color.org>.
    NO_COLOR = "NO_COLOR";
    /// The kind of terminal; `dumb` means no colour.
    TERM = "TERM";
    /// Set by CI systems: nobody is there to answer questions.
    CI = "CI";
    /// The time that whatever is built bears, in seconds since 1970. See <https://reproducible-builds.org/specs/source-date-epoch/>.
    SOURCE_DATE_EPOCH = "SOURCE_DATE_EPOCH";
    /// Where the user's files are.
    HOME = "HOME";

    /// Addresses of controllers, as the first Octavius named it.
    SEED_CP_HOST = "CP_HOST";
    /// The user's address, as the first Octavius named it.
    SEED_EMAIL_ID = "EMAIL_ID";
    /// The token, as the first Octavius named it.
    SEED_ACCESS_TOKEN = "ACCESS_TOKEN";
    /// Seconds to wait for a controller, as the first Octavius named it.
    SEED_TIMEOUT = "CONNECTION_TIMEOUT_SECS";

    /// Where the controller's etcd is, as the first Octavius named it; so are the others of its configuration.
    SEED_ETCD_HOST = "ETCD_HOST";
    /// The etcd's port.
    SEED_ETCD_PORT = "ETCD_PORT";
    /// Seconds to wait for the etcd.
    SEED_ETCD_DIAL_TIMEOUT = "ETCD_DIAL_TIMEOUT";
    /// How much the controller logs.
    SEED_LOG_LEVEL = "LOG_LEVEL";
    /// The controller's port.
    SEED_APP_PORT = "APP_PORT";
    /// Seconds without a ping after which an executor's session has ended.
    SEED_EXECUTOR_PING_DEADLINE = "EXECUTOR_PING_DEADLINE";
    /// The controller's log file.
    SEED_LOG_FILE_PATH = "LOG_FILE_PATH";
    /// Largest size of the log file, in MiB.
    SEED_LOG_FILE_MAX_SIZE = "LOG_FILE_MAX_SIZE_IN_MB";

    /// The span that a command is a child of, by W3C Trace Context; CI systems set it.
    TRACEPARENT = "TRACEPARENT";
    /// What goes with it.
    TRACESTATE = "TRACESTATE";
    /// Where spans are exported to, by OTLP: a collector's URL. OpenTelemetry's other variables are read as well, see `octavius_trace`.
    OTLP_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT";
    /// `grpc` or `http/protobuf`; by default the first for port 4317, and otherwise the second.
    OTLP_PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL";
    /// Headers of each export, as `KEY=VALUE`, separated by commas.
    OTLP_HEADERS = "OTEL_EXPORTER_OTLP_HEADERS";
    /// The authorities that a collector with `https://` is held against, a file in PEM; without, those that the system trusts.
    OTLP_CERTIFICATE = "OTEL_EXPORTER_OTLP_CERTIFICATE";
    /// The certificate that is shown to it, a file in PEM.
    OTLP_CLIENT_CERTIFICATE = "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE";
    /// That certificate's private key, a file in PEM.
    OTLP_CLIENT_KEY = "OTEL_EXPORTER_OTLP_CLIENT_KEY";
    /// How the process is called in traces.
    OTEL_SERVICE_NAME = "OTEL_SERVICE_NAME";
    /// What else is said of the process in traces, as `KEY=VALUE`, separated by commas.
    OTEL_RESOURCE_ATTRIBUTES = "OTEL_RESOURCE_ATTRIBUTES";
    /// Which traces are recorded.
    OTEL_TRACES_SAMPLER = "OTEL_TRACES_SAMPLER";
    /// The share of them, from 0 to 1, for the samplers that have one.
    OTEL_TRACES_SAMPLER_ARG = "OTEL_TRACES_SAMPLER_ARG";

    /// The client's configuration file.
    CONFIG = "OCTAVIUS_CONFIG";
    /// The context of the configuration file.
    CONTEXT = "OCTAVIUS_CONTEXT";
    /// Addresses of controllers, separated by commas.
    CP_HOST = "OCTAVIUS_CP_HOST";
    /// The user's address.
    EMAIL_ID = "OCTAVIUS_EMAIL_ID";
    /// The token.
    TOKEN = "OCTAVIUS_TOKEN";
    /// A file that holds the token.
    TOKEN_FILE = "OCTAVIUS_TOKEN_FILE";
    /// Who makes a token for this run.
    TOKEN_FROM = "OCTAVIUS_TOKEN_FROM";
    /// Where a job of GitHub Actions asks for a token of its own, as GitHub has it.
    ACTIONS_ID_TOKEN_REQUEST_URL = "ACTIONS_ID_TOKEN_REQUEST_URL";
    /// What it asks with.
    ACTIONS_ID_TOKEN_REQUEST_TOKEN = "ACTIONS_ID_TOKEN_REQUEST_TOKEN";
    /// Seconds to wait for a controller.
    TIME_OUT = "OCTAVIUS_TIME_OUT";
    /// The authority that signed the controllers' certificates.
    CA_FILE = "OCTAVIUS_CA_FILE";
    /// The client's own certificate.
    CLIENT_CERT = "OCTAVIUS_CLIENT_CERT";
    /// Its key.
    CLIENT_KEY = "OCTAVIUS_CLIENT_KEY";
    /// The name that the controllers' certificates are for.
    SERVER_NAME = "OCTAVIUS_SERVER_NAME";
    /// Never ask.
    NO_INPUT = "OCTAVIUS_NO_INPUT";

    /// Form of the output.
    OUTPUT = "OCTAVIUS_OUTPUT";
    /// `diff` ends with 0 also where there are differences.
    EXIT_ZERO = "OCTAVIUS_EXIT_ZERO";
    /// The git revision that `diff` compares with.
    AGAINST = "OCTAVIUS_AGAINST";
    /// Where `diff` writes its plan.
    OUT = "OCTAVIUS_OUT";
    /// A commit may be older than the one that was applied last.
    ALLOW_OLDER = "OCTAVIUS_ALLOW_OLDER";
    /// `apply` refuses files that are in no commit.
    REQUIRE_CLEAN = "OCTAVIUS_REQUIRE_CLEAN";
    /// How long `apply` plans again where someone else came before it.
    RETRY_CONFLICT = "OCTAVIUS_RETRY_CONFLICT";
    /// `apply` goes on with each change.
    WATCH = "OCTAVIUS_WATCH";
    /// `validate` asks the controller for its executors.
    SERVER = "OCTAVIUS_SERVER";
    /// `apply` shows the plan and ends.
    DRY_RUN = "OCTAVIUS_DRY_RUN";
    /// A catalogue's name.
    CATALOG_NAME = "OCTAVIUS_CATALOG_NAME";
    /// `rollback` freezes the catalogue too.
    FREEZE = "OCTAVIUS_FREEZE";
    /// A revision of a catalogue.
    REVISION = "OCTAVIUS_REVISION";
    /// For which CI system `init` writes a recipe.
    CI_RECIPE = "OCTAVIUS_CI";
    /// A job file.
    JOB_PATH = "OCTAVIUS_JOB_PATH";
    /// A job's name.
    JOB_NAME = "OCTAVIUS_JOB_NAME";
    /// An execution's id.
    JOB_ID = "OCTAVIUS_JOB_ID";
    /// A label, `key=value`.
    LABEL = "OCTAVIUS_LABEL";
    /// Text to find.
    SEARCH = "OCTAVIUS_SEARCH";

    /// One argument, `name=value`.
    ARG = "OCTAVIUS_ARG";
    /// Arguments, `a=1,b=2`.
    ARGS = "OCTAVIUS_ARGS";
    /// A file of arguments.
    ARGS_FILE = "OCTAVIUS_ARGS_FILE";
    /// Wait for the end.
    WAIT = "OCTAVIUS_WAIT";
    /// Follow the log.
    FOLLOW = "OCTAVIUS_FOLLOW";
    /// The key under which an execution is made once.
    IDEMPOTENCY_KEY = "OCTAVIUS_IDEMPOTENCY_KEY";
    /// Longest run.
    TIMEOUT = "OCTAVIUS_TIMEOUT";
    /// Why a job is paused.
    REASON = "OCTAVIUS_REASON";
    /// Longest wait.
    WAIT_TIMEOUT = "OCTAVIUS_WAIT_TIMEOUT";

    /// Everyone's, not only one's own.
    ALL_USERS = "OCTAVIUS_ALL";
    /// A user's name. Not `OCTAVIUS_USER`: the process runner tells a job under that name who asked for it.
    USER = "OCTAVIUS_FOR_USER";
    /// A state.
    STATE = "OCTAVIUS_STATE";
    /// Not older than this.
    SINCE = "OCTAVIUS_SINCE";
    /// At most so many.
    LIMIT = "OCTAVIUS_LIMIT";
    /// So many lines from the end.
    TAIL = "OCTAVIUS_TAIL";
    /// The attempt. Not `OCTAVIUS_ATTEMPT`: a job finds its own there.
    ATTEMPT = "OCTAVIUS_LOG_ATTEMPT";
    /// When lines were printed.
    TIMESTAMPS = "OCTAVIUS_TIMESTAMPS";
    /// Log bytes as they are.
    RAW = "OCTAVIUS_RAW";
    /// Where a log is written.
    OUTPUT_FILE = "OCTAVIUS_OUTPUT_FILE";

    /// The controller's configuration file.
    CONTROLLER_CONFIG = "OCTAVIUS_CONTROLLER_CONFIG";
    /// Where the controller keeps everything.
    STORE = "OCTAVIUS_STORE";
    /// The members of an etcd, separated by commas.
    ETCD_HOST = "OCTAVIUS_ETCD_HOST";
    /// The port of those that are named without one.
    ETCD_PORT = "OCTAVIUS_ETCD_PORT";
    /// Seconds to wait for the etcd.
    ETCD_DIAL_TIMEOUT = "OCTAVIUS_ETCD_DIAL_TIMEOUT";
    /// What the keys in the etcd start with.
    ETCD_PREFIX = "OCTAVIUS_ETCD_PREFIX";
    /// The etcd's user.
    ETCD_USER = "OCTAVIUS_ETCD_USER";
    /// Their password.
    ETCD_PASSWORD = "OCTAVIUS_ETCD_PASSWORD";
    /// A file that holds their password.
    ETCD_PASSWORD_FILE = "OCTAVIUS_ETCD_PASSWORD_FILE";
    /// The certificate of the authority that signed the etcd's.
    ETCD_CA_FILE = "OCTAVIUS_ETCD_CA_FILE";
    /// The client's certificate for the etcd.
    ETCD_CERT_FILE = "OCTAVIUS_ETCD_CERT_FILE";
    /// Its key.
    ETCD_KEY_FILE = "OCTAVIUS_ETCD_KEY_FILE";
    /// The quota that the etcd was started with, in bytes.
    ETCD_QUOTA_BYTES = "OCTAVIUS_ETCD_QUOTA_BYTES";
    /// Whether others use the etcd too.
    ETCD_SHARED = "OCTAVIUS_ETCD_SHARED";
    /// Files of keys for sensitive arguments, separated by commas.
    ENCRYPTION_KEY_FILE = "OCTAVIUS_ENCRYPTION_KEY_FILE";
    /// How long executions are kept.
    RETENTION_AGE = "OCTAVIUS_RETENTION_AGE";
    /// How many executions are kept.
    RETENTION_EXECUTIONS = "OCTAVIUS_RETENTION_EXECUTIONS";
    /// How many bytes of logs are kept.
    RETENTION_LOG_BYTES = "OCTAVIUS_RETENTION_LOG_BYTES";
    /// Where logs are kept.
    ARCHIVE = "OCTAVIUS_ARCHIVE";
    /// How much of one log is kept.
    LOG_LIMIT = "OCTAVIUS_LOG_LIMIT";
    /// How an archive in S3 is reached, as Amazon's own tools have it; whatever else they read is read too.
    AWS_ENDPOINT_URL = "AWS_ENDPOINT_URL";
    /// Its region.
    AWS_REGION = "AWS_REGION";
    /// Who asks.
    AWS_ACCESS_KEY_ID = "AWS_ACCESS_KEY_ID";
    /// Their secret.
    AWS_SECRET_ACCESS_KEY = "AWS_SECRET_ACCESS_KEY";
    /// The token of a secret that lasts for a while.
    AWS_SESSION_TOKEN = "AWS_SESSION_TOKEN";
    /// How long the audit trail is kept.
    RETENTION_AUDIT = "OCTAVIUS_RETENTION_AUDIT";
    /// The folder into which the audit trail is exported.
    AUDIT_EXPORT = "OCTAVIUS_AUDIT_EXPORT";
    /// The catalogues of a new token.
    CATALOGS = "OCTAVIUS_CATALOGS";
    /// How many executors may be registered with a new token.
    USES = "OCTAVIUS_USES";
    /// How long an executor's token is good.
    EXECUTOR_TOKEN_LIFETIME = "OCTAVIUS_EXECUTOR_TOKEN_LIFETIME";
    /// Calls a second that one principal may make on a controller.
    REQUEST_RATE = "OCTAVIUS_REQUEST_RATE";
    /// The first Octavius' etcd, for an import.
    ETCD = "OCTAVIUS_ETCD";
    /// The controller's port.
    APP_PORT = "OCTAVIUS_APP_PORT";
    /// Seconds without a ping after which an executor's session has ended.
    EXECUTOR_PING_DEADLINE = "OCTAVIUS_EXECUTOR_PING_DEADLINE";
    /// The controller's log file.
    LOG_FILE_PATH = "OCTAVIUS_LOG_FILE_PATH";
    /// Largest size of the log file, in MiB.
    LOG_FILE_MAX_SIZE = "OCTAVIUS_LOG_FILE_MAX_SIZE_IN_MB";
    /// Where a controller listens.
    LISTEN = "OCTAVIUS_LISTEN";
    /// The controller's certificate.
    TLS_CERT = "OCTAVIUS_TLS_CERT";
    /// Its key.
    TLS_KEY = "OCTAVIUS_TLS_KEY";
    /// The authority of clients' certificates.
    CLIENT_CA = "OCTAVIUS_CLIENT_CA";
    /// Whether a controller may listen to other machines without TLS.
    INSECURE = "OCTAVIUS_INSECURE";
    /// A name or an address that a controller's certificate is for.
    HOST = "OCTAVIUS_HOST";
    /// Who a client's certificate is for.
    CLIENT = "OCTAVIUS_CLIENT";
    /// How long certificates are valid.
    VALID_FOR = "OCTAVIUS_VALID_FOR";
    /// Who gets the next execution, of the executors that fit.
    STRATEGY = "OCTAVIUS_STRATEGY";
    /// Where a controller serves its metrics.
    METRICS_LISTEN = "OCTAVIUS_METRICS_LISTEN";
    /// Where a controller serves the web page.
    PAGE_LISTEN = "OCTAVIUS_PAGE_LISTEN";
    /// Whether browsers speak TLS with something before the web page.
    PAGE_BEHIND_TLS = "OCTAVIUS_PAGE_BEHIND_TLS";
    /// Where the first admin's token is written.
    BOOTSTRAP_TOKEN_FILE = "OCTAVIUS_BOOTSTRAP_TOKEN_FILE";
    /// The executor's configuration file.
    EXECUTOR_CONFIG = "OCTAVIUS_EXECUTOR_CONFIG";
    /// The executor's id.
    ID = "OCTAVIUS_ID";
    /// What the executor runs jobs with.
    RUNNER = "OCTAVIUS_RUNNER";
    /// How an executor reaches its Kubernetes; this and the next are keys of its configuration, for the kubernetes runner.
    KUBE_CONFIG = "OCTAVIUS_KUBE_CONFIG";
    /// The context of the kubeconfig.
    KUBE_CONTEXT = "OCTAVIUS_KUBE_CONTEXT";
    /// Where Jobs go that name no namespace.
    DEFAULT_NAMESPACE = "OCTAVIUS_DEFAULT_NAMESPACE";
    /// The service account of jobs that name none.
    SERVICE_ACCOUNT_NAME = "OCTAVIUS_SERVICE_ACCOUNT_NAME";
    /// Longest run of any job, in seconds.
    JOB_ACTIVE_DEADLINE_SECONDS = "OCTAVIUS_JOB_ACTIVE_DEADLINE_SECONDS";
    /// How often the first Octavius tried a job again.
    JOB_RETRIES = "OCTAVIUS_JOB_RETRIES";
    /// Seconds that a pod may wait to begin.
    WAIT_FOR_RESOURCE_POLL_COUNT = "OCTAVIUS_WAIT_FOR_RESOURCE_POLL_COUNT";
    /// Seconds that the end of a log is waited for.
    LOG_PROCESS_WAIT_TIME = "OCTAVIUS_LOG_PROCESS_WAIT_TIME";
    /// Annotations of every Job and pod, a JSON object.
    JOB_POD_ANNOTATIONS = "OCTAVIUS_JOB_POD_ANNOTATIONS";
    /// Other namespaces that a job may name, separated by commas.
    NAMESPACES = "OCTAVIUS_NAMESPACES";
    /// Other service accounts that a job may name, separated by commas.
    SERVICE_ACCOUNTS = "OCTAVIUS_SERVICE_ACCOUNTS";
    /// What a job may set for itself, separated by commas.
    JOB_MAY_SET = "OCTAVIUS_JOB_MAY_SET";
    /// The Kubernetes Secret of secrets that say no `from`.
    SECRET = "OCTAVIUS_SECRET";
    /// What an executor offers to jobs of the secrets that it can read, a JSON object.
    SECRETS = "OCTAVIUS_SECRETS";
    /// The same, one by one, separated by commas.
    OFFER = "OCTAVIUS_OFFER";
    /// What every pod is built on, a JSON object.
    POD_TEMPLATE = "OCTAVIUS_POD_TEMPLATE";
    /// Whether images that run as root are refused.
    RUN_AS_NON_ROOT = "OCTAVIUS_RUN_AS_NON_ROOT";
    /// How long an unknown Job of the executor's is left alone.
    ORPHAN_DELAY = "OCTAVIUS_ORPHAN_DELAY";
    /// How long the cluster keeps a finished Job.
    KEEP_FINISHED = "OCTAVIUS_KEEP_FINISHED";
    /// How many executions an executor runs at once.
    CAPACITY = "OCTAVIUS_CAPACITY";
    /// How much output may wait on an executor's disk.
    SPOOL_LIMIT = "OCTAVIUS_SPOOL_LIMIT";
    /// How many bytes of output an executor sends in a second.
    LOG_RATE = "OCTAVIUS_LOG_RATE";
    /// Where a daemon keeps its files.
    DATA_DIR = "OCTAVIUS_DATA_DIR";
    /// How much a daemon logs.
    LOG_LEVEL = "OCTAVIUS_LOG_LEVEL";
    /// Form of the log.
    LOG_FORMAT = "OCTAVIUS_LOG_FORMAT";
    /// The same as a filter, like `octavius_controller=debug,info`.
    LOG = "OCTAVIUS_LOG";
    /// Runs every duration of the system so many times faster. For tests.
    FASTER = "OCTAVIUS_FASTER";
    /// The catalogue that `dev` applies and watches.
    CATALOG = "OCTAVIUS_CATALOG";

    /// A new token's role.
    ROLE = "OCTAVIUS_ROLE";
    /// A new token's group.
    GROUP = "OCTAVIUS_GROUP";
    /// A new token's life.
    EXPIRES = "OCTAVIUS_EXPIRES";
    /// Whether deliveries that wait are listed.
    WAITING = "OCTAVIUS_WAITING";
}

/// The value of a variable, where it is set and not empty.
#[must_use]
pub fn get(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The value of a variable that holds a path.
#[must_use]
pub fn path(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Whether a variable is set to anything.
#[must_use]
pub fn is_set(name: &str) -> bool {
    path(name).is_some()
}

/// Whether a variable says yes: set, and neither `0`, `false` nor `no`.
#[must_use]
pub fn is_true(name: &str) -> bool {
    get(name).is_some_and(|value| !matches!(value.to_ascii_lowercase().as_str(), "0" | "false" | "no" | "off"))
}
