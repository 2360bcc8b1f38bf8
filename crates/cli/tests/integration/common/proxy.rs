//! A proxy that intercepts TLS, and people whose connections pass it.

use std::net::SocketAddr;
use std::path::PathBuf;

use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use tokio::runtime::Runtime;
use twinlock_core::id::TlsPin;
use twinlock_core::invite::{Address, InviteLink};
pub use twinlock_testing::Watch;
use twinlock_testing::{Endpoint, TlsInterceptor};

use crate::common::{Host, Person};

/// A proxy between people and the server.
pub struct Proxy {
    pub address: SocketAddr,
    pub pin: TlsPin,
    /// Its certificate, PEM, which clients can trust as a CA.
    pub ca_file: PathBuf,
    interceptor: TlsInterceptor,
    runtime: Runtime,
}

impl Proxy {
    /// A proxy before `server`. `watch` creates a watcher for each direction of each connection.
    pub fn start(
        host: &Host,
        server: Endpoint,
        watch: impl Fn() -> Watch + Send + Sync + 'static,
    ) -> Self {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        let interceptor = runtime.block_on(TlsInterceptor::start(server, watch));
        let ca_file = host.root().join("proxy.pem");
        std::fs::write(&ca_file, &interceptor.certificate).unwrap();
        let (address, pin) = (interceptor.address, interceptor.pin);
        Self { address, pin, ca_file, interceptor, runtime }
    }

    /// A forged invite link, with the proxy's address and key.
    pub fn forges(&self, link: &str) -> String {
        let mut link = InviteLink::parse(link).unwrap();
        link.address = Address::new("127.0.0.1", self.address.port()).unwrap();
        link.tls_pin = Some(self.pin);
        link.to_link().to_string()
    }

    /// Makes a person's profile trust the proxy's certificate as a CA, with this `binding`, as a
    /// user can by editing the file.
    pub fn is_trusted_by(&self, person: &Person, binding: &str) -> Person {
        let text = person.profile_text();
        let (head, _) = text.split_once("[tls]").unwrap();
        let head = head.lines().map(|line| {
            let is_binding = line.starts_with("binding = ");
            if is_binding { format!("binding = \"{binding}\"\n") } else { format!("{line}\n") }
        });
        let tls = format!("[tls]\ntrust = \"ca\"\nca_file = \"{}\"\n", self.ca_file.display());
        std::fs::write(person.profile_file(), head.collect::<String>() + &tls).unwrap();
        person.by(self.address)
    }

    /// The number of clients that completed TLS.
    pub fn connections(&self) -> usize {
        self.interceptor.connections()
    }

    /// Waits until `count` connections have ended, and their watchers have received everything.
    pub fn wait_ended(&self, count: usize) {
        self.runtime.block_on(self.interceptor.wait_ended(count));
    }
}

/// A secret in each form in which it could appear.
pub fn forms(secret: &[u8]) -> [Vec<u8>; 5] {
    let hex = HEXLOWER.encode(secret);
    [
        secret.to_vec(),
        hex.to_ascii_uppercase().into_bytes(),
        hex.into_bytes(),
        BASE64.encode(secret).trim_end_matches('=').as_bytes().to_vec(),
        BASE64URL_NOPAD.encode(secret).into_bytes(),
    ]
}
