use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Barrier;

use tempfile::TempDir;

use super::*;

const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// A data directory that does not exist yet, and a clock.
struct IdentityCase {
    _temp: TempDir,
    dir: PathBuf,
    now: SystemTime,
}

fn case() -> IdentityCase {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("data").join("identity");
    IdentityCase { _temp: temp, dir, now: SystemTime::now() }
}

fn setup_of(byte: u8) -> impl FnOnce() -> Zeroizing<[u8; SETUP_LEN]> {
    move || Zeroizing::new([byte; SETUP_LEN])
}

impl IdentityCase {
    fn open_at(
        &self,
        now: SystemTime,
        options: IdentityOptions,
    ) -> Result<Identity, IdentityError> {
        Identity::open_or_create(&self.dir, options, now, setup_of(1))
    }

    fn open(&self) -> Identity {
        self.open_at(self.now, IdentityOptions::default()).unwrap()
    }

    /// An open that must find a complete identity.
    fn reopen(&self, now: SystemTime) -> Identity {
        Identity::open_or_create(&self.dir, IdentityOptions::default(), now, || {
            panic!("asked again")
        })
        .unwrap()
    }

    fn refusal(&self) -> IdentityError {
        self.open_at(self.now, IdentityOptions::default()).unwrap_err()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn content(&self) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = fs::read_dir(&self.dir)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    fn names(&self) -> Vec<String> {
        self.content().into_iter().map(|(name, _)| name).collect()
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn pair(change: impl FnOnce(&mut rcgen::CertificateParams)) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["chat.example".to_owned()]).unwrap();
    change(&mut params);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn own_files(case: &IdentityCase, (cert, key): &(String, String)) -> IdentityOptions {
    let at = case.dir.parent().unwrap().parent().unwrap();
    let own = OwnFiles { cert: at.join("own.crt"), key: at.join("own.key") };
    fs::write(&own.cert, cert).unwrap();
    fs::write(&own.key, key).unwrap();
    IdentityOptions { own: Some(own), ..IdentityOptions::default() }
}

#[test]
fn identity__first_start_creates_private_files() {
    let case = case();
    let identity = case.open();
    assert!(identity.is_new());
    assert_eq!(identity.setup_bytes(), &[1; SETUP_LEN]);
    assert_eq!(case.names(), [SETUP, CERT, KEY]);
    for name in [SETUP, CERT, KEY] {
        assert_eq!(mode(&case.path(name)), 0o600, "{name}");
    }
    assert_eq!(mode(&case.dir), 0o700);
    assert_eq!(mode(case.dir.parent().unwrap()), 0o700);
    assert_eq!(fs::read(case.path(SETUP)).unwrap(), [1; SETUP_LEN]);
}

#[test]
fn identity__second_start_changes_no_file() {
    let case = case();
    let first = case.open();
    let files = case.content();
    let second = case.reopen(case.now + DAY);
    assert!(!second.is_new());
    assert_eq!(second.pin(), first.pin());
    assert_eq!(second.setup_bytes(), first.setup_bytes());
    assert_eq!(case.content(), files);
}

#[test]
fn certificate__valid_for_a_year_and_all_names() {
    let case = case();
    let names =
        ["Chat.Example.", "192.0.2.7", "2001:DB8::7", "localhost"].map(str::to_owned).into();
    let identity =
        case.open_at(case.now, IdentityOptions { names, ..IdentityOptions::default() }).unwrap();
    let left = identity.expires_at().duration_since(case.now).unwrap();
    assert!(left > YEAR - DAY && left <= YEAR, "{left:?}");

    let all = ["localhost", "127.0.0.1", "::1", "chat.example", "192.0.2.7", "2001:db8::7"];
    let mut all: Vec<_> = all.map(str::to_owned).into();
    let host = rustix::system::uname().nodename().to_str().unwrap().to_owned();
    if rustls::pki_types::ServerName::try_from(host.as_str()).is_ok() {
        all.push(host);
    }
    assert!(make::covers(&identity.certificate(), &all));
    assert!(!make::covers(&identity.certificate(), &["other.example".to_owned()]));
}

#[test]
fn identity__invalid_name_is_refused_before_creation() {
    let case = case();
    let names = vec!["chat.example:8443".to_owned()];
    let error = case
        .open_at(case.now, IdentityOptions { names, ..IdentityOptions::default() })
        .unwrap_err();
    assert!(matches!(&error, IdentityError::Name(name) if name == "chat.example:8443"), "{error}");
    assert!(!case.dir.exists());
}

#[test]
fn identity__rsa_on_request_never_replaces_existing_key() {
    let rsa = || IdentityOptions { key_type: KeyType::Rsa2048, ..IdentityOptions::default() };
    let fresh = case();
    let identity = fresh.open_at(fresh.now, rsa()).unwrap();
    let key = fs::read(fresh.path(KEY)).unwrap();
    assert!(make::is_rsa(&key));
    assert_eq!(fresh.reopen(fresh.now).pin(), identity.pin());

    let ecdsa = case();
    let before = ecdsa.open().pin();
    assert!(!make::is_rsa(&fs::read(ecdsa.path(KEY)).unwrap()));
    assert_eq!(ecdsa.open_at(ecdsa.now, rsa()).unwrap().pin(), before);
}

/// Every state that a crash of the first start can leave.
#[test]
fn identity__first_start_recovers_from_any_crash() {
    let whole = case();
    whole.open();
    let of = |name: &str| fs::read(whole.path(name)).unwrap();
    let temporary = |name: &str| format!("{name}.tmp");
    let order = [SETUP, KEY, CERT];
    let mut states = 0;
    for done in 0..=order.len() {
        let tail = order.get(done).map(|name| (temporary(name), of(name)));
        let cuts =
            tail.as_ref().map_or(vec![], |(_, bytes)| vec![0, 1, bytes.len() - 1, bytes.len()]);
        for cut in std::iter::once(None).chain(cuts.into_iter().map(Some)) {
            let case = case();
            fs::create_dir_all(&case.dir).unwrap();
            for name in &order[..done] {
                fs::write(case.path(name), of(name)).unwrap();
            }
            if let (Some(cut), Some((name, bytes))) = (cut, &tail) {
                fs::write(case.path(name), &bytes[..cut]).unwrap();
            }
            let identity = case.open();
            assert_eq!(identity.is_new(), done == 0);
            assert_eq!(case.names(), [SETUP, CERT, KEY], "{done} done, {cut:?}");
            if done >= 2 {
                assert_eq!(fs::read(case.path(KEY)).unwrap(), of(KEY));
            }
            assert_eq!(case.reopen(case.now).pin(), identity.pin());
            states += 1;
        }
    }
    assert_eq!(states, 16);
}

#[test]
fn identity__stale_temporary_file_is_not_followed_or_used() {
    let case = case();
    fs::create_dir_all(&case.dir).unwrap();
    let elsewhere = case.dir.parent().unwrap().join("elsewhere");
    fs::write(&elsewhere, "precious").unwrap();
    symlink(&elsewhere, case.path("tls-key.pem.tmp")).unwrap();
    fs::write(case.path("tls-cert.pem.tmp"), "rubbish").unwrap();
    chmod(&case.path("tls-cert.pem.tmp"), 0o666);
    case.open();
    assert_eq!(fs::read(&elsewhere).unwrap(), b"precious");
    assert_eq!(mode(&case.path(CERT)), 0o600);
    assert_eq!(case.names(), [SETUP, CERT, KEY]);
}

#[test]
fn identity__concurrent_first_starts_create_one() {
    for _ in 0..20 {
        let case = case();
        let ready = Barrier::new(2);
        let open = |byte| {
            ready.wait();
            Identity::open_or_create(
                &case.dir,
                IdentityOptions::default(),
                case.now,
                setup_of(byte),
            )
            .unwrap()
        };
        let (one, two) = std::thread::scope(|scope| {
            let one = scope.spawn(|| open(1));
            let two = scope.spawn(|| open(2));
            (one.join().unwrap(), two.join().unwrap())
        });
        assert_eq!(one.pin(), two.pin());
        assert_eq!(one.setup_bytes(), two.setup_bytes());
        assert!(one.is_new() != two.is_new());
    }
}

#[test]
fn identity__missing_setup_or_key_is_not_recreated() {
    for (gone, found) in [(SETUP, KEY), (KEY, CERT)] {
        let case = case();
        case.open();
        fs::remove_file(case.path(gone)).unwrap();
        let before = case.content();
        let error = case.refusal();
        assert!(
            matches!(&error, IdentityError::Missing { path, found: there }
                if *path == case.path(gone) && *there == case.path(found)),
            "{error}"
        );
        assert!(error.to_string().contains("backup"));
        assert_eq!(case.content(), before);
    }
}

#[test]
fn certificate__missing_is_recreated_with_same_key() {
    let case = case();
    let before = case.open().pin();
    fs::remove_file(case.path(CERT)).unwrap();
    assert_eq!(case.reopen(case.now).pin(), before);
}

#[test]
fn identity__setup_of_wrong_length_is_refused_unchanged() {
    let case = case();
    case.open();
    for length in [0, 1, SETUP_LEN - 1, SETUP_LEN + 1, 4096] {
        fs::write(case.path(SETUP), vec![1; length]).unwrap();
        let error = case.refusal();
        assert!(matches!(error, IdentityError::Setup { got, .. } if got == length), "{error}");
        let message = error.to_string();
        assert!(
            message.contains("opaque-setup") && message.contains(&format!("{length} bytes")),
            "{message}"
        );
        assert_eq!(fs::read(case.path(SETUP)).unwrap().len(), length);
    }
}

#[test]
fn identity__unusable_file_error_names_the_file() {
    let case = case();
    case.open();
    let good: Vec<_> = [CERT, KEY].map(|name| fs::read(case.path(name)).unwrap()).into();
    let truncated = &good[1][..good[1].len() / 2];
    let too_large = vec![b' '; (1 << 20) + 1];
    let bad: [(&str, &[u8]); 6] = [
        (CERT, b""),
        (CERT, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        (KEY, b""),
        (KEY, truncated),
        (KEY, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
        (KEY, &too_large),
    ];
    for (name, bytes) in bad {
        fs::write(case.path(name), bytes).unwrap();
        let error = case.refusal();
        assert!(error.to_string().contains(name), "{error}");
        match (bytes.len() > 1 << 20, error) {
            (true, IdentityError::TooLarge { path }) => assert_eq!(path, case.path(name)),
            (false, IdentityError::Certificate { path, .. }) => assert_eq!(path, case.path(name)),
            (_, other) => panic!("{other}"),
        }
        fs::write(case.path(CERT), &good[0]).unwrap();
        fs::write(case.path(KEY), &good[1]).unwrap();
    }
    case.reopen(case.now);

    fs::remove_file(case.path(CERT)).unwrap();
    fs::create_dir(case.path(CERT)).unwrap();
    assert!(matches!(case.refusal(), IdentityError::Io { path, .. } if path == case.path(CERT)));
}

#[test]
fn identity__key_mismatch_error_names_both_files() {
    let case = case();
    case.open();
    fs::write(case.path(KEY), pair(|_| ()).1).unwrap();
    let error = case.refusal();
    assert!(matches!(error, IdentityError::Mismatch { .. }));
    let message = error.to_string();
    assert!(message.contains(KEY) && message.contains(CERT), "{message}");
}

#[test]
fn identity__permissions_of_others_are_removed() {
    let case = case();
    case.open();
    for (path, wide, tight) in [
        (case.dir.clone(), 0o755, 0o700),
        (case.path(SETUP), 0o644, 0o600),
        (case.path(KEY), 0o640, 0o600),
    ] {
        chmod(&path, wide);
        case.reopen(case.now);
        assert_eq!(mode(&path), tight, "{}", path.display());
    }
    // A stricter mode is left unchanged.
    chmod(&case.path(SETUP), 0o400);
    case.reopen(case.now);
    assert_eq!(mode(&case.path(SETUP)), 0o400);
}

#[test]
fn certificate__renewed_near_expiry_with_same_pin() {
    let case = case();
    let mut identity = case.open();
    let (pin, end) = (identity.pin(), identity.expires_at());
    let old = fs::read(case.path(CERT)).unwrap();

    assert!(identity.renew_if_due(end - 31 * DAY).unwrap().is_none());
    assert_eq!(fs::read(case.path(CERT)).unwrap(), old);

    let due = end - 29 * DAY;
    let renewed = identity.renew_if_due(due).unwrap().unwrap();
    assert_eq!(renewed.pin(), pin);
    assert_eq!(identity.pin(), pin);
    assert_eq!(identity.expires_at(), renewed.expires_at());
    assert!(renewed.expires_at() > due + YEAR - DAY);
    assert_ne!(fs::read(case.path(CERT)).unwrap(), old);
    assert_eq!(mode(&case.path(CERT)), 0o600);
    assert!(identity.renew_if_due(due).unwrap().is_none());
    assert_eq!(case.reopen(due).expires_at(), renewed.expires_at());
}

#[test]
fn certificate__expired_is_renewed_at_start() {
    let case = case();
    let first = case.open();
    let later = case.now + 3 * YEAR;
    let second = case.reopen(later);
    assert_eq!(second.pin(), first.pin());
    assert_eq!(second.certificate().check_time(later), Ok(()));
}

#[test]
fn certificate__made_under_wrong_clock_is_renewed() {
    let case = case();
    let stopped = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
    let first = case.open_at(stopped, IdentityOptions::default()).unwrap();
    let right = case.reopen(case.now);
    assert_eq!(right.pin(), first.pin());
    assert_eq!(right.certificate().check_time(case.now), Ok(()));

    let ahead = case.now + 40 * YEAR;
    case.reopen(ahead);
    let back = case.reopen(case.now);
    assert_eq!(back.certificate().check_time(case.now), Ok(()));
    assert_eq!(back.pin(), first.pin());

    let absurd = SystemTime::UNIX_EPOCH + 20_000 * YEAR;
    assert_eq!(case.reopen(absurd).pin(), first.pin());
}

#[test]
fn certificate__new_name_renews_with_same_key() {
    let case = case();
    let first = case.open();
    let names = vec!["chat.example".to_owned()];
    let options = IdentityOptions { names: names.clone(), ..IdentityOptions::default() };
    let second = case.open_at(case.now, options).unwrap();
    assert_eq!(second.pin(), first.pin());
    assert!(make::covers(&second.certificate(), &names));
    // One name fewer does not cause a renewal.
    let files = case.content();
    case.reopen(case.now);
    assert_eq!(case.content(), files);
}

#[test]
fn certificate__renewal_with_replaced_key_is_refused() {
    let case = case();
    let mut identity = case.open();
    let due = identity.expires_at() - DAY;
    let (cert, key) = pair(|_| ());
    fs::write(case.path(CERT), &cert).unwrap();
    fs::write(case.path(KEY), key).unwrap();
    let pin = identity.pin();
    let error = identity.renew_if_due(due).unwrap_err();
    assert!(matches!(error, IdentityError::KeyReplaced { .. }), "{error}");
    assert_eq!(identity.pin(), pin);
    assert_eq!(fs::read_to_string(case.path(CERT)).unwrap(), cert);
    // A reload confirms that the operator wants the new key.
    assert_ne!(identity.reload(case.now).unwrap().pin(), pin);
}

#[test]
fn certificate__failed_renewal_keeps_the_old_one() {
    let case = case();
    let mut identity = case.open();
    let end = identity.expires_at();
    let old = fs::read(case.path(CERT)).unwrap();
    fs::create_dir(case.path("tls-cert.pem.tmp")).unwrap();
    let error = identity.renew_if_due(end - DAY).unwrap_err();
    assert!(error.to_string().contains("tls-cert.pem.tmp"), "{error}");
    assert_eq!(identity.expires_at(), end);
    // Nor does it prevent the server from starting, even after the expiry.
    let identity = case.reopen(end + DAY);
    assert_eq!(identity.expires_at(), end);
    assert_eq!(fs::read(case.path(CERT)).unwrap(), old);
}

#[test]
fn certificate__ca_issued_is_never_replaced() {
    let case = case();
    let mut ca = rcgen::CertificateParams::default();
    ca.distinguished_name.push(rcgen::DnType::CommonName, "an authority");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = rcgen::CertifiedIssuer::self_signed(ca, rcgen::KeyPair::generate().unwrap()).unwrap();

    let mut identity = case.open();
    let key = rcgen::KeyPair::from_pem(&fs::read_to_string(case.path(KEY)).unwrap()).unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["chat.example".to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "chat.example");
    params.not_after = (case.now + 10 * DAY).into();
    let issued = params.signed_by(&key, &ca).unwrap().pem();
    fs::write(case.path(CERT), &issued).unwrap();

    assert_eq!(identity.reload(case.now).unwrap().pin(), identity.pin());
    assert!(identity.renew_if_due(case.now).unwrap().is_none());
    assert!(identity.renew_if_due(case.now + 20 * DAY).unwrap().is_none());
    case.reopen(case.now + 20 * DAY);
    assert_eq!(fs::read_to_string(case.path(CERT)).unwrap(), issued);
}

#[test]
fn own_files__expired_are_served_and_never_modified() {
    let case = case();
    let files = pair(|params| params.not_after = rcgen::date_time_ymd(2001, 1, 1));
    let options = own_files(&case, &files);
    let own = options.own.clone().unwrap();
    chmod(&own.key, 0o644);
    let mut identity = case.open_at(case.now, options).unwrap();
    assert_eq!(case.names(), [SETUP]);
    // Expired: logged, served, not renewed.
    assert!(identity.expires_at() < case.now);
    assert!(identity.renew_if_due(case.now).unwrap().is_none());
    assert_eq!(fs::read_to_string(&own.cert).unwrap(), files.0);
    assert_eq!(fs::read_to_string(&own.key).unwrap(), files.1);
    assert_eq!(mode(&own.key), 0o644);
}

#[test]
fn own_files__mismatched_or_missing_are_refused() {
    let case = case();
    let (one, two) = (pair(|_| ()), pair(|_| ()));
    let options = own_files(&case, &(one.0, two.1));
    let error = case.open_at(case.now, options.clone()).unwrap_err();
    assert!(matches!(error, IdentityError::Mismatch { .. }), "{error}");

    fs::remove_file(&options.own.as_ref().unwrap().key).unwrap();
    let error = case.open_at(case.now, options).unwrap_err();
    assert!(error.to_string().contains("own.key"), "{error}");
}

#[test]
fn reload__valid_pair_is_used_and_invalid_keeps_old() {
    let case = case();
    let options = own_files(&case, &pair(|_| ()));
    let own = options.own.clone().unwrap();
    let mut identity = case.open_at(case.now, options).unwrap();
    let old = identity.pin();

    let good = pair(|_| ());
    let expired = pair(|params| params.not_after = rcgen::date_time_ymd(2001, 1, 1));
    let early = pair(|params| params.not_before = rcgen::date_time_ymd(4000, 1, 1));
    let cases: [(&str, &str, &[&str]); 6] = [
        (&good.0, &expired.1, &["own.crt", "own.key"]),
        (&expired.0, &expired.1, &["own.crt", "expired"]),
        (&early.0, &early.1, &["own.crt", "not valid before"]),
        ("", &good.1, &["own.crt"]),
        (&good.0, "", &["own.key"]),
        (&good.0[..100], &good.1, &["own.crt"]),
    ];
    for (cert, key, words) in cases {
        fs::write(&own.cert, cert).unwrap();
        fs::write(&own.key, key).unwrap();
        let message = identity.reload(case.now).unwrap_err().to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
        assert_eq!(identity.pin(), old);
    }

    fs::write(&own.cert, &good.0).unwrap();
    fs::write(&own.key, &good.1).unwrap();
    let new = identity.reload(case.now).unwrap();
    assert_ne!(new.pin(), old);
    assert_eq!(identity.pin(), new.pin());
}

#[test]
fn reload__self_signed_certificate_is_renewed_if_due() {
    let case = case();
    let mut identity = case.open();
    let (pin, end) = (identity.pin(), identity.expires_at());
    let cert = identity.reload(end + DAY).unwrap();
    assert_eq!(cert.pin(), pin);
    assert_eq!(cert.check_time(end + DAY), Ok(()));
    fs::remove_file(case.path(KEY)).unwrap();
    let message = identity.reload(case.now).unwrap_err().to_string();
    assert!(message.contains(KEY), "{message}");
    assert_eq!(identity.pin(), pin);
}

#[test]
fn identity__debug_and_errors_show_no_secret() {
    let case = case();
    let identity = Identity::open_or_create(&case.dir, IdentityOptions::default(), case.now, || {
        Zeroizing::new(*b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")
    })
    .unwrap();
    let shown = format!("{identity:?}");
    assert!(shown.starts_with("Identity { dir: "), "{shown}");
    let key = fs::read_to_string(case.path(KEY)).unwrap();
    let body = key.lines().nth(1).unwrap().to_owned();
    // As text and as a list of numbers.
    assert!(!shown.contains("0123456789abcdef0123") && !shown.contains("48, 49, 50"), "{shown}");

    fs::write(case.path(KEY), key.replace("-----END", "!\n-----END")).unwrap();
    let error = case.refusal();
    assert!(!format!("{error} {error:?}").contains(&body));
}
