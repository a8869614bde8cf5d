use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::dashboard::sample;

/// What is to be read on a terminal of this size.
fn seen(width: u16, height: u16, snapshot: &Snapshot, state: &mut State) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| draw(frame, snapshot, state)).expect("drawn");
    let buffer = terminal.backend().buffer();
    let lines = buffer.content().chunks(width.into()).map(|line| {
        let line: String = line.iter().map(|cell| cell.symbol()).collect();
        line.trim_end().to_owned() + "\n"
    });
    lines.collect()
}

fn says(screen: &str, words: &[&str]) {
    for word in words {
        assert!(screen.contains(word), "{word:?} is missing:\n{screen}");
    }
}

#[test]
fn a_small_terminal_shows_one_list_at_a_time() {
    let snapshot = sample::snapshot(1_024, 200);
    let mut state = State::default();
    let screen = seen(80, 24, &snapshot, &mut state);
    println!("{screen}");
    says(&screen, &["Stuck", "1 partition stands still", "1023", "dead letters 7", "tasks/s"]);
    says(&screen, &["Workers (200)", "node-00.rack-0-4000", "q leave", "1024 partitions"]);
    assert!(!screen.contains("account-"), "one list at a time:\n{screen}");
    state.pane = Pane::Partitions;
    let screen = seen(80, 24, &snapshot, &mut state);
    says(&screen, &["1 stuck", "stuck: stands still", "backlog"]);
    let first =
        screen.lines().position(|line| line.contains("stands still") && line.contains("12"));
    assert!(first.is_some(), "what is stuck comes first:\n{screen}");
    state.pane = Pane::Resources;
    says(&seen(80, 24, &snapshot, &mut state), &["account-00000", "busy", "%"]);
    state.pane = Pane::Retrying;
    says(&seen(80, 24, &snapshot, &mut state), &["Retrying (4)", "exit status 1"]);
}

#[test]
fn a_large_terminal_shows_all_lists() {
    let snapshot = sample::snapshot(1_024, 200);
    let screen = seen(200, 60, &snapshot, &mut State::default());
    println!("{screen}");
    says(&screen, &["Workers (200)", "Busiest resources (20)", "Retrying (4)", "1 stuck"]);
    says(&screen, &["node-00.rack-0-4000", "account-00000", "no such <b>account</b>", "█"]);
}

#[test]
fn any_size_is_drawn() {
    let (large, small) = (sample::snapshot(1_024, 200), sample::snapshot(1, 1));
    for snapshot in [&large, &small] {
        for (width, height) in [(1, 1), (3, 2), (20, 5), (40, 10), (80, 3), (300, 100)] {
            for help in [false, true] {
                let mut state = State::default();
                state.help = help;
                for pane in Pane::ALL {
                    state.pane = pane;
                    seen(width, height, snapshot, &mut state);
                }
            }
        }
    }
}

#[test]
fn the_end_of_a_long_list_is_reached() {
    let snapshot = sample::snapshot(1_024, 200);
    let mut state = State::default();
    state.table(Pane::Workers).select_last();
    let screen = seen(80, 24, &snapshot, &mut state);
    let last = snapshot.workers.last().expect("workers").worker.to_string();
    says(&screen, &[&last]);
}

#[test]
fn what_a_resource_is_called_does_nothing_to_the_terminal() {
    let mut snapshot = sample::snapshot(4, 1);
    let evil = crate::Resource::new("\u{1b}[2Jevil\u{7}\n").expect("a resource");
    snapshot.hot[0].resource = evil.clone();
    snapshot.retrying[0].resource = evil;
    snapshot.retrying[0].reason = Some("\u{1b}]0;evil\u{7}".to_owned());
    let screen = seen(200, 60, &snapshot, &mut State::default());
    says(&screen, &["evil"]);
    assert!(!screen.chars().any(|c| c.is_control() && c != '\n'), "{screen:?}");
}

#[test]
fn help_is_over_everything() {
    let snapshot = sample::snapshot(64, 3);
    let mut state = State::default();
    state.help = true;
    says(&seen(80, 24, &snapshot, &mut state), &["Keys", "another list", "sort by something else"]);
}

#[test]
fn a_lost_broker_is_told() {
    let mut snapshot = sample::snapshot(64, 3);
    snapshot.broker.connected = false;
    says(&seen(80, 24, &snapshot, &mut State::default()), &["reconnecting"]);
}
