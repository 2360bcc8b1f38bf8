//! Names, addresses, invite links and passwords: what people type and paste.

use twinlock_client::transfer::name::{harmless, marked};
use twinlock_core::credential::Password;
use twinlock_core::id::{
    CredentialId, DeviceId, InviteId, MessageId, Name, Sender, ServerKey, TlsPin,
};
use twinlock_core::invite::{Address, InviteLink, server_words};
use twinlock_core::keys::InviteSecret;
use twinlock_core::text::Untrusted;

use crate::input::Input;
use crate::text::acts;

/// An accepted address has one spelling, is parsed back unchanged, and contains nothing that a URL
/// or a log could misinterpret.
pub(crate) fn address(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for default in [None, Some(8443)] {
        let Ok(address) = Address::parse(&text, default) else { continue };
        let written = address.to_string();
        assert_eq!(Address::parse(&written, None).as_ref(), Ok(&address));
        assert_eq!(Address::parse(&written, Some(1)).as_ref(), Ok(&address));
        for host in [address.host(), address.bare_host()] {
            let made = Address::new(host, address.port());
            let made = made.and_then(|made| made.with_path(address.path()));
            assert_eq!(made.as_ref(), Ok(&address));
        }
        assert!(default.is_some() || written == text, "{written:?} of {text:?}");
        assert!(address.port() != 0);
        let inside = |b: u8| b.is_ascii_alphanumeric() || b"-_.:[]/~".contains(&b);
        assert!(written.len() <= 390 && written.bytes().all(inside), "{written:?}");
    }
}

/// An accepted invite link is encoded back unchanged, and an encoded one is parsed back unchanged.
/// A changed one is refused or, if only its address changed, keeps the rest.
pub(crate) fn invite_link(data: &[u8]) {
    let mut input = Input(data);
    if input.flag() {
        let text = String::from_utf8_lossy(input.rest());
        if let Ok(link) = InviteLink::parse(&text) {
            assert_eq!(*link.to_link(), text);
        }
        return;
    }
    let port = input.u16();
    let host = String::from_utf8_lossy(input.part()).into_owned();
    let address =
        Address::new(&host, port).unwrap_or_else(|_| Address::new("example.org", 1).unwrap());
    let pinned = input.flag();
    let made = InviteLink {
        address: address.clone(),
        id: InviteId(input.array()),
        secret: InviteSecret::new(&input.array()),
        server_key: ServerKey(input.array()),
        tls_pin: pinned.then(|| TlsPin(input.array())),
        proxy: input.flag(),
    };
    let text = made.to_link();
    let read = InviteLink::parse(&text).unwrap();
    assert_eq!((&read.address, read.id, read.server_key), (&address, made.id, made.server_key));
    assert_eq!((read.tls_pin, read.proxy), (made.tls_pin, made.proxy));
    assert_eq!(read.secret.expose_secret(), made.secret.expose_secret());
    assert_eq!(server_words(&made.server_key).split(' ').count(), 8);

    let mut changed = text.as_bytes().to_vec();
    if input.change(&mut changed)
        && let Ok(changed) = std::str::from_utf8(&changed)
        && let Ok(read) = InviteLink::parse(changed)
    {
        assert_eq!(*read.to_link(), changed);
        let payload = |link: &str| link.split_once('#').map(|parts| parts.1.to_owned());
        // A search of minutes does not find a collision of the four-byte checksum.
        assert_eq!(payload(changed), payload(&text));
    }
}

/// Accepted ids and names are encoded back unchanged, and contain only their small alphabet.
pub(crate) fn name(data: &[u8]) {
    if let Ok(name) = Name::from_bytes(data) {
        assert_eq!(name.as_str().as_bytes(), data);
        assert!((1..=32).contains(&data.len()));
        let inside = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(b);
        assert!(data.iter().all(inside));
        assert!(![data[0], data[data.len() - 1]].iter().any(u8::is_ascii_punctuation));
        assert_eq!(harmless(name.as_str()).trim_start_matches('_'), name.as_str());
    }
    if let Ok(sender) = Sender::parse(data) {
        assert_eq!(sender.to_string().as_bytes(), data);
        let most = if matches!(sender, Sender::Classic(..)) { 65 } else { 41 };
        assert!(data.len() <= most);
        let user = data.split(|b| b"/:".contains(b)).next().unwrap_or_default();
        assert_eq!(sender.user().map_or(&b""[..], |name| name.as_str().as_bytes()), user);
    }
    let (kind, id) = data.split_first().map_or((0, data), |(kind, id)| (kind % 6, id));
    if let Ok(credential) = CredentialId::parse(kind, id) {
        assert_eq!(credential.cid(), [&[kind][..], id].concat());
    }
    let text = String::from_utf8_lossy(data);
    if let Some(id) = MessageId::from_hex(&text) {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
    }
    if let Some(id) = DeviceId::from_slice(data) {
        assert_eq!(DeviceId::from_hex(&id.to_string()), Some(id));
    }
}

/// A file name is one component, cannot act on a terminal, hides nothing, is not an option, and
/// ends in nothing that a file system drops. Making it harmless again does not change it.
pub(crate) fn file_name(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let safe = harmless(&text);
    assert_harmless(&safe);
    assert_eq!(harmless(&safe), safe);
    let marks = ["1", "lobby-12", "abcdefghijklmnopqrstuvwxyz012345-18446744073709551615"];
    let marked = marks.map(|mark| marked(&safe, mark));
    for (name, mark) in marked.iter().zip(marks) {
        assert_harmless(name);
        assert!(name.contains(&format!("-{mark}")));
        // A name of full length that ends in its mark does not change; other marks still change it.
        assert!(*name != safe || safe.len() > 200);
    }
    assert!(marked[0] != marked[1] && marked[1] != marked[2]);
}

fn assert_harmless(name: &str) {
    assert!((1..=255).contains(&name.len()), "{} bytes", name.len());
    assert!(!name.contains(['/', '\\', '\0']) && !name.chars().any(acts), "{name:?}");
    assert!(!name.starts_with(['.', '-']) && !name.ends_with('.'), "{name:?}");
    assert_eq!(name, name.trim());
    assert_eq!(Untrusted::new(name).render_line(), name);
    let stem = name.split('.').next().unwrap().trim_end().to_ascii_uppercase();
    assert!(!["CON", "PRN", "AUX", "NUL", "COM1", "LPT9"].contains(&stem.as_str()), "{name:?}");
}

/// An accepted password is long enough, short enough and without control characters. `Debug` shows
/// nothing of it.
pub(crate) fn password(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(password) = Password::new(&text) {
        assert!(!text.contains(|c: char| c <= '\u{1f}' || c == '\u{7f}'));
        assert!(text.len() <= 4096);
        assert_eq!(format!("{password:?}"), "Password(..)");
    } else {
        let harmless = !text.contains(|c: char| c <= '\u{1f}' || c == '\u{7f}');
        assert!(!harmless || !text.is_ascii() || !(8..=1024).contains(&text.len()));
    }
}
