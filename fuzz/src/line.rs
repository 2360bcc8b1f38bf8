//! A real connection over a stream that arrives in pieces, ends anywhere and is tampered with.

use std::time::Instant;

use twinlock_core::frame::{HEADER, Header};
use twinlock_core::session::{Session, SessionEvent, SessionFault};
use twinlock_testing::Rng;
use twinlock_transport::connection::{Connection, ConnectionError, Wake};

use crate::input::Input;
use crate::login::{config, established};
use crate::pair::Message;
use crate::stream::{Pieces, block_on};

/// However the stream is cut into pieces, the messages before the first missing or changed byte are
/// read whole and in order, and nothing after it is.
pub(crate) fn line(data: &[u8]) {
    let mut input = Input(data);
    let now = Instant::now();
    let [client, server] = established(u64::from(input.byte()));
    let (mut client, server) =
        (Session::new(client, config(), now), Session::new(server, config(), now));
    let mut ready = server.outgoing().to_vec();
    let header = Header::parse(*ready.first_chunk().unwrap(), client.due()).unwrap();
    client.handle_frame(header, &mut ready[HEADER..], now, &mut Rng::from_seed(1)).unwrap();

    // Where each message ends in the stream, and the message.
    let mut sent = Vec::new();
    for _ in 0..input.below(12) {
        let (size, bulk) = (input.byte(), input.flag());
        let body = vec![size; if size > 250 { 65_000 } else { usize::from(size) * 3 }];
        let message = if bulk {
            client.send_bulk(7, 1 << 40, &body).ok().map(|()| Message::Bulk(7, 1 << 40, body))
        } else {
            client.send_app(&body).ok().map(|()| Message::App(body))
        };
        sent.extend(message.map(|message| (client.outgoing().len(), message)));
    }
    let bytes = client.outgoing().to_vec();
    let mut touched = bytes.clone();
    let piece = usize::from(input.u16());
    input.change(&mut touched);
    let same = bytes.iter().zip(&touched).take_while(|(a, b)| a == b).count();
    let expected: Vec<_> = sent.iter().filter(|(end, _)| *end <= same).map(|s| &s.1).collect();

    let whole = touched == bytes;
    let mut got = Vec::new();
    let error = block_on(async {
        let mut line = Connection::new(Pieces::new(touched, piece), server);
        loop {
            match line.wait(None).await {
                Ok(Wake::Frame) => {}
                Ok(Wake::Room) => panic!("unexpected Room"),
                Err(error) => return error,
            }
            match line.open_frame() {
                Ok(SessionEvent::App(body)) => got.push(Message::App(body.to_vec())),
                Ok(SessionEvent::Bulk { transfer, offset, data }) => {
                    got.push(Message::Bulk(transfer, offset, data.to_vec()));
                }
                Ok(SessionEvent::Ready { .. }) => {}
                Ok(other) => panic!("unexpected {other:?}"),
                Err(error) => return error,
            }
        }
    });
    assert!(got.iter().collect::<Vec<_>>() == expected, "{} of {}", got.len(), expected.len());
    match error {
        ConnectionError::Cut(_) => {}
        ConnectionError::Fault(SessionFault::Tampered) | ConnectionError::Header(_) => {
            assert!(!whole)
        }
        other => panic!("{other}"),
    }
}
