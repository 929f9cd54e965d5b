//! Operations as people read them.

use crate::data::Data;
use crate::history::{Answer, Call, Condition, Operation, Outcome, Previous, Step, Written};
use std::fmt;

/// Writes a table of operations, in the order of their calls.
pub(crate) fn write_table(f: &mut fmt::Formatter<'_>, operations: &[Operation]) -> fmt::Result {
    let mut rows: Vec<&Operation> = operations.iter().collect();
    rows.sort_by_key(|operation| (operation.called, operation.id));
    writeln!(f, "  {:>12} {:>12} {:>8} {:>8}  operation", "called", "returned", "op", "client")?;
    for operation in rows {
        let returned = match &operation.outcome {
            Outcome::Returned { time, .. } => time.to_string(),
            Outcome::Unknown => "unknown".into(),
            Outcome::Failed => "failed".into(),
        };
        let (called, op, client) = (operation.called.0, operation.id.0, operation.client.0);
        write!(f, "  {called:>12} {returned:>12} {op:>8} {client:>8}  {}", operation.call)?;
        match operation.returned() {
            Some((_, answer)) => writeln!(f, " -> {answer}")?,
            None => writeln!(f)?,
        }
    }
    Ok(())
}

struct When<'a>(&'a Option<Condition>);

impl fmt::Display for When<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => Ok(()),
            Some(Condition::IfAbsent) => f.write_str(" if absent"),
            Some(Condition::IfPresent) => f.write_str(" if present"),
            Some(Condition::IfValue(value)) => write!(f, " if {value}"),
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Call::Get { key } => write!(f, "get {key}"),
            Call::Put { key, value, condition } => {
                write!(f, "put {key} = {value}{}", When(condition))
            }
            Call::Delete { key, condition } => write!(f, "delete {key}{}", When(condition)),
            Call::Increment { key, delta, condition } => {
                write!(f, "increment {key} by {delta}{}", When(condition))
            }
            Call::Add { key, element } => write!(f, "add {element} to {key}"),
            Call::Members { key } => write!(f, "members of {key}"),
            Call::Transaction { steps } => {
                for (place, step) in steps.iter().enumerate() {
                    let comma = if place == 0 { "" } else { ", " };
                    match step {
                        Step::Append { key, element } => {
                            write!(f, "{comma}append {element} to {key}")?;
                        }
                        Step::Read { key } => write!(f, "{comma}read {key}")?,
                    }
                }
                Ok(())
            }
        }
    }
}

/// A value, or that there is none.
pub(crate) struct Held<'a>(pub(crate) Option<&'a Data>);

impl fmt::Display for Held<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("absent"),
            Some(value) => fmt::Display::fmt(value, f),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Got { value, version } => {
                Held(value.as_ref()).fmt(f)?;
                version.map_or(Ok(()), |version| write!(f, ", version {version}"))
            }
            Answer::Written(Written { applied, previous, counter, version }) => {
                f.write_str(match applied {
                    Some(true) => "applied",
                    Some(false) => "not applied",
                    None => "done",
                })?;
                match previous {
                    None => {}
                    Some(Previous::Absent) => f.write_str(", was absent")?,
                    Some(Previous::Value(value)) => write!(f, ", was {value}")?,
                }
                if let Some(counter) = counter {
                    write!(f, ", now {counter}")?;
                }
                version.map_or(Ok(()), |version| write!(f, ", version {version}"))
            }
            Answer::WrongValue => f.write_str("refused: not a number, or too large"),
            Answer::Done => f.write_str("done"),
            Answer::Members(elements) => write_elements(f, elements),
            Answer::Lists(lists) => {
                for (place, list) in lists.iter().enumerate() {
                    f.write_str(if place == 0 { "" } else { ", " })?;
                    write_elements(f, list)?;
                }
                Ok(())
            }
        }
    }
}

/// Elements, cut after the last 16: lists grow at the end.
fn write_elements(f: &mut fmt::Formatter<'_>, elements: &[crate::history::Element]) -> fmt::Result {
    let skipped = elements.len().saturating_sub(16);
    f.write_str("[")?;
    if skipped > 0 {
        write!(f, "… {skipped} more, ")?;
    }
    for (place, element) in elements[skipped..].iter().enumerate() {
        f.write_str(if place == 0 { "" } else { ", " })?;
        write!(f, "{element}")?;
    }
    f.write_str("]")
}
