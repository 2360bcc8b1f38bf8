//! The bytes of files: a small contract, its implementation on the local disk, and the policy above
//! it.
//!
//! [`contract`] keeps content by its BLAKE3 hash, and partial uploads; object storage can replace
//! the disk. [`FilePolicy`] decides who may store how much, keeps content while an entry refers to
//! it, and removes it afterwards. The record describes the files; this module knows nothing of
//! sessions.

mod claims;
mod contract;
mod directory;
mod disk;
mod disk_io;
mod file_policy;
mod hash_turns;
mod name;
mod partial;
mod prefix;
mod sweep;
#[cfg(test)]
mod tests;
mod upload_table;

pub(crate) use claims::QuotaClaim;
pub(crate) use contract::{Blob, FilesError, Hash, OpenUpload, UploadId};
pub(crate) use disk::LocalDisk;
pub(crate) use file_policy::{CheckedOffer, ClaimedUpload, Denied, FilePolicy};
pub(crate) use name::is_possible;
