//! Histories as large as a long test makes them: judged with a budget that says that the search hardly
//! ever turned back.

mod common;

use common::{Mix, Workload};
use kvdb_checker::{Options, Verdict, register};

/// A witness that is found without turning back takes one step an operation.
fn assert_judged_in_steps(workload: Workload, steps_per_operation: u64) {
    let history = common::run(&workload);
    let report = register::check(&history, &Options::default());
    assert_eq!(report.verdict(), Verdict::Ok, "{workload:?}: {report}");
    let allowed = workload.operations as u64 * steps_per_operation;
    assert!(report.steps <= allowed, "{workload:?}: {} steps", report.steps);
}

fn large(mix: Mix, keys: u64) -> Workload {
    Workload { operations: 100_000, clients: 64, keys, mix, ..Workload::default() }
}

#[test]
fn a_hundred_thousand_operations_of_64_clients_on_a_hundred_keys() {
    for unknown_percent in [1, 5] {
        assert_judged_in_steps(Workload { unknown_percent, ..large(Mix::Everything, 100) }, 3);
    }
}

#[test]
fn a_hundred_thousand_operations_of_64_clients_on_ten_keys() {
    for mix in [Mix::GetPut, Mix::GetPutDelete, Mix::Everything, Mix::Counter] {
        assert_judged_in_steps(large(mix, 10), 4);
    }
}

#[test]
fn a_hundred_thousand_gets_and_puts_of_64_clients_on_one_key() {
    assert_judged_in_steps(large(Mix::GetPut, 1), 1);
}

#[test]
fn a_hundred_thousand_increments_of_64_clients_on_one_counter() {
    assert_judged_in_steps(large(Mix::Counter, 1), 1);
}

#[test]
fn versions_help_where_values_repeat() {
    let workload = Workload { values: 5, versions: true, ..large(Mix::GetPutDelete, 10) };
    assert_judged_in_steps(workload, 2);
}

#[test]
fn stale_reads_are_found_among_a_hundred_thousand_operations_and_shown_with_few_others() {
    let workload = Workload { stale_reads: 100, ..large(Mix::Everything, 200) };
    let report = register::check(&common::run(&workload), &Options::default());
    assert_eq!(report.verdict(), Verdict::Violated);
    assert!(report.violations.len() >= 3, "{report}");
    assert!(report.undecided.is_empty(), "{report}");
    let sizes: Vec<usize> = report.violations.iter().map(|one| one.operations.len()).collect();
    assert!(sizes.iter().all(|size| *size <= 40), "{sizes:?}");
    assert!(sizes.iter().any(|size| *size <= 6), "{sizes:?}");
}

#[test]
fn a_search_that_goes_on_for_too_long_names_its_key_and_says_nothing_else() {
    let history = common::run(&Workload { keys: 1, ..Workload::default() });
    let report = register::check(&history, &Options { steps_per_key: 10, shortcuts: false });
    assert_eq!(report.verdict(), Verdict::Unknown);
    assert_eq!(report.undecided, ["k0".into()]);
    assert!(report.violations.is_empty());
}
