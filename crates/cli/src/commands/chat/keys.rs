//! The terminal mode of a chat: each key waits without echo until the editor reads it.
//!
//! The mode also applies between two lines. In the original mode, the terminal would echo keys at
//! the cursor, and would intercept keys like Ctrl-D.

use std::io;

use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};

/// The terminal's two modes.
pub(super) struct Keys {
    /// The original mode.
    before: Termios,
    unseen: Termios,
}

impl Keys {
    /// Enters the mode without echo.
    pub(super) fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut unseen = before.clone();
        unseen.input_modes.remove(
            InputModes::BRKINT
                | InputModes::ICRNL
                | InputModes::INPCK
                | InputModes::ISTRIP
                | InputModes::IXON,
        );
        unseen
            .local_modes
            .remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::IEXTEN | LocalModes::ISIG);
        unseen.special_codes[SpecialCodeIndex::VMIN] = 1;
        unseen.special_codes[SpecialCodeIndex::VTIME] = 0;
        let keys = Self { before, unseen };
        keys.take();
        Ok(keys)
    }

    /// Keeps the input that is already queued.
    pub(super) fn take(&self) {
        let _gone = tcsetattr(io::stdin(), OptionalActions::Now, &self.unseen);
    }

    pub(super) fn give_back(&self) {
        let _gone = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.give_back();
    }
}
