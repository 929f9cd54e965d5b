//! Commands on HyperLogLogs.

use crate::args::Planned;
use crate::plan::{Plan, change};
use crate::reply::Reply;
use crate::strings::integer_of;
use bytes::Bytes;
use kvdb_store::hyperloglog::{Add, Count, Merge};

pub(crate) fn pfadd(args: &[Bytes]) -> Planned {
    Ok(Plan::write(args[1].clone(), &Add { elements: args[2..].to_vec() }, integer_of))
}

pub(crate) fn pfcount(args: &[Bytes]) -> Planned {
    let step = change(args[1].clone(), &Count).and(args[2..].to_vec());
    Ok(Plan::one(step, |result, _| integer_of(result)))
}

pub(crate) fn pfmerge(args: &[Bytes]) -> Planned {
    let step = change(args[1].clone(), &Merge).and(args[2..].to_vec());
    Ok(Plan::one(step, |_, _| Reply::OK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::refused;
    use kvdb_model::{Refusal, wrong_value};

    fn words(line: &str) -> Vec<Bytes> {
        line.split(' ').map(|word| Bytes::from(word.to_owned())).collect()
    }

    #[test]
    fn all_keys_are_in_one_step() {
        for plan in [pfcount(&words("pfcount a b c")), pfmerge(&words("pfmerge a b c"))] {
            let steps = plan.unwrap_or_else(|_| panic!("it is well-formed")).steps;
            let [step] = &steps[..] else { panic!("{steps:?}") };
            assert_eq!((&step.key[..], &step.others[..]), (&b"a"[..], &words("b c")[..]));
        }
    }

    #[test]
    fn what_is_wrong_is_told_in_the_words_of_redis() {
        for (why, shown) in [
            (
                wrong_value::NOT_A_HYPERLOGLOG,
                "WRONGTYPE Key is not a valid HyperLogLog string value.",
            ),
            (wrong_value::DAMAGED_HYPERLOGLOG, "INVALIDOBJ Corrupted HLL object detected"),
        ] {
            assert_eq!(refused(&Refusal::WrongValue(why)), Reply::Error(shown.to_owned()));
        }
    }
}
