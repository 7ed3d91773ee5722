//! The house itself: each outside technology has one room, and no room has grown too big to live in.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn each_outside_technology_has_one_room() {
    let rooms = [
        ("askama", &["page"][..]),
        ("axum", &["controller", "page"]),
        ("clap", &["cli"]),
        ("etcd-client", &["store"]),
        ("fantoccini", &[]), // for the tests alone: see .config/deny.toml
        ("git2", &["catalog"]),
        ("granit-parser", &["catalog"]),
        ("kube", &["executor"]),
        ("opentelemetry", &["trace"]),
        ("opentelemetry-otlp", &["trace"]),
        ("opentelemetry_sdk", &["trace"]),
        ("prometheus-client", &["controller"]),
        ("redb", &["store"]),
        ("tonic", &["controller", "executor", "cli", "page", "proto", "store"]), // etcd speaks it too
    ];
    for entry in std::fs::read_dir(root().join("crates")).unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        for (technology, allowed) in rooms {
            let uses = manifest.lines().any(|line| {
                let dependency = line.split(['.', ' ', '=']).next().unwrap_or_default();
                dependency == technology
            });
            assert!(!uses || allowed.contains(&name.as_str()), "crates/{name} uses {technology}, which belongs to {allowed:?}");
        }
    }
}

#[test]
fn the_core_does_no_io() {
    let manifest = std::fs::read_to_string(root().join("crates/core/Cargo.toml")).unwrap();
    for foreign in ["tokio", "tonic", "redb", "kube", "octavius-"] {
        let found = manifest.lines().any(|line| line.starts_with(foreign) && !line.starts_with("octavius-core"));
        assert!(!found, "crates/core depends on {foreign}");
    }
    let mut files = Vec::new();
    rust_files(&root().join("crates/core/src"), &mut files);
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for io in ["std::fs", "std::net", "std::process", "SystemTime::now", "Instant::now", "Timestamp::now"] {
            assert!(!text.contains(io), "{} uses {io}", file.display());
        }
    }
}

#[test]
fn no_file_has_grown_too_big_to_live_in() {
    let mut files = Vec::new();
    rust_files(&root().join("crates"), &mut files);
    rust_files(&root().join("tests"), &mut files);
    let big: Vec<String> = files
        .iter()
        .filter_map(|file| {
            let lines = std::fs::read_to_string(file).unwrap().lines().count();
            (lines > 600).then(|| format!("{}: {lines} lines", file.display()))
        })
        .collect();
    assert!(big.is_empty(), "{big:#?}");
}
