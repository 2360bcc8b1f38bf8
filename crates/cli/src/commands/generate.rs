//! Completion scripts and manual pages, generated from the definition of the command line.

use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::Cli;
use crate::exit::Failure;
use crate::output::Output;

/// Prints a completion script.
pub(crate) fn completions(shell: Shell, out: &Output) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "twinlock", &mut script);
    Ok(out.lines(&String::from_utf8_lossy(&script))?)
}

/// Writes a page for each command.
pub(crate) fn manual(dir: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
        .map_err(|error| Failure::usage(format!("{}: {error}", dir.display())))
}
