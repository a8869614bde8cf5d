//! The page, as it is in `page/`: part of the binary, and nothing is fetched from
//! anywhere else.

/// The page itself, with `{page}` and `{read-only}` to be filled in.
pub(super) const INDEX: &str = include_str!("page/index.html");

/// Asks for the token, with `{message}` to be filled in.
pub(super) const LOGIN: &str = include_str!("page/login.html");

const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! scripts {
    ($($name:literal),+) => {
        &[$(($name, SCRIPT, include_str!(concat!("page/", $name)))),+]
    };
}

const SCRIPTS: &[(&str, &str, &str)] = scripts![
    "app.js",
    "attention.js",
    "charts.js",
    "dead.js",
    "dom.js",
    "fleet.js",
    "format.js",
    "lists.js",
    "partitions.js",
    "search.js",
    "stream.js",
    "timeline.js"
];

/// For the page that asks for the token, too.
const OPEN: &[(&str, &str, &str)] = &[
    ("style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
    ("theme.js", SCRIPT, include_str!("page/theme.js")),
    ("icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
];

/// Type and content of a file, and whether anybody may have it.
pub(super) fn find(name: &str) -> Option<(&'static str, &'static str, bool)> {
    let among = |files: &'static [(&str, &str, &str)], open| {
        let file = files.iter().find(|(file, ..)| *file == name);
        file.map(|(_, kind, text)| (*kind, *text, open))
    };
    among(OPEN, true).or_else(|| among(SCRIPTS, false))
}
