//! A CI job, and a person, who come with a token of their own identity provider's: the real binary, from the configuration file on.

use anyhow::{Context as _, Result, ensure};
use octavius_tests::jwt::{Answer, Issuer, Signer, jwks, seconds_from_now};
use octavius_tests::{Client, Special, World};
use serde_json::{Value, json};

fn whoami(client: &Client<'_>) -> Result<Value> {
    client.run(&["whoami", "-o", "json"])?.expect(0)?.json()
}

#[test]
fn a_ci_job_applies_with_a_token_of_its_own_and_a_person_signs_in_with_theirs() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (hub_key, okta_key) = (Signer::rsa("hub")?, Signer::p256("okta")?);
    let hub = runtime.block_on(Issuer::start(&[&hub_key]))?;
    let world = World::new()?;
    world.write("conf/okta.json", &jwks(&[&okta_key]).to_string())?;
    let config = json!({"issuers": [
        {
            "name": "github", "issuer": hub.url(), "audiences": ["octavius"], "user": "{repository}",
            "rules": [{"when": {"repository": "acme/jobs", "ref": "refs/heads/main"}, "role": "applier", "groups": ["ci"]}],
        },
        {
            "name": "okta", "issuer": "https://acme.okta.com", "jwks_file": "okta.json", "audiences": ["octavius"], "user": "{email}",
            "groups_claim": "groups", "rules": [{"when": {"groups": "platform"}, "role": "admin"}, {"role": "user"}],
        },
    ]});
    let file = world.write("conf/controller_config.json", &config.to_string())?.display().to_string();
    let special = Special { variables: &[("OCTAVIUS_CONTROLLER_CONFIG", &file)], ..Special::default() };
    let (_controller, port) = world.controller_with("store", 0, &special)?;
    let host = format!("127.0.0.1:{port}");

    // GitHub Actions: the job asks GitHub for a token, for our audience, with what GitHub gave it to ask with.
    world.write("catalog/octavius.yaml", "catalog: team\n")?;
    world.write("catalog/where.yaml", "name: where\ncommand: [sh, -c, 'echo ran']\n")?;
    let token = |reference: &str| {
        hub_key.sign(&json!({
            "iss": hub.url(), "aud": "octavius", "sub": format!("repo:acme/jobs:ref:{reference}"), "repository": "acme/jobs",
            "ref": reference, "jti": "j1", "exp": seconds_from_now(300),
        }))
    };
    let url = format!("{}/token?api-version=2.0", hub.url());
    let job = [
        ("OCTAVIUS_CP_HOST", host.as_str()),
        ("OCTAVIUS_TOKEN_FROM", "github"),
        ("ACTIONS_ID_TOKEN_REQUEST_URL", &url),
        ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "ask-with-this"),
    ];
    let give = |token: &str| Answer { status: 200, header: None, body: json!({"count": 1, "value": token}).to_string() };
    hub.answer("/token", give(&token("refs/heads/main")?));
    world.run_with(&["apply", "catalog"], &job)?.expect(0)?;
    let asked = hub.last().context("nobody asked GitHub")?;
    ensure!(hub.asked("/token") >= 1, "{asked:?}");
    let me = world.run_with(&["whoami"], &job)?.expect(0)?.stdout;
    for expected in
        ["user        github:acme/jobs\n", "role        applier\n", "groups      ci\n", &format!("issuer      {}\n", hub.url())]
    {
        ensure!(me.contains(expected), "{me}");
    }
    let (path, authorization) = hub.last().context("nobody asked GitHub")?;
    assert_eq!((path.as_str(), authorization.as_str()), ("/token?api-version=2.0&audience=octavius", "Bearer ask-with-this"));

    // Another branch does not get in, and no word of it tells the token.
    let evil = token("refs/heads/evil")?;
    hub.answer("/token", give(&evil));
    let refused = world.run_with(&["apply", "catalog"], &job)?.expect(8)?;
    ensure!(!refused.stderr.contains(&evil) && !refused.stdout.contains(&evil), "{refused:?}");
    let admin = world.admin(port)?;
    let trail = admin.run(&["audit", "-o", "json"])?.expect(0)?.stdout;
    ensure!(trail.contains("no rule of its issuer fits its claims") && !trail.contains(&evil), "{trail}");

    // What GitHub does not give is told with what to do.
    hub.answer("/token", Answer { status: 403, header: None, body: String::new() });
    let failed = world.run_with(&["list"], &job)?.expect(4)?;
    ensure!(failed.stderr.contains("GitHub Actions gives no token: it answers 403"), "{failed:?}");
    let failed = world.run_with(&["list"], &job[..2])?.expect(8)?;
    ensure!(failed.stderr.contains("id-token: write"), "{failed:?}");

    // A person: by the configuration file, a token file, or the environment, as GitLab's `id_tokens` do it.
    let ann = okta_key.sign(&json!({
        "iss": "https://acme.okta.com", "aud": "octavius", "sub": "00u1", "email": "ann@acme.com", "groups": ["web"],
        "exp": seconds_from_now(3600),
    }))?;
    let me = whoami(&world.client("ann", port, &ann)?)?;
    assert_eq!((&me["user"], &me["role"], &me["groups"]), (&"okta:ann@acme.com".into(), &"user".into(), &json!(["web"])));
    assert_eq!((&me["issuer"], &me["token_id"]), (&"https://acme.okta.com".into(), &"jwt:okta:00u1".into()));
    ensure!(me["expires_at"].is_string(), "{me}");
    let token_file = world.write("ann.token", &format!("{ann}\n"))?;
    let listing = ["list", "--cp-host", &host, "--token-file", &token_file.display().to_string()];
    let shared = world.run(&listing)?.expect(2)?.stderr;
    ensure!(shared.contains("can be read by others") && shared.contains("chmod 600"), "{shared}");
    std::fs::set_permissions(&token_file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let token_file = token_file.display().to_string();
    world.run(&["list", "--cp-host", &host, "--token-file", &token_file])?.expect(0)?;
    world.run_with(&["list"], &[("OCTAVIUS_CP_HOST", &host), ("OCTAVIUS_TOKEN", &ann)])?.expect(0)?;
    ensure!(whoami(&admin)?["issuer"].is_null());
    Ok(())
}

#[test]
fn a_slip_in_what_is_said_of_issuers_keeps_a_controller_from_starting() -> Result<()> {
    let world = World::new()?;
    let file = world.write(
        "controller_config.json",
        &json!({"issuers": [{
            "name": "github", "issuer": "https://token.actions.githubusercontent.com", "audiences": ["octavius"],
            "rules": [{"role": "applier"}],
        }]})
        .to_string(),
    )?;
    let store = format!("embedded:{}", world.path("store").display());
    let told = world.run(&["controller", "start", "--store", &store, "--config", &file.display().to_string()])?.expect(2)?.stderr;
    ensure!(told.contains("controller_config.json: `issuers[0].rules[0]` fits everybody in the world"), "{told}");
    Ok(())
}
