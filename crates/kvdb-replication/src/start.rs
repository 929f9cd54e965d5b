//! Which start of its own data directory a process is. What is kept of it is written by whoever owns the directory,
//! before anything follows from it.

use crate::starts::{MOST_SHOWN, number_on_copy};

/// How a start follows the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Succession {
    /// The first one, or the same machine since the same boot and the same lock file, which is held:
    /// the process before is gone.
    SamePlace,
    /// The same machine and the same lock file, after a boot: the process before is gone.
    AfterBoot,
    /// Elsewhere: the process before may be alive.
    Elsewhere,
}

/// Where a process runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Since when which machine is up.
    pub boot: u128,
    /// The lock file.
    pub file: u64,
    /// The machine; 0 if it can't be told from others.
    pub machine: u128,
}

impl Place {
    /// How a start here follows one that took part there.
    pub fn follows(&self, before: &Place) -> Succession {
        if *before == Place::default() {
            Succession::SamePlace
        } else if before.file != self.file {
            Succession::Elsewhere
        } else if before.boot == self.boot {
            Succession::SamePlace
        } else if self.machine != 0 && before.machine == self.machine {
            Succession::AfterBoot
        } else {
            Succession::Elsewhere
        }
    }
}

/// A start of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Rises with each of which others may have heard: one that was refused gives its number back.
    pub number: u64,
    /// Drawn for this start.
    pub nonce: u128,
    /// Whether others may have heard of the number.
    pub is_spent: bool,
    /// Nonces of the starts before it, that which was accepted last among them.
    pub shown: Vec<u128>,
    /// The nonce that the coordinators have accepted last.
    pub accepted: u128,
    /// Where it runs. Nothing of what is kept.
    pub here: Place,
    /// Where the last start has run that took part. A start that never did changes nothing: the process that it
    /// follows is the same as before.
    pub heard: Place,
    /// Whether that one has ended in order: no process of it is left.
    pub has_ended: bool,
}

impl Start {
    /// The start after the one that the directory knows, if it knows any.
    pub fn after(before: Option<Start>, nonce: u128, here: Place) -> Self {
        let Some(mut start) = before else {
            let (shown, heard) = (Vec::new(), Place::default());
            return Start {
                number: 1,
                nonce,
                is_spent: false,
                shown,
                accepted: 0,
                here,
                heard,
                has_ended: false,
            };
        };
        let number = start.number + u64::from(start.is_spent);
        start.shown.push(start.nonce);
        if start.shown.len() > MOST_SHOWN {
            let oldest = start.shown.iter().position(|nonce| *nonce != start.accepted);
            start.shown.remove(oldest.unwrap_or_default());
        }
        Start { number, nonce, is_spent: false, here, ..start }
    }

    /// How it follows the last one that took part.
    pub fn succession(&self) -> Succession {
        self.here.follows(&self.heard)
    }

    /// Others are to turn older starts away for it, from now on. Returns whether that is news to be kept.
    pub fn spends_number(&mut self) -> bool {
        !std::mem::replace(&mut self.is_spent, true)
    }

    /// Somebody has accepted the directory as the `count`th older copy.
    pub fn is_on_copy(&mut self, count: u64) {
        self.number = number_on_copy(self.number, count);
    }

    /// It takes part from now on; `accepted` by the coordinators, or by the word of others alone.
    pub fn takes_part(&mut self, accepted: bool) {
        self.heard = self.here;
        self.is_spent = true;
        self.has_ended = false;
        if accepted {
            self.accepted = self.nonce;
        }
    }

    /// The place where it runs, for others to compare.
    pub fn place(&self) -> u128 {
        self.here.boot ^ u128::from(self.here.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_of_the_same_machine_is_told_from_another_machine() {
        let place = |boot, file, machine| Place { boot, file, machine };
        let here = place(2, 5, 7);
        assert_eq!(here.follows(&Place::default()), Succession::SamePlace);
        assert_eq!(here.follows(&place(2, 5, 7)), Succession::SamePlace);
        assert_eq!(here.follows(&place(1, 5, 7)), Succession::AfterBoot);
        assert_eq!(here.follows(&place(1, 5, 8)), Succession::Elsewhere);
        assert_eq!(here.follows(&place(2, 6, 7)), Succession::Elsewhere);
        // A machine without a name of its own may be any.
        assert_eq!(place(2, 5, 0).follows(&place(1, 5, 0)), Succession::Elsewhere);
    }
}
