//! A failing story is cut down to the faults that it needs. With bugs planted, as none fails
//! otherwise: `cargo test -p kvdb-sim --features planted`.

#![cfg(feature = "planted")]

use kvdb_model::planted::{Bug, plant};
use kvdb_sim::{Chosen, Settings, run_with, shrink};

#[test]
fn a_failure_is_shrunk_to_the_faults_that_it_needs() {
    let settings = Settings::default();
    plant(Some(Bug::AcknowledgeBeforeSync));
    let (seed, first) = (1..=20)
        .find_map(|seed| shrink(seed, &settings, 200).map(|shrunk| (seed, shrunk)))
        .expect("the bug is caught within 20 seeds");
    assert!(first.faults.len() < 5 && first.drawn > 0, "{first:?}");
    let again = shrink(seed, &settings, 200).expect("it fails again");
    assert_eq!((&first.faults, &first.failure.trace), (&again.faults, &again.failure.trace));
    // What it prints replays it, and nothing fails without the bug.
    let chosen = Chosen::Only(first.faults.clone());
    let failure = run_with(seed, &settings, &chosen).expect_err("it fails");
    assert_eq!(failure.what, first.failure.what);
    plant(None);
    run_with(seed, &settings, &chosen).expect("without the bug it goes well");
}
