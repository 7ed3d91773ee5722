//! Who is told what comes of executions, as `controller_config.json` says under `webhooks`.

use octavius_controller::WebhookConfig;
use serde_json::Value;

use crate::daemon::Settings;
use crate::error::Outcome;

/// What stands in the file's help.
pub const HELP: &str = "\
  webhooks              who is told what comes of executions, with signed messages (Standard Webhooks 1.0) that are tried again for a day. The
                        same on every controller. A list of objects:
      name          what it is called here
      url           where it is: https, or http on 127.0.0.1. Only its host is ever shown
      url_file      a file with the URL in its place, which others cannot read; read at the start
      secret_file   what its messages are signed with, which others cannot read; `octavius webhooks new-secret` makes it. It may hold several
                    secrets, one a line: all of them sign, so that one can be replaced
      events        what it is told, of waiting_for_approval, finished (in whatever state), failed (or timed out, or lost)
      jobs          the jobs that it is told of, a name or a list of them, * for anything [default: all]
      ca_file       certificates that are trusted for that, beside the system's
      insecure      true permits http elsewhere than on 127.0.0.1: messages are signed, and others can read them";

/// The webhooks that the file names.
///
/// # Errors
/// Names the key that is wrong, with the number of its webhook from 0; or the file of secrets or certificates that cannot be used.
pub fn webhooks(settings: &Settings) -> Outcome<Vec<WebhookConfig>> {
    let parse = |value: &Value| WebhookConfig::parse_all(value, |path| settings.beside(path));
    settings.objects("webhooks", parse, WebhookConfig::check_files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn webhooks_are_read_and_what_is_wrong_is_told_with_its_file_and_key() {
        let folder = tempfile::tempdir().unwrap();
        let secret = octavius_controller::WebhookSecrets::generate();
        octavius_controller::private::write_new(&folder.path().join("secret"), secret.as_bytes(), 0o600).unwrap();
        let read = |text: &str| {
            let path = folder.path().join("controller_config.json");
            std::fs::write(&path, text).unwrap();
            let settings = Settings::read(Some(&path), "none", &crate::store_options::KEYS).unwrap();
            webhooks(&settings).map(|webhooks| webhooks.len()).map_err(|failure| {
                assert_eq!(failure.exit, Exit::Usage);
                failure.error.unwrap().to_string().replace(&folder.path().display().to_string(), "/conf")
            })
        };
        let one = |file: &str, event: &str| {
            read(&format!(
                r#"{{"webhooks": [{{"name": "chat", "url": "https://chat.example/x", "secret_file": "{file}", "events": "{event}"}}]}}"#
            ))
        };
        assert_eq!((read("{}"), read(r#"{"webhooks": []}"#), one("secret", "failed")), (Ok(0), Ok(0), Ok(1)));
        for (told, expected) in [
            (read(r#"{"webhooks": {}}"#), "/conf/controller_config.json: `webhooks` is not a list"),
            (one("secret", "finish"), "/conf/controller_config.json: `webhooks[0].events` has \"finish\" in it"),
            (one("none", "failed"), "/conf/controller_config.json: `webhooks[0]` cannot be used: /conf/none: No such file"),
        ] {
            let told = told.unwrap_err();
            assert!(told.starts_with(expected), "{told}, and not {expected}");
        }
    }
}
