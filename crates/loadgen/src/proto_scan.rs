//! Counts the items in a frame from the server without decoding them.
//!
//! A hundred followers on one machine would otherwise measure their own decoding.

use prost::encoding::{WireType, decode_key, decode_varint};
use twinlock_client::ClientError;

/// Field numbers of `twinlock.proto`.
mod field {
    pub(crate) const ITEMS: u32 = 1;
    pub(crate) const ANSWER: u32 = 1;
    pub(crate) const ENTRIES: u32 = 2;
    pub(crate) const ANSWER_ID: u32 = 1;
    pub(crate) const ANSWER_ACK: u32 = 2;
    pub(crate) const ENTRIES_ENTRY: u32 = 2;
    pub(crate) const ENTRY_N: u32 = 1;
}

/// An item that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScannedItem {
    /// The request with this id is recorded.
    Ack(u64),
    /// The request with this id has another answer.
    Other(u64),
    /// An entry of a followed conversation, with its number.
    Entry(u64),
}

/// A field's value, decoded as far as needed.
enum FieldValue<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed,
}

/// The fields of a message, in order.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<(u32, FieldValue<'a>)>, ClientError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (number, wire_type) = decode_key(&mut self.0).map_err(|_| malformed())?;
        let value = match wire_type {
            WireType::Varint => {
                FieldValue::Number(decode_varint(&mut self.0).map_err(|_| malformed())?)
            }
            WireType::LengthDelimited => {
                let len = decode_varint(&mut self.0).map_err(|_| malformed())?;
                FieldValue::Bytes(self.take(usize::try_from(len).unwrap_or(usize::MAX))?)
            }
            WireType::SixtyFourBit => self.take(8).map(|_| FieldValue::Fixed)?,
            WireType::ThirtyTwoBit => self.take(4).map(|_| FieldValue::Fixed)?,
            WireType::StartGroup | WireType::EndGroup => return Err(malformed()),
        };
        Ok(Some((number, value)))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], ClientError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or_else(malformed)?;
        self.0 = rest;
        Ok(taken)
    }
}

/// Reports the items of a `ToClient`, in order.
pub(crate) fn scan(
    body: &[u8],
    mut emit: impl FnMut(ScannedItem) -> Result<(), ClientError>,
) -> Result<(), ClientError> {
    let mut items = Fields(body);
    while let Some((number, value)) = items.next()? {
        let (field::ITEMS, FieldValue::Bytes(item)) = (number, value) else { continue };
        let mut what = Fields(item);
        while let Some((number, value)) = what.next()? {
            match (number, value) {
                (field::ANSWER, FieldValue::Bytes(answer)) => emit(scan_answer(answer)?)?,
                (field::ENTRIES, FieldValue::Bytes(entries)) => scan_entries(entries, &mut emit)?,
                _ => {}
            }
        }
    }
    Ok(())
}

fn scan_answer(answer: &[u8]) -> Result<ScannedItem, ClientError> {
    let (mut fields, mut id, mut ack) = (Fields(answer), 0, false);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (field::ANSWER_ID, FieldValue::Number(of)) => id = of,
            (field::ANSWER_ACK, FieldValue::Bytes(_)) => ack = true,
            _ => {}
        }
    }
    Ok(if ack { ScannedItem::Ack(id) } else { ScannedItem::Other(id) })
}

fn scan_entries(
    entries: &[u8],
    emit: &mut impl FnMut(ScannedItem) -> Result<(), ClientError>,
) -> Result<(), ClientError> {
    let mut fields = Fields(entries);
    while let Some((number, value)) = fields.next()? {
        let (field::ENTRIES_ENTRY, FieldValue::Bytes(entry)) = (number, value) else { continue };
        let mut entry = Fields(entry);
        while let Some((number, value)) = entry.next()? {
            if let (field::ENTRY_N, FieldValue::Number(n)) = (number, value) {
                emit(ScannedItem::Entry(n))?;
                break;
            }
        }
    }
    Ok(())
}

fn malformed() -> ClientError {
    ClientError::Protocol("a frame that cannot be read")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message as _;
    use twinlock_client::error::ClientError;
    use twinlock_core::proto::{self, answer::Result as Answered, item::What};

    use super::*;

    fn scanned(body: &[u8]) -> Result<Vec<ScannedItem>, ClientError> {
        let mut all = Vec::new();
        scan(body, |scanned| {
            all.push(scanned);
            Ok(())
        })?;
        Ok(all)
    }

    fn frame() -> Vec<u8> {
        let answer = |id, result| What::Answer(proto::Answer { id, result: Some(result) });
        let ack = proto::Ack { n: 7, salt: Bytes::from_static(&[1; 16]), ..Default::default() };
        let entry =
            |n| proto::Entry { n, body: Bytes::from_static(b"\x08\x63"), ..Default::default() };
        let entries = proto::Entries { conversation: 9, entries: vec![entry(3), entry(300)] };
        let items = [
            answer(1, Answered::Ack(ack)),
            answer(2, Answered::Refusal(proto::Refusal::default())),
            What::Entries(entries),
            What::Presence(proto::Presence { user: "ada".to_owned(), online: true }),
            answer(u64::MAX, Answered::Ack(proto::Ack::default())),
        ];
        let items = items.map(|what| proto::Item { what: Some(what) }).into();
        proto::ToClient { items }.encode_to_vec()
    }

    #[test]
    fn scan__yields_acks_entries_and_other_answers() {
        assert_eq!(
            scanned(&frame()).unwrap(),
            [
                ScannedItem::Ack(1),
                ScannedItem::Other(2),
                ScannedItem::Entry(3),
                ScannedItem::Entry(300),
                ScannedItem::Ack(u64::MAX)
            ]
        );
        assert_eq!(scanned(&[]).unwrap(), []);
    }

    #[test]
    fn scan__truncated_frame_is_rejected_or_yields_a_prefix() {
        let whole = frame();
        let all = scanned(&whole).unwrap();
        for len in 0..whole.len() {
            if let Ok(some) = scanned(&whole[..len]) {
                assert!(all.starts_with(&some), "{len}: {some:?}");
                assert!(some.len() < all.len(), "{len}");
            }
        }
        assert!(scanned(&[0xff; 40]).is_err());
    }
}
