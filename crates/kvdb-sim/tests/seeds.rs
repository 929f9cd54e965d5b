//! A few seeds with every test run; `make sim` tells many more.

use kvdb_sim::{Settings, run};

#[test]
fn random_worlds_keep_their_promises() {
    for seed in 1..=12 {
        let settings = Settings { storm_s: 12, calm_s: 8, traces: false };
        match run(seed, &settings) {
            Ok(report) => {
                // A story in which little happens proves little.
                assert!(report.succeeded > 1000, "seed {seed}: {} answers", report.succeeded);
                assert!(report.faults.values().sum::<u64>() > 5, "seed {seed}: too calm");
            }
            Err(failure) => {
                let end = failure.trace.len().saturating_sub(60);
                panic!(
                    "{}\nseed {seed} failed: {}\nreplay: make sim SEED={seed}",
                    failure.trace[end..].join("\n"),
                    failure.what
                );
            }
        }
    }
}

#[test]
fn the_same_seed_tells_the_same_story() {
    let settings = Settings { storm_s: 6, calm_s: 4, traces: true };
    let (first, second) = (run(7, &settings).unwrap(), run(7, &settings).unwrap());
    assert!(first.trace.len() > 20, "{} lines", first.trace.len());
    assert_eq!(first, second);
    assert_ne!(first.digest, run(8, &settings).unwrap().digest);
}
