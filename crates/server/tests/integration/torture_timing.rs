//! Timing tests: operations that must take the same time whatever they find.
//!
//! They compare logins with existing and unknown names, tags that are wrong at their start and at
//! their end, and wrong padding with wrong text. Samples are taken in random order. Welch's t-test
//! compares the samples below one common limit, which excludes the slowest tenth; the share of
//! samples beyond the limit has to be the same for every class too.
//!
//! `TWINLOCK_TORTURE=full` (`make torture`) takes 10,000 samples per class and asserts that t is
//! below 4.5 for each pair; this needs an otherwise idle machine. Otherwise a few samples are
//! taken, and only the results are asserted, not the times.

use std::hint::black_box;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::common::*;
use data_encoding::{BASE64, BASE64URL_NOPAD};
use twinlock_core::classic::origin::Bridge;
use twinlock_core::classic::{self, ClassicChannel, ClassicScheme, Greeting};
use twinlock_core::frame::{CloseCode, FrameType, HEADER, Header};
use twinlock_core::handshake::{AwaitChallenge, Hello, self_register};
use twinlock_core::id::{CredentialId, InviteId, Name};
use twinlock_core::keys::{ChainKey, ClassicSecret};
use twinlock_core::opaque::ServerSetup;
use twinlock_core::proto::{self, answer::Result as Answered, request::Op};
use twinlock_core::seal::{Chain, MessageType};
use twinlock_transport::OsEntropy;

/// Above this, two means differ by more than chance (dudect's bound).
const T: f64 = 4.5;
/// The share of samples that count, fastest first; fixed before the first measurement.
const COUNTS: f64 = 0.9;
/// Credentials of each kind. Few and reused, so that all are in the same caches; enough that the
/// accidental cost of one does not count as the cost of its class.
const NAMES: usize = 8;

fn full() -> bool {
    match std::env::var("TWINLOCK_TORTURE").as_deref() {
        Ok("full") => true,
        Ok(other) => panic!("TWINLOCK_TORTURE={other}: it is full or not set"),
        Err(_) => false,
    }
}

fn samples() -> usize {
    if full() { 10_000 } else { 50 }
}

/// The classes of one measurement, and the duration of each sample in ns.
struct Measured {
    what: &'static str,
    classes: Vec<(&'static str, Vec<f64>)>,
}

/// Statistics of a class.
struct Class {
    name: &'static str,
    /// Mean of the samples up to the limit, ns.
    mean: f64,
    /// Variance of the mean.
    variance: f64,
    /// Share of its samples beyond the limit.
    beyond: f64,
}

/// The classes, the largest distance between any two in standard deviations, and the names of those
/// two.
struct Compared {
    classes: Vec<Class>,
    t: f64,
    of: [&'static str; 2],
}

impl Measured {
    fn new(what: &'static str, classes: &[&'static str]) -> Self {
        let classes = classes.iter().map(|class| (*class, Vec::new())).collect();
        Self { what, classes }
    }

    fn count(&self) -> usize {
        self.classes.len()
    }

    /// The classes in random order, each `samples()` times.
    fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> =
            (0..self.count()).flat_map(|class| vec![class; samples()]).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, (u64::from_be_bytes(random()) % (i as u64 + 1)) as usize);
        }
        order
    }

    fn add(&mut self, class: usize, began: Instant) {
        self.classes[class].1.push(began.elapsed().as_nanos() as f64);
    }

    /// Compares all classes under one common limit. If each class lost its own slowest tenth, the
    /// cut-off would vary by chance, which the variance of the rest does not include; with a tenth
    /// of the samples from a slower machine, t would be more than twice too large. A class that is
    /// slow only now and then would lose exactly that part, so the share beyond the limit is
    /// compared too.
    fn compare(self) -> Compared {
        let mut all: Vec<f64> = self.classes.iter().flat_map(|(_, took)| took).copied().collect();
        all.sort_by(f64::total_cmp);
        let limit = all[(all.len() as f64 * COUNTS) as usize - 1];
        let samples = all.len() as f64 / self.classes.len() as f64;
        let class = |(name, mut took): (_, Vec<f64>)| {
            took.retain(|x| *x <= limit);
            let n = took.len() as f64;
            let mean = took.iter().sum::<f64>() / n;
            let variance = took.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0) / n;
            Class { name, mean, variance, beyond: 1.0 - n / samples }
        };
        let classes: Vec<_> = self.classes.into_iter().map(class).collect();
        let (mut worst, mut of) = (0.0, [""; 2]);
        for (i, a) in classes.iter().enumerate() {
            for b in &classes[..i] {
                let beyond = f64::midpoint(a.beyond, b.beyond);
                let chance = (beyond * (1.0 - beyond) * 2.0 / samples).sqrt();
                for t in [
                    (a.mean - b.mean).abs() / (a.variance + b.variance).sqrt(),
                    (a.beyond - b.beyond).abs() / chance,
                ] {
                    if t > worst {
                        (worst, of) = (t, [a.name, b.name]);
                    }
                }
            }
        }
        Compared { classes, t: worst, of }
    }

    /// Prints the means and the shares beyond the limit, and asserts that no two differ.
    fn judge(self) {
        let what = self.what;
        let Compared { classes, t, of: [a, b] } = self.compare();
        let classes: Vec<_> = classes
            .iter()
            .map(|Class { name, mean, beyond, .. }| {
                format!("{name} {mean:.0} ns and {:.1} % slower", 100.0 * beyond)
            })
            .collect();
        eprintln!("timing: {what}: {}; t {t:.2} ({a}, {b})", classes.join(", "));
        assert!(t < T || !full(), "{what}: {a} and {b} differ, t = {t:.2}");
    }
}

#[test]
fn timing__statistic_separates_equal_and_unequal_classes() {
    let part = || u64::from_be_bytes(random()) as f64 / u64::MAX as f64;
    // A tenth of the samples come from a machine at half speed.
    let took = || {
        let spread: f64 = (0..12).map(|_| part()).sum();
        (1300.0 + 60.0 * (spread - 6.0)) * if part() < 0.1 { 2.0 } else { 1.0 }
    };
    // The second class takes `more` ns longer in the share `of` of its samples.
    let t = |more: f64, of: f64| {
        let mut two = Measured::new("", &["a", "b"]);
        for (n, (_, class)) in two.classes.iter_mut().enumerate() {
            let more = || if n == 1 && part() < of { more } else { 0.0 };
            class.extend((0..2_000).map(|_| took() + more()));
        }
        two.compare().t
    };
    let squares = (0..200).map(|_| t(0.0, 1.0).powi(2)).sum::<f64>() / 200.0;
    // The larger of two squares whose expectation is 1 each.
    assert!((1.0..2.5).contains(&squares), "{squares}");
    assert!(t(100.0, 1.0) > T);
    assert!(t(5000.0, 0.15) > T);
}

/// HELLOs that differ only in the id, because drawing random values can vary in time.
fn hellos(ids: &[Vec<CredentialId>]) -> Vec<Vec<Vec<u8>>> {
    let (_state, frame) =
        AwaitChallenge::start(TestDevice::unknown().credential(), None, &mut OsEntropy).unwrap();
    let tail = &frame[HEADER + 4 + 16..];
    let hello = |id: &CredentialId| {
        let head = [1, 0, id.kind(), id.id().len() as u8];
        [&head[..], id.id(), tail].concat()
    };
    ids.iter().map(|ids| ids.iter().map(hello).collect()).collect()
}

/// Measures how long the server takes for HELLO, and for an invalid PROOF.
async fn logins(
    host: &TestServer,
    what: [&'static str; 2],
    classes: &[&'static str],
    ids: &[Vec<CredentialId>],
) {
    let hellos = hellos(ids);
    let (mut hello, mut proof) = (Measured::new(what[0], classes), Measured::new(what[1], classes));
    let order: Vec<usize> = hello.order();
    for some in order.chunks(200) {
        // Batches separate HELLO from PROOF, so that caches warmed by one do not affect the other.
        let mut asked = Vec::new();
        for class in some {
            let [n] = random::<1>().map(usize::from);
            let payload = &hellos[*class][n % NAMES];
            let began = Instant::now();
            let answer = host.server().answer_hello(payload).await;
            hello.add(*class, began);
            let (state, challenge) = answer.expect("a CHALLENGE");
            assert_eq!(challenge.len(), HEADER + 1408);
            asked.push((*class, state));
        }
        for (class, state) in asked {
            let began = Instant::now();
            let refused = state.handle_proof(&[7; 64]);
            proof.add(class, began);
            assert!(refused.is_err());
        }
    }
    hello.judge();
    proof.judge();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timing__login_is_equal_for_known_and_unknown_ids() {
    let host = TestServer::start_with(|config| config.limits.logins_per_minute = 1_000_000).await;
    let (_laptop, mut ada) = host.owner().await;
    let name = |text: String| Name::new(&text).unwrap();
    let device = |device: &TestDevice| CredentialId::Device(device.id);
    let mut ids: Vec<Vec<Vec<CredentialId>>> = vec![vec![Vec::new(); 4]; 3];
    let mut expired = UNIX_EPOCH;
    for n in 0..NAMES {
        let role = proto::Role::Member;
        // A user with a password, one without, and unknown names.
        let invite = ada.invite(role, "").await.unwrap();
        let mut joining = host.connect(invite.credential()).await.unwrap();
        joining.register(&format!("known-{n}"), Some("correct horse")).await.unwrap();
        ids[0][0].push(CredentialId::User(name(format!("known-{n}"))));
        let (known, _line) = host.member(&mut ada, &format!("plain-{n}")).await;
        ids[0][1].push(CredentialId::User(name(format!("plain-{n}"))));
        ids[0][2].push(CredentialId::User(name(format!("nobdy-{n}"))));
        ids[0][3].push(CredentialId::User(name(format!("other-{n}"))));
        // An existing device, a revoked one, and unknown ones.
        ids[1][0].push(device(&known));
        let (lost, mut line) = host.member(&mut ada, &format!("gone-{n}")).await;
        let revoke = proto::RevokeDevice { device: copy(&lost.id.0) };
        // The revocation ends the session that requests it.
        let _answer = line.post(Op::RevokeDevice(revoke));
        assert_eq!(line.end().await.unwrap(), CloseCode::Revoked);
        ids[1][1].push(device(&lost));
        ids[1][2].push(device(&TestDevice::unknown()));
        ids[1][3].push(device(&TestDevice::unknown()));
        // A valid invite, a used one, an expired one, and an unknown one.
        let good = ada.invite(role, "").await.unwrap();
        ids[2][0].push(CredentialId::Invite(InviteId(good.id)));
        ids[2][1].push(CredentialId::Invite(InviteId(invite.id)));
        let short = proto::MakeInvite { role: role.into(), user: String::new(), seconds: 1 };
        let Ok(Answered::Invite(short)) = ada.ask(Op::MakeInvite(short)).await else {
            panic!("no invite")
        };
        expired = UNIX_EPOCH + Duration::from_millis(short.expires_ms);
        let short: [u8; 8] = short.id.as_ref().try_into().unwrap();
        ids[2][2].push(CredentialId::Invite(InviteId(short)));
        ids[2][3].push(CredentialId::Invite(InviteId(random())));
    }
    while SystemTime::now() < expired {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let kinds: [([&str; 2], [&str; 4]); 3] = [
        (
            ["HELLO of a user", "PROOF of a user"],
            ["known", "without password", "unknown", "another"],
        ),
        (["HELLO of a device", "PROOF of a device"], ["known", "revoked", "unknown", "another"]),
        (["HELLO of an invite", "PROOF of an invite"], ["good", "used", "expired", "unknown"]),
    ];
    for ((what, classes), ids) in kinds.into_iter().zip(&ids) {
        logins(&host, what, &classes, ids).await;
    }
}

#[test]
fn timing__challenge_is_equal_with_and_without_record() {
    let setup = ServerSetup::generate(&mut OsEntropy);
    let device = TestDevice::unknown();
    let credential = device.credential();
    let record = self_register(&setup, &credential, &mut OsEntropy).unwrap();
    let (_state, frame) = AwaitChallenge::start(credential, None, &mut OsEntropy).unwrap();
    let records = [Some(&record), None];
    let mut measured = Measured::new("CHALLENGE", &["with a record", "without"]);
    for class in measured.order() {
        let hello = Hello::parse(&frame[HEADER..]).unwrap();
        let began = Instant::now();
        let challenge = hello.challenge(&setup, black_box(records[class]), &mut OsEntropy);
        measured.add(class, began);
        assert!(challenge.is_ok());
    }
    measured.judge();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timing__classic_key_lookup_is_equal_for_unknown_names() {
    let host = TestServer::start_with(|config| {
        config.classic.lines = Some("127.0.0.1:0".parse().unwrap());
    })
    .await;
    let (_laptop, mut ada) = host.owner().await;
    for name in ["known", "goner"] {
        let key = proto::AddClassicKey {
            name: name.into(),
            conversation: LOBBY,
            form: proto::ClassicForm::JweLines.into(),
            ..Default::default()
        };
        ada.ask(Op::AddClassicKey(key)).await.unwrap();
    }
    let name = "goner".into();
    ada.ask(Op::RevokeClassicKey(proto::RevokeClassicKey { name })).await.unwrap();
    // One message under an unknown key: it opens under none of the keys.
    let mut sealed = Vec::new();
    let nobody = ClassicSecret::new(&random());
    let greeting = Greeting::draw(&mut OsEntropy).line();
    let (_hello, mut lines) =
        classic::call("known", &nobody, greeting.trim_end().as_bytes(), &mut OsEntropy).unwrap();
    lines.seal("hello", &mut OsEntropy, &mut sealed);
    sealed.pop();
    let kids = ["known", "goner", "other"];
    let mut measured =
        Measured::new("a classic line under a wrong key", &["known", "revoked", "unknown"]);
    for class in measured.order() {
        let hello = Greeting::draw(&mut OsEntropy)
            .read_hello(format!("{} AAAAAAAAAAAAAAAAAAAAAA", kids[class]).as_bytes())
            .unwrap();
        let began = Instant::now();
        let mut lines = host.server().classic_lines(hello).await.unwrap();
        let opened = lines.open(&sealed);
        measured.add(class, began);
        assert!(opened.is_err());
    }
    measured.judge();
}

/// The positions at which a tag is wrong.
const WHERE: [&str; 4] = ["first byte", "last byte", "both", "middle"];

/// Corrupts the tag at the end.
fn spoil(bytes: &mut [u8], tag: usize, class: usize) {
    let first = bytes.len() - tag;
    let [by] = random::<1>().map(|by| by | 1);
    let places: [&[usize]; 4] = [&[0], &[tag - 1], &[0, tag - 1], &[tag / 2]];
    for place in places[class] {
        bytes[first + place] ^= by;
    }
}

/// Measures how long `run` takes to reject the inputs that `prepare` makes for a class. Each sample
/// has a different input, so that the speed of particular messages does not count. Inputs are
/// prepared in batches, so that a sample does not depend on the preparation just before it.
fn compare<I>(
    what: &'static str,
    classes: &[&'static str],
    prepare: impl Fn(usize) -> I,
    run: impl Fn(&mut I) -> bool,
) {
    let mut measured = Measured::new(what, classes);
    for some in measured.order().chunks(200) {
        let mut made: Vec<_> = some.iter().map(|class| (*class, prepare(*class))).collect();
        for (class, input) in &mut made {
            let began = Instant::now();
            let yes = run(black_box(input));
            measured.add(*class, began);
            assert!(!yes);
        }
    }
    measured.judge();
}

fn frames(what: &'static str, frame: FrameType, seal: impl Fn(&mut Chain, &mut Vec<u8>)) {
    let prepare = |class| {
        let key = random();
        let chain = || Chain::new(ChainKey::new(&key), 0);
        let mut payload = Vec::new();
        seal(&mut chain(), &mut payload);
        payload.drain(..HEADER);
        let header = Header { frame, len: payload.len() };
        assert!(chain().open(header, &mut payload.clone()).is_ok());
        spoil(&mut payload, if frame == FrameType::Sealed { 32 } else { 16 }, class);
        (chain(), header, payload)
    };
    compare(what, &WHERE, prepare, |(chain, header, payload)| chain.open(*header, payload).is_ok());
}

#[test]
fn timing__tag_rejection_is_independent_of_wrong_byte() {
    frames("the tag of SEALED", FrameType::Sealed, |chain, out| {
        chain.seal(MessageType::App, &random::<100>(), out).unwrap();
    });
    frames("the tag of BULK", FrameType::Bulk, |chain, out| {
        chain.seal_bulk(1, 0, &random::<1024>(), out).unwrap();
    });
    // A classic message; its tag is base64url at the end.
    let line = |class| {
        let key = ClassicSecret::new(&random());
        let greeting = Greeting::draw(&mut OsEntropy);
        let said = greeting.line();
        let (hello, mut client) =
            classic::call("lamp", &key, said.trim_end().as_bytes(), &mut OsEntropy).unwrap();
        let server = greeting.read_hello(hello.trim_end().as_bytes()).unwrap().lines(&key);
        let mut line = Vec::new();
        client.seal("hello", &mut OsEntropy, &mut line);
        line.pop();
        let dot = line.iter().rposition(|byte| *byte == b'.').unwrap() + 1;
        let mut tag = BASE64URL_NOPAD.decode(&line[dot..]).unwrap();
        spoil(&mut tag, 32, class);
        (server, [&line[..dot], BASE64URL_NOPAD.encode(&tag).as_bytes()].concat())
    };
    let open = |(server, line): &mut (ClassicChannel, Vec<u8>)| server.open(line).is_ok();
    compare("the tag of a classic line", &WHERE, line, open);
    // The bridge with a MAC.
    let message = |class| {
        let key = ClassicSecret::new(&random());
        let bridge = || Bridge::new(ClassicScheme::OriginHmac, &key).unwrap();
        let good = bridge().reversed().seal("hello", &mut OsEntropy);
        let mut bytes = BASE64.decode(good.as_bytes()).unwrap();
        assert!(bridge().open(good.as_bytes()).is_some());
        spoil(&mut bytes, 32, class);
        (bridge(), BASE64.encode(&bytes))
    };
    compare("the tag of the bridge", &WHERE, message, |(bridge, message)| {
        bridge.open(message.as_bytes()).is_some()
    });
}

#[test]
fn timing__bridge_rejection_is_equal_for_all_causes() {
    let classes = ["wrong padding", "wrong text", "both", "another key"];
    let message = |class| {
        let bridge =
            |key: &[u8; 32]| Bridge::new(ClassicScheme::Origin, &ClassicSecret::new(key)).unwrap();
        let key = random();
        let good = bridge(&key).seal("x", &mut OsEntropy);
        let mut bytes = BASE64.decode(good.as_bytes()).unwrap();
        assert!(bridge(&key).open(good.as_bytes()).is_some());
        // The sender controls the plaintext of the block: it changes as the IV does.
        if matches!(class, 1 | 2) {
            bytes[0] ^= 0x80;
        }
        if matches!(class, 0 | 2) {
            bytes[15] ^= 0x30;
        }
        (bridge(&if class == 3 { random() } else { key }), BASE64.encode(&bytes))
    };
    compare("the bridge without a MAC", &classes, message, |(bridge, message)| {
        // By chance, another key opens one in a few thousand; that is not a failure.
        bridge.open(message.as_bytes()).is_some_and(|text| text.is_ascii() && text.len() == 1)
    });
}
