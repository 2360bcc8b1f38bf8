//! The HTTP request before a WebSocket, on the server.
//!
//! One request per connection: the WebSocket's, or one that gets a short answer and the end. So no
//! two parties can disagree about where a request ends and the next begins.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Ready, poll_fn, ready};
use std::net::IpAddr;
use std::sync::Arc;

use data_encoding::BASE64;
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Method, Request, Response, StatusCode, Version};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

use super::forwarded::{self, BadForwarded};
use super::hyper_io::HyperIo;
use super::{MAX_FIELDS, MAX_HTTP_HEADER, WebSocket, accept_value, lists};
use crate::connection::linger;

/// Answer to `GET /` where no page is configured. It names neither version nor users.
const INDEX: &str = "This is a messaging server. It has no web page.\n";

/// What a server shows over HTTP.
#[derive(Debug, Clone)]
pub struct Site {
    /// The path of the WebSocket.
    pub path: String,
    /// The page at `/`.
    pub index: String,
    /// The media type of the page.
    pub index_type: &'static str,
}

impl Site {
    /// A site with the default page, and the WebSocket at `path`.
    #[must_use]
    pub fn new(path: String) -> Self {
        Self { path, index: INDEX.to_owned(), index_type: "text/plain; charset=utf-8" }
    }
}

/// A connection that has become a WebSocket.
pub struct Upgraded<S> {
    /// The stream of the session.
    pub stream: WebSocket<S>,
    /// The client's address, if a trusted proxy named it.
    pub client: Option<IpAddr>,
}

/// Why a connection has not become a WebSocket. It got its answer, if it may have one.
#[derive(Debug, Error)]
pub enum HttpFault {
    /// A proxy named the client in a way that is not accepted.
    #[error("HTTP 400: {0}")]
    Forwarded(#[from] BadForwarded),
    /// The request was for something else, or its form is wrong.
    #[error("HTTP {}: {}", .0.as_u16(), .1)]
    Answered(StatusCode, &'static str),
    /// The bytes are not HTTP/1, or the header exceeds a limit, or the connection failed.
    #[error("no HTTP request: {0}")]
    Http(#[from] hyper::Error),
    /// The client closed the connection without a request.
    #[error("the connection ended before a request")]
    Ended,
}

/// Reads one request and answers it. Sets no timeout.
///
/// `proxies`: the addresses whose `X-Forwarded-For` or `Forwarded` counts, if the peer is one of
/// them; `None` ignores these fields.
///
/// # Errors
/// [`HttpFault`]; the connection has ended then.
pub async fn serve<S>(
    io: S,
    site: Arc<Site>,
    proxies: Option<Vec<IpAddr>>,
) -> Result<Upgraded<S>, HttpFault>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut builder = http1::Builder::new();
    builder
        .max_buf_size(MAX_HTTP_HEADER)
        .max_headers(MAX_FIELDS)
        .header_read_timeout(None)
        .half_close(false);
    let answering = Answering { site, proxies, decision: Cell::new(None) };
    let mut connection = builder.serve_connection(HyperIo(io), answering);
    let served = poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
    let http1::Parts { io: HyperIo(mut io), read_buf, service, .. } = connection.into_parts();
    let fault = match (service.decision.take(), served) {
        (Some(Ok(client)), Ok(())) => {
            let stream = WebSocket::server(io, read_buf.to_vec()).await;
            return Ok(Upgraded { stream, client });
        }
        (Some(Err(fault)), _) => fault,
        (_, Err(error)) => error.into(),
        (None, Ok(())) => HttpFault::Ended,
    };
    linger(&mut io).await;
    Err(fault)
}

/// Answers the request of one connection, and remembers what it decided.
struct Answering {
    site: Arc<Site>,
    proxies: Option<Vec<IpAddr>>,
    decision: Cell<Option<Result<Option<IpAddr>, HttpFault>>>,
}

impl Service<Request<Incoming>> for Answering {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Self::Error>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (decision, response) = match self.decide(&request) {
            Ok((client, accept)) => (Ok(client), switching(accept)),
            Err(fault) => {
                let response = self.answer(&request, &fault);
                (Err(fault), response)
            }
        };
        self.decision.set(Some(decision));
        ready(Ok(response))
    }
}

impl Answering {
    /// The client's address and the Sec-WebSocket-Accept of a request for the WebSocket.
    fn decide(
        &self,
        request: &Request<Incoming>,
    ) -> Result<(Option<IpAddr>, HeaderValue), HttpFault> {
        let refuse = |status, why| Err(HttpFault::Answered(status, why));
        let fields = request.headers();
        let path = request.uri().path_and_query().map_or("", |path| path.as_str());
        if request.version() != Version::HTTP_11 && path == self.site.path {
            return refuse(StatusCode::BAD_REQUEST, "not HTTP/1.1");
        }
        // No browser can leave this field out, and no web page may use its visitor's address.
        if fields.contains_key(header::ORIGIN) {
            return refuse(StatusCode::FORBIDDEN, "a web page asks");
        }
        if request.uri().authority().is_some() {
            return refuse(StatusCode::BAD_REQUEST, "the request is for a proxy");
        }
        if path == "/" && matches!(*request.method(), Method::GET | Method::HEAD) {
            return refuse(StatusCode::OK, "the page was shown");
        }
        let upgrade = only(fields, &header::UPGRADE);
        if path != self.site.path || *request.method() != Method::GET || upgrade.is_none() {
            return refuse(StatusCode::NOT_FOUND, "not the path of the WebSocket");
        }
        if !upgrade.is_some_and(|value| lists(value, "websocket"))
            || !fields.get_all(header::CONNECTION).iter().any(|v| lists(v.as_bytes(), "upgrade"))
        {
            return refuse(StatusCode::BAD_REQUEST, "not an upgrade to WebSocket");
        }
        if fields.get_all(header::HOST).iter().count() != 1 {
            return refuse(StatusCode::BAD_REQUEST, "not one Host");
        }
        if fields.contains_key(header::TRANSFER_ENCODING) || !request.body().is_end_stream() {
            return refuse(StatusCode::BAD_REQUEST, "the request has a body");
        }
        if only(fields, &header::SEC_WEBSOCKET_VERSION) != Some(b"13") {
            return refuse(StatusCode::UPGRADE_REQUIRED, "not version 13 of WebSocket");
        }
        let key = only(fields, &header::SEC_WEBSOCKET_KEY);
        let nonce = key.and_then(|key| BASE64.decode(key).ok()).filter(|nonce| nonce.len() == 16);
        let (Some(key), Some(_)) = (key, nonce) else {
            return refuse(StatusCode::BAD_REQUEST, "no valid Sec-WebSocket-Key");
        };
        let Ok(accept) = HeaderValue::try_from(accept_value(key)) else {
            return refuse(StatusCode::BAD_REQUEST, "no valid Sec-WebSocket-Key");
        };
        let client = match &self.proxies {
            Some(proxies) => forwarded::client(fields, proxies)?,
            None => None,
        };
        Ok((client, accept))
    }

    /// A short answer, after which the connection ends.
    fn answer(&self, request: &Request<Incoming>, fault: &HttpFault) -> Response<String> {
        let status = match fault {
            HttpFault::Answered(status, _) => *status,
            _ => StatusCode::BAD_REQUEST,
        };
        let (body, media_type) = match status {
            StatusCode::OK => (self.site.index.clone(), self.site.index_type),
            _ => (
                format!("{}\n", status.canonical_reason().unwrap_or_default()),
                "text/plain; charset=utf-8",
            ),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.version_mut() = request.version();
        let fields = response.headers_mut();
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        fields.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
        if status == StatusCode::UPGRADE_REQUIRED {
            fields.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        response
    }
}

fn switching(accept: HeaderValue) -> Response<String> {
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let fields = response.headers_mut();
    fields.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    fields.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    response
}

/// The value of a field that occurs once.
fn only<'f>(fields: &'f HeaderMap, name: &HeaderName) -> Option<&'f [u8]> {
    let mut values = fields.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.as_bytes())
}

/// Whether a connection that begins with this byte is HTTP. A session begins with HELLO.
#[must_use]
pub fn is_http(first: u8) -> bool {
    first.is_ascii_uppercase()
}
