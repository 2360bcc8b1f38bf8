//! Checks that `src/proto/compiled.rs` is the protobuf compiler's output for
//! `proto/twinlock.proto`.
//!
//! The output is kept in the repository, because compiling the protobuf compiler takes longer than
//! compiling this crate. After a change of the `.proto` file, run
//! `TWINLOCK_WRITE_PROTO=1 cargo test -p twinlock-core --test proto_compiled`.

#![allow(non_snake_case, clippy::unwrap_used)]

use std::path::Path;

#[test]
fn proto__compiled_code_matches_proto_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::compile(["twinlock.proto"], [root.join("proto")]).unwrap();
    let into = tempfile::tempdir().unwrap();
    // `src/proto.rs` implements their `Debug`, which must not show secrets or what users write.
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
