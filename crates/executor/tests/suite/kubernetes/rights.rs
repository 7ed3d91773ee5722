//! What an executor may do in a cluster, what it costs it, and what it says where it may not.

use octavius_core::ExecutorId;
use octavius_executor::check_kubernetes;
use octavius_tests::Kubernetes;
use serde_json::json;

use super::{Site, role, sh, sh_with};

fn check(site: &Site<'_>) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let permissions = runtime.block_on(check_kubernetes(&ExecutorId::new("e1").unwrap(), &site.options)).unwrap();
    assert_eq!(permissions.len(), 11);
    let missing = permissions.into_iter().filter(|permission| !permission.allowed);
    missing.map(|missing| format!("{} {} {}", missing.verb, missing.resource, missing.required)).collect()
}

#[test]
fn the_role_in_deploy_is_enough_and_the_check_says_what_another_lacks() {
    let cluster = Kubernetes::shared().unwrap();
    let whole = Site::with_rules(&cluster, &role("executor-role.yaml"));
    assert_eq!(check(&whole), ["get secrets false"]);
    let daemon = whole.start();
    // Without the right to read secrets it is the kubelet that says that one is missing.
    let missing = json!({"env_vars": {"secrets": [{"name": "KEY", "from": {"kubernetes": {"secret": "none", "key": "k"}}}]}});
    let told = whole.ending(whole.run(&sh_with("true", &missing)));
    assert!(told.starts_with("FAILED SECRET_MISSING None secret \"none\" not found: create it"), "{told}");
    whole.nothing_left();
    daemon.stop();

    let jobs = json!([{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list", "watch", "patch"]}]);
    let poor = Site::with_rules(&cluster, &jobs);
    let lacks = [
        "create jobs true",
        "delete jobs true",
        "list pods true",
        "watch pods true",
        "get pods/log true",
        "get secrets false",
        "list events false",
    ];
    assert_eq!(check(&poor), lacks);
    let daemon = poor.start();
    let told = poor.ending(poor.run(&sh("true")));
    assert!(told.starts_with("FAILED FORBIDDEN None ") && told.contains("octavius executor check"), "{told}");
    daemon.stop();
}

#[test]
fn a_namespace_of_restricted_pods_takes_what_is_not_root_and_says_why_it_refuses_what_is() {
    let cluster = Kubernetes::shared().unwrap();
    let mut site = Site::new(&cluster);
    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    cluster.patch(&format!("/api/v1/namespaces/{}", site.namespace.name()), &labels).unwrap();
    let daemon = site.start();
    let told = site.ending(site.run(&sh("true")));
    assert!(told.starts_with("FAILED FORBIDDEN None ") && told.contains("runAsNonRoot"), "{told}");
    daemon.stop();
    site.options.run_as_non_root = true;
    site.options.pod_template = json!({"spec": {"securityContext": {"runAsUser": 65534}, "containers": []}});
    let daemon = site.start();
    let id = site.run(&sh("id -u"));
    assert_eq!((site.ending(id).as_str(), site.controller.record(id, 1).text().as_str()), ("SUCCEEDED  Some(0) ", "65534\n"));
    daemon.stop();
}

#[test]
fn all_calls_share_a_connection_and_only_logs_have_their_own() {
    let cluster = Kubernetes::shared().unwrap();
    let site = Site::new(&cluster);
    let proxy = site.through_a_proxy();
    let daemon = site.start();
    let ids: Vec<_> = (0..12).map(|_| site.run(&sh("trap exit TERM; echo begun; while true; do sleep 0.1; done"))).collect();
    for id in &ids {
        site.logged(*id, "begun\n");
    }
    // Of calls and watches there may be two connections for a while, where two calls found none.
    let connections = proxy.connections();
    assert!((13..=14).contains(&connections), "{connections} connections");
    for id in &ids {
        site.controller.stop(*id, octavius_proto::v1::StopCause::Cancelled);
    }
    for id in ids {
        assert_eq!(site.ending(id), "CANCELLED CANCELLED None stopped as requested");
    }
    site.nothing_left();
    daemon.stop();
}

#[test]
fn an_execution_costs_the_api_server_few_calls() {
    let cluster = Kubernetes::alone().unwrap();
    let site = Site::new(&cluster);
    let daemon = site.start();
    // The first brings the watches with it.
    site.ending(site.run(&sh("echo warm")));
    site.nothing_left();
    let ours = || -> u64 {
        let of = |labels: &[(&str, &str)]| cluster.requests(labels).unwrap();
        // Nobody else creates or patches Jobs themselves, or asks for logs. Deletions of Jobs are ours, too.
        let jobs = |verb| of(&[("resource", "jobs"), ("subresource", ""), ("verb", verb)]);
        jobs("POST")
            + jobs("PATCH")
            + jobs("DELETE")
            + jobs("GET")
            + of(&[("resource", "pods"), ("subresource", "log")])
            + of(&[("resource", "events"), ("verb", "LIST")])
    };
    let before = ours();
    let count = 10;
    let ids: Vec<_> = (0..count).map(|number| site.run(&sh(&format!("echo {number}")))).collect();
    for id in ids {
        assert_eq!(site.ending(id), "SUCCEEDED  Some(0) ");
    }
    octavius_tests::eventually("run folders are gone", || {
        anyhow::ensure!(site.list("runs").is_empty(), "no");
        Ok(())
    })
    .unwrap();
    let each = (ours() - before) as f64 / f64::from(count);
    assert!(each <= 8.0, "{each} calls for each execution");
    tracing::info!(each, "calls for each execution");
    daemon.stop();
}
