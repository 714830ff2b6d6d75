//! What clients show of themselves: options that stand in several subcommands, never in a result.

/// The sessions' token.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Token {
    /// One token for all sessions; without any they are guests, where guests are let in.
    #[arg(long, env = "BARRAGE_TOKEN", hide_env_values = true, default_value = "")]
    pub token: String,
}

/// The key of whoever calls the HTTP API.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ApiKey {
    /// A key with the scope to publish (for a push to all: to push); not needed where none is configured, on loopback.
    #[arg(long, env = "BARRAGE_API_KEY", hide_env_values = true, default_value = "")]
    pub api_key: String,
}
