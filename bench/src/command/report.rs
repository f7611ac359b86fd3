//! `report`: files of results as pages and tables.

use std::path::Path;

use super::CommandError;
use crate::args::Report;
use crate::document::{Document, DocumentError, write};
use crate::report::{comparisons, embed, full, page};

pub(super) fn report(arguments: &Report) -> Result<(), CommandError> {
    let mut documents = arguments.results.iter().map(|path| Document::read(path));
    // Clap takes no fewer than one.
    let Some(first) = documents.next() else { return Ok(()) };
    let mut document = first?;
    for next in documents {
        document.merge(next?);
    }
    if let Some(path) = &arguments.html {
        write(path, &page(&document))?;
    }
    if let Some(path) = &arguments.markdown {
        write(path, &full(&document))?;
    }
    if let Some(path) = &arguments.embed {
        put_into(path, &comparisons(&document))?;
    }
    if arguments.html.is_none() && arguments.markdown.is_none() && arguments.embed.is_none() {
        print!("{}", full(&document));
    }
    Ok(())
}

fn put_into(path: &Path, table: &str) -> Result<(), CommandError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| DocumentError::File { path: path.to_owned(), source })?;
    let text = embed(&text, table).ok_or_else(|| CommandError::NoPlace(path.to_owned()))?;
    Ok(write(path, &text)?)
}
