//! Logs to the console and to a rotating file, one line an event, in UTC.

use std::io;
use std::path::Path;
use std::sync::Mutex;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use twinlock_server::FILE_ONLY;

use crate::clock::{now_ms, rfc3339};
use crate::log_file::{LogFile, Reopen};
use crate::settings::LogLevel;

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

/// Destinations and format of the log.
pub(crate) struct Logs<'a> {
    /// The file; its directory must exist.
    pub(crate) file: &'a Path,
    /// Also logs to standard error from this level on, without events of target [`FILE_ONLY`].
    pub(crate) console: Option<LevelFilter>,
    pub(crate) level: LevelFilter,
    pub(crate) json: bool,
    pub(crate) color: bool,
}

impl Logs<'_> {
    /// Starts logging; effective once per process.
    ///
    /// # Errors
    /// The file cannot be opened; then nothing is logged.
    pub(crate) fn start(self) -> io::Result<Reopen> {
        let reopen = Reopen::default();
        let file = LogFile::open(self.file, reopen.clone())?;
        let console = self.console.map(|level| {
            self.layer(io::stderr, self.color)
                .with_filter(level.and(filter_fn(|meta| meta.target() != FILE_ONLY)))
        });
        let file = self.layer(Mutex::new(file), false).with_filter(self.level);
        let logs = tracing_subscriber::registry().with(console).with(file);
        // Only a second call can fail; the first logger then stays in use.
        let _started = logs.try_init();
        Ok(reopen)
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
        if self.json { layer.json().flatten_event(true).boxed() } else { layer.boxed() }
    }
}

/// RFC 3339 UTC with milliseconds.
struct Utc;

impl FormatTime for Utc {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        w.write_str(&rfc3339(now_ms()))
    }
}
