//! The table of sequences and verdicts in `docs/aux-domains.md` is what the sequences came to.

use std::fs;
use std::path::Path;

use viommu_guest::sequences::{self, SEQUENCES};

use super::stand::Stand;

/// The page, and what the table lies between.
const PAGE: &str = "docs/aux-domains.md";
const BEGIN: &str = "<!-- sequences: made by `cargo xtask aux-table` -->\n";
const END: &str = "<!-- end of sequences -->";

/// Says that the page is to be written, not looked at.
const WRITE: &str = "VIOMMU_WRITE_TABLES";

/// The columns.
const ARCHITECTURES: [&str; 2] = ["vtd", "smmuv3"];

/// The verdict of a sequence: what it saw.
fn verdict(arch: &str, number: u8) -> String {
    match sequences::run(number, &mut Stand::start(arch).bench) {
        Ok(seen) => format!("passed: {}", untimed(number, &seen)),
        Err(wrong) => format!("FAILED: {wrong}"),
    }
}

/// Without the numbers that differ from run to run: how the pages of a replacement under load fell.
fn untimed(number: u8, seen: &str) -> &str {
    if number == 6 { seen.split(':').next().unwrap_or(seen) } else { seen }
}

fn table() -> String {
    let mut table = String::from(
        "| | sequence | `--arch vtd` | `--arch smmuv3` |\n| --- | --- | --- | --- |\n",
    );
    for sequence in SEQUENCES {
        let [vtd, smmu] = ARCHITECTURES.map(|arch| verdict(arch, sequence.number));
        let number = sequence.number;
        table.push_str(&format!("| {number} | {} | {vtd} | {smmu} |\n", sequence.title));
    }
    table
}

#[test]
fn the_page_has_the_verdicts_of_the_sequences() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the table's beginning");
    let (there, behind) = rest.split_once(END).expect("the table's end");
    let table = table();
    assert!(!table.contains("FAILED"), "{table}");
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, [before, BEGIN, &table, END, behind].concat()).unwrap();
    } else {
        assert_eq!(there, table, "{PAGE}: run `cargo xtask aux-table`");
    }
}
