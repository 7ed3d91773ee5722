//! A TCP proxy between any two parts of the system, which does to their connections what networks do: delay, silence without an end,
//! resets, ends in the middle. Switched while it runs; connections that stand feel it too.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use rustix::net::sockopt::set_socket_linger;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Bytes that are carried over at once.
const PIECE_BYTES: usize = 64 * 1024;

/// What a proxy does to its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Carries everything over.
    Pass,
    /// Carries everything over, each piece so much later.
    Latency(Duration),
    /// Carries nothing over in these directions and says nothing: no end, no reset. Whoever connects is accepted and hears nothing. What
    /// was sent meanwhile arrives later, as after a network has come back.
    Blackhole(Direction),
    /// Resets every connection, and each new one at once.
    Reset,
    /// Resets each connection after it has carried so many bytes more in both directions together.
    CutAfter(u64),
}

/// A direction through a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the one who connected.
    ToServer,
    /// To the one who connected.
    ToClient,
    /// Both.
    Both,
}

impl Mode {
    /// Whether nothing goes in this direction.
    fn holds(self, direction: Direction) -> bool {
        matches!(self, Self::Blackhole(held) if held == Direction::Both || held == direction)
    }
}

/// A running proxy; its connections end with it.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    resets: watch::Sender<u64>,
    open: Arc<AtomicU64>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy on a free port in front of `target`.
    ///
    /// # Errors
    /// Where there is no port or no thread.
    pub fn start(target: SocketAddr) -> Result<Self> {
        Self::start_on(Ipv4Addr::LOCALHOST, target)
    }

    /// The same on another address of this machine, for whoever cannot reach its loopback: a pod.
    ///
    /// # Errors
    /// Where it cannot listen.
    pub fn start_on(address: Ipv4Addr, target: SocketAddr) -> Result<Self> {
        let listener = std::net::TcpListener::bind((address, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (mode, modes) = watch::channel(Mode::Pass);
        let (resets, reset) = watch::channel(0);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let open = Arc::new(AtomicU64::new(0));
        let line = Line { target, modes, reset, open: Arc::clone(&open) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name(format!("proxy {address}")).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = line.accept(listener) => {}
                }
            });
            // Connections end with the runtime that carries them.
        })?;
        Ok(Self { address, mode, resets, open, stop: Some(stop), thread: Some(thread) })
    }

    /// Starts a proxy in front of a port of this machine.
    ///
    /// # Errors
    /// Where there is no port or no thread.
    pub fn before(port: u16) -> Result<Self> {
        Self::start(([127, 0, 0, 1], port).into())
    }

    /// Where to connect to instead of to the target.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it does from now on.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Resets all connections that stand now; those that are made later are carried over.
    pub fn reset(&self) {
        self.resets.send_modify(|count| *count += 1);
    }

    /// How many connections stand.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(()); // the thread may have ended by itself
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What each connection needs.
#[derive(Debug, Clone)]
struct Line {
    target: SocketAddr,
    modes: watch::Receiver<Mode>,
    reset: watch::Receiver<u64>,
    open: Arc<AtomicU64>,
}

impl Line {
    async fn accept(self, listener: std::net::TcpListener) {
        let Ok(listener) = TcpListener::from_std(listener) else { return };
        loop {
            match listener.accept().await {
                Ok((client, _)) => {
                    let line = self.clone();
                    line.open.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(async move {
                        line.clone().carry(client).await;
                        line.open.fetch_sub(1, Ordering::Relaxed);
                    });
                }
                // Out of descriptors, most likely: connections that end free some.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Carries one connection to its end.
    async fn carry(mut self, mut client: TcpStream) {
        self.reset.mark_unchanged();
        let mut modes = self.modes.clone();
        // Not asked yet: whoever is behind a black hole does not even see that someone connects.
        let connect = async {
            modes.wait_for(|mode| !matches!(mode, Mode::Blackhole(_))).await.ok().map(drop)?;
            TcpStream::connect(self.target).await.ok()
        };
        let connected = tokio::select! {
            connected = connect => connected,
            _ = self.reset.changed() => None,
        };
        let Some(mut server) = connected else { return end_with_reset(&client) };
        let _ = (client.set_nodelay(true), server.set_nodelay(true)); // slower without, no worse
        let through = {
            let carried = AtomicU64::new(0);
            let (from_client, to_client) = client.split();
            let (from_server, to_server) = server.split();
            let both = async {
                tokio::try_join!(
                    pump(from_client, to_server, Direction::ToServer, self.modes.clone(), &carried),
                    pump(from_server, to_client, Direction::ToClient, self.modes.clone(), &carried),
                )
            };
            let mut modes = self.modes.clone();
            let reset = async { modes.wait_for(|mode| *mode == Mode::Reset).await.map(drop) };
            tokio::select! {
                ended = both => ended.is_ok(),
                _ = reset => false,
                _ = self.reset.changed() => false,
            }
        };
        if !through {
            end_with_reset(&client);
            end_with_reset(&server);
        }
    }
}

/// Makes the coming close of a socket a reset.
fn end_with_reset(socket: &TcpStream) {
    let _ = set_socket_linger(socket, Some(Duration::ZERO)); // then it ends in order: a milder fault than was asked for
}

/// Carries one direction over, as the mode at the time says; an error means that both directions end now.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    direction: Direction,
    mut modes: watch::Receiver<Mode>,
    carried: &AtomicU64,
) -> io::Result<()> {
    let gone = || io::Error::from(io::ErrorKind::ConnectionAborted);
    let mut piece = vec![0; PIECE_BYTES];
    let (mut known, mut base) = (Mode::Pass, 0);
    loop {
        modes.wait_for(|mode| !mode.holds(direction)).await.map(drop).map_err(|_| gone())?;
        let count = tokio::select! {
            count = from.read(&mut piece) => count?,
            changed = modes.changed() => {
                changed.map_err(|_| gone())?;
                continue;
            }
        };
        // What was read while the mode changed, an end too, waits like everything else.
        let mode = modes.wait_for(|mode| !mode.holds(direction)).await.map(|mode| *mode).map_err(|_| gone())?;
        if mode != known {
            (known, base) = (mode, carried.load(Ordering::Relaxed));
        }
        if count == 0 {
            to.shutdown().await?;
            return Ok(());
        }
        let mut count = count;
        match mode {
            Mode::Latency(time) => tokio::time::sleep(time).await,
            Mode::CutAfter(limit) => {
                let left = limit.saturating_sub(carried.load(Ordering::Relaxed) - base);
                if left < count as u64 {
                    count = usize::try_from(left).unwrap_or(count);
                    to.write_all(&piece[..count]).await?;
                    return Err(gone());
                }
            }
            Mode::Pass | Mode::Blackhole(_) | Mode::Reset => {}
        }
        to.write_all(&piece[..count]).await?;
        carried.fetch_add(count as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    /// Answers each byte with the same byte; ends a connection that the other side has ended.
    fn echo() -> SocketAddr {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut reader = stream.try_clone().unwrap();
                    let mut writer = stream;
                    drop(std::io::copy(&mut reader, &mut writer));
                    drop(writer.shutdown(std::net::Shutdown::Write));
                });
            }
        });
        address
    }

    fn connect(proxy: &Proxy) -> std::net::TcpStream {
        let stream = std::net::TcpStream::connect(proxy.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn say(stream: &mut std::net::TcpStream, text: &[u8]) {
        stream.write_all(text).unwrap();
        let mut heard = vec![0; text.len()];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(heard, text);
    }

    /// Whether nothing comes for a while.
    fn silent(stream: &mut std::net::TcpStream) -> bool {
        stream.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
        let got = stream.read(&mut [0]);
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        got.is_err_and(|error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    }

    fn kind_of_end(stream: &mut std::net::TcpStream) -> Option<io::ErrorKind> {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).err().map(|error| error.kind())
    }

    #[test]
    fn many_connections_pass_and_end_as_they_would_without() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut all: Vec<_> = (0..50).map(|_| connect(&proxy)).collect();
        for (number, stream) in all.iter_mut().enumerate() {
            say(stream, format!("hello {number}").as_bytes());
        }
        assert_eq!(proxy.connections(), 50);
        for stream in &mut all {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(kind_of_end(stream), None, "an end in order stays one");
        }
        crate::eventually("connections are forgotten", || {
            anyhow::ensure!(proxy.connections() == 0, "{}", proxy.connections());
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn latency_delays_both_ways() {
        let proxy = Proxy::start(echo()).unwrap();
        proxy.set(Mode::Latency(Duration::from_millis(60)));
        let mut stream = connect(&proxy);
        let begun = std::time::Instant::now();
        say(&mut stream, b"x");
        assert!(begun.elapsed() >= Duration::from_millis(120), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_black_hole_is_silent_and_gives_back_what_was_sent() {
        let proxy = Proxy::start(echo()).unwrap();
        for direction in [Direction::Both, Direction::ToServer, Direction::ToClient] {
            let mut stream = connect(&proxy);
            say(&mut stream, b"before");
            proxy.set(Mode::Blackhole(direction));
            stream.write_all(b"meanwhile").unwrap();
            assert!(silent(&mut stream), "{direction:?}");
            let mut newcomer = connect(&proxy);
            newcomer.write_all(b"new").unwrap();
            assert!(silent(&mut newcomer));
            proxy.set(Mode::Pass);
            for (stream, text) in [(&mut stream, "meanwhile"), (&mut newcomer, "new")] {
                let mut heard = vec![0; text.len()];
                stream.read_exact(&mut heard).unwrap();
                assert_eq!(heard, text.as_bytes());
            }
        }
    }

    #[test]
    fn connections_are_reset_now_or_from_now_on() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut stream = connect(&proxy);
        say(&mut stream, b"x");
        proxy.reset();
        assert_eq!(kind_of_end(&mut stream), Some(io::ErrorKind::ConnectionReset));
        let mut stream = connect(&proxy);
        say(&mut stream, b"new ones pass");
        proxy.set(Mode::Reset);
        assert_eq!(kind_of_end(&mut stream), Some(io::ErrorKind::ConnectionReset));
        let mut refused = connect(&proxy);
        assert_eq!(kind_of_end(&mut refused), Some(io::ErrorKind::ConnectionReset));
        proxy.set(Mode::Pass);
        say(&mut connect(&proxy), b"again");
    }

    #[test]
    fn a_connection_is_cut_after_so_many_bytes() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut stream = connect(&proxy);
        say(&mut stream, b"not counted");
        proxy.set(Mode::CutAfter(10));
        stream.write_all(b"0123456789abcdef").unwrap();
        let mut heard = Vec::new();
        let end = stream.read_to_end(&mut heard).unwrap_err().kind();
        assert_eq!(end, io::ErrorKind::ConnectionReset);
        assert!(heard.len() <= 10, "{heard:?}");
    }

    #[test]
    fn a_target_that_is_not_there_resets() {
        let free = crate::free_ports(1).unwrap()[0];
        let proxy = Proxy::before(free).unwrap();
        assert_eq!(kind_of_end(&mut connect(&proxy)), Some(io::ErrorKind::ConnectionReset));
    }
}
