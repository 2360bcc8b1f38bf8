//! `doctor`: finds out why a client does not connect, or what is wrong with a server's directory.

mod server;

use serde::Serialize;
use twinlock_client::connector::profile_address;
use twinlock_client::doctor::{Outcome, Step, Subject, diagnose};
use twinlock_core::invite::{Address, InviteLink};

use super::join::link_from_stdin;
use crate::args::{DoctorArgs, parse_address};
use crate::blocking::blocking;
use crate::context::Context;
use crate::exit::{Failure, exit_of};
use crate::output::{Output, Style};
use crate::settings::Settings;

/// A link begins with this; an address cannot.
const LINK: &str = "twinlock://";
/// Columns of a step's mark and name.
const NAME: usize = 14;

/// The diagnosis in JSON.
#[derive(Debug, Serialize)]
struct DoctorJson<'a> {
    /// Whether nothing failed.
    ok: bool,
    /// The address of the server, or its data directory.
    server: &'a str,
    /// The first step that failed.
    failed: Option<&'a str>,
    /// The remedy for it.
    remedy: Option<&'a str>,
    steps: &'a [Step],
}

pub(crate) async fn run(args: DoctorArgs, context: &Context) -> Result<(), Failure> {
    if args.data.is_some() {
        let config = Settings::new(args.serve_args(&context.global)?)?.server;
        let shown = config.data.display().to_string();
        let steps = blocking(move || Ok::<_, Failure>(server::examine(config))).await?;
        return report(&context.out, &shown, &steps, args.json);
    }
    let subject = subject(&args, context)?;
    let found = diagnose(&subject, &context.global.route()).await?;
    report(&context.out, &found.server, &found.steps, args.json)
}

/// What to diagnose; `--address`, `--host` and `--port` replace the address or a part of it.
fn subject(args: &DoctorArgs, context: &Context) -> Result<Subject, Failure> {
    let global = &context.global;
    let moved = |known: Address| Ok::<_, Failure>(global.reach(&known)?.unwrap_or(known));
    match args.server.as_deref() {
        None => {
            let profile = context.profile().map_err(|failure| match global.profile {
                Some(_) => failure,
                None => failure
                    .hint("`twinlock doctor ADDRESS` or `twinlock doctor LINK` needs no profile"),
            })?;
            let address = global.reach(&profile_address(&profile)?)?;
            Ok(Subject::Profile(Box::new(profile), address))
        }
        Some(text) if text == "-" || text.trim().starts_with(LINK) => {
            let text = if text == "-" { link_from_stdin()? } else { text.to_owned().into() };
            let mut link = InviteLink::parse(text.trim()).map_err(Failure::usage)?;
            link.address = moved(link.address)?;
            Ok(Subject::Invite(link))
        }
        Some(text) => {
            let address = parse_address(text).map_err(|form| {
                Failure::usage(format!("'{}' is not an address: {form}", text.escape_debug()))
                    .hint("an invite link begins with twinlock:// and is quoted in a shell")
            })?;
            Ok(Subject::Address(moved(address)?))
        }
    }
}

/// Prints the steps. The first failure decides how the command ends.
fn report(out: &Output, server: &str, steps: &[Step], json: bool) -> Result<(), Failure> {
    let failed = steps.iter().find(|step| step.outcome == Outcome::Failed);
    if json {
        out.json(&DoctorJson {
            ok: failed.is_none(),
            server,
            failed: failed.map(|step| step.name),
            remedy: failed.and_then(|step| step.remedy.as_deref()),
            steps,
        })?;
    } else {
        out.line(server)?;
        for step in steps {
            show(out, step)?;
        }
    }
    let Some(step) = failed else { return Ok(()) };
    let exit = exit_of(step.fault.unwrap_or(twinlock_client::error::Fault::Local));
    let failure = Failure::new(exit, format!("{}: {}", step.name, step.text));
    Err(match &step.remedy {
        Some(remedy) => failure.hint(format!("what to do: {remedy}")),
        None => failure,
    })
}

fn show(out: &Output, step: &Step) -> Result<(), Failure> {
    let (mark, style) = match step.outcome {
        Outcome::Ok => ("✓", Style::Good),
        Outcome::Warning => ("!", Style::Warning),
        Outcome::Failed => ("✗", Style::Bad),
        Outcome::NotTried => ("-", Style::Dim),
    };
    let text = match step.outcome {
        Outcome::NotTried => format!("not tried: {}", step.text),
        _ => step.text.clone(),
    };
    let text = out.wrap(&text, NAME, NAME);
    out.line(&format!("{} {:<11} {text}", out.style(style, mark), step.name))?;
    if let (Outcome::Warning, Some(remedy)) = (step.outcome, &step.remedy) {
        out.line(&format!("{:NAME$}{}", "", out.wrap(remedy, NAME, NAME)))?;
    }
    Ok(())
}
