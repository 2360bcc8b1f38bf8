//! Parses the command line so that text from a script is never taken for an option.

use std::ffi::OsString;
use std::io::{self, Write as _};

use clap::error::ErrorKind;
use clap::{Arg, ArgMatches, Command, CommandFactory as _, Error, FromArgMatches as _};

use super::command::Cli;
use super::text_argument::ESCAPE;
use crate::exit::Failure;
use crate::output::{Gone, check_open, write_words};

/// Parses the command line of this process; exits after printing help or a usage error.
pub(crate) fn parse() -> Cli {
    let words: Vec<OsString> = std::env::args_os().collect();
    let parsed = try_parse(words).and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.unwrap_or_else(|error| {
        let code = match print(&error) {
            Ok(()) => error.exit_code(),
            Err(failed) => {
                let failure = Failure::from(failed);
                if !failure.message.is_empty() {
                    write_words(&format!("twinlock: {}", failure.message));
                }
                failure.exit as i32
            }
        };
        std::process::exit(code)
    })
}

/// Prints help, the version or a usage error. Help that cannot be written is a failure.
fn print(error: &Error) -> Result<(), Gone> {
    if error.use_stderr() {
        // A failure to write to standard error cannot be reported anywhere.
        let _gone = error.print();
        return Ok(());
    }
    check_open()?;
    error.print()?;
    Ok(io::stdout().flush()?)
}

fn try_parse(words: Vec<OsString>) -> Result<ArgMatches, Error> {
    let mut command = adapt(Cli::command());
    // `put "$FILE" "$ROOM"` sends nothing if one of them is `-h`, and must not exit with success.
    let asked = asks_for_help(&command, &words);
    command.try_get_matches_from_mut(words).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion if !asked => command.error(
            ErrorKind::UnknownArgument,
            "-h, --help and --version come last, right after the command and its options; a name or \
             text that begins with '-' goes after '--'",
        ),
        _ => error,
    })
}

/// Whether help or the version is requested: last, and before any argument of a command.
fn asks_for_help(command: &Command, words: &[OsString]) -> bool {
    let mut command = command;
    let mut words = words.iter().skip(1).map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        if matches!(&*word, "-h" | "--help" | "-V" | "--version") {
            return words.next().is_none();
        }
        if word == ESCAPE {
            return false;
        }
        if let Some(option) = word.strip_prefix('-') {
            let named = |arg: &&Arg| match option.strip_prefix('-') {
                Some(long) => arg.get_long() == Some(long),
                None => {
                    arg.get_short().is_some_and(|short| option == short.encode_utf8(&mut [0; 4]))
                }
            };
            let takes = |arg: &Arg| arg.get_action().takes_values();
            if command.get_arguments().find(named).is_some_and(takes) {
                words.next();
            }
        } else if let Some(found) = command.find_subcommand(&*word) {
            command = found;
        } else {
            return word == "help" && command.has_subcommands();
        }
    }
    false
}

/// Lets option values begin with `-`, and treats empty environment variables as unset.
pub(super) fn adapt(command: Command) -> Command {
    let command = command.mut_args(adapt_arg);
    command.mut_subcommands(adapt)
}

fn adapt_arg(arg: Arg) -> Arg {
    let unset = arg
        .get_env()
        .is_some_and(|name| std::env::var_os(name).is_some_and(|value| value.is_empty()));
    let arg = if unset { arg.env(None::<&'static str>) } else { arg };
    let optional = arg.get_num_args().is_some_and(|values| values.min_values() == 0);
    if arg.is_positional() || optional || !arg.get_action().takes_values() {
        arg
    } else {
        arg.allow_hyphen_values(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn args__help_is_recognized_only_without_arguments() {
        let command = adapt(Cli::command());
        let asked = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            asks_for_help(&command, &words)
        };
        for line in [
            "twinlock -h",
            "twinlock --version",
            "twinlock help send",
            "twinlock send --help",
            "twinlock room help create",
            "twinlock room create -h",
            "twinlock --profile work -q send -h",
        ] {
            assert!(asked(line), "{line}");
        }
        for line in [
            "twinlock put a.pdf -h",
            "twinlock put -- -h",
            "twinlock put -h ops",
            "twinlock send help -h",
            "twinlock put help ops",
            "twinlock send ops --version",
        ] {
            assert!(!asked(line), "{line}");
        }
    }
}
