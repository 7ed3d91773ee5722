//! The environment of a job: little, and all of it known.
//!
//! | variable | value |
//! | --- | --- |
//! | `PATH`, `LANG`, `LC_ALL`, `TZ` | as the executor has them; `PATH` has a usual value where it has none, the others are then absent |
//! | `HOME`, `TMPDIR` | the job's own, empty working folder, which is removed after it |
//! | the job's arguments and secrets | as given and as found |
//! | `OCTAVIUS_EXECUTION_ID`, `OCTAVIUS_ATTEMPT`, `OCTAVIUS_JOB`, `OCTAVIUS_USER` | which run this is, and who asked for it |
//!
//! Nothing else of the executor's environment reaches a job, and no secret may name a variable of Octavius' own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use octavius_core::definition::{Secret, SecretSource};

use super::Launch;

/// What a job has of the executor's environment.
const INHERITED: [&str; 4] = ["PATH", "LANG", "LC_ALL", "TZ"];
/// Where the executor itself has no PATH.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Variables of ours, which neither arguments nor secrets can be or read.
const OURS: &str = "OCTAVIUS_";
/// Largest value of a secret: Linux takes 128 KiB for a variable with its name.
const SECRET_BYTES: u64 = 127 * 1024;

/// A job's environment, and which of its variables must not be seen in its output. No `Debug`.
pub(crate) struct Environment {
    pub(crate) variables: BTreeMap<String, String>,
    pub(crate) masked: Vec<String>,
}

/// Puts a job's environment together; `own` is the executor's. The error names a secret that is missing, and never a value.
pub(crate) fn of(launch: &Launch, work: &Path, own: impl Fn(&str) -> Option<OsString>) -> Result<Environment, String> {
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
        let value = resolve(secret, &own)?;
        masked.push(secret.name.clone());
        variables.insert(secret.name.clone(), value);
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
        return Err(format!("the value of `{name}` holds a NUL character, which no environment variable can"));
    }
    Ok(Environment { variables, masked })
}

fn resolve(secret: &Secret, own: impl Fn(&str) -> Option<OsString>) -> Result<String, String> {
    let name = &secret.name;
    let not_text = |where_: String| format!("secret `{name}`: {where_} is not UTF-8 text, which a variable must be here");
    match &secret.from {
        None => {
            Err(format!("secret `{name}` has no `from`, and the process runner has no other place to look: add one to the job"))
        }
        Some(SecretSource::Kubernetes(_)) => Err(format!(
            "secret `{name}` is kept in Kubernetes, where the process runner cannot look: run the job on a kubernetes executor"
        )),
        Some(SecretSource::Environment(variable)) if variable.starts_with(OURS) => {
            Err(format!("secret `{name}`: {variable} is Octavius' own and no job gets it"))
        }
        Some(SecretSource::Environment(variable)) => match own(variable) {
            Some(value) => value.into_string().map_err(|_| not_text(format!("variable {variable}"))),
            None => Err(format!("secret `{name}`: the executor has no environment variable {variable}")),
        },
        Some(SecretSource::File(path)) => read(path)
            .map_err(|error| format!("secret `{name}`: file {path}: {error}"))
            .and_then(|bytes| String::from_utf8(bytes).map_err(|_| not_text(format!("file {path}")))),
    }
}

/// Reads a secret's file; one line break at its end is the editor's and not the secret's.
fn read(path: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
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
        }
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
        let environment = of(&launch, Path::new("/w"), own).unwrap();
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
            let message = of(&launch, Path::new("/w"), own).err().unwrap();
            assert!(message.contains(expected) && message.contains("`KEY`"), "{message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
        let launch =
            launch(&format!(r#"{{"secrets":[{{"name":"KEY","from":{{"file":"{}"}}}}]}}"#, path("good", b"s3cr3t\n")), &[]);
        assert_eq!(of(&launch, Path::new("/w"), own).unwrap().variables["KEY"], "s3cr3t");
    }
}
