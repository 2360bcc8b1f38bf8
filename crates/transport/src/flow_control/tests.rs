//! A transfer over a simulated path with a rate, an RTT and an acknowledgement interval.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{ACK_EACH, FRAME, FlowControl, MAX_ACK_STEP, NEAR_WINDOW_PART, WINDOW};

struct SimulatedPath {
    /// Bytes per second.
    rate: f64,
    /// Round-trip time.
    delay: Duration,
    /// Bytes from one acknowledgement to the next.
    stride: u32,
    /// Time that the sender takes for a frame.
    gap: Duration,
    /// Maximum additional delay of an acknowledgement.
    jitter: Duration,
}

impl Default for SimulatedPath {
    fn default() -> Self {
        let delay = Duration::from_millis(1);
        Self { rate: 500e6, delay, stride: ACK_EACH, gap: Duration::ZERO, jitter: Duration::ZERO }
    }
}

struct Trip {
    took: Duration,
    /// Most bytes in flight during the second half.
    ahead: u64,
}

impl SimulatedPath {
    /// Sends `size` bytes and returns how long that takes.
    fn carries(&self, size: u64) -> Trip {
        let start = Instant::now();
        let mut now = start;
        let mut pace = FlowControl::new(0, self.stride, now);
        // When the bottleneck is free again.
        let mut free = now;
        let mut acks: VecDeque<(Instant, u64)> = VecDeque::new();
        let (mut arrived, mut told, mut ahead, mut random) = (0, 0, 0, 1_u64);
        while pace.acked() < size {
            let bytes = FRAME.min((size - pace.sent()) as usize);
            if bytes > 0 && pace.may(bytes) {
                now += self.gap;
                while let Some((_, offset)) = acks.pop_front_if(|(at, _)| *at <= now) {
                    assert!(pace.acknowledge(offset, now));
                }
                pace.send(bytes, now);
                free = free.max(now) + Duration::from_secs_f64(bytes as f64 / self.rate);
                arrived += bytes as u64;
                if arrived - told >= u64::from(self.stride) || arrived == size {
                    told = arrived;
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let late = self.jitter.mul_f64((random >> 40) as f64 / (1 << 24) as f64);
                    // Acknowledgements do not overtake each other.
                    let at = acks.back().map_or(now, |(at, _)| *at).max(free + self.delay + late);
                    acks.push_back((at, told));
                }
                if pace.sent() > size / 2 {
                    ahead = ahead.max(pace.sent() - pace.acked());
                }
                continue;
            }
            let (at, offset) = acks.pop_front().expect("a sender that waits for nothing");
            now = at;
            assert!(pace.acknowledge(offset, now));
        }
        Trip { took: now - start, ahead }
    }
}

#[test]
fn flow_control__in_flight_stays_near_path_capacity() {
    let trip = SimulatedPath::default().carries(512 << 20);
    assert!(trip.ahead < 5 * 500_000 / 2, "{}", trip.ahead);
    let slow =
        SimulatedPath { rate: 16e6, delay: Duration::from_micros(200), ..SimulatedPath::default() };
    let trip = slow.carries(64 << 20);
    assert!(trip.ahead <= 256 << 10, "{}", trip.ahead);
}

/// Two ends that take turns over a near path leave half of the machine idle. The larger window
/// costs more on a break, but little compared with what the connection has carried.
#[test]
fn flow_control__in_flight_grows_with_bytes_sent_up_to_bound() {
    let near = SimulatedPath {
        rate: 400e6,
        delay: Duration::from_micros(100),
        ..SimulatedPath::default()
    };
    let frugal = u64::from(ACK_EACH) + 2 * FRAME as u64;
    assert!(near.carries(10 << 20).ahead <= frugal);
    let some = near.carries(64 << 20).ahead;
    assert!(some > frugal && some <= (64 << 20) / NEAR_WINDOW_PART, "{some}");
    let most = near.carries(1 << 30).ahead;
    assert!(most > 600_000 && most <= 800_000, "{most}");
}

/// However long the transfer takes, the sender must not mistake its own queue for the path's RTT.
#[test]
fn flow_control__in_flight_does_not_grow_with_duration() {
    for (rate, micros) in [(100e6, 1_000), (16e6, 200), (10e6, 20_000), (2e6, 200)] {
        let delay = Duration::from_micros(micros);
        let path = SimulatedPath { rate, delay, ..SimulatedPath::default() };
        let ahead = path.carries((rate * 200.0) as u64).ahead;
        let fits = rate * delay.as_secs_f64() + f64::from(ACK_EACH);
        let most = 2.5 * fits.max(256e3);
        assert!((ahead as f64) < most, "{rate} bytes a second, {delay:?}: {ahead}, {most}");
    }
}

#[test]
fn flow_control__jittery_path_keeps_throughput() {
    let (rate, size) = (60e6, 512 << 20);
    let (delay, jitter) = (Duration::from_millis(20), Duration::from_millis(50));
    let Trip { took, .. } =
        SimulatedPath { rate, delay, jitter, ..SimulatedPath::default() }.carries(size);
    let ratio = took.as_secs_f64() / (size as f64 / rate);
    assert!(ratio < 1.5, "{ratio}");
}

#[test]
fn flow_control__long_path_reaches_full_throughput() {
    for (rate, millis) in [(500e6, 1), (100e6, 20), (60e6, 100), (16e6, 0)] {
        let delay = Duration::from_millis(millis);
        let size = 512 << 20;
        let Trip { took, .. } =
            SimulatedPath { rate, delay, ..SimulatedPath::default() }.carries(size);
        let ideal = size as f64 / rate + 2.0 * delay.as_secs_f64();
        let ratio = took.as_secs_f64() / ideal;
        assert!(ratio < 1.15, "{rate} bytes a second, {millis} ms: {ratio}");
    }
}

#[test]
fn flow_control__in_flight_never_exceeds_window() {
    let far =
        SimulatedPath { rate: 1e9, delay: Duration::from_millis(300), ..SimulatedPath::default() };
    assert!(far.carries(256 << 20).ahead <= WINDOW);
}

#[test]
fn flow_control__rare_acks_do_not_stall_sender() {
    let delay = Duration::from_micros(100);
    for gap in [Duration::ZERO, Duration::from_millis(4)] {
        let rare = SimulatedPath { delay, stride: MAX_ACK_STEP, gap, ..SimulatedPath::default() };
        let size = 64 << 20;
        let Trip { took, .. } = rare.carries(size);
        let ideal = (size as f64 / 500e6).max(gap.as_secs_f64() * (size / FRAME as u64) as f64);
        assert!(took.as_secs_f64() < 1.3 * ideal, "{took:?}");
    }
}

#[test]
fn flow_control__ack_of_unsent_bytes_is_rejected() {
    let now = Instant::now();
    let mut pace = FlowControl::new(100, ACK_EACH, now);
    pace.send(50, now);
    assert!(!pace.acknowledge(151, now));
    assert!(pace.acknowledge(150, now));
    assert!(pace.acknowledge(120, now));
    assert_eq!(pace.acked(), 150);
}
