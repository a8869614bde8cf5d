//! Progress bars: on a terminal only, and on standard error.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar of `total` of something; a spinner if the total is not known.
pub(super) fn bar(total: Option<u64>, template: &str) -> ProgressBar {
    let bar = match total {
        Some(total) => ProgressBar::new(total),
        None => ProgressBar::new_spinner(),
    };
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
        return bar;
    }
    dress(&bar, template);
    bar
}

/// Gives a bar its looks, and draws it. One of several must be among the others
/// by then.
pub(super) fn dress(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar.enable_steady_tick(Duration::from_millis(100));
}

/// So many of what is named in the singular: `1 task`, `1,234,567 tasks`.
pub(super) fn counted(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", grouped(number))
}

/// A count with separators: 1234567 is `1,234,567`.
pub(super) fn grouped(number: u64) -> String {
    indicatif::HumanCount(number).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_many() {
        let tasks = [0, 1, 2, 1_234_567].map(|number| counted(number, "task"));
        assert_eq!(tasks, ["0 tasks", "1 task", "2 tasks", "1,234,567 tasks"]);
    }
}
