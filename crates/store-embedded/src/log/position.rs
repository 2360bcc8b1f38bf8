//! Places in the log.

/// A byte in a segment of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LogPosition {
    /// The segment's number, from 1.
    pub(crate) segment: u32,
    /// The byte's offset in the segment's file.
    pub(crate) offset: u32,
}
