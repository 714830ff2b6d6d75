//! Makes the gRPC stubs; the messages are `proto`'s.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let schema = Path::new("../proto/schema");
    println!("cargo::rerun-if-changed=../proto/schema");
    let descriptors = protox::compile(["barrage/api/v1/api.proto", "barrage/cluster/v1/cluster.proto"], [schema])?;
    tonic_prost_build::configure()
        .build_transport(true)
        .extern_path(".barrage.api.v1", "::proto::api")
        .extern_path(".barrage.client.v1", "::proto::client")
        .extern_path(".barrage.cluster.v1", "::proto::cluster")
        .extern_path(".barrage.record.v1", "::proto::record")
        .compile_fds(descriptors)?;
    Ok(())
}
