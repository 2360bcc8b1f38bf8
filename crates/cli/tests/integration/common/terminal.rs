//! A command on a separate pseudo-terminal, and the screen that its user sees.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::num::NonZero;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};
use vt100::Parser;

use super::LONG;

/// Rows and columns of a terminal of the default size.
pub const ROWS: u16 = 24;
pub const COLUMNS: u16 = 80;

/// A command on a terminal.
pub struct Terminal {
    child: Child,
    /// The child is a shell, and the command the shell's child.
    shell: bool,
    master: File,
    /// Kept open, so that output can still be read after the command's end.
    slave: File,
    screen: Arc<(Mutex<Seen>, Condvar)>,
    before: String,
}

struct Seen {
    parser: Parser,
    /// Every output byte, including those that a screen does not show.
    bytes: Vec<u8>,
}

impl Terminal {
    /// Starts a command with this as its controlling terminal.
    pub fn start(command: &Command) -> Self {
        let words = [command.get_program()].into_iter().chain(command.get_args());
        Self::starts(words, command, false)
    }

    /// The same under a shell, which waits for the command and can resume it.
    pub fn under_a_shell(command: &Command) -> Self {
        let shell = ["sh", "-c", "\"$@\"; exit $?", "sh"].map(OsStr::new).into_iter();
        let words = shell.chain([command.get_program()]).chain(command.get_args());
        Self::starts(words, command, true)
    }

    fn starts<'a>(words: impl Iterator<Item = &'a OsStr>, command: &Command, shell: bool) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let noctty = i32::try_from(OFlags::NOCTTY.bits()).unwrap();
        let slave =
            OpenOptions::new().read(true).write(true).custom_flags(noctty).open(name).unwrap();
        let master = File::from(master);
        resize(&master, ROWS, COLUMNS);
        let before = modes(&slave);

        let stdio = || Stdio::from(slave.try_clone().unwrap());
        let mut with_terminal = Command::new("setsid");
        with_terminal.arg("--ctty").args(words);
        with_terminal.env("TERM", "xterm-256color").env_remove("NO_COLOR");
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => with_terminal.env(name, value),
                None => with_terminal.env_remove(name),
            };
        }
        let child = with_terminal.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();

        let seen = Seen { parser: Parser::new(size(ROWS), size(COLUMNS), 1000), bytes: Vec::new() };
        let screen = Arc::new((Mutex::new(seen), Condvar::new()));
        let (mut from, to) = (master.try_clone().unwrap(), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            // Fails once no process has the other side open.
            while let Ok(read @ 1..) = from.read(&mut part) {
                let mut seen = to.0.lock().unwrap();
                seen.parser.process(&part[..read]);
                seen.bytes.extend_from_slice(&part[..read]);
                to.1.notify_all();
            }
        });
        Self { child, shell, master, slave, screen, before }
    }

    /// Sends keys.
    pub fn types(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Resizes the window.
    pub fn resize(&self, rows: u16, columns: u16) {
        self.screen.0.lock().unwrap().parser.screen_mut().set_size(size(rows), size(columns));
        resize(&self.master, rows, columns);
    }

    /// The lines of the screen, without trailing empty ones.
    pub fn lines(&self) -> Vec<String> {
        lines(&self.screen.0.lock().unwrap())
    }

    /// The whole output.
    pub fn bytes(&self) -> String {
        String::from_utf8_lossy(&self.screen.0.lock().unwrap().bytes).into_owned()
    }

    /// Waits until the screen satisfies `looks`.
    #[track_caller]
    pub fn wait(&self, what: &str, looks: impl Fn(&[String]) -> bool) {
        let until = Instant::now() + LONG;
        let mut seen = self.screen.0.lock().unwrap();
        while !looks(&lines(&seen)) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what} wanted: {:#?}", lines(&seen));
            seen = self.screen.1.wait_timeout(seen, left).unwrap().0;
        }
    }

    /// Waits until a line of the screen contains `words`.
    #[track_caller]
    pub fn wait_for(&self, words: &str) {
        self.wait(words, |lines| lines.iter().any(|line| line.contains(words)));
    }

    /// Waits until the output contains `words`, at any place.
    #[track_caller]
    pub fn wait_printed(&self, words: &str) {
        let until = Instant::now() + LONG;
        let mut seen = self.screen.0.lock().unwrap();
        while !String::from_utf8_lossy(&seen.bytes).contains(words) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{words} wanted: {:#?}", lines(&seen));
            seen = self.screen.1.wait_timeout(seen, left).unwrap().0;
        }
    }

    /// Waits until the last line of the screen is `line`.
    #[track_caller]
    pub fn wait_last(&self, line: &str) {
        self.wait(line, |lines| lines.last().is_some_and(|last| last == line));
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    fn pid(&self) -> Pid {
        let child = self.child.id().to_string();
        let pid = if self.shell {
            std::fs::read_to_string(format!("/proc/{child}/task/{child}/children")).unwrap()
        } else {
            child
        };
        Pid::from_raw(pid.trim().parse().unwrap()).unwrap()
    }

    /// Whether the terminal echoes keys.
    pub fn echoes(&self) -> bool {
        tcgetattr(&self.slave).unwrap().local_modes.contains(rustix::termios::LocalModes::ECHO)
    }

    /// Whether Ctrl-C sends a signal.
    pub fn interrupts(&self) -> bool {
        tcgetattr(&self.slave).unwrap().local_modes.contains(rustix::termios::LocalModes::ISIG)
    }

    /// Waits until the command is suspended, and checks that the terminal is restored.
    #[track_caller]
    pub fn wait_stopped(&self) {
        let stat = format!("/proc/{}/stat", self.pid().as_raw_pid());
        let is_stopped = || {
            let stat = std::fs::read_to_string(&stat).unwrap();
            stat.rsplit(") ").next().unwrap().starts_with('T')
        };
        let until = Instant::now() + LONG;
        while !is_stopped() {
            assert!(Instant::now() < until, "it is not suspended: {:#?}", self.lines());
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(modes(&self.slave), self.before, "the terminal is not as it was");
        while self.marks_what_is_pasted() {
            assert!(Instant::now() < until, "the terminal still marks what is pasted");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn marks_what_is_pasted(&self) -> bool {
        let bytes = self.bytes();
        let last = bytes.rfind("\u{1b}[?2004").map(|at| &bytes[at + 7..at + 8]);
        !matches!(last, None | Some("l"))
    }

    /// Waits for the end of the command, and checks that the terminal is restored.
    #[track_caller]
    pub fn ends(&mut self, code: i32) {
        let until = Instant::now() + LONG;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(Instant::now() < until, "it does not end: {:#?}", self.lines()),
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        assert_eq!(status.code(), Some(code), "{:#?}", self.lines());
        assert_eq!(modes(&self.slave), self.before, "the terminal is not as it was");
        // Its last output may still be in the terminal's buffer.
        while self.marks_what_is_pasted() {
            assert!(Instant::now() < until, "the terminal still marks what is pasted");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn lines(seen: &Seen) -> Vec<String> {
    let mut lines: Vec<_> =
        seen.parser.screen().contents().lines().map(|line| line.trim_end().to_owned()).collect();
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines
}

fn resize(master: &File, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(master, size).unwrap();
}

fn size(cells: u16) -> NonZero<u16> {
    NonZero::new(cells).unwrap()
}

fn modes(slave: &File) -> String {
    let modes = tcgetattr(slave).unwrap();
    format!(
        "{:?} {:?} {:?} {:?}",
        modes.input_modes, modes.output_modes, modes.control_modes, modes.local_modes
    )
}
