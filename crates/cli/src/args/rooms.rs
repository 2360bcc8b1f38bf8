//! Arguments of `rooms` and `room`.

use clap::{Args, Subcommand};
use twinlock_client::Target;

use super::text_argument::{TargetAndText, target_and_text};
use crate::exit::Failure;

#[derive(Debug, Args)]
pub(crate) struct RoomsArgs {
    /// The rooms you could join, instead
    #[arg(long)]
    pub(crate) joinable: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RoomCommand {
    /// Make a room that everybody on the server can join
    Create {
        /// Its name
        name: Target,
        /// What it is about
        #[arg(long, default_value = "")]
        topic: String,
    },
    /// Join a room
    Join {
        /// Its name
        name: Target,
    },
    /// Leave a room
    Leave {
        /// Its name
        name: Target,
    },
    /// List who is in a room
    Members {
        /// Its name
        name: Target,
        /// Print one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show the topic of a room, or set it
    #[command(override_usage = "twinlock room topic [OPTIONS] ROOM [--] [TEXT]")]
    Topic(TopicArgs),
}

#[derive(Debug, Args)]
pub(crate) struct TopicArgs {
    /// The room; then the new topic. A TEXT that begins with `-` goes after `--`
    #[arg(required = true, trailing_var_arg = true, value_name = "ROOM [--] [TEXT]")]
    pub(super) words: Vec<String>,
}

impl TopicArgs {
    /// Splits the arguments into room and new topic.
    pub(crate) fn take_words(self) -> Result<TargetAndText, Failure> {
        target_and_text(self.words)
    }
}
