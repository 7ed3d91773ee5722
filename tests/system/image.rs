//! The image as `deploy/image/build` makes it, looked at without running it.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use octavius_tests::{World, deploy, image};
use serde_json::Value;

/// What `tar` says of an archive or an entry of it.
fn tar(arguments: &[&str]) -> Result<String> {
    let output = Command::new("tar").args(arguments).output()?;
    ensure!(output.status.success(), "tar {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn an_image_holds_the_program_and_what_it_is_linked_with_and_nothing_else() -> Result<()> {
    let world = World::new()?;
    let archive = world.path("octavius.tar").display().to_string();
    let program = world.command(["version"]).get_program().to_owned();
    image(program.as_ref(), archive.as_ref(), "octavius:test")?;
    let folder = world.path("image").display().to_string();
    std::fs::create_dir(&folder)?;
    tar(&["--extract", "--file", &archive, "--directory", &folder])?;
    let read = |path: &str| -> Result<Value> { Ok(serde_json::from_slice(&std::fs::read(format!("{folder}/{path}"))?)?) };
    let blob = |value: &Value| -> Result<String> {
        let digest = value["digest"].as_str().context("no digest")?;
        Ok(format!("blobs/{}", digest.replace(':', "/")))
    };
    let index = read("index.json")?;
    assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "docker.io/library/octavius:test");
    let manifest = read(&blob(&index["manifests"][0])?)?;
    let config = read(&blob(&manifest["config"])?)?["config"].clone();

    // Everything that is executable, and everything that is not root's or that all may write to.
    let (mut programs, mut others) = (BTreeSet::new(), BTreeSet::new());
    for layer in manifest["layers"].as_array().context("no layers")? {
        for line in tar(&["--list", "--verbose", "--numeric-owner", "--file", &format!("{folder}/{}", blob(layer)?)])?.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (mode, owner, path) = (fields[0], fields[1], fields[5]);
            ensure!(!mode.contains(['s', 'S']), "setuid or setgid: {line}");
            if mode.starts_with('-') && mode.contains('x') {
                programs.insert(path.to_owned());
            }
            if owner != "0/0" || (mode.as_bytes().get(8) == Some(&b'w') && !mode.starts_with('l')) {
                others.insert(path.to_owned());
            }
        }
    }
    let loaders = programs.iter().filter(|path| path.contains("/ld-")).count();
    ensure!(programs.contains("./usr/local/bin/octavius") && programs.len() == 1 + loaders && loaders <= 1, "{programs:?}");
    assert_eq!(others, BTreeSet::from(["./tmp/".to_owned(), "./var/lib/octavius/".to_owned()]));

    // Those who build with Docker or Podman get the same.
    let containerfile = std::fs::read_to_string(deploy().join("image/Containerfile"))?;
    let (_, last) = containerfile.rsplit_once("FROM scratch\n").context("no last stage")?;
    let line = |name: &str| last.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).with_context(|| name.to_owned());
    assert_eq!(config["User"], line("USER ")?);
    assert_eq!(config["WorkingDir"], line("WORKDIR ")?);
    assert_eq!(config["Entrypoint"], serde_json::from_str::<Value>(line("ENTRYPOINT ")?)?);
    let variables: Vec<&str> = line("ENV ")?.split(' ').collect();
    assert_eq!(config["Env"], Value::from(variables));
    Ok(())
}
