//! The terminal's mode for as long as a chat has it: every key waits unseen until the editor reads
//! it. Between two lines as well: in the terminal's own mode it would be shown wherever the cursor
//! is, and keys like Ctrl-D would not come through.

use std::io;

use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};

/// The terminal's two modes.
pub(super) struct Keys {
    /// As it was before.
    before: Termios,
    unseen: Termios,
}

impl Keys {
    /// Takes the keys.
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

    /// What waits already goes on waiting.
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
