//! Process settings of a server. The program applies them before it starts one; an embedded server
//! leaves its host process unchanged.

use std::io;

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};

/// Limit of open files, which are mostly sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// The limit before; `None`: unlimited.
    pub before: Option<u64>,
    /// The limit now; `None`: unlimited.
    pub now: Option<u64>,
}

/// Raises the limit of open files to the hard limit, and logs it. Each connection takes one.
///
/// # Errors
/// The system's error; the limit is then unchanged.
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

/// The limit of open files of a server that this user starts; `None`: unlimited.
#[must_use]
pub fn descriptor_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

/// Disables core dumps, and access to this process's memory by other processes of the same user.
/// The memory contains the keys of every session and the OPAQUE setup.
///
/// # Errors
/// The system's error.
pub fn forbid_core_dumps() -> io::Result<()> {
    // The hard limit too, so that no child process raises it again.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_limit__raised_to_hard_limit_idempotently() {
        let hard = getrlimit(Resource::Nofile).maximum;
        assert_eq!(raise_descriptor_limit().unwrap().now, hard);
        assert_eq!(raise_descriptor_limit().unwrap(), Descriptors { before: hard, now: hard });
    }

    #[test]
    fn core_dumps__disabled_by_limit_and_not_dumpable() {
        forbid_core_dumps().unwrap();
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        assert_eq!(getrlimit(Resource::Core), none);
        let dumpable = rustix::process::dumpable_behavior().unwrap();
        assert_eq!(dumpable, DumpableBehavior::NotDumpable);
    }
}
