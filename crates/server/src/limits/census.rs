//! Detects that most connections come from one address, as behind a proxy without a PROXY header.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::SourcePrefix;

/// Connections in a round.
const ROUND: usize = 100;

/// The connections of the current round, by address.
#[derive(Debug, Default)]
pub(crate) struct Census(Mutex<Round>);

#[derive(Debug, Default)]
struct Round {
    seen: usize,
    by_source: HashMap<SourcePrefix, usize>,
}

/// An address with more than half of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Majority {
    pub(crate) source: SourcePrefix,
    pub(crate) count: usize,
    pub(crate) of: usize,
}

impl Census {
    /// Counts a connection. At the end of a round, returns the address with more than half of it,
    /// if any.
    pub(crate) fn note(&self, source: SourcePrefix) -> Option<Majority> {
        let mut round = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        round.seen += 1;
        *round.by_source.entry(source).or_default() += 1;
        if round.seen < ROUND {
            return None;
        }
        let Round { by_source, .. } = std::mem::take(&mut *round);
        let (source, count) = by_source.into_iter().max_by_key(|(_, count)| *count)?;
        (count > ROUND / 2).then_some(Majority { source, count, of: ROUND })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(n: usize) -> SourcePrefix {
        SourcePrefix::of([192, 0, 2, u8::try_from(n).unwrap()].into())
    }

    #[test]
    fn census__reports_address_with_majority_of_round() {
        let census = Census::default();
        let mut rounds = Vec::new();
        for n in 0..3 * ROUND {
            let from = match n / ROUND {
                // Half is not a majority.
                0 => n % 2,
                1 => n % ROUND / (ROUND / 2 + 1),
                _ => n % 50,
            };
            rounds.extend(census.note(source(from)));
        }
        assert_eq!(rounds, [Majority { source: source(0), count: ROUND / 2 + 1, of: ROUND }]);
    }
}
