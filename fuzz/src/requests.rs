//! The protobuf messages of READY and APP frames.

use prost::Message;
use twinlock_core::chain::{self, Position};
use twinlock_core::id::{Sender, ServerKey};
use twinlock_core::proto::{self, item::What, request::Op};
use twinlock_testing::links::advance_sent;

use crate::text::acts;

/// A decoded message does not change when it is encoded and decoded again; `encoded_len` is exact.
fn means_the_same<M: Message + Default + PartialEq>(data: &[u8]) -> Option<M> {
    let message = M::decode(data).ok()?;
    let encoded = message.encode_to_vec();
    assert_eq!(encoded.len(), message.encoded_len());
    assert!(M::decode(&encoded[..]).is_ok_and(|again| again == message));
    Some(message)
}

/// What a server reads: requests and the client's Info. `Debug` output for the log neither shows
/// what users write nor acts on a terminal.
pub(crate) fn requests(data: &[u8]) {
    let _info = means_the_same::<proto::ClientInfo>(data);
    let Some(message) = means_the_same::<proto::ToServer>(data) else { return };
    for request in message.requests {
        let Some(Op::Append(append)) = request.op else { continue };
        let shown = format!("{append:?}");
        assert!(!shown.chars().any(acts));
        let hidden = proto::Append { body: vec![0; append.body.len()].into(), ..append };
        assert_eq!(shown, format!("{hidden:?}"), "the body shows");
    }
}

/// What a client reads: answers, entries and the server's Info. Generated entries are linked or
/// refused like any others.
pub(crate) fn answers(data: &[u8]) {
    let _info = means_the_same::<proto::ServerInfo>(data);
    let _file = means_the_same::<proto::FileBody>(data);
    let Some(message) = means_the_same::<proto::ToClient>(data) else { return };
    for item in message.items {
        let Some(What::Entries(entries)) = item.what else { continue };
        let first = entries.entries.first().map_or(0, |entry| entry.n.saturating_sub(1));
        let link = chain::link_0(&ServerKey([1; 32]), entries.conversation);
        let mut position = Position::new(entries.conversation, first, link);
        for entry in &entries.entries {
            let before = position.clone();
            let result = advance_sent(&mut position, entries.conversation, entry);
            match result {
                Ok(link) => assert!(position.n() == entry.n && *position.link() == link),
                Err(broken) => assert!(position == before && broken.at() == entry.n),
            }
            if let Ok(sender) = Sender::parse(&entry.sender) {
                assert_eq!(sender.to_string().as_bytes(), &entry.sender);
            }
            let shown = format!("{entry:?}");
            assert!(!shown.chars().any(acts));
            let hidden = proto::Entry { body: vec![0; entry.body.len()].into(), ..entry.clone() };
            assert_eq!(shown, format!("{hidden:?}"), "the body shows");
        }
    }
}
