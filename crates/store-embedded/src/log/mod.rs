//! The log: segments, batches and records, as files. Knows nothing of SQLite or of people.
//!
//! [`open()`] reads the log and returns the [`LogWriter`], which appends batches. Readers
//! share [`Segments`].

mod batches;
mod block;
mod builder;
mod create;
mod cursor;
mod directory;
mod erasures;
mod error;
mod faults;
mod file;
mod format;
mod open;
mod options;
mod position;
mod recovery;
mod run;
mod scan;
mod segments;
mod spare;
mod walk;
mod writer;

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use faults::{Fault, Faults, Operation};

pub(crate) use block::Erasure;
pub(crate) use builder::BatchBuilder;
pub(crate) use directory::{create_directory, segment_path};
pub(crate) use error::LogError;
pub(crate) use open::{
    OpenedLog, Replayed, ReplayedBatch, ReplayedBlock, Resume, check_files, is_boundary, open,
    record_id,
};
pub(crate) use options::LogOptions;
pub(crate) use position::LogPosition;
pub(crate) use run::{Run, RunEntry, RunPlace};
pub(crate) use scan::ScannedBatch;
pub(crate) use segments::Segments;
pub(crate) use walk::{WalkEnd, Walked, WalkedPart, walk};
pub(crate) use writer::{AppendedBatch, LogWriter};
