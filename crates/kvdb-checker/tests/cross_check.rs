//! The search against a judge that is too simple to be wrong: it tries every order.

mod common;

use common::{Dice, Mix, Workload};
use kvdb_checker::register::ViolationKind;
use kvdb_checker::{
    Answer, Call, Condition, Data, History, Operation, Options, Outcome, Previous, Verdict,
    Written, register,
};
use proptest::prelude::*;

/// Whether some order of some of the operations explains all answers: all that returned, and any
/// of unknown outcome.
fn is_linearizable_by_trying_all(operations: &[Operation]) -> bool {
    let mut taken = vec![false; operations.len()];
    extend(operations, &mut taken, None)
}

fn extend(operations: &[Operation], taken: &mut [bool], held: Option<Data>) -> bool {
    let done =
        |place: usize, taken: &[bool]| taken[place] || operations[place].returned().is_none();
    if (0..operations.len()).all(|place| done(place, taken)) {
        return true;
    }
    for place in 0..operations.len() {
        let one = &operations[place];
        let overtakes = (0..operations.len()).any(|other| {
            let returned = operations[other].returned();
            !taken[other] && returned.is_some_and(|(time, _)| time < one.called)
        });
        if taken[place] || overtakes {
            continue;
        }
        if let Some(after) = carry_out(one, held.clone()) {
            taken[place] = true;
            if extend(operations, taken, after) {
                return true;
            }
            taken[place] = false;
        }
    }
    false
}

/// What is there afterwards, if the answer could be given. Written anew, not shared with the checker.
fn carry_out(operation: &Operation, held: Option<Data>) -> Option<Option<Data>> {
    let answer = operation.returned().map(|(_, answer)| answer);
    let number = held.as_ref().map_or(Some(0), Data::as_number);
    let (condition, new) = match &operation.call {
        Call::Get { .. } => {
            let fits = match answer {
                Some(Answer::Got { value, .. }) => *value == held,
                _ => true,
            };
            return fits.then_some(held);
        }
        Call::Put { value, condition, .. } => (condition, Ok(Some(value.clone()))),
        Call::Delete { condition, .. } => (condition, Ok(None)),
        Call::Increment { delta, condition, .. } => {
            let sum = number.and_then(|number| number.checked_add(*delta));
            (condition, sum.map(|sum| Some(Data::from(sum.to_string()))).ok_or(()))
        }
        _ => unreachable!("only plain keys"),
    };
    let holds = match condition {
        None => true,
        Some(Condition::IfAbsent) => held.is_none(),
        Some(Condition::IfPresent) => held.is_some(),
        Some(Condition::IfValue(value)) => held.as_ref() == Some(value),
    };
    let deletes_nothing = new == Ok(None) && held.is_none();
    let wrong = holds && new.is_err();
    let applied = holds && !wrong && !deletes_nothing;
    let after = if applied { new.ok()? } else { held.clone() };
    let fits = match answer {
        None => true,
        Some(Answer::WrongValue) => wrong,
        Some(Answer::Written(Written { applied: told, previous, counter, .. })) => {
            let was = held.map_or(Previous::Absent, Previous::Value);
            let is_increment = matches!(operation.call, Call::Increment { .. });
            let sum = after.as_ref().and_then(Data::as_number).filter(|_| applied && is_increment);
            !wrong
                && told.is_none_or(|told| told == applied)
                && previous.as_ref().is_none_or(|told| *told == was)
                && counter.is_none_or(|told| Some(told) == sum)
        }
        Some(_) => false,
    };
    fits.then_some(after)
}

fn verdict(history: &History, shortcuts: bool) -> Verdict {
    register::check(history, &Options { shortcuts, ..Options::default() }).verdict()
}

fn agrees_with_trying_all(history: &History) -> Result<bool, TestCaseError> {
    let expected = is_linearizable_by_trying_all(history.operations());
    let expected_verdict = if expected { Verdict::Ok } else { Verdict::Violated };
    prop_assert_eq!(verdict(history, true), expected_verdict, "with shortcuts: {:#?}", history);
    prop_assert_eq!(verdict(history, false), expected_verdict, "without: {:#?}", history);
    Ok(expected)
}

fn tells_what_it_left(operation: &Operation) -> bool {
    match operation.returned() {
        Some((_, Answer::Written(written))) => {
            written.applied == Some(false) || written.counter.is_some()
        }
        Some((_, Answer::WrongValue)) => true,
        _ => false,
    }
}

fn small_workload() -> impl Strategy<Value = Workload> {
    let mix = prop_oneof![
        Just(Mix::GetPut),
        Just(Mix::GetPutDelete),
        Just(Mix::Everything),
        Just(Mix::Counter)
    ];
    (any::<u64>(), 1usize..9, 1u64..5, 0u64..4, 0u64..50, mix, any::<bool>()).prop_map(
        |(seed, operations, clients, values, unknown_percent, mix, versions)| Workload {
            seed,
            operations,
            clients,
            keys: 1,
            values,
            unknown_percent,
            mix,
            versions,
            stale_reads: 0,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_a_right_store_answers_is_linearizable(workload in small_workload()) {
        let history = common::run(&workload);
        prop_assert!(agrees_with_trying_all(&history)?);
    }

    #[test]
    fn spoilt_answers_are_judged_as_by_trying_all(workload in small_workload(), spoils in 1u32..3) {
        let mut dice = Dice(workload.seed ^ 0xdead_beef);
        let mut history = common::run(&workload);
        for _ in 0..spoils {
            history = common::spoil(&history, &mut dice);
        }
        agrees_with_trying_all(&history)?;
    }

    #[test]
    fn the_operations_of_a_report_contradict_each_other_by_themselves(workload in small_workload()) {
        let mut dice = Dice(workload.seed ^ 0xfeed);
        let history = common::spoil(&common::run(&workload), &mut dice);
        let report = register::check(&history, &Options::default());
        for violation in &report.violations {
            prop_assert!(!violation.operations.is_empty());
            // Treat all others as of unknown outcome: that only permits more. What was over before is
            // left alone; those that say what they left, or that they left nothing, are believed.
            let by_search = matches!(violation.kind, ViolationKind::NoOrder { .. });
            let blamed = &violation.operations;
            let first = blamed.iter().filter_map(|one| Some(one.returned()?.0)).min();
            let mut operations = history.operations().to_vec();
            for one in &mut operations {
                let is_blamed = blamed.iter().any(|other| other.id == one.id);
                let is_over = one.returned().map(|(time, _)| time) < first;
                let is_believed = tells_what_it_left(one) || by_search && is_over;
                if !is_blamed && !is_believed {
                    one.outcome = Outcome::Unknown;
                }
            }
            prop_assert!(!is_linearizable_by_trying_all(&operations), "{}", report);
        }
    }
}

#[test]
fn spoiling_makes_both_right_and_wrong_histories() {
    let (mut right, mut wrong) = (0, 0);
    for seed in 0..500 {
        let workload =
            Workload { seed, operations: 6, clients: 3, keys: 1, values: 3, ..Workload::default() };
        let history = common::spoil(&common::run(&workload), &mut Dice(seed));
        if is_linearizable_by_trying_all(history.operations()) {
            right += 1;
        } else {
            wrong += 1;
        }
    }
    assert!(right > 50 && wrong > 50, "right {right}, wrong {wrong}");
}
