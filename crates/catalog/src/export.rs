//! Definitions as files: what `octavius export` writes loads again as the same definition.

use octavius_core::JobDefinition;
use serde_yaml::with::singleton_map_recursive;

/// The line that tells editors which schema a job file has.
const SCHEMA_LINE: &str = "# yaml-language-server: $schema=";

/// The definition as a YAML job file. `schema` is where editors find the schema, relative to the file or as a URL.
#[must_use]
pub fn to_yaml(definition: &JobDefinition, schema: Option<&str>) -> String {
    let mut text = schema.map(|schema| format!("{SCHEMA_LINE}{schema}\n")).unwrap_or_default().into_bytes();
    let mut serializer = serde_yaml::Serializer::new(&mut text);
    // Without this, serde_yaml writes the variants of an enum as tags, which job files do not have.
    #[expect(clippy::expect_used, reason = "strings, numbers and maps with string keys always have a YAML form")]
    singleton_map_recursive::serialize(definition, &mut serializer).expect("a definition has a YAML form");
    drop(serializer);
    String::from_utf8_lossy(&text).into_owned()
}
