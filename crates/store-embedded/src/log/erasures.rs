//! Which entries of the replayed part are erased, and which are damaged.

use std::collections::{HashMap, HashSet};

use twinlock_core::id::ConversationId;

use super::open::ReplayedBlock;
use super::run::{Run, RunEntry, RunPlace};
use super::scan::ScannedBatch;

type EntryId = (ConversationId, u64);

/// Compares the content of entries with the erasures that name them.
#[derive(Debug, Default)]
pub(crate) struct ErasureCheck {
    /// Entries whose content does not match, and that no erasure has named so far.
    suspects: HashMap<EntryId, Suspect>,
    /// Entries that an erasure names and whose content was there, or that were not replayed.
    named: HashSet<EntryId>,
    unfinished: Vec<(RunPlace, u64)>,
}

#[derive(Debug)]
struct Suspect {
    place: RunPlace,
    erased: bool,
}

/// The result of the check.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    /// Entries whose content does not match and that no erasure names.
    pub(crate) damaged: Vec<EntryId>,
    /// Entries that an erasure names and whose content is there in part.
    pub(crate) unfinished: Vec<(RunPlace, u64)>,
    /// Other entries that an erasure names: whole, or not among the replayed ones.
    pub(crate) named: HashSet<EntryId>,
}

impl ErasureCheck {
    /// Adds a batch.
    pub(crate) fn add(&mut self, batch: &ScannedBatch) {
        for block in &batch.blocks {
            match block {
                ReplayedBlock::Run(place, run) => {
                    for entry in decoded(run).filter(|entry| !entry.body_matches()) {
                        let suspect = Suspect { place: *place, erased: entry.erased };
                        self.suspects.insert((place.conversation, entry.n), suspect);
                    }
                }
                ReplayedBlock::Erasure(erasure) => {
                    let id = (erasure.conversation, erasure.n);
                    match self.suspects.remove(&id) {
                        Some(Suspect { erased: true, .. }) => {}
                        Some(Suspect { place, .. }) => self.unfinished.push((place, id.1)),
                        None => {
                            self.named.insert(id);
                        }
                    }
                }
                ReplayedBlock::Change(..) => {}
            }
        }
    }

    pub(crate) fn finish(self) -> Checked {
        let mut damaged: Vec<_> = self.suspects.into_keys().collect();
        damaged.sort_unstable();
        Checked { damaged, unfinished: self.unfinished, named: self.named }
    }
}

/// Moves the entries of a batch that are in `named` and not erased to `unfinished`.
pub(crate) fn find_whole(
    batch: &ScannedBatch,
    named: &mut HashSet<EntryId>,
    unfinished: &mut Vec<(RunPlace, u64)>,
) {
    for block in &batch.blocks {
        let ReplayedBlock::Run(place, run) = block else { continue };
        let first_to_last = place.first..place.first + u64::from(place.count);
        if !first_to_last.clone().any(|n| named.contains(&(place.conversation, n))) {
            continue;
        }
        for entry in decoded(run) {
            if named.remove(&(place.conversation, entry.n)) && !entry.erased {
                unfinished.push((*place, entry.n));
            }
        }
    }
}

/// What the content of the last batch says about its write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// It was written as a whole.
    Whole,
    /// A part is missing.
    Torn,
    /// This entry was erased, which happens only after a later batch was written.
    Erased(ConversationId, u64),
}

/// Judges a batch that nothing follows.
pub(crate) fn content(batch: &ScannedBatch) -> Content {
    let mut check = ErasureCheck::default();
    check.add(batch);
    let erased = check.suspects.iter().filter(|(_, suspect)| suspect.erased).map(|(id, _)| *id);
    match erased.min() {
        Some((conversation, n)) => Content::Erased(conversation, n),
        None if check.suspects.is_empty() && check.unfinished.is_empty() => Content::Whole,
        None => Content::Torn,
    }
}

/// The entries of a run whose structure was checked.
fn decoded(run: &Run) -> impl Iterator<Item = RunEntry> + '_ {
    run.entries().filter_map(Result::ok)
}
