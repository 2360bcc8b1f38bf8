//! What a check has found.

use std::fmt;
use std::path::{Path, PathBuf};

use twinlock_core::id::ConversationId;

/// Most findings that are kept. The others are counted.
const KEPT: usize = 20;

/// Something in a record that does not verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub path: PathBuf,
    /// The byte in the file.
    pub offset: Option<u32>,
    /// The conversation.
    pub conversation: Option<ConversationId>,
    /// The entry's number.
    pub n: Option<u64>,
    /// The problem.
    pub problem: String,
}

impl Finding {
    pub(super) fn new(path: &Path, problem: impl Into<String>) -> Self {
        let (path, problem) = (path.to_path_buf(), problem.into());
        Self { path, offset: None, conversation: None, n: None, problem }
    }

    pub(super) fn at(self, offset: u32) -> Self {
        Self { offset: Some(offset), ..self }
    }

    pub(super) fn entry(self, conversation: ConversationId, n: u64) -> Self {
        Self { conversation: Some(conversation), n: Some(n), ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(offset) = self.offset {
            write!(f, ", byte {offset}")?;
        }
        if let (Some(conversation), Some(n)) = (self.conversation, self.n) {
            write!(f, ", entry {n} of conversation {conversation}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

/// The first findings, and the number of the others.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) kept: Vec<Finding>,
    pub(super) more: u64,
}

impl Findings {
    pub(super) fn add(&mut self, finding: Finding) {
        if self.kept.len() < KEPT {
            self.kept.push(finding);
        } else {
            self.more += 1;
        }
    }
}
