//! Arguments of `chat`, `send`, `listen`, `outbox` and `history`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use twinlock_client::{InboxStart, Target};

use super::common::JsonArgs;
use super::text_argument::{TargetAndText, target_and_text};
use super::values::{Point, inbox_start, text};
use crate::exit::Failure;

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// A room, or @ and a user
    #[arg(default_value = "lobby")]
    pub(crate) target: Target,
    /// No line editor: never move the cursor or redraw, for screen readers and logs
    #[arg(long)]
    pub(crate) plain: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SendArgs {
    /// A room, or @ and a user; then the message. Without TEXT, or with `-`, each line of standard
    /// input is one message. A TEXT that begins with `-` goes after `--`
    #[arg(required = true, trailing_var_arg = true, value_name = "TARGET [--] [TEXT]")]
    pub(super) words: Vec<String>,
    /// Print each acknowledgement as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl SendArgs {
    /// Splits the arguments into target and text.
    pub(crate) fn take_words(&mut self) -> Result<TargetAndText, Failure> {
        target_and_text(std::mem::take(&mut self.words))
    }
}

#[derive(Debug, Args)]
pub(crate) struct ListenArgs {
    /// Rooms and @users [default: all your conversations]
    pub(crate) targets: Vec<Target>,
    /// Start at: all, new, or after entry N [default: where the last `listen` ended, else new]
    #[arg(long, value_name = "all|new|N", value_parser = inbox_start)]
    pub(crate) since: Option<InboxStart>,
    /// Exit after N entries
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Run CMD for each entry, given as JSON on stdin; an entry is done when CMD exits with 0.
    /// Resumes from a position of its own
    #[arg(long, value_name = "CMD", value_parser = text)]
    pub(crate) exec: Option<String>,
    /// After N failures of CMD move the entry to the dead-letter file and continue; 0: retry
    /// without limit
    #[arg(long, value_name = "N", default_value_t = 0, requires = "exec")]
    pub(crate) exec_tries: u32,
    /// Download incoming files into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) get: Option<PathBuf>,
    /// Exit when the entries that exist now are done
    #[arg(long)]
    pub(crate) until_now: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum OutboxCommand {
    /// List the messages that are queued, or refused by the server
    List(JsonArgs),
    /// Remove messages; a queued message may already have reached the server
    Drop {
        /// Message ids, or the first or last digits of an id
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Queue the refused messages again, and send all messages
    Retry,
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// A room, or @ and a user
    pub(crate) target: Target,
    /// Print at most N entries
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub(crate) limit: u64,
    /// Only entries before this one: a number, a time such as 09:30 or 2h, or `last`
    #[arg(long, value_name = "N|TIME|last")]
    pub(crate) before: Option<Point>,
    /// Only this entry and later ones
    #[arg(long, value_name = "N|TIME|last")]
    pub(crate) since: Option<Point>,
    /// Only entries with all these words, newest first; the last one may be the first three or
    /// more letters of a word
    #[arg(long, value_name = "TEXT", value_parser = text)]
    pub(crate) search: Option<String>,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}
