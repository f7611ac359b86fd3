//! What a command prints on standard output: text for people, or JSON.

use std::io::{self, StdoutLock, Write};

use serde::Serialize;

/// Standard output. Everything is flushed as it is printed, so that pipes and watches see it at once.
pub(crate) struct Output {
    json: bool,
    out: StdoutLock<'static>,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, out: io::stdout().lock() }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints `value`, or what `text` makes of it.
    pub(crate) fn show<T: Serialize + ?Sized>(
        &mut self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> io::Result<()> {
        if self.json {
            serde_json::to_writer_pretty(&mut self.out, value).map_err(io::Error::from)?;
            writeln!(self.out)?;
        } else {
            self.out.write_all(text(value).as_bytes())?;
        }
        self.out.flush()
    }

    /// Prints `value` as one line: of JSON, or of what `text` makes of it. For answers that come in pieces.
    pub(crate) fn line<T: Serialize + ?Sized>(
        &mut self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> io::Result<()> {
        if self.json {
            serde_json::to_writer(&mut self.out, value).map_err(io::Error::from)?;
            writeln!(self.out)?;
        } else {
            writeln!(self.out, "{}", text(value))?;
        }
        self.out.flush()
    }
}
