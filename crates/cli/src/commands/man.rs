//! `man`: manual pages, generated from the definition of the command line.

use std::path::Path;

use clap::CommandFactory as _;

use crate::args::Cli;
use crate::exit::Failure;

/// Writes a page for each command.
pub(crate) fn run(dir: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
        .map_err(|error| Failure::usage(format!("{}: {error}", dir.display())))
}
