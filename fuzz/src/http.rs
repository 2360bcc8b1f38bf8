//! What anyone can send before a session: HTTP, and WebSocket frames after it.

use std::sync::Arc;

use tokio::io::AsyncReadExt as _;
use twinlock_transport::websocket::connect::connect;
use twinlock_transport::websocket::serve::{Site, Upgraded, serve};

use crate::input::Input;
use crate::stream::{Pieces, block_on};

const REQUEST: &[u8] = b"GET /twinlock HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// A server ends the connection or opens a WebSocket, which delivers no more bytes than arrived. A
/// web page gets none. A client accepts no answer that was not made for its key.
pub(crate) fn http(data: &[u8]) {
    let mut input = Input(data);
    let (form, piece) = (input.below(4), usize::from(input.byte()) * 8 + 1);
    let bytes = match form {
        // The answer to a client.
        0 => {
            let answer = Pieces::new(input.rest().to_vec(), piece);
            assert!(block_on(connect(answer, "a", "/twinlock")).is_err());
            return;
        }
        1 => input.rest().to_vec(),
        // Further fields of a valid request.
        2 => [REQUEST, input.rest()].concat(),
        // Frames after a valid request.
        _ => [REQUEST, b"\r\n", input.rest()].concat(),
    };
    let site = Arc::new(Site::new("/twinlock".to_owned()));
    let proxies = Some(vec!["192.0.2.1".parse().unwrap()]);
    let served = block_on(serve(Pieces::new(bytes.clone(), piece), site, proxies));
    assert!(form != 3 || served.is_ok(), "a valid request is refused");
    let Ok(Upgraded { mut stream, .. }) = served else { return };
    let lower = bytes.to_ascii_lowercase();
    let head = lower.windows(4).position(|end| end == b"\r\n\r\n").unwrap_or(lower.len());
    assert!(!lower[..head].windows(8).any(|name| name == b"\norigin:"), "a web page got in");
    let mut sink = Vec::new();
    let _end = block_on(stream.read_to_end(&mut sink));
    assert!(sink.len() < bytes.len(), "{} bytes of {}", sink.len(), bytes.len());
}
