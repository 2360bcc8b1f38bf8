//! Logs: on the console and in a file that rotates, one line an event, UTC.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Mutex;

use file_rotate::compression::Compression;
use file_rotate::suffix::AppendCount;
use file_rotate::{ContentLimit, FileRotate};
use jiff::Timestamp;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::args::LogLevel;

/// Bytes of one log file.
const FILE_BYTES: usize = 10 * 1024 * 1024;
/// Older files kept beside it.
const FILES: usize = 5;

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
        }
    }
}

/// Where log lines go.
pub(crate) struct Logs<'a> {
    /// The file; its directory exists.
    pub(crate) file: &'a Path,
    /// Also on standard error.
    pub(crate) console: bool,
    pub(crate) level: LevelFilter,
    pub(crate) json: bool,
    pub(crate) color: bool,
}

impl Logs<'_> {
    /// Starts logging, once a process.
    pub(crate) fn start(self) {
        let console = self.console.then(|| self.layer(io::stderr, self.color));
        let file = self.layer(Mutex::new(rotating(self.file)), false);
        let logs = tracing_subscriber::registry().with(console).with(file);
        // Only a second call can fail, and then logging goes on as it is.
        let _started = logs.try_init();
    }

    fn layer<S, W>(&self, writer: W, color: bool) -> Box<dyn Layer<S> + Send + Sync>
    where
        S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
        W: for<'w> tracing_subscriber::fmt::MakeWriter<'w> + Send + Sync + 'static,
    {
        let layer = tracing_subscriber::fmt::layer()
            .with_timer(Utc)
            .with_target(false)
            .with_ansi(color)
            .with_writer(writer);
        if self.json {
            layer.json().flatten_event(true).with_filter(self.level).boxed()
        } else {
            layer.with_filter(self.level).boxed()
        }
    }
}

fn rotating(path: &Path) -> FileRotate<AppendCount> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600);
    FileRotate::new(
        path,
        AppendCount::new(FILES),
        ContentLimit::BytesSurpassed(FILE_BYTES),
        Compression::None,
        Some(options),
    )
}

/// RFC 3339 UTC with milliseconds.
struct Utc;

impl FormatTime for Utc {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        write!(w, "{}", Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ"))
    }
}
