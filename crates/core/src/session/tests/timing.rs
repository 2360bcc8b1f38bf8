//! What a session does on its own initiative, and when.

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

/// The time until the session's next timeout.
fn due_in(bare: &Bare) -> Duration {
    bare.session.poll_timeout().unwrap() - bare.now
}

#[test]
fn keep_alive__ping_after_silence_then_close_without_pong() {
    for (following, silence) in [(true, 10), (false, 60)] {
        let mut bare = Bare::open(Side::Client);
        bare.session.set_following(following);
        assert_eq!(due_in(&bare), silence * SECOND);
        assert_eq!(bare.pass(silence * SECOND - MILLI), Ok(()));
        assert_eq!(bare.heard(), []);
        assert_eq!(bare.pass(MILLI), Ok(()));
        assert_eq!(bare.heard(), [(MessageType::Ping, 1u64.to_be_bytes().to_vec())]);

        // Any byte is a sign of life, even one of an incomplete frame.
        bare.now += 9 * SECOND;
        bare.session.handle_bytes(bare.now);
        assert_eq!(due_in(&bare), silence * SECOND);
        assert_eq!(bare.pass(silence * SECOND), Ok(()));
        assert_eq!(bare.heard(), [(MessageType::Ping, 2u64.to_be_bytes().to_vec())]);
        assert_eq!(bare.say(MessageType::Pong, &2u64.to_be_bytes()), Ok(Said::Nothing));

        assert_eq!(bare.pass(silence * SECOND), Ok(()));
        assert_eq!(due_in(&bare), 10 * SECOND);
        assert_eq!(bare.pass(10 * SECOND), Err(SessionFault::Silent));
        bare.assert_closed(CloseCode::Idle);
    }
}

#[test]
fn keep_alive__long_suspend_sends_ping_before_closing() {
    let mut bare = Bare::open(Side::Client);
    assert_eq!(bare.pass(3600 * SECOND), Ok(()));
    assert_eq!(bare.heard()[0].0, MessageType::Ping);
    assert_eq!(due_in(&bare), 10 * SECOND);
}

#[test]
fn keep_alive__unready_peer_times_out_without_ping() {
    let mut bare = Bare::new(Side::Server, config());
    assert_eq!(bare.pass(60 * SECOND), Ok(()));
    assert_eq!(bare.heard().len(), 1);
    assert_eq!(bare.pass(10 * SECOND), Err(SessionFault::Silent));
    bare.assert_closed(CloseCode::Idle);
}

/// Lets time pass with a received byte every 50 s.
fn live(bare: &mut Bare, mut time: Duration) -> Result<(), SessionFault> {
    while !time.is_zero() {
        let step = time.min(50 * SECOND);
        time -= step;
        bare.session.handle_bytes(bare.now + step);
        bare.pass(step)?;
    }
    Ok(())
}

#[test]
fn rekey__client_starts_after_10_minutes_only_with_traffic() {
    let mut bare = Bare::open(Side::Client);
    // READY counts as traffic.
    assert_eq!(live(&mut bare, 600 * SECOND - MILLI), Ok(()));
    assert_eq!(bare.heard(), []);
    assert_eq!(live(&mut bare, MILLI), Ok(()));
    let heard = bare.heard();
    assert_eq!(heard[0].0, MessageType::Rekey1);

    let rk = RootKey::new(bare.session.root_key().expose_secret());
    let rekey1 = heard[0].1[..].try_into().unwrap();
    let (keys, rekey2) = crate::rekey::answer(rekey1, 1, &rk, &mut Seeded(1)).unwrap();
    assert_eq!(bare.say(MessageType::Rekey2, &rekey2), Ok(Said::Rekeyed(1)));
    assert_eq!(bare.heard().len(), 1);
    (bare.send, bare.recv) = (Chain::new(keys.ck_s2c, 1), Chain::new(keys.ck_c2s, 1));

    // PING and PONG do not count as traffic.
    assert_eq!(bare.say(MessageType::Ping, &[0; 8]), Ok(Said::Nothing));
    assert_eq!(live(&mut bare, 7200 * SECOND), Ok(()));
    assert_eq!(bare.heard(), [(MessageType::Pong, vec![0; 8])]);

    // The epoch is old, so the first traffic triggers the rekey.
    bare.session.send_app(b"hello").unwrap();
    assert_eq!(live(&mut bare, MILLI), Ok(()));
    let types: Vec<_> = bare.heard().into_iter().map(|(mtype, _)| mtype).collect();
    assert_eq!(types, [MessageType::App, MessageType::Rekey1]);
}

/// Moves one direction, at both ends, to frame `n` of its epoch.
fn at_frame(bare: &mut Bare, sending: bool, n: u64) {
    let chain = if sending { &mut bare.session.send } else { &mut bare.session.recv };
    *chain = Chain::at(ChainKey::new(chain.key().expose_secret()), 0, n);
    let other = if sending { &mut bare.recv } else { &mut bare.send };
    *other = Chain::at(ChainKey::new(other.key().expose_secret()), 0, n);
}

#[test]
fn rekey__client_starts_at_2_pow_20_frames_in_either_direction() {
    for sending in [true, false] {
        let mut bare = Bare::open(Side::Client);
        at_frame(&mut bare, sending, (1 << 20) - 1);
        assert_eq!(bare.pass(MILLI), Ok(()));
        assert_eq!(bare.heard(), []);
        if sending {
            bare.session.send_app(b"one more").unwrap();
        } else {
            bare.say(MessageType::App, b"one more").unwrap();
        }
        assert!(bare.session.poll_timeout().unwrap() <= bare.now);
        assert_eq!(bare.pass(MILLI), Ok(()));
        assert_eq!(bare.heard().last().unwrap().0, MessageType::Rekey1);
    }
}

#[test]
fn rekey__overdue_closes_server_session() {
    let mut bare = Bare::open(Side::Server);
    assert_eq!(live(&mut bare, 1800 * SECOND - MILLI), Ok(()));
    assert_eq!(live(&mut bare, MILLI), Err(SessionFault::RekeyOverdue));
    bare.assert_closed(CloseCode::RekeyOverdue);

    for sending in [true, false] {
        let mut bare = Bare::open(Side::Server);
        at_frame(&mut bare, sending, (1 << 22) - 1);
        assert_eq!(bare.pass(MILLI), Ok(()));
        at_frame(&mut bare, sending, 1 << 22);
        assert!(bare.session.poll_timeout().unwrap() <= bare.now);
        assert_eq!(bare.pass(MILLI), Err(SessionFault::RekeyOverdue));
        bare.assert_closed(CloseCode::RekeyOverdue);
    }
}

#[test]
fn rekey__deadline_runs_from_first_message_after_silence() {
    for sending in [true, false] {
        let mut bare = Bare::open(Side::Server);
        // The state after a rekey without traffic since.
        (bare.session.epoch_traffic, bare.session.traffic_since) = (false, None);
        assert_eq!(live(&mut bare, 7200 * SECOND), Ok(()));
        if sending {
            bare.session.send_app(b"at last").unwrap();
        } else {
            bare.say(MessageType::App, b"at last").unwrap();
        }
        assert_eq!(bare.pass(Duration::ZERO), Ok(()));
        assert_eq!(live(&mut bare, 1800 * SECOND - MILLI), Ok(()));
        assert_eq!(live(&mut bare, MILLI), Err(SessionFault::RekeyOverdue));
        bare.assert_closed(CloseCode::RekeyOverdue);
    }
}

#[test]
fn session__server_closes_after_24_hours() {
    let mut bare = Bare::open(Side::Server);
    // The state after a rekey without traffic since, so that only the age counts.
    (bare.session.epoch_traffic, bare.session.traffic_since) = (false, None);
    assert_eq!(live(&mut bare, 86_400 * SECOND - MILLI), Ok(()));
    assert_eq!(live(&mut bare, MILLI), Err(SessionFault::TooOld));
    bare.assert_closed(CloseCode::LogInAgain);

    let mut bare = Bare::open(Side::Client);
    bare.session.epoch_traffic = false;
    assert_eq!(live(&mut bare, 2 * 86_400 * SECOND), Ok(()));
    assert!(bare.session.is_open());
}
