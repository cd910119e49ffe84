//! `docs/spec-coverage.md` and the tests name each other; `docs/aux-domains.md` has the sentences of
//! its part.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The rows of the conformance table: how many each of its parts has, in its order. The last are
/// the extension's.
const ROWS: [(&str, usize); 12] = [
    ("F", 3),
    ("C", 4),
    ("I", 1),
    ("O", 6),
    ("A", 8),
    ("D", 4),
    ("M", 7),
    ("U", 5),
    ("P", 7),
    ("R", 1),
    ("E", 4),
    ("AX", 49),
];

/// Modules whose tests are named after the rows that they show.
const NAMED_AFTER_ROWS: [&str; 2] = ["conformance::", "aux::"];

/// Rows that no guest can bring about: their tests are unit tests.
const NOT_OVER_THE_SOCKET: [&str; 1] = ["A7"];

/// A line of the table.
struct Row {
    id: String,
    cells: Vec<String>,
    tests: BTreeSet<String>,
}

/// The lines of the page that begin with a row's id.
fn rows() -> Vec<Row> {
    let page = fs::read_to_string(root().join("docs/spec-coverage.md")).unwrap();
    page.lines().filter_map(row).collect()
}

/// `| id | level | requirement | what we do | tests |`; anything else is no row.
fn row(line: &str) -> Option<Row> {
    let cells: Vec<_> =
        line.strip_prefix('|')?.split('|').map(|cell| cell.trim().to_owned()).collect();
    let number = cells[0].trim_start_matches(|letter: char| letter.is_ascii_uppercase());
    number.parse::<usize>().ok().filter(|_| number.len() < cells[0].len())?;
    assert_eq!(cells.len(), 6, "five cells in {line}");
    let tests = cells[4].split('`').skip(1).step_by(2).map(str::to_owned).collect();
    Some(Row { id: cells[0].clone(), cells: cells[..5].to_vec(), tests })
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The tests of this binary, by its own word.
fn tests_over_the_socket() -> BTreeSet<String> {
    let this = std::env::current_exe().unwrap();
    let output = Command::new(this).args(["--list", "--format", "terse"]).output().unwrap();
    let list = String::from_utf8(output.stdout).unwrap();
    list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

/// Whether `FILE.rs::NAME` is a test of the crate's own.
fn is_unit_test(name: &str) -> bool {
    let Some((file, function)) = name.split_once("::") else { return false };
    let Ok(source) = fs::read_to_string(root().join(file)) else { return false };
    source.contains(&format!("#[test]\n    fn {function}()"))
        || source.contains(&format!("#[test]\nfn {function}()"))
}

/// The rows that a test of this module shows, by its name: `m4_m5_a_map...` shows M4 and M5.
fn rows_in_name(test: &str) -> BTreeSet<String> {
    let (_, name) = test.rsplit_once("::").unwrap();
    let is_row = |word: &&str| {
        let number = word.trim_start_matches(|letter: char| letter.is_ascii_lowercase());
        number.len() < word.len() && number.parse::<usize>().is_ok()
    };
    name.split('_').take_while(is_row).map(str::to_ascii_uppercase).collect()
}

#[test]
fn the_table_has_each_row_of_the_standard_once_and_no_empty_cell() {
    let expected: Vec<_> = ROWS
        .iter()
        .flat_map(|(part, count)| (1..=*count).map(move |number| format!("{part}{number}")))
        .collect();
    let rows = rows();
    assert_eq!(rows.iter().map(|row| row.id.clone()).collect::<Vec<_>>(), expected);
    for Row { id, cells, .. } in rows {
        assert!(cells.iter().all(|cell| !cell.is_empty()), "{id}: {cells:?}");
    }
}

#[test]
fn each_sentence_of_the_page_on_auxiliary_domains_has_its_row() {
    let page = fs::read_to_string(root().join("docs/aux-domains.md")).unwrap();
    let sentences: Vec<_> =
        page.lines().filter_map(|line| line.strip_prefix("- **")?.split_once(".** ")).collect();
    let mut ids: Vec<_> = sentences.iter().map(|(id, _)| (*id).to_owned()).collect();
    ids.sort_by_key(|id| id.trim_start_matches("AX").parse::<usize>().unwrap());
    let rows = rows().into_iter().map(|row| row.id).filter(|id| id.starts_with("AX"));
    assert_eq!(ids, rows.collect::<Vec<_>>());
    assert!(sentences.iter().all(|(_, sentence)| !sentence.is_empty()));
}

#[test]
fn each_row_names_tests_that_exist_and_one_over_the_socket() {
    let over_the_socket = tests_over_the_socket();
    for Row { id, tests, .. } in rows() {
        let (integration, unit): (BTreeSet<_>, BTreeSet<_>) =
            tests.into_iter().partition(|test| over_the_socket.contains(test));
        let unknown: Vec<_> = unit.iter().filter(|test| !is_unit_test(test)).collect();
        assert_eq!(unknown, Vec::<&String>::new(), "{id} names what is no test");
        assert!(!integration.is_empty() || !unit.is_empty(), "{id} has no test");
        let can_not = NOT_OVER_THE_SOCKET.contains(&id.as_str());
        assert_eq!(integration.is_empty(), can_not, "{id}: tests over the socket: {integration:?}");
    }
}

#[test]
fn each_conformance_test_is_named_by_the_rows_in_its_name_and_no_other() {
    let mut named_by: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for Row { id, tests, .. } in rows() {
        for test in tests {
            named_by.entry(test).or_default().insert(id.clone());
        }
    }
    let tests = tests_over_the_socket();
    let here = |test: &&String| {
        NAMED_AFTER_ROWS.iter().any(|module| test.starts_with(module))
            && !test.starts_with("conformance::table::")
    };
    assert_ne!(tests.iter().filter(here).count(), 0);
    for test in tests.iter().filter(here) {
        let expected = rows_in_name(test);
        assert!(!expected.is_empty(), "{test} names no row");
        assert_eq!(named_by.get(test), Some(&expected), "the rows that name {test}");
    }
}
