//! Limits (section 9).
//!
//! Before a session: concurrent connections ([`connection_limiter`]), logins of a device
//! ([`devices`]), guesses ([`guess`]), addresses shared by many users ([`crowd`]). A user's share of
//! the server: turns at reading ([`fair`]), text and changes ([`accounts`]), disk space
//! ([`text_reserve`]). Their log: [`throttle`] and [`census`].

pub(crate) mod accounts;
pub(crate) mod census;
pub(crate) mod connection_limiter;
pub(crate) mod crowd;
pub(crate) mod devices;
pub(crate) mod fair;
pub(crate) mod guess;
pub(crate) mod text_reserve;
pub(crate) mod throttle;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// What counts as one address: an IPv4 address, or an IPv6 /64, which is what one subscriber has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SourcePrefix(IpAddr);

impl SourcePrefix {
    pub(crate) fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(v4) => IpAddr::V4(v4),
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
        })
    }

    /// Bytes that identify the origin, as input of a hash.
    pub(crate) fn bytes(self) -> Vec<u8> {
        match self.0 {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        }
    }
}

impl fmt::Display for SourcePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(v4) => write!(f, "{v4}"),
            IpAddr::V6(v6) => write!(f, "{v6}/64"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source__ipv6_prefix_is_64_bits_and_mapped_ipv4_is_ipv4() {
        let of = |text: &str| SourcePrefix::of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
