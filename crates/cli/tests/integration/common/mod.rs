//! Runs the real binary: a server as a child process, people with separate homes, and commands with
//! captured output and a hard timeout. Dropping a handle kills its child by pid.

pub mod data_dir;
pub mod device;
pub mod image;
pub mod lines;
pub mod malicious_server;
pub mod proxy;
pub mod raw;
pub mod terminal;

use std::fmt;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
pub use twinlock_testing::{LONG, Rng, bytes, copy_dir};

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_twinlock");

// ---- processes

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

/// The binary without environment variables that could change its behaviour.
pub fn twinlock() -> Command {
    let mut command = Command::new(BINARY);
    for (name, _) in std::env::vars_os() {
        let ours = name.to_string_lossy();
        if ["TWINLOCK_", "XDG_", "NO_COLOR"].iter().any(|start| ours.starts_with(start)) {
            command.env_remove(&name);
        }
    }
    command
}

// ---- the server

/// A server on the loopback address in a separate directory.
pub struct Host {
    root: TempDir,
    port: u16,
    args: Vec<String>,
    env: Vec<(String, PathBuf)>,
    running: Option<Running>,
    people: Mutex<u32>,
}

impl Host {
    /// A new server with default settings.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// A new server that gets `args` at every start.
    pub fn start_with(args: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), args)
    }

    /// A server whose record may already exist in `root/data`.
    pub fn start_in(root: TempDir, args: &[&str]) -> Self {
        Self::start_under(root, args, Vec::new())
    }

    /// A server that gets these environment variables at every start.
    pub fn start_under(root: TempDir, args: &[&str], env: Vec<(String, PathBuf)>) -> Self {
        let args = args.iter().map(ToString::to_string).collect();
        let mut host = Self { root, port: 0, args, env, running: None, people: Mutex::new(0) };
        host.restart();
        host
    }

    /// Starts or restarts it on its previous port, and waits until it listens.
    pub fn restart(&mut self) {
        self.restart_when(|_| ());
    }

    /// A new server; `begun` gets the process as soon as it exists.
    pub fn start_when(root: TempDir, args: &[&str], begun: impl FnOnce(&Running)) -> Self {
        let args = args.iter().map(ToString::to_string).collect();
        let mut host =
            Self { root, port: 0, args, env: Vec::new(), running: None, people: Mutex::new(0) };
        host.restart_when(begun);
        host
    }

    fn restart_when(&mut self, begun: impl FnOnce(&Running)) {
        assert!(self.running.is_none(), "it is running");
        let mut command = twinlock();
        command.arg("serve").arg("--data").arg(self.data());
        command.args(["--port", &self.port.to_string()]).args(&self.args);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let running = Running::start(&mut command);
        begun(&running);
        let address = running.wait_line("listening on ");
        self.port = address.parse::<SocketAddr>().unwrap().port();
        self.running = Some(running);
    }

    /// Changes its arguments at the next start.
    pub fn set_args(&mut self, args: &[&str]) {
        self.args = args.iter().map(ToString::to_string).collect();
    }

    pub fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    /// Sends SIGKILL at any moment of its work.
    pub fn kill(&mut self) {
        self.running.take().unwrap().killed();
    }

    /// Sends SIGTERM; returns how it ended.
    pub fn terminate(&mut self) -> Ran {
        let running = self.running.take().unwrap();
        running.signal(Signal::TERM);
        running.ended(LONG)
    }

    /// Waits for its death; returns the cause.
    pub fn died(mut self) -> ExitStatus {
        self.running.take().unwrap().end(LONG).0.expect("its end")
    }

    /// Waits for a server that was asked to end; returns how it ended.
    pub fn gone(&mut self) -> Ran {
        self.running.take().unwrap().ended(LONG)
    }

    /// The directory of the server and its people.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// `--data`.
    pub fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address that it prints after `what` at each start, such as "origin bridge on ".
    pub fn printed_address(&self, what: &str) -> SocketAddr {
        self.running().wait_line(what).parse().unwrap()
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// The server's log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.data().join("server.log")).unwrap()
    }

    /// The invite of the first start.
    pub fn owner_link(&self) -> String {
        let link = std::fs::read_to_string(self.data().join("owner-invite")).unwrap();
        link.trim().to_owned()
    }

    /// A person with an empty home.
    pub fn stranger(&self) -> Person {
        let mut people = self.people.lock().unwrap();
        *people += 1;
        Person { home: self.root().join(format!("home-{people}")), address: None }
    }

    /// The owner, `ada`, without a password.
    pub fn owner(&self) -> Person {
        self.stranger().joins("ada", &self.owner_link())
    }

    /// A member whom `by` has invited, without a password.
    pub fn member(&self, by: &Person, name: &str) -> Person {
        let link = by.invites();
        self.stranger().joins(name, &link)
    }
}

// ---- people

/// A person with a separate home, `TWINLOCK_HOME`.
#[derive(Debug, Clone)]
pub struct Person {
    pub home: PathBuf,
    /// `--address` of every command.
    pub address: Option<SocketAddr>,
}

impl Person {
    /// The same person, connecting to another address.
    pub fn by(&self, address: SocketAddr) -> Self {
        Self { address: Some(address), ..self.clone() }
    }

    /// A command of this person, for uses that the methods below do not cover.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = twinlock();
        command.env("TWINLOCK_HOME", &self.home).env("HOME", &self.home).args(args);
        if let Some(address) = self.address {
            command.env("TWINLOCK_ADDRESS", address.to_string());
        }
        command
    }

    /// Starts a command and leaves it running.
    pub fn start(&self, args: &[&str]) -> Running {
        Running::start(&mut self.command(args))
    }

    /// Runs a command to its end, with empty standard input.
    pub fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, "")
    }

    /// Runs a command with `how` after it in a shell: redirections, or a pipe whose failures count.
    pub fn run_in_shell(&self, args: &[&str], how: &str) -> Ran {
        let command = self.command(args);
        let mut shell = Command::new("bash");
        shell.args(["-o", "pipefail", "-c", &format!("\"$0\" \"$@\" {how}")]);
        shell.arg(command.get_program()).args(command.get_args());
        shell.env("TWINLOCK_HOME", &self.home).current_dir(&self.home);
        Running::start(&mut shell).ended(LONG)
    }

    /// Runs a command to its end with `input`.
    pub fn run_with(&self, args: &[&str], input: &str) -> Ran {
        let mut running = self.start(args);
        let mut stdin = running.stdin.take().unwrap();
        let input = input.to_owned();
        // A command that does not read its input still ends.
        let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        let ran = running.ended(LONG);
        writer.join().unwrap();
        ran
    }

    /// Runs `join --no-password`, which has to succeed.
    pub fn joins(self, name: &str, link: &str) -> Self {
        self.run(&["join", "--no-password", "--user", name, link]).exits(0);
        self
    }

    /// Creates an invite link for another person.
    pub fn invites(&self) -> String {
        self.run(&["invite"]).exits(0).out.trim().to_owned()
    }

    /// The whole record of a conversation as this person reads it, oldest first; the command
    /// verifies every link.
    pub fn reads(&self, target: &str) -> Vec<serde_json::Value> {
        self.run(&["history", target, "--limit", "1000000", "--json"]).exits(0).json()
    }

    /// The path of the profile.
    pub fn profile_file(&self) -> PathBuf {
        self.home.join("profiles/default.toml")
    }

    /// The current text of the profile.
    pub fn profile_text(&self) -> String {
        std::fs::read_to_string(self.profile_file()).unwrap()
    }
}

/// The texts of entries, in order.
pub fn texts(entries: &[serde_json::Value]) -> Vec<&str> {
    entries.iter().map(|entry| entry["text"].as_str().unwrap()).collect()
}

/// Reads lines of a stream that is not collected.
pub fn lines(from: impl Read) -> impl Iterator<Item = String> {
    BufReader::new(from).lines().map(Result::unwrap)
}

// ---- scale

/// The scale of a test: the value of the variable, or `usual`.
pub fn scale(variable: &str, usual: usize) -> usize {
    let scale = std::env::var(variable).ok();
    scale.map_or(usual, |scale| scale.parse().unwrap_or_else(|_| panic!("{variable}={scale}")))
}
