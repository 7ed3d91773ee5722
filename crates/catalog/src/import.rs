//! Jobs of the first Octavius, as they lie in its etcd, made into files of a catalogue. What cannot be a job here is told with its reason;
//! the others are not held up by it.

use std::collections::BTreeMap;

use octavius_core::{JobDefinition, JobName};
use prost::Message;
use serde_json::json;

use crate::export::to_yaml;
use crate::load::load_file;
use crate::source::{CATALOG_FILE, Limits};

/// What the first Octavius' keys of jobs start with; the job's name follows.
pub const PREFIX: &str = "metadata/";

/// A job as the first Octavius stores it.
#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    description: String,
    #[prost(string, tag = "3")]
    image_name: String,
    #[prost(message, optional, tag = "4")]
    env_vars: Option<StoredEnvVars>,
    #[prost(string, repeated, tag = "5")]
    authorized_groups: Vec<String>,
    #[prost(string, tag = "6")]
    author: String,
    #[prost(string, tag = "7")]
    contributors: String,
    #[prost(string, tag = "8")]
    organization: String,
}

#[derive(Clone, PartialEq, Message)]
struct StoredEnvVars {
    #[prost(message, repeated, tag = "1")]
    secrets: Vec<StoredSecret>,
    #[prost(message, repeated, tag = "2")]
    args: Vec<StoredArgument>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredSecret {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    description: String,
}

#[derive(Clone, PartialEq, Message)]
struct StoredArgument {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    description: String,
    #[prost(bool, tag = "3")]
    required: bool,
}

/// A job that was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedJob {
    /// Its name.
    pub name: JobName,
    /// Its file in the catalogue, without folders.
    pub file: String,
    /// What the file holds.
    pub yaml: String,
}

/// A key that gave no job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The key; what is no text in it is replaced.
    pub key: String,
    /// What is wrong, all of it.
    pub reasons: Vec<String>,
    /// What to do about it.
    pub hint: &'static str,
}

/// What an import came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Imported {
    /// The jobs, in order of their keys. Each validates, and no two have one name or one file.
    pub jobs: Vec<ImportedJob>,
    /// What was not taken, in order of the keys.
    pub refused: Vec<Refused>,
}

/// Makes job files of the keys and values under [`PREFIX`].
///
/// ```
/// use octavius_catalog::import::import;
///
/// // {name: "hello", image_name: "hello:1"}
/// let imported = import([(b"metadata/hello".as_slice(), b"\x0a\x05hello\x1a\x07hello:1".as_slice())]);
/// assert_eq!(imported.jobs[0].yaml, "name: hello\nimage_name: hello:1\n");
/// ```
#[must_use]
pub fn import<K: AsRef<[u8]>, V: AsRef<[u8]>>(entries: impl IntoIterator<Item = (K, V)>) -> Imported {
    let mut imported = Imported::default();
    let mut names: BTreeMap<String, JobName> = BTreeMap::new();
    for (key, value) in entries {
        let key = String::from_utf8_lossy(key.as_ref()).into_owned();
        let taken = job_of(key.strip_prefix(PREFIX).unwrap_or(&key), value.as_ref()).and_then(|job| {
            match names.get(&job.name.folded()) {
                Some(other) => Err((
                    vec![format!("the name `{}` differs from that of `{other}` in upper and lower case alone", job.name)],
                    "give one of the two another name, in a file of its own",
                )),
                None => Ok(job),
            }
        });
        match taken {
            Ok(job) => {
                names.insert(job.name.folded(), job.name.clone());
                imported.jobs.push(job);
            }
            Err((reasons, hint)) => imported.refused.push(Refused { key, reasons, hint }),
        }
    }
    imported
}

type Refusal = (Vec<String>, &'static str);

fn job_of(key_name: &str, value: &[u8]) -> Result<ImportedJob, Refusal> {
    let refuse = |reason: String, hint| Err((vec![reason], hint));
    let stored = match Metadata::decode(value) {
        Ok(stored) => stored,
        Err(error) => {
            return refuse(
                format!("the value is not a job's metadata: {error}"),
                "whatever it is, the first Octavius cannot read it either; write the job's file by hand",
            );
        }
    };
    if !stored.name.is_empty() && stored.name != key_name {
        return refuse(
            format!("the value calls itself `{}`", stored.name.escape_debug()),
            "find out which of the two is meant, and write its file by hand",
        );
    }
    let name = match JobName::new(key_name) {
        Ok(name) => name,
        Err(error) => {
            return refuse(format!("a job cannot have this name: {error}"), "write its file by hand, with another name");
        }
    };
    let definition = match definition(&name, stored) {
        Ok(definition) => definition,
        Err(error) => return refuse(format!("it is no job's definition: {error}"), "write its file by hand"),
    };
    let yaml = to_yaml(&definition, None);
    let file = file_of(&name);
    let loaded = load_file(&file, yaml.as_bytes(), &Limits::default());
    if loaded.has_errors() {
        let errors = loaded.diagnostics.iter().filter(|diagnostic| diagnostic.is_error());
        let reasons = errors.map(|diagnostic| diagnostic.message.clone()).collect();
        let codes = loaded.diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).map(|diagnostic| diagnostic.code);
        return Err((reasons, hint_of(codes)));
    }
    Ok(ImportedJob { name, file, yaml })
}

/// What to do about findings of these codes. That of a variable's name goes before the others: it asks for a change elsewhere.
fn hint_of<'c>(codes: impl Iterator<Item = &'c str>) -> &'static str {
    let mut hint = "write its file by hand, with what is wrong put right";
    for code in codes {
        match code {
            "variable-name" | "duplicate-variable" => {
                return "write its file by hand, and change what the job's container reads where a variable's name changes";
            }
            "nothing-to-run" => hint = "write its file by hand, with the image or the command that it runs",
            "too-many-variables" => hint = "write its file by hand, with fewer variables: one may hold several values",
            "file-size" => hint = "write its file by hand, with a shorter description",
            _ => {}
        }
    }
    hint
}

/// The job's file. One that is called like the catalogue's own file has another.
fn file_of(name: &JobName) -> String {
    let file = format!("{name}.yaml");
    if file.eq_ignore_ascii_case(CATALOG_FILE) { format!("{name}.job.yaml") } else { file }
}

/// The definition, with this version's defaults for what the first Octavius did not know.
fn definition(name: &JobName, stored: Metadata) -> Result<JobDefinition, serde_json::Error> {
    let Metadata { name: _, description, image_name, env_vars, authorized_groups, author, contributors, organization } = stored;
    let StoredEnvVars { secrets, args } = env_vars.unwrap_or_default();
    let secrets: Vec<_> =
        secrets.iter().map(|secret| json!({ "name": secret.name, "description": secret.description })).collect();
    let args = args.iter();
    let args: Vec<_> = args
        .map(|argument| json!({ "name": argument.name, "description": argument.description, "required": argument.required }))
        .collect();
    serde_json::from_value(json!({
        "name": name,
        "description": description,
        "image_name": image_name,
        "env_vars": { "secrets": secrets, "args": args },
        "authorized_groups": authorized_groups,
        "author": author,
        "contributors": contributors,
        "organization": organization,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(name: &str) -> Metadata {
        Metadata {
            name: name.to_owned(),
            description: "says \"hello\": to all\n".to_owned(),
            image_name: "hello:1".to_owned(),
            env_vars: Some(StoredEnvVars {
                secrets: vec![StoredSecret { name: "TOKEN".to_owned(), description: "of the gateway".to_owned() }],
                args: vec![StoredArgument { name: "who".to_owned(), description: "yes".to_owned(), required: true }],
            }),
            authorized_groups: vec!["support".to_owned()],
            author: "ann".to_owned(),
            contributors: "ben, cid".to_owned(),
            organization: "octavius".to_owned(),
        }
    }

    fn entry(metadata: &Metadata) -> (Vec<u8>, Vec<u8>) {
        (format!("{PREFIX}{}", metadata.name).into_bytes(), metadata.encode_to_vec())
    }

    #[test]
    fn a_job_arrives_whole() {
        let imported = import([entry(&metadata("hello"))]);
        assert_eq!(imported.refused, []);
        let [job] = imported.jobs.as_slice() else { panic!("{imported:?}") };
        insta::assert_snapshot!(job.yaml, @r#"
        name: hello
        description: |
          says "hello": to all
        image_name: hello:1
        env_vars:
          secrets:
          - name: TOKEN
            description: of the gateway
          args:
          - name: who
            description: yes
            required: true
        authorized_groups:
        - support
        author: ann
        contributors: ben, cid
        organization: octavius
        "#);
        let loaded = load_file(&job.file, job.yaml.as_bytes(), &Limits::default());
        assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
        assert_eq!(*loaded.jobs[0].definition, definition(&job.name, metadata("hello")).unwrap());
    }

    #[test]
    fn what_cannot_be_is_told_and_holds_up_nothing_else() {
        let mut wrong = metadata("args");
        if let Some(variables) = &mut wrong.env_vars {
            variables.args =
                ["a-b", "x", "x"].map(|name| StoredArgument { name: name.to_owned(), ..Default::default() }).to_vec();
        }
        let (_, value) = entry(&metadata("other"));
        let imported = import([
            entry(&wrong),
            entry(&metadata("a b")),
            (b"metadata/broken".to_vec(), vec![0x0a, 0xff]),
            entry(&metadata("good")),
            entry(&metadata("GOOD")),
            (b"metadata/moved".to_vec(), value),
            (b"metadata/\xff".to_vec(), metadata("").encode_to_vec()),
            entry(&metadata("octavius")),
            (b"metadata/nameless".to_vec(), metadata("").encode_to_vec()),
        ]);
        let files: Vec<_> = imported.jobs.iter().map(|job| job.file.as_str()).collect();
        assert_eq!(files, ["good.yaml", "octavius.job.yaml", "nameless.yaml"]);
        let told = |key: &str| {
            let refused = imported.refused.iter().find(|refused| refused.key == key).unwrap();
            refused.reasons.join("; ")
        };
        assert!(told("metadata/args").contains("a-b") && told("metadata/args").contains('x'), "{}", told("metadata/args"));
        assert!(told("metadata/a b").contains("cannot have this name"));
        assert!(told("metadata/broken").contains("not a job's metadata"));
        assert!(told("metadata/GOOD").contains("`good`"));
        assert!(told("metadata/moved").contains("`other`"));
        assert!(told("metadata/\u{fffd}").contains("cannot have this name"));
        assert_eq!(imported.refused.len(), 6);
        let hinted = |key: &str| imported.refused.iter().find(|refused| refused.key == key).unwrap().hint;
        assert!(hinted("metadata/args").contains("container"), "{}", hinted("metadata/args"));
        let imported = import([entry(&Metadata { image_name: String::new(), ..metadata("idle") })]);
        let [refused] = imported.refused.as_slice() else { panic!("{imported:?}") };
        assert!(refused.hint.contains("the image or the command"), "{refused:?}");
    }
}
