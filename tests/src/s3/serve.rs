//! The gateway that handles connections and requests: it injects faults, counts requests and bytes, and limits the
//! bandwidth.

use std::convert::Infallible;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderValue, IF_MATCH, IF_NONE_MATCH,
};
use hyper::http::request;
use hyper::http::response::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::sync::RwLock;

use super::counters::Live;
use super::faults::{Fault, Plan};
use super::{ACCESS_KEY_ID, SECRET_ACCESS_KEY};

/// Size of the chunks of a response body, in bytes.
const CHUNK_BYTES: usize = 64 << 10;
/// Time that a sender may catch up after sleeping too long.
const BURST: Duration = Duration::from_millis(10);

type Body = BoxBody<Bytes, io::Error>;

/// State shared by all connections.
pub(super) struct Gateway {
    pub(super) faults: Plan,
    pub(super) counters: Live,
    folder: PathBuf,
    inner: S3Service,
    /// The same without checks of signatures, for requests that the gateway has changed.
    unsigned: S3Service,
    /// Lock for exclusive writes and shared reads; see the documentation of the parent module.
    access: RwLock<()>,
    /// Time at which the simulated link is free again, for the bandwidth limit.
    link_free_at: Mutex<Option<Instant>>,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Gateway").field("faults", &self.faults).finish_non_exhaustive()
    }
}

/// Accepts connections in an endless loop.
pub(super) async fn accept(listener: TcpListener, gateway: Arc<Gateway>) {
    loop {
        let Ok((connection, _)) = listener.accept().await else { continue };
        if gateway.faults.is_down() {
            continue; // Dropping the connection closes it.
        }
        let _ = connection.set_nodelay(true);
        let gateway = Arc::clone(&gateway);
        tokio::spawn(async move {
            let service = service_fn(move |request| Arc::clone(&gateway).handle(request));
            // Serving fails when the client disconnects or a fault breaks the connection.
            let _ =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(connection), service).await;
        });
    }
}

impl Gateway {
    pub(super) fn new(folder: &Path) -> Self {
        let files = || s3s_fs::FileSystem::new(folder).expect("the server's folder");
        let mut builder = S3ServiceBuilder::new(files());
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, SECRET_ACCESS_KEY));
        Self {
            faults: Plan::default(),
            counters: Live::default(),
            folder: folder.to_path_buf(),
            inner: builder.build(),
            unsigned: S3ServiceBuilder::new(files()).build(),
            access: RwLock::new(()),
            link_free_at: Mutex::new(None),
        }
    }

    /// Handles one request. An error closes the connection.
    async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
        if self.faults.is_down() {
            return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
        }
        let method = method_name(&request);
        let key = request.uri().path().trim_matches('/').to_owned();
        let drawn = self.faults.draw(&method, &key);
        if let Some((fault, _)) = drawn {
            self.counters.fault(fault.name());
        }
        let fault = drawn.map(|(fault, _)| fault);
        let (parts, mut body) = request.into_parts();
        if fault == Some(Fault::Reset) && matches!(method.as_str(), "PUT" | "POST") {
            let first = body.frame().await.and_then(Result::ok).and_then(|frame| frame.into_data().ok());
            self.counters.request(&method, &key, first.map_or(0, |bytes| bytes.len()));
            return Err(io::Error::from(io::ErrorKind::ConnectionReset));
        }
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        self.counters.request(&method, &key, body.len());
        if let Some(response) = fault.and_then(|fault| error_response(fault, &parts, &body)) {
            return Ok(response);
        }
        let mut request = Request::from_parts(parts, body);
        let conditions = self.faults.conditions();
        let has_match = request.headers().contains_key(IF_MATCH);
        let is_conditional = has_match || request.headers().contains_key(IF_NONE_MATCH);
        let is_conditional_put = is_conditional && request.method() == Method::PUT;
        if let Some((status, code)) = conditions.rejection(has_match).filter(|_| is_conditional_put) {
            return Ok(error(status, code, "A header you provided implies functionality that is not implemented"));
        }
        let mut service = &self.inner;
        if is_conditional_put && conditions.ignores(has_match) {
            for header in [IF_MATCH, IF_NONE_MATCH, AUTHORIZATION] {
                request.headers_mut().remove(header);
            }
            service = &self.unsigned;
        }
        let (head, body) = self.execute(request, service).await?;
        self.respond(key, head, body, drawn).await
    }

    /// Executes a request with s3s-fs and returns the whole response, whose bytes belong to one version of the object.
    async fn execute(&self, request: Request<Bytes>, service: &S3Service) -> Result<(Parts, Bytes), io::Error> {
        let object = self.folder.join(decoded(request.uri().path()));
        let is_get = request.method() == Method::GET;
        let writes = !matches!(*request.method(), Method::GET | Method::HEAD);
        let _writer = if writes { Some(self.access.write().await) } else { None };
        let _reader = if writes { None } else { Some(self.access.read().await) };
        let response =
            service.call(request.map(s3s::Body::from)).await.map_err(|error| io::Error::other(format!("{error:?}")))?;
        let (head, body) = response.into_parts();
        // Read objects directly: s3s-fs reads in pieces of 4 KiB, much slower than 1 Gbit/s. Listings have no ETag.
        if is_get && head.status.is_success() && head.headers.contains_key(ETAG) {
            let range = byte_range(&head);
            let bytes = tokio::task::spawn_blocking(move || read(&object, range)).await??;
            return Ok((head, bytes));
        }
        let body = BodyExt::collect(body).await.map_err(|error| io::Error::other(error.to_string()))?;
        Ok((head, body.to_bytes()))
    }

    /// Returns the response, complete or modified by the fault.
    async fn respond(
        self: Arc<Self>,
        key: String,
        mut head: Parts,
        mut body: Bytes,
        fault: Option<(Fault, u64)>,
    ) -> Result<Response<Body>, io::Error> {
        let half = body.len() / 2;
        let mut broken_at = None;
        let mut pause = None;
        match fault {
            Some((Fault::LostAnswer, _)) => return Err(io::Error::from(io::ErrorKind::ConnectionReset)),
            Some((Fault::Reset, _)) if body.is_empty() => return Err(io::Error::from(io::ErrorKind::ConnectionReset)),
            Some((Fault::Reset, _)) => broken_at = Some(half),
            Some((Fault::Stall(time), _)) if body.is_empty() => tokio::time::sleep(time).await,
            Some((Fault::Stall(time), _)) => pause = Some((half, time)),
            Some((Fault::Truncate, _)) if head.status.is_success() => {
                body.truncate(half);
                head.headers.insert(CONTENT_LENGTH, HeaderValue::from(half));
            }
            Some((Fault::FlipBit, number)) if head.status.is_success() && !body.is_empty() => {
                let mut bytes = body.to_vec();
                let at = (number / 8 % bytes.len() as u64) as usize;
                bytes[at] ^= 1 << (number % 8);
                body = Bytes::from(bytes);
            }
            _ => {}
        }
        if body.is_empty() {
            return Ok(Response::from_parts(head, whole(body)));
        }
        let frames = self.chunks(key, body, broken_at, pause).map(|chunk| chunk.map(Frame::data));
        Ok(Response::from_parts(head, BodyExt::boxed(StreamBody::new(frames))))
    }

    /// Returns a stream of the body's chunks, counted and at the allowed bandwidth, that breaks or pauses at a byte.
    fn chunks(
        self: Arc<Self>,
        key: String,
        body: Bytes,
        broken_at: Option<usize>,
        pause: Option<(usize, Duration)>,
    ) -> impl Stream<Item = Result<Bytes, io::Error>> + Send + Sync + 'static {
        let edges = [broken_at, pause.map(|(at, _)| at)];
        stream::unfold(0, move |at| {
            let (gateway, key, body) = (Arc::clone(&self), key.clone(), body.clone());
            async move {
                if broken_at == Some(at) {
                    // Give the previous chunks time to be sent, since hyper discards unwritten data on an error.
                    tokio::time::sleep(BURST).await;
                    return Some((Err(io::Error::from(io::ErrorKind::ConnectionReset)), body.len()));
                }
                if at == body.len() {
                    return None;
                }
                if let Some((_, time)) = pause.filter(|(edge, _)| *edge == at) {
                    tokio::time::sleep(time).await;
                }
                let next_edge = edges.into_iter().flatten().filter(|edge| *edge > at).min().unwrap_or(body.len());
                let end = next_edge.min(at + CHUNK_BYTES);
                gateway.wait_for_link(end - at).await;
                gateway.counters.sent(&key, end - at);
                Some((Ok(body.slice(at..end)), end))
            }
        })
    }

    /// Waits until the simulated link has transferred `bytes` bytes, if the bandwidth is limited.
    async fn wait_for_link(&self, bytes: usize) {
        let speed = self.faults.bytes_per_second();
        if speed == 0 {
            return;
        }
        let done = {
            let mut free_at = self.link_free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let earliest = now.checked_sub(BURST).unwrap_or(now);
            let start = free_at.map_or(earliest, |free| free.max(earliest));
            let done = start + Duration::from_secs_f64(bytes as f64 / speed as f64);
            *free_at = Some(done);
            done
        };
        tokio::time::sleep_until(done.into()).await;
    }
}

/// Returns the range of bytes in the response to a GET; `None` for all.
fn byte_range(head: &Parts) -> Option<Range<u64>> {
    let range = head.headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (first, last) = range.split_once('/')?.0.split_once('-')?;
    Some(first.parse().ok()?..last.parse::<u64>().ok()? + 1)
}

fn read(file: &Path, range: Option<Range<u64>>) -> io::Result<Bytes> {
    let Some(range) = range else { return Ok(std::fs::read(file)?.into()) };
    let mut bytes = vec![0; (range.end - range.start) as usize];
    std::fs::File::open(file)?.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes.into())
}

/// Returns a request's path percent-decoded and without the leading slash.
fn decoded(path: &str) -> String {
    let mut bytes = path.trim_start_matches('/').bytes();
    let mut decoded = Vec::new();
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => match (digit(bytes.next()), digit(bytes.next())) {
                (Some(high), Some(low)) => decoded.push((16 * high + low) as u8),
                _ => decoded.push(b'%'),
            },
            _ => decoded.push(byte),
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Returns the request's method; LIST for a GET that lists a bucket.
fn method_name(request: &Request<Incoming>) -> String {
    let lists = request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair.starts_with("list-type=")));
    if lists && request.method() == Method::GET { "LIST".to_owned() } else { request.method().to_string() }
}

/// Returns the S3 error response for a fault, if it has one.
fn error_response(fault: Fault, head: &request::Parts, body: &[u8]) -> Option<Response<Body>> {
    let is_deletion = head.uri.query() == Some("delete");
    let (status, code, message) = match fault {
        Fault::InternalError => {
            (StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "We encountered an internal error. Please try again.")
        }
        Fault::SlowDown => (StatusCode::SERVICE_UNAVAILABLE, "SlowDown", "Please reduce your request rate."),
        Fault::ExpiredToken => (StatusCode::FORBIDDEN, "ExpiredToken", "The provided token has expired."),
        Fault::AccessDenied if is_deletion => return Some(none_deleted(body, "AccessDenied", "Access Denied")),
        Fault::SlowDeletion if is_deletion => {
            return Some(none_deleted(body, "SlowDown", "Please reduce your request rate."));
        }
        Fault::Refusal(code) => {
            let (status, message) = Fault::refusal(code);
            return Some(error(status, code, message));
        }
        Fault::AccessDenied => (StatusCode::FORBIDDEN, "AccessDenied", "Access Denied."),
        Fault::Echo(secret) => return Some(echo_response(secret, head)),
        _ => return None,
    };
    Some(error(status.as_u16(), code, message))
}

/// Returns an S3 error response.
fn error(status: u16, code: &str, message: &str) -> Response<Body> {
    let error = format!(
        "<Error><Code>{code}</Code><Message>{message}</Message><RequestId>0000000000000000</RequestId></Error>"
    );
    xml(StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST), &error)
}

/// Returns the response to a request to delete several objects, with an error for each of them.
fn none_deleted(request: &[u8], code: &str, message: &str) -> Response<Body> {
    let request = String::from_utf8_lossy(request);
    let keys = request.split("<Key>").skip(1).filter_map(|rest| Some(rest.split_once("</Key>")?.0));
    let error = |key| format!("<Error><Key>{key}</Key><Code>{code}</Code><Message>{message}</Message></Error>");
    xml(StatusCode::OK, &format!("<DeleteResult>{}</DeleteResult>", keys.map(error).collect::<String>()))
}

/// Returns an error whose body repeats the secret, the client's token and all request headers.
fn echo_response(secret: &str, head: &request::Parts) -> Response<Body> {
    let token = head.headers.get("x-amz-security-token").and_then(|token| token.to_str().ok()).unwrap_or_default();
    let error = format!(
        "<Error><Token-0>{token}</Token-0><SecretKey>{secret}</SecretKey><Code>SignatureDoesNotMatch</Code>\
         <Message>The token {token} and the key {secret} do not match.</Message><Headers>{:?}</Headers></Error>",
        head.headers
    );
    xml(StatusCode::FORBIDDEN, &error)
}

fn xml(status: StatusCode, body: &str) -> Response<Body> {
    let body = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{body}");
    let mut response = Response::new(whole(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    response
}

fn whole(body: Bytes) -> Body {
    Full::new(body).map_err(|never: Infallible| match never {}).boxed()
}
