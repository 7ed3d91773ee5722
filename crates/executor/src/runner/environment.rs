//! The environment of a job: little, and all of it known.
//!
//! | variable | value |
//! | --- | --- |
//! | `PATH`, `LANG`, `LC_ALL`, `TZ` | as the executor has them; `PATH` has a usual value where it has none, the others are then absent |
//! | `HOME`, `TMPDIR` | the job's own, empty working folder, which is removed after it |
//! | the job's arguments and secrets | as given and as found |
//! | `TRACEPARENT`, `TRACESTATE` | where somebody traces: the span that the job's own are children of; an argument or a secret of that name goes first |
//! | `OCTAVIUS_EXECUTION_ID`, `OCTAVIUS_ATTEMPT`, `OCTAVIUS_JOB`, `OCTAVIUS_USER` | which run this is, and who asked for it |
//!
//! Nothing else of the executor's environment reaches a job, and a secret names only what the executor [offers](crate::offers).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use octavius_core::TraceContext;
use octavius_core::definition::{Secret, SecretSource};
use octavius_core::execution::{Ending, Reason, State};

use super::Launch;
use crate::offers::{NoFile, Offered};

pub(super) const TRACEPARENT: &str = "TRACEPARENT";
pub(super) const TRACESTATE: &str = "TRACESTATE";

/// What a job has of the executor's environment.
const INHERITED: [&str; 4] = ["PATH", "LANG", "LC_ALL", "TZ"];
/// Where the executor itself has no PATH.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Largest value of a secret: Linux takes 128 KiB for a variable with its name.
const SECRET_BYTES: u64 = 127 * 1024;

/// A job's environment, and which of its variables must not be seen in its output. No `Debug`.
pub(crate) struct Environment {
    pub(crate) variables: BTreeMap<String, String>,
    pub(crate) masked: Vec<String>,
}

/// Puts a job's environment together; `own` is the executor's. The error is the attempt's ending: it names a secret that is missing or not
/// offered, and never a value.
pub(crate) fn of(
    launch: &Launch,
    work: &Path,
    offered: &Offered,
    own: impl Fn(&str) -> Option<OsString>,
) -> Result<Environment, Ending> {
    let mut variables = BTreeMap::new();
    for name in INHERITED {
        if let Some(value) = own(name).and_then(|value| value.into_string().ok()) {
            variables.insert(name.to_owned(), value);
        }
    }
    variables.entry("PATH".to_owned()).or_insert_with(|| USUAL_PATH.to_owned());
    let work = work.to_string_lossy();
    variables.insert("HOME".to_owned(), work.clone().into_owned());
    variables.insert("TMPDIR".to_owned(), work.into_owned());
    let mut masked = Vec::new();
    for (name, value) in &launch.arguments {
        if launch.job.argument(name).is_none_or(|argument| argument.sensitive) {
            masked.push(name.clone());
        }
        variables.insert(name.clone(), value.clone());
    }
    for secret in &launch.job.env_vars.secrets {
        let value = resolve(secret, offered, &own)?;
        masked.push(secret.name.clone());
        variables.insert(secret.name.clone(), value);
    }
    for (name, value) in traced(launch.trace.as_ref()) {
        variables.entry(name.to_owned()).or_insert(value);
    }
    let held = launch.held;
    for (name, value) in [
        ("OCTAVIUS_EXECUTION_ID", held.id.to_string()),
        ("OCTAVIUS_ATTEMPT", held.fence.attempt.to_string()),
        ("OCTAVIUS_JOB", launch.job.name.to_string()),
        ("OCTAVIUS_USER", launch.user.clone()),
    ] {
        variables.insert(name.to_owned(), value);
    }
    if let Some(name) = variables.iter().find(|(_, value)| value.contains('\0')).map(|(name, _)| name) {
        return Err(missing(format!("the value of `{name}` holds a NUL character, which no environment variable can")));
    }
    Ok(Environment { variables, masked })
}

/// What tells a job of its trace, as OpenTelemetry's tools read it.
pub(super) fn traced(trace: Option<&TraceContext>) -> impl Iterator<Item = (&'static str, String)> {
    let parent = trace.map(|trace| (TRACEPARENT, trace.traceparent()));
    let state = trace.map(TraceContext::tracestate).filter(|state| !state.is_empty());
    parent.into_iter().chain(state.map(|state| (TRACESTATE, state.to_owned())))
}

/// The span that a job with these variables was given as its parent.
pub(super) fn trace_in<'a>(variable: impl Fn(&str) -> Option<&'a str>) -> Option<TraceContext> {
    TraceContext::parse(variable(TRACEPARENT)?, variable(TRACESTATE).unwrap_or_default())
}

fn missing(message: String) -> Ending {
    Ending::because(State::Failed, Reason::SECRET_MISSING, message)
}

fn resolve(secret: &Secret, offered: &Offered, own: impl Fn(&str) -> Option<OsString>) -> Result<String, Ending> {
    let name = &secret.name;
    let not_text =
        |where_: String| missing(format!("secret `{name}`: {where_} is not UTF-8 text, which a variable must be here"));
    let Some(source) = &secret.from else {
        return Err(missing(format!(
            "secret `{name}` has no `from`, and the process runner has no other place to look: add one to the job"
        )));
    };
    let refused = || offered.refusal(secret, source, "");
    match source {
        SecretSource::Kubernetes(_) => Err(missing(format!(
            "secret `{name}` is kept in Kubernetes, where the process runner cannot look: run the job on a kubernetes executor"
        ))),
        SecretSource::Environment(variable) if !offered.offers.has_variable(variable) => Err(refused()),
        SecretSource::Environment(variable) => match own(variable) {
            Some(value) => value.into_string().map_err(|_| not_text(format!("variable {variable}"))),
            None => Err(missing(format!("secret `{name}`: the executor has no environment variable {variable}"))),
        },
        SecretSource::File(path) => {
            let broken = |error: io::Error| missing(format!("secret `{name}`: file {path}: {error}"));
            let file = match offered.open(Path::new(path)) {
                Some(Ok(file)) => file,
                Some(Err(NoFile::Io(error))) => return Err(broken(error)),
                Some(Err(NoFile::Elsewhere)) => {
                    let Ending { message, .. } = refused();
                    let message = format!("{message}; a link leads there from what is offered");
                    return Err(Ending::because(State::Failed, Reason::SECRET_NOT_OFFERED, message));
                }
                None => return Err(refused()),
            };
            let bytes = read(file).map_err(broken)?;
            String::from_utf8(bytes).map_err(|_| not_text(format!("file {path}")))
        }
    }
}

/// Reads a secret's file; one line break at its end is the editor's and not the secret's.
fn read(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(SECRET_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SECRET_BYTES {
        return Err(io::Error::other(format!("it has more than {SECRET_BYTES} bytes")));
    }
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::Held;
    use octavius_core::ExecutionId;
    use octavius_core::execution::Fence;
    use std::time::Duration;

    fn launch(env_vars: &str, arguments: &[(&str, &str)]) -> Launch {
        Launch {
            held: Held { id: ExecutionId::from_bits(7), fence: Fence { attempt: 2, nonce: 1 } },
            job: serde_json::from_str(&format!(r#"{{"name":"j","command":["true"],"env_vars":{env_vars}}}"#)).unwrap(),
            arguments: arguments.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            timeout: Duration::from_secs(1),
            user: "ann".to_owned(),
            origin: crate::runner::Origin::default(),
            trace: None,
        }
    }

    fn offered(json: serde_json::Value) -> Offered {
        let (executor, offers) = (octavius_core::ExecutorId::new("e1").unwrap(), serde_json::from_value(json).unwrap());
        Offered { executor, offers, own_folder: "/nowhere".into() }
    }

    fn all() -> Offered {
        Offered { offers: crate::SecretOffers::everything(), ..offered(serde_json::json!({})) }
    }

    fn own(name: &str) -> Option<OsString> {
        match name {
            "PATH" => Some("/bin".into()),
            "LANG" => Some("C.UTF-8".into()),
            "OCTAVIUS_TOKEN" | "AWS_KEY" => Some("hunter2".into()),
            _ => None,
        }
    }

    #[test]
    fn a_job_has_what_the_list_says_and_nothing_else() {
        let launch = launch(
            r#"{"args":[{"name":"who"},{"name":"pin","sensitive":true}],"secrets":[{"name":"KEY","from":{"environment":"AWS_KEY"}}]}"#,
            &[("who", "bob"), ("pin", "1234")],
        );
        let environment = of(&launch, Path::new("/w"), &offered(serde_json::json!({"environment": ["AWS_*"]})), own).unwrap();
        let expected = [
            ("HOME", "/w"),
            ("KEY", "hunter2"),
            ("LANG", "C.UTF-8"),
            ("OCTAVIUS_ATTEMPT", "2"),
            ("OCTAVIUS_EXECUTION_ID", "00000000000000000000000007"),
            ("OCTAVIUS_JOB", "j"),
            ("OCTAVIUS_USER", "ann"),
            ("PATH", "/bin"),
            ("TMPDIR", "/w"),
            ("pin", "1234"),
            ("who", "bob"),
        ];
        assert_eq!(environment.variables.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(), expected);
        assert_eq!(environment.masked, ["pin", "KEY"]);
    }

    #[test]
    fn a_job_is_told_of_its_trace_and_its_own_variable_of_that_name_goes_first() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let trace = TraceContext::parse(parent, "a=b");
        let traced = Launch { trace: trace.clone(), ..launch("{}", &[]) };
        let variables = of(&traced, Path::new("/w"), &all(), own).unwrap().variables;
        assert_eq!((variables["TRACEPARENT"].as_str(), variables["TRACESTATE"].as_str()), (parent, "a=b"));
        assert_eq!(trace_in(|name| variables.get(name).map(String::as_str)), trace);
        let given = Launch { trace, ..launch(r#"{"args":[{"name":"TRACEPARENT"}]}"#, &[("TRACEPARENT", "mine")]) };
        assert_eq!(of(&given, Path::new("/w"), &all(), own).unwrap().variables["TRACEPARENT"], "mine");
    }

    #[test]
    fn a_secret_that_is_not_there_is_named_without_any_value() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path.display().to_string()
        };
        for (from, expected) in [
            ("null".to_owned(), "no `from`"),
            (r#"{"kubernetes":{"secret":"a","key":"b"}}"#.to_owned(), "kept in Kubernetes"),
            (r#"{"environment":"NOT_SET"}"#.to_owned(), "no environment variable NOT_SET"),
            (r#"{"environment":"OCTAVIUS_TOKEN"}"#.to_owned(), "Octavius' own"),
            (format!(r#"{{"file":"{}/none"}}"#, folder.path().display()), "No such file"),
            (format!(r#"{{"file":"{}"}}"#, folder.path().display()), "not a file"),
            (format!(r#"{{"file":"{}"}}"#, path("bytes", b"\xff\xfe")), "not UTF-8"),
            (format!(r#"{{"file":"{}"}}"#, path("nul", b"hunter2\0x")), "NUL"),
            (format!(r#"{{"file":"{}"}}"#, path("large", &[b'x'; 200_000])), "more than"),
        ] {
            let launch = launch(&format!(r#"{{"secrets":[{{"name":"KEY","from":{from}}}]}}"#), &[]);
            let message = of(&launch, Path::new("/w"), &all(), own).err().unwrap().message;
            assert!(message.contains(expected) && message.contains("`KEY`"), "{message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
        let launch =
            launch(&format!(r#"{{"secrets":[{{"name":"KEY","from":{{"file":"{}"}}}}]}}"#, path("good", b"s3cr3t\n")), &[]);
        assert_eq!(of(&launch, Path::new("/w"), &all(), own).unwrap().variables["KEY"], "s3cr3t");
    }
    /// Whatever is there: a refusal must not tell whether it is.
    #[test]
    fn what_is_not_offered_is_refused_by_name_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("offered")).unwrap();
        std::fs::write(root.join("secret"), "hunter2").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("offered/link")).unwrap();
        let offered = offered(serde_json::json!({"environment": ["PAY_*"], "files": [format!("{}/offered/", root.display())]}));
        let root = root.display();
        for (from, what, key) in [
            (r#"{"environment":"AWS_KEY"}"#.to_owned(), "the environment variable AWS_KEY", "secrets.environment"),
            (r#"{"environment":"NOT_SET"}"#.to_owned(), "the environment variable NOT_SET", "secrets.environment"),
            (r#"{"environment":"OCTAVIUS_TOKEN"}"#.to_owned(), "OCTAVIUS_TOKEN is Octavius' own", ""),
            (format!(r#"{{"file":"{root}/secret"}}"#), "the file ", "secrets.files"),
            (format!(r#"{{"file":"{root}/none"}}"#), "the file ", "secrets.files"),
            (format!(r#"{{"file":"{root}/offered/../secret"}}"#), "the file ", "secrets.files"),
            (format!(r#"{{"file":"{root}/offered/link"}}"#), "a link leads there", "secrets.files"),
        ] {
            let launch = launch(&format!(r#"{{"secrets":[{{"name":"KEY","from":{from}}}]}}"#), &[]);
            let ending = of(&launch, Path::new("/w"), &offered, own).err().unwrap();
            let told = format!("{} {}", ending.reason.unwrap(), ending.message);
            assert!(told.starts_with("SECRET_NOT_OFFERED secret `KEY`: "), "{told}");
            assert!(told.contains(what) && told.contains(key) && !told.contains("hunter2"), "{told}");
            assert!(key.is_empty() || told.contains("executor `e1`"), "{told}");
        }
    }
}
