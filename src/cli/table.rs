//! Text in aligned columns.

/// Rows under a heading, each column as wide as its widest cell, two spaces between.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this heading.
    pub(super) fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(str::to_owned).to_vec()] }
    }

    /// A table without one.
    pub(super) fn plain() -> Self {
        Self { rows: Vec::new() }
    }

    /// Adds a row. Control characters, which a device may have sent to play with a terminal, become `�`.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        let shown = |cell: String| cell.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        self.rows.push(cells.map(shown).to_vec());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width =
            |column: usize| self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_by_characters_and_lines_end_clean() {
        let mut table = Table::new(["DEVICE", "READINGS", "AGE"]);
        table.row(["A".to_owned(), "38.2 °C".to_owned(), "4 s".to_owned()]);
        table.row(["LONG-NAME".to_owned(), "x\u{1b}[31m".to_owned(), String::new()]);
        let expected = "DEVICE     READINGS  AGE\nA          38.2 °C   4 s\nLONG-NAME  x\u{fffd}[31m\n";
        assert_eq!(table.to_string(), expected);
    }
}
