//! Draws a snapshot on a terminal of any size: all lists at once where there is
//! room, one at a time where there is not.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Sparkline, Tabs};

use super::super::progress::grouped;
use super::panes;
use super::state::{Pane, State};
use crate::dashboard::snapshot::{Flow, Snapshot, Totals};

/// From this size on all lists are shown at once.
const ROOMY: (u16, u16) = (120, 36);

/// Rows of the chart, where there is room.
const CHART_ROWS: u16 = 3;

pub(super) fn draw(frame: &mut Frame<'_>, snapshot: &Snapshot, state: &mut State) {
    let area = frame.area();
    let roomy = area.width >= ROOMY.0 && area.height >= ROOMY.1;
    let chart = if area.height >= 20 { CHART_ROWS } else { 0 };
    let [head, chart, lists, foot] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(chart),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(area);
    header(frame, head, snapshot);
    throughput(frame, chart, snapshot);
    if roomy {
        let rows = Layout::vertical([Constraint::Fill(1); 2]).split(lists);
        for (row, panes) in rows.iter().zip(Pane::ALL.chunks(2)) {
            let cells = Layout::horizontal([Constraint::Fill(1); 2]).spacing(2).split(*row);
            for (cell, pane) in cells.iter().zip(panes) {
                panes::draw(frame, *cell, snapshot, state, *pane);
            }
        }
    } else {
        let [tabs, list] =
            Layout::vertical([Constraint::Length(1), Constraint::Min(2)]).areas(lists);
        let titles = Pane::ALL.map(Pane::title);
        let tabs_line = Tabs::new(titles)
            .select(state.pane as usize)
            .style(Style::new().fg(Color::DarkGray))
            .highlight_style(Style::new().fg(Color::Cyan).add_modifier(Modifier::BOLD));
        frame.render_widget(tabs_line, tabs);
        panes::draw(frame, list, snapshot, state, state.pane);
    }
    footer(frame, foot, state);
    if state.help {
        help(frame, area);
    }
}

fn header(frame: &mut Frame<'_>, area: Rect, snapshot: &Snapshot) {
    let Snapshot { totals, workers, broker, .. } = snapshot;
    let (word, colour) = match snapshot.verdict.state {
        Flow::Flowing => ("Flowing", Color::Green),
        Flow::Waiting => ("Waiting", Color::Yellow),
        Flow::Idle => ("Idle", Color::Gray),
        Flow::Stuck => ("Stuck", Color::Red),
        Flow::Lost => ("Lost", Color::Red),
    };
    let partitions = snapshot.topology.partitions;
    let answering = workers.iter().filter(|worker| !worker.silent).count();
    let name = vec![
        "keylane".bold().cyan(),
        format!("  {}", snapshot.namespace).into(),
        format!("  {partitions} partitions, {answering} workers").dark_gray(),
    ];
    let clock = clock(snapshot.at_us);
    let clock = if broker.connected { clock.dark_gray() } else { "reconnecting".red() };
    let mut figures = Vec::new();
    let mut figure = |name: &'static str, value: String, bad: bool| {
        figures.push(format!("{name} ").dark_gray());
        figures.push(if bad { value.red().bold() } else { value.bold() });
        figures.push("  ".into());
    };
    figure("executed", format!("{}/s", executed_rate(totals)), false);
    figure("running", format!("{}/{}", grouped(totals.running), grouped(totals.slots)), false);
    figure("ready", grouped(totals.ready + u64::from(totals.inbox)), false);
    figure("retrying", snapshot.retrying_total.to_string(), false);
    figure("dead letters", grouped(u64::from(totals.dead)), totals.dead > 0);
    let verdict = vec![
        Span::styled(word, Style::new().fg(colour).add_modifier(Modifier::BOLD)),
        format!("  {}", snapshot.verdict.text).into(),
    ];
    let lines = [Line::from(name), Line::from(verdict), Line::from(figures)];
    frame.render_widget(Paragraph::new(lines.to_vec()), area);
    let width = clock.width() as u16;
    let at = Rect { x: area.right().saturating_sub(width), width, height: 1, ..area };
    frame.render_widget(Paragraph::new(Line::from(clock)), at.intersection(area));
}

fn throughput(frame: &mut Frame<'_>, area: Rect, snapshot: &Snapshot) {
    let executed = &snapshot.history.executed;
    // The present second is not over.
    let whole = &executed[..executed.len().saturating_sub(1)];
    let [label, bars] =
        Layout::horizontal([Constraint::Length(12), Constraint::Min(10)]).areas(area);
    let shown = &whole[whole.len().saturating_sub(bars.width as usize)..];
    let most = shown.iter().copied().max().unwrap_or(0);
    let words = vec![
        Line::from("tasks/s".dark_gray()),
        Line::from(format!("max {}", grouped(u64::from(most))).dark_gray()),
    ];
    frame.render_widget(Paragraph::new(words), label);
    // Newest at the right edge, also when there is not enough to fill the width.
    let missing = (bars.width as usize).saturating_sub(shown.len()) as u16;
    let bars = Rect { x: bars.x + missing, width: bars.width - missing, ..bars };
    let line = Sparkline::default()
        .data(shown.iter().map(|count| u64::from(*count)))
        .max(u64::from(most.max(1)))
        .style(Style::new().fg(Color::Cyan));
    frame.render_widget(line, bars);
}

fn footer(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let sorted = format!("sort: {}", state.order(state.pane));
    let line = Line::from(vec![
        "q".bold(),
        " leave  ".dark_gray(),
        "Tab".bold(),
        " list  ".dark_gray(),
        "↑↓".bold(),
        " move  ".dark_gray(),
        "s".bold(),
        format!(" {sorted}  ").dark_gray(),
        "?".bold(),
        " help".dark_gray(),
    ]);
    frame.render_widget(Paragraph::new(line), area);
}

const HELP: &[(&str, &str)] = &[
    ("Tab, ← →, 1–4", "another list"),
    ("↑ ↓, j k", "move in the list"),
    ("PgUp PgDn, g G", "move by pages, to the ends"),
    ("s", "sort by something else"),
    ("q, Esc, Ctrl-C", "leave"),
    ("any key", "close this"),
];

fn help(frame: &mut Frame<'_>, area: Rect) {
    let (width, height) = (50, HELP.len() as u16 + 2);
    let at = area.centered(Constraint::Length(width), Constraint::Length(height));
    let lines = HELP
        .iter()
        .map(|(key, what)| Line::from(vec![format!(" {key:<16}").bold(), (*what).into()]));
    frame.render_widget(Clear, at);
    let block = Block::bordered().title(" Keys ").border_style(Style::new().fg(Color::Cyan));
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()).block(block), at);
}

/// Tasks executed a second, as far as that is known yet.
pub(super) fn executed_rate(totals: &Totals) -> String {
    if totals.rates_known { rate(totals.executed_per_s) } else { "-".to_owned() }
}

/// Tasks a second.
pub(super) fn rate(per_s: f64) -> String {
    if per_s >= 10.0 { grouped(per_s.round() as u64) } else { format!("{per_s:.1}") }
}

/// The time of day, in UTC.
fn clock(us: u64) -> String {
    let second = us / 1_000_000 % 86_400;
    format!("{:02}:{:02}:{:02} UTC", second / 3_600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests;
