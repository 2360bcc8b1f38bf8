//! The first start: the files of an empty log.

use std::io;
use std::path::Path;

use super::directory::{
    Contents, MARKER, check_segments, create_directory, create_marker, damaged, fault,
    segment_path, spare_path,
};
use super::error::LogError;
use super::faults::Faults;
use super::file::{LogFile, sync_directory};
use super::format::{SEGMENT_HEAD_LEN, SegmentHeader};
use super::open::Resume;
use super::options::LogOptions;
use super::writer::{random, write_header};
use crate::OpenError;

/// The record id, the headers of all segments, and whether this call has created them.
pub(crate) type Found = ([u8; 16], Vec<SegmentHeader>, bool);

/// Checks the log's files, or creates them if all are missing.
///
/// The marker is written when the first segment is complete but for its name. So a first start that
/// was cut short is distinguished from a log that has lost its segments.
pub(crate) fn find_or_create(
    directory: &Path,
    from: Resume,
    options: &LogOptions,
) -> Result<Found, OpenError> {
    let contents = Contents::find(directory, &options.faults)?;
    let known = from.position.is_some() || from.next_seq > 1;
    let begun = match contents.record_id {
        Some(record_id) if !contents.segments.is_empty() => {
            let headers = check_segments(directory, &contents, &record_id, &options.faults)?;
            return Ok((record_id, headers, false));
        }
        Some(record_id) => match begun_segment(directory, &record_id, options) {
            Some(begun) if !known => Some(begun),
            _ => {
                let path = segment_path(directory, 1);
                return Err(damaged(directory, &path, "this segment of the record is missing"));
            }
        },
        None if known => {
            let problem = "it is missing, and so are all segments, but a database was made of them";
            return Err(damaged(directory, &directory.join(MARKER), problem));
        }
        None => None,
    };
    let header = create(directory, begun, options)?;
    Ok((header.record_id, vec![header], true))
}

/// The first segment, complete but for its name.
fn begun_segment(
    directory: &Path,
    record_id: &[u8; 16],
    options: &LogOptions,
) -> Option<(LogFile, SegmentHeader)> {
    let file = LogFile::open_writable(&spare_path(directory), &options.faults).ok()?;
    let header = first_header(&file, record_id)?;
    Some((file, header))
}

/// Whether a first start was cut short before the first segment had its name. Changes nothing.
pub(crate) fn is_begun(directory: &Path, record_id: &[u8; 16], faults: &Faults) -> bool {
    let spare = LogFile::open(&spare_path(directory), faults);
    spare.is_ok_and(|spare| first_header(&spare, record_id).is_some())
}

fn first_header(file: &LogFile, record_id: &[u8; 16]) -> Option<SegmentHeader> {
    let mut head = [0; SEGMENT_HEAD_LEN];
    file.read(0, &mut head).ok()?;
    let header = SegmentHeader::decode(&head).ok()?;
    let whole = file.metadata().ok()?.len() == u64::from(header.size);
    (whole && header.number == 1 && header.record_id == *record_id).then_some(header)
}

fn create(
    directory: &Path,
    begun: Option<(LogFile, SegmentHeader)>,
    options: &LogOptions,
) -> Result<SegmentHeader, OpenError> {
    let faults = &options.faults;
    let (file, header) = match begun {
        Some(begun) => begun,
        None => {
            create_directory(directory, faults).map_err(fault(directory))?;
            let spare = spare_path(directory);
            let id = || random().map_err(|error| lacks_randomness(directory, error));
            let (record_id, id, size) = (id()?, id()?, options.size(1));
            let header = SegmentHeader { number: 1, record_id, id, first: 1, size };
            let file = write_first(&spare, &header, faults).map_err(fault(&spare))?;
            sync_directory(directory, faults).map_err(fault(directory))?;
            let marker = directory.join(MARKER);
            create_marker(directory, record_id, faults).map_err(fault(&marker))?;
            (file, header)
        }
    };
    let path = segment_path(directory, 1);
    file.rename(&path).map_err(fault(&path))?;
    sync_directory(directory, faults).map_err(fault(directory))?;
    Ok(header)
}

fn write_first(spare: &Path, header: &SegmentHeader, faults: &Faults) -> io::Result<LogFile> {
    let file = LogFile::create(spare, faults)?;
    file.reserve(u64::from(header.size))?;
    file.zero(0, u64::from(header.size))?;
    write_header(file, header)
}

fn lacks_randomness(directory: &Path, error: LogError) -> OpenError {
    fault(directory)(io::Error::other(error))
}
