//! The alert rules that are shipped, held to the metrics that a controller exposes.

use std::collections::{BTreeMap, BTreeSet};

use octavius_proto::v1::ExecutionState as S;
use serde_yaml::Value;

use crate::fake::{Fake, hello};
use crate::harness::{House, timing};
use crate::tls::Secure;
use crate::waiting::http;
use crate::webhooks::Secret;

/// A metric as a rule asks for it: its name, and its labels with what is asked of them.
#[derive(Debug)]
struct Asked {
    metric: String,
    labels: Vec<(String, String)>,
}

/// The metrics of ours in an expression.
fn asked(expression: &str) -> Vec<Asked> {
    let mut all = Vec::new();
    for (at, _) in expression.match_indices("octavius_") {
        let rest = &expression[at..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let (metric, rest) = rest.split_at(end);
        let labels = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(labels, _)| labels);
        let labels = labels.split(',').filter(|label| !label.is_empty()).map(|label| {
            let (name, value) = label.split_once('=').unwrap_or_else(|| panic!("{label} in {expression}"));
            (name.trim().to_owned(), value.trim().to_owned())
        });
        all.push(Asked { metric: metric.to_owned(), labels: labels.collect() });
    }
    all
}

/// The metrics that are exposed, with the values that each of their labels has now.
fn exposed(body: &str) -> BTreeMap<&str, BTreeMap<&str, BTreeSet<&str>>> {
    let mut all: BTreeMap<_, BTreeMap<_, BTreeSet<_>>> = BTreeMap::new();
    for line in body.lines().filter(|line| !line.starts_with('#')) {
        let end = line.find(['{', ' ']).unwrap();
        let labels = all.entry(&line[..end]).or_default();
        let within = line[end..].strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(within, _)| within);
        for label in within.split("\",").filter(|label| !label.is_empty()) {
            let (name, value) = label.split_once("=\"").unwrap();
            labels.entry(name).or_default().insert(value.trim_end_matches('"'));
        }
    }
    all
}

#[tokio::test]
async fn each_alert_asks_for_metrics_and_labels_that_there_are() {
    let secret = Secret::new();
    let hook = secret.webhook("chat", "http://127.0.0.1:9/hook", &serde_json::json!({}));
    let house = House::telling(timing(), vec![hook], |store| store).await;
    house.apply(&[r#"{"name":"j","command":["true"]}"#]).await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    let id = house.execute("j").await;
    let claim = session.assignment().await;
    fake.begins(&claim).await;
    fake.finishes(&claim, S::Failed, b"").await.unwrap();
    assert_eq!(claim.id, id);
    let (_, body) = http(house.metrics_address(), "GET", "/metrics").await;
    // What is there with TLS alone.
    let secure = Secure::open(None).await;
    let (_, body_with_tls) = http(secure.house.metrics_address(), "GET", "/metrics").await;
    let body = body + &body_with_tls;
    let exposed = exposed(&body);
    for (metric, labels) in &exposed {
        // Prometheus has these of its own for whom it asks, and puts ours aside as `exported_…`.
        assert!(!labels.contains_key("job") && !labels.contains_key("instance"), "{metric} has {labels:?}");
    }

    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/alerts.yaml");
    let file: Value = serde_yaml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let groups = file["groups"].as_sequence().unwrap();
    let rules: Vec<&Value> = groups.iter().flat_map(|group| group["rules"].as_sequence().unwrap()).collect();
    assert!(rules.len() > 10, "{} rules", rules.len());
    let mut names = BTreeSet::new();
    for rule in rules {
        let name = rule["alert"].as_str().unwrap();
        assert!(names.insert(name), "{name} stands there twice");
        for text in ["summary", "description"] {
            assert!(rule["annotations"][text].as_str().is_some_and(|text| text.len() > 10), "{name} has no {text}");
        }
        assert!(["warning", "critical"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{name}");
        let expression = rule["expr"].as_str().unwrap();
        let balance = |open: char, close: char| expression.matches(open).count() == expression.matches(close).count();
        assert!(balance('(', ')') && balance('{', '}') && balance('[', ']'), "{name}: {expression}");
        let metrics = asked(expression);
        assert!(!metrics.is_empty(), "{name} asks for nothing of ours");
        for Asked { metric, labels } in metrics {
            let there = exposed.get(metric.as_str()).unwrap_or_else(|| panic!("{name}: there is no metric {metric}"));
            for (label, value) in labels {
                let values = there.get(label.as_str()).unwrap_or_else(|| panic!("{name}: {metric} has no label {label}"));
                // What is matched by a pattern, and codes, need not have happened yet.
                if let Some(value) = value.strip_prefix('"').filter(|_| label != "code") {
                    let value = value.trim_end_matches('"');
                    assert!(values.contains(value), "{name}: {metric} has no {label} {value}, only {values:?}");
                }
            }
        }
    }
}
