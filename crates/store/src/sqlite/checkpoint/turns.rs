//! Whose turn it is to move the WAL: a table of states, without a clock, a thread or a database.

use std::time::{Duration, Instant};

/// Frames (pages) of WAL after which a checkpoint is worth its two syncs: 4 MiB. Smaller ones
/// write the same hot pages more often; larger ones keep the disk longer from the commits' syncs, and
/// make the WAL and a start after a crash longer.
pub(super) const WORTH: u32 = 1024;
/// Frames that are little enough to be moved between two commits: half a MiB, below a millisecond.
pub(super) const LITTLE: u32 = 128;
/// Frames at which the recorder waits for those who read, so that the WAL can begin anew: 64 MiB.
const LARGE: u32 = 16 * WORTH;
/// When what was erased is tried again, if it was in vain.
const AGAIN: Duration = Duration::from_secs(1);

/// What was before this opening of the record.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Before {
    /// A sync has failed.
    pub(in super::super) failed: bool,
    /// Something that was erased may still be in the WAL.
    pub(in super::super) due: bool,
}

/// Whose turn it is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nobody's, until there is more to move.
    #[default]
    Idle,
    /// Nobody's, until there is much more or something is erased: the disk is given time.
    Resting,
    /// The thread's, to move what it can.
    Asked,
    /// Somebody moves.
    Moving,
    /// The recorder's, to move the rest.
    Left,
    /// Nobody's any more: a sync has failed.
    Failed,
}

/// Whether something that was erased may still be in the WAL.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Erased {
    #[default]
    No,
    /// It is, and the WAL is to be emptied.
    Now,
    /// It is, and the WAL is to be emptied then: it was tried in vain, or a start comes first.
    Later(Instant),
}

/// What the recorder is to do in its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finish {
    /// Move the rest, as far as nobody reads what it would replace.
    Rest,
    /// Empty the WAL of what was erased, and wait a moment for whoever reads.
    Forget,
    /// Empty the WAL, which is large, and wait for whoever reads.
    Restart,
}

/// What recorder and thread know together.
#[derive(Debug)]
pub(super) struct State {
    pub(super) stage: Stage,
    pub(super) erased: Erased,
    /// Frames in the WAL after the last commit.
    pub(super) frames: u32,
    /// Frames at which there is enough to move; `None`: as many more as there are after the next
    /// commit.
    next: Option<u32>,
    /// Frames at which whoever reads is waited for.
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
            // Nothing was left.
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

    /// The recorder has nothing to do: a good moment, if it is worth something.
    pub(super) fn idle(&mut self) {
        if self.frames >= LITTLE && self.stage == Stage::Idle {
            self.stage = Stage::Asked;
        }
    }

    /// Something was erased: the WAL shall forget it too.
    pub(super) fn erase(&mut self) {
        // Who erases much does not wait for the same reader each time.
        if self.erased == Erased::No {
            self.erased = Erased::Now;
        }
        if matches!(self.stage, Stage::Idle | Stage::Resting) {
            self.stage = Stage::Asked;
        }
    }

    /// When something is to be tried again, if it is not somebody's turn before.
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

    /// The thread's turn, if it is.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        // What is left is taken back for that: the recorder may be idle, and hears of it so.
        let takes = self.is_again(now) || self.stage == Stage::Asked;
        if takes {
            self.stage = Stage::Moving;
        }
        takes
    }

    /// The thread has done what it can. Says whether the recorder is to hear of it.
    pub(super) fn moved(&mut self) -> bool {
        self.stage = Stage::Left;
        self.erased == Erased::Now
    }

    /// The recorder's turn, if it is.
    pub(super) fn take_rest(&mut self, now: Instant) -> Option<Finish> {
        if self.stage != Stage::Left {
            return None;
        }
        self.is_again(now);
        self.stage = Stage::Moving;
        Some(match self.erased {
            // Readers that come one after the other may keep it from beginning anew as long as
            // nobody waits for them.
            _ if self.frames >= self.large => Finish::Restart,
            Erased::Now => Finish::Forget,
            Erased::No | Erased::Later(_) => Finish::Rest,
        })
    }

    /// `emptied`: the WAL is; `None`: the disk has failed to.
    pub(super) fn finished(&mut self, finish: Finish, emptied: Option<bool>, now: Instant) {
        self.stage = Stage::Idle;
        if emptied == Some(true) {
            self.erased = Erased::No;
            self.frames = 0;
            return self.begins_anew();
        }
        if finish == Finish::Restart && emptied.is_some() {
            // Somebody who reads for long is not waited for again and again.
            self.large = self.frames.saturating_mul(2);
        }
        if self.erased == Erased::Now {
            self.erased = Erased::Later(now + AGAIN);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn state(failed: bool, due: bool) -> (State, Instant) {
        let now = Instant::now();
        (State::new(Before { failed, due }, now), now)
    }

    #[test]
    fn the_recorder_has_its_turn_however_much_there_is_to_move() {
        let (mut state, now) = state(false, false);
        state.committed(WORTH - 1);
        assert!(!state.take(now));
        state.committed(WORTH);
        assert!(state.take(now));
        // While the thread moves, and after that until the recorder has moved the rest.
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
    fn nothing_is_left_once_the_wal_has_begun_anew() {
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
    fn who_reads_for_long_is_waited_for_once_until_twice_as_much_is_there() {
        let (mut state, now) = state(false, false);
        let turn = |state: &mut State, frames, emptied| {
            state.committed(frames);
            assert!(state.take(now) && !state.moved());
            let finish = state.take_rest(now).unwrap();
            state.finished(finish, emptied, now);
            finish
        };
        assert_eq!(turn(&mut state, LARGE - 1, Some(false)), Finish::Rest);
        // Nobody was waited for.
        assert_eq!(turn(&mut state, LARGE + WORTH, None), Finish::Restart);
        assert_eq!(turn(&mut state, LARGE + 2 * WORTH, Some(false)), Finish::Restart);
        assert_eq!(turn(&mut state, LARGE + 3 * WORTH, Some(false)), Finish::Rest);
        assert_eq!(turn(&mut state, 2 * (LARGE + 2 * WORTH), Some(false)), Finish::Restart);
        state.committed(1);
        assert_eq!(turn(&mut state, LARGE, Some(true)), Finish::Restart);
        assert_eq!(turn(&mut state, WORTH, Some(false)), Finish::Rest);
    }

    #[test]
    fn what_was_erased_is_forgotten_at_once_or_tried_again_in_a_while() {
        let (mut state, now) = state(false, false);
        state.committed(3);
        state.erase();
        assert!(state.take(now));
        // The recorder may be idle.
        assert!(state.moved());
        // Though the WAL begins anew, it may be in what is behind.
        state.committed(2);
        assert_eq!(state.take_rest(now), Some(Finish::Forget));
        state.finished(Finish::Forget, Some(false), now);
        let again = now + AGAIN;
        assert_eq!(state.again(), Some(again));
        // Meanwhile nobody who reads is waited for, whatever else is erased; and it stays that time.
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
    fn a_turn_of_the_recorder_that_comes_in_time_forgets_too() {
        let (mut state, now) = state(false, true);
        state.committed(WORTH);
        assert!(state.take(now) && !state.moved());
        assert_eq!(state.take_rest(now + AGAIN), Some(Finish::Forget));
    }

    #[test]
    fn what_a_crash_left_is_tried_in_a_while_and_after_a_failed_sync_once_there_is_much_more() {
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
        // Whoever erases something new does not wait for that.
        let (mut failed, now) = state(true, false);
        failed.erase();
        assert!(failed.take(now));
    }
}
