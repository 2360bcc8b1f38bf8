//! Whose turn it is to checkpoint: a state machine without clock, thread or database.

use std::time::{Duration, Instant};

/// Frames (pages) in the WAL after which a checkpoint is worth its two syncs: 4 MiB.
///
/// Smaller checkpoints write the same hot pages more often. Larger ones keep the disk from the
/// commits' syncs for longer, and lengthen the WAL and the recovery after a crash.
pub(crate) const CHECKPOINT_FRAMES: u32 = 1024;
/// Frames that are few enough to checkpoint between two commits: 512 KiB, less than a millisecond.
pub(crate) const FEW_FRAMES: u32 = 128;
/// Frames from which the recorder waits for readers so that the WAL can restart: 64 MiB.
const LARGE_WAL: u32 = 16 * CHECKPOINT_FRAMES;
/// Delay before another attempt to remove erased content from the WAL.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The state that the previous opening of the record left.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PriorCheckpoints {
    /// A sync failed.
    pub(crate) failed: bool,
    /// The WAL may still contain erased content.
    pub(crate) due: bool,
}

/// Whose turn it is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckpointStage {
    /// Waiting for more frames.
    #[default]
    Idle,
    /// Waiting for [`CHECKPOINT_FRAMES`] more frames or an erasure after a failed sync, to give the
    /// disk time.
    BackingOff,
    /// The thread's turn, to checkpoint what it can.
    ThreadDue,
    /// A checkpoint is running.
    Running,
    /// The recorder's turn, to checkpoint the rest.
    RecorderDue,
    /// A sync has failed; no more checkpoints.
    Failed,
}

/// Whether the WAL may still contain erased content.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErasedContent {
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
pub(crate) enum RecorderPart {
    /// Checkpoint the rest, as far as readers allow it.
    Remaining,
    /// Remove erased content by emptying the WAL, waiting a moment for readers.
    RemoveErased,
    /// Empty a large WAL, waiting longer for readers.
    Restart,
}

/// The state that recorder and thread share.
#[derive(Debug)]
pub(crate) struct CheckpointState {
    pub(crate) stage: CheckpointStage,
    pub(crate) erased: ErasedContent,
    /// Frames in the WAL after the last commit.
    pub(crate) frames: u32,
    /// Frames from which a checkpoint is due; `None`: [`CHECKPOINT_FRAMES`] more than after the
    /// next commit.
    next: Option<u32>,
    /// Frames from which the recorder waits for readers.
    large: u32,
    pub(crate) stop: bool,
}

impl CheckpointState {
    pub(crate) fn new(before: PriorCheckpoints, now: Instant) -> Self {
        let (stage, next) = match before.failed {
            true => (CheckpointStage::BackingOff, None),
            false => (CheckpointStage::Idle, Some(CHECKPOINT_FRAMES)),
        };
        let erased =
            if before.due { ErasedContent::Later(now + RETRY_DELAY) } else { ErasedContent::No };
        Self { stage, erased, frames: 0, next, large: LARGE_WAL, stop: false }
    }

    fn restart(&mut self) {
        (self.next, self.large) = (Some(CHECKPOINT_FRAMES), LARGE_WAL);
        match self.stage {
            CheckpointStage::BackingOff => self.stage = CheckpointStage::Idle,
            // The WAL restarts only when everything is checkpointed.
            CheckpointStage::RecorderDue if self.erased != ErasedContent::Now => {
                self.stage = CheckpointStage::Idle
            }
            _ => {}
        }
    }

    pub(crate) fn committed(&mut self, frames: u32) {
        if frames < self.frames {
            self.restart();
        }
        self.frames = frames;
        let more = frames.saturating_add(CHECKPOINT_FRAMES);
        let next = *self.next.get_or_insert(more);
        if frames >= next
            && matches!(self.stage, CheckpointStage::Idle | CheckpointStage::BackingOff)
        {
            self.next = Some(more);
            self.stage = CheckpointStage::ThreadDue;
        }
    }

    /// The recorder is idle: checkpoint now, if there are enough frames.
    pub(crate) fn idle(&mut self) {
        if self.frames >= FEW_FRAMES && self.stage == CheckpointStage::Idle {
            self.stage = CheckpointStage::ThreadDue;
        }
    }

    /// Content was erased, and must be removed from the WAL too.
    pub(crate) fn erase(&mut self) {
        // `Later` stays: frequent erasures must not wait for the same reader each time.
        if self.erased == ErasedContent::No {
            self.erased = ErasedContent::Now;
        }
        if matches!(self.stage, CheckpointStage::Idle | CheckpointStage::BackingOff) {
            self.stage = CheckpointStage::ThreadDue;
        }
    }

    /// When emptying the WAL is tried again, unless a turn comes earlier.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        match (self.erased, self.stage) {
            (
                ErasedContent::Later(at),
                CheckpointStage::Idle | CheckpointStage::ThreadDue | CheckpointStage::RecorderDue,
            ) => Some(at),
            _ => None,
        }
    }

    fn is_retry_due(&mut self, now: Instant) -> bool {
        let due = self.retry_at().is_some_and(|at| now >= at);
        if due {
            self.erased = ErasedContent::Now;
        }
        due
    }

    /// Takes the thread's turn; `false`: it is not the thread's turn.
    pub(crate) fn take_thread_turn(&mut self, now: Instant) -> bool {
        // A retry takes the turn back from the recorder, which may be idle: `end_thread_turn` then
        // wakes it.
        let takes = self.is_retry_due(now) || self.stage == CheckpointStage::ThreadDue;
        if takes {
            self.stage = CheckpointStage::Running;
        }
        takes
    }

    /// Ends the thread's turn. Returns whether to wake the recorder.
    pub(crate) fn end_thread_turn(&mut self) -> bool {
        self.stage = CheckpointStage::RecorderDue;
        self.erased == ErasedContent::Now
    }

    /// Takes the recorder's turn; `None`: it is not the recorder's turn.
    pub(crate) fn take_recorder_turn(&mut self, now: Instant) -> Option<RecorderPart> {
        if self.stage != CheckpointStage::RecorderDue {
            return None;
        }
        self.is_retry_due(now);
        self.stage = CheckpointStage::Running;
        Some(match self.erased {
            // Overlapping readers can prevent a restart for as long as the recorder does not wait
            // for them.
            _ if self.frames >= self.large => RecorderPart::Restart,
            ErasedContent::Now => RecorderPart::RemoveErased,
            ErasedContent::No | ErasedContent::Later(_) => RecorderPart::Remaining,
        })
    }

    /// Ends the recorder's turn. `emptied`: whether the WAL was emptied; `None`: the checkpoint
    /// failed.
    pub(crate) fn end_recorder_turn(
        &mut self,
        finish: RecorderPart,
        emptied: Option<bool>,
        now: Instant,
    ) {
        self.stage = CheckpointStage::Idle;
        if emptied == Some(true) {
            self.erased = ErasedContent::No;
            self.frames = 0;
            return self.restart();
        }
        if finish == RecorderPart::Restart && emptied.is_some() {
            // Do not wait for the same long reader again until the WAL has doubled.
            self.large = self.frames.saturating_mul(2);
        }
        if self.erased == ErasedContent::Now {
            self.erased = ErasedContent::Later(now + RETRY_DELAY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(failed: bool, due: bool) -> (CheckpointState, Instant) {
        let now = Instant::now();
        (CheckpointState::new(PriorCheckpoints { failed, due }, now), now)
    }

    #[test]
    fn checkpoint_turn__recorder_gets_its_turn_at_any_wal_size() {
        let (mut state, now) = state(false, false);
        state.committed(CHECKPOINT_FRAMES - 1);
        assert!(!state.take_thread_turn(now));
        state.committed(CHECKPOINT_FRAMES);
        assert!(state.take_thread_turn(now));
        // While the thread checkpoints, and then until the recorder has done the rest.
        state.committed(4 * CHECKPOINT_FRAMES);
        assert!(!state.take_thread_turn(now) && state.take_recorder_turn(now).is_none());
        assert!(!state.end_thread_turn());
        state.committed(8 * CHECKPOINT_FRAMES);
        state.idle();
        assert!(!state.take_thread_turn(now));
        assert_eq!(state.take_recorder_turn(now), Some(RecorderPart::Remaining));
        assert!(!state.take_thread_turn(now) && state.take_recorder_turn(now).is_none());
        state.end_recorder_turn(RecorderPart::Remaining, Some(false), now);
        state.committed(8 * CHECKPOINT_FRAMES + 1);
        assert!(state.take_thread_turn(now));
    }

    #[test]
    fn checkpoint_turn__no_rest_remains_after_wal_restart() {
        let (mut state, now) = state(false, false);
        state.committed(FEW_FRAMES - 1);
        state.idle();
        assert!(!state.take_thread_turn(now));
        state.committed(FEW_FRAMES);
        state.idle();
        assert!(state.take_thread_turn(now) && !state.end_thread_turn());
        state.committed(3);
        assert_eq!(state.take_recorder_turn(now), None);
        state.committed(CHECKPOINT_FRAMES);
        assert!(state.take_thread_turn(now));
    }

    #[test]
    fn checkpoint_turn__waits_for_reader_once_until_wal_doubles() {
        let (mut state, now) = state(false, false);
        let turn = |state: &mut CheckpointState, frames, emptied| {
            state.committed(frames);
            assert!(state.take_thread_turn(now) && !state.end_thread_turn());
            let finish = state.take_recorder_turn(now).unwrap();
            state.end_recorder_turn(finish, emptied, now);
            finish
        };
        assert_eq!(turn(&mut state, LARGE_WAL - 1, Some(false)), RecorderPart::Remaining);
        // A failed checkpoint does not raise the limit.
        assert_eq!(turn(&mut state, LARGE_WAL + CHECKPOINT_FRAMES, None), RecorderPart::Restart);
        assert_eq!(
            turn(&mut state, LARGE_WAL + 2 * CHECKPOINT_FRAMES, Some(false)),
            RecorderPart::Restart
        );
        assert_eq!(
            turn(&mut state, LARGE_WAL + 3 * CHECKPOINT_FRAMES, Some(false)),
            RecorderPart::Remaining
        );
        assert_eq!(
            turn(&mut state, 2 * (LARGE_WAL + 2 * CHECKPOINT_FRAMES), Some(false)),
            RecorderPart::Restart
        );
        state.committed(1);
        assert_eq!(turn(&mut state, LARGE_WAL, Some(true)), RecorderPart::Restart);
        assert_eq!(turn(&mut state, CHECKPOINT_FRAMES, Some(false)), RecorderPart::Remaining);
    }

    #[test]
    fn checkpoint_turn__erased_is_removed_at_once_or_retried() {
        let (mut state, now) = state(false, false);
        state.committed(3);
        state.erase();
        assert!(state.take_thread_turn(now));
        // The recorder may be idle.
        assert!(state.end_thread_turn());
        // Although the WAL restarts, old frames behind the new ones may still contain it.
        state.committed(2);
        assert_eq!(state.take_recorder_turn(now), Some(RecorderPart::RemoveErased));
        state.end_recorder_turn(RecorderPart::RemoveErased, Some(false), now);
        let retry_at = now + RETRY_DELAY;
        assert_eq!(state.retry_at(), Some(retry_at));
        // Until then the recorder waits for no reader, whatever else is erased, and the time stays.
        state.erase();
        state.committed(CHECKPOINT_FRAMES);
        assert!(state.take_thread_turn(now) && !state.end_thread_turn());
        assert_eq!(state.take_recorder_turn(now), Some(RecorderPart::Remaining));
        state.end_recorder_turn(RecorderPart::Remaining, Some(false), now);
        assert_eq!(state.retry_at(), Some(retry_at));
        assert!(
            !state.take_thread_turn(now)
                && state.take_thread_turn(retry_at)
                && state.end_thread_turn()
        );
        assert_eq!(state.take_recorder_turn(retry_at), Some(RecorderPart::RemoveErased));
        state.end_recorder_turn(RecorderPart::RemoveErased, Some(true), retry_at);
        assert!(state.retry_at().is_none() && !state.take_thread_turn(retry_at));
    }

    #[test]
    fn checkpoint_turn__recorder_turn_when_due_removes_erased() {
        let (mut state, now) = state(false, true);
        state.committed(CHECKPOINT_FRAMES);
        assert!(state.take_thread_turn(now) && !state.end_thread_turn());
        assert_eq!(state.take_recorder_turn(now + RETRY_DELAY), Some(RecorderPart::RemoveErased));
    }

    #[test]
    fn checkpoint_turn__delayed_after_a_crash_or_failed_sync() {
        let (mut crashed, now) = state(false, true);
        assert_eq!(crashed.retry_at(), Some(now + RETRY_DELAY));
        assert!(!crashed.take_thread_turn(now) && crashed.take_thread_turn(now + RETRY_DELAY));
        let (mut failed, now) = state(true, true);
        assert!(failed.retry_at().is_none());
        failed.committed(5 * CHECKPOINT_FRAMES);
        failed.idle();
        assert!(!failed.take_thread_turn(now + RETRY_DELAY));
        failed.committed(6 * CHECKPOINT_FRAMES - 1);
        assert!(!failed.take_thread_turn(now + RETRY_DELAY));
        failed.committed(6 * CHECKPOINT_FRAMES);
        assert!(failed.take_thread_turn(now));
        // A new erasure does not wait for that.
        let (mut failed, now) = state(true, false);
        failed.erase();
        assert!(failed.take_thread_turn(now));
    }
}
