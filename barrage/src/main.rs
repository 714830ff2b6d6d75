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
    // A huge page is resident as a whole however little of it is used, and stays when what a storm took of it is free
    // again: with them a process held three to four times its heap. The allocator does not ask for them (its feature
    // `no_thp`), and this is for kernels that give them unasked. Where it is not allowed, it is only memory.
    let _ = nix::sys::prctl::set_thp_disable(true);
    match cli::run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("barrage: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
