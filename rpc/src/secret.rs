//! The cluster's secret on calls between services (rule 36): [`SecretInterceptor`] puts it on a client's calls, [`check`] looks at
//! it in a server.
//!
//! It goes as metadata in clear: between machines that do not trust their network, put mutual TLS or a private network
//! beneath.

use proto::config::Secret;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// The metadata's name.
pub const HEADER: &str = "x-barrage-secret";

/// Puts the secret on every call: `GateClient::with_interceptor(channel, SecretInterceptor::new(&secret)?)`.
#[derive(Clone)]
pub struct SecretInterceptor(MetadataValue<Ascii>);

/// The secret holds something other than visible ASCII. The operator's fault.
#[derive(Debug, thiserror::Error)]
#[error("cluster.secret: want visible ASCII characters only")]
pub struct NotAscii;

impl SecretInterceptor {
    /// Sends `secret` with every call.
    ///
    /// # Errors
    /// [`NotAscii`].
    pub fn new(secret: &Secret) -> Result<Self, NotAscii> {
        let mut value: MetadataValue<Ascii> = secret.reveal().parse().map_err(|_| NotAscii)?;
        value.set_sensitive(true);
        Ok(Self(value))
    }
}

impl Interceptor for SecretInterceptor {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(HEADER, self.0.clone());
        Ok(request)
    }
}

/// Whether the caller is of the cluster. The time that it takes does not depend on how much of the secret is right.
///
/// # Errors
/// `UNAUTHENTICATED` with a wrong secret or none, and always while ours is empty.
pub fn check<T>(request: &Request<T>, secret: &Secret) -> Result<(), Status> {
    let shown = request.metadata().get(HEADER).map_or(&[][..], |value| value.as_bytes());
    let ours = secret.reveal().as_bytes();
    if !ours.is_empty() && same(shown, ours) {
        Ok(())
    } else {
        Err(Status::unauthenticated("not a service of this cluster: cluster.secret differs"))
    }
}

/// Compares all of two secrets, whatever their first bytes are; only the lengths are told by the time that it takes.
#[must_use]
pub fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && std::hint::black_box(a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_secret_passes() {
        let ours = Secret::new("opensesame");
        let shown =
            |secret: &str| SecretInterceptor::new(&Secret::new(secret)).unwrap().call(Request::new(())).unwrap();
        assert!(check(&shown("opensesame"), &ours).is_ok());
        for wrong in ["opensesamf", "opensesam", ""] {
            assert!(check(&shown(wrong), &ours).is_err(), "{wrong}");
        }
        assert!(check(&Request::new(()), &ours).is_err());
        assert!(check(&shown(""), &Secret::new("")).is_err(), "no secret lets nobody in");
    }
}
