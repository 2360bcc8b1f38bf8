//! Arguments of `doctor`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Command, FromArgMatches as _};

use super::common::GlobalArgs;
use super::parse::adapt;
use crate::exit::Failure;
use crate::settings::ServeArgs;

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// The server: an address, or an invite link, which stays unused (`-` reads one from standard
    /// input) [default: the profile's server]
    #[arg(value_name = "ADDRESS|LINK")]
    pub(crate) server: Option<String>,
    /// Check a server's data directory on this machine instead; its owner runs this
    #[arg(long, value_name = "DIR", conflicts_with = "server")]
    pub(crate) data: Option<PathBuf>,
    /// With --data: the server's configuration file, for its ports and limits. As for `serve`,
    /// options and TWINLOCK_* variables take precedence
    #[arg(long, value_name = "FILE", requires = "data")]
    pub(crate) config: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl DoctorArgs {
    /// The settings of the server whose directory `--data` names, as `serve` takes them: these
    /// options, else the environment.
    ///
    /// # Errors
    /// A variable has a value that `serve` refuses.
    pub(crate) fn serve_args(&self, global: &GlobalArgs) -> Result<ServeArgs, Failure> {
        let port = global.port.map(|port| port.to_string().into());
        let options: [(&str, Option<OsString>); 4] = [
            ("--data", self.data.clone().map(Into::into)),
            ("--config", self.config.clone().map(Into::into)),
            ("--host", global.host.clone().map(Into::into)),
            ("--port", port),
        ];
        let given = options.into_iter().filter_map(|(option, value)| Some([option.into(), value?]));
        let serve = adapt(ServeArgs::augment_args(Command::new("serve").no_binary_name(true)));
        let parsed = serve.try_get_matches_from(given.flatten());
        parsed.and_then(|matches| ServeArgs::from_arg_matches(&matches)).map_err(|error| {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            let problem = line.strip_prefix("error: ").unwrap_or(line);
            Failure::usage(format!("the settings of `serve` in the environment: {problem}"))
                .hint("`twinlock serve --help` lists the variables")
        })
    }
}
