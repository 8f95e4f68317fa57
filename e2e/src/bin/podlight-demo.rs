//! `podlight-demo`: shows the whole way of an event with real processes, then stays until Ctrl-C (`DEMO_EXIT=1` ends it).
//! `podlight-demo app …` is the app of that demo, which it starts itself.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use podlight_e2e::demo;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when stderr is closed.
            let _ = writeln!(std::io::stderr(), "\npodlight-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        None => {}
        Some("app") => return demo::app::run(arguments),
        Some(other) => anyhow::bail!("{other:?}? podlight-demo takes no arguments; DEMO_EXIT=1 ends it"),
    }
    let exit = std::env::var_os("DEMO_EXIT").is_some_and(|value| value == "1");
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(demo::run(exit))
}
