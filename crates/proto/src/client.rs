//! Connections to a controller: the same for the command line and for executors.

use std::fmt;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

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
    #[error("\"{address}\" is not the address of a controller: write HOST:PORT")]
    Address {
        /// What was given.
        address: String,
    },
    /// A token that cannot stand in a header.
    #[error("the token holds characters that no token has")]
    Token,
    /// No address answered.
    #[error("no controller answered: {}", tried.join("; "))]
    Unreachable {
        /// Each address with what went wrong there.
        tried: Vec<String>,
    },
}

/// The address of a controller, as its URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address(http::Uri);

impl Address {
    /// Reads `HOST:PORT`, or a URL with `http`. `[::1]:3000` is an IPv6 address.
    ///
    /// # Errors
    /// Where the text is no address, or names no port.
    pub fn parse(text: &str) -> Result<Self, ConnectError> {
        let wrong = || ConnectError::Address { address: text.to_owned() };
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: http::Uri = url.parse().map_err(|_| wrong())?;
        let complete =
            uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty()) && uri.port_u16().is_some();
        if complete { Ok(Self(uri)) } else { Err(wrong()) }
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
        f.pad(self.0.authority().map(http::uri::Authority::as_str).unwrap_or_default())
    }
}

/// Puts the bearer's token on every call.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// What the clients of a connection speak through.
pub type Service = InterceptedService<Channel, Bearer>;

/// A connection to one controller, with the bearer's token. Cheap to clone; broken connections are made again by the next call.
#[derive(Clone)]
pub struct Connection {
    service: Service,
    address: Address,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.address)
    }
}

impl Connection {
    /// Connects to the first of `addresses` that answers, within `timeout` in all.
    ///
    /// # Errors
    /// [`ConnectError::Unreachable`] where none does, with what was tried.
    pub async fn open(addresses: &[Address], token: Option<&str>, timeout: Duration) -> Result<Self, ConnectError> {
        let bearer = match token {
            Some(token) => {
                let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| ConnectError::Token)?;
                value.set_sensitive(true);
                Bearer(Some(value))
            }
            None => Bearer(None),
        };
        let share = timeout / u32::try_from(addresses.len()).unwrap_or(1).max(1);
        let mut tried = Vec::new();
        for address in addresses {
            let endpoint = Endpoint::from(address.0.clone())
                .connect_timeout(share)
                .tcp_nodelay(true)
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES)
                .http2_keep_alive_interval(Duration::from_secs(10))
                .keep_alive_timeout(Duration::from_secs(10))
                .keep_alive_while_idle(false);
            match tokio::time::timeout(share, endpoint.connect()).await {
                Ok(Ok(channel)) => {
                    let service = InterceptedService::new(channel, bearer);
                    return Ok(Self { service, address: address.clone() });
                }
                Ok(Err(error)) => tried.push(format!("{address}: {}", root_cause(&error))),
                Err(_) => tried.push(format!("{address}: no answer within {}", octavius_core::HumanDuration::new(share))),
            }
        }
        Err(ConnectError::Unreachable { tried })
    }

    /// The controller's address.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
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
        for good in ["localhost:3000", "127.0.0.1:3000", "[::1]:3000", "http://ctl.example:80"] {
            assert!(Address::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "localhost", ":3000", "a b:1", "ftp://x:1", "host:port"] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Address::parse_list("a:1, b:2").unwrap().len(), 2);
    }
}
