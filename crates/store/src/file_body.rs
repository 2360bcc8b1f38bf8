//! What the body of an entry refers to, and what of it can be searched.

use std::borrow::Cow;

use prost::Message as _;
use twinlock_core::chain::EntryKind;
use twinlock_core::proto::FileBody;

use crate::files::FileRef;

/// The content that a body of this kind refers to. The reference is always derived from the body,
/// so no row can contradict it.
#[must_use]
pub fn reference(kind: EntryKind, body: &[u8]) -> Option<FileRef> {
    let FileBody { file, hash } = decode(kind, body)?;
    Some(FileRef { hash: hash.as_ref().try_into().ok()?, size: file?.size })
}

/// The searchable text of a body: for a file, its name.
#[must_use]
pub fn text(kind: EntryKind, body: &[u8]) -> Cow<'_, [u8]> {
    match decode(kind, body) {
        Some(body) => body.file.map(|file| file.name).unwrap_or_default().into_bytes().into(),
        None => body.into(),
    }
}

fn decode(kind: EntryKind, body: &[u8]) -> Option<FileBody> {
    if kind == EntryKind::FILE { FileBody::decode(body).ok() } else { None }
}
