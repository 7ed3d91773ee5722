//! Traces, as whoever looks for the reason of something meets them: one from the command line through a controller and an executor to the job;
//! and the log, whose every line says what it is about.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use octavius_tests::collector::{Collector, Exported, Secured};
use octavius_tests::{Authority, Client, Daemon, Days, Special, World, eventually, free_ports};
use serde_json::Value;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SECRET: &str = "hunter2-the-pin";

/// A controller and an executor, with a job that says which trace it was told of.
fn whole<'w>(world: &'w World, variables: &[(&str, &str)]) -> Result<(Vec<Daemon>, Client<'w>)> {
    world.write("catalog/octavius.yaml", "catalog: team\n")?;
    let job = "name: tell\ncommand: [sh, -c, 'echo \"parent=$TRACEPARENT state=$TRACESTATE\"; exit $code']\nenv_vars:\n  args:\n  \
               - {name: code, type: integer, default: 0}\n  - {name: pin, sensitive: true, default: none}\n";
    world.write("catalog/tell.yaml", job)?;
    let special = Special { variables, ..Special::default() };
    let (controller, port) = world.controller_with("store", 0, &special)?;
    let admin = world.admin(port)?;
    admin.run(&["apply", "catalog"])?.expect(0)?;
    let executor = world.executor_of("e1", &format!("127.0.0.1:{port}"), &admin.registration()?, 4, &special)?;
    Ok((vec![controller, executor], admin))
}

/// Runs the job with these variables for the command line, and returns what the job said of its trace, and the execution.
fn tell(client: &Client<'_>, more: &[&str], code: i32, variables: &[(&str, &str)]) -> Result<(String, Value, String)> {
    let mut command = client.command(&["execute", "tell", "--follow"]);
    let output = command.args(more).envs(variables.iter().copied()).output()?;
    let stderr = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(code), "{:?}: {stderr}", output.status);
    let id = stderr.lines().find(|line| line.len() == 26).with_context(|| format!("no id in {stderr}"))?.to_owned();
    Ok((String::from_utf8(output.stdout)?, client.status(&id)?, stderr))
}

fn named<'s>(spans: &'s [Exported], name: &str, trace_id: &str) -> Result<&'s Exported> {
    let mut found = spans.iter().filter(|span| span.name == name && span.trace_id == trace_id);
    match (found.next(), found.next()) {
        (Some(span), None) => Ok(span),
        (None, _) => bail!("no span {name}"),
        _ => bail!("several spans {name}"),
    }
}

/// Waits for the spans of an execution, and checks that each has the parent that it should have.
fn check_trace(collector: &Collector, trace_id: &str, code: &str) -> Result<()> {
    let spans = eventually("the whole trace is exported", || {
        let spans = collector.spans();
        for name in
            ["octavius execute", "octavius.v1.ExecutionService/Execute", "queue", "attempt", "prepare", "start", "run", "report"]
        {
            named(&spans, name, trace_id)?;
        }
        Ok(spans)
    })?;
    let of = |name: &str| named(&spans, name, trace_id);
    let (command, call, attempt) = (of("octavius execute")?, of("octavius.v1.ExecutionService/Execute")?, of("attempt")?);
    assert_eq!(call.parent_id, command.span_id, "the call is part of the command");
    for (name, parent) in
        [("queue", call), ("attempt", call), ("prepare", attempt), ("start", attempt), ("run", attempt), ("report", attempt)]
    {
        assert_eq!(of(name)?.parent_id, parent.span_id, "the parent of {name}");
    }
    let services = [command, call, attempt].map(|span| span.service.as_str());
    assert_eq!(services, ["octavius", "octavius-controller", "octavius-executor"]);
    assert_eq!((call.attribute("rpc.system"), call.attribute("rpc.grpc.status_code")), (Some("grpc"), Some("0")));
    assert_eq!((attempt.attribute("octavius.job"), attempt.attribute("octavius.exit_code")), (Some("tell"), Some(code)));
    assert_eq!((attempt.failed, command.failed), (code != "0", code != "0"));
    assert!(of("run")?.lasted <= attempt.lasted && attempt.lasted > 0);
    // What the executor reports is part of the trace as well.
    let reported = spans.iter().filter(|span| span.name.ends_with("/ReportExecution") && span.trace_id == trace_id);
    assert!(reported.count() >= 2, "{spans:#?}");
    Ok(())
}

fn one_trace(collector: &Collector, more: &[(&str, &str)]) -> Result<()> {
    let mut world = World::new()?.variable("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url());
    for (name, value) in more {
        world = world.variable(name, value);
    }
    let (daemons, admin) = whole(&world, &[])?;
    let pin = format!("pin={SECRET}");
    let (told, status, stderr) = tell(&admin, &["--arg", &pin, "--arg", "code=3"], 1, &[])?;
    assert!(!stderr.contains("span"), "{stderr}");
    let trace_id = status["trace_id"].as_str().context("no trace id")?;
    check_trace(collector, trace_id, "3")?;
    let spans = collector.spans();
    let attempt = named(&spans, "attempt", trace_id)?;
    assert_eq!(told, format!("parent=00-{trace_id}-{}-01 state=\n", attempt.span_id), "the job's own spans join");
    assert!(admin.run(&["status", "@latest"])?.expect(0)?.stdout.contains(&format!("trace id    {trace_id}\n")));
    let list = admin.run(&["executions", "-o", "json"])?.expect(0)?.json()?;
    assert_eq!(list["executions"][0]["trace_id"], trace_id);
    // One that somebody else has begun, such as a CI system, goes on.
    let (_, status, _) = tell(&admin, &[], 0, &[("TRACEPARENT", PARENT), ("TRACESTATE", "ci=7")])?;
    assert_eq!(status["trace_id"], TRACE);
    check_trace(collector, TRACE, "0")?;
    let spans = collector.spans();
    assert_eq!(named(&spans, "octavius execute", TRACE)?.parent_id, "00f067aa0ba902b7");
    // A call that bears nothing begins one in the controller, and so is a run by anybody.
    let (_, status, _) = tell(&admin, &[], 0, &[("OTEL_SDK_DISABLED", "true")])?;
    let own = status["trace_id"].as_str().context("no trace id")?;
    eventually("the controller's own trace", || {
        let spans = collector.spans();
        let call = named(&spans, "octavius.v1.ExecutionService/Execute", own)?;
        ensure!(call.parent_id.is_empty() && named(&spans, "attempt", own)?.parent_id == call.span_id, "{spans:#?}");
        Ok(())
    })?;
    // What is exported holds nothing that is for the job alone, and stops do not lose the last of it.
    for daemon in daemons {
        let (code, said) = daemon.stop()?;
        ensure!(code == 0 && !said.contains("not exported"), "{said}");
    }
    let all = format!("{:?} {:?}", collector.spans(), collector.headers());
    assert!(!all.contains(SECRET) && !all.contains("octu_") && !all.contains("octe_"), "{all}");
    assert!(all.contains("x-team: payments") && all.contains("deployment.environment"), "{all}");
    Ok(())
}

const SAID: [(&str, &str); 2] =
    [("OTEL_EXPORTER_OTLP_HEADERS", "x-team=payments"), ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")];

#[test]
fn one_trace_goes_from_the_command_line_to_the_job() -> Result<()> {
    let [headers, resource] = SAID;
    one_trace(&Collector::grpc(None)?, &[headers, resource, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")])
}

#[test]
fn spans_are_exported_over_http_as_well() -> Result<()> {
    one_trace(&Collector::http(None)?, &SAID)
}

const GRPC: (&str, &str) = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
const HTTP: (&str, &str) = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");

/// As where one collector serves a whole company: it shows a certificate of the company's own authority, and takes spans of those that show one.
#[test]
fn spans_go_over_tls_to_a_collector_that_asks_who_one_is() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (authority, clients) = (Authority::new("collectors")?, Authority::new("clients")?);
    let pair = authority.server(folder.path(), "collector", &["127.0.0.1"], Days::Now)?;
    let own = clients.client(folder.path(), "octavius", Days::Now)?;
    let authority = authority.write(&folder.path().join("ca.pem"))?;
    let file = |path: &std::path::Path| path.display().to_string();
    let (authority, certificate, key) = (file(&authority), file(&own.certificate), file(&own.key));
    let secured = Some(Secured { pair: &pair, clients: Some(clients.pem()) });
    for (collector, protocol) in [(Collector::grpc(secured)?, GRPC), (Collector::http(secured)?, HTTP)] {
        let [headers, resource] = SAID;
        let shown = [
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", authority.as_str()),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", &certificate),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", &key),
        ];
        one_trace(&collector, &[&[headers, resource, protocol][..], &shown].concat())?;
    }
    Ok(())
}

/// Nothing that a process has to say goes to whoever listens in the collector's place.
#[test]
fn without_an_authority_the_systems_own_are_asked_and_nobody_else_gets_spans() -> Result<()> {
    let world = World::new()?;
    let (_daemons, admin) = whole(&world, &[])?;
    let authority = Authority::new("collectors")?;
    let pair = authority.server(&world.path(""), "collector", &["127.0.0.1"], Days::Now)?;
    let trusted = authority.write(&world.path("ca.pem"))?.display().to_string();
    let stranger = Authority::new("strangers")?.write(&world.path("strangers.pem"))?.display().to_string();
    let secured = Some(Secured { pair: &pair, clients: None });
    for (collector, protocol) in [(Collector::grpc(secured)?, GRPC), (Collector::http(secured)?, HTTP)] {
        let to = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()), protocol];
        for untrusted in [("OTEL_EXPORTER_OTLP_CERTIFICATE", stranger.as_str()), ("SSL_CERT_FILE", &stranger)] {
            let (_, _, stderr) = tell(&admin, &[], 0, &[&to[..], &[untrusted]].concat())?;
            assert!(stderr.contains("warning: spans were not exported to https://127.0.0.1:"), "{untrusted:?}: {stderr}");
            assert!(collector.spans().is_empty(), "{untrusted:?}: {:?}", collector.spans());
        }
        let (_, _, stderr) = tell(&admin, &[], 0, &[&to[..], &[("SSL_CERT_FILE", &trusted)]].concat())?;
        assert!(!stderr.contains("span"), "{stderr}");
        assert!(collector.spans().iter().any(|span| span.name == "octavius execute"), "{:?}", collector.spans());
    }
    Ok(())
}

/// Nobody exports: what a CI system says of its trace reaches the job all the same, and what is no trace is not passed on.
#[test]
fn a_trace_passes_through_where_nobody_exports() -> Result<()> {
    let world = World::new()?;
    let (_daemons, admin) = whole(&world, &[])?;
    let (told, status, _) = tell(&admin, &[], 0, &[("TRACEPARENT", PARENT), ("TRACESTATE", "ci=7")])?;
    assert_eq!((told.as_str(), &status["trace_id"]), (&*format!("parent={PARENT} state=ci=7\n"), &TRACE.into()));
    for malformed in ["", "x", &PARENT[..54], &PARENT.to_uppercase(), "00-00000000000000000000000000000000-00f067aa0ba902b7-01"] {
        let (told, status, _) = tell(&admin, &[], 0, &[("TRACEPARENT", malformed), ("TRACESTATE", "ci=7")])?;
        assert_eq!((told.as_str(), &status["trace_id"]), ("parent= state=\n", &Value::Null), "{malformed}");
    }
    Ok(())
}

#[test]
fn the_sampler_decides_what_is_exported() -> Result<()> {
    let collector = Collector::grpc(None)?;
    let world = World::new()?
        .variable("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())
        .variable("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        .variable("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
        .variable("OTEL_TRACES_SAMPLER_ARG", "0.0");
    let (daemons, admin) = whole(&world, &[])?;
    let (told, status, _) = tell(&admin, &[], 0, &[])?;
    assert_eq!(
        (told.as_str(), &status["trace_id"]),
        ("parent= state=\n", &Value::Null),
        "nothing is kept of what nobody records"
    );
    // Whoever began a trace and records it decides for all.
    let (_, status, _) = tell(&admin, &[], 0, &[("TRACEPARENT", PARENT)])?;
    assert_eq!(status["trace_id"], TRACE);
    check_trace(&collector, TRACE, "0")?;
    for daemon in daemons {
        daemon.stop()?;
    }
    let others: Vec<_> = collector.spans().into_iter().filter(|span| span.trace_id != TRACE).collect();
    assert!(others.is_empty(), "{others:#?}");
    Ok(())
}

/// A collector that refuses, and one that takes connections and never answers: both cost a warning, and nobody waits for them.
#[test]
fn a_collector_that_is_away_costs_a_warning() -> Result<()> {
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let closed = free_ports(1)?.pop().context("no port")?;
    for (url, protocol) in [
        (format!("http://127.0.0.1:{closed}"), "grpc"),
        (format!("http://127.0.0.1:{closed}"), "http/protobuf"),
        (format!("http://{}", silent.local_addr()?), "grpc"),
    ] {
        let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()), ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)];
        let world = World::new()?;
        let (daemons, admin) = whole(&world, &variables)?;
        for _ in 0..3 {
            let begun = Instant::now();
            let plain = tell(&admin, &[], 0, &[])?;
            let without = begun.elapsed();
            let begun = Instant::now();
            let (_, _, stderr) = tell(&admin, &[], 0, &variables)?;
            // The limit of a second, and what a busy machine may add to it.
            assert!(begun.elapsed() < without + Duration::from_secs(3), "{:?} after {without:?}", begun.elapsed());
            let warnings = stderr.lines().filter(|line| line.starts_with("warning: ")).collect::<Vec<_>>();
            let [warning] = warnings[..] else { bail!("one warning is expected: {stderr}") };
            assert!(warning.contains("spans were not exported to") && warning.contains(&url), "{warning}");
            assert!(plain.1["trace_id"].is_string(), "the controller's own");
        }
        for daemon in daemons {
            let begun = Instant::now();
            let (code, said) = daemon.stop()?;
            assert!(code == 0 && begun.elapsed() < Duration::from_secs(20), "{code} {said}");
            let warnings = said.lines().filter(|line| line.contains("spans cannot be exported")).count();
            assert!(warnings <= 1, "{said}");
        }
    }
    Ok(())
}

#[test]
fn what_is_said_wrong_of_a_collector_stops_a_daemon_and_no_command() -> Result<()> {
    let world = World::new()?;
    let config = world.write("c.json", r#"{"otlp_endpoint": "collector:4317"}"#)?;
    let store = format!("embedded:{}", world.path("store").display());
    let start =
        ["controller", "start", "--config", config.to_str().context("path")?, "--store", &store, "--listen", "127.0.0.1:0"];
    let refused = world.run(&start)?.expect(2)?;
    assert!(refused.stderr.contains("cannot be exported to collector:4317"), "{}", refused.stderr);
    let refused = world.run_with(&start, &[("OTEL_TRACES_SAMPLER", "sometimes")])?.expect(2)?;
    assert!(refused.stderr.contains("OTEL_TRACES_SAMPLER is \"sometimes\""), "{}", refused.stderr);
    let (_daemons, admin) = whole(&world, &[])?;
    let (_, _, stderr) = tell(&admin, &[], 0, &[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")])?;
    assert!(stderr.contains("warning: no trace: spans cannot be exported to collector:4317"), "{stderr}");
    Ok(())
}

fn lines(text: &str) -> Result<Vec<Value>> {
    text.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).context(line.to_owned())).collect()
}

/// Whoever looks for an execution, an attempt, an executor or a trace in the logs finds every line that is about it.
#[test]
fn every_line_of_the_log_says_what_it_is_about() -> Result<()> {
    let world = World::new()?;
    let logs = [("OCTAVIUS_LOG_FILE_PATH", "daemon.log"), ("OCTAVIUS_LOG_LEVEL", "info")];
    let ours = "octavius_controller=debug,octavius_executor=debug,info";
    let (daemons, admin) = whole(&world, &[("OCTAVIUS_LOG", ours)])?;
    let (_, status, _) = tell(&admin, &[], 0, &[("TRACEPARENT", PARENT)])?;
    let id = status["id"].as_str().context("no id")?;
    let said: Vec<String> = daemons.into_iter().map(|daemon| Ok(daemon.stop()?.1)).collect::<Result<_>>()?;
    let (controller, executor) = (lines(&said[0])?, lines(&said[1])?);
    for line in controller.iter().chain(&executor) {
        let at = line["timestamp"].as_str().context("no time")?;
        ensure!(at.len() == 27 && at.ends_with('Z') && at.as_bytes()[10] == b'T', "{at} is not a time of RFC 3339");
        ensure!(line["level"].is_string() && line["message"].is_string() && line["fields"].is_null(), "{line}");
    }
    let find = |lines: &[Value], message: &str| -> Result<Value> {
        let found = lines.iter().find(|line| line["message"].as_str().is_some_and(|text| text.starts_with(message)));
        found.cloned().with_context(|| format!("no line {message}: {lines:#?}"))
    };
    for message in ["started", "finished"] {
        let line = find(&executor, message)?;
        assert_eq!((&line["execution"], &line["attempt"], &line["executor"]), (&id.into(), &1.into(), &"e1".into()), "{line}");
        assert_eq!(line["trace_id"], TRACE, "{line}");
    }
    assert_eq!(find(&executor, "session stands")?["executor"], "e1");
    let line = find(&controller, "reported")?;
    assert_eq!((&line["execution"], &line["executor"], &line["trace_id"]), (&id.into(), &"e1".into(), &TRACE.into()), "{line}");
    assert_eq!(line["rpc"], "ExecutorService/ReportExecution");
    assert!(line["request_id"].is_u64(), "{line}");
    let line = find(&controller, "session begins")?;
    assert_eq!((&line["executor"], &line["rpc"]), (&"e1".into(), &"ExecutorService/Session".into()), "{line}");
    assert_eq!(find(&controller, "applied")?["catalog"], "team");
    let requests: std::collections::BTreeSet<_> = controller.iter().filter_map(|line| line["request_id"].as_u64()).collect();
    assert!(requests.len() > 3, "each request has a number of its own: {requests:?}");

    // The same in a file, where the first Octavius' key, or its variable, names one; the process then says nothing of it beside.
    let (controller, port) = world.controller_with("store", 0, &Special { variables: &logs, ..Special::default() })?;
    let _ = world.admin(port)?.run(&["list"])?.expect(0)?;
    let (_, said) = controller.stop()?;
    assert_eq!(lines(&said)?.len(), 0, "{said}");
    let written = lines(&std::fs::read_to_string(world.path("daemon.log"))?)?;
    assert!(find(&written, "serving")?["address"].is_string());
    Ok(())
}

/// The file is put aside when it is as large as `log_file_max_size_in_mb` says, and no line is cut in two.
#[test]
fn a_log_file_has_a_largest_size() -> Result<()> {
    let world = World::new()?;
    let config =
        world.write("e.json", r#"{"log_file_path": "logs/octavius.log", "log_file_max_size_in_mb": 1, "log_level": "info"}"#)?;
    std::fs::create_dir(world.path("logs"))?;
    let path = world.path("logs/octavius.log");
    std::fs::write(&path, vec![b'\n'; (1 << 20) - 10])?;
    let store = format!("embedded:{}", world.path("store").display());
    let config = config.display().to_string();
    let daemon = world.daemon(["controller", "start", "--config", &config, "--store", &store, "--listen", "127.0.0.1:0"])?;
    daemon.stop()?;
    assert_eq!(std::fs::metadata(world.path("logs/octavius.log.1"))?.len(), (1 << 20) - 10);
    let written = std::fs::read_to_string(&path)?;
    assert!(
        written.len() < 1 << 20 && !lines(&written)?.is_empty() && written.lines().all(|line| line.starts_with('{')),
        "{written}"
    );
    Ok(())
}

#[test]
fn a_log_may_be_text_where_nobody_sees_it() -> Result<()> {
    let world = World::new()?;
    let text = [("OCTAVIUS_LOG_FORMAT", "text")];
    let (controller, _) = world.controller_with("store", 0, &Special { variables: &text, ..Special::default() })?;
    let (_, said) = controller.stop()?;
    let line = said.lines().find(|line| line.contains("serving")).with_context(|| said.clone())?;
    assert!(line.contains("Z  INFO serving address=127.0.0.1:") && !line.contains('\u{1b}'), "{line}");
    Ok(())
}
