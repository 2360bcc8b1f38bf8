//! How an invite link is shown: as a command, as a QR code, and with a warning if it works on this
//! machine only.

use std::net::IpAddr;

use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use twinlock_core::invite::Address;
use zeroize::Zeroizing;

/// Names of the loopback address.
const LOCAL_NAMES: [&str; 3] = ["localhost", "ip6-localhost", "ip6-loopback"];

/// The warning for a link whose `address` works on this machine only. It lists the machine's
/// addresses (with `ipv6` also the IPv6 ones) and the `remedy`, which names an ADDRESS.
pub(crate) fn local_only(address: &Address, remedy: &str, ipv6: bool) -> Option<String> {
    let host = address.bare_host();
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let is_local = match host.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback() || ip.is_unspecified(),
        Err(_) => LOCAL_NAMES.contains(&&*name) || name.ends_with(".localhost"),
    };
    let addresses = || match own_addresses(ipv6) {
        found if found.is_empty() => "this machine has no other address now".to_owned(),
        found => format!("this machine has {}", found.join(", ")),
    };
    is_local.then(|| {
        format!(
            "\nThis link works on this machine only ({address}). For other machines, {remedy}, \
             ADDRESS being a name of this machine or one of its addresses; {}.",
            addresses()
        )
    })
}

/// Addresses under which others may reach this machine, IPv4 first.
fn own_addresses(ipv6: bool) -> Vec<String> {
    let mut found: Vec<IpAddr> = if_addrs::get_if_addrs()
        .unwrap_or_default()
        .into_iter()
        .filter(|interface| !interface.is_loopback() && !interface.is_link_local())
        .map(|interface| interface.ip())
        .filter(|ip| ipv6 || ip.is_ipv4())
        .collect();
    found.sort_unstable();
    found.dedup();
    found.iter().map(ToString::to_string).collect()
}

/// The command that uses an invite link.
pub(crate) fn join_command(link: &str) -> Zeroizing<String> {
    // Allocated once, so that growing leaves no copy unwiped.
    let mut command = Zeroizing::new(String::with_capacity(link.len() + 32));
    for part in ["twinlock join '", link, "'"] {
        command.push_str(part);
    }
    command
}

/// A QR code in half blocks, for terminals.
pub(crate) fn qr(text: &str) -> Option<String> {
    let code = QrCode::new(text).ok()?;
    let light_on_dark =
        code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build();
    Some(light_on_dark)
}
