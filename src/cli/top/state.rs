//! What the person at the terminal has chosen.

use std::ops::ControlFlow;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::widgets::TableState;

/// A list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Pane {
    /// The fleet.
    #[default]
    Workers,
    /// The partitions with a backlog.
    Partitions,
    /// The busiest resources.
    Resources,
    /// The resources that are tried again.
    Retrying,
}

impl Pane {
    pub(super) const ALL: [Self; 4] =
        [Self::Workers, Self::Partitions, Self::Resources, Self::Retrying];

    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Workers => "Workers",
            Self::Partitions => "Partitions",
            Self::Resources => "Busiest resources",
            Self::Retrying => "Retrying",
        }
    }

    /// What its rows can be sorted by; the first is how it begins.
    pub(super) const fn orders(self) -> &'static [&'static str] {
        match self {
            Self::Workers => &["name", "running", "owns", "tasks/s", "executed"],
            Self::Partitions => &["backlog", "number", "owner"],
            Self::Resources => &["busy", "tasks/s", "time", "name"],
            Self::Retrying => &["newest", "name"],
        }
    }
}

/// What has been chosen.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) pane: Pane,
    pub(super) help: bool,
    orders: [usize; Pane::ALL.len()],
    tables: [TableState; Pane::ALL.len()],
}

/// Rows that a page key moves by.
const PAGE: u16 = 10;

impl State {
    /// How the rows of a list are sorted.
    pub(super) fn order(&self, pane: Pane) -> &'static str {
        pane.orders()[self.orders[pane as usize] % pane.orders().len()]
    }

    /// Where a list is.
    pub(super) fn table(&mut self, pane: Pane) -> &mut TableState {
        &mut self.tables[pane as usize]
    }

    /// Does what a key says; `Break` to leave.
    pub(super) fn takes(&mut self, key: KeyEvent) -> ControlFlow<()> {
        if key.kind == KeyEventKind::Release {
            return ControlFlow::Continue(());
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            let leaves = matches!(key.code, KeyCode::Char('c' | 'd'));
            return if leaves { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        }
        if self.help {
            // Any key closes it, and does nothing else.
            self.help = false;
            return ControlFlow::Continue(());
        }
        let pane = self.pane;
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return ControlFlow::Break(()),
            KeyCode::Char('?' | 'h') => self.help = true,
            KeyCode::Tab | KeyCode::Right | KeyCode::Char('l') => self.turn(1),
            KeyCode::BackTab | KeyCode::Left => self.turn(Pane::ALL.len() - 1),
            KeyCode::Char(digit @ '1'..='4') => {
                self.pane = Pane::ALL[digit as usize - '1' as usize];
            }
            KeyCode::Down | KeyCode::Char('j') => self.table(pane).select_next(),
            KeyCode::Up | KeyCode::Char('k') => self.table(pane).select_previous(),
            KeyCode::PageDown | KeyCode::Char(' ') => self.table(pane).scroll_down_by(PAGE),
            KeyCode::PageUp => self.table(pane).scroll_up_by(PAGE),
            KeyCode::Home | KeyCode::Char('g') => self.table(pane).select_first(),
            KeyCode::End | KeyCode::Char('G') => self.table(pane).select_last(),
            KeyCode::Char('s') => {
                self.orders[pane as usize] = (self.orders[pane as usize] + 1) % pane.orders().len();
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn turn(&mut self, by: usize) {
        self.pane = Pane::ALL[(self.pane as usize + by) % Pane::ALL.len()];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(state: &mut State, code: KeyCode) -> bool {
        state.takes(KeyEvent::new(code, KeyModifiers::NONE)).is_break()
    }

    #[test]
    fn keys_do_what_the_help_says() {
        let mut state = State::default();
        for expected in [Pane::Partitions, Pane::Resources, Pane::Retrying, Pane::Workers] {
            assert!(!press(&mut state, KeyCode::Tab));
            assert_eq!(state.pane, expected);
        }
        press(&mut state, KeyCode::BackTab);
        assert_eq!(state.pane, Pane::Retrying);
        press(&mut state, KeyCode::Char('2'));
        assert_eq!((state.pane, state.order(Pane::Partitions)), (Pane::Partitions, "backlog"));
        press(&mut state, KeyCode::Char('s'));
        assert_eq!(state.order(Pane::Partitions), "number");
        assert_eq!(state.order(Pane::Workers), "name");
        press(&mut state, KeyCode::Char('j'));
        press(&mut state, KeyCode::Down);
        press(&mut state, KeyCode::Char('k'));
        assert_eq!(state.table(Pane::Partitions).selected(), Some(0));
        press(&mut state, KeyCode::Char('?'));
        assert!(state.help, "it is asked for");
        assert!(!press(&mut state, KeyCode::Char('q')), "any key closes it, and does nothing else");
        assert!(!state.help, "it is closed");
        assert!(press(&mut state, KeyCode::Char('q')) && press(&mut state, KeyCode::Esc));
        let ctrl_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert!(state.takes(ctrl_c).is_break());
    }
}
