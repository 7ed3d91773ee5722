//! Connections to a controller: the same for the command line and for executors.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::line::{self, Noted};
use crate::pem::PemError;
use crate::tls::{Tls, TlsTrouble};
use crate::v1::admin_service_client::AdminServiceClient;
use crate::v1::catalog_service_client::CatalogServiceClient;
use crate::v1::execution_service_client::ExecutionServiceClient;
use crate::v1::executor_service_client::ExecutorServiceClient;
use crate::v1::log_service_client::LogServiceClient;
use crate::{MAX_MESSAGE_BYTES, WINDOW_BYTES};

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// An address that is none.
    #[error("\"{address}\" is not the address of a controller: write HOST:PORT, or https://HOST:PORT")]
    Address {
        /// What was given.
        address: String,
    },
    /// A token that cannot stand in a header.
    #[error("the token holds characters that no token has")]
    Token,
    /// An address that says `http`, where TLS is set up: a token would travel in the clear.
    #[error("the address http://{address} is one without TLS, and certificates are set for it")]
    Clear {
        /// The address.
        address: Address,
    },
    /// A certificate, or a key, of this side cannot be used.
    #[error(transparent)]
    Files(#[from] PemError),
    /// Every address answered, and with none of them TLS came about: that stays so until somebody puts it right.
    #[error("no secure connection: {}", tried.join("; "))]
    Untrusted {
        /// Each address with what is wrong there.
        tried: Vec<String>,
        /// What is wrong with the first.
        trouble: TlsTrouble,
    },
    /// No address answered.
    #[error("no controller answered: {}", tried.join("; "))]
    Unreachable {
        /// Each address with what went wrong there.
        tried: Vec<String>,
    },
}

/// The address of a controller, and how it is spoken with.
#[derive(Debug, Clone)]
pub struct Address {
    uri: http::Uri,
    /// Whether the text said `http`.
    says_clear: bool,
    tls: Option<Arc<Tls>>,
}

impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        self.uri == other.uri && self.tls.is_some() == other.tls.is_some()
    }
}

impl Eq for Address {}

impl Address {
    /// Reads `HOST:PORT`, or a URL with `http`, which is spoken with in the clear, or one with `https`, which is with TLS and has a
    /// certificate that the system trusts. `[::1]:3000` is an IPv6 address.
    ///
    /// # Errors
    /// Where the text is no address, or names no port.
    pub fn parse(text: &str) -> Result<Self, ConnectError> {
        let wrong = || ConnectError::Address { address: text.to_owned() };
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: http::Uri = url.parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("http") => None,
            Some("https") => Some(Arc::default()),
            _ => return Err(wrong()),
        };
        let complete = uri.host().is_some_and(|host| !host.is_empty()) && uri.port_u16().is_some();
        if !complete {
            return Err(wrong());
        }
        Ok(Self { uri, says_clear: tls.is_none() && text.contains("://"), tls })
    }

    /// The same address, spoken with by this TLS and never in the clear.
    ///
    /// # Errors
    /// Where it says `http`.
    pub fn secured(self, tls: &Arc<Tls>) -> Result<Self, ConnectError> {
        if self.says_clear {
            return Err(ConnectError::Clear { address: self });
        }
        Ok(Self { tls: Some(Arc::clone(tls)), ..self })
    }

    /// Whether it is spoken with by TLS.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    async fn connect(&self, timeout: Duration) -> Result<Opened, tonic::transport::Error> {
        let (noted, with) = (Noted::default(), |endpoint| settings(endpoint, timeout));
        let channel = line::connect(&self.uri, self.tls.clone(), noted.clone(), timeout, with).await?;
        Ok(Opened { channel, noted })
    }

    /// Reads several addresses, separated by commas.
    ///
    /// # Errors
    /// Where one of them is no address, or there is none.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, ConnectError> {
        text.split(',').map(|part| Self::parse(part.trim())).collect()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.uri.authority().map(http::uri::Authority::as_str).unwrap_or_default())
    }
}

/// A line to a controller, and what went wrong with TLS on it.
struct Opened {
    channel: Channel,
    noted: Noted,
}

/// Puts the bearer's token on every call, and the trace that the call is part of.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        crate::trace::send(request.metadata_mut());
        Ok(request)
    }
}

impl Bearer {
    fn of(token: Option<&str>) -> Result<Self, ConnectError> {
        let Some(token) = token else { return Ok(Self(None)) };
        let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| ConnectError::Token)?;
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

fn settings(endpoint: Endpoint, timeout: Duration) -> Endpoint {
    endpoint
        .connect_timeout(timeout)
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(false)
}

/// What the clients of a connection speak through.
pub type Service = InterceptedService<Channel, Bearer>;

/// A connection to one controller, with the bearer's token. Cheap to clone; broken connections are made again by the next call.
#[derive(Clone)]
pub struct Connection {
    service: Service,
    address: Address,
    noted: Noted,
    missed: Arc<[(Address, String)]>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.address)
    }
}

/// How long an address has before the next one is tried beside it: one that swallows everything then costs no more than this.
const STAGGER: Duration = Duration::from_millis(250);

impl Connection {
    /// Connects to the first of `addresses` that answers, within `timeout` in all. They are tried in their order; one that does not answer
    /// soon is not waited for before the next is tried beside it.
    ///
    /// # Errors
    /// [`ConnectError::Unreachable`] where none does, with what was tried.
    pub async fn open(addresses: &[Address], token: Option<&str>, timeout: Duration) -> Result<Self, ConnectError> {
        Self::race(addresses, None, token, timeout).await
    }

    /// Connects again after a connection to `broken` has failed: to one of the others where there is one that answers. A controller that
    /// takes connections and does nothing else would win every time; it is tried again when no other has answered in half of `timeout`.
    ///
    /// # Errors
    /// [`ConnectError::Unreachable`] where none answers, with what was tried.
    pub async fn open_elsewhere(
        addresses: &[Address],
        broken: &Address,
        token: Option<&str>,
        timeout: Duration,
    ) -> Result<Self, ConnectError> {
        Self::race(addresses, Some(broken), token, timeout).await
    }

    async fn race(
        addresses: &[Address],
        last: Option<&Address>,
        token: Option<&str>,
        timeout: Duration,
    ) -> Result<Self, ConnectError> {
        let bearer = Bearer::of(token)?;
        let begun = Instant::now();
        let mut waiting: VecDeque<usize> = (0..addresses.len()).collect();
        let is_last = |index: usize| last == addresses.get(index);
        waiting.make_contiguous().sort_by_key(|&index| is_last(index)); // a stable sort: the others keep their order
        let mut problems: Vec<Option<String>> = vec![None; addresses.len()];
        let mut troubles: Vec<TlsTrouble> = Vec::new();
        let mut tries: JoinSet<(usize, Result<Opened, tonic::transport::Error>)> = JoinSet::new();
        let mut next = begun;
        while !waiting.is_empty() || !tries.is_empty() {
            tokio::select! {
                Some(done) = tries.join_next() => match done {
                    Ok((index, Ok(Opened { channel, noted }))) => {
                        let Some(address) = addresses.get(index) else { continue };
                        let missed = addresses.iter().cloned().zip(problems).filter_map(|(address, told)| Some((address, told?)));
                        return Ok(Self {
                            service: InterceptedService::new(channel, bearer),
                            address: address.clone(),
                            noted,
                            missed: missed.collect(),
                        });
                    }
                    Ok((index, Err(error))) => {
                        let trouble = TlsTrouble::of(&error);
                        if let Some(problem) = problems.get_mut(index) {
                            *problem = Some(trouble.as_ref().map_or_else(|| root_cause(&error), ToString::to_string));
                        }
                        troubles.extend(trouble);
                        if tries.is_empty() || waiting.front().is_some_and(|&index| !is_last(index)) {
                            next = Instant::now();
                        }
                    }
                    // a task of its own that failed: what it tried counts as not answered
                    Err(_) => next = Instant::now(),
                },
                () = sleep_until(next), if !waiting.is_empty() => {
                    if let Some(index) = waiting.pop_front()
                        && let Some(address) = addresses.get(index)
                    {
                        let address = address.clone();
                        tries.spawn(async move { (index, address.connect(timeout).await) });
                    }
                    next = match waiting.front() {
                        Some(&index) if is_last(index) => begun + timeout / 2,
                        _ => Instant::now() + STAGGER,
                    };
                }
                () = sleep_until(begun + timeout) => break,
            }
        }
        let every = troubles.len() == addresses.len();
        let silent = || format!("no answer within {}", octavius_core::HumanDuration::new(timeout));
        let tried = addresses.iter().zip(problems);
        let tried = tried.map(|(address, problem)| format!("{address}: {}", problem.unwrap_or_else(silent)));
        let tried: Vec<String> = tried.collect();
        match troubles.into_iter().next() {
            Some(trouble) if every => Err(ConnectError::Untrusted { tried, trouble }),
            _ => Err(ConnectError::Unreachable { tried }),
        }
    }

    /// The controller's address.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What is wrong with TLS on this connection, where a call failed because of that: a controller tells a client whose certificate it does not
    /// take only after the connection has come about.
    #[must_use]
    pub fn trouble(&self) -> Option<TlsTrouble> {
        self.noted.trouble()
    }

    /// Addresses that had failed before this one answered, each with what went wrong.
    #[must_use]
    pub fn missed(&self) -> &[(Address, String)] {
        &self.missed
    }

    /// Catalogues.
    #[must_use]
    pub fn catalog(&self) -> CatalogServiceClient<Service> {
        CatalogServiceClient::new(self.service.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Executions.
    #[must_use]
    pub fn executions(&self) -> ExecutionServiceClient<Service> {
        ExecutionServiceClient::new(self.service.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Logs.
    #[must_use]
    pub fn logs(&self) -> LogServiceClient<Service> {
        LogServiceClient::new(self.service.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Executors.
    #[must_use]
    pub fn executors(&self) -> ExecutorServiceClient<Service> {
        ExecutorServiceClient::new(self.service.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Tokens, and who one is.
    #[must_use]
    pub fn admin(&self) -> AdminServiceClient<Service> {
        AdminServiceClient::new(self.service.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }
}

/// What is at the bottom of an error: "connection refused" says more than "transport error".
#[must_use]
pub fn root_cause(error: &dyn std::error::Error) -> String {
    let mut last: &dyn std::error::Error = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for good in ["localhost:3000", "127.0.0.1:3000", "[::1]:3000", "http://ctl.example:80", "https://ctl.example:443"] {
            assert!(Address::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "localhost", ":3000", "a b:1", "ftp://x:1", "host:port", "https://host"] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Address::parse_list("a:1, b:2").unwrap().len(), 2);
    }

    #[test]
    fn where_tls_is_set_up_nothing_goes_in_the_clear() {
        let (tls, parse) = (Arc::new(Tls::default()), |text| Address::parse(text).unwrap());
        assert!(parse("https://a:1").is_secure() && !parse("a:1").is_secure() && !parse("http://a:1").is_secure());
        for text in ["a:1", "https://a:1"] {
            let secured = parse(text).secured(&tls).unwrap();
            assert!(secured.is_secure() && secured.to_string() == "a:1", "{text}");
        }
        let refused = parse("http://a:1").secured(&tls).unwrap_err();
        assert!(matches!(&refused, ConnectError::Clear { .. }) && refused.to_string().contains("http://a:1"), "{refused}");
    }

    /// Something that takes connections; what it says does not matter.
    fn listener() -> (std::net::TcpListener, Address) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::parse(&listener.local_addr().unwrap().to_string()).unwrap();
        (listener, address)
    }

    /// An address at which nothing listens.
    fn closed() -> Address {
        listener().1
    }

    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn the_first_address_that_answers_is_taken_and_the_order_kept() {
        let ((_one, one), (_two, two)) = (listener(), listener());
        let connection = Connection::open(&[one.clone(), two.clone()], None, PATIENCE).await.unwrap();
        assert_eq!(connection.address(), &one);
        let connection = Connection::open(&[closed(), two.clone()], None, PATIENCE).await.unwrap();
        assert_eq!(connection.address(), &two);
        let [(_, told)] = connection.missed() else { panic!("{:?}", connection.missed()) };
        assert_eq!(told, "connection refused (os error 111)");
    }

    #[tokio::test]
    async fn after_a_break_the_others_come_first_and_the_same_one_last() {
        let ((_one, one), (_two, two)) = (listener(), listener());
        let both = [one.clone(), two.clone()];
        for broken in [&one, &two] {
            let connection = Connection::open_elsewhere(&both, broken, None, PATIENCE).await.unwrap();
            assert_ne!(connection.address(), broken);
        }
        let only = [one.clone()];
        assert_eq!(Connection::open_elsewhere(&only, &one, None, PATIENCE).await.unwrap().address(), &one);
        let begun = Instant::now();
        let with_closed = [closed(), one.clone()];
        assert_eq!(Connection::open_elsewhere(&with_closed, &one, None, PATIENCE).await.unwrap().address(), &one);
        assert!(begun.elapsed() < PATIENCE / 2, "where the others refuse, it is tried at once");
    }

    #[tokio::test]
    async fn every_address_is_named_with_what_went_wrong() {
        let addresses = [closed(), closed()];
        let error = Connection::open(&addresses, None, PATIENCE).await.unwrap_err();
        let ConnectError::Unreachable { tried } = error else { panic!("{error}") };
        for (address, told) in addresses.iter().zip(&tried) {
            assert_eq!(*told, format!("{address}: connection refused (os error 111)"));
        }
    }

    /// A listener whose queue is full swallows what comes, as a host that is off does.
    #[tokio::test]
    async fn an_address_that_swallows_everything_costs_little() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = socket.listen(0).unwrap();
        let place = full.local_addr().unwrap();
        let mut held = Vec::new();
        while let Ok(Ok(stream)) = tokio::time::timeout(STAGGER, tokio::net::TcpStream::connect(place)).await {
            held.push(stream);
        }
        let (_alive, alive) = listener();
        let swallowing = Address::parse(&place.to_string()).unwrap();
        let begun = Instant::now();
        let connection = Connection::open(&[swallowing.clone(), alive.clone()], None, PATIENCE).await.unwrap();
        assert_eq!(connection.address(), &alive);
        assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
        let error = Connection::open(&[swallowing], None, 2 * STAGGER).await.unwrap_err();
        assert!(error.to_string().ends_with("no answer within 500ms"), "{error}");
    }
}
