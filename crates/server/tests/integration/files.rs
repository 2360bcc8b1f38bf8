//! Uploads and downloads over real sockets.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::common::files::*;
use crate::common::*;
use prost::Message as _;
use twinlock_core::proto;
use twinlock_testing::bytes;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file__any_size_round_trips_as_entry() {
    let host = TestServer::start().await;
    let (laptop, mut ada) = host.owner().await;
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    bob.follow(LOBBY, 0).await.unwrap();
    for (n, size) in (1..).zip([0, 1, 4095, 65_537, MIB, MIB + 1, 40 * MIB + 3]) {
        let data = bytes(size, n);
        let id: [u8; 16] = random();
        let file = proto::FileMeta {
            name: format!("file {n}.bin"),
            size: size as u64,
            mime: "application/x-test".to_owned(),
            mode: 0o640,
            modified_ms: 1_700_000_000_123,
            path: "a/b".to_owned(),
        };
        let put =
            proto::PutFile { conversation: LOBBY, message_id: copy(&id), file: Some(file.clone()) };
        let accepted = ada.offer(put).await.unwrap();
        assert_eq!((accepted.offset, accepted.prefix_hash.len()), (0, 0));
        ada.send_part(accepted.transfer, &data, 0, size).await;
        let ack = ada.end_file(accepted.transfer, &data).await.unwrap();
        assert_eq!(ack.n, n);
        // Followers receive it as an ordinary entry.
        let entry = bob.entries(LOBBY, 1).await.remove(0);
        assert_eq!((entry.n, entry.kind, &entry.message_id[..]), (n, 3, &id[..]));
        let device: String = laptop.id.0[..4].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(entry.sender, format!("ada/{device}"));
        let body = proto::FileBody::decode(entry.body).unwrap();
        assert_eq!((body.file, body.hash), (Some(file), hash(&data)));
        let mut got = Vec::new();
        assert_eq!(bob.download(n, &mut got).await, Ok(0));
        assert!(got == data, "{size} bytes came back as others");
    }
    assert_eq!(partials(&host), []);
    for (path, _) in blobs(&host) {
        let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path) & 0o777, 0o600);
        assert_eq!(mode(path.parent().unwrap()) & 0o777, 0o700);
    }
}
