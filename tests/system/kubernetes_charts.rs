//! The charts of `deploy/helm`, without anything running: what they make of each set of values is taken by a real API server, to the last field,
//! and by the pod security standard that it claims; and the plain manifests are what the charts make.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use octavius_tests::{Etcd, Helm, Kubernetes, World, deploy, eventually, executor_rules, free_ports, http_get, objects};
use serde_json::{Value, json};

const CHARTS: [&str; 2] = ["octavius", "octavius-executor"];

/// The files of values that a chart is tried with, beside the values that it has by itself.
fn sets(chart: &str) -> Result<Vec<String>> {
    let folder = deploy().join("helm").join(chart).join("ci");
    let files = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path().display().to_string()));
    let mut files = files.collect::<Result<Vec<_>>>()?;
    files.sort();
    ensure!(files.len() >= 2, "{files:?}");
    Ok(files)
}

/// What every chart makes of every set of values: chart, set, objects.
fn rendered(helm: &Helm) -> Result<Vec<(&'static str, String, Vec<Value>)>> {
    let mut all = Vec::new();
    for chart in CHARTS {
        all.push((chart, "its own values".to_owned(), helm.template(chart, chart, "octavius", None)?));
        for set in sets(chart)? {
            let objects = helm.template(chart, chart, "octavius", Some(&set))?;
            all.push((chart, set, objects));
        }
    }
    Ok(all)
}

/// The only object of a kind whose name ends so.
fn one<'o>(objects: &'o [Value], kind: &str, end: &str) -> Result<&'o Value> {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    found
        .find(|object| object["metadata"]["name"].as_str().is_some_and(|name| name.ends_with(end)))
        .with_context(|| format!("no {kind}"))
}

fn config(objects: &[Value], file: &str) -> Result<Value> {
    let map = objects.iter().find(|object| object["kind"] == "ConfigMap").context("no ConfigMap")?;
    Ok(serde_json::from_str(map["data"][file].as_str().context("no such file")?)?)
}

#[test]
fn charts_pass_the_linter_with_every_set_of_values() -> Result<()> {
    let helm = Helm::new()?;
    for chart in CHARTS {
        helm.run(&["lint", "--strict", chart])?.expect(0)?;
        for set in sets(chart)? {
            helm.run(&["lint", "--strict", chart, "--values", &set])?.expect(0)?;
        }
    }
    Ok(())
}

#[test]
fn the_plain_manifests_are_what_the_charts_make() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let helm = std::env::var_os("OCTAVIUS_TEST_HELM").context("OCTAVIUS_TEST_HELM is not set: tests/run builds Helm")?;
    let render = std::process::Command::new(deploy().join("manifests/render")).arg(folder.path()).env("HELM", helm).output()?;
    ensure!(render.status.success(), "{}", String::from_utf8_lossy(&render.stderr));
    for chart in CHARTS {
        let file = format!("{chart}.yaml");
        let committed = std::fs::read_to_string(deploy().join("manifests").join(&file))?;
        let made = std::fs::read_to_string(folder.path().join(&file))?;
        ensure!(committed == made, "deploy/manifests/{file} is not what the chart makes: run deploy/manifests/render");
    }
    Ok(())
}

/// Makes the kind ServiceMonitor known, of whose fields those that the chart writes: the Prometheus Operator is not here. Its own definition says
/// the same of them.
fn define_service_monitor(cluster: &Kubernetes, namespace: &str) -> Result<()> {
    let text = json!({"type": "string"});
    let interval = json!({"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d|w|y))+$"});
    let endpoint = json!({"type": "object", "properties": {"port": text, "interval": interval}});
    let labels = json!({"type": "object", "additionalProperties": text});
    let spec = json!({"type": "object", "required": ["endpoints", "selector"], "properties": {
        "endpoints": {"type": "array", "items": endpoint},
        "selector": {"type": "object", "properties": {"matchLabels": labels}},
    }});
    let schema = json!({"openAPIV3Schema": {"type": "object", "required": ["spec"], "properties": {"spec": spec}}});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "servicemonitors.monitoring.coreos.com"},
        "spec": {
            "group": "monitoring.coreos.com",
            "names": {"kind": "ServiceMonitor", "plural": "servicemonitors"},
            "scope": "Namespaced",
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}],
        },
    });
    cluster.apply(&definition, namespace, false)?;
    eventually("the API server knows the kind ServiceMonitor", || {
        cluster.get(&format!("/apis/monitoring.coreos.com/v1/namespaces/{namespace}/servicemonitors")).map(drop)
    })
}

#[test]
fn an_api_server_takes_every_object() -> Result<()> {
    let cluster = Kubernetes::shared()?;
    let namespace = cluster.namespace()?;
    define_service_monitor(&cluster, namespace.name())?;
    let mut sets = rendered(&Helm::new()?)?;
    for chart in CHARTS {
        let text = std::fs::read_to_string(deploy().join(format!("manifests/{chart}.yaml")))?;
        sets.push((chart, "the plain manifests".to_owned(), objects(&text)?));
    }
    let mut kinds = BTreeSet::new();
    for (chart, set, objects) in sets {
        // In the test's own namespace, whatever they name.
        for mut object in objects {
            kinds.insert(object["kind"].to_string());
            if object["metadata"]["namespace"].is_string() {
                object["metadata"]["namespace"] = namespace.name().into();
            }
            cluster.apply(&object, namespace.name(), true).with_context(|| format!("{chart} with {set}"))?;
        }
    }
    for kind in ["Ingress", "ServiceMonitor"] {
        ensure!(kinds.contains(&format!("\"{kind}\"")), "no set of values has a {kind}: {kinds:?}");
    }
    // And that is no formality: a field that there is not is refused.
    let misspelt = json!({
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": {"name": "misspelt"},
        "spec": {"selector": {}, "endpoints": [{"portName": "metrics"}]},
    });
    let refused = cluster.apply(&misspelt, namespace.name(), true).err().context("a field that is not there was taken")?;
    ensure!(format!("{refused:#}").contains("portName"), "{refused:#}");
    Ok(())
}

/// A pod as the controller of a Deployment or a StatefulSet makes it, but for what other objects there must be: its account and its volume.
fn pod_of(object: &Value) -> Value {
    let mut pod = object["spec"]["template"].clone();
    pod["spec"]["serviceAccountName"] = "default".into();
    pod["metadata"]["name"] = "pod".into();
    if object["spec"]["volumeClaimTemplates"].is_array() {
        let mut volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
        volumes.push(json!({"name": "data", "emptyDir": {}}));
        pod["spec"]["volumes"] = volumes.into();
    }
    pod
}

#[test]
fn every_pod_meets_the_restricted_standard_but_those_on_the_nodes_network() -> Result<()> {
    let cluster = Kubernetes::shared()?;
    let namespace = cluster.namespace()?;
    let enforce = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    cluster.patch(&format!("/api/v1/namespaces/{}", namespace.name()), &enforce)?;
    let mut met = BTreeSet::new();
    for (chart, set, objects) in rendered(&Helm::new()?)? {
        for object in objects.iter().filter(|object| object["spec"]["template"]["spec"].is_object()) {
            let pod = pod_of(object);
            let taken = cluster.post(&namespace.path("pods?dryRun=All&fieldValidation=Strict"), &pod);
            if pod["spec"]["hostNetwork"] == true {
                let refusal = taken.err().context("a pod on the node's network was taken")?.to_string();
                let (_, violations) = refusal.split_once("\\\"restricted:latest\\\": ").context(refusal.clone())?;
                let violations = violations.split_once("\",\n").context("no end")?.0;
                let of_the_network = ["host namespaces (hostNetwork=true", "hostPort (", "probe or lifecycle host ("];
                let is_known = |violation: &str| of_the_network.iter().any(|known| violation.starts_with(known));
                ensure!(violations.split("), ").all(is_known), "it is not the network alone: {violations}");
                continue;
            }
            taken.with_context(|| format!("{chart} with {set}: {}", object["metadata"]["name"]))?;
            met.insert(format!("{} {}", object["kind"], object["metadata"]["name"]));
            // What the standard does not ask for, and the image makes possible.
            for container in pod["spec"]["containers"].as_array().context("no containers")? {
                assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
                assert_eq!(pod["spec"]["enableServiceLinks"], false);
                ensure!(
                    container["resources"]["limits"]["memory"].is_string()
                        && container["resources"]["requests"]["cpu"].is_string()
                );
            }
        }
    }
    assert_eq!(met.len(), 3, "{met:?}");
    Ok(())
}

#[test]
fn names_and_addresses_within_a_chart_go_together() -> Result<()> {
    for (chart, set, objects) in rendered(&Helm::new()?)? {
        let mut selected = 0;
        for service in objects.iter().filter(|object| object["kind"] == "Service") {
            let selector = service["spec"]["selector"].as_object().context("no selector")?;
            let pods = objects.iter().filter(|object| {
                let labels = &object["spec"]["template"]["metadata"]["labels"];
                labels.is_object() && selector.iter().all(|(key, value)| labels[key] == *value)
            });
            let pods: Vec<_> = pods.collect();
            ensure!(pods.len() == 1, "{chart} with {set}: {} selects {} kinds of pods", service["metadata"]["name"], pods.len());
            let ports = pods[0]["spec"]["template"]["spec"]["containers"][0]["ports"].as_array().cloned().unwrap_or_default();
            for port in service["spec"]["ports"].as_array().into_iter().flatten() {
                let target = if port["targetPort"].is_null() { &port["port"] } else { &port["targetPort"] };
                let leads = ports.iter().any(|open| open["name"] == *target || open["containerPort"] == *target);
                ensure!(
                    leads,
                    "{chart} with {set}: {} leads to port {target}, which no container has",
                    service["metadata"]["name"]
                );
                selected += 1;
            }
        }
        ensure!(selected > 0 || chart == "octavius-executor", "{chart} with {set}");
    }
    Ok(())
}

#[test]
fn controllers_are_told_what_the_values_say() -> Result<()> {
    let helm = Helm::new()?;
    let file = "controller_config.json";
    let own = helm.template("octavius", "octavius", "octavius", None)?;
    let told = config(&own, file)?;
    assert_eq!(told["etcd_host"], "http://octavius-etcd-0.octavius-etcd.octavius.svc:2379");
    assert_eq!((&told["tls_cert"], &told["insecure"]), (&"/etc/octavius/tls/tls.crt".into(), &Value::Null));
    let etcd = one(&own, "StatefulSet", "-etcd")?;
    let arguments = etcd["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
    let quota = format!("--quota-backend-bytes={}", told["etcd_quota_bytes"]);
    ensure!(arguments.contains(&quota), "{arguments}");

    let three = deploy().join("helm/octavius/ci/three-members.yaml").display().to_string();
    let three = helm.template("octavius", "octavius", "prod", Some(&three))?;
    let members = ["0", "1", "2"].map(|number| format!("http://octavius-etcd-{number}.octavius-etcd.prod.svc:2379")).join(",");
    let told = config(&three, file)?;
    assert_eq!((&told["etcd_host"], &told["insecure"]), (&members.into(), &true.into()));
    let etcd = one(&three, "StatefulSet", "-etcd")?["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
    ensure!(
        etcd.contains("--initial-cluster=octavius-etcd-0=http://octavius-etcd-0.octavius-etcd.prod.svc:2380,octavius-etcd-1="),
        "{etcd}"
    );

    let external = deploy().join("helm/octavius/ci/external-etcd.yaml").display().to_string();
    let external = helm.template("octavius", "octavius", "octavius", Some(&external))?;
    ensure!(one(&external, "StatefulSet", "-etcd").is_err(), "an etcd is named, and one is made");
    let expected = json!({
        "archive": "s3://octavius-logs/production",
        "bootstrap_token_file": "/etc/octavius/bootstrap/token",
        "client_ca": "/etc/octavius/tls/ca.crt",
        "encryption_key_files": ["/etc/octavius/encryption/new.key", "/etc/octavius/encryption/old.key"],
        "etcd_ca_file": "/etc/octavius/etcd/ca.crt",
        "etcd_cert_file": "/etc/octavius/etcd/tls.crt",
        "etcd_host": "https://etcd-1.example:2379,https://etcd-2.example:2379,https://etcd-3.example:2379",
        "etcd_key_file": "/etc/octavius/etcd/tls.key",
        "etcd_password_file": "/etc/octavius/etcd-auth/password",
        "etcd_prefix": "/octavius/production/",
        "etcd_quota_bytes": 8_589_934_592u64,
        "etcd_shared": true,
        "listen": "0.0.0.0:3000",
        "log_level": "warn",
        "metrics_listen": "0.0.0.0:9100",
        "page_listen": "0.0.0.0:3001",
        "retention_age": "90d",
        "store": "etcd",
        "tls_cert": "/etc/octavius/tls/tls.crt",
        "tls_key": "/etc/octavius/tls/tls.key",
        "webhooks": [
            {
                "name": "chat", "url": "https://chat.example/hook", "events": ["waiting_for_approval", "failed"],
                "secret_file": "/etc/octavius/webhooks/chat",
            },
            {
                "name": "pager", "url_file": "/etc/octavius/webhooks/pager.url", "ca_file": "/etc/octavius/webhooks/pager.ca", "events": ["failed"], "jobs": ["backup-*"],
                "secret_file": "/etc/octavius/webhooks/pager.secret",
            },
        ],
    });
    assert_eq!(config(&external, file)?, expected);
    let monitor = one(&external, "ServiceMonitor", "octavius")?;
    let metrics = one(&external, "Service", "-metrics")?;
    for (key, value) in monitor["spec"]["selector"]["matchLabels"].as_object().context("no selector")? {
        assert_eq!(metrics["metadata"]["labels"][key], *value, "{key}");
    }
    assert_eq!(monitor["spec"]["endpoints"][0]["port"], metrics["spec"]["ports"][0]["name"]);
    // Each file that the configuration names is in a volume that is mounted.
    let mounts = external.iter().find(|object| object["kind"] == "Deployment").context("no Deployment")?;
    let mounts = mounts["spec"]["template"]["spec"]["containers"][0]["volumeMounts"].to_string();
    let keys = expected["encryption_key_files"].as_array().into_iter().flatten();
    let hooks = expected["webhooks"].as_array().into_iter().flatten().map(|hook| &hook["secret_file"]);
    let files = expected.as_object().context("no map")?.values().chain(keys).chain(hooks).filter_map(Value::as_str);
    for path in files.filter(|value| value.starts_with("/etc/")) {
        let folder = path.rsplit_once('/').context("no folder")?.0;
        ensure!(mounts.contains(&format!("\"{folder}\"")), "{path} is in no volume: {mounts}");
    }
    // A pod has its time to end: the pause, and what a controller takes, 11 s.
    let pod =
        &external.iter().find(|object| object["kind"] == "Deployment").context("no Deployment")?["spec"]["template"]["spec"];
    let pause = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().context("no pause")?;
    ensure!(pod["terminationGracePeriodSeconds"].as_u64().context("no grace")? > pause + 11);
    Ok(())
}

#[test]
fn browsers_are_led_to_the_page_and_to_nothing_else() -> Result<()> {
    let helm = Helm::new()?;
    let file = "controller_config.json";
    let own = helm.template("octavius", "octavius", "octavius", None)?;
    let told = config(&own, file)?;
    assert_eq!((&told["page_listen"], &told["page_behind_tls"]), (&"0.0.0.0:3001".into(), &Value::Null));
    let ports = |service: &Value| service["spec"]["ports"].clone();
    let page = json!([{"name": "page", "port": 3001, "targetPort": "page", "appProtocol": "https"}]);
    assert_eq!(ports(one(&own, "Service", "-page")?), page);
    let grpc = json!([{"name": "grpc", "port": 3000, "targetPort": "grpc", "appProtocol": "https"}]);
    assert_eq!(ports(one(&own, "Service", "octavius")?), grpc);
    ensure!(one(&own, "Ingress", "").is_err(), "an Ingress that nobody asked for");

    // An Ingress ends TLS: what stands behind it must know, or browsers would send its cookies in the clear, too.
    let ingress = deploy().join("helm/octavius/ci/ingress.yaml").display().to_string();
    let ingress = helm.template("octavius", "octavius", "octavius", Some(&ingress))?;
    assert_eq!(config(&ingress, file)?["page_behind_tls"], true);
    let service = one(&ingress, "Service", "-page")?;
    assert_eq!(service["spec"]["ports"][0]["appProtocol"], "http");
    let spec = &one(&ingress, "Ingress", "-page")?["spec"];
    assert_eq!(spec["tls"], json!([{"hosts": ["octavius.example"], "secretName": "octavius-page-tls"}]));
    let backend = json!({"service": {"name": service["metadata"]["name"], "port": {"name": "page"}}});
    let path = json!({"path": "/", "pathType": "Prefix", "backend": backend});
    assert_eq!(spec["rules"], json!([{"host": "octavius.example", "http": {"paths": [path]}}]));

    // Behind something else that does, without a certificate of the controllers' own.
    let values = json!({"tls": {"existingSecret": "", "insecure": true}, "page": {"behindTls": true}});
    let mesh = helm.template("octavius", "octavius", "octavius", Some(&helm.values("mesh", &values)?))?;
    assert_eq!(config(&mesh, file)?["page_behind_tls"], true);

    let off = deploy().join("helm/octavius/ci/to-try.yaml").display().to_string();
    let off = helm.template("octavius", "octavius", "octavius", Some(&off))?;
    assert_eq!(config(&off, file)?["page_listen"], Value::Null);
    ensure!(one(&off, "Service", "-page").is_err(), "a Service for a page that is switched off");
    let pod = &off.iter().find(|object| object["kind"] == "Deployment").context("no Deployment")?["spec"]["template"]["spec"];
    let open = pod["containers"][0]["ports"].to_string();
    ensure!(open.contains("grpc") && !open.contains("page"), "{open}");
    Ok(())
}

/// A member of the bundled etcd as a process of this machine: the flags that its container gets, with ports of its own for the cluster's names.
fn member_here(flags: &Value, number: usize, ports: &[[u16; 3]], folder: &Path) -> Result<(u16, Vec<String>)> {
    let flags = flags.as_array().context("no flags")?.iter().map(|flag| {
        let mut flag = flag.as_str().context("no text")?.replace("$(POD_NAME)", &format!("octavius-etcd-{number}"));
        for (member, own) in ports.iter().enumerate() {
            for (named, here) in [2379, 2380, 2381].into_iter().zip(own) {
                let name = format!("octavius-etcd-{member}.octavius-etcd.prod.svc:{named}");
                flag = flag.replace(&name, &format!("127.0.0.1:{here}"));
                if member == number {
                    flag = flag.replace(&format!("0.0.0.0:{named}"), &format!("127.0.0.1:{here}"));
                }
            }
        }
        flag = flag.replace("/var/lib/etcd/data", &folder.join(number.to_string()).display().to_string());
        ensure!(!flag.contains(".svc") && !flag.contains("0.0.0.0"), "{flag} names something else");
        Ok(flag)
    });
    Ok((ports[number][0], flags.collect::<Result<_>>()?))
}

/// The test's Kubernetes has no names by which members would find each other, so that they are processes here.
#[test]
fn the_three_members_that_the_chart_describes_are_one_etcd_of_which_any_may_be_lost() -> Result<()> {
    let three = deploy().join("helm/octavius/ci/three-members.yaml").display().to_string();
    let three = Helm::new()?.template("octavius", "octavius", "prod", Some(&three))?;
    let etcd = one(&three, "StatefulSet", "-etcd")?;
    assert_eq!((&etcd["spec"]["replicas"], &etcd["spec"]["podManagementPolicy"]), (&3.into(), &"Parallel".into()));
    let container = &etcd["spec"]["template"]["spec"]["containers"][0];
    let world = World::new()?;
    let free = free_ports(9)?;
    let ports = [[free[0], free[1], free[2]], [free[3], free[4], free[5]], [free[6], free[7], free[8]]];
    let members = (0..3).map(|number| member_here(&container["args"], number, &ports, &world.path("etcd")));
    let mut etcd = Etcd::of_flags(members.collect::<Result<Vec<_>>>()?)?;
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let path = container[probe]["httpGet"]["path"].as_str().context("no path")?;
        for [_, _, metrics] in ports {
            let content = eventually("the probe is content", || {
                let answer = http_get(metrics, path)?;
                ensure!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
                Ok(())
            });
            content.with_context(|| format!("{probe} of member {metrics}"))?;
        }
    }

    // The controllers' addresses of it, as the same values have them.
    let mut addresses = config(&three, "controller_config.json")?["etcd_host"].as_str().context("no etcd_host")?.to_owned();
    for (number, [client, ..]) in ports.iter().enumerate() {
        let name = format!("octavius-etcd-{number}.octavius-etcd.prod.svc:2379");
        ensure!(addresses.contains(&name), "{addresses}");
        addresses = addresses.replace(&name, &format!("127.0.0.1:{client}"));
    }
    let token = world.path("admin.token").display().to_string();
    let start = ["controller", "start", "--listen", "127.0.0.1:0", "--bootstrap-token-file", &token];
    let over_etcd = ["--store", "etcd", "--etcd-host", &addresses];
    let controller = world.daemon(start.into_iter().chain(over_etcd))?;
    let port = controller.ready.rsplit(':').next().context("no port")?.parse()?;
    let admin = world.admin(port)?;
    for member in 0..3 {
        etcd.kill(member)?;
        eventually("the other two take a change", || {
            admin.run(&["tokens", "create", "--role", "viewer", "--user", "ann"])?.expect(0).map(drop)
        })
        .with_context(|| format!("without member {member}"))?;
        etcd.restart(member)?;
    }
    Ok(())
}

#[test]
fn executors_get_the_rights_that_a_check_asks_for_and_no_others() -> Result<()> {
    let helm = Helm::new()?;
    let own = helm.template("octavius-executor", "octavius-executor", "octavius", None)?;
    assert_eq!(one(&own, "Role", "")?["rules"], executor_rules()?);
    ensure!(
        own.iter().all(|object| !object["kind"].as_str().unwrap_or_default().starts_with("Cluster")),
        "rights for all of a cluster"
    );

    let several = deploy().join("helm/octavius-executor/ci/several-namespaces.yaml").display().to_string();
    let several = helm.template("octavius-executor", "octavius-executor", "octavius", Some(&several))?;
    let roles: Vec<_> = several.iter().filter(|object| object["kind"] == "Role").collect();
    let namespaces: Vec<_> = roles.iter().map(|role| &role["metadata"]["namespace"]).collect();
    assert_eq!(namespaces, ["payments", "payments-batch"]);
    let secrets =
        json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["gateway", "database"], "verbs": ["get"]});
    assert_eq!(roles[0]["rules"].as_array().and_then(|rules| rules.last()), Some(&secrets));
    assert_eq!(roles[1]["rules"], executor_rules()?);
    for binding in several.iter().filter(|object| object["kind"] == "RoleBinding") {
        assert_eq!(binding["subjects"][0]["namespace"], "octavius");
    }
    let told = config(&several, "executor_config.json")?;
    assert_eq!((&told["default_namespace"], &told["namespaces"]), (&"payments".into(), &json!(["payments-batch"])));
    assert_eq!(
        (&told["cp_host"], &told["ca_file"]),
        (&"ctl-1.example:3000,https://ctl-2.example:443".into(), &"/etc/octavius/ca/authority.pem".into())
    );
    assert_eq!(told["secrets"], json!({"kubernetes": ["payments/gateway", "payments/database"]}));
    assert_eq!((&told["runner"], &told["run_as_non_root"]), (&"kubernetes".into(), &true.into()));
    Ok(())
}

#[test]
fn what_cannot_be_is_refused_with_a_reason() -> Result<()> {
    let helm = Helm::new()?;
    for (chart, values, reason) in [
        ("octavius", json!({"tls": {"existingSecret": ""}}), "tls.insecure: true"),
        ("octavius", json!({"tls": {"clientCa": true, "existingSecret": "", "insecure": true}}), "tls.clientCa needs"),
        ("octavius", json!({"page": {"ingress": {"enabled": true}}}), "needs page.ingress.host"),
        (
            "octavius",
            json!({"page": {"enabled": false, "ingress": {"enabled": true, "host": "a.example"}}}),
            "needs page.enabled: true",
        ),
        ("octavius", json!({"page": {"ingress": {"host": "https://a.example"}}}), "/page/ingress/host"),
        ("octavius", json!({"hostNetwork": true}), "needs listenAddress 127.0.0.1"),
        (
            "octavius",
            json!({"hostNetwork": true, "listenAddress": "127.0.0.1", "etcd": {"bundled": {"replicas": 3}}}),
            "must be 1",
        ),
        ("octavius", json!({"etcd": {"tls": {"existingSecret": "a"}}}), "the bundled one has neither"),
        (
            "octavius",
            json!({"etcd": {"endpoints": ["a:1"], "tls": {"clientCertificate": true}}}),
            "needs etcd.tls.existingSecret",
        ),
        ("octavius", json!({"etcd": {"bundled": {"replicas": 2}}}), "/etcd/bundled/replicas"),
        ("octavius", json!({"replica": 3}), "'replica' not allowed"),
        ("octavius-executor", json!({"controllers": []}), "/controllers"),
        ("octavius-executor", json!({"controllers": ["octavius"]}), "/controllers/0"),
        ("octavius-executor", json!({"namespaces": []}), "/namespaces"),
        ("octavius-executor", json!({"labels": {"vpc": 3}}), "/labels/vpc"),
    ] {
        let file = helm.values("wrong", &values)?;
        let refused = helm.run(&["template", "octavius", chart, "--values", &file])?;
        ensure!(refused.code == 1 && refused.stderr.contains(reason), "{values}: {}", refused.stderr);
    }
    Ok(())
}
