//! `podlight-bench [group…]`: measures the figures of DESIGN §8 and prints them beside their bounds. The exit status tells
//! whether everything was measured, not whether the figures are good. `podlight-bench child …` is what it starts itself.

use std::process::ExitCode;

use anyhow::Result;
use podlight_e2e::bench;

/// As in the activator, parts of which run in this process.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error);
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if_eq("child").is_some() {
        if arguments.next_if_eq("floor").is_some() {
            return bench::floor::serve(arguments);
        }
        return bench::proxy::child::run(arguments);
    }
    let groups = bench::groups(arguments)?;
    bench::check_binaries()?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(bench::run(&groups))
}

fn tell(error: &anyhow::Error) {
    use std::io::Write as _;
    // Nobody is left to tell when stderr is closed.
    let _ = writeln!(std::io::stderr(), "podlight-bench: {error:#}");
}
