//! Who may look, and who may change something.
//!
//! | what | against |
//! |---|---|
//! | without a token the server answers to the names of this machine only | DNS rebinding: a page of a stranger whose name suddenly means 127.0.0.1 |
//! | with a token, nothing without the session cookie (HttpOnly, SameSite=Strict) or the token itself | strangers on the network |
//! | what changes something has to show a word that only our own page knows, and to come from it | forged requests from other pages |
//! | a content security policy without any outside address or inline script | a resource or reason that holds markup |

use std::net::{IpAddr, SocketAddr};

use axum::http::header::{self, HeaderName};
use axum::http::{HeaderMap, HeaderValue, Method};
use uuid::Uuid;

/// A token that can be tried out is none.
pub(crate) const MIN_TOKEN_CHARS: usize = 16;

/// The header that shows that a request was made by our page.
pub(super) const PAGE_HEADER: &str = "x-keylane-page";

/// Decides.
pub(super) struct Guard {
    /// Only our page knows it; new with every process.
    page: String,
    access: Option<Access>,
    /// What the server may be called, if anybody may look.
    hosts: Vec<String>,
    cookie: String,
    read_only: bool,
}

struct Access {
    token: String,
    /// What the cookie holds: it tells nothing of the token.
    session: String,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// The server is not called that.
    Host,
    /// Nobody has logged in.
    NoAccess,
    /// Another page has made it.
    Origin,
    /// It does not show the page's word.
    NoPage,
    /// Nothing may be changed.
    ReadOnly,
}

impl Refused {
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Host => {
                "this dashboard answers to localhost and 127.0.0.1 only: use that name, or start it with a token"
            }
            Self::NoAccess => "not logged in: a token is needed",
            Self::Origin => "the request comes from another page",
            Self::NoPage => "the request was not made by the page: load it again",
            Self::ReadOnly => "this dashboard only shows (--read-only)",
        }
    }
}

impl Guard {
    pub(super) fn new(listen: SocketAddr, token: Option<String>, read_only: bool) -> Self {
        let port = listen.port();
        let ours = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned);
        let ours = ours.into_iter().chain([host(listen.ip())]);
        Self {
            page: secret(),
            access: token.map(|token| Access { token, session: secret() }),
            hosts: ours.map(|name| format!("{name}:{port}")).collect(),
            // Cookies do not know of ports: two dashboards would log each other out.
            cookie: format!("keylane-{port}"),
            read_only,
        }
    }

    /// The word that the page has to show.
    pub(super) fn page_word(&self) -> &str {
        &self.page
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether the server goes by the name that it was called.
    pub(super) fn check_host(&self, headers: &HeaderMap) -> Result<(), Refused> {
        if self.access.is_some() {
            // A cookie belongs to a name: a stranger's name has none.
            return Ok(());
        }
        let host = text(headers, header::HOST).unwrap_or_default();
        if self.hosts.iter().any(|ours| ours.eq_ignore_ascii_case(host)) {
            Ok(())
        } else {
            Err(Refused::Host)
        }
    }

    /// Whether whoever asks may look.
    pub(super) fn check_access(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let Some(Access { token, session }) = &self.access else { return Ok(()) };
        let shown = text(headers, header::AUTHORIZATION).and_then(|a| a.strip_prefix("Bearer "));
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|c| c.to_str().ok());
        let mut cookies = cookies.flat_map(|cookies| cookies.split(';'));
        let start = format!("{}=", self.cookie);
        let has_session = cookies.any(|cookie| {
            cookie.trim().strip_prefix(&start).is_some_and(|value| same(value, session))
        });
        if has_session || shown.is_some_and(|shown| same(shown, token)) {
            Ok(())
        } else {
            Err(Refused::NoAccess)
        }
    }

    /// Whether a request that changes something was made by our own page.
    pub(super) fn check_change(&self, headers: &HeaderMap) -> Result<(), Refused> {
        check_origin(headers)?;
        if self.read_only {
            return Err(Refused::ReadOnly);
        }
        match text(headers, HeaderName::from_static(PAGE_HEADER)) {
            Some(shown) if same(shown, &self.page) => Ok(()),
            _ => Err(Refused::NoPage),
        }
    }

    /// The cookie of one who knows the token.
    pub(super) fn log_in(&self, token: &str) -> Option<HeaderValue> {
        let access = self.access.as_ref().filter(|access| same(&access.token, token.trim()))?;
        let (name, session) = (&self.cookie, &access.session);
        let cookie = format!("{name}={session}; HttpOnly; SameSite=Strict; Path=/");
        HeaderValue::from_str(&cookie).ok()
    }
}

/// Whether a browser says that another page has made a request. One without these
/// headers was made by no page.
pub(super) fn check_origin(headers: &HeaderMap) -> Result<(), Refused> {
    let host = text(headers, header::HOST).unwrap_or_default();
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        let origin = origin.strip_prefix("http://").or(origin.strip_prefix("https://"));
        if !origin.is_some_and(|origin| origin.eq_ignore_ascii_case(host)) {
            return Err(Refused::Origin);
        }
    }
    match text(headers, HeaderName::from_static("sec-fetch-site")) {
        None | Some("same-origin" | "none") => Ok(()),
        Some(_) => Err(Refused::Origin),
    }
}

/// Whether a request changes nothing.
pub(super) fn only_looks(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// What every answer says to the browser.
pub(super) fn protect(headers: &mut HeaderMap) {
    const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
        img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; \
        frame-ancestors 'none'";
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// Compares secrets in a time that does not tell where they differ.
fn same(shown: &str, secret: &str) -> bool {
    let differ = |(a, b): (u8, u8)| a ^ b;
    shown.len() == secret.len()
        && shown.bytes().zip(secret.bytes()).map(differ).fold(0, |sum, d| sum | d) == 0
}

fn secret() -> String {
    [Uuid::new_v4(), Uuid::new_v4()].map(|half| half.simple().to_string()).concat()
}

fn host(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers<const N: usize>(pairs: [(&'static str, &str); N]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let value = HeaderValue::from_str(value).expect("a value");
            headers.append(HeaderName::from_static(name), value);
        }
        headers
    }

    fn guard(token: Option<&str>) -> Guard {
        let listen = "127.0.0.1:7070".parse().expect("an address");
        Guard::new(listen, token.map(str::to_owned), false)
    }

    #[test]
    fn only_names_of_this_machine_are_answered_to() {
        let open = guard(None);
        for ours in ["localhost:7070", "LOCALHOST:7070", "127.0.0.1:7070", "[::1]:7070"] {
            assert_eq!(open.check_host(&headers([("host", ours)])), Ok(()), "{ours}");
        }
        for strange in ["evil.example:7070", "localhost", "localhost:80", "127.0.0.1.evil:7070"] {
            let strange = headers([("host", strange)]);
            assert_eq!(open.check_host(&strange), Err(Refused::Host), "{strange:?}");
        }
        assert_eq!(open.check_host(&HeaderMap::new()), Err(Refused::Host));
    }

    #[test]
    fn a_token_or_its_cookie_gives_access() {
        let closed = guard(Some("0123456789abcdef"));
        let bearer = |token: &str| headers([("authorization", &format!("Bearer {token}"))]);
        assert_eq!(closed.check_access(&bearer("0123456789abcdef")), Ok(()));
        for wrong in ["0123456789abcdeg", "0123456789abcde", ""] {
            assert_eq!(closed.check_access(&bearer(wrong)), Err(Refused::NoAccess), "{wrong}");
        }
        assert_eq!(closed.check_access(&HeaderMap::new()), Err(Refused::NoAccess));
        assert!(closed.log_in("0123456789abcdeg").is_none());
        let cookie = closed.log_in(" 0123456789abcdef\n").expect("a cookie");
        let cookie = cookie.to_str().expect("text");
        assert!(cookie.contains("HttpOnly; SameSite=Strict") && !cookie.contains("0123456789a"));
        let cookie = cookie.split(';').next().expect("its value");
        let both = format!("other=1; {cookie}");
        assert_eq!(closed.check_access(&headers([("cookie", &both)])), Ok(()));
        let other = guard(Some("0123456789abcdef"));
        assert_eq!(other.check_access(&headers([("cookie", &both)])), Err(Refused::NoAccess));
    }

    #[test]
    fn only_our_own_page_changes_something() {
        let guard = guard(None);
        let word = guard.page_word();
        let ours = [("host", "localhost:7070"), ("origin", "http://localhost:7070")];
        let with = |more: [(&'static str, &str); 1]| {
            let mut all = headers(ours);
            all.extend(headers(more));
            guard.check_change(&all)
        };
        assert_eq!(with([(PAGE_HEADER, word)]), Ok(()));
        assert_eq!(with([(PAGE_HEADER, "guess")]), Err(Refused::NoPage));
        assert_eq!(guard.check_change(&headers(ours)), Err(Refused::NoPage));
        for origin in ["http://evil.example", "http://localhost:7071", "null", "file://"] {
            let forged =
                headers([("host", "localhost:7070"), ("origin", origin), (PAGE_HEADER, word)]);
            assert_eq!(guard.check_change(&forged), Err(Refused::Origin), "{origin}");
        }
        let forged = headers([("sec-fetch-site", "cross-site"), (PAGE_HEADER, word)]);
        assert_eq!(guard.check_change(&forged), Err(Refused::Origin));
    }

    #[test]
    fn read_only_is_just_that() {
        let listen = "127.0.0.1:1".parse().expect("an address");
        let guard = Guard::new(listen, None, true);
        let shown = headers([(PAGE_HEADER, guard.page_word())]);
        assert_eq!(guard.check_change(&shown), Err(Refused::ReadOnly));
    }
}
