//! Text tables with aligned columns.

use std::fmt;

/// Which side of its column a cell keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

pub(crate) use Align::{Left, Right};

/// Rows under a line of titles.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
    if_empty: &'static str,
}

impl Table {
    /// A table with these columns; `if_empty` is said in place of a table without rows.
    pub(crate) fn new<const N: usize>(columns: [(&'static str, Align); N], if_empty: &'static str) -> Self {
        Self { columns: columns.into(), rows: Vec::new(), if_empty }
    }

    /// Adds a row of as many cells as there are columns.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.columns.len());
        self.rows.push(cells.iter().map(|cell| printable(cell)).collect());
    }
}

/// What the daemon says might come from a packet or a file: a control character must not reach the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// Two spaces between columns, `-` for an empty cell, nothing at the ends of lines.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rows.is_empty() {
            return writeln!(f, "{}", self.if_empty);
        }
        let width_of = |i: usize, title: &str| {
            let cells = self.rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count().max(1));
            cells.chain([title.len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> =
            self.columns.iter().enumerate().map(|(i, (title, _))| width_of(i, title)).collect();
        let titles: Vec<String> = self.columns.iter().map(|(title, _)| (*title).to_owned()).collect();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, width), (_, align)) in row.iter().zip(&widths).zip(&self.columns) {
                let cell = if cell.is_empty() { "-" } else { cell };
                if !line.is_empty() {
                    line.push_str("  ");
                }
                line.push_str(&match align {
                    Left => format!("{cell:<width$}"),
                    Right => format!("{cell:>width$}"),
                });
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Names and values below each other, the values in one column.
pub(crate) fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    pairs
        .iter()
        .map(|(name, value)| format!("{}\n", format!("{name:<width$}  {}", printable(value)).trim_end()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new([("NAME", Left), ("RX", Right), ("WHY", Left)], "nothing");
        table.row(["pod-é".into(), "7".into(), "a".into()]);
        table.row(["b".into(), "12345".into(), String::new()]);
        assert_eq!(table.to_string(), "NAME      RX  WHY\npod-é      7  a\nb      12345  -\n");
    }

    #[test]
    fn an_empty_table_says_so() {
        assert_eq!(Table::new([("NAME", Left)], "no ports").to_string(), "no ports\n");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let mut table = Table::new([("NAME", Left)], "");
        table.row(["\u{1b}[2J\n".into()]);
        assert_eq!(table.to_string(), "NAME\n\\u{1b}[2J\\n\n");
    }

    #[test]
    fn fields_line_up() {
        assert_eq!(
            fields(&[("a", "1".into()), ("long", "2".into()), ("", String::new())]),
            "a     1\nlong  2\n\n"
        );
    }
}
