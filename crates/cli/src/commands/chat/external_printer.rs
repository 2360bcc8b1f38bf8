//! Prints text above the line that is being edited.
//!
//! The editor's external printer holds one message. If a line is entered before the editor takes
//! that message, it stays there, and the next message blocks until the editor reads its next
//! prompt. So this module keeps the text and returns it with the prompt, which the editor requests
//! at each drawing. Only the request to draw uses the external printer.

use std::io::{self, Write as _};
use std::mem::take;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Signal, getpid, getppid, getsid, kill_process};
use rustyline::ExternalPrinter;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::keys::Keys;
use crate::output::{Gone, write_line};

/// Makes the editor draw its prompt. The printed text has to end a line; this one first moves the
/// cursor up, and so changes nothing.
const DRAW: &str = "\u{1b}[A\n";
/// Ends bracketed paste mode and a synchronized update.
const PLAIN: &str = "\u{1b}[?2004l\u{1b}[?2026l";
/// Enables bracketed paste mode again.
const MARKED: &str = "\u{1b}[?2004h";

/// How long the editor may take to pause.
const PAUSE: Duration = Duration::from_secs(1);

/// Prints lines above the prompt, and suspends the process around the editor.
pub(super) struct LinePrinter {
    state: Mutex<PrinterState>,
    draw: SyncSender<()>,
    /// The editor has paused or released the cursor.
    paused: Notify,
    /// The suspension has ended, or the editor has drawn or released the cursor.
    changed: Condvar,
}

struct PrinterState {
    /// The editor has the cursor.
    editing: bool,
    /// It has drawn its prompt; it sets the terminal's mode before that.
    drawn: bool,
    /// To be printed by the editor.
    text: String,
    /// The process is suspended, or about to be.
    suspended: bool,
    /// The editor waits for the end of the suspension.
    is_paused: bool,
    over: bool,
    keys: Keys,
}

impl LinePrinter {
    pub(super) fn new(keys: Keys, mut printer: Box<dyn ExternalPrinter + Send>) -> Arc<Self> {
        let (draw, wanted) = sync_channel(1);
        // On a thread, because printing blocks while the editor has an unseen request.
        std::thread::spawn(move || {
            while wanted.recv().is_ok() && printer.print(DRAW.to_owned()).is_ok() {}
        });
        let state = PrinterState {
            editing: false,
            drawn: false,
            text: String::new(),
            suspended: false,
            is_paused: false,
            over: false,
            keys,
        };
        let (state, paused, changed) = (Mutex::new(state), Notify::new(), Condvar::new());
        Arc::new(Self { state, draw, paused, changed })
    }

    fn state(&self) -> MutexGuard<'_, PrinterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(&self) {
        // If a request is already pending, the editor takes it after this point.
        let _stands = self.draw.try_send(());
    }

    /// Prints lines in order, with or without the editor holding the cursor.
    pub(super) fn print(&self, text: &str) -> Result<(), Gone> {
        let mut state = self.state();
        if !state.editing || state.over {
            return write_line(text);
        }
        state.text += text;
        state.text.push('\n');
        drop(state);
        self.draw();
        Ok(())
    }

    /// The text to print above the prompt that is about to be drawn.
    pub(super) fn take(&self) -> String {
        let mut state = self.state();
        state.drawn = true;
        self.changed.notify_all();
        let mut state = self.wait_while_suspended(state);
        if state.over { String::new() } else { take(&mut state.text) }
    }

    /// The editor takes the cursor; `false` if the chat is over.
    pub(super) fn begin_line(&self) -> bool {
        let mut state = self.wait_while_suspended(self.state());
        (state.editing, state.drawn) = (!state.over, false);
        state.editing
    }

    /// The editor has left the cursor at the beginning of a row.
    pub(super) fn end_line(&self) {
        let mut state = self.state();
        state.editing = false;
        self.changed.notify_all();
        if state.over {
            // The editor restored the mode that it found.
            state.keys.give_back();
        } else {
            state.flush();
            self.paused.notify_one();
        }
    }

    /// Blocks while the process is suspended, without touching the terminal.
    fn wait_while_suspended<'a>(
        &self,
        mut state: MutexGuard<'a, PrinterState>,
    ) -> MutexGuard<'a, PrinterState> {
        while state.suspended {
            state.is_paused = true;
            self.paused.notify_one();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_paused = false;
        state
    }

    /// Suspends the process with the terminal restored; takes the terminal again on resume.
    pub(super) async fn suspend(&self) {
        if !has_a_shell() {
            return;
        }
        let Ok(mut resumed) = signal(SignalKind::from_raw(Signal::CONT.as_raw())) else { return };
        self.state().suspended = true;
        self.draw();
        // An editor that draws nothing for this long waits for a key and does not change the mode.
        let _it_does = timeout(PAUSE, async {
            while self.is_busy() {
                self.paused.notified().await;
            }
        })
        .await;
        self.leave();
        // A thread may run a little longer after this.
        let _stopped = kill_process(getpid(), Signal::STOP);
        resumed.recv().await;
        let mut state = self.state();
        if !state.over {
            state.keys.take();
            if state.editing {
                say(MARKED);
            }
        }
        state.suspended = false;
        self.changed.notify_all();
    }

    fn leave(&self) {
        let state = self.state();
        if !state.over {
            say(PLAIN);
            state.keys.give_back();
        }
    }

    fn is_busy(&self) -> bool {
        let state = self.state();
        state.editing && !state.is_paused
    }

    /// Restores the terminal.
    pub(super) fn end(&self) {
        let begins = |state: &mut PrinterState| state.editing && !state.drawn;
        let waited = self.changed.wait_timeout_while(self.state(), PAUSE, begins);
        let (mut state, _late) = waited.unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut state.over, true) {
            return;
        }
        if state.editing {
            // The next output does not continue the line that was being edited.
            say(&format!("{PLAIN}\r\n"));
        }
        state.flush();
        state.keys.give_back();
    }
}

impl PrinterState {
    fn flush(&mut self) {
        say(&take(&mut self.text));
    }
}

/// Whether a shell can resume a suspended process. There is none if the chat is the only program of
/// a window or a remote login.
fn has_a_shell() -> bool {
    let (Some(parent), Ok(session)) = (getppid(), getsid(None)) else { return false };
    session != getpid() && getsid(Some(parent)) == Ok(session)
}

/// Writes text. The next line detects a closed output.
fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _gone = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
