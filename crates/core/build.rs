//! Compiles the `.proto` files with a protobuf compiler written in Rust, so that a build needs
//! no installed `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["twinlock.proto"], ["proto"])?;
    // Their `Debug` is in `src/proto.rs`: it must not show a secret or what people write.
    let written_by_hand = ["Invite", "AddClassicKey", "NewClassicKey", "Append", "Entry"]
        .map(|name| format!("twinlock.v1.{name}"));
    prost_build::Config::new().bytes(["."]).skip_debug(written_by_hand).compile_fds(descriptors)?;
    Ok(())
}
