//! The units of `deploy/systemd` under a real systemd, set up as deploy/systemd/README.md says.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use octavius_tests::{Machine, World, deploy, eventually};

const UNITS: [&str; 2] = ["octavius-controller.service", "octavius-executor.service"];

/// A machine on which the binary under test and everything in `deploy/systemd` is installed.
fn installed() -> Result<Machine> {
    let machine = Machine::start()?;
    let binary = World::new()?.command(["version"]).get_program().to_owned();
    machine.copy(Path::new(&binary), "/usr/local/bin/octavius")?;
    std::fs::set_permissions(machine.path("/usr/local/bin/octavius"), std::fs::Permissions::from_mode(0o755))?;
    let from = deploy().join("systemd");
    for unit in UNITS {
        machine.copy(&from.join(unit), &format!("/etc/systemd/system/{unit}"))?;
    }
    for config in ["controller_config.json", "executor_config.json"] {
        machine.copy(&from.join(config), &format!("/etc/octavius/{config}"))?;
    }
    machine.copy(&from.join("octavius.sysusers"), "/etc/sysusers.d/octavius.conf")?;
    machine.copy(&from.join("octavius.tmpfiles"), "/etc/tmpfiles.d/octavius.conf")?;
    for command in [&["systemd-sysusers"][..], &["systemd-tmpfiles", "--create"], &["systemctl", "daemon-reload"]] {
        machine.run(command)?.expect(0)?;
    }
    Ok(machine)
}

/// A property of a unit, as `systemctl show` tells it.
fn property(machine: &Machine, unit: &str, name: &str) -> Result<String> {
    Ok(machine.run(&["systemctl", "show", unit, "--property", name, "--value"])?.expect(0)?.stdout.trim().to_owned())
}

#[test]
fn units_are_sound_and_expose_little() -> Result<()> {
    let machine = installed()?;
    for (unit, exposure) in UNITS.into_iter().zip(["12", "19"]) {
        let path = format!("/etc/systemd/system/{unit}");
        let verified = machine.run(&["systemd-analyze", "verify", "--man=no", &path])?.expect(0)?;
        ensure!(!verified.stderr.contains(unit), "{}", verified.stderr);
        // In tenths of what systemd calls exposure, from 0 to 10.
        machine.run(&["systemd-analyze", "security", "--offline=true", "--threshold", exposure, &path])?.expect(0)?;
    }
    Ok(())
}

#[test]
fn a_job_runs_on_while_the_executor_that_started_it_is_replaced() -> Result<()> {
    let machine = installed()?;
    let octavius = |arguments: &[&str]| machine.run(&[&["octavius"], arguments].concat());
    machine.run(&["systemctl", "start", "octavius-controller"])?.expect(0)?;
    let token = "/var/lib/octavius/controller/admin.token";
    eventually("the controller serves", || {
        octavius(&["config", "--cp-host", "127.0.0.1:3000", "--token-file", token])?.expect(0)?;
        octavius(&["whoami"])?.expect(0)
    })?;
    // As the executor's own user, which alone can read what it keeps.
    let registration = octavius(&["tokens", "create", "--role", "registration"])?.expect(0)?.stdout;
    std::fs::write(machine.path("/root/registration.token"), registration)?;
    let register = "runuser --user octavius -- octavius executor register --config /etc/octavius/executor_config.json \
                    --data-dir /var/lib/octavius/executor --token-file - </root/registration.token";
    machine.run(&["sh", "-c", register])?.expect(0)?;
    machine.run(&["systemctl", "start", "octavius-executor"])?.expect(0)?;

    let job = "name: patient\nimage_name: none\ncommand: [sh, -c, 'echo begun; until [ -e /tmp/go ]; do sleep 0.1; done; echo ended']\n";
    std::fs::create_dir(machine.path("/root/catalog"))?;
    std::fs::write(machine.path("/root/catalog/octavius.yaml"), "catalog: team\n")?;
    std::fs::write(machine.path("/root/catalog/patient.yaml"), job)?;
    octavius(&["apply", "/root/catalog"])?.expect(0)?;
    let id = octavius(&["execute", "patient"])?.expect(0)?.stdout.trim().to_owned();
    let log = |expected: &str| {
        let log = octavius(&["getlogs", &id])?;
        ensure!(log.stdout == expected, "{}{}{}", log.stdout, log.stderr, octavius(&["status", &id])?.stdout);
        Ok(())
    };
    eventually("the job has begun", || log("begun\n"))?;
    let before = property(&machine, "octavius-executor", "MainPID")?;
    machine.run(&["systemctl", "restart", "octavius-executor"])?.expect(0)?;
    ensure!(property(&machine, "octavius-executor", "MainPID")? != before, "the same process");
    std::fs::write(machine.path("/tmp/go"), "")?;
    let status = octavius(&["status", &id, "--wait", "-o", "json"])?.expect(0)?.json()?;
    assert_eq!((&status["state"], status["attempts"].as_array().map(Vec::len)), (&"succeeded".into(), Some(1)));
    log("begun\nended\n")?;

    for unit in ["octavius-executor", "octavius-controller"] {
        machine.run(&["systemctl", "stop", unit])?.expect(0)?;
        let result = (property(&machine, unit, "Result")?, property(&machine, unit, "ExecMainStatus")?);
        assert_eq!(result, ("success".to_owned(), "0".to_owned()), "{unit}");
    }
    let mode = std::fs::metadata(machine.path(token)).context("no token")?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    Ok(())
}
