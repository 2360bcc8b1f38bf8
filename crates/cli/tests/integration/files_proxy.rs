//! TLS interception: a large file passes a proxy in both directions. The proxy searches every byte
//! and finds nothing of the file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::common::proxy::{Proxy, Watch, forms};
use crate::common::raw::{Card, full};
use crate::common::*;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use twinlock_core::id::TlsPin;
use twinlock_transport::tls::{Alpn, ClientTls, ServerTrust};

/// Size of the file; `make torture` sends a GiB.
fn size() -> u64 {
    if full() { 1 << 30 } else { 96 << 20 }
}
const NAME: &str = "Quartalszahlen-geheim.ods";
/// Eight bytes that are in every sixteen of the file; by chance they occur somewhere in two GiB
/// once in ten billion runs.
const MARKER: [u8; 8] = *b"\xc3KLARTX\x9e";
const PART: usize = 256 * 1024;
/// Timeout of each direction.
const TIME: Duration = Duration::from_secs(120);

/// The file: the marker and a byte that differs, repeated.
struct Plain {
    at: u64,
}

impl Plain {
    fn next(&mut self, part: &mut [u8]) {
        for byte in part {
            let (group, place) = (self.at / 9, (self.at % 9) as usize);
            *byte = *MARKER.get(place).unwrap_or(&((group ^ group >> 8 ^ group >> 16) as u8));
            self.at += 1;
        }
    }
}

/// Writes the file; returns its BLAKE3 hash.
fn write_plain(path: &Path, size: u64) -> [u8; 32] {
    let (mut plain, mut hasher) = (Plain { at: 0 }, blake3::Hasher::new());
    let mut file = BufWriter::new(File::create(path).unwrap());
    let mut part = vec![0; PART];
    let mut left = size;
    while left > 0 {
        let some = &mut part[..usize::try_from(left.min(PART as u64)).unwrap()];
        plain.next(some);
        hasher.update(some);
        file.write_all(some).unwrap();
        left -= some.len() as u64;
    }
    file.flush().unwrap();
    *hasher.finalize().as_bytes()
}

fn hash_of(path: &Path) -> [u8; 32] {
    let (mut file, mut hasher) = (File::open(path).unwrap(), blake3::Hasher::new());
    let mut part = vec![0; PART];
    while let got @ 1.. = file.read(&mut part).unwrap() {
        hasher.update(&part[..got]);
    }
    *hasher.finalize().as_bytes()
}

/// The patterns to search for, eight bytes each, with what they belong to.
#[derive(Clone)]
struct Wanted {
    by_bytes: HashMap<u64, &'static str>,
    /// Whether any pattern ends with this byte.
    ends: [bool; 256],
}

impl Wanted {
    /// The marker; and the first and the last eight bytes of the name, and of the hash in all its
    /// forms.
    fn new(hash: &[u8; 32]) -> Self {
        let mut wanted = Self { by_bytes: HashMap::new(), ends: [false; 256] };
        wanted.add(&MARKER, "content");
        wanted.add(NAME.as_bytes(), "name");
        for form in forms(hash) {
            wanted.add(&form, "hash");
        }
        wanted
    }

    fn add(&mut self, bytes: &[u8], what: &'static str) {
        for part in [bytes.first_chunk::<8>().unwrap(), bytes.last_chunk().unwrap()] {
            self.by_bytes.insert(u64::from_be_bytes(*part), what);
            self.ends[usize::from(part[7])] = true;
        }
    }
}

/// The matches, and the number of bytes searched.
#[derive(Default, Clone)]
struct Found(Arc<Mutex<(HashMap<&'static str, u64>, u64)>>);

impl Found {
    fn take(&self) -> (HashMap<&'static str, u64>, u64) {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// Searches a stream as it passes, independently of how it is split.
fn look(wanted: Arc<Wanted>, found: Found) -> Watch {
    // The last eight bytes.
    let mut last = 0_u64;
    Box::new(move |part: &[u8]| {
        let mut seen = Vec::new();
        for &byte in part {
            last = last << 8 | u64::from(byte);
            if wanted.ends[usize::from(byte)]
                && let Some(what) = wanted.by_bytes.get(&last)
            {
                seen.push(*what);
            }
        }
        let mut found = found.0.lock().unwrap();
        found.1 += part.len() as u64;
        for what in seen {
            *found.0.entry(what).or_default() += 1;
        }
    })
}

#[test]
fn tls_interception__detector_finds_content_name_and_hash() {
    let mut content = vec![0; 10_000];
    Plain { at: 0 }.next(&mut content);
    let hash = *blake3::hash(&content).as_bytes();
    let (wanted, found) = (Arc::new(Wanted::new(&hash)), Found::default());
    let sees = |parts: &[&[u8]]| {
        let mut look = look(wanted.clone(), found.clone());
        parts.iter().for_each(|part| look(part));
        found.take().0
    };
    for window in content.windows(16) {
        assert_eq!(sees(&[window])["content"], 1);
        for at in 1..16 {
            let (one, two) = window.split_at(at);
            assert_eq!(sees(&[b"noise", one, two, b"noise"])["content"], 1);
        }
    }
    assert_eq!(sees(&[format!("a{NAME}b").as_bytes()])["name"], 2);
    for form in forms(&hash) {
        assert_eq!(sees(&[b"before", &form, b"behind"])["hash"], 2);
    }
    assert!(sees(&[b"nothing of it"]).is_empty());
}

#[test]
fn tls_interception__proxy_sees_no_part_of_a_file() {
    let host = Host::start();
    let ada = host.owner();
    let path = host.root().join(NAME);
    let size = size();
    let hash = write_plain(&path, size);
    let (wanted, found) = (Arc::new(Wanted::new(&hash)), Found::default());
    let seen = found.clone();
    let proxy =
        Proxy::start(&host, Card::of(&ada).server, move || look(wanted.clone(), seen.clone()));
    let ada = proxy.is_trusted_by(&ada, "warn");

    let moved = |args: &[&str]| {
        let began = Instant::now();
        let ran = ada.start(args).ended(TIME).exits(0);
        let took = began.elapsed();
        eprintln!("{}: {:.0} MB/s", args[0], size as f64 / 1e6 / took.as_secs_f64());
        assert!(ran.err.contains("TLS is intercepted between"), "{ran:?}");
        let (seen, bytes) = found.take();
        assert!(bytes > size, "it saw {bytes} bytes pass");
        assert_eq!(seen, HashMap::new(), "it saw of the file");
    };
    moved(&["put", path.to_str().unwrap(), "lobby"]);
    std::fs::remove_file(&path).unwrap();
    moved(&["get", "lobby", "1", "-o", path.to_str().unwrap()]);
    assert!(hash_of(&path) == hash, "what came is not what was sent");

    // The same proxy finds data that passes in plaintext.
    let mut plain = vec![0; 16];
    Plain { at: 12_345_678 }.next(&mut plain);
    plain.extend_from_slice(NAME.as_bytes());
    plain.extend_from_slice(&hash);
    say(proxy.address, proxy.pin, &plain);
    let until = Instant::now() + LONG;
    let seen = loop {
        let (seen, bytes) = found.take();
        if bytes > 0 {
            break seen;
        }
        assert!(Instant::now() < until, "nothing passed");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(seen, HashMap::from([("content", 1), ("name", 2), ("hash", 2)]));
}

/// Sends data inside TLS without the session's encryption.
fn say(to: SocketAddr, pin: TlsPin, what: &[u8]) {
    let tls = ClientTls::new(ServerTrust::Pins(vec![pin]), Alpn::Direct).unwrap();
    Runtime::new().unwrap().block_on(async {
        let tcp = TcpStream::connect(to).await.unwrap();
        let mut stream = tls.connect("localhost", tcp).await.unwrap();
        stream.write_all(what).await.unwrap();
        stream.flush().await.unwrap();
    });
}
