//! `keylane top` in a terminal.

#![allow(clippy::unwrap_used, reason = "clippy spares #[test] functions only")]

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};
use vt100::{Color, Parser};

use super::user::User;

/// Nothing that is waited for takes longer, on a slow machine under load.
const PATIENCE: Duration = Duration::from_secs(60);

/// A terminal with `keylane top` in it.
pub(crate) struct Screen {
    master: Box<dyn MasterPty + Send>,
    keys: Box<dyn Write + Send>,
    pub(crate) child: Box<dyn Child + Send + Sync>,
    seen: Arc<Mutex<Parser>>,
}

impl Screen {
    pub(crate) fn open(user: &User, rows: u16, cols: u16) -> Self {
        let size = PtySize { rows, cols, ..PtySize::default() };
        let pair = native_pty_system().openpty(size).unwrap();
        let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_keylane"));
        command.arg("top");
        command.env("KEYLANE_AMQP_URL", &user.url);
        command.env("KEYLANE_NAMESPACE", &user.namespace);
        command.env("TERM", "xterm-256color");
        let child = pair.slave.spawn_command(command).unwrap();
        drop(pair.slave);
        let mut output = pair.master.try_clone_reader().unwrap();
        let keys = pair.master.take_writer().unwrap();
        let seen = Arc::new(Mutex::new(Parser::new(rows, cols, 0)));
        let parser = Arc::clone(&seen);
        std::thread::spawn(move || {
            let mut bytes = [0; 4_096];
            while let Ok(count) = output.read(&mut bytes)
                && count > 0
            {
                parser.lock().unwrap().process(&bytes[..count]);
            }
        });
        Self { master: pair.master, keys, child, seen }
    }

    pub(crate) fn text(&self) -> String {
        self.seen.lock().unwrap().screen().contents()
    }

    pub(crate) fn shows(&self, words: &[&str]) {
        self.until(&format!("{words:?}"), || {
            let text = self.text();
            words.iter().all(|word| text.contains(word))
        });
    }

    pub(crate) fn until(&self, what: &str, mut seen: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !seen() {
            assert!(Instant::now() < deadline, "{what}: not on the screen:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    pub(crate) fn resize(&self, rows: u16, cols: u16) {
        self.seen.lock().unwrap().screen_mut().set_size(rows, cols);
        self.master.resize(PtySize { rows, cols, ..PtySize::default() }).unwrap();
    }

    /// It has ended by itself, and the terminal is as it was.
    pub(crate) fn has_left(mut self) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(50));
        };
        assert!(status.success(), "{status:?}");
        // Its last words may still be on the way to us.
        self.until("the screen before, with a cursor", || {
            let seen = self.seen.lock().unwrap();
            !seen.screen().alternate_screen() && !seen.screen().hide_cursor()
        });
        let modes = self.master.get_termios().unwrap();
        let flags = format!("{:?}", modes.local_flags);
        assert!(["ICANON", "ECHO", "ISIG"].iter().all(|flag| flags.contains(flag)), "raw: {flags}");
    }

    /// Text and colours, a line a row, as a terminal would be told.
    pub(crate) fn painted(&self) -> String {
        let seen = self.seen.lock().unwrap();
        let (rows, cols) = seen.screen().size();
        let mut painted = String::new();
        for row in 0..rows {
            for cell in (0..cols).filter_map(|col| seen.screen().cell(row, col)) {
                let colour = match cell.fgcolor() {
                    Color::Idx(bright @ 8..=15) => 82 + bright,
                    Color::Idx(colour) => 30 + colour,
                    Color::Default | Color::Rgb(..) => 39,
                };
                let text = if cell.has_contents() { cell.contents() } else { " " };
                let weight = if cell.bold() { 1 } else { 22 };
                painted += &format!("\x1b[{colour}m\x1b[{weight}m{text}");
            }
            painted += "\x1b[0m\n";
        }
        painted
    }
}
