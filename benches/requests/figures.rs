//! Medians, and how they are printed.

/// The middle one; 0 of none.
pub(crate) fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

/// Prints a row of a Markdown table.
pub(crate) fn row(cells: &[String]) {
    println!("| {} |", cells.join(" | "));
}

/// Prints the head of a Markdown table whose first `words` columns are words, the others numbers.
pub(crate) fn head(cells: &[&str], words: usize) {
    println!("\n| {} |", cells.join(" | "));
    let rules: Vec<_> =
        (0..cells.len()).map(|column| if column < words { "---" } else { "---:" }).collect();
    println!("| {} |", rules.join(" | "));
}

/// `1 Ki`, `1 Mi`.
pub(crate) fn count(number: usize) -> String {
    match number {
        n if n >= 1 << 20 => format!("{} Mi", n >> 20),
        n if n >= 1 << 10 => format!("{} Ki", n >> 10),
        n => n.to_string(),
    }
}
