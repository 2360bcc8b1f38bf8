//! `src/proto/compiled.rs` is what the protobuf compiler makes of `proto/twinlock.proto`.
//!
//! It is kept in the repository, so that a build of the program compiles no protobuf compiler, which takes longer
//! than this crate. After a change of the `.proto` file: `TWINLOCK_WRITE_PROTO=1 cargo test -p twinlock-core --test
//! proto_compiled`.

#![allow(clippy::unwrap_used)]

use std::path::Path;

#[test]
fn proto_compiled_is_what_the_proto_file_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::compile(["twinlock.proto"], [root.join("proto")]).unwrap();
    let into = tempfile::tempdir().unwrap();
    // Their `Debug` is in `src/proto.rs`: it must not show a secret or what people write.
    let written_by_hand = ["Invite", "AddClassicKey", "NewClassicKey", "Append", "Entry"]
        .map(|name| format!("twinlock.v1.{name}"));
    prost_build::Config::new()
        .bytes(["."])
        .skip_debug(written_by_hand)
        .out_dir(into.path())
        .compile_fds(descriptors)
        .unwrap();
    let made = std::fs::read_to_string(into.path().join("twinlock.v1.rs")).unwrap();
    let kept = root.join("src/proto/compiled.rs");
    if std::env::var_os("TWINLOCK_WRITE_PROTO").is_some() {
        std::fs::write(&kept, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&kept).unwrap();
    assert!(kept == made, "the .proto file was changed: run this test with TWINLOCK_WRITE_PROTO=1");
}
