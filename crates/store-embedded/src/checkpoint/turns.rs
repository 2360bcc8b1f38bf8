//! Whose turn it is to checkpoint: a state machine without clock, thread or database.

use std::time::{Duration, Instant};

/// Frames (pages) in the WAL after which a checkpoint is worth its two syncs: 4 MiB.
///
/// Smaller checkpoints write the same hot pages more often. Larger ones keep the disk from the
/// commits' syncs for longer, and lengthen the WAL and the recovery after a crash.
pub(super) const WORTH: u32 = 1024;
/// Frames that are few enough to checkpoint between two commits: 512 KiB, less than a millisecond.
pub(super) const LITTLE: u32 = 128;
/// Frames from which the recorder waits for readers so that the WAL can restart: 64 MiB.
const LARGE: u32 = 16 * WORTH;
/// Delay before another attempt to remove erased content from the WAL.
const AGAIN: Duration = Duration::from_secs(1);

/// The state that the previous opening of the record left.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Before {
    /// A sync failed.
    pub(crate) failed: bool,
    /// The WAL may still contain erased content.
    pub(crate) due: bool,
}

/// Whose turn it is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Waiting for more frames.
    #[default]
    Idle,
    /// Waiting for [`WORTH`] more frames or an erasure, after a failed sync: the disk is given
    /// time.
    Resting,
    /// The thread's turn, to checkpoint what it can.
    Asked,
    /// A checkpoint is running.
    Moving,
    /// The recorder's turn, to checkpoint the rest.
    Left,
    /// A sync has failed; no more checkpoints.
    Failed,
}

/// Whether the WAL may still contain erased content.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Erased {
    #[default]
    No,
    /// It may, and the WAL must be emptied.
    Now,
    /// It may, and the WAL must be emptied at this time: an attempt failed, or the record was just
    /// opened.
    Later(Instant),
}

/// What the recorder does in its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finish {
    /// Checkpoint the rest, as far as readers allow it.
    Rest,
    /// Remove erased content by emptying the WAL, waiting a moment for readers.
    Forget,
    /// Empty a large WAL, waiting longer for readers.
    Restart,
}

/// The state that recorder and thread share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) stage: Stage,
    pub(super) erased: Erased,
    /// Frames in the WAL after the last commit.
    pub(super) frames: u32,
    /// Frames from which a checkpoint is due; `None`: [`WORTH`] more than after the next commit.
    next: Option<u32>,
    /// Frames from which the recorder waits for readers.
    large: u32,
    pub(super) stop: bool,
}

impl State {
    pub(super) fn new(before: Before, now: Instant) -> Self {
        let (stage, next) = match before.failed {
            true => (Stage::Resting, None),
            false => (Stage::Idle, Some(WORTH)),
        };
        let erased = if before.due { Erased::Later(now + AGAIN) } else { Erased::No };
        Self { stage, erased, frames: 0, next, large: LARGE, stop: false }
    }

    fn begins_anew(&mut self) {
        (self.next, self.large) = (Some(WORTH), LARGE);
        match self.stage {
            Stage::Resting => self.stage = Stage::Idle,
            // The WAL restarts only when everything is checkpointed.
            Stage::Left if self.erased != Erased::Now => self.stage = Stage::Idle,
            _ => {}
        }
    }

    pub(super) fn committed(&mut self, frames: u32) {
        if frames < self.frames {
            self.begins_anew();
        }
        self.frames = frames;
        let more = frames.saturating_add(WORTH);
        let next = *self.next.get_or_insert(more);
        if frames >= next && matches!(self.stage, Stage::Idle | Stage::Resting) {
            self.next = Some(more);
            self.stage = Stage::Asked;
        }
    }

    /// The recorder is idle: checkpoint now, if there are enough frames.
    pub(super) fn idle(&mut self) {
        if self.frames >= LITTLE && self.stage == Stage::Idle {
            self.stage = Stage::Asked;
        }
    }

    /// Content was erased, and must be removed from the WAL too.
    pub(super) fn erase(&mut self) {
        // `Later` stays: frequent erasures must not wait for the same reader each time.
        if self.erased == Erased::No {
            self.erased = Erased::Now;
        }
        if matches!(self.stage, Stage::Idle | Stage::Resting) {
            self.stage = Stage::Asked;
        }
    }

    /// When emptying the WAL is tried again, unless a turn comes earlier.
    pub(super) fn again(&self) -> Option<Instant> {
        match (self.erased, self.stage) {
            (Erased::Later(at), Stage::Idle | Stage::Asked | Stage::Left) => Some(at),
            _ => None,
        }
    }

    fn is_again(&mut self, now: Instant) -> bool {
        let again = self.again().is_some_and(|at| now >= at);
        if again {
            self.erased = Erased::Now;
        }
        again
    }

    /// Takes the thread's turn; `false`: it is not the thread's turn.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        // A retry takes the turn back from the recorder, which may be idle: `moved` then wakes it.
        let takes = self.is_again(now) || self.stage == Stage::Asked;
        if takes {
            self.stage = Stage::Moving;
        }
        takes
    }

    /// Ends the thread's turn. Returns whether to wake the recorder.
    pub(super) fn moved(&mut self) -> bool {
        self.stage = Stage::Left;
        self.erased == Erased::Now
    }

    /// Takes the recorder's turn; `None`: it is not the recorder's turn.
    pub(super) fn take_rest(&mut self, now: Instant) -> Option<Finish> {
        if self.stage != Stage::Left {
            return None;
        }
        self.is_again(now);
        self.stage = Stage::Moving;
        Some(match self.erased {
            // Overlapping readers can prevent a restart for as long as the recorder does not wait
            // for them.
            _ if self.frames >= self.large => Finish::Restart,
            Erased::Now => Finish::Forget,
            Erased::No | Erased::Later(_) => Finish::Rest,
        })
    }

    /// Ends the recorder's turn. `emptied`: whether the WAL was emptied; `None`: the checkpoint
    /// failed.
    pub(super) fn finished(&mut self, finish: Finish, emptied: Option<bool>, now: Instant) {
        self.stage = Stage::Idle;
        if emptied == Some(true) {
            self.erased = Erased::No;
            self.frames = 0;
            return self.begins_anew();
        }
        if finish == Finish::Restart && emptied.is_some() {
            // Do not wait for the same long reader again until the WAL has doubled.
            self.large = self.frames.saturating_mul(2);
        }
        if self.erased == Erased::Now {
            self.erased = Erased::Later(now + AGAIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(failed: bool, due: bool) -> (State, Instant) {
        let now = Instant::now();
        (State::new(Before { failed, due }, now), now)
    }

    #[test]
    fn checkpoint_turn__recorder_gets_its_turn_at_any_wal_size() {
        let (mut state, now) = state(false, false);
        state.committed(WORTH - 1);
        assert!(!state.take(now));
        state.committed(WORTH);
        assert!(state.take(now));
        // While the thread checkpoints, and then until the recorder has done the rest.
        state.committed(4 * WORTH);
        assert!(!state.take(now) && state.take_rest(now).is_none());
        assert!(!state.moved());
        state.committed(8 * WORTH);
        state.idle();
        assert!(!state.take(now));
        assert_eq!(state.take_rest(now), Some(Finish::Rest));
        assert!(!state.take(now) && state.take_rest(now).is_none());
        state.finished(Finish::Rest, Some(false), now);
        state.committed(8 * WORTH + 1);
        assert!(state.take(now));
    }

    #[test]
    fn checkpoint_turn__no_rest_remains_after_wal_restart() {
        let (mut state, now) = state(false, false);
        state.committed(LITTLE - 1);
        state.idle();
        assert!(!state.take(now));
        state.committed(LITTLE);
        state.idle();
        assert!(state.take(now) && !state.moved());
        state.committed(3);
        assert_eq!(state.take_rest(now), None);
        state.committed(WORTH);
        assert!(state.take(now));
    }

    #[test]
    fn checkpoint_turn__waits_for_reader_once_until_wal_doubles() {
        let (mut state, now) = state(false, false);
        let turn = |state: &mut State, frames, emptied| {
            state.committed(frames);
            assert!(state.take(now) && !state.moved());
            let finish = state.take_rest(now).unwrap();
            state.finished(finish, emptied, now);
            finish
        };
        assert_eq!(turn(&mut state, LARGE - 1, Some(false)), Finish::Rest);
        // A failed checkpoint does not raise the limit.
        assert_eq!(turn(&mut state, LARGE + WORTH, None), Finish::Restart);
        assert_eq!(turn(&mut state, LARGE + 2 * WORTH, Some(false)), Finish::Restart);
        assert_eq!(turn(&mut state, LARGE + 3 * WORTH, Some(false)), Finish::Rest);
        assert_eq!(turn(&mut state, 2 * (LARGE + 2 * WORTH), Some(false)), Finish::Restart);
        state.committed(1);
        assert_eq!(turn(&mut state, LARGE, Some(true)), Finish::Restart);
        assert_eq!(turn(&mut state, WORTH, Some(false)), Finish::Rest);
    }

    #[test]
    fn checkpoint_turn__erased_is_removed_at_once_or_retried() {
        let (mut state, now) = state(false, false);
        state.committed(3);
        state.erase();
        assert!(state.take(now));
        // The recorder may be idle.
        assert!(state.moved());
        // Although the WAL restarts, old frames behind the new ones may still contain it.
        state.committed(2);
        assert_eq!(state.take_rest(now), Some(Finish::Forget));
        state.finished(Finish::Forget, Some(false), now);
        let again = now + AGAIN;
        assert_eq!(state.again(), Some(again));
        // Until then the recorder waits for no reader, whatever else is erased, and the time stays.
        state.erase();
        state.committed(WORTH);
        assert!(state.take(now) && !state.moved());
        assert_eq!(state.take_rest(now), Some(Finish::Rest));
        state.finished(Finish::Rest, Some(false), now);
        assert_eq!(state.again(), Some(again));
        assert!(!state.take(now) && state.take(again) && state.moved());
        assert_eq!(state.take_rest(again), Some(Finish::Forget));
        state.finished(Finish::Forget, Some(true), again);
        assert!(state.again().is_none() && !state.take(again));
    }

    #[test]
    fn checkpoint_turn__recorder_turn_when_due_removes_erased() {
        let (mut state, now) = state(false, true);
        state.committed(WORTH);
        assert!(state.take(now) && !state.moved());
        assert_eq!(state.take_rest(now + AGAIN), Some(Finish::Forget));
    }

    #[test]
    fn checkpoint_turn__delayed_after_a_crash_or_failed_sync() {
        let (mut crashed, now) = state(false, true);
        assert_eq!(crashed.again(), Some(now + AGAIN));
        assert!(!crashed.take(now) && crashed.take(now + AGAIN));
        let (mut failed, now) = state(true, true);
        assert!(failed.again().is_none());
        failed.committed(5 * WORTH);
        failed.idle();
        assert!(!failed.take(now + AGAIN));
        failed.committed(6 * WORTH - 1);
        assert!(!failed.take(now + AGAIN));
        failed.committed(6 * WORTH);
        assert!(failed.take(now));
        // A new erasure does not wait for that.
        let (mut failed, now) = state(true, false);
        failed.erase();
        assert!(failed.take(now));
    }
}
