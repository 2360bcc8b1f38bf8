//! A step-up with an attacker in the middle of its three messages.

use twinlock_core::frame::{KE1, KE2, KE3};
use twinlock_core::id::{ServerKey, SessionId};
use twinlock_core::step_up::{AwaitStepUp, StepUp};
use twinlock_testing::Rng;

use crate::hello::{device, host};
use crate::input::Input;

/// The server accepts a proof if and only if both ends saw the same messages in the same session,
/// the secret is the record's and the server is the pinned one.
pub(crate) fn step_up(data: &[u8]) {
    let mut input = Input(data);
    let (setup, record) = host();
    let entropy = &mut Rng::from_seed(u64::from(input.byte()));
    let (known, knows, pinned) = (!input.flag(), !input.flag(), !input.flag());
    let pin = if pinned { setup.server_key() } else { ServerKey([8; 32]) };
    let secret = if knows { 9 } else { 10 };
    let mut there = [3; 16];
    let carried = input.change_array(&mut there);
    let (client, ke1) = StepUp::start(device(secret), &SessionId([3; 16]), entropy).unwrap();

    let mut asked: [u8; KE1] = ke1;
    let mut touched = input.change_array(&mut asked);
    let id = device(9).id();
    let record = known.then_some(record);
    let started = AwaitStepUp::start(setup, record, &asked, &id, &SessionId(there), entropy);
    let Ok((server, ke2)) = started else {
        assert!(touched, "a right KE1 is refused");
        return;
    };
    let mut ke2: [u8; KE2] = ke2;
    touched |= input.change_array(&mut ke2);
    let right = known && knows && pinned && !carried && !touched;
    let client = client.finish(&ke2, &pin, entropy);
    assert_eq!(client.is_ok(), right);
    let mut ke3: [u8; KE3] = client.unwrap_or_else(|_| input.array());
    let changed = input.change_array(&mut ke3);
    assert_eq!(server.finish(&ke3).is_ok(), right && !changed);
}
