//! Captures the server's log. There is one log per process, so tests that use it run one at a time.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use super::soon;

/// The log of one test.
pub struct Log {
    shared: &'static Shared,
    _alone: MutexGuard<'static, ()>,
}

struct Shared {
    /// Held by the test that uses the log.
    turn: Mutex<()>,
    /// The least severe level that is kept, and the captured text.
    kept: Arc<Mutex<(Level, Vec<u8>)>>,
}

impl Log {
    /// An empty log that keeps lines of this level and of more severe ones.
    pub fn of(level: Level) -> Self {
        static SHARED: OnceLock<Shared> = OnceLock::new();
        let shared = SHARED.get_or_init(|| {
            let kept = Arc::new(Mutex::new((level, Vec::new())));
            tracing_subscriber::fmt()
                .with_max_level(Level::TRACE)
                .with_ansi(false)
                .with_writer(Writer(kept.clone()))
                .init();
            Shared { turn: Mutex::default(), kept }
        });
        // A failed test has poisoned the lock; its turn is over.
        let alone = shared.turn.lock().unwrap_or_else(PoisonError::into_inner);
        *shared.kept.lock().unwrap() = (level, Vec::new());
        Self { shared, _alone: alone }
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.shared.kept.lock().unwrap().1.clone()).unwrap()
    }

    /// The lines that contain all of these words.
    pub fn with(&self, words: &[&str]) -> Vec<String> {
        let has = |line: &&str| words.iter().all(|words| line.contains(words));
        self.text().lines().filter(has).map(ToOwned::to_owned).collect()
    }

    /// Waits until other tasks have written this many lines with these words.
    pub async fn wait(&self, words: &[&str], lines: usize) -> Vec<String> {
        let there = async {
            while self.with(words).len() < lines {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon(words[0], there).await;
        self.with(words)
    }
}

/// Appends to the log.
#[derive(Clone)]
struct Writer(Arc<Mutex<(Level, Vec<u8>)>>);

impl<'a> MakeWriter<'a> for Writer {
    type Writer = Box<dyn io::Write>;

    fn make_writer(&'a self) -> Self::Writer {
        Box::new(self.clone())
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Self::Writer {
        if *meta.level() > self.0.lock().unwrap().0 {
            return Box::new(io::sink());
        }
        self.make_writer()
    }
}

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().1.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
