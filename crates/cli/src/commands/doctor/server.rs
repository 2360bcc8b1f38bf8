//! `doctor --data`: the state of a server's directory and machine.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use twinlock_client::doctor::Step;
use twinlock_client::error::Fault;
use twinlock_server::inspect::{self, PortCheck, RecordState, Room};
use twinlock_server::{Config, process};

/// A certificate that ends sooner is worth a warning.
const SOON: Duration = Duration::from_secs(14 * DAY);
const DAY: u64 = 86_400;
/// Descriptors of files, listeners and the record, besides those of connections.
const OTHER_DESCRIPTORS: u64 = 64;
/// The clock of no running machine is before this: 2025-01-01.
const PLAUSIBLE: Duration = Duration::from_secs(1_735_689_600);
const MIB: u64 = 1 << 20;

/// Checks everything that a start needs.
pub(super) fn examine(mut config: Config) -> Vec<Step> {
    let mut steps = Vec::new();
    let failed = |name, text: String| Step::failed(name, Fault::Local, text);
    match inspect::directory(&config.data) {
        Ok(None) => {
            let text = format!("{} does not exist; `serve` creates it", config.data.display());
            return vec![
                failed("directory", text).remedy("name the server's directory: --data DIR"),
            ];
        }
        Ok(Some((data, open))) => {
            config.data = data;
            steps.push(permissions(&config, &open));
        }
        Err(error) => {
            steps.push(failed("directory", error).remedy(
                "run this as the server's user; the directory belongs to it, with mode 700",
            ))
        }
    }
    let certificate = match inspect::read_identity(&config) {
        Ok(Some(certificate)) => {
            let text = format!("setup and TLS key are readable; pin {}", certificate.pin());
            steps.push(Step::ok("identity", text).fact("pin", certificate.pin().to_string()));
            Some(certificate)
        }
        Ok(None) => {
            steps.push(Step::warning("identity", "none yet; the first start creates it"));
            None
        }
        Err(error) => {
            steps.push(failed("identity", error).remedy(
                "restore the identity directory from a backup (docs/operating.md, \"A part of the \
                 directory is missing\")",
            ));
            None
        }
    };
    let record = inspect::record(&config.data);
    let is_running = matches!(record, Ok(RecordState::InUse));
    steps.push(
        match record {
            Ok(RecordState::Good) => Step::ok(
                "record",
                "the quick check found no fault; `twinlock records check` reads all of it",
            ),
            Ok(RecordState::InUse) => Step::ok(
                "record",
                "a running server holds its lock and checked it at its start; not read again",
            ),
            Ok(RecordState::Old(room)) => old_form(room),
            Ok(RecordState::Missing) => {
                Step::warning("record", "none yet; the first start creates it")
            }
            Err(error) => failed("record", error).remedy(
                "restore the record from a backup (docs/operating.md, \"Backup and restore\")",
            ),
        }
        .fact("running", is_running),
    );
    steps.push(match certificate {
        Some(certificate) => validity(&certificate.expires_at(), certificate.is_self_issued()),
        None => Step::not_tried("certificate", "there is no identity"),
    });
    steps.extend(inspect::addresses(&config).into_iter().map(|at| port(at, is_running)));
    steps.push(descriptors(&config));
    steps.push(disk(&config));
    steps.push(clock(&config));
    steps
}

/// A record of version 0.1.
fn old_form(Room { needed, available }: Room) -> Step {
    let (needs, free) = (needed.div_ceil(MIB), available / MIB);
    let text = format!(
        "it has the form of version 0.1; the next start converts it, which takes up to {needs} MiB"
    );
    let step = match available < needed {
        true => Step::failed("record", Fault::Local, format!("{text}, and {free} MiB are free"))
            .remedy("make room on the disk of the directory"),
        false => Step::ok("record", format!("{text} of the {free} MiB that are free")),
    };
    step.fact("needed", needed).fact("free", available)
}

fn permissions(config: &Config, open: &[PathBuf]) -> Step {
    let data = config.data.display();
    if open.is_empty() {
        return Step::ok("directory", format!("{data}, private to this user"));
    }
    let paths: Vec<_> = open.iter().map(|path| path.display().to_string()).collect();
    Step::warning("directory", format!("other users have access to {}", paths.join(", "))).remedy(
        format!("`chmod -R go-rwx {data}`; the server does it for secrets at its next start"),
    )
}

fn validity(ends: &SystemTime, is_self_issued: bool) -> Step {
    const NAME: &str = "certificate";
    let now = SystemTime::now();
    let days = |time: Duration| time.as_secs() / DAY;
    match ends.duration_since(now) {
        Err(past) => {
            let text = format!("it expired {} days ago", days(past.duration()));
            Step::failed(NAME, Fault::Local, text).remedy(if is_self_issued {
                "restart the server, which renews it; check the clock"
            } else {
                "renew it with the tool that made it, then send SIGHUP to the server"
            })
        }
        Ok(left) if left < SOON => {
            let text = format!("it ends in {} days", days(left));
            Step::warning(NAME, text).remedy(if is_self_issued {
                "a running server renews it by itself: see its log for the reason if it does not"
            } else {
                "renew it with the tool that made it, then send SIGHUP to the server"
            })
        }
        Ok(left) => Step::ok(NAME, format!("valid for another {} days", days(left)))
            .fact("days_left", days(left)),
    }
}

fn port((option, at): (&'static str, std::net::SocketAddr), is_running: bool) -> Step {
    const NAME: &str = "port";
    let step = match inspect::port(at) {
        _ if at.port() == 0 => Step::ok(NAME, format!("{at}: the system chooses a free one")),
        Ok(PortCheck::Free) if is_running => Step::warning(
            NAME,
            format!("{at} is free, although a server with this directory is running: it listens elsewhere"),
        )
        .remedy(format!("name the server's settings: --config FILE, or --port N ({option})")),
        Ok(PortCheck::Free) => Step::ok(NAME, format!("{at} is free")),
        Ok(PortCheck::Taken) if is_running => {
            Step::ok(NAME, format!("{at} is in use, as it is while the server runs"))
        }
        Ok(PortCheck::Taken) => Step::failed(
            NAME,
            Fault::Local,
            format!("{at} is in use by another program, since no server runs with this directory"),
        )
        .remedy(format!("end that program (`ss -ltnp`), or take another port with {option}")),
        Err(error) => Step::failed(NAME, Fault::Local, format!("{at} cannot be used: {error}"))
            .remedy("use an address of this machine, and a port above 1023 without privileges"),
    };
    step.fact("option", option).fact("address", at.to_string())
}

fn descriptors(config: &Config) -> Step {
    let needed = inspect::unauthenticated(config) + OTHER_DESCRIPTORS;
    let limit = process::descriptor_limit();
    let step = match limit {
        Some(limit) if limit < 2 * needed => Step::warning(
            "descriptors",
            format!(
                "the limit of open files is {limit}; connections before login take up to {needed}, \
                 and each session takes one"
            ),
        )
        .remedy("raise it: `ulimit -Hn`, or LimitNOFILE in the systemd unit"),
        Some(limit) => Step::ok("descriptors", format!("at most {limit} open files")),
        None => Step::ok("descriptors", "no limit of open files"),
    };
    step.fact("limit", limit)
}

fn disk(config: &Config) -> Step {
    let disk = match inspect::disk(config) {
        Ok(disk) => disk,
        Err(error) => {
            return Step::failed(
                "disk",
                Fault::Local,
                format!("its free space is unknown: {error}"),
            );
        }
    };
    let (free, reserve) = (disk.free / MIB, disk.reserve / MIB);
    let text = format!("{free} MiB free; messages are refused below {reserve} MiB");
    let step = if disk.free <= disk.reserve {
        Step::failed("disk", Fault::Local, text).remedy("free space on the disk of the directory")
    } else if disk.free / 4 <= disk.reserve {
        Step::warning("disk", text).remedy("free space soon")
    } else {
        Step::ok("disk", text)
    };
    step.fact("free", disk.free).fact("reserve", disk.reserve)
}

fn clock(config: &Config) -> Step {
    let now = SystemTime::now();
    let remedy = "set the clock, best by NTP (`timedatectl`), before the server records with it";
    if now.duration_since(UNIX_EPOCH).unwrap_or_default() < PLAUSIBLE {
        let text = "the clock of this machine is before 2025";
        return Step::failed("clock", Fault::Local, text).remedy(remedy);
    }
    match inspect::clock_behind(&config.data, now) {
        Some(behind) => {
            let text = format!("the newest entry is {} s ahead of the clock", behind.as_secs());
            Step::failed("clock", Fault::Local, text).remedy(remedy)
        }
        None => Step::ok("clock", "plausible: not before the newest entry"),
    }
}
