//! Child processes with captured output and a hard timeout.

use std::fmt;
use std::io::{Read, Write as _};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::common::LONG;

/// A child process. Threads collect its output, so that no pipe fills up.
pub struct Running {
    child: Child,
    pub stdin: Option<ChildStdin>,
    out: Arc<Collected>,
    err: Arc<Collected>,
    readers: Vec<JoinHandle<()>>,
    /// The command, for messages.
    what: String,
}

/// How a process ended, and its output.
pub struct Ran {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

#[derive(Default)]
struct Collected {
    bytes: Mutex<(Vec<u8>, bool)>,
    news: Condvar,
}

impl Collected {
    fn of(mut from: impl Read + Send + 'static) -> (Arc<Self>, JoinHandle<()>) {
        let all = Arc::new(Self::default());
        let into = Arc::clone(&all);
        let reader = std::thread::spawn(move || {
            let mut part = vec![0; 64 * 1024];
            loop {
                let read = from.read(&mut part).unwrap_or(0);
                let mut bytes = into.bytes.lock().unwrap();
                bytes.0.extend_from_slice(&part[..read]);
                bytes.1 |= read == 0;
                into.news.notify_all();
                if read == 0 {
                    return;
                }
            }
        });
        (all, reader)
    }

    fn text(&self) -> String {
        String::from_utf8(self.bytes.lock().unwrap().0.clone()).expect("output is UTF-8")
    }

    /// Waits until `enough` returns true; `false` at the end of the output or after `limit`.
    fn wait(&self, limit: Duration, enough: impl Fn(&[u8]) -> bool) -> bool {
        let until = Instant::now() + limit;
        let mut bytes = self.bytes.lock().unwrap();
        loop {
            if enough(&bytes.0) {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if bytes.1 || left.is_zero() {
                return false;
            }
            bytes = self.news.wait_timeout(bytes, left).unwrap().0;
        }
    }
}

impl Running {
    /// Starts a command with all three streams piped.
    pub fn start(command: &mut Command) -> Self {
        let what = format!("{command:?}");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{what}: {error}"));
        let (out, out_reader) = Collected::of(child.stdout.take().unwrap());
        let (err, err_reader) = Collected::of(child.stderr.take().unwrap());
        let stdin = child.stdin.take();
        Self { child, stdin, out, err, readers: vec![out_reader, err_reader], what }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Its standard output so far.
    pub fn out(&self) -> String {
        self.out.text()
    }

    /// Its standard error so far.
    pub fn err(&self) -> String {
        self.err.text()
    }

    /// Waits until standard output has this many lines.
    pub fn wait_lines(&self, lines: usize) {
        let enough = |bytes: &[u8]| bytes.iter().filter(|b| **b == b'\n').count() >= lines;
        let done = self.out.wait(LONG, enough);
        let (out, err) = (self.out(), self.err());
        assert!(done, "{}: {lines} lines\n{}\n{}", self.what, end_of(&out), end_of(&err));
    }

    /// Waits until standard output has a line that starts with `start`; returns its rest.
    pub fn wait_line(&self, start: &str) -> String {
        let rest = |out: &str| {
            let line = out.split_inclusive('\n').find_map(|line| line.strip_prefix(start));
            line.and_then(|line| line.strip_suffix('\n')).map(ToOwned::to_owned)
        };
        self.out.wait(LONG, |bytes| rest(&String::from_utf8_lossy(bytes)).is_some());
        let (out, err) = (self.out(), self.err());
        let missing = || panic!("{}: {start:?}\n{}\n{}", self.what, end_of(&out), end_of(&err));
        rest(&out).unwrap_or_else(missing)
    }

    /// Waits up to `limit` for this many lines on standard output; returns whether they came.
    pub fn wait_lines_for(&self, lines: usize, limit: Duration) -> bool {
        let enough = |bytes: &[u8]| bytes.iter().filter(|b| **b == b'\n').count() >= lines;
        self.out.wait(limit, enough)
    }

    /// Waits until standard error contains `words`.
    pub fn wait_err(&self, words: &str) {
        self.wait_err_times(words, 1);
    }

    /// Waits until standard error contains `words` this many times.
    pub fn wait_err_times(&self, words: &str, times: usize) {
        let enough = |bytes: &[u8]| String::from_utf8_lossy(bytes).matches(words).count() >= times;
        let done = self.err.wait(LONG, enough);
        let (out, err) = (self.out(), self.err());
        assert!(done, "{}: {words:?}\n{}\n{}", self.what, end_of(&out), end_of(&err));
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Writes to its standard input, which stays open.
    pub fn write(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Closes its standard input.
    pub fn end_input(&mut self) {
        self.stdin = None;
    }

    /// Waits for its end; fails the test if that takes longer than `limit`.
    pub fn ended(self, limit: Duration) -> Ran {
        let what = self.what.clone();
        let (status, ran) = self.end(limit);
        assert!(status.is_some(), "{what} takes longer than {limit:?}\n{ran:?}");
        ran
    }

    /// Sends SIGKILL; returns the output until then.
    pub fn killed(self) -> Ran {
        self.signal(Signal::KILL);
        self.ended(LONG)
    }

    /// Waits for its end; kills it after `limit`, and then returns no status.
    pub fn end(mut self, limit: Duration) -> (Option<ExitStatus>, Ran) {
        self.stdin = None;
        let until = Instant::now() + limit;
        let status = loop {
            match self.child.try_wait().unwrap() {
                None if Instant::now() < until => std::thread::sleep(Duration::from_millis(2)),
                ended => break ended,
            }
        };
        if status.is_none() {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        let ran =
            Ran { code: status.and_then(|status| status.code()), out: self.out(), err: self.err() };
        (status, ran)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Does nothing after a normal end.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl fmt::Debug for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, out, err } = self;
        write!(f, "code {code:?}\n-- out --\n{}\n-- err --\n{}", end_of(out), end_of(err))
    }
}

/// The end of a text that may be megabytes long.
fn end_of(text: &str) -> &str {
    text.get(text.floor_char_boundary(text.len().saturating_sub(3000))..).unwrap_or_default()
}

impl Ran {
    /// Fails the test unless the exit code is `code`.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// Standard output as JSON, one document a line.
    pub fn json(&self) -> Vec<serde_json::Value> {
        json_lines(&self.out)
    }
}

pub fn json_lines(text: &str) -> Vec<serde_json::Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
