//! Where the server is that a fan-out is against: one of its own, or those that the options name.

use std::net::{SocketAddr, ToSocketAddrs};

use crate::error::Error;
use crate::fanout::options::Fanout;
use crate::stand::{Meter, Stand};

/// Where the server is.
pub(crate) struct Places {
    /// As they are named, and what that is.
    pub(crate) clients: Vec<(String, SocketAddr)>,
    /// `host:port`.
    pub(crate) http: String,
    pub(crate) grpc: Vec<String>,
    pub(crate) secret: String,
    pub(crate) meter: Meter,
}

impl Places {
    /// # Errors
    /// A place that is none.
    pub(crate) fn new(fanout: &Fanout, stand: Option<&Stand>) -> Result<Self, Error> {
        let (places, http, grpc, secret, meter) = match stand {
            Some(stand) => (
                vec![stand.address("clients")],
                stand.address("page"),
                vec![stand.address("connector-grpc")],
                stand.secret.clone(),
                Meter { pids: vec![stand.pid()], admin: vec![stand.address("admin")] },
            ),
            None => (
                fanout.connect.clone(),
                fanout.http.clone(),
                fanout.grpc.clone(),
                fanout.secret.clone(),
                Meter { pids: fanout.server_pid.clone(), admin: fanout.admin.clone() },
            ),
        };
        let resolved = |place: String| match place.to_socket_addrs().ok().and_then(|mut all| all.next()) {
            Some(address) => Ok((place, address)),
            None => Err(Error::Option { option: "connect", value: place, want: "host:port of a connector".into() }),
        };
        let clients = places.into_iter().map(resolved).collect::<Result<_, _>>()?;
        let http = http_host(&http)?;
        Ok(Self { clients, http, grpc, secret, meter })
    }
}

/// `host:port` of the API's `url`.
///
/// # Errors
/// It is none.
pub(crate) fn http_host(url: &str) -> Result<String, Error> {
    let host = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
    let host = host.filter(|host| !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']));
    let host = host.ok_or_else(|| Error::Option {
        option: "http",
        value: url.to_owned(),
        want: "http://host:port, without a path".into(),
    })?;
    Ok(if host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        host.to_owned()
    } else {
        format!("{host}:80")
    })
}
