//! How a target reads its input.

/// Bytes that are read from the front; zeros follow the end.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// A value in `0..n`.
    pub(crate) fn below(&mut self, n: u8) -> u8 {
        self.byte() % n
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let taken = self.take(N);
        bytes[..taken.len()].copy_from_slice(taken);
        bytes
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.array())
    }

    /// The next `n` bytes, or all that remain.
    pub(crate) fn take(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A length byte, then that many bytes.
    pub(crate) fn part(&mut self) -> &'a [u8] {
        let len = self.byte();
        self.take(usize::from(len))
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        self.take(usize::MAX)
    }

    /// Changes at most three bytes of a valid value, and perhaps its length. Returns whether the
    /// value differs.
    pub(crate) fn change(&mut self, good: &mut Vec<u8>) -> bool {
        let before = good.clone();
        for _ in 0..self.below(4) {
            let at = usize::from(self.u16());
            let xor = self.byte();
            let len = good.len();
            if let Some(byte) = good.get_mut(at % len.max(1)) {
                *byte ^= xor;
            }
        }
        match self.below(8) {
            0 => good.truncate(usize::from(self.u16()) % (good.len() + 1)),
            1 => good.extend_from_slice(self.part()),
            _ => {}
        }
        *good != before
    }

    /// The same, with the length kept.
    pub(crate) fn change_array<const N: usize>(&mut self, good: &mut [u8; N]) -> bool {
        let before = *good;
        for _ in 0..self.below(4) {
            let at = usize::from(self.u16()) % N;
            good[at] ^= self.byte();
        }
        *good != before
    }
}
