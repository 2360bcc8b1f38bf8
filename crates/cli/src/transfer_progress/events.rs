//! The JSON events of `put` and `get`.

use serde::Serialize;

use crate::entry::{AckJson, EntryJson, FileJson};

/// A transfer starts, or resumes at `from`.
#[derive(Serialize)]
pub(super) struct StartJson<'a> {
    pub(super) event: &'static str,
    pub(super) id: String,
    pub(super) name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<String>,
    pub(super) size: u64,
    pub(super) from: u64,
}

/// Bytes that were transferred, at most once a second.
#[derive(Serialize)]
pub(super) struct ProgressJson<'a> {
    pub(super) event: &'static str,
    pub(super) id: String,
    pub(super) name: &'a str,
    pub(super) size: u64,
    pub(super) done: u64,
}

/// A file is recorded.
#[derive(Serialize)]
pub(super) struct SentJson<'a> {
    pub(super) event: &'static str,
    #[serde(flatten)]
    pub(super) ack: AckJson<'a>,
    pub(super) file: FileJson<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<String>,
}

/// A file was fetched.
#[derive(Serialize)]
pub(super) struct GotJson<'a> {
    pub(super) event: &'static str,
    #[serde(flatten)]
    pub(super) entry: EntryJson<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<String>,
}

/// A transfer failed.
#[derive(Serialize)]
pub(super) struct FailedJson<'a> {
    pub(super) event: &'static str,
    pub(super) id: String,
    pub(super) name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<String>,
    pub(super) exit: u8,
    pub(super) error: &'a str,
}

/// An entry that cannot be fetched.
#[derive(Serialize)]
pub(super) struct NoEntryJson<'a> {
    pub(super) event: &'static str,
    pub(super) conversation: &'a str,
    pub(super) n: u64,
    pub(super) exit: u8,
    pub(super) error: &'a str,
}

/// A source that cannot be sent.
#[derive(Serialize)]
pub(super) struct NoSourceJson<'a> {
    pub(super) event: &'static str,
    pub(super) exit: u8,
    pub(super) error: &'a str,
}
