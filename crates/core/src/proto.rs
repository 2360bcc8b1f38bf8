//! The protobuf messages of READY and APP frames (section 8).
//!
//! A test (`tests/proto_compiled.rs`) compiles them from `proto/`. `Debug` output of a message ends
//! up in logs, so it shows neither secrets nor what users write.

use std::fmt;

pub use compiled::*;

#[allow(missing_docs, clippy::all, unreachable_pub)]
#[rustfmt::skip]
mod compiled;

impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invite")
            .field("id", &self.id)
            .field("secret", &format_args!(".."))
            .field("expires_ms", &self.expires_ms)
            .finish()
    }
}

impl fmt::Debug for AddClassicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddClassicKey")
            .field("name", &self.name)
            .field("conversation", &self.conversation)
            .field("form", &self.form)
            .field("key", &Hidden(self.key.len()))
            .finish()
    }
}

impl fmt::Debug for NewClassicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewClassicKey")
            .field("key", &format_args!(".."))
            .field("port", &self.port)
            .finish()
    }
}

impl fmt::Debug for Append {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Append")
            .field("conversation", &self.conversation)
            .field("message_id", &self.message_id)
            .field("body", &Hidden(self.body.len()))
            .finish()
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("n", &self.n)
            .field("time_ms", &self.time_ms)
            .field("message_id", &self.message_id)
            .field("kind", &self.kind)
            .field("sender", &self.sender)
            .field("body", &Hidden(self.body.len()))
            .finish_non_exhaustive()
    }
}

/// A byte string whose `Debug` output shows only its length.
struct Hidden(usize);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} bytes)", self.0)
    }
}
