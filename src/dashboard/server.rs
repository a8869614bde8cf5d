//! The page over HTTP: what there is to ask, and to tell.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Form, Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_lite::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::assets;
use super::dead::{Action, Desk, Selection};
use super::guard::{self, Guard, Refused};
use super::observer::{Frame, Observer};
use super::search::Searcher;
use crate::protocol::steering::Scope;
use crate::rabbit::connection::Connect;
use crate::rabbit::error::Error;
use crate::steering;

/// Pages that are live at once: each holds a connection and is sent a picture a
/// second.
const MAX_LIVE: usize = 32;

/// The largest thing that a page may say: a list of the keys of 100 letters.
const MAX_BODY: usize = 64 << 10;

/// What somebody who guesses waits for.
const WRONG_TOKEN_DELAY: Duration = Duration::from_millis(500);

/// A proxy on the way closes what is silent for longer.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// What the handlers share.
pub(super) struct Site {
    pub(super) connect: Connect,
    pub(super) guard: Guard,
    pub(super) observer: Observer,
    pub(super) desk: Desk,
    pub(super) searcher: Searcher,
    pub(super) live: Arc<Semaphore>,
    /// Ends what is live.
    pub(super) shutdown: CancellationToken,
}

impl Site {
    /// Room for those who watch.
    pub(super) fn room() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(MAX_LIVE))
    }
}

pub(super) fn router(site: Arc<Site>) -> Router {
    let inside = Router::new()
        .route("/", get(index))
        .route("/api/snapshot", get(snapshot))
        .route("/api/events", get(events))
        .route("/api/search", get(search))
        .route("/api/dead", get(dead))
        .route("/api/dead/replay", post(replay))
        .route("/api/dead/discard", post(discard))
        .route("/api/pause", post(pause))
        .route("/api/resume", post(resume))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&site), admit));
    Router::new()
        .merge(inside)
        .route("/login", get(login).post(log_in))
        .route("/page/{file}", get(asset))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(Arc::clone(&site), receive))
        .with_state(site)
}

/// For every request: who is it for, and what is said to the browser.
async fn receive(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    let mut response = match site.guard.check_host(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refused) => refuse(refused),
    };
    guard::protect(response.headers_mut());
    response
}

/// For all but the page that asks for the token: who may look, who may change.
async fn admit(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    if let Err(refused) = site.guard.check_access(headers) {
        if request.uri().path() == "/" {
            return Redirect::to("/login").into_response();
        }
        return refuse(refused);
    }
    let checked = if !guard::only_looks(request.method()) {
        site.guard.check_change(headers)
    } else if request.uri().path() != "/" {
        // Another page sees no answer, but a search is work.
        guard::check_origin(headers)
    } else {
        Ok(())
    };
    match checked {
        Ok(()) => next.run(request).await,
        Err(refused) => refuse(refused),
    }
}

fn refuse(refused: Refused) -> Response {
    let status = match refused {
        Refused::NoAccess => StatusCode::UNAUTHORIZED,
        Refused::Host | Refused::Origin | Refused::NoPage | Refused::ReadOnly => {
            StatusCode::FORBIDDEN
        }
    };
    problem(status, refused.reason())
}

#[derive(Serialize)]
struct Problem<'a> {
    error: &'a str,
}

fn problem(status: StatusCode, error: &str) -> Response {
    (status, Json(Problem { error })).into_response()
}

/// What the broker says no to.
fn failed(error: &Error) -> Response {
    let status = match error {
        Error::NotPermitted { .. } | Error::AccessRefused { .. } => StatusCode::FORBIDDEN,
        _ => StatusCode::BAD_GATEWAY,
    };
    problem(status, &error.to_string())
}

async fn index(State(site): State<Arc<Site>>) -> Html<String> {
    let read_only = if site.guard.is_read_only() { "yes" } else { "no" };
    let page = assets::INDEX.replace("{page}", site.guard.page_word());
    Html(page.replace("{read-only}", read_only))
}

async fn asset(
    State(site): State<Arc<Site>>,
    Path(file): Path<String>,
    request: Request,
) -> Response {
    let Some((kind, text, open)) = assets::find(&file) else {
        return problem(StatusCode::NOT_FOUND, "there is no such file");
    };
    if !open && let Err(refused) = site.guard.check_access(request.headers()) {
        return refuse(refused);
    }
    ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], text).into_response()
}

async fn login() -> Html<String> {
    Html(assets::LOGIN.replace("{message}", ""))
}

#[derive(Deserialize)]
struct Login {
    token: String,
}

async fn log_in(State(site): State<Arc<Site>>, request: Request) -> Response {
    use axum::extract::FromRequest;
    if let Err(refused) = guard::check_origin(request.headers()) {
        return refuse(refused);
    }
    let Ok(Form(Login { token })) = Form::from_request(request, &()).await else {
        return problem(StatusCode::BAD_REQUEST, "the token is missing");
    };
    match site.guard.log_in(&token) {
        Some(cookie) => ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response(),
        None => {
            tokio::time::sleep(WRONG_TOKEN_DELAY).await;
            let page = assets::LOGIN.replace("{message}", "That is not the token.");
            (StatusCode::UNAUTHORIZED, Html(page)).into_response()
        }
    }
}

async fn snapshot(State(site): State<Arc<Site>>) -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], site.observer.frame().json().to_owned()).into_response()
}

/// One who watches, until either side goes.
struct Watcher {
    frames: watch::Receiver<Arc<Frame>>,
    shutdown: CancellationToken,
    _place: OwnedSemaphorePermit,
}

async fn events(State(site): State<Arc<Site>>) -> Response {
    let Ok(place) = Arc::clone(&site.live).try_acquire_owned() else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "too many pages are open");
    };
    let mut frames = site.observer.watch();
    // The present one is sent at once.
    frames.mark_changed();
    let watcher = Watcher { frames, shutdown: site.shutdown.clone(), _place: place };
    let pictures = stream::unfold(watcher, |mut watcher| async move {
        tokio::select! {
            changed = watcher.frames.changed() => changed.ok()?,
            () = watcher.shutdown.cancelled() => return None,
        }
        let frame = Arc::clone(&watcher.frames.borrow_and_update());
        Some((Ok::<_, Infallible>(Event::default().data(frame.json())), watcher))
    });
    Sse::new(pictures).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

#[derive(Deserialize)]
struct Wanted {
    q: String,
    /// So many seconds ago; without it, all that is kept.
    ago_s: Option<u64>,
}

async fn search(State(site): State<Arc<Site>>, Query(wanted): Query<Wanted>) -> Response {
    let query = wanted.q.trim();
    if query.is_empty() {
        return problem(StatusCode::BAD_REQUEST, "what is to be looked for?");
    }
    let ago = wanted.ago_s.map(Duration::from_secs);
    let since = ago.and_then(|ago| SystemTime::now().checked_sub(ago));
    match site.searcher.search(query, since).await {
        Ok(Some(findings)) => Json(findings).into_response(),
        Ok(None) => problem(StatusCode::SERVICE_UNAVAILABLE, "others are searching: try again"),
        Err(error) => failed(&error),
    }
}

async fn dead(State(site): State<Arc<Site>>) -> Response {
    match site.desk.list().await {
        Ok(listing) => Json(&*listing).into_response(),
        Err(error) => failed(&error),
    }
}

async fn replay(site: State<Arc<Site>>, selection: Selected) -> Response {
    act(site, Action::Replay, selection).await
}

async fn discard(site: State<Arc<Site>>, selection: Selected) -> Response {
    act(site, Action::Discard, selection).await
}

/// What the page pauses or resumes.
#[derive(Deserialize)]
struct Steer {
    scope: Scope,
}

type Steered = Result<Json<Steer>, JsonRejection>;

async fn pause(site: State<Arc<Site>>, wanted: Steered) -> Response {
    steer(site, wanted, true).await
}

async fn resume(site: State<Arc<Site>>, wanted: Steered) -> Response {
    steer(site, wanted, false).await
}

/// Who gives the orders of the page.
const BY: &str = "the dashboard";

async fn steer(State(site): State<Arc<Site>>, wanted: Steered, pauses: bool) -> Response {
    let scope = match wanted {
        Ok(Json(Steer { scope })) => scope,
        Err(rejection) => return problem(rejection.status(), &rejection.body_text()),
    };
    let steered = match pauses {
        true => steering::pause(&site.connect, scope, BY).await,
        false => steering::resume(&site.connect, scope, BY).await,
    };
    match steered {
        Ok(steered) => Json(steered).into_response(),
        Err(error) => failed(&error),
    }
}

type Selected = Result<Json<Selection>, JsonRejection>;

async fn act(State(site): State<Arc<Site>>, action: Action, selection: Selected) -> Response {
    let selection = match selection {
        Ok(Json(selection)) => selection,
        Err(rejection) => return problem(rejection.status(), &rejection.body_text()),
    };
    // A task of its own: it is seen through although the page may be closed.
    let acting = tokio::spawn(async move { site.desk.act(action, selection).await });
    match acting.await {
        Ok(Ok(done)) => Json(done).into_response(),
        Ok(Err(error)) => failed(&error),
        Err(_) => problem(StatusCode::INTERNAL_SERVER_ERROR, "it did not end well: see the log"),
    }
}
