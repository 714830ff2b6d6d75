//! The command line.

use clap::{Args, Parser, Subcommand};

use crate::settings::{Role, Sources};
use crate::stdout::say;
use crate::{client, service, settings};

/// A live-chat and instant-messaging server (弹幕).
#[derive(Debug, Parser)]
#[command(name = "barrage", version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BARRAGE_COMMIT"), ")"))]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs all three services in this process on embedded stores: nothing to install.
    Run(Sources),
    /// Runs a connector: owns client sockets.
    Connector(Sources),
    /// Runs a logic: HTTP and gRPC, authentication, policy.
    Logic(Sources),
    /// Runs a job: owns partitions of the log.
    Job(Sources),
    /// Shows or checks the configuration.
    Config {
        #[command(subcommand)]
        what: ConfigCommand,
    },
    /// Makes a token for a user, signed with the configuration's first key that can sign.
    Token(client::Token),
    /// Publishes a text to a room, through the HTTP API.
    Publish(client::Publish),
    /// Watches a room: a line a message, until interrupted.
    Tail(client::Tail),
    /// Loads a server and measures it.
    Bench {
        #[command(subcommand)]
        what: Box<bench::Command>,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Every key with its value and where that came from; secrets are hidden.
    Show(ConfigOf),
    /// Exits with 0 if the role would start with it, else says what is wrong.
    Check(ConfigOf),
}

#[derive(Debug, Args)]
struct ConfigOf {
    /// For which role.
    #[arg(long, value_enum, default_value = "run")]
    role: Role,
    #[command(flatten)]
    sources: Sources,
}

/// Does what the command line says.
///
/// # Errors
/// What went wrong, for a person.
pub(crate) fn run() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Run(sources) => service::run(Role::Run, &sources),
        Command::Connector(sources) => service::run(Role::Connector, &sources),
        Command::Logic(sources) => service::run(Role::Logic, &sources),
        Command::Job(sources) => service::run(Role::Job, &sources),
        Command::Config { what: ConfigCommand::Show(of) } => {
            let figment = of.sources.figment(of.role)?;
            say(&settings::show(&figment)?).map(drop)
        }
        Command::Config { what: ConfigCommand::Check(of) } => {
            of.sources.load(of.role)?;
            say("the configuration is right").map(drop)
        }
        Command::Token(token) => token.run(),
        Command::Publish(publish) => publish.run(),
        Command::Tail(tail) => tail.run(),
        Command::Bench { what } => Ok(what.run(env!("BARRAGE_COMMIT"))?),
    }
}
