//! What a server asks of its process. Called by the program before it starts one; a library that
//! is embedded elsewhere leaves its host alone.

use std::io;

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};

/// Open files this process may have: sockets, above all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// Before; `None`: no limit.
    pub before: Option<u64>,
    /// Now; `None`: no limit.
    pub now: Option<u64>,
}

/// Raises the limit of open files as far as the system lets this process, and says so in the log.
/// Each line takes one.
///
/// # Errors
/// What the system says; the limit then is as it was.
pub fn raise_descriptor_limit() -> io::Result<Descriptors> {
    let Rlimit { current: before, maximum } = getrlimit(Resource::Nofile);
    if before != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    let now = getrlimit(Resource::Nofile).current;
    let shown = |limit: Option<u64>| limit.map_or("none".to_owned(), |limit| limit.to_string());
    tracing::info!(target: crate::FILE_ONLY, before = %shown(before), now = %shown(now), "limit of open files");
    Ok(Descriptors { before, now })
}

/// No core dumps, and no other process of this user looks into this one's memory: it holds the
/// keys of every line and the OPAQUE setup.
///
/// # Errors
/// What the system says.
pub fn forbid_core_dumps() -> io::Result<()> {
    // The hard limit too, so that nothing this process starts raises it again.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptor_limit_goes_up_to_the_hard_one_and_stays() {
        let hard = getrlimit(Resource::Nofile).maximum;
        assert_eq!(raise_descriptor_limit().unwrap().now, hard);
        assert_eq!(raise_descriptor_limit().unwrap(), Descriptors { before: hard, now: hard });
    }

    #[test]
    fn core_dumps_are_off_for_good() {
        forbid_core_dumps().unwrap();
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        assert_eq!(getrlimit(Resource::Core), none);
        let dumpable = rustix::process::dumpable_behavior().unwrap();
        assert_eq!(dumpable, DumpableBehavior::NotDumpable);
    }
}
