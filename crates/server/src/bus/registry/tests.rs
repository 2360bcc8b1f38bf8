//! Unit tests of the registry.

use super::*;

/// Far more than these tests need.
const PLENTY: SessionLimits = SessionLimits { device: 16, password: 16 };

fn user(name: &str) -> Owner {
    Owner::User(Name::new(name).unwrap())
}

fn device(n: u8) -> Option<DeviceId> {
    Some(DeviceId([n; 16]))
}

#[test]
fn registry__same_instance_replaces_session_at_limit() {
    let registry = Arc::new(Registry::default());
    let max = SessionLimits { device: 2, password: 2 };
    let enter = |device| registry.enter(user("ada"), device, max).unwrap();
    let first = enter(device(1));
    let second = enter(device(1));
    assert_eq!(registry.ready(&first, b"run", max), Ok(()));
    assert_eq!(registry.ready(&second, b"second", max), Ok(()));
    let newer = enter(device(1));
    assert_eq!(registry.ready(&newer, b"run", max), Ok(()));
    assert_eq!(first.take_signals().close, Some(CloseCode::Replaced));
    // Another instance on the same device is another session.
    let other = enter(device(1));
    assert_eq!(registry.ready(&other, b"another", max), Err(CloseCode::Quota));
    assert_eq!(registry.enter(user("ada"), device(1), max).map(drop), Ok(()));
    let _more = enter(device(1));
    assert_eq!(registry.enter(user("ada"), device(1), max).map(drop), Err(CloseCode::Quota));
    drop((first, other));
    assert_eq!([&newer, &second].map(|session| session.take_signals().close), [None, None]);
    assert!(registry.is_device_online(&DeviceId([1; 16])));
    drop((newer, second, _more));
    let sessions = lock(&registry.sessions);
    assert!(
        sessions.by_id.is_empty() && sessions.by_owner.is_empty() && sessions.by_device.is_empty()
    );
    assert!(sessions.by_instance.is_empty());
}

#[test]
fn registry__sessions_limited_by_device_and_password() {
    let registry = Arc::new(Registry::default());
    let max = SessionLimits { device: 1, password: 2 };
    let enter = |device| registry.enter(user("ada"), device, max);
    let full = [enter(device(1)).unwrap(), enter(device(1)).unwrap()];
    assert_eq!(registry.ready(&full[0], b"one", max), Ok(()));
    assert_eq!(registry.ready(&full[1], b"two", max), Err(CloseCode::Quota));
    assert_eq!(enter(device(1)).map(drop), Err(CloseCode::Quota));
    let other = enter(device(2)).unwrap();
    assert_eq!(registry.ready(&other, b"one", max), Ok(()));
    // A password session is always admitted, and the oldest one is closed.
    let passwords = [(); 4].map(|()| enter(None).unwrap());
    for session in &passwords {
        assert_eq!(registry.ready(session, b"", max), Ok(()));
    }
    let closed = passwords.each_ref().map(|session| session.take_signals().close);
    let quota = Some(CloseCode::Quota);
    assert_eq!(closed, [quota, quota, None, None]);
    assert_eq!([&full[0], &other].map(|session| session.take_signals().close), [None, None]);
}

#[test]
fn registry__instance_id_is_at_most_16_bytes_or_empty() {
    let registry = Arc::new(Registry::default());
    let session = registry.enter(user("ada"), device(1), PLENTY).unwrap();
    assert_eq!(registry.ready(&session, &[0; 17], PLENTY), Err(CloseCode::Protocol));
    let [a, b] = [(); 2].map(|()| registry.enter(user("ada"), device(1), PLENTY).unwrap());
    assert_eq!([&a, &b].map(|session| registry.ready(session, b"", PLENTY)), [Ok(()); 2]);
    assert_eq!([&a, &b].map(|l| l.take_signals().close), [Some(CloseCode::Replaced), None]);
}

#[test]
fn presence__repeated_changes_are_reported_once() {
    let registry = Arc::new(Registry::default());
    let watcher = registry.enter(user("ada"), device(1), PLENTY).unwrap();
    let seen = registry.watch_presence(&watcher);
    let bob = Name::new("bob").unwrap();
    for _ in 0..1000 {
        drop(registry.enter(user("bob"), device(2), PLENTY).unwrap());
    }
    let here = registry.enter(user("bob"), device(2), PLENTY).unwrap();
    // A password session does not count as presence.
    let eve = registry.enter(user("eve"), None, PLENTY).unwrap();
    assert!(watcher.take_signals().presence);
    let (changes, seen) = registry.presence_since(seen, 10);
    assert_eq!(changes, [(bob.clone(), true)]);
    drop((here, eve));
    assert_eq!(registry.presence_since(seen, 10).0, [(bob, false)]);
}

#[test]
fn registry__session_during_shutdown_is_closed() {
    let registry = Arc::new(Registry::default());
    registry.close_all(CloseCode::Shutdown);
    let late = registry.enter(user("ada"), device(1), PLENTY).unwrap();
    assert_eq!(late.take_signals().close, Some(CloseCode::Shutdown));
}

#[test]
fn registry__password_change_closes_other_password_sessions() {
    let registry = Arc::new(Registry::default());
    let this = registry.enter(user("ada"), None, PLENTY).unwrap();
    let other = registry.enter(user("ada"), None, PLENTY).unwrap();
    let laptop = registry.enter(user("ada"), device(1), PLENTY).unwrap();
    let ada = Name::new("ada").unwrap();
    registry.password_changed(&ada, &this, CloseCode::LogInAgain);
    let closed = [&this, &other, &laptop].map(|session| session.take_signals().close);
    assert_eq!(closed, [None, Some(CloseCode::LogInAgain), None]);
}
