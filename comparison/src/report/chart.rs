//! Charts as inline SVG. Their colours are classes of the page, so one drawing serves the
//! light and the dark theme; they are as wide as a phone, so that text keeps its size there.

use std::fmt::Write;

use super::number;

/// Width of a drawing, in its own units: a phone less its margins.
const WIDTH: f64 = 336.0;
/// Where the names end and the bars begin.
const LEFT: f64 = 132.0;
/// What is left for each number behind the longest bar.
const RIGHT: f64 = 46.0;
/// From one row to the next.
const ROW: f64 = 19.0;

/// One row.
pub(super) struct Row {
    pub(super) name: String,
    /// A bar or dot for each series. `None`: there is none, and `note` says why.
    pub(super) values: Vec<Option<f64>>,
    pub(super) note: String,
}

/// How values become lengths.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// Bars from zero.
    Linear,
    /// Dots over powers of ten: a bar would have no honest beginning.
    Logarithmic,
}

/// Rows with their names, values and numbers. The row `keylane` is in the colour of the house.
pub(super) fn chart(
    title: &str,
    scale: Scale,
    rows: &[Row],
    show: impl Fn(f64) -> String,
) -> String {
    let values = || rows.iter().flat_map(|row| row.values.iter().flatten().copied());
    let longest = values().fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let smallest = values().filter(|value| *value > 0.0).fold(longest, f64::min);
    let (low, high) = (smallest.log10().floor(), longest.log10().ceil());
    let series = rows.iter().map(|row| row.values.len()).max().unwrap_or(1);
    let span = WIDTH - LEFT - RIGHT * series as f64;
    let length = |value: f64| match scale {
        Scale::Linear => value / longest * span,
        Scale::Logarithmic if value <= 0.0 => 0.0,
        Scale::Logarithmic => (value.log10() - low) / (high - low).max(1.0) * span,
    };
    let height = ROW * rows.len() as f64 + 18.0;
    let mut svg = format!(
        "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"{}\">",
        escaped(title),
        escaped(title)
    );
    if scale == Scale::Logarithmic {
        for power in low as i32..=high as i32 {
            let x = LEFT + length(10f64.powi(power));
            put(
                &mut svg,
                format!(
                    "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{:.1}\"/>",
                    height - 16.0
                ),
            );
            let label = if power >= 0 {
                format!("{:.0}", 10f64.powi(power))
            } else {
                10f64.powi(power).to_string()
            };
            put(
                &mut svg,
                format!(
                    "<text class=\"axis\" x=\"{x:.1}\" y=\"{:.1}\">{label}</text>",
                    height - 3.0
                ),
            );
        }
    }
    for (place, row) in rows.iter().enumerate() {
        let top = ROW * place as f64 + 2.0;
        let own = if row.name == "keylane" { " own" } else { "" };
        let baseline = top + 11.5;
        put(
            &mut svg,
            format!(
                "<text class=\"name{own}\" x=\"{:.1}\" y=\"{baseline:.1}\">{}</text>",
                LEFT - 6.0,
                escaped(&row.name)
            ),
        );
        let thick = if row.values.len() > 1 { 6.5 } else { 12.0 };
        let mut end = LEFT;
        for (series, value) in row.values.iter().enumerate() {
            let Some(value) = value else { continue };
            let (length, y) = (length(*value), top + 1.0 + 7.0 * series as f64);
            end = end.max(LEFT + length);
            put(
                &mut svg,
                match scale {
                    Scale::Linear => format!(
                        "<rect class=\"s{series}{own}\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{thick}\" rx=\"1.5\"/>",
                        length.max(0.8)
                    ),
                    Scale::Logarithmic => format!(
                        "<circle class=\"s{series}{own}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4.5\"/>",
                        LEFT + length,
                        top + 7.5
                    ),
                },
            );
        }
        let numbers: Vec<String> = row.values.iter().flatten().map(|value| show(*value)).collect();
        let text = if numbers.is_empty() { row.note.clone() } else { numbers.join(" · ") };
        let x = end + if scale == Scale::Linear { 4.0 } else { 8.0 };
        let text = escaped(&text);
        put(
            &mut svg,
            format!("<text class=\"number{own}\" x=\"{x:.1}\" y=\"{baseline:.1}\">{text}</text>"),
        );
    }
    svg.push_str("</svg></figure>\n");
    svg
}

/// The number of a rate.
pub(super) fn plain(value: f64) -> String {
    number(value)
}

fn put(svg: &mut String, what: String) {
    // Writing to a string does not fail.
    svg.write_str(&what).unwrap_or_default();
}

pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_a_bar_for_each_value_and_escapes_its_words() {
        let row = |name: &str, value| Row {
            name: name.to_owned(),
            values: vec![value],
            note: "none".to_owned(),
        };
        let rows = [row("keylane", Some(2.0)), row("a<b", Some(1.0)), row("c", None)];
        let svg = chart("t & u", Scale::Linear, &rows, plain);
        assert_eq!(svg.matches("<rect").count(), 2);
        assert!(svg.contains("a&lt;b") && svg.contains("t &amp; u") && svg.contains("none"));
        assert_eq!(chart("t", Scale::Logarithmic, &rows, plain).matches("<circle").count(), 2);
    }
}
