//! The one JSON form of a record of the audit trail: what `octavius audit` prints and what controllers export are the same.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::v1;

/// The version of that form.
const FORMAT_VERSION: u32 = 1;

/// A record of the audit trail as JSON, as `schemas/audit.schema.json` describes it.
#[must_use]
pub fn audit_json(record: &v1::AuditRecord) -> Value {
    let v1::AuditRecord { position, at, user, role, token_id, from, action, object, result: _, reason, details } = record;
    let result = match record.result() {
        v1::AuditResult::Done => "done",
        v1::AuditResult::Refused => "refused",
        v1::AuditResult::Unspecified => "unknown",
    };
    let at = at.as_ref().and_then(|at| Timestamp::new(at.seconds, at.nanos).ok());
    let mut named: Vec<_> = details.iter().collect();
    named.sort();
    let details: Map<String, Value> = named.into_iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    json!({
        "format_version": FORMAT_VERSION,
        "id": position.as_ref().map(|position| &position.id),
        "revision": position.as_ref().map(|position| position.revision),
        "at": at.map(|at| at.to_string()),
        "user": user,
        "role": role,
        "token_id": token_id,
        "from": from,
        "action": action,
        "object": object,
        "result": result,
        "reason": reason,
        "details": details,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_as_the_schema_says() {
        let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/../../schemas/audit.schema.json");
        let schema: Value = serde_json::from_str(&std::fs::read_to_string(schema).unwrap()).unwrap();
        let validator = jsonschema::draft7::new(&schema).unwrap();
        let done = v1::AuditRecord {
            position: Some(v1::AuditPosition { revision: 7, id: "0k3v7q2m8d5x1n4r6t9w0b9f2q".into() }),
            at: Some(prost_types::Timestamp { seconds: 1_772_366_400, nanos: 5_000_000 }),
            user: "ann".into(),
            role: "admin".into(),
            action: "execution.submit".into(),
            object: "execution/0k3v7q2m8d5x1n4r6t9w0b9aaa".into(),
            result: v1::AuditResult::Done.into(),
            details: [("job".to_owned(), "refund".to_owned())].into(),
            ..Default::default()
        };
        let refused = v1::AuditRecord {
            result: v1::AuditResult::Refused.into(),
            reason: "NOT_PERMITTED".into(),
            role: String::new(),
            ..done.clone()
        };
        for record in [&done, &refused] {
            let json = audit_json(record);
            let problems: Vec<_> = validator.iter_errors(&json).map(|error| error.to_string()).collect();
            assert_eq!(problems, Vec::<String>::new(), "{json}");
        }
        let named: Vec<_> = schema["properties"].as_object().unwrap().keys().cloned().collect();
        let written: Vec<_> = audit_json(&done).as_object().unwrap().keys().cloned().collect();
        assert_eq!(written, named.into_iter().collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>());
        assert!(!validator.is_valid(&audit_json(&v1::AuditRecord::default())));
    }
}
