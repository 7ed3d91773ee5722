//! What an operator deploys with: the images that `deploy/image` makes, and Helm with the charts of `deploy/helm`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize as _;
use serde_json::Value;
use tempfile::TempDir;

use super::Kubernetes;
use crate::process::{self, Output};

/// The folder `deploy` of this checkout.
#[must_use]
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// The objects in a text of YAML documents.
///
/// # Errors
/// Where it is no YAML.
pub fn objects(text: &str) -> Result<Vec<Value>> {
    let documents = serde_yaml::Deserializer::from_str(text).map(Value::deserialize);
    let documents = documents.collect::<Result<Vec<_>, _>>()?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// Makes an image of a program as `deploy/image/build` does, into `archive`. Not compressed: it stays on this machine.
///
/// # Errors
/// Where that fails.
pub fn image(program: &Path, archive: &Path, name: &str) -> Result<()> {
    let mut build = Command::new(deploy().join("image/build"));
    build.arg(program).arg(archive).arg(name).env("COMPRESS", "none");
    process::run(&mut build)?.expect(0)?;
    Ok(())
}

impl Kubernetes {
    /// Gives an image to the node, as the administrator of a machine without a registry does.
    ///
    /// # Errors
    /// Where containerd does not take it.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let mut import = Command::new("ctr");
        import.arg("-a").arg(self.folder.join("containerd/sock")).args(["-n", "k8s.io", "images", "import"]).arg(archive);
        process::run(&mut import)?.expect(0)?;
        Ok(())
    }

    /// Applies an object as `kubectl apply --server-side` does, in `namespace` where its kind has one and it names none; unknown fields are
    /// refused. With `dry_run`, it is checked in every way and not kept.
    ///
    /// # Errors
    /// Where the API server refuses.
    pub fn apply(&self, object: &Value, namespace: &str, dry_run: bool) -> Result<Value> {
        let name = object["metadata"]["name"].as_str().context("an object without a name")?;
        let dry_run = if dry_run { "&dryRun=All" } else { "" };
        let path =
            format!("{}/{name}?fieldManager=tests&force=true&fieldValidation=Strict{dry_run}", collection(object, namespace)?);
        let answer = self.request("PATCH", &path, Some(("application/apply-patch+yaml", object)));
        let answer = answer.with_context(|| format!("{} {name}", object["kind"]))?;
        Ok(serde_json::from_str(&answer)?)
    }
}

/// The path of the collection that an object belongs to.
fn collection(object: &Value, namespace: &str) -> Result<String> {
    let version = object["apiVersion"].as_str().context("no apiVersion")?;
    let kind = object["kind"].as_str().context("no kind")?;
    let root = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
    let plural = match kind {
        "Ingress" => "ingresses".to_owned(),
        "NetworkPolicy" => "networkpolicies".to_owned(),
        _ => format!("{}s", kind.to_lowercase()),
    };
    if ["Namespace", "CustomResourceDefinition"].contains(&kind) {
        return Ok(format!("{root}/{plural}"));
    }
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or(namespace);
    Ok(format!("{root}/namespaces/{namespace}/{plural}"))
}

/// Helm, with nothing of the user's configuration.
#[derive(Debug)]
pub struct Helm {
    program: PathBuf,
    folder: TempDir,
}

impl Helm {
    /// The one that tests/run builds and names in `$OCTAVIUS_TEST_HELM`.
    ///
    /// # Errors
    /// Where there is none.
    pub fn new() -> Result<Self> {
        let program = std::env::var_os("OCTAVIUS_TEST_HELM").context("OCTAVIUS_TEST_HELM is not set: tests/run builds Helm")?;
        Ok(Self { program: program.into(), folder: tempfile::Builder::new().prefix("octavius-helm-").tempdir()? })
    }

    /// Calls it, and waits for its end.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.program);
        command.args(arguments).env_clear().env("HOME", self.folder.path()).current_dir(deploy().join("helm"));
        process::run(&mut command)
    }

    /// Writes values into a file.
    ///
    /// # Errors
    /// Where that fails.
    pub fn values(&self, name: &str, values: &Value) -> Result<String> {
        let path = self.folder.path().join(format!("{name}.json"));
        std::fs::write(&path, values.to_string())?;
        Ok(path.display().to_string())
    }

    /// What a chart makes of a file of values, as the release and in the namespace of these names.
    ///
    /// # Errors
    /// Where it refuses.
    pub fn template(&self, chart: &str, release: &str, namespace: &str, values: Option<&str>) -> Result<Vec<Value>> {
        let mut arguments = vec!["template", release, chart, "--namespace", namespace];
        if let Some(values) = values {
            arguments.extend(["--values", values]);
        }
        let text = self.run(&arguments)?.expect(0)?.stdout;
        let objects = objects(&text)?;
        ensure!(!objects.is_empty(), "{chart} makes nothing");
        Ok(objects)
    }
}
