//! What a cluster is asked for, and what is refused.

use octavius_core::ExecutionId;
use octavius_core::execution::Fence;
use serde_json::json;

use super::*;

fn offered(kubernetes: &[&str]) -> Offered {
    let offers = serde_json::from_value(json!({ "kubernetes": kubernetes })).unwrap();
    Offered { executor: ExecutorId::new("e1").unwrap(), offers, own_folder: "/".into() }
}

fn maker_offering(kubernetes: &[&str], options: serde_json::Value) -> Maker {
    let options = serde_json::from_value(options).unwrap();
    Maker::new(offered(kubernetes), "jobs".to_owned(), options, Duration::from_secs(10)).unwrap()
}

fn maker(options: serde_json::Value) -> Maker {
    maker_offering(&["s"], options)
}

fn launch(job: serde_json::Value, arguments: &[(&str, &str)]) -> Launch {
    Launch {
        held: Held { id: ExecutionId::from_bits(7), fence: Fence { attempt: 2, nonce: 9 } },
        job: serde_json::from_value(job).unwrap(),
        arguments: arguments.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        timeout: Duration::from_millis(1500),
        user: "ann@example.com".to_owned(),
        origin: Origin::default(),
        trace: None,
    }
}

#[test]
fn a_job_that_is_part_of_a_trace_says_so_and_hands_it_on() {
    let trace = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "a=$b");
    let traced = Launch { trace: trace.clone(), ..launch(json!({"name": "j", "image_name": "x:1"}), &[]) };
    let made = maker(json!({})).make(&traced).unwrap().job;
    let pod = made.spec.unwrap().template;
    for annotations in [made.metadata.annotations, pod.metadata.unwrap().annotations] {
        assert_eq!(annotations.unwrap()[TRACE_ID], "4bf92f3577b34da6a3ce929d0e0e4736");
    }
    assert_eq!(trace_of(&pod.spec.unwrap().containers[0]), trace, "whoever finds the Job goes on with the trace");
    let job = json!({"name": "j", "image_name": "x:1", "env_vars": {"args": [{"name": "TRACEPARENT"}]}});
    let own = Launch { trace, ..launch(job, &[("TRACEPARENT", "mine")]) };
    let pod = maker(json!({})).make(&own).unwrap().job.spec.unwrap().template.spec.unwrap();
    let parents = pod.containers[0].env.iter().flatten().filter(|variable| variable.name == TRACEPARENT);
    assert_eq!(parents.map(|variable| variable.value.as_deref()).collect::<Vec<_>>(), [Some("mine")]);
}

#[test]
fn a_job_is_suspended_named_labelled_and_restricted() {
    let launch = launch(
        json!({"name": "Refund.Order", "image_name": "x:1", "command": ["sh", "-c", "echo $(who) $$"], "author": "the payments team",
            "resources": {"limits": {"memory": "64Mi"}}, "annotations": {"team": "pay", "octavius/nonce": "1"},
            "env_vars": {"args": [{"name": "who"}, {"name": "pin", "sensitive": true}],
                "secrets": [{"name": "KEY", "from": {"kubernetes": {"secret": "s", "key": "k"}}}]}}),
        &[("who", "$(PATH)"), ("pin", "1234")],
    );
    let made = maker(json!({"annotations": {"all": "yes"}})).make(&launch).unwrap();
    let job = serde_json::to_value(&made.job).unwrap();
    let held = "00000000000000000000000007-2";
    let metadata = &job["metadata"];
    assert_eq!((metadata["name"].as_str(), metadata["namespace"].as_str()), (Some(&*format!("octavius-{held}")), Some("jobs")));
    assert_eq!(
        metadata["labels"],
        json!({"octavius/id": "00000000000000000000000007", "octavius/attempt": "2", "octavius/executor": "e1",
            "octavius/job": "Refund.Order", "app.kubernetes.io/job": "Refund.Order"})
    );
    assert_eq!(
        metadata["annotations"],
        json!({"octavius/nonce": "9", "octavius/definition": launch.job.digest().to_string(), "octavius/masked": "pin,KEY",
            "octavius/user": "ann@example.com", "octavius/author": "the payments team", "team": "pay", "all": "yes"})
    );
    let spec = &job["spec"];
    assert_eq!((&spec["suspend"], &spec["backoffLimit"]), (&json!(true), &json!(0)));
    let pod = &spec["template"]["spec"];
    assert_eq!(pod["restartPolicy"], "Never");
    assert_eq!((&pod["activeDeadlineSeconds"], &pod["terminationGracePeriodSeconds"]), (&json!(2), &json!(10)));
    assert_eq!(pod["automountServiceAccountToken"], false);
    let container = &pod["containers"][0];
    assert_eq!(container["command"], json!(["sh", "-c", "echo $$(who) $$$$"]));
    assert_eq!(container["resources"]["limits"]["memory"], "64Mi");
    assert_eq!(
        container["securityContext"],
        json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}})
    );
    let variable = |name: &str| container["env"].as_array().unwrap().iter().find(|v| v["name"] == name).unwrap().clone();
    assert_eq!(variable("who")["value"], "$$(PATH)");
    assert_eq!(variable("OCTAVIUS_ATTEMPT")["value"], "2");
    assert_eq!(variable("KEY")["valueFrom"]["secretKeyRef"], json!({"name": "s", "key": "k"}));
    assert_eq!((made.masked.len(), &made.masked["pin"]), (1, &"1234".to_owned()));
}

#[test]
fn where_a_job_comes_from_is_told_as_far_as_it_is_known_and_there_is_room() {
    let told = |origin: Origin, annotations: serde_json::Value| {
        let job = json!({"name": "j", "image_name": "x:1", "annotations": annotations});
        let made = maker(json!({})).make(&Launch { origin, ..launch(job, &[]) }).unwrap();
        let spec = made.job.spec.unwrap();
        let on_both = [made.job.metadata.annotations.unwrap(), spec.template.metadata.unwrap().annotations.unwrap()];
        assert_eq!(on_both[0], on_both[1]);
        let [on_job, _] = on_both;
        let keys = [CATALOG, REVISION, COMMIT, REPOSITORY, FILE];
        on_job.into_iter().filter(|(key, _)| keys.contains(&key.as_str())).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(told(Origin::default(), json!({"octavius/commit": "forged"})), BTreeMap::new());
    let whole = Origin {
        catalog: "team".to_owned(),
        revision: 7,
        commit: "c0ffee".to_owned(),
        repository: "https://example.com/team/jobs".to_owned(),
        file: "catalog/pay/refund.yaml".to_owned(),
        line: 3,
    };
    let expected = [
        (CATALOG, "team"),
        (REVISION, "7"),
        (COMMIT, "c0ffee"),
        (REPOSITORY, "https://example.com/team/jobs"),
        (FILE, "catalog/pay/refund.yaml:3"),
    ];
    let expected: BTreeMap<_, _> = expected.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    assert_eq!(told(whole.clone(), json!({})), expected);
    let long = told(Origin { file: "é".repeat(5000), ..whole.clone() }, json!({}));
    assert!(long[FILE].len() <= LONGEST_TOLD && long[FILE].ends_with("é:3"), "{}", long[FILE].len());
    let full = told(whole, json!({"mine": "x".repeat(ROOM - 150)}));
    assert!(!full.contains_key(FILE), "{full:?}");
}

#[test]
fn the_template_is_the_base_and_octavius_has_the_last_word_on_what_it_needs() {
    let maker = maker(json!({"run_as_non_root": true, "service_account": "runner", "longest_run": "1s", "pod_template": {
        "metadata": {"labels": {"team": "x", "octavius/executor": "other"}},
        "spec": {"restartPolicy": "Always", "nodeSelector": {"disk": "fast"}, "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"name": "job", "imagePullPolicy": "Always", "securityContext": {"readOnlyRootFilesystem": true},
                "env": [{"name": "HTTP_PROXY", "value": "p"}, {"name": "who", "value": "template"}]}]}}}));
    let made = maker.make(&launch(json!({"name": "j", "image_name": "x:1"}), &[("who", "bob")])).unwrap();
    let template = serde_json::to_value(made.job.spec.unwrap().template).unwrap();
    assert_eq!(template["metadata"]["labels"]["octavius/executor"], "e1");
    assert_eq!(template["metadata"]["labels"]["team"], "x");
    let pod = &template["spec"];
    assert_eq!((&pod["restartPolicy"], &pod["nodeSelector"]["disk"]), (&json!("Never"), &json!("fast")));
    assert_eq!((&pod["serviceAccountName"], &pod["automountServiceAccountToken"]), (&json!("runner"), &json!(null)));
    assert_eq!(pod["activeDeadlineSeconds"], 1);
    let container = &pod["containers"][0];
    let context = &container["securityContext"];
    assert_eq!((&context["readOnlyRootFilesystem"], &context["runAsNonRoot"]), (&json!(true), &json!(true)));
    let names: Vec<_> = container["env"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert_eq!(names.iter().filter(|name| **name == "who").count(), 1, "{names:?}");
}

#[test]
fn what_an_executor_does_not_allow_is_refused_and_says_what_to_do() {
    let maker = maker(json!({"namespaces": ["other"], "service_accounts": ["robot"], "job_may_set": []}));
    for (job, expected) in [
        (json!({"namespace": "kube-system"}), "FORBIDDEN namespace `kube-system` is not one"),
        (json!({"service_account": "admin"}), "FORBIDDEN service account `admin` is not one"),
        (json!({"resources": {"limits": {"cpu": "1"}}}), "FORBIDDEN executor `e1` lets no job set `resources`"),
        (json!({"annotations": {"a": "b"}}), "FORBIDDEN executor `e1` lets no job set `annotations`"),
        (json!({"image_name": ""}), "REQUIREMENT_NOT_MET the job has no `image_name`"),
        (json!({"env_vars": {"secrets": [{"name": "K"}]}}), "SECRET_MISSING secret `K` has no `from`"),
        (
            json!({"env_vars": {"secrets": [{"name": "K", "from": {"file": "/x"}}]}}),
            "SECRET_MISSING secret `K` is kept on an executor",
        ),
    ] {
        let mut whole = json!({"name": "j", "image_name": "x:1"});
        whole.as_object_mut().unwrap().extend(job.as_object().unwrap().clone());
        let ending = maker.make(&launch(whole, &[])).err().unwrap();
        let told = format!("{} {}", ending.reason.unwrap(), ending.message);
        assert!(told.starts_with(expected), "{told}");
    }
    let allowed = json!({"name": "j", "image_name": "x:1", "namespace": "other", "service_account": "robot"});
    assert_eq!(maker.make(&launch(allowed, &[])).unwrap().namespace, "other");
    let sidecar = serde_json::from_value(json!({"pod_template": {"spec": {"containers": [{"name": "side"}]}}})).unwrap();
    let refused = Maker::new(offered(&[]), "n".to_owned(), sidecar, Duration::ZERO).err().unwrap();
    assert!(refused.contains("container `side`"), "{refused}");
}
/// Else a catalogue reads every Secret of the executor's namespaces, which the kubelet hands out whatever the executor itself may read.
#[test]
fn a_job_gets_the_secrets_that_are_offered_and_no_annotation_brings_it_others() {
    let maker = maker_offering(&["gateway", "other/db-*"], json!({"namespaces": ["other"], "secret": "own"}));
    let told = |maker: &Maker, fields: serde_json::Value| {
        let mut job = json!({"name": "j", "image_name": "x:1"});
        job.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        match maker.make(&launch(job, &[])) {
            Ok(made) => made.secrets.first().map_or("none".to_owned(), |(_, from)| format!("{}.{}", from.secret, from.key)),
            Err(ending) => format!("{} {}", ending.reason.unwrap(), ending.message),
        }
    };
    let from = |namespace: &str, secret: &str| {
        let from = json!({"kubernetes": {"secret": secret, "key": "k"}});
        json!({"namespace": namespace, "env_vars": {"secrets": [{"name": "K", "from": from}]}})
    };
    for (namespace, secret) in [("", "gateway"), ("other", "gateway"), ("other", "db-1"), ("", "own")] {
        assert_eq!(told(&maker, from(namespace, secret)), format!("{secret}.k"));
    }
    assert_eq!(told(&maker, json!({"env_vars": {"secrets": [{"name": "K"}]}})), "own.K");
    for (namespace, secret, shown) in [("", "db-1", "jobs"), ("other", "root", "other")] {
        let told = told(&maker, from(namespace, secret));
        let expected = format!(
            "SECRET_NOT_OFFERED secret `K`: executor `e1` does not offer the Kubernetes Secret `{secret}` in namespace {shown}: its \
             owner adds it to `secrets.kubernetes` "
        );
        assert!(told.starts_with(&expected), "{told}");
    }
    let vault = json!({"annotations": {"vault.hashicorp.com/agent-inject": "true"}, "labels": {"team": "x", "inject.example/it": "true"}});
    assert!(told(&maker, vault.clone()).starts_with("FORBIDDEN executor `e1` lets no job set the annotation `vault."));
    let plain = json!({"name": "j", "image_name": "x:1", "annotations": {"team": "x"}, "labels": vault["labels"]});
    let labels = |maker: &Maker, job| maker.make(&launch(job, &[])).unwrap().job.metadata.labels.unwrap();
    let on_pod = labels(&maker, plain.clone());
    assert!(on_pod.contains_key("team") && !on_pod.contains_key("inject.example/it"), "{on_pod:?}");
    let trusting = self::maker(json!({"job_may_set": ["annotations"]}));
    assert_eq!(told(&trusting, vault), "none");
    assert!(labels(&trusting, plain).contains_key("inject.example/it"));
}
