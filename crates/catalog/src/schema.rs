//! The JSON Schemas of job files and of the catalogue file, made from the types in `octavius_core::definition`. The loader checks
//! files against the same schema (`shape` is built from it), so an editor and `octavius validate` cannot disagree.

use octavius_core::JobDefinition;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// The schema of a job file, in draft 7 of JSON Schema, which editors take.
#[must_use]
pub fn job_schema() -> Value {
    let mut schema = SchemaSettings::draft07().into_generator().into_root_schema_for::<JobDefinition>().to_value();
    close(&mut schema);
    set(&mut schema, "title", "Octavius job");
    set(&mut schema, "description", "One job that people can run with `octavius execute`.");
    schema
}

/// The schema of `octavius.yaml`. Its definition `Defaults` is the schema of `_defaults.yaml`.
#[must_use]
pub fn catalog_schema() -> Value {
    let mut job = job_schema();
    let mut definitions = job["definitions"].take();
    let mut properties = job["properties"].take();
    if let Some(properties) = properties.as_object_mut() {
        properties.remove("name");
    }
    if let Some(definitions) = definitions.as_object_mut() {
        definitions.remove("JobName");
        definitions.insert(
            "CatalogName".into(),
            json!({ "type": "string", "minLength": 1, "maxLength": 63, "pattern": "^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$" }),
        );
        definitions.insert(
            "Defaults".into(),
            json!({
                "description": "Values that jobs inherit where they do not say otherwise: maps are merged, lists and plain values replaced.",
                "type": "object",
                "properties": properties,
                "additionalProperties": false,
            }),
        );
    }
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Octavius catalogue",
        "description": "The file octavius.yaml at the root of a catalogue.",
        "type": "object",
        "properties": {
            "catalog": { "description": "The catalogue's name.", "$ref": "#/definitions/CatalogName" },
            "defaults": { "description": "Values that all jobs of the catalogue inherit.", "$ref": "#/definitions/Defaults" },
        },
        "required": ["catalog"],
        "additionalProperties": false,
        "definitions": definitions,
    })
}

fn set(schema: &mut Value, key: &str, text: &str) {
    if let Some(schema) = schema.as_object_mut() {
        schema.insert(key.into(), text.into());
    }
}

/// Closes every object that names its properties, since schemars leaves the variants of an enum open, and takes `null` away: in a
/// job file a key without a value is a slip.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|kind| kind != "null");
                if let [only] = &types[..] {
                    object["type"] = only.clone();
                }
            }
            if let Some(Value::Array(mut alternatives)) = object.remove("anyOf") {
                alternatives.retain(|alternative| alternative != &json!({ "type": "null" }));
                let keyword = if alternatives.len() == 1 { "allOf" } else { "anyOf" };
                object.insert(keyword.into(), Value::Array(alternatives));
            }
            if object.get("properties").is_some_and(Value::is_object) && object.get("type") == Some(&json!("object")) {
                object.entry("additionalProperties").or_insert(Value::Bool(false));
            }
            object.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

/// Where a schema says `$ref`, what it refers to.
pub(crate) fn resolve<'a>(schema: &'a Map<String, Value>, definitions: &'a Value) -> (Option<&'a str>, &'a Map<String, Value>) {
    let reference = schema.get("$ref").or_else(|| schema.get("allOf")?.get(0)?.get("$ref")).and_then(Value::as_str);
    match reference.and_then(|reference| reference.strip_prefix("#/definitions/")) {
        Some(name) => (Some(name), definitions.get(name).and_then(Value::as_object).unwrap_or(schema)),
        None => (None, schema),
    }
}
