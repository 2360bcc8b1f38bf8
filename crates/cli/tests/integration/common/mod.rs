//! Runs the real binary: a server as a child process, people with separate homes, and commands with
//! captured output and a hard timeout. Dropping a handle kills its child by pid.

pub mod data_dir;
pub mod device;
pub mod http_only;
pub mod image;
pub mod lines;
pub mod malicious_server;
pub mod middle;
mod process;
pub mod proxy;
pub mod raw;
pub mod tap;
pub mod terminal;

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Mutex;

pub use process::{Ran, Running, json_lines};
use rustix::process::Signal;
use tempfile::TempDir;
pub use twinlock_testing::{LONG, Rng, bytes, copy_dir};

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_twinlock");

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
