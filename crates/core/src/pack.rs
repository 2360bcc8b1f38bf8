//! Packs small parts into frames so that padding costs little.
//!
//! A message is padded to a power of two (section 5), and the padding is sealed, sent and opened
//! like the message. Sixty-four requests of 300 bytes are 19 KiB and need a frame of 32 KiB; a
//! frame of 16 KiB and one of 4 KiB carry the same bytes at a lower cost.

use crate::limits::MAX_BODY;
use crate::seal::{bucket, room};

/// Bytes of padding that cost about as much as one more frame: its keys, its tag, its TLS record.
const FRAME_COST: usize = 1024;

/// Packs `parts` into frames, in order.
///
/// A frame exceeds 65531 bytes only if one part alone does. `size` returns the size of a part;
/// `head` is the fixed overhead of each frame. Both are in bytes.
pub fn pack<T>(parts: Vec<T>, head: usize, size: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let fill = |left: usize| fill(left + head).saturating_sub(head);
    let mut left: usize = parts.iter().map(&size).sum();
    if fill(left) >= left {
        return if parts.is_empty() { Vec::new() } else { vec![parts] };
    }
    let mut frames = Vec::new();
    let mut frame = Vec::new();
    let (mut capacity, mut bytes) = (fill(left), 0);
    for part in parts {
        let size = size(&part);
        if bytes + size > capacity && !frame.is_empty() {
            frames.push(std::mem::take(&mut frame));
            (capacity, bytes) = (fill(left), 0);
        }
        if size > capacity {
            // This part alone needs a larger frame; later parts may fill the rest.
            capacity = room(bucket((size + head).min(MAX_BODY))).min(MAX_BODY).saturating_sub(head);
        }
        bytes += size;
        left -= size;
        frame.push(part);
    }
    frames.push(frame);
    frames
}

/// How many of `bytes` go into the first frame: all, or enough to fill a smaller frame.
fn fill(bytes: usize) -> usize {
    let bytes = bytes.min(MAX_BODY);
    let whole = bucket(bytes);
    let smaller = room(whole / 2);
    match bytes.checked_sub(smaller) {
        Some(rest) if whole / 2 + bucket(rest) + FRAME_COST < whole => smaller,
        _ => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn padded(frames: &[Vec<usize>]) -> usize {
        frames.iter().map(|frame| bucket(frame.iter().sum())).sum()
    }

    #[test]
    fn pack__small_parts_fill_frames_in_order() {
        let parts: Vec<usize> = vec![300; 64];
        let frames = pack(parts, 0, |n| *n);
        assert_eq!(padded(&frames), 16_384 + 4096);
        let numbered: Vec<usize> = (1..=600).collect();
        let frames = pack(numbered.clone(), 0, |n| *n);
        assert!(frames.iter().all(|frame| frame.iter().sum::<usize>() <= MAX_BODY));
        assert_eq!(frames.concat(), numbered);
    }

    #[test]
    fn pack__extra_frame_only_where_it_saves_padding() {
        for parts in [vec![], vec![1], vec![100; 9], vec![300; 54], vec![500; 60]] {
            let frames = pack(parts.clone(), 0, |n| *n);
            assert!(frames.len() <= 1, "{parts:?}");
            assert_eq!(frames.concat(), parts);
        }
        assert_eq!(pack(vec![20_000, 200, 300], 0, |n| *n), [[20_000, 200, 300]]);
        // For any count, little more than a quarter of the bytes sent is padding.
        for count in (10..3000).step_by(7) {
            let frames = pack(vec![100; count], 0, |n| *n);
            let all = 100 * count;
            assert!(padded(&frames) <= all * 4 / 3 + 2 * FRAME_COST, "{count}");
        }
    }

    #[test]
    fn pack__per_frame_overhead_stays_within_max_body() {
        for head in [1, 25, 512] {
            let frames = pack(vec![999; 300], head, |n| *n);
            assert!(frames.iter().all(|frame| frame.len() * 999 + head <= MAX_BODY));
            assert!(padded(&frames) <= 300 * 999 * 4 / 3);
        }
    }

    #[test]
    fn pack__oversized_part_gets_its_own_frame() {
        let frames = pack(vec![10, MAX_BODY + 1, 20], 0, |n| *n);
        assert_eq!(frames, [vec![10], vec![MAX_BODY + 1], vec![20]]);
    }
}
