//! Failures of files that tests choose. Other builds have no hook.

#[cfg(test)]
pub(crate) use hook::{Fault, Faults, Operation};
#[cfg(not(test))]
pub(crate) use none::{Faults, Operation};

#[cfg(test)]
mod hook {
    use std::fmt;
    use std::io;
    use std::path::Path;
    use std::sync::Arc;

    /// A change of a file or a directory that is about to happen.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Operation<'a> {
        Create(&'a Path),
        Write {
            path: &'a Path,
            offset: u64,
            bytes: &'a [u8],
        },
        Sync(&'a Path),
        /// The new name.
        Rename(&'a Path),
        SyncDirectory(&'a Path),
    }

    /// How an operation fails.
    #[derive(Debug)]
    pub(crate) struct Fault {
        /// Number of bytes that are written first.
        pub(crate) written: usize,
        pub(crate) error: io::Error,
    }

    type Hook = dyn Fn(Operation<'_>) -> Option<Fault> + Send + Sync;

    /// Decides about each operation.
    #[derive(Clone, Default)]
    pub(crate) struct Faults(Option<Arc<Hook>>);

    impl Faults {
        pub(crate) fn new(
            hook: impl Fn(Operation<'_>) -> Option<Fault> + Send + Sync + 'static,
        ) -> Self {
            Self(Some(Arc::new(hook)))
        }

        /// Asks before an operation. A failed write first writes some bytes with `partly`.
        pub(crate) fn before(
            &self,
            operation: Operation<'_>,
            partly: impl FnOnce(&[u8]) -> io::Result<()>,
        ) -> io::Result<()> {
            let Some(fault) = self.0.as_ref().and_then(|hook| hook(operation)) else {
                return Ok(());
            };
            if let Operation::Write { bytes, .. } = operation {
                partly(bytes.get(..fault.written).unwrap_or(bytes))?;
            }
            Err(fault.error)
        }
    }

    impl fmt::Debug for Faults {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Faults")
        }
    }
}

#[cfg(not(test))]
mod none {
    use std::io;
    use std::path::Path;

    #[allow(dead_code, reason = "only the hook of tests reads it")]
    pub(crate) enum Operation<'a> {
        Create(&'a Path),
        Write { path: &'a Path, offset: u64, bytes: &'a [u8] },
        Sync(&'a Path),
        Rename(&'a Path),
        SyncDirectory(&'a Path),
    }

    #[derive(Debug, Clone, Default)]
    pub(crate) struct Faults(());

    impl Faults {
        pub(crate) fn before(
            &self,
            _operation: Operation<'_>,
            _partly: impl FnOnce(&[u8]) -> io::Result<()>,
        ) -> io::Result<()> {
            Ok(())
        }
    }
}
