//! The tools that stand beside the services: `barrage token`, `barrage publish`, `barrage tail`.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::Args;
use proto::client::{
    ClientFrame, Connect, ErrorCode, Message, Ping, ServerFrame, Subscribe, client_frame, message, server_frame,
};
use proto::native;

use crate::settings::{Role, Sources};
use crate::stdout::say;

/// Makes a token.
#[derive(Debug, Args)]
pub(crate) struct Token {
    /// The user's ID: 1-64 of A-Z a-z 0-9 _ . -
    uid: String,
    /// The name that the user is shown under.
    #[arg(long)]
    name: Option<String>,
    /// Which of the user's devices it is for.
    #[arg(long)]
    device: Option<String>,
    /// Seconds until it lapses.
    #[arg(long, default_value_t = 24 * 60 * 60)]
    seconds: u64,
    /// A pattern of rooms that the user may be in (`room:*`, `room:game.*`); may be repeated. Default: all.
    #[arg(long)]
    subscribe: Vec<String>,
    /// A pattern of rooms that the user may publish to; may be repeated. Default: all.
    #[arg(long)]
    publish: Vec<String>,
    #[command(flatten)]
    sources: Sources,
}

impl Token {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        // As `barrage run` reads it, the key that it made up included.
        let settings = self.sources.load(Role::Run)?.settings;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
        let mut claims = logic::token::Claims::new(self.uid, now.as_secs().saturating_add(self.seconds));
        claims.name = self.name;
        claims.device = self.device;
        claims.subscribe = Some(self.subscribe).filter(|patterns| !patterns.is_empty());
        claims.publish = Some(self.publish).filter(|patterns| !patterns.is_empty());
        say(&logic::token::mint(&settings.logic.token, &claims)?).map(drop)
    }
}

/// Publishes a text.
#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// The room's ID, without `room:`.
    room: String,
    /// The message.
    text: String,
    /// Its type: text, image, gift, like, custom, or the platform's own.
    #[arg(long = "type", default_value = "text")]
    kind: String,
    /// Where the HTTP API answers.
    #[arg(long, default_value = "http://127.0.0.1:3111")]
    http: String,
    /// A key with the scope `publish`; not needed where none is configured, on loopback.
    #[arg(long, env = "BARRAGE_API_KEY", hide_env_values = true, default_value = "")]
    api_key: String,
}

/// How long the API may take to answer: the bus's own deadline, and some.
const ANSWER: Duration = Duration::from_secs(15);

impl Publish {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let agent: ureq::Agent =
            ureq::Agent::config_builder().timeout_global(Some(ANSWER)).http_status_as_error(false).build().into();
        let url = format!("{}/v1/rooms/{}/messages", self.http.trim_end_matches('/'), self.room);
        let mut request = agent.post(&url);
        if !self.api_key.is_empty() {
            request = request.header("Authorization", format!("Bearer {}", self.api_key));
        }
        let mut response = request
            .send_json(serde_json::json!({ "type": self.kind, "text": self.text }))
            .with_context(|| format!("{url} does not answer"))?;
        let status = response.status();
        let body = response.body_mut().read_to_string().context("the answer breaks off")?;
        anyhow::ensure!(status.is_success(), "{status}: {body}");
        say(&body).map(drop)
    }
}

/// Watches a room.
#[derive(Debug, Args)]
pub(crate) struct Tail {
    /// The room's ID, without `room:`.
    room: String,
    /// This many recent messages first, at most 200.
    #[arg(long, default_value_t = 10)]
    history: u32,
    /// Where a connector answers.
    #[arg(long, default_value = "127.0.0.1:3101")]
    connect: SocketAddr,
    /// A token; without one the session is a guest's, where guests are let in.
    #[arg(long, env = "BARRAGE_TOKEN", hide_env_values = true, default_value = "")]
    token: String,
    /// One JSON object a line, as the native protocol has it.
    #[arg(long)]
    json: bool,
}

/// How long the connector may take to let us in.
const ADMISSION: Duration = Duration::from_secs(10);

/// Longest frame from the server that is taken: one message of 64 KiB and what is around it.
const SERVER_FRAME_BYTES_MAX: usize = 256 * 1024;

impl Tail {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut stream = TcpStream::connect_timeout(&self.connect, ADMISSION)
            .with_context(|| format!("no connector answers on {}", self.connect))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ADMISSION))?;
        let connect = Connect { token: self.token.clone(), ..Connect::default() };
        let mut out = native::MAGIC.to_vec();
        frame(1, client_frame::Body::Connect(connect), &mut out);
        let subscribe = Subscribe { channel: format!("room:{}", self.room), resume: None, history: self.history };
        frame(2, client_frame::Body::Subscribe(subscribe), &mut out);
        stream.write_all(&out)?;
        self.watch(&mut stream)
    }

    fn watch(&self, stream: &mut TcpStream) -> anyhow::Result<()> {
        let mut buffer = Vec::new();
        let mut part = [0; 16 * 1024];
        let mut request = 2;
        loop {
            let mut input = &buffer[..];
            while let Some(bytes) = native::unpack(&mut input, SERVER_FRAME_BYTES_MAX)? {
                let frame: ServerFrame = native::from_binary(bytes)?;
                if let Some(server_frame::Body::Connected(connected)) = &frame.body {
                    // From here on silence is no fault: it is broken by a ping.
                    stream.set_read_timeout(Some(Duration::from_secs(connected.heartbeat_s.max(1).into())))?;
                }
                if !self.show(&frame)? {
                    return Ok(());
                }
            }
            let taken = buffer.len() - input.len();
            buffer.drain(..taken);
            match stream.read(&mut part) {
                Ok(0) => anyhow::bail!("the connector closed"),
                Ok(bytes) => buffer.extend_from_slice(&part[..bytes]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    request += 1;
                    let mut out = Vec::new();
                    frame(request, client_frame::Body::Ping(Ping {}), &mut out);
                    stream.write_all(&out)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Says what a frame has for a person; `false` where nobody reads any more.
    fn show(&self, frame: &ServerFrame) -> anyhow::Result<bool> {
        let line = match &frame.body {
            Some(server_frame::Body::Error(error)) => {
                let code = ErrorCode::try_from(error.code).unwrap_or(ErrorCode::Internal);
                anyhow::bail!("refused: {}: {}", proto::error::row(code).name, error.message)
            }
            Some(server_frame::Body::Goodbye(goodbye)) => anyhow::bail!("ended: {}", goodbye.reason),
            Some(server_frame::Body::Message(_) | server_frame::Body::Gap(_)) if self.json => {
                serde_json::to_string(frame)?
            }
            Some(server_frame::Body::Message(message)) => told(message),
            Some(server_frame::Body::Gap(gap)) => {
                format!("-- {}{} messages missed", if gap.exact { "" } else { "at least " }, gap.count)
            }
            _ => return Ok(true),
        };
        say(&line)
    }
}

fn frame(request: u32, body: client_frame::Body, out: &mut Vec<u8>) {
    let start = native::begin_frame(out);
    native::to_binary(&ClientFrame { request, body: Some(body) }, out);
    native::end_frame(start, out);
}

/// A line for a person. What another user wrote cannot steer the terminal: control characters are escaped.
fn told(message: &Message) -> String {
    let from = message.sender.as_ref().map_or("*", |from| if from.name.is_empty() { &from.uid } else { &from.name });
    let payload = match &message.payload {
        Some(message::Payload::Text(text)) => text.clone(),
        Some(message::Payload::Data(data)) => format!("({} bytes)", data.len()),
        None => String::new(),
    };
    let kind = if message.r#type == "text" { String::new() } else { format!("[{}] ", message.r#type) };
    format!("{from}: {kind}{payload}")
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_cannot_steer_the_terminal() {
        let message = Message {
            r#type: "text".into(),
            payload: Some(message::Payload::Text("\u{1b}[2Jhello\n弹幕".into())),
            ..Message::default()
        };
        assert_eq!(told(&message), "*: \\u{1b}[2Jhello\\n弹幕");
    }
}
