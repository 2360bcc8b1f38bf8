//! Hex dumps of sealed bytes for the log.

use std::fmt;

/// Bytes of one read or write that a log at DEBUG shows, at most.
const MAX_SHOWN: usize = 256;

/// Sealed bytes as a log shows them: the first 256 in hex, then `..` if more follow.
pub struct Hex<'a>(pub &'a [u8]);

impl fmt::Debug for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.get(..MAX_SHOWN).unwrap_or(self.0);
        f.write_str(&data_encoding::HEXLOWER.encode(shown))?;
        f.write_str(if shown.len() < self.0.len() { ".." } else { "" })
    }
}
