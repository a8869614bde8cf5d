//! What is seen of the demo while it runs: two bars on a terminal, and a line
//! for everything that happens.

use std::io::IsTerminal;
use std::time::Instant;

use indicatif::{MultiProgress, ProgressBar};

use crate::cli::progress::{dress, grouped};

/// The bars and the lines above them. Dropping it removes the bars.
#[derive(Debug)]
pub(super) struct Show {
    /// When the first task could be published.
    started: Option<Instant>,
    bars: MultiProgress,
    published: ProgressBar,
    executed: ProgressBar,
}

impl Show {
    /// Bars of `tasks` tasks each.
    pub(super) fn new(tasks: u64) -> Self {
        let bars = MultiProgress::new();
        let shown = |template| {
            if !std::io::stderr().is_terminal() {
                return ProgressBar::hidden();
            }
            let bar = bars.add(ProgressBar::new(tasks));
            dress(&bar, template);
            bar
        };
        let published = shown("published {bar:40.blue} {human_pos:>9} of {human_len}");
        let executed = shown("executed  {bar:40.cyan} {human_pos:>9} of {human_len}  {msg}");
        Self { started: None, bars, published, executed }
    }

    /// Starts the clock.
    pub(super) fn start(&mut self) {
        self.started = Some(Instant::now());
    }

    /// A line with the time, above the bars.
    pub(super) fn line(&self, line: &str) {
        let seconds = self.started.map(|started| started.elapsed().as_secs_f64());
        let time = seconds.map_or_else(String::new, |seconds| format!("{seconds:.1} s"));
        let line = format!("{time:>7}  {line}");
        // A bar that cannot be drawn is no reason to end the demo.
        self.bars.suspend(|| eprintln!("{line}"));
    }

    /// Moves the bars.
    pub(super) fn progress(&self, published: u64, executed: u64, workers: usize) {
        self.published.set_position(published);
        self.executed.set_position(executed);
        let seconds = self.started.map_or(0.0, |started| started.elapsed().as_secs_f64());
        let rate = grouped((executed as f64 / seconds.max(1e-3)) as u64);
        self.executed.set_message(format!("{workers} workers  {rate}/s"));
    }

    /// Leaves the bars as they are, full.
    pub(super) fn finish(&self) {
        self.published.abandon();
        self.executed.abandon();
        if std::io::stderr().is_terminal() {
            // The cursor is still behind the last bar.
            eprintln!();
        }
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        for bar in [&self.published, &self.executed] {
            if !bar.is_finished() {
                bar.finish_and_clear();
            }
        }
    }
}
