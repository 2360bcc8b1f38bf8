//! Generation of keys and self-signed certificates.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize, SerialNumber,
};
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use twinlock_transport::tls::ServerCert;
use zeroize::{Zeroize, Zeroizing};

use super::error::IdentityError;

/// Validity of a self-signed certificate, days from now. Browsers and some libraries refuse more
/// than 398 in all.
const VALID_DAYS: u32 = 365;
pub(super) const DAY: Duration = Duration::from_secs(86_400);

/// The type of key that the first start generates. An existing key stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyType {
    /// ECDSA on P-256.
    #[default]
    Ecdsa,
    /// RSA with 2048 bits.
    Rsa2048,
}

/// Every name of a self-signed certificate: the constant ones, this machine's, and `wanted`.
pub(super) fn all_names(wanted: &[String]) -> Result<Vec<String>, IdentityError> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    // The machine's own name may be anything. It is omitted if a certificate cannot contain it.
    let machine = rustix::system::uname().nodename().to_str().ok().and_then(|n| normal(n).ok());
    let wanted = wanted.iter().map(|name| normal(name)).collect::<Result<Vec<_>, _>>()?;
    for name in machine.into_iter().chain(wanted) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

fn normal(name: &str) -> Result<String, IdentityError> {
    let bare = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    match ServerName::try_from(bare.as_str()) {
        Ok(ServerName::IpAddress(ip)) => Ok(std::net::IpAddr::from(ip).to_string()),
        Ok(_) => Ok(bare),
        Err(_) => Err(IdentityError::Name(name.to_owned())),
    }
}

/// Whether the certificate is valid for each of the names.
pub(super) fn covers(cert: &ServerCert, names: &[String]) -> bool {
    let Some(Ok(parsed)) = cert.chain().first().map(ParsedCertificate::try_from) else {
        return false;
    };
    names.iter().all(|name| {
        ServerName::try_from(name.as_str())
            .is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
    })
}

/// Generates a key, as PEM (PKCS #8).
pub(super) fn key(kind: KeyType) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let pair = Zeroizing::new(match kind {
        KeyType::Ecdsa => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?,
        KeyType::Rsa2048 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?,
    });
    Ok(Zeroizing::new(pair.serialize_pem().into_bytes()))
}

pub(super) fn is_rsa(pem: &[u8]) -> bool {
    read(pem).is_ok_and(|pair| pair.is_compatible(&PKCS_RSA_SHA256))
}

fn read(pem: &[u8]) -> Result<Zeroizing<KeyPair>, IdentityError> {
    let mut der =
        PrivateKeyDer::from_pem_slice(pem).map_err(|_| rcgen::Error::CouldNotParseKeyPair)?;
    let pair = KeyPair::try_from(&der);
    der.zeroize();
    Ok(Zeroizing::new(pair?))
}

/// A self-signed certificate for the key, as PEM.
///
/// It is valid from a day before, for clocks that are slow. Its serial number is random, because
/// some clients refuse two certificates of one issuer with the same number, and a renewed one has
/// the same issuer.
pub(super) fn certificate(
    key_pem: &[u8],
    names: &[String],
    now: SystemTime,
) -> Result<Vec<u8>, IdentityError> {
    let pair = read(key_pem)?;
    // Dates beyond these years cannot be encoded; such a clock is wrong anyway.
    let now = now.clamp(UNIX_EPOCH + DAY, UNIX_EPOCH + DAY * 2_000_000);
    let mut serial = [0; 16];
    getrandom::fill(&mut serial)?;
    // A positive number of constant length.
    serial[0] = serial[0] & 0x7f | 0x40;

    let mut params = CertificateParams::new(names)?;
    params.not_before = (now - DAY).into();
    params.not_after = (now + DAY * VALID_DAYS).into();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Twinlock server");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params.self_signed(&*pair)?.pem().into_bytes())
}
