//! The table on the terminal: just what the documents have.

use super::{Report, sections};

/// The report as text.
#[must_use]
pub fn print(report: &Report) -> String {
    let mut text = String::new();
    for (_, section) in sections(report) {
        text.push_str(&aligned(&section));
        text.push('\n');
    }
    text
}

/// The same table with its columns below each other.
fn aligned(markdown: &str) -> String {
    let mut text = String::new();
    let mut rows: Vec<Vec<String>> = Vec::new();
    for line in markdown.lines().chain([""]) {
        let cells = line.strip_prefix('|').and_then(|line| line.strip_suffix('|'));
        if let Some(cells) = cells {
            if !cells.starts_with("---") {
                rows.push(cells.split('|').map(|cell| cell.trim().replace("**", "")).collect());
            }
            continue;
        }
        let widths = |column: usize| {
            rows.iter().filter_map(|row| Some(row.get(column)?.chars().count())).max().unwrap_or(0)
        };
        for row in &rows {
            let cells = row.iter().enumerate().map(|(column, cell)| {
                let width = widths(column);
                if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            text.push_str(&format!("  {}\n", cells.collect::<Vec<_>>().join("  ")));
        }
        rows.clear();
        text.push_str(line.replace("**", "").trim_start_matches("#").trim_start());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let text = aligned("### T\n\n| a | b |\n|---|---|\n| long | **1** |\n");
        assert_eq!(text.trim(), "T\n\n  a     b\n  long  1");
    }
}
