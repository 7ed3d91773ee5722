//! The program `octavius`. Everything is in the library; the shim of the process runner goes first, because each job starts one.

use std::process::ExitCode;

/// A controller makes and drops many small things on several threads at once; with the C library's allocator that is a fifth of its time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    if arguments.nth(1).is_some_and(|command| command == "shim") {
        let rest: Vec<_> = arguments.collect();
        return ExitCode::from(u8::try_from(octavius_executor::shim_main(&rest)).unwrap_or(1));
    }
    octavius_cli::main()
}
