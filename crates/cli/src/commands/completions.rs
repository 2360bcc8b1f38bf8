//! `completions`: a completion script, generated from the definition of the command line.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::Cli;
use crate::exit::Failure;
use crate::output::Output;

/// Prints a completion script.
pub(crate) fn run(shell: Shell, out: &Output) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "twinlock", &mut script);
    Ok(out.lines(&String::from_utf8_lossy(&script))?)
}
