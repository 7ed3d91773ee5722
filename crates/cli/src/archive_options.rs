//! Where a controller keeps the logs of what has ended, and how much of each, as flags, environment and `controller_config.json` say.

use std::path::{Path, PathBuf};

use clap::Args;
use octavius_controller::Archive;
use octavius_core::limit::{LOG_BYTES, LOG_BYTES_IN_STORE, LOG_BYTES_MIN};
use octavius_core::{ByteSize, SizeLimit};
use url::Url;

use crate::daemon::Settings;
use crate::env;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::sanitize::line;
use crate::store_options::StoreChoice;

/// The folder of logs beside an embedded store.
const FOLDER: &str = "archive";

/// The flags that say where logs are kept, and how much of them.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Logs")]
pub struct ArchiveArgs {
    /// Where logs are kept: a folder or s3://BUCKET/PREFIX that all controllers reach, or none [default: the folder archive of an embedded
    /// store; with etcd none, which keeps little of each log]
    #[arg(long, value_name = "URL", env = env::ARCHIVE)]
    archive: Option<String>,
    /// Most that is kept of one attempt's log, its beginning and its end, or none for all of it [default: 64MiB, 256KiB without archive]
    #[arg(long, value_name = "SIZE", env = env::LOG_LIMIT)]
    log_limit: Option<String>,
}

/// An archive that is meant, and not opened yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArchiveChoice {
    /// There is none: what the store has room for is kept of each log.
    None,
    /// A folder's absolute path, or a URL, which holds no credentials.
    Url(String),
}

impl ArchiveChoice {
    fn within(store: &Path) -> Outcome<Self> {
        folder(&store.join(FOLDER))
    }
}

/// What is kept of logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogKeeping {
    /// Where.
    pub archive: ArchiveChoice,
    /// Most bytes of one attempt's log, where its job does not say; [`u64::MAX`] for all.
    pub limit: u64,
}

impl LogKeeping {
    /// The archive of `dev`, in the folder of everything that it keeps.
    ///
    /// # Errors
    /// Where the path is not text.
    pub fn within(data_dir: &Path) -> Outcome<Self> {
        Ok(Self { archive: ArchiveChoice::within(data_dir)?, limit: LOG_BYTES })
    }

    /// Opens the archive, and says in the log where there is none.
    ///
    /// # Errors
    /// Where it cannot be used.
    pub fn open(&self) -> Outcome<Option<Archive>> {
        let kept = ByteSize::new(self.limit);
        match &self.archive {
            ArchiveChoice::Url(address) => {
                // What speaks HTTP with an S3 takes the process' provider of cryptography, and panics where there is none. An error means that
                // there is one already.
                let _ = rustls::crypto::ring::default_provider().install_default();
                Archive::open(address).map(Some).map_err(|error| Failure::new(Exit::Usage, anyhow::Error::new(error)))
            }
            ArchiveChoice::None => {
                tracing::warn!(
                    "no archive is named: of each log, at most {kept} are kept, its beginning and its end; see --archive"
                );
                Ok(None)
            }
        }
    }
}

impl ArchiveArgs {
    /// What is meant, for this store.
    ///
    /// # Errors
    /// Where an archive or a size cannot be.
    pub fn keeping(&self, settings: &Settings, store: &StoreChoice) -> Outcome<LogKeeping> {
        let archive = match (&self.archive, settings.text("archive")?) {
            (Some(text), _) => named(text, Path::to_path_buf)?,
            (None, Some(text)) => named(&text, |path| settings.beside(path))?,
            (None, None) => match store {
                StoreChoice::Embedded(dir) => ArchiveChoice::within(dir)?,
                StoreChoice::Etcd(_) => ArchiveChoice::None,
            },
        };
        let least = ByteSize::new(LOG_BYTES_MIN);
        let limit = match (&self.log_limit, settings.size_limit("log_limit")?) {
            (Some(text), _) => Some(text.parse::<SizeLimit>().map_err(|error| {
                let failure = Failure::usage(format!("--log-limit: {error}"));
                if error.hint().is_empty() { failure } else { failure.hint(error.hint()) }
            })?),
            (None, limit) => limit,
        };
        let default = if archive == ArchiveChoice::None { LOG_BYTES_IN_STORE } else { LOG_BYTES };
        let limit = limit.map_or(default, SizeLimit::most);
        if limit < LOG_BYTES_MIN {
            return Err(
                Failure::usage(format!("log_limit {} is too small", ByteSize::new(limit))).hint(format!("{least} or more"))
            );
        }
        if archive == ArchiveChoice::None && limit > LOG_BYTES {
            let shown = if limit == u64::MAX { SizeLimit::None } else { SizeLimit::Bytes(ByteSize::new(limit)) };
            return Err(Failure::usage(format!("log_limit {shown} needs an archive: the store is no place for long logs"))
                .hint("--archive DIR, or --archive s3://BUCKET/PREFIX"));
        }
        Ok(LogKeeping { archive, limit })
    }
}

/// What a name of an archive means; `at` says where a relative path begins.
fn named(text: &str, at: impl FnOnce(&Path) -> PathBuf) -> Outcome<ArchiveChoice> {
    const HINT: &str = "a folder, s3://BUCKET/PREFIX, or none";
    if text == "none" {
        return Ok(ArchiveChoice::None);
    }
    let Some((scheme, rest)) = text.split_once("://") else { return folder(&at(Path::new(text))) };
    // Nothing of the text is repeated but its scheme: it may hold a password.
    let wrong = |problem: &str| Failure::usage(format!("archive {}://…: {problem}", line(scheme)));
    let url = Url::parse(text).map_err(|error| wrong(&error.to_string()).hint(HINT))?;
    match url.scheme() {
        "file" => match url.to_file_path() {
            Ok(path) if url.query().is_none() && url.fragment().is_none() => folder(&path),
            _ => Err(wrong("it names no folder of this machine").hint("file:///DIR, with three slashes")),
        },
        "s3" if rest.contains(['@', '?', '#']) => Err(wrong("more than a bucket and a prefix stands in it")
            .hint("credentials and endpoint come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL")),
        "s3" if url.host_str().is_none_or(str::is_empty) => Err(wrong("it names no bucket").hint("s3://BUCKET/PREFIX")),
        "s3" => Ok(ArchiveChoice::Url(url.as_str().trim_end_matches('/').to_owned())),
        _ => Err(wrong("no such archive is known").hint(HINT)),
    }
}

/// The archive in a folder: by its absolute path, so that it is the same wherever the controller is started next.
fn folder(path: &Path) -> Outcome<ArchiveChoice> {
    let path = std::path::absolute(path).map_err(|error| Failure::file("use", path, error))?;
    match path.to_str() {
        Some(text) => Ok(ArchiveChoice::Url(text.to_owned())),
        None => Err(Failure::usage(format!("archive {}: the path is not UTF-8", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use octavius_store::EtcdOptions;

    fn embedded() -> StoreChoice {
        StoreChoice::Embedded(PathBuf::from("/data/octavius"))
    }

    fn etcd() -> StoreChoice {
        StoreChoice::Etcd(EtcdOptions::new(vec!["http://a:1".to_owned()]))
    }

    fn args(archive: Option<&str>, log_limit: Option<&str>) -> ArchiveArgs {
        ArchiveArgs { archive: archive.map(str::to_owned), log_limit: log_limit.map(str::to_owned) }
    }

    fn keeping(args: &ArchiveArgs, file: &str, store: &StoreChoice) -> Result<LogKeeping, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("controller_config.json");
        std::fs::write(&path, file).unwrap();
        let settings = Settings::read(Some(&path), "none", &crate::store_options::KEYS).unwrap();
        let kept = args.keeping(&settings, store).map_err(|failure| {
            assert_eq!(failure.exit, Exit::Usage);
            format!("{:#} {:?}", failure.error.as_ref().unwrap(), failure.hints)
        });
        let root = folder.path().display().to_string();
        kept.map(|kept| match kept.archive {
            ArchiveChoice::Url(url) => LogKeeping { archive: ArchiveChoice::Url(url.replace(&root, "/conf")), ..kept },
            ArchiveChoice::None => kept,
        })
    }

    fn url(url: &str) -> ArchiveChoice {
        ArchiveChoice::Url(url.to_owned())
    }

    #[test]
    fn without_a_word_logs_are_beside_an_embedded_store_and_hardly_in_etcd() {
        let kept = LogKeeping { archive: url("/data/octavius/archive"), limit: 64 << 20 };
        assert_eq!(keeping(&args(None, None), "{}", &embedded()), Ok(kept));
        let kept = LogKeeping { archive: ArchiveChoice::None, limit: 256 << 10 };
        assert_eq!(keeping(&args(None, None), "{}", &etcd()), Ok(kept.clone()));
        assert_eq!(keeping(&args(Some("none"), None), r#"{"archive": "s3://a"}"#, &embedded()), Ok(kept));
    }

    #[test]
    fn archives_are_folders_and_buckets() {
        let cwd = std::env::current_dir().unwrap().display().to_string();
        for (text, expected) in [
            ("/logs", "/logs"),
            ("file:///logs/a%20b", "/logs/a b"),
            ("logs", &*format!("{cwd}/logs")),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ] {
            assert_eq!(keeping(&args(Some(text), None), "{}", &etcd()).unwrap().archive, url(expected), "{text}");
        }
        assert_eq!(keeping(&args(None, None), r#"{"archive": "logs"}"#, &etcd()).unwrap().archive, url("/conf/logs"));
        assert_eq!(keeping(&args(None, None), r#"{"archive": "s3://b/p"}"#, &etcd()).unwrap().limit, 64 << 20);
    }

    #[test]
    fn what_cannot_be_an_archive_is_told_without_its_secrets() {
        for (text, expected) in [
            ("s3://", "archive s3://…: "),
            ("s3:///prefix", "it names no bucket"),
            ("s3://AKHUNTER:hunter2@bucket/prefix", "credentials and endpoint come from AWS_ACCESS_KEY_ID"),
            ("s3://bucket?secret=hunter2", "more than a bucket and a prefix"),
            ("https://AKHUNTER:hunter2@host/bucket", "archive https://…: no such archive is known"),
            ("gs://bucket", "a folder, s3://BUCKET/PREFIX, or none"),
            ("file://host/hunter2", "with three slashes"),
        ] {
            let told = keeping(&args(Some(text), None), "{}", &etcd()).unwrap_err();
            assert!(told.contains(expected) && !told.contains("hunter2") && !told.contains("AKHUNTER"), "{text}: {told}");
        }
    }

    #[test]
    fn limits_are_sizes_that_fit_where_the_logs_are() {
        let limit =
            |flag: &str, file: &str, store: &StoreChoice| keeping(&args(None, Some(flag)), file, store).map(|kept| kept.limit);
        assert_eq!(limit("1GiB", r#"{"log_limit": "1MiB"}"#, &embedded()), Ok(1 << 30));
        assert_eq!(limit("none", "{}", &embedded()), Ok(u64::MAX));
        assert_eq!(limit("65536", "{}", &etcd()), Ok(64 << 10));
        for (flag, expected) in [
            ("64Mi", "did you mean 64MiB?"),
            ("10KB", "log_limit 10KB is too small"),
            ("none", "log_limit none needs an archive"),
            ("65MiB", "log_limit 65MiB needs an archive"),
        ] {
            let told = limit(flag, "{}", &etcd()).unwrap_err();
            assert!(told.contains(expected), "{flag}: {told}");
        }
        let file = |text: &str| keeping(&args(None, None), text, &embedded()).map(|kept| kept.limit);
        assert_eq!(file(r#"{"log_limit": "none"}"#), Ok(u64::MAX));
        assert_eq!(file(r#"{"log_limit": 131072}"#), Ok(131_072));
        for (text, expected) in [
            (r#"{"log_limit": "much"}"#, "`log_limit` is wrong: \"much\" is not a size"),
            (r#"{"log_limit": true}"#, "`log_limit` is not a size"),
        ] {
            let told = file(text).unwrap_err();
            assert!(told.contains(expected), "{text}: {told}");
        }
    }
}
