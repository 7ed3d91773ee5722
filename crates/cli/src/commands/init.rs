//! `octavius init`: a catalogue to begin from, settings that make editors check it, and a recipe that makes CI show and apply it. What is
//! there already is left as it is, so running it again adds what is missing.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Args, ValueEnum};
use octavius_catalog::diagnostic::render_count;
use octavius_catalog::schema::{catalog_schema, job_schema};
use octavius_catalog::source::CATALOG_FILE;
use octavius_catalog::{Limits, MANUAL, load, read_dir};
use octavius_core::CatalogName;
use serde_json::{Value, json};

use crate::arguments::shell_quoted;
use crate::catalog_args::name_in;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::folder::{self, NewFiles};
use crate::output::Format;
use crate::remote_catalog::{print_findings, unreadable};
use crate::sanitize::line;
use crate::{Context, env};

/// Flags of `octavius init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Folder for the catalogue; what is there already is left as it is
    #[arg(value_name = "DIR", default_value = "catalog")]
    dir: PathBuf,
    /// Name of the catalogue [default: the folder's; for `catalog`, that of the folder around it]
    #[arg(long, value_name = "NAME", env = env::CATALOG_NAME)]
    catalog_name: Option<CatalogName>,
    /// For which CI system a recipe is written [default: by the remote `origin`, in a git repository]
    #[arg(long, value_enum, value_name = "SYSTEM", env = env::CI_RECIPE)]
    ci: Option<Ci>,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

/// A CI system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Ci {
    /// GitHub Actions
    Github,
    /// GitLab CI
    Gitlab,
    /// None
    None,
}

/// The job that a new catalogue begins with.
const FIRST_JOB: &str = "\
name: hello
description: Greet someone; a job to begin from
image_name: busybox:1.37
command: [sh, -c, 'echo \"Hello, $who!\"']
env_vars:
  args:
  - {name: who, description: whom to greet, default: world}
timeout: 5m
";

/// The steps of both recipes, and the hook: scripts that stand in the repository.
const STEPS: [(&str, &str); 5] = [
    ("install", include_str!("../../../../deploy/ci/steps/install.sh")),
    ("prepare", include_str!("../../../../deploy/ci/steps/prepare.sh")),
    ("validate", include_str!("../../../../deploy/ci/steps/validate.sh")),
    ("diff", include_str!("../../../../deploy/ci/steps/diff.sh")),
    ("apply", include_str!("../../../../deploy/ci/steps/apply.sh")),
];
const COMMENT_GITHUB: &str = include_str!("../../../../deploy/ci/steps/comment-github.sh");
const COMMENT_GITLAB: &str = include_str!("../../../../deploy/ci/steps/comment-gitlab.sh");
const GITHUB: &str = include_str!("../../../../deploy/ci/github.yml");
const GITLAB: &str = include_str!("../../../../deploy/ci/gitlab.yml");
const PRE_COMMIT_FILE: &str = ".octavius/pre-commit";
const PRE_COMMIT: &str = include_str!("../../../../deploy/ci/pre-commit");

/// Where GitLab finds what is to be done.
const GITLAB_ROOT: &str = ".gitlab-ci.yml";
const GITLAB_INCLUDE: &str = "include:\n- local: .gitlab/octavius.yml\n";
const EDITOR: &str = ".vscode/settings.json";

/// Runs the command.
///
/// # Errors
/// Where the catalogue cannot be named, or the files cannot be written.
pub fn run(context: &Context, args: &InitArgs) -> Outcome {
    let shell = &context.shell;
    if args.dir.metadata().is_ok_and(|found| !found.is_dir()) {
        return Err(Failure::usage(format!("{} is not a folder", args.dir.display())));
    }
    let there = name_in(&args.dir)?;
    if let (Some(asked), Some(there)) = (&args.catalog_name, &there)
        && asked != there
    {
        return Err(Failure::usage(format!("{} is the catalogue `{there}` already, not `{asked}`", args.dir.display()))
            .hint("name another folder, or leave --catalog-name out"));
    }
    let dir = std::path::absolute(&args.dir).map_err(|error| Failure::file("find", &args.dir, error))?;
    let project = Project::of(&dir)?;
    let mut files = project.files()?;
    let ci = args.ci.unwrap_or_else(|| project.ci());
    files.extend(project.recipe(ci)?);
    // a catalogue that is there has its jobs: only what is around it may be missing
    if !dir.join(CATALOG_FILE).exists() {
        let up = if project.prefix.is_empty() { String::new() } else { "../".repeat(project.prefix.split('/').count()) };
        let schema = |name: &str| format!("# yaml-language-server: $schema={up}.octavius/{name}.schema.json\n");
        let name = project.name(args)?;
        files.insert(project.file(CATALOG_FILE), format!("{}catalog: {name}\n", schema("catalog")).into_bytes());
        files.insert(project.file("hello.yaml"), format!("{}{FIRST_JOB}", schema("job")).into_bytes());
    }
    let (kept, new): (NewFiles, NewFiles) =
        files.into_iter().partition(|(path, _)| project.root.join(path).symlink_metadata().is_ok());
    folder::write_all(&project.root, &new)?;
    for (path, _) in new.iter().filter(|(_, bytes)| bytes.starts_with(b"#!")) {
        make_executable(&project.root.join(path))?;
    }
    let loaded = load(&read_dir(&args.dir, &Limits::default()).map_err(unreadable)?);
    let value = || {
        json!({
            "catalog": loaded.catalog,
            "directory": project.root.display().to_string(),
            "written": new.keys().collect::<Vec<_>>(),
            "kept": kept.keys().collect::<Vec<_>>(),
            "valid": !loaded.has_errors(),
        })
    };
    if !args.output.structured(shell, value)? {
        shell.print(&new.keys().map(|path| format!("{}\n", project.shown(path))).collect::<String>())?;
        if new.is_empty() {
            shell.note("nothing to write: all the files are there");
        }
        project.advise(context, &kept);
        if let Some(recipe) = new.keys().find(|path| path.ends_with("/octavius.yml")) {
            shell.note(&format!("{} names the variables and secrets that CI needs", project.shown(recipe)));
        }
        print_findings(shell, &loaded);
        shell.note(&render_count(&loaded.diagnostics, loaded.files));
        let dir = shell_quoted(&args.dir.to_string_lossy());
        let dir = if args.dir == Path::new("catalog") { String::new() } else { format!(" {dir}") };
        shell.note(&format!("next:\n  octavius validate{dir}\n  octavius diff{dir}\n  octavius apply{dir}"));
    }
    Ok(if loaded.has_errors() { Exit::No } else { Exit::Done })
}

/// What the catalogue is part of: the git repository around it, or the folder where the person stands.
struct Project {
    root: PathBuf,
    /// The catalogue's path from there, parts separated by `/`; empty where it is the same.
    prefix: String,
    /// The URL of the remote `origin`; none outside a repository.
    remote: Option<String>,
}

/// What `git` answers in a folder, without the line's end; none where it fails, or is not there.
fn git(dir: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(dir).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim_end_matches('\n').to_owned())
}

impl Project {
    fn of(dir: &Path) -> Outcome<Self> {
        let there = dir.ancestors().find(|folder| folder.is_dir()).unwrap_or(dir);
        // git names the root without symlinks, so the way to the catalogue has to be without them too
        let real = there.canonicalize().map_err(|error| Failure::file("find", there, error))?;
        let dir = dir.strip_prefix(there).map_or_else(|_| real.clone(), |rest| real.join(rest));
        let root = git(&real, &["rev-parse", "--show-toplevel"]).map(PathBuf::from);
        let remote = root.as_ref().map(|root| git(root, &["remote", "get-url", "origin"]).unwrap_or_default());
        let here = std::env::current_dir().ok().and_then(|here| here.canonicalize().ok());
        let root = root.or(here).filter(|root| dir.starts_with(root)).unwrap_or_else(|| dir.clone());
        let parts: Vec<&OsStr> = dir.strip_prefix(&root).map(|rest| rest.iter().collect()).unwrap_or_default();
        let parts: Option<Vec<&str>> = parts.into_iter().filter(|part| *part != OsStr::new(".")).map(OsStr::to_str).collect();
        let prefix = parts.filter(|parts| !parts.contains(&"..")).map(|parts| parts.join("/"));
        let prefix = prefix.ok_or_else(|| Failure::usage(format!("{} is no name for a catalogue's folder", dir.display())))?;
        Ok(Self { root, prefix, remote })
    }

    /// The path of a file of the catalogue from the root.
    fn file(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) }
    }

    /// A file's path for the person who looks from where they stand.
    fn shown(&self, path: &str) -> String {
        let path = self.root.join(path);
        let here = std::env::current_dir().ok().and_then(|here| here.canonicalize().ok());
        let path = here.and_then(|here| path.strip_prefix(here).ok().map(Path::to_owned)).unwrap_or(path);
        line(&path.to_string_lossy())
    }

    fn name(&self, args: &InitArgs) -> Outcome<CatalogName> {
        if let Some(name) = &args.catalog_name {
            return if name.as_str() == MANUAL {
                Err(Failure::usage(format!(
                    "a catalogue of files cannot be called `{MANUAL}`: that is what `octavius create` fills"
                )))
            } else {
                Ok(name.clone())
            };
        }
        let own = self.prefix.rsplit('/').next().filter(|name| !matches!(*name, "" | "catalog"));
        let around = self.root.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = own.map(str::to_owned).or(around).unwrap_or_default();
        let taken = if name == MANUAL { None } else { CatalogName::new(name.clone()).ok() };
        taken.ok_or_else(|| {
            Failure::usage(format!("a catalogue cannot be called \"{}\"", line(&name))).hint("name it: --catalog-name NAME")
        })
    }

    /// The CI system of the remote's host.
    fn ci(&self) -> Ci {
        let Some(remote) = &self.remote else { return Ci::None };
        let host = remote.split_once("://").map_or(remote.as_str(), |(_, rest)| rest);
        let host = host.split('/').next().unwrap_or_default().to_ascii_lowercase();
        if host.contains("github") {
            Ci::Github
        } else if host.contains("gitlab") {
            Ci::Gitlab
        } else {
            Ci::None
        }
    }

    /// The schemas, and what makes editors use them.
    fn files(&self) -> Outcome<NewFiles> {
        let mut files = NewFiles::new();
        files.insert(".octavius/job.schema.json".to_owned(), pretty(&job_schema())?);
        files.insert(".octavius/catalog.schema.json".to_owned(), pretty(&catalog_schema())?);
        files.insert(EDITOR.to_owned(), pretty(&self.editor())?);
        if self.remote.is_some() {
            let text = PRE_COMMIT.replace("echo catalog)", &format!("echo {})", self.quoted_prefix()));
            files.insert(PRE_COMMIT_FILE.to_owned(), text.into_bytes());
        }
        Ok(files)
    }

    /// The catalogue's path for a command, from the root.
    fn quoted_prefix(&self) -> String {
        if self.prefix.is_empty() { ".".to_owned() } else { shell_quoted(&self.prefix) }
    }

    /// Settings for Visual Studio Code: job files are all but those with another form, which name their schema themselves.
    fn editor(&self) -> Value {
        let of = |pattern: &str| self.file(pattern);
        let (catalog, defaults) = (format!("!{}", of(CATALOG_FILE)), format!("!{}", of("**/_defaults.yaml")));
        json!({
            "yaml.schemas": {
                ".octavius/job.schema.json": [of("**/*.yaml"), of("**/*.yml"), catalog, defaults],
                ".octavius/catalog.schema.json": [of(CATALOG_FILE)],
                ".octavius/catalog.schema.json#/definitions/Defaults": [of("**/_defaults.yaml")],
            },
            "json.schemas": [{"fileMatch": [format!("/{}", of("**/*.json"))], "url": "./.octavius/job.schema.json"}],
        })
    }

    /// The files of a CI system, for this catalogue's path.
    fn recipe(&self, ci: Ci) -> Outcome<NewFiles> {
        let mut files = NewFiles::new();
        let (path, text, comment) = match ci {
            Ci::None => return Ok(files),
            Ci::Github => (".github/workflows/octavius.yml", GITHUB, ("comment-github", COMMENT_GITHUB)),
            Ci::Gitlab => (".gitlab/octavius.yml", GITLAB, ("comment-gitlab", COMMENT_GITLAB)),
        };
        // it stands unquoted in YAML, in patterns and in commands
        if !self.prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte)) {
            return Err(Failure::usage(format!("a recipe for CI cannot name the path {}", line(&self.prefix)))
                .hint("name the folder in letters and digits, or pass --ci none"));
        }
        let folder = if self.prefix.is_empty() { "." } else { &self.prefix };
        let text = text.replace("CATALOG: catalog\n", &format!("CATALOG: {folder}\n"));
        let text = text.replace("\"catalog/**", &format!("\"{}", self.file("**")));
        files.insert(path.to_owned(), text.into_bytes());
        if ci == Ci::Gitlab {
            files.insert(GITLAB_ROOT.to_owned(), GITLAB_INCLUDE.as_bytes().to_vec());
        }
        for (name, text) in STEPS.into_iter().chain([comment]) {
            files.insert(format!(".octavius/ci/{name}.sh"), text.as_bytes().to_vec());
        }
        Ok(files)
    }

    /// Recipes and hooks that are there for another catalogue of the repository, each with what to add for this one.
    fn of_another(&self, kept: &NewFiles) -> Vec<(String, String)> {
        let line_of = |wanted: &[u8], begins: &str| {
            String::from_utf8_lossy(wanted).lines().map(str::trim).find(|line| line.starts_with(begins)).map(str::to_owned)
        };
        let says = |path: &Path, own: &str| {
            std::fs::read(path).is_ok_and(|text| String::from_utf8_lossy(&text).lines().any(|line| line.trim() == own))
        };
        let mut found = Vec::new();
        for (path, wanted) in kept {
            let there = self.root.join(path);
            if path.ends_with("/octavius.yml")
                && let Some(own) = line_of(wanted, "CATALOG:")
            {
                let beside = there.parent().and_then(|folder| folder.read_dir().ok());
                if beside.into_iter().flatten().flatten().any(|file| says(&file.path(), &own)) {
                    continue;
                }
                let paths = self.file("**");
                let to_add = if path.starts_with(".gitlab/") {
                    format!("include a copy whose jobs have other names, with `{own}`, and `{paths}/*` under `changes`")
                } else {
                    let copy = path.replace(".yml", &format!("-{}.yml", self.prefix.replace('/', "-")));
                    format!("copy it to {copy}, with `{own}`, and `{paths}` under `paths`")
                };
                found.push((path.clone(), to_add));
            } else if path == PRE_COMMIT_FILE
                && let Some(own) = line_of(wanted, "catalog=")
                && !says(&there, &own)
            {
                found.push((path.clone(), format!("let the hook run it for this one too: {path} {}", self.quoted_prefix())));
            }
        }
        found
    }

    /// What a person has to do by hand, because a file was there already.
    fn advise(&self, context: &Context, kept: &NewFiles) {
        let shell = &context.shell;
        for (path, to_add) in self.of_another(kept) {
            shell.warn(&format!("{} is for another catalogue, not for {}", self.shown(&path), self.quoted_prefix()));
            shell.hint(&to_add);
        }
        for (path, wanted) in kept {
            let there = std::fs::read(self.root.join(path)).unwrap_or_default();
            if there == *wanted {
                continue;
            }
            shell.note(&format!("{} is there already and was left as it is", self.shown(path)));
            let to_add = match path.as_str() {
                EDITOR => String::from_utf8_lossy(wanted),
                GITLAB_ROOT if !String::from_utf8_lossy(&there).contains(".gitlab/octavius.yml") => GITLAB_INCLUDE.into(),
                _ => continue,
            };
            shell.hint(&format!("it needs this:\n{}", to_add.trim_end()));
        }
    }
}

fn pretty(value: &Value) -> Outcome<Vec<u8>> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::fault(error.to_string()))?;
    Ok((text + "\n").into_bytes())
}

fn make_executable(path: &Path) -> Outcome<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let permissions = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, permissions).map_err(|error| Failure::file("make executable", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(prefix: &str, remote: &str) -> Project {
        Project { root: "/r".into(), prefix: prefix.into(), remote: Some(remote.into()) }
    }

    #[test]
    fn the_system_is_that_of_the_remotes_host() {
        for (remote, ci) in [
            ("git@github.com:team/jobs.git", Ci::Github),
            ("https://github.example/team/gitlab-jobs", Ci::Github),
            ("https://user:token@gitlab.example/github/jobs.git", Ci::Gitlab),
            ("ssh://git@gitlab.com:22/a.git", Ci::Gitlab),
            ("https://git.example/a.git", Ci::None),
            ("", Ci::None),
        ] {
            assert_eq!(project("catalog", remote).ci(), ci, "{remote}");
        }
        assert_eq!(Project { remote: None, ..project("catalog", "") }.ci(), Ci::None);
    }

    #[test]
    fn a_recipe_names_the_path_of_the_catalogue_everywhere() {
        for ci in [Ci::Github, Ci::Gitlab] {
            for (prefix, folder, pattern) in [("ops/jobs", "ops/jobs", "ops/jobs/**"), ("", ".", "\"**")] {
                let files = project(prefix, "").recipe(ci).unwrap();
                let (_, recipe) = files.iter().find(|(path, _)| path.ends_with("octavius.yml")).unwrap();
                let text = std::str::from_utf8(recipe).unwrap();
                assert!(text.contains(&format!("CATALOG: {folder}\n")) && text.contains(pattern), "{text}");
                assert!(!text.contains("catalog/"), "{text}");
            }
        }
        let hook = project("ops/jobs", "").files().unwrap().remove(".octavius/pre-commit").unwrap();
        assert!(String::from_utf8(hook).unwrap().contains("|| echo ops/jobs)"));
        assert!(project("a b", "").recipe(Ci::Github).is_err());
        assert!(project("a b", "").recipe(Ci::None).unwrap().is_empty());
    }
}
