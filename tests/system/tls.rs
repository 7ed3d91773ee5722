//! TLS as its users meet it: certificates from one command, a controller, an executor and clients with the real binary; and what each of
//! them is told when something does not fit.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use octavius_tests::{Authority, Client, Daemon, Days, Special, World, eventually};

const JOBS: [(&str, &str); 2] = [
    ("hello", "name: hello\ncommand: [sh, -c, 'echo hello']\n"),
    // It goes on until it is told to end, and says so.
    (
        "waits",
        "name: waits\ncommand: [sh, -c, 'echo begun; while [ ! -e \"$END\" ]; do sleep 0.1; done; echo over']\nenv_vars: {args: [{name: END, description: a file}]}\n",
    ),
];

/// A world with a catalogue, and certificates in `tls`.
fn world() -> Result<World> {
    let world = World::new()?;
    world.write("catalog/octavius.yaml", "catalog: team\n")?;
    for (name, text) in JOBS {
        world.write(&format!("catalog/{name}.yaml"), text)?;
    }
    world.run(&["tls", "create", "tls", "--host", "ctl.example", "--client", "ann", "--client", "e1"])?.expect(0)?;
    Ok(world)
}

fn file(world: &World, name: &str) -> String {
    world.path(name).display().to_string()
}

/// A controller with TLS, and with mTLS where it is to ask for clients' certificates.
fn controller(world: &World, mutual: bool) -> Result<(Daemon, u16)> {
    let (cert, key, ca) = (file(world, "tls/server.pem"), file(world, "tls/server.key"), file(world, "tls/ca.pem"));
    let mut variables = vec![("OCTAVIUS_TLS_CERT", cert.as_str()), ("OCTAVIUS_TLS_KEY", &key)];
    if mutual {
        variables.push(("OCTAVIUS_CLIENT_CA", &ca));
    }
    world.controller_with("store", 0, &Special { variables: &variables, ..Special::default() })
}

/// A client without any configuration of certificates yet.
fn bare<'w>(world: &'w World, name: &str, host: &str) -> Result<Client<'w>> {
    let token = std::fs::read_to_string(world.path("admin.token"))?;
    world.client_of(name, host, token.trim())
}

/// A client that was set up by `octavius config`.
fn client<'w>(world: &'w World, name: &str, host: &str, mutual: bool) -> Result<Client<'w>> {
    let client = bare(world, name, host)?;
    client.run(&["config", "--ca-file", "tls/ca.pem"])?.expect(0)?;
    if mutual {
        client.run(&["config", "--client-cert", "tls/ann.pem", "--client-key", "tls/ann.key"])?.expect(0)?;
    }
    Ok(client)
}

fn mode(path: &Path) -> Result<u32> {
    Ok(std::fs::metadata(path)?.permissions().mode() & 0o777)
}

#[test]
fn one_command_makes_the_certificates_and_replaces_none() -> Result<()> {
    let world = World::new()?;
    let made = world.run(&["tls", "create", "--host", "ctl.example", "--host", "192.0.2.7"])?.expect(0)?;
    assert_eq!(made.stdout, "tls/ca.pem\ntls/ca.key\ntls/server.pem\ntls/server.key\ntls/client.pem\ntls/client.key\n");
    for said in ["for development", "ctl.example, 192.0.2.7", "--tls-cert tls/server.pem", "--ca-file tls/ca.pem", "--client-ca"]
    {
        assert!(made.stderr.contains(said), "{said}: {}", made.stderr);
    }
    for name in ["ca", "server", "client"] {
        assert_eq!(mode(&world.path(&format!("tls/{name}.key")))?, 0o600);
    }
    let read = |name: &str| std::fs::read_to_string(world.path(name)).context("read");
    let before = [read("tls/ca.pem")?, read("tls/server.pem")?];

    let again = world.run(&["tls", "create"])?.expect(0)?;
    assert!(again.stdout.is_empty() && again.stderr.contains("all of it is there already"), "{}", again.stderr);
    let more = world.run(&["tls", "create", "--client", "sam"])?.expect(0)?;
    assert_eq!(more.stdout, "tls/sam.pem\ntls/sam.key\n");
    let refused = world.run(&["tls", "create", "--host", "other.example"])?.expect(2)?;
    assert!(refused.stderr.contains("tls/server.pem is there already"), "{}", refused.stderr);
    assert_eq!([read("tls/ca.pem")?, read("tls/server.pem")?], before);

    // By the same authority, when the old ones are out of the way.
    std::fs::remove_file(world.path("tls/server.pem"))?;
    let half = world.run(&["tls", "create"])?.expect(2)?;
    assert!(half.stderr.contains("tls/server.key is there and tls/server.pem is not"), "{}", half.stderr);
    std::fs::remove_file(world.path("tls/server.key"))?;
    let renewed = world.run(&["tls", "create"])?.expect(0)?;
    assert_eq!(renewed.stdout, "tls/server.pem\ntls/server.key\n");
    assert_eq!(read("tls/ca.pem")?, before[0]);

    // Somebody else's authority is none of ours to sign with.
    std::fs::create_dir(world.path("theirs"))?;
    Authority::new("theirs")?.write(&world.path("theirs/ca.pem"))?;
    std::fs::copy(world.path("tls/ca.key"), world.path("theirs/ca.key"))?;
    let foreign = world.run(&["tls", "create", "theirs"])?.expect(2)?;
    assert!(foreign.stderr.contains("no authority that this command has made"), "{}", foreign.stderr);
    for wrong in [&["--host", "https://x"][..], &["--client", "../x"], &["--client", "ca"], &["--valid-for", "1h"]] {
        world.run(&[&["tls", "create", "other"], wrong].concat())?.expect(2)?;
    }
    ensure!(!world.path("other").exists(), "what was refused left something behind");
    Ok(())
}

fn the_main_job(mutual: bool) -> Result<()> {
    let world = world()?;
    let (controller, port) = controller(&world, mutual)?;
    let admin = client(&world, "admin", &format!("localhost:{port}"), mutual)?;
    admin.run(&["apply", "catalog"])?.expect(0)?;
    let (ca, cert, key) = (file(&world, "tls/ca.pem"), file(&world, "tls/e1.pem"), file(&world, "tls/e1.key"));
    let mut variables = vec![("OCTAVIUS_CA_FILE", ca.as_str())];
    if mutual {
        variables.extend([("OCTAVIUS_CLIENT_CERT", cert.as_str()), ("OCTAVIUS_CLIENT_KEY", key.as_str())]);
    }
    let special = Special { variables: &variables, ..Special::default() };
    let executor = world.executor_of("e1", &format!("https://127.0.0.1:{port}"), &admin.registration()?, 2, &special)?;
    let ran = admin.run(&["execute", "hello", "--follow"])?.expect(0)?;
    assert_eq!(ran.stdout, "hello\n", "{}", ran.stderr);
    assert_eq!(admin.run(&["getlogs", "@latest"])?.expect(0)?.stdout, "hello\n");

    // The configuration has all that it takes, wherever it is read from; and goes nowhere in the clear.
    assert_eq!(mode(admin.config())?, 0o600);
    let clear = admin.run(&["list", "--cp-host", &format!("http://localhost:{port}")])?.expect(2)?;
    assert!(clear.stderr.contains("without TLS, and certificates are set"), "{}", clear.stderr);

    if mutual {
        let without = client(&world, "without", &format!("localhost:{port}"), false)?;
        let refused = without.run(&["list"])?.expect(4)?;
        assert!(
            refused.stderr.contains("asks for a client's certificate") && refused.stderr.contains("--client-cert"),
            "{}",
            refused.stderr
        );
        let server = ["--client-cert", "tls/server.pem", "--client-key", "tls/server.key"];
        let refused = without.run(&[&["list"], &server[..]].concat())?.expect(4)?;
        assert!(refused.stderr.contains("does not take the client's certificate"), "{}", refused.stderr);
    }
    let (code, said) = executor.stop()?;
    assert_eq!(code, 0, "{said}");
    let (code, said) = controller.stop()?;
    assert_eq!(code, 0, "{said}");
    Ok(())
}

#[test]
fn an_executor_and_clients_do_the_main_job_over_tls() -> Result<()> {
    the_main_job(false)
}

#[test]
fn an_executor_and_clients_do_the_main_job_over_mutual_tls() -> Result<()> {
    the_main_job(true)
}

/// At once, with what is wrong and what to do: exit code 4, as where no controller is.
#[test]
fn what_does_not_fit_is_told_with_what_to_do() -> Result<()> {
    let world = world()?;
    let (_controller, port) = controller(&world, false)?;
    Authority::new("theirs")?.write(&world.path("theirs.pem"))?;
    let told = |client: &Client<'_>, more: &[&str], said: &[&str]| -> Result<()> {
        let begun = std::time::Instant::now();
        let ran = client.run(&[&["whoami", "--time-out", "60"], more].concat())?.expect(4)?;
        for said in said {
            ensure!(ran.stderr.contains(said), "{more:?}: no {said:?} in {}", ran.stderr);
        }
        ensure!(begun.elapsed().as_secs() < 30, "{more:?}: it went on trying");
        Ok(())
    };
    let at = format!("127.0.0.1:{port}");
    let without = bare(&world, "without", &at)?;
    told(&without, &[], &["it speaks TLS only", "--ca-file"])?;
    told(&without, &["--ca-file", "theirs.pem"], &["signed by nobody who is trusted", "--ca-file"])?;
    told(&without, &["--cp-host", &format!("https://{at}")], &["signed by nobody who is trusted"])?;
    let name = ["--ca-file", "tls/ca.pem", "--server-name", "other.example"];
    told(&without, &name, &["not for other.example", "ctl.example", "--server-name"])?;
    for (more, said) in [
        (&["--ca-file", "none.pem"][..], "cannot read none.pem"),
        (&["--ca-file", "tls/ca.key"], "tls/ca.key: there is no certificate in it"),
        (&["--client-cert", "tls/ann.pem"], "a client's certificate without its key"),
        (&["--client-cert", "tls/ann.pem", "--client-key", "tls/e1.key"], "the key in tls/e1.key is not that of the certificate"),
    ] {
        let ran = without.run(&[&["whoami"], more].concat())?.expect(2)?;
        ensure!(ran.stderr.contains(said), "{more:?}: no {said:?} in {}", ran.stderr);
    }
    std::fs::set_permissions(world.path("tls/ann.key"), std::fs::Permissions::from_mode(0o644))?;
    let ran = without.run(&["whoami", "--client-cert", "tls/ann.pem", "--client-key", "tls/ann.key"])?.expect(2)?;
    ensure!(ran.stderr.contains("can be read by others (mode 644)") && ran.stderr.contains("chmod 600"), "{}", ran.stderr);

    // An expired one, and a controller without TLS.
    let old = Authority::new("old")?;
    old.write(&world.path("old.pem"))?;
    let files = old.server(&world.path("tls"), "server", &["127.0.0.1"], Days::Past)?;
    let (cert, key) = (files.certificate.display().to_string(), files.key.display().to_string());
    let variables = [("OCTAVIUS_TLS_CERT", cert.as_str()), ("OCTAVIUS_TLS_KEY", &key)];
    let (expired, port) = world.controller_with("other", 0, &Special { variables: &variables, ..Special::default() })?;
    ensure!(expired.said().contains("clients will not trust the certificate"), "{}", expired.said());
    let client = bare(&world, "expired", &format!("127.0.0.1:{port}"))?;
    told(&client, &["--ca-file", "old.pem"], &["its certificate has expired (20", "without a restart"])?;
    let (_clear, port) = world.controller("clear", 0)?;
    let client = bare(&world, "clear", &format!("127.0.0.1:{port}"))?;
    told(&client, &["--ca-file", "tls/ca.pem"], &["it does not speak TLS", "HOST:PORT"])?;
    told(&client, &["--cp-host", &format!("https://127.0.0.1:{port}")], &["it does not speak TLS"])?;
    Ok(())
}

/// A log that is followed over the change goes on; the new certificate is seen by whoever comes then; one that is broken never is.
#[test]
fn a_certificate_is_renewed_under_a_followed_log() -> Result<()> {
    let world = world()?;
    let (controller, port) = controller(&world, false)?;
    let admin = client(&world, "admin", &format!("127.0.0.1:{port}"), false)?;
    admin.run(&["apply", "catalog"])?.expect(0)?;
    let ca = file(&world, "tls/ca.pem");
    let variables = [("OCTAVIUS_CA_FILE", ca.as_str())];
    let special = Special { variables: &variables, ..Special::default() };
    let _executor = world.executor_of("e1", &format!("127.0.0.1:{port}"), &admin.registration()?, 2, &special)?;
    let end = file(&world, "end");
    let id = admin.execute("waits", &["--arg", &format!("END={end}")])?;
    let mut following = admin.command(&["getlogs", &id, "-f"]);
    following.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let following = following.spawn()?;
    eventually("it prints", || {
        let log = admin.run(&["getlogs", &id])?.expect(0)?.stdout;
        ensure!(log == "begun\n", "{log:?}");
        Ok(())
    })?;

    // Broken: told once, and nobody notices.
    let next = Authority::new("next")?;
    next.write(&world.path("next.pem"))?;
    std::fs::create_dir(world.path("away"))?;
    let broken = next.client(&world.path("away"), "server", Days::Now)?;
    std::fs::rename(&broken.certificate, world.path("tls/server.pem"))?;
    eventually("the broken pair is told", || {
        let said = controller.said();
        ensure!(said.contains("the new certificates are not taken") && said.contains("is not that of the certificate"), "{said}");
        Ok(())
    })?;
    admin.run(&["whoami"])?.expect(0)?;
    // Out of date: the same.
    next.server(&world.path("tls"), "server", &["127.0.0.1"], Days::Past)?;
    eventually("the expired one is told", || {
        ensure!(controller.said().contains("certificate expired"), "{}", controller.said());
        Ok(())
    })?;
    admin.run(&["whoami"])?.expect(0)?;
    // Good.
    next.server(&world.path("tls"), "server", &["127.0.0.1"], Days::Now)?;
    eventually("the new one is seen", || admin.run(&["whoami", "--ca-file", "next.pem"])?.expect(0))?;
    admin.run(&["whoami"])?.expect(4)?;
    ensure!(controller.said().contains("new connections see the new ones"), "{}", controller.said());

    world.write("end", "")?;
    let followed = following.wait_with_output()?;
    let said = String::from_utf8_lossy(&followed.stderr);
    assert_eq!(
        (String::from_utf8_lossy(&followed.stdout).as_ref(), followed.status.code()),
        ("begun\nover\n", Some(0)),
        "{said}"
    );
    ensure!(!said.contains("trying again"), "the follower had to begin anew: {said}");
    Ok(())
}

/// It never sends its token anywhere in the meantime, and needs no restart.
#[test]
fn an_executor_that_trusts_the_wrong_one_goes_on_when_that_is_put_right() -> Result<()> {
    let world = world()?;
    let (_controller, port) = controller(&world, true)?;
    let host = format!("127.0.0.1:{port}");
    let admin = client(&world, "admin", &host, true)?;
    admin.run(&["apply", "catalog"])?.expect(0)?;
    std::fs::copy(world.path("tls/ca.pem"), world.path("trusted.pem"))?;
    let names = ["trusted.pem", "tls/e1.pem", "tls/e1.key"].map(|name| file(&world, name));
    let variables: Vec<_> = ["OCTAVIUS_CA_FILE", "OCTAVIUS_CLIENT_CERT", "OCTAVIUS_CLIENT_KEY"]
        .into_iter()
        .zip(names.iter().map(String::as_str))
        .collect();
    let special = Special { variables: &variables, ..Special::default() };
    let executor = world.executor_of("e1", &host, &admin.registration()?, 2, &special)?;
    admin.run(&["execute", "hello", "--wait"])?.expect(0)?;
    executor.stop()?;

    Authority::new("theirs")?.write(&world.path("trusted.pem"))?;
    let executor = world.executor_of("e1", &host, "", 2, &special)?;
    let says = |said: &str| {
        eventually(said, || {
            ensure!(executor.said().contains(said), "{}", executor.said());
            Ok(())
        })
    };
    says("its certificate is signed by nobody who is trusted")?;
    let id = admin.execute("hello", &[])?;
    std::fs::copy(world.path("tls/ca.pem"), world.path("trusted.pem"))?;
    admin.run(&["status", &id, "--wait"])?.expect(0)?;
    says("session stands")?;
    Ok(())
}

#[test]
fn other_machines_are_listened_to_in_tls_or_when_that_is_asked_for() -> Result<()> {
    let world = world()?;
    let start = ["controller", "start", "--store", "embedded:store", "--listen", "0.0.0.0:0"];
    let refused = world.run(&start)?.expect(2)?;
    for said in
        ["0.0.0.0:0 is reached from other machines", "--tls-cert FILE --tls-key FILE", "octavius tls create", "--insecure"]
    {
        assert!(refused.stderr.contains(said), "{said}: {}", refused.stderr);
    }
    world.write("clear.json", r#"{"store": "embedded:store", "listen": "[::]:0"}"#)?;
    world.run(&["controller", "start", "--config", "clear.json"])?.expect(2)?;
    for wrong in
        [&["--tls-cert", "tls/server.pem"][..], &["--tls-key", "tls/server.key"], &["--client-ca", "tls/ca.pem", "--insecure"]]
    {
        let refused = world.run(&[&start, wrong].concat())?.expect(2)?;
        assert!(refused.stderr.contains("is missing"), "{wrong:?}: {}", refused.stderr);
    }
    ensure!(!world.path("store").exists(), "a usage error left a store behind");

    world.write("insecure.json", r#"{"store": "embedded:store", "listen": "0.0.0.0:0", "insecure": true}"#)?;
    let secure = ["--tls-cert", "tls/server.pem", "--tls-key", "tls/server.key"];
    world.write(
        "tls/config.json",
        r#"{"store": "embedded:../store", "listen": "0.0.0.0:0", "tls_cert": "server.pem", "tls_key": "server.key"}"#,
    )?;
    for (arguments, warns) in [
        ([&start[..], &["--insecure"]].concat(), true),
        (vec!["controller", "start", "--config", "insecure.json"], true),
        ([&start[..], &secure].concat(), false),
        (vec!["controller", "start", "--config", "tls/config.json"], false),
    ] {
        let (code, said) = world.daemon(&arguments)?.stop()?;
        assert_eq!((code, said.contains("listening without TLS")), (0, warns), "{arguments:?}: {said}");
    }
    std::fs::set_permissions(world.path("tls/server.key"), std::fs::Permissions::from_mode(0o644))?;
    let refused = world.run(&[&start, &secure[..]].concat())?.expect(2)?;
    assert!(
        refused.stderr.contains("can be read by others (mode 644)") && refused.stderr.contains("defaultMode: 0440"),
        "{}",
        refused.stderr
    );
    Ok(())
}
