//! The whole of it inside a cluster, installed as an operator does: the image that `deploy/image` makes and the charts of `deploy/helm`, by Helm.
//! The cluster has neither a way to services nor names, nor one from pod to pod: either everything shares the node's network, on loopback, or
//! controllers are reached by their pods' addresses.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use octavius_tests::{Client, Helm, Kubernetes, Namespace, Proxy, World, eventually, free_ports, image};
use serde_json::{Value, json};

const IMAGE: &str = "octavius.test/octavius:1";

/// An image as values of a chart name it.
fn values_of(image: &str) -> Value {
    let (repository, tag) = image.rsplit_once(':').unwrap();
    json!({"repository": repository, "tag": tag, "pullPolicy": "Never"})
}

/// Makes the image of the binary under test, and gives it to the cluster.
fn import(world: &World, cluster: &Kubernetes) -> Result<()> {
    let archive = world.path("octavius.tar");
    image(Path::new(world.command(["version"]).get_program()), &archive, IMAGE)?;
    cluster.import(&archive)
}

/// Forbids what does not meet a pod security standard.
fn enforce(cluster: &Kubernetes, namespace: &Namespace<'_>, standard: &str) -> Result<()> {
    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": standard}}});
    cluster.patch(&format!("/api/v1/namespaces/{}", namespace.name()), &labels)?;
    Ok(())
}

/// The log of a pod that has ended well.
fn log_of(cluster: &Kubernetes, namespace: &Namespace<'_>, pod: &str) -> Result<String> {
    eventually("the pod has ended", || {
        let status = cluster.get(&namespace.path(&format!("pods/{pod}")))?["status"].clone();
        let log = cluster.text(&namespace.path(&format!("pods/{pod}/log"))).unwrap_or_default();
        ensure!(status["phase"] == "Succeeded", "{status}\n{log}");
        Ok(log)
    })
}

#[test]
fn an_image_is_the_same_bytes_each_time_and_runs_under_the_restricted_standard() -> Result<()> {
    let cluster = Kubernetes::shared()?;
    let namespace = cluster.namespace()?;
    enforce(&cluster, &namespace, "restricted")?;
    let world = World::new()?;
    let program = world.command(["version"]).get_program().to_owned();
    let (one, two) = (world.path("one.tar"), world.path("two.tar"));
    image(Path::new(&program), &one, IMAGE)?;
    image(Path::new(&program), &two, IMAGE)?;
    ensure!(std::fs::read(&one)? == std::fs::read(&two)?, "two images of one program differ");
    cluster.import(&one)?;

    // Each by itself: a ConfigMap as a folder is made of links, which a catalogue may not have.
    let mounts = ["octavius.yaml", "hello.yaml"]
        .map(|file| json!({"name": "catalog", "mountPath": format!("/catalog/{file}"), "subPath": file}));
    let container = json!({
        "name": "octavius",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "args": ["validate", "/catalog"],
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
    });
    let catalog = json!({"octavius.yaml": "catalog: team\n", "hello.yaml": "name: hello\nimage_name: a/b:1\n"});
    cluster.post(&namespace.path("configmaps"), &json!({"metadata": {"name": "catalog"}, "data": catalog}))?;
    // The user is the image's own.
    let pod = json!({
        "metadata": {"name": "octavius"},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": [{"name": "catalog", "configMap": {"name": "catalog"}}],
        },
    });
    cluster.post(&namespace.path("pods"), &pod)?;
    let log = log_of(&cluster, &namespace, "octavius")?;
    ensure!(log.contains("no findings"), "{log}");
    Ok(())
}

/// An installation, and what it is made of.
struct Site<'s> {
    world: &'s World,
    cluster: &'s Kubernetes,
    helm: Helm,
    /// Where controllers, etcd and executors are.
    system: Namespace<'s>,
    /// Where jobs run.
    jobs: Namespace<'s>,
    ports: Vec<u16>,
}

impl<'s> Site<'s> {
    /// Namespaces, images, volumes and the first admin's token: what there is before anything is installed.
    fn new(world: &'s World, cluster: &'s Kubernetes) -> Result<Self> {
        import(world, cluster)?;
        let etcd = world.path("etcd");
        let program = std::env::var_os("OCTAVIUS_ETCD_36").context("OCTAVIUS_ETCD_36 is not set: tests/run builds etcd 3.6")?;
        std::fs::copy(program, &etcd)?;
        image(&etcd, &world.path("etcd.tar"), "octavius.test/etcd:1")?;
        cluster.import(&world.path("etcd.tar"))?;
        let (system, jobs) = (cluster.namespace()?, cluster.namespace()?);
        enforce(cluster, &jobs, "baseline")?;
        let site = Self { world, cluster, helm: Helm::new()?, system, jobs, ports: free_ports(9)? };
        for number in 0..3 {
            site.volume(number)?;
        }
        Ok(site)
    }

    /// A folder of the node for one claim of this site: nobody makes volumes here by themselves.
    fn volume(&self, number: usize) -> Result<()> {
        let path = self.world.path(&format!("volumes/{number}"));
        std::fs::create_dir_all(&path)?;
        let node = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": ["localhost"]});
        let volume = json!({
            "metadata": {"name": format!("{}-{number}", self.system.name())},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": self.system.name(),
                "local": {"path": path},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [node]}]}},
            },
        });
        self.cluster.post("/api/v1/persistentvolumes", &volume)?;
        Ok(())
    }

    fn secret(&self, namespace: &Namespace<'_>, name: &str, data: &Value) -> Result<()> {
        let secret = json!({"metadata": {"name": name}, "stringData": data});
        self.cluster.post(&namespace.path("secrets"), &secret)?;
        Ok(())
    }

    /// Certificates for this node, in the Secret that both charts ask for by themselves, and a key for sensitive arguments.
    fn certify(&self) -> Result<()> {
        let folder = self.world.path("tls").display().to_string();
        self.world.run(&["tls", "create", &folder])?.expect(0)?;
        let read = |file: &str| std::fs::read_to_string(self.world.path(&format!("tls/{file}")));
        let data = json!({"tls.crt": read("server.pem")?, "tls.key": read("server.key")?, "ca.crt": read("ca.pem")?});
        self.secret(&self.system, "octavius-tls", &data)?;
        let key = self.world.path("encryption.key");
        self.world.run(&["controller", "new-key", &key.display().to_string()])?.expect(0)?;
        self.secret(&self.system, "octavius-encryption", &json!({"encryption.key": std::fs::read_to_string(key)?}))
    }

    /// Calls Helm as the administrator.
    fn helm(&self, arguments: &[&str]) -> Result<String> {
        let kubeconfig = self.system.kubeconfig().display().to_string();
        let access = ["--kubeconfig", &kubeconfig, "--namespace", self.system.name()];
        let arguments: Vec<&str> = arguments.iter().copied().chain(access).collect();
        let ran = self.helm.run(&arguments)?.expect(0);
        ran.map(|output| output.stdout).with_context(|| self.pods())
    }

    /// What there is of pods and what they have said, for whoever wonders why one is not ready.
    fn pods(&self) -> String {
        let pods = self.cluster.get(&self.system.path("pods")).unwrap_or_default();
        let states = pods["items"].as_array().into_iter().flatten().map(|pod| {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let log = self.cluster.text(&self.system.path(&format!("pods/{name}/log"))).unwrap_or_default();
            format!("{name}: {}\n{log}", pod["status"])
        });
        states.collect::<Vec<_>>().join("\n")
    }

    fn install(&self, release: &str, chart: &str, values: &Value) -> Result<String> {
        let values = self.helm.values(release, values)?;
        self.helm(&["install", release, chart, "--values", &values, "--wait", "--timeout", "90s"])
    }

    /// What one controller of its own release is told; `etcd` says which etcd is meant.
    fn controller(&self, [grpc, page, metrics]: [u16; 3], etcd: &Value) -> Value {
        json!({
            "replicas": 1,
            "image": values_of(IMAGE),
            "hostNetwork": true,
            "listenAddress": "127.0.0.1",
            "ports": {"grpc": grpc, "page": page, "metrics": metrics},
            "preStopSeconds": 1,
            "encryptionKeys": {"existingSecret": "octavius-encryption"},
            "etcd": etcd,
        })
    }

    fn address(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.ports[index])
    }

    /// Two controllers, the first with the chart's own etcd beneath it, the second of another release over the same etcd.
    fn install_controllers(&self) -> Result<()> {
        let [a, a_page, a_metrics, b, b_page, b_metrics, client, peer, metrics] = self.ports[..] else {
            anyhow::bail!("nine ports are needed")
        };
        let bundled = json!({"bundled": {
            "image": values_of("octavius.test/etcd:1"),
            "ports": {"client": client, "peer": peer, "metrics": metrics},
            "persistence": {"size": "64Mi", "storageClass": self.system.name()},
        }});
        let notes = self.install("octavius", "octavius", &self.controller([a, a_page, a_metrics], &bundled))?;
        ensure!(notes.contains("umask 077; octavius tokens generate > admin.token"), "{notes}");
        let there = json!({"endpoints": [format!("http://127.0.0.1:{client}")]});
        self.install("octavius-b", "octavius", &self.controller([b, b_page, b_metrics], &there))?;
        Ok(())
    }

    /// An etcd by the chart, on the node's network, with no controller above it; and a way to it for pods, which the value is.
    fn install_etcd(&self) -> Result<Proxy> {
        let [grpc, page, metrics, .., client, peer, etcd_metrics] = self.ports[..] else { anyhow::bail!("six ports are needed") };
        let bundled = json!({"bundled": {
            "image": values_of("octavius.test/etcd:1"),
            "ports": {"client": client, "peer": peer, "metrics": etcd_metrics},
            "persistence": {"size": "64Mi", "storageClass": self.system.name()},
        }});
        let mut values = self.controller([grpc, page, metrics], &bundled);
        values["replicas"] = 0.into();
        self.install("store-octavius", "octavius", &values)?;
        // The node has its address in the pods' network while there is a pod in it.
        let container = json!({"name": "sleep", "image": Kubernetes::BUSYBOX, "command": ["sleep", "3600"]});
        let pod = json!({"metadata": {"name": "gate"}, "spec": {"containers": [container], "terminationGracePeriodSeconds": 0}});
        self.cluster.post(&self.system.path("pods"), &pod)?;
        let own: Ipv4Addr = eventually("the pod has an address", || {
            let pod = self.cluster.get(&self.system.path("pods/gate"))?;
            pod["status"]["podIP"].as_str().with_context(|| pod["status"].to_string())?.parse().context("no address")
        })?;
        let [a, b, c, _] = own.octets();
        Proxy::start_on(Ipv4Addr::new(a, b, c, 1), ([127, 0, 0, 1], client).into())
    }

    /// The addresses of a release's controllers once so many are ready, and no other is there.
    fn controllers(&self, release: &str, count: usize) -> Result<Vec<String>> {
        let labels = format!("app.kubernetes.io/instance={release},app.kubernetes.io/component=controller");
        let found = eventually("the controllers are ready", || {
            let pods = self.cluster.get(&self.system.path(&format!("pods?labelSelector={labels}")))?["items"].clone();
            let pods = pods.as_array().context("no pods")?;
            let ready = pods.iter().filter(|pod| is_ready(pod) && pod["metadata"]["deletionTimestamp"].is_null());
            let addresses = ready.filter_map(|pod| Some(format!("{}:3000", pod["status"]["podIP"].as_str()?)));
            let addresses: Vec<_> = addresses.collect();
            ensure!(pods.len() == count && addresses.len() == count, "{} pods, ready are {addresses:?}", pods.len());
            Ok(addresses)
        });
        found.with_context(|| self.pods())
    }

    /// Installs executors of the controllers at these addresses, whose certificate is for `server_name`, or for the addresses where it is empty.
    fn install_executors(&self, controllers: &[String], server_name: &str) -> Result<()> {
        let api = self.cluster.url()?;
        let port = api.rsplit(':').next().context("no port")?;
        let values = json!({
            "idPrefix": "inside",
            "controllers": controllers,
            "tls": {"serverName": server_name},
            "image": values_of(IMAGE),
            "hostNetwork": true,
            "capacity": 4,
            "labels": {"pool": "inside"},
            "namespaces": [{"name": self.jobs.name(), "create": false, "secrets": ["gateway"]}],
            "persistence": {"size": "64Mi", "storageClass": self.system.name()},
            // As the kubelet sets them, but for the address: there is no way to that of the service.
            "extraEnv": [
                {"name": "KUBERNETES_SERVICE_HOST", "value": "127.0.0.1"},
                {"name": "KUBERNETES_SERVICE_PORT", "value": port},
            ],
        });
        self.install("octavius-executor", "octavius-executor", &values)?;
        Ok(())
    }

    /// Has `octavius executor check` ask the cluster, as the executors' account with their configuration, for what they need.
    fn check_rights(&self) -> Result<()> {
        let path = format!("/apis/apps/v1/namespaces/{}/statefulsets/octavius-executor", self.system.name());
        let mut pod = self.cluster.get(&path)?["spec"]["template"].clone();
        pod["metadata"] = json!({"name": "check"});
        pod["spec"]["restartPolicy"] = "Never".into();
        let config = "--config=/etc/octavius/executor/executor_config.json";
        pod["spec"]["containers"][0]["args"] =
            json!(["executor", "check", config, "--id=check", "--data-dir=/tmp/check", "--output=json"]);
        pod["spec"]["volumes"].as_array_mut().context("no volumes")?.push(json!({"name": "data", "emptyDir": {}}));
        self.cluster.post(&self.system.path("pods"), &pod)?;
        let checked: Value = serde_json::from_str(&log_of(self.cluster, &self.system, "check")?)?;
        ensure!(checked["ok"] == true, "{checked}");
        // All of it, but for Secrets other than those that the values name.
        let all = checked["permissions"].as_array().context("no permissions")?;
        let denied: Vec<_> = all.iter().filter(|one| one["allowed"] != true).map(|one| &one["resource"]).collect();
        assert_eq!(denied, ["secrets"], "{checked}");
        self.cluster.delete(&self.system.path("pods/check"))?;
        Ok(())
    }

    /// The pod of a release, by its component.
    fn pod(&self, release: &str, component: &str) -> Result<Value> {
        let labels = format!("app.kubernetes.io/instance={release},app.kubernetes.io/component={component}");
        let pods = self.cluster.get(&self.system.path(&format!("pods?labelSelector={labels}")))?;
        pods["items"].as_array().and_then(|items| items.first()).cloned().with_context(|| format!("no {component} of {release}"))
    }

    /// Waits until a Service of the first release has so many controllers behind it: what it selects wrongly, no pod would ever notice.
    fn until_leads_to(&self, service: &str, port: u16, count: usize) -> Result<()> {
        let slices = format!(
            "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices?labelSelector=kubernetes.io/service-name={service}",
            self.system.name()
        );
        let found = eventually("the Service has its endpoints", || {
            let slice = self.cluster.get(&slices)?["items"][0].clone();
            let endpoints = slice["endpoints"].as_array().context("no endpoints")?;
            let ready = endpoints.iter().filter(|endpoint| endpoint["conditions"]["ready"] == true).count();
            ensure!(slice["ports"][0]["port"] == port && ready == count, "ports {}, ready {ready}", slice["ports"]);
            Ok(())
        });
        found.with_context(|| format!("{service}: {}", self.pods()))
    }

    /// Ends a pod as the loss of its node does: nothing in it is told.
    fn lose(&self, pod: &Value) -> Result<()> {
        let name = pod["metadata"]["name"].as_str().context("no name")?;
        self.cluster.delete(&self.system.path(&format!("pods/{name}?gracePeriodSeconds=0")))?;
        Ok(())
    }

    /// Makes a StatefulSet so large.
    fn scale(&self, name: &str, replicas: u32) -> Result<()> {
        let path = format!("/apis/apps/v1/namespaces/{}/statefulsets/{name}", self.system.name());
        self.cluster.patch(&path, &json!({"spec": {"replicas": replicas}}))?;
        Ok(())
    }

    /// Waits until another pod has taken the place of `lost`, and is ready.
    fn until_replaced(&self, release: &str, component: &str, lost: &Value) -> Result<()> {
        eventually("the pod has been replaced", || {
            let pod = self.pod(release, component)?;
            ensure!(pod["metadata"]["uid"] != lost["metadata"]["uid"], "still the same");
            ensure!(is_ready(&pod), "{}", pod["status"]);
            Ok(())
        })
    }
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

/// The executors that have a session, with when they were registered.
fn executors(admin: &Client<'_>) -> Result<Vec<(String, String)>> {
    let listed = admin.run(&["executors", "list", "-o", "json"])?.expect(0)?.json()?;
    let all = listed["executors"].as_array().context("no executors")?.clone();
    let here = all.iter().filter(|executor| executor["state"] == "active");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut here: Vec<_> = here.map(|executor| (text(&executor["id"]), text(&executor["registered_at"]))).collect();
    here.sort();
    ensure!(here.len() == 2, "{listed}");
    Ok(here)
}

/// Writes a catalogue with the job `hello`, which runs in the cluster with an argument and a Secret that nobody else is to see.
fn write_catalog(world: &World) -> Result<()> {
    let job = format!(
        "name: hello\nimage_name: {}\ncommand: [sh, -c, 'echo \"hello $who, $PAYMENT_TOKEN\"']\nexecutor: {{pool: inside}}\nenv_vars:\n  \
         args: [{{name: who, description: whom to greet, required: true, sensitive: true}}]\n  secrets: [{{name: PAYMENT_TOKEN, description: payment gateway, \
         from: {{kubernetes: {{secret: gateway, key: token}}}}}}]\n",
        Kubernetes::BUSYBOX
    );
    world.write("catalog/octavius.yaml", "catalog: team\n")?;
    world.write("catalog/hello.yaml", &job)?;
    Ok(())
}

/// Runs the job, and returns its status once it has succeeded.
fn run(admin: &Client<'_>) -> Result<Value> {
    let ran = admin.run(&["execute", "hello", "--arg", "who=Ada", "--follow"])?.expect(0)?;
    ensure!(ran.stdout == "hello Ada, ******\n", "{:?}\n{}", ran.stdout, ran.stderr);
    let listed = admin.run(&["executions", "--limit", "1", "-o", "json"])?.expect(0)?.json()?;
    admin.status(listed["executions"][0]["id"].as_str().context("no id")?)
}

#[test]
fn what_the_charts_install_runs_a_job_and_goes_on_when_a_pod_is_lost() -> Result<()> {
    let cluster = Kubernetes::shared()?;
    let world = World::new()?;
    let authority = world.path("tls/ca.pem").display().to_string();
    let world = world.variable("OCTAVIUS_CA_FILE", &authority);
    let site = Site::new(&world, &cluster)?;
    let begun = std::time::Instant::now();
    let token = world.run(&["tokens", "generate"])?.expect(0)?.stdout.trim().to_owned();
    site.secret(&site.system, "octavius-admin", &json!({"token": token}))?;
    site.certify()?;
    site.install_controllers()?;
    site.until_leads_to("octavius", site.ports[0], 1)?;
    site.until_leads_to("octavius-page", site.ports[1], 1)?;

    let admin = world.client_of("admin", &format!("{},{}", site.address(0), site.address(3)), &token)?;
    let create = ["tokens", "create", "--role", "registration", "--uses", "2", "-o", "json"];
    let registration = admin.run(&create)?.expect(0)?.json()?["token"].clone();
    site.secret(&site.system, "octavius-executor", &json!({"token": registration}))?;
    site.secret(&site.jobs, "gateway", &json!({"token": "s3cret"}))?;
    site.install_executors(&[site.address(0), site.address(3)], "")?;
    site.check_rights()?;
    let registered = eventually("both executors have a session", || executors(&admin))?;
    assert_eq!(registered.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["inside-0", "inside-1"]);

    write_catalog(&world)?;
    admin.run(&["apply", "catalog"])?.expect(0)?;
    let status = run(&admin)?;
    let id = status["id"].as_str().context("no id")?;
    assert_eq!(status["attempts"][0]["runs_as"], format!("job {}/octavius-{id}-1", site.jobs.name()));

    // A controller is lost: the other serves at once, and the probes let the new one in.
    let lost = site.pod("octavius", "controller")?;
    site.lose(&lost)?;
    run(&admin)?;
    site.until_replaced("octavius", "controller", &lost)?;
    // The executors are away and their volumes mounted anew: they come back with what is on them, and need no registration.
    site.scale("octavius-executor", 0)?;
    eventually("the executors' pods are gone", || {
        ensure!(site.pod("octavius-executor", "executor").is_err());
        Ok(())
    })?;
    site.scale("octavius-executor", 2)?;
    let again = eventually("both executors have a session again", || executors(&admin))?;
    assert_eq!(again, registered);
    run(&admin)?;
    // The etcd is away for a while: controllers take no new traffic, and are not started again for it. What was acknowledged is still there.
    let controller = site.pod("octavius", "controller")?;
    site.scale("octavius-etcd", 0)?;
    eventually("the controller is not ready", || {
        ensure!(!is_ready(&site.pod("octavius", "controller")?));
        Ok(())
    })?;
    site.scale("octavius-etcd", 1)?;
    let again = eventually("the controller is ready again", || {
        let pod = site.pod("octavius", "controller")?;
        ensure!(is_ready(&pod), "{}", pod["status"]);
        Ok(pod)
    })?;
    let starts = |pod: &Value| (pod["metadata"]["uid"].clone(), pod["status"]["containerStatuses"][0]["restartCount"].clone());
    assert_eq!(starts(&again), starts(&controller));
    run(&admin)?;
    assert_eq!(admin.status(id)?["state"], "succeeded");

    // Another configuration is taken by new pods.
    let before = site.pod("octavius", "controller")?;
    let upgrade = ["upgrade", "octavius", "octavius", "--reuse-values", "--set", "config.retention_age=10d"];
    site.helm(&[&upgrade[..], &["--wait", "--timeout", "60s"]].concat())?;
    site.until_replaced("octavius", "controller", &before)?;
    run(&admin)?;
    for release in ["octavius-executor", "octavius-b", "octavius"] {
        site.helm(&["uninstall", release, "--wait", "--timeout", "60s"])?;
    }
    eventually("nothing is left but volumes and what the operator made", || {
        let pods = cluster.get(&site.system.path("pods"))?;
        ensure!(pods["items"] == json!([]), "{}", pods["items"][0]["metadata"]["name"]);
        Ok(())
    })?;
    ensure!(begun.elapsed() < Duration::from_secs(180), "{:?}", begun.elapsed());
    Ok(())
}

/// As the chart has it by itself, two controllers of one Deployment with addresses of their own.
#[test]
fn two_controllers_of_one_deployment_serve_together_and_are_replaced_one_by_one() -> Result<()> {
    let cluster = Kubernetes::shared()?;
    let world = World::new()?;
    let authority = world.path("tls/ca.pem").display().to_string();
    let world = world.variable("OCTAVIUS_CA_FILE", &authority).variable("OCTAVIUS_SERVER_NAME", "localhost");
    let site = Site::new(&world, &cluster)?;
    let token = world.run(&["tokens", "generate"])?.expect(0)?.stdout.trim().to_owned();
    site.secret(&site.system, "octavius-admin", &json!({"token": token}))?;
    site.certify()?;
    let way = site.install_etcd()?;
    let values = json!({
        "image": values_of(IMAGE),
        "preStopSeconds": 1,
        "encryptionKeys": {"existingSecret": "octavius-encryption"},
        "etcd": {"endpoints": [format!("http://{}", way.address())]},
    });
    site.install("octavius", "octavius", &values)?;
    site.until_leads_to("octavius", 3000, 2)?;
    site.until_leads_to("octavius-page", 3001, 2)?;
    let both = site.controllers("octavius", 2)?;

    let admin = world.client_of("admin", &both.join(","), &token)?;
    let create = ["tokens", "create", "--role", "registration", "--uses", "2", "-o", "json"];
    let registration = admin.run(&create)?.expect(0)?.json()?["token"].clone();
    site.secret(&site.system, "octavius-executor", &json!({"token": registration}))?;
    site.secret(&site.jobs, "gateway", &json!({"token": "s3cret"}))?;
    site.install_executors(&both, "localhost")?;
    eventually("both executors have a session", || executors(&admin))?;
    write_catalog(&world)?;
    admin.run(&["apply", "catalog"])?.expect(0)?;

    // What one of them accepts, the other shows, to the end.
    let [one, other] = [0, 1].map(|index| world.client_of(&format!("admin-{index}"), &both[index], &token));
    let (one, other) = (one?, other?);
    let id = one.execute("hello", &["--arg", "who=Ada"])?;
    let followed = other.run(&["getlogs", &id, "--follow"])?.expect(0)?;
    ensure!(followed.stdout == "hello Ada, ******\n", "{followed:?}");

    // One is lost with all that it was told: the other takes over what there is, and the Deployment makes a new one.
    site.lose(&site.pod("octavius", "controller")?)?;
    run(&admin)?;
    let after_loss = site.controllers("octavius", 2)?;
    ensure!(after_loss != both, "{after_loss:?}");
    // An upgrade, with new ones before the old ones go.
    let upgrade = ["upgrade", "octavius", "octavius", "--reuse-values", "--set", "config.retention_age=10d"];
    site.helm(&[&upgrade[..], &["--wait", "--timeout", "90s"]].concat())?;
    let upgraded = site.controllers("octavius", 2)?;
    ensure!(upgraded.iter().all(|address| !after_loss.contains(address)), "{upgraded:?} after {after_loss:?}");
    let admin = world.client_of("admin", &upgraded.join(","), &token)?;
    assert_eq!(admin.status(&id)?["state"], "succeeded");
    for release in ["octavius-executor", "octavius", "store-octavius"] {
        site.helm(&["uninstall", release, "--wait", "--timeout", "60s"])?;
    }
    Ok(())
}
