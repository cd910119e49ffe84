//! A daemon and device processes, honest, stuck, killed and hostile.
//!
//! The program starts itself again as the device: `processes device ROLE SOCKET`.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod device;
mod hostile;
mod marks;
mod tests;
mod witness;

use std::time::Instant;

use hostile::{reconnects, tests as hostile_tests};

/// A test, by its claim.
type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("a_process_killed_inside_a_section_delays_nobody", tests::killed_inside_a_section),
    ("a_process_killed_during_a_drain_ends_the_wait_at_once", tests::killed_during_a_drain),
    ("a_stuck_process_is_killed_at_the_bound_and_gone_after_it", tests::stuck_and_killed),
    ("a_killed_process_may_be_replaced_at_once", tests::replaced_after_kill),
    ("a_forgotten_pin_counts_as_stuck", tests::pinned_and_killed),
    ("forged_slots_delay_one_drain_up_to_the_bound_and_no_other", hostile_tests::forged_slots),
    ("one_that_never_leaves_delays_one_drain_up_to_the_bound", hostile_tests::never_leaves),
    ("forged_rings_and_floods_cost_bounded_work", hostile_tests::forged_rings),
    ("forged_faults_are_told_of_the_connections_endpoint_only", hostile_tests::forged_faults),
    ("a_flooded_doorbell_delays_nobody", hostile_tests::flooded_doorbell),
    ("a_device_that_hears_no_answer_is_refused_and_no_other_is", hostile_tests::flooded_questions),
    ("a_device_cannot_write_tables_by_any_way", hostile_tests::tables_are_read_only),
    ("a_doorbell_made_blocking_does_not_block_the_daemon", hostile_tests::blocking_doorbell),
    ("two_thousand_connections_leave_nothing_behind", reconnects::a_thousand_times),
    ("translating_makes_no_system_call", tests::no_system_calls),
    ("marks_of_a_page_are_never_seen_after_its_unmap_was_drained", marks::no_stale_access),
    ("marks_of_a_page_are_seen_if_unmaps_are_not_drained", marks::without_drains),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [device, role, socket] = arguments.as_slice()
        && device == "device"
    {
        return device::run(role, socket.as_ref());
    }
    if arguments.iter().any(|argument| argument == "--list") {
        return TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with("--"));
    let chosen =
        TESTS.iter().filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter.as_str())));
    let mut failed = 0;
    for (name, test) in chosen {
        let start = Instant::now();
        let passed = std::panic::catch_unwind(test).is_ok();
        println!(
            "test {name} ... {} ({:.2?})",
            if passed { "ok" } else { "FAILED" },
            start.elapsed()
        );
        failed += u8::from(!passed);
    }
    if failed > 0 {
        eprintln!("{failed} failed");
        std::process::exit(1);
    }
}
