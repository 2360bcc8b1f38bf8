//! Which proxy a connection goes through: `--via`, or the environment.

use std::fmt;
use std::net::IpAddr;

use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use thiserror::Error;
use twinlock_core::invite::Address;
use twinlock_transport::forward_proxy::{ProxyLogin, ProxyProtocol};
use zeroize::Zeroizing;

/// A proxy, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardProxy {
    /// How it is asked.
    pub protocol: ProxyProtocol,
    /// Its address.
    pub address: Address,
    /// Its user name and password, if it wants them.
    pub login: Option<ProxyLogin>,
}

impl fmt::Display for ForwardProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.protocol, self.address.host(), self.address.port())
    }
}

/// Why a URL names no proxy that this program can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ViaError {
    /// It is not a URL of a proxy.
    #[error("it is not a URL like http://HOST:PORT or socks5://HOST:PORT")]
    NoUrl,
    /// The scheme is not one of those that work.
    #[error("this kind of proxy does not work here: use http://HOST:PORT or socks5://HOST:PORT")]
    Scheme,
    /// A password on the command line can be read by every user of the machine.
    #[error(
        "a user name or password in it can be read by other users of this machine: use \
         --via-auth-file FILE"
    )]
    Userinfo,
}

/// The proxies that a client uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Via {
    /// What HTTPS_PROXY, ALL_PROXY and NO_PROXY say; never for an address of this machine.
    #[default]
    Environment,
    /// This proxy.
    Proxy(ForwardProxy),
    /// None.
    Direct,
}

impl Via {
    /// The proxy for connections to `server`.
    ///
    /// # Errors
    /// [`ViaError`] if the environment names a proxy that does not work here.
    pub(crate) fn proxy_for(&self, server: &Address) -> Result<Option<ForwardProxy>, ViaError> {
        match self {
            Self::Direct => Ok(None),
            Self::Proxy(proxy) => Ok(Some(proxy.clone())),
            Self::Environment if is_this_machine(server) => Ok(None),
            Self::Environment => ProxyVariables::read().proxy_for(server),
        }
    }
}

/// Parses the URL of `--via`.
///
/// # Errors
/// [`ViaError`].
pub fn parse(url: &str, login: Option<ProxyLogin>) -> Result<ForwardProxy, ViaError> {
    let uri: http::Uri = url.parse().map_err(|_| ViaError::NoUrl)?;
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(ViaError::Userinfo);
    }
    if uri.path_and_query().is_some_and(|rest| rest.as_str() != "/") {
        return Err(ViaError::NoUrl);
    }
    of_uri(&uri, login)
}

/// Parses the content of `--via-auth-file`: a user name, a colon, a password; a final line end is
/// removed.
#[must_use]
pub fn parse_login(text: &str) -> Option<ProxyLogin> {
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    let (user, password) = text.split_once(':')?;
    let is_bad = |text: &str| text.chars().any(char::is_control);
    if user.is_empty() || is_bad(user) || is_bad(password) {
        return None;
    }
    Some(ProxyLogin { user: user.to_owned(), password: Zeroizing::new(password.to_owned()) })
}

/// The variables that name proxies, as curl reads them.
#[derive(Default)]
struct ProxyVariables {
    https: String,
    all: String,
    no: String,
}

impl ProxyVariables {
    fn read() -> Self {
        let first = |names: [&str; 2]| names.iter().find_map(|name| std::env::var(name).ok());
        Self {
            https: first(["HTTPS_PROXY", "https_proxy"]).unwrap_or_default(),
            all: first(["ALL_PROXY", "all_proxy"]).unwrap_or_default(),
            no: first(["NO_PROXY", "no_proxy"]).unwrap_or_default(),
        }
    }

    fn proxy_for(&self, server: &Address) -> Result<Option<ForwardProxy>, ViaError> {
        let Self { https, all, no } = self;
        // A scoped address is valid on this machine only.
        if server.host().contains('%') {
            return Ok(None);
        }
        let uri = format!("https://{}:{}/", server.host(), server.port());
        let uri = uri.parse::<http::Uri>().map_err(|_| ViaError::NoUrl)?;
        let matcher =
            |https: &str| Matcher::builder().https(https).all(all.as_str()).no(no.as_str()).build();
        if let Some(found) = matcher(https).intercept(&uri) {
            return of_uri(found.uri(), login_of(&found)).map(Some);
        }
        // The matcher ignores a value that it cannot use. A direct connection in its place would
        // show the user's address, so it is an error unless NO_PROXY names the server.
        let is_spared = matcher("http://proxy.invalid").intercept(&uri).is_none();
        if is_spared || (https.is_empty() && all.is_empty()) {
            return Ok(None);
        }
        Err(ViaError::Scheme)
    }
}

fn of_uri(uri: &http::Uri, login: Option<ProxyLogin>) -> Result<ForwardProxy, ViaError> {
    let (protocol, default_port) = match uri.scheme_str() {
        None | Some("http") => (ProxyProtocol::Http, 80),
        Some("socks5" | "socks5h") => (ProxyProtocol::Socks5, 1080),
        Some(_) => return Err(ViaError::Scheme),
    };
    let host = uri.host().filter(|host| !host.is_empty()).ok_or(ViaError::NoUrl)?;
    let port = uri.port_u16().unwrap_or(default_port);
    let address = Address::new(host, port).map_err(|_| ViaError::NoUrl)?;
    Ok(ForwardProxy { protocol, address, login })
}

fn login_of(found: &Intercept) -> Option<ProxyLogin> {
    if let Some((user, password)) = found.raw_auth() {
        let password = Zeroizing::new(password.to_owned());
        return Some(ProxyLogin { user: user.to_owned(), password });
    }
    let encoded = found.basic_auth()?.to_str().ok()?.strip_prefix("Basic ")?;
    let pair = Zeroizing::new(data_encoding::BASE64.decode(encoded.as_bytes()).ok()?);
    let (user, password) = std::str::from_utf8(&pair).ok()?.split_once(':')?;
    Some(ProxyLogin { user: user.to_owned(), password: Zeroizing::new(password.to_owned()) })
}

fn is_this_machine(server: &Address) -> bool {
    let host = server.bare_host();
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(host: &str) -> Address {
        Address::new(host, 7443).unwrap()
    }

    #[test]
    fn via__url_names_protocol_and_address() {
        let shown = |url| parse(url, None).map(|proxy| proxy.to_string());
        assert_eq!(shown("http://proxy.example:3128").as_deref(), Ok("http://proxy.example:3128"));
        assert_eq!(shown("http://[2001:db8::1]:8080/").as_deref(), Ok("http://[2001:db8::1]:8080"));
        assert_eq!(shown("socks5h://127.0.0.1").as_deref(), Ok("socks5://127.0.0.1:1080"));
        assert_eq!(shown("https://proxy.example"), Err(ViaError::Scheme));
        assert_eq!(shown("socks4://proxy.example"), Err(ViaError::Scheme));
        assert_eq!(shown("http://u:p@proxy.example"), Err(ViaError::Userinfo));
        for bad in ["", "http://", "http://a:0", "http://a b", "http://a/path"] {
            assert_eq!(shown(bad), Err(ViaError::NoUrl), "{bad}");
        }
    }

    #[test]
    fn via__environment_follows_no_proxy_and_spares_this_machine() {
        let variables = |https: &str, all: &str, no: &str| {
            let [https, all, no] = [https, all, no].map(ToOwned::to_owned);
            ProxyVariables { https, all, no }
        };
        let company =
            variables("http://ada:s%20t@proxy.example:3128", "", "intern.example,192.0.2.0/24");
        let found = company.proxy_for(&server("chat.example")).unwrap().unwrap();
        assert_eq!(found.to_string(), "http://proxy.example:3128");
        let login = found.login.unwrap();
        assert_eq!((login.user.as_str(), login.password.as_str()), ("ada", "s t"));
        for spared in ["a.intern.example", "192.0.2.7", "fe80::1%eth0"] {
            assert_eq!(company.proxy_for(&server(spared)), Ok(None), "{spared}");
        }
        let socks = variables("", "socks5://u:p@127.0.0.1:9050", "");
        let found = socks.proxy_for(&server("192.0.2.7")).unwrap().unwrap();
        assert_eq!((found.protocol, found.login.is_some()), (ProxyProtocol::Socks5, true));
        assert_eq!(variables("", "", "").proxy_for(&server("chat.example")), Ok(None));
        // A value that cannot be used is no reason for a direct connection.
        for unusable in ["socks://127.0.0.1:9050", "ftp://127.0.0.1", "http://a b"] {
            let of = |https, all| variables(https, all, "spared.example");
            for set in [of(unusable, ""), of("", unusable)] {
                assert_eq!(set.proxy_for(&server("chat.example")), Err(ViaError::Scheme));
                assert_eq!(set.proxy_for(&server("spared.example")), Ok(None));
            }
        }
        for host in ["localhost", "LOCALHOST.", "x.localhost", "127.3.2.1", "::1"] {
            assert!(is_this_machine(&server(host)), "{host}");
        }
        assert!(!is_this_machine(&server("localhost.example")));
    }

    #[test]
    fn via__login_file_has_user_and_password() {
        let login = parse_login("ada:open: sesame\r\n").unwrap();
        assert_eq!((login.user.as_str(), login.password.as_str()), ("ada", "open: sesame"));
        for bad in ["", "ada", ":x", "a\nb:c", "ada:x\ny"] {
            assert!(parse_login(bad).is_none(), "{bad:?}");
        }
    }
}
