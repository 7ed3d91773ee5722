//! How long 10,000 jobs of about 800 bytes in 200 folders take: `cargo bench -p octavius-catalog`. The aim is 0.6 s for reading
//! and validating on two processors, with at most 150 MiB of memory.

use std::fs;
use std::time::Instant;

use octavius_catalog::{Limits, Manifest, Observed, PlanOptions, load, manifest, plan, read_dir};

fn job(number: usize) -> String {
    format!(
        "# yaml-language-server: $schema=../../schemas/job.schema.json\nname: refund-order-{number}\ndescription: Refund one order and tell the \
         customer\nimage_name: registry.example/payments/refund:1.8.{number}\ncommand: [/app/refund, --verbose]\nenv_vars:\n  args:\n  - {{name: \
         order, description: \"like A-1042\", required: true, pattern: \"^A-[0-9]+$\"}}\n  - {{name: reason, description: why, enum: [fraud, \
         goodwill], default: goodwill}}\n  - name: limit\n    description: how many at once\n    type: integer\n    default: {number}\n  \
         secrets:\n  - {{name: PAYMENT_TOKEN, description: payment gateway, from: {{kubernetes: {{secret: gateway, key: token}}}}}}\n\
         authorized_groups: [support]\nauthor: payments\nexecutor: {{vpc: payments}}\ntimeout: 10m\nretries: 1\nlabels: {{team: payments, tier: \
         one}}\nconfirm: true\n"
    )
}

fn peak_memory_mib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("octavius.yaml"), "catalog: bench\ndefaults: {organization: example}\n")?;
    for number in 0..10_000 {
        let folder = dir.path().join(format!("team-{}", number % 200));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("job-{number}.yaml")), job(number))?;
    }
    println!("one file has {} bytes", job(1234).len());
    for round in 0..3 {
        let start = Instant::now();
        let files = read_dir(dir.path(), &Limits::default())?;
        let read = start.elapsed();
        let loaded = load(&files);
        let both = start.elapsed();
        assert_eq!((loaded.jobs.len(), loaded.diagnostics.len()), (10_000, 0));
        let entries = loaded.jobs.iter().map(|job| manifest::Entry {
            name: job.name().clone(),
            digest: job.digest,
            file: job.file.clone(),
            line: job.line,
            changed_in: 1,
            inherited: Vec::new(),
        });
        let start = Instant::now();
        let manifest = Manifest::build(entries)?;
        let built = start.elapsed();
        let observed: Vec<Observed> = manifest.entries().cloned().map(Observed::from).collect();
        let catalog = loaded.catalog.as_ref().ok_or("no name")?;
        let start = Instant::now();
        let plan = plan(catalog, 1, &loaded.jobs, &observed, &PlanOptions::default())?;
        assert!(plan.is_empty());
        println!("round {round}: read {read:?}, read and load {both:?}, manifest {built:?}, plan {:?}", start.elapsed());
        println!("peak memory {:?} MiB", peak_memory_mib());
    }
    Ok(())
}
