//! What a daemon's configuration on this machine says, looked at without starting the daemon, and beside one that runs.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use octavius_controller::{AuditExport, TlsFiles};
use octavius_proto::pem::{self, Pair};
use octavius_proto::words::between;

use super::client::secret_file;
use super::controllers::{self, ENDS_SOON};
use super::finding::{Area, Finding};
use crate::archive_options::ArchiveChoice;
use crate::commands::{controller, executor};
use crate::config::Resolved;
use crate::error::Failure;
use crate::exit::Exit;
use crate::folder;
use crate::store_options::{self, StoreChoice};
use crate::{Context, cli};

/// A controller's.
pub(super) async fn controller(config: &Path) -> Vec<Finding> {
    const AREA: Area = Area::ControllerHost;
    let shown = config.display().to_string();
    let described = match controller::described(config) {
        Ok(described) => described,
        Err(failure) => {
            return vec![
                Finding::failed(AREA, "configuration", &failure, "octavius controller start --help tells all keys").of(shown),
            ];
        }
    };
    let controller::Described { store, listen, bootstrap_token_file, archive, audit_export, tls } = described;
    let mut findings = vec![Finding::ok(AREA, "configuration", format!("{store:?}")).of(shown)];
    if let StoreChoice::Etcd(options) = &store {
        let key = options.client_cert.as_ref().map(|(_, key)| key.as_path());
        findings.extend(key.and_then(|key| secret_file(AREA, "etcd_key", key)));
    }
    findings.push(self::store(store).await);
    findings.push(match archive {
        ArchiveChoice::None => {
            Finding::ok(AREA, "archive", "none: of each log, its beginning and its end are kept, in the store")
        }
        ArchiveChoice::Url(url) if url.contains("://") => {
            Finding::skipped(AREA, "archive", format!("{url}: a running controller tells an admin whether it answers"))
        }
        ArchiveChoice::Url(path) => writable(AREA, "archive", Path::new(&path)),
    });
    match &audit_export {
        AuditExport::Folder(path) => findings.push(writable(AREA, "audit_export", path)),
        AuditExport::Unset | AuditExport::Off => {}
    }
    findings.extend(secret_file(AREA, "admin_token", &bootstrap_token_file));
    findings.push(self::listen(listen));
    if let Some(files) = &tls {
        findings.push(certificate(files));
    } else if !listen.ip().is_loopback() {
        let told = format!("listens at {listen} in plain text: tokens travel in the clear");
        findings.push(Finding::warning(
            AREA,
            "tls",
            told,
            "give it a certificate: --tls-cert F --tls-key F; `octavius tls create` makes some to try with",
        ));
    }
    findings
}

/// An etcd is asked; the embedded store's file is one process' alone, so that only its folder is looked at.
async fn store(choice: StoreChoice) -> Finding {
    const AREA: Area = Area::ControllerHost;
    match choice {
        StoreChoice::Embedded(folder) => writable(AREA, "store", &folder),
        choice @ StoreChoice::Etcd(_) => {
            let store = match store_options::open(choice).await {
                Ok(store) => store,
                Err(failure) => return Finding::failed(AREA, "store", &failure, "see to the etcd, or to the way to it"),
            };
            match store.usage().await {
                Ok(usage) if usage.full => {
                    let remedy = "a running controller frees what retention lets go; else raise --quota-backend-bytes and disarm the alarm";
                    Finding::problem(AREA, "store", "the etcd answers, and is full: it takes no writes", remedy)
                }
                Ok(_) => Finding::ok(AREA, "store", "the etcd answers"),
                Err(error) => Finding::problem(AREA, "store", error.to_string(), "see to the etcd, or to the way to it"),
            }
        }
    }
}

/// Whether files can be written into a folder, which may be yet to be made.
fn writable(area: Area, check: &'static str, path: &Path) -> Finding {
    let shown = path.display();
    match folder::is_writable(path) {
        Ok(()) if path.exists() => Finding::ok(area, check, format!("{shown} can be written")),
        Ok(()) => Finding::ok(area, check, format!("{shown} will be made")),
        Err(error) => Finding::problem(
            area,
            check,
            format!("{shown} cannot be written: {error}"),
            "give it to the user that the daemon runs as",
        ),
    }
}

/// Whether the address is free to listen on. That something listens there already may be the controller itself.
fn listen(address: SocketAddr) -> Finding {
    const AREA: Area = Area::ControllerHost;
    match TcpListener::bind(address) {
        Ok(_) => Finding::ok(AREA, "listen", format!("{address} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            Finding::ok(AREA, "listen", format!("something listens at {address}; with the controller started, that is it"))
        }
        Err(error) => {
            Finding::problem(AREA, "listen", format!("{address}: {error}"), "choose another address: `listen` in the file")
        }
    }
}

/// Whether the certificate and its key can be read, and for how long it is good.
fn certificate(files: &TlsFiles) -> Finding {
    const AREA: Area = Area::ControllerHost;
    const RENEW: &str = "put a new one in its place, with its key: the controller takes it without a restart";
    let shown = files.certificate.display();
    let read = || {
        let (chain, key) = (pem::read(&files.certificate)?, pem::read_private(&files.key)?);
        Pair::parse(&chain, &key, (&files.certificate, &files.key))
    };
    let pair = match read() {
        Ok(pair) => pair,
        Err(error) => {
            return Finding::failed(
                AREA,
                "tls",
                &Failure::new(Exit::Usage, error),
                "give it to the user that the daemon runs as",
            );
        }
    };
    let ends = pair.ends().and_then(|seconds| Timestamp::from_second(i64::try_from(seconds).ok()?).ok());
    let (now, Some(ends)) = (Timestamp::now(), ends) else {
        return Finding::problem(AREA, "tls", format!("{shown}: the certificate in it is damaged"), RENEW);
    };
    if ends <= now {
        return Finding::problem(AREA, "tls", format!("the certificate in {shown} has expired ({ends:.0})"), RENEW);
    }
    let told = format!("with TLS, by {shown}, which ends in {}", between(now, ends));
    match Duration::try_from(ends.duration_since(now)).is_ok_and(|left| left < ENDS_SOON) {
        true => Finding::warning(AREA, "tls", told, RENEW),
        false => Finding::ok(AREA, "tls", told),
    }
}

/// An executor's: what `executor check` looks at, and whether its controllers know it.
pub(super) async fn executor(context: &Context, config: &Path) -> Vec<Finding> {
    const AREA: Area = Area::ExecutorHost;
    let shown = config.display().to_string();
    // the flags of this command say how a person reaches a controller
    let context = &Context { shell: context.shell.clone(), connect: cli::ConnectArgs::default() };
    let executor::Examined { id, data_dir, runner, writable: _, token, permissions, .. } =
        match executor::examined(context, config).await {
            Ok(examined) => examined,
            Err(failure) => {
                return vec![
                    Finding::failed(AREA, "configuration", &failure, "octavius executor start --help tells all keys").of(shown),
                ];
            }
        };
    let mut findings = vec![
        Finding::ok(AREA, "configuration", format!("executor {id}, runner {runner}")).of(shown),
        writable(AREA, "data_dir", &data_dir),
    ];
    findings.push(match token {
        Some(_) => Finding::ok(AREA, "registered", format!("its token is in {}", data_dir.display())),
        None => {
            let remedy = "octavius executor register --token-file FILE, with a token of `octavius tokens create --role executor`";
            Finding::warning(AREA, "registered", "not yet", remedy)
        }
    });
    let missing = permissions.iter().filter(|permission| permission.required && !permission.allowed);
    let missing: Vec<String> = missing.map(|one| format!("{} {} in {}", one.verb, one.resource, one.namespace)).collect();
    if !missing.is_empty() {
        let told = format!("the cluster does not let it {}", missing.join(", "));
        findings.push(Finding::problem(
            AREA,
            "permissions",
            told,
            "deploy/README.md says how to give them; `octavius executor check` lists all",
        ));
    } else if !permissions.is_empty() {
        findings.push(Finding::ok(AREA, "permissions", "the cluster gives all that it needs"));
    }
    match executor::reached(context, config) {
        Ok((addresses, timeout)) => {
            let registered = token.is_some();
            let resolved = Resolved {
                addresses,
                token,
                token_source: Some(data_dir.display().to_string()),
                email_id: None,
                timeout,
                name: id.to_string(),
                warnings: Vec::new(),
            };
            let (found, _) = controllers::check(&context.shell, &resolved).await;
            // who one is and how the store is are a person's to ask
            let kept = ["tls", "address", "store_id", "version", "clock"];
            let kept = found.into_iter().filter(|one| kept.contains(&one.check) || (one.check == "token" && registered));
            findings.extend(kept.map(|one| Finding { area: AREA, ..one }));
        }
        Err(failure) => findings.push(Finding::failed(AREA, "address", &failure, "`cp_host` in the file")),
    }
    findings
}

#[cfg(test)]
mod tests {
    use octavius_tests::{Authority, Days};

    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn a_certificate_that_ends_soon_or_cannot_be_read_is_told_before_clients_meet_it() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("ours").unwrap();
        let looked_at = |days| {
            let pair = authority.server(folder.path(), "server", &["127.0.0.1"], days).unwrap();
            certificate(&TlsFiles { certificate: pair.certificate, key: pair.key, client_ca: None })
        };
        // One that is valid is so for a day.
        let soon = looked_at(Days::Now);
        assert!(soon.verdict == Verdict::Warning && soon.message.contains("which ends in 23h"), "{soon:?}");
        let over = looked_at(Days::Past);
        assert!(over.verdict == Verdict::Problem && over.message.contains("has expired (20"), "{over:?}");
        let files = ["none.pem", "none.key"].map(|name| folder.path().join(name));
        let [missing, key] = files;
        let missing = certificate(&TlsFiles { certificate: missing, key, client_ca: None });
        assert!(missing.verdict == Verdict::Problem && missing.message.contains("cannot read"), "{missing:?}");
    }
}
