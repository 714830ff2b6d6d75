//! The gRPC stubs of the services in `proto/schema`. Apart from `proto`, which must not know tonic or tokio.

/// Between the services.
pub mod cluster {
    #![allow(
        missing_docs,
        clippy::all,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        reason = "generated; documented in proto/schema"
    )]
    tonic::include_proto!("barrage.cluster.v1");
}

/// The platform's API.
pub mod api {
    #![allow(
        missing_docs,
        clippy::all,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        reason = "generated; documented in proto/schema"
    )]
    tonic::include_proto!("barrage.api.v1");
}

pub mod attach;
pub mod secret;
