//! What one end accepts from the other, and what ends the session.

use super::*;
use crate::limits::{MAX_BODY, MAX_BULK};
use crate::rekey::{REKEY1, answer};

const SIDES: [Side; 2] = [Side::Client, Side::Server];
const REKEY_INTERVAL: Duration = Duration::from_secs(10);

fn is_violation<T>(result: &Result<T, SessionFault>) -> bool {
    matches!(result, Err(SessionFault::Violation(_)))
}

#[test]
fn session__first_frame_must_be_ready_or_close() {
    use MessageType as M;
    for side in SIDES {
        for mtype in [M::App, M::Rekey1, M::Rekey2, M::Rekey3, M::Ping, M::Pong] {
            let mut bare = Bare::new(side, config());
            assert!(is_violation(&bare.say(mtype, &[0; 8])), "{mtype:?}");
            bare.assert_closed(CloseCode::Protocol);
        }
        let mut bare = Bare::new(side, config());
        assert_eq!(bare.say(M::Close, &[0, 8]), Ok(Said::Closed(CloseCode::Shutdown)));
        bare.assert_closed(CloseCode::Bye);
    }
}

#[test]
fn session__only_ready_is_sent_before_peer_is_ready() {
    for side in SIDES {
        let mut bare = Bare::new(side, config());
        assert_eq!(bare.session.send_app(b"early"), Err(SendError::NotOpen));
        assert_eq!(bare.session.send_bulk(1, 0, b"early"), Err(SendError::NotOpen));
        assert!(!bare.session.start_rekey(bare.now, &mut Seeded(4)));
        assert_eq!(bare.pass(Duration::from_secs(61)), Ok(()));
        assert_eq!(bare.heard(), [(MessageType::Ready, ready(Some([5; 32]), 1))]);
        assert!(!bare.session.is_open());
    }
}

#[test]
fn session__bulk_as_first_frame_is_refused() {
    // The client's reader refuses the header; the server's session refuses the frame.
    assert!(Header::parse([0x11, 0, 0, 29], Due::FirstSealed).is_err());
    let mut bare = Bare::new(Side::Server, config());
    let mut frame = Vec::new();
    bare.send.seal_bulk(1, 0, b"x", &mut frame).unwrap();
    assert!(is_violation(&bare.read(&mut frame)));
    bare.assert_closed(CloseCode::Protocol);
}

#[test]
fn session__second_ready_is_refused() {
    for side in SIDES {
        let mut bare = Bare::open(side);
        assert!(is_violation(&bare.say(MessageType::Ready, &ready(None, 1))));
        bare.assert_closed(CloseCode::Protocol);
    }
}

#[test]
fn session__malformed_ready_is_refused() {
    let good = ready(Some([5; 32]), 1);
    let mut bodies: Vec<Vec<u8>> = (0..34).map(|len| good[..len].to_vec()).collect();
    let change = |at: usize, to: u8| {
        let mut body = ready(None, 1);
        body[at] = to;
        body
    };
    // An unknown binding flag, a value without a binding, version 0.
    bodies.extend([change(0, 2), change(0, 255), change(1, 1), change(32, 1), change(33, 0)]);
    for body in bodies {
        let mut bare = Bare::new(Side::Server, config());
        assert!(is_violation(&bare.say(MessageType::Ready, &body)), "{body:?}");
        bare.assert_closed(CloseCode::Protocol);
    }
    let mut bare = Bare::new(Side::Server, config());
    assert_eq!(bare.say(MessageType::Ready, &good[..34]), Ok(Said::Ready(Binding::Bound)));
}

#[test]
fn session__downgrade_close_11_precedes_binding_check() {
    for (mine, theirs, fault) in [(1, 1, None), (1, 255, None), (2, 1, None), (2, 2, Some(2))] {
        let config =
            SessionConfig { max_version: mine, binding: BindingPolicy::Require, ..config() };
        let mut bare = Bare::new(Side::Client, config);
        // With a lowered version, the binding does not match either: 11 takes precedence.
        let value = if fault.is_some() { [6; 32] } else { [5; 32] };
        let said = bare.say(MessageType::Ready, &ready(Some(value), theirs));
        match fault {
            None => assert_eq!(said, Ok(Said::Ready(Binding::Bound))),
            Some(possible) => {
                assert_eq!(said, Err(SessionFault::Downgrade(possible)));
                bare.assert_closed(CloseCode::Version);
            }
        }
    }
}

#[test]
fn channel_binding__result_follows_policy() {
    use Binding as B;
    use BindingPolicy as P;
    let (own, same, other) = (Some([5; 32]), Some([5; 32]), Some([6; 32]));
    // Policy, own value, the peer's value, expected result (`None`: CLOSE 2).
    let matrix = [
        (P::Require, own, same, Some(B::Bound)),
        (P::Require, own, other, None),
        (P::Require, own, None, None),
        (P::Require, None, same, None),
        (P::Require, None, None, None),
        (P::Warn, own, same, Some(B::Bound)),
        (P::Warn, own, other, Some(B::Cut)),
        (P::Warn, own, None, Some(B::Unknown)),
        (P::Warn, None, same, Some(B::Unknown)),
        (P::Warn, None, None, Some(B::Unknown)),
        (P::Off, own, same, Some(B::Off)),
        (P::Off, own, other, Some(B::Off)),
        (P::Off, own, None, Some(B::Off)),
    ];
    for side in SIDES {
        for (binding, exporter, theirs, expected) in matrix {
            let mut bare = Bare::new(side, SessionConfig { binding, exporter, ..config() });
            let said = bare.say(MessageType::Ready, &ready(theirs, 1));
            match expected {
                Some(seen) => {
                    assert_eq!(said, Ok(Said::Ready(seen)));
                    assert_eq!(bare.session.facts().binding, Some(seen));
                    // `off` sends nothing about this end's TLS.
                    let said = exporter.filter(|_| binding != P::Off);
                    assert_eq!(bare.heard(), [(MessageType::Ready, ready(said, 1))]);
                }
                None => {
                    assert_eq!(said, Err(SessionFault::Binding));
                    bare.assert_closed(CloseCode::Binding);
                }
            }
        }
    }
}

#[test]
fn session__wrong_body_length_is_refused() {
    use MessageType as M;
    for (mtype, right) in
        [(M::Ping, 8), (M::Pong, 8), (M::Close, 2), (M::Rekey1, REKEY1), (M::Rekey3, 0)]
    {
        for len in [0, 1, 2, 3, 7, 8, 9, REKEY1 - 1, REKEY1 + 1].into_iter().filter(|&l| l != right)
        {
            let mut bare = Bare::open(Side::Server);
            assert!(is_violation(&bare.say(mtype, &vec![0; len])), "{mtype:?} of {len}");
            bare.assert_closed(CloseCode::Protocol);
        }
    }
}

#[test]
fn keep_alive__ping_is_echoed() {
    for side in SIDES {
        let mut bare = Bare::open(side);
        assert_eq!(bare.say(MessageType::Ping, b"\0\x01echoed"), Ok(Said::Nothing));
        assert_eq!(bare.heard(), [(MessageType::Pong, b"\0\x01echoed".to_vec())]);
    }
}

#[test]
fn rekey__message_in_wrong_direction_or_state_is_refused() {
    use MessageType as M;
    let cases = [
        (Side::Client, M::Rekey1, REKEY1),
        (Side::Client, M::Rekey2, crate::rekey::REKEY2),
        (Side::Client, M::Rekey3, 0),
        (Side::Server, M::Rekey2, crate::rekey::REKEY2),
        (Side::Server, M::Rekey3, 0),
    ];
    for (side, mtype, len) in cases {
        let mut bare = Bare::open(side);
        assert!(is_violation(&bare.say(mtype, &vec![1; len])), "{mtype:?} at the {side:?}");
        bare.assert_closed(CloseCode::Protocol);
    }
}

/// The peer, a client, performs a whole rekey.
fn rekey(bare: &mut Bare) -> Result<Said, SessionFault> {
    rekey_with(bare, Duration::ZERO)
}

/// The same, with REKEY3 delayed by `delay`.
fn rekey_with(bare: &mut Bare, delay: Duration) -> Result<Said, SessionFault> {
    let client = AwaitRekey2::start(&mut Seeded(5));
    let rk = RootKey::new(bare.session.root_key().expose_secret());
    bare.say(MessageType::Rekey1, client.body())?;
    let (mtype, rekey2) = bare.heard().pop().unwrap();
    assert_eq!(mtype, MessageType::Rekey2);
    let epoch = bare.send.epoch() + 1;
    let keys = client.finish(rekey2[..].try_into().unwrap(), epoch, &rk).unwrap();
    bare.now += delay;
    let said = bare.say(MessageType::Rekey3, &[]);
    bare.send = Chain::new(keys.ck_c2s, epoch);
    bare.recv = Chain::new(keys.ck_s2c, epoch);
    said
}

#[test]
fn rekey__minimum_interval_applies_after_the_first() {
    let mut bare = Bare::open(Side::Server);
    assert_eq!(rekey(&mut bare), Ok(Said::Rekeyed(1)));
    bare.now += REKEY_INTERVAL;
    assert_eq!(rekey(&mut bare), Ok(Said::Rekeyed(2)));
    assert_eq!(bare.session.facts().rekeys, 2);
    bare.now += REKEY_INTERVAL - Duration::from_millis(1);
    let again = AwaitRekey2::start(&mut Seeded(6));
    assert!(is_violation(&bare.say(MessageType::Rekey1, again.body())));
    bare.assert_closed(CloseCode::Protocol);
}

#[test]
fn rekey__late_rekey3_does_not_delay_next_rekey() {
    let mut bare = Bare::open(Side::Server);
    let slow = Timing::default().rekey_pause - Duration::from_millis(1);
    assert_eq!(rekey_with(&mut bare, slow), Ok(Said::Rekeyed(1)));
    bare.now += Duration::from_millis(1);
    assert_eq!(rekey(&mut bare), Ok(Said::Rekeyed(2)));
}

#[test]
fn rekey__server_never_starts_one() {
    let mut bare = Bare::open(Side::Server);
    assert!(!bare.session.start_rekey(bare.now, &mut Seeded(7)));
    assert_eq!(bare.heard(), []);
}

#[test]
fn rekey__client_starts_one_at_a_time_with_minimum_interval() {
    let mut bare = Bare::open(Side::Client);
    let rk = RootKey::new(bare.session.root_key().expose_secret());
    assert!(bare.session.start_rekey(bare.now, &mut Seeded(8)));
    assert!(!bare.session.start_rekey(bare.now, &mut Seeded(9)));
    let rekey1 = bare.heard().pop().unwrap().1;
    let (keys, rekey2) = answer(rekey1[..].try_into().unwrap(), 1, &rk, &mut Seeded(10)).unwrap();
    assert_eq!(bare.say(MessageType::Rekey2, &rekey2), Ok(Said::Rekeyed(1)));
    assert_eq!(bare.heard(), [(MessageType::Rekey3, Vec::new())]);
    (bare.send, bare.recv) = (Chain::new(keys.ck_s2c, 1), Chain::new(keys.ck_c2s, 1));
    assert_eq!(bare.say(MessageType::App, b"new"), Ok(Said::App(b"new".to_vec())));

    bare.now += Timing::default().rekey_pause - Duration::from_millis(1);
    assert!(!bare.session.start_rekey(bare.now, &mut Seeded(11)));
    bare.now += Duration::from_millis(1);
    assert!(bare.session.start_rekey(bare.now, &mut Seeded(11)));
}

#[test]
fn rekey__requested_starts_when_allowed_and_runs_once() {
    let mut bare = Bare::open(Side::Client);
    let pause = Timing::default().rekey_pause;
    for epoch in 1..=2 {
        let rk = RootKey::new(bare.session.root_key().expose_secret());
        bare.session.want_rekey();
        let due = bare.session.poll_timeout().unwrap();
        assert_eq!(due <= bare.now, epoch == 1, "the second waits for the pause");
        let wait = due.saturating_duration_since(bare.now).min(pause);
        bare.session.handle_bytes(bare.now + wait);
        assert_eq!(bare.pass(wait), Ok(()));
        let heard = bare.heard();
        assert!(matches!(&heard[..], [(MessageType::Rekey1, _)]), "{heard:?}");
        let rekey1 = heard[0].1[..].try_into().unwrap();
        let (keys, rekey2) = answer(rekey1, epoch, &rk, &mut Seeded(12)).unwrap();
        assert_eq!(bare.say(MessageType::Rekey2, &rekey2), Ok(Said::Rekeyed(epoch)));
        assert_eq!(bare.heard(), [(MessageType::Rekey3, Vec::new())]);
        (bare.send, bare.recv) = (Chain::new(keys.ck_s2c, epoch), Chain::new(keys.ck_c2s, epoch));
        assert_eq!(bare.session.facts().last_rekey, Some(bare.now));
    }
    bare.session.handle_bytes(bare.now + pause);
    assert_eq!(bare.pass(pause), Ok(()));
    assert_eq!(bare.heard(), []);
}

#[test]
fn session__forged_frame_closes_without_close_frame() {
    for side in SIDES {
        let mut bare = Bare::open(side);
        bare.session.send_app(b"on its way").unwrap();
        let mut frame = Vec::new();
        bare.send.seal(MessageType::App, b"hello", &mut frame).unwrap();
        *frame.last_mut().unwrap() ^= 1;
        assert_eq!(bare.read(&mut frame), Err(SessionFault::Tampered));
        assert!(bare.session.is_closed());
        assert_eq!(bare.session.outgoing(), b"");
        bare.session.close(CloseCode::Bye);
        assert_eq!(bare.session.outgoing(), b"");
        assert!(!bare.session.has_said_close());
        assert_eq!(bare.session.poll_timeout(), None);
    }
}

#[test]
fn session__close_is_answered_with_bye_once() {
    for side in SIDES {
        let mut bare = Bare::open(side);
        assert_eq!(bare.say(MessageType::Close, &[0, 5]), Ok(Said::Closed(CloseCode::Revoked)));
        assert_eq!(bare.heard(), [(MessageType::Close, vec![0, 0])]);
        bare.session.close(CloseCode::Quota);
        assert_eq!(bare.heard(), []);
    }
}

#[test]
fn session__invalid_send_is_refused_without_state_change() {
    let mut bare = Bare::open(Side::Client);
    assert!(bare.session.send_app(&vec![0; MAX_BODY + 1]).is_err());
    assert!(bare.session.send_bulk(1, 0, &[]).is_err());
    assert!(bare.session.send_bulk(1, 0, &vec![0; MAX_BULK + 1]).is_err());
    assert_eq!(bare.session.facts().frames.0, 1);
    bare.session.send_app(&vec![0; MAX_BODY]).unwrap();
    assert_eq!(bare.heard(), [(MessageType::App, vec![0; MAX_BODY])]);
}

#[test]
fn session__info_too_long_for_ready_is_omitted() {
    let config = SessionConfig { info: vec![1; MAX_BODY], exporter: None, ..config() };
    let mut bare = Bare::new(Side::Server, config);
    assert_eq!(bare.heard(), [(MessageType::Ready, ready(None, 1)[..34].to_vec())]);
}

#[test]
fn session__partly_sent_backlog_uses_bounded_memory() {
    let mut bare = Bare::open(Side::Server);
    let mut max = 0;
    for _ in 0..2000 {
        bare.session.send_app(&[0; 8000]).unwrap();
        bare.session.sent(bare.session.outgoing().len() - 100);
        max = max.max(bare.session.out.bytes.len());
    }
    assert!(max < 200_000, "{max} bytes");
}

#[test]
fn session__debug_shows_no_secret() {
    let [client, server] = established(3);
    let shown = format!("{client:?}");
    let expected = format!(
        "Established {{ side: Client, ck_c2s: ChainKey(..), ck_s2c: ChainKey(..), rk: RootKey(..), \
         sid: {:?}, server_key: {:?}, credential: Device({:?}) }}",
        client.sid,
        client.server_key,
        DeviceId([7; 16])
    );
    assert_eq!(shown, expected);
    let sid = server.sid;
    let session = Session::new(server, config(), Instant::now());
    assert_eq!(format!("{session:?}"), format!("Session({sid}, Server, AwaitReady)"));
    let chain = Chain::new(client.ck_c2s, 2);
    assert_eq!(format!("{chain:?}"), "Chain { key: ChainKey(..), epoch: 2, n: 0 }");
    let setup = ServerSetup::generate(&mut Seeded(1));
    assert_eq!(format!("{setup:?}"), "ServerSetup(..)");
    assert_eq!(format!("{:?}", setup.row_key()), "RowKey(..)");
}

#[test]
fn proto__debug_shows_no_secret_or_text() {
    use crate::proto::{Append, Entry, Invite};
    let secret = vec![0x41; 16];
    let invite = Invite { id: vec![0x42].into(), secret: secret.into(), expires_ms: 3 };
    assert_eq!(format!("{invite:?}"), "Invite { id: b\"B\", secret: .., expires_ms: 3 }");
    let append = Append { conversation: 1, body: "hush".into(), ..Append::default() };
    let shown = "Append { conversation: 1, message_id: b\"\", body: (4 bytes) }";
    assert_eq!(format!("{append:?}"), shown);
    let entry = Entry { n: 1, body: "hush".into(), ..Entry::default() };
    assert!(!format!("{entry:?}").contains("hush"));
}
