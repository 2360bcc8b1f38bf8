//! The four services of a server, which its connections share.

use std::sync::Arc;

use crate::admission::Admission;
use crate::bus::Bus;
use crate::env::Env;
use crate::record::Record;

/// The services of one server. A function takes the narrowest one that it needs.
#[derive(Clone)]
pub(crate) struct Services {
    /// Configuration, clock, stop signal.
    pub(crate) env: Arc<Env>,
    /// Who may connect and log in.
    pub(crate) admission: Arc<Admission>,
    /// The record and the files, and each user's share of them.
    pub(crate) record: Arc<Record>,
    /// What sessions learn of each other.
    pub(crate) bus: Arc<dyn Bus>,
}
