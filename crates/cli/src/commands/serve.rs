//! `serve`: runs the server, from its first start to the signal that ends it.

use std::net::IpAddr;
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use tracing::level_filters::LevelFilter;
use twinlock_core::invite::{InviteLink, server_words};
use twinlock_server::{
    ConversionProgress, ConversionStage, FILE_ONLY, Server, make_data_directory, process,
};

use crate::ask::is_set;
use crate::exit::Failure;
use crate::invite_text::{join_command, local_only, qr};
use crate::logging::Logs;
use crate::output::Output;
use crate::settings::{ServeArgs, Settings};
use crate::transfer_progress::shows_bars;

/// The guarantees that the origin bridge lacks, printed at every start.
const ORIGIN_WARNING: &str = "\
The origin bridge has one lock and a half. Whoever ends TLS before it (a proxy, or somebody with a \
forged certificate, which the origin's clients do not notice) cannot read messages, but can repeat \
them, and alter those without a MAC; can tell by trying whether one opens, and so read it slowly; \
and whoever has the key reads all that was ever sent under it. Its entries are marked as \
unprotected. Prefer classic connections: `twinlock classic add NAME --to ROOM`.";

/// A progress bar of a conversion, which counts entries.
const CONVERSION_BAR: &str = "{prefix:22} {wide_bar} {percent:>3} % {eta:>5}";

/// When a server was asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServeEnd {
    /// During its start, which may be a conversion, whose thread still runs.
    Starting,
    /// While it ran.
    Running,
}

/// Runs until SIGTERM or SIGINT; a second signal ends it at once.
pub(crate) async fn run(serve: ServeArgs, out: &Output) -> Result<ServeEnd, Failure> {
    let code = serve.qr;
    let Settings { server: mut config, log_level, log_json } = Settings::new(serve)?;
    // Logging starts before the server, so this creates the directory of both.
    let data = make_data_directory(&config.data).map_err(Failure::usage)?;
    config.data.clone_from(&data);
    let color = out.colors_words();
    let file = data.join("server.log");
    let level = LevelFilter::from(log_level);
    let console = Some(if out.is_quiet() { level.min(LevelFilter::WARN) } else { level });
    let log = Logs { file: &file, console, level, json: log_json, color };
    let log = log.start().map_err(|error| {
        Failure::usage(format!("cannot open the log {}: {error}", file.display()))
            .hint("move it away, or name another directory with --data")
    })?;
    if let Err(error) = process::forbid_core_dumps() {
        tracing::warn!(%error, "core dumps could not be turned off");
    }
    if let Err(error) = process::raise_descriptor_limit() {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }

    let failed = |what: std::io::Error| Failure::usage(format!("signals: {what}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;

    let start = Server::start_with_progress(config, conversion_bar(out));
    let started = tokio::select! {
        started = start => started,
        _ = terminate.recv() => return Ok(ServeEnd::Starting),
        _ = interrupt.recv() => return Ok(ServeEnd::Starting),
    };
    let mut server = started.map_err(|error| {
        tracing::error!(target: FILE_ONLY, %error, "not started");
        Failure::usage(error)
    })?;
    out.line(&format!("listening on {}", server.local_addr()))?;
    if let Some(address) = server.plain_addr() {
        out.line(&format!("without TLS on {address}"))?;
    }
    if let Some(address) = server.classic_addr() {
        out.line(&format!("classic connections on {address}"))?;
    }
    if let Some(address) = server.origin_addr() {
        out.line(&format!("origin bridge on {address}"))?;
        out.warn(ORIGIN_WARNING);
    }
    out.say(&format!("server words: {}", server_words(&server.server_key())));
    if let Some(invite) = server.owner_invite() {
        let file = data.join("owner-invite");
        show_owner_invite(out, invite, &file, server.local_addr().ip(), code);
        server.forget_owner_invite();
    }

    loop {
        tokio::select! {
            _ = hangup.recv() => {
                log.now();
                if let Err(error) = server.reload() {
                    tracing::error!(%error, "the old certificate stays");
                }
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tokio::select! {
        ended = server.shutdown() => ended.map(|()| ServeEnd::Running).map_err(Failure::usage),
        _ = terminate.recv() => Err(Failure::interrupted()),
        _ = interrupt.recv() => Err(Failure::interrupted()),
    }
}

/// Shows how far the conversion of an old record is, on a terminal.
fn conversion_bar(out: &Output) -> impl FnMut(ConversionProgress) + Send + 'static + use<> {
    let shown = shows_bars(out.is_quiet());
    let mut bar: Option<(ConversionStage, ProgressBar)> = None;
    move |progress| {
        let ConversionProgress { stage, done, total } = progress;
        if !shown {
            return;
        }
        if bar.as_ref().is_none_or(|(shown, _)| *shown != stage) {
            let name = match stage {
                ConversionStage::Copy => "converting the record",
                ConversionStage::Verify => "verifying it",
            };
            // The template is constant and valid.
            let style = ProgressStyle::with_template(CONVERSION_BAR)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let new = ProgressBar::new(total).with_style(style).with_prefix(name);
            if let Some((_, before)) = bar.replace((stage, new)) {
                before.finish_and_clear();
            }
        }
        if let Some((_, bar)) = &bar {
            bar.set_position(done);
            if done >= total {
                bar.finish_and_clear();
            }
        }
    }
}

/// Shows the invite of a server without an owner. The command that uses it is printed last, so that
/// it is visible on the smallest screen. It has its own line, so that it can be copied.
fn show_owner_invite(
    out: &Output,
    invite: &InviteLink,
    file: &Path,
    listening: IpAddr,
    code: bool,
) {
    // A service's output goes to the system's journal, which others may read.
    if is_set("JOURNAL_STREAM") {
        out.say(&format!("This server has no owner yet; its invite is in {}", file.display()));
        return;
    }
    let link = invite.to_link();
    if code && let Some(code) = qr(&link) {
        out.say_as_is(&code);
    }
    let options = server_options(listening);
    if let Some(words) = local_only(&invite.address, &options, listening.is_ipv6()) {
        out.say(&words);
    } else if listening.is_loopback() {
        out.say(&format!(
            "\nThe server listens on this machine only ({listening}): others reach it through a proxy that \
             runs here, or if you {options}."
        ));
    }
    out.say(&format!(
        "\nThis server has no owner yet. The first person to use this link becomes its owner. The link is a \
         secret, works once and within 48 hours, and is also in {} until it is used. On the \
         owner's machine, run:\n",
        file.display()
    ));
    out.say_as_is(&join_command(&link));
}

/// The options that make a server with this address reachable for others.
fn server_options(listening: IpAddr) -> String {
    if listening.is_unspecified() {
        "start the server with --public-host ADDRESS".to_owned()
    } else {
        let all = if listening.is_ipv6() { "::" } else { "0.0.0.0" };
        format!("start the server with --host {all} --public-host ADDRESS")
    }
}
