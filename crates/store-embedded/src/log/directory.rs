//! The log's directory: names, marker, and the checks of all segments.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::cursor::Cursor;
use super::faults::Faults;
use super::file::{LogFile, sync_directory};
use super::format::{BadHeader, SEGMENT_HEAD_LEN, SegmentHeader, VERSION};
use crate::OpenError;

/// The name of the marker, which makes a directory a record.
pub(crate) const MARKER: &str = "marker";
const MARKER_NEW: &str = "marker.new";
const MARKER_MAGIC: &[u8; 8] = b"TWINREC\0";
const MARKER_LEN: usize = 40;
const SPARE: &str = "spare";

/// The path of a segment.
pub(crate) fn segment_path(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{number:08}.log"))
}

/// The path of the next segment before it has a number.
pub(crate) fn spare_path(directory: &Path) -> PathBuf {
    directory.join(SPARE)
}

/// The number of a segment's file name.
fn segment_number(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".log")?;
    let number = digits.parse().ok().filter(|number| *number > 0)?;
    (format!("{number:08}") == digits).then_some(number)
}

pub(crate) fn fault(path: &Path) -> impl Fn(io::Error) -> OpenError + '_ {
    move |error| OpenError::File { path: path.to_owned(), error }
}

pub(crate) fn damaged(directory: &Path, path: &Path, problem: impl Into<String>) -> OpenError {
    let (path, directory) = (path.to_owned(), directory.to_owned());
    OpenError::Damaged { path, directory, problem: problem.into() }
}

/// The files in the directory.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// The record id in the marker.
    pub(crate) record_id: Option<[u8; 16]>,
    /// The numbers of the segments, ascending.
    pub(crate) segments: Vec<u32>,
}

impl Contents {
    /// Looks without writing. A directory that does not exist is empty.
    pub(crate) fn find(directory: &Path, faults: &Faults) -> Result<Self, OpenError> {
        match fs::symlink_metadata(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(fault(directory)(error)),
            Ok(meta) if meta.is_dir() => {}
            Ok(meta) => {
                let problem = match meta.is_symlink() {
                    true => "it is a symbolic link, which is not followed here",
                    false => "it is not a directory",
                };
                return Err(fault(directory)(io::Error::other(problem)));
            }
        }
        let mut segments = Vec::new();
        for item in fs::read_dir(directory).map_err(fault(directory))? {
            let name = item.map_err(fault(directory))?.file_name();
            segments.extend(name.to_str().and_then(segment_number));
        }
        segments.sort_unstable();
        let record_id = read_marker(directory, faults)?;
        if record_id.is_none() && !segments.is_empty() {
            let problem = "it is missing, and there are segments of a record";
            return Err(damaged(directory, &directory.join(MARKER), problem));
        }
        Ok(Self { record_id, segments })
    }
}

fn read_marker(directory: &Path, faults: &Faults) -> Result<Option<[u8; 16]>, OpenError> {
    let path = directory.join(MARKER);
    let file = match LogFile::open(&path, faults) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(fault(&path))?,
    };
    let invalid = || damaged(directory, &path, "it is not the marker of a record, or was changed");
    if file.metadata().map_err(fault(&path))?.len() != MARKER_LEN as u64 {
        return Err(invalid());
    }
    let mut bytes = [0; MARKER_LEN];
    file.read(0, &mut bytes).map_err(fault(&path))?;
    let fields = || {
        let (covered, checksum) = bytes.split_last_chunk::<4>()?;
        let valid = crc32fast::hash(covered).to_be_bytes() == *checksum;
        let mut cursor = Cursor(covered);
        let magic = cursor.take(MARKER_MAGIC.len())? == MARKER_MAGIC;
        (valid && magic).then_some((cursor.u32()?, cursor.array()?))
    };
    match fields() {
        Some((VERSION, record_id)) => Ok(Some(record_id)),
        Some((version, _)) => Err(newer(&path, version)),
        None => Err(invalid()),
    }
}

fn newer(path: &Path, found: u32) -> OpenError {
    let known = usize::try_from(VERSION).unwrap_or(usize::MAX);
    let found = usize::try_from(found).unwrap_or(usize::MAX);
    OpenError::Newer { path: path.to_owned(), found, known }
}

/// Creates the marker.
pub(crate) fn create_marker(directory: &Path, id: [u8; 16], faults: &Faults) -> io::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let mut bytes = Vec::with_capacity(MARKER_LEN);
    bytes.extend_from_slice(MARKER_MAGIC);
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    bytes.extend_from_slice(&id);
    bytes.extend_from_slice(&u64::try_from(now).unwrap_or(u64::MAX).to_be_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
    let file = LogFile::create(&directory.join(MARKER_NEW), faults)?;
    file.write(0, &bytes)?;
    file.sync()?;
    file.rename(&directory.join(MARKER))?;
    sync_directory(directory, faults)
}

/// Creates the directory, private, if it does not exist.
pub(crate) fn create_directory(directory: &Path, faults: &Faults) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => match directory.parent() {
            Some(parent) if parent.as_os_str().is_empty() => sync_directory(Path::new("."), faults),
            Some(parent) => sync_directory(parent, faults),
            None => Ok(()),
        },
    }
}

/// Opens a segment and checks that it is whole and belongs here.
pub(crate) fn open_segment(
    directory: &Path,
    number: u32,
    record_id: &[u8; 16],
    faults: &Faults,
) -> Result<(LogFile, SegmentHeader), OpenError> {
    let path = segment_path(directory, number);
    let wrong = |problem: String| damaged(directory, &path, problem);
    let file = match LogFile::open(&path, faults) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(wrong("this segment of the record is missing".into()));
        }
        file => file.map_err(fault(&path))?,
    };
    let size = file.metadata().map_err(fault(&path))?.len();
    let mut head = [0; SEGMENT_HEAD_LEN];
    if size >= head.len() as u64 {
        file.read(0, &mut head).map_err(fault(&path))?;
    }
    let header = match SegmentHeader::decode(&head) {
        Ok(header) => header,
        Err(BadHeader::Newer(version)) => return Err(newer(&path, version)),
        Err(BadHeader::Invalid) => {
            return Err(wrong("it does not begin with the header of a segment".into()));
        }
    };
    if header.record_id != *record_id {
        return Err(wrong("it is a segment of another record".into()));
    }
    if header.number != number {
        return Err(wrong(format!("it is segment {}", header.number)));
    }
    if u64::from(header.size) != size {
        return Err(wrong(format!("it has {size} bytes instead of {}", header.size)));
    }
    Ok((file, header))
}

/// Checks all segments. Returns their headers; that of segment `n` is at `n - 1`.
pub(crate) fn check_segments(
    directory: &Path,
    contents: &Contents,
    record_id: &[u8; 16],
    faults: &Faults,
) -> Result<Vec<SegmentHeader>, OpenError> {
    let last = contents.segments.last().copied().unwrap_or(1);
    let mut headers: Vec<SegmentHeader> = Vec::new();
    for number in 1..=last {
        let (file, header) = open_segment(directory, number, record_id, faults)?;
        let in_order = match headers.last() {
            Some(before) => header.first >= before.first,
            None => header.first == 1,
        };
        if !in_order {
            let problem = format!("it begins with record {}, which is too early", header.first);
            return Err(damaged(directory, file.path(), problem));
        }
        headers.push(header);
    }
    Ok(headers)
}

/// Takes group and others their rights on the directory and its log files.
pub(crate) fn make_private(directory: &Path, segments: u32) -> Result<(), OpenError> {
    let files = (1..=segments).map(|number| segment_path(directory, number));
    let paths = [directory.to_owned(), directory.join(MARKER)].into_iter().chain(files);
    for path in paths {
        let mode = fs::symlink_metadata(&path).map_err(fault(&path))?.permissions().mode();
        if mode & 0o077 != 0 {
            fs::set_permissions(&path, Permissions::from_mode(mode & 0o700))
                .map_err(fault(&path))?;
        }
    }
    Ok(())
}
