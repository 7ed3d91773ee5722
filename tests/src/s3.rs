//! A real S3 server for tests, of another house: s3s-fs, over a temporary folder, on a free port, gone with the value that holds it.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Starts over where the port was taken between its choice and its use.
const STARTS: usize = 5;

/// The one bucket.
const BUCKET: &str = "logs";

/// Made up for tests, and told apart in whatever must not show them.
const ACCESS_KEY: &str = "AKTESTOCTAVIUS";
const SECRET_KEY: &str = "made-up-secret-of-a-test";

/// A running S3 server with one empty bucket.
#[derive(Debug)]
pub struct S3 {
    program: PathBuf,
    port: u16,
    child: Option<Child>,
    folder: TempDir,
}

impl S3 {
    /// Starts the server that tests/run has built, `$OCTAVIUS_TEST_S3`, otherwise the `s3s-fs` on the path.
    ///
    /// # Errors
    /// Where it does not get ready; a server that is missing is an error, never a reason to pass.
    pub fn start() -> Result<Self> {
        let program = std::env::var_os("OCTAVIUS_TEST_S3").map_or_else(|| PathBuf::from("s3s-fs"), PathBuf::from);
        for _ in 0..STARTS {
            let folder = tempfile::Builder::new().prefix("octavius-s3-").tempdir()?;
            fs::create_dir_all(folder.path().join("data").join(BUCKET))?;
            let port = crate::free_ports(1)?[0];
            let mut server = Self { program: program.clone(), port, child: None, folder };
            match server.spawn() {
                Err(error) if format!("{error:#}").contains("in use") => {}
                started => return started.map(|()| server),
            }
        }
        bail!("no port stayed free for an S3 server")
    }

    fn spawn(&mut self) -> Result<()> {
        let said = File::options().create(true).append(true).open(self.said_at())?;
        let mut command = Command::new(&self.program);
        command.args(["--host", "127.0.0.1", "--port", &self.port.to_string()]);
        command.args(["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]).arg(self.folder.path().join("data"));
        command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        let child = command.spawn().with_context(|| {
            format!("cannot start the S3 server {}: tests/run builds it and sets OCTAVIUS_TEST_S3", self.program.display())
        })?;
        self.child = Some(child);
        crate::eventually("the S3 server answers", || {
            if let Some(status) = self.child.as_mut().context("no server")?.try_wait()? {
                // a port that is taken will not become free by waiting
                return Ok(Err(anyhow::anyhow!("the S3 server ended with {status}: {}", self.said())));
            }
            self.answers().map(Ok)
        })?
    }

    /// Without a signature it refuses, which is an answer.
    fn answers(&self) -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&([127, 0, 0, 1], self.port).into(), ANSWER)?;
        stream.set_read_timeout(Some(ANSWER))?;
        write!(stream, "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 403"), "{answer:?}");
        Ok(())
    }

    fn said_at(&self) -> PathBuf {
        self.folder.path().join("said")
    }

    /// What it has said so far.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read(self.said_at()).map(|said| String::from_utf8_lossy(&said).into_owned()).unwrap_or_default()
    }

    /// The URL of a prefix of its bucket.
    #[must_use]
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// The address that it listens on, as a URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The variables by which a program reaches it, as the AWS tools name them.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
        ]
    }

    /// What is secret of them: it must stand in no log and no message.
    #[must_use]
    pub fn secret(&self) -> &'static str {
        SECRET_KEY
    }

    /// Sends it a signal; [`Signal::STOP`] pauses it, [`Signal::CONT`] wakes it.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("the S3 server does not run")?;
        Ok(kill_process(Pid::from_child(child), signal)?)
    }

    /// Kills it, as `kill -9` does, also where it is paused. What it holds stays.
    ///
    /// # Errors
    /// Where that fails.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Starts it again on the same port after it was killed, and waits until it answers.
    ///
    /// # Errors
    /// Where it does not get ready.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.spawn()
    }

    /// The objects of its bucket that are there whole, by their keys in order; each is a file of the same bytes.
    ///
    /// # Errors
    /// Where its folder cannot be read.
    pub fn objects(&self) -> Result<Vec<(String, PathBuf)>> {
        let bucket = self.folder.path().join("data").join(BUCKET);
        let mut found = Vec::new();
        files(&bucket, &mut found)?;
        let mut objects = Vec::new();
        for path in found {
            let key = path.strip_prefix(&bucket)?.to_string_lossy().into_owned();
            // what it writes for itself begins with a dot
            if !key.split('/').any(|part| part.starts_with('.')) {
                objects.push((key, path));
            }
        }
        objects.sort();
        Ok(objects)
    }
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { files(&entry.path(), found)? } else { found.push(entry.path()) }
    }
    Ok(())
}

impl Drop for S3 {
    fn drop(&mut self) {
        // it may have ended by itself; SIGKILL also ends one that is paused
        let _ = self.kill();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::aws::AmazonS3Builder;
    use object_store::path::Path;
    use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutPayload, RetryConfig};

    use super::*;

    fn store(s3: &S3) -> Arc<dyn ObjectStore> {
        let _ = rustls::crypto::ring::default_provider().install_default(); // an error: there is one already
        let mut builder = AmazonS3Builder::new().with_url(s3.url("")).with_retry(RetryConfig {
            max_retries: 0,
            retry_timeout: Duration::from_secs(1),
            ..RetryConfig::default()
        });
        for (name, value) in s3.environment() {
            builder = builder.with_config(name.to_ascii_lowercase().parse().unwrap(), value);
        }
        Arc::new(builder.build().unwrap())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn it_keeps_objects_while_it_is_stopped_killed_and_started_again() {
        let mut s3 = S3::start().unwrap();
        let store = store(&s3);
        let bytes: Vec<u8> = (0..5 << 20).map(|number: u32| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let at = Path::from("a/b/0000");
        store.put(&at, PutPayload::from(bytes.clone())).await.unwrap();
        let get = async || Ok::<_, object_store::Error>(store.get(&at).await?.bytes().await?);
        assert_eq!(get().await.unwrap(), bytes);
        assert_eq!(store.get_range(&at, 7..11).await.unwrap(), bytes[7..11]);
        store.put(&Path::from("a/other"), PutPayload::from_static(b"x")).await.unwrap();
        let objects = s3.objects().unwrap();
        assert_eq!(objects.iter().map(|(key, _)| &**key).collect::<Vec<_>>(), ["a/b/0000", "a/other"]);
        assert_eq!(fs::read(&objects[0].1).unwrap(), bytes);
        assert!(store.get(&Path::from("a/none")).await.is_err_and(|error| matches!(error, object_store::Error::NotFound { .. })));
        let create = store.put_opts(&at, PutPayload::from_static(b"y"), PutMode::Create.into()).await;
        assert!(matches!(create, Err(object_store::Error::AlreadyExists { .. })), "{create:?}");

        s3.signal(Signal::STOP).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(300), get()).await.is_err(), "it is paused");
        s3.signal(Signal::CONT).unwrap();
        assert_eq!(get().await.unwrap(), bytes);
        s3.kill().unwrap();
        assert!(get().await.is_err(), "it is gone");
        s3.restart().unwrap();
        assert_eq!(get().await.unwrap(), bytes);
        assert!(!s3.said().contains(s3.secret()));
    }
}
