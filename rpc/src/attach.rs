//! The incarnations that a job names when it attaches to a connector: its own, and the one that it means. They go as
//! metadata, so that a connector can refuse before there is a stream.
//!
//! A job of an older release names neither. It is attached as before.

use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::secret::{NotAscii, SecretInterceptor};

/// The job's own incarnation.
const FROM: &str = "x-barrage-from";
/// The incarnation of the connector that the job means.
const TO: &str = "x-barrage-to";

/// Puts the cluster's secret and both incarnations on a call.
#[derive(Clone)]
pub struct AttachInterceptor {
    secret: SecretInterceptor,
    from: MetadataValue<Ascii>,
    to: MetadataValue<Ascii>,
}

impl AttachInterceptor {
    /// For the job `from`, which means the connector `to`.
    ///
    /// # Errors
    /// [`NotAscii`]; incarnations are random letters and digits, so that one that is not ASCII is no incarnation.
    pub fn new(secret: SecretInterceptor, from: &str, to: &str) -> Result<Self, NotAscii> {
        let value = |incarnation: &str| incarnation.parse().map_err(|_| NotAscii);
        Ok(Self { secret, from: value(from)?, to: value(to)? })
    }
}

impl Interceptor for AttachInterceptor {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let mut request = self.secret.call(request)?;
        request.metadata_mut().insert(FROM, self.from.clone());
        request.metadata_mut().insert(TO, self.to.clone());
        Ok(request)
    }
}

/// The job's incarnation, of a call to the connector `own`. `None`: the job is of an older release.
///
/// # Errors
/// `FAILED_PRECONDITION` where the job means another incarnation than `own`.
pub fn check(metadata: &MetadataMap, own: &str) -> Result<Option<String>, Status> {
    let named = |name| metadata.get(name).and_then(|value| value.to_str().ok());
    match named(TO) {
        Some(to) if to != own => Err(Status::failed_precondition(format!("this is {own}, not {to}"))),
        _ => Ok(named(FROM).map(str::to_owned)),
    }
}

#[cfg(test)]
mod tests {
    use proto::config::Secret;

    use super::*;

    #[test]
    fn a_job_that_means_another_incarnation_is_refused() {
        let secret = SecretInterceptor::new(&Secret::new("opensesame")).unwrap();
        let mut attach = AttachInterceptor::new(secret, "job", "second").unwrap();
        let request = attach.call(Request::new(())).unwrap();
        assert_eq!(check(request.metadata(), "second").unwrap().as_deref(), Some("job"));
        assert_eq!(check(request.metadata(), "first").unwrap_err().code(), tonic::Code::FailedPrecondition);
        assert_eq!(check(&MetadataMap::new(), "first").unwrap(), None, "a job of an older release");
    }
}
