//! The client's address in `X-Forwarded-For` or `Forwarded` (RFC 7239).
//!
//! Each proxy appends the address that it saw, so the right end is the most recent. The fields come
//! from the client up to the first proxy that is trusted: only addresses to the right of that, and
//! the one that it appended, are facts.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use hyper::header::{FORWARDED, HeaderMap, HeaderName};
use thiserror::Error;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Why the fields do not name a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadForwarded {
    /// More than one field, of which the client may have sent one.
    #[error("more than one X-Forwarded-For or Forwarded field")]
    Duplicate,
    /// An address that matters cannot be read.
    #[error("the X-Forwarded-For or Forwarded field cannot be read")]
    Unreadable,
}

/// The rightmost address that is not one of `proxies`.
///
/// `None` without a field, or if all addresses are proxies, as in a health check.
///
/// # Errors
/// [`BadForwarded`].
pub fn client(fields: &HeaderMap, proxies: &[IpAddr]) -> Result<Option<IpAddr>, BadForwarded> {
    let simple = fields.get_all(X_FORWARDED_FOR).iter().map(|value| (value, false));
    let standard = fields.get_all(FORWARDED).iter().map(|value| (value, true));
    let mut values = simple.chain(standard);
    let Some((value, is_standard)) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(BadForwarded::Duplicate);
    }
    let value = value.to_str().map_err(|_| BadForwarded::Unreadable)?;
    // Quotes are not followed: a comma inside them only makes an element unreadable.
    for element in value.rsplit(',') {
        let node = if is_standard { for_parameter(element) } else { Some(element.trim()) };
        let ip = node.and_then(address).ok_or(BadForwarded::Unreadable)?;
        if !proxies.contains(&ip) {
            return Ok(Some(ip));
        }
    }
    Ok(None)
}

/// The value of `for` in one element, without its quotes.
fn for_parameter(element: &str) -> Option<&str> {
    let mut found = element.split(';').filter_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        name.eq_ignore_ascii_case("for").then_some(value)
    });
    let value = found.next()?;
    if found.next().is_some() {
        return None;
    }
    match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"'),
        None => Some(value),
    }
}

/// An address with or without a port; IPv6 with or without brackets.
fn address(node: &str) -> Option<IpAddr> {
    let bracketed = || node.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok();
    let ip = node.parse::<IpAddr>().ok();
    let ip = ip.or_else(|| bracketed().map(IpAddr::V6));
    let ip = ip.or_else(|| node.parse::<SocketAddr>().ok().map(|address| address.ip()));
    ip.map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(fields: &[(&'static str, &str)]) -> Result<Option<String>, BadForwarded> {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        let proxies = ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap());
        client(&map, &proxies).map(|ip| ip.map(|ip| ip.to_string()))
    }

    #[test]
    fn forwarded__rightmost_untrusted_address_is_the_client() {
        for (name, value, expected) in [
            ("x-forwarded-for", "198.51.100.7", Some("198.51.100.7")),
            ("x-forwarded-for", "junk, 203.0.113.9, 198.51.100.7", Some("198.51.100.7")),
            ("x-forwarded-for", "198.51.100.7, 192.0.2.1 ,2001:db8::1", Some("198.51.100.7")),
            ("x-forwarded-for", "192.0.2.1", None),
            ("x-forwarded-for", "::ffff:198.51.100.7", Some("198.51.100.7")),
            ("x-forwarded-for", "[2001:db8::7]:4711", Some("2001:db8::7")),
            ("forwarded", "for=198.51.100.7;proto=https", Some("198.51.100.7")),
            ("forwarded", "for=203.0.113.9, For=\"198.51.100.7:80\"", Some("198.51.100.7")),
            ("forwarded", "for=\"[2001:db8::7]:4711\", for=192.0.2.1", Some("2001:db8::7")),
            ("forwarded", "for=\"a,b\";by=x, proto=http;for=198.51.100.7", Some("198.51.100.7")),
        ] {
            let expected = Ok(expected.map(ToOwned::to_owned));
            assert_eq!(asked(&[(name, value)]), expected, "{name}: {value}");
        }
        assert_eq!(asked(&[]), Ok(None));
    }

    #[test]
    fn forwarded__duplicate_or_unreadable_field_is_refused() {
        for value in
            ["", "unknown", "_hidden", "198.51.100.7, 192.0.2.1x", "198.51.100.7,", "1.2.3"]
        {
            let read = asked(&[("x-forwarded-for", value)]);
            assert_eq!(read, Err(BadForwarded::Unreadable), "{value:?}");
        }
        for value in ["proto=http", "for=\"198.51.100.7", "for=198.51.100.7;for=203.0.113.9", "for"]
        {
            assert_eq!(asked(&[("forwarded", value)]), Err(BadForwarded::Unreadable), "{value:?}");
        }
        let one = ("x-forwarded-for", "198.51.100.7");
        assert_eq!(asked(&[one, one]), Err(BadForwarded::Duplicate));
        let other = ("forwarded", "for=198.51.100.7");
        assert_eq!(asked(&[one, other]), Err(BadForwarded::Duplicate));
    }
}
