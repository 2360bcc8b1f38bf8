//! Arguments of `bench`.

use std::time::Duration;

use clap::{Args, ValueEnum};
use twinlock_client::target::lowercase_name;
use twinlock_core::id::Name;
use twinlock_core::limits::MAX_TEXT;

use super::values::{bytes, seconds};

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Profile of the server to measure [default: as for every command]
    #[arg(id = "server-profile", value_name = "PROFILE", value_parser = lowercase_name, conflicts_with = "profile")]
    pub(crate) profile: Option<Name>,
    /// Measurements, separated by commas [default: all, in turn]
    #[arg(long, value_name = "MODE", value_delimiter = ',', hide_possible_values = true)]
    pub(crate) mode: Vec<BenchMode>,
    /// Number of connections; fan-out: followers; logins: concurrent, at most 6
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) lines: u32,
    /// Outstanding messages on each connection
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) window: u32,
    /// Size of a message in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=MAX_TEXT as i64))]
    pub(crate) size: u32,
    /// Size of the file, such as 64M or 1G
    #[arg(long, value_name = "BYTES", default_value = "64M", value_parser = bytes)]
    pub(crate) file: u64,
    /// Duration of each measurement, after a warm-up of the same length, at most 1 s
    #[arg(long, value_name = "S", default_value = "2.5", value_parser = seconds)]
    pub(crate) seconds: Duration,
    /// Create N users and spread the connections over them (a device has 16 sessions)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) users: Option<u32>,
    /// The server's process on this machine, to report its CPU time and memory
    #[arg(long, value_name = "PID")]
    pub(crate) server_pid: Option<u32>,
    /// Client threads; more than one takes cores from a server on this machine
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: u16,
    /// Print one JSON object for each measurement
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchMode {
    /// Messages and their acks.
    Messages,
    /// One line sends, the others follow.
    Fanout,
    /// Lines that say nothing.
    Idle,
    /// Full logins.
    Logins,
    /// A file up and down.
    Files,
}
