//! One connection as the server reads and writes it, in the clear or within TLS.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tonic::transport::server::Connected;

use super::seats::Seat;

/// What HTTP/2 begins with is so many bytes long.
const PREFACE: usize = 24;

/// What carries the bytes: the network alone, or TLS over it.
pub(super) type Io = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// A connection that is ready to be served.
#[derive(Debug)]
pub(crate) struct Connection {
    io: Io,
    seat: Arc<Seat>,
    /// How much of its beginning the client has not said, and until when it may.
    unsaid: Option<(usize, Pin<Box<Sleep>>)>,
}

impl Connection {
    pub(super) fn new(io: Io, seat: Arc<Seat>, within: Duration) -> Self {
        Self { io, seat, unsaid: Some((PREFACE, Box::pin(tokio::time::sleep(within)))) }
    }
}

/// Who is at the other end of the connection that a call came by. Each call has it among its extensions.
#[derive(Debug, Clone)]
pub(crate) struct Peer(Arc<Seat>);

impl Peer {
    /// Its address, or that of a load balancer between.
    pub(crate) fn address(&self) -> IpAddr {
        self.0.address().ip().to_canonical()
    }

    /// A good token came by this connection: it gives way to nobody.
    pub(crate) fn is_known(&self) {
        self.0.is_known();
    }

    /// Room for one more call that takes no token, while this is held; none where its connection has too many under way.
    pub(crate) fn public_call(&self) -> Option<OwnedSemaphorePermit> {
        self.0.public_call()
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer(Arc::clone(&self.seat))
    }
}

impl Connection {
    /// Whether it has to give way. Asked wherever the connection may wait: whoever takes nothing is never read from again.
    fn poll_closed(&self, context: &Context<'_>) -> Poll<io::Error> {
        let gives_way = |()| io::Error::new(io::ErrorKind::ConnectionAborted, "it gave way to another connection");
        self.seat.poll_closed(context).map(gives_way)
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(error) = this.poll_closed(context) {
            return Poll::Ready(Err(error));
        }
        if let Some((_, deadline)) = &mut this.unsaid
            && deadline.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client said nothing")));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.io).poll_read(context, buffer);
        if let Some((left, _)) = &mut this.unsaid {
            *left = left.saturating_sub(buffer.filled().len() - before);
            if *left == 0 {
                this.unsaid = None;
            }
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Poll::Ready(error) = self.poll_closed(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.get_mut().io).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_closed(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(error) = self.poll_closed(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.get_mut().io).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
