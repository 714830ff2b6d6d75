//! Generates the message types from `schema/` with protox (no protoc to install), and the JSON mapping of the client
//! protocol with pbjson.

use std::path::{Path, PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let schema = Path::new("schema");
    println!("cargo::rerun-if-changed=schema");
    let mut files = Vec::new();
    proto_files(&schema.join("barrage"), &mut files)?;
    files.sort();
    let descriptors = protox::compile(&files, [schema])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let encoded = descriptors.encode_to_vec();
    std::fs::write(out.join("descriptors.bin"), &encoded)?;
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors)?;
    pbjson_build::Builder::new().register_descriptors(&encoded)?.ignore_unknown_fields().build(&[".barrage.client"])?;
    Ok(())
}

fn proto_files(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            proto_files(&path, files)?;
        } else if path.extension().is_some_and(|ending| ending == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
