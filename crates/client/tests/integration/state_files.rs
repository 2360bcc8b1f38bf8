//! Tests of the client's files: locations, permissions and the content of a profile.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use twinlock_client::home::{Home, HomeError};
use twinlock_client::profile::{self, MAX_PINS, NewProfile, Profile, ProfileError, TlsTrust};
use twinlock_client::state::State;
use twinlock_core::id::{DeviceId, Name, ServerKey, TlsPin};
use twinlock_core::keys::DeviceSecret;
use twinlock_core::session::BindingPolicy;

const SECRET: [u8; 32] = [0xa5; 32];

fn name(name: &str) -> Name {
    Name::new(name).unwrap()
}

fn new_profile() -> NewProfile {
    NewProfile {
        host: "chat.example.org".into(),
        port: 8443,
        path: "/twinlock".into(),
        server_key: ServerKey([1; 32]),
        tls: TlsTrust::Pins(vec![TlsPin([2; 32])]),
        binding: BindingPolicy::Warn,
        user: name("ada"),
        device: DeviceId([3; 16]),
        secret: DeviceSecret::new(&SECRET),
        label: "laptop".into(),
        min_version: 1,
        created_ms: 1_750_000_000_000,
    }
}

fn home() -> (tempfile::TempDir, Home) {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(&dir.path().join("twin"));
    (dir, home)
}

fn file(home: &Home, profile: &str) -> PathBuf {
    home.profiles().join(format!("{profile}.toml"))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn env(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<OsString> + use<> {
    let map: HashMap<String, OsString> =
        pairs.iter().map(|(name, value)| ((*name).into(), value.into())).collect();
    move |name| map.get(name).cloned()
}

/// Applies `edit` to the text of a valid profile file, and returns the error of loading it.
fn edited(home: &Home, edit: impl Fn(String) -> String) -> ProfileError {
    Profile::replace(home, &name("p"), new_profile()).unwrap();
    let path = file(home, "p");
    let text = fs::read_to_string(&path).unwrap();
    let changed = edit(text.clone());
    assert_ne!(changed, text, "the edit did nothing");
    fs::write(&path, changed).unwrap();
    Profile::load(home, &name("p")).expect_err("a wrong file was taken")
}

#[test]
fn home__twinlock_home_precedes_xdg_and_xdg_precedes_home() {
    let all = [
        ("TWINLOCK_HOME", "/t"),
        ("XDG_CONFIG_HOME", "/c"),
        ("XDG_STATE_HOME", "/s"),
        ("HOME", "/h"),
    ];
    let places = |pairs: &[_]| {
        let home = Home::locate_in(env(pairs)).unwrap();
        [home.profiles(), home.state(&name("p"))].map(|path| path.to_str().unwrap().to_owned())
    };
    assert_eq!(places(&all), ["/t/profiles", "/t/state/p"]);
    assert_eq!(places(&all[1..]), ["/c/twinlock/profiles", "/s/twinlock/p"]);
    assert_eq!(places(&all[3..]), ["/h/.config/twinlock/profiles", "/h/.local/state/twinlock/p"]);
    // An empty variable counts as unset, and XDG ignores relative paths.
    let odd = [("TWINLOCK_HOME", ""), ("XDG_CONFIG_HOME", "c"), ("XDG_STATE_HOME", ""), all[3]];
    assert_eq!(places(&odd), places(&all[3..]));
    assert_eq!(Home::locate_in(env(&[])), Err(HomeError::NoHome));
    let relative = Home::locate_in(env(&[("TWINLOCK_HOME", "here")])).unwrap();
    assert!(relative.profiles().is_absolute());
}

#[test]
fn profile__argument_precedes_environment_and_default() {
    let set = env(&[("TWINLOCK_PROFILE", "work")]);
    assert_eq!(profile::choose(Some("ops"), &set), Ok(name("ops")));
    assert_eq!(profile::choose(None, &set), Ok(name("work")));
    assert_eq!(profile::choose(None, env(&[])), Ok(name("default")));
    assert_eq!(profile::choose(None, env(&[("TWINLOCK_PROFILE", "")])), Ok(name("default")));
    for bad in ["../x", "", "A"] {
        let refused = Err(ProfileError::BadName { got: bad.into() });
        assert_eq!(profile::choose(Some(bad), &set), refused);
    }
}

#[test]
fn profile__reads_back_as_written() {
    let (_dir, home) = home();
    for tls in [
        TlsTrust::Pins(vec![TlsPin([9; 32]), TlsPin([8; 32])]),
        TlsTrust::Ca { file: None },
        TlsTrust::Ca { file: Some("/etc/ca \"of\" ours.pem".into()) },
    ] {
        for binding in [BindingPolicy::Require, BindingPolicy::Warn, BindingPolicy::Off] {
            let new = NewProfile {
                tls: tls.clone(),
                binding,
                label: "Zoë's \"pc\"".into(),
                ..new_profile()
            };
            Profile::replace(&home, &name("p"), new).unwrap();
            let read = Profile::load(&home, &name("p")).unwrap();
            assert_eq!((read.host(), read.port()), ("chat.example.org", 8443));
            assert_eq!(read.server_key(), &ServerKey([1; 32]));
            assert_eq!((read.tls(), read.binding()), (tls.clone(), binding));
            assert_eq!((read.user(), read.device()), (&name("ada"), &DeviceId([3; 16])));
            assert_eq!(read.secret().expose_secret(), &SECRET);
            assert_eq!((read.label(), read.min_version()), ("Zoë's \"pc\"", 1));
            assert_eq!(read.created_ms(), 1_750_000_000_000);
        }
    }
}

#[test]
fn profile__files_and_directories_are_private_to_owner() {
    let (_dir, home) = home();
    Profile::create(&home, &name("p"), new_profile()).unwrap();
    assert_eq!(mode(&file(&home, "p")), 0o600);
    assert_eq!(mode(&home.profiles()), 0o700);
    assert_eq!(mode(&home.make_state(&name("p")).unwrap()), 0o700);
    let left = fs::read_dir(home.profiles()).unwrap().count();
    assert_eq!(left, 1, "a temporary file stayed");
}

#[test]
fn profile__widened_permissions_are_restored() {
    let (_dir, home) = home();
    Profile::create(&home, &name("p"), new_profile()).unwrap();
    let widen = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    widen(&file(&home, "p"), 0o644);
    widen(&home.profiles(), 0o755);
    let mut read = Profile::load(&home, &name("p")).unwrap();
    assert_eq!(mode(&file(&home, "p")), 0o600);
    read.set_binding(&home, BindingPolicy::Require).unwrap();
    assert_eq!(mode(&home.profiles()), 0o700);
}

#[test]
fn profile__existing_is_replaced_only_on_request() {
    let (_dir, home) = home();
    Profile::create(&home, &name("p"), new_profile()).unwrap();
    let before = fs::read(file(&home, "p")).unwrap();
    let other = || NewProfile { server_key: ServerKey([7; 32]), ..new_profile() };
    let refused = Profile::create(&home, &name("p"), other()).expect_err("overwritten");
    assert_eq!(refused, ProfileError::Exists { name: name("p") });
    assert_eq!(fs::read(file(&home, "p")).unwrap(), before);
    Profile::replace(&home, &name("p"), other()).unwrap();
    let read = Profile::load(&home, &name("p")).unwrap();
    assert_eq!(read.server_key(), &ServerKey([7; 32]));
}

#[test]
fn profile__malformed_can_be_replaced() {
    let (_dir, home) = home();
    edited(&home, |_| "?".into());
    Profile::replace(&home, &name("p"), new_profile()).unwrap();
    Profile::load(&home, &name("p")).unwrap();
}

#[test]
fn profile__minimum_version_of_a_server_never_decreases() {
    let (_dir, home) = home();
    let mut profile = Profile::create(&home, &name("p"), new_profile()).unwrap();
    profile.raise_min_version(&home, 3).unwrap();
    profile.raise_min_version(&home, 2).unwrap();
    assert_eq!(Profile::load(&home, &name("p")).unwrap().min_version(), 3);
    let again = Profile::replace(&home, &name("p"), new_profile()).unwrap();
    assert_eq!(again.min_version(), 3, "the same server");
    let other = NewProfile { server_key: ServerKey([7; 32]), ..new_profile() };
    assert_eq!(Profile::replace(&home, &name("p"), other).unwrap().min_version(), 1);
}

#[test]
fn profile__change_keeps_changes_of_another_handle() {
    let (_dir, home) = home();
    let mut one = Profile::create(&home, &name("p"), new_profile()).unwrap();
    let mut two = Profile::load(&home, &name("p")).unwrap();
    one.raise_min_version(&home, 2).unwrap();
    two.set_binding(&home, BindingPolicy::Require).unwrap();
    one.set_address(&home, "2001:db8::1", 443).unwrap();
    one.set_tls(&home, TlsTrust::Ca { file: None }).unwrap();
    let read = Profile::load(&home, &name("p")).unwrap();
    assert_eq!((read.host(), read.port()), ("2001:db8::1", 443));
    assert_eq!((read.min_version(), read.binding()), (2, BindingPolicy::Require));
    assert_eq!(read.tls(), TlsTrust::Ca { file: None });
    assert_eq!(read.secret().expose_secret(), &SECRET);
}

#[test]
fn profile__change_after_replacement_is_refused() {
    let (_dir, home) = home();
    for other in [
        NewProfile { server_key: ServerKey([7; 32]), ..new_profile() },
        NewProfile { user: name("bob"), ..new_profile() },
        NewProfile { device: DeviceId([7; 16]), ..new_profile() },
    ] {
        let mut old = Profile::replace(&home, &name("p"), new_profile()).unwrap();
        Profile::replace(&home, &name("p"), other).unwrap();
        let before = fs::read(file(&home, "p")).unwrap();
        let refused = old.raise_min_version(&home, 9).expect_err("written to another's profile");
        assert_eq!(refused, ProfileError::Replaced { name: name("p") });
        assert_eq!(fs::read(file(&home, "p")).unwrap(), before);
        assert_eq!(old.min_version(), 1);
    }
}

#[test]
fn profile__pins_are_learned_once_bounded_and_not_with_a_ca() {
    let (_dir, home) = home();
    let mut profile = Profile::create(&home, &name("p"), new_profile()).unwrap();
    profile.learn_pins(&home, &[]).unwrap();
    assert_eq!(profile.tls(), TlsTrust::Pins(vec![TlsPin([2; 32])]));
    let many: Vec<TlsPin> = (0..20).flat_map(|i| [TlsPin([i; 32]); 2]).collect();
    profile.learn_pins(&home, &many).unwrap();
    let TlsTrust::Pins(kept) = Profile::load(&home, &name("p")).unwrap().tls() else { panic!() };
    assert_eq!(kept, (0..8).map(|i| TlsPin([i; 32])).collect::<Vec<_>>());
    assert_eq!(kept.len(), MAX_PINS);
    profile.set_tls(&home, TlsTrust::Ca { file: None }).unwrap();
    profile.learn_pins(&home, &many).unwrap();
    assert_eq!(profile.tls(), TlsTrust::Ca { file: None });
}

#[test]
fn profile__unknown_key_error_names_file_and_line() {
    let (_dir, home) = home();
    let error = edited(&home, |text| text.replace("[device]", "[device]\ncolour = \"red\""));
    let text = fs::read_to_string(file(&home, "p")).unwrap();
    let line = 1 + text.lines().position(|line| line.starts_with("colour")).unwrap();
    assert!(line > 5);
    let message = error.to_string();
    let place = format!("{}:{line}: ", file(&home, "p").display());
    assert!(message.starts_with(&place), "{message}");
    assert!(message.contains("colour"), "{message}");
}

#[test]
fn profile__invalid_value_error_names_its_line() {
    let (_dir, home) = home();
    let hex = |digit: &str| digit.repeat(32);
    let edits: &[(&str, String, String)] = &[
        ("host", "chat.example.org".into(), "chat example".into()),
        ("host", "chat.example.org".into(), String::new()),
        ("port", "8443".into(), "0".into()),
        ("port", "8443".into(), "65536".into()),
        ("server_key", hex("01"), hex("01") + "0"),
        ("server_key", hex("01"), "x".into()),
        ("user", "ada".into(), "Ada".into()),
        ("binding", "warn".into(), "maybe".into()),
        ("min_version", "min_version = 1".into(), "min_version = 0".into()),
        ("created_ms", "1750000000000".into(), "-1".into()),
        ("rekey-after", "\n[device]".into(), "rekey-after = 14\n[device]".into()),
        ("rekey-after", "\n[device]".into(), "rekey-after = 601\n[device]".into()),
        ("rekey-after", "\n[device]".into(), "rekey-after = -600\n[device]".into()),
        ("rekey-after", "\n[device]".into(), "rekey-after = \"1m\"\n[device]".into()),
        ("id", "03".repeat(16), "03".into()),
        ("label", "laptop".into(), "lap\\ntop".into()),
        ("label", "laptop".into(), "l".repeat(65)),
        ("secret", hex("a5"), hex("a5")[1..].into()),
        ("trust", "\"pin\"".into(), "\"luck\"".into()),
        ("pins", "\"pin\"".into(), "\"ca\"".into()),
        ("trust", format!("\"{}\"", hex("02")), String::new()),
    ];
    for (key, from, to) in edits {
        let error = edited(&home, |text| text.replacen(from.as_str(), to, 1));
        let ProfileError::Malformed { line, problem, path } = error else { panic!("{error}") };
        assert_eq!(path, file(&home, "p"));
        let text = fs::read_to_string(&path).unwrap();
        let named = text.lines().nth(line - 1).unwrap();
        assert!(named.starts_with(&format!("{key} =")), "{key}: {line}: {problem}");
    }
}

#[test]
fn profile__rekey_after_is_kept_for_the_same_server() {
    let (_dir, home) = home();
    let mut profile = Profile::create(&home, &name("p"), new_profile()).unwrap();
    assert_eq!(profile.rekey_after(), None);
    assert!(!fs::read_to_string(file(&home, "p")).unwrap().contains("rekey"));
    let text = fs::read_to_string(file(&home, "p")).unwrap();
    let text = text.replace("\n[device]", "rekey-after = 15\n\n[device]");
    fs::write(file(&home, "p"), text).unwrap();
    let fifteen = Some(std::time::Duration::from_secs(15));
    profile.set_address(&home, "other.example.org", 9443).unwrap();
    assert_eq!(profile.rekey_after(), fifteen);
    // The same server again, then another one.
    let again = Profile::replace(&home, &name("p"), new_profile()).unwrap();
    assert_eq!(again.rekey_after(), fifteen);
    assert_eq!(Profile::load(&home, &name("p")).unwrap().rekey_after(), fifteen);
    let other = NewProfile { server_key: ServerKey([7; 32]), ..new_profile() };
    assert_eq!(Profile::replace(&home, &name("p"), other).unwrap().rekey_after(), None);
}

#[test]
fn profile__errors_never_show_the_secret() {
    let (_dir, home) = home();
    let secret = "a5".repeat(32);
    let line = format!("secret = \"{secret}\"");
    for wrong in [
        format!("secret = \"{secret}"),
        format!("secret = {secret}"),
        format!("secret = \"{secret}00\""),
        format!("secret = [\"{secret}\"]"),
        format!("{line}\n{line}"),
        format!("{line} x"),
    ] {
        let error = edited(&home, |text| text.replace(&line, &wrong));
        assert!(!format!("{error} {error:?}").contains("a5a5"), "{error}");
    }
}

#[test]
fn profile__file_that_is_not_a_profile_is_refused() {
    let (_dir, home) = home();
    for bytes in [vec![0xff; 10], vec![b'#'; 70_000], Vec::new()] {
        Profile::replace(&home, &name("p"), new_profile()).unwrap();
        fs::write(file(&home, "p"), bytes).unwrap();
        let error = Profile::load(&home, &name("p")).expect_err("taken");
        assert!(matches!(error, ProfileError::Malformed { line: 1, .. }), "{error}");
    }
    let missing = Profile::load(&home, &name("q")).expect_err("found");
    assert_eq!(missing, ProfileError::Missing { name: name("q") });
}

#[test]
fn profile__invalid_values_are_not_written() {
    let (_dir, home) = home();
    for unfit in [
        NewProfile { host: "a/b".into(), ..new_profile() },
        NewProfile { port: 0, ..new_profile() },
        NewProfile { min_version: 0, ..new_profile() },
        NewProfile { created_ms: u64::MAX, ..new_profile() },
        NewProfile { label: "\u{1b}[2J".into(), ..new_profile() },
        NewProfile { tls: TlsTrust::Pins(Vec::new()), ..new_profile() },
        NewProfile { tls: TlsTrust::Pins(vec![TlsPin([1; 32]); 9]), ..new_profile() },
        NewProfile { tls: TlsTrust::Ca { file: Some("ca.pem".into()) }, ..new_profile() },
    ] {
        let error = Profile::create(&home, &name("p"), unfit).expect_err("written");
        assert!(matches!(error, ProfileError::Unfit(_)), "{error}");
    }
    assert_eq!(profile::list(&home), Ok(Vec::new()));
}

#[test]
fn profile__list_is_sorted_and_has_profiles_only() {
    let (_dir, home) = home();
    assert_eq!(profile::list(&home), Ok(Vec::new()));
    for profile in ["work", "default", "a.b"] {
        Profile::create(&home, &name(profile), new_profile()).unwrap();
    }
    for other in [".new~x.toml", "notes.txt", "Upper.toml", "work.toml.bak"] {
        fs::write(home.profiles().join(other), "").unwrap();
    }
    assert_eq!(profile::list(&home), Ok(vec![name("a.b"), name("default"), name("work")]));
}

#[test]
fn profile__debug_shows_no_secret() {
    let (_dir, home) = home();
    let profile = Profile::create(&home, &name("p"), new_profile()).unwrap();
    let expected = format!(
        "Profile {{ name: Name(\"p\"), content: ProfileFile {{ host: \"chat.example.org\", port: 8443, \
         path: None, server_key: ServerKey({}), user: Name(\"ada\"), binding: Warn, min_version: 1, \
         created_ms: 1750000000000, rekey_after: None, device: Device {{ id: DeviceId({}), \
         label: \"laptop\", secret: DeviceSecret(..) }}, tls: Tls {{ trust: Pin, \
         pins: [Pin(TlsPin({}))], \
         ca_file: None }} }} }}",
        "01".repeat(32),
        "03".repeat(16),
        "02".repeat(32),
    );
    assert_eq!(format!("{profile:?}"), expected);
    assert!(!format!("{:?}", new_profile()).contains("165"), "the secret's bytes in decimal");
}

#[test]
fn profile_lock__is_exclusive_until_dropped() {
    let (_dir, home) = home();
    let held = home.lock(&name("p"), "line").unwrap();
    assert!(home.try_lock(&name("p"), "line").unwrap().is_none());
    assert!(home.try_lock(&name("p"), "other").unwrap().is_some());
    assert!(home.try_lock(&name("q"), "line").unwrap().is_some());
    drop(held);
    assert!(home.try_lock(&name("p"), "line").unwrap().is_some());
}

#[test]
fn state__symbolic_link_is_refused_and_target_unchanged() {
    let (dir, home) = home();
    let profile = name("default");
    let state = home.make_state(&profile).unwrap();
    let target = dir.path().join("target");
    fs::write(&target, "kept").unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o644)).unwrap();
    for file in ["state.db", "opening.lock"] {
        fs::remove_file(state.join(file)).ok();
        std::os::unix::fs::symlink(&target, state.join(file)).unwrap();
        let opened = State::open_for(&home, &profile, &ServerKey([7; 32]), &name("ada"));
        assert!(opened.is_err(), "{file}");
        assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
        assert_eq!(mode(&target), 0o644);
        fs::remove_file(state.join(file)).unwrap();
    }
    State::open_for(&home, &profile, &ServerKey([7; 32]), &name("ada")).unwrap();
}
