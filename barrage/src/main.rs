//! The one binary: `barrage run` (all three services on embedded stores), `connector`, `logic`, `job`, and the tools
//! beside them. It only wires: what a service does is in its crate.

mod admin;
mod cli;
mod client;
mod identity;
mod service;
mod settings;
mod stdout;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    match cli::run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("barrage: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
