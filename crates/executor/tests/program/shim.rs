//! Nothing but the shim, for tests and measurements: `octavius-test-shim shim RUN_DIR`.

fn main() {
    let arguments: Vec<_> = std::env::args_os().skip(2).collect();
    std::process::exit(octavius_executor::shim_main(&arguments));
}
