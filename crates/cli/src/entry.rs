//! Presents entries and acknowledgements: as JSON with stable names, or as a line for people.

use std::path::Path;

use data_encoding::HEXLOWER;
use indicatif::HumanBytes;
use serde::Serialize;
use twinlock_client::model::Entry;
use twinlock_client::outbox::Ack;
use twinlock_core::chain::EntryKind;
use twinlock_core::id::{MessageId, Sender};

use crate::clock::{local_time, rfc3339};
use crate::output::{Output, Style, json_path};
use crate::wrap::columns;

/// An entry in JSON. Fields without a value are null: `from` of the server's own entries, `text` of
/// an erased entry, `link` of a search result.
#[derive(Debug, Serialize)]
pub(crate) struct EntryJson<'a> {
    conversation: &'a str,
    n: u64,
    time: String,
    from: Option<&'a str>,
    device: Option<String>,
    kind: &'static str,
    id: String,
    text: Option<&'a str>,
    /// Present only for a file entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<FileJson<'a>>,
    link: Option<String>,
}

/// A file in JSON.
#[derive(Debug, Serialize)]
pub(crate) struct FileJson<'a> {
    /// The name that the sender gave it.
    name: &'a str,
    /// The directories above it at the sender, if any.
    #[serde(skip_serializing_if = "str::is_empty")]
    dir: &'a str,
    size: u64,
    blake3: String,
    /// The path it was saved under; only for a file that was fetched.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
}

impl<'a> FileJson<'a> {
    pub(crate) fn new(name: &'a str, size: u64, hash: &[u8; 32]) -> Self {
        Self { name, dir: "", size, blake3: HEXLOWER.encode(hash), path: None }
    }

    /// Sets the directories above the file at its sender.
    pub(crate) fn in_dir(mut self, dir: &'a str) -> Self {
        self.dir = dir;
        self
    }
}

impl<'a> EntryJson<'a> {
    /// `conversation` is spelled as on the command line.
    pub(crate) fn new(conversation: &'a str, entry: &'a Entry) -> Self {
        Self {
            conversation,
            n: entry.n,
            time: rfc3339(entry.time_ms),
            from: entry.sender.as_ref().and_then(Sender::user).map(|user| user.as_str()),
            device: entry.sender.as_ref().and_then(Sender::device),
            kind: entry.kind.word(),
            id: entry.message_id.to_string(),
            text: entry.text.as_ref().map(|text| text.expose_raw()),
            file: entry.file.as_ref().map(|file| {
                FileJson::new(file.name.expose_raw(), file.size, &file.hash)
                    .in_dir(file.path.expose_raw())
            }),
            link: entry.link.map(|link| link.to_string()),
        }
    }

    /// Sets the path under which the file was saved.
    pub(crate) fn saved(mut self, path: Option<&Path>) -> Self {
        if let Some(file) = &mut self.file {
            file.path = path.map(json_path);
        }
        self
    }
}

/// An acknowledgement in JSON.
#[derive(Debug, Serialize)]
pub(crate) struct AckJson<'a> {
    conversation: &'a str,
    n: u64,
    time: String,
    id: String,
    link: String,
}

impl<'a> AckJson<'a> {
    pub(crate) fn new(conversation: &'a str, message_id: &MessageId, ack: &Ack) -> Self {
        Self {
            conversation,
            n: ack.n,
            time: rfc3339(ack.time_ms),
            id: message_id.to_string(),
            link: ack.link.to_string(),
        }
    }
}

/// How to fetch a file, for [`human`].
pub(crate) fn get_it(target: &str, entry: &Entry) -> String {
    format!("get it with: twinlock get {target} {}", entry.n)
}

/// Indentation of an entry's further lines, in columns; text begins after the time.
const INDENT: usize = 6;

/// An entry for people: time, sender and text. Further lines of the text are indented, so that none
/// looks like a separate entry. With `place`, it includes the conversation. `get` says how to fetch
/// a file.
pub(crate) fn human(out: &Output, place: Option<&str>, entry: &Entry, get: &str) -> String {
    shown(out, local_time(entry.time_ms), place, entry, get)
}

/// The same with the entry's number first, which `get` and `history --before` take.
pub(crate) fn numbered(out: &Output, entry: &Entry, get: &str) -> String {
    let time = format!("#{} {}", entry.n, local_time(entry.time_ms));
    shown(out, time, None, entry, get)
}

fn shown(out: &Output, time: String, place: Option<&str>, entry: &Entry, get: &str) -> String {
    let place = place.map(|place| format!(" {place}")).unwrap_or_default();
    let (text, erased) = match (&entry.text, &entry.file) {
        (Some(text), _) => (text.render(), false),
        (None, Some(file)) => {
            let (name, size) = (file.name.render_line(), HumanBytes(file.size));
            let name = match file.path.render_line() {
                dir if dir.is_empty() => name,
                dir => format!("{dir}/{name}"),
            };
            (format!("sent a file: {name} ({size}), {get}"), false)
        }
        (None, None) => ("(erased)".to_owned(), true),
    };
    let wrap = |used: usize, text: &str| match out.wrap(text, used, INDENT) {
        text if erased => out.style(Style::Dim, &text),
        text => text,
    };
    let head = out.style(Style::Dim, &time) + &place;
    let used = columns(&time) + columns(&place) + 1;
    let who = match &entry.sender {
        // The name of the classic key identifies the sender as much as its user does.
        Some(Sender::Classic(user, key)) => Some(format!("{user}/{key}")),
        sender => sender.as_ref().and_then(Sender::user).map(ToString::to_string),
    };
    match who {
        Some(who) => {
            let mark = match entry.kind {
                EntryKind::CLASSIC => " (classic)",
                EntryKind::UNPROTECTED => " (unprotected)",
                _ => "",
            };
            let text = wrap(used + who.len() + mark.len() + 2, &text);
            format!("{head} {}{mark}: {text}", out.style(Style::Bold, &who))
        }
        None => {
            format!("{head} {}", out.style(Style::Dim, &format!("* {}", wrap(used + 2, &text))))
        }
    }
}
