//! Definitions as files: what `octavius export` writes loads again as the same definition.

use octavius_core::JobDefinition;
use serde_yaml::with::singleton_map_recursive;

/// The line that tells editors which schema a job file has.
const SCHEMA_LINE: &str = "# yaml-language-server: $schema=";

/// Characters that YAML 1.1 takes for the end of a line and YAML 1.2 does not: whoever writes them as they are may be read otherwise.
const LINE_ENDS: [char; 3] = ['\u{85}', '\u{2028}', '\u{2029}'];

/// The definition as a YAML job file. `schema` is where editors find the schema, relative to the file or as a URL.
#[must_use]
pub fn to_yaml(definition: &JobDefinition, schema: Option<&str>) -> String {
    let mut text = schema.map(|schema| format!("{SCHEMA_LINE}{schema}\n")).unwrap_or_default().into_bytes();
    let mut serializer = serde_yaml::Serializer::new(&mut text);
    // Without this, serde_yaml writes the variants of an enum as tags, which job files do not have.
    #[expect(clippy::expect_used, reason = "strings, numbers and maps with string keys always have a YAML form")]
    singleton_map_recursive::serialize(definition, &mut serializer).expect("a definition has a YAML form");
    drop(serializer);
    let text = String::from_utf8_lossy(&text).into_owned();
    if !text.contains(LINE_ENDS) {
        return text;
    }
    // JSON is YAML too, and there they can be written so that nobody misreads them.
    #[expect(clippy::expect_used, reason = "strings, numbers and maps with string keys always have a JSON form")]
    let json = serde_json::to_string_pretty(definition).expect("a definition has a JSON form");
    let head = schema.map(|schema| format!("{SCHEMA_LINE}{schema}\n")).unwrap_or_default();
    let escaped = |text: String, end: char| text.replace(end, &format!("\\u{:04x}", u32::from(end)));
    head + &LINE_ENDS.into_iter().fold(json, escaped) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::load_file;

    #[test]
    fn a_strange_line_end_comes_back_as_it_was() {
        let mut definition: JobDefinition = serde_json::from_str(r#"{"name":"j","command":["true"]}"#).unwrap();
        for end in LINE_ENDS {
            definition.description = format!("{end}a{end}\n{end}");
            let yaml = to_yaml(&definition, Some("s.json"));
            let loaded = load_file("a.yaml", yaml.as_bytes(), &crate::Limits::default());
            assert_eq!(*loaded.jobs[0].definition, definition, "{yaml}");
        }
    }
}
