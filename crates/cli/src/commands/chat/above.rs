//! What is printed above the line that is being typed.
//!
//! The editor's own way for that holds one text, which stays there when a line is entered before it
//! is taken: the next one then waits for an editor that waits for its prompt. So the text is kept
//! here, and goes out with the prompt, which is asked for here each time it is drawn. Only the wish
//! that it be drawn takes the editor's way.

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

/// Has the editor draw its prompt. What it prints for that has to end a line: this one goes up
/// first, and so changes nothing.
const DRAW: &str = "\u{1b}[A\n";
/// Ends the mode in which a terminal marks what is pasted, and a drawing that was begun.
const PLAIN: &str = "\u{1b}[?2004l\u{1b}[?2026l";
/// Begins the former again.
const MARKED: &str = "\u{1b}[?2004h";

/// How long the editor may take to come to rest.
const REST: Duration = Duration::from_secs(1);

pub(super) struct Above {
    state: Mutex<State>,
    draw: SyncSender<()>,
    /// The editor has come to rest.
    rests: Notify,
    /// It need not rest any longer, or has drawn, or left the cursor.
    goes_on: Condvar,
}

struct State {
    /// The editor has the cursor.
    editing: bool,
    /// It has drawn its prompt, before which it sets the terminal's mode.
    drawn: bool,
    /// To be printed by it.
    text: String,
    /// The process is suspended, or about to be.
    suspended: bool,
    /// The editor waits until it is not.
    resting: bool,
    over: bool,
    keys: Keys,
}

impl Above {
    pub(super) fn new(keys: Keys, mut printer: Box<dyn ExternalPrinter + Send>) -> Arc<Self> {
        let (draw, wanted) = sync_channel(1);
        // A thread, because it waits while a wish stands that the editor has not seen.
        std::thread::spawn(move || {
            while wanted.recv().is_ok() && printer.print(DRAW.to_owned()).is_ok() {}
        });
        let state = State {
            editing: false,
            drawn: false,
            text: String::new(),
            suspended: false,
            resting: false,
            over: false,
            keys,
        };
        let (state, rests, goes_on) = (Mutex::new(state), Notify::new(), Condvar::new());
        Arc::new(Self { state, draw, rests, goes_on })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(&self) {
        // If there is a wish already, it is seen after this.
        let _stands = self.draw.try_send(());
    }

    /// Prints lines, in their order, whoever has the cursor.
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

    /// What goes above the prompt that is about to be drawn.
    pub(super) fn take(&self) -> String {
        let mut state = self.state();
        state.drawn = true;
        self.goes_on.notify_all();
        let mut state = self.rest(state);
        if state.over { String::new() } else { take(&mut state.text) }
    }

    /// The editor takes the cursor; `false`: it may not any more.
    pub(super) fn begin_line(&self) -> bool {
        let mut state = self.rest(self.state());
        (state.editing, state.drawn) = (!state.over, false);
        state.editing
    }

    /// The editor has left the cursor at the beginning of a row.
    pub(super) fn end_line(&self) {
        let mut state = self.state();
        state.editing = false;
        self.goes_on.notify_all();
        if state.over {
            // It has set the mode again that it found.
            state.keys.give_back();
        } else {
            state.flush();
            self.rests.notify_one();
        }
    }

    /// Waits while the process is suspended, and leaves the terminal alone.
    fn rest<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        while state.suspended {
            state.resting = true;
            self.rests.notify_one();
            state = self.goes_on.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.resting = false;
        state
    }

    /// Suspends the process with the terminal as it was, and takes it again when it goes on.
    pub(super) async fn suspend(&self) {
        if !has_a_shell() {
            return;
        }
        let Ok(mut goes_on) = signal(SignalKind::from_raw(Signal::CONT.as_raw())) else { return };
        self.state().suspended = true;
        self.draw();
        // An editor that draws nothing for so long waits for a key, and does not change the mode.
        let _it_does = timeout(REST, async {
            while self.is_busy() {
                self.rests.notified().await;
            }
        })
        .await;
        self.leave();
        // A thread may go on a little after this.
        let _stopped = kill_process(getpid(), Signal::STOP);
        goes_on.recv().await;
        let mut state = self.state();
        if !state.over {
            state.keys.take();
            if state.editing {
                say(MARKED);
            }
        }
        state.suspended = false;
        self.goes_on.notify_all();
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
        state.editing && !state.resting
    }

    /// Gives the terminal back.
    pub(super) fn end(&self) {
        let begins = |state: &mut State| state.editing && !state.drawn;
        let waited = self.goes_on.wait_timeout_while(self.state(), REST, begins);
        let (mut state, _late) = waited.unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut state.over, true) {
            return;
        }
        if state.editing {
            // What follows does not go on the line that was being typed.
            say(&format!("{PLAIN}\r\n"));
        }
        state.flush();
        state.keys.give_back();
    }
}

impl State {
    fn flush(&mut self) {
        say(&take(&mut self.text));
    }
}

/// Somebody is there who can let a suspended process go on. Where this is all that a window or a
/// remote login runs, nobody is.
fn has_a_shell() -> bool {
    let (Some(parent), Ok(session)) = (getppid(), getsid(None)) else { return false };
    session != getpid() && getsid(Some(parent)) == Ok(session)
}

/// Whoever is gone is missed at the next line.
fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _gone = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
