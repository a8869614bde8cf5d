//! The lists of `keylane top`.

use std::cmp::Reverse;
use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Text;
use ratatui::widgets::{Block, Borders, Cell, Row, Table};

use super::super::progress::grouped;
use super::screen::rate;
use super::state::{Pane, State};
use crate::dashboard::snapshot::{Snapshot, StuckBecause};

/// A row, and how it looks.
type Line = (Vec<String>, Style);

/// A column: its name, and how wide it is. All but the first are numbers.
type Column = (&'static str, Constraint, Alignment);

pub(super) fn draw(
    frame: &mut Frame<'_>,
    area: Rect,
    snapshot: &Snapshot,
    state: &mut State,
    pane: Pane,
) {
    let order = state.order(pane);
    let (columns, lines): (&[Column], Vec<Line>) = match pane {
        Pane::Workers => (WORKERS, workers(snapshot, order)),
        Pane::Partitions => (PARTITIONS, partitions(snapshot, order)),
        Pane::Resources => (RESOURCES, resources(snapshot, order)),
        Pane::Retrying => (RETRYING, retrying(snapshot, order)),
    };
    let chosen = state.pane == pane;
    let colour = if chosen { Color::Cyan } else { Color::DarkGray };
    let title = format!(" {} ({}) ", pane.title(), total(snapshot, pane, lines.len()));
    let block =
        Block::new().borders(Borders::TOP).border_style(Style::new().fg(colour)).title(title);
    let heads = columns.iter().map(|(name, _, alignment)| cell(name, *alignment));
    let heads = Row::new(heads).style(Style::new().fg(Color::DarkGray));
    let rows = lines.into_iter().map(|(texts, style)| {
        let cells = texts.iter().zip(columns).map(|(text, (.., a))| cell(text, *a));
        Row::new(cells.collect::<Vec<_>>()).style(style)
    });
    let mut table = Table::new(rows, columns.iter().map(|(_, width, _)| *width))
        .header(heads)
        .column_spacing(1)
        .block(block);
    if chosen {
        table = table.row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    }
    frame.render_stateful_widget(table, area, state.table(pane));
}

fn cell(text: &str, alignment: Alignment) -> Cell<'static> {
    Cell::from(Text::from(text.to_owned()).alignment(alignment))
}

/// What the title says of how many there are.
fn total(snapshot: &Snapshot, pane: Pane, shown: usize) -> String {
    match pane {
        Pane::Workers | Pane::Resources => shown.to_string(),
        Pane::Partitions => {
            format!("{shown} with tasks, {} stuck", snapshot.stuck.len())
        }
        Pane::Retrying => snapshot.retrying_total.to_string(),
    }
}

const LEFT: Alignment = Alignment::Left;
const RIGHT: Alignment = Alignment::Right;

const WORKERS: &[Column] = &[
    ("worker", Constraint::Fill(1), LEFT),
    ("running", Constraint::Length(8), RIGHT),
    ("owns", Constraint::Length(5), RIGHT),
    ("plan", Constraint::Length(5), RIGHT),
    ("tasks/s", Constraint::Length(8), RIGHT),
    ("executed", Constraint::Length(10), RIGHT),
    ("failed", Constraint::Length(6), RIGHT),
    ("seen", Constraint::Length(6), RIGHT),
];

fn workers(snapshot: &Snapshot, order: &str) -> Vec<Line> {
    let mut workers: Vec<_> = snapshot.workers.iter().collect();
    match order {
        "running" => workers.sort_by_key(|w| Reverse(w.running)),
        "owns" => workers.sort_by_key(|w| Reverse(w.owned)),
        "tasks/s" => workers.sort_by(|a, b| b.executed_per_s.total_cmp(&a.executed_per_s)),
        "executed" => workers.sort_by_key(|w| Reverse(w.executed)),
        _ => {}
    }
    let line = |w: &crate::dashboard::snapshot::WorkerRow| {
        let seen_us = snapshot.at_us.saturating_sub(w.seen_us);
        let seen = if seen_us < 1_500_000 { "now".to_owned() } else { span(seen_us) };
        let texts = vec![
            w.worker.to_string(),
            format!("{}/{}", w.running, w.slots),
            w.owned.to_string(),
            w.planned.to_string(),
            rate(w.executed_per_s),
            grouped(w.executed),
            grouped(w.failed),
            seen,
        ];
        (texts, if w.silent { Style::new().fg(Color::Yellow) } else { Style::new() })
    };
    workers.into_iter().map(line).collect()
}

const PARTITIONS: &[Column] = &[
    ("partition", Constraint::Length(9), RIGHT),
    ("ready", Constraint::Length(9), RIGHT),
    ("held", Constraint::Length(6), RIGHT),
    ("running", Constraint::Length(7), RIGHT),
    (" owner", Constraint::Fill(1), LEFT),
];

fn partitions(snapshot: &Snapshot, order: &str) -> Vec<Line> {
    let columns = &snapshot.partitions;
    let name = |place: &i32| {
        let place = usize::try_from(*place).ok();
        place.and_then(|place| snapshot.workers.get(place)).map(|w| w.worker.to_string())
    };
    let owner = |number: usize| columns.owner.get(number).and_then(name);
    // Another one only while it changes hands, or when that one does not come.
    let planned = |number: usize| {
        let planned = columns.planned.get(number).and_then(name);
        planned.filter(|planned| owner(number).as_ref() != Some(planned))
    };
    let stuck = |number: usize| {
        snapshot.stuck.iter().find(|stuck| stuck.partition.number() as usize == number)
    };
    let backlog = |number: usize| {
        let of = |column: &[u32]| column.get(number).copied().unwrap_or(0);
        u64::from(of(&columns.ready)) + u64::from(of(&columns.unsettled))
    };
    let mut numbers: Vec<_> = (0..columns.owner.len()).filter(|n| backlog(*n) > 0).collect();
    match order {
        "backlog" => numbers.sort_by_key(|n| (stuck(*n).is_none(), Reverse(backlog(*n)))),
        "owner" => numbers.sort_by_key(|n| owner(*n)),
        _ => {}
    }
    let line = |number: usize| {
        let of = |column: &[u32]| grouped(u64::from(column.get(number).copied().unwrap_or(0)));
        let why = stuck(number).map(|stuck| match stuck.why {
            StuckBecause::Unowned => "stuck: nobody consumes it".to_owned(),
            StuckBecause::StandsStill => "stuck: stands still".to_owned(),
            StuckBecause::HeldUp => "held up by one resource".to_owned(),
        });
        let style = if why.is_some() { Style::new().fg(Color::Red) } else { Style::new() };
        let owner = why.or_else(|| owner(number)).unwrap_or_else(|| "-".to_owned());
        let planned = planned(number).map_or_else(String::new, |name| format!(", planned {name}"));
        let owner = format!(" {owner}{planned}");
        let (ready, held) = (of(&columns.ready), of(&columns.unsettled));
        (vec![number.to_string(), ready, held, of(&columns.running), owner], style)
    };
    numbers.into_iter().map(line).collect()
}

const RESOURCES: &[Column] = &[
    ("resource", Constraint::Fill(1), LEFT),
    ("busy", Constraint::Length(5), RIGHT),
    ("tasks/s", Constraint::Length(8), RIGHT),
    ("each", Constraint::Length(9), RIGHT),
    ("partition", Constraint::Length(9), RIGHT),
];

fn resources(snapshot: &Snapshot, order: &str) -> Vec<Line> {
    let mut hot: Vec<_> = snapshot.hot.iter().collect();
    match order {
        "tasks/s" => hot.sort_by(|a, b| b.per_s.total_cmp(&a.per_s)),
        "time" => hot.sort_by_key(|hot| Reverse(hot.mean_us)),
        "name" => hot.sort_by_key(|hot| hot.resource.clone()),
        _ => {}
    }
    let line = |hot: &crate::dashboard::snapshot::HotResource| {
        // Its tasks run one after another: it cannot go any faster.
        let full = hot.busy > 0.95;
        let texts = vec![
            hot.resource.to_string(),
            format!("{:.0}%", hot.busy * 100.0),
            rate(hot.per_s),
            span(hot.mean_us),
            hot.partition.to_string(),
        ];
        (texts, if full { Style::new().fg(Color::Yellow) } else { Style::new() })
    };
    hot.into_iter().map(line).collect()
}

const RETRYING: &[Column] = &[
    ("resource", Constraint::Fill(2), LEFT),
    ("attempt", Constraint::Length(7), RIGHT),
    ("failed", Constraint::Length(8), RIGHT),
    (" reason", Constraint::Fill(3), LEFT),
];

fn retrying(snapshot: &Snapshot, order: &str) -> Vec<Line> {
    let mut retrying: Vec<_> = snapshot.retrying.iter().collect();
    if order == "name" {
        retrying.sort_by_key(|retrying| retrying.resource.clone());
    }
    let line = |retrying: &crate::dashboard::snapshot::Retrying| {
        let texts = vec![
            retrying.resource.to_string(),
            retrying.attempt.to_string(),
            span(snapshot.at_us.saturating_sub(retrying.failed_us)),
            format!(" {}", retrying.reason.as_deref().unwrap_or("")).replace(char::is_control, " "),
        ];
        (texts, Style::new())
    };
    retrying.into_iter().map(line).collect()
}

/// Microseconds, in two parts at the most.
pub(super) fn span(us: u64) -> String {
    let whole = match us {
        1_000_000.. => us / 1_000_000 * 1_000_000,
        1_000.. => us / 1_000 * 1_000,
        _ => us,
    };
    let text = humantime::format_duration(Duration::from_micros(whole)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}
