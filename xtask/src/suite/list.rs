//! The matrix, for people.

use super::set::Iommu;
use super::{SCENARIOS, Scenario};
use crate::setup::guest_kernel::ROWS;
use crate::ui::{note, table};

/// Prints the scenarios and the guests that each runs in.
pub(crate) fn list() {
    let rows: Vec<[String; 7]> = SCENARIOS.iter().map(row).collect();
    let [first, second, third, fourth] = ROWS.each_ref().map(|row| row.name);
    table(["scenario", first, second, third, fourth, "structures", "shows"], &rows);
    note(
        "*: once; x: with --full. Structures, the daemon's --arch: the first once, both with --full.",
    );
}

fn row(scenario: &Scenario) -> [String; 7] {
    let once = scenario.guests.first();
    let [first, second, third, fourth] = ROWS.each_ref().map(|row| {
        let mark = match scenario.guests.contains(&row.name) {
            true if once == Some(&row.name) => "*",
            true => "x",
            false => "",
        };
        mark.to_owned()
    });
    let structures = match (scenario.set.iommu, scenario.arch.option()) {
        (Iommu::Ours, arch @ "vtd") => format!("{arch}, smmuv3"),
        (Iommu::Ours, arch) => format!("{arch}, vtd"),
        _ => String::new(),
    };
    let (name, about) = (scenario.name.to_owned(), scenario.about.to_owned());
    [name, first, second, third, fourth, structures, about]
}
