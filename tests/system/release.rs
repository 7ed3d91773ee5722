//! What is published: the archive that `.ci/release` makes of a commit.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use octavius_tests::World;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Runs a program in a folder, with nothing of the user's git configuration.
fn run(folder: &Path, program: &str, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(folder)
        .env("HOME", folder)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("TZ", "UTC")
        .env_remove("SOURCE_DATE_EPOCH");
    let output = command.output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.success(), text)
}

fn runs(folder: &Path, program: &str, arguments: &[&str]) -> String {
    let (well, text) = run(folder, program, arguments);
    assert!(well, "{program} {arguments:?}: {text}");
    text
}

/// A repository with what the script reads, in one commit.
fn repository(world: &World, name: &str) -> std::path::PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = world.path(name);
    std::fs::create_dir_all(folder.join(".ci")).unwrap();
    for file in [".ci/release", "Cargo.toml", "LICENSE", "README.md", "CHANGELOG.md"] {
        std::fs::copy(root.join(file), folder.join(file)).unwrap();
    }
    let who = ["-c", "user.name=Ann", "-c", "user.email=ann@example.com"];
    runs(&folder, "git", &["init", "-q"]);
    runs(&folder, "git", &["add", "-A"]);
    runs(&folder, "git", &[&who[..], &["commit", "-q", "--date=2026-11-29T00:00:00Z", "-m", "one"]].concat());
    folder
}

/// The archive; its path. What is packed stands for the binary under test and calls it: that one is ten times as large as what is published.
fn packed(world: &World, folder: &Path, out: &str) -> std::path::PathBuf {
    let real = world.command::<&str>([]).get_program().to_string_lossy().into_owned();
    let binary = world.write("octavius", &format!("#!/bin/sh\nexec '{real}' \"$@\"\n")).unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (binary, out) = (binary.display().to_string(), world.path(out));
    runs(folder, "bash", &[".ci/release", "--binary", &binary, "--target", TARGET, "--out", out.to_str().unwrap()]);
    let sums = std::fs::read_to_string(out.join("SHA256SUMS")).unwrap();
    let name = sums.split_whitespace().nth(1).unwrap().to_owned();
    assert_eq!(name, format!("octavius-{}-{TARGET}.tar.gz", env!("CARGO_PKG_VERSION")));
    runs(&out, "sha256sum", &["--check", "--strict", "SHA256SUMS"]);
    out.join(name)
}

#[test]
fn the_archive_holds_all_that_is_needed_and_the_same_bytes_each_time() {
    let world = World::new().unwrap();
    let folder = repository(&world, "tree");
    let (one, other) = (packed(&world, &folder, "one"), packed(&world, &folder, "other"));
    assert!(std::fs::read(&one).unwrap() == std::fs::read(&other).unwrap(), "the same commit makes the same bytes");

    let listed = runs(&folder, "tar", &["--list", "--verbose", "--file", one.to_str().unwrap()]);
    for line in listed.lines() {
        assert!(
            line.split_whitespace().nth(1) == Some("0/0") || line.contains(" root/root "),
            "an owner of this machine: {line}"
        );
    }
    let unpacked = world.path("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    runs(&unpacked, "tar", &["--extract", "--file", one.to_str().unwrap()]);
    let root = unpacked.join(format!("octavius-{}-{TARGET}", env!("CARGO_PKG_VERSION")));
    for file in [
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "completions/octavius.bash",
        "completions/_octavius",
        "completions/octavius.fish",
    ] {
        assert!(std::fs::metadata(root.join(file)).is_ok_and(|found| found.len() > 0), "{file} is missing");
    }
    let page = std::fs::read_to_string(root.join("man/man1/octavius-executors-drain.1")).unwrap();
    let day = runs(&folder, "git", &["log", "-1", "--format=%cd", "--date=format:%Y-%m-%d"]);
    assert!(page.contains(day.trim()), "a page bears the commit's day: {page}");
    assert_eq!(runs(&root, "./octavius", &["--version"]).trim(), concat!("octavius ", env!("CARGO_PKG_VERSION")));
    let commit = std::fs::read_to_string(root.join("COMMIT")).unwrap();
    assert_eq!(commit.trim(), runs(&folder, "git", &["rev-parse", "HEAD"]).trim());
}

#[test]
fn what_is_in_no_commit_is_not_published() {
    let world = World::new().unwrap();
    let folder = repository(&world, "tree");
    let release = |out: &str| run(&folder, "bash", &[".ci/release", "--binary", "/bin/true", "--target", TARGET, "--out", out]);
    std::fs::write(folder.join("forgotten.rs"), "").unwrap();
    let (well, told) = release("out");
    assert!(!well && told.contains("?? forgotten.rs"), "{told}");
    std::fs::remove_file(folder.join("forgotten.rs")).unwrap();
    // nor is another version's binary
    let (well, told) = release("out");
    assert!(!well && told.contains("not octavius"), "{told}");
    assert!(!folder.join("out").exists(), "nothing is left of either");
}
