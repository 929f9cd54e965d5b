//! Asking before something is done that can't be taken back.

use crate::exit::Failure;
use std::io::{self, IsTerminal as _, Write as _};

/// The flag of commands that ask.
#[derive(clap::Args, Clone, Copy)]
pub(crate) struct Confirmation {
    /// Skip confirmation
    #[arg(long)]
    pub(crate) yes: bool,
}

impl Confirmation {
    /// Says what will happen and asks, on a terminal. Elsewhere nobody can answer: then `--yes` is
    /// needed.
    pub(crate) fn ask(self, what: &str) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::Refused(format!(
                "{what}\nNothing was done: confirm it with --yes, or run it on a terminal"
            )));
        }
        eprint!("{what}\nType yes to go on: ");
        let read = io::stderr().flush().and_then(|()| {
            let mut answer = String::new();
            io::stdin().read_line(&mut answer).map(|_| answer)
        });
        match read {
            Ok(answer) if answer.trim() == "yes" => Ok(()),
            Ok(_) => Err(Failure::Refused("nothing was done".to_owned())),
            Err(error) => Err(Failure::Refused(format!("nothing was done: {error}"))),
        }
    }
}
