//! The controller's port: connections are taken, shaken hands with where it speaks TLS, and handed to the server. Whoever is slow, silent or
//! many holds up nobody else: handshakes run beside each other and have [`GREETING`] in all, and [`seats`] bounds how many connections there
//! are, of one address and of all.

mod certificates;
mod connection;
mod seats;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use octavius_proto::tls::{ALPN, TLS_ONLY};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

pub(crate) use certificates::Certificates;
pub use certificates::TlsFiles;
pub(crate) use connection::{Connection, Peer};
use seats::{Limits, Seat, Seats};

/// How long a client may take to shake hands, and how long after that to say what HTTP/2 begins with.
const GREETING: Duration = Duration::from_secs(10);

/// Connections that may be ready before the server has taken them.
const READY: usize = 64;

/// How long nothing is taken where the system has nothing left to take it with: file descriptors, memory.
const BREATH: Duration = Duration::from_millis(100);

/// How often that is told.
const TELL: Duration = Duration::from_secs(30);

/// What TLS begins with: the type of a handshake's record.
const HANDSHAKE_RECORD: u8 = 0x16;

/// How long a client has to read why it is not let in.
const FAREWELL: Duration = Duration::from_secs(1);

/// What is spoken on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// gRPC: HTTP/2 alone.
    Grpc,
    /// Pages: HTTP/2 or HTTP/1.1, as browsers choose.
    Pages,
}

impl Speaks {
    /// What a handshake offers.
    fn protocols(self) -> Vec<Vec<u8>> {
        match self {
            Self::Grpc => vec![ALPN.to_vec()],
            Self::Pages => vec![ALPN.to_vec(), b"http/1.1".to_vec()],
        }
    }

    /// What a client without TLS is told in its own language: clients show it, where a handshake that fails tells nobody anything.
    fn farewell(self) -> Vec<u8> {
        const INADEQUATE_SECURITY: u8 = 0xc;
        match self {
            Self::Grpc => {
                let length = u8::try_from(8 + TLS_ONLY.len()).unwrap_or(8);
                let mut frames = vec![0, 0, 0, 4, 0, 0, 0, 0, 0]; // SETTINGS, empty
                frames.extend([0, 0, length, 7, 0, 0, 0, 0, 0]); // GOAWAY
                frames.extend([0, 0, 0, 0, 0, 0, 0, INADEQUATE_SECURITY]);
                frames.extend(TLS_ONLY.bytes());
                frames
            }
            Self::Pages => format!(
                "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{TLS_ONLY}: \
                 its addresses begin with https://\n",
                TLS_ONLY.len() + ": its addresses begin with https://\n".len()
            )
            .into_bytes(),
        }
    }
}

/// A port that is listened on.
#[derive(Debug)]
pub(crate) struct Listener {
    listener: TcpListener,
    certificates: Option<Arc<Certificates>>,
    speaks: Speaks,
    seats: Arc<Seats>,
}

impl Listener {
    /// Listens on an address; with certificates, in TLS alone.
    ///
    /// # Errors
    /// Where the system does not let us.
    pub(crate) fn bind(address: SocketAddr, certificates: Option<Arc<Certificates>>, speaks: Speaks) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let seats = Seats::new(Limits::of_this_process());
        Ok(Self { listener: TcpListener::from_std(listener)?, certificates, speaks, seats })
    }

    /// Where it listens.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Connections that are ready to be served, and the work that brings them: it ends, and the port is closed, when nobody takes them any
    /// more.
    pub(crate) fn serve(self) -> (ReceiverStream<io::Result<Connection>>, impl Future<Output = ()>) {
        let (ready, taken) = mpsc::channel(READY);
        (ReceiverStream::new(taken), self.accept(ready))
    }

    async fn accept(self, ready: mpsc::Sender<io::Result<Connection>>) {
        let Self { listener, certificates, speaks, seats } = self;
        // ends with this, and what is under way in it
        let mut greetings = JoinSet::new();
        let mut told: Option<Instant> = None;
        loop {
            let accepted = tokio::select! {
                () = ready.closed() => return,
                Some(_) = greetings.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                // the one that wanted in has gone away again
                Err(error) if is_of_the_peer(&error) => continue,
                Err(error) => {
                    if told.is_none_or(|told| told.elapsed() > TELL) {
                        tracing::error!(%error, "no connections can be taken at present");
                        told = Some(Instant::now());
                    }
                    seats.make_room();
                    sleep(BREATH).await;
                    continue;
                }
            };
            let Some(seat) = seats.take(address) else {
                tracing::debug!(%address, "too many connections: one more is not taken");
                continue;
            };
            let (ready, certificates) = (ready.clone(), certificates.clone());
            greetings.spawn(async move {
                let opened = tokio::select! {
                    opened = timeout(GREETING, greet(stream, &seat, certificates.as_deref(), speaks)) => opened,
                    () = seat.closed() => return,
                };
                match opened {
                    Ok(Ok(Some(io))) => drop(ready.send(Ok(Connection::new(io, seat, GREETING))).await),
                    Ok(Ok(None)) => {}
                    Ok(Err(error)) => tracing::debug!(%address, %error, "a connection did not come about"),
                    Err(_) => tracing::debug!(%address, "a handshake took too long"),
                }
            });
        }
    }
}

/// Whether an error of `accept` is about the one connection that was to be taken.
fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::ConnectionAborted | K::ConnectionReset | K::ConnectionRefused | K::Interrupted)
}

/// Shakes hands. None where the client was sent away.
async fn greet(
    stream: TcpStream,
    seat: &Seat,
    certificates: Option<&Certificates>,
    speaks: Speaks,
) -> io::Result<Option<connection::Io>> {
    stream.set_nodelay(true)?;
    let Some(certificates) = certificates else { return Ok(Some(connection::Io::Left(stream))) };
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first != [HANDSHAKE_RECORD] {
        tracing::debug!(address = %seat.address(), "a client without TLS was sent away");
        send_away(stream, speaks).await?;
        return Ok(None);
    }
    let mut config = certificates.current();
    if config.alpn_protocols != speaks.protocols() {
        Arc::make_mut(&mut config).alpn_protocols = speaks.protocols();
    }
    match TlsAcceptor::from(config).accept(stream).into_fallible().await {
        Ok(stream) => Ok(Some(connection::Io::Right(Box::new(stream)))),
        Err((error, stream)) => {
            drain(stream).await;
            Err(error)
        }
    }
}

/// Says that the port speaks TLS only.
async fn send_away(mut stream: TcpStream, speaks: Speaks) -> io::Result<()> {
    stream.write_all(&speaks.farewell()).await?;
    drain(stream).await;
    Ok(())
}

/// Ends a connection so that what was sent last arrives: it may be lost where a socket is closed before its own bytes are read.
async fn drain(mut stream: TcpStream) {
    let drained = async {
        stream.shutdown().await?;
        let mut unread = [0; 1024];
        for _ in 0..64 {
            if stream.read(&mut unread).await? == 0 {
                break;
            }
        }
        Ok::<_, io::Error>(())
    };
    let _ = timeout(FAREWELL, drained).await; // whoever is still there has had the time
}
